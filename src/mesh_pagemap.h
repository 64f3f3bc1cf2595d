#ifndef JEMALLOC_INTERNAL_MESH_PAGEMAP_H
#define JEMALLOC_INTERNAL_MESH_PAGEMAP_H

#include "jemalloc/internal/jemalloc_preamble.h"

/*
 * All of these are called with the mesh lock held.
 *
 * Opens it if need be.  Where it cannot be read, all memory counts as this process's
 * own.
 */
void mesh_pagemap_open(void);

/*
 * Whether a private range, of MESH_STORE_SLAB_MAX bytes at most, may mesh: all its
 * memory, or more than half of its pages, are mapped by this process alone, and none
 * is swapped out.  Of two such ranges more is released than one takes, and the pages
 * that others have as well are released as soon as these do without them, too.
 */
bool mesh_pagemap_own(const void *addr, size_t size);

/*
 * Whether that is not known of all memory: there was a fork, and mesh_pagemap_alone()
 * has not held since.  No lock needed.
 */
bool mesh_pagemap_shared(void);
/*
 * Whether that holds of all memory anyway: there is no parent or child that has
 * forked apart and lives on without exec.
 */
bool mesh_pagemap_alone(void);

/*
 * Whether a private view of the store may leave the store: nobody else has that, or
 * all of its pages have been written.
 */
bool mesh_pagemap_own_view(const void *addr, size_t size);

/*
 * Either of the two of many ranges, in the order of their addresses, by what was read
 * since mesh_pagemap_glance_begin(), where mesh_pagemap_alone() does not hold.
 */
void mesh_pagemap_glance_begin(void);
bool mesh_pagemap_glance(const void *addr, size_t size, bool view);

/*
 * Has the kernel note that the pages of such a range are ours alone: after a fork it
 * takes them for shared until they are written, though nobody has them any more.
 * Changes nothing in them.
 */
void mesh_pagemap_claim(void *addr, size_t size);

/* Around a fork: from there on memory may be shared. */
void mesh_pagemap_prefork(void);
void mesh_pagemap_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_PAGEMAP_H */
