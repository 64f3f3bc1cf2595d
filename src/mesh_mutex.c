/*
 * Mutexes that the kernel writes to by itself: of the kinds PTHREAD_PRIO_INHERIT, as
 * they are handed over, and PTHREAD_MUTEX_ROBUST, as their owner ends.
 *
 * Unlike all other system calls, these do not wait for userfaultfd: what is kept away
 * from writers then looks unmapped to them.  The C library ends the program when it is
 * told so, and a thread that ends leaves its mutexes locked.  That concerns locked
 * mutexes only, since a thread locks a free one itself, and waits.  So slabs that have
 * any are left alone.
 *
 * They are known by the layout that glibc's have on all 64-bit architectures: a word
 * with the number of the thread that has it locked, that number once more, and the
 * kind.  What looks so by chance is left alone for nothing.
 *
 * Called by mesh_batch under the mesh lock.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_mutex.h"
#include "jemalloc/internal/mesh_store.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* Of glibc's pthread_mutex_t. */
typedef struct {
	uint32_t lock;
	uint32_t count;
	uint32_t owner;
	uint32_t nusers;
	uint32_t kind;
} mutex_t;

#define KIND_ROBUST UINT32_C(16)
#define KIND_INHERIT UINT32_C(32)
#define KIND_MAX UINT32_C(0xff)

/* Guarded by the mesh lock. */
static byte_t slab_copy[MESH_STORE_SLAB_MAX];

static bool
mutex_locked(const mutex_t *mutex) {
	uint32_t tid = mutex->lock & FUTEX_TID_MASK;
	return (mutex->kind & (KIND_ROBUST | KIND_INHERIT)) != 0
	    && mutex->kind <= KIND_MAX && tid != 0
	    && (mutex->owner == tid || mutex->owner == 0)
	    && syscall(SYS_tgkill, getpid(), tid, 0) == 0;
}

static bool
region_locked(const byte_t *region, size_t size) {
	for (size_t at = 0; at + sizeof(mutex_t) <= size; at += 8) {
		mutex_t mutex;
		memcpy(&mutex, region + at, sizeof(mutex));
		if (mutex_locked(&mutex)) {
			return true;
		}
	}
	return false;
}

bool
mesh_mutex_locked(const void *slab, size_t size, const uint64_t *live,
    unsigned nwords, size_t reg_size) {
	/* The program may have protected some of it: that must not be a fault. */
	struct iovec to = {slab_copy, size};
	struct iovec from = {(void *)(uintptr_t)slab, size};
	if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)size) {
		return true;
	}
	for (unsigned w = 0; w < nwords; w++) {
		for (uint64_t bits = live[w]; bits != 0; bits &= bits - 1) {
			if (region_locked(slab_copy
			            + (w * 64 + ffs_u64(bits)) * reg_size,
			        reg_size)) {
				return true;
			}
		}
	}
	return false;
}
