#ifndef JEMALLOC_INTERNAL_MESH_WALK_H
#define JEMALLOC_INTERNAL_MESH_WALK_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/edata.h"
#include "jemalloc/internal/tsd_types.h"

/* Notes memory that slabs may come to lie in.  Any lock may be held. */
void mesh_walk_note(const void *addr, size_t size);

/* Whether any of that is in [begin, end); no lock needed. */
bool mesh_walk_covers(uintptr_t begin, uintptr_t end);

/*
 * Goes on from address *at, which is 0 at first, and lists in slabs[] what look
 * like non-full slabs of a bin, or of all automatic arenas if binind is SC_NBINS, in
 * the order of their addresses: max at most, and only so far as a short while allows.
 * Returns how many; *at is UINTPTR_MAX when the walk is over.  The mesh lock is held,
 * and no bin lock needed: a slab may be anything else by the time that the caller
 * looks.
 */
size_t mesh_walk(tsdn_t *tsdn, unsigned arena_ind, szind_t binind,
    uintptr_t *at, edata_t **slabs, size_t max);

#endif /* JEMALLOC_INTERNAL_MESH_WALK_H */
