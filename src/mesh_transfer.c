/*
 * Transfers that a signal has cut short, as write(2) of more than fits into a pipe: who
 * asked for a blocking one expects all of it, and gets less only if a signal comes.
 * Which is why they have to be gone on with if that was ours.
 *
 * Those to and from pipes and sockets, writes to terminals, zeros and random numbers, and
 * from file to file, where the kernel itself goes on until there is no more or no room.
 * Not where what was transferred may have come with other things, as descriptors do.
 *
 * Called by mesh_call in the handler of a signal: uses the stack and system calls only.
 * The kernel has just read the arguments, so what they point to is there.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_transfer.h"

#include <fcntl.h>
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

static bool
fd_is_socket(int fd) {
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* If not, what is transferred at once is all that is wanted. */
static bool
fd_waits(int fd) {
	int flags = fcntl(fd, F_GETFL);
	return flags >= 0 && (flags & O_NONBLOCK) == 0;
}

/* Whether what is written there is written to its end. */
static bool
fd_takes_all(int fd) {
	struct stat st;
	return fd_waits(fd) && fstat(fd, &st) == 0
	    && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)
	        || (S_ISCHR(st.st_mode) && fd_is_terminal(fd)));
}

bool
mesh_transfer_is_file(int fd) {
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
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
socket_sends_all(int fd, uint64_t flags) {
	return (flags & MSG_DONTWAIT) == 0 && fd_waits(fd);
}

static bool
socket_receives_all(int fd, uint64_t flags) {
	return (flags & (MSG_WAITALL | MSG_PEEK | MSG_DONTWAIT)) == MSG_WAITALL
	    && fd_waits(fd);
}

/*
 * Whether a stream socket waits for more than has come, SO_RCVLOWAT.  A signal that comes
 * while a thread is on its way to sleep there ends that.
 */
static bool
socket_waits_on(mesh_transfer_t *transfer, int fd, uint64_t flags) {
	int       mark = 0, type = 0;
	socklen_t size = sizeof(mark);
	if ((flags & (MSG_PEEK | MSG_DONTWAIT)) != 0
	    || syscall(
	           SYS_getsockopt, fd, SOL_SOCKET, SO_RCVLOWAT, &mark, &size)
	        != 0
	    || (uint64_t)mark <= transfer->done
	    || syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &size)
	        != 0) {
		return false;
	}
	transfer->enough = (uint64_t)mark;
	return type == SOCK_STREAM && fd_waits(fd);
}

bool
mesh_transfer_begin(mesh_transfer_t *transfer, long nr, const uint64_t *seen,
    long done, bool timed) {
	int       fd = (int)seen[0];
	uint64_t *args = transfer->args;
	uint64_t  wait = timed ? MSG_DONTWAIT : 0;
	/* Where a part is sent the end of the connection is not a reason for SIGPIPE. */
	uint64_t             send = wait | MSG_NOSIGNAL;
	const struct msghdr *msg = (const struct msghdr *)seen[1];
	transfer->nr = nr;
	transfer->seen = seen;
	transfer->done = (uint64_t)done;
	transfer->enough = UINT64_MAX;
	memcpy(args, seen, sizeof(transfer->args));
	switch (nr) {
	case SYS_getrandom:
		return true;
	case SYS_read:
		if (socket_waits_on(transfer, fd, 0)) {
			transfer->nr = SYS_recvfrom;
			args[3] = wait;
			args[4] = 0;
			args[5] = 0;
			return true;
		}
		JEMALLOC_FALLTHROUGH;
	case SYS_pread64:
		return fd_gives_all(fd);
	case SYS_readv:
	case SYS_preadv:
	case SYS_preadv2:
		transfer->vectors = (const struct iovec *)seen[1];
		transfer->nvectors = (size_t)seen[2];
		return fd_gives_all(fd);
	case SYS_copy_file_range:
		return true;
	case SYS_write:
		if (fd_is_socket(fd)) {
			transfer->nr = SYS_sendto;
			args[3] = send;
			args[4] = 0;
			args[5] = 0;
		}
		return fd_takes_all(fd);
	case SYS_writev:
		transfer->vectors = (const struct iovec *)seen[1];
		transfer->nvectors = (size_t)seen[2];
		if (fd_is_socket(fd)) {
			transfer->nr = SYS_sendmsg;
			args[2] = send;
		}
		return fd_takes_all(fd);
	case SYS_sendfile:
		return fd_takes_all(fd) || mesh_transfer_is_file(fd);
	case SYS_sendto:
		args[3] |= send;
		return socket_sends_all(fd, seen[3]);
	case SYS_sendmsg:
		transfer->vectors = msg->msg_iov;
		transfer->nvectors = msg->msg_iovlen;
		args[2] |= send;
		return socket_sends_all(fd, seen[2]);
	case SYS_sendmmsg:
		args[3] |= wait;
		return socket_sends_all(fd, seen[3]);
	case SYS_recvfrom:
		args[3] |= wait;
		return socket_receives_all(fd, seen[3])
		    || socket_waits_on(transfer, fd, seen[3]);
	case SYS_recvmsg:
		transfer->vectors = msg->msg_iov;
		transfer->nvectors = msg->msg_iovlen;
		args[2] |= wait;
		return socket_receives_all(fd, seen[2])
		    && msg->msg_control == NULL;
	case SYS_recvmmsg:
		args[3] |= wait;
		return (seen[3] & (MSG_WAITFORONE | MSG_DONTWAIT)) == 0
		    && fd_waits(fd);
	default:
		return false;
	}
}

/* Where to go on in vectors: in the rest of one, or with whole ones. */
static bool
vectors_next(
    mesh_transfer_t *transfer, const struct iovec **vectors, size_t *nvectors) {
	uint64_t done = transfer->done;
	*vectors = transfer->vectors;
	*nvectors = transfer->nvectors;
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
	case SYS_readv:
	case SYS_preadv:
	case SYS_preadv2:
	case SYS_writev: {
		const struct iovec *vectors;
		size_t              n;
		bool                more = vectors_next(transfer, &vectors, &n);
		args[1] = (uintptr_t)vectors;
		args[2] = n;
		return more;
	}
	case SYS_sendmsg:
	case SYS_recvmsg: {
		const struct iovec *vectors;
		size_t              n;
		bool                more = vectors_next(transfer, &vectors, &n);
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
	case SYS_copy_file_range:
		/* In both. */
		args[4] = seen[4] - done;
		return done < seen[4];
	default: {
		/* The buffer, and after it how long that is. */
		unsigned where = transfer->nr == SYS_getrandom ? 0 : 1;
		args[where] = seen[where] + done;
		args[where + 1] = seen[where + 1] - done;
		return done < seen[where + 1] && done < transfer->enough;
	}
	}
}
