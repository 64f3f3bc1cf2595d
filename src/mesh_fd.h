#ifndef JEMALLOC_INTERNAL_MESH_FD_H
#define JEMALLOC_INTERNAL_MESH_FD_H

#include "jemalloc/internal/jemalloc_preamble.h"

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

/* What errno is set to if descriptors are wanted, but not to be opened here. */
#define MESH_EWANTED EINPROGRESS

/*
 * Whether this thread may open descriptors.  If not, errno is MESH_EWANTED, and a
 * thread that may is asked to open them all.
 */
bool mesh_fd_may_open(void);
/* Whether somebody was asked; no lock needed. */
bool mesh_fd_wanted(void);
/* They are open now, or cannot be. */
void mesh_fd_wanted_done(void);

/*
 * memfd_create(2), also where the program has used up all numbers: the one before,
 * which it is made instead of, had none of those.
 */
int mesh_fd_memfd(const char *name);
/*
 * Moves fd to where it is in nobody's way, and remembers it.  Returns true, fd
 * closed, and errno, if that cannot be done.
 */
bool mesh_fd_set(mesh_fd_t *mfd, int fd);
/* Whether the descriptor is still ours; st gets what fstat said. */
bool mesh_fd_stat(const mesh_fd_t *mfd, struct stat *st);
bool mesh_fd_valid(const mesh_fd_t *mfd);
/* How many there are, and whether a number is one of them. */
unsigned mesh_fd_count(void);
bool     mesh_fd_is_own(int fd);
/*
 * Reads the beginning of a file, a path from the directory dir or AT_FDCWD, as a string
 * of less than size bytes; for a moment that takes a descriptor.  Returns true if it
 * cannot be read, or is empty.
 */
bool mesh_fd_read_text(int dir, const char *path, char *text, size_t size);
/* Closes the descriptor if it is still ours, and forgets it. */
void mesh_fd_drop(mesh_fd_t *mfd);

#endif /* JEMALLOC_INTERNAL_MESH_FD_H */
