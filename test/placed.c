/*
 * Where objects come to lie that are allocated one after the other: of 32 and of 256
 * bytes, many of each.  Prints as JSON, by size, the shares of them that lie in the
 * cache line of the one before, and right behind it in memory; how many places in a
 * page the first object of a page has had; and how many objects lie where another
 * one does.
 */
#include "util.h"

#include <stdio.h>
#include <stdlib.h>

#define NOBJECTS 32768
#define LINE 64
#define PAGE 4096

static int
address_compare(const void *a, const void *b) {
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
	return (x > y) - (x < y);
}

static void
place(size_t size) {
	uintptr_t *at = outside_alloc(NOBJECTS * sizeof(*at));
	bool      *first = outside_alloc(PAGE * sizeof(*first));
	size_t     in_line = 0, behind = 0, nfirst = 0, again = 0;
	for (size_t i = 0; i < NOBJECTS; i++) {
		at[i] = (uintptr_t)malloc(size);
		if (i == 0 || at[i] / PAGE != at[i - 1] / PAGE) {
			nfirst += !first[at[i] % PAGE];
			first[at[i] % PAGE] = true;
		}
		in_line += i > 0 && at[i] / LINE == at[i - 1] / LINE;
		behind += i > 0 && at[i] == at[i - 1] + size;
	}
	qsort(at, NOBJECTS, sizeof(*at), address_compare);
	for (size_t i = 1; i < NOBJECTS; i++) {
		again += at[i] < at[i - 1] + size;
	}
	printf(
	    "\"%zu\": {\"in_line\": %.3f, \"behind\": %.3f, \"first\": %zu,"
	    " \"again\": %zu}",
	    size, (double)in_line / NOBJECTS, (double)behind / NOBJECTS, nfirst,
	    again);
}

int
main(void) {
	putchar('{');
	place(32);
	printf(", ");
	place(256);
	printf("}\n");
	return 0;
}
