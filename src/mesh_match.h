#ifndef JEMALLOC_INTERNAL_MESH_MATCH_H
#define JEMALLOC_INTERNAL_MESH_MATCH_H

/*
 * Bitmaps of slabs in, groups of slabs that can share memory out.  A pure
 * function cut into slices: no jemalloc header, no allocation, no lock, no
 * global state; mesh_match.c opens with how it works.
 *
 *	m = mesh_match_begin(scratch, nregs, n, live);
 *	while (!mesh_match_step(m, 1000)) {
 *		rest, if the slice is used up;
 *	}
 *	for (g = 0; g < mesh_match_ngroups(m); g++) {
 *		leader = mesh_match_first(m, g);
 *		for (i = mesh_match_next(m, g, leader); i != MESH_MATCH_END;
 *		    i = mesh_match_next(m, g, i)) {
 *			i follows leader;
 *		}
 *	}
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Most regions that a slab may have, and most slabs of one matching. */
#define MESH_MATCH_NREGS_MAX 512
#define MESH_MATCH_N_MAX (UINT32_MAX - 1)

/* What mesh_match_next() returns behind the last slab of a group. */
#define MESH_MATCH_END UINT32_MAX

/* One matching; lives at the start of the caller's scratch memory. */
typedef struct mesh_match_s mesh_match_t;

/*
 * Bytes of scratch memory that a matching of n slabs (at most MESH_MATCH_N_MAX)
 * of nregs regions (1 to MESH_MATCH_NREGS_MAX) needs, a multiple of 64: about
 * 22 + nregs / 8 a slab (24 for 16 regions, 30 for 64, 86 for 512), and a fixed
 * 3.5 KiB + 64 * nregs.
 */
size_t mesh_match_size(unsigned nregs, size_t n);
/*
 * Starts a matching; takes constant time.
 *
 * scratch: mesh_match_size(nregs, n) bytes, aligned to 64, with any content.
 * live:    the bitmaps, ceil(nregs / 64) words a slab, slab after slab, bit 1 =
 *          live region, bits from nregs on 0.  It is only read.
 *
 * The matching owns scratch until its result is no longer wanted, and nobody
 * may change live before mesh_match_step() has returned true.  To abandon a
 * matching, just drop it.
 */
mesh_match_t *mesh_match_begin(
    void *scratch, unsigned nregs, size_t n, const uint64_t *live);
/*
 * Goes on for about `work` units (cache lines of bitmaps looked at, one to five
 * nanoseconds each), at most 3 * nregs + 5 more than that; work is not 0.  How
 * the work is sliced does not influence the result.  Returns true when all
 * slabs are in their groups.
 */
bool mesh_match_step(mesh_match_t *m, size_t work);
/*
 * Number of groups, those of one slab included, so that n less this number is
 * what meshing releases.  The result of an unfinished matching is right, but
 * lacks the slabs not placed yet.
 */
size_t mesh_match_ngroups(const mesh_match_t *m);
/*
 * Index of the first slab of group g, the one with the most live regions (the
 * lowest index among equals), which is the one to lead.
 */
uint32_t mesh_match_first(const mesh_match_t *m, size_t g);
/*
 * Index of the slab after slab i of group g, in descending order of live
 * regions and then ascending order of index, or MESH_MATCH_END.
 */
uint32_t mesh_match_next(const mesh_match_t *m, size_t g, uint32_t i);

#endif /* JEMALLOC_INTERNAL_MESH_MATCH_H */
