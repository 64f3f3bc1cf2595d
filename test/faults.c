/*
 * A library to preload: lets system calls that jemalloc makes fail, as the kernel
 * may let them.  It knows jemalloc's calls by where they come from; others pass.
 *
 * A program arms it by faults.h; else MESH_FAULTS=KIND:SKIP:COUNT[:ERRNO] in the
 * environment does, from the start of the process, or MESH_FAULTS=rate:N:SEED
 * lets one call in N fail once SPARED of them have been made, but for those that
 * make malloc() return NULL.
 */
#define _GNU_SOURCE
#include "faults.h"
#include "util.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define NERRORS 4
#define SPARED 2000

/* Older headers lack some. */
#define ADVICE_POPULATE_READ 22
#define ADVICE_POPULATE_WRITE 23
#define IOCTL_UFFD_NEW 0xAA00

typedef struct {
	const char *name;
	/* What it fails with, in turn. */
	int errors[NERRORS];
	/* A value of the advice or request. */
	unsigned long which;
	/* Whether random failures would make malloc() return NULL or complain. */
	bool stock;
} kind_t;

enum {
	kind_mmap,
	kind_mmap_fixed,
	kind_mremap,
	kind_munmap,
	kind_mprotect,
	kind_msync,
	kind_mlock,
	kind_munlock,
	kind_ftruncate,
	kind_fallocate,
	kind_fstat,
	kind_getrlimit,
	kind_memfd_create,
	kind_userfaultfd,
	kind_open,
	kind_read,
	kind_close,
	kind_tgkill,
	kind_sigaction,
	kind_getdents,
	kind_advice,
	kind_advice_end = kind_advice + 6,
	kind_ioctl = kind_advice_end,
	kind_ioctl_lift = kind_ioctl + 6,
	kind_ioctl_end,
};

static const kind_t kinds[] = {
    {"mmap", {ENOMEM, EAGAIN}, 0, true},
    {"mmap-fixed", {ENOMEM, EAGAIN, EPERM}, 0, false},
    {"mremap", {ENOMEM, EAGAIN, EPERM}, 0, false},
    {"munmap", {ENOMEM}, 0, true},
    {"mprotect", {ENOMEM, EACCES}, 0, false},
    {"msync", {EINVAL}, 0, false},
    {"mlock", {ENOMEM, EPERM}, 0, false},
    {"munlock", {ENOMEM}, 0, false},
    {"ftruncate", {ENOSPC, EINVAL, EPERM}, 0, false},
    {"fallocate", {ENOSPC, EOPNOTSUPP}, 0, false},
    {"fstat", {EBADF, EIO}, 0, false},
    {"getrlimit", {EPERM}, 0, false},
    {"memfd_create", {ENFILE, EMFILE, ENOMEM, EPERM}, 0, false},
    {"userfaultfd", {EPERM, ENOMEM, ENFILE, ENOSYS}, 0, false},
    {"open", {EMFILE, ENOENT}, 0, false},
    {"read", {EIO, EINTR}, 0, false},
    {"close", {EIO, EINTR}, 0, false},
    {"tgkill", {EAGAIN, ESRCH}, 0, false},
    {"sigaction", {EINVAL}, 0, false},
    {"getdents", {ENOENT, EINVAL}, 0, false},
    {"madvise-populate-read", {EINVAL, EFAULT, ENOMEM}, ADVICE_POPULATE_READ,
        false},
    {"madvise-populate-write", {EFAULT, EINVAL, ENOMEM}, ADVICE_POPULATE_WRITE,
        false},
    {"madvise-remove", {EAGAIN, EINVAL, EPERM}, MADV_REMOVE, false},
    {"madvise-nohugepage", {EINVAL, ENOMEM}, MADV_NOHUGEPAGE, false},
    {"madvise-dontneed", {EAGAIN, EINVAL}, MADV_DONTNEED, true},
    {"madvise", {EAGAIN, ENOMEM}, 0, true},
    {"ioctl-new", {EPERM, ENOMEM}, IOCTL_UFFD_NEW, false},
    {"ioctl-api", {EINVAL, EPERM}, UFFDIO_API, false},
    {"ioctl-register", {ENOMEM, EBUSY, EINVAL}, UFFDIO_REGISTER, false},
    {"ioctl-unregister", {ENOMEM, EINVAL}, UFFDIO_UNREGISTER, false},
    {"ioctl-wake", {EINVAL}, UFFDIO_WAKE, false},
    {"ioctl-protect", {EAGAIN, ENOENT, ENOMEM}, UFFDIO_WRITEPROTECT, false},
    {"ioctl-lift", {EAGAIN, ENOENT}, 0, false},
};
#define NKINDS (sizeof(kinds) / sizeof(kinds[0]))
_Static_assert(NKINDS == kind_ioctl_end, "one row a kind");

static atomic_ulong    seen[NKINDS];
static atomic_ulong    nseen, ninjected;
static unsigned        armed_kind;
static unsigned long   armed_first = FAULTS_NONE, armed_last;
static faults_effect_t armed_effect;
/* Instead of the kind's own, if not 0. */
static int           armed_errno;
static unsigned long rate;
static atomic_ullong rate_state;

/* Where the code of jemalloc is. */
static uintptr_t code_start, code_end;

/* The system call as it is: nothing of libc that is interposed. */
static long
real(long n, long a, long b, long c, long d, long e, long f) {
	long result;
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile(
	    "syscall"
	    : "=a"(result)
	    : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
	    : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0"
	                 : "+r"(x0)
	                 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
	                 : "memory");
	result = x0;
#else
#	error "How are system calls made here?"
#endif
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

const char *
faults_kind(unsigned kind) {
	return kind < NKINDS ? kinds[kind].name : NULL;
}

unsigned long
faults_seen(unsigned kind) {
	return seen[kind];
}

unsigned long
faults_injected(void) {
	return ninjected;
}

void
faults_arm(unsigned kind, unsigned long skip, unsigned long count,
    faults_effect_t effect) {
	armed_kind = kind;
	armed_effect = effect;
	armed_first = count == FAULTS_NONE ? FAULTS_NONE : seen[kind] + skip;
	armed_last = count == 0 ? FAULTS_NONE : armed_first + count;
}

static int
library_find(struct dl_phdr_info *info, size_t size, void *arg) {
	(void)size, (void)arg;
	if (strstr(info->dlpi_name, "libjemalloc") == NULL) {
		return 0;
	}
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		if (header->p_type == PT_LOAD
		    && (header->p_flags & PF_X) != 0) {
			code_start = info->dlpi_addr + header->p_vaddr;
			code_end = code_start + header->p_memsz;
		}
	}
	return 1;
}

/* The first call of all comes from jemalloc's initialization: one thread. */
static void
start(void) {
	dl_iterate_phdr(library_find, NULL);
	const char *text = getenv("MESH_FAULTS");
	if (text == NULL) {
		return;
	}
	const char   *numbers = strchr(text, ':') + 1;
	char         *end;
	unsigned long first = strtoul(numbers, &end, 10);
	unsigned long second = strtoul(end + 1, &end, 10);
	size_t        length = (size_t)(numbers - text) - 1;
	if (strncmp(text, "rate", length) == 0) {
		rate = first;
		rate_state = second;
	}
	if (*end != '\0') {
		armed_errno = (int)strtoul(end + 1, NULL, 10);
	}
	for (unsigned i = 0; i < NKINDS; i++) {
		if (strlen(kinds[i].name) == length
		    && strncmp(text, kinds[i].name, length) == 0) {
			faults_arm(i, first, second, faults_plain);
		}
	}
}

/* Whether this call shall fail; sets errno then. */
static bool
fails(unsigned kind, const void *caller) {
	static bool started;
	if (!started) {
		started = true;
		start();
	}
	if ((uintptr_t)caller < code_start || (uintptr_t)caller >= code_end) {
		return false;
	}
	unsigned long i = atomic_fetch_add(&seen[kind], 1);
	if (rate != 0) {
		if (kinds[kind].stock || atomic_fetch_add(&nseen, 1) < SPARED
		    || mix64(atomic_fetch_add(&rate_state, 1)) % rate != 0) {
			return false;
		}
	} else if (kind != armed_kind || i < armed_first || i >= armed_last) {
		return false;
	}
	unsigned nerrors = 0;
	while (nerrors < NERRORS && kinds[kind].errors[nerrors] != 0) {
		nerrors++;
	}
	atomic_fetch_add(&ninjected, 1);
	errno = armed_errno != 0 ? armed_errno
	                         : kinds[kind].errors[i % nerrors];
	return true;
}

#define FAILS(kind) fails(kind, __builtin_return_address(0))

/* What a call that fails has done to its target all the same. */
static void
target_lose(void *addr, size_t size) {
	if (armed_effect == faults_hole) {
		real(SYS_munmap, (long)addr, (long)size, 0, 0, 0, 0);
		errno = ENOMEM;
	}
}

void *
mmap(void *addr, size_t size, int prot, int flags, int fd, off_t offset) {
	bool fixed = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0;
	if (FAILS(fixed ? kind_mmap_fixed : kind_mmap)) {
		if ((flags & MAP_FIXED) != 0) {
			target_lose(addr, size);
		}
		return MAP_FAILED;
	}
	return (void *)real(
	    SYS_mmap, (long)addr, (long)size, prot, flags, fd, offset);
}

void *
mremap(void *old, size_t old_size, size_t size, int flags, ...) {
	va_list args;
	va_start(args, flags);
	void *addr = (flags & MREMAP_FIXED) != 0 ? va_arg(args, void *) : NULL;
	va_end(args);
	if (FAILS(kind_mremap)) {
		if (addr != NULL) {
			target_lose(addr, size);
		}
		return MAP_FAILED;
	}
	return (void *)real(SYS_mremap, (long)old, (long)old_size, (long)size,
	    flags, (long)addr, 0);
}

#define PASS(kind, n, a, b, c)                                                 \
	(FAILS(kind) ? -1                                                      \
	             : (int)real(n, (long)(a), (long)(b), (long)(c), 0, 0, 0))

int
munmap(void *addr, size_t size) {
	return PASS(kind_munmap, SYS_munmap, addr, size, 0);
}

int
mprotect(void *addr, size_t size, int prot) {
	return PASS(kind_mprotect, SYS_mprotect, addr, size, prot);
}

int
mlock(const void *addr, size_t size) {
	return PASS(kind_mlock, SYS_mlock, addr, size, 0);
}

int
munlock(const void *addr, size_t size) {
	return PASS(kind_munlock, SYS_munlock, addr, size, 0);
}

int
ftruncate(int fd, off_t size) {
	return PASS(kind_ftruncate, SYS_ftruncate, fd, size, 0);
}

int
fallocate(int fd, int mode, off_t offset, off_t size) {
	return FAILS(kind_fallocate)
	    ? -1
	    : (int)real(SYS_fallocate, fd, mode, offset, size, 0, 0);
}

int
fstat(int fd, struct stat *st) {
	return PASS(kind_fstat, SYS_fstat, fd, st, 0);
}

int
getrlimit(__rlimit_resource_t resource, struct rlimit *rl) {
	return FAILS(kind_getrlimit)
	    ? -1
	    : (int)real(SYS_prlimit64, 0, (long)resource, 0, (long)rl, 0, 0);
}

int
madvise(void *addr, size_t size, int advice) {
	unsigned kind = kind_advice;
	while (kind < kind_advice_end - 1
	    && kinds[kind].which != (unsigned long)advice) {
		kind++;
	}
	return PASS(kind, SYS_madvise, addr, size, advice);
}

int
ioctl(int fd, unsigned long request, ...) {
	va_list args;
	va_start(args, request);
	void *arg = va_arg(args, void *);
	va_end(args);
	unsigned kind = kind_ioctl;
	while (kind < kind_ioctl_end && kinds[kind].which != request) {
		kind++;
	}
	if (request == UFFDIO_WRITEPROTECT
	    && (((struct uffdio_writeprotect *)arg)->mode
	           & UFFDIO_WRITEPROTECT_MODE_WP)
	        == 0) {
		kind = kind_ioctl_lift;
	}
	return kind < kind_ioctl_end && FAILS(kind)
	    ? -1
	    : (int)real(SYS_ioctl, fd, (long)request, (long)arg, 0, 0, 0);
}

/* Not by number: libc's structure is not the kernel's. */
int
sigaction(int signum, const struct sigaction *action, struct sigaction *old) {
	static int (*next)(int, const struct sigaction *, struct sigaction *);
	if (FAILS(kind_sigaction)) {
		return -1;
	}
	if (next == NULL) {
		*(void **)&next = dlsym(RTLD_NEXT, "sigaction");
	}
	return next(signum, action, old);
}

/* jemalloc makes some calls by number, to avoid what libc adds to them. */
long
syscall(long n, ...) {
	long    arg[6];
	va_list args;
	va_start(args, n);
	for (unsigned i = 0; i < 6; i++) {
		arg[i] = va_arg(args, long);
	}
	va_end(args);
	static const struct {
		long     n;
		unsigned kind;
	} numbers[] = {
	    {SYS_memfd_create, kind_memfd_create},
	    {SYS_userfaultfd, kind_userfaultfd},
	    {SYS_openat, kind_open},
#ifdef SYS_open
	    {SYS_open, kind_open},
#endif
	    {SYS_read, kind_read},
	    {SYS_tgkill, kind_tgkill},
	    {SYS_getdents64, kind_getdents},
	    {SYS_msync, kind_msync},
	    {SYS_fallocate, kind_fallocate},
	};
	for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (numbers[i].n == n && FAILS(numbers[i].kind)) {
			return -1;
		}
	}
	/* A descriptor is closed whatever close says. */
	bool lies = n == SYS_close && FAILS(kind_close);
	int  saved_errno = errno;
	long result = real(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (lies) {
		errno = saved_errno;
		return -1;
	}
	return result;
}
