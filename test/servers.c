/*
 * What servers do to whoever meshes them: become a daemon and idle, fork children
 * that end soon, purge, have one thread or several, switch background threads off,
 * enter a namespace.  Hardly any asks for a pass by arena.<i>.mesh.  Prints as JSON
 * what was seen at certain moments.
 *
 * usage: servers SCENARIO [FILE]
 *   FILE  has the memory of all processes, as a control group counts it
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

#define NOBJECTS 200000
#define SIZE 256
#define NCHILDREN 20
#define NTHREADS 2
#define NWORKERS 6

static table_t       held;
static atomic_size_t nbad;
static atomic_bool   stop;
static const char   *group;

static void
sleep_ms(unsigned ms) {
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
	while (nanosleep(&ts, &ts) != 0) {
	}
}

static unsigned
nthreads(void) {
	struct stat st;
	if (stat("/proc/self/task", &st) != 0) {
		die("/proc/self/task");
	}
	return (unsigned)st.st_nlink - 2;
}

static uint64_t
physical(void) {
	return rss_anon() + store_blocks();
}

static void
report(const char *when) {
	static bool more;
	/* Before anything is allocated here, with which threads may begin. */
	unsigned threads = nthreads();
	ctl_epoch();
	printf(
	    "%s\"%s\": {\"threads\": %u, \"physical\": %llu, \"fds\": %llu,"
	    " \"mesh\": ",
	    more ? ", " : "", when, threads, (unsigned long long)physical(),
	    (unsigned long long)descriptors());
	mesh_print();
	printf("}");
	more = true;
}

/* Nine of ten small objects, and all large ones, are freed in one go. */
static void
fragment(void) {
	enum { nlarge = 50, large_size = 300000 };
	void *large[nlarge];
	table_fill_some(&held, NOBJECTS - held.n, SIZE);
	for (unsigned i = 0; i < nlarge; i++) {
		large[i] = memset(malloc(large_size), 1, large_size);
	}
	nbad += table_thin(&held, 0.1, thin_random);
	for (unsigned i = 0; i < nlarge; i++) {
		free(large[i]);
	}
}

/* Some objects are replaced each millisecond, as a server does, for a time. */
static void
serve(table_t *t, unsigned ms) {
	enum { replaced = 50 };
	uint64_t end = now_ns() + ms * UINT64_C(1000000);
	while (now_ns() < end) {
		for (unsigned i = 0; i < replaced; i++) {
			object_t o = table_remove(t, table_pick(t));
			nbad += object_bad(&o);
			free(o.p);
		}
		table_fill_some(t, replaced, SIZE);
		sleep_ms(1);
	}
}

/* The same until much is meshed, but not for long: machines may be busy. */
static void
serve_until_meshed(void) {
	enum { much = 1000, seconds = 10 };
	unsigned n = 0;
	do {
		serve(&held, 1000);
		ctl_epoch();
	} while (mesh_stat("nmeshes") <= much && ++n < seconds);
}

/* As the compiler cannot know that there is no use for it. */
static void
allocate_for_a_moment(void) {
	void *volatile p = malloc(SIZE);
	free(p);
}

/* Until nothing is given back any more. */
static void
idle(void) {
	uint64_t before;
	unsigned ms = 0;
	do {
		before = physical();
		sleep_ms(1500);
		ms += 1500;
	} while ((physical() + (1 << 20) < before || ms < 6000) && ms < 30000);
}

/* Goes on in a child, as daemon(3) does. */
static void
daemonize(void) {
	pid_t pid = fork_or_die();
	if (pid != 0) {
		nbad += (size_t)child_status(pid);
		exit(0);
	}
	setsid();
}

static void
live(void) {
	report("start");
	fragment();
	idle();
	report("idle");
}

#define NCROWD 16

static table_t           crowd_tables[NCROWD];
static pthread_barrier_t crowd_turn;

static void *
crowd_main(void *arg) {
	unsigned self = (unsigned)(uintptr_t)arg;
	table_t *t = &crowd_tables[self];
	table_init(t, NOBJECTS / 4, self + 2, (uint64_t)(self + 2) << 32);
	table_fill_some(t, NOBJECTS / 4, SIZE);
	pthread_barrier_wait(&crowd_turn);
	nbad += table_thin(
	    &crowd_tables[(self + 1) % NCROWD], 0.1, thin_random);
	/* Nobody wakes them. */
	for (;;) {
		pause();
	}
	return NULL;
}

/* Threads that all free at once what others have allocated, and then sleep. */
static void
crowd(void) {
	pthread_t thread;
	pthread_barrier_init(&crowd_turn, NULL, NCROWD);
	report("start");
	for (uintptr_t i = 0; i < NCROWD; i++) {
		if (pthread_create(&thread, NULL, crowd_main, (void *)i) != 0) {
			die("pthread_create");
		}
	}
	sleep_ms(2000);
	idle();
	report("idle");
}

static void
live_as_daemon(void) {
	allocate_for_a_moment();
	daemonize();
	live();
}

static void
live_as_grandchild(void) {
	fragment();
	daemonize();
	daemonize();
	report("begun");
	serve(&held, 3000);
	idle();
	report("idle");
}

/*
 * A daemon whose caches answer nearly all: few objects, but large ones, of which most
 * are freed bit by bit.
 */
static void
quiet_daemon(void) {
	enum { nobjects = 3000, size = 3584, at_once = 10 };
	daemonize();
	report("start");
	table_fill_some(&held, nobjects, size);
	while (held.n > nobjects / 10) {
		for (unsigned i = 0; i < at_once; i++) {
			object_t o = table_remove(&held, table_pick(&held));
			nbad += object_bad(&o);
			free(o.p);
		}
		sleep_ms(1);
	}
	idle();
	report("idle");
}

/*
 * What a worker does all the time: it needs a little for a moment, some of it from the
 * arena.
 */
static void
work(void) {
	enum { n = 64, nlarge = 8, large_size = 100000 };
	void *p[n];
	for (unsigned i = 0; i < n; i++) {
		size_t size = i < nlarge ? large_size : 200 + i;
		p[i] = memset(malloc(size), 1, 200);
	}
	for (unsigned i = 0; i < n; i++) {
		free(p[i]);
	}
	sleep_ms(5);
}

/*
 * A server that fragments its heap and then forks workers.  One that begins threads, to
 * mesh what is not its own, counts as bad.
 */
static void
workers(void) {
	enum { seconds = 8 };
	pid_t    pids[NWORKERS];
	uint64_t peak = 0, sum = 0;
	fragment();
	for (unsigned i = 0; i < NWORKERS; i++) {
		if ((pids[i] = fork_or_die()) == 0) {
			uint64_t end = now_ns()
			    + seconds * UINT64_C(1000000000);
			while (now_ns() < end) {
				work();
			}
			_exit((table_check(&held) != 0) + (nthreads() != 1));
		}
	}
	for (unsigned i = 0; i < 10 * seconds; i++) {
		uint64_t now = file_number(group);
		peak = now > peak ? now : peak;
		sum += now;
		sleep_ms(95);
	}
	printf("\"peak\": %llu, \"mean\": %llu", (unsigned long long)peak,
	    (unsigned long long)(sum / (10 * seconds)));
	for (unsigned i = 0; i < NWORKERS; i++) {
		nbad += (size_t)child_status(pids[i]);
	}
}

/* Children that only read what they see, or a few that allocate a little. */
static void
children(void) {
	fragment();
	serve(&held, 500);
	idle();
	report("meshed");
	for (unsigned i = 0; i < NCHILDREN; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			size_t bad = table_check(&held);
			for (unsigned j = 0; j < 100; j++) {
				allocate_for_a_moment();
			}
			bad += table_check(&held);
			_exit((int)bad + (nthreads() != 1));
		}
		nbad += (size_t)child_status(pid);
	}
	report("end");
}

static void
purge(void) {
	struct timespec begin, end;
	fragment();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	ctl_do("arena.4096.purge");
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	report("purged");
	printf(", \"purge_ms\": %.1f",
	    (double)(end.tv_sec - begin.tv_sec) * 1e3
	        + (double)(end.tv_nsec - begin.tv_nsec) / 1e6);
	idle();
	report("idle");
	nbad += table_check(&held);
	nbad += table_free(&held);
	ctl_do("thread.tcache.flush");
	ctl_do("arena.4096.purge");
	idle();
	report("freed");
}

/* Everything is freed in a moment, at rest, and then nothing is done any more. */
static void
dead(void) {
	enum { ms = 3000 };
	fragment();
	ctl_do("arena.4096.mesh");
	idle();
	report("meshed");
	nbad += table_free(&held);
	ctl_do("thread.tcache.flush");
	sleep_ms(ms);
	report("dead");
}

/*
 * The same bit by bit, so that slabs die one here and one there, and leave the store, for
 * which mappings run short, long before their neighbours do.
 */
static void
dead_slowly(void) {
	enum { at_once = 500, ms = 100, rest_ms = 5000 };
	fragment();
	ctl_do("arena.4096.mesh");
	report("meshed");
	while (held.n > 0) {
		object_t o = table_remove(&held, table_pick(&held));
		nbad += object_bad(&o);
		free(o.p);
		if (held.n % at_once == 0) {
			ctl_do("thread.tcache.flush");
			sleep_ms(ms);
		}
	}
	sleep_ms(rest_ms);
	report("dead");
	printf(", \"mappings\": %llu", (unsigned long long)mappings());
}

/* The store of before a fork keeps its memory until nothing of it is mapped. */
static void
frozen(void) {
	fragment();
	ctl_do("arena.4096.mesh");
	report("meshed");
	pid_t pid = fork_or_die();
	if (pid == 0) {
		_exit(0);
	}
	nbad += (size_t)child_status(pid);
	report("forked");
	nbad += table_free(&held);
	ctl_do("thread.tcache.flush");
	report("dead");
}

static void *
thread_main(void *arg) {
	table_t *t = (table_t *)arg;
	while (!stop) {
		table_fill_some(t, 40000 - t->n, SIZE);
		nbad += table_thin(t, 0.2, thin_random);
		serve(t, 200);
	}
	return NULL;
}

static void
threads_run(unsigned ms) {
	static table_t tables[NTHREADS];
	pthread_t      threads[NTHREADS];
	for (unsigned i = 0; i < NTHREADS; i++) {
		if (tables[i].objects == NULL) {
			table_init(&tables[i], NOBJECTS, i + 2,
			    (uint64_t)(i + 2) << 32);
		}
		if (pthread_create(&threads[i], NULL, thread_main, &tables[i])
		    != 0) {
			die("pthread_create");
		}
	}
	sleep_ms(ms);
	report("threads");
	stop = true;
	for (unsigned i = 0; i < NTHREADS; i++) {
		pthread_join(threads[i], NULL);
		nbad += table_free(&tables[i]);
	}
}

/* One thread, which works, and then two more. */
static void
alone(void) {
	fragment();
	serve_until_meshed();
	report("alone");
	struct sigaction urg, winch;
	sigaction(SIGURG, NULL, &urg);
	sigaction(SIGWINCH, NULL, &winch);
	printf(", \"handlers\": %d",
	    (urg.sa_handler != SIG_DFL) + (winch.sa_handler != SIG_DFL));
	threads_run(3000);
}

/* Background threads are switched off by the program, and meshing goes on. */
static void
toggle(void) {
	bool off = false;
	if (mallctl("background_thread", NULL, NULL, &off, sizeof(off)) != 0) {
		die("background_thread");
	}
	fragment();
	serve_until_meshed();
	report("off");
}

static void
namespaces(void) {
	table_fill_some(&held, 1000, SIZE);
	sleep_ms(100);
	printf("\"unshare\": %d", unshare(CLONE_NEWUSER));
}

static void *
idle_main(void *arg) {
	for (;;) {
		pause();
	}
	return arg;
}

static void
child_of_vfork(void) {
	nbad += table_thin(&held, 0.1, thin_random);
	_exit(0);
}

/* The child of vfork(2) frees what lies in its parent's memory. */
static void
vforker(void) {
	table_fill_some(&held, NOBJECTS, SIZE);
	pid_t pid = vfork();
	if (pid == 0) {
		child_of_vfork();
	}
	nbad += (size_t)child_status(pid);
	report("ended");
	serve_until_meshed();
	report("served");
}

/* The kernel has no thread for anybody any more; run by an ordinary user. */
static void
threads_refused(void) {
	struct rlimit none = {0, 0};
	pthread_t     thread;
	if (pthread_create(&thread, NULL, idle_main, NULL) != 0
	    || setrlimit(RLIMIT_NPROC, &none) != 0) {
		die("pthread_create, setrlimit");
	}
	fragment();
	serve_until_meshed();
	report("refused");
}

/* All descriptors are in use as the first slabs could be meshed. */
static void
descriptors_used_up(void) {
	struct rlimit limit, none;
	if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
		die("getrlimit");
	}
	none = limit;
	none.rlim_cur = 0;
	setrlimit(RLIMIT_NOFILE, &none);
	fragment();
	serve(&held, 500);
	setrlimit(RLIMIT_NOFILE, &limit);
	serve_until_meshed();
	report("end");
}

/* Objects that fill their slabs, of which few are freed again. */
static void
plain(void) {
	table_fill_some(&held, NOBJECTS, SIZE);
	nbad += table_thin(&held, 0.99, thin_random);
	table_fill_some(&held, NOBJECTS - held.n, SIZE);
}

int
main(int argc, char **argv) {
	static const struct {
		const char *name;
		void (*run)(void);
	} scenarios[] = {{"live", live}, {"crowd", crowd},
	    {"daemon", live_as_daemon}, {"grandchild", live_as_grandchild},
	    {"children", children}, {"purge", purge}, {"dead", dead},
	    {"dead_slowly", dead_slowly}, {"frozen", frozen}, {"alone", alone},
	    {"toggle", toggle}, {"namespaces", namespaces},
	    {"refused", threads_refused}, {"vfork", vforker},
	    {"quiet", quiet_daemon}, {"workers", workers},
	    {"descriptors", descriptors_used_up}, {"plain", plain}};
	group = argc == 3 ? argv[2] : NULL;
	table_init(&held, NOBJECTS, 1, (uint64_t)1 << 32);
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
		if (argc > 1 && strcmp(argv[1], scenarios[i].name) == 0) {
			printf("{");
			scenarios[i].run();
			nbad += table_check(&held);
			printf("%s\"bad\": %zu}\n",
			    scenarios[i].run == plain ? "" : ", ", nbad);
			return 0;
		}
	}
	fprintf(stderr, "usage: servers SCENARIO [FILE]\n");
	return 2;
}
