/*
 * Forks with thousands of meshed slabs while threads write to them, and checks
 * in every process that its heap is its own from the fork on.
 *
 * A child first checks all objects as of the fork and writes to them, while its
 * parent writes to them, too, frees many and meshes.  Then it checks them again,
 * frees, meshes, starts writers and forks in turn, as often as -d says.  Every
 * process checks what it has at its end.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OBJECTS_MAX 400000
#define NWRITERS_MAX 16
#define NFILES 16
#define FILE_SIZE ((off_t)1 << 40)
#define SIZE_MIN 16
#define SIZE_MAX_SMALL 14337

static const char usage[] =
    "usage: forker [-t writers] [-r seed] [-b MiB] [-n forks] [-c children at a"
    " time]\n"
    "              [-d depth] [-wxR]\n"
    "  -w  let the writers wait during fork: objects must be exactly equal\n"
    "  -x  close all file descriptors once slabs are meshed, and reuse them\n"
    "  -R  use _Fork(), which passes over pthread_atfork(): must show damage\n";

static unsigned nwriters = 3;
static uint64_t seed = 1;
static size_t   bytes_max = (size_t)64 << 20;
static unsigned nforks = 3;
static unsigned nchildren_max = 1;
static unsigned depth_max = 2;
static bool     with_wait, with_close, raw;

/* Sums over all processes, in memory that they share. */
typedef struct {
	_Atomic uint64_t forks, checked, bad;
	/* Objects caught between the two halves of an increment. */
	_Atomic uint64_t ahead;
	/* Meshes made after a fork by the child itself. */
	_Atomic uint64_t child_meshes;
	/* Children that did not exit with status 0. */
	_Atomic uint64_t failed;
	/* Followers in the process that forked first, when it did. */
	_Atomic uint64_t followers;
} results_t;

static results_t *results;

/* Incremented by the writers, each its own part of it. */
static table_t written;
/* Allocated and freed by the main thread meanwhile, but not during fork. */
static table_t churned;
/* Allocated and freed by a thread of its own all the time: lost to children. */
static table_t fluctuating;

/* Of the program's own: holes only. */
static int files[NFILES];

static pthread_t   writers[NWRITERS_MAX];
static pthread_t   fluctuator;
static atomic_bool stop;
static atomic_bool wait_wanted;
static atomic_uint nwaiting;

static void *
writer_main(void *arg) {
	unsigned self = (unsigned)(uintptr_t)arg;
	rng_t    rng = {seed + self};
	while (!stop) {
		for (unsigned i = 0; i < 64; i++) {
			size_t k = rng_below(&rng, (uint32_t)written.n);
			k -= k % nwriters;
			if (k + self < written.n) {
				object_bump(&written.objects[k + self]);
			}
		}
		if (wait_wanted) {
			nwaiting++;
			while (wait_wanted) {
				sched_yield();
			}
			nwaiting--;
		}
	}
	return NULL;
}

static void *
fluctuator_main(void *arg) {
	(void)arg;
	table_t *t = &fluctuating;
	table_init(t, OBJECTS_MAX, seed + (uint64_t)getpid(), 1);
	while (!stop) {
		table_fill(t, bytes_max / 16, SIZE_MIN, SIZE_MAX_SMALL);
		results->bad += table_thin(t, 0.1, thin_random);
		ctl_do("thread.tcache.flush");
		results->bad += table_check(t);
	}
	results->bad += table_free(t);
	return NULL;
}

static void
thread_start(pthread_t *thread, void *(*main)(void *), void *arg) {
	errno = pthread_create(thread, NULL, main, arg);
	if (errno != 0) {
		die("pthread_create");
	}
}

static void
threads_start(void) {
	stop = false;
	for (unsigned i = 0; i < nwriters; i++) {
		thread_start(&writers[i], writer_main, (void *)(uintptr_t)i);
	}
	thread_start(&fluctuator, fluctuator_main, NULL);
}

static void
threads_stop(void) {
	stop = true;
	for (unsigned i = 0; i < nwriters; i++) {
		pthread_join(writers[i], NULL);
	}
	pthread_join(fluctuator, NULL);
}

static void
writers_hold(void) {
	wait_wanted = true;
	while (nwaiting < nwriters) {
		sched_yield();
	}
}

static void
writers_release(void) {
	wait_wanted = false;
	while (nwaiting > 0) {
		sched_yield();
	}
}

/*
 * Does what daemons do first: closes everything.  Files of the program's own
 * take over the numbers; nobody else may write to them.
 */
static void
files_open(void) {
	if (close_range(3, ~0u, 0) != 0) {
		die("close_range");
	}
	for (unsigned i = 0; i < NFILES; i++) {
		files[i] = memfd_create("forker", 0);
		if (files[i] < 0 || ftruncate(files[i], FILE_SIZE) != 0) {
			die("memfd_create");
		}
	}
}

static void
files_check(void) {
	for (unsigned i = 0; i < NFILES; i++) {
		struct stat st;
		results->bad += fstat(files[i], &st) != 0
		    || st.st_size != FILE_SIZE || st.st_blocks != 0;
	}
}

static void
check(table_t *t) {
	results->checked += t->n;
	results->bad += table_check(t);
}

/*
 * Checks the objects as of the fork.  A writer increments the object and then
 * its count, and a fork can come between: one object a writer may be ahead.
 */
static void
check_inherited(void) {
	uint64_t ahead = 0;
	for (size_t i = 0; i < written.n; i++) {
		object_t next = written.objects[i];
		next.count++;
		if (object_bad(&written.objects[i]) && !object_bad(&next)) {
			written.objects[i] = next;
			ahead++;
		}
	}
	results->ahead += ahead;
	if (ahead > (with_wait ? 0 : nwriters)) {
		fprintf(stderr, "%llu objects ahead of their count\n",
		    (unsigned long long)ahead);
		results->bad += ahead;
	}
	check(&written);
	check(&churned);
}

/* Writes to everything, differently in each process, and checks it. */
static void
rewrite(void) {
	for (size_t i = 0; i < written.n; i++) {
		written.objects[i].id += (uint64_t)getpid() << 40;
		object_rewrite(&written.objects[i]);
	}
	check(&written);
}

/* Frees most of the objects of a table and allocates others, and meshes. */
static void
churn(table_t *t) {
	for (unsigned i = 1; i <= 4; i++) {
		table_fill(t, bytes_max / 8 * i, SIZE_MIN, SIZE_MAX_SMALL);
	}
	results->checked += t->n;
	results->bad += table_thin(
	    t, 0.02 + 0.2 * unit(rng_next(&t->rng)), thin_random);
	ctl_do("thread.tcache.flush");
	mesh_pass();
	check(t);
}

static uint64_t
nmeshes(void) {
	ctl_epoch();
	return mesh_stat("nmeshes");
}

static void live(unsigned depth);

/*
 * The life of a child.  When its parent has freed and meshed what both
 * inherited, a byte comes through the pipe.
 */
static void
child_main(unsigned depth, const int *parent_churned) {
	uint64_t bad = results->bad;
	char     byte;
	close(parent_churned[1]);
	/* Only the thread that forked is here. */
	wait_wanted = false;
	nwaiting = 0;
	check_inherited();
	for (unsigned i = 0; i < 3; i++) {
		rewrite();
	}
	if (read(parent_churned[0], &byte, 1) != 1) {
		die("read");
	}
	close(parent_churned[0]);
	check(&written);
	check(&churned);
	if (!raw) {
		uint64_t before = nmeshes();
		churn(&churned);
		churn(&written);
		results->child_meshes += nmeshes() - before;
		if (depth > 0) {
			live(depth);
		}
	}
	_exit(results->bad > bad);
}

static void
child_wait(void) {
	int status;
	if (wait(&status) < 0) {
		die("wait");
	}
	if (status != 0) {
		fprintf(stderr, "a child ended with status %#x\n", status);
		results->failed++;
	}
	check(&churned);
}

static void
child_start(unsigned depth) {
	int churned_pipe[2];
	if (pipe(churned_pipe) != 0) {
		die("pipe");
	}
	if (with_wait) {
		writers_hold();
	}
	pid_t pid = raw ? _Fork() : fork();
	if (pid < 0) {
		die("fork");
	}
	if (pid == 0) {
		child_main(depth, churned_pipe);
	}
	if (with_wait) {
		writers_release();
	}
	results->forks++;
	/* Twice: the second time meshes where slabs died the first time. */
	churn(&churned);
	churn(&churned);
	if (write(churned_pipe[1], "", 1) != 1) {
		die("write");
	}
	close(churned_pipe[0]);
	close(churned_pipe[1]);
}

/* Forks under load; depth says how many generations are still to come. */
static void
live(unsigned depth) {
	bool     first = depth == depth_max;
	unsigned nchildren = 0;
	churn(&written);
	churn(&churned);
	if (first) {
		ctl_epoch();
		results->followers = mesh_stat("followers");
		if (with_close) {
			files_open();
		}
	}
	threads_start();
	for (unsigned i = 0; i < (first ? nforks : 1); i++) {
		child_start(depth - 1);
		if (++nchildren == nchildren_max) {
			child_wait();
			nchildren--;
		}
	}
	while (nchildren-- > 0) {
		child_wait();
	}
	threads_stop();
	check(&written);
}

static void
options_parse(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "t:r:b:n:c:d:wxR")) != -1;) {
		switch (c) {
		case 't':
			nwriters = (unsigned)number_parse(optarg);
			if (nwriters > NWRITERS_MAX) {
				nwriters = NWRITERS_MAX;
			}
			break;
		case 'r':
			seed = number_parse(optarg);
			break;
		case 'b':
			bytes_max = number_parse(optarg) << 20;
			break;
		case 'n':
			nforks = (unsigned)number_parse(optarg);
			break;
		case 'c':
			nchildren_max = (unsigned)number_parse(optarg);
			break;
		case 'd':
			depth_max = (unsigned)number_parse(optarg);
			break;
		case 'w':
			with_wait = true;
			break;
		case 'x':
			with_close = true;
			break;
		case 'R':
			raw = true;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
}

int
main(int argc, char **argv) {
	options_parse(argc, argv);
	results = outside_alloc_shared(sizeof(*results));
	table_init(&written, OBJECTS_MAX, seed, 1);
	table_init(&churned, OBJECTS_MAX, seed + 1, UINT64_C(1) << 32);
	live(depth_max);
	if (with_close) {
		files_check();
	}
	results->bad += table_free(&written);
	results->bad += table_free(&churned);
	ctl_do("thread.tcache.flush");

	ctl_epoch();
	printf(
	    "{\"seed\": %llu, \"forks\": %llu, \"checked\": %llu,"
	    " \"bad\": %llu, \"ahead\": %llu, \"failed\": %llu,"
	    " \"followers\": %llu, \"child_meshes\": %llu,"
	    " \"mappings\": %llu, \"mesh\": ",
	    (unsigned long long)seed, (unsigned long long)results->forks,
	    (unsigned long long)results->checked,
	    (unsigned long long)results->bad,
	    (unsigned long long)results->ahead,
	    (unsigned long long)results->failed,
	    (unsigned long long)results->followers,
	    (unsigned long long)results->child_meshes,
	    (unsigned long long)mappings());
	mesh_print();
	printf("}\n");
	return results->bad + results->failed > 0;
}
