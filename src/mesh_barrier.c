/*
 * The barrier: what keeps writers away from a slab while it is copied.
 *
 * Preferably userfaultfd(2) in write-protect mode.  A thread that writes to a
 * protected page waits in the page fault, and so does a system call that writes
 * there, as read(2) into a heap buffer; neither sees an error.  Nobody answers
 * the fault: once the range is spliced, a wake lets the writers fault again, into
 * the new mapping.  A descriptor restricted to faults from user mode will not do,
 * as system calls would fail with EFAULT instead of waiting.
 *
 * A private range is registered for as long as it is protected and no longer,
 * since registration keeps the kernel from merging the mapping with its neighbours.
 * A spliced one stays registered if there can be a viewer (mesh_view.c): then the
 * kernel maps its pages read-only until they are written, and at a fork only pages
 * that have been written cost an interruption of all processors.
 *
 * Where the process may not use that, all other threads are stopped for the time
 * of a batch (mesh_stop.c).
 *
 * Called by mesh_pass and mesh_fork under the mesh lock.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
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
static const char    *barrier_reason = "";
/* What the mesher had blocked before it began. */
static uint64_t  barrier_signals;
static mesh_fd_t barrier_fd = MESH_FD_INITIALIZER;
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

/* Returns the reason why it cannot be used, or NULL. */
static const char *
uffd_boot(void) {
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
	return err ? "userfaultfd of this kernel cannot write-protect; use "
	             "Linux 5.19 or later"
	           : NULL;
}

const char *
mesh_barrier_boot(void) {
	barrier = opt_mesh_barrier;
	if (barrier == mesh_barrier_none) {
		assert(config_debug);
		return NULL;
	}
	if (barrier != mesh_barrier_signal) {
		const char *why = uffd_boot();
		if (why == NULL) {
			barrier = mesh_barrier_userfaultfd;
			return NULL;
		}
		if (barrier == mesh_barrier_userfaultfd) {
			return why;
		}
		barrier_reason = why;
		barrier = mesh_barrier_signal;
	}
	return mesh_stop_boot();
}

mesh_barrier_t
mesh_barrier_get(void) {
	return barrier;
}

const char *
mesh_barrier_reason(void) {
	return barrier_reason;
}

void
mesh_thread_enter(void) {
	if (opt_mesh && barrier == mesh_barrier_signal) {
		mesh_stop_thread_enter();
	}
}

bool
mesh_barrier_open(void) {
	if (barrier != mesh_barrier_userfaultfd || mesh_fd_valid(&barrier_fd)) {
		return false;
	}
	int fd = uffd_create();
	if (fd != -1 && uffd_handshake(fd)) {
		malloc_close(fd);
		return true;
	}
	return fd == -1 || mesh_fd_set(&barrier_fd, fd);
}

const mesh_fd_t *
mesh_barrier_fd(void) {
	return &barrier_fd;
}

/*
 * sigprocmask() with the kernel's idea of all signals: sigfillset() leaves out
 * those that libc reserves.
 */
static void
signals_set(uint64_t mask, uint64_t *old) {
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, old, sizeof(mask));
}

const char *
mesh_barrier_begin(void) {
	/* A handler that wrote to the heap would wait for this very thread. */
	signals_set(~UINT64_C(0), &barrier_signals);
	const char *why = barrier == mesh_barrier_signal ? mesh_stop_world()
	                                                 : NULL;
	if (why != NULL) {
		signals_set(barrier_signals, NULL);
	}
	return why;
}

void
mesh_barrier_end(void) {
	if (barrier == mesh_barrier_signal) {
		mesh_stop_resume();
	}
	signals_set(barrier_signals, NULL);
}

/* Keeps errno: what went wrong before matters more. */
static void
barrier_release(uintptr_t start, size_t size) {
	int  fd = barrier_fd.fd;
	int  err = get_errno();
	bool failed = mesh_uffd_insist(mesh_uffd_lift, fd, start, size);
	(void)mesh_uffd_insist(mesh_uffd_unregister, fd, start, size);
	if (failed) {
		(void)mesh_uffd_insist(mesh_uffd_wake, fd, start, size);
	}
	set_errno(err);
}

bool
mesh_barrier_raise(void *addr, size_t size) {
	if (barrier != mesh_barrier_userfaultfd) {
		bool busy = barrier == mesh_barrier_signal
		    && mesh_stop_stands_on(addr, size);
		if (busy) {
			set_errno(EBUSY);
		}
		return busy;
	}
	int       fd = barrier_fd.fd;
	uintptr_t start = (uintptr_t)addr;
	if (!barrier_covers_unpopulated
	    && madvise(addr, size, MADV_POPULATE_READ) != 0) {
		return true;
	}
	if (mesh_uffd_register(fd, start, size)) {
		int err = get_errno();
		/* Of several mappings the first ones may be registered. */
		(void)mesh_uffd_unregister(fd, start, size);
		set_errno(err);
		return true;
	}
	if (mesh_uffd_protect(fd, start, size)) {
		barrier_release(start, size);
		return true;
	}
	return false;
}

void
mesh_barrier_lower(void *addr, size_t size, bool spliced) {
	if (barrier != mesh_barrier_userfaultfd) {
		return;
	}
	if (spliced) {
		/* The splice itself wakes nobody. */
		(void)mesh_uffd_insist(
		    mesh_uffd_wake, barrier_fd.fd, (uintptr_t)addr, size);
	} else {
		barrier_release((uintptr_t)addr, size);
	}
}

void
mesh_barrier_keep(void *addr, size_t size) {
	if (barrier == mesh_barrier_userfaultfd && have_background_thread
	    && background_thread_enabled()) {
		/* If refused, a fork takes longer. */
		(void)mesh_uffd_register(barrier_fd.fd, (uintptr_t)addr, size);
	}
}

void
mesh_barrier_postfork_child(void) {
	mesh_fd_drop(&barrier_fd);
	mesh_stop_postfork_child();
}
