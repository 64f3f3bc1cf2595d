/*
 * What programs do to jemalloc's arenas, caches and background threads while the
 * heap is meshed: custom extent hooks, manual arenas, migrating threads.
 *
 * usage: arenas SCENARIO [ARG]
 */
#define _GNU_SOURCE
#include "scenario.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <jemalloc/jemalloc.h>

#define PAGE ((size_t)4096)
#define MIB ((size_t)1 << 20)

/* mallctl() that has to work. */
static void
ctl(const char *name, void *old, size_t old_size, void *new, size_t new_size) {
	errno = mallctl(
	    name, old, old != NULL ? &old_size : NULL, new, new_size);
	if (errno != 0) {
		die(name);
	}
}

static void
ctl_write_bool(const char *name, bool value) {
	ctl(name, NULL, 0, &value, sizeof(value));
}

static unsigned
ctl_read_unsigned(const char *name) {
	unsigned value;
	ctl(name, &value, sizeof(value), NULL, 0);
	return value;
}

/* mallctl() of arena.<i>.what, without a value; the error. */
static int
arena_do(unsigned arena, const char *what) {
	char name[64];
	snprintf(name, sizeof(name), "arena.%u.%s", arena, what);
	return mallctl(name, NULL, NULL, NULL, 0);
}

/******************************************************************************/
/* Extent hooks of the program's own: the default ones, which look first. */

static extent_hooks_t *hooks_default;

static void
hook_look(void *addr, size_t size) {
	int saved_errno = errno;
	results->count++;
	/* Not expect(): stdio allocates. */
	results->lost += mesh_range(addr, size);
	errno = saved_errno;
}

static void *
hook_alloc(extent_hooks_t *hooks, void *addr, size_t size, size_t alignment,
    bool *zero, bool *commit, unsigned arena) {
	(void)hooks;
	return hooks_default->alloc(
	    hooks_default, addr, size, alignment, zero, commit, arena);
}

static bool
hook_dalloc(extent_hooks_t *hooks, void *addr, size_t size, bool committed,
    unsigned arena) {
	(void)hooks, (void)committed, (void)arena;
	hook_look(addr, size);
	/* Unlike the default hook, which would rather retain it. */
	return munmap(addr, size) != 0;
}

static bool
hook_purge_lazy(extent_hooks_t *hooks, void *addr, size_t size, size_t offset,
    size_t length, unsigned arena) {
	(void)hooks;
	hook_look((char *)addr + offset, length);
	return hooks_default->purge_lazy(
	    hooks_default, addr, size, offset, length, arena);
}

static bool
hook_purge_forced(extent_hooks_t *hooks, void *addr, size_t size, size_t offset,
    size_t length, unsigned arena) {
	(void)hooks;
	hook_look((char *)addr + offset, length);
	return hooks_default->purge_forced(
	    hooks_default, addr, size, offset, length, arena);
}

static bool
hook_split(extent_hooks_t *hooks, void *addr, size_t size, size_t size_a,
    size_t size_b, bool committed, unsigned arena) {
	(void)hooks;
	hook_look(addr, PAGE);
	return hooks_default->split(
	    hooks_default, addr, size, size_a, size_b, committed, arena);
}

static bool
hook_merge(extent_hooks_t *hooks, void *addr_a, size_t size_a, void *addr_b,
    size_t size_b, bool committed, unsigned arena) {
	(void)hooks;
	hook_look(addr_a, PAGE);
	hook_look(addr_b, PAGE);
	return hooks_default->merge(
	    hooks_default, addr_a, size_a, addr_b, size_b, committed, arena);
}

static extent_hooks_t hooks_retaining = {.alloc = hook_alloc,
    .purge_lazy = hook_purge_lazy,
    .purge_forced = hook_purge_forced,
    .split = hook_split,
    .merge = hook_merge};

static extent_hooks_t hooks_unmapping = {.alloc = hook_alloc,
    .dalloc = hook_dalloc,
    .purge_lazy = hook_purge_lazy,
    .purge_forced = hook_purge_forced,
    .split = hook_split,
    .merge = hook_merge};

/* Gives all automatic arenas these hooks, those not in use yet too. */
static void
hooks_set(extent_hooks_t *hooks) {
	unsigned narenas = ctl_read_unsigned("opt.narenas");
	for (unsigned i = 0; i < narenas; i++) {
		char            name[64];
		extent_hooks_t *old;
		snprintf(name, sizeof(name), "arena.%u.extent_hooks", i);
		ctl(name, &old, sizeof(old), &hooks, sizeof(hooks));
	}
}

/*
 * Custom hooks are set while slabs are meshed, which die under them; and set
 * back.  Arenas that ever had some mesh no more.
 */
static void
run_hooks(void) {
	extent_hooks_t *hooks = strcmp(scenario_arg, "unmap") == 0
	    ? &hooks_unmapping
	    : &hooks_retaining;
	static table_t  t;
	ctl("arena.0.extent_hooks", &hooks_default, sizeof(hooks_default), NULL,
	    0);
	load_start(3);
	sleep_ms(200);
	expect(!mesh_built() || nfollowers() > 100, "slabs are meshed");
	hooks_set(hooks);
	/* A pass under way may end. */
	mesh_pass();
	uint64_t before = nmeshes();
	held_rewrite();
	for (unsigned i = 0; i < 5; i++) {
		churn(&held, 4 * MIB);
		churn(&t, 8 * MIB);
		free(calloc(1, 4 * MIB));
		ctl_do("arena.4096.purge");
		mesh_pass();
	}
	/* New threads, which begin in arenas that nobody has used. */
	load_stop();
	load_start(6);
	sleep_ms(200);
	expect(nmeshes() == before, "nothing is meshed under custom hooks");
	hooks_set(hooks_default);
	churn(&held, 4 * MIB);
	load_stop();
	churn(&t, 8 * MIB);
	expect(nmeshes() == before, "nor after them");
	results->bad += table_free(&t);
	results->bad += table_free(&held);
	ctl_do("thread.tcache.flush");
	ctl_do("arena.4096.purge");
	mesh_pass();
	expect(nfollowers() == 0, "all that was meshed is released");
	expect(results->lost == 0, "no hook sees a meshed range");
	expect(!mesh_built() || results->count > 100, "hooks were called");
}

/******************************************************************************/
/* Manual arenas. */

static void
manual_fill(table_t *t, unsigned arena, size_t bytes) {
	for (size_t filled = 0, size; filled < bytes; filled += size) {
		size = rng_size(&t->rng, 16, 4096);
		table_add(t,
		    mallocx(size, MALLOCX_ARENA(arena) | MALLOCX_TCACHE_NONE));
	}
}

static void
manual_thin(table_t *t) {
	size_t n = 0;
	for (size_t i = 0; i < t->n; i++) {
		if (i % 10 == 0) {
			t->objects[n++] = t->objects[i];
		} else {
			dallocx(t->objects[i].p, MALLOCX_TCACHE_NONE);
		}
	}
	t->n = n;
}

/* Manual arenas, with hooks and without, are used, reset and destroyed. */
static void
run_manual(void) {
	extent_hooks_t *hooks = &hooks_retaining;
	ctl("arena.0.extent_hooks", &hooks_default, sizeof(hooks_default), NULL,
	    0);
	load_start(2);
	for (unsigned i = 0; i < 8; i++) {
		table_t  t;
		unsigned arena;
		ctl("arenas.create", &arena, sizeof(arena),
		    i % 2 ? &hooks : NULL, i % 2 ? sizeof(hooks) : 0);
		table_init(&t, 100000, i, (uint64_t)(i + 1) << 48);
		for (unsigned round = 0; round < 2; round++) {
			manual_fill(&t, arena, 4 * MIB);
			manual_thin(&t);
			mesh_pass();
			arena_do(arena, "mesh");
			check(&t);
			for (size_t j = 0; j < t.n; j++) {
				results->lost += mesh_range(
				    t.objects[j].p, t.objects[j].size);
			}
			if (arena_do(arena, "reset") != 0) {
				die("reset");
			}
			t.n = 0;
		}
		manual_fill(&t, arena, 4 * MIB);
		manual_thin(&t);
		check(&t);
		if (arena_do(arena, "destroy") != 0) {
			die("destroy");
		}
		munmap(t.objects, t.max * sizeof(object_t));
		/* Automatic arenas refuse both, meshed or not. */
		expect(arena_do(0, "reset") == EFAULT
		        && arena_do(0, "destroy") == EFAULT,
		    "automatic arenas are not reset");
		churn(&held, 4 * MIB);
	}
	expect(results->lost == 0, "nothing of a manual arena is meshed");
}

static atomic_bool stop;

/* Goes from arena to arena, and uses caches of its own making. */
static void *
migrant_main(void *arg) {
	table_t  t;
	unsigned narenas = ctl_read_unsigned("opt.narenas");
	unsigned manual = *(unsigned *)arg;
	table_init(&t, 100000, (uintptr_t)pthread_self(),
	    (uint64_t)(uintptr_t)pthread_self() << 16);
	for (unsigned i = 0; !stop; i++) {
		unsigned arena = i % 5 == 4 ? manual : i % narenas;
		unsigned cache = ctl_read_unsigned("tcache.create");
		ctl("thread.arena", NULL, 0, &arena, sizeof(arena));
		for (unsigned j = 0; j < 4000; j++) {
			size_t size = rng_size(&t.rng, 16, 4096);
			table_add(&t,
			    j % 2 ? malloc(size)
			          : mallocx(size, MALLOCX_TCACHE(cache)));
		}
		check(&t);
		for (unsigned j = 0; j < 3600; j++) {
			object_t o = table_remove(&t, table_pick(&t));
			results->bad += object_bad(&o);
			dallocx(o.p, j % 2 ? 0 : MALLOCX_TCACHE(cache));
		}
		if (i % 2) {
			ctl("tcache.flush", NULL, 0, &cache, sizeof(cache));
		}
		ctl("tcache.destroy", NULL, 0, &cache, sizeof(cache));
		ctl_write_bool("thread.tcache.enabled", i % 3 != 0);
		if (t.n > 20000) {
			results->bad += table_thin(&t, 0.1, thin_random);
		}
	}
	check(&t);
	results->bad += table_free(&t);
	return NULL;
}

static void
run_migrants(void) {
	pthread_t threads[3];
	unsigned  manual = ctl_read_unsigned("arenas.create");
	for (unsigned i = 0; i < 3; i++) {
		thread_start(&threads[i], migrant_main, &manual);
	}
	for (unsigned i = 0; i < 10; i++) {
		sleep_ms(100);
		churn(&held, 4 * MIB);
	}
	stop = true;
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(threads[i], NULL);
	}
}

/******************************************************************************/
/* Background threads come and go at run time. */

static void
run_toggle(void) {
	load_start(2);
	for (size_t i = 0; i < 40; i++) {
		size_t max = 1 + i % 4;
		ctl_write_bool("background_thread", i % 2);
		ctl("max_background_threads", NULL, 0, &max, sizeof(max));
		if (i % 10 == 5) {
			pid_t pid = fork_or_die();
			if (pid == 0) {
				uint64_t before = nmeshes();
				churn(&held, 8 * MIB);
				ctl_write_bool(
				    "background_thread", i % 20 == 5);
				churn(&held, 8 * MIB);
				child_end(before);
			}
			child_wait(pid, 0);
		}
		churn(&held, 4 * MIB);
	}
	load_stop();
	/* Off, and on again: either way meshing goes on by itself. */
	for (unsigned on = 0; on < 2; on++) {
		ctl_write_bool("background_thread", on);
		uint64_t before = nmeshes();
		uint64_t end = now_ns() + UINT64_C(60000000000);
		while (mesh_built() && nmeshes() == before) {
			expect(now_ns() < end, "meshing goes on");
			if (now_ns() > end) {
				break;
			}
			table_fill(&held, 4 * MIB, 16, 2048);
			results->bad += table_thin(&held, 0.1, thin_random);
			ctl_do("thread.tcache.flush");
			sleep_ms(1);
		}
	}
}

int
main(int argc, char **argv) {
	static const scenario_t scenarios[] = {
	    {"hooks", run_hooks},
	    {"manual", run_manual},
	    {"migrants", run_migrants},
	    {"toggle", run_toggle},
	};
	return scenario_main(
	    argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
