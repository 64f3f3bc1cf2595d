#ifndef JEMALLOC_INTERNAL_MESH_PACK_H
#define JEMALLOC_INTERNAL_MESH_PACK_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/*
 * Decides of which bins threads shall fill the first slabs.  The mesh lock is held;
 * takes bin locks.
 */
void mesh_pack_look(tsdn_t *tsdn);
/* Lets all threads have their caches again; the mesh lock is held. */
void mesh_pack_stop(tsdn_t *tsdn);

#endif /* JEMALLOC_INTERNAL_MESH_PACK_H */
