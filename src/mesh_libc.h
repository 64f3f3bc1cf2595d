#ifndef JEMALLOC_INTERNAL_MESH_LIBC_H
#define JEMALLOC_INTERNAL_MESH_LIBC_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/tsd_types.h"

/* Whether we know what this C library's child writes before our handler runs. */
bool mesh_libc_known(void);

typedef bool (*mesh_libc_do_t)(tsdn_t *tsdn, uintptr_t addr);

/*
 * Calls f for each address that it may write to, and for others; returns true if
 * any call did.  In between lock and unlock; lock may wait for who has the list of
 * streams locked, as fork() does.
 */
void mesh_libc_lock(void);
bool mesh_libc_do(tsdn_t *tsdn, mesh_libc_do_t f);
void mesh_libc_unlock(void);

#endif /* JEMALLOC_INTERNAL_MESH_LIBC_H */
