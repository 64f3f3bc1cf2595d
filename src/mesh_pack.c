/*
 * Packing: where slabs are too full to mesh, threads fill the first ones.
 *
 * A thread's cache hands out what was freed last.  If a program shrinks at random
 * places and goes on allocating, new objects so keep filling all slabs alike.  Of
 * slabs with hundreds of regions no two mesh then, although much is free in them.
 * If instead every object goes to the first slab that has room, the first slabs fill
 * up, and the last ones drain until they mesh or end.  In Redis, whose small objects
 * become fewer as values become longer, that is a third of what the heap has more
 * than its objects need.
 *
 * So a thread's cache is switched off, and its memory holds two stacks instead: of
 * regions from the first slabs, for the next objects, and of those that were freed,
 * which go back to their slabs together.  Neither is on malloc's and free's fast
 * path, and freed regions are no longer in the processor's caches when they are used
 * again.  Hence it is done only where there is much to be had that meshing cannot
 * get; and for a trial, as long as the program takes to free as many objects as there
 * are.  If the slabs are packed then, there is another one.  If not, the program gets
 * its caches back for many times as long, and longer each time.
 *
 * A thread switches its caches off and on by itself, when jemalloc's garbage
 * collection looks at them anyway.
 *
 * mesh_pass calls mesh_pack_look() and mesh_pack_stop(), jemalloc's tcache.c the
 * others.  Knows the lock of an arena's list of caches, under which others read
 * them.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_pack.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_scan.h"
#include "jemalloc/internal/mesh_walk.h"

/* What must be free in a bin's slabs: bytes, and one of so many. */
#define PACK_WASTE_MIN (ZU(1) << 16)
#define PACK_WASTE_SHARE 64
/* How full slabs that are not full are of a bin that is packed, of the average. */
#define PACKED_SHARE 0.75
/* Binary logarithm of how much longer than a trial a pause is. */
#define LG_PAUSE_MIN 3
#define LG_PAUSE_MAX 10

/*
 * First slabs of a bin that are looked at where a parent or child may have them, too;
 * and no more than one in so many may be of those.
 */
#define OWN_SLABS 64
#define OWN_SHARE 8

/* How many objects ahead the processor is told what comes. */
#define PREFETCH 2

/* Bins that the bits of packed are for; all where pages are of 4 to 64 KiB. */
#define PACK_BINS_MAX 64

/*
 * Whether the objects have gone to the first slabs: those that are not full are much
 * emptier than all are on average.
 */
static bool
bin_is_packed(const bin_t *bin, szind_t binind, size_t waste) {
	size_t nregs = bin_infos[binind].nregs;
	size_t n = bin->stats.nonfull_slabs;
	size_t nfilled = n - waste / bin_infos[binind].slab_size;
	return (double)nfilled / (double)n < PACKED_SHARE
	    * (double)bin->stats.curregs
	    / (double)(bin->stats.curslabs * nregs);
}

/* Looks at one bin, which is locked. */
static void
bin_look(arena_t *arena, const bin_t *bin, szind_t binind) {
	mesh_pack_t *pack = &arena->mesh.packs[binind];
	uint64_t     bit = UINT64_C(1) << binind;
	uint64_t packed = atomic_load_u64(&arena->mesh.packed, ATOMIC_RELAXED);
	bool     on = (packed & bit) != 0;
	bool     waits = bin->stats.ndalloc < pack->until;
	uint64_t trial = bin->stats.curregs;
	uint64_t freed = bin->stats.ndalloc - pack->ndalloc_looked;
	pack->ndalloc_looked = bin->stats.ndalloc;
	if (!on && (waits || freed > trial)) {
		/* Where a trial would be over at once, nothing lasts. */
		return;
	}
	bool   meshes;
	size_t waste = mesh_scan_waste(bin, binind, &meshes);
	/* What has begun goes on until there is half as much to be had. */
	bool much = waste >= PACK_WASTE_MIN >> on
	    && waste / bin_infos[binind].slab_size
	        >= bin->stats.curslabs / PACK_WASTE_SHARE >> on;
	if (!on) {
		if (!much || meshes) {
			return;
		}
		pack->until = bin->stats.ndalloc + trial;
	} else if (!much) {
		/* For one, because the program grows again. */
		pack->until = 0;
	} else if (waits) {
		return;
	} else if (bin_is_packed(bin, binind, waste)) {
		pack->lg_pause = 0;
		pack->until = bin->stats.ndalloc + trial;
		return;
	} else {
		unsigned lg = LG_PAUSE_MIN + pack->lg_pause;
		pack->until = bin->stats.ndalloc + (trial << lg);
		pack->lg_pause += (lg < LG_PAUSE_MAX);
	}
	atomic_store_u64(&arena->mesh.packed, packed ^ bit, ATOMIC_RELAXED);
}

/*
 * Whether the first slabs of a bin, which would be written to, are hardly shared with a
 * parent or child: to fill those would cost memory.
 */
static bool
bin_is_own(tsdn_t *tsdn, unsigned arena_ind, szind_t binind) {
	edata_t  *slabs[OWN_SLABS];
	uintptr_t at = 0;
	size_t    nown = 0;
	size_t    n = mesh_walk(tsdn, arena_ind, binind, &at, slabs, OWN_SLABS);
	mesh_pagemap_open();
	mesh_pagemap_glance_begin();
	for (size_t i = 0; i < n; i++) {
		nown += mesh_pagemap_glance(edata_addr_get(slabs[i]),
		    bin_infos[binind].slab_size,
		    edata_mesh_frozen_get(slabs[i]));
	}
	return n - nown <= n / OWN_SHARE;
}

/* Lets threads have their caches of a bin again, for long. */
static void
bin_give_up(arena_t *arena, const bin_t *bin, szind_t binind) {
	mesh_pack_t *pack = &arena->mesh.packs[binind];
	pack->until = bin->stats.ndalloc + (bin->stats.curregs << LG_PAUSE_MIN);
	atomic_fetch_and_u64(
	    &arena->mesh.packed, ~(UINT64_C(1) << binind), ATOMIC_RELAXED);
}

static bool
bin_is_packing(const arena_t *arena, szind_t binind) {
	return ((atomic_load_u64(&arena->mesh.packed, ATOMIC_RELAXED) >> binind)
	           & 1)
	    != 0;
}

void
mesh_pack_look(tsdn_t *tsdn) {
	bool alone = mesh_pagemap_alone();
	for (unsigned i = 0; config_stats && i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena == NULL) {
			continue;
		}
		if (!mesh_arena_meshable(arena)) {
			/* Any more. */
			atomic_store_u64(
			    &arena->mesh.packed, 0, ATOMIC_RELAXED);
			continue;
		}
		for (szind_t j = 0; j < SC_NBINS && j < PACK_BINS_MAX; j++) {
			if (bin_infos[j].n_shards != 1) {
				continue;
			}
			bin_t *bin = arena_get_bin(arena, j, 0);
			malloc_mutex_lock(tsdn, &bin->lock);
			bin_look(arena, bin, j);
			malloc_mutex_unlock(tsdn, &bin->lock);
			if (!alone && bin_is_packing(arena, j)
			    && !bin_is_own(tsdn, i, j)) {
				malloc_mutex_lock(tsdn, &bin->lock);
				bin_give_up(arena, bin, j);
				malloc_mutex_unlock(tsdn, &bin->lock);
			}
		}
	}
}

void
mesh_pack_stop(tsdn_t *tsdn) {
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena != NULL) {
			atomic_store_u64(
			    &arena->mesh.packed, 0, ATOMIC_RELAXED);
		}
	}
}

/******************************************************************************/
/* Threads. */

/* What a thread has of a packed class, in the memory of its cache. */
typedef struct stacks_s stacks_t;
struct stacks_s {
	/* The ncached_max of the cache. */
	cache_bin_sz_t max;
	/* Regions for the next objects, and those that were freed. */
	cache_bin_sz_t nready;
	cache_bin_sz_t nfreed;
	/* The former in the first half, the latter in the second. */
	void *ptrs[];
};

/* Regions that fit into one stack. */
static cache_bin_sz_t
stacks_half(const stacks_t *stacks) {
	size_t header = sizeof(stacks_t) / sizeof(void *);
	return (cache_bin_sz_t)((stacks->max - header) / 2);
}

/* NULL if the class is not packed. */
static stacks_t *
stacks_get(tcache_t *tcache, szind_t binind) {
	tcache_slow_t *slow = tcache->tcache_slow;
	uint32_t       offset = slow->mesh_stacks[binind];
	return offset == 0 ? NULL
	                   : (stacks_t *)((byte_t *)slow->dyn_alloc + offset);
}

/* The requests that the cache has counted, for the statistics of its arena. */
static cache_bin_stats_t
requests_take(cache_bin_t *cache) {
	cache_bin_stats_t stats = cache->tstats;
	cache->tstats.nrequests = 0;
	return stats;
}

/* Gives the n regions of one stack back to their slabs. */
static void
stack_flush(tsd_t *tsd, tcache_t *tcache, szind_t binind, void **ptrs,
    cache_bin_sz_t *n) {
	cache_bin_ptr_array_t array = {.n = *n, .ptr = ptrs};
	if (*n > 0) {
		arena_ptr_array_flush(tsd, binind, &array, *n,
		    /* small */ true, tcache->tcache_slow->arena,
		    requests_take(&tcache->bins[binind]));
		*n = 0;
	}
}

/* Where in the memory of all caches that one begins; see tcache_init(). */
static size_t
cache_offset(tcache_t *tcache, szind_t binind) {
	size_t offset = sizeof(void *);
	for (szind_t i = 0; i < binind; i++) {
		const stacks_t *stacks = stacks_get(tcache, i);
		offset += sizeof(void *)
		    * (stacks != NULL ? stacks->max
		                      : cache_bin_ncached_max_get_unsafe(
		                          &tcache->bins[i]));
	}
	return offset;
}

static void
cache_switch_off(tsd_t *tsd, tcache_t *tcache, szind_t binind) {
	tcache_slow_t *slow = tcache->tcache_slow;
	cache_bin_t   *cache = &tcache->bins[binind];
	if (tcache_bin_disabled(binind, cache, slow)
	    || cache_bin_ncached_max_get(cache) * sizeof(void *)
	        < sizeof(stacks_t) + 2 * sizeof(void *)) {
		/* By the user's wish, or hardly a cache. */
		return;
	}
	size_t offset = cache_offset(tcache, binind);
	assert(cache_bin_low_bound_get(cache)
	    == (void **)((byte_t *)slow->dyn_alloc + offset));
	assert(offset <= UINT32_MAX);
	/* Also counts its requests. */
	tcache_bin_flush_small(tsd, tcache, cache, binind, 0);
	malloc_mutex_lock(tsd_tsdn(tsd), &slow->arena->tcache_ql_mtx);
	cache_bin_sz_t max = cache_bin_ncached_max_get(cache);
	cache_bin_init_disabled(cache, 0);
	slow->mesh_stacks[binind] = (uint32_t)offset;
	*stacks_get(tcache, binind) = (stacks_t){.max = max};
	malloc_mutex_unlock(tsd_tsdn(tsd), &slow->arena->tcache_ql_mtx);
}

static void
cache_switch_on(tsd_t *tsd, tcache_t *tcache, szind_t binind) {
	tcache_slow_t *slow = tcache->tcache_slow;
	stacks_t      *stacks = stacks_get(tcache, binind);
	if (stacks == NULL) {
		return;
	}
	stack_flush(tsd, tcache, binind, stacks->ptrs, &stacks->nready);
	stack_flush(tsd, tcache, binind, &stacks->ptrs[stacks_half(stacks)],
	    &stacks->nfreed);
	size_t           offset = slow->mesh_stacks[binind];
	cache_bin_info_t info;
	cache_bin_info_init(&info, stacks->max);
	malloc_mutex_lock(tsd_tsdn(tsd), &slow->arena->tcache_ql_mtx);
	cache_bin_init(&tcache->bins[binind], &info, slow->dyn_alloc, &offset);
	slow->mesh_stacks[binind] = 0;
	malloc_mutex_unlock(tsd_tsdn(tsd), &slow->arena->tcache_ql_mtx);
}

static void
caches_switch(tsd_t *tsd, tcache_t *tcache, uint64_t packed) {
	tcache_slow_t *slow = tcache->tcache_slow;
	unsigned       n = tcache_nbins_get(slow);
	for (szind_t i = 0; i < SC_NBINS && i < PACK_BINS_MAX && i < n; i++) {
		uint64_t bit = UINT64_C(1) << i;
		if (((packed ^ slow->mesh_packed) & bit) == 0) {
			continue;
		}
		if ((packed & bit) != 0) {
			cache_switch_off(tsd, tcache, i);
		} else {
			cache_switch_on(tsd, tcache, i);
		}
	}
	slow->mesh_packed = packed;
}

void
mesh_pack_event(tsd_t *tsd, tcache_t *tcache) {
	tcache_slow_t *slow = tcache->tcache_slow;
	if (!opt_mesh || slow->arena == NULL) {
		return;
	}
	mesh_gc_tick(tsd_tsdn(tsd), slow->arena);
	uint64_t packed = atomic_load_u64(
	    &slow->arena->mesh.packed, ATOMIC_RELAXED);
	if (packed != slow->mesh_packed) {
		caches_switch(tsd, tcache, packed);
	}
}

void
mesh_pack_undo(tsd_t *tsd, tcache_t *tcache) {
	if (tcache->tcache_slow->mesh_packed != 0) {
		caches_switch(tsd, tcache, 0);
	}
}

/* Fills the stack of regions for the next objects; false if memory is short. */
static bool
ready_fill(tsd_t *tsd, arena_t *arena, tcache_t *tcache, szind_t binind,
    stacks_t *stacks) {
	cache_bin_sz_t        half = stacks_half(stacks);
	cache_bin_ptr_array_t ready = {.n = half, .ptr = stacks->ptrs};
	stacks->nready = arena_ptr_array_fill_small(tsd_tsdn(tsd), arena,
	    binind, &ready, half, half, requests_take(&tcache->bins[binind]));
	return stacks->nready > 0;
}

void *
mesh_pack_alloc(tsd_t *tsd, arena_t *arena, tcache_t *tcache, size_t size,
    szind_t binind, bool zero) {
	stacks_t *stacks = stacks_get(tcache, binind);
	if (stacks == NULL
	    || (stacks->nready == 0
	        && !ready_fill(tsd, arena, tcache, binind, stacks))) {
		return arena_malloc_hard(
		    tsd_tsdn(tsd), arena, size, binind, zero, /* slab */ true);
	}
	void *ptr = stacks->ptrs[--stacks->nready];
	if (stacks->nready >= PREFETCH) {
		/* Unlike what was freed last, it is in no cache. */
		util_prefetch_write(stacks->ptrs[stacks->nready - PREFETCH]);
	}
	if (zero) {
		memset(ptr, 0, sz_index2size(binind));
	}
	if (config_stats) {
		tcache->bins[binind].tstats.nrequests++;
	}
	return ptr;
}

void
mesh_pack_dalloc(tsd_t *tsd, tcache_t *tcache, void *ptr, szind_t binind) {
	stacks_t *stacks = stacks_get(tcache, binind);
	if (stacks == NULL) {
		arena_dalloc_small(tsd_tsdn(tsd), ptr);
		return;
	}
	cache_bin_sz_t half = stacks_half(stacks);
	if (stacks->nfreed == half) {
		stack_flush(
		    tsd, tcache, binind, &stacks->ptrs[half], &stacks->nfreed);
	}
	stacks->ptrs[half + stacks->nfreed++] = ptr;
}
