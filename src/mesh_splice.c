/*
 * Ranges of the address space: copy, splice, un-splice, and how many mappings
 * that costs.
 *
 * Called by mesh_pass (copy, splice), mesh_group (un-splice) and mesh_fork.
 * Knows no slab and takes no lock.  Between raising and lowering the barrier
 * nothing here may take a lock, allocate, or write to a heap page.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_fd.h"
#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_walk.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef MAP_FIXED_NOREPLACE
#	define MAP_FIXED_NOREPLACE 0x100000 /* Linux 4.17 */
#endif

/* vm.max_map_count where it cannot be read. */
#define MAPS_LIMIT_DEFAULT 65530
/* Counting costs milliseconds, so it has to be worth it. */
#define MAPS_COUNT_INTERVAL_NS UINT64_C(100000000)
/* The share of the time that it may take is one in so many. */
#define MAPS_COUNT_SHARE 256

/* What may be used beside, of maps_max, by what makes them fewer in the end. */
#define MAPS_SPARE_SHARE 32

/* Protected mappings that are told apart. */
#define PROTECTED_MAX 256

size_t opt_mesh_max_maps = 0;

/* The list of mappings; guarded by the mesh lock. */
/* Of <linux/fs.h> since Linux 6.11: the mapping that an address is in. */
typedef struct procmap_query_s procmap_query_t;
struct procmap_query_s {
	uint64_t size;
	uint64_t flags;
	uint64_t addr;
	uint64_t vma_start;
	uint64_t vma_end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t vma_offset;
	uint64_t inode;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint32_t name_size;
	uint32_t build_id_size;
	uint64_t name_addr;
	uint64_t build_id_addr;
};
#define PROCMAP_QUERY _IOWR('f', 17, procmap_query_t)
#define PROCMAP_RIGHTS 7
#define PROCMAP_READ_WRITE 3

static mesh_fd_t maps_fd = MESH_FD_INITIALIZER;

/* A mapping of the heap that is not plainly read and written. */
typedef struct span_s span_t;
struct span_s {
	uintptr_t begin;
	uintptr_t end;
	int       prot;
};
/*
 * Of those the list, by address.  The viewer reads it without a lock, so there are two,
 * in turns.
 */
typedef struct spans_s spans_t;
struct spans_s {
	span_t spans[PROTECTED_MAX];
	size_t n;
};
static spans_t      maps_spans[2];
static atomic_u32_t maps_spans_at;
/* What it uses may pin memory. */
static bool maps_pins;

static size_t maps_max;
/* Where taking slabs out of the store stops, too. */
static size_t      maps_hard;
static atomic_zu_t maps_bound;
static size_t      maps_counted;
static nstime_t    maps_counted_at;
static uint64_t    maps_interval_ns;
/* The last splice: its range, and the window's end. */
static byte_t *maps_last_begin;
static byte_t *maps_last_end;
static byte_t *maps_last_window_end;

void
mesh_splice_copy(void *window, const void *slab, const uint64_t *live,
    unsigned nwords, size_t reg_size) {
	for (unsigned w = 0; w < nwords; w++) {
		uint64_t bits = live[w];
		while (bits != 0) {
			size_t offset = (w * 64 + ffs_u64(bits)) * reg_size;
			memcpy((byte_t *)window + offset,
			    (const byte_t *)slab + offset, reg_size);
			bits &= bits - 1;
		}
	}
}

/* The next splice counts the mappings. */
static void
maps_distrust(void) {
	atomic_store_zu(&maps_bound, maps_max, ATOMIC_RELAXED);
	mesh_splice_recount();
}

/*
 * How many mappings a splice has added at most.  In the middle of a mapping it has
 * made three of one; next to the last splice one less, and none if the kernel could
 * merge the two.
 */
static size_t
maps_added(byte_t *addr, size_t size, byte_t *window) {
	bool above = (addr == maps_last_end);
	bool below = (addr + size == maps_last_begin);
	bool merged = above && window == maps_last_window_end;
	maps_last_begin = addr;
	maps_last_end = addr + size;
	maps_last_window_end = window + size;
	return merged ? 0 : above || below ? 1 : MESH_MAPS_PER_SPLICE;
}

bool
mesh_splice(void *addr, size_t size, void *window) {
	unsigned tries = 0;
	/* An old size of zero duplicates a shared mapping (mremap(2)). */
	while (mremap(window, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, addr)
	    == MAP_FAILED) {
		if (!mesh_range_try_again(addr, size, &tries)) {
			if (get_errno() == ENOMEM) {
				/* Mappings, as likely as not. */
				maps_distrust();
			}
			return true;
		}
	}
	atomic_fetch_add_zu(&maps_bound,
	    maps_added((byte_t *)addr, size, (byte_t *)window), ATOMIC_RELAXED);
	return false;
}

mesh_unsplice_t
mesh_unsplice(void *addr, size_t size) {
	bool            locked = mesh_range_locked(addr, size);
	mesh_unsplice_t result = mesh_unsplice_done;
	if (locked) {
		/* The kernel counts the old mapping and the new one. */
		(void)munlock(addr, size);
	}
	if (pages_remap_private(addr, size)) {
		result = mesh_unsplice_refused;
		/*
		 * The old mapping may be gone.  Then try again, without touching
		 * what somebody else may have put there meanwhile.
		 */
		if (mesh_range_hole(addr, size)) {
			result = mmap(addr, size, PROT_READ | PROT_WRITE,
			             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
			                 | MAP_FIXED_NOREPLACE,
			             -1, 0)
			        == addr
			    ? mesh_unsplice_done
			    : mesh_unsplice_lost;
		}
	}
	if (result == mesh_unsplice_done) {
		mesh_ehooks_alloc(addr, size);
	}
	if (locked && result != mesh_unsplice_lost) {
		(void)mlock(addr, size);
	}
	return result;
}

bool
mesh_unsplice_copy(void *addr, size_t size) {
	void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED) {
		return true;
	}
	memcpy(copy, addr, size);
	if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, addr)
	    == MAP_FAILED) {
		munmap(copy, size);
		return true;
	}
	return false;
}

/* One read of the list of mappings; n is negative, and errno set, on failure. */
static ssize_t
maps_read(void *buf, size_t size) {
	return syscall(SYS_read, maps_fd.fd, buf, size);
}

/* Opens it at path.  Returns true, and errno, if nothing can be read there. */
static bool
maps_open_at(const char *path) {
	int fd = malloc_open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1 || mesh_fd_set(&maps_fd, fd)) {
		return true;
	}
	char first;
	if (maps_read(&first, sizeof(first)) != sizeof(first)) {
		mesh_fd_drop(&maps_fd);
		set_errno(ENOENT);
		return true;
	}
	return false;
}

bool
mesh_splice_open(void) {
	/*
	 * /proc/self has none once the first thread has ended, the other one has
	 * none once this thread has.
	 */
	return !mesh_fd_valid(&maps_fd)
	    && (!mesh_fd_may_open()
	        || (maps_open_at("/proc/self/maps")
	            && maps_open_at("/proc/thread-self/maps")));
}

void
mesh_splice_postfork_child(void) {
	mesh_fd_drop(&maps_fd);
}

/* Whether jemalloc has a page, and not, say, the stack of a thread. */
static bool
page_in_heap(uintptr_t addr) {
	emap_full_alloc_ctx_t ctx;
	return !emap_full_alloc_ctx_try_lookup(
	           TSDN_NULL, &arena_emap_global, (void *)addr, &ctx)
	    && ctx.edata != NULL;
}

/* Whether a line is of what devices write to memory by. */
static bool
line_pins(const char *line) {
	return strstr(line, "[io_uring]") != NULL
	    || strstr(line, "/[aio]") != NULL
	    || strstr(line, "/dev/infiniband/") != NULL;
}

/* Whether a line, from its rights on, is of plain memory, ours or the kernel's. */
static bool
line_is_plain(const char *rights) {
	return memcmp(rights, "rw-", 3) == 0
	    && (strchr(rights, '/') == NULL
	        || strstr(rights, "/memfd:jemalloc-mesh") != NULL);
}

/* Takes in a mapping, from its line: "begin-end rwxp" and so on. */
static void
maps_line(const char *line, spans_t *spans) {
	char     *at;
	uintptr_t begin = (uintptr_t)malloc_strtoumax(line, &at, 16);
	uintptr_t end = *at == '-'
	    ? (uintptr_t)malloc_strtoumax(at + 1, &at, 16)
	    : 0;
	maps_pins |= line_pins(line);
	if (*at != ' ' || line_is_plain(at + 1) || !mesh_walk_covers(begin, end)
	    || (!page_in_heap(begin) && !page_in_heap(end - PAGE))) {
		return;
	}
	int prot = (at[1] == 'r' ? PROT_READ : 0)
	    | (at[2] == 'w' ? PROT_WRITE : 0) | (at[3] == 'x' ? PROT_EXEC : 0);
	if (spans->n == PROTECTED_MAX) {
		/* So many that what lies in between counts, too, as who knows what. */
		spans->spans[PROTECTED_MAX - 1].end = end;
		spans->spans[PROTECTED_MAX - 1].prot = PROT_READ | PROT_WRITE;
	} else {
		spans->spans[spans->n++] = (span_t){begin, end, prot};
	}
}

/* Counts the mappings.  Returns 0 and errno if they cannot be read. */
static size_t
maps_count(void) {
	if (mesh_splice_open()) {
		return 0;
	}
	/* Stacks may be small; the mesh lock guards these. */
	static char buf[4096];
	static char line[128];
	size_t      lines = 0, length = 0;
	ssize_t     n;
	uint32_t    at = !atomic_load_u32(&maps_spans_at, ATOMIC_RELAXED);
	spans_t    *spans = &maps_spans[at];
	spans->n = 0;
	maps_pins = false;
	lseek(maps_fd.fd, 0, SEEK_SET);
	while ((n = maps_read(buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			if (buf[i] == '\n') {
				line[length] = '\0';
				maps_line(line, spans);
				length = 0;
				lines++;
			} else if (length < sizeof(line) - 1) {
				line[length++] = buf[i];
			}
		}
	}
	if (n < 0 || lines == 0) {
		/* The thread that opened it has ended. */
		mesh_fd_drop(&maps_fd);
		set_errno(ENOENT);
		return 0;
	}
	atomic_store_u32(&maps_spans_at, at, ATOMIC_RELEASE);
	return lines;
}

/*
 * Counts the mappings, unless that was done just now: the kernel has merged some
 * since, or the program has changed its own.  Returns true, and errno, if they
 * cannot be counted.
 */
static bool
maps_recount(void) {
	nstime_t begin, end;
	nstime_init_update(&begin);
	if (!nstime_equals_zero(&maps_counted_at)
	    && nstime_ns_between(&maps_counted_at, &begin) < maps_interval_ns) {
		return false;
	}
	size_t count = maps_count();
	if (count == 0) {
		return true;
	}
	nstime_init_update(&end);
	nstime_copy(&maps_counted_at, &end);
	maps_interval_ns = nstime_ns_between(&begin, &end) * MAPS_COUNT_SHARE;
	if (maps_interval_ns < MAPS_COUNT_INTERVAL_NS) {
		maps_interval_ns = MAPS_COUNT_INTERVAL_NS;
	}
	atomic_store_zu(&maps_bound, count, ATOMIC_RELAXED);
	maps_counted = count;
	return false;
}

/*
 * The protected mappings from the first that does not end before addr; *end is where
 * the list ends.
 */
static const span_t *
spans_find(const void *addr, const span_t **end) {
	const spans_t *spans =
	    &maps_spans[atomic_load_u32(&maps_spans_at, ATOMIC_ACQUIRE)];
	size_t lo = 0, hi = spans->n;
	*end = &spans->spans[hi];
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (spans->spans[mid].end <= (uintptr_t)addr) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return &spans->spans[lo];
}

void
mesh_splice_look(void) {
	(void)maps_recount();
}

void
mesh_splice_rest(void) {
	if (mesh_splice_maps() != maps_counted && mesh_fd_valid(&maps_fd)) {
		mesh_splice_recount();
		(void)maps_recount();
	}
}

bool
mesh_splice_protected(const void *addr, size_t size) {
	const span_t *end, *span = spans_find(addr, &end);
	return span < end && span->begin < (uintptr_t)addr + size;
}

bool
mesh_splice_protected_now(const void *addr, size_t size) {
	uintptr_t at = (uintptr_t)addr, end = at + size;
	while (at < end && mesh_fd_valid(&maps_fd)) {
		procmap_query_t query = {.size = sizeof(query), .addr = at};
		if (syscall(SYS_ioctl, maps_fd.fd, PROCMAP_QUERY, &query)
		    != 0) {
			break;
		}
		if ((query.vma_flags & PROCMAP_RIGHTS) != PROCMAP_READ_WRITE) {
			return true;
		}
		at = (uintptr_t)query.vma_end;
	}
	return false;
}

int
mesh_splice_prot(const void *addr, size_t size) {
	int           prot = PROT_READ | PROT_WRITE;
	const span_t *end, *span = spans_find(addr, &end);
	for (; span < end && span->begin < (uintptr_t)addr + size; span++) {
		prot |= span->prot;
	}
	return prot;
}

void
mesh_splice_protect(void *addr, size_t size) {
	uintptr_t     begin = (uintptr_t)addr, stop = begin + size;
	const span_t *end, *span = spans_find(addr, &end);
	for (; span < end && span->begin < stop; span++) {
		uintptr_t from = span->begin > begin ? span->begin : begin;
		uintptr_t to = span->end < stop ? span->end : stop;
		(void)mprotect((void *)from, to - from, span->prot);
	}
}

bool
mesh_splice_pins(void) {
	return maps_pins;
}

bool
mesh_splice_room(size_t n) {
	size_t need = n * MESH_MAPS_PER_SPLICE;
	if (mesh_splice_maps() + need <= maps_max) {
		return true;
	}
	if (maps_recount()) {
		return false;
	}
	if (mesh_splice_maps() + need <= maps_max) {
		return true;
	}
	/* No system call of ours fails with it. */
	set_errno(E2BIG);
	return false;
}

bool
mesh_splice_left(size_t *left) {
	if (mesh_splice_maps() > maps_max / 2 && maps_recount()) {
		return true;
	}
	size_t maps = mesh_splice_maps();
	*left = maps < maps_max ? maps_max - maps : 0;
	return false;
}

void
mesh_splice_recount(void) {
	nstime_init_zero(&maps_counted_at);
}

bool
mesh_unsplice_room(bool whole) {
	size_t max = maps_hard + (whole ? maps_max / MAPS_SPARE_SHARE : 0);
	if (mesh_splice_maps() + MESH_MAPS_PER_SPLICE > max) {
		return false;
	}
	atomic_fetch_add_zu(&maps_bound, MESH_MAPS_PER_SPLICE, ATOMIC_RELAXED);
	return true;
}

void
mesh_splice_boot(void) {
	maps_max = opt_mesh_max_maps;
	if (maps_max == 0) {
		size_t limit = MAPS_LIMIT_DEFAULT;
		char   buf[32];
		if (!mesh_fd_read_text(AT_FDCWD, "/proc/sys/vm/max_map_count",
		        buf, sizeof(buf))) {
			limit = (size_t)malloc_strtoumax(buf, NULL, 10);
		}
		/* The rest is the program's own, or for slabs that part. */
		maps_max = limit - limit / 4;
	}
	maps_hard = maps_max + maps_max / 8;
	maps_distrust();
}

size_t
mesh_splice_maps(void) {
	return atomic_load_zu(&maps_bound, ATOMIC_RELAXED);
}

size_t
mesh_splice_maps_max(void) {
	return maps_max;
}
