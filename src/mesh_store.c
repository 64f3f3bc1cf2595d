/*
 * The store: the memfd that holds meshed physical slabs.
 *
 * A slab's place in the file is its own virtual address, so there is no table
 * of slots to keep, neighbouring leaders are neighbours in the file, and the
 * kernel can merge their mappings.  The file is sparse; only slabs of leaders
 * have memory in it.
 *
 * The pass reaches the file through windows, shared mappings of one chunk of it
 * each, made on first use and taken down when a scan is over: so a program that
 * locks all its memory does not fill them, and one that has little address space
 * does not lose it for long.  Splicing and punching go through mappings only; the
 * descriptor is needed to map windows and, at fork, private views, and is
 * checked before each such use.
 *
 * Whatever the kernel refuses is a refused mesh, and errno says why.
 *
 * Called by mesh_pass, mesh_group, mesh_fork and, for numbers, mesh.c.  Windows
 * and the descriptor change under the mesh lock only.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#ifndef MADV_POPULATE_WRITE
#	define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* File offsets are user addresses; x86-64 and most others have 2^47 of them. */
#define STORE_LG_SIZE 47
#define STORE_SIZE (UINT64_C(1) << STORE_LG_SIZE)

/*
 * A window covers one chunk of the file and a slab more, for the slab that
 * begins in the chunk and ends in the next.
 */
#define WINDOW_LG_CHUNK 26
#define WINDOW_CHUNK (ZU(1) << WINDOW_LG_CHUNK)
#define WINDOW_SIZE (WINDOW_CHUNK + MESH_STORE_SLAB_MAX)

/* How many there may be when a batch begins. */
#define WINDOWS_MAX 32

/* Windows are found in a table of two levels. */
#define WINDOW_LG_LEAF 9
#define WINDOW_LEAF_ENTRIES (1U << WINDOW_LG_LEAF)
#define WINDOW_ROOT_ENTRIES                                                    \
	(1U << (STORE_LG_SIZE - WINDOW_LG_CHUNK - WINDOW_LG_LEAF))

typedef struct window_s window_t;
struct window_s {
	/* The mapping, NULL if there is none yet. */
	byte_t *base;
	/* Next window in store_windows. */
	window_t *next;
};

static mesh_fd_t   store_fd = MESH_FD_INITIALIZER;
static atomic_zu_t store_generation;
/* Bytes of memory that generations had when they were frozen. */
static atomic_zu_t store_frozen;
static window_t   *window_table[WINDOW_ROOT_ENTRIES];
/* Every window with a mapping. */
static window_t *store_windows;
static size_t    store_nwindows;

bool
mesh_store_fits(const void *addr, size_t size) {
	return (uintptr_t)addr + size <= STORE_SIZE
	    && size <= MESH_STORE_SLAB_MAX;
}

bool
mesh_store_open(void) {
	if (mesh_store_is_open()) {
		/*
		 * If the program has closed the descriptor, the windows that
		 * there are go on to work; a second file would not do, since
		 * fork could not tell which file a slab is in.
		 */
		set_errno(EBADF);
		return !mesh_fd_valid(&store_fd);
	}
	if (!mesh_fd_may_open()) {
		return true;
	}
	/*
	 * Growing the file past RLIMIT_FSIZE would raise SIGXFSZ.  Once it has its
	 * size the limit does not matter any more.
	 */
	struct rlimit rl;
	if (getrlimit(RLIMIT_FSIZE, &rl) != 0 || rl.rlim_cur < STORE_SIZE) {
		set_errno(EFBIG);
		return true;
	}
	int fd = mesh_fd_memfd("jemalloc-mesh");
	if (fd == -1) {
		return true;
	}
	if (ftruncate(fd, (off_t)STORE_SIZE) != 0) {
		int err = get_errno();
		malloc_close(fd);
		set_errno(err);
		return true;
	}
	return mesh_fd_set(&store_fd, fd);
}

static window_t *
window_get(tsdn_t *tsdn, uintptr_t chunk) {
	window_t **leaf = &window_table[chunk >> WINDOW_LG_LEAF];
	if (*leaf == NULL) {
		/* Zeroed, as all base memory is. */
		*leaf = (window_t *)base_alloc(tsdn, b0get(),
		    sizeof(window_t) << WINDOW_LG_LEAF, CACHELINE);
		if (*leaf == NULL) {
			set_errno(ENOMEM);
			return NULL;
		}
	}
	return &(*leaf)[chunk & (WINDOW_LEAF_ENTRIES - 1)];
}

static bool
window_map(window_t *window, uintptr_t chunk) {
	if (mesh_store_open()) {
		return true;
	}
	/*
	 * Without access at first: after mlockall(MCL_FUTURE) the kernel would
	 * give all of it memory.
	 */
	void *base = mmap(NULL, WINDOW_SIZE, PROT_NONE,
	    MAP_SHARED | MAP_NORESERVE, store_fd.fd,
	    (off_t)(chunk << WINDOW_LG_CHUNK));
	if (base == MAP_FAILED) {
		return true;
	}
	if (mesh_range_locked(base, WINDOW_SIZE)
	    || mprotect(base, WINDOW_SIZE, PROT_READ | PROT_WRITE) != 0
	    /* Another thread may have closed the descriptor meanwhile. */
	    || !mesh_fd_valid(&store_fd)) {
		int err = get_errno();
		munmap(base, WINDOW_SIZE);
		set_errno(err);
		return true;
	}
	/*
	 * Of a huge page no slab can be given back.  A kernel without huge pages
	 * refuses.
	 */
	(void)madvise(base, WINDOW_SIZE, MADV_NOHUGEPAGE);
	window->base = (byte_t *)base;
	window->next = store_windows;
	store_windows = window;
	store_nwindows++;
	return false;
}

/*
 * Gives a physical slab all its memory.  Memory that is not to be had must be a
 * refusal now, not SIGBUS later.  Returns true if it is not.
 */
static bool
slab_populate(void *at, const void *addr, size_t size) {
	if (madvise(at, size, MADV_POPULATE_WRITE) == 0) {
		return false;
	}
	/* Older kernels; the file does not grow, so no SIGXFSZ. */
	return get_errno() != EINVAL || !mesh_fd_valid(&store_fd)
	    || syscall(SYS_fallocate, store_fd.fd, 0, (off_t)(uintptr_t)addr,
	           (off_t)size)
	    != 0;
}

void *
mesh_store_window(tsdn_t *tsdn, const void *addr, size_t size, bool populate) {
	assert(mesh_store_fits(addr, size));
	uintptr_t chunk = (uintptr_t)addr >> WINDOW_LG_CHUNK;
	window_t *window = window_get(tsdn, chunk);
	if (window == NULL
	    || (window->base == NULL && window_map(window, chunk))) {
		return NULL;
	}
	byte_t *at = window->base + ((uintptr_t)addr & (WINDOW_CHUNK - 1));
	/* The program may have locked all its memory since it was mapped. */
	return mesh_range_locked(at, size)
	        || (populate && slab_populate(at, addr, size))
	    ? NULL
	    : at;
}

void
mesh_store_punch(void *mapping, size_t size) {
	if (madvise(mapping, size, MADV_REMOVE) != 0 && get_errno() == EINVAL
	    && mesh_range_locked(mapping, size)
	    && munlock(mapping, size) == 0) {
		(void)madvise(mapping, size, MADV_REMOVE);
	}
}

void
mesh_store_punch_at(tsdn_t *tsdn, const void *addr, size_t size) {
	void *at = mesh_store_window(tsdn, addr, size, /* populate */ false);
	if (at != NULL) {
		mesh_store_punch(at, size);
	}
}

void
mesh_store_windows_trim(void) {
	window_t **place = &store_windows;
	while (*place != NULL) {
		window_t *window = *place;
		if (munmap(window->base, WINDOW_SIZE) != 0) {
			place = &window->next;
			continue;
		}
		*place = window->next;
		memset(window, 0, sizeof(*window));
		store_nwindows--;
	}
}

void
mesh_store_windows_bound(void) {
	struct rlimit rl;
	bool          scarce = getrlimit(RLIMIT_AS, &rl) == 0
	    && rl.rlim_cur != RLIM_INFINITY;
	if (store_nwindows > (scarce ? 0 : WINDOWS_MAX)) {
		mesh_store_windows_trim();
	}
}

const mesh_fd_t *
mesh_store_fd(void) {
	return &store_fd;
}

static size_t
store_bytes_now(void) {
	struct stat st;
	return mesh_fd_stat(&store_fd, &st) ? (size_t)st.st_blocks * 512 : 0;
}

void
mesh_store_frozen_gone(void) {
	atomic_store_zu(&store_frozen, 0, ATOMIC_RELAXED);
}

void
mesh_store_freeze(void) {
	if (!mesh_store_is_open()) {
		return;
	}
	window_t *next;
	for (window_t *window = store_windows; window != NULL; window = next) {
		next = window->next;
		munmap(window->base, WINDOW_SIZE);
		memset(window, 0, sizeof(*window));
	}
	store_windows = NULL;
	store_nwindows = 0;
	atomic_fetch_add_zu(&store_frozen, store_bytes_now(), ATOMIC_RELAXED);
	mesh_fd_drop(&store_fd);
	atomic_fetch_add_zu(&store_generation, 1, ATOMIC_RELAXED);
}

bool
mesh_store_is_open(void) {
	return store_fd.fd != -1;
}

size_t
mesh_store_bytes(void) {
	return store_bytes_now()
	    + atomic_load_zu(&store_frozen, ATOMIC_RELAXED);
}

size_t
mesh_store_generation(void) {
	return atomic_load_zu(&store_generation, ATOMIC_RELAXED);
}
