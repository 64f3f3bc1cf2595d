/*
 * One life of a program whose heap is meshed, told over and over, each time with
 * another system call of jemalloc failing: of each kind the first, the second and
 * so on as far as there are any, alone, with some more after it, or with all more
 * after it.  See faults.h, whose library has to be preloaded.
 *
 * Each life is a forked process.  It allocates objects, frees most, meshes,
 * checks, meshes groups with groups, forks a child that does the same, frees what
 * is left, and then, when nothing fails any more, does all that once again: then
 * meshing has to work, and no descriptor, mapping or memory may be left over.
 *
 * Prints what came of it as JSON; what went wrong is on stderr.
 */
#define _GNU_SOURCE
#include "faults.h"
#include "measure.h"
#include "objects.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NSIZES 3
#define OBJECTS_MAX 8192
/* A life takes milliseconds; one that takes so long hangs. */
#define LIFE_SECONDS 300
#define FEW 7
#define LIVES_AFTER_MAX 5
#define MESHES_AFTER_MIN 30
#define MAPPINGS_SLACK 32
/*
 * A group of an old generation that could not move to today's may leave a slab in
 * it until that ends, too: its own view may be of the same place.  Where a call
 * fails for good that are as many as there are groups.
 */
#define STORE_SLACK (1 << 20)

static const char usage[] =
    "usage: refused [-1] [-k kind] [-p part] [-P parts]\n"
    "  -1  live once, with the failures that the environment asks for\n"
    "  -k  let only calls of this kind fail\n"
    "  -p  do only this part of -P parts of the work\n";

static const size_t sizes[NSIZES] = {80, 256, 1280};
static const size_t counts[NSIZES] = {1500, 500, 200};

/* How a life ends. */
typedef struct {
	uint64_t      lived;
	uint64_t      bad;
	uint64_t      checked, meshes, no_memory, no_child;
	uint64_t      mappings, store_mappings, store_blocks, fds;
	uint64_t      meshes_after;
	unsigned long injected;
	unsigned long seen[64];
	char          off[128];
	char          error[128];
} life_t;

static life_t *life;

static void
wrong(const char *what) {
	if (life->error[0] == '\0') {
		snprintf(life->error, sizeof(life->error), "%s", what);
	}
	life->bad++;
}

/* A failed call may let malloc() fail; then there is an object less. */
static void
fill(table_t *t) {
	for (unsigned i = 0; i < NSIZES; i++) {
		life->no_memory += table_fill_some(t, counts[i], sizes[i]);
	}
}

static void
check(table_t *t) {
	life->checked += t->n;
	if (table_check(t) != 0) {
		wrong("objects damaged");
	}
}

static void
thin_and_mesh(table_t *t, double live) {
	if (table_thin(t, live, thin_random) != 0) {
		wrong("freed objects damaged");
	}
	ctl_do("thread.tcache.flush");
	mesh_pass();
	check(t);
	for (size_t i = 0; i < t->n; i++) {
		object_bump(&t->objects[i]);
		if (i % 3 == 0) {
			object_rewrite(&t->objects[i]);
		}
	}
	check(t);
}

static void
empty(table_t *t) {
	if (table_free(t) != 0) {
		wrong("freed objects damaged");
	}
	ctl_do("thread.tcache.flush");
	mesh_pass();
}

/*
 * Forks; both sides work on what they share, and then go their ways.  A child
 * that cannot have its heap may end before it is one, and says so.
 */
static void
fork_and_work(table_t *t) {
	uint64_t *born = outside_alloc_shared(sizeof(*born));
	uint64_t  bad = life->bad;
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		*born = 1;
		alarm(LIFE_SECONDS);
		check(t);
		thin_and_mesh(t, 0.5);
		fill(t);
		thin_and_mesh(t, 0.2);
		empty(t);
		_exit(life->bad > bad);
	}
	if (pid < 0) {
		life->no_child++;
		return;
	}
	thin_and_mesh(t, 0.7);
	int status;
	while (waitpid(pid, &status, 0) < 0) {
	}
	if (*born == 0) {
		life->no_child++;
	} else if (status != 0) {
		wrong("the child ended badly");
	}
	check(t);
}

static uint64_t
nmeshes(void) {
	ctl_epoch();
	return mesh_stat("nmeshes");
}

static void
live(table_t *t) {
	fill(t);
	thin_and_mesh(t, 0.12);
	fill(t);
	thin_and_mesh(t, 0.15);
	fork_and_work(t);
	fill(t);
	thin_and_mesh(t, 0.1);
	empty(t);
}

/* What a life leaves behind and what it came to. */
static void
account(void) {
	ctl_do("arena.4096.purge");
	mesh_pass();
	ctl_epoch();
	life->mappings = mappings();
	life->store_mappings = store_mappings();
	life->store_blocks = store_blocks();
	life->fds = descriptors();
	snprintf(life->off, sizeof(life->off), "%s", mesh_off());
}

/* A barrier that stops the world has somebody to stop. */
static void *
idle_main(void *arg) {
	for (;;) {
		pause();
	}
	return arg;
}

/* A life in which calls fail, and one after it in which none does. */
static void
life_live(table_t *t) {
	pthread_t idle;
	alarm(LIFE_SECONDS);
	if (pthread_create(&idle, NULL, idle_main, NULL) != 0) {
		die("pthread_create");
	}
	live(t);
	life->injected = faults_injected();
	for (unsigned i = 0; faults_kind(i) != NULL; i++) {
		life->seen[i] = faults_seen(i);
	}
	faults_arm(0, 0, FAULTS_NONE, faults_plain);
	uint64_t before = life->meshes = nmeshes();
	/* A busy machine may keep threads from being stopped in time. */
	for (unsigned i = 0; i < LIVES_AFTER_MAX; i++) {
		live(t);
		uint64_t now = nmeshes();
		life->meshes_after = now - before;
		before = now;
		if (life->meshes_after >= MESHES_AFTER_MIN
		    && mesh_off()[0] == '\0') {
			break;
		}
	}
	account();
	life->lived = 1;
}

/* Forks a life in which calls fail as told.  Returns how it ended. */
static int
life_run(unsigned kind, unsigned long skip, unsigned long count,
    faults_effect_t effect) {
	memset(life, 0, sizeof(*life));
	pid_t pid = fork();
	if (pid < 0) {
		die("fork");
	}
	if (pid == 0) {
		table_t t;
		table_init(&t, OBJECTS_MAX, 1, 1);
		faults_arm(kind, skip, count, effect);
		life_live(&t);
		_exit(0);
	}
	int status;
	while (waitpid(pid, &status, 0) < 0) {
	}
	return status;
}

/* Compares a life with one in which nothing failed. */
static bool
life_wrong(const life_t *normal, int status, unsigned kind, unsigned long skip,
    unsigned long count, faults_effect_t effect) {
	const char *name = faults_kind(kind);
	if (status == 0 && life->lived) {
		if (life->meshes_after < MESHES_AFTER_MIN
		    || life->off[0] != '\0') {
			wrong("meshing works no more");
		}
		/* What cannot be recognised as ours is not closed. */
		if (strcmp(name, "fstat") != 0 && life->fds > normal->fds) {
			wrong("descriptors are left over");
		}
		if (strcmp(name, "munmap") != 0
		    && (life->store_mappings > normal->store_mappings
		        || life->mappings
		            > normal->mappings + MAPPINGS_SLACK)) {
			wrong("mappings are left over");
		}
		if (strcmp(name, "madvise-remove") != 0
		    && life->store_blocks
		        > normal->store_blocks + STORE_SLACK) {
			wrong("memory is left over in the store");
		}
	} else if (life->error[0] == '\0') {
		wrong(WIFSIGNALED(status) ? strsignal(WTERMSIG(status))
		                          : "ended too early");
	}
	if (life->bad == 0) {
		return false;
	}
	fprintf(stderr,
	    "%s, all but %lu, %lu of them, effect %d: %s (status %#x,"
	    " %lu failed, %llu meshes after, off \"%s\", %llu descriptors,"
	    " %llu mappings, %llu of the store, %llu bytes in it)\n",
	    name, skip, count, (int)effect, life->error, (unsigned)status,
	    life->injected, (unsigned long long)life->meshes_after, life->off,
	    (unsigned long long)life->fds, (unsigned long long)life->mappings,
	    (unsigned long long)life->store_mappings,
	    (unsigned long long)life->store_blocks);
	return true;
}

static void
life_print(const life_t *l) {
	printf(
	    "{\"lived\": %llu, \"bad\": %llu, \"error\": \"%s\","
	    " \"checked\": %llu, \"meshes\": %llu, \"no_memory\": %llu,"
	    " \"no_child\": %llu, \"mappings\": %llu, \"store_mappings\": %llu,"
	    " \"store_blocks\": %llu, \"fds\": %llu, \"meshes_after\": %llu,"
	    " \"injected\": %lu, \"off\": \"%s\", \"seen\": {",
	    (unsigned long long)l->lived, (unsigned long long)l->bad, l->error,
	    (unsigned long long)l->checked, (unsigned long long)l->meshes,
	    (unsigned long long)l->no_memory, (unsigned long long)l->no_child,
	    (unsigned long long)l->mappings,
	    (unsigned long long)l->store_mappings,
	    (unsigned long long)l->store_blocks, (unsigned long long)l->fds,
	    (unsigned long long)l->meshes_after, l->injected, l->off);
	for (unsigned i = 0; faults_kind(i) != NULL; i++) {
		printf("%s\"%s\": %lu", i > 0 ? ", " : "", faults_kind(i),
		    l->seen[i]);
	}
	printf("}}");
}

int
main(int argc, char **argv) {
	const char   *only = NULL;
	bool          once = false;
	unsigned long part = 0, nparts = 1;
	for (int c; (c = getopt(argc, argv, "1k:p:P:")) != -1;) {
		switch (c) {
		case '1':
			once = true;
			break;
		case 'k':
			only = optarg;
			break;
		case 'p':
			part = number_parse(optarg);
			break;
		case 'P':
			nparts = number_parse(optarg);
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (faults_kind == NULL) {
		fputs("the library of faults is not preloaded\n", stderr);
		exit(2);
	}
	life = outside_alloc_shared(sizeof(*life));
	unsigned long boot[64];
	for (unsigned i = 0; faults_kind(i) != NULL; i++) {
		boot[i] = faults_seen(i);
	}
	if (once) {
		table_t t;
		table_init(&t, OBJECTS_MAX, 1, 1);
		life_live(&t);
		printf("{\"life\": ");
		life_print(life);
		printf(", \"boot\": {");
		for (unsigned i = 0; faults_kind(i) != NULL; i++) {
			printf("%s\"%s\": %lu", i > 0 ? ", " : "",
			    faults_kind(i), boot[i]);
		}
		printf("}}\n");
		return life->bad > 0;
	}

	life_t normal;
	if (life_run(0, 0, FAULTS_NONE, faults_plain) != 0 || !life->lived
	    || life->bad != 0) {
		fprintf(stderr, "wrong without any failure: %s\n", life->error);
		return 1;
	}
	normal = *life;

	unsigned long nlives = 0, nwrong = 0, nrefused = 0, injected = 0;
	uint64_t      no_memory = 0, no_child = 0, checked = 0;
	for (unsigned kind = 0; faults_kind(kind) != NULL; kind++) {
		const char *name = faults_kind(kind);
		if (only != NULL && strcmp(only, name) != 0) {
			continue;
		}
		bool maps = strcmp(name, "mremap") == 0
		    || strcmp(name, "mmap-fixed") == 0;
		unsigned long n = normal.seen[kind] - boot[kind];
		for (unsigned long i = part; i < n; i += nparts) {
			static const unsigned long counts_failing[] = {
			    1, FEW, 0, 1, FEW};
			static const faults_effect_t effects[] = {faults_plain,
			    faults_plain, faults_plain, faults_hole,
			    faults_hole};
			/* Of descriptors that do not seem ours no end can come. */
			bool     fds = strcmp(name, "fstat") == 0;
			unsigned nways = maps ? 5 : fds ? 1 : 3;
			for (unsigned j = 0; j < nways; j++) {
				int status = life_run(
				    kind, i, counts_failing[j], effects[j]);
				nwrong += life_wrong(&normal, status, kind, i,
				    counts_failing[j], effects[j]);
				nlives++;
				nrefused += life->injected > 0;
				injected += life->injected;
				no_memory += life->no_memory;
				no_child += life->no_child;
				checked += life->checked;
			}
		}
	}
	printf("{\"normal\": ");
	life_print(&normal);
	printf(
	    ", \"lives\": %lu, \"wrong\": %lu, \"refused\": %lu,"
	    " \"injected\": %lu, \"no_memory\": %llu, \"no_child\": %llu,"
	    " \"checked\": %llu}\n",
	    nlives, nwrong, nrefused, injected, (unsigned long long)no_memory,
	    (unsigned long long)no_child, (unsigned long long)checked);
	return nwrong > 0;
}
