#define _GNU_SOURCE
#include "measure.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

/* None in a program that runs on a malloc other than jemalloc. */
extern __typeof__(mallctl) mallctl __attribute__((weak));

static const char store[] = "/memfd:jemalloc-mesh";

uint64_t
ctl_number(const char *name) {
	uint64_t value;
	size_t   size = sizeof(value);
	errno = mallctl(name, &value, &size, NULL, 0);
	if (errno != 0) {
		die(name);
	}
	return value;
}

static const char *
ctl_text(const char *name) {
	const char *value;
	size_t      size = sizeof(value);
	errno = mallctl(name, &value, &size, NULL, 0);
	if (errno != 0) {
		die(name);
	}
	return value;
}

void
ctl_epoch(void) {
	uint64_t epoch = 1;
	errno = mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch));
	if (errno != 0) {
		die("epoch");
	}
}

bool
ctl_do(const char *name) {
	errno = mallctl(name, NULL, NULL, NULL, 0);
	return errno != 0;
}

bool
mesh_built(void) {
	bool   built;
	size_t size = sizeof(built);
	return mallctl != NULL
	    && mallctl("config.mesh", &built, &size, NULL, 0) == 0 && built;
}

bool
mesh_pass(void) {
	return ctl_do("arena.4096.mesh");
}

uint64_t
mesh_stat(const char *name) {
	if (!mesh_built()) {
		return 0;
	}
	char full[64];
	snprintf(full, sizeof(full), "stats.mesh.%s", name);
	return ctl_number(full);
}

const char *
mesh_off(void) {
	return mesh_built() ? ctl_text("stats.mesh.off") : "";
}

void
mesh_print(void) {
	static const char *const numbers[] = {"npasses", "nmeshes", "nrefused",
	    "time_ns", "time_max_ns", "groups", "followers", "saved",
	    "saved_max", "withheld", "packed", "mappings", "max_maps", "store",
	    "generation", "interrupted"};
	if (!mesh_built()) {
		printf("null");
		return;
	}
	putchar('{');
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		printf("\"%s\": %llu, ", numbers[i],
		    (unsigned long long)mesh_stat(numbers[i]));
	}
	printf(
	    "\"barrier\": \"%s\", \"barrier_reason\": \"%s\","
	    " \"off\": \"%s\"}",
	    ctl_text("stats.mesh.barrier"),
	    ctl_text("stats.mesh.barrier_reason"), mesh_off());
}

bool
mesh_range(void *addr, size_t size) {
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char  *first = (char *)((uintptr_t)addr & ~(page - 1));
	for (char *at = first; at < (char *)addr + size; at += page) {
		/* Only of a shared mapping mremap() makes a second one. */
		void *twin = mremap(at, 0, page, MREMAP_MAYMOVE);
		if (twin != MAP_FAILED) {
			munmap(twin, page);
			return true;
		}
	}
	return false;
}

static FILE *
file_open(const char *path) {
	FILE *file = fopen(path, "re");
	if (file == NULL) {
		die(path);
	}
	return file;
}

uint64_t
status_number(const char *name) {
	FILE              *file = file_open("/proc/self/status");
	size_t             length = strlen(name);
	char               line[256];
	unsigned long long n = 0;
	while (fgets(line, sizeof(line), file) != NULL
	    && (strncmp(line, name, length) != 0
	        || sscanf(line + length, ": %llu", &n) != 1)) {
	}
	fclose(file);
	return n;
}

uint64_t
rss_anon(void) {
	return status_number("RssAnon") * 1024;
}

uint64_t
mappings(void) {
	FILE    *file = file_open("/proc/self/maps");
	uint64_t lines = 0;
	for (int c; (c = getc(file)) != EOF;) {
		lines += c == '\n';
	}
	fclose(file);
	return lines;
}

uint64_t
store_mappings(void) {
	FILE    *file = file_open("/proc/self/maps");
	char     line[512];
	uint64_t n = 0;
	while (fgets(line, sizeof(line), file) != NULL) {
		n += strstr(line, store) != NULL;
	}
	fclose(file);
	return n;
}

/* Generations that are told apart. */
#define STORES_MAX 64

typedef struct stores_s stores_t;
struct stores_s {
	unsigned long inodes[STORES_MAX];
	size_t        n;
	uint64_t      blocks;
};

static bool
stores_have(const stores_t *stores, unsigned long inode) {
	size_t i = 0;
	while (i < stores->n && stores->inodes[i] != inode) {
		i++;
	}
	return i < stores->n;
}

static void
stores_add(stores_t *stores, const struct stat *st) {
	if (stores_have(stores, st->st_ino)) {
		return;
	}
	if (stores->n == STORES_MAX) {
		errno = ENOBUFS;
		die("STORES_MAX");
	}
	stores->inodes[stores->n++] = st->st_ino;
	stores->blocks += (uint64_t)st->st_blocks;
}

/* The one in use has a descriptor. */
static void
stores_add_open(stores_t *stores) {
	DIR *dir = opendir("/proc/self/fd");
	if (dir == NULL) {
		die("/proc/self/fd");
	}
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		char        link[256] = "";
		struct stat st;
		if (readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1)
		        > 0
		    && strncmp(link, store, strlen(store)) == 0
		    && fstatat(dirfd(dir), e->d_name, &st, 0) == 0) {
			stores_add(stores, &st);
		}
	}
	closedir(dir);
}

/* Those that forks have frozen are only mapped; none but root may ask for them. */
static void
stores_add_mapped(stores_t *stores) {
	FILE *file = file_open("/proc/self/maps");
	char  line[512];
	while (fgets(line, sizeof(line), file) != NULL) {
		unsigned long begin, end, inode;
		char          path[64];
		struct stat   st;
		if (strstr(line, store) == NULL
		    || sscanf(line, "%lx-%lx %*s %*s %*s %lu", &begin, &end,
		           &inode)
		        != 3
		    || stores_have(stores, inode)) {
			continue;
		}
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
		    begin, end);
		if (stat(path, &st) == 0) {
			stores_add(stores, &st);
		} else if (errno != ENOENT) {
			die(path);
		}
	}
	fclose(file);
}

uint64_t
store_blocks(void) {
	stores_t stores = {.n = 0};
	stores_add_open(&stores);
	stores_add_mapped(&stores);
	return stores.blocks * 512;
}

uint64_t
descriptors(void) {
	DIR     *dir = opendir("/proc/self/fd");
	uint64_t n = 0;
	if (dir == NULL) {
		die("/proc/self/fd");
	}
	while (readdir(dir) != NULL) {
		n++;
	}
	closedir(dir);
	/* Not ".", ".." and the one that was just read through. */
	return n - 3;
}

uint64_t
file_number(const char *path) {
	if (path == NULL) {
		return 0;
	}
	FILE              *file = file_open(path);
	unsigned long long n;
	if (fscanf(file, "%llu", &n) != 1) {
		die(path);
	}
	fclose(file);
	return n;
}
