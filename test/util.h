#ifndef MESH_TEST_UTIL_H
#define MESH_TEST_UTIL_H

/*
 * What every test program needs: random numbers, time, memory that is not the
 * heap's, and a way to give up.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Prints what failed and errno's meaning, and exits with status 2. */
void die(const char *what) __attribute__((noreturn));

uint64_t now_ns(void);

/* fork(), with nothing left that both would print, or die. */
pid_t fork_or_die(void);
/* Waits for a child and returns its exit status, or dies if it ended otherwise. */
int child_status(pid_t pid);

/* Whether all bytes are zero. */
bool is_zero(const void *p, size_t size);

/* The command line's number, or die. */
uint64_t number_parse(const char *text);

/*
 * Zeroed memory straight from the kernel.  All that a test knows about its
 * objects lives here: what meshing may break must not hold the proof of it.
 */
void *outside_alloc(size_t size);
/* The same, but one memory for this process and its children. */
void *outside_alloc_shared(size_t size);

/* splitmix64 */
typedef struct {
	uint64_t state;
} rng_t;

static inline uint64_t
mix64(uint64_t x) {
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static inline uint64_t
rng_next(rng_t *rng) {
	return mix64(rng->state += UINT64_C(0x9e3779b97f4a7c15));
}

/* A number below n (n < 2^32). */
static inline uint32_t
rng_below(rng_t *rng, uint32_t n) {
	return (uint32_t)((rng_next(rng) >> 32) * n >> 32);
}

/* The number in [0, 1) that goes with 64 random bits. */
static inline double
unit(uint64_t bits) {
	return (double)(bits >> 11) * 0x1p-53;
}

/* A size of at least min and less than max; each doubling is as likely. */
size_t rng_size(rng_t *rng, size_t min, size_t max);

#endif /* MESH_TEST_UTIL_H */
