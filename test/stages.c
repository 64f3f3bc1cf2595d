/*
 * A heap that becomes sparse in two stages, half of it and then four fifths of the
 * rest, and what meshing makes of few mappings in each.  Prints stats.mesh of both
 * as JSON.
 */
#include "measure.h"
#include "objects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOBJECTS 262144
#define SIZE 256
/* At rest: nothing comes for so long, after something has or so long. */
#define REST_S 3
#define BEGIN_S 20
#define REST_MAX_S 60

static const char usage[] =
    "usage: stages [-p]\n"
    "  -p  ask for a full pass in the first stage\n";

static table_t table;

static void
await_rest(uint64_t before) {
	uint64_t last = before;
	for (unsigned s = 0, still = 0; s < REST_MAX_S
	     && (still < REST_S || (last == before && s < BEGIN_S));
	     s++) {
		sleep(1);
		ctl_epoch();
		uint64_t now = mesh_stat("nmeshes");
		still = now == last ? still + 1 : 0;
		last = now;
	}
}

static uint64_t
stage(const char *name, double live, bool with_pass) {
	ctl_epoch();
	uint64_t before = mesh_stat("nmeshes");
	uint64_t bad = table_thin(&table, live, thin_random);
	ctl_do("thread.tcache.flush");
	if (with_pass) {
		mesh_pass();
	}
	await_rest(before);
	printf("\"%s\": ", name);
	mesh_print();
	printf(", ");
	return bad;
}

int
main(int argc, char **argv) {
	bool with_pass = argc > 1 && strcmp(argv[1], "-p") == 0;
	if (argc > 1 && !with_pass) {
		fputs(usage, stderr);
		return 2;
	}
	table_init(&table, NOBJECTS, 1, 1);
	while (table.n < NOBJECTS) {
		table_add(&table, malloc(SIZE));
	}
	printf("{");
	uint64_t bad = stage("half", 0.5, with_pass);
	bad += stage("tenth", 0.2, false);
	bad += table_check(&table);
	printf("\"bad\": %llu}\n", (unsigned long long)bad);
	return bad > 0;
}
