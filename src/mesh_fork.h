#ifndef JEMALLOC_INTERNAL_MESH_FORK_H
#define JEMALLOC_INTERNAL_MESH_FORK_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/tsd_types.h"

/*
 * Whether a fork has not been dealt with yet, so that nothing may be meshed.  The
 * mesh lock is held.  hurry: it shall be soon.
 */
bool mesh_fork_pending(tsdn_t *tsdn, bool hurry);

#endif /* JEMALLOC_INTERNAL_MESH_FORK_H */
