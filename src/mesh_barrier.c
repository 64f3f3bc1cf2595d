/*
 * The barrier: what keeps writers away from a slab while it is copied.
 *
 * userfaultfd(2) in write-protect mode.  A thread that writes to a protected
 * page waits in the page fault, and so does a system call that writes there, as
 * read(2) into a heap buffer; neither sees an error.  Nobody answers the fault:
 * once the range is spliced, a wake lets the writers fault again, into the new
 * mapping.  A descriptor restricted to faults from user mode will not do, as
 * system calls would fail with EFAULT instead of waiting.
 *
 * A range is registered for as long as it is protected and no longer, since
 * registration keeps the kernel from merging the mapping with its neighbours.
 *
 * Called by mesh_pass and mesh_fork under the mesh lock.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_fd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* What older <linux/userfaultfd.h> and <sys/mman.h> lack. */
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#	define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12) /* Linux 5.19 */
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#	define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* Linux 6.4 */
#endif
#ifndef USERFAULTFD_IOC_NEW
#	define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* Linux 6.1 */
#endif
#ifndef MADV_POPULATE_READ
#	define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

#define BARRIER_FEATURES                                                       \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

mesh_barrier_t opt_mesh_barrier = mesh_barrier_auto;

const char *const mesh_barrier_names[] = {
    "auto", "userfaultfd", "signal", "none"};

static mesh_barrier_t barrier;
static mesh_fd_t      barrier_fd = MESH_FD_INITIALIZER;
/*
 * Whether protection also covers pages that have no memory yet; if not, they
 * have to be given some first, or a first write would slip through.
 */
static bool barrier_covers_unpopulated;

/* Returns -1 and errno if the kernel has none for us. */
static int
uffd_create(void) {
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd != -1) {
		return fd;
	}
	int err = get_errno();
	int dev = malloc_open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev != -1) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		malloc_close(dev);
	}
	set_errno(err);
	return fd;
}

/* Returns true if the kernel lacks what we need. */
static bool
uffd_handshake(int fd) {
	struct uffdio_api api = {.api = UFFD_API,
	    .features = BARRIER_FEATURES | UFFD_FEATURE_WP_UNPOPULATED};
	barrier_covers_unpopulated = (ioctl(fd, UFFDIO_API, &api) == 0);
	if (barrier_covers_unpopulated) {
		return false;
	}
	api.api = UFFD_API;
	api.features = BARRIER_FEATURES;
	return ioctl(fd, UFFDIO_API, &api) != 0;
}

const char *
mesh_barrier_boot(void) {
	if (opt_mesh_barrier == mesh_barrier_none) {
		assert(config_debug);
		barrier = mesh_barrier_none;
		return NULL;
	}
	if (opt_mesh_barrier == mesh_barrier_signal) {
		return "mesh_barrier:signal is not built yet; use "
		       "mesh_barrier:userfaultfd";
	}
	int fd = uffd_create();
	if (fd == -1) {
		return get_errno() == ENOSYS
		    ? "this kernel has no userfaultfd; use one built with "
		      "CONFIG_USERFAULTFD"
		    : "the process may not use userfaultfd; give it "
		      "CAP_SYS_PTRACE or access to /dev/userfaultfd, or set "
		      "vm.unprivileged_userfaultfd=1";
	}
	bool err = uffd_handshake(fd);
	malloc_close(fd);
	if (err) {
		return "userfaultfd of this kernel cannot write-protect; use "
		       "Linux 5.19 or later";
	}
	barrier = mesh_barrier_userfaultfd;
	return NULL;
}

mesh_barrier_t
mesh_barrier_get(void) {
	return barrier;
}

bool
mesh_barrier_open(void) {
	if (barrier == mesh_barrier_none || mesh_fd_valid(&barrier_fd)) {
		return false;
	}
	int fd = uffd_create();
	if (fd == -1) {
		return true;
	}
	if (uffd_handshake(fd)) {
		malloc_close(fd);
		return true;
	}
	return mesh_fd_set(&barrier_fd, fd);
}

static void
uffd_unregister(struct uffdio_range *range) {
	/* Lifting the protection also wakes who waits. */
	struct uffdio_writeprotect wp = {.range = *range, .mode = 0};
	(void)ioctl(barrier_fd.fd, UFFDIO_WRITEPROTECT, &wp);
	/* Harmless if it fails: without protection there are no faults. */
	(void)ioctl(barrier_fd.fd, UFFDIO_UNREGISTER, range);
}

bool
mesh_barrier_raise(void *addr, size_t size) {
	if (barrier == mesh_barrier_none) {
		return false;
	}
	struct uffdio_register reg = {
	    .range = {.start = (uintptr_t)addr, .len = size},
	    .mode = UFFDIO_REGISTER_MODE_WP};
	if (!barrier_covers_unpopulated
	    && madvise(addr, size, MADV_POPULATE_READ) != 0) {
		return true;
	}
	if (ioctl(barrier_fd.fd, UFFDIO_REGISTER, &reg) != 0) {
		return true;
	}
	struct uffdio_writeprotect wp = {
	    .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	if (ioctl(barrier_fd.fd, UFFDIO_WRITEPROTECT, &wp) != 0) {
		uffd_unregister(&reg.range);
		return true;
	}
	return false;
}

void
mesh_barrier_lower(void *addr, size_t size, bool spliced) {
	if (barrier == mesh_barrier_none) {
		return;
	}
	struct uffdio_range range = {.start = (uintptr_t)addr, .len = size};
	if (spliced) {
		/* The splice itself wakes nobody. */
		(void)ioctl(barrier_fd.fd, UFFDIO_WAKE, &range);
	} else {
		uffd_unregister(&range);
	}
}

void
mesh_barrier_postfork_child(void) {
	mesh_fd_drop(&barrier_fd);
}
