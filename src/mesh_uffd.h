#ifndef JEMALLOC_INTERNAL_MESH_UFFD_H
#define JEMALLOC_INTERNAL_MESH_UFFD_H

/*
 * The calls of userfaultfd(2).
 *
 * Each is for a range of whole pages, and returns true, with errno, if the kernel
 * refused.
 */

#include "jemalloc/internal/jemalloc_preamble.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

typedef bool(mesh_uffd_call_t)(int fd, uintptr_t start, size_t size);

/* What older <linux/userfaultfd.h> lack: Linux 6.8. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t  move;
};
#	define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#	define UFFDIO_MOVE_MODE_DONTWAKE (UINT64_C(1) << 0)
#	define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES (UINT64_C(1) << 1)
#endif

static inline bool
mesh_uffd_register_mode(int fd, uintptr_t start, size_t size, uint64_t mode) {
	struct uffdio_register reg = {
	    .range = {.start = start, .len = size}, .mode = mode};
	return ioctl(fd, UFFDIO_REGISTER, &reg) != 0;
}

/* From here on its pages may be write-protected. */
static inline bool
mesh_uffd_register(int fd, uintptr_t start, size_t size) {
	return mesh_uffd_register_mode(
	    fd, start, size, UFFDIO_REGISTER_MODE_WP);
}

/* From here on who reads or writes where there is no page waits. */
static inline bool
mesh_uffd_register_missing(int fd, uintptr_t start, size_t size) {
	return mesh_uffd_register_mode(
	    fd, start, size, UFFDIO_REGISTER_MODE_MISSING);
}

/* Lifts the protection, too, but wakes nobody. */
static inline bool
mesh_uffd_unregister(int fd, uintptr_t start, size_t size) {
	struct uffdio_range range = {.start = start, .len = size};
	return ioctl(fd, UFFDIO_UNREGISTER, &range) != 0;
}

static inline bool
mesh_uffd_writeprotect(int fd, uintptr_t start, size_t size, uint64_t mode) {
	struct uffdio_writeprotect wp = {
	    .range = {.start = start, .len = size}, .mode = mode};
	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) != 0;
}

/* From here on who writes there waits. */
static inline bool
mesh_uffd_protect(int fd, uintptr_t start, size_t size) {
	return mesh_uffd_writeprotect(
	    fd, start, size, UFFDIO_WRITEPROTECT_MODE_WP);
}

/* Also wakes who waits. */
static inline bool
mesh_uffd_lift(int fd, uintptr_t start, size_t size) {
	return mesh_uffd_writeprotect(fd, start, size, 0);
}

/* Needs no registration: the range may have another mapping by now. */
static inline bool
mesh_uffd_wake(int fd, uintptr_t start, size_t size) {
	struct uffdio_range range = {.start = start, .len = size};
	return ioctl(fd, UFFDIO_WAKE, &range) != 0;
}

/* How often to ask for what the kernel has no reason to refuse. */
#define MESH_UFFD_TRIES 10

/*
 * Moves the pages of size bytes at from to the same places at to, where there are
 * none, and leaves holes where from has them.  Wakes nobody.  Returns how many
 * bytes it got through, from the beginning; if not all, errno says why.
 */
static inline size_t
mesh_uffd_move(int fd, uintptr_t to, uintptr_t from, size_t size) {
	size_t   done = 0;
	unsigned tries = 0;
	while (done < size && tries < MESH_UFFD_TRIES) {
		struct uffdio_move move = {.dst = to + done,
		    .src = from + done,
		    .len = size - done,
		    .mode = UFFDIO_MOVE_MODE_DONTWAKE
		        | UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES};
		if (ioctl(fd, UFFDIO_MOVE, &move) == 0) {
			return size;
		}
		if (move.move > 0) {
			done += (size_t)move.move;
			tries = 0;
		} else if (get_errno() != EAGAIN) {
			break;
		} else {
			/* The kernel has the page in hand for the moment. */
			tries++;
		}
	}
	return done;
}

/* Copies a page to where there is none.  Wakes nobody. */
static inline bool
mesh_uffd_copy(int fd, uintptr_t to, uintptr_t from) {
	struct uffdio_copy copy = {.dst = to,
	    .src = from,
	    .len = PAGE,
	    .mode = UFFDIO_COPY_MODE_DONTWAKE};
	return ioctl(fd, UFFDIO_COPY, &copy) != 0;
}

/* A call without which writers would wait for ever: a refusal is not final. */
static inline bool
mesh_uffd_insist(mesh_uffd_call_t *call, int fd, uintptr_t start, size_t size) {
	for (unsigned i = 0; i < MESH_UFFD_TRIES; i++) {
		if (!call(fd, start, size)) {
			return false;
		}
	}
	return true;
}

#endif /* JEMALLOC_INTERNAL_MESH_UFFD_H */
