/*
 * What reads and writes the pages of objects by themselves, past the addresses that
 * the program knows: devices, pipes, sockets, other processes.
 *
 * usage: pins SCENARIO [ARG]
 *
 *   pinned WHERE       buffers are registered with io_uring, then meshed, then read
 *                      into; WHERE they are from, see places.h, or "store": meshed
 *                      before that, and moved after
 *   reads WAY[,NUMBER] threads read a file past the page cache, into small objects,
 *                      while those mesh: "sync", "aio", "uring", or "fixed", which
 *                      are registered buffers
 *   sent WAY           objects are under way in a pipe ("vmsplice") or a socket
 *                      ("zerocopy") while they mesh
 *   peer WAY           another process writes to the objects and reads them: "vm"
 *                      (process_vm_writev), "mem" (/proc/PID/mem), "ptrace"
 */
#define _GNU_SOURCE
#include "places.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE ((size_t)512)
/* The status of a test that cannot be run here. */
#define SKIP 77

extern char **environ;

static void
skip(const char *what) {
	perror(what);
	exit(SKIP);
}

/******************************************************************************/
/* io_uring. */

#define NENTRIES NPLACES

typedef struct {
	int                  fd;
	unsigned            *sq_tail, *cq_head, *cq_tail;
	unsigned             sq_mask, cq_mask;
	unsigned            *sq_array;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring_t;

static void *
ring_map(int fd, size_t size, off_t offset) {
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_POPULATE, fd, offset);
	if (p == MAP_FAILED) {
		die("mmap of io_uring");
	}
	return p;
}

static void
ring_open(ring_t *ring) {
	struct io_uring_params params = {0};
	ring->fd = (int)syscall(SYS_io_uring_setup, NENTRIES, &params);
	if (ring->fd < 0) {
		skip("io_uring_setup");
	}
	unsigned char *sq = ring_map(ring->fd,
	    params.sq_off.array + params.sq_entries * sizeof(unsigned),
	    IORING_OFF_SQ_RING);
	unsigned char *cq = ring_map(ring->fd,
	    params.cq_off.cqes
	        + params.cq_entries * sizeof(struct io_uring_cqe),
	    IORING_OFF_CQ_RING);
	ring->sqes = ring_map(ring->fd,
	    params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	ring->sq_tail = (unsigned *)(sq + params.sq_off.tail);
	ring->sq_mask = *(unsigned *)(sq + params.sq_off.ring_mask);
	ring->sq_array = (unsigned *)(sq + params.sq_off.array);
	ring->cq_head = (unsigned *)(cq + params.cq_off.head);
	ring->cq_tail = (unsigned *)(cq + params.cq_off.tail);
	ring->cq_mask = *(unsigned *)(cq + params.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
}

/* Registers n buffers of SIZE bytes in place of those that were. */
static void
ring_register(ring_t *ring, unsigned char **buffers, unsigned n) {
	struct iovec iov[NENTRIES];
	for (unsigned i = 0; i < n; i++) {
		iov[i] = (struct iovec){buffers[i], SIZE};
	}
	syscall(SYS_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS,
	    NULL, 0);
	if (syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS,
	        iov, n)
	    != 0) {
		die("io_uring_register");
	}
}

/* To be sent later; index is that of a registered buffer. */
static void
ring_put(ring_t *ring, int opcode, int fd, void *buffer, off_t offset,
    unsigned index) {
	unsigned             tail = *ring->sq_tail, at = tail & ring->sq_mask;
	struct io_uring_sqe *sqe = &ring->sqes[at];
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = (uint8_t)opcode;
	sqe->fd = fd;
	sqe->off = (uint64_t)offset;
	sqe->addr = (uintptr_t)buffer;
	sqe->len = SIZE;
	sqe->buf_index = (uint16_t)index;
	ring->sq_array[at] = at;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
}

/* Sends n and waits for them; the signal barrier may interrupt that. */
static void
ring_send(ring_t *ring, unsigned n) {
	unsigned end = *ring->cq_head, sent = 0;
	while (end - *ring->cq_head < n) {
		long some = syscall(SYS_io_uring_enter, ring->fd, n - sent,
		    n - (end - *ring->cq_head), IORING_ENTER_GETEVENTS, NULL, 0);
		if (some < 0 && errno != EINTR) {
			die("io_uring_enter");
		}
		sent += some > 0 ? (unsigned)some : 0;
		end = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
	}
	for (unsigned i = *ring->cq_head; i != end; i++) {
		expect(ring->cqes[i & ring->cq_mask].res == (int)SIZE,
		    "io_uring reads");
	}
	__atomic_store_n(ring->cq_head, end, __ATOMIC_RELEASE);
}

/* Ranges become private by a fork, and mesh again. */
static void
store_move(void) {
	for (unsigned i = 0; i < 3; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			_exit(0);
		}
		child_wait(pid, 0);
		churn(&held, (size_t)16 << 20);
	}
}

static void
run_pinned(void) {
	ring_t ring;
	int    ends[2];
	bool   store = strcmp(scenario_arg, "store") == 0;
	ring_open(&ring);
	places_alloc(scenario_arg, SIZE);
	if (store) {
		mesh_pass();
	}
	ring_register(&ring, places, NPLACES);
	if (pipe(ends) != 0) {
		die("pipe");
	}
	places_mesh(SIZE);
	if (store) {
		store_move();
	}
	for (unsigned i = 0; i < NPLACES; i++) {
		unsigned char sent[SIZE];
		memset(sent, (int)i + 1, SIZE);
		if (write(ends[1], sent, SIZE) != (ssize_t)SIZE) {
			die("write");
		}
		ring_put(&ring, IORING_OP_READ_FIXED, ends[0], places[i], 0, i);
		ring_send(&ring, 1);
		results->lost += memcmp(places[i], sent, SIZE) != 0;
	}
}

/******************************************************************************/
/* Reads that go past the page cache. */

#define NREADERS 4
#define NBUFFERS 16
/* Of so many buffers one is kept. */
#define SPARSE 16
/* Batches until other buffers are taken. */
#define NBATCHES 50
#define NBLOCKS 2048
#define FILE_NAME "pins.data"

typedef struct reader_s reader_t;
struct reader_s {
	pthread_t      thread;
	rng_t          rng;
	unsigned char *buffers[NBUFFERS];
	unsigned       blocks[NBUFFERS];
	ring_t         ring;
	aio_context_t  aio;
};

static int                  data_fd;
static unsigned char      (*data)[SIZE];
static uint64_t             nreads_wanted = 100000;
static const char          *reads_way;

static void
data_make(void) {
	data = outside_alloc(NBLOCKS * SIZE);
	for (size_t i = 0; i < NBLOCKS * SIZE / 8; i++) {
		((uint64_t *)data)[i] = mix64(i);
	}
	data_fd = open(FILE_NAME, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (data_fd < 0) {
		skip(FILE_NAME);
	}
	unlink(FILE_NAME);
	if (pwrite(data_fd, data, NBLOCKS * SIZE, 0)
	    != (ssize_t)(NBLOCKS * SIZE)) {
		skip("pwrite");
	}
}

static void
buffers_renew(reader_t *r) {
	void *all[NBUFFERS * SPARSE];
	for (unsigned i = 0; i < NBUFFERS; i++) {
		free(r->buffers[i]);
	}
	for (unsigned i = 0; i < NBUFFERS * SPARSE; i++) {
		all[i] = malloc(SIZE);
	}
	for (unsigned i = 0; i < NBUFFERS * SPARSE; i++) {
		if (i % SPARSE == 0) {
			r->buffers[i / SPARSE] = all[i];
		} else {
			free(all[i]);
		}
	}
	ctl_do("thread.tcache.flush");
	if (strcmp(reads_way, "fixed") == 0) {
		ring_register(&r->ring, r->buffers, NBUFFERS);
	}
}

static void
read_sync(reader_t *r) {
	for (unsigned i = 0; i < NBUFFERS; i++) {
		expect(pread(data_fd, r->buffers[i], SIZE,
		           (off_t)(r->blocks[i] * SIZE))
		        == (ssize_t)SIZE,
		    "pread reads");
	}
}

static void
read_aio(reader_t *r) {
	struct iocb     iocbs[NBUFFERS], *list[NBUFFERS];
	struct io_event events[NBUFFERS];
	for (unsigned i = 0; i < NBUFFERS; i++) {
		iocbs[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD,
		    .aio_fildes = (uint32_t)data_fd,
		    .aio_buf = (uintptr_t)r->buffers[i],
		    .aio_nbytes = SIZE,
		    .aio_offset = (int64_t)(r->blocks[i] * SIZE)};
		list[i] = &iocbs[i];
	}
	if (syscall(SYS_io_submit, r->aio, NBUFFERS, list) != NBUFFERS) {
		die("io_submit");
	}
	for (long n = 0; n < NBUFFERS;) {
		long some = syscall(SYS_io_getevents, r->aio, NBUFFERS - n,
		    NBUFFERS - n, events + n, NULL);
		if (some < 0 && errno != EINTR) {
			die("io_getevents");
		}
		n += some > 0 ? some : 0;
	}
	for (unsigned i = 0; i < NBUFFERS; i++) {
		expect(events[i].res == (int64_t)SIZE, "io_submit reads");
	}
}

static void
read_ring(reader_t *r) {
	int opcode = strcmp(reads_way, "fixed") == 0 ? IORING_OP_READ_FIXED
	                                             : IORING_OP_READ;
	for (unsigned i = 0; i < NBUFFERS; i++) {
		ring_put(&r->ring, opcode, data_fd, r->buffers[i],
		    (off_t)(r->blocks[i] * SIZE), i);
	}
	ring_send(&r->ring, NBUFFERS);
}

static void *
reader_main(void *arg) {
	reader_t *r = arg;
	bool      sync = strcmp(reads_way, "sync") == 0;
	bool      aio = strcmp(reads_way, "aio") == 0;
	if (aio) {
		if (syscall(SYS_io_setup, NBUFFERS, &r->aio) != 0) {
			skip("io_setup");
		}
	} else if (!sync) {
		ring_open(&r->ring);
	}
	for (unsigned batch = 0; results->count < nreads_wanted; batch++) {
		if (batch % NBATCHES == 0) {
			buffers_renew(r);
		}
		for (unsigned i = 0; i < NBUFFERS; i++) {
			r->blocks[i] = rng_below(&r->rng, NBLOCKS);
			memset(r->buffers[i], 0, SIZE);
		}
		if (sync) {
			read_sync(r);
		} else if (aio) {
			read_aio(r);
		} else {
			read_ring(r);
		}
		for (unsigned i = 0; i < NBUFFERS; i++) {
			results->lost += memcmp(r->buffers[i],
			                     data[r->blocks[i]], SIZE)
			    != 0;
		}
		results->count += NBUFFERS;
	}
	return NULL;
}

static void
run_reads(void) {
	static reader_t readers[NREADERS];
	char           *end = strchr(scenario_arg, ',');
	if (end != NULL) {
		nreads_wanted = number_parse(end + 1);
		*end = '\0';
	}
	reads_way = scenario_arg;
	data_make();
	for (unsigned i = 0; i < NREADERS; i++) {
		readers[i].rng.state = i;
		thread_start(&readers[i].thread, reader_main, &readers[i]);
	}
	while (results->count < nreads_wanted) {
		churn(&held, (size_t)4 << 20);
	}
	for (unsigned i = 0; i < NREADERS; i++) {
		pthread_join(readers[i].thread, NULL);
	}
}

/******************************************************************************/
/* Objects that are sent without a copy. */

static void
places_fill(void) {
	places_alloc("heap", SIZE);
	for (unsigned i = 0; i < NPLACES; i++) {
		memset(places[i], (int)i + 1, SIZE);
	}
}

static void
pipe_send(int fd, void *p) {
	struct iovec iov = {p, SIZE};
	if (vmsplice(fd, &iov, 1, 0) != (ssize_t)SIZE) {
		die("vmsplice");
	}
}

static void
socket_send(int fd, void *p) {
	if (send(fd, p, SIZE, MSG_ZEROCOPY) != (ssize_t)SIZE) {
		die("MSG_ZEROCOPY");
	}
}

/* A pair of TCP sockets. */
static void
sockets_open(int ends[2]) {
	int                on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = {.sin_family = AF_INET,
	    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t          length = sizeof(address);
	if (bind(listener, (struct sockaddr *)&address, length) != 0
	    || listen(listener, 1) != 0
	    || getsockname(listener, (struct sockaddr *)&address, &length) != 0
	    || (ends[1] = socket(AF_INET, SOCK_STREAM, 0)) < 0
	    || connect(ends[1], (struct sockaddr *)&address, length) != 0
	    || (ends[0] = accept(listener, NULL, NULL)) < 0
	    || setsockopt(ends[1], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on))
	        != 0) {
		skip("sockets");
	}
	close(listener);
}

static void
run_sent(void) {
	bool through_pipe = strcmp(scenario_arg, "vmsplice") == 0;
	int  ends[2];
	if (through_pipe) {
		if (pipe(ends) != 0
		    || fcntl(ends[1], F_SETPIPE_SZ, NPLACES * PAGE) < 0) {
			skip("pipe");
		}
	} else {
		sockets_open(ends);
	}
	places_fill();
	/* Private pages first, and then such of the store. */
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < NPLACES; i++) {
			(through_pipe ? pipe_send : socket_send)(
			    ends[1], places[i]);
		}
		places_mesh(SIZE);
		churn(&held, (size_t)16 << 20);
		for (unsigned i = 0; i < NPLACES; i++) {
			unsigned char got[SIZE];
			size_t        n = 0;
			while (n < SIZE) {
				ssize_t some = read(ends[0], got + n, SIZE - n);
				if (some <= 0) {
					die("read");
				}
				n += (size_t)some;
			}
			results->lost += memcmp(got, places[i], SIZE) != 0
			    || got[0] != i + 1;
		}
	}
}

/******************************************************************************/
/* Other processes. */

/* What the other process has to know; it reads this and writes it back. */
typedef struct {
	unsigned char *places[NPLACES];
	uint64_t       npokes, nrefused, nlost;
	pid_t          pid, tid;
	uint32_t       round;
} peer_t;

static peer_t peer;

/* Writes or reads the peer's memory; whether it could. */
typedef bool (*poke_t)(void *there, void *here, size_t size, bool write);

static int peer_fd;

static bool
poke_vm(void *there, void *here, size_t size, bool write) {
	struct iovec local = {here, size}, remote = {there, size};
	return (write ? process_vm_writev : process_vm_readv)(
	           peer.pid, &local, 1, &remote, 1, 0)
	    == (ssize_t)size;
}

static bool
poke_mem(void *there, void *here, size_t size, bool write) {
	off_t at = (off_t)(uintptr_t)there;
	return (write ? pwrite(peer_fd, here, size, at)
	              : pread(peer_fd, here, size, at))
	    == (ssize_t)size;
}

static bool
poke_ptrace(void *there, void *here, size_t size, bool write) {
	for (size_t i = 0; i < size; i += sizeof(long)) {
		char *at = (char *)here + i;
		long  word;
		memcpy(&word, at, sizeof(word));
		errno = 0;
		word = ptrace(write ? PTRACE_POKEDATA : PTRACE_PEEKDATA,
		    peer.tid, (char *)there + i, word);
		if (errno != 0) {
			return false;
		}
		if (!write) {
			memcpy(at, &word, sizeof(word));
		}
	}
	return true;
}

static void
poke_insist(poke_t poke, void *there, void *here, bool write) {
	while (!poke(there, here, SIZE, write)) {
		if (errno != EIO && errno != EFAULT) {
			die("poke");
		}
		peer.nrefused++;
	}
}

/* Of the other process: pins tracer WAY PID ADDRESS. */
static int
tracer_main(char **argv) {
	poke_t poke = strcmp(argv[2], "vm") == 0 ? poke_vm
	    : strcmp(argv[2], "mem") == 0        ? poke_mem
	                                         : poke_ptrace;
	void  *there = (void *)(uintptr_t)number_parse(argv[4]);
	char   path[64];
	peer.pid = (pid_t)number_parse(argv[3]);
	if (!poke_vm(there, &peer, sizeof(peer), false)) {
		skip("process_vm_readv");
	}
	snprintf(path, sizeof(path), "/proc/%d/mem", peer.pid);
	peer_fd = open(path, O_RDWR | O_CLOEXEC);
	if (poke == poke_ptrace
	    && (ptrace(PTRACE_SEIZE, peer.tid, 0, 0) != 0
	        || ptrace(PTRACE_INTERRUPT, peer.tid, 0, 0) != 0
	        || waitpid(peer.tid, NULL, __WALL) < 0)) {
		skip("ptrace");
	}
	for (uint64_t end = now_ns() + UINT64_C(2000000000); now_ns() < end;) {
		peer.round++;
		for (unsigned i = 0; i < NPLACES; i++) {
			unsigned char image[SIZE], got[SIZE];
			memset(image, (int)(peer.round + i), SIZE);
			poke_insist(poke, peer.places[i], image, true);
			poke_insist(poke, peer.places[i], got, false);
			peer.nlost += memcmp(got, image, SIZE) != 0;
			peer.npokes += 2;
		}
	}
	return !poke_vm(there, &peer, sizeof(peer), true);
}

/* A thread for the other process to stop. */
static void *
traced_main(void *arg) {
	peer.tid = (pid_t)syscall(SYS_gettid);
	pthread_barrier_wait(arg);
	pthread_barrier_wait(arg);
	return NULL;
}

static void
run_peer(void) {
	pthread_t         traced;
	pthread_barrier_t turn;
	char              pid[16], address[32];
	char *argv[] = {"pins", "tracer", (char *)(uintptr_t)scenario_arg, pid,
	    address, NULL};
	pid_t child;
	places_fill();
	peer.pid = getpid();
	memcpy(peer.places, places, sizeof(places));
	pthread_barrier_init(&turn, NULL, 2);
	thread_start(&traced, traced_main, &turn);
	pthread_barrier_wait(&turn);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	snprintf(pid, sizeof(pid), "%d", peer.pid);
	snprintf(address, sizeof(address), "%llu",
	    (unsigned long long)(uintptr_t)&peer);
	errno = posix_spawn(
	    &child, "/proc/self/exe", NULL, NULL, argv, environ);
	if (errno != 0) {
		die("posix_spawn");
	}
	int status;
	while (waitpid(child, &status, WNOHANG) == 0) {
		churn(&held, (size_t)4 << 20);
		places_mesh(SIZE);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP) {
		exit(SKIP);
	}
	expect(status == 0, "the other process ends well");
	pthread_barrier_wait(&turn);
	pthread_join(traced, NULL);
	fprintf(stderr, "%llu pokes, %llu refused\n",
	    (unsigned long long)peer.npokes, (unsigned long long)peer.nrefused);
	results->count = peer.npokes;
	results->lost = peer.nlost;
	for (unsigned i = 0; i < NPLACES; i++) {
		unsigned char image[SIZE];
		memset(image, (int)(peer.round + i), SIZE);
		results->lost += memcmp(places[i], image, SIZE) != 0;
	}
}

int
main(int argc, char **argv) {
	static const scenario_t scenarios[] = {
	    {"pinned", run_pinned},
	    {"reads", run_reads},
	    {"sent", run_sent},
	    {"peer", run_peer},
	};
	if (argc == 5 && strcmp(argv[1], "tracer") == 0) {
		return tracer_main(argv);
	}
	return scenario_main(
	    argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
