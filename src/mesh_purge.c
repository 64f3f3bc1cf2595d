/*
 * Purging inside slabs: pages that no live region touches go back to the kernel,
 * which takes no mapping.
 *
 * It is for classes of which a page holds few regions.  Where mappings are plenty
 * meshing leaves little to do: of objects of 8 bytes to 14 KiB, 80 or 50 % of them
 * freed at random, 3 % of the memory that was left.  Where they are short, though,
 * it was 21 and 12 %.
 *
 * A page that is allocated from again costs a page fault, so the pass purges only
 * what has not changed since it was here last.  A note of what it saw is kept with
 * the slab: its live regions, hashed, and whether that was purged.  A stale note
 * does no harm, as it is about when to purge, never what.
 *
 * While a slab is purged it is held, so that nothing is allocated from it; frees go
 * on.  Of a leader the page goes for the whole group, whose live regions the
 * leader's bitmap has.
 *
 * Called by mesh_scan, under the mesh lock.  Takes the bin lock, a leaf.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_purge.h"
#include "jemalloc/internal/mesh_store.h"

/* With more regions a page hardly one is free of them. */
#define REGS_PER_PAGE_MAX 8
/* Of a note: the regions it is about were purged. */
#define NOTE_PURGED UINT32_C(1)

static uint32_t
note_get(const edata_t *slab) {
	const mesh_group_t *group = mesh_group_get(slab);
	return group != NULL ? group->purge_note
	                     : (uint32_t)(uintptr_t)edata_mesh_get(slab);
}

static void
note_set(edata_t *slab, uint32_t note) {
	mesh_group_t *group = mesh_group_get(slab);
	if (group != NULL) {
		group->purge_note = note;
	} else if (edata_mesh_role_get(slab) == edata_mesh_private) {
		edata_mesh_set(slab, (void *)(uintptr_t)note);
	}
}

/* Fibonacci hashing. */
static uint32_t
note_of(const uint64_t *live, unsigned nwords) {
	uint64_t hash = 0;
	for (unsigned w = 0; w < nwords; w++) {
		hash = (hash ^ live[w]) * UINT64_C(0x9e3779b97f4a7c15);
	}
	return (uint32_t)(hash >> 32) & ~NOTE_PURGED;
}

/* Purges the whole pages from begin to end, offsets in a slab, if any. */
static void
pages_purge(const edata_t *slab, size_t begin, size_t end) {
	begin = PAGE_CEILING(begin);
	end &= ~(size_t)PAGE_MASK;
	if (begin >= end) {
		return;
	}
	void *addr = (byte_t *)edata_addr_get(slab) + begin;
	/* What the kernel refuses, as of locked memory, stays as it is. */
	if (mesh_group_get(slab) != NULL) {
		mesh_store_punch(addr, end - begin);
	} else {
		(void)pages_purge_forced(addr, end - begin);
	}
}

/* The slab is held. */
static void
slab_purge(const edata_t *slab, const bin_info_t *info, const uint64_t *live) {
	size_t end = 0;
	for (unsigned w = 0; w < info->bitmap_info.ngroups; w++) {
		for (uint64_t bits = live[w]; bits != 0; bits &= bits - 1) {
			size_t begin = (w * 64 + ffs_u64(bits))
			    * info->reg_size;
			pages_purge(slab, end, begin);
			end = begin + info->reg_size;
		}
	}
	pages_purge(slab, end, info->slab_size);
}

bool
mesh_purge_pays(szind_t binind) {
	const bin_info_t *info = &bin_infos[binind];
	return info->slab_size > PAGE
	    && info->nregs <= REGS_PER_PAGE_MAX * (info->slab_size >> LG_PAGE);
}

bool
mesh_purge_slab(tsdn_t *tsdn, mesh_site_t *site, edata_t *slab, bool now) {
	const bin_info_t *info = &bin_infos[site->binind];
	uint64_t          live[BITMAP_GROUPS_MAX];

	malloc_mutex_lock(tsdn, &site->bin->lock);
	if (!mesh_batch_pickable(site, slab)) {
		malloc_mutex_unlock(tsdn, &site->bin->lock);
		return false;
	}
	mesh_group_live(slab, live);
	uint32_t seen = note_get(slab);
	uint32_t note = note_of(live, (unsigned)info->bitmap_info.ngroups);
	bool     purged = (seen == (note | NOTE_PURGED));
	bool     later = !purged && seen != note && !now;
	if (later) {
		note_set(slab, note);
	}
	if (purged || later) {
		malloc_mutex_unlock(tsdn, &site->bin->lock);
		return later;
	}
	mesh_group_hold(site->bin, slab);
	malloc_mutex_unlock(tsdn, &site->bin->lock);

	slab_purge(slab, info, live);

	edata_list_active_t dead;
	edata_list_active_init(&dead);
	malloc_mutex_lock(tsdn, &site->bin->lock);
	note_set(slab, note | NOTE_PURGED);
	mesh_group_unhold(site->bin, slab, &dead);
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	mesh_group_release(tsdn, site->arena, &dead);
	return false;
}
