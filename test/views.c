/*
 * Forks with a meshed heap, again and again, and writes to objects while a child
 * looks at them as of the fork.  Either each child ends before the heap is meshed
 * again, or passes run while it lives.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

#define OBJECTS_MAX 1000000

static const char usage[] =
    "usage: views [-n forks] [-sagu]\n"
    "  -s  mesh while children live\n"
    "  -g  let children mesh on their own and fork, too\n"
    "  -a  fork some milliseconds after another child has ended\n"
    "  -u  close the userfaultfd, and mesh more, before that\n";

static unsigned nforks = 3;
static bool     with_stay, with_another, with_grandchild, with_closed;
static table_t  table;
static uint64_t bad, failed;

/* A sixteenth of them: some slabs stay unwritten. */
static void
objects_bump(void) {
	for (size_t i = 0; i < table.n / 16; i++) {
		object_bump(table_pick(&table));
	}
}

/* Generations of the store that this process has mapped. */
static unsigned
generations(void) {
	unsigned long inodes[16];
	unsigned      n = 0;
	char          line[512];
	FILE         *maps = fopen("/proc/self/maps", "re");
	if (maps == NULL) {
		die("/proc/self/maps");
	}
	while (fgets(line, sizeof(line), maps) != NULL) {
		unsigned long inode;
		if (strstr(line, "/memfd:jemalloc-mesh") == NULL
		    || sscanf(line, "%*s %*s %*s %*s %lu", &inode) != 1) {
			continue;
		}
		unsigned i = 0;
		while (i < n && inodes[i] != inode) {
			i++;
		}
		if (i == n && n < 16) {
			inodes[n++] = inode;
		}
	}
	fclose(maps);
	return n;
}

static void
wait_for_end(int pipe) {
	char c;
	while (read(pipe, &c, 1) > 0) {
	}
}

/* Nothing that this process does is known to its parent. */
static void
be_parent(void) {
	bool           on = true;
	unsigned       arena = 1;
	static table_t own;
	if (mallctl("background_thread", NULL, NULL, &on, sizeof(on)) != 0
	    || mallctl("thread.arena", NULL, NULL, &arena, sizeof(arena))
	        != 0) {
		die("background_thread, thread.arena");
	}
	table_init(&own, OBJECTS_MAX, 2, UINT64_C(1) << 32);
	table_fill(&own, (size_t)8 << 20, 64, 2048);
	bad += table_thin(&own, 0.15, thin_random);
	ctl_do("thread.tcache.flush");
	/* What was inherited is of arena 0 and stays as it is. */
	ctl_do("arena.1.mesh");
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
	pid_t child = fork();
	if (child == -1) {
		die("fork");
	}
	if (child == 0) {
		_exit(table_check(&own) != 0);
	}
	int status;
	waitpid(child, &status, 0);
	if (status != 0) {
		die("a grandchild");
	}
}

static void
child_main(int go, int ready) {
	if (with_grandchild) {
		be_parent();
	}
	close(ready);
	wait_for_end(go);
	uint64_t wrong = table_check(&table);
	/* Others than the parent. */
	table.rng.state = ~table.rng.state;
	objects_bump();
	wrong += table_check(&table);
	_exit(wrong != 0);
}

/*
 * What was protected for this child is not any more, or only in part, and some of
 * it is private.
 */
static void
another_child(void) {
	pid_t child = fork();
	if (child == -1) {
		die("fork");
	}
	if (child == 0) {
		_exit(0);
	}
	objects_bump();
	waitpid(child, NULL, 0);
	nanosleep(&(struct timespec){.tv_nsec = rng_size(&table.rng, 0, 60)
	                  * 1000000},
	    NULL);
}

static void
fork_once(void) {
	int go[2], ready[2], status;
	if (pipe(go) != 0 || pipe(ready) != 0) {
		die("pipe");
	}
	objects_bump();
	if (with_another) {
		another_child();
	}
	pid_t child = fork();
	if (child == -1) {
		die("fork");
	}
	if (child == 0) {
		close(go[1]);
		close(ready[0]);
		child_main(go[0], ready[1]);
	}
	close(ready[1]);
	objects_bump();
	if (with_grandchild) {
		wait_for_end(ready[0]);
		nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
		objects_bump();
	}
	if (with_stay) {
		bad += mesh_pass();
		objects_bump();
	}
	close(go[0]);
	close(go[1]);
	close(ready[0]);
	waitpid(child, &status, 0);
	failed += status != 0;
	bad += table_check(&table);
	/* Nobody else is left: all may go back to one store. */
	bad += mesh_pass();
	bad += mesh_pass();
}

/* Closes the descriptors that are links to something named so. */
static void
links_close(const char *name) {
	char path[32], link[64];
	for (int fd = 3; fd < 64; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, link, sizeof(link) - 1);
		if (n > 0) {
			link[n] = '\0';
			if (strstr(link, name) != NULL) {
				close(fd);
			}
		}
	}
}

/* Mappings of the store that are registered with userfaultfd. */
static unsigned
registered(void) {
	unsigned n = 0;
	bool     ours = false;
	char     line[512];
	FILE    *smaps = fopen("/proc/self/smaps", "re");
	if (smaps == NULL) {
		die("/proc/self/smaps");
	}
	while (fgets(line, sizeof(line), smaps) != NULL) {
		if (strchr("0123456789abcdef", line[0]) != NULL) {
			ours = strstr(line, "/memfd:jemalloc-mesh") != NULL;
		} else if (ours && strncmp(line, "VmFlags:", 8) == 0) {
			n += strstr(line, " uw") != NULL;
		}
	}
	fclose(smaps);
	return n;
}

/* Objects, few of which are left, meshed. */
static void
objects_make(void) {
	table_fill(&table, (size_t)48 << 20, 64, 2048);
	bad += table_thin(&table, 0.15, thin_random);
	ctl_do("thread.tcache.flush");
	bad += mesh_pass();
	/* The thread that makes views may need a moment. */
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
}

int
main(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "n:sagu")) != -1;) {
		switch (c) {
		case 'n':
			nforks = (unsigned)number_parse(optarg);
			break;
		case 's':
			with_stay = true;
			break;
		case 'a':
			with_another = true;
			break;
		case 'g':
			with_grandchild = true;
			break;
		case 'u':
			with_closed = true;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	table_init(&table, OBJECTS_MAX, 1, 1);
	objects_make();
	if (with_closed) {
		links_close("userfaultfd");
		objects_make();
	}
	unsigned nregistered = registered();
	ctl_epoch();
	uint64_t followers = mesh_stat("followers");
	for (unsigned i = 0; i < nforks; i++) {
		fork_once();
	}
	ctl_epoch();
	printf(
	    "{\"bad\": %llu, \"failed\": %llu, \"followers\": %llu,"
	    " \"registered\": %u, \"generations\": %u, \"mesh\": ",
	    (unsigned long long)bad, (unsigned long long)failed,
	    (unsigned long long)followers, nregistered, generations());
	mesh_print();
	printf("}\n");
	bad += table_free(&table);
	return bad + failed > 0;
}
