/*
 * The barrier: what keeps writers away from a slab while it is copied.
 *
 * Preferably userfaultfd(2).  It can take the pages of a private range away, to a
 * place of ours, from which they are copied (UFFDIO_MOVE, Linux 6.8).  The kernel
 * refuses that to pages that must not be left behind: such that a device writes
 * to, that another process has as well, or whose mapping is not plain read and
 * write.  Whoever touches the range waits in the page fault, and so does a system
 * call that reads or writes there; neither sees an error.  Nobody answers the fault:
 * once the range is spliced, a wake lets them fault again, into the new mapping.  If
 * it is not spliced after all, the pages move back.
 *
 * Ranges that map the store already, and all where the kernel cannot move pages,
 * are write-protected instead: then those wait that write.  A descriptor restricted
 * to faults from user mode will not do, as system calls would fail with EFAULT
 * instead of waiting.
 *
 * A private range is registered for as long as it is protected and no longer,
 * since registration keeps the kernel from merging the mapping with its neighbours.
 * A spliced one stays registered if there can be a viewer (mesh_view.c): then the
 * kernel maps its pages read-only until they are written, and at a fork only pages
 * that have been written cost an interruption of all processors.
 *
 * Where the process may not use that, all other threads are stopped for the time
 * of a batch (mesh_stop.c).  So they are, beside userfaultfd, in programs that have
 * mutexes for which the kernel does not wait (mesh_mutex.c): one may be made, locked
 * and waited for between the look at its slab and the end of the batch.
 *
 * Called by mesh_pass and mesh_fork under the mesh lock.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_mutex.h"
#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_task.h"
#include "jemalloc/internal/mesh_uffd.h"
#include "jemalloc/internal/mesh_worker.h"

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

#ifndef UFFD_FEATURE_MOVE
#	define UFFD_FEATURE_MOVE (1 << 16) /* Linux 6.8 */
#endif

#define BARRIER_FEATURES                                                       \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* What threads stand still for before the last of them has been stopped. */
#define BARRIER_SLOW_NS UINT64_C(2000000)

mesh_barrier_t opt_mesh_barrier = mesh_barrier_auto;

const char *const mesh_barrier_names[] = {
    "auto", "move", "userfaultfd", "signal", "none"};

static mesh_barrier_t barrier;
static const char    *barrier_reason = "";
/* Whether this batch has all other threads stopped. */
static bool barrier_stops;
/* What the mesher had blocked before it began. */
static uint64_t  barrier_signals;
static mesh_fd_t barrier_fd = MESH_FD_INITIALIZER;
/*
 * Whether protection also covers pages that have no memory yet; if not, they
 * have to be given some first, or a first write would slip through.
 */
static bool barrier_covers_unpopulated;
/*
 * Where the pages of private ranges move to; NULL if there is no such place now.
 * Guarded by the mesh lock.
 */
static byte_t *barrier_room;
static size_t  barrier_room_size;
static size_t  barrier_room_used;

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

/* Returns true if the kernel lacks any of the features. */
static bool
uffd_ask(int fd, uint64_t features) {
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	return ioctl(fd, UFFDIO_API, &api) != 0;
}

/* Returns true if the kernel lacks what the barrier needs. */
static bool
uffd_handshake(int fd) {
	uint64_t need = BARRIER_FEATURES;
	if (barrier == mesh_barrier_move) {
		need |= UFFD_FEATURE_MOVE;
	}
	barrier_covers_unpopulated = !uffd_ask(
	    fd, need | UFFD_FEATURE_WP_UNPOPULATED);
	return !barrier_covers_unpopulated && uffd_ask(fd, need);
}

/* Returns the reason why the barrier cannot be used, or NULL. */
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
	return !err ? NULL
	    : barrier == mesh_barrier_move
	    ? "userfaultfd of this kernel cannot move pages, so that memory in "
	      "use by devices is not recognised; use Linux 6.8 or later"
	    : "userfaultfd of this kernel cannot write-protect; use Linux 5.19 "
	      "or later";
}

const char *
mesh_barrier_boot(void) {
	barrier = opt_mesh_barrier;
	barrier_reason = "";
	if (barrier == mesh_barrier_none) {
		assert(config_debug);
		return NULL;
	}
	bool choose = (barrier == mesh_barrier_auto);
	if (choose) {
		barrier = mesh_barrier_move;
	}
	while (mesh_barrier_is_uffd()) {
		const char *why = uffd_boot();
		if (why == NULL) {
			/* If that fails so will stops, should there be any. */
			(void)mesh_stop_boot();
			return NULL;
		}
		if (!choose) {
			return why;
		}
		/* The next one; the last reason is the one that matters most. */
		barrier_reason = why;
		barrier++;
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

bool
mesh_barrier_is_uffd(void) {
	return barrier == mesh_barrier_move
	    || barrier == mesh_barrier_userfaultfd;
}

bool
mesh_barrier_open(void) {
	if (!mesh_barrier_is_uffd() || mesh_fd_valid(&barrier_fd)) {
		return false;
	}
	if (!mesh_fd_may_open()) {
		return true;
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
	barrier_stops = barrier == mesh_barrier_signal
	    || (mesh_barrier_is_uffd() && mesh_mutex_seen());
	/* Beside userfaultfd only for mutexes, of which jemalloc has none like that. */
	const char *why = barrier_stops
	    ? mesh_stop_world(barrier == mesh_barrier_signal)
	    : NULL;
	if (why != NULL) {
		signals_set(barrier_signals, NULL);
	}
	return why;
}

bool
mesh_barrier_is_slow(void) {
	return barrier_stops && mesh_stop_took_ns() > BARRIER_SLOW_NS;
}

void
mesh_barrier_end(void) {
	if (barrier_stops) {
		mesh_stop_resume();
	}
	signals_set(barrier_signals, NULL);
}

/******************************************************************************/
/* Ranges that are write-protected. */

/* Keeps errno: what went wrong before matters more. */
static void
protect_lower(uintptr_t start, size_t size) {
	int  fd = barrier_fd.fd;
	int  err = get_errno();
	bool failed = mesh_uffd_insist(mesh_uffd_lift, fd, start, size);
	(void)mesh_uffd_insist(mesh_uffd_unregister, fd, start, size);
	if (failed) {
		(void)mesh_uffd_insist(mesh_uffd_wake, fd, start, size);
	}
	set_errno(err);
}

/* Returns true if the kernel refused. */
static bool
protect_raise(void *addr, size_t size) {
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
		protect_lower(start, size);
		return true;
	}
	return false;
}

/******************************************************************************/
/* Ranges whose pages move away. */

bool
mesh_barrier_reserve(size_t size) {
	if (barrier != mesh_barrier_move || size == 0) {
		return false;
	}
	byte_t *room = (byte_t *)mmap(NULL, size, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		return true;
	}
	barrier_room = room;
	barrier_room_size = size;
	barrier_room_used = 0;
	/* Holes read as zeros there: nobody would answer for missing pages. */
	if (mesh_range_locked(room, size)
	    || mesh_uffd_register(barrier_fd.fd, (uintptr_t)room, size)) {
		int err = get_errno();
		mesh_barrier_unreserve();
		set_errno(err);
		return true;
	}
	return false;
}

void
mesh_barrier_unreserve(void) {
	if (barrier_room != NULL) {
		munmap(barrier_room, barrier_room_size);
		barrier_room = NULL;
		barrier_room_size = 0;
	}
}

/*
 * Puts the first moved bytes back, and lets on who waits for any of the range; keeps
 * errno.  They must not be lost, and the kernel has no lasting reason to refuse.
 */
static void
move_back(uintptr_t start, size_t size, uintptr_t from, size_t moved) {
	int      fd = barrier_fd.fd;
	int      err = get_errno();
	size_t   done = 0;
	unsigned tries = 0;
	while ((done += mesh_uffd_move(
	            fd, start + done, from + done, moved - done))
	    < moved) {
		/* A page that cannot move any more, as when KSM has merged it. */
		if (!mesh_uffd_copy(fd, start + done, from + done)
		    || get_errno() == EEXIST) {
			done += PAGE;
			tries = 0;
		} else {
			mesh_range_lost(&tries);
		}
	}
	(void)mesh_uffd_insist(mesh_uffd_unregister, fd, start, size);
	(void)mesh_uffd_insist(mesh_uffd_wake, fd, start, size);
	set_errno(err);
}

/* Returns where the pages are now, NULL if the kernel refused. */
static const byte_t *
move_raise(void *addr, size_t size) {
	int       fd = barrier_fd.fd;
	uintptr_t start = (uintptr_t)addr;
	byte_t   *to = barrier_room + barrier_room_used;
	assert(size <= barrier_room_size - barrier_room_used);
	if (mesh_uffd_register_missing(fd, start, size)) {
		int err = get_errno();
		/* Of several mappings the first ones may be registered. */
		(void)mesh_uffd_unregister(fd, start, size);
		set_errno(err);
		return NULL;
	}
	size_t moved = mesh_uffd_move(fd, (uintptr_t)to, start, size);
	if (moved < size) {
		if (get_errno() == EAGAIN || get_errno() == EINVAL) {
			/* In the kernel's hands, or not plainly read and written. */
			set_errno(EBUSY);
		}
		move_back(start, size, (uintptr_t)to, moved);
		return NULL;
	}
	barrier_room_used += size;
	return to;
}

/******************************************************************************/

const void *
mesh_barrier_raise(void *addr, size_t size, bool stored) {
	if (barrier == mesh_barrier_move && !stored) {
		return move_raise(addr, size);
	}
	if (mesh_barrier_is_uffd()) {
		return protect_raise(addr, size) ? NULL : addr;
	}
	if (barrier == mesh_barrier_signal && mesh_stop_stands_on(addr, size)) {
		set_errno(EBUSY);
		return NULL;
	}
	return addr;
}

void
mesh_barrier_lower(
    void *addr, size_t size, const void *contents, bool spliced) {
	if (!mesh_barrier_is_uffd()) {
		return;
	}
	uintptr_t start = (uintptr_t)addr;
	if (spliced) {
		/* The splice itself wakes nobody. */
		(void)mesh_uffd_insist(
		    mesh_uffd_wake, barrier_fd.fd, start, size);
	} else if (contents != addr) {
		move_back(start, size, (uintptr_t)contents, size);
	} else {
		protect_lower(start, size);
	}
}

void
mesh_barrier_keep(void *addr, size_t size) {
	if (mesh_barrier_is_uffd() && mesh_worker_permitted()) {
		/* If refused, a fork takes longer. */
		(void)mesh_uffd_register(barrier_fd.fd, (uintptr_t)addr, size);
	}
}

void
mesh_barrier_postfork_child(void) {
	mesh_fd_drop(&barrier_fd);
	mesh_stop_postfork_child();
}
