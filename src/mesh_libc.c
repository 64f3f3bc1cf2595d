/*
 * What a child's C library writes to before our handler gives the child memory of
 * its own.
 *
 * The child runs fork() to its end first.  In it glibc sets back the locks of all
 * open streams, and clears the values that other threads had for the thread-specific
 * keys beyond the first 32, which it keeps on the heap.  Where those lie in spliced
 * ranges the parent would lose its own, its locks while they are held.  So these
 * ranges are private before the fork, unlike all others (mesh_view.c).
 *
 * Streams are found by functions that glibc exports, the values by the threads'
 * descriptors, in which any word is taken for a pointer to some: a range too many
 * costs little.
 *
 * Left is one lock of the name service switch, held for less than a microsecond
 * now and then, which a child sets back as well and nobody can find.
 *
 * Of other C libraries nothing is known, and of a glibc without those functions:
 * there all ranges are made private before the fork.
 *
 * Called by mesh_view.  Takes the lock of glibc's list of streams, as fork() is
 * about to do anyway, and that of jemalloc's list of threads.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_libc.h"

#if defined(__GLIBC__) && defined(JEMALLOC_TLS)

/* A thread's descriptor is longer, and has its pointers to values before. */
#	ifdef __x86_64__
#		define THREAD_WORDS 256
#	else
#		define THREAD_WORDS 160
#	endif

/* Weak, as a program that is linked statically may go without. */
#	define WEAK __attribute__((weak))
void *_IO_iter_begin(void) WEAK;
void *_IO_iter_end(void) WEAK;
void *_IO_iter_next(void *iter) WEAK;
FILE *_IO_iter_file(void *iter) WEAK;
void  _IO_list_lock(void) WEAK;
void  _IO_list_unlock(void) WEAK;

#	define STRING(x) #x
#	define VALUE_STRING(x) STRING(x)

bool
mesh_libc_known(void) {
	/* A tsd_t is at the same distance from each thread's descriptor. */
	return sizeof(VALUE_STRING(JEMALLOC_TLS_MODEL)) > 1
	    && _IO_iter_begin != NULL;
}

void
mesh_libc_lock(void) {
	if (mesh_libc_known()) {
		_IO_list_lock();
	}
}

void
mesh_libc_unlock(void) {
	if (mesh_libc_known()) {
		_IO_list_unlock();
	}
}

static bool
streams_do(tsdn_t *tsdn, mesh_libc_do_t f) {
	bool result = false;
	for (void *iter = _IO_iter_begin(); iter != _IO_iter_end();
	     iter = _IO_iter_next(iter)) {
		result |= f(tsdn, (uintptr_t)_IO_iter_file(iter)->_lock);
	}
	return result;
}

typedef struct threads_do_s threads_do_t;
struct threads_do_s {
	tsdn_t        *tsdn;
	mesh_libc_do_t f;
	/* From a tsd_t to the descriptor of its thread. */
	ptrdiff_t distance;
	bool      result;
};

static void
thread_do(tsd_t *tsd, void *arg) {
	threads_do_t    *threads = (threads_do_t *)arg;
	const uintptr_t *words = (const uintptr_t *)((byte_t *)tsd
	    + threads->distance);
	for (size_t i = 0; i < THREAD_WORDS; i++) {
		threads->result |= threads->f(threads->tsdn, words[i]);
	}
}

bool
mesh_libc_do(tsdn_t *tsdn, mesh_libc_do_t f) {
	threads_do_t threads = {.tsdn = tsdn,
	    .f = f,
	    .distance = (byte_t *)pthread_self() - (byte_t *)tsdn_tsd(tsdn),
	    .result = streams_do(tsdn, f)};
	tsd_nominal_do(tsdn, thread_do, &threads);
	return threads.result;
}

#else

bool
mesh_libc_known(void) {
	return false;
}

void
mesh_libc_lock(void) {}

void
mesh_libc_unlock(void) {}

bool
mesh_libc_do(tsdn_t *tsdn, mesh_libc_do_t f) {
	(void)tsdn;
	(void)f;
	return false;
}

#endif
