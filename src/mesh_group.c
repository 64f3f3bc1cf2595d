/*
 * Groups: who is leader and follower, and what frees and releases do to them.
 *
 * A group lies in one bin (of one arena and shard), so that a free into any of
 * its slabs takes the bin lock it needs already.  The leader's bitmap is the
 * union of what is live in all members; a follower's own bitmap keeps saying
 * which of the live regions have their address in it.  A follower without live
 * regions leaves at once; the leader stays until the union is empty.
 *
 *   edata            private        leader         follower
 *   e_mesh           mesh_purge.c   its group      its group
 *   heap / ql link   nonfull heap   nonfull heap   the group's followers
 *   e_slab_data      own regions    union          own regions
 *
 * A range is frozen when it maps the store as it was at a fork, privately, so
 * that the other members and the pass do not reach it any more; the pass moves it
 * back.  No slab joins a frozen leader.  (While mesh_view.c has a table of ranges,
 * it alone knows which of them that applies to.)
 *
 * A follower that has left is dying, in limbo (mesh_limbo.c), until its range is out
 * of the store; its e_mesh is the leader that dies with it, if any.
 *
 * Called by the patches (frees), by mesh_pass and by what that calls.  All bookkeeping
 * is under the bin lock, a leaf.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_limbo.h"
#include "jemalloc/internal/mesh_view.h"

#ifdef BITMAP_USE_TREE
#	error "Mesh reads bitmaps as flat words; configure it without trees."
#endif

static const bin_info_t *
slab_bin_info(const edata_t *slab) {
	return &bin_infos[edata_szind_get(slab)];
}

/* See mesh_dalloc_empty(): by how much the nfree of slab is too high. */
static unsigned
slab_nfree_bias(const edata_t *slab) {
	return edata_mesh_role_get(slab) == edata_mesh_follower
	        || edata_mesh_held_get(slab)
	    ? slab_bin_info(slab)->nregs - 1
	    : 0;
}

static unsigned
slab_nfree(const edata_t *slab) {
	return edata_nfree_get(slab) - slab_nfree_bias(slab);
}

static bool
slab_empty(const edata_t *slab) {
	return slab_nfree(slab) == slab_bin_info(slab)->nregs;
}

/* Changes what slab is, and its nfree with it. */
static void
slab_state_set(edata_t *slab, edata_mesh_role_t role, bool held) {
	unsigned nfree = slab_nfree(slab);
	edata_mesh_role_set(slab, role);
	edata_mesh_held_set(slab, held);
	edata_nfree_binshard_set(
	    slab, nfree + slab_nfree_bias(slab), edata_binshard_get(slab));
}

static bin_t *
slab_bin(arena_t *arena, const edata_t *slab) {
	return arena_get_bin(
	    arena, edata_szind_get(slab), edata_binshard_get(slab));
}

void
mesh_group_live(const edata_t *slab, uint64_t *live) {
	const bitmap_info_t *info = &slab_bin_info(slab)->bitmap_info;
	const bitmap_t      *bitmap = slab->e_slab_data.bitmap;
	for (size_t w = 0; w < info->ngroups; w++) {
		live[w] = ~(uint64_t)bitmap[w];
	}
	size_t tail = info->nbits & BITMAP_GROUP_NBITS_MASK;
	if (tail != 0) {
		live[info->ngroups - 1] &= (UINT64_C(1) << tail) - 1;
	}
}

mesh_group_t *
mesh_group_get(const edata_t *slab) {
	edata_mesh_role_t role = edata_mesh_role_get(slab);
	return role == edata_mesh_leader || role == edata_mesh_follower
	    ? (mesh_group_t *)edata_mesh_get(slab)
	    : NULL;
}

unsigned
mesh_group_nfollowers(const edata_t *slab) {
	const mesh_group_t *group = mesh_group_get(slab);
	return group != NULL ? group->nfollowers : 0;
}

void
mesh_group_hold(bin_t *bin, edata_t *slab) {
	assert(!edata_mesh_held_get(slab));
	edata_mesh_role_t role = edata_mesh_role_get(slab);
	if (slab == bin->slabcur) {
		bin->slabcur = NULL;
	}
	if (edata_mesh_nonfull_get(slab)) {
		edata_heap_remove(&bin->slabs_nonfull, slab);
		edata_mesh_nonfull_set(slab, false);
	} else if (config_stats && role != edata_mesh_follower) {
		/* It was full, or slabcur. */
		bin->stats.nonfull_slabs++;
	}
	slab_state_set(slab, role, true);
}

void
mesh_group_freeze(arena_t *arena, edata_t *slab) {
	if (!edata_mesh_frozen_get(slab)) {
		edata_mesh_frozen_set(slab, true);
		atomic_fetch_add_zu(&arena->mesh.frozen, 1, ATOMIC_RELAXED);
	}
}

void
mesh_group_thaw(arena_t *arena, edata_t *slab) {
	if (edata_mesh_frozen_get(slab)) {
		edata_mesh_frozen_set(slab, false);
		atomic_fetch_sub_zu(&arena->mesh.frozen, 1, ATOMIC_RELAXED);
	}
}

/* Whether there is a slab at addr, which may be gone again; *ctx says which. */
static bool
slab_at(tsdn_t *tsdn, const void *addr, emap_full_alloc_ctx_t *ctx) {
	return !emap_full_alloc_ctx_try_lookup(
	           tsdn, &arena_emap_global, addr, ctx)
	    && ctx->edata != NULL && ctx->slab;
}

/* Whether slab, whose bin lock is held, is a leader or a follower. */
static bool
slab_member(const edata_t *slab) {
	const mesh_group_t *group = mesh_group_get(slab);
	return group != NULL
	    && (edata_mesh_role_get(slab) == edata_mesh_follower
	        || group->leader == slab);
}

/*
 * The bin of a slab that may be gone again: then of another extent, or NULL.  Its
 * fields are read at once, as they may be changing.
 */
static bin_t *
slab_bin_seen(const emap_full_alloc_ctx_t *ctx) {
	edata_t seen;
	seen.e_bits = *(const volatile uint64_t *)&ctx->edata->e_bits;
	if (edata_szind_get_maybe_invalid(&seen) != ctx->szind
	    || ctx->szind >= SC_NBINS) {
		return NULL;
	}
	unsigned shard = (unsigned)((seen.e_bits & EDATA_BITS_BINSHARD_MASK)
	    >> EDATA_BITS_BINSHARD_SHIFT);
	arena_t *arena = arena_get_from_edata(&seen);
	return arena != NULL && shard < bin_infos[ctx->szind].n_shards
	    ? arena_get_bin(arena, ctx->szind, shard)
	    : NULL;
}

void
mesh_group_freeze_at(tsdn_t *tsdn, const void *addr) {
	emap_full_alloc_ctx_t ctx, again;
	bin_t                *bin;
	if (!slab_at(tsdn, addr, &ctx) || (bin = slab_bin_seen(&ctx)) == NULL) {
		return;
	}
	malloc_mutex_lock(tsdn, &bin->lock);
	/* A member stays what it is as long as its bin is locked. */
	if (slab_at(tsdn, addr, &again) && again.edata == ctx.edata
	    && slab_bin_seen(&again) == bin && slab_member(again.edata)) {
		mesh_group_freeze(
		    arena_get_from_edata(again.edata), again.edata);
	}
	malloc_mutex_unlock(tsdn, &bin->lock);
}

static void
group_end(arena_t *arena, bin_t *bin, mesh_group_t *group) {
	assert(group->nfollowers == 0);
	ql_remove(&bin->mesh.groups, group, link);
	group->leader = NULL;
	mesh_group_discard(bin, group);
	atomic_fetch_sub_zu(&arena->mesh.groups, 1, ATOMIC_RELAXED);
}

/*
 * A follower leaves its group, to be released or to join another one.  Nothing
 * counts it any more: its pages went when it joined.
 */
static void
follower_leave(arena_t *arena, edata_t *slab) {
	mesh_group_t *group = mesh_group_get(slab);
	edata_list_active_remove(&group->followers, slab);
	group->nfollowers--;
	edata_mesh_set(slab, NULL);
	slab_state_set(slab, edata_mesh_dying, edata_mesh_held_get(slab));
	atomic_fetch_sub_zu(&arena->mesh.followers, 1, ATOMIC_RELAXED);
	atomic_fetch_sub_zu(
	    &arena->mesh.saved, edata_size_get(slab), ATOMIC_RELAXED);
}

void
mesh_group_unhold(bin_t *bin, edata_t *slab, edata_list_active_t *dead) {
	assert(edata_mesh_held_get(slab));
	slab_state_set(slab, edata_mesh_role_get(slab), false);
	if (edata_mesh_role_get(slab) == edata_mesh_follower) {
		if (slab_empty(slab)) {
			follower_leave(arena_get_from_edata(slab), slab);
			edata_list_active_append(dead, slab);
		}
		return;
	}
	if (slab_empty(slab)) {
		assert(mesh_group_get(slab) == NULL
		    || mesh_group_get(slab)->nfollowers == 0);
		if (config_stats) {
			bin->stats.nonfull_slabs--;
			bin->stats.curslabs--;
		}
		edata_list_active_append(dead, slab);
	} else if (slab_nfree(slab) == 0) {
		/* Full slabs of auto arenas are in no list. */
		if (config_stats) {
			bin->stats.nonfull_slabs--;
		}
	} else {
		edata_heap_insert(&bin->slabs_nonfull, slab);
		edata_mesh_nonfull_set(slab, true);
	}
}

void
mesh_group_lead(
    arena_t *arena, bin_t *bin, edata_t *slab, mesh_group_t *group) {
	assert(edata_mesh_role_get(slab) == edata_mesh_private);
	assert(edata_mesh_held_get(slab));
	group->leader = slab;
	edata_list_active_init(&group->followers);
	group->nfollowers = 0;
	group->purge_note = 0;
	ql_elm_new(group, link);
	ql_tail_insert(&bin->mesh.groups, group, link);
	edata_mesh_role_set(slab, edata_mesh_leader);
	edata_mesh_set(slab, group);
	atomic_fetch_add_zu(&arena->mesh.groups, 1, ATOMIC_RELAXED);
}

/* The live regions of slab move into, or out of, the union. */
static void
union_add(edata_t *leader, const edata_t *slab) {
	uint64_t live[BITMAP_GROUPS_MAX];
	mesh_group_live(slab, live);
	bitmap_t *bitmap = leader->e_slab_data.bitmap;
	unsigned  n = 0;
	for (size_t w = 0; w < slab_bin_info(slab)->bitmap_info.ngroups; w++) {
		assert((bitmap[w] & live[w]) == live[w]);
		bitmap[w] &= ~live[w];
		n += popcount_lu(live[w]);
	}
	edata_nfree_sub(leader, n);
}

static void
union_sub(edata_t *leader, const edata_t *slab) {
	uint64_t live[BITMAP_GROUPS_MAX];
	mesh_group_live(slab, live);
	bitmap_t *bitmap = leader->e_slab_data.bitmap;
	for (size_t w = 0; w < slab_bin_info(slab)->bitmap_info.ngroups; w++) {
		assert((bitmap[w] & live[w]) == 0);
		bitmap[w] |= live[w];
		for (uint64_t g = live[w]; g != 0; g &= g - 1) {
			edata_nfree_inc(leader);
		}
	}
}

/*
 * Sum of the indices of live regions.  The path of frees does not tell a follower
 * which region was freed; the difference to the last sum does.
 */
static size_t
live_xor(const edata_t *slab) {
	uint64_t live[BITMAP_GROUPS_MAX];
	mesh_group_live(slab, live);
	size_t sum = 0;
	for (size_t w = 0; w < slab_bin_info(slab)->bitmap_info.ngroups; w++) {
		for (uint64_t g = live[w]; g != 0; g &= g - 1) {
			sum ^= (w << LG_BITMAP_GROUP_NBITS) + ffs_lu(g);
		}
	}
	return sum;
}

void
mesh_group_join(arena_t *arena, bin_t *bin, edata_t *slab, edata_t *leader) {
	assert(edata_mesh_held_get(slab) && edata_mesh_held_get(leader));
	assert(edata_mesh_role_get(leader) == edata_mesh_leader);
	mesh_group_t *group = mesh_group_get(leader);
	assert(!edata_mesh_frozen_get(leader));

	if (edata_mesh_role_get(slab) == edata_mesh_follower) {
		union_sub(mesh_group_get(slab)->leader, slab);
		follower_leave(arena, slab);
	} else {
		if (edata_mesh_role_get(slab) == edata_mesh_leader) {
			group_end(arena, bin, mesh_group_get(slab));
		}
		if (config_stats) {
			bin->stats.nonfull_slabs--;
			bin->stats.curslabs--;
		}
		atomic_fetch_sub_zu(&arena->pa_shard.nactive,
		    edata_size_get(slab) >> LG_PAGE, ATOMIC_RELAXED);
	}
	union_add(leader, slab);
	mesh_group_thaw(arena, slab);
	slab_state_set(slab, edata_mesh_follower, true);
	edata_mesh_set(slab, group);
	edata_list_active_append(&group->followers, slab);
	edata_mesh_live_set(slab, live_xor(slab));
	group->nfollowers++;

	atomic_fetch_add_zu(&arena->mesh.followers, 1, ATOMIC_RELAXED);
	size_t saved = edata_size_get(slab)
	    + atomic_fetch_add_zu(
	        &arena->mesh.saved, edata_size_get(slab), ATOMIC_RELAXED);
	if (saved > atomic_load_zu(&arena->mesh.saved_max, ATOMIC_RELAXED)) {
		/* Only passes raise it, and the mesh lock admits one. */
		atomic_store_zu(&arena->mesh.saved_max, saved, ATOMIC_RELAXED);
	}
}

mesh_group_t *
mesh_group_recycle(bin_t *bin) {
	mesh_group_t *group = ql_first(&bin->mesh.groups_free);
	if (group != NULL) {
		ql_remove(&bin->mesh.groups_free, group, link);
	}
	return group;
}

void
mesh_group_discard(bin_t *bin, mesh_group_t *group) {
	ql_elm_new(group, link);
	ql_tail_insert(&bin->mesh.groups_free, group, link);
}

/* The bin goes without a slab of which nothing is live any more. */
static void
slab_dissociate(tsdn_t *tsdn, bin_t *bin, edata_t *slab) {
	bin_dissociate_slab(/* is_auto */ true, slab, bin);
	bin_dalloc_slab_prepare(tsdn, slab, bin);
}

bool
mesh_dalloc_empty(tsdn_t *tsdn, bin_t *bin, edata_t *slab) {
	malloc_mutex_assert_owner(tsdn, &bin->lock);
	if (edata_mesh_role_get(slab) != edata_mesh_follower) {
		if (edata_mesh_held_get(slab)) {
			/* The pass that holds the slab will see to it. */
			return false;
		}
		assert(mesh_group_get(slab)->nfollowers == 0);
		slab_dissociate(tsdn, bin, slab);
		return true;
	}

	mesh_group_t     *group = mesh_group_get(slab);
	edata_t          *leader = group->leader;
	const bin_info_t *bin_info = slab_bin_info(slab);
	/* One region fewer is live than when the sum was made: that one. */
	size_t live = live_xor(slab);
	size_t regind = edata_mesh_live_get(slab) ^ live;
	edata_mesh_live_set(slab, live);

	bitmap_unset(
	    leader->e_slab_data.bitmap, &bin_info->bitmap_info, regind);
	edata_nfree_inc(leader);
	if (slab_nfree(leader) == 1 && leader != bin->slabcur
	    && !edata_mesh_held_get(leader)) {
		bin_dalloc_locked_handle_newly_nonempty(
		    tsdn, /* is_auto */ true, leader, bin);
	}
	if (!slab_empty(slab) || edata_mesh_held_get(slab)) {
		return false;
	}

	follower_leave(arena_get_from_edata(slab), slab);
	if (slab_empty(leader) && !edata_mesh_held_get(leader)) {
		/*
		 * The caller has room for one slab to release: the leader goes
		 * with it, mesh_group_bury() knows.
		 */
		assert(group->nfollowers == 0);
		slab_dissociate(tsdn, bin, leader);
		edata_mesh_set(slab, leader);
	}
	return true;
}

void
mesh_group_bury(tsdn_t *tsdn, arena_t *arena, edata_t *slab) {
	assert(!edata_mesh_nonfull_get(slab) && !edata_mesh_held_get(slab));
	bin_t *bin = slab_bin(arena, slab);
	malloc_mutex_lock(tsdn, &bin->lock);
	edata_t *leader = slab;
	if (edata_mesh_role_get(slab) == edata_mesh_dying) {
		leader = (edata_t *)edata_mesh_get(slab);
		mesh_limbo_add(arena, bin, slab);
	}
	if (leader != NULL) {
		group_end(arena, bin, mesh_group_get(leader));
		if (mesh_view_listed()) {
			/* Nobody will find it in a group, and freeze it, any more. */
			mesh_group_freeze(arena, leader);
		}
		atomic_fetch_sub_zu(&arena->pa_shard.nactive,
		    edata_size_get(leader) >> LG_PAGE, ATOMIC_RELAXED);
		mesh_limbo_add(arena, bin, leader);
	}
	/* From here on somebody else may release them. */
	malloc_mutex_unlock(tsdn, &bin->lock);
}

void
mesh_group_release(tsdn_t *tsdn, arena_t *arena, edata_list_active_t *dead) {
	/*
	 * Not arena_slab_dalloc(): that may want to wake the background thread,
	 * whose lock the caller may hold.
	 */
	bool     deferred_work_generated = false;
	edata_t *slab;
	while ((slab = edata_list_active_first(dead)) != NULL) {
		edata_list_active_remove(dead, slab);
		if (edata_mesh_role_get(slab) == edata_mesh_private) {
			pa_dalloc(tsdn, &arena->pa_shard, slab,
			    &deferred_work_generated);
		} else {
			mesh_group_bury(tsdn, arena, slab);
		}
	}
	if (deferred_work_generated) {
		arena_decay(tsdn, arena, /* is_background_thread */ true,
		    /* all */ false);
	}
}

size_t
mesh_slab_nfree(tsdn_t *tsdn, const edata_t *slab) {
	if (edata_mesh_role_get(slab) != edata_mesh_follower) {
		return slab_nfree(slab);
	}
	bin_t *bin = slab_bin(arena_get_from_edata((edata_t *)slab), slab);
	malloc_mutex_lock(tsdn, &bin->lock);
	/* NULL if it has left its group since. */
	const mesh_group_t *group = mesh_group_get(slab);
	size_t nfree = slab_nfree(group != NULL ? group->leader : slab);
	malloc_mutex_unlock(tsdn, &bin->lock);
	return nfree;
}
