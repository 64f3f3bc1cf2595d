#ifndef JEMALLOC_INTERNAL_MESH_MUTEX_H
#define JEMALLOC_INTERNAL_MESH_MUTEX_H

#include "jemalloc/internal/jemalloc_preamble.h"

/*
 * Whether some region of a slab, of those whose bits are set in live, has in it what
 * looks like a locked mutex of a kind that the kernel writes to.  slab is where it is
 * to be read, reg_size in bytes, nwords words of bitmap.  No lock needed.
 */
bool mesh_mutex_locked(const void *slab, const uint64_t *live,
    unsigned nwords, size_t reg_size);

#endif /* JEMALLOC_INTERNAL_MESH_MUTEX_H */
