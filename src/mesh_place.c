/*
 * Random placement of regions in slabs.
 *
 * Two slabs mesh if their live regions do not overlap.  Programs free in
 * patterns, and a pattern that is the same in every slab would keep all of them
 * apart; so both the subset of regions a fill takes and the order in which it
 * hands them out are random.
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

/* Takes all free regions, in random order: Fisher-Yates, inside-out. */
static uint64_t
place_all(bitmap_t *bitmap, const bin_info_t *bin_info, byte_t *base,
    uint64_t state, void **ptrs) {
	unsigned n = 0;
	for (size_t w = 0; w < bin_info->bitmap_info.ngroups; w++) {
		for (bitmap_t g = bitmap[w]; g != 0; g &= g - 1, n++) {
			size_t   reg = (w << LG_BITMAP_GROUP_NBITS) + ffs_lu(g);
			unsigned j = place_random(&state, n, n + 1);
			ptrs[n] = ptrs[j];
			ptrs[j] = base + bin_info->reg_size * reg;
		}
		bitmap[w] = 0;
	}
	return state;
}

/* Takes cnt of nfree free regions: Fisher-Yates, as far as needed. */
static uint64_t
place_some(bitmap_t *bitmap, const bin_info_t *bin_info, byte_t *base,
    uint64_t state, unsigned nfree, unsigned cnt, void **ptrs) {
	uint16_t free_regs[BITMAP_MAXBITS];
	unsigned n = 0;
	for (size_t w = 0; w < bin_info->bitmap_info.ngroups; w++) {
		for (bitmap_t g = bitmap[w]; g != 0; g &= g - 1) {
			free_regs[n++] = (uint16_t)((w << LG_BITMAP_GROUP_NBITS)
			    + ffs_lu(g));
		}
	}
	assert(n == nfree);
	for (unsigned i = 0; i < cnt; i++) {
		unsigned j = i + place_random(&state, i, nfree - i);
		unsigned reg = free_regs[j];
		free_regs[j] = free_regs[i];
		bitmap[reg >> LG_BITMAP_GROUP_NBITS] ^= ZU(1)
		    << (reg & BITMAP_GROUP_NBITS_MASK);
		ptrs[i] = base + bin_info->reg_size * reg;
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
	unsigned nfree = edata_nfree_get(slab);
	assert(nfree >= cnt);

	bitmap_t *bitmap = edata_slab_data_get(slab)->bitmap;
	byte_t   *base = (byte_t *)edata_addr_get(slab);
	uint64_t *state = tsd_prng_statep_get(tsdn_tsd(tsdn));
	*state = cnt == nfree
	    ? place_all(bitmap, bin_info, base, *state, ptrs)
	    : place_some(bitmap, bin_info, base, *state, nfree, cnt, ptrs);
	edata_nfree_sub(slab, cnt);
}

void *
mesh_place_one(edata_t *slab, const bin_info_t *bin_info) {
	void *ptr;
	mesh_place_batch(slab, bin_info, 1, &ptr);
	return ptr;
}
