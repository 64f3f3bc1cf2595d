/*
 * Threads that free small objects at random places, and allocate one for every two,
 * until a quarter is left.  Some of them look at their caches meanwhile, flush them,
 * or set their size.  Prints as JSON how the slabs of their size are filled then,
 * whether any object was changed, and what threads saw of their caches; and whether
 * they have them again when there are as many objects as before.
 */
#include "measure.h"

#include <jemalloc/jemalloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char usage[] =
    "usage: pack [-t threads] [-c]\n"
    "  -c  do all sorts of things to the caches\n";

#define SIZE 32
#define NOBJECTS 400000
#define THREADS_MAX 16
/* Steps after which a thread sleeps, so that passes come. */
#define PACE 1000

static unsigned nthreads = 1;
static bool     with_calls;
static uint64_t npacked, nbad, nodd;
static size_t   cache_default;

static size_t
cache_size(void) {
	size_t size = SIZE, max, length = sizeof(max);
	if (mallctl("thread.tcache.ncached_max.read_sizeclass", &max, &length,
	        &size, sizeof(size))
	    != 0) {
		die("thread.tcache.ncached_max.read_sizeclass");
	}
	return max;
}

static void
cache_write(const char *settings) {
	if (mallctl("thread.tcache.ncached_max.write", NULL, NULL, &settings,
	        sizeof(settings))
	    != 0) {
		die("thread.tcache.ncached_max.write");
	}
}

/* Does one of several things; whatever mesh does, the user's settings are kept. */
static void
cache_call(rng_t *rng) {
	bool on = false;
	switch (rng_below(rng, 4)) {
	case 0:
		ctl_do("thread.tcache.flush");
		break;
	case 1:
		cache_write("32-32:60");
		nodd += (cache_size() != 60);
		cache_write("32-32:0");
		nodd += (cache_size() != 0);
		break;
	case 2:
		mallctl("thread.tcache.enabled", NULL, NULL, &on, sizeof(on));
		on = true;
		mallctl("thread.tcache.enabled", NULL, NULL, &on, sizeof(on));
		break;
	default:
		nodd += (cache_size() != cache_default);
	}
	cache_write("32-32:200");
}

static void
object_free(uint64_t *object) {
	__atomic_fetch_add(&nbad,
	    object[0] != mix64((uintptr_t)object)
	        || object[1] != ~(uintptr_t)object,
	    __ATOMIC_RELAXED);
	free(object);
}

static uint64_t *
object_new(void) {
	uint64_t *object = malloc(SIZE);
	object[0] = mix64((uintptr_t)object);
	object[1] = ~(uintptr_t)object;
	return object;
}

static void *
shrinker_main(void *arg) {
	rng_t      rng = {(uintptr_t)arg + 1};
	size_t     n = NOBJECTS / nthreads;
	uint64_t **objects = outside_alloc(n * sizeof(*objects));
	for (size_t i = 0; i < n; i++) {
		objects[i] = object_new();
	}
	for (size_t step = 0; n > NOBJECTS / nthreads / 4; step++) {
		for (unsigned i = 0; i < 2; i++) {
			size_t k = rng_below(&rng, (uint32_t)n);
			object_free(objects[k]);
			objects[k] = objects[--n];
		}
		objects[n++] = object_new();
		if (step % PACE == 0) {
			usleep(PACE);
			if (with_calls && rng_below(&rng, 4) == 0) {
				cache_call(&rng);
			}
			if (arg == NULL && step % (16 * PACE) == 0) {
				ctl_epoch();
				npacked += mesh_stat("packed") > 0;
			}
		}
	}
	/* Who waits for the others leaves its cache to nobody. */
	ctl_do("thread.tcache.flush");
	return objects;
}

/* Allocates more, which stays; returns for how many classes caches are off then. */
static uint64_t
grow(void) {
	for (size_t i = 0; i < NOBJECTS; i++) {
		(void)*(volatile uint64_t *)object_new();
		if (i % PACE == 0) {
			usleep(PACE);
		}
	}
	ctl_epoch();
	return mesh_stat("packed");
}

int
main(int argc, char **argv) {
	pthread_t threads[THREADS_MAX];
	void     *objects[THREADS_MAX] = {NULL};
	for (int c; (c = getopt(argc, argv, "t:c")) != -1;) {
		switch (c) {
		case 't':
			nthreads = (unsigned)number_parse(optarg);
			break;
		case 'c':
			with_calls = true;
			break;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	if (nthreads == 0 || nthreads > THREADS_MAX) {
		fputs(usage, stderr);
		return 2;
	}
	cache_default = cache_size();
	for (uintptr_t i = 0; i < nthreads; i++) {
		if (pthread_create(&threads[i], NULL, shrinker_main, (void *)i)
		    != 0) {
			die("pthread_create");
		}
	}
	for (unsigned i = 0; i < nthreads; i++) {
		pthread_join(threads[i], &objects[i]);
	}
	ctl_epoch();
	printf(
	    "{\"slabs\": %llu, \"nonfull\": %llu, \"packed\": %llu, \"odd\": %llu,"
	    " \"kept\": %lld,",
	    (unsigned long long)ctl_number("stats.arenas.4096.bins.2.curslabs"),
	    (unsigned long long)ctl_number(
	        "stats.arenas.4096.bins.2.nonfull_slabs"),
	    (unsigned long long)npacked, (unsigned long long)nodd,
	    (long long)ctl_number("stats.arenas.4096.bins.2.curregs")
	        - (long long)(NOBJECTS / nthreads / 4 * nthreads));
	uint64_t packed_at_last = grow();
	for (unsigned i = 0; i < nthreads; i++) {
		for (size_t k = 0; k < NOBJECTS / nthreads / 4; k++) {
			object_free(((uint64_t **)objects[i])[k]);
		}
	}
	printf(" \"bad\": %llu, \"packed_at_last\": %llu}\n",
	    (unsigned long long)nbad, (unsigned long long)packed_at_last);
	return 0;
}
