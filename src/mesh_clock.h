#ifndef JEMALLOC_INTERNAL_MESH_CLOCK_H
#define JEMALLOC_INTERNAL_MESH_CLOCK_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <sys/syscall.h>
#include <time.h>

/* jemalloc's own clock ticks in milliseconds, too coarse for meshing. */
static inline uint64_t
clock_ns(clockid_t clock) {
	struct timespec ts;
	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * KQU(1000000000) + (uint64_t)ts.tv_nsec;
}

static inline uint64_t
now_ns(void) {
	return clock_ns(CLOCK_MONOTONIC);
}

/* What this thread has run. */
static inline uint64_t
cpu_ns(void) {
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* Made by number: libc's function is a cancellation point, malloc() is none. */
static inline void
sleep_ms(unsigned ms) {
	struct timespec ts = {.tv_nsec = ms * 1000000L};
	syscall(SYS_nanosleep, &ts, NULL);
}

#endif /* JEMALLOC_INTERNAL_MESH_CLOCK_H */
