#ifndef JEMALLOC_INTERNAL_MESH_RANGE_H
#define JEMALLOC_INTERNAL_MESH_RANGE_H

/*
 * What the kernel says about a range of the address space.
 *
 * Of a range that is neither locked nor a hole, msync(MS_INVALIDATE) does
 * nothing at all; it is the one system call that tells without looking through
 * all mappings.
 *
 * Calls are made by number where libc's function is a cancellation point: free()
 * is none, and a thread that ended in it would leave the heap half changed.
 */

#include "jemalloc/internal/jemalloc_preamble.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_clock.h"

#include <sys/mman.h>
#include <sys/syscall.h>

/* How often, and how far apart, to map again what the kernel has lost. */
#define MESH_RANGE_TRIES 1000
#define MESH_RANGE_WAIT_MS 10

/* What errno is set to if a range must not be used because it is locked. */
#define MESH_ELOCKED ENOLCK

/* Whether any of it is locked into memory (mlock, mlockall). */
static inline bool
mesh_range_locked(void *addr, size_t size) {
	if (syscall(SYS_msync, addr, size, MS_INVALIDATE) == 0
	    || get_errno() != EBUSY) {
		return false;
	}
	set_errno(MESH_ELOCKED);
	return true;
}

/* Whether nothing is mapped in some of it. */
static inline bool
mesh_range_hole(void *addr, size_t size) {
	return syscall(SYS_msync, addr, size, MS_INVALIDATE) != 0
	    && get_errno() == ENOMEM;
}

/*
 * Waits until the kernel may be asked again for what part of the heap depends on;
 * not the first time, and not for ever.  tries is zero before the first refusal.
 */
static inline void
mesh_range_lost(unsigned *tries) {
	if (*tries == MESH_RANGE_TRIES) {
		malloc_write(
		    "<jemalloc>: mesh has lost a range of the heap: the "
		    "kernel is out of memory.\n");
		abort();
	}
	if ((*tries)++ > 0) {
		sleep_ms(MESH_RANGE_WAIT_MS);
	}
}

/*
 * Whether a call that maps something else at a range, and was refused, must be
 * tried again, because the old mapping is gone: the kernel checks limits before
 * it unmaps the range, but then it may lack memory for the new mapping.  What was
 * there is in the store still.  tries is zero before the first refusal; errno
 * survives.
 */
static inline bool
mesh_range_try_again(void *addr, size_t size, unsigned *tries) {
	int  err = get_errno();
	bool hole = mesh_range_hole(addr, size);
	set_errno(err);
	if (!hole && *tries == 0) {
		return false;
	}
	if (!hole) {
		/* Somebody else has mapped something there. */
		*tries = MESH_RANGE_TRIES;
	}
	mesh_range_lost(tries);
	return true;
}

#endif /* JEMALLOC_INTERNAL_MESH_RANGE_H */
