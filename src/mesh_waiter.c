/*
 * Waiters: threads that sleep on a futex in a range that has a new mapping.
 *
 * A thread that sleeps in FUTEX_WAIT with FUTEX_PRIVATE_FLAG is filed under its
 * process and the address of the word.  Without it, as std::future, C++20's
 * std::atomic::wait(), robust and process-shared mutexes do it, it is filed under
 * what is mapped there: the process and the address while that is private memory,
 * the file and the offset once the range is spliced.  Whoever wakes it looks under
 * what is mapped there then.  So whenever a range with live regions gets another
 * mapping - it is spliced, joins another group, comes back from a private view, or
 * becomes one - those who sleep there have to be filed anew.  A thread that leaves
 * its system call by a signal and goes on with it does that by itself, and looks at
 * the word again, which tells it of a waking that has missed it.
 *
 * So ranges are noted after they have their new mapping, and a little later a look
 * at all threads finds those that sleep there:
 *
 *     asleep on a word of a noted range:   poke it (mesh_stop_poke())
 *     asleep otherwise:                    nothing to do
 *     running:                             late: it may have looked its word up
 *                                          before the range got its new mapping, and
 *                                          be about to fall asleep
 *
 * A late thread is looked at again, until it sleeps, and then is poked if need be,
 * or has run for so long that it cannot be on that way any more.  It is poked at
 * once if nobody can look again.
 *
 * Whom another thread has sent to a second word (FUTEX_CMP_REQUEUE) sleeps there, but
 * the kernel tells of the first one only.  So if ranges were noted all that sleep in a
 * shared wait are poked, whatever the word, once or twice a second.  That is a sweep.
 *
 * /proc tells which word a thread sleeps on (8 us a thread).  A thread whose CPU
 * time has not changed since still does (0.3 us), so to look at a thousand sleepers
 * takes half a millisecond; and looks take one part in WAITER_SHARE of the time at
 * most, as long as that does not let a sleeper wait for too long.
 *
 * Ranges are noted as bits of a map of hashed pages: now and then a thread is poked
 * for nothing, which it does not notice.
 *
 * Not found are waits of io_uring, which no thread sleeps in.
 *
 * mesh_batch and mesh_view note; mesh_pass looks, mesh_fork too, and the viewer.
 * The mesh lock guards all but the notes.  Takes no lock.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_clock.h"
#include "jemalloc/internal/mesh_stop.h"
#include "jemalloc/internal/mesh_task.h"
#include "jemalloc/internal/mesh_waiter.h"

#include <linux/futex.h>
#include <sys/syscall.h>

/* What older headers lack. */
#ifndef FUTEX_LOCK_PI2
#	define FUTEX_LOCK_PI2 13 /* Linux 5.14 */
#endif
/* Numbers that all architectures share. */
#define NR_FUTEX_WAITV 449 /* Linux 5.16 */
#define NR_FUTEX_WAIT 455  /* Linux 6.7 */
/* Of their flags. */
#define FUTEX2_PRIVATE 128
/* Words of one futex_waitv(2), at most. */
#define WAITV_MAX 128

/* Looks take one part in so many of the time, but come so often at least. */
#define WAITER_SHARE 100
#define WAITER_PAUSE_NS_MIN UINT64_C(1000000)
#define WAITER_PAUSE_NS_MAX UINT64_C(500000000)
/* The same of sweeps. */
#define SWEEP_SHARE 100
#define SWEEP_PAUSE_NS_MIN UINT64_C(500000000)
#define SWEEP_PAUSE_NS_MAX UINT64_C(900000000)
/*
 * Who has run for so long has not looked a word up before.  That takes less than a
 * microsecond, but a virtual processor may stand still meanwhile.
 */
#define LATE_RUN_NS UINT64_C(100000000)

/* Pages are hashed to so many bits. */
#define NOTES_LG_BITS 16
#define NOTES_WORDS ((ZU(1) << NOTES_LG_BITS) / 64)

typedef struct waiter_s waiter_t;
struct waiter_s {
	uint32_t tid;
	/* It may fall asleep under an old mapping's name. */
	bool late;
	/* Its CPU time when that was seen first, nanoseconds, or 0. */
	uint64_t late_ns;
	/*
	 * Its CPU time when it was seen asleep, 0 if it was not, and the word that
	 * it slept on in a shared wait, 0 if none.
	 */
	uint64_t  asleep_ns;
	uintptr_t word;
};

/* What was noted since the last look; atomic. */
static atomic_u64_t notes_fresh[NOTES_WORDS];
static atomic_b_t   notes_any;
/* What this look is about, and what late threads may still sleep on. */
static uint64_t notes_now[NOTES_WORDS];
static uint64_t notes_late[NOTES_WORDS];

/* Threads in the order of the directory: as they were at the last look, and now. */
static waiter_t *waiters;
static size_t    nwaiters;
static waiter_t *waiters_next;
static size_t    nwaiters_next;
/* Room for so many in each. */
static size_t waiters_max;

/* Late ones of the last look. */
static atomic_zu_t waiters_nlate;
/* When to look again. */
static atomic_u64_t waiters_due_ns;

/* Whether ranges were noted since the last sweep, and when the next may come. */
static atomic_b_t   sweep_wanted;
static atomic_u64_t sweep_due_ns;
/* Whether this look is one. */
static bool sweeping;

/******************************************************************************/
/* Notes. */

/* Fibonacci hashing. */
static size_t
note_bit(uintptr_t addr) {
	return (
	    size_t)(((uint64_t)(addr >> LG_PAGE) * UINT64_C(0x9e3779b97f4a7c15))
	    >> (64 - NOTES_LG_BITS));
}

static bool
noted(const uint64_t *notes, uintptr_t word) {
	size_t bit = note_bit(word);
	return ((notes[bit / 64] >> (bit % 64)) & 1) != 0;
}

void
mesh_waiter_note(const void *addr, size_t size) {
	for (size_t offset = 0; offset < size; offset += PAGE) {
		size_t bit = note_bit((uintptr_t)addr + offset);
		atomic_fetch_or_u64(&notes_fresh[bit / 64],
		    UINT64_C(1) << (bit % 64), ATOMIC_RELAXED);
	}
	atomic_store_b(&notes_any, true, ATOMIC_RELEASE);
}

/* Takes the fresh notes.  Returns whether there are any. */
static bool
notes_take(void) {
	memset(notes_now, 0, sizeof(notes_now));
	if (!atomic_load_b(&notes_any, ATOMIC_ACQUIRE)) {
		return false;
	}
	/* Before they are taken: what is noted meanwhile sets it again. */
	atomic_store_b(&notes_any, false, ATOMIC_SEQ_CST);
	for (size_t i = 0; i < NOTES_WORDS; i++) {
		if (atomic_load_u64(&notes_fresh[i], ATOMIC_RELAXED) != 0) {
			notes_now[i] = atomic_exchange_u64(
			    &notes_fresh[i], 0, ATOMIC_ACQ_REL);
		}
	}
	return true;
}

/******************************************************************************/
/* One thread. */

/* Whether who sleeps on this word is to be poked. */
static bool
word_wanted(const waiter_t *waiter, uintptr_t word) {
	return word != 0
	    && (sweeping || noted(notes_now, word)
	        || (waiter->late && noted(notes_late, word)));
}

/* A word of a futex_waitv(2) that is wanted, or 0. */
static uintptr_t
waitv_word(const waiter_t *waiter, uintptr_t addr, uint64_t n) {
	/* Stacks may be small; the mesh lock guards it. */
	static struct {
		uint64_t value;
		uint64_t word;
		uint32_t flags;
		uint32_t reserved;
	} words[WAITV_MAX];
	if (n > WAITV_MAX) {
		return 0;
	}
	/* It may be gone by now. */
	if (mesh_tasks_peek(words, (void *)addr, n * sizeof(words[0]))) {
		return 0;
	}
	for (size_t i = 0; i < n; i++) {
		if ((words[i].flags & FUTEX2_PRIVATE) == 0
		    && word_wanted(waiter, words[i].word)) {
			return words[i].word;
		}
	}
	return 0;
}

/*
 * The word that a thread sleeps on, from the text of its file "syscall"; 0 if it
 * does not sleep in a shared wait.  several: it is one of them, as it looks now.
 */
static uintptr_t
syscall_word(const waiter_t *waiter, const char *text, bool *several) {
	char    *end;
	uint64_t number = malloc_strtoumax(text, &end, 10);
	uint64_t args[6] = {0};
	for (size_t i = 0; i < 6 && *end == ' '; i++) {
		args[i] = malloc_strtoumax(end + 1, &end, 16);
	}
	*several = (number == NR_FUTEX_WAITV);
	if (*several) {
		return waitv_word(waiter, (uintptr_t)args[0], args[1]);
	}
	if (number == NR_FUTEX_WAIT) {
		return (args[3] & FUTEX2_PRIVATE) != 0 ? 0 : (uintptr_t)args[0];
	}
	/*
	 * What the kernel or a handler of ours goes on with: the arguments are still
	 * those of the first call, if of another one than futex(2) the word is wrong.
	 */
	if ((number != SYS_futex && number != SYS_restart_syscall)
	    || (args[1] & FUTEX_PRIVATE_FLAG) != 0) {
		return 0;
	}
	switch (args[1] & FUTEX_CMD_MASK) {
	case FUTEX_WAIT_REQUEUE_PI:
		/* It may wait for the second word by now. */
		*several = true;
		return (uintptr_t)(word_wanted(waiter, (uintptr_t)args[4])
		        ? args[4]
		        : args[0]);
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
		return (uintptr_t)args[0];
	default:
		return 0;
	}
}

/*
 * Reads what a thread sleeps on.  Returns true if it does not sleep.  Where that
 * must not be read, any sleeper on a word may sleep on any word.
 */
static bool
waiter_read(
    const mesh_tasks_t *tasks, waiter_t *waiter, uint64_t cpu_ns, bool *any) {
	waiter->asleep_ns = 0;
	waiter->word = 0;
	*any = false;
	const char *text = mesh_tasks_read(tasks, waiter->tid, "syscall");
	if (text == NULL) {
		/* A process that may not be dumped; or it has just ended. */
		*any = (get_errno() == EACCES || get_errno() == EPERM)
		    && ((text = mesh_tasks_where(tasks, waiter->tid)) == NULL
		        || strstr(text, "futex") != NULL);
		return false;
	}
	if (*text == 'r') {
		return true;
	}
	/* Elsewhere than in a system call, as in a page fault. */
	bool      several = false;
	uintptr_t word = *text == '-' ? 0
	                              : syscall_word(waiter, text, &several);
	if (mesh_tasks_ran_ns(waiter->tid) != cpu_ns) {
		/* It has run meanwhile. */
		return true;
	}
	/* With other notes it may be another one. */
	waiter->asleep_ns = several ? 0 : cpu_ns;
	waiter->word = word;
	return false;
}

/* Looks at one thread; fresh: there are new notes. */
static void
waiter_look(
    const mesh_tasks_t *tasks, waiter_t *waiter, uint64_t cpu_ns, bool fresh) {
	bool any = false;
	if (waiter->asleep_ns == 0 || cpu_ns != waiter->asleep_ns) {
		if (waiter_read(tasks, waiter, cpu_ns, &any)) {
			if (fresh || waiter->late_ns == 0) {
				waiter->late_ns = cpu_ns;
			}
			/* New notes, or old ones that it has had no time for. */
			waiter->late = (fresh || waiter->late)
			    && cpu_ns - waiter->late_ns < LATE_RUN_NS;
			return;
		}
	}
	bool poke = any || word_wanted(waiter, waiter->word);
	waiter->late_ns = 0;
	/* Who cannot be poked now is tried again. */
	waiter->late = poke && mesh_stop_poke((pid_t)waiter->tid);
}

/******************************************************************************/
/* All threads. */

/* Sees to room for one thread more.  Returns true if there is no memory. */
static bool
waiters_reserve(void) {
	if (nwaiters_next < waiters_max) {
		return false;
	}
	size_t    size = 2 * waiters_max * sizeof(waiter_t);
	size_t    more = size > 0 ? 2 * size : PAGE;
	bool      commit = true;
	waiter_t *both = (waiter_t *)pages_map(NULL, more, PAGE, &commit);
	if (both == NULL) {
		return true;
	}
	size_t    max = more / (2 * sizeof(waiter_t));
	waiter_t *old = waiters < waiters_next ? waiters : waiters_next;
	if (nwaiters > 0) {
		memcpy(both, waiters, nwaiters * sizeof(waiter_t));
	}
	if (nwaiters_next > 0) {
		memcpy(
		    &both[max], waiters_next, nwaiters_next * sizeof(waiter_t));
	}
	if (old != NULL) {
		pages_unmap(old, PAGE_CEILING(size));
	}
	waiters = both;
	waiters_next = &both[max];
	waiters_max = max;
	return false;
}

/*
 * Lists the threads anew, with what was known of them.  They keep their order, so
 * that each is found where the one before it was.  Returns true if that failed, as
 * it does now and then when threads end meanwhile: the kernel passes some over.
 */
static bool
waiters_list(mesh_tasks_t *tasks, uint32_t self) {
	size_t before = mesh_tasks_count();
	size_t at = 0;
	nwaiters_next = 0;
	for (uint32_t tid; (tid = mesh_tasks_next(tasks, self)) != 0;) {
		if (waiters_reserve()) {
			return true;
		}
		size_t i = at;
		while (i < nwaiters && waiters[i].tid != tid) {
			i++;
		}
		waiter_t *waiter = &waiters_next[nwaiters_next++];
		if (i < nwaiters) {
			*waiter = waiters[i];
			at = i + 1;
		} else {
			/* It may have been missed the last time. */
			*waiter = (waiter_t){.tid = tid, .late = true};
		}
	}
	waiter_t *swap = waiters;
	waiters = waiters_next;
	nwaiters = nwaiters_next;
	waiters_next = swap;
	return tasks->size < 0 || before != nwaiters + 1
	    || mesh_tasks_count() != before;
}

/* Until what took so long may come again, to take one part in share of the time. */
static uint64_t
pause_ns(uint64_t took_ns, unsigned share, uint64_t min_ns, uint64_t max_ns) {
	uint64_t pause = took_ns * share;
	return pause < min_ns ? min_ns : pause > max_ns ? max_ns : pause;
}

/* One look.  Returns how many threads are late. */
static size_t
waiters_look(uint32_t self) {
	uint64_t begin = now_ns();
	bool     fresh = notes_take();
	bool     alone = mesh_tasks_alone();
	size_t   nlate = 0;
	if (fresh) {
		atomic_store_b(&sweep_wanted, true, ATOMIC_RELAXED);
	}
	sweeping = atomic_load_b(&sweep_wanted, ATOMIC_RELAXED)
	    && begin >= atomic_load_u64(&sweep_due_ns, ATOMIC_RELAXED);
	mesh_tasks_t tasks;
	bool         failed = !alone && mesh_tasks_open(&tasks);
	if (alone) {
		/* There is nobody to wake anybody. */
		nwaiters = 0;
	} else if (!failed) {
		failed = waiters_list(&tasks, self);
		for (size_t i = 0; i < nwaiters; i++) {
			waiter_t *waiter = &waiters[i];
			uint64_t  cpu_ns = mesh_tasks_ran_ns(waiter->tid);
			/* It may have ended in the midst of the list. */
			failed |= cpu_ns == 0;
			if (fresh || waiter->late || sweeping) {
				waiter_look(&tasks, waiter, cpu_ns, fresh);
			}
			nlate += waiter->late;
		}
		mesh_tasks_close(&tasks);
	}
	if (sweeping) {
		/* Who was not in the list is swept the next time. */
		atomic_store_b(&sweep_wanted, failed, ATOMIC_RELAXED);
		uint64_t end = now_ns();
		atomic_store_u64(&sweep_due_ns,
		    end
		        + pause_ns(end - begin, SWEEP_SHARE, SWEEP_PAUSE_NS_MIN,
		            SWEEP_PAUSE_NS_MAX),
		    ATOMIC_RELAXED);
	}
	/* Then the notes are kept for those that are seen for the first time. */
	nlate += failed;
	for (size_t i = 0; i < NOTES_WORDS; i++) {
		notes_late[i] = nlate > 0 ? notes_late[i] | notes_now[i] : 0;
	}
	atomic_store_zu(&waiters_nlate, nlate, ATOMIC_RELEASE);
	return nlate;
}

/* Whether more is to be done than to sweep later. */
static bool
waiters_pending(void) {
	return atomic_load_b(&notes_any, ATOMIC_ACQUIRE)
	    || atomic_load_zu(&waiters_nlate, ATOMIC_ACQUIRE) > 0;
}

uint64_t
mesh_waiter_wait_ns(void) {
	uint64_t due = atomic_load_u64(&waiters_due_ns, ATOMIC_RELAXED);
	if (!waiters_pending()) {
		if (!atomic_load_b(&sweep_wanted, ATOMIC_RELAXED)) {
			return UINT64_MAX;
		}
		due = atomic_load_u64(&sweep_due_ns, ATOMIC_RELAXED);
	}
	uint64_t now = now_ns();
	return due > now ? due - now : 0;
}

void
mesh_waiter_look(void) {
	if (mesh_waiter_wait_ns() != 0) {
		return;
	}
	uint64_t begin = now_ns();
	waiters_look(mesh_tasks_self());
	uint64_t end = now_ns();
	atomic_store_u64(&waiters_due_ns,
	    end
	        + pause_ns(end - begin, WAITER_SHARE, WAITER_PAUSE_NS_MIN,
	            WAITER_PAUSE_NS_MAX),
	    ATOMIC_RELAXED);
}

void
mesh_waiter_look_all(void) {
	if (!waiters_pending() && mesh_waiter_wait_ns() != 0) {
		return;
	}
	size_t nlate = waiters_look(mesh_tasks_self());
	for (size_t i = 0; nlate > 0 && i < nwaiters; i++) {
		if (waiters[i].late && !mesh_stop_poke((pid_t)waiters[i].tid)) {
			waiters[i].late = false;
			nlate--;
		}
	}
	atomic_store_zu(&waiters_nlate, nlate, ATOMIC_RELEASE);
}

void
mesh_waiter_postfork_child(void) {
	mesh_tasks_postfork_child();
	nwaiters = 0;
	atomic_store_zu(&waiters_nlate, 0, ATOMIC_RELAXED);
	atomic_store_b(&sweep_wanted, false, ATOMIC_RELAXED);
	atomic_store_b(&notes_any, false, ATOMIC_RELAXED);
	memset(notes_fresh, 0, sizeof(notes_fresh));
	memset(notes_late, 0, sizeof(notes_late));
}
