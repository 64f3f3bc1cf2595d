#ifndef JEMALLOC_INTERNAL_MESH_SPLICE_H
#define JEMALLOC_INTERNAL_MESH_SPLICE_H

#include "jemalloc/internal/jemalloc_preamble.h"

/* Mappings that a splice adds at most: in the middle of one it makes three. */
#define MESH_MAPS_PER_SPLICE 2

/*
 * Copies the regions whose bits are set in live from slab to window, a physical
 * slab of the same class.  reg_size in bytes, nwords words of bitmap.
 */
void mesh_splice_copy(void *window, const void *slab, const uint64_t *live,
    unsigned nwords, size_t reg_size);

/*
 * Maps the physical slab seen at window at addr too, in place of what is there,
 * atomically.  Returns true if the kernel refused, and errno says why; addr is as
 * before then.
 */
bool mesh_splice(void *addr, size_t size, void *window);

typedef enum {
	mesh_unsplice_done,
	/* Try again later; until then the range is not to be used. */
	mesh_unsplice_refused,
	/* The range is not ours any more. */
	mesh_unsplice_lost
} mesh_unsplice_t;

/*
 * Puts fresh private memory in place of a spliced range that holds no live
 * region.  It is locked into memory if the range was.
 */
mesh_unsplice_t mesh_unsplice(void *addr, size_t size);

/*
 * Puts a private copy in place of a spliced range that does hold live regions;
 * no writer may run.  Returns true if the kernel refused, as above.
 */
bool mesh_unsplice_copy(void *addr, size_t size);

/*
 * Whether n more ranges may be spliced without exceeding the budget of mappings;
 * if not, errno is E2BIG or says why they cannot be counted.  The mesh lock is
 * held.
 */
bool mesh_splice_room(size_t n);
/*
 * Mappings that are left in the budget.  Returns true, and errno, if they cannot
 * be counted.  The mesh lock is held.
 */
bool mesh_splice_left(size_t *left);
/*
 * Has the mappings counted when their number matters next, however lately that was
 * done.  The mesh lock is held.
 */
void mesh_splice_recount(void);
/*
 * Counts the mappings as the last thing that is done for a while, if they have changed
 * by our doing since.  The mesh lock is held.
 */
void mesh_splice_rest(void);
/*
 * Takes room for a range that goes out of the store: from the middle of a run that
 * needs two mappings more, and the program shall not be left without.  whole: there
 * will be less afterwards, and some are spared for that.  Returns false if there is
 * none.  No lock needed.
 */
bool mesh_unsplice_room(bool whole);

/*
 * Opens what mappings are counted by, if need be.  The mesh lock is held.  Returns
 * true, and errno, if that cannot be had.
 */
bool mesh_splice_open(void);
/*
 * What the list of mappings said when they were last counted; refresh has that done,
 * unless it was just now.  The same lock.
 *
 * protected: some of a range was not plainly readable and writable; prot: all that any
 * of it permits, and reading and writing; protect gives a range that permits as much
 * its protection back.  pins: the program uses what has devices write to its memory:
 * io_uring, Linux AIO, RDMA.
 */
void mesh_splice_look(void);
bool mesh_splice_protected(const void *addr, size_t size);
int  mesh_splice_prot(const void *addr, size_t size);
void mesh_splice_protect(void *addr, size_t size);
bool mesh_splice_pins(void);
/*
 * Whether some of a range is not readable and writable, or executable, at this moment;
 * false, too, where the kernel does not tell of single mappings (before Linux 6.11).
 * The same lock.
 */
bool mesh_splice_protected_now(const void *addr, size_t size);
/* A child has mappings of its own; the same lock. */
void mesh_splice_postfork_child(void);

/* Settles the budget; called once, by mesh_boot(). */
void mesh_splice_boot(void);

/*
 * Mappings of the process, an upper bound, and the number at which meshing
 * stops; no lock needed.
 */
size_t mesh_splice_maps(void);
size_t mesh_splice_maps_max(void);

#endif /* JEMALLOC_INTERNAL_MESH_SPLICE_H */
