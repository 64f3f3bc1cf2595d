/*
 * The frame of a signal: first a red zone, then what is saved of the vector registers,
 * aligned to 64 bytes, then a structure that begins with other registers and is as far
 * from these as in any frame.
 *
 * A handler runs on the alternate stack that the program may have set up, as its stacks
 * may be too small.  Often that one is: it is made for one frame, which takes 4 to 12
 * KiB, and for the last words of a program that has used up its stack.  Ours is
 * interrupted by other handlers while it goes on with a call, also by those that never
 * ran on an alternate stack before.  So from a small one it moves, frame and all, to where
 * it would be without: all handlers then run where they always have, and may
 * leave by longjmp(3).  It stays on a large one if all handlers of the program's run there,
 * too, as they do in runtimes whose own stacks are tiny.
 *
 * Not if some other handler has called ours, as those of sanitizers do, which has to
 * return to it.
 *
 * Called by the handler of mesh_stop, and by mesh_call: uses the stack and system calls
 * only.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_call.h"
#include "jemalloc/internal/mesh_frame.h"

#include <signal.h>
#include <sys/syscall.h>

#ifdef __x86_64__

/* Has room for two frames and another handler, as Go's have. */
#	define FRAME_ALT_SIZE (ZU(32) << 10)
#	define FRAME_RED_ZONE 128
/* From there to SIGRTMIN are the signals that libc reserves. */
#	define FRAME_RESERVED 32
/* Among the registers, one that no code keeps. */
#	define FRAME_R11 64

static uintptr_t
frame_vectors(const ucontext_t *context) {
	return (uintptr_t)context->uc_mcontext.fpregs;
}

/* From the context to there. */
static size_t
frame_distance(const ucontext_t *context) {
	return frame_vectors(context) - (uintptr_t)context;
}

/* See struct _fpx_sw_bytes of the kernel. */
static size_t
frame_vectors_size(const ucontext_t *context) {
	return ((const uint32_t *)(frame_vectors(context) + 464))[1];
}

/* Where the vectors are in a frame below an address. */
static uintptr_t
frame_vectors_below(const ucontext_t *context, uintptr_t top) {
	return (top - frame_vectors_size(context)) & ~(uintptr_t)63;
}

size_t
mesh_frame_size(const ucontext_t *context) {
	return FRAME_RED_ZONE + frame_vectors_size(context)
	    + frame_distance(context) - FRAME_R11;
}

static bool
frame_on_alt(const ucontext_t *context, uintptr_t sp) {
	const stack_t *alt = &context->uc_stack;
	return (alt->ss_flags & SS_DISABLE) == 0
	    && sp - (uintptr_t)alt->ss_sp - 1 < alt->ss_size;
}

uint64_t *
mesh_frame_alt(const ucontext_t *context) {
	const stack_t *alt = &context->uc_stack;
	if ((alt->ss_flags & SS_DISABLE) != 0 || alt->ss_size == 0
	    || frame_on_alt(
	        context, (uintptr_t)context->uc_mcontext.gregs[REG_RSP])
	    || frame_on_alt(context, (uintptr_t)&alt)) {
		return NULL;
	}
	return (uint64_t *)(frame_vectors_below(
	                        context, (uintptr_t)alt->ss_sp + alt->ss_size)
	    - frame_distance(context) + FRAME_R11);
}

static void
frame_move(const ucontext_t *context, void (*run)(ucontext_t *context)) {
	uintptr_t   sp = (uintptr_t)context->uc_mcontext.gregs[REG_RSP];
	uintptr_t   to = frame_vectors_below(context, sp - FRAME_RED_ZONE);
	ucontext_t *moved = (ucontext_t *)(to - frame_distance(context));
	memcpy(moved, context,
	    frame_distance(context) + frame_vectors_size(context));
	moved->uc_mcontext.fpregs = (fpregset_t)to;
	/* Below is the address to which a handler returns. */
	__asm__ volatile(
	    "leaq -16(%%rdi), %%rsp\n\t"
	    "movq %%rdi, %%rbx\n\t"
	    "callq *%%rsi\n\t"
	    "movq %%rbx, %%rsp\n\t"
	    "movl %[sigreturn], %%eax\n\t"
	    "syscall"
	    :
	    : "D"(moved), "S"(run), [sigreturn] "i"(SYS_rt_sigreturn)
	    : "memory");
	__builtin_unreachable();
}

/* Whether handlers of the program's run on alternate stacks only. */
static bool
frame_alts_only(void) {
	for (int i = 1; i < NSIG; i++) {
		/* Not those of libc's, which it installs when it likes to. */
		bool reserved = (i >= FRAME_RESERVED && i < SIGRTMIN);
		if (!reserved && mesh_call_signal_handler(i, SA_ONSTACK) != 0) {
			return false;
		}
	}
	return true;
}

void
mesh_frame_run(
    ucontext_t *context, const void *caller, void (*run)(ucontext_t *context)) {
	if (caller == ((void *const *)context)[-1]
	    && frame_on_alt(context, (uintptr_t)context)
	    && !frame_on_alt(
	        context, (uintptr_t)context->uc_mcontext.gregs[REG_RSP])
	    && (context->uc_stack.ss_size < FRAME_ALT_SIZE
	        || !frame_alts_only())) {
		frame_move(context, run);
	}
	run(context);
}

#else /* __x86_64__ */

void
mesh_frame_run(
    ucontext_t *context, const void *caller, void (*run)(ucontext_t *context)) {
	(void)caller;
	run(context);
}

#endif /* __x86_64__ */
