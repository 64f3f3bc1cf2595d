#ifndef JEMALLOC_INTERNAL_MESH_PURGE_H
#define JEMALLOC_INTERNAL_MESH_PURGE_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh_batch.h"

/* Whether slabs of a bin are likely to have pages that nothing lives on. */
bool mesh_purge_pays(szind_t binind);

/*
 * Gives the pages of a slab that no live region touches back to the kernel, if they
 * look as they did the last time, or now.  What was seen of slab may be long past.
 * Returns true if it is to be done later.  The mesh lock is held, and no other.
 */
bool mesh_purge_slab(tsdn_t *tsdn, mesh_site_t *site, edata_t *slab, bool now);

#endif /* JEMALLOC_INTERNAL_MESH_PURGE_H */
