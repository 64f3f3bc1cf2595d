#ifndef JEMALLOC_INTERNAL_MESH_BATCH_H
#define JEMALLOC_INTERNAL_MESH_BATCH_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/* Most pairs of a follower and a leader that move behind one barrier. */
#define MESH_BATCH_PAIRS 256
/* How much larger batches are where writers wait for long before one begins. */
#define MESH_BATCH_TIMES 4
/* Most ranges that do, leaders included. */
#define MESH_BATCH_MOVES (2 * MESH_BATCH_PAIRS)
/* Most units that follow one leader in one batch. */
#define MESH_BATCH_UNITS 16

/* The bin that batches are about, and descriptors for its next groups. */
typedef struct mesh_site_s mesh_site_t;
struct mesh_site_s {
	arena_t      *arena;
	struct bin_s *bin;
	szind_t       binind;
	unsigned      binshard;
	mesh_group_t *spares[MESH_BATCH_PAIRS];
	unsigned      nspares;
};

/* What has come of a batch. */
typedef struct mesh_batch_result_s mesh_batch_result_t;
struct mesh_batch_result_s {
	/* Ranges that moved, not counted the leaders of others that did. */
	unsigned nmoved;
	/* Mappings added, as far as is known. */
	size_t nmaps;
	/*
	 * Ranges that should have moved, if none has or some cannot, and why not;
	 * else NULL.
	 */
	unsigned    nrefused;
	const char *why;
};

/*
 * Whether slab may be picked.  The bin lock is held; what was seen of slab may be
 * long past.
 */
bool mesh_batch_pickable(const mesh_site_t *site, const edata_t *slab);
/* Whether slabs of the arena may be meshed. */
bool mesh_arena_meshable(arena_t *arena);

/*
 * All of these are called with the mesh lock held, and no other.
 *
 * pairs: slabs followers[i] come to follow leaders[i], for i < n, at most
 * mesh_batch_pairs_max().  It costs least if followers are in the order of their
 * addresses, and a mapping less where both are neighbours.  Overwrites the arrays.
 * lead: slabs, as many at most, go to the store.
 * group: what it can of the units units[0, n), slabs or leaders with their
 * followers, comes to follow leader; n is at most MESH_BATCH_UNITS.
 * times: how much larger batches are now than they need be.
 * thaw: the frozen members of a group that may have ended come back into the
 * store, as many as one batch takes.
 */
unsigned            mesh_batch_pairs_max(const mesh_site_t *site);
unsigned            mesh_batch_times(void);
mesh_batch_result_t mesh_batch_pairs(tsdn_t *tsdn, mesh_site_t *site,
    edata_t **leaders, edata_t **followers, unsigned n);
mesh_batch_result_t mesh_batch_lead(
    tsdn_t *tsdn, mesh_site_t *site, edata_t **slabs, unsigned n);
mesh_batch_result_t mesh_batch_group(tsdn_t *tsdn, mesh_site_t *site,
    edata_t *leader, edata_t **units, unsigned n);
mesh_batch_result_t mesh_batch_thaw(
    tsdn_t *tsdn, mesh_site_t *site, const mesh_group_t *group);

/* Gives the site's descriptors back to the bin. */
void mesh_batch_end(tsdn_t *tsdn, mesh_site_t *site);

/* The reason of a refusal, from errno, as a clause. */
const char *mesh_refusal_name(int err);
/* Whether it is about single ranges, and others may go on. */
bool mesh_refusal_is_local(const char *why);

#endif /* JEMALLOC_INTERNAL_MESH_BATCH_H */
