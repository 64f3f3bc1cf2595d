/*
 * The CPU quota of the control groups that the process is in (cpu.max, or
 * cpu.cfs_quota_us of version 1).  Where it is short, all threads stand still until the
 * period ends once they have used it up, and what meshing takes of it they lack.  It is
 * read once: programs that allow themselves to open files no more may be killed for it.
 *
 * Called by mesh.c and mesh_pass under the mesh lock, which guards all of this.  Takes no
 * lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_quota.h"

#include <fcntl.h>

/* Where control groups are, as far as anybody agrees. */
#define CGROUPS "/sys/fs/cgroup"

/* Stacks may be small. */
static char quota_lines[4096];
static char quota_path[4096];

static unsigned quota = MESH_QUOTA_NONE;

/* A number at text, and where it ends; 0 if there is none, as of "max" and "-1". */
static uint64_t
number_read(const char *text, char **end) {
	*end = (char *)(uintptr_t)text;
	return *text >= '0' && *text <= '9' ? malloc_strtoumax(text, end, 10)
	                                    : 0;
}

/* Takes in the quota of the group whose directory is the first n bytes of the path. */
static void
group_read(size_t n, bool unified) {
	char     text[64];
	char    *end;
	size_t   left = sizeof(quota_path) - n;
	char    *name = &quota_path[n];
	uint64_t most, period;
	malloc_snprintf(name, left, unified ? "/cpu.max" : "/cpu.cfs_quota_us");
	if (mesh_fd_read_text(AT_FDCWD, quota_path, text, sizeof(text))) {
		return;
	}
	most = number_read(text, &end);
	if (unified) {
		period = number_read(end + (*end == ' '), &end);
	} else {
		malloc_snprintf(name, left, "/cpu.cfs_period_us");
		period = mesh_fd_read_text(
		             AT_FDCWD, quota_path, text, sizeof(text))
		    ? 0
		    : number_read(text, &end);
	}
	if (most > 0 && period > 0 && most * MESH_QUOTA_UNIT / period < quota) {
		quota = (unsigned)(most * MESH_QUOTA_UNIT / period);
	}
}

/* The same of a group, as /proc names it, and of all above it. */
static void
groups_read(const char *group, size_t size, bool unified) {
	size_t root = malloc_snprintf(quota_path, sizeof(quota_path), "%s%s",
	    CGROUPS, unified ? "" : "/cpu");
	if (size > sizeof(quota_path) - root - sizeof("/cpu.cfs_period_us")) {
		return;
	}
	memcpy(&quota_path[root], group, size);
	for (size_t n = root + size;; n--) {
		/* Each reading writes beyond it. */
		group_read(n, unified);
		while (n > root && quota_path[n - 1] != '/') {
			n--;
		}
		if (n == root) {
			return;
		}
	}
}

/* Whether one of the names between commas is cpu. */
static bool
controllers_have_cpu(const char *names, const char *end) {
	while (names < end) {
		const char *next = memchr(names, ',', (size_t)(end - names));
		next = next != NULL ? next : end;
		if (next - names == 3 && memcmp(names, "cpu", 3) == 0) {
			return true;
		}
		names = next + 1;
	}
	return false;
}

void
mesh_quota_look(void) {
	quota = MESH_QUOTA_NONE;
	if (mesh_fd_read_text(AT_FDCWD, "/proc/self/cgroup", quota_lines,
	        sizeof(quota_lines))) {
		return;
	}
	/* Lines of "number:controllers:group". */
	for (const char *line = quota_lines; *line != '\0';) {
		const char *end = strchr(line, '\n');
		end = end != NULL ? end : &line[strlen(line)];
		const char *names = memchr(line, ':', (size_t)(end - line));
		const char *group = names == NULL
		    ? NULL
		    : memchr(names + 1, ':', (size_t)(end - names - 1));
		if (group != NULL) {
			bool unified = (group == names + 1);
			if (unified || controllers_have_cpu(names + 1, group)) {
				groups_read(group + 1,
				    (size_t)(end - group - 1), unified);
			}
		}
		line = end + (*end != '\0');
	}
}

unsigned
mesh_quota_get(void) {
	return quota;
}
