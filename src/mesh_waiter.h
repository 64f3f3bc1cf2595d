#ifndef JEMALLOC_INTERNAL_MESH_WAITER_H
#define JEMALLOC_INTERNAL_MESH_WAITER_H

#include "jemalloc/internal/jemalloc_preamble.h"

/*
 * Notes that a range with live regions has a new mapping, so that threads which
 * sleep there have to be found.  No lock needed.
 */
void mesh_waiter_note(const void *addr, size_t size);

/*
 * Nanoseconds until the next look is worth it; UINT64_MAX if nothing was noted.
 * No lock needed.
 */
uint64_t mesh_waiter_wait_ns(void);

/*
 * Looks for those threads, if it is time, and wakes them.  The mesh lock is held,
 * the barrier is down.  Some may be found by a later look only, for which the
 * caller has to see.
 */
void mesh_waiter_look(void);
/* The same for a caller who cannot come back: all are found now. */
void mesh_waiter_look_all(void);

/* A child has none of its parent's threads; the mesh lock is held. */
void mesh_waiter_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_WAITER_H */
