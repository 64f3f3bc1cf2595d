/*
 * Allocation patterns for speed.py, which preloads the malloc to be measured:
 *
 *	speed PATTERN THREADS OPERATIONS SIZE
 *
 * does so many operations (a malloc and a free) in each thread and prints as
 * JSON which malloc it was and how long it took.  Each thread first does the
 * same once unmeasured, so that start-up and the first growth of the heap stay
 * out of the figures; what is measured runs below measured(), by which callgrind
 * tells it apart.
 */

#define _GNU_SOURCE
#include "report.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 64
/* Regions alive at a time: in a batch of flush, in each hand of larson. */
#define FLUSH_BATCH 4096
#define LARSON_SLOTS 1024
#define LARSON_HAND_OVER (64 * LARSON_SLOTS)
#define MIXED_SLOTS 32768
#define MIXED_MIN ((size_t)8)
/* pipe: pointers handed over at once, and how many such loads may wait. */
#define PIPE_LOAD 256
#define PIPE_WAITING 16

static unsigned nthreads;
static size_t   noperations;
static size_t   size;

static pthread_barrier_t barrier;

static void *
region_new(size_t nbytes) {
	char *p = malloc(nbytes);
	if (p == NULL) {
		abort();
	}
	/* A program writes what it allocates, and the compiler keeps it. */
	*(volatile char *)p = 1;
	return p;
}

/* One region at a time: the thread cache answers all. */
static void
pattern_local(unsigned thread) {
	(void)thread;
	for (size_t i = 0; i < noperations; i++) {
		free(region_new(size));
	}
}

/* Thousands at a time, so that the thread cache is filled and flushed. */
static void
pattern_flush(unsigned thread) {
	static void *regions[MAX_THREADS][FLUSH_BATCH];
	void       **batch = regions[thread];
	for (size_t i = 0; i < noperations; i += FLUSH_BATCH) {
		for (size_t j = 0; j < FLUSH_BATCH; j++) {
			batch[j] = region_new(size);
		}
		for (size_t j = 0; j < FLUSH_BATCH; j++) {
			free(batch[j]);
		}
	}
}

/* xorshift: cheaper than the malloc that is measured. */
static uint64_t
random_next(uint64_t *random) {
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random;
}

/*
 * As Larson and Krishnan's server: each thread replaces random regions by ones
 * of random sizes up to size, and hands them all to its neighbour now and then.
 */
static void
pattern_larson(unsigned thread) {
	static void *hands[MAX_THREADS][LARSON_SLOTS];
	uint64_t     random = 0x9e3779b97f4a7c15 * (thread + 1);
	unsigned     hand = thread;
	for (size_t i = 0; i < noperations; i++) {
		if (i % LARSON_HAND_OVER == 0) {
			pthread_barrier_wait(&barrier);
			hand = (hand + 1) % nthreads;
		}
		random_next(&random);
		void **slot = &hands[hand][random % LARSON_SLOTS];
		free(*slot);
		*slot = region_new(1 + (random >> 32) % size);
	}
}

/*
 * Each thread replaces random ones of many regions by ones of sizes of which each
 * doubling up to size is as likely: most of them miss the processor's caches.
 */
static void
pattern_mixed(unsigned thread) {
	static void *slots[MAX_THREADS][MIXED_SLOTS];
	uint64_t     random = 0x9e3779b97f4a7c15 * (thread + 1);
	unsigned     ndoublings = 0;
	while (MIXED_MIN << (ndoublings + 1) <= size) {
		ndoublings++;
	}
	for (size_t i = 0; i < noperations; i++) {
		random_next(&random);
		void **slot = &slots[thread][random % MIXED_SLOTS];
		size_t least = MIXED_MIN << (random >> 20) % ndoublings;
		free(*slot);
		*slot = region_new(least + (random >> 32) % least);
	}
}

/* The first thread allocates what the second one frees. */
static void
pattern_pipe(unsigned thread) {
	static void           *loads[PIPE_WAITING][PIPE_LOAD];
	static size_t          nproduced, nconsumed;
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t  changed = PTHREAD_COND_INITIALIZER;
	bool                   producer = (thread == 0);

	for (size_t i = 0; i < noperations; i += PIPE_LOAD) {
		pthread_mutex_lock(&mutex);
		while (nproduced - nconsumed == (producer ? PIPE_WAITING : 0)) {
			pthread_cond_wait(&changed, &mutex);
		}
		void **load =
		    loads[(producer ? nproduced : nconsumed) % PIPE_WAITING];
		pthread_mutex_unlock(&mutex);
		for (size_t j = 0; j < PIPE_LOAD; j++) {
			if (producer) {
				load[j] = region_new(size);
			} else {
				free(load[j]);
			}
		}
		pthread_mutex_lock(&mutex);
		(*(producer ? &nproduced : &nconsumed))++;
		pthread_cond_signal(&changed);
		pthread_mutex_unlock(&mutex);
	}
}

static const struct {
	const char *name;
	void (*run)(unsigned thread);
} patterns[] = {
    {"local", pattern_local},
    {"flush", pattern_flush},
    {"larson", pattern_larson},
    {"mixed", pattern_mixed},
    {"pipe", pattern_pipe},
};

static void (*pattern)(unsigned thread);

__attribute__((noinline)) static void
measured(unsigned thread) {
	pattern(thread);
	/* Not a tail call: callgrind watches this function's return. */
	__asm__ volatile("");
}

struct thread {
	pthread_t id;
	unsigned  number;
	uint64_t  start_ns;
	uint64_t  end_ns;
};

static void *
thread_run(void *arg) {
	struct thread *thread = arg;
	pattern(thread->number);
	pthread_barrier_wait(&barrier);
	thread->start_ns = now_ns();
	measured(thread->number);
	thread->end_ns = now_ns();
	return NULL;
}

int
main(int argc, char **argv) {
	static struct thread threads[MAX_THREADS];
	if (argc != 5) {
		fprintf(
		    stderr, "usage: speed PATTERN THREADS OPERATIONS SIZE\n");
		return 2;
	}
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		if (strcmp(argv[1], patterns[i].name) == 0) {
			pattern = patterns[i].run;
		}
	}
	nthreads = (unsigned)strtoul(argv[2], NULL, 10);
	noperations = strtoul(argv[3], NULL, 10);
	size = strtoul(argv[4], NULL, 10);
	if (pattern == NULL || nthreads == 0 || nthreads > MAX_THREADS
	    || size == 0 || (pattern == pattern_mixed && size < 2 * MIXED_MIN)
	    || (pattern == pattern_pipe && nthreads != 2)) {
		fprintf(stderr, "speed: no such pattern, threads or size\n");
		return 2;
	}

	pthread_barrier_init(&barrier, NULL, nthreads);
	for (unsigned i = 0; i < nthreads; i++) {
		threads[i].number = i;
		if (pthread_create(
		        &threads[i].id, NULL, thread_run, &threads[i])
		    != 0) {
			abort();
		}
	}
	uint64_t start_ns = UINT64_MAX, end_ns = 0;
	for (unsigned i = 0; i < nthreads; i++) {
		pthread_join(threads[i].id, NULL);
		if (threads[i].start_ns < start_ns) {
			start_ns = threads[i].start_ns;
		}
		if (threads[i].end_ns > end_ns) {
			end_ns = threads[i].end_ns;
		}
	}

	putchar('{');
	report_malloc();
	printf(", \"seconds\": %.9f}\n", (double)(end_ns - start_ns) / 1e9);
	return 0;
}
