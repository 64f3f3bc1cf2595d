#ifndef JEMALLOC_INTERNAL_MESH_UFFD_H
#define JEMALLOC_INTERNAL_MESH_UFFD_H

/*
 * The calls of userfaultfd(2) in write-protect mode.
 *
 * Each is for a range of whole pages, and returns true, with errno, if the kernel
 * refused.
 */

#include "jemalloc/internal/jemalloc_preamble.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

typedef bool(mesh_uffd_call_t)(int fd, uintptr_t start, size_t size);

static inline bool
mesh_uffd_register(int fd, uintptr_t start, size_t size) {
	struct uffdio_register reg = {.range = {.start = start, .len = size},
	    .mode = UFFDIO_REGISTER_MODE_WP};
	return ioctl(fd, UFFDIO_REGISTER, &reg) != 0;
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
