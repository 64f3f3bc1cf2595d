/*
 * The two searches, mesh_match.c and mesh_run.c, on random slabs in memory that
 * ends where they may go at most, for compilers' sanitizers to watch; what they
 * find is checked, too.
 */
#include "../src/mesh_match.h"
#include "../src/mesh_run.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t   n, nwords;
static unsigned nregs;
/* Of each slab the live regions; of each group or leader all that it has. */
static uint64_t *live, *united;
static uint64_t *next, *stays;

static void
require(bool ok, const char *what) {
	if (!ok) {
		fprintf(
		    stderr, "%zu slabs of %u regions: %s\n", n, nregs, what);
		exit(1);
	}
}

/* Exactly as much as is asked for, with any content. */
static void *
memory(size_t size) {
	void *p = NULL;
	require(posix_memalign(&p, 64, size) == 0, "memory");
	memset(p, 0xa5, size);
	return p;
}

static bool
bit(const uint64_t *bits, size_t i) {
	return (bits[i / 64] >> (i % 64)) & 1;
}

/* The regions of slab i move in with those of slab to. */
static void
unite(size_t to, size_t i) {
	for (size_t w = 0; w < nwords; w++) {
		uint64_t *all = &united[to * nwords + w];
		require((*all & live[i * nwords + w]) == 0, "they overlap");
		*all |= live[i * nwords + w];
	}
}

static void
match(void) {
	void         *scratch = memory(mesh_match_size(nregs, n));
	mesh_match_t *m = mesh_match_begin(scratch, nregs, n, live);
	size_t        nplaced = 0;
	while (!mesh_match_step(m, 100)) {
	}
	memset(united, 0, n * nwords * sizeof(*united));
	for (size_t g = 0; g < mesh_match_ngroups(m); g++) {
		for (uint32_t i = mesh_match_first(m, g); i != MESH_MATCH_END;
		     i = mesh_match_next(m, g, i)) {
			unite(g, i);
			nplaced++;
		}
	}
	require(nplaced == n, "some slabs are in no group, or in two");
	free(scratch);
}

static void
run(size_t nleaders, unsigned min) {
	void       *scratch = memory(mesh_run_size(nregs, n));
	mesh_run_t *r = mesh_run_begin(scratch, nregs, n, live, next, stays);
	mesh_run_found_t found;
	memcpy(united, live, n * nwords * sizeof(*united));
	mesh_run_sweep(r, nleaders, min);
	while (mesh_run_step(r, &found)) {
		for (uint32_t i = 0; i < found.n; i++) {
			uint32_t l = found.leader + i, f = found.follower + i;
			require(l < nleaders && f >= nleaders && f < n,
			    "a place out of bounds");
			require(!bit(stays, f), "it may not follow");
			require(
			    i == 0 || (bit(next, l - 1) && bit(next, f - 1)),
			    "no neighbours");
			unite(l, f);
		}
	}
	free(scratch);
}

int
main(void) {
	static const unsigned some_nregs[] = {1, 2, 8, 16, 63, 64, 100, 512};
	static const size_t   some_n[] = {1, 2, 63, 64, 65, 513, 1500};
	rng_t                 rng = {1};
	for (size_t a = 0; a < sizeof(some_nregs) / sizeof(some_nregs[0]);
	     a++) {
		for (size_t b = 0; b < sizeof(some_n) / sizeof(some_n[0]);
		     b++) {
			nregs = some_nregs[a];
			n = some_n[b];
			nwords = (nregs + 63) / 64;
			size_t size = n * nwords * sizeof(uint64_t);
			size_t line = mesh_run_nwords(n) * sizeof(uint64_t);
			live = memory(size);
			united = memory(size);
			next = memory(line);
			stays = memory(line);
			memset(live, 0, size);
			memset(next, 0, line);
			memset(stays, 0, line);
			for (size_t i = 0; i < n; i++) {
				uint32_t percent = 5 + rng_below(&rng, 50);
				for (unsigned j = 0; j < nregs; j++) {
					live[i * nwords + j / 64] |=
					    (uint64_t)(rng_below(&rng, 100)
					        < percent)
					    << (j % 64);
				}
				next[i / 64] |= (uint64_t)(i + 1 < n
				                    && rng_below(&rng, 8) > 0)
				    << (i % 64);
				stays[i / 64] |=
				    (uint64_t)(rng_below(&rng, 8) == 0)
				    << (i % 64);
			}
			match();
			run(n / 2, 1);
			run(n / 4, 3);
			free(live);
			free(united);
			free(next);
			free(stays);
		}
	}
	printf("well\n");
	return 0;
}
