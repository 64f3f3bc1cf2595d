/*
 * Mutexes that the kernel writes to by itself: of the kinds PTHREAD_PRIO_INHERIT, as
 * they are handed over, and PTHREAD_MUTEX_ROBUST, as their owner ends.
 *
 * Unlike all other system calls, these do not wait for userfaultfd: what is kept away
 * from writers then looks unmapped to them.  The C library ends the program when it is
 * told so, and a thread that ends leaves its mutexes locked.  So slabs that have such a
 * mutex are left alone.  Also if it is free, as it may be locked, and another thread
 * wait for it, by the time that the slab is kept away from writers.
 *
 * They are known by the layout that glibc's have on all 64-bit architectures: a word
 * with the number of the thread that has it locked, that number once more, and the
 * kind; or nothing but the kind.  What looks so by chance is left alone for nothing.
 *
 * Called by mesh_batch, mesh_barrier, and by mesh_view at a fork, under the mesh lock.
 * Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_mutex.h"
#include "jemalloc/internal/mesh_store.h"
#include "jemalloc/internal/mesh_task.h"

#include <linux/futex.h>
#include <sys/syscall.h>

/* Of glibc's pthread_mutex_t. */
typedef struct {
	uint32_t lock;
	uint32_t count;
	uint32_t owner;
	uint32_t nusers;
	uint32_t kind;
	/* How long to spin. */
	uint32_t spins;
	/* In the list of robust ones that a thread has locked. */
	uint64_t list[2];
} mutex_t;

/* The owner of a robust one that was not put right since the last one ended. */
#define OWNER_INCONSISTENT UINT32_C(0x7fffffff)
#define KIND_ROBUST UINT32_C(16)
#define KIND_INHERIT UINT32_C(32)
/* Threads that have it locked or are in a condition variable of it, at most. */
#define NUSERS_MAX UINT32_C(0x10000)
/* Its type is less; two more bits are PTHREAD_PRIO_PROTECT, and shared or not. */
#define KIND_NOT (~UINT32_C(0xf3))

/* Guarded by the mesh lock. */
static byte_t slab_copy[MESH_STORE_SLAB_MAX];
static bool   mutex_seen;

static bool
thread_exists(uint32_t tid) {
	return syscall(SYS_tgkill, getpid(), tid, 0) == 0;
}

/* Whether it is certainly one, and locked: forks depend on it from then on. */
static bool
is_locked_mutex(const mutex_t *mutex, uint32_t tid) {
	bool robust = (mutex->kind & KIND_ROBUST) != 0;
	return mutex->owner == tid && mutex->nusers - 1 < NUSERS_MAX
	    && (mutex->list[0] != 0) == robust
	    && (mutex->list[1] != 0) == robust;
}

static bool
is_mutex(const mutex_t *mutex) {
	if ((mutex->kind & (KIND_ROBUST | KIND_INHERIT)) == 0
	    || (mutex->kind & KIND_NOT) != 0 || mutex->spins != 0) {
		return false;
	}
	uint32_t tid = mutex->lock & FUTEX_TID_MASK;
	if (tid != 0) {
		bool locked = (mutex->owner == tid || mutex->owner == 0
		                  || mutex->owner == OWNER_INCONSISTENT)
		    && thread_exists(tid);
		mutex_seen |= locked && is_locked_mutex(mutex, tid);
		return locked;
	}
	/* Its owner has ended; or it is free, and may have users that wait elsewhere. */
	return (mutex->lock & FUTEX_OWNER_DIED) != 0
	    || (mutex->lock | mutex->count | mutex->owner | mutex->list[0]
	           | mutex->list[1])
	    == 0;
}

static bool
region_has_mutex(const byte_t *region, size_t size) {
	for (size_t at = 0; at + sizeof(mutex_t) <= size; at += 8) {
		mutex_t mutex;
		memcpy(&mutex, region + at, sizeof(mutex));
		if (is_mutex(&mutex)) {
			return true;
		}
	}
	return false;
}

bool
mesh_mutex_seen(void) {
	return mutex_seen;
}

bool
mesh_mutex_found(const void *slab, size_t size, const uint64_t *live,
    unsigned nwords, size_t reg_size) {
	/* The program may have protected some of it: that must not be a fault. */
	if (mesh_tasks_peek(slab_copy, slab, size)) {
		return true;
	}
	for (unsigned w = 0; w < nwords; w++) {
		for (uint64_t bits = live[w]; bits != 0; bits &= bits - 1) {
			if (region_has_mutex(
			        slab_copy + (w * 64 + ffs_u64(bits)) * reg_size,
			        reg_size)) {
				return true;
			}
		}
	}
	return false;
}
