/*
 * Preloaded into a program.  When it starts, and FRAGMENT is set, the small size
 * classes get slabs that are mostly free, with objects of ours here and there: what
 * the program allocates from then on lies in slabs that mesh.  When it exits, the
 * number of slabs that it has meshed is appended to the file that TALLY names,
 * which tells whether a test of a program tested anything.
 */

#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
	MAX_SIZE = 3584,
	BYTES = 256 << 10, /* of each size class */
	STAY = 8           /* one of so many */
};

__attribute__((weak)) int mallctl(
    const char *, void *, size_t *, void *, size_t);

/* Some programs, as PHP, take their environment apart before they exit. */
static char tally_path[256];

__attribute__((constructor)) static void
fragment(void) {
	const char *path = getenv("TALLY");
	if (path != NULL) {
		snprintf(tally_path, sizeof(tally_path), "%s", path);
	}
	if (getenv("FRAGMENT") == NULL) {
		return;
	}
	static void *objects[BYTES / 8];
	unsigned     random = 1;
	for (size_t size = 8; size <= MAX_SIZE;) {
		int    n = BYTES / size;
		size_t next;
		for (int i = 0; i < n; i++) {
			objects[i] = malloc(size);
		}
		next = malloc_usable_size(objects[0]) + 1;
		/* What stays is never freed. */
		for (int i = 0; i < n; i++) {
			random = random * 1103515245 + 12345;
			if ((random >> 16) % STAY != 0) {
				free(objects[i]);
			}
		}
		size = next;
	}
}

__attribute__((destructor)) static void
tally(void) {
	uint64_t epoch = 1, nmeshes;
	size_t   len = sizeof(nmeshes);

	if (tally_path[0] == '\0' || mallctl == NULL
	    || mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch)) != 0
	    || mallctl("stats.mesh.nmeshes", &nmeshes, &len, NULL, 0) != 0
	    || nmeshes == 0) {
		return;
	}
	int fd = open(tally_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd >= 0) {
		dprintf(fd, "%llu\n", (unsigned long long)nmeshes);
		close(fd);
	}
}
