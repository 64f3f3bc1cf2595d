/*
 * The pass: finds slabs that can share memory, and makes them do so.
 *
 * One scan looks at one bin.  It copies out the live bitmaps of all slabs in
 * slabs_nonfull under the bin lock, has them matched without it, and carries the
 * groups out in batches:
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
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_match.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"

#include <signal.h>
#include <time.h>

/*
 * Ranges moved behind one barrier.  A writer may have to wait for all of them,
 * tens of microseconds each.
 */
#define BATCH_MOVES 16
/* Most slabs of one scan; a bin's lock is held while they are copied out. */
#define SCAN_SLABS_MAX (ZU(1) << 17)
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
/* After the kernel or the budget has said no, how long to leave it alone. */
#define REFUSED_PAUSE_NS UINT64_C(5000000000)
/* Looks at a bin that fruitless scans may make us pass over, at most. */
#define BACKOFF_MAX 63

ssize_t opt_mesh_period_ms = 50;

malloc_mutex_t mesh_mtx;

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
	/* Slabs seen, and their bitmaps of live regions. */
	edata_t **slabs;
	uint64_t *live;
	size_t    nslabs;
	/* The matching of them, and whether it is finished. */
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
	/* How far it got. */
	bool raised;
	bool spliced;
	/* Its own live regions when it was held. */
	uint64_t live[BITMAP_GROUPS_MAX];
};

typedef struct batch_s batch_t;
struct batch_s {
	/* Where the ranges move to; private if lead is set. */
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
/* When to try again after a refusal, 0 if nothing was refused. */
static uint64_t   refused_until_ns;
static atomic_p_t refused_why;

/* jemalloc's own clock ticks in milliseconds, too coarse for slices. */
static uint64_t
now_ns(void) {
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * KQU(1000000000) + (uint64_t)ts.tv_nsec;
}

bool
mesh_pass_boot(void) {
	return malloc_mutex_init(
	    &mesh_mtx, "mesh", WITNESS_RANK_MESH, malloc_mutex_rank_exclusive);
}

const char *
mesh_pass_refused(void) {
	return (const char *)atomic_load_p(&refused_why, ATOMIC_RELAXED);
}

static void
pass_refuse(scan_t *scan, const char *why, unsigned nranges) {
	refused_until_ns = now_ns() + REFUSED_PAUSE_NS;
	atomic_store_p(&refused_why, (void *)(uintptr_t)why, ATOMIC_RELAXED);
	atomic_fetch_add_u64(
	    &scan->arena->mesh.nrefused, nranges, ATOMIC_RELAXED);
	scan->refused = true;
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
	const byte_t *addr = (const byte_t *)edata_addr_get(slab);
	const byte_t *stack = (const byte_t *)&addr;
	return arena_meshable(scan->arena)
	    && edata_pai_get(slab) == EXTENT_PAI_PAC && !edata_guarded_get(slab)
	    && mesh_store_fits(addr, edata_size_get(slab))
	    && (!have_dss || !extent_in_dss((void *)addr))
	    /* A coroutine's stack may lie in the heap; ours must not move. */
	    && (stack < addr || stack >= addr + edata_size_get(slab))
	    && (mesh_group_get(slab) == NULL || !mesh_group_get(slab)->frozen);
}

static move_t *
batch_move_add(scan_t *scan, batch_t *batch, edata_t *slab, unsigned unit) {
	move_t *move = &batch->moves[batch->nmoves++];
	move->slab = slab;
	move->unit = unit;
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

/*
 * Raise, copy, splice, lower.  No lock but the mesh lock is held; all slabs of
 * the batch are.
 */
static void
batch_splice(scan_t *scan, batch_t *batch, void *window) {
	const bin_info_t *info = &bin_infos[scan->binind];
	size_t            size = info->slab_size;
	unsigned          nwords = scan_nwords(scan);
	move_t           *leader = &batch->leader;
	sigset_t          all, old;

	/* A handler that wrote to the heap would wait for this very thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);

	leader->raised = batch->lead
	    && !mesh_barrier_raise(edata_addr_get(leader->slab), size);
	if (batch->lead && !leader->raised) {
		goto label_done;
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		move->raised = !mesh_barrier_raise(
		    edata_addr_get(move->slab), size);
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

	leader->spliced = batch->lead
	    && !mesh_splice(edata_addr_get(leader->slab), size, window);
	if (!batch->lead || leader->spliced) {
		for (unsigned i = 0; i < batch->nmoves; i++) {
			move_t *move = &batch->moves[i];
			move->spliced = move->raised
			    && batch_unit_came_through(batch, i)
			    && !mesh_splice(
			        edata_addr_get(move->slab), size, window);
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
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Bookkeeping of what came through; the bin lock is held. */
static void
batch_join(scan_t *scan, batch_t *batch, edata_list_active_t *dead) {
	edata_t *leader = batch->leader.slab;
	if (batch->lead && batch->leader.spliced) {
		mesh_group_lead(scan->arena, scan->bin, leader, scan->spare);
		scan->spare = mesh_group_recycle(scan->bin);
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		if (batch->moves[i].spliced) {
			mesh_group_join(scan->arena, scan->bin,
			    batch->moves[i].slab, leader);
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
 * Moves what it can of the units units[0, n) to the slab leader.  Returns how
 * many ranges moved.
 */
static unsigned
batch_run(
    tsdn_t *tsdn, scan_t *scan, edata_t *leader, edata_t **units, size_t n) {
	if (scan->spare == NULL) {
		scan->spare = (mesh_group_t *)base_alloc(
		    tsdn, scan->arena->base, sizeof(mesh_group_t), QUANTUM);
		if (scan->spare == NULL) {
			return 0;
		}
	}

	/* Hold. */
	batch_t batch;
	batch.nmoves = 0;
	batch.stay = NULL;
	malloc_mutex_lock(tsdn, &scan->bin->lock);
	if (!slab_pickable(scan, leader)) {
		malloc_mutex_unlock(tsdn, &scan->bin->lock);
		return 0;
	}
	batch.leader.slab = leader;
	batch.leader.spliced = false;
	batch.lead = (mesh_group_get(leader) == NULL);
	mesh_group_live(leader, batch.leader.live);
	memcpy(batch.live, batch.leader.live, sizeof(batch.live));
	mesh_group_hold(scan->bin, leader);
	for (size_t i = 0; i < n && batch.nmoves < BATCH_MOVES; i++) {
		if (slab_pickable(scan, units[i])) {
			batch_unit_add(scan, &batch, units[i]);
		}
	}
	malloc_mutex_unlock(tsdn, &scan->bin->lock);

	size_t size = bin_infos[scan->binind].slab_size;
	void  *window = NULL;
	/* The memory that a leader leaves behind when it moves. */
	void    *left[BATCH_MOVES];
	unsigned nleft = 0;
	unsigned nmoved = 0;
	if (batch.nmoves > 0) {
		if (!mesh_splice_room(batch.nmoves + 1)) {
			pass_refuse(scan, "the budget of mappings is used up",
			    batch.nmoves);
		} else if (mesh_barrier_open()
		    || (window = mesh_store_window(
		            tsdn, edata_addr_get(leader), size))
		        == NULL) {
			pass_refuse(scan,
			    "the kernel refused a memfd, a mapping or "
			    "userfaultfd",
			    batch.nmoves);
		} else {
			for (unsigned i = 0; i < batch.nmoves; i++) {
				edata_t *slab = batch.moves[i].slab;
				left[i] = edata_mesh_role_get(slab)
				        == edata_mesh_leader
				    ? mesh_store_window(
				        tsdn, edata_addr_get(slab), size)
				    : NULL;
			}
			nleft = batch.nmoves;
			batch_splice(scan, &batch, window);
		}
	}

	for (unsigned i = 0; i < nleft; i++) {
		if (batch.moves[i].spliced) {
			nmoved++;
			if (left[i] != NULL) {
				mesh_store_punch(left[i], size);
			}
		}
	}
	if (window != NULL && batch.lead && !batch.leader.spliced) {
		mesh_store_punch(window, size);
	}
	if (window != NULL && nmoved == 0) {
		pass_refuse(scan, "the kernel refused to splice", batch.nmoves);
	}

	edata_list_active_t dead;
	edata_list_active_init(&dead);
	malloc_mutex_lock(tsdn, &scan->bin->lock);
	batch_join(scan, &batch, &dead);
	malloc_mutex_unlock(tsdn, &scan->bin->lock);
	mesh_group_release(tsdn, scan->arena, &dead);

	if (nmoved > 0) {
		atomic_fetch_add_u64(
		    &scan->arena->mesh.nmeshes, nmoved, ATOMIC_RELAXED);
		refused_until_ns = 0;
		atomic_store_p(&refused_why, NULL, ATOMIC_RELAXED);
	}
	return nmoved;
}

/******************************************************************************/
/* Scans. */

/*
 * Copies out the slabs of the nonfull heap, a binary tree of left children and
 * next siblings.  The bin lock is held; stack has room for max + 1 slabs.
 */
static void
scan_collect(scan_t *scan, edata_t **stack, size_t max) {
	unsigned nwords = scan_nwords(scan);
	size_t   offset = offsetof(edata_t, heap_link);
	size_t   depth = 0;

	scan->nslabs = 0;
	edata_t *slab = (edata_t *)scan->bin->slabs_nonfull.ph.root;
	if (slab != NULL) {
		stack[depth++] = slab;
	}
	while (depth > 0 && scan->nslabs < max) {
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
			mesh_group_live(
			    slab, &scan->live[scan->nslabs * nwords]);
			scan->slabs[scan->nslabs++] = slab;
		}
	}
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
	if (max < 2) {
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

	size_t match_size = mesh_match_size((unsigned)info->nregs, max);
	size_t stack_size = (max + 1) * sizeof(edata_t *);
	size_t tail_size = match_size > stack_size ? match_size : stack_size;
	size_t live_size = ALIGNMENT_CEILING(
	    max * scan_nwords(scan) * sizeof(uint64_t), CACHELINE);
	size_t slabs_size = ALIGNMENT_CEILING(
	    max * sizeof(edata_t *), CACHELINE);
	bool commit = true;
	scan->scratch_size = PAGE_CEILING(tail_size + live_size + slabs_size);
	scan->scratch = (byte_t *)pages_map(
	    NULL, scan->scratch_size, PAGE, &commit);
	if (scan->scratch == NULL) {
		scan->bin = NULL;
		return true;
	}
	scan->live = (uint64_t *)(scan->scratch + tail_size);
	scan->slabs = (edata_t **)(scan->scratch + tail_size + live_size);

	malloc_mutex_lock(tsdn, &bin->lock);
	/* The stack and the matching take turns in the same memory. */
	scan_collect(scan, (edata_t **)scan->scratch, max);
	scan->spare = mesh_group_recycle(bin);
	malloc_mutex_unlock(tsdn, &bin->lock);
	scan->match = mesh_match_begin(
	    scan->scratch, (unsigned)info->nregs, scan->nslabs, scan->live);
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
				nmoved = batch_run(
				    tsdn, scan, scan->slabs[leader], units, n);
				scan->nmoved += nmoved;
			} while (nmoved == BATCH_MOVES && !scan->refused);
			n = 0;
		}
	}
}

/* Goes on with a scan for about ns.  Returns true when it has ended. */
static bool
scan_step(tsdn_t *tsdn, scan_t *scan, uint64_t ns) {
	uint64_t begin = now_ns();
	uint64_t took;
	bool     done = false;
	do {
		if (!scan->matched) {
			scan->matched = mesh_match_step(
			    scan->match, SCAN_MATCH_WORK);
		} else if (scan->refused
		    || scan->group == mesh_match_ngroups(scan->match)) {
			done = true;
		} else {
			scan_group_run(tsdn, scan, scan->group++);
		}
		took = now_ns() - begin;
	} while (!done && took < ns);

	mesh_arena_t *mesh = &scan->arena->mesh;
	atomic_fetch_add_u64(&mesh->time_ns, took, ATOMIC_RELAXED);
	if (took > atomic_load_u64(&mesh->time_max_ns, ATOMIC_RELAXED)) {
		atomic_store_u64(&mesh->time_max_ns, took, ATOMIC_RELAXED);
	}
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
	if (config_stats
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
 * Works for about ns.  The mesh lock is held.  Returns true if there is more to
 * do soon: it was cut short, or a bin is only backing off.
 */
static bool
slice_run(tsdn_t *tsdn, uint64_t ns) {
	slice_last_ns = now_ns();
	if (slice_last_ns < refused_until_ns) {
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
			    tsdn, bin, slice_scan.nslabs, slice_scan.nmoved);
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

void
mesh_arena_pass(tsdn_t *tsdn, arena_t *arena) {
	if (!arena_meshable(arena) || !arena_is_auto(arena)) {
		return;
	}
	for (szind_t i = 0; i < SC_NBINS; i++) {
		if (bin_infos[i].nregs == 1) {
			continue;
		}
		for (unsigned j = 0; j < bin_infos[i].n_shards; j++) {
			scan_t   scan;
			unsigned round = 0;
			do {
				malloc_mutex_lock(tsdn, &mesh_mtx);
				bool done = scan_begin(
				    tsdn, &scan, arena, i, j);
				if (done) {
					scan.nmoved = 0;
				}
				while (!done) {
					done = scan_step(
					    tsdn, &scan, SLICE_NS_MAX);
					/* Fork and others get their turn. */
					malloc_mutex_unlock(tsdn, &mesh_mtx);
					malloc_mutex_lock(tsdn, &mesh_mtx);
				}
				malloc_mutex_unlock(tsdn, &mesh_mtx);
			} while (scan.nmoved > 0 && ++round < FULL_PASS_ROUNDS);
		}
	}
}

void
mesh_pass_postfork_child(void) {
	if (slice_scan.bin != NULL) {
		pages_unmap(slice_scan.scratch, slice_scan.scratch_size);
	}
	memset(&slice_scan, 0, sizeof(slice_scan));
	atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
}
