#ifndef JEMALLOC_INTERNAL_MESH_STORE_H
#define JEMALLOC_INTERNAL_MESH_STORE_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/tsd_types.h"

/* The largest slab that may be meshed, bytes. */
#define MESH_STORE_SLAB_MAX (ZU(1) << 20)

/* Whether [addr, addr + size) has a place in the store at all. */
bool mesh_store_fits(const void *addr, size_t size);

/*
 * Opens the store if there is none.  The mesh lock is held.  Returns true, and errno,
 * if it is not to be had.
 */
bool mesh_store_open(void);

/*
 * The address at which the pass reads and writes the physical slab of the
 * leader at addr, or of several neighbours, of MESH_STORE_SLAB_MAX at most.
 * populate: they may have no memory yet.  Opens the store and maps the window on
 * first use.  The mesh lock is held.  NULL if the kernel refuses; nothing has
 * changed then, and errno says why.
 */
void *mesh_store_window(
    tsdn_t *tsdn, const void *addr, size_t size, bool populate);

/*
 * Gives the memory of a physical slab back to the kernel.  mapping is a shared
 * mapping of it: its window, or the range of its leader.
 */
void mesh_store_punch(void *mapping, size_t size);
/* The same for the leader that was at addr, by a window.  The mesh lock is held. */
void mesh_store_punch_at(tsdn_t *tsdn, const void *addr, size_t size);

/* Takes the windows down until they are needed again.  The mesh lock is held. */
void mesh_store_windows_trim(void);
/* The same if they are many, or address space is short. */
void mesh_store_windows_bound(void);

/*
 * The descriptor of the store, for fork to map private views; to be checked before
 * use.  The mesh lock is held.
 */
const mesh_fd_t *mesh_store_fd(void);

/*
 * Ends the generation, if there is one: from here on nobody writes to it.  The
 * next window opens a new one.  Called after fork on both sides, the mesh lock
 * held.
 */
void mesh_store_freeze(void);

/* Whether there is a store now. */
bool mesh_store_is_open(void);
/*
 * Bytes of memory in the store now, and at most of generations that were frozen: of a
 * file the kernel frees nothing before nobody maps any of it.  No lock needed.
 */
size_t mesh_store_bytes(void);
/* Nothing of ours maps a frozen generation any more, or it is the parent's. */
void mesh_store_frozen_gone(void);
/* Number of generations that were frozen; no lock needed. */
size_t mesh_store_generation(void);

#endif /* JEMALLOC_INTERNAL_MESH_STORE_H */
