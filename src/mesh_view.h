#ifndef JEMALLOC_INTERNAL_MESH_VIEW_H
#define JEMALLOC_INTERNAL_MESH_VIEW_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/tsd_types.h"

/* Called once, by mesh_boot().  Returns true on error. */
bool mesh_view_boot(void);

/*
 * Starts the thread that makes ranges private when they are first written, if
 * there is use for it and it does not run.  No lock may be held.
 */
void mesh_view_start(tsdn_t *tsdn);

/*
 * mesh_barrier_open(), with a new userfaultfd if the program has closed the old
 * one.  The mesh lock is held, nothing is pending.
 */
bool mesh_view_barrier_open(void);

/*
 * For fork, under the mesh lock with all bins locked: begins a table of n ranges
 * at most, adds one, and puts the table to use; then gives parent and child views
 * of their own of all of them, at once or when they are written.  begin returns
 * true if there is no memory for it; part returns true if the kernel refused a
 * range: then the parent is well, but the child must not run.
 */
bool mesh_view_begin(size_t n);
void mesh_view_add(const edata_t *slab, const edata_t *leader);
void mesh_view_list(tsdn_t *tsdn);
bool mesh_view_part(tsdn_t *tsdn);

/*
 * Whether there is a table.  It is made with all bins locked, and goes only after
 * the members of groups were frozen that have to be.
 */
bool mesh_view_listed(void);

/*
 * Whether a fork is not over yet, so that nothing may be meshed; does some of what
 * is left to do, under the mesh lock.  hurry: it shall be over as soon as possible.
 */
bool mesh_view_pending(tsdn_t *tsdn, bool hurry);

/*
 * Whether all ranges have become private; if so, the table is gone.  The caller,
 * who has all bins locked, freezes their slabs.
 */
bool mesh_view_settled(tsdn_t *tsdn);

/* mesh_unsplice() of any range, frozen or not.  No lock may be held. */
mesh_unsplice_t mesh_view_unsplice(tsdn_t *tsdn, void *addr, size_t size);

/*
 * What was a frozen leader leaves its place in the store, whose memory is given
 * back when no child can read it any more.  punch does so for some places, if
 * nothing is pending, the mesh lock held; it returns true if there are more.
 */
void mesh_view_leave(tsdn_t *tsdn, void *addr, size_t size);
bool mesh_view_left_punch(tsdn_t *tsdn);

/*
 * Around the fork itself.  child returns true if the kernel refused the child
 * its views, with which it cannot live.
 */
void mesh_view_prefork(tsdn_t *tsdn);
void mesh_view_postfork_parent(tsdn_t *tsdn);
bool mesh_view_postfork_child(tsdn_t *tsdn);

#endif /* JEMALLOC_INTERNAL_MESH_VIEW_H */
