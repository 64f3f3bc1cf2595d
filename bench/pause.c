/*
 * How long a call of malloc or free and a plain write may take in a fragmented
 * heap, for pause.py, which preloads the malloc to be measured:
 *
 *	pause SLABS SIZE FREED SECONDS SEED
 *
 * fills SLABS pages with objects of SIZE bytes and frees FREED per cent of them at
 * random.  Then two threads write to random objects and replace them, for so many
 * seconds, each operation clocked.
 */

#define _GNU_SOURCE
#include "measure.h"
#include "report.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#define PAGE 4096
#define NTHREADS 2
/* Buckets of a histogram: so many for each doubling of nanoseconds. */
#define LG_STEPS 5
#define NBUCKETS ((64 - LG_STEPS) << LG_STEPS)
#define LONG_NS 1000000
/* From here on it is asked why an operation took so long. */
#define NOTABLE_NS 20000

/* Nothing at all tells what the machine itself makes a thread wait. */
enum operation { NOTHING, WRITE, FREE, MALLOC, NOPERATIONS };
static const char *const names[] = {"nothing", "write", "free", "malloc"};

typedef struct {
	uint64_t buckets[NBUCKETS];
	uint64_t count;
	uint64_t nlong;
	uint64_t longest_ns;
	/* The same without those in which another thread got the processor. */
	uint64_t waited_ns;
} histogram_t;

struct thread {
	pthread_t           id;
	volatile uint64_t **objects;
	size_t              nobjects;
	rng_t               rng;
	long                preemptions;
	histogram_t         histograms[NOPERATIONS];
};

static size_t   size;
static uint64_t end_ns;

static unsigned
bucket_of(uint64_t ns) {
	if (ns < 1 << LG_STEPS) {
		return (unsigned)ns;
	}
	unsigned lg = 63 - (unsigned)__builtin_clzll(ns) - LG_STEPS;
	return (lg << LG_STEPS) + (unsigned)(ns >> lg);
}

static double
bucket_ns(unsigned bucket) {
	unsigned lg = bucket >> LG_STEPS;
	if (lg == 0) {
		return bucket;
	}
	uint64_t step = (bucket & ((1 << LG_STEPS) - 1)) | 1 << LG_STEPS;
	return (double)(step << (lg - 1));
}

/* Whether the scheduler has taken the processor away since the last call. */
static bool
was_preempted(struct thread *thread) {
	struct rusage usage;
	getrusage(RUSAGE_THREAD, &usage);
	bool preempted = usage.ru_nivcsw != thread->preemptions;
	thread->preemptions = usage.ru_nivcsw;
	return preempted;
}

/* Notes what ended now and began at *ns, and begins anew. */
static void
clocked(struct thread *thread, enum operation operation, uint64_t *ns) {
	histogram_t *histogram = &thread->histograms[operation];
	uint64_t     now = now_ns(), took = now - *ns;
	histogram->buckets[bucket_of(took)]++;
	histogram->count++;
	if (took > histogram->longest_ns) {
		histogram->longest_ns = took;
	}
	if (took > NOTABLE_NS) {
		if (!was_preempted(thread)) {
			histogram->nlong += took > LONG_NS;
			if (took > histogram->waited_ns) {
				histogram->waited_ns = took;
			}
		}
		now = now_ns();
	}
	*ns = now;
}

static void *
thread_run(void *arg) {
	struct thread *thread = arg;
	was_preempted(thread);
	for (uint64_t ns = 0; ns < end_ns;) {
		uint32_t           n = (uint32_t)thread->nobjects;
		volatile uint64_t *written =
		    thread->objects[rng_below(&thread->rng, n)];
		volatile uint64_t **replaced =
		    &thread->objects[rng_below(&thread->rng, n)];
		/* The tables have cache misses of their own. */
		__asm__ volatile("" : : "r"(written), "r"(*replaced));
		ns = now_ns();
		clocked(thread, NOTHING, &ns);
		*written = ns;
		clocked(thread, WRITE, &ns);
		free((void *)*replaced);
		clocked(thread, FREE, &ns);
		volatile uint64_t *object = malloc(size);
		clocked(thread, MALLOC, &ns);
		*object = ns;
		*replaced = object;
	}
	return NULL;
}

static double
quantile_us(const histogram_t *histogram, double share) {
	uint64_t seen = 0;
	unsigned bucket = 0;
	do {
		seen += histogram->buckets[bucket++];
	} while ((double)seen < share * (double)histogram->count);
	return bucket_ns(bucket - 1) / 1e3;
}

/* The sum of an operation's histograms, as members of a JSON object. */
static int
histogram_print(char *text, size_t length, const struct thread *threads,
    enum operation operation) {
	static histogram_t sum;
	sum = (histogram_t){0};
	for (size_t i = 0; i < NTHREADS; i++) {
		const histogram_t *one = &threads[i].histograms[operation];
		for (unsigned b = 0; b < NBUCKETS; b++) {
			sum.buckets[b] += one->buckets[b];
		}
		sum.count += one->count;
		sum.nlong += one->nlong;
		if (one->longest_ns > sum.longest_ns) {
			sum.longest_ns = one->longest_ns;
		}
		if (one->waited_ns > sum.waited_ns) {
			sum.waited_ns = one->waited_ns;
		}
	}
	const struct {
		const char *name;
		double      value;
	} members[] = {
	    {"max_us", (double)sum.longest_ns / 1e3},
	    {"waited_us", (double)sum.waited_ns / 1e3},
	    {"9999_us", quantile_us(&sum, .9999)},
	    {"median_us", quantile_us(&sum, .5)},
	    {"long", (double)sum.nlong},
	    {"count", (double)sum.count},
	};
	int printed = 0;
	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
		printed += snprintf(text + printed, length - (size_t)printed,
		    "\"%s_%s\": %.3f, ", names[operation], members[i].name,
		    members[i].value);
	}
	return printed;
}

int
main(int argc, char **argv) {
	static struct thread threads[NTHREADS];
	if (argc != 6) {
		fprintf(stderr, "usage: pause SLABS SIZE FREED SECONDS SEED\n");
		return 2;
	}
	size = number_parse(argv[2]);
	size_t   n = number_parse(argv[1]) * (PAGE / size), nlive = 0;
	unsigned freed_percent = (unsigned)number_parse(argv[3]);
	rng_t    rng = {number_parse(argv[5])};

	volatile uint64_t **objects = outside_alloc(n * sizeof(*objects));
	report_phase("begin", "\"objects\": %zu", n);
	for (size_t i = 0; i < n; i++) {
		objects[i] = malloc(size);
		*objects[i] = i;
	}
	for (size_t i = 0; i < n; i++) {
		if (rng_below(&rng, 100) >= freed_percent) {
			objects[nlive++] = objects[i];
		} else {
			free((void *)objects[i]);
		}
	}
	report_phase("freed", "\"objects\": %zu", nlive);

	end_ns = now_ns() + number_parse(argv[4]) * UINT64_C(1000000000);
	for (size_t i = 0; i < NTHREADS; i++) {
		threads[i].nobjects = nlive / NTHREADS;
		threads[i].objects = objects + i * threads[i].nobjects;
		threads[i].rng.state = rng_next(&rng);
		if (pthread_create(
		        &threads[i].id, NULL, thread_run, &threads[i])
		    != 0) {
			die("pthread_create");
		}
	}
	for (size_t i = 0; i < NTHREADS; i++) {
		pthread_join(threads[i].id, NULL);
	}
	if (mesh_built()) {
		ctl_epoch();
	}
	char text[4096];
	int  length = 0;
	for (enum operation op = 0; op < NOPERATIONS; op++) {
		length += histogram_print(
		    text + length, sizeof(text) - (size_t)length, threads, op);
	}
	report_phase("measured", "%s\"nmeshes\": %llu", text,
	    (unsigned long long)mesh_stat("nmeshes"));
	return 0;
}
