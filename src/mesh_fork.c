/*
 * Fork: parent and child part by the kernel's own copy-on-write.
 *
 * Spliced ranges are shared mappings, in which parent and child would see each
 * other's writes.  So before the fork, with every bin locked and no pass under
 * way, each spliced range is mapped again as a private view of the same place of
 * the store.  Its contents do not change and no byte is copied; what either side
 * writes from then on it writes to pages of its own.
 *
 * The generation is frozen with that: nobody writes to it or punches it again,
 * as the other side may still be reading it.  Its groups stay as they are, but
 * no slab joins them.  Both sides open a new generation for the next mesh, and
 * the kernel frees the old one when nobody maps it any more.
 *
 * Not covered are ways to fork that run no pthread_atfork() handlers: raw clone,
 * _Fork.  Their child does not inherit spliced ranges (see mesh_store.c), so that
 * it faults rather than writes to the memory of its parent.
 *
 * Called by jemalloc_prefork() and its counterparts.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"

#include <signal.h>

void
mesh_prefork0(tsdn_t *tsdn) {
	if (opt_mesh) {
		malloc_mutex_prefork(tsdn, &mesh_mtx);
	}
}

/* A copy instead of a view, for when the store's descriptor is gone. */
static bool
range_copy(void *addr, size_t size) {
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	bool err = mesh_barrier_open() || mesh_barrier_raise(addr, size);
	if (!err) {
		err = mesh_unsplice_copy(addr, size);
		mesh_barrier_lower(addr, size, !err);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err;
}

static void
range_part(const edata_t *slab, const edata_t *leader) {
	void  *addr = edata_addr_get(slab);
	size_t size = edata_size_get(slab);
	if (mesh_store_view_private(addr, size, edata_addr_get(leader))
	    && range_copy(addr, size)) {
		/* To go on would let the child write into the parent. */
		malloc_write(
		    "<jemalloc>: mesh cannot fork: the kernel refuses "
		    "memory or mappings; raise vm.max_map_count or "
		    "the memory limit.\n");
		abort();
	}
}

static void
bin_part(bin_t *bin) {
	mesh_group_t *group;
	ql_foreach (group, &bin->mesh.groups, link) {
		if (group->frozen) {
			continue;
		}
		group->frozen = true;
		range_part(group->leader, group->leader);
		edata_t *follower;
		ql_foreach (follower, &group->followers.head, ql_link_active) {
			range_part(follower, group->leader);
		}
	}
}

/*
 * What is in limbo is still a shared mapping, of which the child has nothing but
 * a hole in its address space; somebody else may live there soon.
 */
static void
bin_forget_limbo(bin_t *bin) {
	edata_list_active_init(&bin->mesh.limbo);
}

static void
bins_visit(tsdn_t *tsdn, void (*visit)(bin_t *bin)) {
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena == NULL) {
			continue;
		}
		for (szind_t j = 0; j < SC_NBINS; j++) {
			for (unsigned k = 0; k < bin_infos[j].n_shards; k++) {
				visit(arena_get_bin(arena, j, k));
			}
		}
	}
}

void
mesh_prefork1(tsdn_t *tsdn) {
	if (opt_mesh && mesh_store_is_open()) {
		bins_visit(tsdn, bin_part);
	}
}

void
mesh_postfork_parent(tsdn_t *tsdn) {
	if (opt_mesh) {
		mesh_store_freeze(/* child */ false);
		malloc_mutex_postfork_parent(tsdn, &mesh_mtx);
	}
}

void
mesh_postfork_child(tsdn_t *tsdn) {
	if (opt_mesh) {
		if (mesh_store_is_open()) {
			bins_visit(tsdn, bin_forget_limbo);
		}
		mesh_store_freeze(/* child */ true);
		mesh_barrier_postfork_child();
		mesh_pass_postfork_child();
		malloc_mutex_postfork_child(tsdn, &mesh_mtx);
	}
}
