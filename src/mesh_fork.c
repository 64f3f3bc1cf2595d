/*
 * Fork: parent and child part by the kernel's own copy-on-write.
 *
 * Spliced ranges are shared mappings, in which parent and child would see each
 * other's writes.  So with every bin locked and no pass under way each spliced
 * range is listed, and mesh_view sees to it that from the fork on parent and child
 * have private views of the store, made at once or when first written.
 *
 * The ranges are frozen with that: until no child is left nobody writes to their
 * place in the store or punches it, no slab joins them, and nothing is meshed.  If
 * children stay, the generation ends: its ranges stay as they are, private, the
 * pass moves them into a new generation bit by bit, and the kernel frees the old
 * one when nobody maps it any more.
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
#include "jemalloc/internal/mesh_fork.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_view.h"

/* All ranges have been made private for the fork under way. */
static bool fork_parted;
/* Children cannot live: the kernel refused to part their memory from ours. */
static bool fork_refused;

void
mesh_prefork0(tsdn_t *tsdn) {
	if (opt_mesh) {
		malloc_mutex_prefork(tsdn, &mesh_mtx);
	}
}

static void
slab_freeze(arena_t *arena, edata_t *slab, const edata_t *leader) {
	if (!mesh_group_frozen(arena, slab)) {
		mesh_view_add(slab, leader);
		mesh_group_freeze(arena, slab);
	}
}

static void
bin_freeze(arena_t *arena, bin_t *bin) {
	mesh_group_t *group;
	ql_foreach (group, &bin->mesh.groups, link) {
		slab_freeze(arena, group->leader, group->leader);
		edata_t *follower;
		ql_foreach (follower, &group->followers.head, ql_link_active) {
			slab_freeze(arena, follower, group->leader);
		}
	}
}

static void
bins_freeze(tsdn_t *tsdn) {
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena == NULL) {
			continue;
		}
		for (szind_t j = 0; j < SC_NBINS; j++) {
			for (unsigned k = 0; k < bin_infos[j].n_shards; k++) {
				bin_freeze(arena, arena_get_bin(arena, j, k));
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

bool
mesh_fork_pending(tsdn_t *tsdn, bool hurry) {
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	if (mesh_view_settled(tsdn)) {
		mesh_store_freeze();
	}
	return mesh_view_pending(hurry);
}

void
mesh_prefork1(tsdn_t *tsdn) {
	if (!opt_mesh) {
		return;
	}
	fork_parted = false;
	fork_refused = false;
	mesh_view_prefork(tsdn);
	/* What an earlier fork has frozen waits for this child, too. */
	if (mesh_fork_pending(tsdn, false) || !mesh_store_is_open()) {
		return;
	}
	size_t n = members_count(tsdn);
	if (n == 0) {
		return;
	}
	fork_refused = mesh_view_begin(n);
	if (!fork_refused) {
		bins_freeze(tsdn);
		fork_refused = mesh_view_part(tsdn);
		fork_parted = !fork_refused && !mesh_view_pending(false);
	}
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
		    "vm.max_map_count or the memory limit.\n");
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	mesh_store_freeze();
	mesh_barrier_postfork_child();
	mesh_pass_postfork_child();
	malloc_mutex_postfork_child(tsdn, &mesh_mtx);
}
