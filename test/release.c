/*
 * Fragments the heap, meshes it and frees everything, and prints after each
 * step what jemalloc and the kernel say about memory.  Checks only what cannot
 * be seen from outside: that objects stay as they were, and that memory taken
 * back from meshed slabs is zero where calloc() says so.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define OBJECTS_MAX 2000000

static const char usage[] =
    "usage: release [-b MiB a size] [-z size] [-n rounds] [-r seed]"
    " [-x] [-u file]\n"
    "  -z  this size only instead of several\n"
    "  -x  use up all mappings that the kernel permits while freeing\n"
    "  -u  a file whose number is printed as \"cgroup\" at each step\n";

/* Classes of one and of several pages a slab, of many and of few regions. */
static size_t sizes[] = {16, 64, 256, 320, 1024, 1792, 2048, 5120};
static size_t nsizes = sizeof(sizes) / sizeof(sizes[0]);

static size_t      bytes = (size_t)8 << 20;
static unsigned    nrounds = 3;
static uint64_t    seed = 1;
static bool        with_limit;
static const char *cgroup_file;

static table_t  table;
static uint64_t bad;

static void
step_print(const char *step, unsigned round) {
	static const char *const stats[] = {
	    "stats.allocated", "stats.active", "stats.resident"};
	static bool first = true;
	uint64_t    usage_bytes = file_number(cgroup_file);
	uint64_t    anon = rss_anon(), store = store_blocks();
	ctl_epoch();
	printf(
	    "%s{\"step\": \"%s\", \"round\": %u, \"live\": %zu,"
	    " \"rss_anon\": %llu, \"store\": %llu, \"cgroup\": %llu,"
	    " \"mappings\": %llu, ",
	    first ? "[" : ",\n ", step, round, table_bytes(&table),
	    (unsigned long long)anon, (unsigned long long)store,
	    (unsigned long long)usage_bytes, (unsigned long long)mappings());
	for (size_t i = 0; i < sizeof(stats) / sizeof(stats[0]); i++) {
		printf("\"%s\": %llu, ", stats[i],
		    (unsigned long long)ctl_number(stats[i]));
	}
	printf("\"mesh\": ");
	mesh_print();
	printf("}");
	first = false;
}

static void
fill(void) {
	for (size_t i = 0; i < nsizes; i++) {
		for (size_t n = bytes / sizes[i]; n > 0; n--) {
			table_add(&table, malloc(sizes[i]));
		}
	}
}

/* Leaves nothing that is free in the caches. */
static void
thin(void) {
	bad += table_thin(&table, 0.1, thin_random);
	ctl_do("thread.tcache.flush");
}

static void
free_all(void) {
	bad += table_free(&table);
	ctl_do("thread.tcache.flush");
}

/* Makes mappings, which differ from their neighbours, until there is no more. */
static size_t
mappings_use_up(void **area) {
	size_t size = (size_t)1 << 30, page = (size_t)sysconf(_SC_PAGESIZE);
	*area = mmap(NULL, size, PROT_NONE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (*area == MAP_FAILED) {
		die("mmap");
	}
	for (size_t i = page; i < size; i += 2 * page) {
		if (mprotect((char *)*area + i, page, PROT_READ) != 0) {
			return size;
		}
	}
	die("vm.max_map_count is too large to be reached");
}

static void
free_all_at_limit(void) {
	void  *area;
	size_t size = mappings_use_up(&area);
	free_all();
	munmap(area, size);
}

/* Takes the released memory again, in small and in large pieces. */
static void
zero_check(void) {
	size_t max = nsizes * bytes / 16;
	void **all = outside_alloc(max * sizeof(void *));
	size_t n = 0;
	for (size_t left = nsizes * bytes, size; left > 64; left -= size) {
		size = rng_size(&table.rng, 16, 1 << 20);
		size = size < left ? size : left;
		all[n] = calloc(1, size);
		if (all[n] == NULL) {
			die("calloc");
		}
		bad += !is_zero(all[n++], size);
	}
	while (n > 0) {
		free(all[--n]);
	}
	ctl_do("thread.tcache.flush");
}

static void
options_parse(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "b:z:n:r:xu:")) != -1;) {
		switch (c) {
		case 'b':
			bytes = number_parse(optarg) << 20;
			break;
		case 'z':
			sizes[0] = number_parse(optarg);
			nsizes = 1;
			break;
		case 'n':
			nrounds = (unsigned)number_parse(optarg);
			break;
		case 'r':
			seed = number_parse(optarg);
			break;
		case 'x':
			with_limit = true;
			break;
		case 'u':
			cgroup_file = optarg;
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
	table_init(&table, OBJECTS_MAX, seed, 1);
	for (unsigned round = 0; round < nrounds; round++) {
		step_print("start", round);
		fill();
		step_print("filled", round);
		thin();
		step_print("thinned", round);
		mesh_pass();
		step_print("meshed", round);
		bad += table_check(&table);
		step_print("checked", round);
		if (with_limit) {
			free_all_at_limit();
			step_print("freed at the limit", round);
			mesh_pass();
		} else {
			free_all();
		}
		step_print("freed", round);
		zero_check();
		step_print("zeroed", round);
	}
	printf("]\n");
	return bad > 0;
}
