/*
 * The walk: slabs of a bin in the order of their addresses.
 *
 * A bin has its non-full slabs in a heap, which can be gone through only as a
 * whole and under the bin lock, for milliseconds if they are a million.  So the
 * walk goes through the radix tree that finds the extent of an address, page by
 * page and extent by extent, without any lock.  What it reads may be changing;
 * it is a hint, and whoever takes a slab up looks again under the bin lock.
 *
 * It costs about five nanoseconds an extent, and a cache miss a slab of the bin.
 *
 * Called by mesh_scan; mesh_ehooks says where the heap is.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/extent_dss.h"
#include "jemalloc/internal/mesh_walk.h"

/* Extents that one call looks at, at most: some hundred microseconds. */
#define WALK_STEPS_MAX (ZU(1) << 15)

/* All memory from the default hooks lies in between. */
static atomic_zu_t heap_begin = ATOMIC_INIT(SIZE_MAX);
static atomic_zu_t heap_end = ATOMIC_INIT(0);

/* Guarded by the mesh lock. */
static rtree_ctx_t walk_ctx;
static bool        walk_ctx_initialized;

void
mesh_walk_note(const void *addr, size_t size) {
	if (have_dss && extent_in_dss((void *)(uintptr_t)addr)) {
		/* Not meshed; and far away from all the rest. */
		return;
	}
	size_t begin = (size_t)addr, end = begin + size;
	size_t seen = atomic_load_zu(&heap_begin, ATOMIC_RELAXED);
	while (begin < seen
	    && !atomic_compare_exchange_weak_zu(
	        &heap_begin, &seen, begin, ATOMIC_RELAXED, ATOMIC_RELAXED)) {
	}
	seen = atomic_load_zu(&heap_end, ATOMIC_RELAXED);
	while (end > seen
	    && !atomic_compare_exchange_weak_zu(
	        &heap_end, &seen, end, ATOMIC_RELAXED, ATOMIC_RELAXED)) {
	}
}

bool
mesh_walk_covers(uintptr_t begin, uintptr_t end) {
	return begin < atomic_load_zu(&heap_end, ATOMIC_RELAXED)
	    && end > atomic_load_zu(&heap_begin, ATOMIC_RELAXED);
}

/* edata_addr_get() of what may be changing, so that nothing can be asserted. */
static uintptr_t
edata_addr_read(const edata_t *edata) {
	return (uintptr_t) * (void *const volatile *)&edata->e_addr;
}

/* Where the extent after the one at addr may begin. */
static uintptr_t
extent_next(const rtree_contents_t *contents, uintptr_t addr) {
	if (contents->edata == NULL) {
		return addr + PAGE;
	}
	if (contents->metadata.slab && contents->metadata.szind < SC_NBINS) {
		return addr + bin_infos[contents->metadata.szind].slab_size;
	}
	/* Only the first and the last page of an extent are in the tree. */
	uintptr_t base = edata_addr_read(contents->edata)
	    & ~(uintptr_t)PAGE_MASK;
	size_t size = edata_size_get(contents->edata);
	return base == addr && size > 0 ? addr + size : addr + PAGE;
}

static bool
slab_wanted(
    unsigned arena_ind, szind_t binind, const rtree_contents_t *contents) {
	unsigned ind = edata_arena_ind_get(contents->edata);
	return binind == SC_NBINS
	    ? contents->metadata.szind < SC_NBINS && ind < manual_arena_base
	    : contents->metadata.szind == binind && ind == arena_ind;
}

size_t
mesh_walk(tsdn_t *tsdn, unsigned arena_ind, szind_t binind, uintptr_t *at,
    edata_t **slabs, size_t max) {
	if (!walk_ctx_initialized) {
		rtree_ctx_data_init(&walk_ctx);
		walk_ctx_initialized = true;
	}
	uintptr_t begin = atomic_load_zu(&heap_begin, ATOMIC_RELAXED);
	uintptr_t end = atomic_load_zu(&heap_end, ATOMIC_RELAXED);
	uintptr_t addr = *at > begin ? *at : begin;
	size_t    n = 0;
	for (size_t i = 0; i < WALK_STEPS_MAX && n < max && addr < end; i++) {
		rtree_leaf_elm_t *elm = rtree_leaf_elm_lookup(tsdn,
		    &arena_emap_global.rtree, &walk_ctx, addr,
		    /* dependent */ false, /* init_missing */ false);
		if (elm == NULL) {
			addr = rtree_leafkey(addr)
			    + (ZU(1) << rtree_leaf_maskbits());
			continue;
		}
		rtree_contents_t contents = rtree_leaf_elm_read(
		    tsdn, &arena_emap_global.rtree, elm, /* dependent */ false);
		edata_t *edata = contents.edata;
		if (edata != NULL && contents.metadata.slab
		    && edata_mesh_nonfull_get(edata)
		    && edata_addr_read(edata) == addr
		    && slab_wanted(arena_ind, binind, &contents)) {
			slabs[n++] = edata;
		}
		addr = extent_next(&contents, addr);
	}
	*at = addr < end ? addr : UINTPTR_MAX;
	return n;
}
