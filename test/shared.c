/*
 * What a fork does to meshing: a scan that it comes in the midst of, slabs that parent
 * and child share in part, and packing where they share all.  Meshes in ticks or when
 * it says so.  Prints as JSON what came of it.
 *
 * usage: shared scan
 *        shared own PAGES  of the five that a slab has, which the child writes to
 *        shared pack 0|1   1: the child writes to all objects before
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

/* As many as fill the slabs of two blocks of a scan. */
#define NOBJECTS 672000
/* Pages of a slab for objects of 320 bytes. */
#define NPAGES 5
/* Seconds after which a program gives up that waits for meshing. */
#define PATIENCE_S 100

static table_t held;
static size_t  nbad;

/* Enough events of its arena for one tick. */
static void
tick(void) {
	enum { nevents = 1000 };
	for (unsigned i = 0; i < nevents; i += 2) {
		dallocx(mallocx(1, MALLOCX_TCACHE_NONE), MALLOCX_TCACHE_NONE);
	}
}

/* How many of some objects, each step-th, lie in meshed slabs. */
static size_t
nmeshed(size_t begin, size_t end, size_t step) {
	size_t n = 0;
	for (size_t i = begin; i < end; i += step) {
		n += mesh_range(held.objects[i].p, held.objects[i].size);
	}
	return n;
}

/* Ticks until that are more than n. */
static void
await_meshed(size_t begin, size_t end, size_t step, size_t n) {
	uint64_t until = now_ns() + PATIENCE_S * UINT64_C(1000000000);
	while (nmeshed(begin, end, step) <= n) {
		if (now_ns() > until) {
			errno = ETIMEDOUT;
			die("meshing");
		}
		tick();
	}
}

/* Frees all but nkept of eight of some objects.  Returns where the rest ends. */
static size_t
thin(size_t begin, size_t end, unsigned nkept) {
	size_t at = begin;
	for (size_t i = begin; i < end; i++) {
		object_t o = held.objects[i];
		if (rng_below(&held.rng, 8) < nkept) {
			held.objects[at++] = o;
		} else {
			nbad += object_bad(&o);
			free(o.p);
		}
	}
	memmove(&held.objects[at], &held.objects[end],
	    (held.n - end) * sizeof(object_t));
	held.n -= end - at;
	return at;
}

static int
object_compare(const void *a, const void *b) {
	const unsigned char *p = ((const object_t *)a)->p;
	const unsigned char *q = ((const object_t *)b)->p;
	return (p > q) - (p < q);
}

/*
 * A fork as a scan is at the last slabs, while there are more to mesh at the beginning
 * than there were when it began.
 */
static void
scan(void) {
	enum { step = 64, dense = 6, sparse = 1 };
	size_t        low = 4096, high = NOBJECTS / 4 * 3;
	struct rlimit limit, none;
	table_fill_some(&held, NOBJECTS, 256);
	qsort(held.objects, held.n, sizeof(object_t), object_compare);
	/* Nothing is meshed meanwhile. */
	if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
		die("getrlimit");
	}
	none = limit;
	none.rlim_cur = 0;
	setrlimit(RLIMIT_NOFILE, &none);
	thin(high, held.n, sparse);
	/* The lowest slabs stay full, and are not looked at. */
	high = thin(low, high, dense);
	setrlimit(RLIMIT_NOFILE, &limit);
	await_meshed(high, held.n, step, 0);
	size_t nhigh = held.n - high;
	low = thin(0, low, sparse);
	high = held.n - nhigh;
	size_t before = nmeshed(high, held.n, step);
	pid_t  pid = fork_or_die();
	if (pid == 0) {
		_exit(0);
	}
	nbad += (size_t)child_status(pid);
	size_t all = nhigh / step;
	await_meshed(high, held.n, step, before + (all - before) / 8);
	printf("{\"all\": %zu, \"before\": %zu, \"low\": %zu", all, before,
	    nmeshed(0, low, 1));
}

/* Whether an object lies on the first npages alone of each NPAGES that follow. */
static bool
object_on(const object_t *o, unsigned npages) {
	enum { page = 4096 };
	uintptr_t first = (uintptr_t)o->p / page;
	uintptr_t last = ((uintptr_t)o->p + o->size - 1) / page;
	return first % NPAGES < npages && last % NPAGES < npages;
}

/* A child writes to so many pages of each slab, and then to nothing any more. */
static void
own(unsigned npages) {
	table_fill_some(&held, 60000, 320);
	pid_t pid = fork_or_die();
	if (pid == 0) {
		for (size_t i = 0; i < held.n; i++) {
			if (object_on(&held.objects[i], npages)) {
				object_rewrite(&held.objects[i]);
			}
		}
		thin(0, held.n, 1);
		ctl_do("arena.4096.mesh");
		ctl_epoch();
		printf("{\"followers\": %llu",
		    (unsigned long long)mesh_stat("followers"));
		fflush(stdout);
		_exit(nbad + table_check(&held) != 0);
	}
	nbad += (size_t)child_status(pid);
}

/* A child frees most objects bit by bit. */
static void
pack(bool writes) {
	enum { pace = 1000 };
	table_fill_some(&held, 400000, 32);
	size_t min = held.n / 4;
	pid_t  pid = fork_or_die();
	if (pid == 0) {
		uint64_t npacked = 0;
		for (size_t i = 0; writes && i < held.n; i++) {
			object_rewrite(&held.objects[i]);
		}
		while (held.n > min) {
			object_t o = table_remove(&held, table_pick(&held));
			nbad += object_bad(&o);
			free(o.p);
			if (held.n % pace == 0) {
				tick();
				ctl_epoch();
				npacked += mesh_stat("packed") > 0;
			}
		}
		printf("{\"packed\": %llu", (unsigned long long)npacked);
		fflush(stdout);
		_exit(nbad + table_check(&held) != 0);
	}
	nbad += (size_t)child_status(pid);
}

int
main(int argc, char **argv) {
	const char *name = argc > 1 ? argv[1] : "";
	unsigned    n = argc > 2 ? (unsigned)number_parse(argv[2]) : 0;
	table_init(&held, NOBJECTS, 1, (uint64_t)1 << 32);
	if (strcmp(name, "scan") == 0) {
		scan();
	} else if (strcmp(name, "own") == 0) {
		own(n);
	} else if (strcmp(name, "pack") == 0) {
		pack(n != 0);
	} else {
		fputs("usage: shared scan | own PAGES | pack 0|1\n", stderr);
		return 2;
	}
	nbad += table_check(&held);
	printf(", \"bad\": %zu}\n", nbad);
	return 0;
}
