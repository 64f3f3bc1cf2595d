/*
 * The threads of this process, as /proc/self/task tells of them.
 *
 * Called by mesh_stop and mesh_waiter, under the mesh lock, which guards the
 * buffers.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_task.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

/* Stacks may be small. */
static union {
	struct dirent64 first;
	char            bytes[4096];
} tasks_buf;
static char task_text[1024];

/* Of jemalloc's own that are alive, or one fewer. */
static atomic_u32_t tasks_nown;
/* Who they are, as far as there is room, among zeros. */
#define OWN_MAX 64
static atomic_u32_t tasks_own[OWN_MAX];

/* Puts a thread where another one is; nowhere if that is not there. */
static void
own_replace(uint32_t from, uint32_t to) {
	for (unsigned i = 0; i < OWN_MAX; i++) {
		uint32_t tid = from;
		if (atomic_compare_exchange_strong_u32(&tasks_own[i], &tid, to,
		        ATOMIC_RELAXED, ATOMIC_RELAXED)) {
			return;
		}
	}
}

void
mesh_tasks_own_enter(void) {
	own_replace(0, mesh_tasks_self());
	atomic_fetch_add_u32(&tasks_nown, 1, ATOMIC_RELAXED);
}

void
mesh_tasks_own_leave(void) {
	atomic_fetch_sub_u32(&tasks_nown, 1, ATOMIC_RELAXED);
	own_replace(mesh_tasks_self(), 0);
}

bool
mesh_tasks_is_own(uint32_t tid) {
	for (unsigned i = 0; i < OWN_MAX; i++) {
		if (atomic_load_u32(&tasks_own[i], ATOMIC_RELAXED) == tid) {
			return true;
		}
	}
	return false;
}

void
mesh_tasks_postfork_child(void) {
	atomic_store_u32(&tasks_nown, 0, ATOMIC_RELAXED);
	memset(tasks_own, 0, sizeof(tasks_own));
}

size_t
mesh_tasks_count(void) {
	struct stat st;
	/* A directory has two links, and one for each directory in it. */
	return stat(MESH_TASKS, &st) != 0 || st.st_nlink < 2 ? 0
	                                                     : st.st_nlink - 2;
}

bool
mesh_tasks_single(void) {
	return mesh_tasks_count() == 1;
}

bool
mesh_tasks_alone(void) {
	uint32_t nown = atomic_load_u32(&tasks_nown, ATOMIC_ACQUIRE);
	size_t   n = mesh_tasks_count();
	return n > 0
	    && n <= 1 + nown
	    /* None of ours has begun or ended meanwhile. */
	    && atomic_load_u32(&tasks_nown, ATOMIC_ACQUIRE) == nown;
}

bool
mesh_tasks_open(mesh_tasks_t *tasks) {
	tasks->fd = malloc_open(MESH_TASKS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	tasks->size = 0;
	tasks->pos = 0;
	return tasks->fd == -1;
}

void
mesh_tasks_close(mesh_tasks_t *tasks) {
	malloc_close(tasks->fd);
}

void
mesh_tasks_rewind(mesh_tasks_t *tasks) {
	lseek(tasks->fd, 0, SEEK_SET);
	tasks->size = 0;
	tasks->pos = 0;
}

uint32_t
mesh_tasks_next(mesh_tasks_t *tasks, uint32_t self) {
	while (true) {
		if (tasks->pos >= (size_t)tasks->size) {
			tasks->size = syscall(SYS_getdents64, tasks->fd,
			    tasks_buf.bytes, sizeof(tasks_buf.bytes));
			tasks->pos = 0;
			if (tasks->size <= 0) {
				return 0;
			}
		}
		const struct dirent64 *entry =
		    (const struct dirent64 *)&tasks_buf.bytes[tasks->pos];
		tasks->pos += entry->d_reclen;
		if (entry->d_name[0] == '.') {
			continue;
		}
		uint32_t tid = (uint32_t)malloc_strtoumax(
		    entry->d_name, NULL, 10);
		if (tid != self) {
			return tid;
		}
	}
}

const char *
mesh_tasks_read(const mesh_tasks_t *tasks, uint32_t tid, const char *name) {
	char path[32];
	malloc_snprintf(path, sizeof(path), "%u/%s", tid, name);
	return mesh_fd_read_text(tasks->fd, path, task_text, sizeof(task_text))
	    ? NULL
	    : task_text;
}

const char *
mesh_tasks_where(const mesh_tasks_t *tasks, uint32_t tid) {
	const char *text = mesh_tasks_read(tasks, tid, "wchan");
	return text == NULL || strcmp(text, "0") == 0 ? NULL : text;
}

uint64_t
mesh_tasks_ran_ns(uint32_t tid) {
	struct timespec ts;
	/* The clock of a thread, see CPUCLOCK_PERTHREAD_MASK of the kernel. */
	return clock_gettime((clockid_t)((~tid << 3) | 6), &ts) != 0
	    ? 0
	    : (uint64_t)ts.tv_sec * KQU(1000000000) + (uint64_t)ts.tv_nsec;
}
