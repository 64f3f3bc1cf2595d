#ifndef JEMALLOC_INTERNAL_MESH_RUN_H
#define JEMALLOC_INTERNAL_MESH_RUN_H

/*
 * Runs: neighbouring slabs that can share memory with neighbouring slabs, in the
 * same order, so that one mapping serves all of them.  Pure, like mesh_match.h:
 * no jemalloc type, no allocation, no lock; mesh_run.c opens with how it works.
 *
 *	r = mesh_run_begin(scratch, nregs, n, live, next, stays);
 *	mesh_run_sweep(r, n / 2, 4);
 *	while (mesh_run_step(r, &run)) {
 *		for (i = 0; i < run.n; i++) {
 *			slab run.follower + i follows slab run.leader + i;
 *		}
 *	}
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest run. */
#define MESH_RUN_MAX 64

typedef struct mesh_run_s mesh_run_t;

/* What a step has found: n slabs that follow n others; n is 0 if nothing. */
typedef struct mesh_run_found_s mesh_run_found_t;
struct mesh_run_found_s {
	uint32_t follower;
	uint32_t leader;
	uint32_t n;
};

/*
 * Bytes of scratch memory for n slabs of nregs regions (1 to 512), a multiple of
 * 64: (nregs + 4) * n / 8, rounded up.
 */
size_t mesh_run_size(unsigned nregs, size_t n);
/* Words of a vector with one bit for each of n slabs. */
size_t mesh_run_nwords(size_t n);
/*
 * Begins with n slabs (less than 2^32) in the order of their addresses.
 *
 * scratch: mesh_run_size(nregs, n) bytes, aligned to 64, with any content.
 * live: (nregs + 63) / 64 words for each slab, bit r % 64 of word r / 64 is set
 * if region r is live.
 * next: bit i is set if slab i + 1 begins where slab i ends.
 * stays: bit i is set if slab i can be a leader, but no follower.
 * next and stays have mesh_run_nwords(n) words; all three stay as they are until
 * the end.
 */
mesh_run_t *mesh_run_begin(void *scratch, unsigned nregs, size_t n,
    const uint64_t *live, const uint64_t *next, const uint64_t *stays);
/*
 * Begins a sweep: of the slabs that do not follow yet, those from nleaders on
 * shall follow those before; less than min neighbours neither follow nor lead.
 */
void mesh_run_sweep(mesh_run_t *r, size_t nleaders, unsigned min);
/*
 * Looks at one slab more, or at one run: tens of microseconds at most.  Returns
 * false when the sweep is over.
 */
bool mesh_run_step(mesh_run_t *r, mesh_run_found_t *found);

#endif /* JEMALLOC_INTERNAL_MESH_RUN_H */
