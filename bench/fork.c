/*
 * Three forks of a fragmented heap, and what they cost: the first; one after all
 * objects have been written, and one after nothing has: the time that fork() takes,
 * handlers and all; how soon the child runs; after the last, how long a write in
 * the parent has to wait, and how much memory parent and child take together as the
 * parent writes.  fork.py runs it.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const char usage[] =
    "usage: fork [-b MiB] [-z size] [-l live] [-f followers] [-w] [-u file]\n"
    "  -l  share of the objects that is not freed, per cent\n"
    "  -f  mesh so many slabs, if there are so many\n"
    "  -w  write to all objects after the last fork\n"
    "  -u  a file whose number says how much memory is in use\n";

static size_t      bytes = (size_t)1 << 30;
static size_t      size = 256;
static unsigned    live_percent = 20;
static uint64_t    followers_goal = 20000;
static bool        with_writes;
static const char *usage_file;

static void
options_parse(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "b:z:l:f:wu:")) != -1;) {
		switch (c) {
		case 'b':
			bytes = number_parse(optarg) << 20;
			break;
		case 'z':
			size = number_parse(optarg);
			break;
		case 'l':
			live_percent = (unsigned)number_parse(optarg);
			break;
		case 'f':
			followers_goal = number_parse(optarg);
			break;
		case 'w':
			with_writes = true;
			break;
		case 'u':
			usage_file = optarg;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
}

static uint64_t **objects;
static size_t     nlive;

/* Writes to all objects; returns the longest that one write took. */
static uint64_t
objects_write(void) {
	uint64_t longest = 0;
	for (size_t i = 0; i < nlive; i++) {
		uint64_t before = now_ns();
		*(volatile uint64_t *)objects[i] = i;
		uint64_t took = now_ns() - before;
		longest = took > longest ? took : longest;
	}
	return longest;
}

/* Also brings their pages into the page tables. */
static uint64_t
objects_sum(void) {
	uint64_t sum = 0;
	for (size_t i = 0; i < nlive; i++) {
		sum += objects[i][0];
	}
	return sum;
}

typedef struct child_s child_t;
struct child_s {
	pid_t    pid;
	int      quit;
	uint64_t begin;
	/* When fork() returned, and when the child ran. */
	uint64_t parent_at;
	uint64_t child_at;
};

/* A child that looks at all objects when it is let on. */
static child_t
child_start(uint64_t sum) {
	static uint64_t *child_at;
	if (child_at == NULL) {
		child_at = outside_alloc_shared(sizeof(*child_at));
	}
	int quit[2];
	if (pipe(quit) != 0) {
		die("pipe");
	}
	child_t child = {.quit = quit[1], .begin = now_ns()};
	child.pid = fork();
	uint64_t now = now_ns();
	if (child.pid == 0) {
		*child_at = now;
		close(quit[1]);
		char c;
		while (read(quit[0], &c, 1) > 0) {
		}
		_exit(objects_sum() != sum);
	}
	if (child.pid == -1) {
		die("fork");
	}
	close(quit[0]);
	child.parent_at = now;
	/* So that it is no matter who runs first. */
	while (*(volatile uint64_t *)child_at < child.begin) {
		usleep(1000);
	}
	child.child_at = *child_at;
	return child;
}

/* Returns whether it found an object changed. */
static bool
child_end(child_t *child) {
	int status;
	close(child->quit);
	waitpid(child->pid, &status, 0);
	return status != 0;
}

/* A child that nothing happens to, and a while for what follows its end. */
static child_t
child_once(uint64_t sum, bool *bad) {
	child_t child = child_start(sum);
	*bad |= child_end(&child);
	sleep(2);
	return child;
}

static double
fork_ms(const child_t *child) {
	return (double)(child->parent_at - child->begin) / 1e6;
}

/* Meshes until there are enough followers or no more to be had. */
static uint64_t
mesh(void) {
	uint64_t followers = 0, before;
	do {
		before = followers;
		if (mesh_pass()) {
			break;
		}
		ctl_epoch();
		followers = mesh_stat("followers");
	} while (followers > before && followers < followers_goal);
	return followers;
}

int
main(int argc, char **argv) {
	options_parse(argc, argv);
	size_t n = bytes / size;
	rng_t  rng = {1};
	objects = outside_alloc(n * sizeof(*objects));
	for (size_t i = 0; i < n; i++) {
		objects[i] = malloc(size);
		objects[i][0] = i;
	}
	for (size_t i = 0; i < n; i++) {
		if (rng_below(&rng, 100) < live_percent) {
			objects[nlive++] = objects[i];
		} else {
			free(objects[i]);
		}
	}
	ctl_do("thread.tcache.flush");
	uint64_t followers = mesh(), maps = mappings();

	bool    bad = false;
	child_t first = child_once(objects_sum(), &bad);
	objects_write();
	child_t  written = child_once(objects_sum(), &bad);
	uint64_t sum = objects_sum();
	uint64_t used = file_number(usage_file);
	child_t  last = child_start(sum);
	uint64_t writing = now_ns();
	uint64_t longest = with_writes ? objects_write() : 0;
	writing = now_ns() - writing;
	uint64_t grown = file_number(usage_file);
	bad |= child_end(&last);

	printf(
	    "{\"followers\": %llu, \"mappings\": %llu, \"fork_ms\": %.3f,"
	    " \"child_ms\": %.3f, \"written_ms\": %.3f, \"last_ms\": %.3f,"
	    " \"writing_ms\": %.3f, \"longest_write_ms\": %.3f,"
	    " \"used_mb\": %.1f, \"grown_mb\": %.1f, \"child_bad\": %d}\n",
	    (unsigned long long)followers, (unsigned long long)maps,
	    fork_ms(&first), (double)(first.child_at - first.begin) / 1e6,
	    fork_ms(&written), fork_ms(&last), (double)writing / 1e6,
	    (double)longest / 1e6, (double)used / 1048576,
	    ((double)grown - (double)used) / 1048576, bad);
	return bad;
}
