/*
 * The pass: finds slabs that can share memory, and makes them do so.
 *
 * One scan looks at one bin.  It notes all slabs in slabs_nonfull under the bin
 * lock and goes through them in the order of their addresses, block by block: it
 * copies out the live bitmaps of a block under the bin lock, has them matched
 * without it, and carries the groups out in batches:
 *
 *   hold     under the bin lock, take the slabs out of the bin, as far as they
 *            still are there and still disjoint
 *   raise    keep writers away from all ranges that will move
 *   copy     their live regions into the leader's physical slab
 *   splice   map that slab at each range
 *   lower    let writers on
 *   join     under the bin lock, settle with the bitmaps as they are now, so that
 *            frees meanwhile are not lost, and put the slabs back
 *
 * A step that the kernel refuses leaves the range where it was.  A unit is what
 * a scan matches: a private slab, or a leader with its followers.  To move a
 * whole group its followers move one by one, the leader last; at every point in
 * between all ranges map memory that holds their regions.
 *
 * Scans run in slices, under the mesh lock, by background thread 0, by the arena
 * tick where there are no background threads, and at once for arena.<i>.mesh.
 * Lock order: background thread's info->mtx, mesh lock, bin lock (a leaf).
 * Between raise and lower no lock may be taken and nothing in the heap written,
 * since an allocating thread may wait in the barrier while it holds a bin lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/extent_dss.h"
#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_fork.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_match.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_tidy.h"
#include "jemalloc/internal/mesh_view.h"

#include <sys/syscall.h>
#include <time.h>

/*
 * Ranges moved behind one barrier.  A writer may have to wait for all of them,
 * tens of microseconds each.
 */
#define BATCH_MOVES 16
/* Most slabs of one scan; a bin's lock is held while they are noted. */
#define SCAN_SLABS_MAX (ZU(1) << 17)
/*
 * Most slabs of a block.  Enough for good matches, and few enough that spliced
 * ranges lie close together: then neighbours need one mapping less, fork finds
 * them in few places, and a bin's lock is held shortly.
 */
#define BLOCK_SLABS_MAX (ZU(1) << 13)
/* Bitmap tests between two looks at the clock. */
#define SCAN_MATCH_WORK 20000
/* Rounds of a full pass over one bin; later ones gain little. */
#define FULL_PASS_ROUNDS 4

/* Share of the period that slices may take, and a slice's bounds. */
#define SLICE_SHARE 16
#define SLICE_NS_MIN UINT64_C(200000)
#define SLICE_NS_MAX UINT64_C(3000000)
/* What a tick in an application thread may take at once. */
#define SLICE_NS_TICK UINT64_C(200000)
/*
 * How long to leave it alone after the kernel, the budget or a thread has said
 * no: longer each time.
 */
#define REFUSED_PAUSE_NS_MIN UINT64_C(20000000)
#define REFUSED_PAUSE_NS_MAX UINT64_C(5000000000)
/* A process that forks more often than this does not mesh. */
#define FORK_PAUSE_NS UINT64_C(1000000000)
/* How long a pass on request waits for a fork to be dealt with. */
#define FORK_WAIT_MS 5000
/* Looks at a bin that fruitless scans may make us pass over, at most. */
#define BACKOFF_MAX 63

ssize_t opt_mesh_period_ms = 50;

malloc_mutex_t mesh_mtx;

/* A slab that a scan has seen, and where it was. */
typedef struct scan_slab_s scan_slab_t;
struct scan_slab_s {
	uintptr_t addr;
	edata_t  *slab;
};

typedef struct scan_s scan_t;
struct scan_s {
	/* What is scanned; bin is NULL if no scan is under way. */
	arena_t *arena;
	bin_t   *bin;
	szind_t  binind;
	unsigned binshard;
	/* One mapping for the arrays below, and its size. */
	byte_t *scratch;
	size_t  scratch_size;
	/* Groups that may have frozen members, and how many are left. */
	mesh_group_t **thaw;
	size_t         nthaw;
	/* Slabs seen, and how many; a heap of those that are yet to come. */
	scan_slab_t *queue;
	size_t       nseen;
	size_t       nqueued;
	/* Slabs of the block, and their bitmaps of live regions. */
	edata_t **slabs;
	uint64_t *live;
	size_t    nslabs;
	/* The matching of them, NULL between blocks; whether it is finished. */
	byte_t       *match_scratch;
	mesh_match_t *match;
	bool          matched;
	/* The group that is to be carried out next. */
	size_t group;
	/* A descriptor for the next new group, or NULL. */
	mesh_group_t *spare;
	/* Ranges moved so far. */
	size_t nmoved;
	/* The kernel or the budget said no: give the rest up. */
	bool refused;
};

/* A range that a batch moves. */
typedef struct move_s move_t;
struct move_s {
	edata_t *slab;
	/* The first move of the same unit; the unit's leader goes last. */
	unsigned unit;
	/* It may not move: it is locked, or what it leaves cannot be freed. */
	bool stuck;
	/* How far it got. */
	bool raised;
	bool spliced;
	/* Its own live regions when it was held. */
	uint64_t live[BITMAP_GROUPS_MAX];
};

typedef struct batch_s batch_t;
struct batch_s {
	/*
	 * Where the ranges move to; if lead is set it goes to the store first,
	 * being private or frozen.
	 */
	move_t leader;
	bool   lead;
	/* Union of all that the leader's physical slab holds and will hold. */
	uint64_t live[BITMAP_GROUPS_MAX];
	move_t   moves[BATCH_MOVES];
	unsigned nmoves;
	/*
	 * The leader of the last unit, held but not moved, if there was no room
	 * for all of the unit.
	 */
	edata_t *stay;
};

/* The scan that slices carry on, and where they are; under the mesh lock. */
static scan_t   slice_scan;
static unsigned slice_arena;
static unsigned slice_bin;
static unsigned slice_shard;
static uint64_t slice_last_ns;
/* Whether only a tick will wake background thread 0. */
static atomic_b_t slice_asleep;
/* When the process forked last. */
static uint64_t forked_ns;
/* When to try again after a refusal, 0 if nothing was refused. */
static uint64_t   refused_until_ns;
static uint64_t   refused_pause_ns;
static atomic_p_t refused_why;

bool
mesh_pass_boot(void) {
	return malloc_mutex_init(
	    &mesh_mtx, "mesh", WITNESS_RANK_MESH, malloc_mutex_rank_exclusive);
}

const char *
mesh_pass_refused(void) {
	return (const char *)atomic_load_p(&refused_why, ATOMIC_RELAXED);
}

static const char refused_locked[] =
    "the program has locked its memory (mlock, mlockall), and locked memory is "
    "not meshed";

/* What to do about a refusal, from errno. */
static const char *
refusal_name(int err) {
	switch (err) {
	case E2BIG:
		return "the budget of mappings is used up; raise mesh_max_maps "
		       "and vm.max_map_count";
	case ENOENT:
		return "/proc/self/maps cannot be read, and so the mappings not "
		       "be counted; mount /proc";
	case EMFILE:
		return "no file descriptor is left; raise RLIMIT_NOFILE "
		       "(ulimit -n)";
	case ENFILE:
		return "the system has no file descriptor left; raise "
		       "fs.file-max";
	case EFBIG:
		return "RLIMIT_FSIZE (ulimit -f) keeps files small; set it to "
		       "unlimited";
	case EAGAIN:
		/* Of mmap: it would have to be locked, and may not. */
	case MESH_ELOCKED:
		return refused_locked;
	case EBADF:
		return "the program has closed the descriptors of meshing; "
		       "leave open those named memfd:jemalloc-mesh and "
		       "userfaultfd";
	case ENOMEM:
	case ENOSPC:
	case EFAULT:
		return "memory, address space or mappings are short; raise the "
		       "memory limit, RLIMIT_AS (ulimit -v) or "
		       "vm.max_map_count";
	case EPERM:
	case EACCES:
	case ENOSYS:
		return "the process is not permitted memfd_create, mremap or "
		       "userfaultfd any more; permit them in its seccomp "
		       "filter";
	default:
		return "the kernel refused a memfd, a mapping or userfaultfd";
	}
}

/* Gives the rest of the scan up, but not for some memory that is locked. */
static void
pass_refuse(scan_t *scan, const char *why, unsigned nranges) {
	atomic_store_p(&refused_why, (void *)(uintptr_t)why, ATOMIC_RELAXED);
	atomic_fetch_add_u64(
	    &scan->arena->mesh.nrefused, nranges, ATOMIC_RELAXED);
	if (why == refused_locked) {
		return;
	}
	refused_pause_ns *= 2;
	if (refused_pause_ns < REFUSED_PAUSE_NS_MIN) {
		refused_pause_ns = REFUSED_PAUSE_NS_MIN;
	} else if (refused_pause_ns > REFUSED_PAUSE_NS_MAX) {
		refused_pause_ns = REFUSED_PAUSE_NS_MAX;
	}
	refused_until_ns = now_ns() + refused_pause_ns;
	scan->refused = true;
}

/* Counts the time that a slice took; the mesh lock is held. */
static void
pass_took(arena_t *arena, uint64_t ns) {
	mesh_arena_t *mesh = &arena->mesh;
	atomic_fetch_add_u64(&mesh->time_ns, ns, ATOMIC_RELAXED);
	if (ns > atomic_load_u64(&mesh->time_max_ns, ATOMIC_RELAXED)) {
		atomic_store_u64(&mesh->time_max_ns, ns, ATOMIC_RELAXED);
	}
}

/******************************************************************************/
/* Batches. */

static bool
arena_meshable(arena_t *arena) {
	return arena != NULL
	    && !atomic_load_b(&arena->mesh.custom_hooks, ATOMIC_RELAXED);
}

static unsigned
scan_nwords(const scan_t *scan) {
	return (unsigned)bin_infos[scan->binind].bitmap_info.ngroups;
}

/* A coroutine's stack may lie in the heap; ours must not move. */
static bool
slab_has_stack(const edata_t *slab) {
	const byte_t *addr = (const byte_t *)edata_addr_get(slab);
	const byte_t *stack = (const byte_t *)&addr;
	return stack >= addr && stack < addr + edata_size_get(slab);
}

/*
 * Whether slab may be picked.  The bin lock is held; what was seen of slab may
 * be long past, and its edata_t may describe anything by now.  The bit is set
 * only under the lock of the bin that the other fields name.
 */
static bool
slab_pickable(const scan_t *scan, const edata_t *slab) {
	if (!edata_mesh_nonfull_get(slab)
	    || edata_szind_get_maybe_invalid(slab) != scan->binind
	    || edata_binshard_get(slab) != scan->binshard
	    || edata_arena_ind_get(slab) != arena_ind_get(scan->arena)) {
		return false;
	}
	void *addr = edata_addr_get(slab);
	return arena_meshable(scan->arena)
	    && edata_pai_get(slab) == EXTENT_PAI_PAC && !edata_guarded_get(slab)
	    && mesh_store_fits(addr, edata_size_get(slab))
	    && (!have_dss || !extent_in_dss(addr)) && !slab_has_stack(slab)
	    && !mesh_group_frozen(scan->arena, (edata_t *)slab);
}

/*
 * Whether group, which may have ended since it was seen, can get its frozen
 * members back.  The bin lock is held.  A leader without live regions is on its
 * way to the page allocator.
 */
static bool
group_thawable(const scan_t *scan, const mesh_group_t *group) {
	edata_t *leader = group->leader;
	return leader != NULL && !edata_mesh_held_get(leader)
	    && edata_nfree_get(leader) < bin_infos[scan->binind].nregs
	    && arena_meshable(scan->arena) && !slab_has_stack(leader);
}

static move_t *
batch_move_add(scan_t *scan, batch_t *batch, edata_t *slab, unsigned unit) {
	move_t *move = &batch->moves[batch->nmoves++];
	move->slab = slab;
	move->unit = unit;
	move->stuck = false;
	move->raised = false;
	move->spliced = false;
	mesh_group_live(slab, move->live);
	mesh_group_hold(scan->bin, slab);
	return move;
}

/*
 * Adds a unit, or as many followers of it as there is room for, unless it
 * overlaps what the batch has already.  The bin lock is held.
 */
static void
batch_unit_add(scan_t *scan, batch_t *batch, edata_t *slab) {
	unsigned nwords = scan_nwords(scan);
	uint64_t live[BITMAP_GROUPS_MAX];
	mesh_group_live(slab, live);
	for (unsigned w = 0; w < nwords; w++) {
		if ((live[w] & batch->live[w]) != 0) {
			return;
		}
	}
	for (unsigned w = 0; w < nwords; w++) {
		batch->live[w] |= live[w];
	}

	unsigned      unit = batch->nmoves;
	mesh_group_t *group = mesh_group_get(slab);
	unsigned      nfollowers = 0;
	if (group != NULL) {
		edata_t *follower;
		ql_foreach (follower, &group->followers.head, ql_link_active) {
			if (batch->nmoves == BATCH_MOVES) {
				break;
			}
			move_t *move = batch_move_add(
			    scan, batch, follower, unit);
			for (unsigned w = 0; w < nwords; w++) {
				live[w] &= ~move->live[w];
			}
			nfollowers++;
		}
		if (nfollowers < group->nfollowers
		    || batch->nmoves == BATCH_MOVES) {
			mesh_group_hold(scan->bin, slab);
			batch->stay = slab;
			return;
		}
	}
	move_t *move = batch_move_add(scan, batch, slab, unit);
	/* The followers go before it and leave it only what is its own. */
	memcpy(move->live, live, nwords * sizeof(live[0]));
}

/*
 * Adds the frozen followers of the batch's leader, as many as there is room for,
 * and leaves the leader what is its own.  The bin lock is held.
 */
static void
batch_thaw_add(scan_t *scan, batch_t *batch) {
	edata_t *follower;
	ql_foreach (follower,
	    &mesh_group_get(batch->leader.slab)->followers.head,
	    ql_link_active) {
		uint64_t live[BITMAP_GROUPS_MAX];
		mesh_group_live(follower, live);
		for (unsigned w = 0; w < scan_nwords(scan); w++) {
			batch->leader.live[w] &= ~live[w];
		}
		if (batch->nmoves < BATCH_MOVES && !slab_has_stack(follower)
		    && mesh_group_frozen(scan->arena, follower)) {
			batch_move_add(scan, batch, follower, batch->nmoves);
		}
	}
}

/* Whether all moves of the unit before move i came through. */
static bool
batch_unit_came_through(const batch_t *batch, unsigned i) {
	for (unsigned j = batch->moves[i].unit; j < i; j++) {
		if (!batch->moves[j].spliced) {
			return false;
		}
	}
	return true;
}

/* Whether the slab can move at all; left is what its memory is given back by. */
static void
move_prepare(tsdn_t *tsdn, move_t *move, size_t size, void **left,
    const char **why) {
	void *addr = edata_addr_get(move->slab);
	move->stuck = mesh_range_locked(addr, size);
	if (!move->stuck
	    && edata_mesh_role_get(move->slab) == edata_mesh_leader) {
		*left = mesh_store_window(tsdn, addr, size);
		move->stuck = (*left == NULL);
	}
	if (move->stuck) {
		*why = refusal_name(get_errno());
	}
}

/*
 * Keeps writers off the range.  A range in use, where a thread has its stack, is
 * just passed over; anything else is a refusal of the kernel's.
 */
static bool
move_raise(move_t *move, size_t size, const char **why) {
	if (move->stuck) {
		return false;
	}
	move->raised = !mesh_barrier_raise(edata_addr_get(move->slab), size);
	if (!move->raised && get_errno() != EBUSY) {
		*why = refusal_name(get_errno());
	}
	return move->raised;
}

static bool
move_splice(move_t *move, size_t size, void *window, const char **why) {
	move->spliced = !mesh_splice(edata_addr_get(move->slab), size, window);
	if (!move->spliced) {
		*why = refusal_name(get_errno());
	}
	return move->spliced;
}

/*
 * Raise, copy, splice, lower.  No lock but the mesh lock is held; all slabs of
 * the batch are.  Returns the reason why some of it was not to be had, or NULL.
 */
static const char *
batch_splice(scan_t *scan, batch_t *batch, void *window) {
	const bin_info_t *info = &bin_infos[scan->binind];
	size_t            size = info->slab_size;
	unsigned          nwords = scan_nwords(scan);
	move_t           *leader = &batch->leader;

	const char *why = mesh_barrier_begin();
	if (why != NULL) {
		return why;
	}
	if (batch->lead && !move_raise(leader, size, &why)) {
		goto label_done;
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_raise(&batch->moves[i], size, &why);
	}

	if (batch->lead) {
		mesh_splice_copy(window, edata_addr_get(leader->slab),
		    leader->live, nwords, info->reg_size);
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		if (move->raised) {
			mesh_splice_copy(window, edata_addr_get(move->slab),
			    move->live, nwords, info->reg_size);
		}
	}

	if (!batch->lead || move_splice(leader, size, window, &why)) {
		for (unsigned i = 0; i < batch->nmoves; i++) {
			move_t *move = &batch->moves[i];
			if (move->raised && batch_unit_came_through(batch, i)) {
				move_splice(move, size, window, &why);
			}
		}
	}

	if (batch->lead) {
		mesh_barrier_lower(
		    edata_addr_get(leader->slab), size, leader->spliced);
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		if (move->raised) {
			mesh_barrier_lower(
			    edata_addr_get(move->slab), size, move->spliced);
		}
	}
label_done:
	mesh_barrier_end();
	return why;
}

/* Bookkeeping of what came through; the bin lock is held. */
static void
batch_join(scan_t *scan, batch_t *batch, edata_list_active_t *dead) {
	edata_t *leader = batch->leader.slab;
	if (batch->lead && batch->leader.spliced) {
		if (mesh_group_get(leader) != NULL) {
			mesh_group_thaw(scan->arena, leader);
		} else {
			mesh_group_lead(
			    scan->arena, scan->bin, leader, scan->spare);
			scan->spare = mesh_group_recycle(scan->bin);
		}
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		if (!batch->moves[i].spliced) {
			continue;
		}
		if (mesh_group_get(slab) == mesh_group_get(leader)) {
			mesh_group_thaw(scan->arena, slab);
		} else {
			mesh_group_join(scan->arena, scan->bin, slab, leader);
		}
	}
	/*
	 * Followers first, since a leader may be released only without any.
	 */
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		if (edata_mesh_role_get(slab) == edata_mesh_follower) {
			mesh_group_unhold(scan->bin, slab, dead);
		}
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		if (edata_mesh_held_get(slab)) {
			mesh_group_unhold(scan->bin, slab, dead);
		}
	}
	if (batch->stay != NULL) {
		mesh_group_unhold(scan->bin, batch->stay, dead);
	}
	mesh_group_unhold(scan->bin, leader, dead);
}

/*
 * Moves what it can of the units units[0, n) to the slab leader; or, if thaw is
 * not NULL, the frozen members of that group back into the store.  Returns how
 * many ranges moved.
 */
static unsigned
batch_run(tsdn_t *tsdn, scan_t *scan, edata_t *leader, edata_t **units,
    size_t n, const mesh_group_t *thaw) {
	if (scan->spare == NULL) {
		scan->spare = (mesh_group_t *)base_alloc(
		    tsdn, scan->arena->base, sizeof(mesh_group_t), QUANTUM);
		if (scan->spare == NULL) {
			return 0;
		}
	}

	mesh_store_windows_bound();

	/* Hold. */
	batch_t batch;
	batch.nmoves = 0;
	batch.stay = NULL;
	malloc_mutex_lock(tsdn, &scan->bin->lock);
	if (thaw != NULL ? !group_thawable(scan, thaw)
	                 : !slab_pickable(scan, leader)) {
		malloc_mutex_unlock(tsdn, &scan->bin->lock);
		return 0;
	}
	if (thaw != NULL) {
		leader = thaw->leader;
	}
	batch.leader.slab = leader;
	batch.leader.stuck = false;
	batch.leader.raised = false;
	batch.leader.spliced = false;
	batch.lead = (mesh_group_get(leader) == NULL)
	    || mesh_group_frozen(scan->arena, leader);
	mesh_group_live(leader, batch.leader.live);
	memcpy(batch.live, batch.leader.live, sizeof(batch.live));
	mesh_group_hold(scan->bin, leader);
	if (thaw != NULL) {
		batch_thaw_add(scan, &batch);
	}
	for (size_t i = 0; i < n && batch.nmoves < BATCH_MOVES; i++) {
		if (slab_pickable(scan, units[i])) {
			batch_unit_add(scan, &batch, units[i]);
		}
	}
	malloc_mutex_unlock(tsdn, &scan->bin->lock);

	size_t size = bin_infos[scan->binind].slab_size;
	void  *window = NULL;
	/* The memory that a leader leaves behind when it moves. */
	void       *left[BATCH_MOVES] = {NULL};
	unsigned    nmoved = 0;
	const char *why = NULL;
	unsigned    nmeshed = 0;
	if (batch.nmoves > 0 || (thaw != NULL && batch.lead)) {
		if (!mesh_splice_room(batch.nmoves + 1)) {
			pass_refuse(scan, refusal_name(get_errno()),
			    batch.nmoves);
		} else if (mesh_barrier_open()
		    || (window = mesh_store_window(
		            tsdn, edata_addr_get(leader), size))
		        == NULL) {
			pass_refuse(scan, refusal_name(get_errno()),
			    batch.nmoves);
		} else {
			const char *stuck = NULL;
			void       *none = NULL;
			if (batch.lead) {
				move_prepare(
				    tsdn, &batch.leader, size, &none, &stuck);
			}
			for (unsigned i = 0; i < batch.nmoves; i++) {
				move_prepare(tsdn, &batch.moves[i], size,
				    &left[i], &stuck);
			}
			why = batch_splice(scan, &batch, window);
			if (why == NULL) {
				why = stuck;
			}
		}
	}

	for (unsigned i = 0; i < batch.nmoves; i++) {
		if (batch.moves[i].spliced) {
			nmoved++;
			nmeshed += (thaw == NULL);
			if (left[i] != NULL) {
				mesh_store_punch(left[i], size);
			}
		}
	}
	if (window != NULL && batch.lead) {
		if (batch.leader.spliced) {
			nmoved += (thaw != NULL);
		} else if (thaw == NULL) {
			mesh_store_punch(window, size);
		}
	}
	if (nmoved == 0 && why != NULL) {
		pass_refuse(scan, why, batch.nmoves);
	}

	edata_list_active_t dead;
	edata_list_active_init(&dead);
	malloc_mutex_lock(tsdn, &scan->bin->lock);
	batch_join(scan, &batch, &dead);
	malloc_mutex_unlock(tsdn, &scan->bin->lock);
	mesh_group_release(tsdn, scan->arena, &dead);

	if (nmoved > 0) {
		atomic_fetch_add_u64(
		    &scan->arena->mesh.nmeshes, nmeshed, ATOMIC_RELAXED);
		refused_until_ns = 0;
		refused_pause_ns = 0;
		atomic_store_p(&refused_why, NULL, ATOMIC_RELAXED);
	}
	return nmoved;
}

/******************************************************************************/
/* Scans. */

/*
 * Notes the slabs of the nonfull heap, a binary tree of left children and next
 * siblings.  The bin lock is held; stack has room for max + 1 slabs.
 */
static void
scan_collect(scan_t *scan, edata_t **stack, size_t max) {
	size_t offset = offsetof(edata_t, heap_link);
	size_t depth = 0;

	edata_t *slab = (edata_t *)scan->bin->slabs_nonfull.ph.root;
	if (slab != NULL) {
		stack[depth++] = slab;
	}
	while (depth > 0 && scan->nseen < max) {
		slab = stack[--depth];
		edata_t *next = (edata_t *)phn_next_get(slab, offset);
		edata_t *lchild = (edata_t *)phn_lchild_get(slab, offset);
		if (next != NULL && depth < max) {
			stack[depth++] = next;
		}
		if (lchild != NULL && depth <= max) {
			stack[depth++] = lchild;
		}
		if (slab_pickable(scan, slab)) {
			scan->queue[scan->nseen++] = (scan_slab_t){
			    (uintptr_t)edata_addr_get(slab), slab};
		}
	}
	scan->nqueued = scan->nseen;
}

/* Notes the groups of the bin; the bin lock is held. */
static void
scan_collect_groups(scan_t *scan, size_t max) {
	mesh_group_t *group;
	ql_foreach (group, &scan->bin->mesh.groups, link) {
		if (scan->nthaw == max) {
			break;
		}
		scan->thaw[scan->nthaw++] = group;
	}
}

/* The queue is a binary heap, lowest address first. */
static void
scan_queue_sift(scan_t *scan, size_t i) {
	scan_slab_t *queue = scan->queue;
	scan_slab_t  moving = queue[i];
	size_t       child;
	while ((child = 2 * i + 1) < scan->nqueued) {
		if (child + 1 < scan->nqueued
		    && queue[child + 1].addr < queue[child].addr) {
			child++;
		}
		if (moving.addr <= queue[child].addr) {
			break;
		}
		queue[i] = queue[child];
		i = child;
	}
	queue[i] = moving;
}

static edata_t *
scan_queue_pop(scan_t *scan) {
	edata_t *slab = scan->queue[0].slab;
	scan->queue[0] = scan->queue[--scan->nqueued];
	scan_queue_sift(scan, 0);
	return slab;
}

/* Goes on to the next block.  Returns true if there is none. */
static bool
scan_block(tsdn_t *tsdn, scan_t *scan) {
	unsigned nwords = scan_nwords(scan);
	size_t   n = scan->nqueued;
	if (n > BLOCK_SLABS_MAX) {
		/* Not a full one and a poor rest. */
		n = n < 2 * BLOCK_SLABS_MAX ? n / 2 : BLOCK_SLABS_MAX;
	}
	for (size_t i = 0; i < n; i++) {
		scan->slabs[i] = scan_queue_pop(scan);
	}
	scan->nslabs = 0;
	malloc_mutex_lock(tsdn, &scan->bin->lock);
	for (size_t i = 0; i < n; i++) {
		edata_t *slab = scan->slabs[i];
		if (slab_pickable(scan, slab)) {
			mesh_group_live(
			    slab, &scan->live[scan->nslabs * nwords]);
			scan->slabs[scan->nslabs++] = slab;
		}
	}
	malloc_mutex_unlock(tsdn, &scan->bin->lock);
	scan->group = 0;
	scan->matched = false;
	scan->match = mesh_match_begin(scan->match_scratch,
	    (unsigned)bin_infos[scan->binind].nregs, scan->nslabs, scan->live);
	return n == 0;
}

static void
scan_end(tsdn_t *tsdn, scan_t *scan) {
	mesh_store_windows_trim();
	if (scan->spare != NULL) {
		malloc_mutex_lock(tsdn, &scan->bin->lock);
		mesh_group_discard(scan->bin, scan->spare);
		malloc_mutex_unlock(tsdn, &scan->bin->lock);
	}
	pages_unmap(scan->scratch, scan->scratch_size);
	atomic_fetch_add_u64(&scan->arena->mesh.npasses, 1, ATOMIC_RELAXED);
	scan->bin = NULL;
}

/* Begins a scan of a bin.  Returns true if there is nothing to scan. */
static bool
scan_begin(tsdn_t *tsdn, scan_t *scan, arena_t *arena, szind_t binind,
    unsigned binshard) {
	const bin_info_t *info = &bin_infos[binind];
	bin_t            *bin = arena_get_bin(arena, binind, binshard);

	mesh_group_limbo_retry(tsdn, arena, bin);
	malloc_mutex_lock(tsdn, &bin->lock);
	/* A hint; the lock is dropped for the memory to copy them to. */
	size_t max = config_stats ? bin->stats.nonfull_slabs : SCAN_SLABS_MAX;
	bin->mesh.ndalloc_seen = (uint32_t)bin->stats.ndalloc;
	malloc_mutex_unlock(tsdn, &bin->lock);
	size_t nthaw = atomic_load_zu(&arena->mesh.frozen, ATOMIC_RELAXED) > 0
	    ? atomic_load_zu(&arena->mesh.groups, ATOMIC_RELAXED)
	    : 0;
	if (max < 2 && nthaw == 0) {
		return true;
	}
	if (max > SCAN_SLABS_MAX) {
		max = SCAN_SLABS_MAX;
	}

	memset(scan, 0, sizeof(*scan));
	scan->arena = arena;
	scan->bin = bin;
	scan->binind = binind;
	scan->binshard = binshard;

	size_t block = max < BLOCK_SLABS_MAX ? max : BLOCK_SLABS_MAX;
	size_t match_size = mesh_match_size((unsigned)info->nregs, block);
	/* The stack and what blocks need take turns in the same memory. */
	size_t slabs_size = ALIGNMENT_CEILING(
	    block * sizeof(edata_t *), CACHELINE);
	size_t block_size = match_size + slabs_size
	    + block * scan_nwords(scan) * sizeof(uint64_t);
	size_t stack_size = (max + 1) * sizeof(edata_t *);
	size_t head_size = ALIGNMENT_CEILING(
	    block_size > stack_size ? block_size : stack_size, CACHELINE);
	bool commit = true;
	scan->scratch_size = PAGE_CEILING(head_size
	    + max * sizeof(scan_slab_t) + nthaw * sizeof(mesh_group_t *));
	scan->scratch = (byte_t *)pages_map(
	    NULL, scan->scratch_size, PAGE, &commit);
	if (scan->scratch == NULL) {
		pass_refuse(scan, refusal_name(get_errno()), 0);
		scan->bin = NULL;
		return true;
	}
	scan->match_scratch = scan->scratch;
	scan->slabs = (edata_t **)(scan->scratch + match_size);
	scan->live = (uint64_t *)(scan->scratch + match_size + slabs_size);
	scan->queue = (scan_slab_t *)(scan->scratch + head_size);
	scan->thaw = (mesh_group_t **)(scan->queue + max);

	malloc_mutex_lock(tsdn, &bin->lock);
	scan_collect(scan, (edata_t **)scan->scratch, max);
	scan_collect_groups(scan, nthaw);
	scan->spare = mesh_group_recycle(bin);
	malloc_mutex_unlock(tsdn, &bin->lock);
	for (size_t i = scan->nqueued / 2; i-- > 0;) {
		scan_queue_sift(scan, i);
	}
	return false;
}

/*
 * The slab to which the rest of its group moves: the one that would cost most to
 * move, then the lowest.  A glance without the bin lock; batch_run() checks.
 */
static uint32_t
scan_group_leader(const scan_t *scan, size_t g) {
	uint32_t best = mesh_match_first(scan->match, g);
	unsigned best_followers = 0;
	bool     best_leads = false;
	for (uint32_t i = best; i != MESH_MATCH_END;
	     i = mesh_match_next(scan->match, g, i)) {
		const edata_t *slab = scan->slabs[i];
		bool leads = edata_mesh_role_get(slab) == edata_mesh_leader;
		const mesh_group_t *group = leads ? mesh_group_get(slab) : NULL;
		unsigned nfollowers = group != NULL ? group->nfollowers : 0;
		if (leads > best_leads
		    || (leads == best_leads
		        && (nfollowers > best_followers
		            || (nfollowers == best_followers
		                && edata_addr_get(slab)
		                    < edata_addr_get(scan->slabs[best]))))) {
			best = i;
			best_followers = nfollowers;
			best_leads = leads;
		}
	}
	return best;
}

/* Carries out one group of the matching. */
static void
scan_group_run(tsdn_t *tsdn, scan_t *scan, size_t g) {
	uint32_t first = mesh_match_first(scan->match, g);
	if (mesh_match_next(scan->match, g, first) == MESH_MATCH_END) {
		return;
	}
	uint32_t leader = scan_group_leader(scan, g);
	edata_t *units[BATCH_MOVES];
	size_t   n = 0;
	for (uint32_t i = first; i != MESH_MATCH_END && !scan->refused;) {
		if (i != leader) {
			units[n++] = scan->slabs[i];
		}
		i = mesh_match_next(scan->match, g, i);
		if (n == BATCH_MOVES || (n > 0 && i == MESH_MATCH_END)) {
			/* Again while units with many followers come over. */
			unsigned nmoved;
			do {
				nmoved = batch_run(tsdn, scan,
				    scan->slabs[leader], units, n, NULL);
				scan->nmoved += nmoved;
			} while (nmoved == BATCH_MOVES && !scan->refused);
			n = 0;
		}
	}
}

/* Brings the frozen members of a group back into the store. */
static void
scan_thaw(tsdn_t *tsdn, scan_t *scan, const mesh_group_t *group) {
	unsigned nmoved;
	do {
		nmoved = batch_run(tsdn, scan, NULL, NULL, 0, group);
		scan->nmoved += nmoved;
	} while (nmoved >= BATCH_MOVES && !scan->refused);
}

/* Goes on with a scan for about ns.  Returns true when it has ended. */
static bool
scan_step(tsdn_t *tsdn, scan_t *scan, uint64_t ns) {
	uint64_t begin = now_ns();
	uint64_t took;
	bool     done = false;
	do {
		if (scan->refused) {
			done = true;
		} else if (scan->nthaw > 0) {
			scan_thaw(tsdn, scan, scan->thaw[--scan->nthaw]);
		} else if (scan->match == NULL) {
			done = scan_block(tsdn, scan);
		} else if (!scan->matched) {
			scan->matched = mesh_match_step(
			    scan->match, SCAN_MATCH_WORK);
		} else if (scan->group == mesh_match_ngroups(scan->match)) {
			scan->match = NULL;
		} else {
			scan_group_run(tsdn, scan, scan->group++);
		}
		took = now_ns() - begin;
	} while (!done && took < ns);

	pass_took(scan->arena, took);
	if (done) {
		scan_end(tsdn, scan);
	}
	return done;
}

/******************************************************************************/
/* Slices. */

/* What to do about a bin now. */
typedef enum {
	/* Nothing was freed since it was searched. */
	bin_idle,
	/* Something was, but searches have brought nothing lately. */
	bin_later,
	bin_due
} bin_state_t;

static bin_state_t
bin_look(tsdn_t *tsdn, arena_t *arena, szind_t binind, unsigned binshard) {
	const bin_info_t *info = &bin_infos[binind];
	if (info->nregs == 1) {
		return bin_idle;
	}
	bin_t *bin = arena_get_bin(arena, binind, binshard);
	malloc_mutex_lock(tsdn, &bin->lock);
	bin_state_t state;
	if (config_stats && edata_list_active_empty(&bin->mesh.limbo)
	    && atomic_load_zu(&arena->mesh.frozen, ATOMIC_RELAXED) == 0
	    && ((uint32_t)bin->stats.ndalloc == bin->mesh.ndalloc_seen
	        || bin->stats.nonfull_slabs < 2
	        || bin->stats.curslabs * info->nregs - bin->stats.curregs
	            < info->nregs)) {
		state = bin_idle;
	} else if (bin->mesh.nskip > 0) {
		bin->mesh.nskip--;
		state = bin_later;
	} else {
		state = bin_due;
	}
	malloc_mutex_unlock(tsdn, &bin->lock);
	return state;
}

/* Adapts to what a scan of a bin has brought. */
static void
bin_backoff(tsdn_t *tsdn, bin_t *bin, size_t nslabs, size_t nmoved) {
	malloc_mutex_lock(tsdn, &bin->lock);
	if (nmoved * 32 >= nslabs && nmoved > 0) {
		bin->mesh.backoff = 0;
	} else {
		/* 1, 3, 7 .. BACKOFF_MAX. */
		bin->mesh.backoff = (uint16_t)((bin->mesh.backoff * 2 + 1)
		    & BACKOFF_MAX);
	}
	bin->mesh.nskip = bin->mesh.backoff;
	malloc_mutex_unlock(tsdn, &bin->lock);
}

/* Moves on to the next bin of all auto arenas, around and around. */
static void
slice_next(void) {
	if (++slice_shard < bin_infos[slice_bin].n_shards) {
		return;
	}
	slice_shard = 0;
	if (++slice_bin < SC_NBINS) {
		return;
	}
	slice_bin = 0;
	slice_arena = (slice_arena + 1) % manual_arena_base;
}

/*
 * Goes on with a round of tidying, or begins one, for about ns.  The mesh lock is
 * held.  Returns true when the round has ended.
 */
static bool
tidy_run(tsdn_t *tsdn, arena_t *arena, uint64_t ns) {
	uint64_t begin = now_ns();
	uint64_t took;
	bool     done;
	do {
		done = mesh_tidy_step(tsdn, arena);
		took = now_ns() - begin;
	} while (!done && took < ns);
	pass_took(arena, took);
	return done;
}

/*
 * Works for about ns.  The mesh lock is held.  Returns true if there is more to
 * do soon: it was cut short, or a bin is only backing off.
 */
static bool
slice_run(tsdn_t *tsdn, uint64_t ns) {
	slice_last_ns = now_ns();
	bool hurry = (opt_mesh_period_ms == 0);
	if (slice_last_ns < refused_until_ns || mesh_fork_pending(tsdn, hurry)
	    || (!hurry && forked_ns != 0
	        && slice_last_ns - forked_ns < FORK_PAUSE_NS)) {
		return true;
	}
	bool     later = false;
	bool     worked = false;
	unsigned first_arena = slice_arena;
	unsigned first_bin = slice_bin;
	unsigned first_shard = slice_shard;
	do {
		if (slice_scan.bin == NULL) {
			arena_t *arena = arena_get(tsdn, slice_arena, false);
			if (slice_bin == 0 && slice_shard == 0
			    && arena_meshable(arena)) {
				mesh_tidy_t state = mesh_tidy_look(arena);
				later |= (state == mesh_tidy_later);
				worked |= (state == mesh_tidy_due);
				if (state == mesh_tidy_due
				    && !tidy_run(tsdn, arena, ns)) {
					return true;
				}
			}
			if (arena_meshable(arena)) {
				bin_state_t state = bin_look(
				    tsdn, arena, slice_bin, slice_shard);
				later |= (state == bin_later);
				if (state == bin_due
				    && !scan_begin(tsdn, &slice_scan, arena,
				        slice_bin, slice_shard)) {
					worked = true;
				}
			}
		}
		if (slice_scan.bin != NULL) {
			bin_t *bin = slice_scan.bin;
			if (!scan_step(tsdn, &slice_scan, ns)) {
				return true;
			}
			bin_backoff(
			    tsdn, bin, slice_scan.nseen, slice_scan.nmoved);
		}
		slice_next();
		if (worked && now_ns() - slice_last_ns >= ns) {
			return true;
		}
	} while (slice_arena != first_arena || slice_bin != first_bin
	    || slice_shard != first_shard);
	return later || worked;
}

static uint64_t
slice_ns(void) {
	uint64_t ns = (uint64_t)opt_mesh_period_ms * KQU(1000000) / SLICE_SHARE;
	return ns < SLICE_NS_MIN ? SLICE_NS_MIN
	    : ns > SLICE_NS_MAX  ? SLICE_NS_MAX
	                         : ns;
}

/* Nanoseconds until the next slice may run. */
static uint64_t
slice_wait_ns(void) {
	uint64_t period = (uint64_t)opt_mesh_period_ms * KQU(1000000);
	uint64_t since = now_ns() - slice_last_ns;
	return since < period ? period - since : 0;
}

uint64_t
mesh_background_work(tsdn_t *tsdn) {
	if (opt_mesh_period_ms < 0) {
		return BACKGROUND_THREAD_DEFERRED_MAX;
	}
	atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
	malloc_mutex_lock(tsdn, &mesh_mtx);
	uint64_t wait_ns = slice_wait_ns();
	bool     more = true;
	if (wait_ns == 0) {
		more = slice_run(tsdn, slice_ns());
		wait_ns = slice_wait_ns();
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	background_thread_info_t *info = &background_thread_info[0];
	malloc_mutex_unlock(tsdn, &info->mtx);
	mesh_view_start(tsdn);
	malloc_mutex_lock(tsdn, &info->mtx);
	if (info->state != background_thread_started) {
		/* It shall end, and must not sleep before. */
		return 1;
	}
	if (!more) {
		atomic_store_b(&slice_asleep, true, ATOMIC_RELAXED);
		return BACKGROUND_THREAD_DEFERRED_MAX;
	}
	/* Zero would be a time in the past. */
	return wait_ns > 0 ? wait_ns : 1;
}

/* Wakes background thread 0, unless it is at work anyway. */
static void
tick_wake(tsdn_t *tsdn) {
	if (!atomic_load_b(&slice_asleep, ATOMIC_RELAXED)) {
		return;
	}
	background_thread_info_t *info = &background_thread_info[0];
	if (malloc_mutex_trylock(tsdn, &info->mtx)) {
		return;
	}
	if (background_thread_is_started(info)) {
		atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
		background_thread_wakeup_early(info, NULL);
	}
	malloc_mutex_unlock(tsdn, &info->mtx);
}

void
mesh_tick(tsdn_t *tsdn, arena_t *arena) {
	if (opt_mesh_period_ms < 0 || !arena_is_auto(arena)) {
		return;
	}
	if (have_background_thread && background_thread_enabled()) {
		tick_wake(tsdn);
		return;
	}
	if (tsdn_null(tsdn) || !tsd_nominal(tsdn_tsd(tsdn))
	    || malloc_mutex_trylock(tsdn, &mesh_mtx)) {
		return;
	}
	if (slice_wait_ns() == 0) {
		/* malloc() sets errno when it fails, free() never. */
		int saved_errno = get_errno();
		slice_run(tsdn, SLICE_NS_TICK);
		set_errno(saved_errno);
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
}

/*
 * Lets others take the mesh lock, fork for one, and waits until a fork is dealt
 * with.  Returns true if that takes too long.
 */
static bool
pass_yield(tsdn_t *tsdn) {
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	malloc_mutex_lock(tsdn, &mesh_mtx);
	unsigned ms = 0;
	while (mesh_fork_pending(tsdn, /* hurry */ true)) {
		malloc_mutex_unlock(tsdn, &mesh_mtx);
		syscall(SYS_nanosleep,
		    &(struct timespec){.tv_nsec = 1000000}, NULL);
		malloc_mutex_lock(tsdn, &mesh_mtx);
		if (++ms == FORK_WAIT_MS) {
			return true;
		}
	}
	return false;
}

/* Scans a bin as often as it pays. */
static void
pass_bin(tsdn_t *tsdn, arena_t *arena, szind_t binind, unsigned binshard) {
	scan_t   scan;
	unsigned round = 0;
	do {
		if (pass_yield(tsdn)
		    || scan_begin(tsdn, &scan, arena, binind, binshard)) {
			return;
		}
		do {
			if (pass_yield(tsdn)) {
				scan.refused = true;
			}
		} while (!scan_step(tsdn, &scan, SLICE_NS_MAX));
	} while (scan.nmoved > 0 && ++round < FULL_PASS_ROUNDS);
}

void
mesh_arena_pass(tsdn_t *tsdn, arena_t *arena) {
	if (arena == NULL || !arena_is_auto(arena)) {
		return;
	}
	malloc_mutex_lock(tsdn, &mesh_mtx);
	/* Not before: then a slice under way has ended in any case. */
	if (!arena_meshable(arena)) {
		malloc_mutex_unlock(tsdn, &mesh_mtx);
		return;
	}
	for (szind_t i = 0; i < SC_NBINS; i++) {
		if (bin_infos[i].nregs == 1) {
			continue;
		}
		for (unsigned j = 0; j < bin_infos[i].n_shards; j++) {
			pass_bin(tsdn, arena, i, j);
		}
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	mesh_view_start(tsdn);
}

void
mesh_pass_forked(void) {
	forked_ns = now_ns();
}

void
mesh_arena_tidy(tsdn_t *tsdn, arena_t *arena) {
	if (!arena_meshable(arena) || !arena_is_auto(arena)
	    || atomic_load_u64(&arena->mesh.nmeshes, ATOMIC_RELAXED) == 0) {
		return;
	}
	bool done;
	do {
		malloc_mutex_lock(tsdn, &mesh_mtx);
		done = tidy_run(tsdn, arena, SLICE_NS_MAX);
		malloc_mutex_unlock(tsdn, &mesh_mtx);
	} while (!done);
}

void
mesh_pass_postfork_child(void) {
	if (slice_scan.bin != NULL) {
		pages_unmap(slice_scan.scratch, slice_scan.scratch_size);
	}
	memset(&slice_scan, 0, sizeof(slice_scan));
	atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
	mesh_pass_forked();
}
