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

uint64_t
store_blocks(void) {
	uint64_t blocks = 0;
	DIR     *dir = opendir("/proc/self/fd");
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
			blocks += (uint64_t)st.st_blocks;
		}
	}
	closedir(dir);
	return blocks * 512;
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
