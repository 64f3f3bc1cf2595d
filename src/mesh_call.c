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
 * reads it before it sends the signal, and most code that makes a call, or has
 * syscall(3) make it, loads it just before.  Relative timeouts count from when the
 * mesher first saw the thread in the call.
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
#include "jemalloc/internal/mesh_task.h"

#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#ifdef __x86_64__

/* Not to be had: no time ends the call. */
#define NEVER UINT64_MAX
/* The call was not made, or not to its end, because of a stop. */
#define CALL_STOPPED (-4096)
/* What the stack has where the frame of a signal would come. */
#define CALL_MARK UINT64_C(0x6d65736863616c6c)
/* Longer timeouts are as good as none. */
#define TIMEOUT_SECONDS_MAX 1000000000

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
	/* When it ends. */
	uint64_t end_ns;
	/* From the stack pointer down to the registers in the frame of a signal. */
	size_t frame;
};

/*
 * Blocks the signals of mask only, and makes the call, unless a handler ran
 * meanwhile: its frame, that many bytes below the stack pointer, would have taken
 * the place of a mark.  No register has the mark, as the frame has registers.  If none
 * ran, EINTR comes from a signal that turned out to be ignored, and means
 * CALL_STOPPED, except for what the kernel keeps.
 *
 * Between these labels nothing else is done, and no register is kept but those that
 * any function keeps, so that mesh_call_return() can end it from anywhere in
 * between.
 */
JEMALLOC_NOINLINE CALL_NOCLONE
static long
call_make(
    long nr, const uint64_t args[6], const uint64_t *mask, size_t frame) {
	register long            rbx __asm__("rbx") = -(long)frame;
	register long            r12 __asm__("r12") = nr;
	register const uint64_t *r13 __asm__("r13") = args;
	register uint64_t        r14 __asm__("r14") = CALL_MARK;
	register uint64_t        r15 __asm__("r15") =
	    nr == SYS_restart_syscall ? 0 : CALL_MARK;
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
	    "movq %%r14, %%r8\n\t"
	    "notq %%r8\n\t"
	    "movq %%r8, (%%rsp,%%rbx)\n"
	    "1:\tsyscall\n\t"
	    "movq 0(%%r13), %%rdi\n\t"
	    "movq 8(%%r13), %%rsi\n\t"
	    "movq 16(%%r13), %%rdx\n\t"
	    "movq 24(%%r13), %%r10\n\t"
	    "movq 32(%%r13), %%r8\n\t"
	    "movq 40(%%r13), %%r9\n\t"
	    "movq (%%rsp,%%rbx), %%rax\n\t"
	    "notq %%rax\n\t"
	    "cmpq %%r14, %%rax\n\t"
	    "movq %[eintr], %%rax\n\t"
	    "jne 2f\n\t"
	    "movq %%r12, %%rax\n\t"
	    "syscall\n"
	    "2:\tcmpq %[eintr], %%rax\n\t"
	    "jne 3f\n\t"
	    "movq (%%rsp,%%rbx), %%r8\n\t"
	    "notq %%r8\n\t"
	    "cmpq %%r15, %%r8\n\t"
	    "jne 3f\n\t"
	    "movq %[stopped], %%rax\n"
	    "3:"
	    : "+r"(rax), "+r"(rdi), "+r"(rsi), "+r"(rdx),
	    [begin] "=m"(call_begin), [end] "=m"(call_end),
	    [known] "=m"(call_known)
	    : "r"(rbx), "r"(r12), "r"(r13), "r"(r14), "r"(r15),
	    [eintr] "i"(-EINTR), [stopped] "i"(CALL_STOPPED)
	    : "rcx", "r8", "r9", "r10", "r11", "cc", "memory", "xmm0", "xmm1",
	    "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
	    "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
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

/*
 * The frame of a signal: first a red zone, then what is saved of the vector
 * registers, aligned to 64 bytes, then a structure that begins with other
 * registers and is as far from these as in any frame.
 */
static size_t
frame_size(const ucontext_t *context) {
	uintptr_t vectors = (uintptr_t)context->uc_mcontext.fpregs;
	/* See struct _fpx_sw_bytes of the kernel. */
	uint32_t size = ((const uint32_t *)(vectors + 464))[1];
	return 128 + size + (vectors - (uintptr_t)context) - 64;
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

/* Whether a signal but these waits that a handler of the program's is for. */
static bool
signal_pends(uint64_t mask) {
	uint64_t pending = 0;
	syscall(SYS_rt_sigpending, &pending, sizeof(pending));
	pending &= ~mask;
	for (int i = 1; pending != 0; i++, pending >>= 1) {
		if (pending % 2 != 0 && mesh_call_signal_handled(i)) {
			return true;
		}
	}
	return false;
}

void
mesh_call_return(const ucontext_t *context) {
	const greg_t *regs = context->uc_mcontext.gregs;
	uintptr_t     pc = (uintptr_t)regs[REG_RIP];
	if (!mesh_call_is_ours(pc)
	    || (pc >= call_end && regs[REG_RAX] != -EINTR)) {
		return;
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
	    : "D"(regs), "S"(call_end), "a"((long)CALL_STOPPED),
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

/* Which of its two timeouts a call on a socket has; 0 for other calls. */
static int
socket_timeout(long nr) {
	switch (nr) {
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_accept:
	case SYS_accept4:
		return SO_RCVTIMEO;
	case SYS_write:
	case SYS_writev:
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
	socklen_t      size = sizeof(tv);
	return syscall(SYS_getsockopt, (int)args[0], SOL_SOCKET,
	           socket_timeout(nr), &tv, &size)
	        != 0
	    || (tv.tv_sec == 0 && tv.tv_usec == 0)
	    ? NEVER
	    : timeval_ns(&tv);
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

static bool
socket_is_unix(int fd) {
	int       domain;
	socklen_t size = sizeof(domain);
	return syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &size)
	    == 0
	    && domain == AF_UNIX;
}

/*
 * Sleeps until a time of a clock, by the call that unblocks signals.  The clock may
 * be set meanwhile.
 */
static long
sleep_attempt(const call_t *call) {
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
	long     r = call_make(SYS_ppoll, args, &signals_all, call->frame);
	return r == 0 ? CALL_STOPPED : r;
}

/* A socket is waited for, as its timeout would begin anew with each call. */
static long
socket_await(const call_t *call, struct timespec *left) {
	struct pollfd pollfd = {.fd = (int)call->args[0],
	    .events = socket_timeout(call->nr) == SO_RCVTIMEO ? POLLIN
	                                                      : POLLOUT};
	uint64_t      args[6] = {(uintptr_t)&pollfd, 1, (uintptr_t)left,
	         (uintptr_t)&call->mask, sizeof(call->mask), 0};
	long          r = call_make(SYS_ppoll, args, &signals_all, call->frame);
	if (r == 0) {
		return call->nr == SYS_connect ? -EINPROGRESS : -EAGAIN;
	}
	/* Those of AF_UNIX always look ready. */
	return r > 0 && call->nr == SYS_connect
	        && call->end_ns <= now_ns() && socket_is_unix(pollfd.fd)
	    ? -EAGAIN
	    : r;
}

/* Makes the call once more. */
static long
call_attempt(const call_t *call) {
	struct {
		const uint64_t *mask;
		size_t          size;
	} masked = {&call->mask, sizeof(call->mask)};
	uint64_t args[6];
	memcpy(args, call->args, sizeof(args));
	/* Unless the call itself unblocks what the program does not block. */
	const uint64_t *mask = &signals_all;
	uint64_t        now = now_ns();
	uint64_t        left_ns = call->end_ns <= now ? 0 : call->end_ns - now;
	struct timespec left = {(time_t)(left_ns / KQU(1000000000)),
	    (long)(left_ns % KQU(1000000000))};
	uint64_t timeout = call->end_ns == NEVER ? 0 : (uintptr_t)&left;
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
				r = socket_await(call, &left);
			}
			if (r <= 0) {
				return r;
			}
			/* A stop just after its handler would hide the mark. */
			if (signal_pends(call->mask)) {
				return -EINTR;
			}
			mask = &call->mask;
			break;
		}
		}
	}
	return call_make(nr, args, mask, call->frame);
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
	case SYS_clock_nanosleep: {
		clockid_t clock = (clockid_t)call->args[0];
		return call_is_kept(call) || clock == CLOCK_REALTIME
		    || clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME
		    || clock == CLOCK_TAI;
	}
	default:
		return call_is_kept(call)
		    || (socket_timeout(call->nr) != 0 && call->end_ns != NEVER);
	}
}

/* Raw calls tell what is left of their time, unless that cannot be written. */
static void
call_write_left(const call_t *call) {
	uint64_t now = now_ns();
	uint64_t left_ns = call->end_ns <= now ? 0 : call->end_ns - now;
	/* A timespec or a timeval. */
	uint64_t left[2] = {
	    left_ns / KQU(1000000000), left_ns % KQU(1000000000)};
	unsigned where = 4;
	switch (call->nr) {
	case SYS_select:
		left[1] /= 1000;
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
		struct iovec from = {left, sizeof(left)};
		struct iovec to = {(void *)call->args[where], sizeof(left)};
		syscall(SYS_process_vm_writev, mesh_tasks_self(), &from, 1, &to,
		    1, 0);
	}
}

/*
 * The code before a program counter, which may be at the beginning of a page.
 * Returns true if it cannot be read.
 */
static bool
code_read(unsigned char *code, uintptr_t pc, size_t size) {
	uintptr_t first = pc - size;
	if ((first & ~PAGE_MASK) == (pc & ~PAGE_MASK)) {
		memcpy(code, (const void *)first, size);
		return false;
	}
	return mesh_tasks_peek(code, (const void *)first, size);
}

/* Registers, as instructions number them. */
#define REG_NR_RAX 0
#define REG_NR_RDI 7

/*
 * The length of an instruction that computes or loads another register than that, or
 * writes to memory, as are made before a call; 0 if it is none of these.
 */
static size_t
code_load_length(const unsigned char *code, size_t size, unsigned reg) {
	size_t   at = 0;
	unsigned rex = 0;
	if ((code[at] & 0xf0) == 0x40) {
		rex = code[at++];
	}
	if (at + 2 > size) {
		return 0;
	}
	unsigned op = code[at++];
	/* Whether the result goes to what the second operand names; immediate bytes. */
	bool   to_rm = false;
	size_t immediate = 0;
	switch (op) {
	case 0x50 ... 0x57: /* push */
		return at;
	case 0x6a: /* push $imm8 */
		return at + 1;
	case 0xb8 ... 0xbf: /* mov $imm32, %reg */
		return (rex & 8) == 0 && ((op & 7) | (rex & 1) << 3) != reg
		    ? at + 4
		    : 0;
	case 0x01: /* add, or, and, sub, xor, mov of a register */
	case 0x09:
	case 0x21:
	case 0x29:
	case 0x31:
	case 0x89:
		to_rm = true;
		break;
	case 0x03: /* The same to one; movslq, lea. */
	case 0x0b:
	case 0x23:
	case 0x2b:
	case 0x33:
	case 0x63:
	case 0x8b:
	case 0x8d:
		break;
	case 0x69: /* imul */
		immediate = 4;
		break;
	case 0x6b:
		immediate = 1;
		break;
	case 0x81: /* add, or, and, sub, xor, mov of a constant */
	case 0xc7:
		to_rm = true;
		immediate = 4;
		break;
	case 0x83: /* The same of a small one; shifts. */
	case 0xc1:
		to_rm = true;
		immediate = 1;
		break;
	default:
		return 0;
	}
	unsigned modrm = code[at++];
	unsigned mod = modrm >> 6;
	unsigned base = modrm & 7;
	unsigned to = to_rm ? base | (rex & 1) << 3
	                    : (modrm >> 3 & 7) | (rex & 4) << 1;
	if ((!to_rm || mod == 3) && to == reg) {
		return 0;
	}
	if (mod != 3 && base == 4) {
		base = code[at++] & 7;
	}
	size_t displacement = mod == 1 ? 1
	    : mod == 2 || (mod == 0 && base == 5) ? 4
	                                          : 0;
	return at + displacement + immediate;
}

/* Whether from there to the end all is done to other registers than that. */
static bool
code_only_loads(
    const unsigned char *code, size_t at, size_t size, unsigned reg) {
	size_t length = 1;
	while (at < size && length != 0) {
		length = code_load_length(&code[at], size - at, reg);
		at += length;
	}
	return at == size;
}

/* The number that is loaded into a register last; -1 if that cannot be had. */
static long
code_loaded(const unsigned char *code, size_t size, unsigned reg) {
	/* mov $number, %reg; then other registers */
	for (size_t first = size - 5; first < size; first--) {
		if (code[first] == 0xb8 + reg
		    && code_only_loads(code, first + 5, size, reg)) {
			int32_t nr;
			memcpy(&nr, &code[first + 1], sizeof(nr));
			return nr;
		}
	}
	return -1;
}

#define CODE_BYTES 96

/*
 * The number that the caller of syscall(3) gave it, which made the call: it passes
 * its arguments on and leaves the stack as it is.
 */
static long
code_number_given(const unsigned char *code, size_t size, uintptr_t sp) {
	/* mov %rdi, %rax */
	static const unsigned char moved[] = {0x48, 0x89, 0xf8};
	bool                       found = false;
	for (size_t at = size; !found && at-- > sizeof(moved);) {
		found = memcmp(&code[at - sizeof(moved)], moved, sizeof(moved)) == 0
		    && code_only_loads(code, at, size, REG_NR_RAX);
	}
	unsigned char caller[CODE_BYTES];
	if (!found
	    || code_read(caller, *(const uintptr_t *)sp, sizeof(caller))) {
		return -1;
	}
	/* call function, or call *function(%rip) */
	size = sizeof(caller) - 5;
	if (caller[size] != 0xe8) {
		size--;
		if (caller[size] != 0xff || caller[size + 1] != 0x15) {
			return -1;
		}
	}
	return code_loaded(caller, size, REG_NR_RDI);
}

/* The number of the call that has just returned; -1 if it cannot be had. */
static long
code_number(uintptr_t pc, uintptr_t sp) {
	unsigned char code[CODE_BYTES];
	size_t        size = sizeof(code) - 2; /* syscall */
	if (code_read(code, pc, sizeof(code))) {
		return -1;
	}
	/* xor %eax, %eax */
	if (code[size - 2] == 0x31 && code[size - 1] == 0xc0) {
		return 0;
	}
	long nr = code_loaded(code, size, REG_NR_RAX);
	return nr != -1 ? nr : code_number_given(code, size, sp);
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

static bool
code_is_call(uintptr_t pc) {
	unsigned char code[2];
	return !code_read(code, pc, sizeof(code)) && code[0] == 0x0f
	    && code[1] == 0x05;
}

/*
 * Whether a call transfers all that it was asked for, unless a signal comes: to or
 * from pipes and sockets without timeouts.
 */
static bool
call_transfers_all(long nr, const uint64_t *args) {
	struct stat st;
	switch (nr) {
	case SYS_getrandom:
		return true;
	case SYS_write:
	case SYS_sendto:
		break;
	case SYS_recvfrom:
		if ((args[3] & (MSG_WAITALL | MSG_PEEK)) != MSG_WAITALL) {
			return false;
		}
		break;
	default:
		return false;
	}
	/* Files may be full, and then a signal would say so. */
	return fstat((int)args[0], &st) == 0
	    && (S_ISFIFO(st.st_mode)
	        || (S_ISSOCK(st.st_mode)
	            && socket_timeout_ns(nr, args) == NEVER));
}

/* Goes on with a transfer that a stop has cut short; returns what it comes to. */
static long
transfer_go_on(long done, long nr, const uint64_t *seen, uint64_t mask,
    size_t frame) {
	/* The buffer, and after it how long that is. */
	unsigned where = nr == SYS_getrandom ? 0 : 1;
	uint64_t args[6];
	memcpy(args, seen, sizeof(args));
	while ((uint64_t)done < seen[where + 1] && !signal_pends(mask)) {
		args[where] = seen[where] + (uint64_t)done;
		args[where + 1] = seen[where + 1] - (uint64_t)done;
		long r = call_make(nr, args, &mask, frame);
		signals_block();
		if (r > 0) {
			done += r;
		} else if (r != CALL_STOPPED) {
			break;
		}
	}
	return done;
}

bool
mesh_call_go_on(
    ucontext_t *context, const mesh_call_t *seen, uint64_t entered_ns) {
	greg_t   *regs = context->uc_mcontext.gregs;
	uintptr_t pc = (uintptr_t)regs[REG_RIP];
	if ((regs[REG_RAX] != -EINTR && regs[REG_RAX] <= 0)
	    || !code_is_call(pc)) {
		return true;
	}
	bool     is_same = seen->nr >= 0 && seen->pc == pc
	    && seen->sp == (uintptr_t)regs[REG_RSP];
	bool     is_seen = is_same && seen->last;
	uint64_t args[6] = {(uint64_t)regs[REG_RDI], (uint64_t)regs[REG_RSI],
	    (uint64_t)regs[REG_RDX], (uint64_t)regs[REG_R10],
	    (uint64_t)regs[REG_R8], (uint64_t)regs[REG_R9]};
	call_t   call = {.nr = is_seen ? seen->nr
	                             : code_number(pc, (uintptr_t)regs[REG_RSP]),
	      .args = args};
	memcpy(&call.mask, &context->uc_sigmask, sizeof(call.mask));
	if (regs[REG_RAX] > 0) {
		/* One of ours is gone on with where it was made. */
		if (!mesh_call_is_ours(pc)
		    && call_transfers_all(call.nr, args)) {
			regs[REG_RAX] = transfer_go_on(regs[REG_RAX], call.nr,
			    args, call.mask, frame_size(context));
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
	call.end_ns = call_end_ns(
	    &call, is_seen ? seen->since_ns : entered_ns, entered_ns);
	call.frame = frame_size(context);
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
		regs[REG_RAX] = 0;
		regs[REG_RCX] = (greg_t)pc;
		regs[REG_RIP] = (greg_t)call_eintr();
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
mesh_call_go_on(
    ucontext_t *context, const mesh_call_t *seen, uint64_t entered_ns) {
	(void)context, (void)seen, (void)entered_ns;
	return true;
}

#endif /* __x86_64__ */
