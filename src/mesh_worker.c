/*
 * The worker: who meshes, background thread 0 or the program's threads in ticks.
 *
 * A process with one thread may do what others may not, unshare(2) and setns(2) for
 * two, and pays for no second stack.  So background threads begin only when there is
 * something to mesh, at a tick, unless the program has them in any case; in the
 * child of a fork, where none of its parent's threads are, just the same.  Ticks go
 * on to do the work
 *
 *   - where the user said background_thread:false, or the program switched them off;
 *   - where the kernel refuses a thread;
 *   - where the barrier is the signal and the program has one thread: another one
 *     would have to stop it, and interrupt what it waits for.
 *
 * The thread is made within malloc() or free(), whose caller may hold any lock of
 * the program's and of the dynamic linker's.  pthread_create() waits for none of
 * those but one that is never held for longer than it takes to allocate a little;
 * how to find it was looked up at the start.  The lock that guards all background
 * threads is only tried, as its holder may be about to allocate or fork.
 *
 * Called by mesh_pass, mesh.c and jemalloc.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_barrier.h"
#include "jemalloc/internal/mesh_pass.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_task.h"
#include "jemalloc/internal/mesh_worker.h"

#include <sys/syscall.h>

bool mesh_background_thread_named = false;

/* The user or the program said no. */
static atomic_b_t worker_unwanted;
/* The kernel did. */
static atomic_b_t worker_refused;

void
mesh_worker_boot(void) {
	atomic_store_b(&worker_unwanted,
	    mesh_background_thread_named && !opt_background_thread,
	    ATOMIC_RELAXED);
}

void
mesh_background_thread_set(tsdn_t *tsdn, bool on) {
	atomic_store_b(&worker_unwanted, !on, ATOMIC_RELAXED);
	if (opt_mesh && on) {
		malloc_mutex_lock(tsdn, &mesh_mtx);
		(void)mesh_settle();
		malloc_mutex_unlock(tsdn, &mesh_mtx);
	}
}

bool
mesh_worker_permitted(void) {
	return have_background_thread
	    && !atomic_load_b(&worker_unwanted, ATOMIC_RELAXED);
}

bool
mesh_worker_wanted(void) {
	return mesh_worker_permitted()
	    && !atomic_load_b(&worker_refused, ATOMIC_RELAXED)
	    && !(mesh_barrier_get() == mesh_barrier_signal
	        && mesh_tasks_single());
}

bool
mesh_worker_here(void) {
#ifdef __GLIBC__
	/* Whoever locks it notes which thread it thinks it is. */
	pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
	pthread_mutex_lock(&mutex);
	int self = mutex.__data.__owner;
	pthread_mutex_unlock(&mutex);
	return self == (int)syscall(SYS_gettid);
#else
	return true;
#endif
}

/* Those that thread 0, which there is not, was to create. */
static void
threads_forget(tsdn_t *tsdn) {
	for (size_t i = 1; i < max_background_threads; i++) {
		background_thread_info_t *info = &background_thread_info[i];
		malloc_mutex_lock(tsdn, &info->mtx);
		if (info->state == background_thread_started) {
			info->state = background_thread_stopped;
			n_background_threads--;
		}
		malloc_mutex_unlock(tsdn, &info->mtx);
	}
}

void
mesh_worker_start(tsd_t *tsd) {
	tsdn_t *tsdn = tsd_tsdn(tsd);
	background_thread_ctl_init(tsdn);
	if (malloc_mutex_trylock(tsdn, &background_thread_lock)) {
		return;
	}
	/* malloc() sets errno when it fails, free() never. */
	int saved_errno = get_errno();
	if (!background_thread_enabled() && mesh_worker_wanted()) {
		background_thread_enabled_set(tsdn, true);
		if (background_threads_enable(tsd)) {
			background_thread_enabled_set(tsdn, false);
			threads_forget(tsdn);
			atomic_store_b(&worker_refused, true, ATOMIC_RELAXED);
		}
	}
	set_errno(saved_errno);
	malloc_mutex_unlock(tsdn, &background_thread_lock);
}

void
mesh_worker_postfork_child(void) {
	atomic_store_b(&worker_refused, false, ATOMIC_RELAXED);
}

void
mesh_thread_signals(sigset_t *set) {
	/* With the other barriers they may be the program's. */
	if (opt_mesh && !mesh_barrier_is_uffd()) {
		mesh_stop_signals_spare(set);
	}
}

static void
thread_signals_set(void) {
	sigset_t set;
	sigfillset(&set);
	mesh_thread_signals(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

void
mesh_thread_enter(void) {
	mesh_tasks_own_enter();
	if (opt_mesh) {
		/* By now it is known. */
		thread_signals_set();
	}
}

void
mesh_thread_renew(tsdn_t *tsdn, unsigned ind) {
	if (mesh_barrier_is_uffd()) {
		return;
	}
	thread_signals_set();
	if (ind != 0 || !mesh_stop_signal_changed()) {
		return;
	}
	/* The others do the same when they wake. */
	for (size_t i = 1; i < max_background_threads; i++) {
		background_thread_info_t *info = &background_thread_info[i];
		malloc_mutex_lock(tsdn, &info->mtx);
		if (info->state == background_thread_started) {
			pthread_cond_signal(&info->cond);
		}
		malloc_mutex_unlock(tsdn, &info->mtx);
	}
}

void
mesh_thread_leave(void) {
	mesh_tasks_own_leave();
}
