#include "objects.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define STEP UINT64_C(0x9e3779b97f4a7c15)
#define REPORTS_MAX 10

static uint64_t
object_key(const object_t *o) {
	return mix64(o->id ^ ((uint64_t)o->version << 44));
}

static uint64_t
object_word(const object_t *o, uint64_t key, size_t counter, size_t i) {
	return (key ^ (i * STEP)) + (i == counter ? o->count : 0);
}

size_t
object_counter(const object_t *o) {
	return (size_t)mix64(o->id) % (o->size / sizeof(uint64_t));
}

object_t
object_init(void *p, uint64_t id) {
	if (p == NULL) {
		die("out of memory");
	}
	object_t o = {
	    .p = p, .id = id, .size = (uint32_t)malloc_usable_size(p)};
	object_image(&o, p);
	return o;
}

void
object_image(const object_t *o, void *dst) {
	uint64_t *words = dst;
	uint64_t  key = object_key(o);
	size_t    counter = object_counter(o);
	for (size_t i = 0; i < o->size / sizeof(uint64_t); i++) {
		words[i] = object_word(o, key, counter, i);
	}
}

void
object_rewrite(object_t *o) {
	o->version++;
	o->count = 0;
	object_image(o, o->p);
}

bool
object_prefix_bad(const object_t *o, const void *p, size_t size) {
	const uint64_t *words = p;
	uint64_t        key = object_key(o);
	size_t          counter = object_counter(o);
	size_t          n = size / sizeof(uint64_t);
	uint64_t        wrong = 0;
	for (size_t i = 0; i < n; i++) {
		wrong |= words[i] ^ object_word(o, key, counter, i);
	}
	return wrong != 0;
}

bool
object_bad(const object_t *o) {
	return object_prefix_bad(o, o->p, o->size);
}

void
object_report(const object_t *o) {
	static atomic_uint nreports;
	if (atomic_fetch_add(&nreports, 1) >= REPORTS_MAX) {
		return;
	}
	const uint64_t *words = (const uint64_t *)o->p;
	uint64_t        key = object_key(o);
	size_t          counter = object_counter(o);
	size_t          nwrong = 0, first = 0;
	for (size_t i = o->size / sizeof(uint64_t); i-- > 0;) {
		if (words[i] != object_word(o, key, counter, i)) {
			nwrong++;
			first = i;
		}
	}
	fprintf(stderr,
	    "bad object: process %d, id %#llx at %p, %u bytes, version %u:"
	    " %zu words wrong from word %zu (%#llx)",
	    (int)getpid(), (unsigned long long)o->id, (void *)o->p, o->size,
	    o->version, nwrong, first, (unsigned long long)words[first]);
	if (nwrong == 1 && first == counter) {
		uint64_t lost = object_word(o, key, counter, first)
		    - words[first];
		fprintf(stderr, ", the counter: %lld of %llu increments lost",
		    (long long)lost, (unsigned long long)o->count);
	}
	fputc('\n', stderr);
}

void
table_init(table_t *t, size_t max, uint64_t seed, uint64_t first_id) {
	t->objects = outside_alloc(max * sizeof(object_t));
	t->n = 0;
	t->max = max;
	t->next_id = first_id;
	t->rng.state = seed;
}

object_t *
table_add(table_t *t, void *p) {
	return table_adopt(t, object_init(p, t->next_id++));
}

object_t *
table_adopt(table_t *t, object_t o) {
	object_t *place = &t->objects[t->n++];
	*place = o;
	return place;
}

object_t
table_remove(table_t *t, object_t *o) {
	object_t removed = *o;
	*o = t->objects[--t->n];
	return removed;
}

object_t *
table_pick(table_t *t) {
	return &t->objects[rng_below(&t->rng, (uint32_t)t->n)];
}

size_t
table_bytes(const table_t *t) {
	size_t bytes = 0;
	for (size_t i = 0; i < t->n; i++) {
		bytes += t->objects[i].size;
	}
	return bytes;
}

void
table_fill(table_t *t, size_t bytes, size_t size_min, size_t size_max) {
	size_t filled = table_bytes(t);
	for (size_t nsizes = 3; nsizes > 0 && filled < bytes; nsizes--) {
		size_t size = rng_size(&t->rng, size_min, size_max);
		size_t end = filled + (bytes - filled) / nsizes;
		while (filled < end && t->n < t->max) {
			filled += table_add(t, malloc(size))->size;
		}
	}
}

size_t
table_fill_some(table_t *t, size_t n, size_t size) {
	size_t nrefused = 0;
	for (size_t i = 0; i < n && t->n < t->max; i++) {
		void *p = malloc(size);
		if (p != NULL) {
			table_add(t, p);
		} else {
			nrefused++;
		}
	}
	return nrefused;
}

static bool
table_keeps(table_t *t, size_t i, double live, thin_t pattern, uint64_t salt) {
	switch (pattern) {
	case thin_every:
		return i % (size_t)(1 / live) == 0;
	case thin_neighbours:
		return unit(mix64(salt + i / 16)) < live;
	default:
		return unit(rng_next(&t->rng)) < live;
	}
}

static size_t
object_check_free(const object_t *o) {
	bool bad = object_bad(o);
	if (bad) {
		object_report(o);
	}
	free(o->p);
	return bad;
}

size_t
table_thin(table_t *t, double live, thin_t pattern) {
	uint64_t salt = rng_next(&t->rng);
	size_t   n = 0, nbad = 0;
	for (size_t i = 0; i < t->n; i++) {
		if (table_keeps(t, i, live, pattern, salt)) {
			t->objects[n++] = t->objects[i];
		} else {
			nbad += object_check_free(&t->objects[i]);
		}
	}
	t->n = n;
	return nbad;
}

size_t
table_free(table_t *t) {
	return table_thin(t, 0, thin_random);
}

size_t
table_renew(table_t *t, size_t n, size_t size, double live) {
	size_t nbad = table_free(t);
	if (table_fill_some(t, n, size) != 0) {
		die("malloc");
	}
	return nbad + table_thin(t, live, thin_random);
}

size_t
table_check(table_t *t) {
	size_t nbad = 0;
	for (size_t i = 0; i < t->n; i++) {
		object_t *o = &t->objects[i];
		if (object_bad(o)) {
			object_report(o);
			object_rewrite(o);
			nbad++;
		}
	}
	return nbad;
}
