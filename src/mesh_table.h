#ifndef JEMALLOC_INTERNAL_MESH_TABLE_H
#define JEMALLOC_INTERNAL_MESH_TABLE_H

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/edata.h"

typedef enum {
	/* The store's, which parent and child have in common. */
	mesh_range_shared,
	/* It has its own view. */
	mesh_range_private,
	/* It was given back. */
	mesh_range_gone
} mesh_range_state_t;

/* A slab's range.  Small, as there are many, made while all threads wait. */
typedef struct mesh_range_s mesh_range_t;
struct mesh_range_s {
	/* Its address, and in the low bits its number of pages. */
	uintptr_t addr_npages;
	/*
	 * Where in the store it is, the address of the leader, and in the low
	 * bits its mesh_range_state_t.
	 */
	uintptr_t leader_state;
};

/* Ranges sorted by address. */
typedef struct mesh_table_s mesh_table_t;
struct mesh_table_s {
	mesh_range_t *ranges;
	size_t        n;
	/* Of the mapping that they are in. */
	size_t size;
};

static inline uintptr_t
mesh_range_addr(const mesh_range_t *range) {
	return range->addr_npages & ~(uintptr_t)PAGE_MASK;
}

static inline size_t
mesh_range_size(const mesh_range_t *range) {
	return (size_t)(range->addr_npages & PAGE_MASK) << LG_PAGE;
}

static inline uintptr_t
mesh_range_end(const mesh_range_t *range) {
	return mesh_range_addr(range) + mesh_range_size(range);
}

static inline uintptr_t
mesh_range_leader(const mesh_range_t *range) {
	return range->leader_state & ~(uintptr_t)PAGE_MASK;
}

static inline mesh_range_state_t
mesh_range_state(const mesh_range_t *range) {
	return (mesh_range_state_t)(range->leader_state & PAGE_MASK);
}

static inline void
mesh_range_state_set(mesh_range_t *range, mesh_range_state_t state) {
	range->leader_state = mesh_range_leader(range) | (uintptr_t)state;
}

/*
 * Begins a table of max ranges at most; returns true if there is no memory for it.
 * Shared ranges are added in any order, and sorted in the end.
 */
bool mesh_table_begin(mesh_table_t *table, size_t max);
void mesh_table_add(
    mesh_table_t *table, const edata_t *slab, const edata_t *leader);
void mesh_table_sort(mesh_table_t *table);
void mesh_table_drop(mesh_table_t *table);

/* The range that addr lies in, or NULL. */
mesh_range_t *mesh_table_find(const mesh_table_t *table, uintptr_t addr);
/*
 * The next shared ranges that lie side by side, from *i on and before stop: size
 * bytes from start on.  Returns false if there is none; *i is what comes then.
 */
bool mesh_table_next_shared(const mesh_table_t *table, size_t *i, size_t stop,
    uintptr_t *start, size_t *size);
/*
 * Gives a shared range its view, by a descriptor of the store, and its
 * neighbours with which it is one mapping: to divide it might need more mappings
 * than there are.  Returns true if the kernel refused; what has changed else are
 * size bytes from start on.
 */
bool mesh_table_make_private(mesh_table_t *table, mesh_range_t *range, int fd,
    uintptr_t *start, size_t *size);

#endif /* JEMALLOC_INTERNAL_MESH_TABLE_H */
