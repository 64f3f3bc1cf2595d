#define _GNU_SOURCE
#include "scenario.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

#define OBJECTS_MAX 1000000
#define NTHREADS_MAX 16
#define SIZE_MIN 16
#define SIZE_MAX_SMALL 14337
#define HELD_BYTES ((size_t)8 << 20)
#define LOAD_BYTES ((size_t)2 << 20)

results_t  *results;
const char *scenario_arg = "";
table_t     held;

static pthread_t   threads[NTHREADS_MAX];
static unsigned    nthreads_running;
static atomic_bool stop;

void
expect(bool ok, const char *what) {
	if (!ok) {
		fprintf(stderr, "not so: %s\n", what);
		results->bad++;
	}
}

void
check(table_t *t) {
	results->checked += t->n;
	results->bad += table_check(t);
}

void
held_rewrite(void) {
	for (size_t i = 0; i < held.n; i++) {
		held.objects[i].id += (uint64_t)getpid() << 40;
		object_rewrite(&held.objects[i]);
	}
	check(&held);
}

static void
table_new(table_t *t) {
	static atomic_uint ntables;
	uint64_t           n = ++ntables;
	table_init(t, OBJECTS_MAX, n, n << 32);
}

static void
sparse(table_t *t, size_t bytes) {
	for (unsigned i = 1; i <= 4; i++) {
		table_fill(t, bytes / 4 * i, SIZE_MIN, SIZE_MAX_SMALL);
	}
	results->checked += t->n;
	results->bad += table_thin(t, 0.1, thin_random);
	ctl_do("thread.tcache.flush");
}

void
churn(table_t *t, size_t bytes) {
	if (t->objects == NULL) {
		table_new(t);
	}
	sparse(t, bytes);
	mesh_pass();
	check(t);
}

uint64_t
nmeshes(void) {
	ctl_epoch();
	return mesh_stat("nmeshes");
}

uint64_t
nfollowers(void) {
	ctl_epoch();
	return mesh_stat("followers");
}

static void *
load_main(void *arg) {
	(void)arg;
	table_t t;
	table_new(&t);
	while (!stop) {
		sparse(&t, LOAD_BYTES);
		for (unsigned i = 0; i < 20000 && t.n > 0 && !stop; i++) {
			object_bump(table_pick(&t));
		}
		check(&t);
	}
	results->bad += table_free(&t);
	return NULL;
}

void
load_start(unsigned nthreads) {
	stop = false;
	for (unsigned i = 0; i < nthreads; i++) {
		thread_start(&threads[i], load_main, NULL);
	}
	nthreads_running = nthreads;
}

void
load_stop(void) {
	stop = true;
	while (nthreads_running > 0) {
		pthread_join(threads[--nthreads_running], NULL);
	}
}

void
thread_start(pthread_t *thread, void *(*main)(void *), void *arg) {
	errno = pthread_create(thread, NULL, main, arg);
	if (errno != 0) {
		die("pthread_create");
	}
}

void
child_wait(pid_t pid, int status) {
	int got;
	if (waitpid(pid, &got, 0) < 0) {
		die("waitpid");
	}
	if (!WIFEXITED(got) || WEXITSTATUS(got) != status) {
		fprintf(stderr, "a child ended with status %#x\n", got);
		results->bad++;
	}
}

void
child_end(uint64_t nmeshes_before) {
	results->child_meshes += nmeshes() - nmeshes_before;
	_exit(0);
}

void
sleep_ms(unsigned ms) {
	nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

void
scenario_end(void) {
	load_stop();
	check(&held);
	ctl_epoch();
	printf(
	    "{\"checked\": %llu, \"bad\": %llu, \"child_meshes\": %llu,"
	    " \"count\": %llu, \"lost\": %llu, \"mesh\": ",
	    (unsigned long long)results->checked,
	    (unsigned long long)results->bad,
	    (unsigned long long)results->child_meshes,
	    (unsigned long long)results->count,
	    (unsigned long long)results->lost);
	mesh_print();
	printf("}\n");
	exit(results->bad > 0);
}

int
scenario_main(int argc, char **argv, const scenario_t *scenarios, size_t n) {
	results = outside_alloc_shared(sizeof(*results));
	for (size_t i = 0; argc > 1 && i < n; i++) {
		if (strcmp(argv[1], scenarios[i].name) == 0) {
			scenario_arg = argc > 2 ? argv[2] : "";
			churn(&held, HELD_BYTES);
			scenarios[i].run();
			scenario_end();
		}
	}
	fprintf(stderr, "usage: %s SCENARIO [ARG]; scenarios:", argv[0]);
	for (size_t i = 0; i < n; i++) {
		fprintf(stderr, " %s", scenarios[i].name);
	}
	fputc('\n', stderr);
	return 2;
}
