/*
 * The pattern of the Mesh paper's Ruby program, for strings.py, which preloads the
 * malloc to be measured:
 *
 *	strings BYTES FIRST LAST SECONDS SEED
 *
 * fills up to BYTES with strings of FIRST bytes, keeps a quarter of all strings at
 * random, idles, and goes on with strings twice as long, until LAST; then it idles
 * for longer.  strings.rb does the same.
 */

#define _GNU_SOURCE
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One string of so many is kept. */
#define KEPT_ONE_OF 4
/* Idle times of a round that the program idles in the end. */
#define IDLE_ROUNDS 10

int
main(int argc, char **argv) {
	if (argc != 6) {
		fprintf(
		    stderr, "usage: strings BYTES FIRST LAST SECONDS SEED\n");
		return 2;
	}
	size_t   limit = number_parse(argv[1]), first = number_parse(argv[2]);
	size_t   last = number_parse(argv[3]), nbytes = 0, n = 0;
	unsigned seconds = (unsigned)number_parse(argv[4]);
	rng_t    rng = {number_parse(argv[5])};

	/* All of it present, so that it does not grow with the heap. */
	size_t table = (limit / first + 1) * sizeof(char *);
	char **strings = outside_alloc(table);
	memset(strings, 1, table);
	report_phase("begin", "\"table\": %zu", table);
	for (size_t length = first; length <= last; length *= 2) {
		char name[64];
		while (nbytes + length <= limit) {
			/* The last byte is the terminator. */
			char *string = malloc(length);
			memset(string, 'a' + (int)(n % 26), length - 1);
			string[length - 1] = '\0';
			strings[n++] = string;
			nbytes += length;
		}
		snprintf(name, sizeof(name), "filled %zu", length);
		report_phase(name, "\"live\": %zu", nbytes);
		size_t kept = 0;
		for (size_t i = 0; i < n; i++) {
			if (rng_below(&rng, KEPT_ONE_OF) == 0) {
				strings[kept++] = strings[i];
			} else {
				nbytes -= strlen(strings[i]) + 1;
				free(strings[i]);
			}
		}
		n = kept;
		sleep(seconds);
		snprintf(name, sizeof(name), "kept %zu", length);
		report_phase(name, "\"live\": %zu", nbytes);
	}
	sleep(IDLE_ROUNDS * seconds);
	report_phase("idled", "\"live\": %zu", nbytes);
	return 0;
}
