/*
 * File descriptors that a program must not notice.
 *
 * A program's own numbers are its own: a daemon that has closed 0 and opens a file
 * gets 0.  So ours are opened by threads of the program, within malloc() or free(),
 * where it cannot look on, and move at once to numbers that it does not reach:
 * beyond RLIMIT_NOFILE, which counts numbers, not descriptors.  That takes a higher
 * limit for a moment.  Where that is not permitted they are the highest below.  Our
 * background thread opens none; what it lacks it asks for, and the next tick
 * (mesh_pass.c) opens it.
 *
 * A program may close them behind our back all the same.  One that closes every
 * descriptor it does not know and then opens files of its own gets our numbers for
 * them.  So no descriptor is used, or closed, before its inode was compared with the
 * one remembered.
 *
 * Called by whoever has a descriptor, under the mesh lock.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_fd.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* How many numbers ours are to be had from. */
#define FD_ROOM 16
/*
 * The kernel keeps a table as long as the highest number, which each fork copies: so
 * beyond a limit that is higher than this ours are in the middle.
 */
#define FD_LIMIT_MAX 4096
#define FD_MIDDLE 1000

static atomic_b_t fd_wanted;

/* All there are, and their number; guarded by the mesh lock. */
#define FD_OWN_MAX 8
static int      fd_own[FD_OWN_MAX];
static unsigned fd_nown;

/* Whether the calling thread is one of jemalloc's own. */
static bool
thread_is_own(void) {
#ifdef JEMALLOC_BACKGROUND_THREAD
	for (size_t i = 0; background_thread_info != NULL
	     && background_thread_enabled() && i < max_background_threads;
	     i++) {
		if (background_thread_info[i].state == background_thread_started
		    && pthread_equal(
		        background_thread_info[i].thread, pthread_self())) {
			return true;
		}
	}
#endif
	return false;
}

bool
mesh_fd_may_open(void) {
	if (!thread_is_own()) {
		return true;
	}
	atomic_store_b(&fd_wanted, true, ATOMIC_RELAXED);
	set_errno(MESH_EWANTED);
	return false;
}

bool
mesh_fd_wanted(void) {
	return atomic_load_b(&fd_wanted, ATOMIC_RELAXED);
}

void
mesh_fd_wanted_done(void) {
	atomic_store_b(&fd_wanted, false, ATOMIC_RELAXED);
}

/* By number: libc's function may be a cancellation point, malloc() is none. */
static int
fd_dup(int fd, rlim_t least) {
	return (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, (long)least);
}

/* Lets descriptors have numbers beyond the limit; true if that is not permitted. */
static bool
limit_raise(const struct rlimit *limit) {
	struct rlimit more = *limit;
	more.rlim_cur += FD_ROOM;
	if (more.rlim_max < more.rlim_cur) {
		more.rlim_max = more.rlim_cur;
	}
	return setrlimit(RLIMIT_NOFILE, &more) != 0;
}

/* The same descriptor at a number beyond the limit; -1 if that is not permitted. */
static int
fd_dup_beyond(int fd, const struct rlimit *limit) {
	if (limit_raise(limit)) {
		return -1;
	}
	int high = fd_dup(fd, limit->rlim_cur);
	(void)setrlimit(RLIMIT_NOFILE, limit);
	return high;
}

int
mesh_fd_memfd(const char *name) {
	unsigned cloexec = 1; /* MFD_CLOEXEC */
	int      fd = (int)syscall(SYS_memfd_create, name, cloexec);
	struct rlimit limit;
	if (fd == -1 && get_errno() == EMFILE
	    && getrlimit(RLIMIT_NOFILE, &limit) == 0 && !limit_raise(&limit)) {
		fd = (int)syscall(SYS_memfd_create, name, cloexec);
		int err = get_errno();
		(void)setrlimit(RLIMIT_NOFILE, &limit);
		set_errno(err);
	}
	return fd;
}

/* Closes fd, and returns the same descriptor at a number out of the way, or -1. */
static int
fd_move(int fd) {
	struct rlimit limit;
	int           high = -1;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		if (limit.rlim_cur > FD_LIMIT_MAX) {
			high = fd_dup(fd, FD_MIDDLE);
		} else {
			high = fd_dup_beyond(fd, &limit);
			if (high == -1 && limit.rlim_cur > FD_ROOM) {
				high = fd_dup(fd, limit.rlim_cur - FD_ROOM);
			}
		}
	}
	int err = get_errno();
	malloc_close(fd);
	set_errno(err);
	return high;
}

static void
fd_forget(mesh_fd_t *mfd) {
	for (unsigned i = 0; mfd->fd != -1 && i < fd_nown; i++) {
		if (fd_own[i] == mfd->fd) {
			fd_own[i] = fd_own[--fd_nown];
		}
	}
	mfd->fd = -1;
}

bool
mesh_fd_set(mesh_fd_t *mfd, int fd) {
	struct stat st;
	fd = fd_move(fd);
	if (fd == -1) {
		return true;
	}
	if (fstat(fd, &st) != 0) {
		int err = get_errno();
		malloc_close(fd);
		set_errno(err);
		return true;
	}
	/* The program may have closed the last one. */
	fd_forget(mfd);
	mfd->dev = st.st_dev;
	mfd->ino = st.st_ino;
	mfd->fd = fd;
	assert(fd_nown < FD_OWN_MAX);
	fd_own[fd_nown++] = fd;
	return false;
}

unsigned
mesh_fd_count(void) {
	return fd_nown;
}

bool
mesh_fd_is_own(int fd) {
	unsigned i = 0;
	while (i < fd_nown && fd_own[i] != fd) {
		i++;
	}
	return i < fd_nown;
}

bool
mesh_fd_stat(const mesh_fd_t *mfd, struct stat *st) {
	return mfd->fd != -1 && fstat(mfd->fd, st) == 0
	    && st->st_dev == mfd->dev && st->st_ino == mfd->ino;
}

bool
mesh_fd_valid(const mesh_fd_t *mfd) {
	struct stat st;
	return mesh_fd_stat(mfd, &st);
}

bool
mesh_fd_read_text(int dir, const char *path, char *text, size_t size) {
	int fd = (int)syscall(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC);
	if (fd == -1) {
		return true;
	}
	ssize_t n = malloc_read_fd(fd, text, size - 1);
	malloc_close(fd);
	if (n <= 0) {
		return true;
	}
	text[n] = '\0';
	return false;
}

void
mesh_fd_drop(mesh_fd_t *mfd) {
	if (mesh_fd_valid(mfd)) {
		malloc_close(mfd->fd);
	}
	fd_forget(mfd);
}
