/*
 * Reserves: fresh slabs of a class lie side by side.
 *
 * Neighbouring slabs that mesh with neighbouring slabs share a mapping, and
 * mappings are scarce.  jemalloc cuts slabs one by one from its lowest retained
 * memory, which mixes the classes of a program page by page.  So a bin that asks
 * for fresh memory is given a whole stretch of it and cuts its next slabs from
 * that: one slab at first, then twice as many each time, so that no class
 * stretches to more than twice what it uses.  A reserve is address space only:
 * nothing in it has been touched.  Dirty and muzzy memory is used first, as ever.
 *
 * Called by arena_slab_alloc(), with no lock held.  Takes none of its own: a
 * reserve is in its place in the arena, or in the hands of one thread.  One that
 * is in somebody's hands at a fork is lost to the child.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/extent.h"

/* The largest reserve: so many slabs, and so many bytes. */
#define RESERVE_LG_SLABS_MAX 6
#define RESERVE_SIZE_MAX (ZU(1) << 19)

/* Memory that was in use before; NULL if there is none. */
static edata_t *
recycled_alloc(tsdn_t *tsdn, pac_t *pac, ehooks_t *ehooks, size_t size) {
	edata_t *edata = ecache_alloc(tsdn, pac, ehooks, &pac->ecache_dirty,
	    NULL, size, PAGE, /* zero */ false, /* guarded */ false);
	if (edata == NULL && pac_decay_ms_get(pac, extent_state_muzzy) != 0) {
		edata = ecache_alloc(tsdn, pac, ehooks, &pac->ecache_muzzy,
		    NULL, size, PAGE, /* zero */ false, /* guarded */ false);
	}
	return edata;
}

/* NULL if the next reserve of the bin would be a single slab. */
static edata_t *
reserve_make(tsdn_t *tsdn, arena_t *arena, szind_t binind, size_t size) {
	atomic_u8_t *lg = &arena->mesh.reserve_lg[binind];
	uint8_t      now = atomic_load_u8(lg, ATOMIC_RELAXED);
	if (now < RESERVE_LG_SLABS_MAX) {
		atomic_store_u8(lg, now + 1, ATOMIC_RELAXED);
	}
	size_t n = ZU(1) << now;
	if (n > RESERVE_SIZE_MAX / size) {
		n = RESERVE_SIZE_MAX / size;
	}
	pac_t *pac = &arena->pa_shard.pac;
	return n <= 1 ? NULL
	              : ecache_alloc_grow(tsdn, pac, pac_ehooks_get(pac),
	                  &pac->ecache_retained, NULL, n * size, PAGE,
	                  /* zero */ false, /* guarded */ false);
}

static void
reserve_put(tsdn_t *tsdn, arena_t *arena, szind_t binind, edata_t *reserve) {
	pac_t   *pac = &arena->pa_shard.pac;
	edata_t *other = (edata_t *)atomic_exchange_p(
	    &arena->mesh.reserves[binind], reserve, ATOMIC_ACQ_REL);
	if (other != NULL) {
		/* Another thread has been as quick. */
		ecache_dalloc(tsdn, pac, pac_ehooks_get(pac),
		    &pac->ecache_retained, other);
	}
}

static edata_t *
reserve_cut(tsdn_t *tsdn, arena_t *arena, szind_t binind, size_t size) {
	pac_t   *pac = &arena->pa_shard.pac;
	edata_t *reserve = (edata_t *)atomic_exchange_p(
	    &arena->mesh.reserves[binind], NULL, ATOMIC_ACQ_REL);
	if (reserve == NULL) {
		reserve = reserve_make(tsdn, arena, binind, size);
	}
	if (reserve == NULL) {
		return NULL;
	}
	size_t left = edata_size_get(reserve) - size;
	if (left > 0) {
		edata_t *rest = extent_split_wrapper(tsdn, pac,
		    pac_ehooks_get(pac), reserve, size, left,
		    /* holding_core_locks */ false);
		reserve_put(tsdn, arena, binind, rest != NULL ? rest : reserve);
		if (rest == NULL) {
			return NULL;
		}
	}
	if (config_stats) {
		atomic_fetch_add_zu(
		    &pac->stats->pac_mapped, size, ATOMIC_RELAXED);
	}
	return reserve;
}

edata_t *
mesh_reserve_alloc(tsdn_t *tsdn, arena_t *arena, szind_t binind) {
	pa_shard_t *shard = &arena->pa_shard;
	size_t      size = bin_infos[binind].slab_size;
	if (!opt_retain || !arena_is_auto(arena)
	    || atomic_load_b(&arena->mesh.custom_hooks, ATOMIC_RELAXED)) {
		return NULL;
	}
	edata_t *slab = recycled_alloc(
	    tsdn, &shard->pac, pac_ehooks_get(&shard->pac), size);
	if (slab == NULL) {
		slab = reserve_cut(tsdn, arena, binind, size);
	}
	if (slab != NULL) {
		/* As pa_alloc() does. */
		atomic_fetch_add_zu(
		    &shard->nactive, size >> LG_PAGE, ATOMIC_RELAXED);
		emap_remap(tsdn, shard->emap, slab, binind, /* slab */ true);
		edata_szind_set(slab, binind);
		edata_slab_set(slab, true);
		if (size > 2 * PAGE) {
			emap_register_interior(tsdn, shard->emap, slab, binind);
		}
	}
	return slab;
}
