#ifndef MESH_BENCH_REPORT_H
#define MESH_BENCH_REPORT_H

/*
 * What the programs of the benches tell the script that runs them.  They are
 * linked to no malloc but the C library's: the script preloads the one to be
 * measured.
 */

#include "util.h"

/* Prints as members of a JSON object which malloc this is. */
void report_malloc(void);
/*
 * Prints a phase as one line of JSON, with the members that the format makes,
 * and waits until the script has measured.
 */
void report_phase(const char *name, const char *members, ...)
    __attribute__((format(printf, 2, 3)));

#endif /* MESH_BENCH_REPORT_H */
