/*
 * What a pass costs once nothing is left to do, for scale.py, which preloads the
 * jemalloc to be measured:
 *
 *	scale BYTES SIZE FREED SECONDS SEED
 *
 * fills BYTES with objects of SIZE bytes, frees FREED per cent of them at random,
 * meshes until no more comes of it, meshes again, and idles.
 */

#define _GNU_SOURCE
#include "measure.h"
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Enough is tried when so many passes came to nothing, or after so long. */
#define IDLE_PASSES 3
#define MESHING_NS (UINT64_C(300) * 1000000000)
/* Passes to take the mean of. */
#define PASSES 5

static uint64_t
cpu_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* A stock jemalloc has no passes. */
static void
pass(void) {
	if (mesh_pass() && mesh_built() && mesh_off()[0] == '\0') {
		die("arena.4096.mesh");
	}
	ctl_epoch();
}

static void
phase(const char *name, uint64_t cpu_ns_each) {
	report_phase(name,
	    "\"pass_ms\": %.3f, \"metadata\": %llu, \"npasses\": %llu,"
	    " \"followers\": %llu, \"saved\": %llu, \"time_ms\": %.1f",
	    (double)cpu_ns_each / 1e6,
	    (unsigned long long)ctl_number("stats.metadata"),
	    (unsigned long long)mesh_stat("npasses"),
	    (unsigned long long)mesh_stat("followers"),
	    (unsigned long long)mesh_stat("saved"),
	    (double)mesh_stat("time_ns") / 1e6);
}

int
main(int argc, char **argv) {
	if (argc != 6) {
		fprintf(stderr, "usage: scale BYTES SIZE FREED SECONDS SEED\n");
		return 2;
	}
	size_t   size = number_parse(argv[2]);
	size_t   n = number_parse(argv[1]) / size, nlive = 0;
	unsigned freed_percent = (unsigned)number_parse(argv[3]);
	rng_t    rng = {number_parse(argv[5])};

	/* All of it present, so that it does not grow with the heap. */
	void **objects = outside_alloc(n * sizeof(*objects));
	memset(objects, 1, n * sizeof(*objects));
	phase("begin", 0);
	for (size_t i = 0; i < n; i++) {
		objects[i] = malloc(size);
		memset(objects[i], 1, size);
	}
	for (size_t i = 0; i < n; i++) {
		if (rng_below(&rng, 100) >= freed_percent) {
			objects[nlive++] = objects[i];
		} else {
			free(objects[i]);
		}
	}
	ctl_epoch();
	phase("freed", 0);

	uint64_t end = now_ns() + MESHING_NS, begin = cpu_ns();
	pass();
	uint64_t first = cpu_ns() - begin, saved = mesh_stat("saved");
	for (unsigned idle = 0; idle < IDLE_PASSES && now_ns() < end; idle++) {
		pass();
		if (mesh_stat("saved") != saved) {
			saved = mesh_stat("saved");
			idle = 0;
		}
	}
	phase("meshed", first);
	begin = cpu_ns();
	for (unsigned i = 0; i < PASSES; i++) {
		pass();
	}
	phase("unchanged", (cpu_ns() - begin) / PASSES);
	sleep((unsigned)number_parse(argv[4]));
	ctl_epoch();
	phase("idled", 0);
	return 0;
}
