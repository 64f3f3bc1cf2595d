#ifndef JEMALLOC_INTERNAL_MESH_CALL_H
#define JEMALLOC_INTERNAL_MESH_CALL_H

#include "jemalloc/internal/jemalloc_preamble.h"

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

/* The system call that a thread was seen asleep in. */
typedef struct mesh_call_s mesh_call_t;
struct mesh_call_s {
	/* -1 if it was never seen in any, or that could not be had. */
	long nr;
	/* Whether it was seen there at last, or before. */
	bool last;
	/* Whether it was seen asleep at last, and must not be looked at more closely. */
	bool      secret;
	uint64_t  args[6];
	uintptr_t sp;
	uintptr_t pc;
	/* When it had certainly begun. */
	uint64_t since_ns;
};

/*
 * The handler of a signal, unless it has one of these flags; 0 if there is none.  libc
 * does not tell for the signals it reserves.
 */
static inline uintptr_t
mesh_call_signal_handler(int signum, unsigned flags) {
	/* As the kernel has it: restorer and mask follow the flags. */
	uintptr_t action[4] = {(uintptr_t)SIG_DFL};
	return syscall(SYS_rt_sigaction, signum, NULL, action, sizeof(uint64_t))
	            == 0
	        && action[0] != (uintptr_t)SIG_DFL
	        && action[0] != (uintptr_t)SIG_IGN && (action[1] & flags) == 0
	    ? action[0]
	    : 0;
}

/*
 * Whether it has a time to end, which begins anew when it is made once more, so
 * that one has to know when it began.
 */
bool mesh_call_is_timed(const mesh_call_t *call);

/*
 * Whether a signal would end a call that a thread sleeps in, cut it short or have it
 * begin anew, and nothing can be done about that; perhaps it depends on where in the
 * kernel it sleeps.
 */
typedef enum {
	mesh_frailty_none,
	mesh_frailty_where,
	mesh_frailty_fragile
} mesh_frailty_t;
mesh_frailty_t mesh_call_frailty(const mesh_call_t *call);

/*
 * For the handler, last of all: goes on with the call that the signal has
 * interrupted, if it has.  seen is what the thread was seen in before,
 * entered_ns the time when the handler began, and ours its address.  While that lasts
 * the handler may run again, on top.  Returns false if the call has to end with EINTR
 * though no signal of the program's wants that.
 */
bool mesh_call_go_on(ucontext_t *context, const mesh_call_t *seen,
    uint64_t entered_ns, uintptr_t ours);

/* Whether the thread is in a call that another handler goes on with. */
bool mesh_call_is_ours(uintptr_t pc);

/* For such a handler on top, last of all: does not return if that is so. */
void mesh_call_return(const ucontext_t *context);

#endif /* JEMALLOC_INTERNAL_MESH_CALL_H */
