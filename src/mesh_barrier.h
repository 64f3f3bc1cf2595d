#ifndef JEMALLOC_INTERNAL_MESH_BARRIER_H
#define JEMALLOC_INTERNAL_MESH_BARRIER_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh.h"
#include "jemalloc/internal/mesh_fd.h"

/*
 * Settles which barrier this process may use, the mesh lock held unless there is
 * one thread only; a child does it anew.  Returns the reason why none can be used,
 * as one sentence without a full stop, or NULL.
 */
const char *mesh_barrier_boot(void);

/*
 * The barrier in use, mesh_barrier_auto if that is not settled yet, and why it is
 * not the first choice; "" if it is.
 */
mesh_barrier_t mesh_barrier_get(void);
const char    *mesh_barrier_reason(void);
/* Whether it is one of those made of a userfaultfd. */
bool mesh_barrier_is_uffd(void);

/*
 * Makes ready to raise the barrier.  The mesh lock is held, the barrier is down.
 * Returns true if the kernel refused.  Only mesh_view_barrier_open() calls it.
 */
bool mesh_barrier_open(void);
/* The userfaultfd, not blocking, which the program may have closed. */
const mesh_fd_t *mesh_barrier_fd(void);

/*
 * Begins a batch of ranges from which writers are kept away, after
 * mesh_barrier_open().  Until the end of it all signals are blocked, and the
 * caller takes no lock, allocates nothing and writes to no heap page.  Returns
 * NULL, or why there can be no batch now, as a clause; then nothing has begun.
 */
const char *mesh_barrier_begin(void);
void        mesh_barrier_end(void);
/* Whether writers waited for long before the last batch.  The mesh lock is held. */
bool mesh_barrier_is_slow(void);

/*
 * Makes room for the pages of size bytes of private ranges, as one batch may take
 * away, until it is given back.  No batch has begun.  reserve returns true, and
 * errno, if the kernel refused.
 */
bool mesh_barrier_reserve(size_t size);
void mesh_barrier_unreserve(void);

/*
 * Keeps writers away from a range, which maps the store or is private: from here
 * on they wait, in user mode and in the kernel, until the barrier is lowered.
 * Returns where its contents are to be read meanwhile.  Returns NULL, and changes
 * nothing, if that is not to be had; errno is EBUSY if the range is in use, by a
 * thread that could not be kept away from it, by another process or by a device.
 */
const void *mesh_barrier_raise(void *addr, size_t size, bool stored);

/*
 * Lets writers on to a range whose contents raise has returned.  spliced: it has
 * a new mapping, to which the protection does not apply any more.
 */
void mesh_barrier_lower(
    void *addr, size_t size, const void *contents, bool spliced);

/*
 * Leaves a range that has been spliced registered with the userfaultfd if there can
 * be a viewer, who will want to protect it.
 */
void mesh_barrier_keep(void *addr, size_t size);

/*
 * Forgets what belongs to the parent: its descriptor, its threads.  For the
 * child of a fork; the mesh lock is held.
 */
void mesh_barrier_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_BARRIER_H */
