/*
 * Random placement of regions in slabs.
 *
 * Two slabs mesh if their live regions do not overlap.  Programs free in
 * patterns, and a pattern that is the same in every slab would keep all of them
 * apart; so both the subset of regions a fill takes and the order in which it
 * hands them out are random.  But small regions that share a cache line are handed
 * out one after the other: what is allocated together is used together.  Redis'
 * keys and the entries that point to them, for one: it spent a tenth more time
 * where they were apart.
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

/*
 * Nearly uniform in [0, range), range far below 2^16: from 16 upper bits of an LCG
 * step, of which each second call takes one.
 */
static inline unsigned
place_random(uint64_t *state, unsigned i, unsigned range) {
	if (i % 2 == 0) {
		*state = prng_state_next_u64(*state);
	}
	unsigned bits = (unsigned)(*state >> (i % 2 == 0 ? 48 : 32)) & 0xffff;
	return (bits * range) >> 16;
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
 * Takes cnt free regions: cache lines at random, by Fisher and Yates as far as
 * needed, and of each its regions in an order that is a random number XOR 0, 1 ..
 */
static uint64_t
place(bitmap_t *bitmap, const bin_info_t *bin_info, byte_t *base,
    uint64_t state, unsigned cnt, void **ptrs) {
	uint16_t lines[BITMAP_MAXBITS];
	unsigned lg = place_lg_line(bin_info);
	unsigned nregs = 1U << lg;
	bitmap_t line_mask = (ZU(1) << nregs) - 1;
	unsigned n = 0;
	for (size_t w = 0; w < bin_info->bitmap_info.ngroups; w++) {
		for (bitmap_t g = bitmap[w]; g != 0;) {
			unsigned line = ffs_lu(g) >> lg;
			g &= ~(line_mask << (line << lg));
			lines[n++] = (uint16_t)(line
			    + (w << (LG_BITMAP_GROUP_NBITS - lg)));
		}
	}
	unsigned k = 0;
	for (unsigned i = 0; k < cnt; i++) {
		assert(i < n);
		unsigned j = i + place_random(&state, i, n - i);
		unsigned first = (unsigned)lines[j] << lg;
		lines[j] = lines[i];
		unsigned  flip = (unsigned)(state >> 16) & (nregs - 1);
		bitmap_t *word = &bitmap[first >> LG_BITMAP_GROUP_NBITS];
		for (unsigned r = 0; r < nregs && k < cnt; r++) {
			unsigned reg = first + (r ^ flip);
			bitmap_t bit = ZU(1) << (reg & BITMAP_GROUP_NBITS_MASK);
			if ((*word & bit) != 0) {
				*word ^= bit;
				ptrs[k++] = base + bin_info->reg_size * reg;
			}
		}
	}
	return state;
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
	*state = place(bitmap, bin_info, base, *state, cnt, ptrs);
	edata_nfree_sub(slab, cnt);
}

void *
mesh_place_one(edata_t *slab, const bin_info_t *bin_info) {
	void *ptr;
	mesh_place_batch(slab, bin_info, 1, &ptr);
	return ptr;
}
