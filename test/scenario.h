#ifndef MESH_TEST_SCENARIO_H
#define MESH_TEST_SCENARIO_H

/*
 * Programs of several scenarios, one of which is run by name: a heap that is
 * sparse and meshed, threads that use it meanwhile, and what came of it, printed
 * as JSON.
 *
 * The counts are in memory that all processes of a scenario share, so children
 * only need to count and exit.
 */

#include "measure.h"
#include "objects.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

typedef struct {
	const char *name;
	void (*run)(void);
} scenario_t;

/* Of all processes of the scenario. */
typedef struct {
	/* Objects checked, and those found bad, and expectations that failed. */
	_Atomic uint64_t checked, bad;
	/* Meshes that processes other than the first have made. */
	_Atomic uint64_t child_meshes;
	/* For the scenario's own use, printed as they are. */
	_Atomic uint64_t count, lost;
} results_t;

extern results_t *results;

/* Runs the scenario that the command line names; the status of main(). */
int scenario_main(int argc, char **argv, const scenario_t *scenarios, size_t n);

/* The scenario's argument, "" if there is none. */
extern const char *scenario_arg;

/* Counts as bad, and names, what is not as it has to be. */
void expect(bool ok, const char *what);

/* Objects that only the scenario itself writes to. */
extern table_t held;
/* Checks a table, counting. */
void check(table_t *t);
/* Writes to all held objects, differently in each process, and checks them. */
void held_rewrite(void);
/* Frees most objects of a table that is filled up to bytes before, and meshes. */
void churn(table_t *t, size_t bytes);
/* Meshes so far. */
uint64_t nmeshes(void);
/* Followers now. */
uint64_t nfollowers(void);

/* Threads which allocate, write to, check and free objects of their own. */
void load_start(unsigned nthreads);
void load_stop(void);

/* pthread_create() or die. */
void thread_start(pthread_t *thread, void *(*main)(void *), void *arg);
/* Waits for a child, expecting it to exit with this status. */
void child_wait(pid_t pid, int status);
/* Of a child that checks and churns: counts its meshes, exits with status 0. */
void child_end(uint64_t nmeshes_before) __attribute__((noreturn));
void sleep_ms(unsigned ms);
/* What main() does after the scenario; for scenarios that do not return. */
void scenario_end(void) __attribute__((noreturn));

#endif /* MESH_TEST_SCENARIO_H */
