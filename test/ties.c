/*
 * What a program ties to pages inside its objects, such as a protection or a lock,
 * is there when the slab has meshed, joined another group, or parted.
 *
 * usage: ties before|after TIE
 *
 * Every second place is tied, "before" anything has meshed, or "after" it has; then
 * all moves on.  count is of places that have meshed, before, or that were tied,
 * after; lost is of ties that do not hold.
 */
#define _GNU_SOURCE
#include "places.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of <linux/mman.h>, which does not go with <sys/mman.h>. */
#ifndef MADV_SOFT_OFFLINE
#	define MADV_SOFT_OFFLINE 101
#endif

/* Two a slab of five pages, with a whole page in each of them. */
#define SIZE ((size_t)10240)
#define TIED(i) ((i) % 2 == 1)
/* The status of a test that cannot be run here. */
#define SKIP 77

typedef struct {
	const char *name;
	/* Whether the kernel did so. */
	bool (*tie)(unsigned char *page);
	bool (*holds)(unsigned char *page);
} tie_t;

/* The first whole page of a place. */
static unsigned char *
page_of(unsigned char *place) {
	return (unsigned char *)(((uintptr_t)place + PAGE - 1) & ~(PAGE - 1));
}

/* What each byte of a place is. */
static unsigned char
byte_of(const unsigned char *at) {
	return (unsigned char)mix64((uintptr_t)at) | 1;
}

/* The line of the mapping at p, of /proc/self/smaps, that begins so. */
static bool
smaps_line(const void *p, const char *begin, char *line, int size) {
	FILE *smaps = fopen("/proc/self/smaps", "re");
	bool  here = false, found = false;
	if (smaps == NULL) {
		die("/proc/self/smaps");
	}
	while (!found && fgets(line, size, smaps) != NULL) {
		unsigned long from, to;
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
			here = from <= (uintptr_t)p && (uintptr_t)p < to;
			found = here && *begin == '\0';
		} else {
			found = here && *begin != '\0'
			    && strncmp(line, begin, strlen(begin)) == 0;
		}
	}
	fclose(smaps);
	return found;
}

static bool
has_flag(const void *p, const char *flag) {
	char line[512], word[8];
	snprintf(word, sizeof(word), " %s", flag);
	return smaps_line(p, "VmFlags:", line, sizeof(line))
	    && strstr(line, word) != NULL;
}

static bool
has_rights(const void *p, const char *rights) {
	char  line[512];
	char *at;
	return smaps_line(p, "", line, sizeof(line))
	    && (at = strchr(line, ' ')) != NULL
	    && strncmp(at + 1, rights, 3) == 0;
}

static bool
bytes_hold(unsigned char *page) {
	for (size_t i = 0; i < PAGE; i++) {
		if (page[i] != byte_of(page + i)) {
			return false;
		}
	}
	return true;
}

static bool
tie_lock(unsigned char *page) {
	return mlock(page, PAGE) == 0;
}

static bool
lock_holds(unsigned char *page) {
	return has_flag(page, "lo") && bytes_hold(page);
}

static bool
tie_read(unsigned char *page) {
	return mprotect(page, PAGE, PROT_READ) == 0;
}

static bool
read_holds(unsigned char *page) {
	return has_rights(page, "r--") && bytes_hold(page);
}

static bool
tie_none(unsigned char *page) {
	return mprotect(page, PAGE, PROT_NONE) == 0;
}

static bool
none_holds(unsigned char *page) {
	return has_rights(page, "---")
	    && mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0
	    && bytes_hold(page);
}

/* A function that returns its number. */
static bool
tie_exec(unsigned char *page) {
	static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
	memcpy(page, code, sizeof(code));
	return mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0;
}

static bool
exec_holds(unsigned char *page) {
	int (*function)(void);
	memcpy(&function, &page, sizeof(page));
	return has_rights(page, "rwx") && function() == 42;
}

static int pkey;

static bool
tie_pkey(unsigned char *page) {
	if (pkey == 0 && (pkey = pkey_alloc(0, 0)) < 0) {
		exit(SKIP);
	}
	return pkey_mprotect(page, PAGE, PROT_READ | PROT_WRITE, pkey) == 0;
}

static bool
pkey_holds(unsigned char *page) {
	char line[512];
	return smaps_line(page, "ProtectionKey:", line, sizeof(line))
	    && atoi(strchr(line, ':') + 1) == pkey && bytes_hold(page);
}

static bool
tie_dontfork(unsigned char *page) {
	return madvise(page, PAGE, MADV_DONTFORK) == 0;
}

static bool
dontfork_holds(unsigned char *page) {
	return has_flag(page, "dc") && bytes_hold(page);
}

static bool
tie_wipeonfork(unsigned char *page) {
	return madvise(page, PAGE, MADV_WIPEONFORK) == 0;
}

static bool
wipeonfork_holds(unsigned char *page) {
	return has_flag(page, "wf") && bytes_hold(page);
}

static bool
tie_dontdump(unsigned char *page) {
	return madvise(page, PAGE, MADV_DONTDUMP) == 0;
}

static bool
dontdump_holds(unsigned char *page) {
	return has_flag(page, "dd") && bytes_hold(page);
}

static bool
tie_mergeable(unsigned char *page) {
	return madvise(page, PAGE, MADV_MERGEABLE) == 0;
}

static bool
mergeable_holds(unsigned char *page) {
	return has_flag(page, "mg") && bytes_hold(page);
}

static bool
tie_cold(unsigned char *page) {
	return madvise(page, PAGE, MADV_COLD) == 0;
}

static bool
tie_pageout(unsigned char *page) {
	return madvise(page, PAGE, MADV_PAGEOUT) == 0;
}

static bool
tie_soft_offline(unsigned char *page) {
	if (madvise(page, PAGE, MADV_SOFT_OFFLINE) == 0) {
		return true;
	} else if (errno == EINVAL || errno == EPERM) {
		/* This kernel knows nothing of failing memory. */
		exit(SKIP);
	}
	return false;
}

static bool
tie_free(unsigned char *page) {
	return madvise(page, PAGE, MADV_FREE) == 0;
}

/* As it was, or empty; and it can be used again. */
static bool
free_holds(unsigned char *page) {
	bool good = is_zero(page, PAGE) || bytes_hold(page);
	for (size_t i = 0; i < PAGE; i++) {
		page[i] = byte_of(page + i);
	}
	return good;
}

static bool
tie_dontneed(unsigned char *page) {
	return madvise(page, PAGE, MADV_DONTNEED) == 0;
}

static bool
dontneed_holds(unsigned char *page) {
	return is_zero(page, PAGE);
}

static bool
tie_policy(unsigned char *page) {
	unsigned long nodes = 1;
	if (syscall(SYS_mbind, page, PAGE, MPOL_BIND, &nodes,
	        8 * sizeof(nodes), 0)
	    == 0) {
		return true;
	} else if (errno == ENOSYS) {
		exit(SKIP);
	}
	return false;
}

static bool
policy_holds(unsigned char *page) {
	int mode = -1;
	return syscall(SYS_get_mempolicy, &mode, NULL, 0, page, MPOL_F_ADDR) == 0
	    && mode == MPOL_BIND && bytes_hold(page);
}

/* A userfaultfd of the program's own, as for garbage collection. */
static bool
tie_uffd(unsigned char *page) {
	static int uffd = -1;
	if (uffd < 0) {
		struct uffdio_api api = {.api = UFFD_API,
		    .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0) {
			exit(SKIP);
		}
	}
	struct uffdio_register r = {.range = {(uintptr_t)page, PAGE},
	    .mode = UFFDIO_REGISTER_MODE_WP};
	return ioctl(uffd, UFFDIO_REGISTER, &r) == 0;
}

static bool
uffd_holds(unsigned char *page) {
	return has_flag(page, "uw") && bytes_hold(page);
}

/* Shared memory of the program's own takes a page's place. */
static int page_files[NPLACES];
static int npage_files;

static bool
tie_fixed(unsigned char *page) {
	int fd = page_files[npage_files++] = memfd_create("tie", MFD_CLOEXEC);
	if (fd < 0 || pwrite(fd, page, PAGE, 0) != (ssize_t)PAGE) {
		die("memfd_create");
	}
	return mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
	           fd, 0)
	    == page;
}

/* Called in the order of the ties. */
static bool
fixed_holds(unsigned char *page) {
	static int n;
	char       byte;
	bool       good = bytes_hold(page);
	page[100]++;
	return pread(page_files[n++], &byte, 1, 100) == 1
	    && (unsigned char)byte == page[100] && good;
}

static const tie_t ties[] = {
    {"lock", tie_lock, lock_holds},
    {"read", tie_read, read_holds},
    {"none", tie_none, none_holds},
    {"exec", tie_exec, exec_holds},
    {"pkey", tie_pkey, pkey_holds},
    {"dontfork", tie_dontfork, dontfork_holds},
    {"wipeonfork", tie_wipeonfork, wipeonfork_holds},
    {"dontdump", tie_dontdump, dontdump_holds},
    {"mergeable", tie_mergeable, mergeable_holds},
    {"cold", tie_cold, bytes_hold},
    {"pageout", tie_pageout, bytes_hold},
    {"soft_offline", tie_soft_offline, bytes_hold},
    {"free", tie_free, free_holds},
    {"dontneed", tie_dontneed, dontneed_holds},
    {"policy", tie_policy, policy_holds},
    {"uffd", tie_uffd, uffd_holds},
    {"fixed", tie_fixed, fixed_holds},
};

static const tie_t *
tie_wanted(void) {
	for (size_t i = 0; i < sizeof(ties) / sizeof(ties[0]); i++) {
		if (strcmp(scenario_arg, ties[i].name) == 0) {
			return &ties[i];
		}
	}
	fprintf(stderr, "no such tie: %s\n", scenario_arg);
	exit(2);
}

static void
places_fill(void) {
	places_alloc("heap", SIZE);
	for (unsigned i = 0; i < NPLACES; i++) {
		for (size_t j = 0; j < SIZE; j++) {
			places[i][j] = byte_of(places[i] + j);
		}
	}
}

/* Whether the kernel refused what it grants on private memory. */
static bool
refused(const tie_t *tie, unsigned i) {
	if (tie->tie(page_of(places[i]))) {
		return false;
	}
	fprintf(stderr, "%s: %s\n", tie->name, strerror(errno));
	results->lost++;
	return true;
}

/* All that is neither tied nor lost is as it was. */
static void
places_check(void) {
	for (unsigned i = 0; i < NPLACES; i++) {
		unsigned char *page = page_of(places[i]);
		for (unsigned char *at = places[i]; at < places[i] + SIZE; at++) {
			bool tied = TIED(i) && at >= page && at < page + PAGE;
			results->bad += !tied && *at != byte_of(at);
		}
	}
}

static void
run_before(void) {
	const tie_t *tie = tie_wanted();
	places_fill();
	for (unsigned i = 0; i < NPLACES; i++) {
		if (TIED(i) && refused(tie, i)) {
			exit(1);
		}
	}
	places_mesh(SIZE);
	for (unsigned i = 0; i < NPLACES; i++) {
		results->lost += TIED(i) && !tie->holds(page_of(places[i]));
	}
	places_check();
}

/* Groups join and part, and ranges become private and mesh again. */
static void
places_move(void) {
	for (unsigned i = 0; i < 3; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			_exit(0);
		}
		child_wait(pid, 0);
		for (size_t n = 0; n < 64; n++) {
			free(malloc(SIZE));
		}
		churn(&held, (size_t)16 << 20);
	}
}

static void
run_after(void) {
	const tie_t *tie = tie_wanted();
	bool         tied[NPLACES] = {false};
	places_fill();
	mesh_pass();
	for (unsigned i = 0; i < NPLACES; i++) {
		if (TIED(i) && mesh_range(places[i], SIZE)) {
			results->count++;
			tied[i] = !refused(tie, i);
		}
	}
	/* Until mappings may be looked at again: a fork does not always. */
	usleep(1500000);
	places_move();
	for (unsigned i = 0; i < NPLACES; i++) {
		results->lost += tied[i] && !tie->holds(page_of(places[i]));
	}
	places_check();
}

int
main(int argc, char **argv) {
	static const scenario_t scenarios[] = {
	    {"before", run_before},
	    {"after", run_after},
	};
	return scenario_main(
	    argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
