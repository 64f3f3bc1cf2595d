/*
 * The pass: when which bin is scanned.
 *
 * Slices, bounded in time, go around all bins of all automatic arenas.  A bin is
 * scanned (mesh_scan.c) when enough was freed in it since the last time; scans that
 * bring nothing make the next one wait.  So the work follows what changes, not the
 * size of the heap.
 *
 * Slices run under the mesh lock, by background thread 0, or by the arena tick where
 * there are no background threads (mesh_worker.c); arena.<i>.mesh scans all bins of
 * an arena at once, and arena.<i>.purge has slices do that.  A program whose slabs
 * have nothing to give, a child that has hardly begun, pay for a look at a tick now
 * and then, and no system call.  Lock order: background thread's info->mtx, mesh
 * lock, bin lock (a leaf).
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_limbo.h"
#include "jemalloc/internal/mesh_pack.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_quota.h"
#include "jemalloc/internal/mesh_scan.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_tidy.h"
#include "jemalloc/internal/mesh_view.h"
#include "jemalloc/internal/mesh_waiter.h"
#include "jemalloc/internal/mesh_worker.h"

#include <sys/syscall.h>
#include <time.h>

/* Rounds of a full pass over one bin; later ones gain little. */
#define FULL_PASS_ROUNDS 4

/* Share of the period that slices may take, and a slice's bounds. */
#define SLICE_SHARE 16
#define SLICE_NS_MIN UINT64_C(200000)
#define SLICE_NS_MAX UINT64_C(3000000)
/*
 * What a tick in an application thread may take at once.  While there is a scan to go
 * on with, its slices come as often as they may take this share in all.
 */
#define SLICE_NS_TICK UINT64_C(1000000)
/*
 * One that takes longer than SLICE_NS_MAX puts off the next by so many times what is
 * beyond it: what it runs, as it has many threads to stop, and what it takes, if it waits
 * for a processor, as others may have to then.  Never for longer.
 */
#define SLICE_RAN_REST 4
#define SLICE_TOOK_REST 2
#define SLICE_REST_NS_MAX UINT64_C(2000000000)
/* When to look again whether slabs have died, once all are out. */
#define LIMBO_REST_NS UINT64_C(50000000)
/* How much more often slices come while a pass is asked for. */
#define REQUEST_SPEED 8
/* With less, slices are no more frequent than usual. */
#define QUOTA_PLENTY (2 * MESH_QUOTA_UNIT)
/*
 * Until there is something to mesh ticks look for it, and that may take one part in
 * so many of the time.
 */
#define LOOK_SHARE 256
#define LOOK_COST_NS_MIN UINT64_C(1000)
/*
 * A child of a fork that will only exec or write down what it sees has no use for
 * meshing; one that goes on comes to so many ticks, or to one after so long.
 */
#define CHILD_TICKS 16
#define CHILD_NS UINT64_C(1000000000)
/*
 * How long to leave it alone after the kernel, the budget or a thread has said
 * no: longer each time.
 */
#define REFUSED_PAUSE_NS_MIN UINT64_C(20000000)
#define REFUSED_PAUSE_NS_MAX UINT64_C(5000000000)
/*
 * A process that forks more often than this does not mesh, since the next fork
 * would undo it; but that must not last.
 */
#define FORK_PAUSE_NS UINT64_C(1000000000)
#define FORK_PAUSE_NS_MAX UINT64_C(10000000000)
/*
 * How long a pass on request waits for a fork to be dealt with, and for threads
 * that cannot be stopped: as they begin they block all signals.
 */
#define FORK_WAIT_MS 5000
#define BUSY_WAIT_MS 100
/*
 * A scan costs as much as its bin has slabs, so it waits until a certain share of
 * them was freed from and another could be released, or for so many looks: a
 * program that is just freeing all has some slabs half empty at any time.  So it
 * does if a bin lost as many regions since the last look as it has: what is meshed
 * there will hardly live until the next.
 */
#define LITTLE_SHARE 32
#define LITTLE_GAIN_SHARE 64
#define LITTLE_LOOKS 64
/*
 * Where mappings are short, a bin is in flux if one slab in so many will be freed
 * from while they are used up, which takes a look for so many of them; and until
 * so many looks have found it calm.  It waits as long as what could be released
 * grows by a certain share in so many looks; then it gets only a few of them.
 */
#define FLUX_SHARE 8
#define FLUX_MAPS_PER_LOOK 128
#define FLUX_CALM_LOOKS 20
#define FLUX_LOOKS 160
#define FLUX_GROWTH_SHARE 16
/*
 * With less free inside of all slabs, a program is not fragmented, and what meshing
 * begins with is not worth it: two descriptors, some mappings, a thread that wakes.
 */
#define START_HOLES (ZU(1) << 20)
/* So often it is looked where threads sleep. */
#define LOOK_NS UINT64_C(20000000)
/* Looks at a bin that fruitless scans may make us pass over, at most. */
#define BACKOFF_MAX 127

ssize_t opt_mesh_period_ms = 50;

malloc_mutex_t mesh_mtx;

/* The scan that slices carry on, and where they are; under the mesh lock. */
static mesh_scan_t slice_scan;
static unsigned    slice_arena;
static unsigned    slice_bin;
static unsigned    slice_shard;
static uint64_t    slice_last_ns;
/* Until then there is none, as the last one took too long. */
static uint64_t slice_rest_until_ns;
/* The bin in which a fork has put an end to one, if any, and where it goes on. */
static bin_t    *slice_resume_bin;
static uintptr_t slice_resume_at;
/* Whether only a tick will wake background thread 0. */
static atomic_b_t slice_asleep;
/* Whether the last slice has found a reason to mesh at all. */
static atomic_b_t slice_needed;
/* When ticks will look for one again, and what that takes. */
static atomic_u64_t look_due_ns;
static atomic_u64_t look_cost_ns;
/* Of a look at what is shared with nobody: how many times as long no other follows. */
static unsigned own_pause = 1;
/* A pass was asked for; and bins that it has yet to come to. */
static atomic_b_t requested;
static unsigned   request_left;
/*
 * Ticks that a child has yet to wait, and until when at most; what had been freed in
 * its heap before, SIZE_MAX if it has not been asked yet.
 */
static atomic_u32_t child_ticks;
static uint64_t     child_until_ns;
static atomic_zu_t  child_freed;
/* When the process forked last, and first of the forks that are not apart. */
static uint64_t forked_ns;
static uint64_t forked_first_ns;
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
	const char *why = (const char *)atomic_load_p(
	    &refused_why, ATOMIC_RELAXED);
	/* Mappings may have become plenty since. */
	return why == mesh_refusal_name(E2BIG) && mesh_scan_maps_plenty() ? NULL
	                                                                  : why;
}

/* Takes in what a scan has come to; the mesh lock is held. */
static void
pass_scanned(const mesh_scan_t *scan) {
	if (scan->why == NULL) {
		if (scan->nmoved > 0) {
			refused_until_ns = 0;
			refused_pause_ns = 0;
			atomic_store_p(&refused_why, NULL, ATOMIC_RELAXED);
		}
		return;
	}
	atomic_store_p(
	    &refused_why, (void *)(uintptr_t)scan->why, ATOMIC_RELAXED);
	atomic_fetch_add_u64(
	    &scan->site.arena->mesh.nrefused, scan->nrefused, ATOMIC_RELAXED);
	if (!scan->refused) {
		return;
	}
	refused_pause_ns *= 2;
	if (refused_pause_ns < REFUSED_PAUSE_NS_MIN
	    || scan->why == mesh_stop_timed) {
		refused_pause_ns = REFUSED_PAUSE_NS_MIN;
	} else if (refused_pause_ns > REFUSED_PAUSE_NS_MAX) {
		refused_pause_ns = REFUSED_PAUSE_NS_MAX;
	}
	refused_until_ns = now_ns() + refused_pause_ns;
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

/* Notes if nothing maps the generations that forks have frozen any more. */
static void
frozen_look(tsdn_t *tsdn) {
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		if (arena != NULL
		    && (mesh_limbo_nslabs(arena) > 0
		        || atomic_load_zu(&arena->mesh.frozen, ATOMIC_RELAXED)
		            > 0)) {
			return;
		}
	}
	mesh_store_frozen_gone();
}

static bool
pass_scan_begin(tsdn_t *tsdn, mesh_scan_t *scan, arena_t *arena, szind_t binind,
    unsigned binshard) {
	bool none = mesh_scan_begin(tsdn, scan, arena, binind, binshard);
	if (none && scan->why != NULL) {
		pass_scanned(scan);
	}
	return none;
}

static bool
pass_scan_step(tsdn_t *tsdn, mesh_scan_t *scan, uint64_t ns) {
	arena_t *arena = scan->site.arena;
	uint64_t begin = now_ns();
	bool     done = mesh_scan_step(tsdn, scan, ns);
	pass_took(arena, now_ns() - begin);
	if (done) {
		pass_scanned(scan);
		frozen_look(tsdn);
	}
	return done;
}

/******************************************************************************/
/* Dead slabs. */

/* Takes some of an arena's out, for about ns; returns true when that is all. */
static bool
limbo_step(tsdn_t *tsdn, arena_t *arena, uint64_t ns) {
	uint64_t begin = now_ns();
	bool     done = mesh_limbo_step(tsdn, arena, ns);
	pass_took(arena, now_ns() - begin);
	if (done) {
		frozen_look(tsdn);
	}
	return done;
}

/*
 * Takes some of all arenas' out if it is time.  Returns nanoseconds until there is more
 * to do, UINT64_MAX if none wait.  The mesh lock is held.
 */
static uint64_t
limbo_run(tsdn_t *tsdn) {
	uint64_t until_ns = UINT64_MAX;
	for (unsigned i = 0; i < manual_arena_base; i++) {
		arena_t *arena = arena_get(tsdn, i, false);
		uint64_t wait_ns = UINT64_MAX;
		if (arena != NULL && mesh_limbo_due(arena, &wait_ns)) {
			wait_ns = limbo_step(tsdn, arena, SLICE_NS_MAX)
			    ? LIMBO_REST_NS
			    : SLICE_NS_MAX;
		}
		until_ns = wait_ns < until_ns ? wait_ns : until_ns;
	}
	return until_ns;
}

/*
 * The same by a thread of the program's, of one arena, where no background thread
 * does.
 */
static void
limbo_tick(tsdn_t *tsdn, arena_t *arena) {
	if (mesh_limbo_nslabs(arena) == 0 || tsdn_null(tsdn)
	    || !tsd_nominal(tsdn_tsd(tsdn))
	    || malloc_mutex_trylock(tsdn, &mesh_mtx)) {
		return;
	}
	uint64_t wait_ns;
	if ((mesh_limbo_full(arena) || mesh_limbo_due(arena, &wait_ns))
	    && mesh_worker_here()) {
		/* Once nothing meshed lives it may be the last time. */
		while (!limbo_step(tsdn, arena, SLICE_NS_TICK)
		    && atomic_load_zu(&arena->mesh.groups, ATOMIC_RELAXED)
		        == 0) {
		}
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
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

/* Regions freed since the last look at a bin, about; it is locked. */
static size_t
bin_freed(bin_t *bin) {
	uint16_t now = (uint16_t)(bin->stats.ndalloc / 64);
	uint16_t freed = (uint16_t)(now - bin->mesh.ndalloc_looked);
	bin->mesh.ndalloc_looked = now;
	return (size_t)freed * 64;
}

/*
 * Whether the program frees from a bin so fast that soon other slabs will be worth
 * the mappings more, if those are short; the bin is locked.
 */
static bool
bin_in_flux(arena_t *arena, const bin_t *bin, szind_t binind, size_t freed,
    size_t left, size_t demand) {
	uint8_t *calm = &arena->mesh.calm_looks[binind];
	size_t   looks = left / FLUX_MAPS_PER_LOOK + 1;
	bool     fast = freed * looks > bin->stats.nonfull_slabs / FLUX_SHARE;
	*calm = fast ? 0 : *calm + (*calm < FLUX_CALM_LOOKS);
	return *calm < FLUX_CALM_LOOKS
	    && demand / bin_infos[binind].slab_size
	    > left / MESH_MAPS_PER_SPLICE;
}

/* Whether a bin in flux shall wait for so many looks again; it is locked. */
static bool
bin_grows(arena_t *arena, szind_t binind, size_t demand) {
	size_t *seen = &arena->mesh.demand_seen[binind];
	bool    grows = demand > *seen + *seen / FLUX_GROWTH_SHARE;
	*seen = demand;
	return grows;
}

/* Mappings that may be added.  Counting them takes milliseconds at times. */
static size_t
maps_left(void) {
	size_t left;
	return mesh_splice_left(&left) ? 0 : left;
}

static bin_state_t
bin_look(tsdn_t *tsdn, arena_t *arena, szind_t binind, unsigned binshard,
    bool *flux) {
	*flux = false;
	if (bin_infos[binind].nregs == 1) {
		return bin_idle;
	}
	bin_t *bin = arena_get_bin(arena, binind, binshard);
	size_t left = maps_left();
	malloc_mutex_lock(tsdn, &bin->lock);
	bin_state_t state = bin_idle;
	if (request_left > 0) {
		if (mesh_scan_due(arena, bin, binind, left)) {
			state = bin_due;
		}
	} else if (mesh_scan_due(arena, bin, binind, left)) {
		mesh_bin_t *mesh = &bin->mesh;
		uint32_t    freed = (uint32_t)bin->stats.ndalloc
		    - mesh->ndalloc_seen;
		size_t demand = mesh_scan_demand(bin, binind);
		size_t fresh = bin_freed(bin);
		bool   little = config_stats
		    && (freed < bin->stats.nonfull_slabs / LITTLE_SHARE
		        || demand / bin_infos[binind].slab_size
		            < bin->stats.curslabs / LITTLE_GAIN_SHARE
		        || fresh > bin->stats.curregs);
		*flux = bin_in_flux(arena, bin, binind, fresh, left, demand);
		mesh->nlooks += (mesh->nlooks < UINT8_MAX);
		if (*flux && mesh->nlooks > FLUX_LOOKS
		    && bin_grows(arena, binind, demand)) {
			mesh->nlooks = 0;
		}
		state = mesh->nlooks > mesh->backoff
		        && (!little || mesh->nlooks > LITTLE_LOOKS)
		        && (!*flux || mesh->nlooks > FLUX_LOOKS)
		    ? bin_due
		    : bin_later;
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
		bin->mesh.backoff = (uint8_t)((bin->mesh.backoff * 2 + 1)
		    & BACKOFF_MAX);
	}
	bin->mesh.nlooks = 0;
	malloc_mutex_unlock(tsdn, &bin->lock);
}

/* Moves on to the next bin of all auto arenas, around and around. */
static void
slice_next(void) {
	request_left -= (request_left > 0);
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

/* Has the scan that begins go on where a fork has put an end to the last one. */
static void
slice_resume(void) {
	if (slice_scan.site.bin == slice_resume_bin) {
		slice_resume_bin = NULL;
		mesh_scan_resume(&slice_scan, slice_resume_at);
	}
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

/* Whether nothing was ever meshed, and there is no reason to begin with it. */
static bool
slice_needless(tsdn_t *tsdn) {
	if (!config_stats || mesh_store_is_open()
	    || mesh_store_generation() > 0) {
		return false;
	}
	return mesh_scan_holes(tsdn, START_HOLES) < START_HOLES;
}

/* Takes in that a pass was asked for: all bins are due once. */
static void
request_take(void) {
	if (!atomic_load_b(&requested, ATOMIC_RELAXED)) {
		return;
	}
	atomic_store_b(&requested, false, ATOMIC_RELAXED);
	request_left = 0;
	for (szind_t i = 0; i < SC_NBINS; i++) {
		request_left += bin_infos[i].n_shards * manual_arena_base;
	}
	/* Whoever asks for a pass has often just freed much. */
	mesh_splice_recount();
}

/* Whether an arena is to be tidied now. */
static mesh_tidy_t
tidy_look(tsdn_t *tsdn, arena_t *arena) {
	mesh_tidy_t state = mesh_tidy_look(arena);
	return state != mesh_tidy_due && request_left > 0
	        && atomic_load_u64(&arena->mesh.nmeshes, ATOMIC_RELAXED) > 0
	        && !mesh_tidy_begin(tsdn, arena)
	    ? mesh_tidy_due
	    : state;
}

/*
 * Whether threads may be stopped now, if they have to be: before a scan goes on, as it
 * ends with the first refusal.  Costs next to nothing while they sleep on.
 */
static bool
slice_may_stop(void) {
	const char *before = mesh_pass_refused();
	const char *why = mesh_barrier_get() == mesh_barrier_signal
	    ? mesh_stop_look()
	    : NULL;
	bool        timed = (why == mesh_stop_timed);
	if (timed != (before == mesh_stop_timed)) {
		atomic_store_p(&refused_why,
		    timed ? (void *)(uintptr_t)mesh_stop_timed : NULL,
		    ATOMIC_RELAXED);
	}
	return !timed;
}

/* See slice_run(). */
static bool
slice_work(tsdn_t *tsdn, uint64_t ns) {
	bool hurry = (opt_mesh_period_ms == 0);
	if (mesh_view_pending(tsdn, hurry)
	    || (!hurry && forked_ns != 0
	        && slice_last_ns - forked_ns < FORK_PAUSE_NS
	        && slice_last_ns - forked_first_ns < FORK_PAUSE_NS_MAX)
	    || mesh_view_left_punch(tsdn)) {
		mesh_pack_stop(tsdn);
		return true;
	}
	bool needed = hurry || !slice_needless(tsdn);
	atomic_store_b(&slice_needed, needed, ATOMIC_RELAXED);
	if (!needed) {
		atomic_store_b(&requested, false, ATOMIC_RELAXED);
		mesh_pack_stop(tsdn);
		return false;
	}
	if (mesh_settle()) {
		return false;
	}
	request_take();
	/* It needs nothing of the kernel. */
	mesh_pack_look(tsdn);
	if (slice_last_ns < refused_until_ns) {
		return true;
	}
	bool     later = false;
	bool     worked = false;
	unsigned first_arena = slice_arena;
	unsigned first_bin = slice_bin;
	unsigned first_shard = slice_shard;
	do {
		if (slice_scan.site.bin == NULL) {
			arena_t *arena = arena_get(tsdn, slice_arena, false);
			if (slice_bin == 0 && slice_shard == 0
			    && mesh_arena_meshable(arena)) {
				mesh_tidy_t state = tidy_look(tsdn, arena);
				later |= (state == mesh_tidy_later);
				worked |= (state == mesh_tidy_due);
				if (state == mesh_tidy_due
				    && !tidy_run(tsdn, arena, ns)) {
					return true;
				}
			}
			if (mesh_arena_meshable(arena)) {
				bool        flux;
				bin_state_t state = bin_look(
				    tsdn, arena, slice_bin, slice_shard, &flux);
				later |= (state == bin_later);
				if (state == bin_due && !slice_may_stop()) {
					return true;
				}
				if (state == bin_due
				    && !pass_scan_begin(tsdn, &slice_scan,
				        arena, slice_bin, slice_shard)) {
					slice_scan.flux = flux;
					slice_resume();
					worked = true;
				}
			}
		}
		if (slice_scan.site.bin != NULL) {
			bin_t *bin = slice_scan.site.bin;
			if (!slice_may_stop()
			    || !pass_scan_step(tsdn, &slice_scan, ns)) {
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
ns_beyond(uint64_t took_ns) {
	return took_ns > SLICE_NS_MAX ? took_ns - SLICE_NS_MAX : 0;
}

/*
 * Works for about ns.  The mesh lock is held.  Returns true if there is more to
 * do soon: it was cut short, or a bin is only backing off.
 */
static bool
slice_run(tsdn_t *tsdn, uint64_t ns) {
	slice_last_ns = now_ns();
	uint64_t began_cpu_ns = cpu_ns();
	bool     more = slice_work(tsdn, ns);
	uint64_t end_ns = now_ns();
	uint64_t rest_ns = ns_beyond(cpu_ns() - began_cpu_ns) * SLICE_RAN_REST
	    + ns_beyond(end_ns - slice_last_ns) * SLICE_TOOK_REST;
	slice_rest_until_ns = opt_mesh_period_ms == 0 ? 0
	                                              : end_ns
	        + (rest_ns < SLICE_REST_NS_MAX ? rest_ns : SLICE_REST_NS_MAX);
	return more;
}

/*
 * From one slice to the next.  Where a signal stops threads that may sleep in calls
 * with a timeout, it has to be known when these began, while there is something to do.
 */
static uint64_t
slice_period_ns(void) {
	uint64_t period = (uint64_t)opt_mesh_period_ms * KQU(1000000);
	/* Less than STOP_LATE_NS. */
	uint64_t look = mesh_quota_get() < QUOTA_PLENTY ? 2 * LOOK_NS
	                                                : LOOK_NS;
	return mesh_barrier_get() == mesh_barrier_signal
	        && (slice_scan.site.bin != NULL
	            || mesh_pass_refused() == mesh_stop_timed)
	        && period > look
	    ? look
	    : period;
}

static uint64_t
slice_ns(void) {
	uint64_t ns = slice_period_ns() / SLICE_SHARE;
	unsigned quota = mesh_quota_get();
	if (quota < MESH_QUOTA_UNIT) {
		ns = ns * quota / MESH_QUOTA_UNIT;
	}
	return ns < SLICE_NS_MIN ? SLICE_NS_MIN
	    : ns > SLICE_NS_MAX  ? SLICE_NS_MAX
	                         : ns;
}

/* Whether a pass was asked for and is not over. */
static bool
request_pending(void) {
	return request_left > 0 || atomic_load_b(&requested, ATOMIC_RELAXED);
}

/* Nanoseconds until the next slice of background thread 0 may run. */
static uint64_t
slice_wait_ns(void) {
	uint64_t period = slice_period_ns();
	if (mesh_quota_get() < QUOTA_PLENTY) {
		/* The program waits for what a slice takes of it. */
	} else if (request_pending()) {
		period /= REQUEST_SPEED;
	} else if (slice_scan.site.bin != NULL) {
		period /= slice_scan.speed;
	}
	uint64_t due = slice_last_ns + period;
	if (due < slice_rest_until_ns) {
		due = slice_rest_until_ns;
	}
	uint64_t now = now_ns();
	return now < due ? due - now : 0;
}

/* When background thread 0 is needed again: in ns, or for waiters before. */
static uint64_t
work_wait_ns(uint64_t ns) {
	uint64_t waiters_ns = mesh_waiter_wait_ns();
	uint64_t wait_ns = ns < waiters_ns ? ns : waiters_ns;
	/* Zero would be a time in the past. */
	return wait_ns > 0 ? wait_ns : 1;
}

uint64_t
mesh_background_work(tsdn_t *tsdn, unsigned ind) {
	mesh_thread_renew(tsdn, ind);
	if (ind != 0) {
		return BACKGROUND_THREAD_INDEFINITE_SLEEP;
	}
	if (mesh_waiter_wait_ns() == 0) {
		malloc_mutex_lock(tsdn, &mesh_mtx);
		mesh_waiter_look();
		malloc_mutex_unlock(tsdn, &mesh_mtx);
	}
	atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
	malloc_mutex_lock(tsdn, &mesh_mtx);
	bool     more = opt_mesh_period_ms >= 0 && !mesh_is_off();
	uint64_t limbo_ns = limbo_run(tsdn);
	uint64_t wait_ns = slice_wait_ns();
	if (more && wait_ns == 0) {
		more = slice_run(tsdn, slice_ns());
		wait_ns = slice_wait_ns();
		mesh_waiter_look();
		if (!more) {
			mesh_splice_rest();
		}
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
		/* A slab that dies now wakes it, if it is not in limbo_ns. */
		atomic_store_b(&slice_asleep, true, ATOMIC_RELAXED);
		wait_ns = BACKGROUND_THREAD_DEFERRED_MAX;
	}
	return work_wait_ns(wait_ns < limbo_ns ? wait_ns : limbo_ns);
}

/* Wakes background thread 0, unless it is at work anyway. */
static void
tick_wake(tsdn_t *tsdn) {
	if (!atomic_load_b(&slice_asleep, ATOMIC_RELAXED)) {
		return;
	}
	background_thread_info_t *info = &background_thread_info[0];
	if (malloc_mutex_trylock(tsdn, &info->mtx)) {
		/* The next tick tries again. */
		atomic_store_u64(&look_due_ns, 0, ATOMIC_RELAXED);
		return;
	}
	if (background_thread_is_started(info)) {
		atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
		background_thread_wakeup_early(info, NULL);
	}
	malloc_mutex_unlock(tsdn, &info->mtx);
}

/*
 * Opens all that meshing needs.  The mesh lock is held.  Returns true if that failed.
 */
static bool
descriptors_open(void) {
	bool err = mesh_splice_open();
	err |= mesh_view_barrier_open();
	err |= mesh_store_open();
	mesh_pagemap_open();
	return err;
}

/* Opens the descriptors that the background thread has asked for. */
static void
tick_open(tsdn_t *tsdn) {
	if (malloc_mutex_trylock(tsdn, &mesh_mtx)) {
		return;
	}
	int  saved_errno = get_errno();
	bool err = descriptors_open();
	mesh_fd_wanted_done();
	if (!err) {
		refused_until_ns = 0;
		refused_pause_ns = 0;
	}
	set_errno(saved_errno);
	malloc_mutex_unlock(tsdn, &mesh_mtx);
}

/* Whether this is a child that may be about to exec or to end. */
static bool
tick_too_early(void) {
	uint32_t left = atomic_load_u32(&child_ticks, ATOMIC_RELAXED);
	if (left == 0 || opt_mesh_period_ms == 0) {
		return false;
	}
	left = now_ns() < child_until_ns ? left - 1 : 0;
	atomic_store_u32(&child_ticks, left, ATOMIC_RELAXED);
	return left > 0;
}

/*
 * How long not to look again after a look has taken so long.  One that had to wait for a
 * lock or a processor is not to put off the next by seconds: until then all threads may
 * have gone to sleep, and no tick comes.
 */
static uint64_t
look_pause_ns(uint64_t took_ns) {
	uint64_t most = 2 * atomic_load_u64(&look_cost_ns, ATOMIC_RELAXED);
	most = most < LOOK_COST_NS_MIN ? LOOK_COST_NS_MIN : most;
	uint64_t cost = took_ns < most ? took_ns : most;
	atomic_store_u64(&look_cost_ns, cost, ATOMIC_RELAXED);
	return cost * LOOK_SHARE;
}

/*
 * Whether enough is free where no parent or child has the memory, too.  Adds how long
 * not to look again: more after each round over the heap that finds too little.
 */
static bool
tick_needed_own(tsdn_t *tsdn, uint64_t *pause_ns) {
	if (!mesh_pagemap_shared() || !mesh_worker_here()) {
		return true;
	}
	if (malloc_mutex_trylock(tsdn, &mesh_mtx)) {
		return false;
	}
	int      saved_errno = get_errno();
	uint64_t begin = now_ns();
	bool     over;
	bool     needed = mesh_scan_holes_own(tsdn, START_HOLES, &over);
	if (needed) {
		own_pause = 1;
	} else if (over && own_pause < LOOK_SHARE) {
		own_pause *= 2;
	}
	*pause_ns += (now_ns() - begin) * own_pause;
	set_errno(saved_errno);
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	return needed;
}

/* Whether there is a reason to mesh. */
static bool
tick_needed(tsdn_t *tsdn) {
	if (!config_stats || opt_mesh_period_ms == 0
	    || atomic_load_b(&slice_needed, ATOMIC_RELAXED)) {
		return true;
	}
	uint64_t begin = now_ns();
	if (begin < atomic_load_u64(&look_due_ns, ATOMIC_RELAXED)) {
		return false;
	}
	bool     needed = mesh_scan_holes(tsdn, START_HOLES) >= START_HOLES;
	uint64_t end = now_ns();
	uint64_t pause = look_pause_ns(end - begin);
	needed = needed && tick_needed_own(tsdn, &pause);
	atomic_store_u64(&look_due_ns, end + pause, ATOMIC_RELAXED);
	return needed;
}

/*
 * Whether a child has to be left alone still, of whose life the size of what it
 * allocates and frees tells: what it only uses for a moment comes from its caches.
 */
static bool
gc_too_early(tsdn_t *tsdn) {
	if (atomic_load_u32(&child_ticks, ATOMIC_RELAXED) == 0) {
		return false;
	}
	uint64_t begin = now_ns();
	if (begin < atomic_load_u64(&look_due_ns, ATOMIC_RELAXED)) {
		return true;
	}
	size_t   before = atomic_load_zu(&child_freed, ATOMIC_RELAXED);
	size_t   freed = mesh_scan_freed(tsdn);
	uint64_t end = now_ns();
	atomic_store_u64(
	    &look_due_ns, end + look_pause_ns(end - begin), ATOMIC_RELAXED);
	if (before == SIZE_MAX) {
		atomic_store_zu(&child_freed, freed, ATOMIC_RELAXED);
		return true;
	}
	if (freed - before < START_HOLES) {
		return true;
	}
	atomic_store_u32(&child_ticks, 0, ATOMIC_RELAXED);
	return false;
}

/* What a slice in a tick may take now; 0 if it is too early for one. */
static uint64_t
tick_ns(void) {
	uint64_t now = now_ns();
	uint64_t since = now - slice_last_ns;
	uint64_t ns = since / SLICE_SHARE;
	if (opt_mesh_period_ms == 0) {
		return SLICE_NS_MIN;
	}
	if (ns < SLICE_NS_MIN || now < slice_rest_until_ns
	    || (slice_scan.site.bin == NULL && !request_pending()
	        && since < (uint64_t)opt_mesh_period_ms * KQU(1000000))) {
		return 0;
	}
	return ns < SLICE_NS_TICK ? ns : SLICE_NS_TICK;
}

void
mesh_tick(tsdn_t *tsdn, arena_t *arena) {
	if (mesh_fd_wanted() && mesh_worker_here()) {
		tick_open(tsdn);
	}
	if (!arena_is_auto(arena) || tick_too_early()) {
		return;
	}
	bool background = have_background_thread && background_thread_enabled();
	if (!background) {
		limbo_tick(tsdn, arena);
	}
	if (opt_mesh_period_ms < 0 || mesh_is_off() || !tick_needed(tsdn)) {
		return;
	}
	if (background) {
		tick_wake(tsdn);
		return;
	}
	if (tsdn_null(tsdn) || !tsd_nominal(tsdn_tsd(tsdn))
	    || malloc_mutex_trylock(tsdn, &mesh_mtx)) {
		return;
	}
	bool     start = false;
	uint64_t ns = tick_ns();
	if (ns > 0 && mesh_worker_here()) {
		/* malloc() sets errno when it fails, free() never. */
		int saved_errno = get_errno();
		if (mesh_settle()) {
			/* Off, or later. */
		} else if (!mesh_worker_wanted()) {
			slice_run(tsdn, ns);
			mesh_waiter_look_all();
		} else if (!mesh_view_pending(tsdn, /* hurry */ false)) {
			/* It opens none itself, and nobody may tick again. */
			(void)descriptors_open();
			start = true;
		}
		set_errno(saved_errno);
	}
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	if (start) {
		mesh_worker_start(tsdn_tsd(tsdn));
	}
}

void
mesh_gc_tick(tsdn_t *tsdn, arena_t *arena) {
	/* Where slices follow each other there are plenty of the others. */
	if (opt_mesh_period_ms > 0 && !gc_too_early(tsdn)) {
		mesh_tick(tsdn, arena);
	}
}

void
mesh_slab_dalloc(tsdn_t *tsdn, arena_t *arena, edata_t *slab) {
	/* free() keeps errno. */
	int saved_errno = get_errno();
	mesh_group_bury(tsdn, arena, slab);
	if (have_background_thread && background_thread_enabled()) {
		tick_wake(tsdn);
	} else if (mesh_limbo_full(arena)) {
		limbo_tick(tsdn, arena);
	}
	set_errno(saved_errno);
}

void
mesh_arena_request(tsdn_t *tsdn, arena_t *arena) {
	if (opt_mesh_period_ms < 0 || !arena_is_auto(arena)) {
		return;
	}
	atomic_store_b(&requested, true, ATOMIC_RELAXED);
	mesh_tick(tsdn, arena);
}

/* For a millisecond, without the mesh lock, which is held before and after. */
static void
pass_sleep(tsdn_t *tsdn) {
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	sleep_ms(1);
	malloc_mutex_lock(tsdn, &mesh_mtx);
}

/*
 * Lets others take the mesh lock, fork for one, and waits until a fork is dealt
 * with.  Returns true if that takes too long.
 */
static bool
pass_yield(tsdn_t *tsdn) {
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	malloc_mutex_lock(tsdn, &mesh_mtx);
	mesh_waiter_look();
	unsigned ms = 0;
	while (mesh_view_pending(tsdn, /* hurry */ true)) {
		pass_sleep(tsdn);
		if (++ms == FORK_WAIT_MS) {
			return true;
		}
	}
	return false;
}

/* Whether there is anything to do in a bin. */
static bool
bin_due_now(tsdn_t *tsdn, arena_t *arena, szind_t binind, unsigned binshard) {
	bin_t *bin = arena_get_bin(arena, binind, binshard);
	size_t left = maps_left();
	malloc_mutex_lock(tsdn, &bin->lock);
	bool due = mesh_scan_due(arena, bin, binind, left);
	malloc_mutex_unlock(tsdn, &bin->lock);
	return due;
}

/* Scans a bin as often as it pays; may wait *busy_ms for threads in all. */
static void
pass_bin(tsdn_t *tsdn, arena_t *arena, szind_t binind, unsigned binshard,
    unsigned *busy_ms) {
	mesh_scan_t scan;
	unsigned    round = 0;
	bool        again;
	do {
		do {
			if (pass_yield(tsdn)) {
				return;
			}
		} while (mesh_view_left_punch(tsdn));
		if (!bin_due_now(tsdn, arena, binind, binshard)
		    || pass_scan_begin(tsdn, &scan, arena, binind, binshard)) {
			return;
		}
		scan.on_request = true;
		do {
			if (pass_yield(tsdn)) {
				scan.refused = true;
			}
		} while (!pass_scan_step(tsdn, &scan, SLICE_NS_MAX));
		again = scan.refused
		    && (scan.why == mesh_stop_blocked
		        || scan.why == mesh_stop_timed)
		    && *busy_ms > 0;
		if (again) {
			(*busy_ms)--;
			pass_sleep(tsdn);
		}
	} while (again || (scan.nmoved > 0 && ++round < FULL_PASS_ROUNDS));
}

/*
 * Carries the scan that slices are at to its end: a bin does not look due any more
 * once its scan has begun.
 */
static void
slice_scan_finish(tsdn_t *tsdn) {
	bool done = false;
	while (slice_scan.site.bin != NULL && !done) {
		if (pass_yield(tsdn)) {
			slice_scan.refused = true;
		}
		/* In between a slice may have finished it. */
		bin_t *bin = slice_scan.site.bin;
		if (bin != NULL
		    && pass_scan_step(tsdn, &slice_scan, SLICE_NS_MAX)) {
			bin_backoff(
			    tsdn, bin, slice_scan.nseen, slice_scan.nmoved);
			done = true;
		}
	}
}

void
mesh_arena_pass(tsdn_t *tsdn, arena_t *arena) {
	if (arena == NULL || !arena_is_auto(arena)) {
		return;
	}
	malloc_mutex_lock(tsdn, &mesh_mtx);
	mesh_limbo_try_again(arena);
	while (!limbo_step(tsdn, arena, SLICE_NS_MAX)) {
		/* Lets others take it, fork for one. */
		malloc_mutex_unlock(tsdn, &mesh_mtx);
		malloc_mutex_lock(tsdn, &mesh_mtx);
	}
	/* Not before: then a slice under way has ended in any case. */
	if (mesh_settle() || !mesh_arena_meshable(arena)) {
		malloc_mutex_unlock(tsdn, &mesh_mtx);
		return;
	}
	/* Whoever asks for a pass has often just freed much. */
	mesh_splice_recount();
	slice_scan_finish(tsdn);
	unsigned busy_ms = BUSY_WAIT_MS;
	for (szind_t i = 0; i < SC_NBINS; i++) {
		if (bin_infos[i].nregs == 1) {
			continue;
		}
		for (unsigned j = 0; j < bin_infos[i].n_shards; j++) {
			pass_bin(tsdn, arena, i, j, &busy_ms);
		}
	}
	mesh_waiter_look_all();
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	mesh_view_start(tsdn);
}

void
mesh_pass_forked(void) {
	uint64_t now = now_ns();
	if (now - forked_ns >= FORK_PAUSE_NS) {
		forked_first_ns = now;
	}
	forked_ns = now;
}

void
mesh_arena_tidy(tsdn_t *tsdn, arena_t *arena) {
	if (!mesh_arena_meshable(arena) || !arena_is_auto(arena)
	    || atomic_load_u64(&arena->mesh.nmeshes, ATOMIC_RELAXED) == 0) {
		return;
	}
	/* The rest of a round under way would not reach everything. */
	malloc_mutex_lock(tsdn, &mesh_mtx);
	bool done = mesh_tidy_begin(tsdn, arena);
	malloc_mutex_unlock(tsdn, &mesh_mtx);
	while (!done) {
		malloc_mutex_lock(tsdn, &mesh_mtx);
		done = tidy_run(tsdn, arena, SLICE_NS_MAX);
		malloc_mutex_unlock(tsdn, &mesh_mtx);
	}
}

void
mesh_pass_prefork(tsdn_t *tsdn) {
	if (slice_scan.site.bin != NULL) {
		slice_resume_bin = slice_scan.site.bin;
		slice_resume_at = mesh_scan_drop(tsdn, &slice_scan);
	}
}

void
mesh_pass_postfork_child(tsdn_t *tsdn) {
	/* Its first slabs are its parent's, too. */
	mesh_pack_stop(tsdn);
	atomic_store_b(&slice_asleep, false, ATOMIC_RELAXED);
	atomic_store_b(&slice_needed, false, ATOMIC_RELAXED);
	atomic_store_b(&requested, false, ATOMIC_RELAXED);
	request_left = 0;
	/* The parent's. */
	mesh_store_frozen_gone();
	forked_ns = 0;
	mesh_pass_forked();
	child_until_ns = forked_ns + CHILD_NS;
	atomic_store_u32(&child_ticks, CHILD_TICKS, ATOMIC_RELAXED);
	atomic_store_zu(&child_freed, SIZE_MAX, ATOMIC_RELAXED);
	own_pause = 1;
}
