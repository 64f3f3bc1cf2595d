/*
 * Limbo: dead slabs, on their way from the store to the page allocator.
 *
 * A leader or follower of which nothing is live any more still maps the store.  To put
 * private memory there takes some microseconds, and as long again to free the memory
 * of a leader; a program that frees all it has would pay that for each slab, and
 * every few microseconds change its mappings while its other threads fault pages in.
 * But slabs die together, and not for nobody: so they wait until no more come, for a
 * second at most, are sorted, and neighbours go out by one call each, in the
 * background.  They cost address space, and of a leader its memory, which with stock
 * jemalloc would decay for ten seconds.
 *
 * They are first in their bin's list, where they can be added with the lock that is
 * held anyway, and then in the arena's heap, by address.  Where there are no background
 * threads, ticks take them out, and whoever frees, once they are more than the meshed
 * slabs that live: so many have neighbours, and none is left when all is freed.  Slabs
 * stay, without memory, that the kernel does not let go, as mappings run short.
 *
 * A fork does not list them: no object of theirs can be read or written, on either
 * side.  Both have them in limbo then, mapped as before.  The child may free a leader's
 * memory in its parent's store, as long as the range is in limbo: in the parent it is
 * dead, too, and nothing is meshed there while the child may live.  Leaders that have
 * died since the fork are frozen (mesh_group.c), as a child may read them.
 *
 * Called by mesh_group, which adds slabs, and by mesh_pass.  Lock order: mesh lock,
 * then the bin lock or those of the page allocator.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_limbo.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_view.h"

/* Most bytes that go out by one call: threads that fault wait for it. */
#define RUN_SIZE_MAX HUGEPAGE
/*
 * Slabs wait as long as they become more by a certain share from one look to the next,
 * but not for longer than this.
 */
#define WAIT_GROWTH_SHARE 8
#define WAIT_NS_MAX UINT64_C(1000000000)
#define LOOK_NS UINT64_C(50000000)
/* How long to leave them alone once the kernel has refused. */
#define REFUSED_PAUSE_NS UINT64_C(1000000000)
/* Slabs that are collected in one hold of a bin lock. */
#define COLLECT_SLABS 128

size_t
mesh_limbo_nslabs(arena_t *arena) {
	return atomic_load_zu(&arena->mesh.limbo.nslabs, ATOMIC_RELAXED);
}

bool
mesh_limbo_full(arena_t *arena) {
	mesh_arena_t *mesh = &arena->mesh;
	return mesh_limbo_nslabs(arena)
	    > atomic_load_zu(&mesh->groups, ATOMIC_RELAXED)
	    + atomic_load_zu(&mesh->followers, ATOMIC_RELAXED);
}

void
mesh_limbo_add(arena_t *arena, bin_t *bin, edata_t *slab) {
	edata_list_active_append(&bin->mesh.dead, slab);
	atomic_fetch_add_zu(&arena->mesh.limbo.nslabs, 1, ATOMIC_RELAXED);
}

bool
mesh_limbo_due(arena_t *arena, uint64_t *wait_ns) {
	mesh_limbo_t *limbo = &arena->mesh.limbo;
	size_t        n = mesh_limbo_nslabs(arena);
	uint64_t      now = now_ns();
	*wait_ns = UINT64_MAX;
	if (n == 0) {
		limbo->nseen = 0;
		return false;
	}
	if (now < limbo->look_ns) {
		*wait_ns = limbo->look_ns - now;
		return false;
	}
	if (limbo->nseen == 0) {
		limbo->until_ns = now + WAIT_NS_MAX;
	}
	bool grows = n > limbo->nseen + limbo->nseen / WAIT_GROWTH_SHARE;
	limbo->nseen = n;
	if (grows && now < limbo->until_ns) {
		limbo->look_ns = now + LOOK_NS;
		*wait_ns = LOOK_NS;
		return false;
	}
	return true;
}

/* Sorts in some of what has died in a bin.  Returns true when that is all. */
static bool
bin_collect(tsdn_t *tsdn, bin_t *bin, edata_heap_t *slabs) {
	edata_t *some[COLLECT_SLABS];
	unsigned n = 0;
	malloc_mutex_lock(tsdn, &bin->lock);
	edata_list_active_t *dead = &bin->mesh.dead;
	while (n < COLLECT_SLABS && !edata_list_active_empty(dead)) {
		some[n] = edata_list_active_first(dead);
		edata_list_active_remove(dead, some[n++]);
	}
	malloc_mutex_unlock(tsdn, &bin->lock);
	for (unsigned i = 0; i < n; i++) {
		edata_heap_insert(slabs, some[i]);
	}
	return n < COLLECT_SLABS;
}

/* Sorts in what has died in the arena.  Returns true when that is all. */
static bool
limbo_collect(tsdn_t *tsdn, arena_t *arena, uint64_t end_ns) {
	for (szind_t i = 0; i < SC_NBINS; i++) {
		for (unsigned j = 0; j < bin_infos[i].n_shards; j++) {
			while (!bin_collect(tsdn, arena_get_bin(arena, i, j),
			    &arena->mesh.limbo.slabs)) {
				if (now_ns() >= end_ns) {
					return false;
				}
			}
		}
	}
	return true;
}

/*
 * Takes the first of them, and its neighbours, out of the heap.  Returns their size
 * in all.
 */
static size_t
run_take(edata_heap_t *slabs, edata_list_active_t *run) {
	/* The table of a fork has them one by one. */
	size_t   max = mesh_view_listed() ? 0 : RUN_SIZE_MAX;
	edata_t *slab = edata_heap_remove_first(slabs);
	byte_t  *begin = (byte_t *)edata_addr_get(slab);
	size_t   size = edata_size_get(slab);
	edata_list_active_init(run);
	edata_list_active_append(run, slab);
	while ((slab = edata_heap_first(slabs)) != NULL
	    && edata_addr_get(slab) == begin + size
	    && size + edata_size_get(slab) <= max) {
		edata_heap_remove(slabs, slab);
		edata_list_active_append(run, slab);
		size += edata_size_get(slab);
	}
	return size;
}

/* Frees the memory of leaders that no child can be reading, once. */
static void
run_punch(const edata_list_active_t *run) {
	edata_t *slab = edata_list_active_first(run);
	byte_t  *begin = (byte_t *)edata_addr_get(slab);
	size_t   size = 0;
	ql_foreach (slab, &run->head, ql_link_active) {
		/* Of the others later: see range_dalloc(). */
		if (edata_mesh_role_get(slab) != edata_mesh_leader
		    || edata_mesh_frozen_get(slab)) {
			continue;
		}
		byte_t *addr = (byte_t *)edata_addr_get(slab);
		if (size > 0 && addr != begin + size) {
			mesh_store_punch(begin, size);
			size = 0;
		}
		begin = size > 0 ? begin : addr;
		size += edata_size_get(slab);
		/* It has none any more, as if it had not led. */
		edata_mesh_role_set(slab, edata_mesh_follower);
	}
	if (size > 0) {
		mesh_store_punch(begin, size);
	}
}

/* Whether a page is of a slab that is meshed, or in limbo; a hint. */
static bool
page_meshed(uintptr_t addr) {
	emap_full_alloc_ctx_t ctx;
	return !emap_full_alloc_ctx_try_lookup(
	           TSDN_NULL, &arena_emap_global, (void *)addr, &ctx)
	    && ctx.edata != NULL
	    && edata_mesh_role_get(ctx.edata) != edata_mesh_private;
}

/*
 * Whether a run has no neighbours that it may have mappings in common with, so that
 * there are less without it; but for those that are too many to go at once.
 */
static bool
run_whole(const byte_t *begin, size_t size) {
	return !page_meshed((uintptr_t)begin - PAGE)
	    && (size > RUN_SIZE_MAX / 2
	        || !page_meshed((uintptr_t)begin + size));
}

/* Takes room for a run's mappings.  Returns true if there is none. */
static bool
room_take(bool whole) {
	if (mesh_unsplice_room(whole)) {
		return false;
	}
	/* Each has taken room for two mappings, and may have freed some. */
	size_t left;
	mesh_splice_recount();
	return mesh_splice_left(&left) || !mesh_unsplice_room(whole);
}

/*
 * pa_dalloc() for a range that is private again and has no memory: it goes to
 * the retained extents, as zeroed.  Dirty ones would be reused first and
 * counted as resident.
 */
static void
range_dalloc(tsdn_t *tsdn, arena_t *arena, edata_t *slab) {
	pa_shard_t *shard = &arena->pa_shard;
	size_t      size = edata_size_get(slab);
	bool        leader = edata_mesh_role_get(slab) == edata_mesh_leader;

	edata_mesh_set(slab, NULL);
	edata_mesh_role_set(slab, edata_mesh_private);
	if (leader && edata_mesh_frozen_get(slab)) {
		mesh_view_leave(tsdn, edata_addr_get(slab), size);
	}
	mesh_group_thaw(arena, slab);
	emap_remap(tsdn, shard->emap, slab, SC_NSIZES, /* slab */ false);
	emap_deregister_interior(tsdn, shard->emap, slab);
	edata_addr_set(slab, edata_base_get(slab));
	edata_szind_set(slab, SC_NSIZES);

	ehooks_t *ehooks = arena_get_ehooks(arena);
	if (ehooks_dalloc_will_fail(ehooks)) {
		extent_dalloc_wrapper_purged(tsdn, &shard->pac, ehooks, slab);
	} else {
		extent_dalloc_wrapper(tsdn, &shard->pac, ehooks, slab);
	}
	if (config_stats) {
		atomic_fetch_sub_zu(
		    &shard->pac.stats->pac_mapped, size, ATOMIC_RELAXED);
	}
}

/* Takes one run out, or its memory at least. */
static void
run_release(tsdn_t *tsdn, arena_t *arena) {
	mesh_limbo_t       *limbo = &arena->mesh.limbo;
	edata_list_active_t run;
	size_t              size = run_take(&limbo->slabs, &run);
	byte_t *begin = (byte_t *)edata_addr_get(edata_list_active_first(&run));
	bool    whole = run_whole(begin, size);
	bool   *refused = whole ? &limbo->refused_whole : &limbo->refused;
	run_punch(&run);
	*refused = *refused || room_take(whole);
	mesh_unsplice_t result = *refused
	    ? mesh_unsplice_refused
	    : mesh_view_unsplice(tsdn, begin, size);
	*refused = (result == mesh_unsplice_refused);
	edata_t *slab;
	while ((slab = edata_list_active_first(&run)) != NULL) {
		edata_list_active_remove(&run, slab);
		if (result == mesh_unsplice_refused) {
			edata_heap_insert(&limbo->kept, slab);
			continue;
		}
		atomic_fetch_sub_zu(&limbo->nslabs, 1, ATOMIC_RELAXED);
		/* One that is lost is never used again. */
		if (result == mesh_unsplice_done) {
			range_dalloc(tsdn, arena, slab);
		}
	}
}

/*
 * Has those tried again that were kept, if there is room by now, or more have died: they
 * may be neighbours.
 */
static void
kept_try_again(arena_t *arena) {
	mesh_limbo_t *limbo = &arena->mesh.limbo;
	if (edata_heap_empty(&limbo->slabs) && now_ns() >= limbo->look_ns
	    && (mesh_limbo_nslabs(arena) != limbo->nseen_kept
	        || !room_take(/* whole */ false))) {
		limbo->refused = false;
		limbo->refused_whole = false;
		limbo->slabs = limbo->kept;
		edata_heap_new(&limbo->kept);
	}
}

void
mesh_limbo_try_again(arena_t *arena) {
	arena->mesh.limbo.look_ns = 0;
	arena->mesh.limbo.nseen_kept = SIZE_MAX;
}

bool
mesh_limbo_step(tsdn_t *tsdn, arena_t *arena, uint64_t ns) {
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	mesh_limbo_t *limbo = &arena->mesh.limbo;
	if (mesh_limbo_nslabs(arena) == 0) {
		return true;
	}
	uint64_t end_ns = now_ns() + ns;
	kept_try_again(arena);
	if (!limbo_collect(tsdn, arena, end_ns)) {
		return false;
	}
	while (!edata_heap_empty(&limbo->slabs)) {
		run_release(tsdn, arena);
		if (now_ns() >= end_ns) {
			return false;
		}
	}
	if (!edata_heap_empty(&limbo->kept)) {
		limbo->nseen_kept = mesh_limbo_nslabs(arena);
		limbo->look_ns = now_ns() + REFUSED_PAUSE_NS;
	}
	return true;
}
