/*
 * Uses the heap from several threads as hard as it can be used while it is
 * meshed, and counts what goes wrong: objects whose bytes are not what was
 * written last, system calls that could not write to an object, counts that got
 * lost under a mutex of the heap.
 *
 * Each thread fills its table with objects of a few sizes, frees most of them,
 * so that slabs become sparse, and then works on the rest for a while: it
 * increments, checks, rewrites, resizes, frees and replaces them and hands them
 * to other threads.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define OBJECTS_MAX 400000
#define MAIL_MAX 256
#define LARGE_MAX ((size_t)256 << 10)
/*
 * One system call writes to so many objects and bytes at most; an empty pipe
 * holds them even if its 16 slots are only half used.
 */
#define IOV_OBJECTS 16
#define IOV_BYTES (32 << 10)
#define NSIGNAL_OBJECTS 64
#define NLOCKED 1024
/* Of so many neighbours one is kept where slabs shall be sparse. */
#define SPARSE 16

static const char usage[] =
    "usage: torture [-t threads] [-s seconds] [-r seed] [-m min size]"
    " [-M max size]\n"
    "               [-b MiB a thread] [-yklp]\n"
    "  -y  let the kernel write to objects, too: read, readv, recvmsg\n"
    "  -k  write to objects from a signal handler, too\n"
    "  -l  keep contended mutexes in the heap\n"
    "  -p  ask for meshing passes all the time, by arena.4096.mesh\n";

static unsigned nthreads = 4;
static uint64_t seconds = 5;
static uint64_t seed = 1;
static size_t   size_min = 8;
static size_t   size_max = 14337;
static size_t   bytes_max = (size_t)16 << 20;
static bool     with_syscalls, with_signals, with_locks, with_passes;

typedef struct {
	table_t   table;
	pthread_t thread;

	/* Objects that other threads handed over. */
	pthread_mutex_t mail_lock;
	object_t        mail[MAIL_MAX];
	unsigned        nmail;

	int            pipe[2];
	int            sock[2];
	unsigned char *scratch;

	/* Written by the signal handler only. */
	object_t signal_objects[NSIGNAL_OBJECTS];

	uint64_t checked, writes, syscalls, bad, efault, short_io;
} worker_t;

/* A mutex and what it guards. */
typedef struct {
	pthread_mutex_t mutex;
	uint64_t        count;
} locked_t;

static worker_t          *workers;
static __thread worker_t *self;
static atomic_bool        stop;
static pthread_barrier_t  barrier;
/* In the heap, and outside of it what the counts ought to be. */
static locked_t        **locked;
static _Atomic uint64_t *locked_expected;

/* Allocates n objects that lie sparsely in their slabs. */
static void
sparse_alloc(void **kept, size_t n, size_t size, rng_t *rng) {
	void **all = outside_alloc(n * SPARSE * sizeof(void *));
	for (size_t i = 0; i < n * SPARSE; i++) {
		all[i] = malloc(size);
	}
	for (size_t i = 0; i < n; i++) {
		void   **group = &all[i * SPARSE];
		unsigned chosen = rng_below(rng, SPARSE);
		for (unsigned j = 0; j < SPARSE; j++) {
			if (j != chosen) {
				free(group[j]);
			}
		}
		kept[i] = group[chosen];
	}
}

static void
worker_expect(worker_t *w, object_t *o) {
	w->checked++;
	if (object_bad(o)) {
		object_report(o);
		object_rewrite(o);
		w->bad++;
	}
}

static void
worker_check_all(worker_t *w) {
	w->checked += w->table.n;
	w->bad += table_check(&w->table);
}

static void
worker_bump(worker_t *w) {
	for (unsigned i = 0; i < 64; i++) {
		object_bump(table_pick(&w->table));
	}
	w->writes += 64;
}

static void
worker_check(worker_t *w) {
	for (unsigned i = 0; i < 16; i++) {
		worker_expect(w, table_pick(&w->table));
	}
}

static void
worker_rewrite(worker_t *w) {
	for (unsigned i = 0; i < 4; i++) {
		object_rewrite(table_pick(&w->table));
	}
	w->writes += 4;
}

static size_t
worker_size(worker_t *w) {
	return rng_below(&w->table.rng, 64) != 0
	    ? rng_size(&w->table.rng, size_min, size_max)
	    : rng_size(&w->table.rng, size_max, LARGE_MAX);
}

static void
worker_realloc(worker_t *w) {
	object_t old = table_remove(&w->table, table_pick(&w->table));
	worker_expect(w, &old);
	void  *p = realloc(old.p, worker_size(w));
	size_t size = malloc_usable_size(p);
	w->bad += object_prefix_bad(&old, p, size < old.size ? size : old.size);
	table_add(&w->table, p);
	w->writes++;
}

static void
worker_replace(worker_t *w) {
	object_t old = table_remove(&w->table, table_pick(&w->table));
	worker_expect(w, &old);
	free(old.p);

	size_t size = worker_size(w);
	void  *p;
	switch (rng_below(&w->table.rng, 4)) {
	case 0:
		p = calloc(1, size);
		w->bad += p != NULL && !is_zero(p, size);
		break;
	case 1: {
		size_t alignment = (size_t)8 << rng_below(&w->table.rng, 10);
		p = aligned_alloc(alignment, size);
		w->bad += (uintptr_t)p % alignment != 0;
		break;
	}
	default:
		p = malloc(size);
	}
	table_add(&w->table, p);
	w->writes++;
}

static void
worker_hand_over(worker_t *w) {
	worker_t *to = &workers[rng_below(&w->table.rng, nthreads)];
	pthread_mutex_lock(&to->mail_lock);
	if (to->nmail < MAIL_MAX) {
		to->mail[to->nmail++] = table_remove(
		    &w->table, table_pick(&w->table));
	}
	pthread_mutex_unlock(&to->mail_lock);
}

/* Frees one half of the objects handed over and keeps the other. */
static void
worker_receive(worker_t *w) {
	pthread_mutex_lock(&w->mail_lock);
	while (w->nmail > 0) {
		object_t o = w->mail[--w->nmail];
		worker_expect(w, &o);
		if (w->nmail % 2 == 0 || w->table.n == w->table.max) {
			free(o.p);
		} else {
			table_adopt(&w->table, o);
		}
	}
	pthread_mutex_unlock(&w->mail_lock);
}

static void
worker_channels_open(worker_t *w) {
	if (pipe(w->pipe) != 0
	    || socketpair(AF_UNIX, SOCK_DGRAM, 0, w->sock) != 0) {
		die("pipe, socketpair");
	}
}

static void
worker_channels_close(worker_t *w) {
	close(w->pipe[0]);
	close(w->pipe[1]);
	close(w->sock[0]);
	close(w->sock[1]);
}

/* Has the kernel write new versions of some objects by one call. */
static void
worker_syscall(worker_t *w) {
	object_t    *objects[IOV_OBJECTS];
	struct iovec iov[IOV_OBJECTS];
	size_t       n = 0, total = 0;
	size_t       start = rng_below(&w->table.rng, (uint32_t)w->table.n);
	size_t       max = 1 + rng_below(&w->table.rng, IOV_OBJECTS);
	for (; n < max; n++) {
		/* Far from each other, so that many slabs are written to. */
		size_t    k = start + n * (w->table.n / IOV_OBJECTS);
		object_t *o = &w->table.objects[k % w->table.n];
		if (total + o->size > IOV_BYTES) {
			break;
		}
		o->version++;
		o->count = 0;
		object_image(o, w->scratch + total);
		objects[n] = o;
		iov[n] = (struct iovec){o->p, o->size};
		total += o->size;
	}
	if (n == 0) {
		return;
	}

	struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
	bool          datagram = rng_below(&w->table.rng, 2) == 0;
	int           out = datagram ? w->sock[1] : w->pipe[1];
	ssize_t       got;
	if (write(out, w->scratch, total) != (ssize_t)total) {
		die("write");
	}
	if (datagram) {
		got = recvmsg(w->sock[0], &message, 0);
	} else if (n == 1) {
		got = read(w->pipe[0], iov[0].iov_base, iov[0].iov_len);
	} else {
		got = readv(w->pipe[0], iov, (int)n);
	}

	w->syscalls++;
	w->writes += n;
	if (got == (ssize_t)total) {
		for (size_t i = 0; i < n; i++) {
			worker_expect(w, objects[i]);
		}
		return;
	}
	if (got < 0 && errno == EFAULT) {
		w->efault++;
	} else {
		w->short_io++;
	}
	/* Start over, so that this is counted once only. */
	for (size_t i = 0; i < n; i++) {
		object_rewrite(objects[i]);
	}
	worker_channels_close(w);
	worker_channels_open(w);
}

static void
worker_lock(worker_t *w) {
	for (unsigned i = 0; i < 16; i++) {
		/* All threads want the same few, others after a while. */
		size_t k = ((now_ns() >> 25) * 4 + rng_below(&w->table.rng, 4))
		    % NLOCKED;
		pthread_mutex_lock(&locked[k]->mutex);
		locked[k]->count++;
		pthread_mutex_unlock(&locked[k]->mutex);
		atomic_fetch_add(&locked_expected[k], 1);
	}
}

static void
worker_work(worker_t *w, uint64_t until) {
	for (unsigned i = 0; w->table.n > IOV_OBJECTS; i++) {
		if (i % 64 == 0 && (stop || now_ns() >= until)) {
			break;
		}
		unsigned op = rng_below(&w->table.rng, 100);
		if (op < 60) {
			worker_bump(w);
		} else if (op < 70) {
			worker_check(w);
		} else if (op < 75) {
			worker_rewrite(w);
		} else if (op < 79) {
			worker_realloc(w);
		} else if (op < 85) {
			worker_replace(w);
		} else if (op < 88) {
			worker_hand_over(w);
		} else if (op < 90) {
			worker_receive(w);
		} else if (op < 97) {
			for (unsigned j = 0; with_syscalls && j < 8; j++) {
				worker_syscall(w);
			}
		} else if (with_locks) {
			worker_lock(w);
		}
	}
}

static void
signal_handle(int signum) {
	(void)signum;
	if (self != NULL) {
		for (unsigned i = 0; i < NSIGNAL_OBJECTS; i++) {
			object_bump(&self->signal_objects[i]);
		}
	}
}

/* Lets this thread, and none but workers, be interrupted. */
static void
signal_mask(int how) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(how, &set, NULL);
}

static void
worker_signal_objects_alloc(worker_t *w) {
	void *p[NSIGNAL_OBJECTS];
	sparse_alloc(p, NSIGNAL_OBJECTS, 256, &w->table.rng);
	for (unsigned i = 0; i < NSIGNAL_OBJECTS; i++) {
		w->signal_objects[i] = object_init(p[i], w->table.next_id++);
	}
}

static void
worker_signal_objects_free(worker_t *w) {
	for (unsigned i = 0; i < NSIGNAL_OBJECTS; i++) {
		w->writes += w->signal_objects[i].count;
		worker_expect(w, &w->signal_objects[i]);
		free(w->signal_objects[i].p);
	}
}

static void *
worker_main(void *arg) {
	worker_t *w = arg;
	rng_t    *rng = &w->table.rng;
	worker_channels_open(w);
	w->scratch = outside_alloc(IOV_BYTES);
	worker_signal_objects_alloc(w);
	self = w;
	signal_mask(SIG_UNBLOCK);

	while (!stop) {
		table_fill(&w->table, bytes_max, size_min, size_max);
		w->checked += w->table.n;
		w->bad += table_thin(&w->table,
		    0.02 + 0.38 * unit(rng_next(rng)),
		    rng_below(rng, thin_npatterns));
		if (rng_below(rng, 2) == 0) {
			ctl_do("thread.tcache.flush");
		}
		worker_work(w, now_ns() + rng_size(rng, 50, 800) * 1000000);
		worker_check_all(w);
	}

	signal_mask(SIG_BLOCK);
	/* Nobody hands objects over any more. */
	pthread_barrier_wait(&barrier);
	worker_receive(w);
	/* The main thread meshes once more; nobody writes. */
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	worker_check_all(w);
	w->bad += table_free(&w->table);
	worker_signal_objects_free(w);
	worker_channels_close(w);
	return NULL;
}

static void
locks_alloc(void) {
	rng_t rng = {seed};
	locked = outside_alloc(NLOCKED * sizeof(*locked));
	locked_expected = outside_alloc(NLOCKED * sizeof(*locked_expected));
	sparse_alloc((void **)locked, NLOCKED, sizeof(locked_t), &rng);
	for (unsigned i = 0; i < NLOCKED; i++) {
		pthread_mutex_init(&locked[i]->mutex, NULL);
		locked[i]->count = 0;
	}
}

static uint64_t
locks_free(void) {
	uint64_t bad = 0;
	for (unsigned i = 0; i < NLOCKED; i++) {
		bad += locked[i]->count != locked_expected[i];
		free(locked[i]);
	}
	return bad;
}

static void
options_parse(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "t:s:r:m:M:b:yklp")) != -1;) {
		switch (c) {
		case 't':
			nthreads = (unsigned)number_parse(optarg);
			break;
		case 's':
			seconds = number_parse(optarg);
			break;
		case 'r':
			seed = number_parse(optarg);
			break;
		case 'm':
			size_min = number_parse(optarg);
			break;
		case 'M':
			size_max = number_parse(optarg) + 1;
			break;
		case 'b':
			bytes_max = number_parse(optarg) << 20;
			break;
		case 'y':
			with_syscalls = true;
			break;
		case 'k':
			with_signals = true;
			break;
		case 'l':
			with_locks = true;
			break;
		case 'p':
			with_passes = true;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
}

static void
run(void) {
	uint64_t         end = now_ns() + seconds * UINT64_C(1000000000);
	struct itimerval tick = {{0, 1000}, {0, 1000}};
	if (with_signals && setitimer(ITIMER_REAL, &tick, NULL) != 0) {
		die("setitimer");
	}
	while (now_ns() < end) {
		if (with_passes) {
			mesh_pass();
		} else {
			nanosleep(
			    &(struct timespec){.tv_nsec = 10000000}, NULL);
		}
	}
	stop = true;
}

int
main(int argc, char **argv) {
	options_parse(argc, argv);
	struct sigaction action = {
	    .sa_handler = signal_handle, .sa_flags = SA_RESTART};
	sigaction(SIGALRM, &action, NULL);
	signal_mask(SIG_BLOCK);
	pthread_barrier_init(&barrier, NULL, nthreads + 1);
	if (with_locks) {
		locks_alloc();
	}
	workers = outside_alloc(nthreads * sizeof(worker_t));
	for (unsigned i = 0; i < nthreads; i++) {
		worker_t *w = &workers[i];
		pthread_mutex_init(&w->mail_lock, NULL);
		table_init(&w->table, OBJECTS_MAX, mix64(seed + i),
		    (uint64_t)(i + 1) << 32);
	}
	/* Not before: they hand objects over to each other. */
	for (unsigned i = 0; i < nthreads; i++) {
		errno = pthread_create(
		    &workers[i].thread, NULL, worker_main, &workers[i]);
		if (errno != 0) {
			die("pthread_create");
		}
	}

	run();
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	mesh_pass();
	pthread_barrier_wait(&barrier);

	worker_t sum = {0};
	for (unsigned i = 0; i < nthreads; i++) {
		worker_t *w = &workers[i];
		pthread_join(w->thread, NULL);
		sum.checked += w->checked;
		sum.writes += w->writes;
		sum.syscalls += w->syscalls;
		sum.bad += w->bad;
		sum.efault += w->efault;
		sum.short_io += w->short_io;
	}
	if (with_locks) {
		sum.bad += locks_free();
	}
	ctl_do("thread.tcache.flush");
	ctl_epoch();
	printf(
	    "{\"seed\": %llu, \"checked\": %llu, \"writes\": %llu,"
	    " \"syscalls\": %llu, \"bad\": %llu, \"efault\": %llu,"
	    " \"short\": %llu, \"mappings\": %llu, \"mesh\": ",
	    (unsigned long long)seed, (unsigned long long)sum.checked,
	    (unsigned long long)sum.writes, (unsigned long long)sum.syscalls,
	    (unsigned long long)sum.bad, (unsigned long long)sum.efault,
	    (unsigned long long)sum.short_io, (unsigned long long)mappings());
	mesh_print();
	printf("}\n");
	return sum.bad + sum.efault + sum.short_io > 0;
}
