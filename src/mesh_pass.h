#ifndef JEMALLOC_INTERNAL_MESH_PASS_H
#define JEMALLOC_INTERNAL_MESH_PASS_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mutex.h"

/*
 * The mesh lock: one slice at a time in the whole process, and none during a
 * fork.  Rank: after the background threads' info->mtx, before all arena locks.
 * Frees and releases do not take it.
 */
extern malloc_mutex_t mesh_mtx;

/* Called once, by mesh_boot().  Returns true on error. */
bool mesh_pass_boot(void);

/*
 * Why the last attempt to mesh came to nothing although meshing is on, as a
 * clause without a full stop; NULL if it did not.  No lock needed.
 */
const char *mesh_pass_refused(void);

/*
 * Before a fork gives up the memory of a scan under way, which would be there twice
 * for as long as parent and child wait to go on.  The mesh lock is held, no bin lock.
 */
void mesh_pass_prefork(tsdn_t *tsdn);
/* Notes that the process has forked; the mesh lock is held. */
void mesh_pass_forked(void);
/* Forgets what the parent was about to do; the mesh lock is held. */
void mesh_pass_postfork_child(tsdn_t *tsdn);

#endif /* JEMALLOC_INTERNAL_MESH_PASS_H */
