/*
 * A heap that gets fragmented and then left alone, for fragment.py, which
 * preloads the malloc to be measured:
 *
 *	fragment BYTES SIZE FREED PATTERN SECONDS SEED
 *
 * allocates BYTES of objects of SIZE bytes (0: of 8 bytes to 14 KiB, each
 * doubling as likely), frees FREED per cent of them in a pattern, idles, looks
 * whether the rest is what it was, and frees that.
 */

#define _GNU_SOURCE
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MIX_MIN 8
#define MIX_MAX (14 << 10)
#define PAGE 4096
/* Largest size of the adversary, and mean length of a run of kept objects. */
#define ROBSON_MAX 8192
#define RUN_KEPT 4
/* How often the idle program does something. */
#define IDLE_TICK_US 10000
/* How long it idles in the end, when nothing is left. */
#define EMPTY_S 1

static size_t   size;
static unsigned freed_percent;
static rng_t    rng;

/* The objects that are not freed, which hold their number and size. */
static uint64_t **objects;
static size_t     nobjects, nbytes;

static uint64_t
word_of(uint64_t first, size_t i) {
	return first + i * UINT64_C(0x9e3779b97f4a7c15);
}

static size_t
size_of(const uint64_t *object) {
	return *object & 0xffff;
}

static void
object_new(size_t object_size) {
	static uint64_t number;
	uint64_t       *object = malloc(object_size);
	if (object == NULL) {
		die("malloc");
	}
	uint64_t first = number++ << 16 | object_size;
	for (size_t i = 0; i < object_size / 8; i++) {
		object[i] = word_of(first, i);
	}
	objects[nobjects++] = object;
	nbytes += object_size;
}

static size_t
objects_damaged(void) {
	size_t n = 0;
	for (size_t i = 0; i < nobjects; i++) {
		const uint64_t *object = objects[i];
		bool            damaged = false;
		for (size_t j = 0; j < size_of(object) / 8; j++) {
			damaged |= object[j] != word_of(*object, j);
		}
		n += damaged;
	}
	return n;
}

/* Frees what is not to be kept; the others move up. */
static void
objects_thin(bool (*keep)(size_t i)) {
	size_t kept = 0;
	for (size_t i = 0; i < nobjects; i++) {
		if (keep(i)) {
			objects[kept++] = objects[i];
		} else {
			nbytes -= size_of(objects[i]);
			free(objects[i]);
		}
	}
	nobjects = kept;
}

static bool
keep_random(size_t i) {
	(void)i;
	return rng_below(&rng, 100) >= freed_percent;
}

/* Every second, fifth or twentieth object. */
static bool
keep_stride(size_t i) {
	return i % (100 / (100 - freed_percent)) == 0;
}

/* The front of each page, if pages were filled one by one. */
static bool
keep_front(size_t i) {
	size_t page = size != 0 && size < PAGE / 2 ? PAGE / size : 16;
	return i % page * 100 < (100 - freed_percent) * page;
}

/* Neighbours share their fate. */
static bool
keep_runs(size_t i) {
	static size_t left;
	static bool   keep;
	(void)i;
	while (left == 0) {
		keep = !keep;
		uint32_t mean = keep
		    ? RUN_KEPT
		    : RUN_KEPT * freed_percent / (100 - freed_percent);
		left = rng_below(&rng, 2 * mean + 1);
	}
	left--;
	return keep;
}

/* Robson's adversary: see robson(). */
static uintptr_t residue, modulus;

static bool
keep_residue(size_t i) {
	return (residue - (uintptr_t)objects[i]) % modulus
	    < size_of(objects[i]);
}

static size_t
residue_count(void) {
	size_t n = 0;
	for (size_t i = 0; i < nobjects; i++) {
		n += keep_residue(i);
	}
	return n;
}

/*
 * After J. M. Robson, An estimate of the store size necessary for dynamic storage
 * allocation, 1971: allocate objects of one size up to the limit; free all that do
 * not cover an address of one residue modulo the double size, so that no object
 * of that size fits between two others; go on with that size.  Of the two
 * residues possible the one that more objects cover is taken.
 */
static void
robson_thin(void) {
	modulus *= 2;
	size_t before = residue_count();
	residue += modulus / 2;
	if (residue_count() < before) {
		residue -= modulus / 2;
	}
	objects_thin(keep_residue);
}

static void
robson(size_t limit) {
	for (modulus = size;;) {
		while (nbytes + modulus <= limit) {
			object_new(modulus);
		}
		if (modulus >= ROBSON_MAX) {
			return;
		}
		robson_thin();
	}
}

static const struct {
	const char *name;
	bool (*keep)(size_t i);
} patterns[] = {
    {"random", keep_random},
    {"stride", keep_stride},
    {"front", keep_front},
    {"runs", keep_runs},
    {"robson", NULL},
};

/* CPU time of this thread alone. */
static uint64_t
thread_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void
idle(uint64_t seconds) {
	for (uint64_t end = now_ns() + seconds * 1000000000; now_ns() < end;) {
		usleep(IDLE_TICK_US);
		/* Some mallocs do what is due only when called. */
		char *p = malloc(size == 0 ? MIX_MAX : size);
		*(volatile char *)p = 1;
		free(p);
	}
}

int
main(int argc, char **argv) {
	if (argc != 7) {
		fprintf(stderr,
		    "usage: fragment BYTES SIZE FREED PATTERN SECONDS "
		    "SEED\n");
		return 2;
	}
	size_t limit = number_parse(argv[1]), pattern = 0;
	size = number_parse(argv[2]);
	freed_percent = (unsigned)number_parse(argv[3]);
	while (strcmp(patterns[pattern].name, argv[4]) != 0) {
		if (++pattern == sizeof(patterns) / sizeof(patterns[0])) {
			fprintf(stderr, "fragment: no such pattern\n");
			return 2;
		}
	}
	bool adversary = patterns[pattern].keep == NULL;
	if (freed_percent >= 100 || (size != 0 && size < MIX_MIN)
	    || (adversary && (size == 0 || ROBSON_MAX % size != 0))) {
		fprintf(stderr, "fragment: no such share or size\n");
		return 2;
	}
	rng.state = number_parse(argv[6]);

	/* All of it present, so that it does not grow with the heap. */
	size_t table = (limit / (size == 0 ? 512 : size) + 1)
	    * sizeof(*objects);
	objects = outside_alloc(table);
	memset(objects, 1, table);
	report_phase("begin", "\"table\": %zu", table);

	uint64_t begin = now_ns();
	if (adversary) {
		robson(limit);
	} else {
		for (size_t z = size; nbytes < limit;) {
			if (size == 0) {
				z = rng_size(&rng, MIX_MIN, MIX_MAX);
			}
			object_new(z);
		}
	}
	uint64_t allocated = now_ns();
	report_phase("allocated", "\"live\": %zu, \"seconds\": %.3f", nbytes,
	    (double)(allocated - begin) / 1e9);

	allocated = now_ns();
	if (adversary) {
		robson_thin();
	} else {
		objects_thin(patterns[pattern].keep);
	}
	uint64_t freed = now_ns();
	report_phase("freed", "\"live\": %zu, \"seconds\": %.3f", nbytes,
	    (double)(freed - allocated) / 1e9);
	idle(number_parse(argv[5]));
	report_phase("idled", "\"live\": %zu", nbytes);
	size_t damaged = objects_damaged();
	if (damaged > 0) {
		fprintf(stderr, "fragment: %zu objects are damaged\n", damaged);
		return 1;
	}
	uint64_t looked = thread_ns();
	for (size_t i = 0; i < nobjects; i++) {
		free(objects[i]);
	}
	uint64_t emptied = thread_ns();
	report_phase(
	    "emptied", "\"ms\": %.1f", (double)(emptied - looked) / 1e6);
	idle(EMPTY_S);
	report_phase("ended", "\"live\": 0");
	return 0;
}
