#ifndef JEMALLOC_INTERNAL_MESH_TASK_H
#define JEMALLOC_INTERNAL_MESH_TASK_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <sys/syscall.h>
#include <sys/uio.h>

#define MESH_TASKS "/proc/self/task"

static inline uint32_t
mesh_tasks_self(void) {
	return (uint32_t)syscall(SYS_gettid);
}

/*
 * Reads size bytes that the program may have unmapped or protected; returns true if
 * so.  Uses the stack and a system call only.
 */
static inline bool
mesh_tasks_peek(void *to, const void *from, size_t size) {
	struct iovec local = {to, size};
	struct iovec remote = {(void *)(uintptr_t)from, size};
	/* Not the process, which has no memory once its first thread has ended. */
	return syscall(SYS_process_vm_readv, mesh_tasks_self(), &local, 1,
	           &remote, 1, 0)
	    != (long)size;
}

/* A thread of jemalloc's own begins, or ends; no lock needed. */
void mesh_tasks_own_enter(void);
void mesh_tasks_own_leave(void);
/* Whether a thread is one of these; of more than 64 not all are known.  No lock needed. */
bool mesh_tasks_is_own(uint32_t tid);
/* A child has none of them. */
void mesh_tasks_postfork_child(void);
/* How many threads there are, 0 if that cannot be told.  As below. */
size_t mesh_tasks_count(void);
/* Whether the calling thread is the only one of all; no lock needed. */
bool mesh_tasks_single(void);
/*
 * Whether the program has one thread only, not counting jemalloc's own.  No if that
 * cannot be told.  Needs no descriptor and no lock.
 */
bool mesh_tasks_alone(void);

/* The directory of threads; how much of it is in the buffer, and what comes next. */
typedef struct mesh_tasks_s mesh_tasks_t;
struct mesh_tasks_s {
	int    fd;
	long   size;
	size_t pos;
};

/*
 * Opens the directory; returns true, and errno, if that cannot be done.  As for the
 * others the mesh lock is held, and one directory at a time is read.
 */
bool mesh_tasks_open(mesh_tasks_t *tasks);
void mesh_tasks_close(mesh_tasks_t *tasks);
/* Begins anew. */
void mesh_tasks_rewind(mesh_tasks_t *tasks);
/*
 * The next thread but self, in the order in which they were made.  Returns 0 if
 * there is none, with size < 0 if the directory could not be read.
 */
uint32_t mesh_tasks_next(mesh_tasks_t *tasks, uint32_t self);
/*
 * The text of a file about a thread, until the next call; NULL, and errno, if it
 * cannot be read.
 */
const char *mesh_tasks_read(
    const mesh_tasks_t *tasks, uint32_t tid, const char *name);

/*
 * The function of the kernel that a thread sleeps in, which it tells even of processes
 * that must not read their other files, until the next call; NULL if it does not sleep,
 * or that cannot be had.
 */
const char *mesh_tasks_where(const mesh_tasks_t *tasks, uint32_t tid);

/*
 * How long a thread has run in all, nanoseconds, 0 if it has ended.  As long as that is
 * the same it is where it was.  No lock needed.
 */
uint64_t mesh_tasks_ran_ns(uint32_t tid);

#endif /* JEMALLOC_INTERNAL_MESH_TASK_H */
