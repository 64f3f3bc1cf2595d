#ifndef JEMALLOC_INTERNAL_MESH_CLOCK_H
#define JEMALLOC_INTERNAL_MESH_CLOCK_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <time.h>

/* jemalloc's own clock ticks in milliseconds, too coarse for meshing. */
static inline uint64_t
now_ns(void) {
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * KQU(1000000000) + (uint64_t)ts.tv_nsec;
}

#endif /* JEMALLOC_INTERNAL_MESH_CLOCK_H */
