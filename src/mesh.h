#ifndef JEMALLOC_INTERNAL_MESH_H
#define JEMALLOC_INTERNAL_MESH_H

/*
 * All that jemalloc's own files may call.  The patches add the calls; what they
 * do is in mesh*.c, and mesh.c opens with the overview.
 *
 * Every call stands behind `config_mesh`, a compile-time constant, so that a
 * build without --enable-mesh is stock jemalloc.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/arena_types.h"
#include "jemalloc/internal/atomic.h"
#include "jemalloc/internal/bin_info.h"
#include "jemalloc/internal/edata.h"
#include "jemalloc/internal/ql.h"
#include "jemalloc/internal/sc.h"
#include "jemalloc/internal/tcache_types.h"
#include "jemalloc/internal/tsd_types.h"

#include <signal.h>

struct bin_s;

/* What keeps writers away from a slab while it is copied (opt.mesh_barrier). */
typedef enum {
	/* The first of the others that this process is permitted. */
	mesh_barrier_auto = 0,
	/*
	 * userfaultfd(2) takes the pages away: who reads or writes there waits, in
	 * the kernel too, and the kernel refuses pages that it must not lose.
	 */
	mesh_barrier_move = 1,
	/* userfaultfd(2) write protection: writers wait, in the kernel too. */
	mesh_barrier_userfaultfd = 2,
	/* A signal stops all other threads; anybody may. */
	mesh_barrier_signal = 3,
	/*
	 * No barrier: loses writes.  Only debug builds accept it, for the tests
	 * that show what the barrier is good for.
	 */
	mesh_barrier_none = 4,
	mesh_barrier_limit = 5
} mesh_barrier_t;

/* A leader and its followers; laid out in mesh_group.h. */
typedef struct mesh_group_s mesh_group_t;
typedef ql_head(mesh_group_t) mesh_group_list_t;

/*
 * What mesh keeps in each bin; guarded by the bin's lock.  32 bytes, with which
 * the size of bin_t becomes a power of two.
 */
typedef struct mesh_bin_s mesh_bin_t;
struct mesh_bin_s {
	/* Every group of this bin; fork walks it. */
	mesh_group_list_t groups;
	/* Descriptors of groups that have ended, for the next ones. */
	mesh_group_list_t groups_free;
	/* Slabs that have died since they were collected (mesh_limbo.c). */
	edata_list_active_t dead;
	/*
	 * The low half of bin->stats.ndalloc when the bin was last scanned; less
	 * than that if the scan has left something to do.
	 */
	uint32_t ndalloc_seen;
	/* ndalloc / 64 when it was looked at last. */
	uint16_t ndalloc_looked;
	/* Looks at it since, and those to pass over before the next scan. */
	uint8_t nlooks;
	uint8_t backoff;
};

/* The rounds of tidying (mesh_tidy.c); guarded by the mesh lock. */
typedef struct mesh_tidy_at_s mesh_tidy_at_t;
struct mesh_tidy_at_s {
	/* The fewest retained pages that were seen since the last round. */
	size_t nretained;
	/* The arena's nmeshes when that began. */
	uint64_t nmeshes;
	/* Pages that the round has still to visit; 0 if none is under way. */
	size_t npages;
	/* The extent that it is at, and where in it. */
	byte_t *base;
	size_t  size;
	size_t  offset;
};

/* Dead slabs (mesh_limbo.c); guarded by the mesh lock unless it says otherwise. */
typedef struct mesh_limbo_s mesh_limbo_t;
struct mesh_limbo_s {
	/* How many there are, in both heaps and the bins' dead; atomic. */
	atomic_zu_t nslabs;
	/* Those that have been collected, by address, and that the kernel let not go. */
	edata_heap_t slabs;
	edata_heap_t kept;
	/* How many slabs there were as those were kept. */
	size_t nseen_kept;
	/* Whether it has refused any since, and such that need no room. */
	bool refused;
	bool refused_whole;
	/* How many were seen at the last look, 0 if none. */
	size_t nseen;
	/* When to look again; and until when they may wait. */
	uint64_t look_ns;
	uint64_t until_ns;
};

/* Of one bin, how it is packed (mesh_pack.c); guarded by the mesh lock. */
typedef struct mesh_pack_s mesh_pack_t;
struct mesh_pack_s {
	/* The bin's ndalloc at the last look, and at which a trial or pause ends. */
	uint64_t ndalloc_looked;
	uint64_t until;
	/* How often the pause has been doubled. */
	unsigned lg_pause;
};

/* What mesh keeps in each arena. */
typedef struct mesh_arena_s mesh_arena_t;
struct mesh_arena_s {
	/*
	 * Custom extent hooks were set once: slabs of theirs may live on after
	 * the hooks are set back, so this never returns to false.
	 */
	atomic_b_t     custom_hooks;
	mesh_limbo_t   limbo;
	mesh_tidy_at_t tidy;
	/* The counters behind mesh_stats_t, field by field. */
	atomic_u64_t npasses;
	atomic_u64_t nmeshes;
	atomic_u64_t nrefused;
	atomic_u64_t time_ns;
	atomic_u64_t time_max_ns;
	atomic_zu_t  groups;
	atomic_zu_t  followers;
	atomic_zu_t  saved;
	atomic_zu_t  saved_max;
	/* Ranges that are frozen; see mesh_group.c. */
	atomic_zu_t frozen;
	/*
	 * Of each bin: memory for its next slabs (an edata_t), and the binary
	 * logarithm of how many slabs the next such memory will be for.
	 */
	atomic_p_t  reserves[SC_NBINS];
	atomic_u8_t reserve_lg[SC_NBINS];
	/* Of each bin: bytes that were left as they are to save mappings. */
	atomic_zu_t withheld[SC_NBINS];
	/*
	 * Of each bin: looks since the program freed fast from it, up to a limit;
	 * mesh_scan_demand() when it could have been scanned last, although it
	 * was in flux.  Both guarded by the mesh lock.
	 */
	uint8_t     calm_looks[SC_NBINS];
	size_t      demand_seen[SC_NBINS];
	mesh_pack_t packs[SC_NBINS];
	/* A bit for each bin that threads shall pack. */
	atomic_u64_t packed;
};

/* Statistics of one arena, or the sum of several. */
typedef struct mesh_stats_s mesh_stats_t;
struct mesh_stats_s {
	/* Searches of a bin that were finished. */
	uint64_t npasses;
	/* Slabs spliced onto the memory of another one. */
	uint64_t nmeshes;
	/* Slabs left as they were because the kernel or a limit said no. */
	uint64_t nrefused;
	/* Time spent in passes, and the longest slice of it, nanoseconds. */
	uint64_t time_ns;
	uint64_t time_max_ns;
	/* Groups now, and their followers. */
	size_t groups;
	size_t followers;
	/* Bytes of physical memory that followers do without, now and at most. */
	size_t saved;
	size_t saved_max;
	/* Bytes more that meshing leaves alone to save mappings, at most. */
	size_t withheld;
	/* Bins of which threads fill the first slabs. */
	size_t packed;
};

/* State of the whole process. */
typedef struct mesh_global_stats_s mesh_global_stats_t;
struct mesh_global_stats_s {
	/*
	 * Mappings of the process, an upper bound (exact when last counted), and
	 * the number at which meshing stops.
	 */
	size_t mappings;
	size_t max_maps;
	/* Bytes of memory in the store, and in frozen generations at most. */
	size_t store;
	/* Number of times that fork froze the store. */
	size_t generation;
	/* Calls of the program's that ended with EINTR by our doing. */
	size_t interrupted;
	/*
	 * Barrier in use, "auto" before there was anything to mesh, and why it is
	 * not the first choice, "" if it is.
	 */
	const char *barrier;
	const char *barrier_reason;
	/* Why meshing is off, "" if it is on. */
	const char *off;
};

extern bool           opt_mesh;
extern ssize_t        opt_mesh_period_ms;
extern mesh_barrier_t opt_mesh_barrier;
extern size_t         opt_mesh_max_maps;
extern bool           opt_mesh_random;

/* The names of mesh_barrier_t, in its order, as opt.mesh_barrier gives them. */
extern const char *const mesh_barrier_names[];

/* Whether fills place regions at random; constant once mesh_boot returned. */
extern bool mesh_placing;

/* mesh.c */

/*
 * Makes ready, with no system call unless an option asks for a certain barrier.
 * Called once, at the end of jemalloc's initialization, single-threaded.  Returns
 * true only when out of memory.
 */
bool mesh_boot(tsdn_t *tsdn);
/*
 * Looks up whether and how this process can mesh, before the first slice or pass;
 * where it cannot, says why in one sentence, and meshing is off.  The mesh lock is
 * held.  Returns true if it is off, or there is no descriptor to find that out.
 */
bool mesh_settle(void);
/* Meshing is off for good; no lock needed. */
bool mesh_is_off(void);
/* A child of a fork may have other rights than its parent; the same lock. */
void mesh_unsettle(void);
/* Notes for good that an arena was given custom extent hooks. */
void mesh_arena_custom_hooks_note(mesh_arena_t *mesh);
/* Adds the counters of one arena to dst; no lock needed. */
void mesh_arena_stats_merge(mesh_arena_t *mesh, mesh_stats_t *dst);
/* Adds src to dst, for sums over arenas (the longest slice is the maximum). */
void mesh_stats_accum(mesh_stats_t *dst, const mesh_stats_t *src);
/* State of the process; no lock needed. */
void mesh_global_stats_read(mesh_global_stats_t *dst);

/* mesh_ehooks.c */

/*
 * Extension of the default extent hooks: sets the THP policy of memory that may
 * be meshed one day, and (debug builds) asserts that no spliced range reaches
 * the page allocator.  Any lock may be held.
 */
void mesh_ehooks_alloc(void *addr, size_t size);
void mesh_ehooks_assert_private(void *addr, size_t size);

/* mesh_group.c */

/*
 * The rest of a bin-level free that found all regions of a held or meshed slab
 * free; its bitmap and nfree have been updated already.  In a follower every
 * free comes here, since the nfree of a follower is nregs - 1 too high: so all
 * other frees need no test more than they had.  The bin lock is held.  Returns
 * true if arena_slab_dalloc() must be called on slab.
 */
JEMALLOC_COLD
bool mesh_dalloc_empty(tsdn_t *tsdn, struct bin_s *bin, edata_t *slab);
/*
 * Number of free regions that the memory behind slab has: a follower's are its
 * leader's.  Takes the bin lock for followers only.
 */
size_t mesh_slab_nfree(tsdn_t *tsdn, const edata_t *slab);

/* mesh_place.c */

/*
 * bin_slab_reg_alloc[_batch]() with the regions chosen at random.  The bin lock
 * is held.
 */
void *mesh_place_one(edata_t *slab, const bin_info_t *bin_info);
void  mesh_place_batch(
     edata_t *slab, const bin_info_t *bin_info, unsigned cnt, void **ptrs);

/* mesh_pack.c */

/*
 * At each garbage collection of the calling thread's caches: switches them off and on
 * as its arena needs it, and ticks.  No lock may be held.
 */
void mesh_pack_event(tsd_t *tsd, tcache_t *tcache);
/* Switches all on, before the thread's caches are laid out anew or emptied. */
void mesh_pack_undo(tsd_t *tsd, tcache_t *tcache);
/*
 * arena_malloc_hard() and arena_dalloc_small() for a class whose cache is off, by mesh
 * or by the user's wish.  No lock may be held.
 */
void *mesh_pack_alloc(tsd_t *tsd, arena_t *arena, tcache_t *tcache, size_t size,
    szind_t binind, bool zero);
void  mesh_pack_dalloc(tsd_t *tsd, tcache_t *tcache, void *ptr, szind_t binind);

/* mesh_pass.c */

/*
 * One bounded slice of work by background thread 0, which holds its info->mtx; the others
 * have little to do.  Returns nanoseconds until it wants to be called again,
 * BACKGROUND_THREAD_DEFERRED_MAX or more if only a tick need wake it.
 */
uint64_t mesh_background_work(tsdn_t *tsdn, unsigned ind);
/*
 * Called once in about a thousand allocation events of an arena, no lock held:
 * wakes background thread 0, or without it runs a small slice itself.
 */
void mesh_tick(tsdn_t *tsdn, arena_t *arena);
/*
 * The same at each garbage collection of a thread's cache, for programs whose caches
 * answer nearly all.
 */
void mesh_gc_tick(tsdn_t *tsdn, arena_t *arena);
/*
 * Releases a leader or follower that has no live region any more: its range will be
 * taken out of the store and given back to the page allocator.  No lock may be held.
 */
JEMALLOC_COLD
void mesh_slab_dalloc(tsdn_t *tsdn, arena_t *arena, edata_t *slab);
/* A full pass over one arena now; no lock may be held. */
void mesh_arena_pass(tsdn_t *tsdn, arena_t *arena);
/*
 * Makes one mapping of each retained extent of one arena now, as far as that can
 * be; no lock may be held.
 */
void mesh_arena_tidy(tsdn_t *tsdn, arena_t *arena);

/*
 * Asks for a pass over all arenas soon, in the background or in ticks; no lock may
 * be held.
 */
void mesh_arena_request(tsdn_t *tsdn, arena_t *arena);

/* mesh_worker.c */

/* Set by conf.c if any source of options names background_thread. */
extern bool mesh_background_thread_named;
/* The program switches background threads on or off. */
void mesh_background_thread_set(tsdn_t *tsdn, bool on);
/*
 * A background thread begins, and ends; and what it shall block of all signals, also
 * while it is made, which may wait for a lock that a stop holds.
 */
void mesh_thread_enter(void);
void mesh_thread_leave(void);
void mesh_thread_signals(sigset_t *set);

/* mesh_reserve.c */

/*
 * pa_alloc() of a slab, from recycled memory or next to other slabs of its class.
 * No lock may be held.  NULL: ask pa_alloc().
 */
edata_t *mesh_reserve_alloc(tsdn_t *tsdn, arena_t *arena, szind_t binind);

/* mesh_fork.c */

/*
 * Fork, in the order of jemalloc_prefork(): 0 takes the mesh lock before any
 * arena lock; 1 runs with every bin locked and gives each spliced range a
 * private view of the store, so that parent and child part by copy-on-write.
 */
void mesh_prefork0(tsdn_t *tsdn);
void mesh_prefork1(tsdn_t *tsdn);
void mesh_postfork_parent(tsdn_t *tsdn);
void mesh_postfork_child(tsdn_t *tsdn);

#endif /* JEMALLOC_INTERNAL_MESH_H */
