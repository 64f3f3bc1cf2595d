/*
 * The scan: finds the slabs of one bin that can share memory, and has that carried
 * out.
 *
 * It goes through the bin's non-full slabs in the order of their addresses, block
 * by block, so that spliced ranges lie close together: then neighbours are one
 * mapping, and fork finds them in few places.  Of each block it copies the live
 * bitmaps, under the bin lock, some hundred slabs at a time, and without it
 *
 *   - sweeps for runs (mesh_run.c), which cost one mapping for many slabs;
 *   - matches all that is left (mesh_match.c), slab by slab;
 *   - purges pages inside slabs (mesh_purge.c), which costs no mapping.
 *
 * Mappings are scarce.  What the budget leaves is shared among all blocks by what
 * each could release.  Where that is plenty, runs of two are good enough, and all
 * that is left is matched.  Where it is not, only the longest runs are taken at
 * first, then shorter ones until the block's share is used up; and half of the
 * slabs may lead, as emptier leaders make longer runs.  Those that release hardly
 * more than a slab each get the first quarter of the budget only: they would keep
 * theirs for long, and a heap that becomes sparser makes more of the rest.
 *
 * Called by mesh_pass, under the mesh lock, in slices.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_group.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_pin.h"
#include "jemalloc/internal/mesh_purge.h"
#include "jemalloc/internal/mesh_scan.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_walk.h"

/* Most slabs of a block: enough for good matches, few enough to lie close. */
#define BLOCK_SLABS_MAX (ZU(1) << 15)
/*
 * Ways to sweep, from the one that releases most to the one that costs least: the
 * shortest stretches of neighbours that it takes.  The first has few leaders, the
 * second some more, and of all others half of the slabs may lead.
 */
static const uint8_t attempt_min[] = {
    1, 1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
#define ATTEMPTS (sizeof(attempt_min) / sizeof(attempt_min[0]))
/*
 * So many neighbours of leaders lead, too, although nothing follows them yet: it
 * costs a copy each, and saves two mappings.
 */
#define LEAD_GAP_MAX 3
#define LEAD_GAP_MAX_SCARCE 48
/* Runs of one batch: a writer may have to wait for all of them. */
#define BATCH_RUNS (16 * mesh_batch_times())
/*
 * Slices are more frequent, by these factors, if one byte in so many could be
 * released.
 */
#define URGENT_SHARE 8
#define URGENT_SPEED 4
#define VERY_URGENT_SHARE 4
#define VERY_URGENT_SPEED 8
/* With fewer partners for a slab on average there is nothing to be had. */
#define PARTNERS_MIN 0.01
/* Slabs that are looked at in one hold of the bin lock, some ten microseconds. */
#define LOOK_SLABS 128
/* Slabs in one look for what a process has for itself: some hundred microseconds. */
#define OWN_SLABS 256
/* Bitmap tests between two looks at the clock. */
#define MATCH_WORK 20000
/*
 * Most followers of a leader that may follow another one: each has to move, and
 * only one slab is released.
 */
#define UNIT_FOLLOWERS_MAX 4

/*
 * Where mappings are short, a scan stops once one slab in so many was freed from
 * since it began, unless it is on request.
 */
#define OVERTAKEN_SHARE 8

/*
 * Where mappings are short, runs are poor that release less than POOR_GAIN + 1 slabs
 * for POOR_GAIN of them, and get one of POOR_SHARE only, unless on request.
 */
#define POOR_SHARE 4
#define POOR_GAIN 4

/*
 * A bin in which much was left to save mappings is scanned again when so many more
 * are left as is one of this share of all.
 */
#define SCARCE_MORE_SHARE 16

/* Mappings that were left after the last scan that ran short of them. */
static size_t scarce_left;

static unsigned
scan_nwords(const mesh_scan_t *scan) {
	return (unsigned)bin_infos[scan->site.binind].bitmap_info.ngroups;
}

static size_t
scan_size(const mesh_scan_t *scan) {
	return bin_infos[scan->site.binind].slab_size;
}

bool
mesh_scan_due(arena_t *arena, bin_t *bin, szind_t binind, size_t left) {
	const bin_info_t *info = &bin_infos[binind];
	return !config_stats
	    || atomic_load_zu(&arena->mesh.frozen, ATOMIC_RELAXED) > 0
	    || (atomic_load_zu(&arena->mesh.withheld[binind], ATOMIC_RELAXED)
	            > 0
	        && left
	            > scarce_left + mesh_splice_maps_max() / SCARCE_MORE_SHARE)
	    || ((uint32_t)bin->stats.ndalloc != bin->mesh.ndalloc_seen
	        && bin->stats.nonfull_slabs >= 2
	        && bin->stats.curslabs * info->nregs - bin->stats.curregs
	            >= info->nregs);
}

bool
mesh_scan_maps_plenty(void) {
	return mesh_splice_maps() < mesh_splice_maps_max() / POOR_SHARE;
}

/*
 * Whether hardly any two of n slabs of nregs regions mesh, if nlive regions are
 * spread evenly over them: each of a slab's regions would have to be free in the
 * other one, too.
 */
static bool
slabs_hopeless(size_t n, size_t nlive, unsigned nregs) {
	double share_free = 1 - (double)nlive / (double)(n * nregs);
	double partners = (double)n;
	for (size_t i = nlive / n; i > 0 && partners > PARTNERS_MIN; i--) {
		partners *= share_free;
	}
	return partners <= PARTNERS_MIN;
}

size_t
mesh_scan_waste(const bin_t *bin, szind_t binind, bool *meshes) {
	const bin_info_t *info = &bin_infos[binind];
	size_t            n = bin->stats.nonfull_slabs;
	size_t            nfull = (bin->stats.curslabs - n) * info->nregs;
	size_t            nlive = bin->stats.curregs - nfull;
	*meshes = false;
	if (n > bin->stats.curslabs || nfull > bin->stats.curregs
	    || nlive >= n * info->nregs) {
		return 0;
	}
	*meshes = !slabs_hopeless(n, nlive, info->nregs);
	return (n - nlive / info->nregs) * info->slab_size;
}

size_t
mesh_scan_demand(const bin_t *bin, szind_t binind) {
	bool   meshes;
	size_t waste = mesh_scan_waste(bin, binind, &meshes);
	return meshes ? waste : 0;
}

/*
 * A bin of all arenas that may be meshed, which begins as {0}; there are none without
 * statistics.
 */
typedef struct {
	bin_t   *bin;
	unsigned arena_ind;
	szind_t  binind;
	unsigned shard;
} bin_place_t;

/* Moves on to the next one.  Returns false if that was the last. */
static bool
bin_place_next(tsdn_t *tsdn, bin_place_t *place) {
	if (place->bin != NULL
	    && ++place->shard == bin_infos[place->binind].n_shards) {
		place->shard = 0;
		place->binind++;
	}
	for (; config_stats && place->arena_ind < manual_arena_base;
	     place->arena_ind++, place->binind = 0, place->shard = 0) {
		arena_t *arena = arena_get(tsdn, place->arena_ind, false);
		if (mesh_arena_meshable(arena) && place->binind < SC_NBINS) {
			place->bin = arena_get_bin(
			    arena, place->binind, place->shard);
			return true;
		}
	}
	return false;
}

void
mesh_scan_demand_all(tsdn_t *tsdn, mesh_demand_t *sum, const bin_t *own) {
	bin_place_t at = {0};
	memset(sum, 0, sizeof(*sum));
	while (bin_place_next(tsdn, &at)) {
		const bin_info_t *info = &bin_infos[at.binind];
		if (info->nregs == 1) {
			continue;
		}
		malloc_mutex_lock(tsdn, &at.bin->lock);
		size_t bytes = mesh_scan_demand(at.bin, at.binind);
		size_t slabs = at.bin->stats.curslabs * info->slab_size;
		malloc_mutex_unlock(tsdn, &at.bin->lock);
		*(at.bin == own ? &sum->own : &sum->others) += bytes;
		sum->slabs += slabs;
	}
}

/*
 * Read without the lock, on which a thread may sleep that only wants to know whether it
 * has to do something; so they may be of two moments, and a few slabs too many.
 */
static size_t
bin_holes(const bin_t *bin, szind_t binind) {
	size_t slabs = *(const volatile size_t *)&bin->stats.curslabs
	    * bin_infos[binind].slab_size;
	size_t live = *(const volatile size_t *)&bin->stats.curregs
	    * bin_infos[binind].reg_size;
	return slabs > live ? slabs - live : 0;
}

size_t
mesh_scan_holes(tsdn_t *tsdn, size_t enough) {
	bin_place_t at = {0};
	size_t      holes = 0;
	while (holes < enough && bin_place_next(tsdn, &at)) {
		if (bin_infos[at.binind].nregs > 1) {
			holes += bin_holes(at.bin, at.binind);
		}
	}
	return holes;
}

/* A hint, like all that is known of slabs without the bin lock. */
static size_t
slab_holes_own(const edata_t *slab) {
	edata_t seen;
	seen.e_bits = *(const volatile uint64_t *)&slab->e_bits;
	szind_t binind = edata_szind_get_maybe_invalid(&seen);
	if (!edata_mesh_nonfull_get(&seen) || binind >= SC_NBINS
	    || bin_infos[binind].nregs == 1) {
		return 0;
	}
	const bin_info_t *info = &bin_infos[binind];
	return mesh_pagemap_glance(edata_addr_get(slab), info->slab_size,
	           edata_mesh_frozen_get(&seen))
	    ? edata_nfree_get(&seen) * info->reg_size
	    : 0;
}

bool
mesh_scan_holes_own(tsdn_t *tsdn, size_t enough, bool *over) {
	/* Stacks may be small; the mesh lock guards these. */
	static edata_t  *slabs[OWN_SLABS];
	static uintptr_t at;
	static size_t    holes;
	*over = false;
	mesh_pagemap_open();
	if (mesh_pagemap_alone()) {
		return true;
	}
	size_t n = mesh_walk(tsdn, 0, SC_NBINS, &at, slabs, OWN_SLABS);
	mesh_pagemap_glance_begin();
	for (size_t i = 0; i < n; i++) {
		holes += slab_holes_own(slabs[i]);
	}
	bool found = holes >= enough;
	*over = (at == UINTPTR_MAX);
	if (found || *over) {
		at = 0;
		holes = 0;
	}
	return found;
}

size_t
mesh_scan_freed(tsdn_t *tsdn) {
	bin_place_t at = {0};
	size_t      freed = 0;
	while (bin_place_next(tsdn, &at)) {
		freed += *(const volatile uint64_t *)&at.bin->stats.ndalloc
		    * bin_infos[at.binind].reg_size;
	}
	return freed;
}

/*
 * Reads what all bins demand, but of the scan's own one only for what is yet to
 * come; notes whether it is much.
 */
static void
scan_demand_read(tsdn_t *tsdn, mesh_scan_t *scan) {
	mesh_demand_t sum;
	mesh_scan_demand_all(tsdn, &sum, scan->site.bin);
	size_t demand = sum.others + sum.own;
	scan->speed = demand > sum.slabs / VERY_URGENT_SHARE ? VERY_URGENT_SPEED
	    : demand > sum.slabs / URGENT_SHARE              ? URGENT_SPEED
	                                                     : 1;
	size_t passed = scan->nseen - scan->nslabs;
	if (passed < scan->nexpected) {
		sum.own = (size_t)((double)sum.own
		    * (double)(scan->nexpected - passed)
		    / (double)scan->nexpected);
	}
	scan->demand = sum.others + sum.own;
}

/* Takes in what a batch has come to.  Returns whether the scan may go on. */
static bool
scan_batched(mesh_scan_t *scan, const mesh_batch_result_t *result) {
	scan->nmoved += result->nmoved;
	scan->nblock_moved += result->nmoved;
	scan->share -= result->nmaps < scan->share ? result->nmaps
	                                           : scan->share;
	if (result->nmoved > 0
	    && (scan->why == NULL || !mesh_refusal_is_local(scan->why))) {
		scan->why = NULL;
	}
	if (result->why != NULL) {
		scan->why = result->why;
		scan->nrefused += result->nrefused;
		/* Some memory that may not move is no reason to stop. */
		scan->refused = result->nmoved == 0
		    && !mesh_refusal_is_local(result->why);
	}
	return !scan->refused;
}

/******************************************************************************/
/* Begin and end. */

/* Notes the groups of the bin; the bin lock is held. */
static void
scan_collect_groups(mesh_scan_t *scan, size_t max) {
	mesh_group_t *group;
	ql_foreach (group, &scan->site.bin->mesh.groups, link) {
		if (scan->nthaw == max) {
			break;
		}
		scan->thaw[scan->nthaw++] = group;
	}
}

/* Where the arrays lie in the scratch memory; returns its size. */
static size_t
scan_lay_out(mesh_scan_t *scan, size_t nthaw) {
	unsigned nregs = bin_infos[scan->site.binind].nregs;
	size_t   n = scan->block_max;
	size_t   match_size = mesh_match_size(nregs, n);
	size_t   run_size = mesh_run_size(nregs, n);
	size_t   line_size = mesh_run_nwords(n) * sizeof(uint64_t);
	byte_t  *at = scan->scratch;
	/* First what has to be aligned. */
	scan->work = at;
	at += match_size > run_size ? match_size : run_size;
	scan->next = (uint64_t *)at;
	at += line_size;
	scan->stays = (uint64_t *)at;
	at += line_size;
	scan->stored = (uint64_t *)at;
	at += line_size;
	scan->leads = (uint64_t *)at;
	at += line_size;
	scan->live = (uint64_t *)at;
	at += n * scan_nwords(scan) * sizeof(uint64_t);
	scan->slabs = (edata_t **)at;
	at += n * sizeof(edata_t *);
	scan->found = (mesh_run_found_t *)at;
	at += ALIGNMENT_CEILING(n * sizeof(mesh_run_found_t), sizeof(void *));
	scan->thaw = (mesh_group_t **)at;
	at += nthaw * sizeof(mesh_group_t *);
	return (size_t)(at - scan->scratch);
}

bool
mesh_scan_begin(tsdn_t *tsdn, mesh_scan_t *scan, arena_t *arena, szind_t binind,
    unsigned binshard) {
	bin_t *bin = arena_get_bin(arena, binind, binshard);
	memset(scan, 0, sizeof(*scan));
	scan->speed = 1;
	mesh_splice_look();
	malloc_mutex_lock(tsdn, &bin->lock);
	/* A hint; the lock is dropped for the memory to list them. */
	size_t max = config_stats ? bin->stats.nonfull_slabs : BLOCK_SLABS_MAX;
	bin->mesh.ndalloc_seen = (uint32_t)bin->stats.ndalloc;
	malloc_mutex_unlock(tsdn, &bin->lock);
	size_t nthaw = atomic_load_zu(&arena->mesh.frozen, ATOMIC_RELAXED) > 0
	    ? atomic_load_zu(&arena->mesh.groups, ATOMIC_RELAXED)
	    : 0;
	if (max < 2 && nthaw == 0) {
		return true;
	}

	scan->pins = mesh_pin_found();
	scan->site.arena = arena;
	scan->site.binind = binind;
	scan->site.binshard = binshard;
	scan->nexpected = max;
	/* Blocks of equal size, and some room for slabs that come meanwhile. */
	size_t nblocks = (max + BLOCK_SLABS_MAX - 1) / BLOCK_SLABS_MAX;
	scan->block_max = max / (nblocks > 0 ? nblocks : 1) + 64;
	scan->scratch_size = PAGE_CEILING(scan_lay_out(scan, nthaw));
	bool commit = true;
	scan->scratch = (byte_t *)pages_map(
	    NULL, scan->scratch_size, PAGE, &commit);
	if (scan->scratch == NULL) {
		scan->why = mesh_refusal_name(get_errno());
		scan->refused = true;
		return true;
	}
	scan_lay_out(scan, nthaw);
	scan->site.bin = bin;
	malloc_mutex_lock(tsdn, &bin->lock);
	scan_collect_groups(scan, nthaw);
	malloc_mutex_unlock(tsdn, &bin->lock);
	return false;
}

/* Whether the bin will be scanned again, as so many ranges have moved. */
static bool
scan_moved_much(const mesh_scan_t *scan, size_t nmoved) {
	return nmoved * 32 > scan->nseen;
}

/* Gives up its memory; if it leaves something to do, so that the bin is due again. */
static void
scan_leave(tsdn_t *tsdn, mesh_scan_t *scan, size_t nleft) {
	bin_t *bin = scan->site.bin;
	mesh_store_windows_trim();
	mesh_batch_end(tsdn, &scan->site);
	pages_unmap(scan->scratch, scan->scratch_size);
	malloc_mutex_lock(tsdn, &bin->lock);
	bin->mesh.ndalloc_seen -= (uint32_t)nleft;
	malloc_mutex_unlock(tsdn, &bin->lock);
	scan->site.bin = NULL;
}

uintptr_t
mesh_scan_drop(tsdn_t *tsdn, mesh_scan_t *scan) {
	scan_leave(tsdn, scan, scan->nexpected);
	return scan->block_at;
}

void
mesh_scan_resume(mesh_scan_t *scan, uintptr_t at) {
	scan->at = at;
	scan->resumed = (at > 0);
}

static void
scan_end(tsdn_t *tsdn, mesh_scan_t *scan) {
	arena_t *arena = scan->site.arena;
	atomic_fetch_add_u64(&arena->mesh.npasses, 1, ATOMIC_RELAXED);
	atomic_store_zu(&arena->mesh.withheld[scan->site.binind],
	    scan->withheld, ATOMIC_RELAXED);
	bool short_of_maps = (scan->withheld > 0);
	if (short_of_maps && mesh_splice_left(&scarce_left)) {
		scarce_left = 0;
	}
	/* Whether it will bring more to scan again, though nothing is freed. */
	bool again = (scan->why != NULL && !short_of_maps) || scan->flux
	    || scan->purge_later || scan->resumed
	    || scan_moved_much(scan, scan->nmoved);
	scan_leave(tsdn, scan, again ? scan->nseen : 0);
}

/******************************************************************************/
/* Blocks. */

/* Lists some slabs more.  Returns true when the block is complete. */
static bool
scan_walk(tsdn_t *tsdn, mesh_scan_t *scan) {
	if (scan->nslabs == 0) {
		scan->block_at = scan->at;
	}
	scan->nslabs += mesh_walk(tsdn, arena_ind_get(scan->site.arena),
	    scan->site.binind, &scan->at, &scan->slabs[scan->nslabs],
	    scan->block_max - scan->nslabs);
	return scan->nslabs == scan->block_max || scan->at == UINTPTR_MAX;
}

static void
scan_look_begin(mesh_scan_t *scan, mesh_scan_phase_t phase) {
	size_t line_size = mesh_run_nwords(scan->block_max) * sizeof(uint64_t);
	memset(scan->next, 0, line_size);
	memset(scan->stays, 0, line_size);
	memset(scan->stored, 0, line_size);
	scan->nlooked = 0;
	scan->nkept = 0;
	scan->nblock_moved = 0;
	scan->nlive = 0;
	scan->phase = phase;
}

static bool
bit_get(const uint64_t *bits, size_t i) {
	return (bits[i / 64] >> (i % 64)) & 1;
}

static void
bit_set(uint64_t *bits, size_t i) {
	bits[i / 64] |= UINT64_C(1) << (i % 64);
}

/*
 * Forgets those of the slabs up to stop that are shared with another process.  A hint:
 * they may be anything by now.
 */
static void
scan_look_shared(mesh_scan_t *scan, size_t stop) {
	mesh_pagemap_glance_begin();
	for (size_t i = scan->nlooked; i < stop; i++) {
		edata_t *slab = scan->slabs[i];
		if (edata_mesh_role_get(slab) == edata_mesh_private
		    && !mesh_pagemap_glance(edata_addr_get(slab),
		        scan_size(scan), /* view */ false)) {
			scan->slabs[i] = NULL;
		}
	}
}

/*
 * Copies the bitmaps of some slabs, and forgets those that are no candidates any
 * more.  Returns true when all are done.
 */
static bool
scan_look(tsdn_t *tsdn, mesh_scan_t *scan) {
	unsigned nwords = scan_nwords(scan);
	size_t   stop = scan->nlooked + LOOK_SLABS;
	if (stop > scan->nslabs) {
		stop = scan->nslabs;
	}
	if (!mesh_pagemap_alone()) {
		scan_look_shared(scan, stop);
	}
	malloc_mutex_lock(tsdn, &scan->site.bin->lock);
	for (; scan->nlooked < stop; scan->nlooked++) {
		edata_t *slab = scan->slabs[scan->nlooked];
		size_t   i = scan->nkept;
		if (slab == NULL || !mesh_batch_pickable(&scan->site, slab)) {
			continue;
		}
		scan->nkept++;
		scan->slabs[i] = slab;
		mesh_group_live(slab, &scan->live[i * nwords]);
		for (unsigned w = 0; w < nwords; w++) {
			scan->nlive += popcount_lu(scan->live[i * nwords + w]);
		}
		if (mesh_group_get(slab) != NULL) {
			bit_set(scan->stored, i);
		}
		/* Of pages in the store nobody tells whether they are pinned. */
		if (mesh_group_nfollowers(slab) > 0
		    || (mesh_group_get(slab) != NULL && scan->pins)) {
			bit_set(scan->stays, i);
		}
		if (i > 0
		    && (byte_t *)edata_addr_get(scan->slabs[i - 1])
		            + scan_size(scan)
		        == edata_addr_get(slab)) {
			bit_set(scan->next, i - 1);
		}
	}
	malloc_mutex_unlock(tsdn, &scan->site.bin->lock);
	if (scan->nlooked < scan->nslabs) {
		return false;
	}
	scan->nslabs = scan->nkept;
	return true;
}

/* As few slabs as could hold all that is live in the block. */
static size_t
block_nneeded(const mesh_scan_t *scan) {
	unsigned nregs = bin_infos[scan->site.binind].nregs;
	return (scan->nlive + nregs - 1) / nregs;
}

/* Whether so much was freed since the scan began that it should begin anew. */
static bool
scan_overtaken(tsdn_t *tsdn, const mesh_scan_t *scan) {
	bin_t *bin = scan->site.bin;
	malloc_mutex_lock(tsdn, &bin->lock);
	uint32_t freed = (uint32_t)bin->stats.ndalloc - bin->mesh.ndalloc_seen;
	bool     overtaken = config_stats
	    && freed > bin->stats.nonfull_slabs / OVERTAKEN_SHARE;
	malloc_mutex_unlock(tsdn, &bin->lock);
	return overtaken;
}

/* Gives the block its share of the mappings, by what all could release now. */
static void
block_share(tsdn_t *tsdn, mesh_scan_t *scan) {
	scan_demand_read(tsdn, scan);
	size_t n = scan->nslabs - block_nneeded(scan);
	size_t bytes = n * scan_size(scan);
	size_t room;
	if (mesh_splice_left(&room)) {
		scan->why = mesh_refusal_name(get_errno());
		scan->refused = true;
		return;
	}
	if (scan->demand < bytes) {
		scan->demand = bytes;
	}
	scan->share = bytes == 0
	    ? 0
	    : (size_t)((double)room * (double)bytes / (double)scan->demand);
	scan->scarce = scan->share < MESH_MAPS_PER_SPLICE * n;
	if (scan->scarce && scan->flux) {
		/* The next scan will have better use for most. */
		scan->share /= 8;
	} else if (scan->scarce && !scan->on_request
	    && scan_overtaken(tsdn, scan)) {
		scan->overtaken = true;
		scan->share = 0;
	}
	size_t max = mesh_splice_maps_max();
	size_t kept = scan->on_request ? 0 : max - max / POOR_SHARE;
	scan->share_poor = room <= kept
	    ? 0
	    : (size_t)((double)scan->share * (double)(room - kept)
	        / (double)room);
}

/*
 * Begins a sweep.  With few leaders most is released; with more of them, which are
 * emptier, and without short runs less is, but with fewer mappings.
 */
static void
block_sweep_begin(mesh_scan_t *scan) {
	unsigned nregs = bin_infos[scan->site.binind].nregs;
	size_t   needed = block_nneeded(scan);
	/* Slabs do not fill up completely. */
	size_t few = needed + needed / 8 + 1;
	size_t many = scan->nslabs / 2;
	size_t nleaders = scan->attempt == 0 || few > many ? few
	    : scan->attempt == 1                           ? (few + many) / 2
	                                                   : many;
	scan->run = mesh_run_begin(scan->work, nregs, scan->nslabs, scan->live,
	    scan->next, scan->stays);
	mesh_run_sweep(scan->run, nleaders, attempt_min[scan->attempt]);
	scan->cost = 0;
	scan->gain = 0;
	scan->nfound = 0;
	scan->found_next = 0;
	scan->lead_next = 0;
	memset(scan->leads, 0,
	    mesh_run_nwords(scan->block_max) * sizeof(uint64_t));
}

/*
 * The slabs that shall lead from i on, with small gaps between them: sets *end to
 * where they end, and returns where they begin; both are nslabs if there are none.
 */
static size_t
block_leads_next(const mesh_scan_t *scan, size_t i, size_t *end) {
	size_t n = scan->nslabs;
	size_t gap_max = scan->scarce ? LEAD_GAP_MAX_SCARCE : LEAD_GAP_MAX;
	while (
	    i < n && (!bit_get(scan->leads, i) || bit_get(scan->stored, i))) {
		i++;
	}
	*end = i;
	size_t gap = 0;
	for (size_t j = i; j < n && gap <= gap_max && !bit_get(scan->stored, j);
	     j++) {
		if (bit_get(scan->leads, j)) {
			gap = 0;
			*end = j + 1;
		} else {
			gap++;
		}
		if (!bit_get(scan->next, j)) {
			break;
		}
	}
	return i;
}

/* Mappings that the leaders of the runs will add. */
static size_t
block_leads_cost(const mesh_scan_t *scan) {
	size_t cost = 0;
	for (size_t i = 0, end; i < scan->nslabs; i = end) {
		i = block_leads_next(scan, i, &end);
		cost += i < end ? MESH_MAPS_PER_SPLICE : 0;
	}
	return cost;
}

/* Takes run i of those found into account. */
static void
found_count(mesh_scan_t *scan, size_t i) {
	const mesh_run_found_t *found = &scan->found[i];
	for (uint32_t j = 0; j < found->n; j++) {
		bit_set(scan->leads, found->leader + j);
	}
	/* Next to the run before it costs one mapping less. */
	bool beside = i > 0 && found->follower + found->n == found[-1].follower
	    && bit_get(scan->next, found[-1].follower - 1);
	scan->cost += beside ? 1 : MESH_MAPS_PER_SPLICE;
	scan->gain += found->n;
}

/* The next way to sweep, or the last one again. */
static void
block_sweep_again(mesh_scan_t *scan, bool next) {
	scan->final = !next;
	scan->attempt += next ? 1 : -1;
	block_sweep_begin(scan);
}

/* Whether the mappings of the block's share do not suffice for what is found. */
static bool
block_exceeds(const mesh_scan_t *scan) {
	/* To count the leaders' takes long. */
	size_t leads = scan->nfound % 32 == 0 ? block_leads_cost(scan) : 0;
	return scan->scarce && scan->cost + leads > scan->share;
}

/*
 * Looks for one run more.  If all together turn out to need more mappings than
 * there are, begins anew in a way that needs less; if that leaves too many unused,
 * goes back, and takes only as many runs as there are mappings for.  Returns true
 * when all are found.
 */
static bool
block_sweep(mesh_scan_t *scan) {
	bool              last = (scan->attempt == ATTEMPTS - 1);
	mesh_run_found_t *found = &scan->found[scan->nfound];
	if (!mesh_run_step(scan->run, found)) {
		if (!scan->scarce || scan->final) {
			return true;
		}
		size_t cost = scan->cost + block_leads_cost(scan);
		if (cost > scan->share && !last) {
			block_sweep_again(scan, /* next */ true);
			return false;
		}
		if (cost < scan->share / 2 && scan->attempt > 0) {
			block_sweep_again(scan, /* next */ false);
			return false;
		}
		return true;
	}
	if (found->n == 0) {
		return false;
	}
	found_count(scan, scan->nfound++);
	if (block_exceeds(scan)) {
		if (scan->final || last) {
			return true;
		}
		block_sweep_again(scan, /* next */ true);
	}
	return false;
}

/* Notes which slabs lead and what the runs cost, of those that are found. */
static void
block_found_count(mesh_scan_t *scan) {
	memset(scan->leads, 0,
	    mesh_run_nwords(scan->block_max) * sizeof(uint64_t));
	scan->cost = 0;
	scan->gain = 0;
	for (size_t i = 0; i < scan->nfound; i++) {
		found_count(scan, i);
	}
}

/*
 * Where mappings are short, forgets the last runs until the rest can be carried
 * out as a whole: leaders that nothing follows would be a waste of them.
 */
static void
block_fit(mesh_scan_t *scan) {
	if (!scan->scarce) {
		return;
	}
	size_t cost = scan->cost + block_leads_cost(scan);
	while (scan->nfound > 0) {
		if (cost <= scan->share) {
			if (scan->share <= scan->share_poor
			    || scan->gain * POOR_GAIN
			        >= cost * (POOR_GAIN + 1)) {
				break;
			}
			scan->share = scan->share_poor;
		} else {
			scan->nfound -= scan->nfound / 8 + 1;
			block_found_count(scan);
			cost = scan->cost + block_leads_cost(scan);
		}
	}
}

/* Brings the next leaders to the store.  Returns true when that is done. */
static bool
block_lead(tsdn_t *tsdn, mesh_scan_t *scan) {
	/* Stacks may be small; the mesh lock guards this. */
	static edata_t *slabs[MESH_BATCH_PAIRS];
	unsigned        max = mesh_batch_pairs_max(&scan->site);
	unsigned        n = 0;
	for (unsigned k = 0; k < BATCH_RUNS && n < max; k++) {
		size_t end;
		size_t i = block_leads_next(scan, scan->lead_next, &end);
		for (; i < end && n < max; i++) {
			slabs[n++] = scan->slabs[i];
			bit_set(scan->stored, i);
		}
		scan->lead_next = i;
	}
	if (n > 0) {
		mesh_batch_result_t result = mesh_batch_lead(
		    tsdn, &scan->site, slabs, n);
		/* They have moved, but nothing is released. */
		result.nmoved = 0;
		scan_batched(scan, &result);
	}
	return scan->lead_next == scan->nslabs;
}

/*
 * Carries out the next runs, or a part of one: they were found from the last
 * follower downwards, and go in the order of addresses.  Returns true when no run
 * is left.
 */
static bool
block_runs(tsdn_t *tsdn, mesh_scan_t *scan) {
	/* Stacks may be small; the mesh lock guards these. */
	static edata_t *leaders[MESH_BATCH_PAIRS], *followers[MESH_BATCH_PAIRS];
	unsigned        max = mesh_batch_pairs_max(&scan->site);
	unsigned        n = 0, nruns = 0;
	size_t          end = scan->found_next;
	while (end < scan->nfound && nruns < BATCH_RUNS
	    && n + scan->found[end].n <= max) {
		n += scan->found[end++].n;
		nruns++;
	}
	if (nruns == 0) {
		if (end == scan->nfound) {
			return true;
		}
		n = max;
	}
	unsigned i = 0;
	for (size_t j = end + (nruns == 0); i < n; j--) {
		mesh_run_found_t *found = &scan->found[j - 1];
		/* Of a run that is too long, the last ones. */
		unsigned k = nruns == 0 ? found->n - n : 0;
		for (; k < found->n; k++, i++) {
			leaders[i] = scan->slabs[found->leader + k];
			followers[i] = scan->slabs[found->follower + k];
		}
		found->n -= nruns == 0 ? n : 0;
	}
	scan->found_next = end;
	mesh_batch_result_t result = mesh_batch_pairs(
	    tsdn, &scan->site, leaders, followers, n);
	scan_batched(scan, &result);
	return false;
}

static void
block_end(mesh_scan_t *scan) {
	size_t   n = scan->nslabs - block_nneeded(scan);
	unsigned nregs = bin_infos[scan->site.binind].nregs;
	if (scan->scarce && (scan->share == 0 || scan->attempt >= 2)
	    && n > scan->nblock_moved
	    && !slabs_hopeless(scan->nslabs, scan->nlive, nregs)) {
		scan->nrefused += (unsigned)(n - scan->nblock_moved);
		scan->withheld += (n - scan->nblock_moved) * scan_size(scan);
		/* The next scan will have better use for them. */
		if (!scan->flux && !scan->overtaken) {
			scan->why = mesh_refusal_name(E2BIG);
		}
	}
	scan->purge_next = mesh_purge_pays(scan->site.binind) ? 0
	                                                      : scan->nslabs;
	scan->phase = mesh_scan_purge;
}

/* Returns true when all slabs of the block are done. */
static bool
block_purge(tsdn_t *tsdn, mesh_scan_t *scan) {
	if (scan->purge_next == scan->nslabs) {
		return true;
	}
	scan->purge_later |= mesh_purge_slab(tsdn, &scan->site,
	    scan->slabs[scan->purge_next++], scan->on_request);
	return false;
}

/******************************************************************************/
/* Groups of the matching. */

/* A glance without the bin lock. */
static unsigned
slab_nfollowers(const edata_t *slab) {
	return mesh_group_nfollowers(slab);
}

/*
 * The slab to which the rest of its group moves: the one that would cost most to
 * move, then the lowest.  A glance without the bin lock; the batch checks.
 */
static uint32_t
group_leader(const mesh_scan_t *scan, size_t g) {
	uint32_t best = mesh_match_first(scan->match, g);
	unsigned best_followers = 0;
	bool     best_leads = false;
	for (uint32_t i = best; i != MESH_MATCH_END;
	     i = mesh_match_next(scan->match, g, i)) {
		const edata_t *slab = scan->slabs[i];
		bool     leads = edata_mesh_role_get(slab) == edata_mesh_leader;
		unsigned nfollowers = leads ? slab_nfollowers(slab) : 0;
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

/* Has some units of a group moved to its leader. */
static void
group_units_run(tsdn_t *tsdn, mesh_scan_t *scan, edata_t *leader,
    edata_t **units, unsigned n) {
	mesh_batch_result_t result;
	do {
		/* Again while units with many followers come over. */
		result = mesh_batch_group(tsdn, &scan->site, leader, units, n);
	} while (
	    scan_batched(scan, &result) && result.nmoved >= MESH_BATCH_UNITS);
}

/* Carries out one group of the matching. */
static void
group_run(tsdn_t *tsdn, mesh_scan_t *scan, size_t g) {
	uint32_t first = mesh_match_first(scan->match, g);
	if (mesh_match_next(scan->match, g, first) == MESH_MATCH_END) {
		return;
	}
	uint32_t leader = group_leader(scan, g);
	edata_t *units[MESH_BATCH_UNITS];
	unsigned n = 0;
	for (uint32_t i = first; i != MESH_MATCH_END && !scan->refused;) {
		const edata_t *slab = scan->slabs[i];
		if (i != leader && slab_nfollowers(slab) <= UNIT_FOLLOWERS_MAX
		    && (edata_mesh_role_get(slab) == edata_mesh_private
		        || !scan->pins)) {
			units[n++] = scan->slabs[i];
		}
		i = mesh_match_next(scan->match, g, i);
		if (n == MESH_BATCH_UNITS || (n > 0 && i == MESH_MATCH_END)) {
			group_units_run(
			    tsdn, scan, scan->slabs[leader], units, n);
			n = 0;
		}
	}
}

/* Brings the frozen members of a group back into the store. */
static void
group_thaw(tsdn_t *tsdn, mesh_scan_t *scan, const mesh_group_t *group) {
	mesh_batch_result_t result;
	do {
		result = mesh_batch_thaw(tsdn, &scan->site, group);
	} while (
	    scan_batched(scan, &result) && result.nmoved >= MESH_BATCH_UNITS);
}

/******************************************************************************/

/* One small step. */
static void
scan_advance(tsdn_t *tsdn, mesh_scan_t *scan) {
	switch (scan->phase) {
	case mesh_scan_thaw:
		if (scan->nthaw > 0) {
			group_thaw(tsdn, scan, scan->thaw[--scan->nthaw]);
		} else {
			scan->phase = mesh_scan_walk;
		}
		break;
	case mesh_scan_walk:
		if (scan->at == UINTPTR_MAX) {
			scan->phase = mesh_scan_done;
		} else if (scan_walk(tsdn, scan)) {
			scan_look_begin(scan, mesh_scan_look);
		}
		break;
	case mesh_scan_look:
		if (scan_look(tsdn, scan)) {
			scan->nseen += scan->nslabs;
			block_share(tsdn, scan);
			/* Where mappings are short, the last block's will do. */
			scan->attempt = scan->scarce ? scan->attempt : 0;
			scan->final = false;
			block_sweep_begin(scan);
			scan->phase = mesh_scan_sweep;
		}
		break;
	case mesh_scan_sweep:
		if (scan->scarce && scan->share == 0) {
			block_end(scan);
		} else if (block_sweep(scan)) {
			block_fit(scan);
			scan->phase = mesh_scan_lead;
		}
		break;
	case mesh_scan_lead:
		if (scan->nfound == 0 || block_lead(tsdn, scan)) {
			scan->phase = mesh_scan_runs;
		}
		break;
	case mesh_scan_runs:
		if (scan->scarce && scan->share == 0) {
			block_end(scan);
		} else if (block_runs(tsdn, scan)) {
			/* Runs make more of mappings than single slabs. */
			if (scan->scarce
			    && (scan->attempt >= 2
			        || scan_moved_much(scan, scan->nblock_moved))) {
				block_end(scan);
			} else {
				/* Single slabs are poor. */
				if (scan->scarce
				    && scan->share > scan->share_poor) {
					scan->share = scan->share_poor;
				}
				scan_look_begin(scan, mesh_scan_look_again);
			}
		}
		break;
	case mesh_scan_look_again:
		if (scan_look(tsdn, scan)) {
			scan->match = mesh_match_begin(scan->work,
			    bin_infos[scan->site.binind].nregs, scan->nslabs,
			    scan->live);
			scan->group = 0;
			scan->phase = mesh_scan_match;
		}
		break;
	case mesh_scan_match:
		if (mesh_match_step(scan->match, MATCH_WORK)) {
			scan->phase = mesh_scan_groups;
		}
		break;
	case mesh_scan_groups:
		if (scan->group == mesh_match_ngroups(scan->match)
		    || (scan->scarce && scan->share == 0)) {
			block_end(scan);
		} else {
			group_run(tsdn, scan, scan->group++);
		}
		break;
	case mesh_scan_purge:
		if (block_purge(tsdn, scan)) {
			scan->nslabs = 0;
			scan->phase = mesh_scan_walk;
		}
		break;
	case mesh_scan_done:
		break;
	}
}

bool
mesh_scan_step(tsdn_t *tsdn, mesh_scan_t *scan, uint64_t ns) {
	uint64_t begin = now_ns();
	do {
		if (scan->refused) {
			scan->phase = mesh_scan_done;
		}
		if (scan->phase == mesh_scan_done) {
			scan_end(tsdn, scan);
			return true;
		}
		scan_advance(tsdn, scan);
	} while (now_ns() - begin < ns);
	return false;
}
