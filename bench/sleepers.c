/*
 * How much meshing costs a program of which many threads are asleep on futexes in
 * small objects of the heap: a given number of rounds of allocation, each followed
 * by a pass on request, while they sleep.
 *
 * usage: sleepers THREADS shared|private ROUNDS; prints JSON
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPARSE 16
#define SIZE 256
#define MB ((size_t)1 << 20)

static int         private;
static atomic_uint nwoken;

static void *
sleeper_main(void *arg) {
	_Atomic uint32_t *word = arg;
	while (*word == 0) {
		syscall(SYS_futex, word, FUTEX_WAIT | private, 0, NULL);
	}
	nwoken++;
	return NULL;
}

/* Words in slabs with little else, on which threads sleep. */
static void
sleepers_start(_Atomic uint32_t **words, unsigned n) {
	void **all = outside_alloc(n * SPARSE * sizeof(void *));
	for (unsigned i = 0; i < n * SPARSE; i++) {
		all[i] = calloc(1, SIZE);
	}
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	for (unsigned i = 0; i < n * SPARSE; i++) {
		if (i % SPARSE != 0) {
			free(all[i]);
			continue;
		}
		pthread_t thread;
		words[i / SPARSE] = all[i];
		errno = pthread_create(
		    &thread, &attr, sleeper_main, all[i]);
		if (errno != 0) {
			die("pthread_create");
		}
	}
	ctl_do("thread.tcache.flush");
	/* Until all are asleep. */
	usleep(500000);
}

static double
cpu_s(void) {
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec)
	    + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int
main(int argc, char **argv) {
	if (argc != 4) {
		fputs("usage: sleepers THREADS shared|private ROUNDS\n", stderr);
		return 2;
	}
	unsigned n = (unsigned)number_parse(argv[1]);
	uint64_t rounds = number_parse(argv[3]);
	private = strcmp(argv[2], "private") == 0 ? FUTEX_PRIVATE_FLAG : 0;
	_Atomic uint32_t **words = outside_alloc(n * sizeof(*words));
	table_t            t;
	table_init(&t, 1000000, 1, UINT64_C(1) << 32);
	sleepers_start(words, n);
	double cpu = cpu_s();
	for (uint64_t i = 0; i < rounds; i++) {
		table_fill(&t, 32 * MB, 32, 1000);
		table_thin(&t, 0.1, thin_random);
		ctl_do("thread.tcache.flush");
		mesh_pass();
	}
	cpu = cpu_s() - cpu;
	ctl_epoch();
	unsigned nmeshed = 0;
	for (unsigned i = 0; i < n; i++) {
		nmeshed += mesh_range((void *)words[i], SIZE);
		*words[i] = 1;
		syscall(SYS_futex, words[i], FUTEX_WAKE | private, INT_MAX);
	}
	for (unsigned i = 0; i < 50 && nwoken < n; i++) {
		usleep(100000);
	}
	printf(
	    "{\"cpu_s\": %.3f, \"mesh_s\": %.3f, \"nmeshes\": %llu,"
	    " \"meshed\": %u, \"woken\": %u}\n",
	    cpu, (double)mesh_stat("time_ns") / 1e9,
	    (unsigned long long)mesh_stat("nmeshes"), nmeshed, nwoken);
	fflush(stdout);
	_exit(0);
}
