/*
 * Fork: parent and child part by the kernel's own copy-on-write.
 *
 * Spliced ranges are shared mappings, in which parent and child would see each
 * other's writes.  So with every bin locked and no pass under way each spliced
 * range is listed, and mesh_view sees to it that from the fork on parent and child
 * have private views of the store, made at once or when first written.
 *
 * Until no child is left nobody writes to the ranges' places in the store or
 * punches them, no slab joins them, and nothing is meshed.  Ranges that have become
 * private are frozen.  If children stay, that is all of them, and the generation
 * ends: the pass moves its ranges into a new one bit by bit, and the kernel frees
 * the old one when nobody maps it any more.
 *
 * Fork cannot fail for the parent.  If the kernel refuses a view, and a copy as
 * well, the parent goes on as before, but a child would write into its parent's
 * memory; it ends itself with one sentence before the program's code runs.
 *
 * Not covered are ways to fork that run no pthread_atfork() handlers: raw clone,
 * _Fork.  Their child may read its heap, and exec, but what it writes to a spliced
 * range it writes into its parent's.  (Ranges that are not inherited at all would
 * make it crash instead, at the first argument for exec that lies in one, and
 * would slow down every other fork.)
 *
 * Called by jemalloc_prefork() and its counterparts.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_view.h"
#include "jemalloc/internal/mesh_waiter.h"
#include "jemalloc/internal/mesh_worker.h"

/* Groups that are looked ahead to. */
#define PREFETCH_GROUPS 8

/* All ranges were private before the fork under way. */
static bool fork_parted;
/* Children cannot live: the kernel refused to part their memory from ours. */
static bool fork_refused;
/* The signals that the forking thread blocked before, if we block them. */
static bool     fork_blocks;
static sigset_t fork_blocked;

void
mesh_prefork0(tsdn_t *tsdn) {
	if (opt_mesh) {
		malloc_mutex_prefork(tsdn, &mesh_mtx);
		mesh_pass_prefork(tsdn);
	}
}

typedef void (*slab_do_t)(edata_t *slab, const edata_t *leader);

static void
slab_add(edata_t *slab, const edata_t *leader) {
	if (!edata_mesh_frozen_get(slab)) {
		mesh_view_add(slab, leader);
	}
}

static void
slab_freeze(edata_t *slab, const edata_t *leader) {
	(void)leader;
	mesh_group_freeze(arena_get_from_edata(slab), slab);
}

/* The group n after this one, or NULL. */
static mesh_group_t *
group_after(const bin_t *bin, mesh_group_t *group, unsigned n) {
	for (; group != NULL && n > 0; n--) {
		group = ql_next(&bin->mesh.groups, group, link);
	}
	return group;
}

static void
bin_do(const bin_t *bin, slab_do_t slab_do) {
	mesh_group_t *group;
	mesh_group_t *ahead = group_after(
	    bin, ql_first(&bin->mesh.groups), PREFETCH_GROUPS);
	ql_foreach (group, &bin->mesh.groups, link) {
		/* Most of the time would go into waiting for memory. */
		if (ahead != NULL) {
			util_prefetch_read(ahead->leader);
			if (ahead->nfollowers > 0) {
				util_prefetch_read(
				    edata_list_active_first(&ahead->followers));
			}
			ahead = group_after(bin, ahead, 1);
		}
		slab_do(group->leader, group->leader);
		edata_t *follower;
		ql_foreach (follower, &group->followers.head, ql_link_active) {
			slab_do(follower, group->leader);
		}
	}
}

/* Does it to the members of all groups; all bins are locked. */
static void
slabs_do(tsdn_t *tsdn, slab_do_t slab_do) {
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena == NULL) {
			continue;
		}
		for (szind_t j = 0; j < SC_NBINS; j++) {
			for (unsigned k = 0; k < bin_infos[j].n_shards; k++) {
				bin_do(arena_get_bin(arena, j, k), slab_do);
			}
		}
	}
}

/* Members of all groups; no bin may be unlocked. */
static size_t
members_count(tsdn_t *tsdn) {
	size_t n = 0;
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena != NULL) {
			n += atomic_load_zu(&arena->mesh.groups, ATOMIC_RELAXED)
			    + atomic_load_zu(
			        &arena->mesh.followers, ATOMIC_RELAXED);
		}
	}
	return n;
}

/* Lists what parent and child would share.  Returns true if that failed. */
static bool
ranges_list(tsdn_t *tsdn) {
	size_t n = members_count(tsdn);
	if (n == 0) {
		return false;
	}
	if (mesh_view_begin(n)) {
		return true;
	}
	slabs_do(tsdn, slab_add);
	mesh_view_list(tsdn);
	return false;
}

/*
 * No handler of the program may run in a child before it has memory of its own: it
 * would write into its parent's.  What a thread brings upon itself cannot wait.
 */
static void
signals_block(void) {
	static const int own[] = {
	    SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	sigset_t others;
	sigfillset(&others);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		sigdelset(&others, own[i]);
	}
	fork_blocks = pthread_sigmask(SIG_SETMASK, &others, &fork_blocked) == 0;
}

static void
signals_restore(void) {
	if (fork_blocks) {
		fork_blocks = false;
		pthread_sigmask(SIG_SETMASK, &fork_blocked, NULL);
	}
}

void
mesh_prefork1(tsdn_t *tsdn) {
	if (!opt_mesh) {
		return;
	}
	fork_parted = false;
	fork_refused = false;
	mesh_view_prefork(tsdn);
	mesh_pagemap_prefork();
	if (!mesh_store_is_open()) {
		return;
	}
	/* The views have the protection that it tells of. */
	mesh_splice_look();
	/* Nothing has been meshed since there is a list. */
	fork_refused = (!mesh_view_listed() && ranges_list(tsdn))
	    || mesh_view_part(tsdn);
	fork_parted = mesh_view_settled(tsdn);
	if (fork_parted) {
		slabs_do(tsdn, slab_freeze);
	}
	signals_block();
}

void
mesh_postfork_parent(tsdn_t *tsdn) {
	if (opt_mesh) {
		mesh_view_postfork_parent(tsdn);
		if (fork_parted) {
			mesh_store_freeze();
		}
		mesh_pass_forked();
		malloc_mutex_postfork_parent(tsdn, &mesh_mtx);
		signals_restore();
	}
}

void
mesh_postfork_child(tsdn_t *tsdn) {
	if (!opt_mesh) {
		return;
	}
	if (mesh_view_postfork_child(tsdn) || fork_refused) {
		malloc_write(
		    "<jemalloc>: mesh ends this child at its fork, as the kernel "
		    "refused it memory or mappings of its own; raise "
		    "vm.max_map_count, the memory limit or RLIMIT_NOFILE, and "
		    "leave open the descriptors of meshing.\n");
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	mesh_store_freeze();
	if (mesh_barrier_get() != mesh_barrier_auto) {
		mesh_barrier_postfork_child();
	}
	mesh_unsettle();
	mesh_worker_postfork_child();
	mesh_pass_postfork_child(tsdn);
	mesh_waiter_postfork_child();
	mesh_pagemap_postfork_child();
	mesh_splice_postfork_child();
	malloc_mutex_postfork_child(tsdn, &mesh_mtx);
	signals_restore();
}
