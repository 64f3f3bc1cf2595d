#ifndef JEMALLOC_INTERNAL_MESH_BARRIER_H
#define JEMALLOC_INTERNAL_MESH_BARRIER_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"

/*
 * Settles which barrier this process may use.  Returns the reason why none can
 * be used, as one sentence without a full stop, or NULL.
 */
const char *mesh_barrier_boot(void);

/* The barrier in use. */
mesh_barrier_t mesh_barrier_get(void);

/*
 * Makes ready to raise the barrier.  The mesh lock is held, the barrier is down.
 * Returns true if the kernel refused.
 */
bool mesh_barrier_open(void);

/*
 * Keeps writers away from a range: from here on they wait, in user mode and in
 * the kernel, until the barrier is lowered.  The caller has blocked all signals
 * and until then takes no lock, allocates nothing and writes to no heap page.
 * Returns true if the kernel refused; nothing has changed then.
 */
bool mesh_barrier_raise(void *addr, size_t size);

/*
 * Lets writers on.  spliced: the range has a new mapping, to which the
 * protection does not apply any more.
 */
void mesh_barrier_lower(void *addr, size_t size, bool spliced);

/*
 * Forgets the descriptor: it belongs to the parent's memory.  For the child of
 * a fork; the mesh lock is held.
 */
void mesh_barrier_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_BARRIER_H */
