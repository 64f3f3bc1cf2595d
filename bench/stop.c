/*
 * How long threads stand still while a heap is meshed by mesh_barrier:signal, and
 * what that costs, for stop.py, which preloads the malloc to be measured:
 *
 *	stop THREADS SECONDS
 *
 * One thread looks at the clock all the time, the others sleep; the first one frees
 * at random and allocates again, once a second.
 */

#define _GNU_SOURCE
#include "measure.h"
#include "report.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define NOBJECTS 400000
#define SIZE 256
#define NSTOPS_MAX 1000000

static uint64_t   *stops;
static size_t      nstops;
static atomic_bool done;
static sem_t       never;

static void *
sleep_main(void *arg) {
	(void)arg;
	while (!done) {
		sem_wait(&never);
	}
	return NULL;
}

/* It goes to sleep of its own accord only to wait for the end of a stop. */
static void *
watch_main(void *arg) {
	struct rusage usage;
	getrusage(RUSAGE_THREAD, &usage);
	long     nsleeps = usage.ru_nvcsw;
	uint64_t last = now_ns();
	while (!done) {
		uint64_t now = now_ns();
		if (now - last > 10000) {
			getrusage(RUSAGE_THREAD, &usage);
			if (usage.ru_nvcsw != nsleeps && nstops < NSTOPS_MAX) {
				stops[nstops++] = now - last;
			}
			nsleeps = usage.ru_nvcsw;
			now = now_ns();
		}
		last = now;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, arg);
	return NULL;
}

static double
cpu_s(clockid_t clock) {
	struct timespec ts;
	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int
compare(const void *a, const void *b) {
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

int
main(int argc, char **argv) {
	if (argc != 3) {
		fprintf(stderr, "usage: stop THREADS SECONDS\n");
		return 2;
	}
	size_t          nthreads = number_parse(argv[1]);
	uint64_t        seconds = number_parse(argv[2]);
	void          **objects = outside_alloc(NOBJECTS * sizeof(void *));
	pthread_t      *threads = outside_alloc(nthreads * sizeof(pthread_t));
	pthread_attr_t  attr;
	struct timespec watched;
	rng_t           rng = {1};
	stops = outside_alloc(NSTOPS_MAX * sizeof(*stops));
	sem_init(&never, 0, 0);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, (size_t)64 << 10);
	for (size_t i = 0; i < nthreads; i++) {
		if (pthread_create(&threads[i], &attr,
		        i == 0 ? watch_main : sleep_main, &watched)
		    != 0) {
			die("pthread_create");
		}
	}
	report_phase("begin", "\"threads\": %zu", nthreads);
	double begin_s = cpu_s(CLOCK_PROCESS_CPUTIME_ID), own_s = 0;
	for (uint64_t end = now_ns() + seconds * 1000000000; now_ns() < end;) {
		double before_s = cpu_s(CLOCK_THREAD_CPUTIME_ID);
		for (size_t i = 0; i < NOBJECTS; i++) {
			if (objects[i] == NULL) {
				objects[i] = malloc(SIZE);
			} else if (rng_below(&rng, 10) != 0) {
				free(objects[i]);
				objects[i] = NULL;
			}
		}
		own_s += cpu_s(CLOCK_THREAD_CPUTIME_ID) - before_s;
		nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
	}
	done = true;
	pthread_join(threads[0], NULL);
	double mesh_s = cpu_s(CLOCK_PROCESS_CPUTIME_ID) - begin_s - own_s
	    - (double)watched.tv_sec - (double)watched.tv_nsec / 1e9;
	for (size_t i = 1; i < nthreads; i++) {
		sem_post(&never);
	}
	for (size_t i = 1; i < nthreads; i++) {
		pthread_join(threads[i], NULL);
	}
	qsort(stops, nstops, sizeof(*stops), compare);
	ctl_epoch();
	report_phase("measured",
	    "\"stops\": %zu, \"half_us\": %.1f, \"longest_us\": %.1f, "
	    "\"share\": %.4f, \"nmeshes\": %llu",
	    nstops, nstops > 0 ? (double)stops[nstops / 2] / 1e3 : 0,
	    nstops > 0 ? (double)stops[nstops - 1] / 1e3 : 0,
	    mesh_s / (double)seconds,
	    (unsigned long long)mesh_stat("nmeshes"));
	return 0;
}
