/*
 * Meets one limit of the kernel while its heap is meshed: works before, at and
 * after it, and says after each step what came of it.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define OBJECTS_MAX 400000
#define FILL_OBJECTS 30000
#define NSIZES 3
#define NLOCKED 200

static const char usage[] =
    "usage: limits maps[-fork]|as|fsize[-first]|nofile[-first]|lock[-first]|lock-now|"
    "lock-some|cgroup|none\n";

static const size_t sizes[NSIZES] = {96, 256, 640};

static table_t  table;
static uint64_t bad, no_memory, nunborn, nmeshes_before, nrefused_before;
static unsigned nsteps;
/* Whether the last child came to run. */
static bool *born;

/* Allocates objects and frees most of all. */
static void
sparse_fill(void) {
	for (unsigned i = 0; i < NSIZES; i++) {
		no_memory += table_fill_some(&table, FILL_OBJECTS, sizes[i]);
	}
	bad += table_thin(&table, 0.1, thin_random);
	ctl_do("thread.tcache.flush");
}

/* Meshes, and checks what is left. */
static void
mesh(void) {
	mesh_pass();
	bad += table_check(&table);
	for (size_t i = 0; i < table.n; i++) {
		object_bump(&table.objects[i]);
	}
	bad += table_check(&table);
}

static void
work(void) {
	sparse_fill();
	mesh();
}

static void
step(const char *name) {
	ctl_epoch();
	uint64_t nmeshes = mesh_stat("nmeshes");
	uint64_t nrefused = mesh_stat("nrefused");
	printf(
	    "%s\"%s\": {\"meshes\": %llu, \"refused\": %llu, \"bad\": %llu,"
	    " \"no_memory\": %llu, \"unborn\": %llu, \"followers\": %llu, \"mappings\": %llu,"
	    " \"store_mappings\": %llu, \"store\": %llu, \"locked_kib\": %llu,"
	    " \"groups\": %llu, \"off\": \"%s\"}",
	    nsteps++ > 0 ? ", " : "{", name,
	    (unsigned long long)(nmeshes - nmeshes_before),
	    (unsigned long long)(nrefused - nrefused_before),
	    (unsigned long long)bad, (unsigned long long)no_memory,
	    (unsigned long long)nunborn,
	    (unsigned long long)mesh_stat("followers"),
	    (unsigned long long)mappings(),
	    (unsigned long long)store_mappings(),
	    (unsigned long long)store_blocks(),
	    (unsigned long long)status_number("VmLck"),
	    (unsigned long long)mesh_stat("groups"), mesh_off());
	nmeshes_before = nmeshes;
	nrefused_before = nrefused;
}

static void
limit_set(__rlimit_resource_t resource, uint64_t bytes) {
	struct rlimit rl;
	if (getrlimit(resource, &rl) != 0) {
		die("getrlimit");
	}
	rl.rlim_cur = bytes < rl.rlim_max ? bytes : rl.rlim_max;
	if (setrlimit(resource, &rl) != 0) {
		die("setrlimit");
	}
}

/*
 * A child finds what its parent had, and can work with it.  If the kernel refuses
 * it a heap of its own it ends before it is one.
 */
static void
fork_and_check(void) {
	*born = false;
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		*born = true;
		bad = table_check(&table);
		work();
		_exit(bad > 0);
	}
	int status = 0;
	if (pid > 0) {
		waitpid(pid, &status, 0);
	}
	bad += *born && status != 0;
	nunborn += !*born;
}

/* Every mapping that there can be; neighbours differ, so as not to merge. */
static void
maps_limit_reach(bool with_fork) {
	size_t n = 0, max = 1 << 20;
	void **all = outside_alloc(max * sizeof(void *));
	while (n < max) {
		all[n] = mmap(NULL, 4096, n % 2 == 0 ? PROT_NONE : PROT_READ,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (all[n] == MAP_FAILED) {
			break;
		}
		n++;
	}
	work();
	/* Followers and leaders whose ranges nobody can unmap now. */
	bad += table_thin(&table, 0.5, thin_random);
	ctl_do("thread.tcache.flush");
	if (with_fork) {
		fork_and_check();
	}
	work();
	while (n > 0) {
		munmap(all[--n], 4096);
	}
	/* To say it takes memory. */
	step("limit");
}

static void
maps_limit(void) {
	maps_limit_reach(false);
}

static void
maps_fork_limit(void) {
	maps_limit_reach(true);
}

static void
as_limit(void) {
	limit_set(RLIMIT_AS, status_number("VmSize") * 1024 + (4 << 20));
	work();
	/* Below what there is already. */
	limit_set(RLIMIT_AS, status_number("VmSize") * 512);
	work();
	limit_set(RLIMIT_AS, RLIM_INFINITY);
	/* To say it takes memory. */
	step("limit");
}

/* Before the first mesh, and again when there are meshes. */
static void
fsize_limit(void) {
	limit_set(RLIMIT_FSIZE, 1 << 20);
	work();
	step("open");
	fork_and_check();
	work();
	step("limit");
	limit_set(RLIMIT_FSIZE, RLIM_INFINITY);
}

static void
nofile_limit(void) {
	int first = open("/dev/null", O_RDONLY | O_CLOEXEC), last = first;
	limit_set(RLIMIT_NOFILE, (uint64_t)first + 64);
	for (int fd; (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) != -1;) {
		last = fd;
	}
	/* A generation of its own needs a descriptor. */
	fork_and_check();
	work();
	/* Statistics are read from files. */
	close(last);
	step("limit");
	close_range((unsigned)first, (unsigned)last - 1, 0);
}

/* All memory to come is locked. */
static void
lock_limit(void) {
	if (mlockall(MCL_FUTURE) != 0) {
		die("mlockall");
	}
	work();
	fork_and_check();
	work();
	munlockall();
	/* To say it takes memory. */
	step("limit");
}

/* All memory there is, spliced ranges among it, is locked. */
static void
lock_now_limit(void) {
	if (mlockall(MCL_CURRENT) != 0) {
		die("mlockall");
	}
	work();
	step("limit");
	munlockall();
}

/* Some objects are locked: they stay so, and the others are meshed. */
static void
lock_some_limit(void) {
	sparse_fill();
	for (size_t i = 0; i < table.n; i += table.n / NLOCKED) {
		uintptr_t page = (uintptr_t)table.objects[i].p
		    & ~UINT64_C(4095);
		if (mlock((void *)page, 4096) != 0) {
			die("mlock");
		}
	}
	step("lock");
	mesh();
	step("limit");
	munlockall();
}

static void
no_limit(void) {
	work();
	step("limit");
}

/* Takes memory until its control group has none; then gives a little back. */
static void
cgroup_limit(void) {
	size_t max = (size_t)1 << 30, n = 0, page = 4096;
	sparse_fill();
	unsigned char *p = outside_alloc(max);
	while (n < max && madvise(p + n, page, 23 /* POPULATE_WRITE */) == 0) {
		n += page;
	}
	if (n == max) {
		errno = 0;
		die("no limit");
	}
	size_t back = (size_t)2 << 20;
	madvise(p + n - back, back, MADV_DONTNEED);
	mesh();
	step("limit");
	munmap(p, max);
}

int
main(int argc, char **argv) {
	static const struct {
		const char *name;
		void (*run)(void);
		/* Whether the limit is there from the start. */
		bool first;
	} limits[] = {
	    {"maps", maps_limit, false},
	    {"maps-fork", maps_fork_limit, false},
	    {"as", as_limit, false},
	    {"fsize", fsize_limit, false},
	    {"fsize-first", fsize_limit, true},
	    {"nofile", nofile_limit, false},
	    {"nofile-first", nofile_limit, true},
	    {"lock", lock_limit, false},
	    {"lock-first", lock_limit, true},
	    {"lock-now", lock_now_limit, false},
	    {"lock-some", lock_some_limit, true},
	    {"cgroup", cgroup_limit, false},
	    {"none", no_limit, false},
	};
	size_t i = 0, n = sizeof(limits) / sizeof(limits[0]);
	while (argc == 2 && i < n && strcmp(limits[i].name, argv[1]) != 0) {
		i++;
	}
	if (argc != 2 || i == n) {
		fputs(usage, stderr);
		return 2;
	}
	alarm(300);
	table_init(&table, OBJECTS_MAX, 1, 1);
	born = outside_alloc_shared(sizeof(*born));
	if (!limits[i].first) {
		work();
		step("before");
	}
	limits[i].run();
	work();
	step("after");
	bad += table_free(&table);
	ctl_do("thread.tcache.flush");
	mesh_pass();
	step("end");
	printf("}\n");
	return bad > 0;
}
