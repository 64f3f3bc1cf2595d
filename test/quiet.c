/*
 * A program that does not fragment: it fills its slabs, replaces the latest of its
 * objects, frees the later half, and then idles.  Prints as JSON what it costs the
 * kernel before and after it idles.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOBJECTS 100000
#define NREPLACED 1000
#define SETTLE_MS 5000
#define IDLE_MS 4000

/* How often threads other than this one went to sleep, hence woke. */
static uint64_t
wakeups(void) {
	uint64_t sum = 0;
	DIR     *dir = opendir("/proc/self/task");
	if (dir == NULL) {
		die("/proc/self/task");
	}
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (e->d_name[0] == '.' || atoi(e->d_name) == getpid()) {
			continue;
		}
		char path[300], line[256];
		snprintf(
		    path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		FILE *file = fopen(path, "re");
		if (file == NULL) {
			die(path);
		}
		while (fgets(line, sizeof(line), file) != NULL) {
			unsigned long long n;
			if (sscanf(line, "voluntary_ctxt_switches: %llu", &n)
			    == 1) {
				sum += n;
			}
		}
		fclose(file);
	}
	closedir(dir);
	return sum;
}

static void
report(const char *when) {
	printf(
	    "\"%s\": {\"mappings\": %llu, \"store_mappings\": %llu,"
	    " \"descriptors\": %llu, \"wakeups\": %llu}",
	    when, (unsigned long long)mappings(),
	    (unsigned long long)store_mappings(),
	    (unsigned long long)descriptors(), (unsigned long long)wakeups());
}

int
main(void) {
	/* What it does with its output must not allocate meanwhile. */
	static char  buffer[4096];
	static void *objects[NOBJECTS];
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	rng_t rng = {1};
	for (size_t i = 0; i < NOBJECTS; i++) {
		size_t size = rng_size(&rng, 8, 4096);
		objects[i] = malloc(size);
		memset(objects[i], 1, size);
	}
	for (size_t i = NOBJECTS - NREPLACED; i < NOBJECTS; i++) {
		free(objects[i]);
		objects[i] = malloc(rng_size(&rng, 8, 4096));
	}
	for (size_t i = NOBJECTS; i-- > NOBJECTS / 2;) {
		free(objects[i]);
	}
	usleep(1000 * SETTLE_MS);
	putchar('{');
	report("before");
	usleep(1000 * IDLE_MS);
	printf(", ");
	report("after");
	printf(", \"mesh\": ");
	if (mesh_built()) {
		ctl_epoch();
	}
	mesh_print();
	printf("}\n");
	return 0;
}
