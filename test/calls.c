/*
 * Makes system calls that a signal may spoil, while another thread has the heap meshed,
 * and says what came of them.  Each case is one kind of call; see cases below.
 *
 * usage: calls CASE [KIND]
 */
#define _GNU_SOURCE
#include "scenario.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define NOBJECTS 65536
#define MS UINT64_C(1000000)

static table_t       table;
static atomic_bool   stop;
static atomic_uint   bad;
static atomic_ullong count;
/* Which of a case's calls. */
static const char *kind = "";

static bool
kind_is(const char *name) {
	return strcmp(kind, name) == 0;
}

/* Makes the heap sparse anew, and has it meshed. */
static void
mesh_once(void) {
	bad += table_renew(&table, NOBJECTS, 256, 0.1);
	ctl_do("thread.tcache.flush");
	mesh_pass();
	bad += table_check(&table);
}

static pthread_t    mesher;
static atomic_ulong mesher_wait_ms;

/* Takes no signals of the program's. */
static void *
mesher_main(void *arg) {
	(void)arg;
	sigset_t set;
	sigfillset(&set);
	sigdelset(&set, SIGURG);
	sigdelset(&set, SIGWINCH);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	sleep_ms((unsigned)mesher_wait_ms);
	while (!stop) {
		mesh_once();
	}
	return NULL;
}

/* Meshing begins after so long. */
static void
mesher_start(unsigned wait_ms) {
	stop = false;
	mesher_wait_ms = wait_ms;
	thread_start(&mesher, mesher_main, NULL);
}

static void
mesher_end(void) {
	stop = true;
	pthread_join(mesher, NULL);
}

/* A connection, as socketpair(2) makes. */
static void
tcp_pair(int fds[2]) {
	struct sockaddr_in name = {
	    .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(name);
	int       listener = socket(AF_INET, SOCK_STREAM, 0);
	fds[1] = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&name, size) != 0
	    || listen(listener, 1) != 0
	    || getsockname(listener, (struct sockaddr *)&name, &size) != 0
	    || connect(fds[1], (struct sockaddr *)&name, size) != 0
	    || (fds[0] = accept(listener, NULL, NULL)) == -1) {
		die("socket");
	}
	close(listener);
}

/* Nothing waits longer there. */
static void
socket_limit(int fd, unsigned ms) {
	struct timeval tv = {ms / 1000, ms % 1000 * 1000};
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) != 0
	    || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) != 0) {
		die("setsockopt");
	}
}

/******************************************************************************/
/* Transfers: all that is asked for at once comes whole and in order. */

#define TRANSFER ((size_t)256 << 10)
#define NVECTORS 5
#define NMESSAGES 20
#define MESSAGE ((size_t)4096)

typedef struct transfer_s transfer_t;
struct transfer_s {
	const char *name;
	int         type; /* of socket, 0: a pipe */
	ssize_t (*send)(int fd, unsigned char *buf);
	ssize_t (*receive)(int fd, unsigned char *buf);
	/* What these return. */
	ssize_t whole, received;
	int     fds[2];
};

/* Bytes of a stream, by where in it they are. */
static unsigned char
stream_byte(uint64_t at) {
	return (unsigned char)(at * 31 + (at >> 8));
}

/* Vectors of various lengths, one of them empty. */
static void
vectors_fill(struct iovec *vectors, unsigned char *buf) {
	static const size_t lengths[NVECTORS] = {
	    1, 100000, 0, 5000, TRANSFER - 105001};
	for (int i = 0; i < NVECTORS; i++) {
		vectors[i].iov_base = buf;
		vectors[i].iov_len = lengths[i];
		buf += lengths[i];
	}
}

static void
messages_fill(
    struct mmsghdr *messages, struct iovec *vectors, unsigned char *buf) {
	memset(messages, 0, NMESSAGES * sizeof(*messages));
	for (int i = 0; i < NMESSAGES; i++) {
		vectors[i].iov_base = buf + i * MESSAGE;
		vectors[i].iov_len = MESSAGE;
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
}

static ssize_t
send_write(int fd, unsigned char *buf) {
	return write(fd, buf, TRANSFER);
}

static ssize_t
send_writev(int fd, unsigned char *buf) {
	struct iovec vectors[NVECTORS];
	vectors_fill(vectors, buf);
	return writev(fd, vectors, NVECTORS);
}

static ssize_t
send_msg(int fd, unsigned char *buf) {
	struct iovec  vectors[NVECTORS];
	struct msghdr msg = {.msg_iov = vectors, .msg_iovlen = NVECTORS};
	vectors_fill(vectors, buf);
	return sendmsg(fd, &msg, 0);
}

static ssize_t
send_file(int fd, unsigned char *buf) {
	static int file = -1;
	off_t      at = 0;
	if (file == -1) {
		file = memfd_create("calls", MFD_CLOEXEC);
	}
	bad += pwrite(file, buf, TRANSFER, 0) != (ssize_t)TRANSFER;
	return sendfile(fd, file, &at, TRANSFER);
}

static ssize_t
send_messages(int fd, unsigned char *buf) {
	struct mmsghdr messages[NMESSAGES];
	struct iovec   vectors[NMESSAGES];
	messages_fill(messages, vectors, buf);
	return sendmmsg(fd, messages, NMESSAGES, 0);
}

/* A pipe gives what there is. */
static ssize_t
receive_read(int fd, unsigned char *buf) {
	return read(fd, buf, TRANSFER);
}

static ssize_t
receive_all(int fd, unsigned char *buf) {
	return recv(fd, buf, TRANSFER, MSG_WAITALL);
}

static ssize_t
receive_msg(int fd, unsigned char *buf) {
	struct iovec  vectors[NVECTORS];
	struct msghdr msg = {.msg_iov = vectors, .msg_iovlen = NVECTORS};
	vectors_fill(vectors, buf);
	return recvmsg(fd, &msg, MSG_WAITALL);
}

static ssize_t
receive_messages(int fd, unsigned char *buf) {
	struct mmsghdr messages[NMESSAGES];
	struct iovec   vectors[NMESSAGES];
	messages_fill(messages, vectors, buf);
	int n = recvmmsg(fd, messages, NMESSAGES, 0, NULL);
	/* At the end they are empty. */
	return n > 0 && messages[0].msg_len == 0 ? 0 : n;
}

static transfer_t transfers[] = {
    {"pipe", 0, send_write, receive_read, TRANSFER, 0, {-1, -1}},
    {"write", SOCK_STREAM, send_write, receive_all, TRANSFER, TRANSFER,
        {-1, -1}},
    {"writev", SOCK_STREAM, send_writev, receive_msg, TRANSFER, TRANSFER,
        {-1, -1}},
    {"sendmsg", SOCK_STREAM, send_msg, receive_all, TRANSFER, TRANSFER,
        {-1, -1}},
    {"sendfile", SOCK_STREAM, send_file, receive_msg, TRANSFER, TRANSFER,
        {-1, -1}},
    {"sendmmsg", SOCK_SEQPACKET, send_messages, receive_messages, NMESSAGES,
        NMESSAGES, {-1, -1}},
};
#define NTRANSFERS (sizeof(transfers) / sizeof(transfers[0]))

/* Bytes that are transferred at once. */
static size_t
transfer_size(const transfer_t *t) {
	return t->type == SOCK_SEQPACKET ? NMESSAGES * MESSAGE : TRANSFER;
}

static void *
send_main(void *arg) {
	transfer_t    *t = arg;
	size_t         size = transfer_size(t);
	unsigned char *buf = outside_alloc(size);
	for (uint64_t at = 0; !stop; at += size) {
		for (size_t i = 0; i < size; i++) {
			buf[i] = stream_byte(at + i);
		}
		ssize_t n = t->send(t->fds[1], buf);
		if (n != t->whole) {
			fprintf(stderr, "%s: %zd %s\n", t->name, n,
			    strerror(errno));
			bad++;
		}
		count++;
	}
	shutdown(t->fds[1], SHUT_RDWR);
	close(t->fds[1]);
	return NULL;
}

static void *
receive_main(void *arg) {
	transfer_t    *t = arg;
	unsigned char *buf = outside_alloc(TRANSFER);
	uint64_t       at = 0;
	ssize_t        n;
	while ((n = t->receive(t->fds[0], buf)) > 0) {
		if (t->received != 0 && n != t->received) {
			fprintf(stderr, "received by %s: %zd\n", t->name, n);
			bad++;
		}
		n = t->type == SOCK_SEQPACKET ? n * (ssize_t)MESSAGE : n;
		for (ssize_t i = 0; i < n; i++, at++) {
			bad += buf[i] != stream_byte(at);
		}
	}
	if (n < 0) {
		fprintf(
		    stderr, "received by %s: %s\n", t->name, strerror(errno));
		bad++;
	}
	close(t->fds[0]);
	return NULL;
}

static void
case_transfers(void) {
	pthread_t threads[NTRANSFERS][2];
	mesher_start(0);
	for (size_t i = 0; i < NTRANSFERS; i++) {
		transfer_t *t = &transfers[i];
		if (kind_is("tcp") && t->type == SOCK_STREAM) {
			tcp_pair(t->fds);
		} else if ((t->type == 0
		                   ? pipe(t->fds)
		                   : socketpair(AF_UNIX, t->type, 0, t->fds))
		    != 0) {
			die("pipe, socketpair");
		}
		if ((kind_is("tcp") || kind_is("timed")) && t->type != 0) {
			socket_limit(t->fds[0], 10000);
			socket_limit(t->fds[1], 10000);
		}
		thread_start(&threads[i][0], send_main, t);
		thread_start(&threads[i][1], receive_main, t);
	}
	sleep_ms(4000);
	stop = true;
	for (size_t i = 0; i < NTRANSFERS; i++) {
		pthread_join(threads[i][0], NULL);
		pthread_join(threads[i][1], NULL);
	}
	mesher_end();
}

/******************************************************************************/
/* From file to file, and from devices that have as much as one likes. */

#define COPY ((size_t)16 << 20)

static int
file_make(void) {
	int fd = memfd_create("copy", MFD_CLOEXEC);
	if (fd == -1 || ftruncate(fd, COPY) != 0) {
		die("memfd_create");
	}
	return fd;
}

static void
case_copies(void) {
	unsigned char *buf = outside_alloc(COPY);
	struct iovec vectors[2] = {{buf, COPY / 2}, {buf + COPY / 2, COPY / 2}};
	int          in = file_make(), out = file_make();
	int          zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	int          random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	mesher_start(0);
	for (; count < 200; count += 5) {
		off_t   from[2] = {0, 0}, to = 0;
		ssize_t sizes[] = {sendfile(out, in, &from[0], COPY),
		    copy_file_range(in, &from[1], out, &to, COPY, 0),
		    readv(zero, vectors, 2), pread(zero, buf, COPY, 0),
		    preadv(random, vectors, 2, 0)};
		lseek(out, 0, SEEK_SET);
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			bad += sizes[i] != COPY;
		}
	}
	mesher_end();
}

/******************************************************************************/
/* Signals of the program's end calls, though the kernel would begin them anew. */

static volatile sig_atomic_t caught, caught_elsewhere;

static void
alarm_handler(int signum) {
	(void)signum;
	caught = caught + 1;
	caught_elsewhere = caught_elsewhere + (gettid() != getpid());
}

static void
alarm_handle(void) {
	/* Without SA_RESTART. */
	struct sigaction action = {.sa_handler = alarm_handler};
	if (sigaction(SIGALRM, &action, NULL) != 0) {
		die("sigaction");
	}
}

static int   ends_fds[2], ends_lock;
static pid_t ends_child;

static void
ends_open(void) {
	char name[] = "/tmp/calls-XXXXXX";
	int  other = mkstemp(name);
	ends_lock = open(name, O_RDWR | O_CLOEXEC);
	unlink(name);
	if (other == -1 || flock(other, LOCK_EX) != 0
	    || socketpair(AF_UNIX, SOCK_STREAM, 0, ends_fds) != 0) {
		die("mkstemp, flock, socketpair");
	}
	ends_child = fork();
	if (ends_child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (true) {
			pause();
		}
	}
}

static int
ends_call(void) {
	char byte;
	int  status;
	if (kind_is("read")) {
		return (int)read(ends_fds[0], &byte, 1);
	}
	if (kind_is("recv")) {
		return (int)recv(ends_fds[0], &byte, 1, 0);
	}
	if (kind_is("flock")) {
		return flock(ends_lock, LOCK_EX);
	}
	return waitpid(ends_child, &status, 0);
}

/* A timer that comes again much later, should the call have been begun anew. */
static void
case_ends(void) {
	timer_t         timer;
	struct sigevent event = {
	    .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
	unsigned missed = 0;
	event._sigev_un._tid = gettid();
	ends_open();
	alarm_handle();
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	mesher_start(0);
	rng_t    rng = {1};
	uint64_t end = now_ns() + 5000 * MS;
	for (; now_ns() < end; count++) {
		struct itimerspec due = {{0, 500 * (long)MS},
		    {0, (long)(3 * MS + rng_below(&rng, 10 * MS))}};
		caught = 0;
		timer_settime(timer, 0, &due, NULL);
		bad += ends_call() != -1 || errno != EINTR;
		missed += caught > 1;
	}
	timer_delete(timer);
	mesher_end();
	kill(ends_child, SIGKILL);
	printf("\"missed\": %u, ", missed);
}

/* Threads that sleep again and again, and take any signal. */
static void *
idle_main(void *arg) {
	(void)arg;
	while (!stop) {
		usleep(2000);
	}
	return NULL;
}

/* Signals to the process go to its first thread. */
static void
case_first(void) {
	pthread_t threads[3];
	alarm_handle();
	mesher_start(0);
	for (int i = 0; i < 3; i++) {
		thread_start(&threads[i], idle_main, NULL);
	}
	rng_t    rng = {1};
	uint64_t end = now_ns() + 5000 * MS;
	for (; now_ns() < end; count++) {
		struct itimerval due = {
		    {0, 500000}, {0, 3000 + (long)rng_below(&rng, 10000)}};
		setitimer(ITIMER_REAL, &due, NULL);
		bad += pause() != -1 || errno != EINTR;
	}
	struct itimerval off = {{0}, {0}};
	setitimer(ITIMER_REAL, &off, NULL);
	mesher_end();
	for (int i = 0; i < 3; i++) {
		pthread_join(threads[i], NULL);
	}
	printf("\"elsewhere\": %d, ", (int)caught_elsewhere);
}

/* The signal of stops, at any moment, as of a stop that another one overtakes. */
static void *
flood_main(void *arg) {
	(void)arg;
	while (!stop) {
		tgkill(getpid(), getpid(), SIGURG);
		usleep(20);
	}
	return NULL;
}

static void
case_flood(void) {
	struct timespec ts = {0, 20 * (long)MS};
	struct sembuf   down = {.sem_op = -1};
	int             id = semget(IPC_PRIVATE, 1, 0600);
	unsigned        interrupted = 0;
	pthread_t       flood;
	mesh_once();
	mesher_start(0);
	thread_start(&flood, flood_main, NULL);
	for (uint64_t end = now_ns() + 5000 * MS; now_ns() < end; count++) {
		bad += semtimedop(id, &down, 1, &ts) != -1;
		interrupted += errno == EINTR;
	}
	mesher_end();
	pthread_join(flood, NULL);
	semctl(id, 0, IPC_RMID);
	printf("\"interrupted\": %u, ", interrupted);
}

/******************************************************************************/
/* Calls with a time that nobody can go on with are not disturbed. */

/* How long a wait lasts. */
static unsigned waits_ms;

/* Which begins now. */
static uint64_t wait_begin_ns;

static void
wait_begin(void) {
	wait_begin_ns = now_ns();
}

/* How long it has lasted, when some descriptors are of no use any more. */
static int
wait_end(int fd, int other) {
	int took = (int)((now_ns() - wait_begin_ns) / MS);
	close(fd);
	close(other);
	return took;
}

/* A terminal that gives what there is after a while, here nothing. */
static int
wait_terminal_by(bool vectors) {
	int            pty = posix_openpt(O_RDWR | O_NOCTTY);
	struct termios termios;
	char           byte;
	struct iovec   vector = {&byte, 1};
	if (pty == -1 || grantpt(pty) != 0 || unlockpt(pty) != 0) {
		die("posix_openpt");
	}
	int fd = open(ptsname(pty), O_RDWR | O_NOCTTY);
	tcgetattr(fd, &termios);
	cfmakeraw(&termios);
	termios.c_cc[VMIN] = 0;
	termios.c_cc[VTIME] = (cc_t)(waits_ms / 100);
	tcsetattr(fd, TCSANOW, &termios);
	wait_begin();
	bad += (vectors ? readv(fd, &vector, 1) : read(fd, &byte, 1)) != 0;
	return wait_end(fd, pty);
}

static int
wait_terminal(void) {
	return wait_terminal_by(false);
}

static int
wait_terminal_vector(void) {
	return wait_terminal_by(true);
}

/* For completions, of which there are none; slabs do not mesh meanwhile. */
static int
wait_ring(void) {
	struct io_uring_params        params = {0};
	struct timespec               ts = {waits_ms / 1000, 0};
	struct io_uring_getevents_arg arg = {.ts = (uintptr_t)&ts};
	int fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	if (fd == -1) {
		fprintf(stderr, "io_uring_setup: %s\n", strerror(errno));
		exit(77);
	}
	sleep_ms(100);
	ctl_epoch();
	size_t nmeshes = mesh_stat("nmeshes");
	wait_begin();
	bad += syscall(SYS_io_uring_enter, fd, 0, 1,
	           IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg,
	           sizeof(arg))
	        != -1
	    || errno != ETIME;
	int took = wait_end(fd, -1);
	ctl_epoch();
	bad += mesh_stat("nmeshes") != nmeshes;
	return took;
}

/* Of a socket with a timeout whose peer takes nothing. */
static int
wait_datagram(void) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	socklen_t          size = sizeof(name);
	int                to = socket(AF_UNIX, SOCK_DGRAM, 0);
	int                fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	bind(to, (struct sockaddr *)&name, sizeof(sa_family_t));
	getsockname(to, (struct sockaddr *)&name, &size);
	while (sendto(fd, "", 1, MSG_DONTWAIT, (struct sockaddr *)&name, size)
	    == 1) {
	}
	socket_limit(fd, waits_ms);
	wait_begin();
	bad += sendto(fd, "", 1, 0, (struct sockaddr *)&name, size) != -1
	    || errno != EAGAIN;
	return wait_end(fd, to);
}

/* A connection that waits at its end, whole seconds only, for what nobody takes. */
static int
wait_linger(void) {
	struct linger linger = {1, (int)waits_ms / 1000};
	static char   block[65536];
	int           fds[2];
	tcp_pair(fds);
	/* Windows grow. */
	for (int i = 0; i < 10; i++) {
		while (send(fds[1], block, sizeof(block), MSG_DONTWAIT) > 0) {
		}
		sleep_ms(10);
	}
	setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	wait_begin();
	bad += close(fds[1]) != 0;
	return wait_end(fds[0], -1);
}

static int
wait_epoll(void) {
	struct epoll_event event;
	int                fd = epoll_create1(EPOLL_CLOEXEC);
	wait_begin();
	bad += epoll_wait(fd, &event, 1, (int)waits_ms) != 0;
	return wait_end(fd, -1);
}

/* Pairs of sockets that nobody waits for longer. */
static void
wait_pair(int fds[2], bool tcp) {
	if (tcp) {
		tcp_pair(fds);
	} else if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
		die("socketpair");
	}
	socket_limit(fds[0], waits_ms);
	socket_limit(fds[1], waits_ms);
}

static int
wait_recv(void) {
	int  fds[2];
	char byte;
	wait_pair(fds, false);
	wait_begin();
	bad += recv(fds[0], &byte, 1, 0) != -1 || errno != EAGAIN;
	return wait_end(fds[0], fds[1]);
}

/* Of something, and not all: as the socket is told to, or by flags. */
static int
wait_part_by(int mark, int flags) {
	int  fds[2];
	char bytes[10];
	wait_pair(fds, true);
	setsockopt(fds[0], SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark));
	bad += send(fds[1], bytes, 7, 0) != 7;
	wait_begin();
	ssize_t n = flags == 0 ? read(fds[0], bytes, sizeof(bytes))
	                       : recv(fds[0], bytes, sizeof(bytes), flags);
	bad += n != 7;
	return wait_end(fds[0], fds[1]);
}

static int
wait_part(void) {
	return wait_part_by(1, MSG_WAITALL);
}

static int
wait_mark(void) {
	return wait_part_by(10, 0);
}

static int
wait_peek(void) {
	return wait_part_by(1, MSG_PEEK | MSG_WAITALL);
}

/* Much more than there is room for. */
static int
wait_send_to(bool tcp) {
	static char block[32 << 20];
	int         fds[2];
	wait_pair(fds, tcp);
	wait_begin();
	ssize_t n = write(fds[1], block, sizeof(block));
	bad += n <= 0 || n >= (ssize_t)sizeof(block);
	return wait_end(fds[0], fds[1]);
}

static int
wait_send(void) {
	return wait_send_to(true);
}

static int
wait_send_unix(void) {
	return wait_send_to(false);
}

static int
wait_semaphore(void) {
	struct timespec ts = {waits_ms / 1000, waits_ms % 1000 * (long)MS};
	struct sembuf   down = {.sem_op = -1};
	int             id = semget(IPC_PRIVATE, 1, 0600);
	wait_begin();
	bad += semtimedop(id, &down, 1, &ts) != -1 || errno != EAGAIN;
	int took = wait_end(-1, -1);
	semctl(id, 0, IPC_RMID);
	return took;
}

static const struct {
	const char *name;
	int (*wait)(void);
} waits[] = {{"terminal", wait_terminal},
    {"terminal vector", wait_terminal_vector}, {"ring", wait_ring},
    {"mark", wait_mark}, {"peek", wait_peek}, {"datagram", wait_datagram},
    {"linger", wait_linger}, {"epoll", wait_epoll}, {"recv", wait_recv},
    {"part", wait_part}, {"send", wait_send}, {"send unix", wait_send_unix},
    {"semaphore", wait_semaphore}};

/* Each wait lasts for a second; meshing begins after some of it. */
static void
waits_run(unsigned wait_ms) {
	int shortest = INT32_MAX, longest = 0;
	waits_ms = 1000;
	for (size_t i = 0; i < sizeof(waits) / sizeof(waits[0]); i++) {
		for (; kind_is(waits[i].name) && count < 3; count++) {
			mesher_start(wait_ms);
			sleep_ms(wait_ms == 0 ? 200 : 0);
			int took = waits[i].wait();
			mesher_end();
			shortest = took < shortest ? took : shortest;
			longest = took > longest ? took : longest;
		}
	}
	printf("\"shortest\": %d, \"longest\": %d, ", shortest, longest);
}

static void
case_waits(void) {
	waits_run(0);
	/* Now that nobody is in it. */
	mesh_once();
}

/* Of a process that may not read its own calls. */
static void
case_secret(void) {
	const uid_t nobody = 65534;
	if (setresgid(nobody, nobody, nobody) != 0
	    || setresuid(nobody, nobody, nobody) != 0) {
		die("setresuid");
	}
	waits_run(700);
	mesh_once();
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {{"transfers", case_transfers}, {"copies", case_copies},
    {"ends", case_ends}, {"first", case_first}, {"flood", case_flood},
    {"waits", case_waits}, {"secret", case_secret}};

int
main(int argc, char **argv) {
	kind = argc > 2 ? argv[2] : "";
	table_init(&table, NOBJECTS, 1, 1);
	for (size_t i = 0; argc > 1 && i < sizeof(cases) / sizeof(cases[0]);
	     i++) {
		if (strcmp(argv[1], cases[i].name) == 0) {
			putchar('{');
			cases[i].run();
			bad += table_free(&table);
			printf("\"calls\": %llu, \"mesh\": ",
			    (unsigned long long)count);
			ctl_epoch();
			mesh_print();
			printf(", \"bad\": %u}\n", (unsigned)bad);
			return bad > 0;
		}
	}
	fprintf(stderr, "usage: calls CASE [KIND]\n");
	return 2;
}
