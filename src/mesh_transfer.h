#ifndef JEMALLOC_INTERNAL_MESH_TRANSFER_H
#define JEMALLOC_INTERNAL_MESH_TRANSFER_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

/* A system call that a signal has cut short. */
typedef struct mesh_transfer_s mesh_transfer_t;
struct mesh_transfer_s {
	const uint64_t *seen;
	/* Where it began, if in vectors. */
	const struct iovec *vectors;
	size_t              nvectors;
	/* What it comes to so far: bytes or messages; and what is enough, if not all. */
	uint64_t done;
	uint64_t enough;
	/* The call that goes on with it, its arguments, and what they point to. */
	long          nr;
	uint64_t      args[6];
	struct iovec  iov;
	struct msghdr msg;
};

/*
 * Whether a call would have gone on though it has returned a number.  args have to
 * stay where they are.  With timed, which is for sockets with a timeout, what goes on
 * with it does not wait, sendfile(2) excepted.
 */
bool mesh_transfer_begin(mesh_transfer_t *transfer, long nr,
    const uint64_t *args, long done, bool timed);

/* Sets the arguments for the rest; returns false if there is none. */
bool mesh_transfer_next(mesh_transfer_t *transfer);

/*
 * Whether a socket, or what is none, has a timeout, SO_RCVTIMEO or SO_SNDTIMEO; tv is set
 * to it unless it is NULL.
 */
bool mesh_transfer_timeout(int fd, int option, struct timeval *tv);
/* Whether a descriptor is a regular file's. */
bool mesh_transfer_is_file(int fd);

#endif /* JEMALLOC_INTERNAL_MESH_TRANSFER_H */
