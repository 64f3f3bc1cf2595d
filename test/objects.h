#ifndef MESH_TEST_OBJECTS_H
#define MESH_TEST_OBJECTS_H

/*
 * Heap objects whose every byte is known.
 *
 * An object's words follow from its id, its version and their place.  One word,
 * the counter, is moreover incremented from time to time.  How often is kept in
 * the object_t, outside of the heap: an increment that got lost leaves the
 * object wrong for good.
 */

#include "util.h"

typedef struct {
	unsigned char *p;
	uint64_t       id;
	/* Increments of the counter word since the object was written. */
	uint64_t count;
	/* Usable size; all of it is written and checked. */
	uint32_t size;
	uint32_t version;
} object_t;

/* Makes an object of fresh memory and writes it. */
object_t object_init(void *p, uint64_t id);
/* Writes the words of the object as they should be to dst. */
void object_image(const object_t *o, void *dst);
/* Writes a new version of the object. */
void object_rewrite(object_t *o);
/* Whether the first size bytes at p differ from what the object should hold. */
bool object_prefix_bad(const object_t *o, const void *p, size_t size);
bool object_bad(const object_t *o);
/* Says on stderr what is wrong with a bad object; for the first few only. */
void object_report(const object_t *o);

/* Index of the counter word. */
size_t object_counter(const object_t *o);

/*
 * The increment.  The heap is written before the count, so whoever sees a
 * prefix of these writes, as a forked child does, is behind by at most one.
 */
static inline void
object_bump(object_t *o) {
	volatile uint64_t *word = (uint64_t *)o->p + object_counter(o);
	*word = *word + 1;
	*(volatile uint64_t *)&o->count = o->count + 1;
}

/* The objects of one thread. */
typedef struct {
	object_t *objects;
	size_t    n;
	size_t    max;
	uint64_t  next_id;
	rng_t     rng;
} table_t;

void table_init(table_t *t, size_t max, uint64_t seed, uint64_t first_id);
/* Adds an object made of p, which malloc and the like returned. */
object_t *table_add(table_t *t, void *p);
/* Adds an object of another table. */
object_t *table_adopt(table_t *t, object_t o);
/* Takes the object out of the table; does not free it. */
object_t table_remove(table_t *t, object_t *o);
/* An object at random; the table may not be empty. */
object_t *table_pick(table_t *t);

/* Bytes of all objects. */
size_t table_bytes(const table_t *t);
/*
 * Allocates objects until all have so many bytes; the new ones are of three
 * random sizes, with equally many bytes of each.
 */
void table_fill(table_t *t, size_t bytes, size_t size_min, size_t size_max);
/* Allocates n objects of a size.  Returns how many malloc() had no memory for. */
size_t table_fill_some(table_t *t, size_t n, size_t size);
/* Which objects survive when a share of them shall. */
typedef enum {
	thin_random,
	/* Every k-th, in the order of allocation. */
	thin_every,
	/* Sixteen neighbours survive or not together. */
	thin_neighbours,
	thin_npatterns
} thin_t;

/* Checks and frees all but the share live.  Returns how many were bad. */
size_t table_thin(table_t *t, double live, thin_t pattern);
/* Checks and frees all objects.  Returns how many were bad. */
size_t table_free(table_t *t);
/*
 * Checks and frees all, allocates n of a size, and frees these but for the share live at
 * random.  Returns how many were bad.
 */
size_t table_renew(table_t *t, size_t n, size_t size, double live);
/* Checks all objects; bad ones are reported and written anew. */
size_t table_check(table_t *t);

#endif /* MESH_TEST_OBJECTS_H */
