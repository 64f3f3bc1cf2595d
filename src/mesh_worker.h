#ifndef JEMALLOC_INTERNAL_MESH_WORKER_H
#define JEMALLOC_INTERNAL_MESH_WORKER_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/tsd_types.h"

/* Called once, by mesh_boot(). */
void mesh_worker_boot(void);

/* Whether there may be threads of ours at all.  No lock needed. */
bool mesh_worker_permitted(void);

/*
 * Whether background threads shall begin, as there is something to do and there
 * are none.  The barrier is settled.  No lock needed.
 */
bool mesh_worker_wanted(void);

/*
 * Whether the calling thread belongs to the process that jemalloc knows: not in the
 * child of vfork(2), which uses its parent's memory.
 */
bool mesh_worker_here(void);

/*
 * Has background threads begin; if that cannot be now, a later tick tries again.
 * jemalloc holds no lock; the program may hold any.
 */
void mesh_worker_start(tsd_t *tsd);

/*
 * Background thread ind, which holds its info->mtx, blocks what it shall block by now:
 * the program may have taken a signal that stopped threads.
 */
void mesh_thread_renew(tsdn_t *tsdn, unsigned ind);

/* A child may have threads, even if its parent may not; the mesh lock is held. */
void mesh_worker_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_WORKER_H */
