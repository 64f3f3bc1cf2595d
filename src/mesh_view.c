/*
 * Views: how the spliced ranges of parent and child part at a fork.
 *
 * A private view is a private mapping of the same place of the store: its
 * contents are the same, no byte is copied, and what either side writes from then
 * on it writes to pages of its own.  A child maps its views as the first thing it
 * does.  The parent would have to do the same before the fork, but that takes
 * microseconds a range, so its ranges stay shared and are write-protected by
 * userfaultfd(2) instead.  A thread of ours, the viewer, waits for the first write
 * to each, and makes the range private before it lets the writer on.  So no write
 * of the parent reaches the child.
 *
 * Mostly the child ends before much is written.  Then the protection is lifted,
 * and the ranges go on as before the fork.  The viewer sees that by a page that
 * parent and children share after a fork, the sentinel: once the kernel says that
 * it is mapped once only, no child is left.  If children live for long, the
 * viewer makes all ranges private after a while, and the generation ends.
 *
 *     idle --fork--> armed --no child left--> lifting --> lifted --> idle
 *                      |  ^                      |          |
 *                      |  +---------fork---------+----------+
 *                      +--took long--> settling --> settled --> idle
 *
 * The ranges are in a table (mesh_table.c).  A writer is let on after the range's
 * state is written.
 *
 * While there is a table nothing is meshed, so it serves the next fork, too, and
 * its slabs need not be touched.  Before it goes, those that have become private
 * are frozen (mesh_group.c).  A child has a table in which all is settled.
 *
 * The userfaultfd is the barrier's, so that ranges which the barrier has left
 * registered need not be registered again.  The viewer has it in a table of
 * descriptors of its own: if the program could close it, the protection would be
 * gone.  A range cannot be registered with two of them, and whoever protects a
 * range that is registered with another one does not learn of its faults: so the
 * viewer ends before there is a new one.  It takes no lock but view_mtx and
 * touches no heap page, since whoever waits for it may hold any other.  Where there
 * is no viewer - threads not wanted, no userfaultfd, not glibc - all ranges are
 * made private before the fork.  So they are in programs that have mutexes for which
 * the kernel does not wait (mesh_mutex.c); and in any case those that a child writes to
 * before it can map its views (mesh_libc.c).
 *
 * Called by mesh_fork, by mesh_group for what is freed meanwhile, by mesh_pass.
 * view_mtx is a leaf and guards the table, its states and the places.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_libc.h"
#include "jemalloc/internal/mesh_mutex.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_table.h"
#include "jemalloc/internal/mesh_task.h"
#include "jemalloc/internal/mesh_uffd.h"
#include "jemalloc/internal/mesh_view.h"
#include "jemalloc/internal/mesh_waiter.h"
#include "jemalloc/internal/mesh_worker.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#ifndef SYS_close_range
#	define SYS_close_range 436 /* Linux 5.9 */
#endif
#ifndef CLOSE_RANGE_UNSHARE
#	define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

/* Ranges of one step, which keeps page faults of the program waiting. */
#define STEP_RANGES 64
/* Places of one step; each costs some microseconds. */
#define STEP_PLACES 64
/* How long children may keep ranges protected. */
#define LEASE_NS UINT64_C(60000000000)
/* How often to try to copy, and milliseconds in between, if threads are busy. */
#define COPY_TRIES 100
#define COPY_WAIT_MS 10
/* Ranges that are frozen in one step, and looked at in one hold of view_mtx. */
#define FREEZE_RANGES 4096
#define FREEZE_LOOK 4096
/* Ranges copied behind one barrier, for a millisecond. */
#define COPY_RANGES 256
/* What the kernel gives at least. */
#define VIEWER_TURN_NS UINT64_C(100000)
/* Milliseconds between two looks at the sentinel, and between two steps. */
#define LOOK_MS 10
#define STEP_MS 1

/* Where in the store a leader was. */
typedef struct place_s place_t;
struct place_s {
	uintptr_t addr;
	size_t    size;
};

typedef enum {
	view_idle,
	view_armed,
	view_lifting,
	view_lifted,
	view_settling,
	view_settled
} view_state_t;

/* What the viewer is asked for, and its answer. */
typedef enum {
	viewer_asked_nothing,
	viewer_asked_to_protect,
	viewer_asked_to_end,
	viewer_done,
	viewer_failed
} viewer_request_t;

typedef enum {
	viewer_absent,
	viewer_beginning,
	viewer_present,
	/* There will never be one: the kernel lacks what it needs. */
	viewer_impossible
} viewer_life_t;

static malloc_mutex_t view_mtx;
static mesh_table_t   view_table;
/* How many of them have been frozen if need be; guarded by the mesh lock. */
static size_t view_nfrozen;
/* The table that is being made for a fork. */
static mesh_table_t begun_table;

/* Places of the store that leaders have left; room for so many. */
static place_t    *view_places;
static size_t      view_places_size;
static atomic_zu_t view_nplaces;

/* A view_state_t. */
static atomic_u32_t view_state;
/* A fork is under way; set and cleared under view_mtx. */
static atomic_b_t view_forking;
static atomic_b_t view_hurry;
/* See above; touched, and then shared by the next children. */
static volatile char *view_sentinel;

/* The viewer; what is not atomic only it uses. */
/* A viewer_life_t. */
static atomic_u32_t viewer_life;
/* A viewer_request_t. */
static atomic_u32_t viewer_request;
/* Set before it begins. */
static mesh_fd_t viewer_barrier;
static int       viewer_pagemap;
static int       viewer_store;
static uint64_t  viewer_lease_end;
/* Where lifting and settling have come to. */
static size_t viewer_next;

static view_state_t
state_get(void) {
	return (view_state_t)atomic_load_u32(&view_state, ATOMIC_ACQUIRE);
}

static void
state_set(view_state_t state) {
	atomic_store_u32(&view_state, (uint32_t)state, ATOMIC_RELEASE);
}

static void
futex_wait(atomic_u32_t *word, uint32_t value) {
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void
futex_wake(atomic_u32_t *word) {
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Whether ranges may be protected, so that writers wait for the viewer. */
static bool
state_protects(view_state_t state) {
	return state == view_armed || state == view_lifting
	    || state == view_settling;
}

bool
mesh_view_boot(void) {
	return malloc_mutex_init(&view_mtx, "mesh_view", WITNESS_RANK_LEAF,
	    malloc_mutex_rank_exclusive);
}

/******************************************************************************/
/* The table. */

/* Returns true if the kernel refused for any; view_mtx is held. */
static bool
ranges_make_private(int fd) {
	bool      err = false;
	uintptr_t start;
	size_t    size;
	for (size_t i = 0; i < view_table.n; i++) {
		if (mesh_range_state(&view_table.ranges[i])
		    == mesh_range_shared) {
			err |= mesh_table_make_private(&view_table,
			    &view_table.ranges[i], fd, &start, &size);
		}
	}
	return err;
}

bool
mesh_view_begin(size_t n) {
	return mesh_table_begin(&begun_table, n);
}

void
mesh_view_add(const edata_t *slab, const edata_t *leader) {
	mesh_table_add(&begun_table, slab, leader);
}

void
mesh_view_list(tsdn_t *tsdn) {
	if (begun_table.n == 0) {
		mesh_table_drop(&begun_table);
		return;
	}
	mesh_table_sort(&begun_table);
	malloc_mutex_lock(tsdn, &view_mtx);
	view_table = begun_table;
	state_set(view_lifted);
	malloc_mutex_unlock(tsdn, &view_mtx);
}

/* view_mtx is held. */
static void
table_drop(void) {
	mesh_table_drop(&view_table);
	state_set(view_idle);
}

/*
 * Freezes some of the ranges that have become private.  Returns true when that
 * is done.
 */
static bool
ranges_freeze(tsdn_t *tsdn) {
	enum { some = 64 };
	uintptr_t addrs[some];
	unsigned  n, total = 0;
	for (; view_nfrozen < view_table.n && total < FREEZE_RANGES;
	     total += n) {
		n = 0;
		malloc_mutex_lock(tsdn, &view_mtx);
		size_t end = view_nfrozen + FREEZE_LOOK < view_table.n
		    ? view_nfrozen + FREEZE_LOOK
		    : view_table.n;
		for (; view_nfrozen < end && n < some; view_nfrozen++) {
			mesh_range_t *range = &view_table.ranges[view_nfrozen];
			if (mesh_range_state(range) == mesh_range_private) {
				addrs[n++] = mesh_range_addr(range);
			}
		}
		malloc_mutex_unlock(tsdn, &view_mtx);
		for (unsigned i = 0; i < n; i++) {
			mesh_group_freeze_at(tsdn, (void *)addrs[i]);
		}
	}
	return view_nfrozen == view_table.n;
}

/******************************************************************************/
/*
 * Places that frozen leaders have left.  A child may be reading them, and the
 * range of a leader may be a private view, through which the store is not to be
 * reached: so they are punched later.
 */

void
mesh_view_leave(tsdn_t *tsdn, void *addr, size_t size) {
	if (!mesh_store_is_open()) {
		/* It was of an older generation. */
		return;
	}
	malloc_mutex_lock(tsdn, &view_mtx);
	size_t n = atomic_load_zu(&view_nplaces, ATOMIC_RELAXED);
	if ((n + 1) * sizeof(place_t) > view_places_size) {
		bool     commit = true;
		size_t   more = view_places_size > 0 ? 2 * view_places_size
		                                     : PAGE;
		place_t *places = (place_t *)pages_map(
		    NULL, more, PAGE, &commit);
		if (places == NULL) {
			/* Its memory goes with the generation. */
			malloc_mutex_unlock(tsdn, &view_mtx);
			return;
		}
		if (view_places != NULL) {
			memcpy(places, view_places, n * sizeof(place_t));
			pages_unmap(view_places, view_places_size);
		}
		view_places = places;
		view_places_size = more;
	}
	view_places[n] = (place_t){(uintptr_t)addr, size};
	atomic_store_zu(&view_nplaces, n + 1, ATOMIC_RELAXED);
	malloc_mutex_unlock(tsdn, &view_mtx);
}

/* view_mtx is held. */
static void
places_drop(void) {
	if (view_places != NULL) {
		pages_unmap(view_places, view_places_size);
		view_places = NULL;
		view_places_size = 0;
		atomic_store_zu(&view_nplaces, 0, ATOMIC_RELAXED);
	}
}

/* Takes one of them out; view_mtx is held.  Returns true if there is none. */
static bool
places_pop(place_t *place) {
	size_t n = atomic_load_zu(&view_nplaces, ATOMIC_RELAXED);
	if (n == 0) {
		places_drop();
		return true;
	}
	assert(view_places != NULL);
	*place = view_places[n - 1];
	atomic_store_zu(&view_nplaces, n - 1, ATOMIC_RELAXED);
	return false;
}

/*
 * Whether there is a leader again.  None can come while the mesh lock is held, or
 * while passes wait for us.
 */
static bool
place_used(const place_t *place) {
	for (size_t offset = 0; offset < place->size; offset += PAGE) {
		emap_full_alloc_ctx_t ctx;
		if (!emap_full_alloc_ctx_try_lookup(TSDN_NULL,
		        &arena_emap_global, (void *)(place->addr + offset),
		        &ctx)
		    && ctx.edata != NULL
		    && edata_mesh_role_get(ctx.edata) == edata_mesh_leader) {
			return true;
		}
	}
	return false;
}

bool
mesh_view_left_punch(tsdn_t *tsdn) {
	if (atomic_load_zu(&view_nplaces, ATOMIC_RELAXED) == 0) {
		return false;
	}
	bool more = true;
	for (unsigned i = 0; i < STEP_PLACES && more; i++) {
		place_t place;
		malloc_mutex_lock(tsdn, &view_mtx);
		if (!mesh_store_is_open()) {
			/* The same. */
			places_drop();
		}
		more = !places_pop(&place);
		malloc_mutex_unlock(tsdn, &view_mtx);
		if (more && !place_used(&place)) {
			mesh_store_punch_at(
			    tsdn, (void *)place.addr, place.size);
		}
	}
	mesh_store_windows_trim();
	return more;
}

/******************************************************************************/
/* The viewer. */

static bool
view_protect(uintptr_t start, size_t size) {
	return mesh_uffd_protect(viewer_barrier.fd, start, size);
}

static void
view_wake(uintptr_t start, size_t size) {
	(void)mesh_uffd_insist(mesh_uffd_wake, viewer_barrier.fd, start, size);
}

/* Ends the protection and lets writers on. */
static void
view_lift(uintptr_t start, size_t size) {
	int fd = viewer_barrier.fd;
	if (mesh_uffd_lift(fd, start, size)) {
		(void)mesh_uffd_insist(mesh_uffd_unregister, fd, start, size);
		view_wake(start, size);
	}
}

/* Protects the table; most ranges have been registered before. */
static bool
viewer_protect(void) {
	size_t    i = 0, size;
	uintptr_t start;
	bool      more = true, err = false;
	while (more && !err) {
		/* What is given back meanwhile must not be protected. */
		malloc_mutex_lock(TSDN_NULL, &view_mtx);
		more = mesh_table_next_shared(
		    &view_table, &i, view_table.n, &start, &size);
		err = more && view_protect(start, size)
		    && (mesh_uffd_register(viewer_barrier.fd, start, size)
		        || view_protect(start, size));
		malloc_mutex_unlock(TSDN_NULL, &view_mtx);
	}
	return err;
}

/* Punches some places, since no child is left.  Returns true when all are done. */
static bool
viewer_left_step(void) {
	bool done = false;
	malloc_mutex_lock(TSDN_NULL, &view_mtx);
	for (unsigned i = 0; i < STEP_PLACES && !done; i++) {
		place_t place;
		done = places_pop(&place);
		if (!done && !place_used(&place)) {
			(void)fallocate(viewer_store,
			    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)place.addr, (off_t)place.size);
		}
	}
	malloc_mutex_unlock(TSDN_NULL, &view_mtx);
	return done;
}

/*
 * Ends the protection of up to STEP_RANGES ranges, from viewer_next on.  Returns
 * true when all are done.
 */
static bool
viewer_lift_step(void) {
	malloc_mutex_lock(TSDN_NULL, &view_mtx);
	size_t    stop = viewer_next + STEP_RANGES < view_table.n
	       ? viewer_next + STEP_RANGES
	       : view_table.n;
	uintptr_t start;
	size_t    size;
	while (mesh_table_next_shared(
	    &view_table, &viewer_next, stop, &start, &size)) {
		view_lift(start, size);
	}
	bool done = (stop == view_table.n);
	malloc_mutex_unlock(TSDN_NULL, &view_mtx);
	return done;
}

/* Opens the store anew, as other threads may close their descriptor of it. */
static bool
viewer_store_open(void) {
	char path[64];
	malloc_snprintf(
	    path, sizeof(path), "/proc/self/fd/%d", mesh_store_fd()->fd);
	viewer_store = malloc_open(path, O_RDWR | O_CLOEXEC);
	mesh_fd_t reopened = *mesh_store_fd();
	reopened.fd = viewer_store;
	return !mesh_fd_valid(&reopened);
}

/*
 * When nothing is protected any more.  An old generation must not live on by our
 * descriptor of it.
 */
static void
viewer_disarm(view_state_t state) {
	/* Who waited for a range that was made private, or given back. */
	uintptr_t start = mesh_range_addr(&view_table.ranges[0]);
	view_wake(start,
	    mesh_range_end(&view_table.ranges[view_table.n - 1]) - start);
	malloc_close(viewer_store);
	viewer_store = -1;
	state_set(state);
}

static bool
viewer_arm(void) {
	if (viewer_store != -1) {
		/* It was lifting. */
		malloc_close(viewer_store);
	}
	if (viewer_store_open() || viewer_protect()) {
		viewer_next = 0;
		while (!viewer_lift_step()) {
		}
		viewer_disarm(view_lifted);
		return true;
	}
	/* What an older child may have of it is another page from here on. */
	(*view_sentinel)++;
	atomic_store_b(&view_hurry, false, ATOMIC_RELAXED);
	viewer_lease_end = now_ns() + LEASE_NS;
	state_set(view_armed);
	return false;
}

static void
viewer_live(viewer_life_t life) {
	atomic_store_u32(&viewer_life, life, ATOMIC_RELEASE);
	futex_wake(&viewer_life);
}

/* With the descriptor all that is registered goes. */
static void
viewer_end(void) {
	malloc_close(viewer_pagemap);
	malloc_close(viewer_barrier.fd);
	viewer_live(viewer_absent);
}

/* Somebody waits to write to addr. */
static void
viewer_fault(uintptr_t addr) {
	uintptr_t start = addr;
	size_t    size = PAGE;
	for (;;) {
		malloc_mutex_lock(TSDN_NULL, &view_mtx);
		mesh_range_t *range = mesh_table_find(&view_table, addr);
		bool          err = range != NULL
		    && mesh_range_state(range) == mesh_range_shared
		    && mesh_table_make_private(
		        &view_table, range, viewer_store, &start, &size);
		malloc_mutex_unlock(TSDN_NULL, &view_mtx);
		if (!err) {
			if (range == NULL) {
				view_lift(addr, PAGE);
			}
			view_wake(start, size);
			return;
		}
		/*
		 * The kernel is out of memory for the moment; it needs no mapping
		 * more than it has.
		 */
		sleep_ms(STEP_MS);
	}
}

static void
viewer_faults(int timeout_ms) {
	struct pollfd   pollfd = {.fd = viewer_barrier.fd, .events = POLLIN};
	struct uffd_msg msgs[16];
	if (poll(&pollfd, 1, timeout_ms) <= 0) {
		return;
	}
	ssize_t n = read(viewer_barrier.fd, msgs, sizeof(msgs));
	for (ssize_t i = 0; i < n / (ssize_t)sizeof(msgs[0]); i++) {
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT) {
			viewer_fault((uintptr_t)msgs[i].arg.pagefault.address
			    & ~(uintptr_t)PAGE_MASK);
		}
	}
}

/* Whether the sentinel is mapped here only. */
static bool
viewer_alone(void) {
	uint64_t entry;
	off_t    offset = (off_t)(((uintptr_t)view_sentinel >> LG_PAGE)
            * sizeof(entry));
	uint64_t present = UINT64_C(1) << 63, exclusive = UINT64_C(1) << 56;
	return pread(viewer_pagemap, &entry, sizeof(entry), offset)
	    == sizeof(entry)
	    && (entry & present) != 0 && (entry & exclusive) != 0;
}

static void
viewer_look(void) {
	bool hurry = atomic_load_b(&view_hurry, ATOMIC_RELAXED);
	malloc_mutex_lock(TSDN_NULL, &view_mtx);
	if (!atomic_load_b(&view_forking, ATOMIC_RELAXED)) {
		if (viewer_alone()) {
			viewer_next = 0;
			state_set(view_lifting);
		} else if (hurry || now_ns() >= viewer_lease_end) {
			viewer_next = 0;
			state_set(view_settling);
		}
	}
	malloc_mutex_unlock(TSDN_NULL, &view_mtx);
}

/* Some more ranges become private.  Returns true when all have. */
static bool
viewer_settle_step(void) {
	uintptr_t start;
	size_t    size;
	malloc_mutex_lock(TSDN_NULL, &view_mtx);
	for (unsigned n = 0; viewer_next < view_table.n && n < STEP_RANGES;
	     viewer_next++) {
		mesh_range_t *range = &view_table.ranges[viewer_next];
		if (mesh_range_state(range) == mesh_range_shared) {
			if (mesh_table_make_private(&view_table, range,
			        viewer_store, &start, &size)) {
				break;
			}
			/* Who waits is in the queue and will be woken. */
			n++;
		}
	}
	malloc_mutex_unlock(TSDN_NULL, &view_mtx);
	return viewer_next == view_table.n;
}

static void
viewer_step(view_state_t state) {
	bool hurry = atomic_load_b(&view_hurry, ATOMIC_RELAXED);
	switch (state) {
	case view_armed:
		viewer_faults(hurry ? STEP_MS : LOOK_MS);
		viewer_look();
		break;
	case view_lifting:
		viewer_faults(hurry ? 0 : STEP_MS);
		if (viewer_lift_step() && viewer_left_step()) {
			viewer_disarm(view_lifted);
		}
		break;
	default:
		viewer_faults(hurry ? 0 : STEP_MS);
		if (viewer_settle_step()) {
			viewer_next = 0;
			while (!viewer_lift_step()) {
				viewer_faults(hurry ? 0 : STEP_MS);
			}
			viewer_disarm(view_settled);
		}
	}
}

/* Does what it is asked for.  Returns false if that was to end. */
static bool
viewer_answer(void) {
	bool err = false, more = true;
	switch (atomic_load_u32(&viewer_request, ATOMIC_ACQUIRE)) {
	case viewer_asked_to_protect:
		err = viewer_arm();
		break;
	case viewer_asked_to_end:
		if (state_get() == view_lifting) {
			viewer_disarm(view_lifted);
		}
		viewer_end();
		more = false;
		break;
	default:
		return true;
	}
	atomic_store_u32(
	    &viewer_request, err ? viewer_failed : viewer_done, ATOMIC_RELEASE);
	futex_wake(&viewer_request);
	return more;
}

/*
 * Takes short turns, so that it runs at once when writers wait for it, even if all
 * processors are busy (sched_setattr(2), Linux 6.12; without, it is slower).
 */
static void
viewer_take_short_turns(void) {
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t  nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr;
	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) == 0
	    && attr.policy == SCHED_OTHER) {
		attr.runtime = VIEWER_TURN_NS;
		(void)syscall(SYS_sched_setattr, 0, &attr, 0);
	}
}

/*
 * Leaves the viewer with a table of descriptors of its own, in which there is the
 * barrier's userfaultfd and nothing else.
 */
static viewer_life_t
viewer_begin(void) {
	unsigned fd = (unsigned)viewer_barrier.fd;
	/* A range may not be empty, but may begin where there is no descriptor. */
	if (syscall(SYS_close_range, fd + 1, ~0U, CLOSE_RANGE_UNSHARE) != 0
	    || (fd > 0 && syscall(SYS_close_range, 0U, fd - 1, 0) != 0)) {
		return viewer_impossible;
	}
	viewer_store = -1;
	viewer_pagemap = malloc_open(
	    "/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
	/* The program may have closed it meanwhile. */
	return !mesh_fd_valid(&viewer_barrier) ? viewer_absent
	    : viewer_pagemap == -1             ? viewer_impossible
	                                       : viewer_present;
}

/*
 * Looks for threads that sleep in ranges which were made private, unless somebody
 * else has the mesh lock.  Returns whether there is more to look for.
 */
static bool
viewer_wake_waiters(void) {
	if (mesh_waiter_wait_ns() == 0
	    && !malloc_mutex_trylock(TSDN_NULL, &mesh_mtx)) {
		mesh_waiter_look();
		malloc_mutex_unlock(TSDN_NULL, &mesh_mtx);
	}
	return mesh_waiter_wait_ns() != UINT64_MAX;
}

static void
viewer_run(void) {
	viewer_take_short_turns();
	viewer_life_t life = viewer_begin();
	if (life != viewer_present) {
		viewer_live(life);
		return;
	}
	viewer_live(viewer_present);
	while (viewer_answer()) {
		view_state_t state = state_get();
		bool         waiters = viewer_wake_waiters();
		if (state_protects(state)) {
			viewer_step(state);
		} else if (waiters) {
			sleep_ms(LOOK_MS);
		} else {
			uint32_t request = atomic_load_u32(
			    &viewer_request, ATOMIC_ACQUIRE);
			if (request == viewer_asked_nothing
			    || request >= viewer_done) {
				futex_wait(&viewer_request, request);
			}
		}
	}
}

static void *
viewer_main(void *arg) {
	(void)arg;
	mesh_tasks_own_enter();
	viewer_run();
	mesh_tasks_own_leave();
	return NULL;
}

/* Whether there is use for a viewer now; if so, it is about to begin. */
static bool
viewer_wanted(tsdn_t *tsdn) {
	if (!mesh_worker_permitted() || !mesh_libc_known()
	    || !mesh_barrier_is_uffd()
	    || atomic_load_u32(&viewer_life, ATOMIC_RELAXED) != viewer_absent) {
		return false;
	}
	malloc_mutex_lock(tsdn, &mesh_mtx);
	bool wanted = atomic_load_u32(&viewer_life, ATOMIC_RELAXED)
	        == viewer_absent
	    && mesh_fd_valid(mesh_barrier_fd()) && mesh_store_is_open();
	if (wanted && view_sentinel == NULL) {
		bool commit = true;
		view_sentinel = (volatile char *)pages_map(
		    NULL, PAGE, PAGE, &commit);
		wanted = (view_sentinel != NULL);
	}
	if (wanted) {
		viewer_barrier = *mesh_barrier_fd();
		viewer_live(viewer_beginning);
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	return wanted;
}

void
mesh_view_start(tsdn_t *tsdn) {
	if (!viewer_wanted(tsdn)) {
		return;
	}
	pre_reentrancy(tsdn_tsd(tsdn), NULL);
	/* It inherits the mask: no handler of the program may run in it. */
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_t thread;
	if (pthread_create_wrapper(&thread, NULL, viewer_main, NULL) == 0) {
		pthread_detach(thread);
	} else {
		viewer_live(viewer_impossible);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	post_reentrancy(tsdn_tsd(tsdn));
}

/******************************************************************************/
/* Fork. */

/* Has the viewer do something now.  Returns true if it cannot. */
static bool
viewer_ask(viewer_request_t request) {
	if (atomic_load_u32(&viewer_life, ATOMIC_ACQUIRE) != viewer_present) {
		return true;
	}
	atomic_store_u32(&viewer_request, request, ATOMIC_RELEASE);
	futex_wake(&viewer_request);
	while (atomic_load_u32(&viewer_request, ATOMIC_ACQUIRE) == request) {
		futex_wait(&viewer_request, request);
	}
	return atomic_load_u32(&viewer_request, ATOMIC_ACQUIRE) != viewer_done;
}

bool
mesh_view_barrier_open(void) {
	if (mesh_fd_valid(mesh_barrier_fd())) {
		return false;
	}
	while (
	    atomic_load_u32(&viewer_life, ATOMIC_ACQUIRE) == viewer_beginning) {
		futex_wait(&viewer_life, viewer_beginning);
	}
	(void)viewer_ask(viewer_asked_to_end);
	return mesh_barrier_open();
}

static void
range_copy(mesh_range_t *range) {
	void  *addr = (void *)mesh_range_addr(range);
	size_t size = mesh_range_size(range);
	if (mesh_barrier_raise(addr, size, /* stored */ true) == NULL) {
		return;
	}
	bool err = mesh_unsplice_copy(addr, size);
	mesh_barrier_lower(addr, size, addr, !err);
	if (!err) {
		mesh_range_state_set(range, mesh_range_private);
		mesh_waiter_note(addr, size);
	}
}

/*
 * Copies instead of views, for when the store's descriptor is gone; as many as the
 * kernel and the threads permit.  view_mtx is held, so no thread that is stopped
 * has it.
 */
static void
ranges_copy(void) {
	if (mesh_view_barrier_open()) {
		return;
	}
	unsigned tries = 0;
	size_t   begin = 0;
	while (begin < view_table.n && tries < COPY_TRIES) {
		size_t next = begin;
		if (mesh_barrier_begin() == NULL) {
			size_t end = begin + COPY_RANGES < view_table.n
			    ? begin + COPY_RANGES
			    : view_table.n;
			for (size_t i = begin; i < end; i++) {
				if (mesh_range_state(&view_table.ranges[i])
				    == mesh_range_shared) {
					range_copy(&view_table.ranges[i]);
				}
			}
			mesh_barrier_end();
			while (next < end
			    && mesh_range_state(&view_table.ranges[next])
			        != mesh_range_shared) {
				next++;
			}
		}
		if (next > begin) {
			tries = 0;
		} else {
			/* A thread that begins blocks all signals for a moment. */
			tries++;
			sleep_ms(COPY_WAIT_MS);
		}
		begin = next;
	}
}

/*
 * Makes the range that addr lies in private now, if there is one.  Returns true if
 * the kernel refused.
 */
static bool
range_part_at(tsdn_t *tsdn, uintptr_t addr) {
	/* Only states change, without the mesh lock. */
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	mesh_range_t *range = addr < mesh_range_addr(&view_table.ranges[0])
	    ? NULL
	    : mesh_table_find(&view_table, addr);
	if (range == NULL) {
		return false;
	}
	const mesh_fd_t *store = mesh_store_fd();
	uintptr_t        start;
	size_t           size;
	malloc_mutex_lock(tsdn, &view_mtx);
	bool err = mesh_range_state(range) == mesh_range_shared
	    && (!mesh_fd_valid(store)
	        || mesh_table_make_private(
	            &view_table, range, store->fd, &start, &size));
	malloc_mutex_unlock(tsdn, &view_mtx);
	return err;
}

/*
 * Has the viewer protect all that is shared, but for what a child's C library
 * writes.  Returns true if it cannot; *err if the kernel refused the rest.
 *
 * What the library will write to at the next fork is private then, too, if the
 * protection has not ended by then: it was made so here, or was allocated since,
 * and so written to.
 */
static bool
ranges_protect(tsdn_t *tsdn, bool *err) {
	/* Now, as who has it locked could not go on once all is protected. */
	mesh_libc_lock();
	bool failed = viewer_ask(viewer_asked_to_protect);
	*err = !failed && mesh_libc_do(tsdn, range_part_at);
	mesh_libc_unlock();
	return failed;
}

bool
mesh_view_part(tsdn_t *tsdn) {
	view_state_t state = state_get();
	if (state != view_lifting && state != view_lifted) {
		/* What an earlier fork has protected is for this child, too. */
		return false;
	}
	/* From the beginning: there will be more private ones. */
	view_nfrozen = 0;
	/* First, since what is being lifted must not go on being lifted. */
	bool err;
	if ((state == view_lifting || !mesh_mutex_seen())
	    && !ranges_protect(tsdn, &err)) {
		return err;
	}
	const mesh_fd_t *store = mesh_store_fd();
	malloc_mutex_lock(tsdn, &view_mtx);
	if (!mesh_fd_valid(store) || ranges_make_private(store->fd)) {
		ranges_copy();
	}
	size_t    i = 0, size;
	uintptr_t start;
	err = mesh_table_next_shared(
	    &view_table, &i, view_table.n, &start, &size);
	if (!err) {
		state_set(view_settled);
	}
	malloc_mutex_unlock(tsdn, &view_mtx);
	return err;
}

bool
mesh_view_settled(tsdn_t *tsdn) {
	malloc_mutex_lock(tsdn, &view_mtx);
	bool settled = (state_get() == view_settled);
	if (settled) {
		table_drop();
	}
	malloc_mutex_unlock(tsdn, &view_mtx);
	return settled;
}

bool
mesh_view_listed(void) {
	return state_get() != view_idle;
}

bool
mesh_view_pending(tsdn_t *tsdn, bool hurry) {
	malloc_mutex_assert_owner(tsdn, &mesh_mtx);
	view_state_t state = state_get();
	if (state == view_idle) {
		return false;
	}
	if (state_protects(state)) {
		if (hurry) {
			atomic_store_b(&view_hurry, true, ATOMIC_RELAXED);
		}
		return true;
	}
	if (!ranges_freeze(tsdn)) {
		return true;
	}
	malloc_mutex_lock(tsdn, &view_mtx);
	table_drop();
	malloc_mutex_unlock(tsdn, &view_mtx);
	if (state == view_settled) {
		mesh_store_freeze();
	}
	return false;
}

mesh_unsplice_t
mesh_view_unsplice(tsdn_t *tsdn, void *addr, size_t size) {
	if (!mesh_view_listed()) {
		return mesh_unsplice(addr, size);
	}
	malloc_mutex_lock(tsdn, &view_mtx);
	mesh_range_t *range = mesh_table_find(&view_table, (uintptr_t)addr);
	if (range != NULL) {
		if (state_get() == view_lifted
		    && mesh_range_state(range) == mesh_range_shared
		    && mesh_range_addr(range) == mesh_range_leader(range)) {
			/* Nobody reads it. */
			mesh_store_punch(addr, size);
		}
		mesh_range_state_set(range, mesh_range_gone);
	}
	mesh_unsplice_t result = mesh_unsplice(addr, size);
	malloc_mutex_unlock(tsdn, &view_mtx);
	return result;
}

void
mesh_view_prefork(tsdn_t *tsdn) {
	malloc_mutex_lock(tsdn, &view_mtx);
	atomic_store_b(&view_forking, true, ATOMIC_RELAXED);
	malloc_mutex_unlock(tsdn, &view_mtx);
}

void
mesh_view_postfork_parent(tsdn_t *tsdn) {
	malloc_mutex_lock(tsdn, &view_mtx);
	atomic_store_b(&view_forking, false, ATOMIC_RELAXED);
	malloc_mutex_unlock(tsdn, &view_mtx);
	/* The viewer looks as long as it protects; else there may be nobody. */
	if (!state_protects(state_get())
	    || atomic_load_u32(&viewer_life, ATOMIC_ACQUIRE)
	        != viewer_present) {
		mesh_waiter_look_all();
	}
}

bool
mesh_view_postfork_child(tsdn_t *tsdn) {
	malloc_mutex_postfork_child(tsdn, &view_mtx);
	view_state_t state = state_get();
	bool         err = state_protects(state)
	    && (!mesh_fd_valid(mesh_store_fd())
	        || ranges_make_private(mesh_store_fd()->fd));
	if (state != view_idle) {
		state_set(view_settled);
	}
	places_drop();
	atomic_store_b(&view_forking, false, ATOMIC_RELAXED);
	/*
	 * The parent's.  The sentinel must stay as it is while we have views of
	 * the parent's store: ours, if we fork, is another one.
	 */
	view_sentinel = NULL;
	viewer_live(viewer_absent);
	atomic_store_u32(&viewer_request, viewer_asked_nothing, ATOMIC_RELAXED);
	return err;
}
