#ifndef JEMALLOC_INTERNAL_MESH_SCAN_H
#define JEMALLOC_INTERNAL_MESH_SCAN_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh_batch.h"
#include "jemalloc/internal/mesh_match.h"
#include "jemalloc/internal/mesh_run.h"

/* What a scan does next; each takes one block or a part of it. */
typedef enum {
	/* Bring the frozen members of groups back. */
	mesh_scan_thaw,
	/* List the slabs of the next block. */
	mesh_scan_walk,
	/* Copy their bitmaps, for finding runs. */
	mesh_scan_look,
	/* Sweep for runs. */
	mesh_scan_sweep,
	/* Bring their leaders to the store, then the runs to their leaders. */
	mesh_scan_lead,
	mesh_scan_runs,
	/* Copy the bitmaps again, for matching what is left. */
	mesh_scan_look_again,
	mesh_scan_match,
	/* Carry the groups of the matching out. */
	mesh_scan_groups,
	/* Give pages that nothing lives on back. */
	mesh_scan_purge,
	mesh_scan_done
} mesh_scan_phase_t;

/* One search of one bin. */
typedef struct mesh_scan_s mesh_scan_t;
struct mesh_scan_s {
	/* What is scanned; site.bin is NULL if no scan is under way. */
	mesh_site_t       site;
	mesh_scan_phase_t phase;
	/* One mapping for the arrays below, and its size. */
	byte_t *scratch;
	size_t  scratch_size;
	/* Groups that may have frozen members, and how many are left. */
	mesh_group_t **thaw;
	size_t         nthaw;
	/* Where the walk has come to, where the block began, most slabs of one. */
	uintptr_t at;
	uintptr_t block_at;
	size_t    block_max;

	/*
	 * The block: its slabs by address; how many have been looked at, and
	 * how many of those kept, slabs[0, nkept); of each the live regions;
	 * whether the next one is its neighbour, whether it has followers, and
	 * whether it is in the store; the sum of all live regions.
	 */
	edata_t **slabs;
	size_t    nslabs;
	size_t    nlooked;
	size_t    nkept;
	uint64_t *live;
	uint64_t *next;
	uint64_t *stays;
	uint64_t *stored;
	size_t    nlive;
	/* Slabs in the store may be pinned, so that they stay where they are. */
	bool pins;
	/* Memory for a sweep or a matching, in turns. */
	void *work;

	/* The sweep, the runs that it has found, and the next to carry out. */
	mesh_run_t       *run;
	mesh_run_found_t *found;
	size_t            nfound;
	size_t            found_next;
	/* Slabs that shall lead; the next one to look at. */
	uint64_t *leads;
	size_t    lead_next;
	/*
	 * The way to sweep, and whether it is settled; mappings that it costs, and
	 * slabs that it releases.
	 */
	unsigned attempt;
	bool     final;
	size_t   cost;
	size_t   gain;
	/* The matching, and the group that is to be carried out next. */
	mesh_match_t *match;
	size_t        group;

	/*
	 * The slab to purge next; whether the scan is on request, which purges at
	 * once and keeps nothing for later; whether there is some left to purge.
	 */
	size_t purge_next;
	bool   on_request;
	bool   purge_later;
	/* It goes on with one that was dropped. */
	bool resumed;

	/*
	 * Bytes that could be released in all bins; mappings that the block may
	 * add, and that it may if its runs are poor; and whether those are short.
	 */
	size_t demand;
	size_t share;
	size_t share_poor;
	bool   scarce;
	/* How many times as frequent slices are, as much could be released. */
	unsigned speed;
	/* Much more will be, as the bin is in flux; or was, since the scan began. */
	bool flux;
	bool overtaken;

	/* Slabs expected and seen; ranges moved, of the block and in all. */
	size_t nexpected;
	size_t nseen;
	size_t nblock_moved;
	size_t nmoved;
	/* Bytes that are left because mappings are short. */
	size_t withheld;
	/* Why something was refused; whether that was all, so that it ends. */
	const char *why;
	unsigned    nrefused;
	bool        refused;
};

/*
 * Begins a scan of a bin.  Returns true if there is nothing to scan, or, with
 * scan->why set, no memory for it.  Like the others with the mesh lock held, and
 * no other.
 */
bool mesh_scan_begin(tsdn_t *tsdn, mesh_scan_t *scan, arena_t *arena,
    szind_t binind, unsigned binshard);
/* Goes on for about ns.  Returns true when the scan has ended. */
bool mesh_scan_step(tsdn_t *tsdn, mesh_scan_t *scan, uint64_t ns);
/*
 * Gives up all that a scan has.  Returns the place from which one that begins anew has
 * to go on.
 */
uintptr_t mesh_scan_drop(tsdn_t *tsdn, mesh_scan_t *scan);
void      mesh_scan_resume(mesh_scan_t *scan, uintptr_t at);

/*
 * Whether a scan of the bin may bring something: regions were freed since the
 * last one that found all there was, something waits to be done, or there are more
 * mappings left, of which it was short.  The bin lock is held.
 */
bool mesh_scan_due(
    arena_t *arena, struct bin_s *bin, szind_t binind, size_t left);

/*
 * Whether so many mappings are left that none is kept for what releases more; no lock
 * needed.
 */
bool mesh_scan_maps_plenty(void);

/*
 * Bytes that a bin could do without if its objects filled all slabs; and whether
 * there is hope that its slabs mesh.  It is locked.
 */
size_t mesh_scan_waste(const struct bin_s *bin, szind_t binind, bool *meshes);
/* The same, but 0 if there is no hope. */
size_t mesh_scan_demand(const struct bin_s *bin, szind_t binind);

/* Of all bins that may be meshed, bytes; nothing without statistics. */
typedef struct {
	/* mesh_scan_demand() of one of them, and of the others. */
	size_t own;
	size_t others;
	/* All their slabs. */
	size_t slabs;
} mesh_demand_t;

/* Sums it up; own is the one, or NULL.  Takes the bin locks. */
void mesh_scan_demand_all(
    tsdn_t *tsdn, mesh_demand_t *sum, const struct bin_s *own);

/*
 * Bytes that are free inside of all slabs that may be meshed, about, or some number
 * from enough on; nothing without statistics.  Waits for no lock.
 */
size_t mesh_scan_holes(tsdn_t *tsdn, size_t enough);
/*
 * Whether so many bytes are free inside of slabs that are shared with no parent or
 * child, or none of these is left; a look at the next few slabs, *over if those were
 * the last ones of all.  The mesh lock is held.
 */
bool mesh_scan_holes_own(tsdn_t *tsdn, size_t enough, bool *over);
/* Bytes that were ever freed from all these; the same. */
size_t mesh_scan_freed(tsdn_t *tsdn);

#endif /* JEMALLOC_INTERNAL_MESH_SCAN_H */
