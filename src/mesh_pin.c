/*
 * Pins: whether the program has devices write to its memory.
 *
 * A device goes on to write to the page that was there when the program asked for
 * it, and nothing tells which pages these are; only UFFDIO_MOVE refuses to move them.
 * But what a program has them by can be seen:
 *
 *     io_uring, Linux AIO, RDMA    mappings; known from the last count of these
 *                                  (mesh_splice.c)
 *     io_uring                     a descriptor, which it has at once, and needs no
 *                                  mappings with
 *     reads with O_DIRECT          a descriptor with that flag.  A stop has none under
 *                                  way, as it is a system call
 *
 * The descriptors are looked through again for each batch, and while the barrier keeps
 * off who would pin more, unless there are many.
 *
 * Called by mesh_batch and mesh_scan.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_pin.h"
#include "jemalloc/internal/mesh_splice.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef O_DIRECT
#	define O_DIRECT __O_DIRECT
#endif

/* To look takes one part in so many of the time. */
#define PIN_SHARE 32
/* Numbers that are looked at. */
#define PIN_FDS_MAX (1 << 20)

/* The last answer, and until when it is good; guarded by the mesh lock. */
static bool     pins_found;
static uint64_t pins_due_ns;

/* Whether it reads past the kernel's cache; so does no pipe, with that flag or not. */
static bool
fd_is_direct(int fd, int flags) {
	struct stat st;
	return (flags & O_DIRECT) != 0
	    && (fstat(fd, &st) != 0 || !S_ISFIFO(st.st_mode));
}

static bool
fd_is_ring(int fd) {
	static const char ring[] = "anon_inode:[io_uring]";
	struct stat       st;
	char              path[32], link[sizeof(ring) - 1];
	/* Those that are nowhere have no type. */
	if (fstat(fd, &st) != 0 || (st.st_mode & S_IFMT) != 0) {
		return false;
	}
	malloc_snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	return syscall(SYS_readlinkat, AT_FDCWD, path, link, sizeof(link))
	    == sizeof(link)
	    && memcmp(link, ring, sizeof(link)) == 0;
}

static bool
fds_look(void) {
	/* Its size is the number of descriptors (Linux 6.2). */
	struct stat st;
	off_t left = stat("/proc/thread-self/fd", &st) == 0 ? st.st_size : 0;
	/* Ours may be far beyond all others. */
	left -= mesh_fd_count();
	for (int fd = 0; left > 0 && fd < PIN_FDS_MAX; fd++) {
		int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
		if (flags == -1 || mesh_fd_is_own(fd)) {
			continue;
		}
		if ((mesh_barrier_is_uffd() && fd_is_direct(fd, flags))
		    || fd_is_ring(fd)) {
			return true;
		}
		left--;
	}
	return false;
}

static bool
fds_pin(void) {
	uint64_t begin = now_ns();
	if (begin >= pins_due_ns) {
		pins_found = fds_look();
		uint64_t end = now_ns();
		pins_due_ns = end + (end - begin) * PIN_SHARE;
	}
	return pins_found;
}

bool
mesh_pin_found(void) {
	return mesh_splice_pins() || fds_pin();
}
