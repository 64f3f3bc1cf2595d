#ifndef JEMALLOC_INTERNAL_MESH_LIMBO_H
#define JEMALLOC_INTERNAL_MESH_LIMBO_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/*
 * Dead slabs of an arena, and whether they are more than the meshed ones that live.  No
 * lock needed.
 */
size_t mesh_limbo_nslabs(arena_t *arena);
bool   mesh_limbo_full(arena_t *arena);

/* A dead slab, which nothing finds any more, begins to wait.  Its bin is locked. */
void mesh_limbo_add(arena_t *arena, struct bin_s *bin, edata_t *slab);

/*
 * Whether it is time to take slabs out; *wait_ns is how long it is until it has to be
 * asked again if not, UINT64_MAX if none wait.  The mesh lock is held.
 */
bool mesh_limbo_due(arena_t *arena, uint64_t *wait_ns);

/*
 * Takes slabs out of the store and gives them back to the page allocator, for about
 * ns.  Returns true when none is left that can be.  The mesh lock is held, no other.
 */
bool mesh_limbo_step(tsdn_t *tsdn, arena_t *arena, uint64_t ns);
/* Has the next step try those again that the kernel has refused; the same. */
void mesh_limbo_try_again(arena_t *arena);

#endif /* JEMALLOC_INTERNAL_MESH_LIMBO_H */
