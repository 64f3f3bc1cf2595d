#ifndef JEMALLOC_INTERNAL_MESH_MUTEX_H
#define JEMALLOC_INTERNAL_MESH_MUTEX_H

#include "jemalloc/internal/jemalloc_preamble.h"

/*
 * Whether some region of a slab, of those whose bits are set in live, has in it what
 * looks like a mutex of a kind that the kernel writes to, or cannot be read.
 * slab is where it is to be read, size and reg_size in bytes, nwords words of bitmap.
 * The mesh lock is held.
 */
bool mesh_mutex_found(const void *slab, size_t size, const uint64_t *live,
    unsigned nwords, size_t reg_size);
/* Whether the program has had a locked one in a slab that was looked at. */
bool mesh_mutex_seen(void);

#endif /* JEMALLOC_INTERNAL_MESH_MUTEX_H */
