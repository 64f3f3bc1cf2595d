#include "places.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jemalloc/jemalloc.h>

/* Of so many neighbours one is kept. */
#define SPARSE 16

unsigned char *places[NPLACES];

static void *
place_alloc(const char *where, unsigned manual, size_t size) {
	if (manual != 0) {
		return mallocx(
		    size, MALLOCX_ARENA(manual) | MALLOCX_TCACHE_NONE);
	}
	return strcmp(where, "aligned") == 0 ? aligned_alloc(PAGE, size)
	                                     : malloc(size);
}

void
places_alloc(const char *where, size_t size) {
	static void *all[NPLACES * SPARSE];
	unsigned     manual = 0;
	size_t       length = sizeof(manual);
	if (strcmp(where, "manual") == 0) {
		errno = mallctl("arenas.create", &manual, &length, NULL, 0);
		if (errno != 0) {
			die("arenas.create");
		}
	}
	for (unsigned i = 0; i < NPLACES * SPARSE; i++) {
		all[i] = place_alloc(where, manual, size);
	}
	for (unsigned i = 0; i < NPLACES * SPARSE; i++) {
		if (i % SPARSE == 0) {
			places[i / SPARSE] = memset(all[i], 0, size);
		} else {
			dallocx(all[i], manual != 0 ? MALLOCX_TCACHE_NONE : 0);
		}
	}
	ctl_do("thread.tcache.flush");
}

void
places_mesh(size_t size) {
	mesh_pass();
	for (unsigned i = 0; i < NPLACES; i++) {
		results->count += mesh_range(places[i], size);
	}
}
