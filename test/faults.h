#ifndef MESH_TEST_FAULTS_H
#define MESH_TEST_FAULTS_H

/*
 * System calls of jemalloc that fail on purpose; see faults.c, which is a library
 * to preload.  Without it these are NULL.
 */

#include <stdbool.h>
#include <stddef.h>

#pragma GCC diagnostic ignored "-Wredundant-decls"

/* The kinds of call that can fail, from 0 on; NULL behind the last. */
const char *faults_kind(unsigned kind) __attribute__((weak));
/* Calls of that kind that jemalloc has made in this process. */
unsigned long faults_seen(unsigned kind) __attribute__((weak));
/* Calls that have failed on purpose. */
unsigned long faults_injected(void) __attribute__((weak));

/* What else a failed call does. */
typedef enum {
	/* Nothing at all, as most calls that fail. */
	faults_plain,
	/*
	 * mmap and mremap unmap what was at the fixed address, as the kernel
	 * does if it runs out of memory in the middle.
	 */
	faults_hole
} faults_effect_t;

/*
 * From now on lets calls of that kind fail: all but the first skip, and count of
 * them (0: for ever).  Or none, if count is given as FAULTS_NONE.
 */
#define FAULTS_NONE (~0ul)
void faults_arm(unsigned kind, unsigned long skip, unsigned long count,
    faults_effect_t effect) __attribute__((weak));
#endif /* MESH_TEST_FAULTS_H */
