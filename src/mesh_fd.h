#ifndef JEMALLOC_INTERNAL_MESH_FD_H
#define JEMALLOC_INTERNAL_MESH_FD_H

/*
 * File descriptors that a program may close behind our back.
 *
 * A daemon that closes every descriptor it does not know and then opens files
 * of its own gets our numbers for them.  So no descriptor is used, or closed,
 * before its inode was compared with the one remembered.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/malloc_io.h"

#include <sys/stat.h>

typedef struct mesh_fd_s mesh_fd_t;
struct mesh_fd_s {
	/* The number, -1 if none. */
	int fd;
	/* What it referred to when it was ours. */
	dev_t dev;
	ino_t ino;
};

#define MESH_FD_INITIALIZER                                                    \
	{ -1, 0, 0 }

/* Remembers fd.  Returns true, and closes fd, if it cannot be examined. */
static inline bool
mesh_fd_set(mesh_fd_t *mfd, int fd) {
	struct stat st;
	if (fstat(fd, &st) != 0) {
		malloc_close(fd);
		return true;
	}
	mfd->dev = st.st_dev;
	mfd->ino = st.st_ino;
	mfd->fd = fd;
	return false;
}

/* Whether the descriptor is still ours; st gets what fstat said. */
static inline bool
mesh_fd_stat(const mesh_fd_t *mfd, struct stat *st) {
	return mfd->fd != -1 && fstat(mfd->fd, st) == 0
	    && st->st_dev == mfd->dev && st->st_ino == mfd->ino;
}

static inline bool
mesh_fd_valid(const mesh_fd_t *mfd) {
	struct stat st;
	return mesh_fd_stat(mfd, &st);
}

/* Closes the descriptor if it is still ours, and forgets it. */
static inline void
mesh_fd_drop(mesh_fd_t *mfd) {
	if (mesh_fd_valid(mfd)) {
		malloc_close(mfd->fd);
	}
	mfd->fd = -1;
}

#endif /* JEMALLOC_INTERNAL_MESH_FD_H */
