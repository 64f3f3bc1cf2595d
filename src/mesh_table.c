/*
 * The table: the spliced ranges of a process at a fork, by address, and which of
 * them have got private views since.
 *
 * A state is written after what it says was done: whatever a child finds in its
 * copy of the table, it has lost nothing.
 *
 * Called by mesh_view, whose lock guards the states.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_range.h"
#include "jemalloc/internal/mesh_splice.h"
#include "jemalloc/internal/mesh_table.h"
#include "jemalloc/internal/mesh_waiter.h"

#include <sys/mman.h>

/* Digits that it is sorted by, and how few ranges are sorted without. */
#define LG_RADIX 6
#define RADIX (1U << LG_RADIX)
#define INSERTION_MAX 24

bool
mesh_table_begin(mesh_table_t *table, size_t max) {
	size_t size = PAGE_CEILING(max * sizeof(mesh_range_t));
	bool   huge = size >= HUGEPAGE;
	bool   commit = true;
	size = huge ? HUGEPAGE_CEILING(size) : size;
	table->ranges = (mesh_range_t *)pages_map(
	    NULL, size, huge ? HUGEPAGE : PAGE, &commit);
	table->n = 0;
	table->size = size;
	if (table->ranges == NULL) {
		return true;
	}
	if (huge) {
		/* Thousands of page faults would take longer than the rest. */
		(void)pages_huge(table->ranges, size);
	}
	return false;
}

void
mesh_table_add(
    mesh_table_t *table, const edata_t *slab, const edata_t *leader) {
	size_t npages = edata_size_get(slab) >> LG_PAGE;
	assert(npages < PAGE && mesh_range_shared == 0);
	assert((table->n + 1) * sizeof(mesh_range_t) <= table->size);
	table->ranges[table->n++] = (mesh_range_t){
	    .addr_npages = (uintptr_t)edata_addr_get(slab) | npages,
	    .leader_state = (uintptr_t)edata_addr_get(leader)};
}

void
mesh_table_drop(mesh_table_t *table) {
	pages_unmap(table->ranges, table->size);
	*table = (mesh_table_t){0};
}

static void
ranges_sort_by_insertion(mesh_range_t *ranges, size_t n) {
	for (size_t i = 1; i < n; i++) {
		mesh_range_t range = ranges[i];
		size_t       j = i;
		for (; j > 0 && ranges[j - 1].addr_npages > range.addr_npages;
		     j--) {
			ranges[j] = ranges[j - 1];
		}
		ranges[j] = range;
	}
}

/*
 * Sorts n ranges that differ only in the bits of their addresses below end, in
 * place: by the highest digit first ("American flag sort", McIlroy, Bostic and
 * McIlroy, 1993).  It takes no memory that would have to be faulted in.
 */
static void
ranges_sort(mesh_range_t *ranges, size_t n, unsigned end) {
	if (n <= INSERTION_MAX || end <= LG_PAGE) {
		ranges_sort_by_insertion(ranges, n);
		return;
	}
	unsigned shift = end > LG_PAGE + LG_RADIX ? end - LG_RADIX : LG_PAGE;
	uint32_t next[RADIX], stop[RADIX] = {0};
	for (size_t i = 0; i < n; i++) {
		stop[(ranges[i].addr_npages >> shift) & (RADIX - 1)]++;
	}
	uint32_t before = 0;
	for (unsigned d = 0; d < RADIX; d++) {
		next[d] = before;
		before += stop[d];
		stop[d] = before;
	}
	for (unsigned d = 0; d < RADIX; d++) {
		while (next[d] < stop[d]) {
			/* What is in its way goes on to where it belongs. */
			mesh_range_t range = ranges[next[d]];
			unsigned     to;
			while ((to = (unsigned)(range.addr_npages >> shift)
			               & (RADIX - 1))
			    != d) {
				mesh_range_t other = ranges[next[to]];
				ranges[next[to]++] = range;
				range = other;
			}
			ranges[next[d]++] = range;
		}
	}
	for (unsigned d = 0; d < RADIX; d++) {
		uint32_t begin = d > 0 ? stop[d - 1] : 0;
		ranges_sort(&ranges[begin], stop[d] - begin, shift);
	}
}

void
mesh_table_sort(mesh_table_t *table) {
	uintptr_t differ = PAGE;
	for (size_t i = 1; i < table->n; i++) {
		differ |= mesh_range_addr(&table->ranges[i])
		    ^ mesh_range_addr(&table->ranges[0]);
	}
	ranges_sort(table->ranges, table->n, lg_floor(differ) + 1);
}

mesh_range_t *
mesh_table_find(const mesh_table_t *table, uintptr_t addr) {
	size_t lo = 0, hi = table->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (mesh_range_end(&table->ranges[mid]) <= addr) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return lo < table->n && mesh_range_addr(&table->ranges[lo]) <= addr
	    ? &table->ranges[lo]
	    : NULL;
}

/* Whether the range after this one, a shared one, goes on where it ends. */
static bool
range_continues(const mesh_range_t *range) {
	return mesh_range_state(&range[0]) == mesh_range_shared
	    && mesh_range_state(&range[1]) == mesh_range_shared
	    && mesh_range_end(&range[0]) == mesh_range_addr(&range[1]);
}

bool
mesh_table_next_shared(const mesh_table_t *table, size_t *i, size_t stop,
    uintptr_t *start, size_t *size) {
	while (*i < stop
	    && mesh_range_state(&table->ranges[*i]) != mesh_range_shared) {
		(*i)++;
	}
	if (*i == stop) {
		return false;
	}
	const mesh_range_t *first = &table->ranges[*i], *last = first;
	while (last + 1 < &table->ranges[stop] && range_continues(last)) {
		last++;
	}
	*i = (size_t)(last + 1 - table->ranges);
	*start = mesh_range_addr(first);
	*size = mesh_range_end(last) - *start;
	return true;
}

/* The same, in the store as well. */
static bool
range_continues_in_store(const mesh_range_t *range) {
	return range_continues(range)
	    && mesh_range_leader(&range[0]) + mesh_range_size(&range[0])
	    == mesh_range_leader(&range[1]);
}

bool
mesh_table_make_private(mesh_table_t *table, mesh_range_t *range, int fd,
    uintptr_t *start, size_t *size) {
	mesh_range_t *first = range, *last = range;
	while (first > table->ranges && range_continues_in_store(first - 1)) {
		first--;
	}
	while (last + 1 < &table->ranges[table->n]
	    && range_continues_in_store(last)) {
		last++;
	}
	void *addr = (void *)mesh_range_addr(first);
	*start = mesh_range_addr(first);
	*size = mesh_range_end(last) - *start;
	/* What the program has made of its pages stays so. */
	bool     locked = mesh_range_locked(addr, *size);
	int      prot = mesh_splice_prot(addr, *size);
	unsigned tries = 0;
	while (mmap(addr, *size, prot,
	           MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
	           (off_t)mesh_range_leader(first))
	    == MAP_FAILED) {
		if (!mesh_range_try_again(addr, *size, &tries)) {
			return true;
		}
	}
	mesh_splice_protect(addr, *size);
	if (locked) {
		(void)mlock(addr, *size);
	}
	/* Not before: see above. */
	atomic_fence(ATOMIC_RELEASE);
	for (mesh_range_t *r = first; r <= last; r++) {
		mesh_range_state_set(r, mesh_range_private);
	}
	mesh_waiter_note(addr, *size);
	return false;
}
