/*
 * Threads that free a few objects each, far apart, and idle then: their caches hold
 * what they have freed.  The heap is meshed; then they allocate that again and write
 * to it.  Prints as JSON physical memory before and after the pass, how many objects
 * came out of the caches, and how many were changed by anybody else.
 */
#include "measure.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NTHREADS 64
/* Of this size a cache holds so many. */
#define NCACHED 32
#define SIZE 256
/* Two slabs of 16 regions for each object that some cache will hold. */
#define STRIDE 32
#define NOBJECTS (NTHREADS * NCACHED * STRIDE)

static void            **objects;
static pthread_barrier_t turn;
static uint64_t          nagain, nbad;

/* The k-th object of a thread: its neighbours are other threads'. */
static void **
object_of(uintptr_t thread, size_t k) {
	return &objects[(k * NTHREADS + thread) * STRIDE];
}

static void *
idler_main(void *arg) {
	uintptr_t self = (uintptr_t)arg;
	void     *again[NCACHED];
	char      mine[SIZE];
	memset(mine, (int)self + 1, SIZE);
	/* A thread that only frees has no cache. */
	void *volatile first = malloc(1);
	free(first);
	for (size_t k = 0; k < NCACHED; k++) {
		free(*object_of(self, k));
	}
	pthread_barrier_wait(&turn);
	/* Idle, while the heap is meshed. */
	pthread_barrier_wait(&turn);
	for (size_t k = 0; k < NCACHED; k++) {
		again[k] = memcpy(malloc(SIZE), mine, SIZE);
	}
	pthread_barrier_wait(&turn);
	for (size_t k = 0; k < NCACHED; k++) {
		size_t j = 0;
		while (j < NCACHED && again[k] != *object_of(self, j)) {
			j++;
		}
		__atomic_fetch_add(&nagain, j < NCACHED, __ATOMIC_RELAXED);
		__atomic_fetch_add(
		    &nbad, memcmp(again[k], mine, SIZE) != 0, __ATOMIC_RELAXED);
		free(again[k]);
	}
	return NULL;
}

int
main(void) {
	pthread_t threads[NTHREADS];
	pthread_barrier_init(&turn, NULL, NTHREADS + 1);
	objects = outside_alloc(NOBJECTS * sizeof(*objects));
	for (size_t i = 0; i < NOBJECTS; i++) {
		objects[i] = memset(malloc(SIZE), 0, SIZE);
	}
	for (uintptr_t i = 0; i < NTHREADS; i++) {
		if (pthread_create(&threads[i], NULL, idler_main, (void *)i)
		    != 0) {
			die("pthread_create");
		}
	}
	pthread_barrier_wait(&turn);
	for (size_t i = 0; i < NOBJECTS; i++) {
		if (i % STRIDE != 0) {
			free(objects[i]);
		}
	}
	ctl_do("thread.tcache.flush");
	uint64_t idle = rss_anon() + store_blocks();
	mesh_pass();
	uint64_t meshed = rss_anon() + store_blocks();
	ctl_epoch();
	pthread_barrier_wait(&turn);
	pthread_barrier_wait(&turn);
	for (size_t i = 0; i < NTHREADS; i++) {
		pthread_join(threads[i], NULL);
	}
	printf(
	    "{\"cached\": %d, \"idle\": %llu, \"meshed\": %llu,"
	    " \"again\": %llu, \"bad\": %llu, \"mesh\": ",
	    NTHREADS * NCACHED, (unsigned long long)idle,
	    (unsigned long long)meshed, (unsigned long long)nagain,
	    (unsigned long long)nbad);
	mesh_print();
	printf("}\n");
	return nbad > 0;
}
