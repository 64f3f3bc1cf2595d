#define _GNU_SOURCE
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void
die(const char *what) {
	perror(what);
	exit(2);
}

uint64_t
now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

pid_t
fork_or_die(void) {
	fflush(stdout);
	pid_t pid = fork();
	if (pid == -1) {
		die("fork");
	}
	return pid;
}

int
child_status(pid_t pid) {
	int status;
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) {
		die("child");
	}
	return WEXITSTATUS(status);
}

uint64_t
number_parse(const char *text) {
	char    *end;
	uint64_t n = strtoull(text, &end, 10);
	if (end == text || *end != '\0') {
		fprintf(stderr, "not a number: %s\n", text);
		exit(2);
	}
	return n;
}

bool
is_zero(const void *p, size_t size) {
	const unsigned char *bytes = p;
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0;
}

size_t
rng_size(rng_t *rng, size_t min, size_t max) {
	return (size_t)((double)min
	    * pow((double)max / (double)min, unit(rng_next(rng))));
}

static void *
outside_map(size_t size, int flags) {
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
	    MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
	if (p == MAP_FAILED) {
		die("mmap");
	}
	return p;
}

void *
outside_alloc(size_t size) {
	return outside_map(size, MAP_PRIVATE);
}

void *
outside_alloc_shared(size_t size) {
	return outside_map(size, MAP_SHARED);
}
