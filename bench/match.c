/*
 * How many slabs each way to match them releases, for match.py:
 *
 *	match random|heap REGIONS SLABS OCCUPANCY SEED
 *
 * takes SLABS random slabs of REGIONS regions (at most 64), each live with a chance
 * of OCCUPANCY per cent; or those of a real heap of so many slabs, most of whose
 * objects were replaced in random order before all but OCCUPANCY per cent were
 * freed.  For the latter it must run on the jemalloc to be looked at.
 */

#define _GNU_SOURCE
#include "../src/mesh_match.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096
/* SplitMesher's parameter t in the paper and in Mesh. */
#define SPLIT_PROBES 64
#define SPLIT_PASSES 10

static unsigned nregs;
static unsigned occupancy_percent;
static rng_t    rng;

/* A bitmap a slab, 1 = live; none is empty. */
static uint64_t *slabs;
static size_t    nslabs;

static void
slabs_random(void) {
	for (size_t i = 0; i < nslabs; i++) {
		for (unsigned r = 0; r < nregs; r++) {
			slabs[i] |=
			    (uint64_t)(rng_below(&rng, 100) < occupancy_percent)
			    << r;
		}
		if (slabs[i] == 0) {
			slabs[i] = (uint64_t)1 << rng_below(&rng, nregs);
		}
	}
}

static int
address_compare(const void *a, const void *b) {
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
	return (x > y) - (x < y);
}

/* Slabs of a page, so that an address tells slab and region. */
static void
slabs_sample(void) {
	size_t     size = PAGE / nregs, n = nslabs * nregs, kept = 0;
	uintptr_t *objects = outside_alloc(n * sizeof(*objects));
	for (size_t i = 0; i < n; i++) {
		objects[i] = (uintptr_t)malloc(size);
	}
	for (size_t i = 0; i < 2 * n; i++) {
		uintptr_t *object = &objects[rng_below(&rng, (uint32_t)n)];
		free((void *)*object);
		*object = (uintptr_t)malloc(size);
	}
	for (size_t i = 0; i < n; i++) {
		if (rng_below(&rng, 100) < occupancy_percent) {
			objects[kept++] = objects[i];
		} else {
			free((void *)objects[i]);
		}
	}
	qsort(objects, kept, sizeof(*objects), address_compare);
	size_t found = 0;
	for (size_t i = 0; i < kept && found < 2 * nslabs; i++) {
		found += i == 0 || objects[i] / PAGE != objects[i - 1] / PAGE;
		slabs[found - 1] |= (uint64_t)1 << objects[i] % PAGE / size;
	}
	nslabs = found;
}

/* Groups left by what jemalloc does. */
static size_t
match_ours(double *ms) {
	size_t        size = mesh_match_size(nregs, nslabs);
	void         *scratch = outside_alloc(size);
	uint64_t      begin = now_ns();
	mesh_match_t *match = mesh_match_begin(scratch, nregs, nslabs, slabs);
	while (!mesh_match_step(match, 1000)) {
	}
	*ms = (double)(now_ns() - begin) / 1e6;
	return mesh_match_ngroups(match);
}

static void
shuffle(uint64_t *array, size_t n) {
	for (size_t i = n; i > 1; i--) {
		size_t   j = rng_below(&rng, (uint32_t)i);
		uint64_t other = array[j];
		array[j] = array[i - 1];
		array[i - 1] = other;
	}
}

/*
 * A pass of Mesh's SplitMesher: halves in random order, each slab of the one is
 * tested with up to 64 of the other.  Pairs make one slab; returns how many slabs
 * are left in array.
 */
static size_t
split_mesher(uint64_t *array, size_t n) {
	shuffle(array, n);
	size_t    half = n / 2, nright = n - half;
	uint64_t *left = array, *right = array + half;
	bool     *paired = outside_alloc(nright * sizeof(*paired));
	for (size_t probe = 0; probe < SPLIT_PROBES; probe++) {
		for (size_t i = 0; i < half; i++) {
			size_t j = (i + probe) % nright;
			if (left[i] != 0 && !paired[j]
			    && (left[i] & right[j]) == 0) {
				right[j] |= left[i];
				left[i] = 0;
				paired[j] = true;
			}
		}
	}
	size_t kept = 0;
	for (size_t i = 0; i < n; i++) {
		if (array[i] != 0) {
			array[kept++] = array[i];
		}
	}
	return kept;
}

static int
live_compare(const void *a, const void *b) {
	return __builtin_popcountll(*(const uint64_t *)b)
	    - __builtin_popcountll(*(const uint64_t *)a);
}

/*
 * Groups left when each slab, most live regions first, joins the first group that
 * has room for it, or the fullest one of them all.
 */
static size_t
fit_decreasing(bool fullest) {
	uint64_t *sorted = outside_alloc(nslabs * sizeof(*sorted));
	uint64_t *groups = outside_alloc(nslabs * sizeof(*groups));
	size_t    ngroups = 0;
	memcpy(sorted, slabs, nslabs * sizeof(*sorted));
	qsort(sorted, nslabs, sizeof(*sorted), live_compare);
	for (size_t i = 0; i < nslabs; i++) {
		size_t chosen = ngroups;
		int    most = -1;
		for (size_t g = 0; g < ngroups; g++) {
			int live = __builtin_popcountll(groups[g]);
			if ((groups[g] & sorted[i]) == 0 && live > most) {
				chosen = g;
				most = live;
				if (!fullest) {
					break;
				}
			}
		}
		groups[chosen] |= sorted[i];
		ngroups += chosen == ngroups;
	}
	return ngroups;
}

int
main(int argc, char **argv) {
	if (argc != 6) {
		fprintf(stderr,
		    "usage: match random|heap REGIONS SLABS OCCUPANCY "
		    "SEED\n");
		return 2;
	}
	nregs = (unsigned)number_parse(argv[2]);
	nslabs = number_parse(argv[3]);
	occupancy_percent = (unsigned)number_parse(argv[4]);
	rng.state = number_parse(argv[5]);
	if (nregs == 0 || nregs > 64) {
		fprintf(stderr, "match: 1 to 64 regions\n");
		return 2;
	}
	bool heap = strcmp(argv[1], "heap") == 0;
	/* A heap may take more slabs than its objects would fill. */
	slabs = outside_alloc(2 * nslabs * sizeof(*slabs));
	if (heap) {
		slabs_sample();
	} else {
		slabs_random();
	}

	size_t live = 0;
	for (size_t i = 0; i < nslabs; i++) {
		live += (size_t)__builtin_popcountll(slabs[i]);
	}
	double    ms;
	size_t    ours = match_ours(&ms);
	uint64_t *array = outside_alloc(nslabs * sizeof(*array));
	memcpy(array, slabs, nslabs * sizeof(*array));
	size_t left = split_mesher(array, nslabs), left_first = left;
	for (unsigned pass = 1; pass < SPLIT_PASSES; pass++) {
		left = split_mesher(array, left);
	}
	double n = (double)nslabs;
	printf(
	    "{\"slabs\": %zu, \"bound\": %.5f, \"ours\": %.5f, \"ours_ms\": %.3f,"
	    " \"split_1\": %.5f, \"split_10\": %.5f, \"first_fit\": %.5f,"
	    " \"best_fit\": %.5f}\n",
	    nslabs, 1 - (double)live / nregs / n, 1 - (double)ours / n, ms,
	    1 - (double)left_first / n, 1 - (double)left / n,
	    1 - (double)fit_decreasing(false) / n,
	    1 - (double)fit_decreasing(true) / n);
	return 0;
}
