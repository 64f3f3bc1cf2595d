/*
 * Random placement of regions in slabs.
 *
 * Two slabs mesh if their live regions do not overlap.  Programs free in
 * patterns, and a pattern that is the same in every slab would keep all of them
 * apart.  So a fill begins at a random one of the free regions, and takes others at
 * a random distance from each other.  That costs little, and a pattern of the
 * program's (each second object, the first half) is one of few patterns in the slab,
 * so there is another slab with just the rest.  But small regions that share a cache
 * line are handed out one after the other: what is allocated together is used
 * together.  Redis' keys and the entries that point to them, for one: it spent a
 * tenth more time where they were apart.
 *
 * Called by bin.c and arena.c in place of bin_slab_reg_alloc[_batch](), under
 * the bin lock.  Manual arenas are never meshed and keep the lowest-first order
 * that their users may count on.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

bool opt_mesh_random = true;
bool mesh_placing = false;

static bool
place_in_order(tsdn_t *tsdn, const edata_t *slab) {
	return tsdn_null(tsdn)
	    || edata_arena_ind_get(slab) >= manual_arena_base;
}

/* A number in [0, range), range far below 2^16, from 16 random bits. */
static inline unsigned
place_random(uint64_t bits, unsigned range) {
	return (unsigned)((bits & 0xffff) * range >> 16);
}

/* Binary logarithm of how many regions a cache line has, 0 if it is not whole. */
static inline unsigned
place_lg_line(const bin_info_t *bin_info) {
	size_t size = bin_info->reg_size;
	return size < CACHELINE && CACHELINE % size == 0
	    ? LG_CACHELINE - lg_floor(size)
	    : 0;
}

/*
 * A step with which all of n are visited: a prime number, above all of which n could
 * be a multiple.  Of 16 they are each odd remainder twice.
 */
static inline unsigned
place_step(uint64_t bits, unsigned n) {
	static const uint32_t primes[] = {65537, 65539, 65543, 65551, 65557,
	    65563, 65579, 65581, 65587, 65609, 65617, 65629, 65647, 65657,
	    65687, 65701};
	assert(n > 0);
	_Static_assert(BITMAP_MAXBITS < 65537, "regions are uint16_t here");
	return primes[bits % (sizeof(primes) / sizeof(primes[0]))] % n;
}

/* Lists what of the bitmap has any bit set, in units of 1 << lg bits. */
static inline unsigned
place_list(
    const bitmap_t *bitmap, size_t ngroups, unsigned lg, uint16_t *list) {
	bitmap_t unit = (ZU(1) << (1U << lg)) - 1;
	unsigned n = 0;
	for (size_t w = 0; w < ngroups; w++) {
		unsigned base = (unsigned)(w << (LG_BITMAP_GROUP_NBITS - lg));
		for (bitmap_t g = bitmap[w]; g != 0;) {
			unsigned i = ffs_lu(g) >> lg;
			g &= ~(unit << (i << lg));
			list[n++] = (uint16_t)(base + i);
		}
	}
	return n;
}

/* Of all units of a fresh slab there is no list. */
static inline unsigned
place_listed(const uint16_t *list, unsigned j) {
	return list == NULL ? j : list[j];
}

/*
 * Takes cnt free regions, each so many after the one before, around and around, from
 * a random one on.
 */
static void
place(bitmap_t *bitmap, const bin_info_t *bin_info, byte_t *base, bool fresh,
    uint64_t random, unsigned cnt, void **ptrs) {
	uint16_t        list[BITMAP_MAXBITS];
	const uint16_t *regs = fresh ? NULL : list;
	unsigned        n = fresh
	           ? bin_info->nregs
	           : place_list(bitmap, bin_info->bitmap_info.ngroups, 0, list);
	unsigned        step = place_step(random >> 16, n);
	unsigned        j = place_random(random >> 32, n);
	for (unsigned k = 0; k < cnt; k++) {
		unsigned reg = place_listed(regs, j);
		ptrs[k] = base + bin_info->reg_size * reg;
		bitmap[reg >> LG_BITMAP_GROUP_NBITS] ^= ZU(1)
		    << (reg & BITMAP_GROUP_NBITS_MASK);
		j += step;
		j -= j >= n ? n : 0;
	}
}

/*
 * The same with cache lines of 1 << lg regions, of which each is handed out whole,
 * in an order that is a random number XOR 0, 1 ..
 */
static void
place_lines(bitmap_t *bitmap, const bin_info_t *bin_info, byte_t *base,
    bool fresh, uint64_t random, unsigned cnt, void **ptrs, unsigned lg) {
	uint16_t        list[BITMAP_MAXBITS];
	const uint16_t *lines = fresh ? NULL : list;
	unsigned        n = fresh
	           ? bin_info->nregs >> lg
	           : place_list(bitmap, bin_info->bitmap_info.ngroups, lg, list);
	unsigned        nregs = 1U << lg;
	unsigned        step = place_step(random >> 16, n);
	unsigned        j = place_random(random >> 32, n);
	for (unsigned k = 0; k < cnt;) {
		unsigned first = place_listed(lines, j) << lg;
		unsigned flip = (unsigned)(random >> (48 + j % 8))
		    & (nregs - 1);
		bitmap_t *word = &bitmap[first >> LG_BITMAP_GROUP_NBITS];
		for (unsigned r = 0; r < nregs && k < cnt; r++) {
			unsigned reg = first + (r ^ flip);
			bitmap_t bit = ZU(1) << (reg & BITMAP_GROUP_NBITS_MASK);
			if ((*word & bit) != 0) {
				*word ^= bit;
				ptrs[k++] = base + bin_info->reg_size * reg;
			}
		}
		j += step;
		j -= j >= n ? n : 0;
	}
}

/* Takes the first free region from a random one on, around. */
static unsigned
place_first(bitmap_t *bitmap, const bin_info_t *bin_info, uint64_t random) {
	size_t   ngroups = bin_info->bitmap_info.ngroups;
	unsigned start = place_random(random >> 32, bin_info->nregs);
	size_t   w = start >> LG_BITMAP_GROUP_NBITS;
	bitmap_t g = bitmap[w] & (~ZU(0) << (start & BITMAP_GROUP_NBITS_MASK));
	while (g == 0) {
		w = w + 1 < ngroups ? w + 1 : 0;
		g = bitmap[w];
	}
	unsigned bit = ffs_lu(g);
	bitmap[w] ^= ZU(1) << bit;
	return (unsigned)(w << LG_BITMAP_GROUP_NBITS) + bit;
}

void
mesh_place_batch(
    edata_t *slab, const bin_info_t *bin_info, unsigned cnt, void **ptrs) {
	tsdn_t *tsdn = tsdn_fetch();
	if (place_in_order(tsdn, slab)) {
		bin_slab_reg_alloc_batch(slab, bin_info, cnt, ptrs);
		return;
	}
	assert(edata_nfree_get(slab) >= cnt);

	bitmap_t *bitmap = edata_slab_data_get(slab)->bitmap;
	byte_t   *base = (byte_t *)edata_addr_get(slab);
	uint64_t *state = tsd_prng_statep_get(tsdn_tsd(tsdn));
	*state = prng_state_next_u64(*state);
	unsigned lg = place_lg_line(bin_info);
	bool     fresh = (edata_nfree_get(slab) == bin_info->nregs);
	if (cnt == 1) {
		ptrs[0] = base
		    + bin_info->reg_size
		        * place_first(bitmap, bin_info, *state);
	} else if (lg == 0) {
		place(bitmap, bin_info, base, fresh, *state, cnt, ptrs);
	} else {
		place_lines(
		    bitmap, bin_info, base, fresh, *state, cnt, ptrs, lg);
	}
	edata_nfree_sub(slab, cnt);
}

void *
mesh_place_one(edata_t *slab, const bin_info_t *bin_info) {
	void *ptr;
	mesh_place_batch(slab, bin_info, 1, &ptr);
	return ptr;
}
