/*
 * Tidying: makes one mapping again of what meshing has cut into many.
 *
 * The kernel merges neighbouring private mappings unless each has an anon_vma of
 * its own, which a mapping gets when its first page is written.  Memory that is
 * written while its neighbours are spliced therefore keeps a mapping of its own
 * for good, even when all around it is private and empty again: thousands of
 * them in the end, in a process that may have 65,530.
 *
 * Retained extents hold nothing and have no page, so a fresh mapping can be put
 * in place of all the old ones, and merges with whatever is next to it.  This is
 * done under the lock of the retained extents, where they cannot be allocated or
 * coalesced, a bounded chunk at a time.
 *
 * A round visits every retained extent of an arena.  It pays when much memory has
 * become retained since the last one, which is also when its cost, about that of
 * one un-splice an extent, is little against what the program does.
 *
 * Called by mesh_pass.  Lock order: mesh lock, the lock of the retained extents.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/extent_dss.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_tidy.h"

/*
 * What is mapped anew at once ends where the next page of page tables begins, so
 * that these go, too.  It bounds how long the lock is held: each mapping that
 * goes, a page or more, costs about a microsecond.
 */
#define TIDY_CHUNK HUGEPAGE
/* New retained pages that are worth a round, at least. */
#define TIDY_NPAGES_MIN 256

/* Whether more will soon be retained without anybody's doing. */
static bool
arena_decaying(arena_t *arena) {
	pac_t *pac = &arena->pa_shard.pac;
	return (ecache_npages_get(&pac->ecache_dirty) > 0
	           && pac_decay_ms_get(pac, extent_state_dirty) >= 0)
	    || (ecache_npages_get(&pac->ecache_muzzy) > 0
	        && pac_decay_ms_get(pac, extent_state_muzzy) >= 0);
}

static size_t
arena_nretained(arena_t *arena) {
	return eset_npages_get(&arena->pa_shard.pac.ecache_retained.eset);
}

mesh_tidy_t
mesh_tidy_look(arena_t *arena) {
	mesh_tidy_at_t *at = &arena->mesh.tidy;
	if (at->npages > 0) {
		return mesh_tidy_due;
	}
	if (atomic_load_u64(&arena->mesh.nmeshes, ATOMIC_RELAXED) == 0) {
		return mesh_tidy_idle;
	}
	size_t nretained = arena_nretained(arena);
	if (nretained < at->nretained) {
		at->nretained = nretained;
	}
	size_t fresh = nretained - at->nretained;
	if (fresh < TIDY_NPAGES_MIN || fresh < nretained / 16) {
		return mesh_tidy_idle;
	}
	return fresh < nretained / 2 && arena_decaying(arena) ? mesh_tidy_later
	                                                      : mesh_tidy_due;
}

/*
 * Maps one chunk of the extent that was visited longest ago, and moves on.
 * Returns how many pages that were, 0 if there is no extent.
 */
static size_t
tidy_chunk(tsdn_t *tsdn, arena_t *arena) {
	mesh_tidy_at_t *at = &arena->mesh.tidy;
	ecache_t       *ecache = &arena->pa_shard.pac.ecache_retained;
	/* Guarded extents are in a set of their own. */
	edata_list_inactive_t *lru = &ecache->eset.lru;
	size_t                 size = 0;

	malloc_mutex_lock(tsdn, &ecache->mtx);
	edata_t *edata = edata_list_inactive_first(lru);
	if (edata != NULL) {
		byte_t *base = (byte_t *)edata_base_get(edata);
		size_t  whole = edata_size_get(edata);
		if (at->base != base || at->size != whole) {
			/* Another one, or one that has changed meanwhile. */
			at->base = base;
			at->size = whole;
			at->offset = 0;
		}
		byte_t *addr = base + at->offset;
		size = TIDY_CHUNK - ((uintptr_t)addr & (TIDY_CHUNK - 1));
		if (size > whole - at->offset) {
			size = whole - at->offset;
		}
		/* What is decommitted was mapped anew for that already. */
		if (edata_committed_get(edata)
		    && (!have_dss || !extent_in_dss(addr))) {
			/* If the kernel refuses, it stays as it is. */
			if (mesh_unsplice(addr, size) == mesh_unsplice_lost) {
				/* Nobody may use the extent any more. */
				eset_remove(&ecache->eset, edata);
				emap_update_edata_state(tsdn,
				    &arena_emap_global, edata,
				    extent_state_active);
				at->base = NULL;
				malloc_mutex_unlock(tsdn, &ecache->mtx);
				return whole >> LG_PAGE;
			}
		}
		at->offset += size;
		if (at->offset == whole) {
			at->base = NULL;
			/* Only arena_destroy() looks at the order. */
			edata_list_inactive_remove(lru, edata);
			edata_list_inactive_append(lru, edata);
		}
	}
	malloc_mutex_unlock(tsdn, &ecache->mtx);
	return size >> LG_PAGE;
}

bool
mesh_tidy_begin(tsdn_t *tsdn, arena_t *arena) {
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	mesh_tidy_at_t *at = &arena->mesh.tidy;
	size_t          nretained = arena_nretained(arena);
	uint64_t        nmeshes = atomic_load_u64(
	           &arena->mesh.nmeshes, ATOMIC_RELAXED);
	if (nretained == at->nretained && nmeshes == at->nmeshes
	    && at->npages == 0) {
		return true;
	}
	at->npages = at->nretained = nretained;
	at->nmeshes = nmeshes;
	at->base = NULL;
	return nretained == 0;
}

bool
mesh_tidy_step(tsdn_t *tsdn, arena_t *arena) {
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	mesh_tidy_at_t *at = &arena->mesh.tidy;
	if (at->npages == 0 && mesh_tidy_begin(tsdn, arena)) {
		return true;
	}
	size_t npages = tidy_chunk(tsdn, arena);
	at->npages -= npages == 0 || npages > at->npages ? at->npages : npages;
	return at->npages == 0;
}
