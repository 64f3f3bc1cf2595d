/*
 * Meshing: slabs of one bin whose live regions do not overlap share one physical
 * slab, so that fragmented programs need less memory, and no object moves.
 *
 *     slab L  [A . . B . . . C]  --\
 *                                   >--  one physical slab [A D . B . E . C]
 *     slab F  [. D . . . E . .]  --/     mapped at L and at F
 *
 * (Powers, Tench, Berger, McGregor: Mesh, PLDI 2019.)  Every slab is ordinary
 * private memory until it meshes, so a program that does not fragment runs on
 * stock jemalloc.
 *
 * Words.  The leader of a group is the slab whose place in the store holds the
 * memory; it goes on serving allocations, from the union of the group's
 * bitmaps.  Its followers map the same memory and only wait for their regions to
 * be freed.  A run is neighbours that follow neighbours, by one mapping.  The store
 * is a memfd in which a slab's place is its own address; a generation is the store
 * between two forks.  To splice is to map a physical slab at one more range.  The
 * barrier keeps writers off a range meanwhile.
 *
 * States of a slab, in its edata_t's e_bits:
 *
 *     private --hold--> held --join--> follower --last free--> dying --> limbo
 *                        |  ^             |  ^
 *                       lead|            hold|join (moves to another group)
 *                        v  |             v  |
 *                       leader            held
 *
 * A private slab or leader is where stock jemalloc has it: slabcur, in
 * slabs_nonfull, or full and in no list.  A held one is in no list, for the
 * milliseconds of a batch.  A follower is in its group's list.  A group is in its
 * bin's list, for fork to find.  Dead slabs wait in limbo until they are un-spliced
 * and released.
 *
 * Who calls whom, and the files:
 *
 *     background thread, tick, mallctl
 *         |
 *     mesh_pass          when which bin is scanned
 *         |     \   \
 *         |      \   mesh_quota        how much of the processors there is
 *         |       mesh_worker          which thread does it, and when that begins
 *     mesh_scan          finds candidates of a bin, has them matched
 *         |     \   \
 *         |      \   mesh_walk, mesh_purge   slabs by address; pages inside them
 *         |       mesh_run, mesh_match   bitmaps in, runs and groups out
 *     mesh_batch         carries out: hold, copy, splice, join
 *         |     \
 *         |     mesh_group         leaders and followers, frees
 *         |         |
 *         |     mesh_limbo         releases
 *         |         |
 *     mesh_barrier  mesh_splice    keep writers away; copy, splice, un-splice
 *         |         |
 *     mesh_stop     |              stop the world, one of the barriers
 *     mesh_call     |              go on with the calls that it interrupts
 *         |         |
 *     mesh_code, mesh_frame, mesh_transfer   their numbers, its frames, what is cut short
 *                   |
 *     mesh_store ---'              the memfd, its windows and generations
 *
 *     mesh_fork, mesh_view         fork: private views, made lazily, of the ranges
 *     mesh_table                   in a table
 *     mesh_libc                    what a child's C library writes before that
 *     mesh_pack                    fills the first slabs where they are too full to mesh
 *     mesh_tidy                    one mapping again of what passes have cut up
 *     mesh_place                   random placement of regions
 *     mesh_reserve                 fresh slabs of a class side by side
 *     mesh_ehooks                  extension of the default extent hooks
 *     mesh.c                       boot and statistics
 *
 * Locks: background thread's info->mtx, then the mesh lock (mesh_pass.h), then
 * jemalloc's arena locks, then bin locks, which are leaves.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_quota.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_view.h"
#include "jemalloc/internal/mesh_worker.h"

#include <fcntl.h>

bool opt_mesh = false;

/* Why meshing is off for good; NULL if it is not. */
static atomic_p_t mesh_off;
/* Whether what meshing takes has been looked up; set under the mesh lock. */
static atomic_b_t mesh_settled;

static void
off_set(const char *why) {
	malloc_printf("<jemalloc>: mesh is off: %s.\n", why);
	atomic_store_p(&mesh_off, (void *)(uintptr_t)why, ATOMIC_RELAXED);
}

bool
mesh_is_off(void) {
	return atomic_load_p(&mesh_off, ATOMIC_RELAXED) != NULL;
}

/* Whether a descriptor is to be had: nothing can be looked up without. */
static bool
descriptor_is_left(void) {
	int fd = malloc_open("/", O_PATH | O_CLOEXEC);
	if (fd != -1) {
		malloc_close(fd);
	}
	return fd != -1 || (get_errno() != EMFILE && get_errno() != ENFILE);
}

bool
mesh_settle(void) {
	if (atomic_load_b(&mesh_settled, ATOMIC_RELAXED) || mesh_is_off()) {
		return mesh_is_off();
	}
	if (!descriptor_is_left()) {
		return true;
	}
	const char *why = mesh_barrier_boot();
	if (why != NULL) {
		off_set(why);
		return true;
	}
	if (mesh_splice_maps_max() == 0) {
		mesh_splice_boot();
	}
	mesh_quota_look();
	atomic_store_b(&mesh_settled, true, ATOMIC_RELEASE);
	return false;
}

void
mesh_unsettle(void) {
	/* What was asked for by name was there, and is not given up for a refusal. */
	if (opt_mesh_barrier == mesh_barrier_auto) {
		atomic_store_b(&mesh_settled, false, ATOMIC_RELAXED);
	}
}

bool
mesh_boot(tsdn_t *tsdn) {
	if (!opt_mesh) {
		return false;
	}
	if (opt_hpa) {
		off_set("it cannot work with hpa:true; remove one of the two "
		        "options");
	} else if (opt_mesh_barrier != mesh_barrier_auto
	    || opt_background_thread) {
		/*
		 * What is asked for by name shall not be missed later; and
		 * background threads need to know.
		 */
		(void)mesh_settle();
	}
	if (mesh_is_off()) {
		opt_mesh = false;
		return false;
	}
	if (mesh_pass_boot() || mesh_view_boot()) {
		return true;
	}
	mesh_worker_boot();
	mesh_placing = opt_mesh_random;
	return false;
}

void
mesh_arena_custom_hooks_note(mesh_arena_t *mesh) {
	atomic_store_b(&mesh->custom_hooks, true, ATOMIC_RELAXED);
}

void
mesh_stats_accum(mesh_stats_t *dst, const mesh_stats_t *src) {
	dst->npasses += src->npasses;
	dst->nmeshes += src->nmeshes;
	dst->nrefused += src->nrefused;
	dst->time_ns += src->time_ns;
	if (src->time_max_ns > dst->time_max_ns) {
		dst->time_max_ns = src->time_max_ns;
	}
	dst->groups += src->groups;
	dst->followers += src->followers;
	dst->saved += src->saved;
	dst->saved_max += src->saved_max;
	dst->withheld += src->withheld;
	dst->packed += src->packed;
}

void
mesh_arena_stats_merge(mesh_arena_t *mesh, mesh_stats_t *dst) {
	mesh_stats_t stats = {
	    .npasses = atomic_load_u64(&mesh->npasses, ATOMIC_RELAXED),
	    .nmeshes = atomic_load_u64(&mesh->nmeshes, ATOMIC_RELAXED),
	    .nrefused = atomic_load_u64(&mesh->nrefused, ATOMIC_RELAXED),
	    .time_ns = atomic_load_u64(&mesh->time_ns, ATOMIC_RELAXED),
	    .time_max_ns = atomic_load_u64(&mesh->time_max_ns, ATOMIC_RELAXED),
	    .groups = atomic_load_zu(&mesh->groups, ATOMIC_RELAXED),
	    .followers = atomic_load_zu(&mesh->followers, ATOMIC_RELAXED),
	    .saved = atomic_load_zu(&mesh->saved, ATOMIC_RELAXED),
	    .saved_max = atomic_load_zu(&mesh->saved_max, ATOMIC_RELAXED),
	    .packed = (size_t)__builtin_popcountll(
	        atomic_load_u64(&mesh->packed, ATOMIC_RELAXED))};
	for (szind_t i = 0; i < SC_NBINS; i++) {
		stats.withheld += atomic_load_zu(
		    &mesh->withheld[i], ATOMIC_RELAXED);
	}
	mesh_stats_accum(dst, &stats);
}

void
mesh_global_stats_read(mesh_global_stats_t *dst) {
	bool settled = atomic_load_b(&mesh_settled, ATOMIC_ACQUIRE);
	dst->mappings = mesh_splice_maps();
	dst->max_maps = settled ? mesh_splice_maps_max() : opt_mesh_max_maps;
	dst->store = mesh_store_bytes();
	dst->generation = mesh_store_generation();
	dst->interrupted = mesh_stop_interrupted();
	dst->barrier = mesh_barrier_names[settled ? mesh_barrier_get()
	                                          : opt_mesh_barrier];
	dst->barrier_reason = settled ? mesh_barrier_reason() : "";
	const char *off = (const char *)atomic_load_p(
	    &mesh_off, ATOMIC_RELAXED);
	const char *refused = mesh_pass_refused();
	dst->off = off != NULL ? off
	    : !opt_mesh        ? "mesh:true was not asked for"
	    : refused != NULL  ? refused
	                       : "";
}
