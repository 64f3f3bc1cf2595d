/*
 * jemalloc's functions for a program that does not link it: looked up in a
 * library that is dlopen'ed, of its own names, while malloc() is the C library's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <jemalloc/jemalloc.h>

static void *lib;

/* Calls in the constructor's order of things come before it. */
static void *
lookup(const char *name) {
	if (lib == NULL) {
		lib = dlopen("libjemalloc.so.2", RTLD_NOW | RTLD_LOCAL);
	}
	void *function = lib != NULL ? dlsym(lib, name) : NULL;
	if (function == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(2);
	}
	return function;
}

#define FORWARD(type, name, parameters, arguments)                             \
	type name parameters {                                                 \
		static type(*function) parameters;                             \
		if (function == NULL) {                                        \
			*(void **)&function = lookup(#name);                   \
		}                                                              \
		return function arguments;                                     \
	}

FORWARD(void *, je_malloc, (size_t size), (size))
FORWARD(void *, je_calloc, (size_t n, size_t size), (n, size))
FORWARD(void *, je_realloc, (void *p, size_t size), (p, size))
FORWARD(void *, je_aligned_alloc, (size_t alignment, size_t size),
    (alignment, size))
FORWARD(void *, je_mallocx, (size_t size, int flags), (size, flags))
FORWARD(size_t, je_malloc_usable_size, (void *p), (p))
FORWARD(int, je_mallctl,
    (const char *name, void *old, size_t *old_size, void *new, size_t size),
    (name, old, old_size, new, size))

void
je_free(void *p) {
	static void (*function)(void *);
	if (function == NULL) {
		*(void **)&function = lookup("je_free");
	}
	function(p);
}

void
je_dallocx(void *p, int flags) {
	static void (*function)(void *, int);
	if (function == NULL) {
		*(void **)&function = lookup("je_dallocx");
	}
	function(p, flags);
}
