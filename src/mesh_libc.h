#ifndef JEMALLOC_INTERNAL_MESH_LIBC_H
#define JEMALLOC_INTERNAL_MESH_LIBC_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/tsd_types.h"

/* Whether we know what this C library's child writes before our handler runs. */
bool mesh_libc_known(void);

/*
 * Parts that from the parent: in between, with ranges protected but for those that
 * have been parted already, mesh_libc_part(), which returns true if the kernel
 * refused.  lock may wait for who has the list of streams locked, as fork() does;
 * so nothing may be protected that nobody makes private.
 */
void mesh_libc_lock(void);
bool mesh_libc_part(tsdn_t *tsdn);
void mesh_libc_unlock(void);

#endif /* JEMALLOC_INTERNAL_MESH_LIBC_H */
