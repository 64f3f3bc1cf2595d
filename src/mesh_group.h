#ifndef JEMALLOC_INTERNAL_MESH_GROUP_H
#define JEMALLOC_INTERNAL_MESH_GROUP_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/* A leader and its followers: slabs that share one physical slab. */
struct mesh_group_s {
	/* The slab at whose place in the store the memory is. */
	edata_t *leader;
	/* The other slabs, linked by ql_link_active; may be none. */
	edata_list_active_t followers;
	unsigned            nfollowers;
	/* See mesh_purge.c. */
	uint32_t purge_note;
	/* In mesh_bin_t's groups or groups_free. */
	ql_elm(mesh_group_t) link;
};

/*
 * All of these need the bin lock.  A slab is held from mesh_group_hold() to
 * mesh_group_unhold(): it is in no list of the bin, so that no region can be
 * allocated from it and it is not released; frees go on and update its bitmap.
 */

/* Regions of slab that are live, one bit each, as many words as a bitmap has. */
void mesh_group_live(const edata_t *slab, uint64_t *live);

/* The group of a leader or follower, NULL of a private slab. */
mesh_group_t *mesh_group_get(const edata_t *slab);

/* How many slabs follow slab, which is private or a leader. */
unsigned mesh_group_nfollowers(const edata_t *slab);

/*
 * Takes a slab out of the bin.  nonfull_slabs counts it, as users subtract it from
 * curslabs.
 */
void mesh_group_hold(struct bin_s *bin, edata_t *slab);

/*
 * Puts a held slab back to where it belongs now.  If its last region was freed
 * meanwhile it is put on dead instead, for mesh_group_release().
 */
void mesh_group_unhold(
    struct bin_s *bin, edata_t *slab, edata_list_active_t *dead);

/* A held private slab becomes the leader of an empty group. */
void mesh_group_lead(
    arena_t *arena, struct bin_s *bin, edata_t *slab, mesh_group_t *group);

/*
 * A held slab becomes a follower of a held leader: a private slab, a follower of
 * another group, or a leader without followers.
 */
void mesh_group_join(
    arena_t *arena, struct bin_s *bin, edata_t *slab, edata_t *leader);

/*
 * A leader's or follower's range becomes frozen, or maps the current generation
 * again.
 */
void mesh_group_freeze(arena_t *arena, edata_t *slab);
void mesh_group_thaw(arena_t *arena, edata_t *slab);

/* A descriptor that an ended group has left behind in the bin, or NULL. */
mesh_group_t *mesh_group_recycle(struct bin_s *bin);
/* Keeps a descriptor that was not needed after all. */
void mesh_group_discard(struct bin_s *bin, mesh_group_t *group);

/*
 * The slab at addr becomes frozen if it still is in a group.  No arena lock may be
 * held.
 */
void mesh_group_freeze_at(tsdn_t *tsdn, const void *addr);

/*
 * Puts a leader or follower that has no live region any more into limbo; releases all
 * slabs of dead.  No arena lock may be held.
 */
void mesh_group_bury(tsdn_t *tsdn, arena_t *arena, edata_t *slab);
void mesh_group_release(
    tsdn_t *tsdn, arena_t *arena, edata_list_active_t *dead);

#endif /* JEMALLOC_INTERNAL_MESH_GROUP_H */
