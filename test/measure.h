#ifndef MESH_TEST_MEASURE_H
#define MESH_TEST_MEASURE_H

/*
 * What jemalloc and the kernel say about this process.
 *
 * The programs run on an unmeshed jemalloc too, where they report no meshing:
 * what fails there is not meshing's fault.
 */

#include "util.h"

/* The value of a mallctl of 64 bits; stats are those of the last epoch. */
uint64_t ctl_number(const char *name);
/* Takes the statistics anew. */
void ctl_epoch(void);
/* Carries out a mallctl that takes no value; whether it failed. */
bool ctl_do(const char *name);

/* Whether this jemalloc can be asked about meshing at all. */
bool mesh_built(void);
/* A full pass over all arenas; whether it is not to be had. */
bool mesh_pass(void);
/* A number of stats.mesh. */
uint64_t mesh_stat(const char *name);
/* Prints stats.mesh as a JSON object, null without it. */
void mesh_print(void);

/* Bytes of private anonymous memory. */
uint64_t rss_anon(void);
/* Bytes of memory that the kernel keeps for jemalloc's memfds. */
uint64_t store_blocks(void);
/* Number of mappings. */
uint64_t mappings(void);

#endif /* MESH_TEST_MEASURE_H */
