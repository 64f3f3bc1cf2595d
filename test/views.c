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

#define OBJECTS_MAX 1000000

static const char usage[] =
    "usage: views [-n forks] [-s]\n"
    "  -s  mesh while children live\n";

static unsigned nforks = 3;
static bool     with_stay;
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
child_main(int go) {
	char c;
	while (read(go, &c, 1) > 0) {
	}
	uint64_t wrong = table_check(&table);
	/* Others than the parent. */
	table.rng.state = ~table.rng.state;
	objects_bump();
	wrong += table_check(&table);
	_exit(wrong != 0);
}

static void
fork_once(void) {
	int go[2], status;
	if (pipe(go) != 0) {
		die("pipe");
	}
	objects_bump();
	pid_t child = fork();
	if (child == -1) {
		die("fork");
	}
	if (child == 0) {
		close(go[1]);
		child_main(go[0]);
	}
	objects_bump();
	if (with_stay) {
		bad += mesh_pass();
		objects_bump();
	}
	close(go[0]);
	close(go[1]);
	waitpid(child, &status, 0);
	failed += status != 0;
	bad += table_check(&table);
	/* Nobody else is left: all may go back to one store. */
	bad += mesh_pass();
	bad += mesh_pass();
}

int
main(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "n:s")) != -1;) {
		switch (c) {
		case 'n':
			nforks = (unsigned)number_parse(optarg);
			break;
		case 's':
			with_stay = true;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	table_init(&table, OBJECTS_MAX, 1, 1);
	table_fill(&table, (size_t)48 << 20, 64, 2048);
	bad += table_thin(&table, 0.15, thin_random);
	ctl_do("thread.tcache.flush");
	bad += mesh_pass();
	/* The thread that makes views may need a moment. */
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
	ctl_epoch();
	uint64_t followers = mesh_stat("followers");
	for (unsigned i = 0; i < nforks; i++) {
		fork_once();
	}
	ctl_epoch();
	printf("{\"bad\": %llu, \"failed\": %llu, \"followers\": %llu,"
	       " \"generations\": %u, \"mesh\": ",
	    (unsigned long long)bad, (unsigned long long)failed,
	    (unsigned long long)followers, generations());
	mesh_print();
	printf("}\n");
	bad += table_free(&table);
	return bad + failed > 0;
}
