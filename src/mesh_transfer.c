/*
 * Transfers that a signal has cut short, as write(2) of more than fits into a pipe: who
 * asked for a blocking one expects all of it, and gets less only if a signal comes.
 * Which is why they have to be gone on with if that was ours.
 *
 * Those to and from pipes and sockets, writes to terminals, zeros and random numbers.
 * Not on sockets with timeouts, as it is not known what is left of these, and not where
 * what was transferred may have come with other things, as descriptors do.  Files may be
 * full, and then a signal would say so.
 *
 * Called by mesh_call in the handler of a signal: uses the stack and system calls only.
 * The kernel has just read the arguments, so what they point to is there.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_transfer.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <termios.h>

bool
mesh_transfer_timeout(int fd, int option, struct timeval *tv) {
	struct timeval here = {0, 0};
	socklen_t      size = sizeof(here);
	tv = tv == NULL ? &here : tv;
	return syscall(SYS_getsockopt, fd, SOL_SOCKET, option, tv, &size) == 0
	    && (tv->tv_sec != 0 || tv->tv_usec != 0);
}

static bool
fd_is_terminal(int fd) {
	struct termios termios;
	return tcgetattr(fd, &termios) == 0;
}

/* Whether what is written there is written to its end. */
static bool
fd_takes_all(int fd) {
	struct stat st;
	return fstat(fd, &st) == 0
	    && (S_ISFIFO(st.st_mode)
	        || (S_ISSOCK(st.st_mode)
	            && !mesh_transfer_timeout(fd, SO_SNDTIMEO, NULL))
	        || (S_ISCHR(st.st_mode) && fd_is_terminal(fd)));
}

/* Whether it gives zeros or random numbers, as many as one likes. */
static bool
fd_gives_all(int fd) {
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode)
	    && major(st.st_rdev) == 1
	    && (minor(st.st_rdev) == 5 || minor(st.st_rdev) == 8
	        || minor(st.st_rdev) == 9);
}

static bool
fd_waits_for_all(int fd, uint64_t flags) {
	return (flags & (MSG_WAITALL | MSG_PEEK)) == MSG_WAITALL
	    && !mesh_transfer_timeout(fd, SO_RCVTIMEO, NULL);
}

bool
mesh_transfer_begin(
    mesh_transfer_t *transfer, long nr, const uint64_t *args, long done) {
	int fd = (int)args[0];
	transfer->nr = nr;
	transfer->seen = args;
	transfer->done = (uint64_t)done;
	memcpy(transfer->args, args, sizeof(transfer->args));
	switch (nr) {
	case SYS_getrandom:
		return true;
	case SYS_read:
		return fd_gives_all(fd);
	case SYS_write:
	case SYS_writev:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_sendfile:
		return fd_takes_all(fd);
	case SYS_recvfrom:
		return fd_waits_for_all(fd, args[3]);
	case SYS_recvmsg:
		return fd_waits_for_all(fd, args[2])
		    && ((const struct msghdr *)args[1])->msg_control == NULL;
	case SYS_recvmmsg:
		return (args[3] & MSG_WAITFORONE) == 0
		    && !mesh_transfer_timeout(fd, SO_RCVTIMEO, NULL);
	default:
		return false;
	}
}

/* Where to go on in vectors: in the rest of one, or with whole ones. */
static bool
vectors_next(
    mesh_transfer_t *transfer, const struct iovec **vectors, size_t *nvectors) {
	uint64_t done = transfer->done;
	while (*nvectors > 0 && done >= (*vectors)->iov_len) {
		done -= (*vectors)->iov_len;
		(*vectors)++;
		(*nvectors)--;
	}
	if (*nvectors == 0 || done == 0) {
		return *nvectors > 0;
	}
	transfer->iov.iov_base = (byte_t *)(*vectors)->iov_base + done;
	transfer->iov.iov_len = (*vectors)->iov_len - done;
	*vectors = &transfer->iov;
	*nvectors = 1;
	return true;
}

static bool
message_is_whole(const struct mmsghdr *message) {
	uint64_t size = 0;
	for (size_t i = 0; i < message->msg_hdr.msg_iovlen; i++) {
		size += message->msg_hdr.msg_iov[i].iov_len;
	}
	return message->msg_len == size;
}

bool
mesh_transfer_next(mesh_transfer_t *transfer) {
	const uint64_t *seen = transfer->seen;
	uint64_t       *args = transfer->args;
	uint64_t        done = transfer->done;
	switch (transfer->nr) {
	case SYS_writev: {
		const struct iovec *vectors = (const struct iovec *)seen[1];
		size_t              n = (size_t)seen[2];
		bool                more = vectors_next(transfer, &vectors, &n);
		args[1] = (uintptr_t)vectors;
		args[2] = n;
		return more;
	}
	case SYS_sendmsg:
	case SYS_recvmsg: {
		const struct msghdr *msg = (const struct msghdr *)seen[1];
		const struct iovec  *vectors = msg->msg_iov;
		size_t               n = msg->msg_iovlen;
		bool more = vectors_next(transfer, &vectors, &n);
		memset(&transfer->msg, 0, sizeof(transfer->msg));
		transfer->msg.msg_iov = (struct iovec *)(uintptr_t)vectors;
		transfer->msg.msg_iovlen = n;
		args[1] = (uintptr_t)&transfer->msg;
		return more;
	}
	case SYS_sendmmsg:
	case SYS_recvmmsg: {
		const struct mmsghdr *messages = (const struct mmsghdr *)
		    seen[1];
		args[1] = (uintptr_t)&messages[done];
		args[2] = (unsigned)seen[2] - done;
		return done < (unsigned)seen[2]
		    && (transfer->nr == SYS_recvmmsg
		        || message_is_whole(&messages[done - 1]));
	}
	case SYS_sendfile:
		/* It has moved on in the file. */
		args[3] = seen[3] - done;
		return done < seen[3];
	default: {
		/* The buffer, and after it how long that is. */
		unsigned where = transfer->nr == SYS_getrandom ? 0 : 1;
		args[where] = seen[where] + done;
		args[where + 1] = seen[where + 1] - done;
		return done < seen[where + 1];
	}
	}
}
