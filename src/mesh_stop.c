/*
 * Stop the world: every other thread of the process is made to wait in the
 * handler of a signal, so that nobody writes to a slab while it is copied.
 *
 * A thread that handles a signal has left its system call, so no read(2) into
 * the heap is under way either.  What a stop does not cover is the kernel writing
 * on its own: completions of io_uring, pinned buffers, processes that share the
 * memory (clone(2) with CLONE_VM).  A thread in vfork(2) or posix_spawn(3), whose
 * child shares the memory, handles no signal meanwhile, and neither does one
 * within a long read from a disk, or that a debugger has stopped: then there is no
 * stop.
 *
 * Stop:
 *     1. wait until all have left the handler of the stop before
 *     2. look whether each thread may be sent the signal; if one may not, give up
 *        before anybody was disturbed
 *     3. the epoch becomes odd; send the signal to each thread of /proc/self/task
 *        until all of them are parked
 *     4. a look at the whole directory finds every thread parked.  Only threads
 *        that run can make new ones or end, so none is missing from it
 * Resume: the epoch becomes even, which all threads wait for, but the first.
 *
 * A signal to the process goes to the first thread, if that does not block it, and many
 * programs rely on that though others do not block it either.  To any of these it would
 * go while the first thread is in the handler.  So that is the last one to be
 * stopped and the first one to leave.
 *
 * The signal has to be one whose default is that nothing happens.  A signal that
 * is pending for a thread survives execve(2), which sets its handler back to the
 * default: a real-time signal would kill the new program.  It would kill the
 * process, too, if the program set all signals back to their default just before
 * it is sent.  SIGURG and SIGWINCH remain; the first that the program leaves
 * alone is taken, and if it takes that later, the other.  Whoever else sends it
 * just wakes a handler that returns at once.
 *
 * The handler runs in any thread at any point, so it uses static memory and
 * system calls only.  Even with SA_RESTART a few system calls return EINTR after
 * it: poll, epoll_wait, nanosleep and others named in signal(7).  With these the
 * handler goes on itself (mesh_call.c), for which the mesher notes beforehand in
 * which calls the threads are.  A thread that has not run since need not be looked at
 * again.
 *
 * Called by mesh_barrier under the mesh lock, which guards all that the handler
 * does not use.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/malloc_io.h"
#include "jemalloc/internal/mesh_call.h"
#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_frame.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_task.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#ifndef AT_MINSIGSTKSZ
#	define AT_MINSIGSTKSZ 51
#endif

/*
 * Threads that can be stopped; with more, nothing is meshed.  Costs no memory
 * before there are so many.
 */
#define STOP_LG_THREADS 15
#define STOP_THREADS_MAX (1U << STOP_LG_THREADS)
#define INDEX_LG_SIZE (STOP_LG_THREADS + 1)
#define INDEX_SIZE (1U << INDEX_LG_SIZE)

/*
 * How long the others may have to stand still because of one that does not
 * answer: it only waits for a processor, or for something else.
 */
#define STOP_BUSY_NS UINT64_C(100000000)
#define STOP_STUCK_NS UINT64_C(5000000)
/* It is not asked before what it does: to look at many takes a processor, too. */
#define STOP_ASK_NS UINT64_C(3000000)
/* Time until the next look at who does not answer: doubles each time. */
#define STOP_POLL_NS_MIN UINT64_C(200000)
#define STOP_POLL_NS_MAX UINT64_C(4000000)
/* What a handler takes below the frame of its signal, and the least that this takes. */
#define STOP_STACK 2048
#define STOP_FRAME_MIN 2048

/* How long the others wait for the first thread, should it wait for a processor. */
#define STOP_FIRST_NS UINT64_C(1000000)
/* How long it may take a signal; twice as long each time. */
#define STOP_FIRST_NS_MIN UINT64_C(20000)
#define STOP_FIRST_NS_MAX UINT64_C(640000)
/* So late a call with a timeout may end because of us. */
#define STOP_LATE_NS UINT64_C(50000000)

/*
 * A thread that has just woken is about to return from a handler or a call, or to
 * begin the next one: just when a stop could take what a handler has ended for its
 * own, or not find out the call.  It may stay there for longer, if it has to wait for
 * a processor, as the kernel takes that away on the way back from a call.  So before
 * anybody is stopped it is waited for, so often, each time twice as long, until it has
 * run for long enough; and looked at so often before it is sent the signal, which takes
 * some microseconds each time.
 */
#define STOP_WOKEN_WAITS 6
#define STOP_WOKEN_NS UINT64_C(50000)
#define STOP_WOKEN_RUN_NS UINT64_C(50000)
/* After a stop it may fall asleep and wake before anybody looks. */
#define STOP_STOPPED_RUN_NS UINT64_C(300000)
#define STOP_LOOKS 5
/*
 * If it wakes when others are stopped already, they stand still for so long; then there
 * is no stop.
 */
#define STOP_DEFER_NS UINT64_C(2000000)

typedef struct stop_thread_s stop_thread_t;
struct stop_thread_s {
	atomic_u32_t tid;
	/* The epoch that it is parked in, and where its stack is. */
	atomic_u32_t parked;
	atomic_zu_t  sp;
	/* The epoch that it was last signalled in. */
	uint32_t signalled;
	/*
	 * When it was last looked at, and how long it had run in all.  As long as
	 * that is the same the thread is where it was.
	 */
	uint64_t looked_ns;
	uint64_t ran_ns;
	/* Why it must not be sent the signal, or NULL. */
	const char *why;
	bool        asleep;
	bool        ended;
	/* Until it has run for so long in all it may have been asleep just before. */
	uint64_t settled_ns;
	/* The signals that it blocked when it was looked at. */
	uint64_t blocked;
	/*
	 * The call in which it is asleep.  Its handler reads that after it was
	 * parked, when nobody writes any more.
	 */
	mesh_call_t call;
};

static const int stop_candidates[] = {SIGURG, SIGWINCH};
#define NCANDIDATES (sizeof(stop_candidates) / sizeof(stop_candidates[0]))
/* The one of glibc's that no program can block. */
#define SIGNAL_SETXID 33
/* The one that is ours, 0 if none is. */
static int stop_signum;
/* Whether it is another one than before. */
static atomic_b_t stop_signal_changed;
/* Of which process all this is; a child starts afresh. */
static pid_t stop_pid;

/* Odd while the world is stopped or being stopped. */
static atomic_u32_t stop_epoch;
/* The last epoch that the first thread may leave, and that it has left. */
static atomic_u32_t stop_first;
static atomic_u32_t stop_first_left;
/* Threads in the handler. */
static atomic_u32_t stop_inside;
/* Whether the mesher waits for the last of them to leave. */
static atomic_b_t stop_awaits_inside;
/* Threads parked in this epoch, and how many the mesher waits for. */
static atomic_u32_t stop_nparked;
static atomic_u32_t stop_nwanted;

/* Calls of the program's that ended with EINTR because of us. */
static atomic_zu_t stop_ninterrupted;

/* From the first signal until all were parked, the last time. */
static uint64_t stop_took_ns;

/* Whether jemalloc's own threads run on. */
static bool stop_spares_own;

static stop_thread_t stop_threads[STOP_THREADS_MAX];
static unsigned      stop_nthreads;
/* When all were looked at; what is not there began later. */
static uint64_t stop_looked_ns;
/* Finds a thread by its tid: its place in stop_threads plus one. */
static atomic_u32_t stop_index[INDEX_SIZE];

static const char stop_no_answer[] =
    "a thread does not answer the signal that stops it";
static const char stop_small_stack[] =
    "a thread has too little stack left for signals";
static const char stop_traced[] = "a debugger has stopped a thread";
static const char stop_no_memory[] =
    "the process has more threads than can be stopped";
static const char stop_no_tasks[] = MESH_TASKS " cannot be read";
static const char stop_no_signal[] =
    "the program uses all signals that could stop its threads, SIGURG and "
    "SIGWINCH";
const char mesh_stop_blocked[] =
    "a thread blocks the signal that stops it, SIGURG or SIGWINCH";
const char mesh_stop_timed[] =
    "a thread waits for a time that began nobody knows when";
static const char stop_fragile[] =
    "a thread is in a system call that a signal would spoil";

/******************************************************************************/
/* The stopped side. */

/* Returns at once if the word has another value, or in case of any signal. */
static void
futex_wait(atomic_u32_t *word, uint32_t value, uint64_t timeout_ns) {
	struct timespec timeout = {.tv_sec = 0, .tv_nsec = (long)timeout_ns};
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value,
	    timeout_ns == 0 ? NULL : &timeout, NULL, 0);
}

static void
futex_wake(atomic_u32_t *word, int n) {
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static unsigned
index_first(uint32_t tid) {
	return (tid * UINT32_C(0x9e3779b1)) >> (32 - INDEX_LG_SIZE);
}

/* Returns NULL for a thread that nobody waits for. */
static stop_thread_t *
thread_find(uint32_t tid) {
	for (unsigned i = index_first(tid);; i = (i + 1) % INDEX_SIZE) {
		uint32_t place = atomic_load_u32(
		    &stop_index[i], ATOMIC_ACQUIRE);
		if (place == 0) {
			return NULL;
		}
		stop_thread_t *thread = &stop_threads[place - 1];
		if (atomic_load_u32(&thread->tid, ATOMIC_RELAXED) == tid) {
			return thread;
		}
	}
}

/* All signals, those that libc reserves included, which sigfillset() spares. */
static void
signals_block(uint64_t *old) {
	uint64_t all = ~UINT64_C(0);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, old, sizeof(all));
}

/* Until a word has a value, or has it no more. */
static void
handler_await(atomic_u32_t *word, uint32_t value, bool has) {
	uint32_t now;
	while (
	    ((now = atomic_load_u32(word, ATOMIC_ACQUIRE)) == value) != has) {
		futex_wait(word, now, 0);
	}
}

/* Leaves signals to the first thread that has been woken for them. */
static void
handler_yield(void) {
	stop_thread_t *first = thread_find((uint32_t)stop_pid);
	uint64_t       pending;
	for (uint64_t ns = STOP_FIRST_NS_MIN;
	     first != NULL && ns <= STOP_FIRST_NS_MAX
	     && syscall(SYS_rt_sigpending, &pending, sizeof(pending)) == 0
	     && (pending & ~first->blocked) != 0;
	     ns *= 2) {
		/* nanosleep(2) would take the place of one that is gone on with. */
		futex_wait(&stop_epoch,
		    atomic_load_u32(&stop_epoch, ATOMIC_RELAXED), ns);
	}
}

/* Returns what the thread was seen in before. */
static mesh_call_t
handler_park(uint32_t epoch) {
	mesh_call_t    seen = {.nr = -1};
	stop_thread_t *self = thread_find(mesh_tasks_self());
	if (self == NULL) {
		return seen;
	}
	/* Returning from the handler sets back what the thread had blocked. */
	uint64_t old;
	signals_block(&old);
	atomic_store_zu(&self->sp, (size_t)(uintptr_t)&old, ATOMIC_RELAXED);
	atomic_store_u32(&self->parked, epoch, ATOMIC_RELEASE);
	if (atomic_fetch_add_u32(&stop_nparked, 1, ATOMIC_SEQ_CST) + 1
	    == atomic_load_u32(&stop_nwanted, ATOMIC_SEQ_CST)) {
		futex_wake(&stop_nparked, 1);
	}
	if (mesh_tasks_self() == (uint32_t)stop_pid) {
		handler_await(&stop_first, epoch, true);
		atomic_store_u32(&stop_first_left, epoch, ATOMIC_SEQ_CST);
		futex_wake(&stop_first_left, 1);
	} else {
		handler_await(&stop_epoch, epoch, false);
		handler_yield();
	}
	return self->call;
}

static void handler(int signum, siginfo_t *info, void *context);

static void
handler_run(ucontext_t *context) {
	int         saved_errno = get_errno();
	uint64_t    entered_ns = now_ns();
	mesh_call_t seen = {.nr = -1};
	atomic_fetch_add_u32(&stop_inside, 1, ATOMIC_SEQ_CST);
	/* Nobody changes the table while this is odd and somebody inside. */
	uint32_t epoch = atomic_load_u32(&stop_epoch, ATOMIC_SEQ_CST);
	if (epoch % 2 != 0) {
		seen = handler_park(epoch);
	}
	if (atomic_fetch_sub_u32(&stop_inside, 1, ATOMIC_SEQ_CST) == 1
	    && atomic_load_b(&stop_awaits_inside, ATOMIC_SEQ_CST)) {
		futex_wake(&stop_inside, 1);
	}
	mesh_call_return(context);
	if (!mesh_call_go_on(context, &seen, entered_ns, (uintptr_t)handler)) {
		atomic_fetch_add_zu(&stop_ninterrupted, 1, ATOMIC_RELAXED);
	}
	set_errno(saved_errno);
}

static void
handler(int signum, siginfo_t *info, void *context) {
	(void)signum;
	(void)info;
	mesh_frame_run(context, __builtin_return_address(0), handler_run);
}

/******************************************************************************/
/* The signal. */

static bool
signal_is_ours(int signum) {
	struct sigaction action;
	return sigaction(signum, NULL, &action) == 0
	    && action.sa_sigaction == handler;
}

/* Takes a signal unless the program does anything with it. */
static bool
signal_take(int signum) {
	struct sigaction old,
	    ours = {.sa_sigaction = handler,
	        .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	/* What sigfillset() spares, a thread may be cancelled by. */
	memset(&ours.sa_mask, 0xff, sizeof(ours.sa_mask));
	if (sigaction(signum, NULL, &old) != 0 || old.sa_handler != SIG_DFL
	    || sigaction(signum, &ours, &old) != 0) {
		return false;
	}
	if (old.sa_handler != SIG_DFL && old.sa_sigaction != handler) {
		/* It came between. */
		sigaction(signum, &old, NULL);
		return false;
	}
	return true;
}

/* Returns true if there is no signal for us. */
static bool
signal_choose(void) {
	if (stop_signum != 0 && signal_is_ours(stop_signum)) {
		return false;
	}
	stop_signum = 0;
	for (size_t i = 0; i < NCANDIDATES; i++) {
		if (signal_is_ours(stop_candidates[i])
		    || signal_take(stop_candidates[i])) {
			stop_signum = stop_candidates[i];
			atomic_store_b(
			    &stop_signal_changed, true, ATOMIC_RELAXED);
			return false;
		}
	}
	return true;
}

/******************************************************************************/
/* The threads. */

/* All that is known of them; nobody may be in the handler. */
static void
threads_forget(void) {
	/* Not all of the index: in a child that would be memory of its own. */
	for (unsigned i = 0; i < stop_nthreads; i++) {
		unsigned j = index_first(
		    atomic_load_u32(&stop_threads[i].tid, ATOMIC_RELAXED));
		while (
		    atomic_load_u32(&stop_index[j], ATOMIC_RELAXED) != i + 1) {
			j = (j + 1) % INDEX_SIZE;
		}
		atomic_store_u32(&stop_index[j], 0, ATOMIC_RELAXED);
	}
	stop_nthreads = 0;
	stop_looked_ns = 0;
}

/* Returns NULL if there are too many. */
static stop_thread_t *
thread_get(uint32_t tid) {
	stop_thread_t *thread = thread_find(tid);
	if (thread != NULL || stop_nthreads == STOP_THREADS_MAX) {
		return thread;
	}
	thread = &stop_threads[stop_nthreads++];
	memset(thread, 0, sizeof(*thread));
	thread->call.nr = -1;
	atomic_store_u32(&thread->tid, tid, ATOMIC_RELAXED);
	thread->looked_ns = stop_looked_ns;
	unsigned i = index_first(tid);
	while (atomic_load_u32(&stop_index[i], ATOMIC_RELAXED) != 0) {
		i = (i + 1) % INDEX_SIZE;
	}
	atomic_store_u32(&stop_index[i], stop_nthreads, ATOMIC_RELEASE);
	return thread;
}

static bool
signal_in(uint64_t set) {
	return (set >> (stop_signum - 1)) % 2 != 0;
}

/* What a thread does, and the signals that it blocks; true if not to be had. */
static bool
task_stat(
    const mesh_tasks_t *tasks, uint32_t tid, char *state, uint64_t *blocked) {
	/* See proc(5): "tid (name) state" and so on, "blocked" is the 32nd. */
	const char *text = mesh_tasks_read(tasks, tid, "stat");
	text = text != NULL ? strrchr(text, ')') : NULL;
	if (text == NULL || text[1] != ' ') {
		return true;
	}
	*state = text[2];
	for (unsigned i = 2; i < 32 && text != NULL; i++) {
		text = strchr(text + 1, ' ');
	}
	if (text == NULL) {
		return true;
	}
	*blocked = malloc_strtoumax(text, NULL, 10);
	return false;
}

/* The system call that a thread is asleep in; true if that is not told. */
static bool
task_call(const mesh_tasks_t *tasks, uint32_t tid, mesh_call_t *call) {
	const char *text = mesh_tasks_read(tasks, tid, "syscall");
	/* "running", or "-1" for a page fault, or all that is known. */
	if (text == NULL || text[0] < '0' || text[0] > '9') {
		return text == NULL;
	}
	char *at;
	long  nr = (long)malloc_strtoumax(text, &at, 10);
	for (unsigned i = 0; i < 6; i++) {
		call->args[i] = malloc_strtoumax(at, &at, 16);
	}
	call->sp = malloc_strtoumax(at, &at, 16);
	call->pc = malloc_strtoumax(at, &at, 16);
	call->nr = nr;
	call->last = true;
	return false;
}

/*
 * Whether a thread waits in sigwait(3) for our signal among others: it would
 * take it for the program's.
 */
static bool
call_awaits(const mesh_call_t *call) {
	uint64_t set;
	return call->last && call->nr == SYS_rt_sigtimedwait
	    && !mesh_tasks_peek(
	        &set, (void *)(uintptr_t)call->args[0], sizeof(set))
	    && signal_in(set);
}

/*
 * Whether a signal would spoil a thread's call.  Those that another process answers, it
 * has that begin again, or give up.
 */
static bool
call_is_fragile(
    const mesh_tasks_t *tasks, uint32_t tid, const mesh_call_t *call) {
	mesh_frailty_t frailty = mesh_call_frailty(call);
	if (frailty != mesh_frailty_where) {
		return frailty == mesh_frailty_fragile;
	}
	const char *where = mesh_tasks_where(tasks, tid);
	return where != NULL
	    && (strstr(where, "seccomp") != NULL
	        || strstr(where, "request_wait_answer") != NULL
	        || strstr(where, "fuse") != NULL);
}

/*
 * The same of a process that may not read its own calls, as it has changed its user.  A
 * call that is not known to the kernel for its end, or for what is left of it, is to be
 * seen soon after it has begun.
 */
static const char *
secret_look(const mesh_tasks_t *tasks, uint32_t tid, bool late) {
	/* In names of functions where the kernel sleeps, of various versions. */
	static const char *const kept[] = {"futex", "nanosleep",
	    "poll_schedule", "do_poll", "do_sys_poll", "select", "do_wait",
	    "pipe", "sigsuspend"};
	const char              *where = mesh_tasks_where(tasks, tid);
	if (where == NULL || strstr(where, "sigtimedwait") != NULL) {
		return mesh_stop_blocked;
	}
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		if (strstr(where, kept[i]) != NULL) {
			return NULL;
		}
	}
	return late ? mesh_stop_timed : NULL;
}

/*
 * Whether a thread that sleeps may be stopped, and while its handler goes on with the call
 * once more, without running into what guards its stack.  That of the first thread
 * grows.
 */
static bool
stack_has_room(uintptr_t sp) {
	static size_t frame;
	if (frame == 0) {
		frame = getauxval(AT_MINSIGSTKSZ);
		frame = frame < STOP_FRAME_MIN ? STOP_FRAME_MIN : frame;
	}
	char byte;
	for (size_t below = 2 * (frame + STOP_STACK); below > 0;
	     below -= below < PAGE ? below : PAGE) {
		if (mesh_tasks_peek(&byte, (void *)(sp - below), 1)) {
			return false;
		}
	}
	return true;
}

/* Finds out where a thread is, that has moved. */
static const char *
thread_look(const mesh_tasks_t *tasks, stop_thread_t *thread, uint64_t now) {
	uint32_t tid = atomic_load_u32(&thread->tid, ATOMIC_RELAXED);
	uint64_t last_ns = thread->looked_ns;
	char     state;
	thread->looked_ns = now;
	thread->asleep = false;
	thread->ended = false;
	thread->call.last = false;
	thread->call.secret = false;
	if (task_stat(tasks, tid, &state, &thread->blocked)) {
		return NULL;
	}
	thread->asleep = (state != 'R');
	/* A first thread that has ended stays there until the process ends. */
	thread->ended = (state == 'Z' || state == 'X');
	if (thread->ended) {
		return NULL;
	}
	if (signal_in(thread->blocked)) {
		return mesh_stop_blocked;
	}
	if (state == 't') {
		/* It would not answer, and all others would wait for that. */
		return stop_traced;
	}
	if (!thread->asleep) {
		return NULL;
	}
	mesh_call_t *call = &thread->call;
	bool         late = now - last_ns > STOP_LATE_NS;
	call->secret = task_call(tasks, tid, call);
	/* Not before, or the call might have begun later than that. */
	call->since_ns = now_ns();
	if (call->secret) {
		return secret_look(tasks, tid, late);
	}
	if (call_awaits(call)) {
		return mesh_stop_blocked;
	}
	/* Of our own calls we know how much is left, and a stop takes no more stack. */
	if (!call->last || mesh_call_is_ours(call->pc)) {
		return NULL;
	}
	if (tid != (uint32_t)stop_pid && !stack_has_room(call->sp)) {
		return stop_small_stack;
	}
	return state == 'S' && call_is_fragile(tasks, tid, call) ? stop_fragile
	    : late && mesh_call_is_timed(call) ? mesh_stop_timed
	                                       : NULL;
}

/* Looks whether a thread that was sent the signal has ended, or runs. */
static bool
thread_runs(const mesh_tasks_t *tasks, stop_thread_t *thread) {
	char     state;
	uint64_t blocked;
	if (task_stat(tasks, atomic_load_u32(&thread->tid, ATOMIC_RELAXED),
	        &state, &blocked)) {
		return true;
	}
	thread->ended = (state == 'Z' || state == 'X');
	return state == 'R';
}

/* Returns the reason why the thread must not be sent the signal, or NULL. */
static const char *
thread_check(const mesh_tasks_t *tasks, stop_thread_t *thread, uint64_t now) {
	uint64_t ran_ns = mesh_tasks_ran_ns(
	    atomic_load_u32(&thread->tid, ATOMIC_RELAXED));
	if (ran_ns == 0 || ran_ns != thread->ran_ns
	    || !thread->asleep
	    /* Of who just fell asleep the kernel may not tell where yet. */
	    || thread->why == mesh_stop_blocked || thread->why == stop_traced) {
		if (thread->asleep) {
			thread->settled_ns = ran_ns + STOP_WOKEN_RUN_NS;
		}
		/* Before the look: if it runs meanwhile that is seen next time. */
		thread->ran_ns = ran_ns;
		thread->why = thread_look(tasks, thread, now);
	} else {
		thread->looked_ns = now;
	}
	return thread->why;
}

static bool
thread_has_woken(const stop_thread_t *thread) {
	return !thread->asleep && !thread->ended
	    && thread->ran_ns < thread->settled_ns;
}

/* The same, until it has not run since it was seen to sleep, or runs on. */
static const char *
thread_settle(const mesh_tasks_t *tasks, stop_thread_t *thread, uint64_t now) {
	uint32_t    tid = atomic_load_u32(&thread->tid, ATOMIC_RELAXED);
	const char *why = NULL;
	for (unsigned i = 0; i < STOP_LOOKS && why == NULL; i++) {
		why = thread_check(tasks, thread, now);
		if (thread->asleep ? mesh_tasks_ran_ns(tid) == thread->ran_ns
		                   : !thread_has_woken(thread)) {
			break;
		}
	}
	return why;
}

/******************************************************************************/
/* The stopping side. */

/* The next thread that has to be stopped. */
static uint32_t
world_next(mesh_tasks_t *tasks, uint32_t self) {
	uint32_t tid;
	do {
		tid = mesh_tasks_next(tasks, self);
	} while (tid != 0 && stop_spares_own && mesh_tasks_is_own(tid));
	return tid;
}

/* Looks at each thread, and disturbs none.  Says how many have just woken. */
static const char *
world_look(mesh_tasks_t *tasks, uint32_t self, unsigned *nwoken) {
	const char *why = NULL;
	uint64_t    now = now_ns();
	*nwoken = 0;
	mesh_tasks_rewind(tasks);
	for (uint32_t tid; (tid = world_next(tasks, self)) != 0;) {
		stop_thread_t *thread = thread_get(tid);
		if (thread == NULL) {
			return stop_no_memory;
		}
		const char *refusal = thread_check(tasks, thread, now);
		why = why != NULL ? why : refusal;
		*nwoken += thread_has_woken(thread);
	}
	if (tasks->size < 0) {
		return stop_no_tasks;
	}
	stop_looked_ns = now;
	return why;
}

/* The same, and gives those that have just woken time to go on. */
static const char *
world_check(mesh_tasks_t *tasks, uint32_t self) {
	unsigned    nwoken;
	const char *why = world_look(tasks, self, &nwoken);
	for (unsigned i = 0; why == NULL && nwoken > 0 && i < STOP_WOKEN_WAITS;
	     i++) {
		futex_wait(&stop_epoch,
		    atomic_load_u32(&stop_epoch, ATOMIC_RELAXED),
		    STOP_WOKEN_NS << i);
		why = world_look(tasks, self, &nwoken);
	}
	return why;
}

/*
 * Sends a thread the signal, unless it has just woken: it has a processor while we wait
 * for the others.  Returns the reason why it must not be sent.
 */
static const char *
thread_signal(const mesh_tasks_t *tasks, stop_thread_t *thread, uint32_t epoch,
    uint64_t begin, uint64_t now) {
	const char *why = thread_settle(tasks, thread, now);
	if (why != NULL || thread->ended) {
		return why;
	}
	if (thread_has_woken(thread)) {
		return now - begin < STOP_DEFER_NS ? NULL : stop_no_answer;
	}
	thread->signalled = epoch;
	thread->settled_ns = thread->ran_ns + STOP_STOPPED_RUN_NS;
	syscall(SYS_tgkill, stop_pid,
	    atomic_load_u32(&thread->tid, ATOMIC_RELAXED), stop_signum);
	return NULL;
}

/*
 * Signals all threads that were not, the first thread when the others are parked.
 * nmissing says how many are not, and stuck whether one of them waits for something else
 * than a processor.
 */
static const char *
world_signal(mesh_tasks_t *tasks, uint32_t self, uint32_t epoch, uint64_t begin,
    unsigned *nmissing, bool *stuck) {
	uint64_t       now = now_ns();
	bool           ask = now - begin >= STOP_ASK_NS;
	uint32_t       nparked = 0;
	stop_thread_t *first = NULL;
	const char    *why = NULL;
	*nmissing = 0;
	*stuck = false;
	mesh_tasks_rewind(tasks);
	for (uint32_t tid;
	     why == NULL && (tid = world_next(tasks, self)) != 0;) {
		stop_thread_t *thread = thread_get(tid);
		if (thread == NULL) {
			return stop_no_memory;
		}
		if (atomic_load_u32(&thread->parked, ATOMIC_ACQUIRE) == epoch) {
			nparked++;
			continue;
		}
		if (thread->signalled == epoch) {
			/* What it was seen in before is for its handler. */
			bool runs = !ask || thread_runs(tasks, thread);
			/* Unless it has parked since. */
			*stuck |= !thread->ended && !runs
			    && atomic_load_u32(&thread->parked, ATOMIC_ACQUIRE)
			        != epoch;
		} else if (tid == (uint32_t)stop_pid) {
			first = thread;
			continue;
		} else {
			why = thread_signal(tasks, thread, epoch, begin, now);
		}
		*nmissing += !thread->ended;
	}
	if (why == NULL && first != NULL && *nmissing == 0) {
		why = thread_signal(tasks, first, epoch, begin, now);
		*nmissing += !first->ended;
		first = NULL;
	}
	atomic_store_u32(&stop_nwanted, nparked + *nmissing, ATOMIC_SEQ_CST);
	*nmissing += (first != NULL);
	return tasks->size < 0 ? stop_no_tasks : why;
}

/* Waits for a word to have a value, but not for longer than that; true if it has not. */
static bool
world_await(atomic_u32_t *word, uint32_t value, uint64_t ns) {
	uint64_t end = now_ns() + ns;
	uint64_t now = 0;
	uint32_t n;
	while ((n = atomic_load_u32(word, ATOMIC_SEQ_CST)) != value
	    && (now = now_ns()) < end) {
		futex_wait(word, n, end - now);
	}
	return n != value;
}

/* Waits for the signalled threads, but not for long: some may end instead. */
static void
world_await_parked(uint64_t poll_ns) {
	uint32_t nwanted = atomic_load_u32(&stop_nwanted, ATOMIC_RELAXED);
	uint64_t end = now_ns() + poll_ns;
	uint64_t now = 0;
	uint32_t n;
	while ((n = atomic_load_u32(&stop_nparked, ATOMIC_SEQ_CST)) < nwanted
	    && (now = now_ns()) < end) {
		futex_wait(&stop_nparked, n, end - now);
	}
}

/* Returns true if some thread does not leave the handler. */
static bool
world_await_left(void) {
	atomic_store_b(&stop_awaits_inside, true, ATOMIC_SEQ_CST);
	bool err = world_await(&stop_inside, 0, STOP_BUSY_NS);
	atomic_store_b(&stop_awaits_inside, false, ATOMIC_RELAXED);
	return err;
}

static const char *
world_park(mesh_tasks_t *tasks, uint32_t self) {
	const char *why = world_check(tasks, self);
	if (why != NULL) {
		return why;
	}
	atomic_store_u32(&stop_nparked, 0, ATOMIC_RELAXED);
	atomic_store_u32(&stop_nwanted, UINT32_MAX, ATOMIC_RELAXED);
	uint32_t epoch = 1
	    + atomic_fetch_add_u32(&stop_epoch, 1, ATOMIC_SEQ_CST);
	uint64_t begin = now_ns();
	uint64_t poll_ns = STOP_POLL_NS_MIN;
	unsigned nmissing;
	bool     stuck;
	while (
	    (why = world_signal(tasks, self, epoch, begin, &nmissing, &stuck))
	        == NULL
	    && nmissing > 0) {
		if (now_ns() - begin
		    >= (stuck ? STOP_STUCK_NS : STOP_BUSY_NS)) {
			why = stop_no_answer;
			break;
		}
		world_await_parked(poll_ns);
		if (poll_ns < STOP_POLL_NS_MAX) {
			poll_ns *= 2;
		}
	}
	stop_took_ns = now_ns() - begin;
	if (why != NULL) {
		mesh_stop_resume();
	}
	return why;
}

uint64_t
mesh_stop_took_ns(void) {
	return stop_took_ns;
}

/*
 * glibc never lets a program block the signal by which it has all threads change
 * their user.  Its handler does nothing unless tgkill(2) sent it.
 */
static bool
setxid_poke(pid_t tid) {
#ifdef __GLIBC__
	siginfo_t info = {
	    .si_signo = SIGNAL_SETXID, .si_code = SI_QUEUE, .si_pid = getpid()};
	/* Its default would kill. */
	return mesh_call_signal_handler(SIGNAL_SETXID, 0) == 0
	    || syscall(
	           SYS_rt_tgsigqueueinfo, getpid(), tid, SIGNAL_SETXID, &info)
	    != 0;
#else
	(void)tid;
	return true;
#endif
}

bool
mesh_stop_poke(pid_t tid) {
	mesh_tasks_t tasks;
	if (signal_choose() || mesh_tasks_open(&tasks)) {
		return setxid_poke(tid);
	}
	stop_thread_t thread = {.call.nr = -1};
	atomic_store_u32(&thread.tid, (uint32_t)tid, ATOMIC_RELAXED);
	const char *why = thread_look(&tasks, &thread, now_ns());
	mesh_tasks_close(&tasks);
	if (!signal_in(thread.blocked)) {
		/* Where it sleeps it might take the signal for the program's. */
		return why == mesh_stop_blocked
		    || syscall(SYS_tgkill, getpid(), tid, stop_signum) != 0;
	}
	/*
	 * Not while it runs, or sleeps with all blocked, as in a handler of ours: what
	 * that goes on with would be ended by another handler.
	 */
	return !thread.asleep
	    || (thread.blocked >> (SIGNAL_SETXID - 1)) % 2 != 0
	    || setxid_poke(tid);
}

const char *
mesh_stop_world(bool own) {
	stop_spares_own = !own;
	/* The memory may belong to another process, whose threads are not ours. */
	if (stop_pid != getpid()) {
		return "the process was made by other means than fork()";
	}
	if (mesh_tasks_single()) {
		/* And nobody else can make a thread.  No signal is needed. */
		atomic_fetch_add_u32(&stop_epoch, 1, ATOMIC_SEQ_CST);
		return NULL;
	}
	if (signal_choose()) {
		return stop_no_signal;
	}
	if (world_await_left()) {
		return stop_no_answer;
	}
	if (stop_nthreads > STOP_THREADS_MAX / 2) {
		threads_forget();
	}
	mesh_tasks_t tasks;
	if (mesh_tasks_open(&tasks)) {
		return stop_no_tasks;
	}
	const char *why = world_park(&tasks, mesh_tasks_self());
	mesh_tasks_close(&tasks);
	return why;
}

const char *
mesh_stop_look(void) {
	mesh_tasks_t tasks;
	unsigned     nwoken;
	if (stop_pid != getpid()
	    || mesh_tasks_single()
	    /* Who is in the handler yet reads what was seen. */
	    || atomic_load_u32(&stop_inside, ATOMIC_SEQ_CST) != 0) {
		return NULL;
	}
	if (signal_choose()) {
		return stop_no_signal;
	}
	if (mesh_tasks_open(&tasks)) {
		return stop_no_tasks;
	}
	stop_spares_own = false;
	const char *why = world_look(&tasks, mesh_tasks_self(), &nwoken);
	mesh_tasks_close(&tasks);
	return why;
}

void
mesh_stop_resume(void) {
	uint32_t       epoch = atomic_load_u32(&stop_epoch, ATOMIC_RELAXED);
	stop_thread_t *first = thread_find((uint32_t)stop_pid);
	atomic_store_u32(&stop_first, epoch, ATOMIC_SEQ_CST);
	futex_wake(&stop_first, 1);
	if (first != NULL
	    && atomic_load_u32(&first->parked, ATOMIC_ACQUIRE) == epoch
	    && atomic_load_u32(&stop_nparked, ATOMIC_RELAXED) > 1) {
		world_await(&stop_first_left, epoch, STOP_FIRST_NS);
	}
	atomic_store_u32(&stop_epoch, epoch + 1, ATOMIC_SEQ_CST);
	futex_wake(&stop_epoch, INT_MAX);
}

bool
mesh_stop_stands_on(const void *addr, size_t size) {
	uint32_t epoch = atomic_load_u32(&stop_epoch, ATOMIC_RELAXED);
	for (unsigned i = 0; i < stop_nthreads; i++) {
		stop_thread_t *thread = &stop_threads[i];
		size_t         sp = atomic_load_zu(&thread->sp, ATOMIC_RELAXED);
		if (sp - (uintptr_t)addr < size
		    && atomic_load_u32(&thread->parked, ATOMIC_ACQUIRE)
		        == epoch) {
			return true;
		}
	}
	return false;
}

size_t
mesh_stop_interrupted(void) {
	return atomic_load_zu(&stop_ninterrupted, ATOMIC_RELAXED);
}

bool
mesh_stop_signal_changed(void) {
	return atomic_load_b(&stop_signal_changed, ATOMIC_RELAXED)
	    && atomic_exchange_b(&stop_signal_changed, false, ATOMIC_RELAXED);
}

void
mesh_stop_signals_spare(sigset_t *set) {
	/*
	 * The program may wait for the other one in signalfd(2) or sigwait(3), which no
	 * longer see what some thread does not block.
	 */
	int signum = 0;
	for (size_t i = 0; i < NCANDIDATES && signum == 0; i++) {
		signum = signal_is_ours(stop_candidates[i]) ? stop_candidates[i]
		                                            : 0;
	}
	for (size_t i = 0; i < NCANDIDATES && signum == 0; i++) {
		struct sigaction action;
		if (sigaction(stop_candidates[i], NULL, &action) == 0
		    && action.sa_handler == SIG_DFL) {
			signum = stop_candidates[i];
		}
	}
	if (signum != 0) {
		sigdelset(set, signum);
	}
}

const char *
mesh_stop_boot(void) {
	mesh_tasks_t tasks;
	if (mesh_tasks_open(&tasks)) {
		return "it can stop threads only where " MESH_TASKS
		       " is readable; mount /proc, or permit userfaultfd";
	}
	mesh_tasks_close(&tasks);
	stop_pid = getpid();
	return NULL;
}

void
mesh_stop_postfork_child(void) {
	stop_pid = getpid();
	threads_forget();
	/* Of the threads that were in the handler none is here. */
	atomic_store_u32(&stop_inside, 0, ATOMIC_RELAXED);
}
