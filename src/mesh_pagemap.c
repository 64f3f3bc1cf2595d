/*
 * What /proc/self/pagemap tells about pages: whether another process has them, too.
 *
 * After a fork parent and child share their memory until one of them writes to it.
 * To mesh a slab that is shared would give each of them one of its own, and so cost
 * memory instead of saving it.  It does not if most of its pages are not shared any
 * more: of two slabs more is released than the one takes that both become.
 *
 * Called by mesh_batch and mesh_scan, under the mesh lock, while the barrier is
 * down.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_pagemap.h"
#include "jemalloc/internal/mesh_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef MADV_POPULATE_WRITE
#	define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* Of an entry, see Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_EXCLUSIVE (UINT64_C(1) << 56)
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_PRESENT (UINT64_C(1) << 63)

/* Entries that are read at once for a glance: less than a microsecond. */
#define GLANCE_PAGES 64

/* These are guarded by the mesh lock. */
static mesh_fd_t pagemap_fd = MESH_FD_INITIALIZER;
static uint64_t  pagemap_entries[MESH_STORE_SLAB_MAX >> LG_PAGE];
/*
 * A page that was written before the first fork and never since: it is mapped once
 * only when no other process of the family is left.  NULL if there was no fork.
 */
static byte_t    *pagemap_family;
static atomic_b_t pagemap_shared;
/* What pagemap_entries has for a glance. */
static uintptr_t glance_begin;
static size_t    glance_npages;

void
mesh_pagemap_open(void) {
	if (mesh_fd_valid(&pagemap_fd) || !mesh_fd_may_open()) {
		return;
	}
	/* /proc/self has none once the first thread has ended. */
	int fd = malloc_open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd != -1) {
		(void)mesh_fd_set(&pagemap_fd, fd);
	}
}

/* Reads the entries of a range.  Returns how many; 0 if that cannot be done. */
static size_t
entries_read(const void *addr, size_t size) {
	size_t n = size >> LG_PAGE;
	assert(n <= sizeof(pagemap_entries) / sizeof(pagemap_entries[0]));
	/* By number: libc's function is a cancellation point, malloc() is none. */
	return mesh_fd_valid(&pagemap_fd)
	        && syscall(SYS_pread64, pagemap_fd.fd, pagemap_entries,
	               n * sizeof(uint64_t),
	               (off_t)(((uintptr_t)addr >> LG_PAGE) * sizeof(uint64_t)))
	            == (long)(n * sizeof(uint64_t))
	    ? n
	    : 0;
}

static bool
entries_own(const uint64_t *entries, size_t n) {
	size_t nown = 0, nshared = 0;
	for (size_t i = 0; i < n; i++) {
		if ((entries[i] & ENTRY_SWAPPED) != 0) {
			return false;
		}
		if ((entries[i] & ENTRY_PRESENT) != 0) {
			bool own = (entries[i] & ENTRY_EXCLUSIVE) != 0;
			nown += own;
			nshared += !own;
		}
	}
	return nshared == 0 || nown > n / 2;
}

static bool
entries_own_view(const uint64_t *entries, size_t n) {
	uint64_t want = ENTRY_PRESENT | ENTRY_EXCLUSIVE;
	size_t   nown = 0;
	while (nown < n && (entries[nown] & (want | ENTRY_FILE)) == want) {
		nown++;
	}
	return nown == n;
}

bool
mesh_pagemap_own(const void *addr, size_t size) {
	return entries_own(pagemap_entries, entries_read(addr, size));
}

bool
mesh_pagemap_shared(void) {
	return atomic_load_b(&pagemap_shared, ATOMIC_RELAXED);
}

bool
mesh_pagemap_alone(void) {
	bool alone = pagemap_family == NULL
	    || (entries_read(pagemap_family, PAGE) == 1
	        && (pagemap_entries[0] & ENTRY_PRESENT) != 0
	        && (pagemap_entries[0] & ENTRY_EXCLUSIVE) != 0);
	if (alone && mesh_pagemap_shared()) {
		atomic_store_b(&pagemap_shared, false, ATOMIC_RELAXED);
	}
	return alone;
}

bool
mesh_pagemap_own_view(const void *addr, size_t size) {
	if (mesh_pagemap_alone()) {
		return true;
	}
	size_t n = entries_read(addr, size);
	return n > 0 && entries_own_view(pagemap_entries, n);
}

void
mesh_pagemap_glance_begin(void) {
	glance_npages = 0;
}

bool
mesh_pagemap_glance(const void *addr, size_t size, bool view) {
	uintptr_t begin = (uintptr_t)addr;
	size_t    n = size >> LG_PAGE;
	if (glance_npages == 0 || begin < glance_begin
	    || begin + size > glance_begin + (glance_npages << LG_PAGE)) {
		glance_begin = begin;
		glance_npages = entries_read(
		    addr, (n > GLANCE_PAGES ? n : GLANCE_PAGES) << LG_PAGE);
	}
	if (glance_npages == 0) {
		return !view;
	}
	const uint64_t *entries =
	    &pagemap_entries[(begin - glance_begin) >> LG_PAGE];
	return view ? entries_own_view(entries, n) : entries_own(entries, n);
}

void
mesh_pagemap_prefork(void) {
	atomic_store_b(&pagemap_shared, true, ATOMIC_RELAXED);
	if (pagemap_family == NULL) {
		bool commit = true;
		pagemap_family = (byte_t *)pages_map(NULL, PAGE, PAGE, &commit);
		if (pagemap_family != NULL) {
			*pagemap_family = 1;
		}
	}
}

void
mesh_pagemap_postfork_child(void) {
	/* It is about the parent. */
	mesh_fd_drop(&pagemap_fd);
}

void
mesh_pagemap_claim(void *addr, size_t size) {
	size_t n = pagemap_family != NULL ? entries_read(addr, size) : 0;
	for (size_t i = 0, end; i < n; i = end) {
		bool present = (pagemap_entries[i] & ENTRY_PRESENT) != 0;
		end = i + 1;
		while (end < n
		    && ((pagemap_entries[end] & ENTRY_PRESENT) != 0)
		        == present) {
			end++;
		}
		if (present) {
			/* A write fault, that is, without a write. */
			(void)madvise((byte_t *)addr + (i << LG_PAGE),
			    (end - i) << LG_PAGE, MADV_POPULATE_WRITE);
		}
	}
}
