/*
 * One fork of a fragmented heap, and what it costs: the time that fork() takes,
 * handlers and all; how soon the child runs; how long a write in the parent has
 * to wait afterwards; how much memory parent and child take together as the
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
    "  -w  write to all objects after the fork\n"
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
	size_t     n = bytes / size, nlive = 0;
	rng_t      rng = {1};
	uint64_t **objects = outside_alloc(n * sizeof(*objects));
	uint64_t  *child_at = outside_alloc_shared(sizeof(*child_at));
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
	/* Page tables as they are in a program that uses its heap. */
	uint64_t sum = 0;
	for (size_t i = 0; i < nlive; i++) {
		sum += objects[i][0];
	}

	int quit[2];
	if (pipe(quit) != 0) {
		die("pipe");
	}
	uint64_t used = file_number(usage_file);
	uint64_t begin = now_ns();
	pid_t    child = fork();
	uint64_t end = now_ns();
	if (child == 0) {
		*child_at = end;
		close(quit[1]);
		char c;
		while (read(quit[0], &c, 1) > 0) {
		}
		uint64_t again = 0;
		for (size_t i = 0; i < nlive; i++) {
			again += objects[i][0];
		}
		_exit(again != sum);
	}
	if (child == -1) {
		die("fork");
	}
	uint64_t longest = 0, writing = now_ns();
	for (size_t i = 0; with_writes && i < nlive; i++) {
		uint64_t before = now_ns();
		*(volatile uint64_t *)objects[i] = i;
		uint64_t took = now_ns() - before;
		longest = took > longest ? took : longest;
	}
	writing = now_ns() - writing;
	uint64_t grown = file_number(usage_file);
	close(quit[0]);
	close(quit[1]);
	int status;
	waitpid(child, &status, 0);

	printf(
	    "{\"followers\": %llu, \"mappings\": %llu, \"fork_ms\": %.3f,"
	    " \"child_ms\": %.3f, \"writing_ms\": %.3f,"
	    " \"longest_write_ms\": %.3f, \"used_mb\": %.1f,"
	    " \"grown_mb\": %.1f, \"child_bad\": %d}\n",
	    (unsigned long long)followers, (unsigned long long)maps,
	    (double)(end - begin) / 1e6, (double)(*child_at - begin) / 1e6,
	    (double)writing / 1e6, (double)longest / 1e6,
	    (double)used / 1048576, ((double)grown - (double)used) / 1048576,
	    status != 0);
	return status != 0;
}
