#ifndef JEMALLOC_INTERNAL_MESH_STOP_H
#define JEMALLOC_INTERNAL_MESH_STOP_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <signal.h>

/*
 * Whether this process can stop its threads: returns the reason why it cannot,
 * as one sentence without a full stop, or NULL.
 */
const char *mesh_stop_boot(void);

/*
 * Stops all other threads of the process, jemalloc's own only if own says so: they
 * block the signal where they need not answer it.  The mesh lock is held, all signals
 * are blocked, and until mesh_stop_resume() the caller takes no lock, allocates
 * nothing and writes to no heap page.  Returns NULL if they all stand still, or
 * the reason why not as a clause; then all of them run.
 */
const char *mesh_stop_world(bool own);
void        mesh_stop_resume(void);
/* How long the last stop took, from the first thread to the last.  The mesh lock is held. */
uint64_t mesh_stop_took_ns(void);
/*
 * The same reason for all threads, as far as it can be told without stopping anybody.
 * Threads that were looked at lately are known to be in calls that have just begun.  The mesh lock
 * is held.
 */
const char *mesh_stop_look(void);
/* The one of those reasons that is often gone soon: threads begin that way. */
extern const char mesh_stop_blocked[];
/* And one that is gone once that thread has woken. */
extern const char mesh_stop_timed[];

/*
 * Whether the world stands on a stack in this range: its owner may write there
 * even now.
 */
bool mesh_stop_stands_on(const void *addr, size_t size);

/*
 * Has a thread of this process leave its system call and go on with it, also where
 * threads are stopped by other means or not at all.  The mesh lock is held.
 * Returns true if there is no signal for that, or not now.
 */
bool mesh_stop_poke(pid_t tid);

/* System calls of the program's that failed with EINTR because of all that. */
size_t mesh_stop_interrupted(void);

/*
 * Takes the signal that stops threads, as things are, out of a set that shall be
 * blocked.  No lock needed.
 */
void mesh_stop_signals_spare(sigset_t *set);

/* Whether that is another signal than when this was asked last.  No lock needed. */
bool mesh_stop_signal_changed(void);

/* The child of a fork has threads of its own; the mesh lock is held. */
void mesh_stop_postfork_child(void);

#endif /* JEMALLOC_INTERNAL_MESH_STOP_H */
