/*
 * Batches: some ranges of one bin move to their leaders' memory behind one
 * barrier.
 *
 *   hold     under the bin lock, take the slabs out of the bin, as far as they
 *            still are there and still disjoint
 *   raise    keep writers away from all ranges that will move
 *   copy     their live regions into their leaders' physical slabs
 *   splice   map those at the ranges
 *   lower    let writers on
 *   join     under the bin lock, settle with the bitmaps as they are now, so that
 *            frees meanwhile are not lost, and put the slabs back
 *
 * A move is one range and the physical slab that it will map.  Moves of neighbours
 * are a stretch, from which writers are kept away at once, whatever they will map;
 * those of neighbours to neighbours are a piece, which is spliced at once.  Each
 * system call here may interrupt all processors, so there should be few of them.
 * Leaders that are not in the store yet move there first, to their own place.
 *
 * A step that the kernel refuses leaves the range where it was.  A unit is a
 * private slab, or a leader with its followers.  To move a whole group its
 * followers move one by one, the leader last; at every point in between all ranges
 * map memory that holds their regions.
 *
 * Called by mesh_scan.  Lock order: mesh lock, bin lock (a leaf).  Between raise
 * and lower no lock may be taken and nothing in the heap written, since an
 * allocating thread may wait in the barrier while it holds a bin lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/extent_dss.h"
#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_batch.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_mutex.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_pin.h"
#include "jemalloc/internal/mesh_purge.h"
#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_view.h"
#include "jemalloc/internal/mesh_waiter.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#	define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

/* Most pairs, and most bytes that follow at once: a writer may wait for all of it. */
#define PAIRS_MAX (MESH_BATCH_PAIRS / MESH_BATCH_TIMES)
#define PAIRS_SIZE_MAX (ZU(1) << 18)

/* A range that moves. */
typedef struct move_s move_t;
struct move_s {
	edata_t *slab;
	/* The slab that it will follow, or slab itself: it goes to the store. */
	edata_t *leader;
	/* The physical slab that it will map. */
	byte_t *window;
	/* Of a leader that follows: the memory that it leaves behind. */
	byte_t *left;
	/* While writers are kept away: where its contents are. */
	const byte_t *contents;
	/* The first move of the same unit; the unit's leader goes last. */
	unsigned unit;
	/* When it was held: it was in a group; led one; its leader was none yet. */
	bool stored;
	bool led;
	bool fresh;
	/*
	 * It may not move: it is locked into memory, or mesh_mutex_found() one, is
	 * not ours alone, what it leaves cannot be freed, or its leader has not moved.
	 */
	bool stuck;
	/* How far it got. */
	bool raised;
	bool spliced;
	/* Its own live regions when it was held. */
	uint64_t live[BITMAP_GROUPS_MAX];
};

typedef struct batch_s batch_t;
struct batch_s {
	/* First those that go to the store, then those that follow. */
	move_t   moves[MESH_BATCH_MOVES];
	unsigned nmoves;
	unsigned nleads;
	/* Slabs that are held, but do not move. */
	edata_t *held[MESH_BATCH_MOVES];
	unsigned nheld;
	/* Of mesh_batch_group(): all that is live in the leader's slab. */
	uint64_t live[BITMAP_GROUPS_MAX];
	/* The members of a group come back into the store. */
	bool thaw;
	/* What goes to the store goes there even if nothing follows it. */
	bool alone;
};

/* Guarded by the mesh lock; stacks may be small. */
static batch_t the_batch;

static const char refused_locked[] =
    "the program has locked its memory (mlock, mlockall), and locked memory is "
    "not meshed";

static const char refused_pinned[] =
    "the program may have devices write to its memory (O_DIRECT, io_uring, Linux "
    "AIO, RDMA), and only userfaultfd of Linux 6.8 or later tells where";

static const char refused_shared[] =
    "memory that is shared with a parent or child, swapped out, or not plainly "
    "readable and writable is not meshed as long as it is";

bool
mesh_refusal_is_local(const char *why) {
	return why == refused_locked || why == refused_shared;
}

const char *
mesh_refusal_name(int err) {
	switch (err) {
	case E2BIG:
		return "the budget of mappings is used up, or kept for what "
		       "releases more; raise mesh_max_maps and "
		       "vm.max_map_count";
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
	case MESH_EPINNED:
		return refused_pinned;
	case EBUSY:
		return refused_shared;
	case MESH_EWANTED:
		return "it waits for the program's next allocations to open "
		       "descriptors";
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

bool
mesh_arena_meshable(arena_t *arena) {
	return arena != NULL
	    && !atomic_load_b(&arena->mesh.custom_hooks, ATOMIC_RELAXED);
}

static unsigned
site_nwords(const mesh_site_t *site) {
	return (unsigned)bin_infos[site->binind].bitmap_info.ngroups;
}

static size_t
site_size(const mesh_site_t *site) {
	return bin_infos[site->binind].slab_size;
}

/* A coroutine's stack may lie in the heap; ours must not move. */
static bool
slab_has_stack(const edata_t *slab) {
	const byte_t *addr = (const byte_t *)edata_addr_get(slab);
	const byte_t *stack = (const byte_t *)&addr;
	return stack >= addr && stack < addr + edata_size_get(slab);
}

/*
 * Whether slab is in slabs_nonfull of the bin, whose lock is held.  Its edata_t
 * may describe anything by now; the bit is set only under the lock of the bin that
 * the other fields name, so that it is this one if one read finds all of them.
 */
static bool
slab_still_nonfull(const mesh_site_t *site, const edata_t *slab) {
	edata_t seen;
	seen.e_bits = *(const volatile uint64_t *)&slab->e_bits;
	return edata_mesh_nonfull_get(&seen)
	    && edata_szind_get_maybe_invalid(&seen) == site->binind
	    && edata_binshard_get(&seen) == site->binshard
	    && edata_arena_ind_get(&seen) == arena_ind_get(site->arena);
}

bool
mesh_batch_pickable(const mesh_site_t *site, const edata_t *slab) {
	if (!slab_still_nonfull(site, slab)) {
		return false;
	}
	void *addr = edata_addr_get(slab);
	return mesh_arena_meshable(site->arena)
	    && edata_pai_get(slab) == EXTENT_PAI_PAC && !edata_guarded_get(slab)
	    && mesh_store_fits(addr, edata_size_get(slab))
	    && (!have_dss || !extent_in_dss(addr)) && !slab_has_stack(slab)
	    && !edata_mesh_frozen_get(slab);
}

/******************************************************************************/
/* Hold. */

static void
batch_begin(batch_t *batch) {
	batch->nmoves = 0;
	batch->nleads = 0;
	batch->nheld = 0;
	batch->thaw = false;
	batch->alone = false;
}

static move_t *
batch_move_add(const mesh_site_t *site, batch_t *batch, edata_t *slab,
    edata_t *leader, unsigned unit) {
	move_t *move = &batch->moves[batch->nmoves++];
	move->slab = slab;
	move->leader = leader;
	move->window = NULL;
	move->left = NULL;
	move->contents = NULL;
	move->unit = unit;
	move->stored = mesh_group_get(slab) != NULL;
	move->led = edata_mesh_role_get(slab) == edata_mesh_leader;
	move->fresh = edata_mesh_role_get(leader) == edata_mesh_private;
	move->stuck = false;
	move->raised = false;
	move->spliced = false;
	mesh_group_live(slab, move->live);
	mesh_group_hold(site->bin, slab);
	batch->nleads += (slab == leader);
	return move;
}

static void
batch_hold_add(const mesh_site_t *site, batch_t *batch, edata_t *slab) {
	mesh_group_hold(site->bin, slab);
	batch->held[batch->nheld++] = slab;
}

/* Adds the leader of what follows: it moves if it is private, or frozen. */
static void
batch_leader_add(const mesh_site_t *site, batch_t *batch, edata_t *leader) {
	if (mesh_group_get(leader) == NULL || edata_mesh_frozen_get(leader)) {
		batch_move_add(site, batch, leader, leader, batch->nmoves);
	} else {
		batch_hold_add(site, batch, leader);
	}
}

/*
 * Adds a unit, or as many followers of it as there is room for, unless it
 * overlaps what the batch has already.  The bin lock is held.
 */
static void
batch_unit_add(
    mesh_site_t *site, batch_t *batch, edata_t *slab, edata_t *leader) {
	unsigned nwords = site_nwords(site);
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
			if (batch->nmoves > MESH_BATCH_UNITS) {
				break;
			}
			move_t *move = batch_move_add(
			    site, batch, follower, leader, unit);
			for (unsigned w = 0; w < nwords; w++) {
				live[w] &= ~move->live[w];
			}
			nfollowers++;
		}
		if (nfollowers < group->nfollowers
		    || batch->nmoves > MESH_BATCH_UNITS) {
			batch_hold_add(site, batch, slab);
			return;
		}
	}
	move_t *move = batch_move_add(site, batch, slab, leader, unit);
	/* The followers go before it and leave it only what is its own. */
	memcpy(move->live, live, nwords * sizeof(live[0]));
}

unsigned
mesh_batch_times(void) {
	return mesh_barrier_is_slow() ? MESH_BATCH_TIMES : 1;
}

unsigned
mesh_batch_pairs_max(const mesh_site_t *site) {
	size_t fit = PAIRS_SIZE_MAX / site_size(site);
	size_t max = fit < 1 ? 1 : fit < PAIRS_MAX ? fit : PAIRS_MAX;
	return (unsigned)max * mesh_batch_times();
}

static bool
slabs_overlap(const mesh_site_t *site, const edata_t *a, const edata_t *b) {
	uint64_t live_a[BITMAP_GROUPS_MAX], live_b[BITMAP_GROUPS_MAX];
	mesh_group_live(a, live_a);
	mesh_group_live(b, live_b);
	uint64_t both = 0;
	for (unsigned w = 0; w < site_nwords(site); w++) {
		both |= live_a[w] & live_b[w];
	}
	return both != 0;
}

/*
 * Whether followers[i] can follow leaders[i] together with the pairs before it,
 * some of which may have the same leader.  The bin lock is held.
 */
static bool
pair_fits(const mesh_site_t *site, edata_t **leaders, edata_t **followers,
    unsigned i) {
	if (!mesh_batch_pickable(site, followers[i])
	    || mesh_group_nfollowers(followers[i]) > 0
	    || slabs_overlap(site, leaders[i], followers[i])) {
		return false;
	}
	for (unsigned j = 0; j < i; j++) {
		if (leaders[j] == leaders[i]
		    && slabs_overlap(site, followers[j], followers[i])) {
			return false;
		}
	}
	return true;
}

/* Whether one of the pairs before i has its leader, which is held by now. */
static bool
pair_leader_held(edata_t **leaders, unsigned i) {
	for (unsigned j = 0; j < i; j++) {
		if (leaders[j] == leaders[i]) {
			return true;
		}
	}
	return false;
}

/*
 * Adds those of n pairs that still fit; leaders and followers get their numbers
 * as they go.  The bin lock is held.
 */
static void
batch_pairs_add(mesh_site_t *site, batch_t *batch, edata_t **leaders,
    edata_t **followers, unsigned n) {
	unsigned count = 0;
	for (unsigned i = 0; i < n; i++) {
		leaders[count] = leaders[i];
		followers[count] = followers[i];
		bool held = pair_leader_held(leaders, count);
		if ((!held && !mesh_batch_pickable(site, leaders[count]))
		    || !pair_fits(site, leaders, followers, count)) {
			continue;
		}
		if (!held) {
			batch_leader_add(site, batch, leaders[count]);
		}
		count++;
	}
	for (unsigned i = 0; i < count; i++) {
		if (mesh_batch_pickable(site, followers[i])) {
			batch_move_add(site, batch, followers[i], leaders[i],
			    batch->nmoves);
		}
	}
}

/* Whether nobody shares the store by the view that a frozen slab is. */
static bool
view_own(const edata_t *slab) {
	return mesh_pagemap_own_view(
	    edata_addr_get(slab), edata_size_get(slab));
}

/*
 * Whether group, which may have ended since it was seen, can get its frozen
 * members back.  The bin lock is held.  A leader without live regions is on its
 * way to the page allocator.
 */
static bool
group_thawable(const mesh_site_t *site, const mesh_group_t *group) {
	edata_t *leader = group->leader;
	return leader != NULL && !edata_mesh_held_get(leader)
	    && edata_nfree_get(leader) < bin_infos[site->binind].nregs
	    && mesh_arena_meshable(site->arena) && !slab_has_stack(leader)
	    && (!edata_mesh_frozen_get(leader) || view_own(leader));
}

/*
 * Adds the frozen members of a group, as many as there is room for, and leaves the
 * leader what is its own.  The bin lock is held.
 */
static void
batch_thaw_add(
    const mesh_site_t *site, batch_t *batch, const mesh_group_t *group) {
	edata_t *leader = group->leader;
	batch->thaw = true;
	batch->alone = true;
	batch_leader_add(site, batch, leader);
	edata_t *follower;
	ql_foreach (follower, &group->followers.head, ql_link_active) {
		uint64_t live[BITMAP_GROUPS_MAX];
		mesh_group_live(follower, live);
		for (unsigned w = 0; batch->nleads > 0 && w < site_nwords(site);
		     w++) {
			batch->moves[0].live[w] &= ~live[w];
		}
		if (batch->nmoves <= MESH_BATCH_UNITS
		    && !slab_has_stack(follower)
		    && edata_mesh_frozen_get(follower) && view_own(follower)) {
			batch_move_add(
			    site, batch, follower, leader, batch->nmoves);
		}
	}
}

/******************************************************************************/
/* Stretches and pieces. */

static void *
slab_end(const edata_t *slab, size_t size) {
	return (byte_t *)edata_addr_get(slab) + size;
}

/* Whether move i + 1 goes on where move i ends, and has come as far. */
static bool
move_continues(const batch_t *batch, unsigned i, size_t size) {
	const move_t *move = &batch->moves[i], *next = move + 1;
	return i + 1 != batch->nleads && i + 1 < batch->nmoves
	    && slab_end(move->slab, size) == edata_addr_get(next->slab)
	    && move->stored == next->stored && move->stuck == next->stuck
	    && move->raised == next->raised && move->spliced == next->spliced;
}

/* The end of the stretch that begins with move i. */
static unsigned
stretch_end(const batch_t *batch, unsigned i, size_t size) {
	while (move_continues(batch, i, size)) {
		i++;
	}
	return i + 1;
}

/* The end of the piece that begins with move i. */
static unsigned
piece_end(const batch_t *batch, unsigned i, size_t size) {
	while (move_continues(batch, i, size)
	    && batch->moves[i].window + size == batch->moves[i + 1].window) {
		i++;
	}
	return i + 1;
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

/******************************************************************************/
/* From raise to lower. */

/*
 * The end of what can be prepared with move i: side by side, and their leaders as
 * well.
 */
static unsigned
span_end(const batch_t *batch, unsigned i, size_t size) {
	unsigned end = i < batch->nleads ? batch->nleads : batch->nmoves;
	unsigned j = i + 1;
	while (j < end
	    && slab_end(batch->moves[j - 1].slab, size)
	        == edata_addr_get(batch->moves[j].slab)
	    && slab_end(batch->moves[j - 1].leader, size)
	        == edata_addr_get(batch->moves[j].leader)) {
		j++;
	}
	return j;
}

/* Whether some of it goes where the store may have no memory yet. */
static bool
span_is_new(const batch_t *batch, unsigned i, unsigned end) {
	for (; i < end; i++) {
		if (batch->moves[i].fresh || batch->thaw) {
			return true;
		}
	}
	return false;
}

static unsigned
batch_nspans(const batch_t *batch, size_t size) {
	unsigned n = 0;
	for (unsigned i = 0; i < batch->nmoves; i = span_end(batch, i, size)) {
		n++;
	}
	return n;
}

/* Whether the kernel moves the pages, and so refuses those that are pinned. */
static bool
move_is_by_kernel(const move_t *move) {
	return !move->stored && mesh_barrier_get() == mesh_barrier_move;
}

/*
 * Whether a slab must stay what it is, as it is not plainly read and written, may be
 * pinned, or is private and not ours alone; if so, errno says so.
 */
static bool
slab_tied(void *addr, size_t size, const move_t *move) {
	bool moves = move_is_by_kernel(move);
	if ((!move->stored && !mesh_pagemap_own(addr, size))
	    /* The kernel itself looks when it moves pages. */
	    || (!moves && mesh_splice_protected(addr, size))) {
		set_errno(EBUSY);
		return true;
	}
	if (!moves && mesh_pin_found()) {
		set_errno(MESH_EPINNED);
		return true;
	}
	if (moves) {
		mesh_pagemap_claim(addr, size);
	}
	return false;
}

/*
 * Finds the windows, and gives what the moves leave and where they go to all its
 * memory.  Returns true, and errno, if the kernel refused; *stuck is why some of
 * them cannot move, if so.
 */
static bool
batch_prepare(tsdn_t *tsdn, batch_t *batch, size_t size, const char **stuck) {
	mesh_pagemap_open();
	for (unsigned i = 0, end; i < batch->nmoves; i = end) {
		end = span_end(batch, i, size);
		move_t *first = &batch->moves[i];
		byte_t *window = (byte_t *)mesh_store_window(tsdn,
		    edata_addr_get(first->leader), (end - i) * size,
		    span_is_new(batch, i, end));
		if (window == NULL) {
			return true;
		}
		byte_t *addr = (byte_t *)edata_addr_get(first->slab);
		bool    locked = mesh_range_locked(addr, (end - i) * size);
		for (unsigned j = i; j < end; j++) {
			move_t *move = &batch->moves[j];
			move->window = window + (j - i) * size;
			move->stuck = locked;
			if (!locked && j >= batch->nleads && move->led) {
				move->left = (byte_t *)mesh_store_window(tsdn,
				    addr + (j - i) * size, size,
				    /* populate */ false);
				move->stuck = (move->left == NULL);
			}
			if (!move->stuck) {
				move->stuck = slab_tied(
				    addr + (j - i) * size, size, move);
			}
			if (move->stuck) {
				*stuck = mesh_refusal_name(get_errno());
			}
		}
	}
	return false;
}

/* Keeps writers off the moves from i to end.  Returns true if that failed. */
static bool
batch_raise_some(batch_t *batch, unsigned i, unsigned end, size_t size) {
	const move_t *first = &batch->moves[i];
	const byte_t *contents = (const byte_t *)mesh_barrier_raise(
	    edata_addr_get(first->slab), (end - i) * size, first->stored);
	if (contents == NULL) {
		return true;
	}
	for (; i < end; i++, contents += size) {
		batch->moves[i].contents = contents;
		batch->moves[i].raised = true;
	}
	return false;
}

/* Leaves those from i to end alone that the kernel may write to without waiting. */
static void
batch_find_mutexes(
    const mesh_site_t *site, batch_t *batch, unsigned i, unsigned end) {
	for (; mesh_barrier_is_uffd() && i < end; i++) {
		move_t     *move = &batch->moves[i];
		const void *at = move->raised ? (const void *)move->contents
		                              : edata_addr_get(move->slab);
		move->stuck = move->stuck
		    || mesh_mutex_found(at, site_size(site), move->live,
		        site_nwords(site), bin_infos[site->binind].reg_size);
	}
}

/*
 * Keeps writers off.  A range in use, where a thread has its stack, is just passed
 * over; anything else is a refusal of the kernel's.
 */
static void
batch_raise(const mesh_site_t *site, batch_t *batch, const char **why) {
	size_t size = site_size(site);
	for (unsigned i = 0, end; i < batch->nmoves; i = end) {
		/* As late as can be: others are made all the time. */
		batch_find_mutexes(site, batch, i, stretch_end(batch, i, size));
		end = stretch_end(batch, i, size);
		if (batch->moves[i].stuck
		    || !batch_raise_some(batch, i, end, size)) {
			continue;
		}
		/* Perhaps it is only one of them. */
		for (unsigned j = i; j < end; j++) {
			if (batch_raise_some(batch, j, j + 1, size)
			    && get_errno() != EBUSY) {
				*why = mesh_refusal_name(get_errno());
			}
		}
	}
}

/* Leaves those alone that the program has protected or pinned just before. */
static void
batch_find_tied(const mesh_site_t *site, batch_t *batch) {
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		move->stuck = move->stuck
		    || (move->raised
		        && (mesh_splice_protected_now(
		                edata_addr_get(move->slab), site_size(site))
		            || (!move_is_by_kernel(move) && mesh_pin_found())));
	}
}

static void
batch_copy(const mesh_site_t *site, batch_t *batch) {
	for (unsigned i = 0; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		if (move->raised && !move->stuck) {
			mesh_splice_copy(move->window, move->contents,
			    move->live, site_nwords(site),
			    bin_infos[site->binind].reg_size);
		}
	}
}

/* Splices the moves from i to end. */
static void
batch_splice_some(
    batch_t *batch, unsigned i, unsigned end, size_t size, const char **why) {
	while (i < end) {
		unsigned next = piece_end(batch, i, size);
		move_t  *move = &batch->moves[i];
		bool     spliced = false;
		if (move->raised && !move->stuck
		    && batch_unit_came_through(batch, i)) {
			spliced = !mesh_splice(edata_addr_get(move->slab),
			    (next - i) * size, move->window);
			if (!spliced) {
				*why = mesh_refusal_name(get_errno());
			}
		}
		for (; i < next; i++) {
			batch->moves[i].spliced = spliced;
		}
	}
}

/* Whether slab is in the store by now, if it was to go there. */
static bool
batch_lead_came_through(const batch_t *batch, const edata_t *slab) {
	for (unsigned i = 0; i < batch->nleads; i++) {
		if (batch->moves[i].slab == slab) {
			return batch->moves[i].spliced;
		}
	}
	return true;
}

/* Leaders first: what has none does not move. */
static void
batch_splice_all(batch_t *batch, size_t size, const char **why) {
	batch_splice_some(batch, 0, batch->nleads, size, why);
	for (unsigned i = batch->nleads; i < batch->nmoves; i++) {
		move_t *move = &batch->moves[i];
		move->stuck |= !batch_lead_came_through(batch, move->leader);
	}
	batch_splice_some(batch, batch->nleads, batch->nmoves, size, why);
}

static void
batch_lower(batch_t *batch, size_t size) {
	for (unsigned i = 0, end; i < batch->nmoves; i = end) {
		end = stretch_end(batch, i, size);
		move_t *move = &batch->moves[i];
		if (!move->raised) {
			continue;
		}
		void *addr = edata_addr_get(move->slab);
		if (move->spliced) {
			mesh_barrier_keep(addr, (end - i) * size);
		}
		mesh_barrier_lower(
		    addr, (end - i) * size, move->contents, move->spliced);
		if (move->spliced) {
			mesh_waiter_note(addr, (end - i) * size);
		}
	}
}

/*
 * Raise, copy, splice, lower.  No lock but the mesh lock is held; all slabs of
 * the batch are.  Returns the reason why some of it was not to be had, or NULL.
 */
static const char *
batch_splice(const mesh_site_t *site, batch_t *batch) {
	size_t      size = site_size(site);
	const char *why = mesh_barrier_begin();
	if (why != NULL) {
		return why;
	}
	batch_raise(site, batch, &why);
	/* Some may have been made just before. */
	batch_find_mutexes(site, batch, 0, batch->nmoves);
	batch_find_tied(site, batch);
	batch_copy(site, batch);
	batch_splice_all(batch, size, &why);
	batch_lower(batch, size);
	mesh_barrier_end();
	return why;
}

/*
 * Has the pages that have moved in the page tables again: the program would fault each
 * one in.
 */
static void
batch_map_pages(const batch_t *batch, size_t size) {
	for (unsigned i = 0, end; i < batch->nmoves; i = end) {
		end = i + 1;
		if (!batch->moves[i].spliced) {
			continue;
		}
		byte_t *addr = (byte_t *)edata_addr_get(batch->moves[i].slab);
		while (end < batch->nmoves && batch->moves[end].spliced
		    && edata_addr_get(batch->moves[end].slab)
		        == addr + (end - i) * size) {
			end++;
		}
		/* What the program has protected meanwhile is passed over. */
		(void)madvise(addr, (end - i) * size, MADV_POPULATE_READ);
	}
}

/******************************************************************************/
/* Join. */

/* The memory of move i that nobody maps any more, NULL if there is none. */
static byte_t *
move_waste(const batch_t *batch, unsigned i) {
	const move_t *move = &batch->moves[i];
	if (i >= batch->nleads) {
		return move->spliced ? move->left : NULL;
	}
	/* If it was frozen, its place may be a private view's. */
	return move->spliced || batch->thaw ? NULL : move->window;
}

/* Gives that back, neighbours at once. */
static void
batch_punch(const mesh_site_t *site, batch_t *batch) {
	size_t size = site_size(site);
	for (unsigned i = 0, end; i < batch->nmoves; i = end) {
		byte_t *waste = move_waste(batch, i);
		end = i + 1;
		if (waste == NULL) {
			continue;
		}
		while (end < batch->nmoves
		    && move_waste(batch, end) == waste + (end - i) * size) {
			end++;
		}
		mesh_store_punch(waste, (end - i) * size);
	}
}

/* Bookkeeping of what came through; the bin lock is held. */
static void
batch_join(mesh_site_t *site, batch_t *batch, edata_list_active_t *dead) {
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		edata_t *leader = batch->moves[i].leader;
		if (!batch->moves[i].spliced) {
			continue;
		}
		if (slab == leader && mesh_group_get(slab) == NULL) {
			mesh_group_lead(site->arena, site->bin, slab,
			    site->spares[--site->nspares]);
		} else if (mesh_group_get(slab) == mesh_group_get(leader)) {
			mesh_group_thaw(site->arena, slab);
		} else {
			mesh_group_join(site->arena, site->bin, slab, leader);
		}
	}
	/*
	 * Followers first, since a leader may be released only without any.
	 */
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		if (edata_mesh_role_get(slab) == edata_mesh_follower) {
			mesh_group_unhold(site->bin, slab, dead);
		}
	}
	for (unsigned i = 0; i < batch->nmoves; i++) {
		edata_t *slab = batch->moves[i].slab;
		if (edata_mesh_held_get(slab)) {
			mesh_group_unhold(site->bin, slab, dead);
		}
	}
	for (unsigned i = 0; i < batch->nheld; i++) {
		mesh_group_unhold(site->bin, batch->held[i], dead);
	}
}

/* Sees to n descriptors for new groups.  Returns true if there is no memory. */
static bool
site_spares(tsdn_t *tsdn, mesh_site_t *site, unsigned n) {
	if (site->nspares >= n) {
		return false;
	}
	malloc_mutex_lock(tsdn, &site->bin->lock);
	while (site->nspares < n) {
		mesh_group_t *spare = mesh_group_recycle(site->bin);
		if (spare == NULL) {
			break;
		}
		site->spares[site->nspares++] = spare;
	}
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	while (site->nspares < n) {
		mesh_group_t *spare = (mesh_group_t *)base_alloc(
		    tsdn, site->arena->base, sizeof(mesh_group_t), QUANTUM);
		if (spare == NULL) {
			return true;
		}
		site->spares[site->nspares++] = spare;
	}
	return false;
}

void
mesh_batch_end(tsdn_t *tsdn, mesh_site_t *site) {
	if (site->nspares == 0) {
		return;
	}
	malloc_mutex_lock(tsdn, &site->bin->lock);
	while (site->nspares > 0) {
		mesh_group_discard(site->bin, site->spares[--site->nspares]);
	}
	malloc_mutex_unlock(tsdn, &site->bin->lock);
}

/* Whether anything is to move, for which writers have to be kept off. */
static bool
batch_moves(const batch_t *batch) {
	unsigned i = 0;
	while (i < batch->nmoves && batch->moves[i].stuck) {
		i++;
	}
	return i < batch->nmoves;
}

/* From the slabs that are held to those that are put back. */
static mesh_batch_result_t
batch_carry_out(tsdn_t *tsdn, mesh_site_t *site, batch_t *batch) {
	mesh_batch_result_t result = {0};
	const char         *why = NULL;
	const char         *stuck = NULL;
	if (batch->nmoves > batch->nleads || batch->alone) {
		if (!mesh_splice_room(batch_nspans(batch, site_size(site)))
		    || mesh_view_barrier_open()
		    || mesh_barrier_reserve(batch->nmoves * site_size(site))
		    || batch_prepare(tsdn, batch, site_size(site), &stuck)) {
			why = mesh_refusal_name(get_errno());
		} else if (batch_moves(batch)) {
			size_t before = mesh_splice_maps();
			why = batch_splice(site, batch);
			result.nmaps = mesh_splice_maps() - before;
			/* No page that was purged shall come back. */
			if (!mesh_purge_pays(site->binind)) {
				batch_map_pages(batch, site_size(site));
			}
		}
		mesh_barrier_unreserve();
		batch_punch(site, batch);
		why = why != NULL ? why : stuck;
	}
	unsigned nmeshed = 0;
	for (unsigned i = 0; i < batch->nmoves; i++) {
		if (batch->moves[i].spliced
		    && (i >= batch->nleads || batch->alone)) {
			result.nmoved++;
			nmeshed += (i >= batch->nleads && !batch->thaw);
		}
	}
	if (result.nmoved == 0 || stuck != NULL) {
		result.why = why;
		result.nrefused = batch->nmoves
		    - (batch->alone ? 0 : batch->nleads) - result.nmoved;
	}

	edata_list_active_t dead;
	edata_list_active_init(&dead);
	malloc_mutex_lock(tsdn, &site->bin->lock);
	batch_join(site, batch, &dead);
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	mesh_group_release(tsdn, site->arena, &dead);
	atomic_fetch_add_u64(
	    &site->arena->mesh.nmeshes, nmeshed, ATOMIC_RELAXED);
	return result;
}

/******************************************************************************/

mesh_batch_result_t
mesh_batch_pairs(tsdn_t *tsdn, mesh_site_t *site, edata_t **leaders,
    edata_t **followers, unsigned n) {
	batch_t *batch = &the_batch;
	batch_begin(batch);
	mesh_store_windows_bound();
	assert(n <= mesh_batch_pairs_max(site));
	if (site_spares(tsdn, site, n)) {
		return (mesh_batch_result_t){0};
	}
	malloc_mutex_lock(tsdn, &site->bin->lock);
	batch_pairs_add(site, batch, leaders, followers, n);
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	return batch->nmoves + batch->nheld > 0
	    ? batch_carry_out(tsdn, site, batch)
	    : (mesh_batch_result_t){0};
}

mesh_batch_result_t
mesh_batch_lead(tsdn_t *tsdn, mesh_site_t *site, edata_t **slabs, unsigned n) {
	batch_t *batch = &the_batch;
	batch_begin(batch);
	batch->alone = true;
	mesh_store_windows_bound();
	assert(n <= mesh_batch_pairs_max(site));
	if (site_spares(tsdn, site, n)) {
		return (mesh_batch_result_t){0};
	}
	malloc_mutex_lock(tsdn, &site->bin->lock);
	for (unsigned i = 0; i < n; i++) {
		if (mesh_batch_pickable(site, slabs[i])
		    && mesh_group_get(slabs[i]) == NULL) {
			batch_move_add(
			    site, batch, slabs[i], slabs[i], batch->nmoves);
		}
	}
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	return batch->nmoves > 0 ? batch_carry_out(tsdn, site, batch)
	                         : (mesh_batch_result_t){0};
}

mesh_batch_result_t
mesh_batch_group(tsdn_t *tsdn, mesh_site_t *site, edata_t *leader,
    edata_t **units, unsigned n) {
	batch_t *batch = &the_batch;
	batch_begin(batch);
	mesh_store_windows_bound();
	assert(n <= MESH_BATCH_UNITS);
	if (site_spares(tsdn, site, 1)) {
		return (mesh_batch_result_t){0};
	}
	malloc_mutex_lock(tsdn, &site->bin->lock);
	bool pickable = mesh_batch_pickable(site, leader);
	if (pickable) {
		mesh_group_live(leader, batch->live);
		batch_leader_add(site, batch, leader);
		for (unsigned i = 0; i < n && batch->nmoves <= MESH_BATCH_UNITS;
		     i++) {
			if (mesh_batch_pickable(site, units[i])) {
				batch_unit_add(site, batch, units[i], leader);
			}
		}
	}
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	return pickable ? batch_carry_out(tsdn, site, batch)
	                : (mesh_batch_result_t){0};
}

mesh_batch_result_t
mesh_batch_thaw(tsdn_t *tsdn, mesh_site_t *site, const mesh_group_t *group) {
	batch_t *batch = &the_batch;
	batch_begin(batch);
	mesh_store_windows_bound();
	mesh_pagemap_open();
	malloc_mutex_lock(tsdn, &site->bin->lock);
	bool thawable = group_thawable(site, group);
	if (thawable) {
		batch_thaw_add(site, batch, group);
	}
	malloc_mutex_unlock(tsdn, &site->bin->lock);
	return thawable && batch->nmoves + batch->nheld > 0
	    ? batch_carry_out(tsdn, site, batch)
	    : (mesh_batch_result_t){0};
}
