/*
 * Goes on with a system call that a signal of ours has interrupted, so that the
 * program sees neither EINTR nor an early end.
 *
 * With SA_RESTART the kernel itself begins most calls anew.  Those named in
 * signal(7) it does not, as they have a timeout, or as they are there to wait for
 * a signal.  The handler makes these again itself before it returns, and puts the
 * result where the program looks for it.  The program's signals must be able to
 * end the call as before, also those that come just before it is made again:
 *
 *     nanosleep, poll, futex    restart_syscall(2).  The kernel still has the call
 *                               and its end, until any handler returns; so after a
 *                               handler of the program's it says EINTR
 *     select, epoll_wait, ...   the variant that unblocks signals in the call
 *     all others                signals are unblocked first; what handler ran then
 *                               has left its mark on the stack
 *
 * What a call has transferred before a stop it returns, as with any signal.  Where it
 * would have gone on the handler transfers the rest.
 *
 * A stop may come while the handler is in that call.  Its handler, on top, does
 * not return to the kernel, or restart_syscall(2) would have nothing to restart; it
 * goes back to where the first one makes the call, which then makes it once more.
 * So frames do not pile up.
 *
 * The number of the call is not in the frame of a signal on x86-64.  The mesher
 * reads it before it sends the signal, or the code tells it (mesh_code.c).  Relative
 * timeouts count from when the mesher first saw the thread in the call.
 *
 * On x86-64 only: elsewhere registers and frames are others, and those calls end with
 * EINTR as signal(7) says.
 *
 * Called by the handler of mesh_stop in any thread at any point: uses the stack
 * and system calls only.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_call.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_code.h"
#include "jemalloc/internal/mesh_frame.h"
#include "jemalloc/internal/mesh_task.h"
#include "jemalloc/internal/mesh_transfer.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <termios.h>

#ifdef __x86_64__

/* Not to be had: no time ends the call. */
#define NEVER UINT64_MAX
/* The call was not made, or not to its end, because of a stop. */
#define CALL_STOPPED (-4096)
/* What the stack has where the frame of a signal would come. */
#define CALL_MARK UINT64_C(0x9392988c979c9e93)
/* Longer timeouts are as good as none. */
#define TIMEOUT_SECONDS_MAX 1000000000

/* What older <sys/syscall.h> lack. */
#ifndef SYS_futex_waitv
#	define SYS_futex_waitv 449 /* Linux 5.16 */
#endif
#ifndef SYS_futex_wake
#	define SYS_futex_wake 454 /* Linux 6.7 */
#	define SYS_futex_wait 455
#	define SYS_futex_requeue 456
#endif

/* There is one, or it could not be told where in it a thread is. */
#if __has_attribute(noclone)
#	define CALL_NOCLONE __attribute__((noclone))
#else
#	define CALL_NOCLONE
#endif

/*
 * Where call_make() is just before it may be interrupted, just after its call, and
 * when it knows what came of it.  Written by each call of it, always the same.
 */
static uintptr_t call_begin;
static uintptr_t call_end;
static uintptr_t call_known;

static const uint64_t signals_all = ~UINT64_C(0);

typedef struct call_s call_t;
struct call_s {
	long            nr;
	const uint64_t *args;
	/* What the thread had blocked in the call, or outside of it. */
	uint64_t mask;
	/* The handler of stops: these do not end it. */
	uintptr_t ours;
	/* When it ends. */
	uint64_t end_ns;
	/* From the stack pointer down to the registers in the frame of a signal. */
	size_t frame;
	/* Where these are on the program's alternate stack; NULL without one. */
	uint64_t *frame_alt;
	/* Whether a handler of the program's has run when it was made last. */
	bool handled;
};

/*
 * Blocks the signals of mask only, and makes the call, unless a handler ran
 * meanwhile: its frame, so far below the stack pointer or on the alternate stack, would
 * have taken the place of a mark.  No register that any of these places may be for has
 * the mark.  If none ran, EINTR comes from a signal that turned out to be ignored, and
 * means CALL_STOPPED, except for what the kernel keeps.
 *
 * Between these labels nothing else is done, and no register is kept but those that
 * any function keeps, so that mesh_call_return() can end it from anywhere in
 * between.
 */
JEMALLOC_NOINLINE CALL_NOCLONE
static long
call_make(call_t *call, long nr, const uint64_t args[6],
    const uint64_t *mask) {
	uint64_t                 none = 0;
	uint64_t                *alt = call->frame_alt != NULL
	    ? call->frame_alt
	    : &none;
	size_t                   below = call->frame;
	register long            rbx __asm__("rbx") = -(long)below;
	register long            r12 __asm__("r12") = nr;
	register const uint64_t *r13 __asm__("r13") = args;
	register uint64_t       *r14 __asm__("r14") = alt;
	register long            r15 __asm__("r15") = nr == SYS_restart_syscall;
	register long            rax __asm__("rax") = SYS_rt_sigprocmask;
	register long            rdi __asm__("rdi") = SIG_SETMASK;
	register const uint64_t *rsi __asm__("rsi") = mask;
	register long            rdx __asm__("rdx") = 0;
	__asm__ volatile(
	    "leaq 1f(%%rip), %%r10\n\t"
	    "movq %%r10, %[begin]\n\t"
	    "leaq 2f(%%rip), %%r10\n\t"
	    "movq %%r10, %[end]\n\t"
	    "leaq 3f(%%rip), %%r10\n\t"
	    "movq %%r10, %[known]\n\t"
	    "movl $8, %%r10d\n\t"
	    "movabsq %[mark], %%r8\n\t"
	    "movq %%r8, (%%rsp,%%rbx)\n\t"
	    "movq %%r8, (%%r14)\n"
	    "1:\tsyscall\n\t"
	    "movq 0(%%r13), %%rdi\n\t"
	    "movq 8(%%r13), %%rsi\n\t"
	    "movq 16(%%r13), %%rdx\n\t"
	    "movq 24(%%r13), %%r10\n\t"
	    "movq 32(%%r13), %%r8\n\t"
	    "movq 40(%%r13), %%r9\n\t"
	    "movabsq %[mark], %%rcx\n\t"
	    "movq %[eintr], %%rax\n\t"
	    "cmpq %%rcx, (%%rsp,%%rbx)\n\t"
	    "jne 2f\n\t"
	    "cmpq %%rcx, (%%r14)\n\t"
	    "jne 2f\n\t"
	    "movq %%r12, %%rax\n\t"
	    "syscall\n"
	    "2:\tmovabsq %[mark], %%rcx\n\t"
	    "xorl %%edx, %%edx\n\t"
	    "cmpq %%rcx, (%%rsp,%%rbx)\n\t"
	    "jne 3f\n\t"
	    "cmpq %%rcx, (%%r14)\n\t"
	    "jne 3f\n\t"
	    "movl $1, %%edx\n\t"
	    "testq %%r15, %%r15\n\t"
	    "jnz 3f\n\t"
	    "cmpq %[eintr], %%rax\n\t"
	    "jne 3f\n\t"
	    "movq %[stopped], %%rax\n"
	    "3:"
	    : "+r"(rax), "+r"(rdi), "+r"(rsi), "+r"(rdx),
	    [begin] "=m"(call_begin), [end] "=m"(call_end),
	    [known] "=m"(call_known)
	    : "r"(rbx), "r"(r12), "r"(r13), "r"(r14), "r"(r15),
	    [mark] "i"(CALL_MARK), [eintr] "i"(-EINTR),
	    [stopped] "i"(CALL_STOPPED)
	    : "rcx", "r8", "r9", "r10", "r11", "cc", "memory", "xmm0", "xmm1",
	    "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
	    "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	call->handled = (rdx == 0);
	return rax;
}

/*
 * Code that returns -EINTR to where %rcx says, which is where it is after any
 * system call.  A stop that comes just after a handler of ours has returned must not
 * take the EINTR of the program's for its own.
 */
static uintptr_t
call_eintr(void) {
	uintptr_t code;
	__asm__("leaq 1f(%%rip), %[code]\n\t"
	        "jmp 2f\n"
	        "1:\tmovq %[eintr], %%rax\n\t"
	        "jmp *%%rcx\n"
	        "2:"
	        : [code] "=r"(code)
	        : [eintr] "i"(-EINTR));
	return code;
}

bool
mesh_call_is_ours(uintptr_t pc) {
	return pc >= call_begin && pc < call_known;
}

/* After a call, as the handler of a stop meanwhile left them as it liked. */
static void
signals_block(void) {
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &signals_all, NULL,
	    sizeof(signals_all));
}

/*
 * Whether a signal but these waits that a handler is for, other than ours and without
 * these flags.
 */
static bool
signal_pends(uint64_t mask, uintptr_t ours, unsigned flags) {
	uint64_t pending = 0;
	syscall(SYS_rt_sigpending, &pending, sizeof(pending));
	pending &= ~mask;
	for (int i = 1; pending != 0; i++, pending >>= 1) {
		uintptr_t handler = pending % 2 != 0
		    ? mesh_call_signal_handler(i, flags)
		    : 0;
		if (handler != 0 && handler != ours) {
			return true;
		}
	}
	return false;
}

/* Whether the program wants the call to end. */
static bool
call_is_interrupted(const call_t *call) {
	return signal_pends(call->mask, call->ours, /* flags */ 0);
}

void
mesh_call_return(const ucontext_t *context) {
	const greg_t *regs = context->uc_mcontext.gregs;
	uintptr_t     pc = (uintptr_t)regs[REG_RIP];
	if (!mesh_call_is_ours(pc)) {
		return;
	}
	long      rax = CALL_STOPPED;
	uintptr_t to = call_end;
	if (pc >= call_end && regs[REG_RAX] != -EINTR) {
		/* What came of it.  A handler of the program's would be run first. */
		rax = (long)regs[REG_RAX];
		to = call_known;
	}
	__asm__ volatile(
	    "movq %c[rbx](%%rdi), %%rbx\n\t"
	    "movq %c[rbp](%%rdi), %%rbp\n\t"
	    "movq %c[r12](%%rdi), %%r12\n\t"
	    "movq %c[r13](%%rdi), %%r13\n\t"
	    "movq %c[r14](%%rdi), %%r14\n\t"
	    "movq %c[r15](%%rdi), %%r15\n\t"
	    "movq %c[rsp](%%rdi), %%rsp\n\t"
	    "jmp *%%rsi"
	    :
	    : "D"(regs), "S"(to), "a"(rax), "d"(1L),
	    [rbx] "i"(REG_RBX * sizeof(greg_t)),
	    [rbp] "i"(REG_RBP * sizeof(greg_t)),
	    [r12] "i"(REG_R12 * sizeof(greg_t)),
	    [r13] "i"(REG_R13 * sizeof(greg_t)),
	    [r14] "i"(REG_R14 * sizeof(greg_t)),
	    [r15] "i"(REG_R15 * sizeof(greg_t)),
	    [rsp] "i"(REG_RSP * sizeof(greg_t))
	    : "memory");
	__builtin_unreachable();
}

static uint64_t
timespec_ns(const struct timespec *ts) {
	return (uint64_t)ts->tv_sec > TIMEOUT_SECONDS_MAX
	    ? NEVER
	    : (uint64_t)ts->tv_sec * KQU(1000000000) + (uint64_t)ts->tv_nsec;
}

/* The kernel has just read it, so it is there. */
static uint64_t
timeout_ns(uint64_t addr) {
	return addr == 0 ? NEVER : timespec_ns((const struct timespec *)addr);
}

static uint64_t
timeval_ns(const struct timeval *tv) {
	struct timespec ts = {tv->tv_sec, tv->tv_usec * 1000};
	return timespec_ns(&ts);
}

static uint64_t
time_add(uint64_t since_ns, uint64_t ns) {
	return ns == NEVER ? NEVER : since_ns + ns;
}

static struct timespec
time_left(uint64_t end_ns) {
	uint64_t        now = now_ns();
	uint64_t        left_ns = end_ns <= now ? 0 : end_ns - now;
	struct timespec left = {(time_t)(left_ns / KQU(1000000000)),
	    (long)(left_ns % KQU(1000000000))};
	return left;
}

/* Which of its two timeouts a call on a socket has; 0 for other calls. */
static int
socket_timeout(long nr) {
	switch (nr) {
	case SYS_read:
	case SYS_readv:
	case SYS_preadv2:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_accept:
	case SYS_accept4:
		return SO_RCVTIMEO;
	case SYS_write:
	case SYS_writev:
	case SYS_pwritev2:
	case SYS_sendfile:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_connect:
		return SO_SNDTIMEO;
	default:
		return 0;
	}
}

static uint64_t
socket_timeout_ns(long nr, const uint64_t *args) {
	struct timeval tv;
	return mesh_transfer_timeout((int)args[0], socket_timeout(nr), &tv)
	    ? timeval_ns(&tv)
	    : NEVER;
}

/* A property of a socket, -1 if it is none. */
static int
socket_option(int fd, int option) {
	int       value;
	socklen_t size = sizeof(value);
	return syscall(SYS_getsockopt, fd, SOL_SOCKET, option, &value, &size)
	        == 0
	    ? value
	    : -1;
}

/* Clocks that go on as time does, if not set. */
static bool
clock_is_wall(clockid_t clock) {
	return clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC
	    || clock == CLOCK_BOOTTIME || clock == CLOCK_TAI;
}

bool
mesh_call_is_timed(const mesh_call_t *call) {
	const uint64_t *args = call->args;
	switch (call->nr) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		return (int)args[3] >= 0;
	case SYS_epoll_pwait2:
	case SYS_semtimedop:
		return args[3] != 0;
	case SYS_rt_sigtimedwait:
		return args[2] != 0;
	case SYS_io_getevents:
	case SYS_io_pgetevents:
		return args[4] != 0;
	default:
		return socket_timeout(call->nr) != 0
		    && socket_timeout_ns(call->nr, args) != NEVER;
	}
}

/* Whether a terminal gives what there is only after so many bytes, or a while. */
static bool
terminal_collects(int fd) {
	struct termios termios;
	return tcgetattr(fd, &termios) == 0 && (termios.c_lflag & ICANON) == 0
	    && (termios.c_cc[VMIN] > 1 || termios.c_cc[VTIME] > 0);
}

/* Whether it waits for more than there is, or would take the same twice. */
static bool
socket_collects(int fd, uint64_t flags) {
	uint64_t twice = MSG_PEEK | MSG_WAITALL;
	return (flags & twice) == twice || socket_option(fd, SO_RCVLOWAT) > 1;
}

/* They wait for another socket, of which nothing is known. */
static bool
socket_is_datagram(int fd) {
	return socket_option(fd, SO_DOMAIN) == AF_UNIX
	    && socket_option(fd, SO_TYPE) == SOCK_DGRAM
	    && mesh_transfer_timeout(fd, SO_SNDTIMEO, NULL);
}

mesh_frailty_t
mesh_call_frailty(const mesh_call_t *call) {
	const uint64_t *args = call->args;
	int             fd = (int)args[0];
	bool            fragile = false;
	switch (call->nr) {
	case SYS_read:
	case SYS_readv:
	case SYS_preadv2:
		/* Of files nothing can interrupt it, but where a process serves them. */
		fragile = mesh_transfer_is_file(fd) || terminal_collects(fd)
		    || socket_collects(fd, 0);
		break;
	case SYS_pread64:
	case SYS_preadv:
	case SYS_write:
	case SYS_writev:
	case SYS_pwrite64:
	case SYS_pwritev:
	case SYS_pwritev2:
		fragile = mesh_transfer_is_file(fd);
		break;
	case SYS_recvmsg:
		fragile = socket_collects(fd, args[2]);
		break;
	case SYS_recvfrom:
	case SYS_recvmmsg:
		fragile = socket_collects(fd, args[3]);
		break;
	case SYS_splice:
		fragile = mesh_transfer_timeout(fd, SO_RCVTIMEO, NULL)
		    || mesh_transfer_timeout(
		        (int)args[2], SO_SNDTIMEO, NULL);
		break;
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
		return socket_is_datagram(fd) ? mesh_frailty_fragile
		                              : mesh_frailty_where;
	case SYS_clock_nanosleep:
		fragile = (args[1] & TIMER_ABSTIME) != 0
		    && !clock_is_wall((clockid_t)args[0]);
		break;
	case SYS_connect:
	case SYS_copy_file_range:
	case SYS_open:
	case SYS_openat:
	case SYS_openat2:
	case SYS_sendfile:
		return mesh_frailty_where;
	case SYS_accept:
	case SYS_accept4:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_epoll_wait:
	case SYS_exit:
	case SYS_exit_group:
	case SYS_fcntl:
	case SYS_flock:
	case SYS_futex:
	case SYS_futex_requeue:
	case SYS_futex_wait:
	case SYS_futex_waitv:
	case SYS_futex_wake:
	case SYS_getrandom:
	case SYS_io_getevents:
	case SYS_io_pgetevents:
	case SYS_mq_timedreceive:
	case SYS_mq_timedsend:
	case SYS_msgrcv:
	case SYS_msgsnd:
	case SYS_nanosleep:
	case SYS_pause:
	case SYS_poll:
	case SYS_ppoll:
	case SYS_pselect6:
	case SYS_restart_syscall:
	case SYS_rt_sigsuspend:
	case SYS_rt_sigtimedwait:
	case SYS_sched_yield:
	case SYS_select:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_tee:
	case SYS_vmsplice:
	case SYS_wait4:
	case SYS_waitid:
		break;
	default:
		/*
		 * Who knows: close(2) that lingers has no descriptor any more, and
		 * ioctl(2), io_uring_enter(2) and what processes serve say EINTR.
		 */
		fragile = true;
	}
	return fragile ? mesh_frailty_fragile : mesh_frailty_none;
}

/*
 * Whether the kernel can go on with the call, as it knows what is left of it.
 * Not asked of other calls: what is left of one long ago might still be there.
 */
static bool
call_is_kept(const call_t *call) {
	switch (call->nr) {
	case SYS_nanosleep:
	case SYS_poll:
	/* One of them that it goes on with already, as after SIGSTOP and SIGCONT. */
	case SYS_restart_syscall:
		return true;
	case SYS_clock_nanosleep:
		return ((int)call->args[1] & TIMER_ABSTIME) == 0;
	case SYS_futex: {
		int op = (int)call->args[1] & FUTEX_CMD_MASK;
		return op == FUTEX_WAIT || op == FUTEX_WAIT_BITSET;
	}
	default:
		return false;
	}
}

/*
 * Says when the call ends.  The kernel writes back what is left of a few
 * timeouts when it interrupts the call, which is when the handler begins.
 */
static uint64_t
call_end_ns(const call_t *call, uint64_t since_ns, uint64_t entered_ns) {
	const uint64_t *args = call->args;
	switch (call->nr) {
	case SYS_pselect6:
		return time_add(entered_ns, timeout_ns(args[4]));
	case SYS_ppoll:
		return time_add(entered_ns, timeout_ns(args[2]));
	case SYS_select:
		return args[4] == 0
		    ? NEVER
		    : time_add(entered_ns,
		        timeval_ns((const struct timeval *)args[4]));
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		return (int)args[3] < 0
		    ? NEVER
		    : since_ns + (uint64_t)(int)args[3] * KQU(1000000);
	case SYS_epoll_pwait2:
	case SYS_semtimedop:
		return time_add(since_ns, timeout_ns(args[3]));
	case SYS_rt_sigtimedwait:
		return time_add(since_ns, timeout_ns(args[2]));
	case SYS_io_getevents:
	case SYS_io_pgetevents:
		return time_add(since_ns, timeout_ns(args[4]));
	default:
		return socket_timeout(call->nr) == 0
		    ? NEVER
		    : time_add(since_ns, socket_timeout_ns(call->nr, args));
	}
}

/*
 * Sleeps until a time of a clock, by the call that unblocks signals.  The clock may
 * be set meanwhile.
 */
static long
sleep_attempt(call_t *call) {
	const struct timespec *end = (const struct timespec *)call->args[2];
	struct timespec        now;
	clock_gettime((clockid_t)call->args[0], &now);
	int64_t left_ns = (end->tv_sec - now.tv_sec) * KQU(1000000000)
	    + (end->tv_nsec - now.tv_nsec);
	if (left_ns <= 0) {
		return 0;
	}
	struct timespec left = {.tv_sec = 1};
	if (left_ns < 1000000000) {
		left.tv_sec = 0;
		left.tv_nsec = left_ns;
	}
	uint64_t args[6] = {0, 0, (uintptr_t)&left, (uintptr_t)&call->mask,
	    sizeof(call->mask), 0};
	long     r = call_make(call, SYS_ppoll, args, &signals_all);
	return r == 0 ? CALL_STOPPED : r;
}

/* A socket is waited for, as its timeout would begin anew with each call. */
static long
socket_await(call_t *call) {
	struct timespec left = time_left(call->end_ns);
	struct pollfd pollfd = {.fd = (int)call->args[0],
	    .events = socket_timeout(call->nr) == SO_RCVTIMEO ? POLLIN
	                                                      : POLLOUT};
	uint64_t      args[6] = {(uintptr_t)&pollfd, 1, (uintptr_t)&left,
	         (uintptr_t)&call->mask, sizeof(call->mask), 0};
	long          r = call_make(call, SYS_ppoll, args, &signals_all);
	if (r == 0) {
		return call->nr == SYS_connect ? -EINPROGRESS : -EAGAIN;
	}
	/* Those of AF_UNIX always look ready. */
	return r > 0 && call->nr == SYS_connect
	        && call->end_ns <= now_ns() && socket_option(pollfd.fd, SO_DOMAIN) == AF_UNIX
	    ? -EAGAIN
	    : r;
}

/* Makes the call once more. */
static long
call_attempt(call_t *call) {
	struct {
		const uint64_t *mask;
		size_t          size;
	} masked = {&call->mask, sizeof(call->mask)};
	uint64_t args[6];
	memcpy(args, call->args, sizeof(args));
	/* Unless the call itself unblocks what the program does not block. */
	const uint64_t *mask = &signals_all;
	struct timespec left = time_left(call->end_ns);
	uint64_t        timeout = call->end_ns == NEVER ? 0 : (uintptr_t)&left;
	long     nr = call->nr;
	if (call_is_kept(call)) {
		nr = SYS_restart_syscall;
		mask = &call->mask;
	} else {
		switch (nr) {
		case SYS_select:
			args[5] = 0;
			nr = SYS_pselect6;
			JEMALLOC_FALLTHROUGH;
		case SYS_pselect6:
			args[4] = timeout;
			if (args[5] == 0 || *(const uint64_t *)args[5] == 0) {
				args[5] = (uintptr_t)&masked;
			}
			break;
		case SYS_ppoll:
			args[2] = timeout;
			if (args[3] == 0) {
				args[3] = (uintptr_t)&call->mask;
				args[4] = sizeof(call->mask);
			}
			break;
		case SYS_epoll_wait:
			args[4] = 0;
			JEMALLOC_FALLTHROUGH;
		case SYS_epoll_pwait:
		case SYS_epoll_pwait2:
			nr = SYS_epoll_pwait2;
			args[3] = timeout;
			if (args[4] == 0) {
				args[4] = (uintptr_t)&call->mask;
				args[5] = sizeof(call->mask);
			}
			break;
		case SYS_pause:
			args[0] = (uintptr_t)&call->mask;
			args[1] = sizeof(call->mask);
			nr = SYS_rt_sigsuspend;
			break;
		case SYS_rt_sigsuspend:
			break;
		case SYS_clock_nanosleep:
			return sleep_attempt(call);
		case SYS_io_getevents:
			args[5] = 0;
			nr = SYS_io_pgetevents;
			JEMALLOC_FALLTHROUGH;
		case SYS_io_pgetevents:
			args[4] = timeout;
			if (args[5] == 0 || *(const uint64_t *)args[5] == 0) {
				args[5] = (uintptr_t)&masked;
			}
			break;
		default: {
			long r = 1;
			if (nr == SYS_rt_sigtimedwait) {
				args[2] = timeout;
			} else if (nr == SYS_semtimedop) {
				args[3] = timeout;
			} else if (socket_timeout(nr) != 0) {
				r = socket_await(call);
			}
			if (r <= 0) {
				return r;
			}
			/* A stop just after its handler would hide the mark. */
			if (call_is_interrupted(call)) {
				return -EINTR;
			}
			mask = &call->mask;
			break;
		}
		}
	}
	return call_make(call, nr, args, mask);
}

/* Whether it is one of those that are known. */
static bool
call_is_known(const call_t *call) {
	switch (call->nr) {
	case SYS_pselect6:
	case SYS_select:
	case SYS_ppoll:
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_pause:
	case SYS_rt_sigsuspend:
	case SYS_io_getevents:
	case SYS_io_pgetevents:
	case SYS_rt_sigtimedwait:
	case SYS_semtimedop:
	case SYS_semop:
	case SYS_msgrcv:
	case SYS_msgsnd:
		return true;
	case SYS_clock_nanosleep:
		return call_is_kept(call)
		    || clock_is_wall((clockid_t)call->args[0]);
	default:
		return call_is_kept(call)
		    || (socket_timeout(call->nr) != 0 && call->end_ns != NEVER);
	}
}

/* Raw calls tell what is left of their time, unless that cannot be written. */
static void
call_write_left(const call_t *call) {
	/* Or a timeval. */
	struct timespec left = time_left(call->end_ns);
	unsigned        where = 4;
	switch (call->nr) {
	case SYS_select:
		left.tv_nsec /= 1000;
		break;
	case SYS_pselect6:
		break;
	case SYS_ppoll:
		where = 2;
		break;
	default:
		return;
	}
	if (call->end_ns != NEVER) {
		struct iovec from = {&left, sizeof(left)};
		struct iovec to = {(void *)call->args[where], sizeof(left)};
		syscall(SYS_process_vm_writev, mesh_tasks_self(), &from, 1, &to,
		    1, 0);
	}
}

/*
 * Whether these are arguments of FUTEX_WAIT or FUTEX_WAIT_BITSET with a timeout, as
 * far as one can see.  libstdc++ makes that call by syscall(3), whose code does not
 * tell the number.
 */
static bool
args_are_futex(const uint64_t *args) {
	uint64_t op = args[1] & (uint64_t)FUTEX_CMD_MASK;
	return args[0] >= PAGE && args[0] % sizeof(uint32_t) == 0
	    && (op == FUTEX_WAIT || op == FUTEX_WAIT_BITSET) && args[3] >= PAGE;
}

/*
 * The kernel's own for a call that it would begin anew.  recvmmsg(2) leaves it to the
 * next one on the same socket.
 */
#define ERESTARTSYS 512

/*
 * Whether its timeout begins anew with each part of a transfer.  How long it has waited
 * for the last one is not known.
 */
static bool
timeout_is_for_parts(const call_t *call) {
	switch (call->nr) {
	case SYS_sendfile:
	case SYS_sendmmsg:
	case SYS_recvmmsg:
		return true;
	default:
		return socket_timeout(call->nr) == SO_SNDTIMEO
		    && socket_option((int)call->args[0], SO_DOMAIN) == AF_UNIX;
	}
}

/* Transfers what there is, on sockets with a timeout, or the rest. */
static long
transfer_attempt(mesh_transfer_t *transfer, call_t *call) {
	if (call->end_ns != NEVER) {
		long r = socket_await(call);
		if (r <= 0) {
			return r;
		}
		if (call_is_interrupted(call)) {
			return -EINTR;
		}
	}
	long r = call_make(call, transfer->nr, transfer->args, &call->mask);
	/* Somebody else may have been faster. */
	return r == -EAGAIN && call->end_ns != NEVER && !call->handled
	    ? CALL_STOPPED
	    : r;
}

/* Goes on with a transfer that a stop has cut short, and says what it comes to. */
static uint64_t
transfer_go_on(mesh_transfer_t *transfer, call_t *call, uint64_t timeout_ns) {
	bool is_for_parts = timeout_ns != NEVER && timeout_is_for_parts(call);
	if (is_for_parts) {
		call->end_ns = now_ns() + timeout_ns;
	}
	while (mesh_transfer_next(transfer) && !call_is_interrupted(call)) {
		long r = transfer_attempt(transfer, call);
		signals_block();
		if (r > 0) {
			transfer->done += (uint64_t)r;
			if (is_for_parts) {
				call->end_ns = now_ns() + timeout_ns;
			}
		}
		if (r > 0 ? call->handled
		          : r != CALL_STOPPED && r != -ERESTARTSYS) {
			break;
		}
	}
	return transfer->done;
}

/* Returns EINTR to where a call has been made. */
static void
call_fail(ucontext_t *context, uintptr_t pc) {
	greg_t *regs = context->uc_mcontext.gregs;
	regs[REG_RAX] = 0;
	regs[REG_RCX] = (greg_t)pc;
	regs[REG_RIP] = (greg_t)call_eintr();
}

/* Whether a signal may end the call with EINTR, even one that has just begun. */
static bool
call_is_endable(long nr, const greg_t *regs) {
	struct stat st;
	switch (nr) {
	case SYS_flock:
	case SYS_futex:
	case SYS_wait4:
	case SYS_waitid:
		return true;
	case SYS_fcntl:
		return (int)regs[REG_RSI] == F_SETLKW
		    || (int)regs[REG_RSI] == F_OFD_SETLKW;
	default:
		/* Nobody expects that of files. */
		return socket_timeout(nr) != 0 && nr != SYS_connect
		    && fstat((int)regs[REG_RDI], &st) == 0
		    && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)
		        || S_ISCHR(st.st_mode));
	}
}

/*
 * Whether a call is about to begin, perhaps anew, that a signal of the program's, which came
 * meanwhile, is to end.
 */
static bool
call_is_due(const mesh_call_t *seen, const greg_t *regs, uint64_t mask) {
	uintptr_t pc = (uintptr_t)regs[REG_RIP] + MESH_CODE_CALL_BYTES;
	bool      is_seen = seen->last && regs[REG_RAX] == seen->nr
	    && seen->pc == pc && seen->sp == (uintptr_t)regs[REG_RSP];
	return regs[REG_RAX] >= 0 && signal_pends(mask, /* ours */ 0, SA_RESTART)
	    && mesh_code_is_call(pc)
	    && (is_seen || call_is_endable((long)regs[REG_RAX], regs));
}

bool
mesh_call_go_on(ucontext_t *context, const mesh_call_t *seen,
    uint64_t entered_ns, uintptr_t ours) {
	greg_t   *regs = context->uc_mcontext.gregs;
	uintptr_t pc = (uintptr_t)regs[REG_RIP];
	uint64_t  mask;
	memcpy(&mask, &context->uc_sigmask, sizeof(mask));
	if (call_is_due(seen, regs, mask)) {
		call_fail(context, pc + MESH_CODE_CALL_BYTES);
		return true;
	}
	if ((regs[REG_RAX] != -EINTR && regs[REG_RAX] <= 0)
	    || !mesh_code_is_call(pc)) {
		return true;
	}
	bool     is_same = seen->nr >= 0 && seen->pc == pc
	    && seen->sp == (uintptr_t)regs[REG_RSP];
	bool     is_seen = is_same && seen->last;
	uint64_t args[6] = {(uint64_t)regs[REG_RDI], (uint64_t)regs[REG_RSI],
	    (uint64_t)regs[REG_RDX], (uint64_t)regs[REG_R10],
	    (uint64_t)regs[REG_R8], (uint64_t)regs[REG_R9]};
	call_t   call = {
	      .nr = is_seen ? seen->nr
	                    : mesh_code_number(pc, (uintptr_t)regs[REG_RSP]),
	      .args = args,
	      .mask = mask,
	      .ours = ours,
	      .frame = mesh_frame_size(context),
	      .frame_alt = mesh_frame_alt(context)};
	uint64_t since_ns = is_seen || seen->secret ? seen->since_ns
	                                            : entered_ns;
	if (regs[REG_RAX] > 0) {
		mesh_transfer_t transfer;
		uint64_t        timeout_ns = socket_timeout(call.nr) == 0
		    ? NEVER
		    : socket_timeout_ns(call.nr, args);
		call.end_ns = time_add(since_ns, timeout_ns);
		/* One of ours is gone on with where it was made. */
		if (!mesh_call_is_ours(pc)
		    && mesh_transfer_begin(&transfer, call.nr, args,
		        regs[REG_RAX], timeout_ns != NEVER)) {
			regs[REG_RAX] = (greg_t)transfer_go_on(
			    &transfer, &call, timeout_ns);
		}
		return true;
	}
	/* Code that makes any call, as syscall(3), has made just this one before. */
	if (call.nr == -1 && is_same && socket_timeout(seen->nr) == 0
	    && memcmp(args, seen->args, sizeof(args)) == 0) {
		call.nr = seen->nr;
	}
	if (call.nr == -1 && args_are_futex(args)) {
		call.nr = SYS_futex;
	}
	call.end_ns = call_end_ns(&call, since_ns, entered_ns);
	if (!call_is_known(&call)) {
		return false;
	}
	long r;
	do {
		signals_block();
		r = call_attempt(&call);
	} while (r == CALL_STOPPED);
	call_write_left(&call);
	regs[REG_RAX] = r;
	if (r == -EINTR) {
		call_fail(context, pc);
	}
	return true;
}

#else /* __x86_64__ */

/* The kernel restarts what it does, and the rest ends with EINTR. */
bool
mesh_call_is_timed(const mesh_call_t *call) {
	(void)call;
	return false;
}

mesh_frailty_t
mesh_call_frailty(const mesh_call_t *call) {
	(void)call;
	return mesh_frailty_none;
}

bool
mesh_call_is_ours(uintptr_t pc) {
	(void)pc;
	return false;
}

void
mesh_call_return(const ucontext_t *context) {
	(void)context;
}

bool
mesh_call_go_on(ucontext_t *context, const mesh_call_t *seen,
    uint64_t entered_ns, uintptr_t ours) {
	(void)context, (void)seen, (void)entered_ns, (void)ours;
	return true;
}

#endif /* __x86_64__ */
