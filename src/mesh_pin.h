#ifndef JEMALLOC_INTERNAL_MESH_PIN_H
#define JEMALLOC_INTERNAL_MESH_PIN_H

#include "jemalloc/internal/jemalloc_preamble.h"

/* What errno is then, of slabs that stay where they are. */
#define MESH_EPINNED EADDRINUSE

/*
 * Whether the program has what lets a device write to pages that moved meanwhile, and
 * the barrier does not keep it off.  Where it does (UFFDIO_MOVE, of private memory) do
 * not ask.  The mesh lock is held.
 */
bool mesh_pin_found(void);

#endif /* JEMALLOC_INTERNAL_MESH_PIN_H */
