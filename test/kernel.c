/*
 * What the kernel does with heap memory behind the program's back while it is
 * meshed: futexes, other protections, writes by another way than the program's own
 * address space, core dumps.  Beside it pins.c has what reads and writes pages by
 * themselves, ties.c what programs tie to pages, sleepers.cc all ways to sleep.
 *
 * usage: kernel SCENARIO [ARG]
 *
 * Where memory is used in a way that does not go with meshing, ARG says where it
 * is from: "heap", small objects that mesh; "manual", a manual arena; "aligned",
 * small page-aligned objects.
 */
#define _GNU_SOURCE
#include "places.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of <linux/prctl.h> since Linux 6.4. */
#ifndef PR_SET_MEMORY_MERGE
#	define PR_SET_MEMORY_MERGE 67
#endif
#define PLACE_SIZE ((size_t)512)

/******************************************************************************/
/* Threads wait for each other; whoever is not woken has lost. */

typedef struct {
	pthread_mutex_t mutex, gate;
	pthread_cond_t  cond;
	bool            woken;
	/* When it was let go. */
	_Atomic uint64_t since;
} waiting_t;

static atomic_uint nwaiting;

static struct timespec
far_future(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += 5;
	return t;
}

/* After a wait in vain: whether the wake-up is long ago. */
static bool
missed(const waiting_t *w) {
	return w->since != 0 && now_ns() - w->since > UINT64_C(2000000000);
}

static void *
waiter_main(void *arg) {
	waiting_t *w = arg;
	pthread_mutex_lock(&w->mutex);
	nwaiting++;
	while (!w->woken) {
		struct timespec until = far_future();
		if (pthread_cond_clockwait(
		        &w->cond, &w->mutex, CLOCK_MONOTONIC, &until)
		    == ETIMEDOUT) {
			results->lost += missed(w);
		}
	}
	pthread_mutex_unlock(&w->mutex);
	return NULL;
}

static void *
gate_main(void *arg) {
	waiting_t      *w = arg;
	struct timespec until = far_future();
	nwaiting++;
	while (
	    pthread_mutex_clocklock(&w->gate, CLOCK_MONOTONIC, &until) != 0) {
		results->lost += missed(w);
		until = far_future();
	}
	pthread_mutex_unlock(&w->gate);
	return NULL;
}

static void
wait_and_wake(int shared) {
	static pthread_t    threads[2][NPLACES];
	pthread_mutexattr_t mutex_attr;
	pthread_condattr_t  cond_attr;
	pthread_mutexattr_init(&mutex_attr);
	pthread_mutexattr_setpshared(&mutex_attr, shared);
	pthread_condattr_init(&cond_attr);
	pthread_condattr_setpshared(&cond_attr, shared);
	places_alloc(scenario_arg, PLACE_SIZE);
	for (unsigned i = 0; i < NPLACES; i++) {
		waiting_t *w = (waiting_t *)places[i];
		pthread_mutex_init(&w->mutex, &mutex_attr);
		pthread_mutex_init(&w->gate, &mutex_attr);
		pthread_cond_init(&w->cond, &cond_attr);
		pthread_mutex_lock(&w->gate);
		thread_start(&threads[0][i], waiter_main, w);
		thread_start(&threads[1][i], gate_main, w);
	}
	while (nwaiting < 2 * NPLACES) {
		sleep_ms(1);
	}
	/* Time to fall asleep; who has not cannot lose. */
	sleep_ms(100);
	places_mesh(PLACE_SIZE);
	for (unsigned i = 0; i < NPLACES; i++) {
		waiting_t *w = (waiting_t *)places[i];
		pthread_mutex_lock(&w->mutex);
		w->woken = true;
		w->since = now_ns();
		pthread_cond_signal(&w->cond);
		pthread_mutex_unlock(&w->mutex);
		pthread_mutex_unlock(&w->gate);
	}
	for (unsigned i = 0; i < NPLACES; i++) {
		pthread_join(threads[0][i], NULL);
		pthread_join(threads[1][i], NULL);
	}
}

static void
run_private(void) {
	wait_and_wake(PTHREAD_PROCESS_PRIVATE);
}

static void
run_shared(void) {
	wait_and_wake(PTHREAD_PROCESS_SHARED);
}

/* Page-aligned objects with another protection and other advice. */
static void
run_protected(void) {
	enum { n = 512 };
	static unsigned char *p[n];
	for (unsigned i = 0; i < n; i++) {
		size_t size = (1 + i % 4) * PAGE;
		p[i] = aligned_alloc(PAGE, size);
		memset(p[i], 1, size);
		if (i % 3 == 0
		        ? mprotect(p[i], size, PROT_NONE)
		        : i % 3 == 1 && madvise(p[i], size, MADV_WIPEONFORK)) {
			die("mprotect, madvise");
		}
	}
	load_start(2);
	for (unsigned i = 0; i < 4; i++) {
		churn(&held, (size_t)8 << 20);
	}
	for (unsigned i = 0; i < n; i++) {
		results->count += mesh_range(p[i], PAGE);
	}
	pid_t pid = fork_or_die();
	if (pid == 0) {
		for (unsigned i = 1; i < n; i += 3) {
			results->lost += !is_zero(p[i], (1 + i % 4) * PAGE);
		}
		_exit(0);
	}
	child_wait(pid, 0);
	load_stop();
	for (unsigned i = 0; i < n; i++) {
		size_t size = (1 + i % 4) * PAGE;
		if (i % 3 == 0) {
			mprotect(p[i], size, PROT_READ | PROT_WRITE);
		} else if (i % 3 == 1) {
			madvise(p[i], size, MADV_KEEPONFORK);
		}
		for (size_t j = 0; j < size; j++) {
			results->bad += p[i][j] != 1;
		}
		free(p[i]);
	}
}

/******************************************************************************/
/* Writes by way of the kernel: as debuggers make them. */

static bool
poke_mem(int fd, const void *from, void *to, size_t size) {
	return pwrite(fd, from, size, (off_t)(uintptr_t)to) == (ssize_t)size;
}

static bool
poke_vm(int fd, const void *from, void *to, size_t size) {
	struct iovec local = {(void *)(uintptr_t)from, size};
	struct iovec remote = {to, size};
	(void)fd;
	return process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
	    == (ssize_t)size;
}

/* Through /proc/self/mem ("mem") or process_vm_writev ("vm"). */
static void
run_poke(void) {
	static unsigned char image[1 << 16];
	static table_t       t;
	bool (*poke)(int, const void *, void *,
	    size_t) = strcmp(scenario_arg, "vm") == 0 ? poke_vm : poke_mem;
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	for (uint64_t end = now_ns() + UINT64_C(3000000000); now_ns() < end;) {
		churn(&t, (size_t)2 << 20);
		table_fill(&t, (size_t)4 << 20, 16, 14337);
		results->bad += table_thin(&t, 0.1, thin_random);
		ctl_do("thread.tcache.flush");
		for (unsigned i = 0; i < 20000; i++) {
			object_t *o = table_pick(&t);
			o->version++;
			o->count = 0;
			object_image(o, image);
			/* While a slab moves it is refused, as documented. */
			while (!poke(fd, image, o->p, o->size)) {
			}
			results->count++;
			if (object_bad(o)) {
				object_report(o);
				object_rewrite(o);
				results->lost++;
			}
		}
		for (size_t i = 0; i < t.n; i++) {
			if (object_bad(&t.objects[i])) {
				object_rewrite(&t.objects[i]);
				results->lost++;
			}
		}
	}
	close(fd);
	results->bad += table_free(&t);
}

/******************************************************************************/
/* Pages that the kernel takes away and brings back. */

#define NAGES 10

/* Sends all of the heap to swap, and has it mesh there. */
static void
run_swap(void) {
	for (unsigned i = 0; i < NAGES; i++) {
		for (size_t j = 0; j < held.n; j++) {
			uintptr_t p = (uintptr_t)held.objects[j].p & ~(PAGE - 1);
			madvise((void *)p, PAGE, MADV_PAGEOUT);
		}
		uint64_t kib = status_number("VmSwap");
		results->count = kib > results->count ? kib
		                                      : results->count;
		if (i % 2 == 0) {
			mesh_pass();
			check(&held);
		} else {
			churn(&held, (size_t)16 << 20);
		}
		held_rewrite();
	}
}

/* Many objects are alike, and their pages become one. */
static void
run_merged(void) {
	/* Linux 6.4. */
	if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0) {
		exit(77);
	}
	enum { n = 4096 };
	static unsigned char *alike[n];
	for (unsigned i = 0; i < n; i++) {
		alike[i] = malloc(10000);
		memset(alike[i], 7, 10000);
	}
	for (unsigned i = 0; i < NAGES; i++) {
		sleep_ms(200);
		for (unsigned j = i; j < n; j += 2 * NAGES) {
			free(alike[j]);
			alike[j] = memset(malloc(10000), 7, 10000);
		}
		churn(&held, (size_t)8 << 20);
		FILE  *stat = fopen("/proc/self/ksm_stat", "re");
		char   line[128];
		size_t merged = 0;
		while (stat != NULL && fgets(line, sizeof(line), stat) != NULL) {
			sscanf(line, "ksm_merging_pages %zu", &merged);
		}
		if (stat != NULL) {
			fclose(stat);
		}
		results->count = merged > results->count ? merged
		                                         : results->count;
		for (unsigned j = 0; j < n; j++) {
			for (unsigned k = 0; k < 10000; k++) {
				results->bad += alike[j][k] != 7;
			}
		}
		held_rewrite();
	}
}

/******************************************************************************/
/* Core dumps. */

/*
 * Objects have to be in a dump, windows must not: a dump would give them memory
 * wherever they have none.  Counts bytes of either kind that are wrong.
 */
static void
run_dump(void) {
	FILE *smaps = fopen("/proc/self/smaps", "re");
	if (smaps == NULL) {
		die("/proc/self/smaps");
	}
	char          line[512];
	bool          ours = false;
	unsigned long start = 0, end = 0;
	for (uint64_t n = nmeshes(); mesh_built() && n == 0; n = nmeshes()) {
		churn(&held, (size_t)16 << 20);
	}
	while (fgets(line, sizeof(line), smaps) != NULL) {
		unsigned long a, b;
		if (sscanf(line, "%lx-%lx", &a, &b) == 2) {
			start = a;
			end = b;
			ours = strstr(line, "/memfd:jemalloc-mesh") != NULL;
		} else if (ours && strncmp(line, "VmFlags:", 8) == 0) {
			bool window = end - start > (unsigned long)64 << 20;
			bool dumped = strstr(line, " dd ") == NULL;
			results->count += !window;
			expect(dumped == !window,
			    "objects are dumped, and nothing else");
		}
	}
	fclose(smaps);
}

int
main(int argc, char **argv) {
	static const scenario_t scenarios[] = {
	    {"private", run_private},
	    {"shared", run_shared},
	    {"protected", run_protected},
	    {"poke", run_poke},
	    {"swap", run_swap},
	    {"merged", run_merged},
	    {"dump", run_dump},
	};
	return scenario_main(
	    argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
