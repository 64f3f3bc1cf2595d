/*
 * Fragments the heap, asks for a meshing pass, and says what came of it: what
 * meshing reports, and the threads and file descriptors of the process.  With
 * -s a line follows that malloc_stats_print() gives for the argument of -s.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

#define OBJECTS_MAX 65536

/* Prints the entries of a directory as a JSON list, links as their targets. */
static void
directory_print(const char *path) {
	DIR        *dir = opendir(path);
	const char *comma = "";
	if (dir == NULL) {
		die(path);
	}
	putchar('[');
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		char link[256] = "";
		if (e->d_name[0] == '.') {
			continue;
		}
		if (readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1)
		    < 0) {
			snprintf(link, sizeof(link), "%s", e->d_name);
		}
		printf("%s\"%s\"", comma, link);
		comma = ", ";
	}
	closedir(dir);
	putchar(']');
}

static void
text_print(void *opaque, const char *text) {
	(void)opaque;
	fputs(text, stdout);
}

int
main(int argc, char **argv) {
	table_t table;
	table_init(&table, OBJECTS_MAX, 1, 1);
	while (table.n < OBJECTS_MAX) {
		table_add(&table, malloc(256));
	}
	table_thin(&table, 0.1, thin_random);
	ctl_do("thread.tcache.flush");
	bool refused = mesh_pass();
	ctl_epoch();
	printf("{\"bad\": %zu, \"pass\": %s, \"threads\": ",
	    table_check(&table), refused ? "false" : "true");
	directory_print("/proc/self/task");
	printf(", \"fds\": ");
	directory_print("/proc/self/fd");
	printf(", \"mesh\": ");
	mesh_print();
	printf("}\n");
	if (argc == 3 && strcmp(argv[1], "-s") == 0) {
		malloc_stats_print(text_print, NULL, argv[2]);
	}
	return 0;
}
