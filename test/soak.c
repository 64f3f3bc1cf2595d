/*
 * A long life in short: the heap is used in ways that drift, by threads that come
 * and go, while it is meshed and the process forks all the time.
 *
 * Each slot has a table of objects, on which one thread after the other works for
 * a while: it increments them, and frees and replaces them as a cache, a queue, a
 * program that grows its buffers, or one that loads much and drops most of it.
 * Sizes and the amount of memory follow slow waves.  Forkers take a slot's lock
 * and fork: the child must find every object of that slot exactly as it was; some
 * children live on, use their heap and check again.
 *
 * Every object is checked before it is freed, so that all writes are verified in
 * the end.  The whole is run twice, first briefly to warm up; after each run all
 * is freed and purged, and what the kernel and jemalloc still hold is printed, as
 * it is from time to time in between.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OBJECTS_MAX 200000
#define NSLOTS_MAX 16
#define NFORKERS_MAX 16
/* Children of one forker that live on. */
#define NLIVING_MAX 2
/* Objects that a child looks at if it is to end soon. */
#define NSAMPLED 500
#define SIZE_LARGE 40000
/* A storm of forks without pause takes half of that; meshing needs the other. */
#define STORM_NS UINT64_C(6000000000)

static const char usage[] =
    "usage: soak [-t slots] [-s seconds] [-w warm-up seconds] [-r seed]"
    " [-b MiB a slot]\n"
    "            [-f forkers] [-i ms between forks] [-p seconds between"
    " samples]\n"
    "            [-u file] [-d]\n"
    "  -i  0: storms of forks without pause\n"
    "  -u  a file whose number is part of each sample, as a cgroup's\n"
    "  -d  in the end wait for decay instead of purging\n";

static unsigned    nslots = 4;
static uint64_t    seconds = 60;
static uint64_t    warm_seconds = 3;
static uint64_t    seed = 1;
static size_t      bytes_max = (size_t)24 << 20;
static unsigned    nforkers = 1;
static uint64_t    fork_ms = 500;
static uint64_t    sample_seconds = 10;
static bool        with_decay;
static const char *usage_file;

typedef struct {
	pthread_t       thread;
	pthread_mutex_t lock;
	table_t         table;
	/* Forkers that wait for the lock; a mutex alone would let them starve. */
	atomic_uint nwaiting;
	/* Where the queue is at. */
	size_t      oldest;
	atomic_bool done;
} slot_t;

/* Sums over all processes, in memory that they share. */
typedef struct {
	_Atomic uint64_t checked, bad;
	/* Children that did not exit with status 0. */
	_Atomic uint64_t failed;
	_Atomic uint64_t writes, forks, living, threads;
} results_t;

static slot_t     *slots;
static results_t  *results;
static atomic_bool stop;
static uint64_t    begin_ns;

static void
sleep_ms(uint64_t ms) {
	nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000),
	              .tv_nsec = (long)(ms % 1000) * 1000000},
	    NULL);
}

/* A wave between 0 and 1. */
static double
wave(double period_s) {
	double t = (double)(now_ns() - begin_ns) * 1e-9;
	return 0.5 + 0.5 * sin(t * 2 * M_PI / period_s);
}

static size_t
size_now(rng_t *rng) {
	if (rng_below(rng, 200) == 0) {
		return rng_size(rng, 14337, SIZE_LARGE);
	}
	size_t low = (size_t)(8 * pow(2, 7 * wave(47)));
	return rng_size(rng, low, low * 8);
}

static size_t
bytes_now(void) {
	return (size_t)((double)bytes_max * (0.2 + 0.8 * wave(29)));
}

static void
object_expect(object_t *o) {
	results->checked++;
	if (object_bad(o)) {
		object_report(o);
		results->bad++;
	}
}

static void
object_replace(table_t *t, object_t *o) {
	object_expect(o);
	free(o->p);
	*o = object_init(malloc(size_now(&t->rng)), t->next_id++);
}

static void
object_grow(table_t *t, object_t *o) {
	object_t old = *o;
	object_expect(&old);
	size_t want = old.size < SIZE_LARGE ? old.size + old.size / 2 + 8 : 16;
	void  *p = realloc(old.p, want);
	size_t size = malloc_usable_size(p);
	results->bad += object_prefix_bad(
	    &old, p, size < old.size ? size : old.size);
	*o = object_init(p, t->next_id++);
}

/* How a thread uses its slot. */
typedef enum { use_load, use_cache, use_queue, use_grow, nuses } use_t;

/* One step of work; the slot's lock is held. */
static void
slot_step(slot_t *slot, use_t use) {
	table_t *t = &slot->table;
	for (unsigned i = 0; i < 256; i++) {
		object_bump(table_pick(t));
	}
	for (unsigned i = 0; i < 4; i++) {
		object_expect(table_pick(t));
		object_rewrite(table_pick(t));
	}
	for (unsigned i = 0; i < 8 && use != use_load; i++) {
		switch (use) {
		case use_cache:
			object_replace(t, table_pick(t));
			break;
		case use_queue:
			slot->oldest = (slot->oldest + 1) % t->n;
			object_replace(t, &t->objects[slot->oldest]);
			break;
		default:
			object_grow(t, table_pick(t));
		}
	}
	results->writes += 256 + 4 + (use != use_load) * 8;
}

static void *
slot_main(void *arg) {
	slot_t  *slot = arg;
	table_t *t = &slot->table;
	use_t    use = rng_below(&t->rng, nuses);
	uint64_t end = now_ns() + rng_size(&t->rng, 100, 3000) * 1000000;

	pthread_mutex_lock(&slot->lock);
	size_t low = size_now(&t->rng);
	table_fill(t, bytes_now(), low, low * 4);
	results->checked += t->n;
	if (use == use_load || t->n > OBJECTS_MAX / 2) {
		results->bad += table_thin(t,
		    0.03 + 0.4 * unit(rng_next(&t->rng)),
		    rng_below(&t->rng, thin_npatterns));
	}
	while (t->n < NSAMPLED) {
		table_add(t, malloc(size_now(&t->rng)));
	}
	pthread_mutex_unlock(&slot->lock);
	if (rng_below(&t->rng, 2) == 0) {
		ctl_do("thread.tcache.flush");
	}
	while (!stop && now_ns() < end) {
		while (slot->nwaiting > 0) {
			sched_yield();
		}
		pthread_mutex_lock(&slot->lock);
		slot_step(slot, use);
		pthread_mutex_unlock(&slot->lock);
	}
	slot->done = true;
	return NULL;
}

static void
check_sample(table_t *t) {
	for (size_t i = 0; i < NSAMPLED; i++) {
		object_expect(table_pick(t));
	}
}

static void
check_all(table_t *t) {
	results->checked += t->n;
	results->bad += table_check(t);
}

/* The life of a child, whose parent goes on with the same objects. */
static void
child_main(slot_t *slot, bool lives) {
	uint64_t bad = results->bad;
	table_t *t = &slot->table;
	check_sample(t);
	if (lives) {
		check_all(t);
		sleep_ms(100 + rng_below(&t->rng, 1500));
		check_all(t);
		for (unsigned i = 0; i < 16; i++) {
			slot_step(slot, use_cache);
		}
		results->bad += table_thin(t, 0.3, thin_random);
		ctl_do("thread.tcache.flush");
		mesh_pass();
		check_all(t);
	}
	_exit(results->bad > bad);
}

static void
child_reap(pid_t pid) {
	int status;
	if (waitpid(pid, &status, 0) != pid) {
		die("waitpid");
	}
	if (status != 0) {
		fprintf(stderr, "a child ended with status %#x\n", status);
		results->failed++;
	}
}

static void *
forker_main(void *arg) {
	rng_t    rng = {seed + (uintptr_t)arg};
	pid_t    living[NLIVING_MAX];
	unsigned nliving = 0;
	while (!stop) {
		bool    lives = rng_below(&rng, 16) == 0;
		slot_t *slot = &slots[rng_below(&rng, nslots)];
		if (lives && nliving == NLIVING_MAX) {
			child_reap(living[--nliving]);
		}
		if (fork_ms == 0 && now_ns() % STORM_NS > STORM_NS / 2) {
			sleep_ms(10);
			continue;
		}
		slot->nwaiting++;
		pthread_mutex_lock(&slot->lock);
		slot->nwaiting--;
		if (slot->table.n == 0) {
			pthread_mutex_unlock(&slot->lock);
			sleep_ms(10);
			continue;
		}
		pid_t pid = fork();
		if (pid == 0) {
			child_main(slot, lives);
		}
		pthread_mutex_unlock(&slot->lock);
		if (pid < 0) {
			die("fork");
		}
		results->forks++;
		results->living += lives;
		if (lives) {
			living[nliving++] = pid;
		} else {
			child_reap(pid);
		}
		sleep_ms(fork_ms / 2 + rng_below(&rng, (uint32_t)fork_ms + 1));
	}
	while (nliving > 0) {
		child_reap(living[--nliving]);
	}
	return NULL;
}

static void
sample_print(const char *when) {
	static const char *const stats[] = {"stats.allocated", "stats.resident",
	    "stats.retained", "stats.metadata"};
	static bool              first = true;
	ctl_epoch();
	printf("%s{\"when\": \"%s\", \"s\": %.1f", first ? "" : ",\n", when,
	    (double)(now_ns() - begin_ns) * 1e-9);
	first = false;
	for (size_t i = 0; i < sizeof(stats) / sizeof(stats[0]); i++) {
		printf(", \"%s\": %llu", stats[i] + sizeof("stats"),
		    (unsigned long long)ctl_number(stats[i]));
	}
	printf(
	    ", \"mappings\": %llu, \"fds\": %llu, \"threads\": %llu,"
	    " \"store\": %llu, \"anon\": %llu, \"pte\": %llu,"
	    " \"usage\": %llu, \"writes\": %llu, \"forks\": %llu,"
	    " \"mesh\": ",
	    (unsigned long long)mappings(), (unsigned long long)descriptors(),
	    (unsigned long long)status_number("Threads"),
	    (unsigned long long)store_blocks(), (unsigned long long)rss_anon(),
	    (unsigned long long)status_number("VmPTE") * 1024,
	    (unsigned long long)file_number(usage_file),
	    (unsigned long long)results->writes,
	    (unsigned long long)results->forks);
	mesh_print();
	printf("}");
	fflush(stdout);
}

static void
slot_start(slot_t *slot) {
	slot->done = false;
	results->threads++;
	errno = pthread_create(&slot->thread, NULL, slot_main, slot);
	if (errno != 0) {
		die("pthread_create");
	}
}

/* Waits while memory and mappings become fewer. */
static void
decay_wait(void) {
	uint64_t last, now = UINT64_MAX;
	do {
		last = now;
		sleep_ms(3000);
		now = (rss_anon() >> 20) + mappings();
	} while (now < last);
}

/* One life of so many seconds; nothing is left of it but what leaked. */
static void
live(uint64_t ns, const char *end) {
	pthread_t forkers[NFORKERS_MAX];
	uint64_t  start = now_ns(), next_sample = start;
	stop = false;
	for (unsigned i = 0; i < nslots; i++) {
		slot_start(&slots[i]);
	}
	for (uintptr_t i = 0; i < nforkers; i++) {
		errno = pthread_create(
		    &forkers[i], NULL, forker_main, (void *)i);
		if (errno != 0) {
			die("pthread_create");
		}
	}
	while (now_ns() - start < ns) {
		sleep_ms(10);
		for (unsigned i = 0; i < nslots; i++) {
			if (slots[i].done) {
				pthread_join(slots[i].thread, NULL);
				slot_start(&slots[i]);
			}
		}
		if (now_ns() >= next_sample) {
			sample_print("life");
			next_sample += sample_seconds * UINT64_C(1000000000);
		}
	}
	stop = true;
	for (unsigned i = 0; i < nslots; i++) {
		pthread_join(slots[i].thread, NULL);
	}
	for (unsigned i = 0; i < nforkers; i++) {
		pthread_join(forkers[i], NULL);
	}
	for (unsigned i = 0; i < nslots; i++) {
		results->checked += slots[i].table.n;
		results->bad += table_free(&slots[i].table);
	}
	ctl_do("thread.tcache.flush");
	sample_print("freed");
	if (with_decay) {
		decay_wait();
	} else {
		ctl_do("arena.4096.purge");
		mesh_pass();
	}
	sample_print(end);
}

static void
options_parse(int argc, char **argv) {
	for (int c; (c = getopt(argc, argv, "t:s:w:r:b:f:i:p:u:d")) != -1;) {
		switch (c) {
		case 't':
			nslots = (unsigned)number_parse(optarg);
			break;
		case 's':
			seconds = number_parse(optarg);
			break;
		case 'w':
			warm_seconds = number_parse(optarg);
			break;
		case 'r':
			seed = number_parse(optarg);
			break;
		case 'b':
			bytes_max = number_parse(optarg) << 20;
			break;
		case 'f':
			nforkers = (unsigned)number_parse(optarg);
			break;
		case 'i':
			fork_ms = number_parse(optarg);
			break;
		case 'p':
			sample_seconds = number_parse(optarg);
			break;
		case 'u':
			usage_file = optarg;
			break;
		case 'd':
			with_decay = true;
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (nslots > NSLOTS_MAX || nforkers > NFORKERS_MAX) {
		fputs(usage, stderr);
		exit(2);
	}
}

int
main(int argc, char **argv) {
	options_parse(argc, argv);
	begin_ns = now_ns();
	results = outside_alloc_shared(sizeof(*results));
	slots = outside_alloc(nslots * sizeof(slot_t));
	for (unsigned i = 0; i < nslots; i++) {
		pthread_mutex_init(&slots[i].lock, NULL);
		table_init(&slots[i].table, OBJECTS_MAX, mix64(seed + i),
		    (uint64_t)(i + 1) << 32);
	}
	printf("{\"seed\": %llu, \"samples\": [\n", (unsigned long long)seed);
	live(warm_seconds * UINT64_C(1000000000), "start");
	live(seconds * UINT64_C(1000000000), "end");
	printf(
	    "],\n\"writes\": %llu, \"checked\": %llu, \"bad\": %llu,"
	    " \"forks\": %llu, \"living\": %llu, \"failed\": %llu,"
	    " \"threads\": %llu, \"mesh\": ",
	    (unsigned long long)results->writes,
	    (unsigned long long)results->checked,
	    (unsigned long long)results->bad,
	    (unsigned long long)results->forks,
	    (unsigned long long)results->living,
	    (unsigned long long)results->failed,
	    (unsigned long long)results->threads);
	mesh_print();
	printf("}\n");
	return results->bad + results->failed > 0;
}
