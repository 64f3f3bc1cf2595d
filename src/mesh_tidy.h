#ifndef JEMALLOC_INTERNAL_MESH_TIDY_H
#define JEMALLOC_INTERNAL_MESH_TIDY_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/* Whether a round pays; the mesh lock is held. */
typedef enum {
	mesh_tidy_idle,
	/* More is about to come; wait for it. */
	mesh_tidy_later,
	mesh_tidy_due
} mesh_tidy_t;
mesh_tidy_t mesh_tidy_look(arena_t *arena);

/*
 * begin begins a round over all retained extents of an arena; it returns true if
 * nothing has changed since the last one.  step goes on with the round, or begins
 * one: one chunk.  It returns true when the round has ended.  The mesh lock is held,
 * no other.
 */
bool mesh_tidy_begin(tsdn_t *tsdn, arena_t *arena);
bool mesh_tidy_step(tsdn_t *tsdn, arena_t *arena);

#endif /* JEMALLOC_INTERNAL_MESH_TIDY_H */
