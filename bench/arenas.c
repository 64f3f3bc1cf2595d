/*
 * A heap that many threads share and fragment, for arenas.py, which preloads the
 * malloc to be measured:
 *
 *	arenas THREADS BYTES SIZE FREED ROUNDS SECONDS
 *
 * has the threads allocate BYTES of objects of SIZE bytes (0: of 8 bytes to 14 KiB, each
 * doubling as likely) together, hand them on in ROUNDS rounds, in each of which a thread replaces random ones of those that another one
 * had, free FREED per cent of what they then hold, and wait while the program idles.
 */

#define _GNU_SOURCE
#include "measure.h"
#include "report.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREADS 1024
#define MIX_MIN 8
#define MIX_MAX (14 << 10)
/* Of objects of these sizes. */
#define MIX_MEAN 2048

static unsigned          nthreads, freed_percent, nrounds;
static size_t            size, nobjects;
static pthread_barrier_t barrier;
/* What a thread holds; thread t has that of hands[(t + round) % nthreads]. */
static void **hands[MAX_THREADS];

static void *
object_new(rng_t *rng) {
	size_t nbytes = size == 0 ? rng_size(rng, MIX_MIN, MIX_MAX) : size;
	char  *p = malloc(nbytes);
	if (p == NULL) {
		die("malloc");
	}
	memset(p, 1, nbytes);
	return p;
}

/* All threads are there, and then all go on, after the first thread did its part. */
static void
stage_end(void) {
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
}

static void *
thread_run(void *arg) {
	unsigned thread = (unsigned)(uintptr_t)arg;
	rng_t    rng = {thread};
	void   **hand = hands[thread];
	for (size_t i = 0; i < nobjects; i++) {
		hand[i] = object_new(&rng);
	}
	stage_end();
	for (unsigned round = 1; round <= nrounds; round++) {
		hand = hands[(thread + round) % nthreads];
		for (size_t i = 0; i < nobjects; i++) {
			void **slot =
			    &hand[rng_below(&rng, (uint32_t)nobjects)];
			free(*slot);
			*slot = object_new(&rng);
		}
		pthread_barrier_wait(&barrier);
	}
	stage_end();
	for (size_t i = 0; i < nobjects; i++) {
		if (rng_below(&rng, 100) < freed_percent) {
			free(hand[i]);
		}
	}
	stage_end();
	/* They wait for work, which does not come. */
	stage_end();
	return NULL;
}

int
main(int argc, char **argv) {
	static pthread_t threads[MAX_THREADS];
	if (argc != 7) {
		fprintf(stderr,
		    "usage: arenas THREADS BYTES SIZE FREED ROUNDS SECONDS\n");
		return 2;
	}
	nthreads = (unsigned)number_parse(argv[1]);
	size = number_parse(argv[3]);
	freed_percent = (unsigned)number_parse(argv[4]);
	nrounds = (unsigned)number_parse(argv[5]);
	if (nthreads == 0 || nthreads > MAX_THREADS) {
		fprintf(stderr, "arenas: no such number of threads\n");
		return 2;
	}
	nobjects = number_parse(argv[2]) / (size == 0 ? MIX_MEAN : size)
	    / nthreads;
	pthread_barrier_init(&barrier, NULL, nthreads + 1);
	for (unsigned i = 0; i < nthreads; i++) {
		hands[i] = outside_alloc(nobjects * sizeof(void *));
		memset(hands[i], 0, nobjects * sizeof(void *));
	}
	report_phase("begin", "\"threads\": %u", nthreads);
	for (uintptr_t i = 0; i < nthreads; i++) {
		if (pthread_create(&threads[i], NULL, thread_run, (void *)i)
		    != 0) {
			die("pthread_create");
		}
	}
	pthread_barrier_wait(&barrier);
	report_phase("allocated", "\"objects\": %zu", nthreads * nobjects);
	uint64_t begin = now_ns();
	pthread_barrier_wait(&barrier);
	for (unsigned round = 0; round < nrounds; round++) {
		pthread_barrier_wait(&barrier);
	}
	pthread_barrier_wait(&barrier);
	report_phase("replaced", "\"rate\": %.1f",
	    (double)nthreads * (double)nobjects * nrounds * 1e9
	        / (double)(now_ns() - begin));
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	report_phase("freed", "\"freed\": %u", freed_percent);
	pthread_barrier_wait(&barrier);
	sleep((unsigned)number_parse(argv[6]));
	pthread_barrier_wait(&barrier);
	ctl_epoch();
	report_phase("idled", "\"nmeshes\": %llu",
	    (unsigned long long)mesh_stat("nmeshes"));
	pthread_barrier_wait(&barrier);
	for (unsigned i = 0; i < nthreads; i++) {
		pthread_join(threads[i], NULL);
	}
	return 0;
}
