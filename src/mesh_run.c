/*
 * Which neighbouring slabs can share memory with which.
 *
 * The problem
 *
 * A slab that follows another one costs a mapping of its own, and mappings are
 * scarce.  But if slab f follows slab l and slab f + 1, its neighbour, follows
 * slab l + 1, one mapping serves both.  Such a run of k slabs is possible at l if
 * for all i < k the regions live in f + i are not live in l + i.  If two slabs mesh
 * with chance q, runs of k slabs are possible at one place in q^-k; with m places
 * to choose from the longest is of about log(m) / log(1 / q) slabs.
 *
 * The algorithm
 *
 * The first slabs lead, the last ones follow, so that both kinds of mappings are
 * long.  Followers are taken from the last one downwards; for each the longest run
 * that ends in it is looked for, at all places at once:
 *
 *	R_1 = places where the slab can follow
 *	R_k = (R_k-1 >> 1) & places where the slab k - 1 before it can follow,
 *	      which are followed by their neighbour
 *
 * as bit vectors over the leaders, until one is empty; bit l of R_k says that a run
 * of k can begin at leader l.  Of several places the first is taken, so that the
 * first leaders fill up and few are needed.
 *
 * A stretch of neighbours that all follow is as many mappings as runs, but one more
 * where it ends; one of leaders is one mapping, and one more.  So a short run in a
 * long stretch is welcome, since a gap would cost as much, but stretches of less
 * than a minimum can be left alone, of followers and of leaders.
 *
 * Where a slab can follow comes from an index by region, as in mesh_match.c: line
 * r has bit l set if leader l has region r live.  The lines of the slab's live
 * regions are taken out of R, one after the other, until nothing is left.
 *
 * The cost
 *
 * About live * leaders / 64 words a slab, and the same for each slab that it looks
 * at in vain.  With gcc 12 -O3, 8,192 slabs, half of them leaders, 16 regions: 3 ms
 * where a fifth is live.
 */

/* In jemalloc's tree, its private namespace applies to these symbols too. */
#if __has_include("jemalloc/internal/jemalloc_preamble.h")
#	include "jemalloc/internal/jemalloc_preamble.h"
#	include "jemalloc/internal/mesh_run.h"
#else
#	include "mesh_run.h"
#endif

struct mesh_run_s {
	/* The caller's. */
	const uint64_t *live;
	const uint64_t *next;
	const uint64_t *stays;
	unsigned        nregs;
	unsigned        nwords;
	uint32_t        n;

	/* Words of a line: one bit a slab. */
	size_t line_nwords;
	/* One line a region: in which slabs it is live. */
	uint64_t *lines;
	/* Slabs that follow; slabs that may lead in this sweep. */
	uint64_t *follows;
	uint64_t *places_all;
	/* R of this step, and of the one before. */
	uint64_t *places;
	uint64_t *places_before;

	/*
	 * The sweep: slabs before nleaders lead; the one before at is the next to
	 * follow, and its stretch, at least min of them, begins at stretch.
	 */
	uint32_t nleaders;
	uint32_t at;
	uint32_t stretch;
	unsigned min;
};

size_t
mesh_run_nwords(size_t n) {
	/* A word more than needed, and whole cache lines. */
	return (n / 64 + 1 + 7) & ~(size_t)7;
}

static size_t
run_head_size(void) {
	return (sizeof(mesh_run_t) + 63) & ~(size_t)63;
}

size_t
mesh_run_size(unsigned nregs, size_t n) {
	return run_head_size()
	    + (nregs + 4) * mesh_run_nwords(n) * sizeof(uint64_t);
}

static bool
run_bit(const uint64_t *line, size_t bit) {
	return (line[bit / 64] >> (bit % 64)) & 1;
}

static void
run_bit_set(uint64_t *line, size_t bit) {
	line[bit / 64] |= UINT64_C(1) << (bit % 64);
}

/* The regions of slab i are live in slab l, too. */
static void
run_union(mesh_run_t *r, uint32_t l, uint32_t i) {
	const uint64_t *live = &r->live[(size_t)i * r->nwords];
	for (unsigned w = 0; w < r->nwords; w++) {
		for (uint64_t bits = live[w]; bits != 0; bits &= bits - 1) {
			size_t region = w * 64 + (size_t)__builtin_ctzll(bits);
			run_bit_set(&r->lines[region * r->line_nwords], l);
		}
	}
}

mesh_run_t *
mesh_run_begin(void *scratch, unsigned nregs, size_t n, const uint64_t *live,
    const uint64_t *next, const uint64_t *stays) {
	mesh_run_t *r = (mesh_run_t *)scratch;
	r->live = live;
	r->next = next;
	r->stays = stays;
	r->nregs = nregs;
	r->nwords = (nregs + 63) / 64;
	r->n = (uint32_t)n;
	r->line_nwords = mesh_run_nwords(n);
	r->lines = (uint64_t *)(void *)((char *)scratch + run_head_size());
	r->follows = r->lines + nregs * r->line_nwords;
	r->places_all = r->follows + r->line_nwords;
	r->places = r->places_all + r->line_nwords;
	r->places_before = r->places + r->line_nwords;
	for (size_t w = 0; w < (nregs + 1) * r->line_nwords; w++) {
		r->lines[w] = 0;
	}
	for (uint32_t i = 0; i < r->n; i++) {
		run_union(r, i, i);
	}
	mesh_run_sweep(r, n, 1);
	return r;
}

void
mesh_run_sweep(mesh_run_t *r, size_t nleaders, unsigned min) {
	r->nleaders = nleaders < r->n ? (uint32_t)nleaders : r->n;
	r->at = r->n;
	r->stretch = r->n;
	r->min = min;
	for (size_t w = 0; w < r->line_nwords; w++) {
		r->places_all[w] = 0;
	}
	for (uint32_t i = 0, end; i < r->nleaders; i = end) {
		for (end = i + 1;
		     end < r->nleaders && run_bit(r->next, end - 1); end++) {
		}
		for (uint32_t k = i; end - i >= min && k < end; k++) {
			if (!run_bit(r->follows, k)) {
				run_bit_set(r->places_all, k);
			}
		}
	}
}

/*
 * Takes the places out of places[0, nwords) where slab i cannot follow.  Returns
 * whether any is left.
 */
static bool
run_places_narrow(
    const mesh_run_t *r, uint64_t *places, size_t nwords, uint32_t i) {
	const uint64_t *live = &r->live[(size_t)i * r->nwords];
	uint64_t        left = 0;
	for (size_t k = 0; k < nwords; k++) {
		left |= places[k];
	}
	for (unsigned w = 0; w < r->nwords && left != 0; w++) {
		for (uint64_t bits = live[w]; bits != 0 && left != 0;
		     bits &= bits - 1) {
			const uint64_t *line = &r->lines[r->line_nwords
			    * (w * 64 + (size_t)__builtin_ctzll(bits))];
			left = 0;
			for (size_t k = 0; k < nwords; k++) {
				places[k] &= ~line[k];
				left |= places[k];
			}
		}
	}
	return left != 0;
}

static bool
run_can_follow(const mesh_run_t *r, uint32_t i) {
	return !run_bit(r->follows, i) && !run_bit(r->stays, i);
}

/* The longest run that ends in slab r->at; its place is in r->places then. */
static unsigned
run_longest(mesh_run_t *r) {
	uint32_t at = r->at;
	/* What is behind the leaders is no place. */
	size_t nwords = (r->nleaders / 64 + 1 + 3) & ~(size_t)3;
	for (size_t k = 0; k < nwords; k++) {
		r->places[k] = r->places_all[k];
	}
	if (!run_places_narrow(r, r->places, nwords, at)) {
		return 0;
	}
	unsigned n = 1;
	while (n < MESH_RUN_MAX && at - n >= r->nleaders
	    && run_can_follow(r, at - n) && run_bit(r->next, at - n)) {
		uint64_t *before = r->places;
		uint64_t *places = r->places_before;
		for (size_t k = 0; k < nwords; k++) {
			uint64_t carry = k + 1 < nwords ? before[k + 1] << 63
			                                : 0;
			places[k] = ((before[k] >> 1) | carry) & r->next[k]
			    & r->places_all[k];
		}
		if (!run_places_narrow(r, places, nwords, at - n)) {
			break;
		}
		r->places = places;
		r->places_before = before;
		n++;
	}
	return n;
}

bool
mesh_run_step(mesh_run_t *r, mesh_run_found_t *found) {
	found->n = 0;
	while (r->at > r->nleaders && !run_can_follow(r, r->at - 1)) {
		r->at--;
	}
	if (r->at <= r->nleaders || r->nleaders == 0) {
		return false;
	}
	if (r->at <= r->stretch) {
		r->stretch = r->at - 1;
		while (r->stretch > r->nleaders
		    && run_can_follow(r, r->stretch - 1)
		    && run_bit(r->next, r->stretch - 1)) {
			r->stretch--;
		}
		if (r->at - r->stretch < r->min) {
			r->at = r->stretch;
			return true;
		}
	}
	r->at--;
	unsigned n = run_longest(r);
	if (n == 0) {
		return true;
	}
	size_t k = 0;
	while (r->places[k] == 0) {
		k++;
	}
	found->n = n;
	found->leader = (uint32_t)(k * 64
	    + (size_t)__builtin_ctzll(r->places[k]));
	found->follower = r->at - (n - 1);
	for (uint32_t i = 0; i < n; i++) {
		run_union(r, found->leader + i, found->follower + i);
		run_bit_set(r->follows, found->follower + i);
	}
	r->at = found->follower;
	return true;
}
