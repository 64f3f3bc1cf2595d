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
/* Why meshing is off or came to nothing, "" if it did not or is unknown. */
const char *mesh_off(void);
/* Prints stats.mesh as a JSON object, null without it. */
void mesh_print(void);
/*
 * Whether any page of a range is spliced; after a fork nothing is, until it is
 * meshed again.
 */
bool mesh_range(void *addr, size_t size);

/* A number of /proc/self/status, in the unit that it has there. */
uint64_t status_number(const char *name);
/* Bytes of private anonymous memory. */
uint64_t rss_anon(void);
/* Bytes of memory that the kernel keeps for jemalloc's memfds, of all generations. */
uint64_t store_blocks(void);
/* Number of mappings, and of those among them of jemalloc's memfds. */
uint64_t mappings(void);
uint64_t store_mappings(void);
/* Number of open file descriptors. */
uint64_t descriptors(void);
/* The number in a file, as of a control group; 0 if path is NULL. */
uint64_t file_number(const char *path);

#endif /* MESH_TEST_MEASURE_H */
