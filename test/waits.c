/*
 * Waits in every way that the kernel does not restart after a signal, each in a
 * thread of its own, while the heap is meshed: no call may end early or fail with
 * EINTR, and all that is to end it does.
 *
 * usage: waits KIND SECONDS [CALL].  Kinds: "time", calls end at their own time or by
 * another thread; "timer", a handler of the program's ends them.  io_getevents has to
 * be named: signals mesh no program that has a context of Linux AIO.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOBJECTS 65536
#define MS UINT64_C(1000000)
/* How long a call is to last. */
#define LASTS_MS 150
/* What ends before is early: clocks of the kernel tick so. */
#define EARLY_NS (4 * MS)
/* When a timer that was missed comes again. */
#define AGAIN_MS 2000

typedef struct waiter_s waiter_t;
struct waiter_s {
	const char *name;
	/* Returns what the call did; waits for so long, or for ever if 0. */
	int (*wait)(waiter_t *w, unsigned ms);
	/* What another thread does to end it; NULL if its time does. */
	void (*end)(waiter_t *w);
	/* What it returns then, and errno if that is -1. */
	int ret, err;
	/* Whether a handler of the program's ends it. */
	bool handled;

	pthread_t     thread;
	pid_t         tid;
	sem_t         begun;
	uint64_t      end_at;
	int           fd, other, id;
	atomic_bool   inside, too_soon;
	atomic_ullong handled_at;
	/* What came of it. */
	unsigned calls, early, eintr, wrong, missed;
	uint64_t latest;
};

static atomic_bool stop;
static atomic_uint bad;
static table_t     table;
/* The one whose thread this is. */
static __thread waiter_t *self;

static struct timespec
timespec_ms(uint64_t ms) {
	return (struct timespec){(time_t)(ms / 1000), (long)(ms % 1000 * MS)};
}

static struct timespec
timespec_at(clockid_t clock, unsigned ms) {
	struct timespec ts;
	clock_gettime(clock, &ts);
	uint64_t ns = (uint64_t)ts.tv_nsec + ms * MS;
	ts.tv_sec += (time_t)(ns / 1000000000);
	ts.tv_nsec = (long)(ns % 1000000000);
	return ts;
}

static void
sleep_until(uint64_t ns) {
	struct timespec ts = {
	    (time_t)(ns / 1000000000), (long)(ns % 1000000000)};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0) {
	}
}

/* Like those of libc that return the error. */
static int
failed(int err) {
	errno = err;
	return err == 0 ? 0 : -1;
}

static int
wait_nanosleep(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_ms(ms);
	return nanosleep(&ts, &ts);
}

static int
wait_clock_nanosleep(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_ms(ms);
	return failed(clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL));
}

static int
wait_until(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_at(CLOCK_REALTIME, ms);
	return failed(
	    clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &ts, NULL));
}

static int
wait_usleep(waiter_t *w, unsigned ms) {
	(void)w;
	return usleep(ms * 1000);
}

static int
wait_poll(waiter_t *w, unsigned ms) {
	(void)w;
	return poll(NULL, 0, (int)ms);
}

static int
wait_select(waiter_t *w, unsigned ms) {
	(void)w;
	struct timeval tv = {0, (suseconds_t)ms * 1000};
	return select(0, NULL, NULL, NULL, &tv);
}

/* The old call, and what is left of the time must be written. */
static int
wait_raw_select(waiter_t *w, unsigned ms) {
	struct timeval tv = {ms / 1000, (suseconds_t)ms % 1000 * 1000};
	int            r = (int)syscall(SYS_select, 0, NULL, NULL, NULL, &tv);
	w->wrong += r == 0 && (tv.tv_sec != 0 || tv.tv_usec != 0);
	return r;
}

/* What stays blocked in a call that unblocks signals. */
static sigset_t
set_in_call(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	return set;
}

static int
wait_ppoll(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_ms(ms);
	sigset_t        set = set_in_call();
	return ppoll(NULL, 0, &ts, &set);
}

static int
wait_pselect(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_ms(ms);
	sigset_t        set = set_in_call();
	return pselect(0, NULL, NULL, NULL, &ts, &set);
}

static int
wait_epoll(waiter_t *w, unsigned ms) {
	struct epoll_event event;
	return epoll_wait(w->fd, &event, 1, (int)ms);
}

static int
wait_epoll_pwait(waiter_t *w, unsigned ms) {
	struct epoll_event event;
	sigset_t           set = set_in_call();
	return epoll_pwait(w->fd, &event, 1, (int)ms, &set);
}

static int
wait_epoll_pwait2(waiter_t *w, unsigned ms) {
	struct epoll_event event;
	struct timespec    ts = timespec_ms(ms);
	return epoll_pwait2(w->fd, &event, 1, &ts, NULL);
}

static int
wait_sigtimedwait(waiter_t *w, unsigned ms) {
	(void)w;
	struct timespec ts = timespec_ms(ms);
	sigset_t        set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return sigtimedwait(&set, NULL, &ts);
}

static int
wait_sigwaitinfo(waiter_t *w, unsigned ms) {
	(void)w, (void)ms;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return sigwaitinfo(&set, NULL);
}

static void
end_sigusr2(waiter_t *w) {
	pthread_kill(w->thread, SIGUSR2);
}

static int
wait_semtimedop(waiter_t *w, unsigned ms) {
	struct timespec ts = timespec_ms(ms);
	struct sembuf   down = {0, -1, 0};
	return semtimedop(w->id, &down, 1, &ts);
}

static int
wait_semop(waiter_t *w, unsigned ms) {
	(void)ms;
	struct sembuf down = {0, -1, 0};
	return semop(w->id, &down, 1);
}

static void
end_semop(waiter_t *w) {
	struct sembuf up = {0, 1, 0};
	semop(w->id, &up, 1);
}

static int
wait_msgrcv(waiter_t *w, unsigned ms) {
	(void)ms;
	char message[sizeof(long) + 1];
	return (int)msgrcv(w->id, message, 1, 0, 0);
}

static void
end_msgrcv(waiter_t *w) {
	struct {
		long type;
		char text;
	} message = {1, 0};
	while (msgsnd(w->id, &message, 1, IPC_NOWAIT) != 0) {
	}
}

/* Fills the queue, and waits for room. */
static int
wait_msgsnd(waiter_t *w, unsigned ms) {
	(void)ms;
	static struct {
		long type;
		char text[4096];
	} message = {1, {0}};
	while (msgsnd(w->id, &message, sizeof(message.text), IPC_NOWAIT) == 0) {
	}
	w->end_at = now_ns() + LASTS_MS * MS;
	return msgsnd(w->id, &message, sizeof(message.text), 0);
}

static void
end_msgsnd(waiter_t *w) {
	static char message[sizeof(long) + 4096];
	msgrcv(w->id, message, 4096, 0, IPC_NOWAIT);
}

static int
wait_getevents(waiter_t *w, unsigned ms) {
	(void)w;
	static __thread aio_context_t context;
	struct io_event               event;
	struct timespec               ts = timespec_ms(ms);
	if (context == 0 && syscall(SYS_io_setup, 1, &context) != 0) {
		die("io_setup");
	}
	return (int)syscall(SYS_io_getevents, context, 1, 1, &event, &ts);
}

static int
wait_pause(waiter_t *w, unsigned ms) {
	(void)w, (void)ms;
	return pause();
}

static int
wait_sigsuspend(waiter_t *w, unsigned ms) {
	(void)w, (void)ms;
	sigset_t set = set_in_call();
	return sigsuspend(&set);
}

static void
end_sigusr1(waiter_t *w) {
	pthread_kill(w->thread, SIGUSR1);
}

static int
wait_futex(waiter_t *w, unsigned ms) {
	(void)w;
	static uint32_t word;
	struct timespec ts = timespec_ms(ms);
	return (int)syscall(
	    SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
}

static int
wait_condition(waiter_t *w, unsigned ms) {
	(void)w;
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t  cond = PTHREAD_COND_INITIALIZER;
	struct timespec ts = timespec_at(CLOCK_REALTIME, ms);
	pthread_mutex_lock(&mutex);
	return failed(pthread_cond_timedwait(&cond, &mutex, &ts));
}

static int
wait_semaphore(waiter_t *w, unsigned ms) {
	(void)w;
	sem_t           sem;
	struct timespec ts = timespec_at(CLOCK_REALTIME, ms);
	sem_init(&sem, 0, 0);
	return sem_timedwait(&sem, &ts);
}

static void
socket_timeout(int fd, int which, unsigned ms) {
	struct timeval tv = {ms / 1000, (suseconds_t)ms % 1000 * 1000};
	if (setsockopt(fd, SOL_SOCKET, which, &tv, sizeof(tv)) != 0) {
		die("setsockopt");
	}
}

static int
wait_recv(waiter_t *w, unsigned ms) {
	char byte;
	socket_timeout(w->fd, SO_RCVTIMEO, ms);
	return (int)recv(w->fd, &byte, 1, 0);
}

static int
wait_read(waiter_t *w, unsigned ms) {
	char byte;
	socket_timeout(w->fd, SO_RCVTIMEO, ms);
	return (int)read(w->fd, &byte, 1);
}

static int
wait_send(waiter_t *w, unsigned ms) {
	char bytes[4096] = {0};
	while (send(w->fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
	}
	socket_timeout(w->fd, SO_SNDTIMEO, ms);
	w->end_at = now_ns() + ms * MS;
	return (int)send(w->fd, bytes, 1, 0);
}

static int
wait_accept(waiter_t *w, unsigned ms) {
	socket_timeout(w->fd, SO_RCVTIMEO, ms);
	return accept(w->fd, NULL, NULL);
}

/* The queue of the listening socket is full. */
static int
wait_connect(waiter_t *w, unsigned ms) {
	struct sockaddr_un name;
	socklen_t          size = sizeof(name);
	int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	getsockname(w->fd, (struct sockaddr *)&name, &size);
	while (connect(fd, (struct sockaddr *)&name, size) == 0) {
		/* Stays in the queue. */
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	}
	fcntl(fd, F_SETFL, 0);
	socket_timeout(fd, SO_SNDTIMEO, ms);
	w->end_at = now_ns() + ms * MS;
	int r = connect(fd, (struct sockaddr *)&name, size);
	int err = errno;
	close(fd);
	errno = err;
	return r;
}

static int
wait_flock(waiter_t *w, unsigned ms) {
	(void)ms;
	int r = flock(w->fd, LOCK_EX);
	flock(w->fd, LOCK_UN);
	flock(w->other, LOCK_EX);
	return r;
}

static void
end_flock(waiter_t *w) {
	flock(w->other, LOCK_UN);
}

static int
wait_child(waiter_t *w, unsigned ms) {
	(void)w;
	char     text[16];
	char    *sleep[] = {"sleep", text, NULL};
	sigset_t all, old;
	snprintf(text, sizeof(text), "%u.%03u", ms / 1000, ms % 1000);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid_t pid = vfork();
	if (pid == 0) {
		execvp(sleep[0], sleep);
		_exit(1);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	int status;
	return wait4(pid, &status, 0, NULL) != pid ? -1 : status;
}

static void
open_epoll(waiter_t *w) {
	w->fd = epoll_create1(0);
}

static void
open_sockets(waiter_t *w) {
	int fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
		die("socketpair");
	}
	w->fd = fds[0];
	w->other = fds[1];
}

static void
open_listener(waiter_t *w) {
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	w->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(w->fd, (struct sockaddr *)&name, sizeof(sa_family_t)) != 0
	    || listen(w->fd, 1) != 0) {
		die("bind");
	}
}

/* Two locks on a file, of which the other one is held. */
static void
open_files(waiter_t *w) {
	char name[] = "/tmp/waits-XXXXXX";
	w->fd = mkstemp(name);
	w->other = open(name, O_RDWR);
	unlink(name);
	flock(w->other, LOCK_EX);
}

static void
open_ipc(waiter_t *w) {
	bool queue = (w->wait == wait_msgrcv || w->wait == wait_msgsnd);
	w->id = queue ? msgget(IPC_PRIVATE, 0600) : semget(IPC_PRIVATE, 1, 0600);
	if (w->id == -1) {
		die("msgget, semget");
	}
}

static void
close_ipc(waiter_t *w) {
	if (w->wait == wait_msgrcv || w->wait == wait_msgsnd) {
		msgctl(w->id, IPC_RMID, NULL);
	} else if (w->wait == wait_semop || w->wait == wait_semtimedop) {
		semctl(w->id, 0, IPC_RMID);
	}
}

/* Handled ones have the signal blocked outside of the call, if the call can. */
static waiter_t waiters[] = {
    {.name = "nanosleep", .wait = wait_nanosleep, .handled = true},
    {.name = "clock_nanosleep", .wait = wait_clock_nanosleep, .handled = true},
    {.name = "clock_nanosleep_until", .wait = wait_until, .handled = true},
    {.name = "usleep", .wait = wait_usleep},
    {.name = "poll", .wait = wait_poll, .handled = true},
    {.name = "select", .wait = wait_select},
    {.name = "raw_select", .wait = wait_raw_select, .handled = true},
    {.name = "ppoll", .wait = wait_ppoll, .handled = true},
    {.name = "pselect", .wait = wait_pselect, .handled = true},
    {.name = "epoll_wait", .wait = wait_epoll, .handled = true},
    {.name = "epoll_pwait", .wait = wait_epoll_pwait, .handled = true},
    {.name = "epoll_pwait2", .wait = wait_epoll_pwait2, .handled = true},
    {.name = "sigtimedwait",
        .wait = wait_sigtimedwait,
        .ret = -1,
        .err = EAGAIN,
        .handled = true},
    {.name = "sigwaitinfo",
        .wait = wait_sigwaitinfo,
        .end = end_sigusr2,
        .ret = SIGUSR2},
    {.name = "semtimedop",
        .wait = wait_semtimedop,
        .ret = -1,
        .err = EAGAIN,
        .handled = true},
    {.name = "semop",
        .wait = wait_semop,
        .end = end_semop,
        .handled = true},
    {.name = "msgrcv",
        .wait = wait_msgrcv,
        .end = end_msgrcv,
        .ret = 1,
        .handled = true},
    {.name = "msgsnd", .wait = wait_msgsnd, .end = end_msgsnd},
    {.name = "io_getevents", .wait = wait_getevents, .handled = true},
    {.name = "pause",
        .wait = wait_pause,
        .end = end_sigusr1,
        .ret = -1,
        .err = EINTR,
        .handled = true},
    {.name = "sigsuspend",
        .wait = wait_sigsuspend,
        .end = end_sigusr1,
        .ret = -1,
        .err = EINTR,
        .handled = true},
    {.name = "futex",
        .wait = wait_futex,
        .ret = -1,
        .err = ETIMEDOUT,
        .handled = true},
    {.name = "pthread_cond_timedwait",
        .wait = wait_condition,
        .ret = -1,
        .err = ETIMEDOUT},
    {.name = "sem_timedwait",
        .wait = wait_semaphore,
        .ret = -1,
        .err = ETIMEDOUT,
        .handled = true},
    {.name = "recv",
        .wait = wait_recv,
        .ret = -1,
        .err = EAGAIN,
        .handled = true},
    {.name = "read", .wait = wait_read, .ret = -1, .err = EAGAIN},
    {.name = "send", .wait = wait_send, .ret = -1, .err = EAGAIN},
    {.name = "accept",
        .wait = wait_accept,
        .ret = -1,
        .err = EAGAIN,
        .handled = true},
    {.name = "connect", .wait = wait_connect, .ret = -1, .err = EAGAIN},
    {.name = "flock", .wait = wait_flock, .end = end_flock},
    {.name = "wait4", .wait = wait_child},
};
#define NWAITERS (sizeof(waiters) / sizeof(waiters[0]))

static bool
is_epoll(const waiter_t *w) {
	return w->wait == wait_epoll || w->wait == wait_epoll_pwait
	    || w->wait == wait_epoll_pwait2;
}

/* Whether the call unblocks signals itself. */
static bool
is_masked(const waiter_t *w) {
	return w->wait == wait_ppoll || w->wait == wait_pselect
	    || w->wait == wait_epoll_pwait || w->wait == wait_sigsuspend;
}

static void
waiter_open(waiter_t *w) {
	sem_init(&w->begun, 0, 0);
	if (is_epoll(w)) {
		open_epoll(w);
	} else if (w->wait == wait_recv || w->wait == wait_read
	    || w->wait == wait_send) {
		open_sockets(w);
	} else if (w->wait == wait_accept || w->wait == wait_connect) {
		open_listener(w);
	} else if (w->wait == wait_flock) {
		open_files(w);
	} else if (w->wait == wait_msgrcv || w->wait == wait_msgsnd
	    || w->wait == wait_semop || w->wait == wait_semtimedop) {
		open_ipc(w);
	}
}

static void
signal_block(int how, int signum) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signum);
	pthread_sigmask(how, &set, NULL);
}

/* Ends a wait at its time. */
static void *
end_main(void *arg) {
	waiter_t *w = arg;
	while (true) {
		while (sem_wait(&w->begun) != 0) {
		}
		if (stop) {
			return NULL;
		}
		sleep_until(w->end_at);
		w->end(w);
	}
}

static void
waiter_late(waiter_t *w, uint64_t at) {
	uint64_t now = now_ns();
	w->early += now + EARLY_NS < at;
	if (now > at && now - at > w->latest) {
		w->latest = now - at;
	}
}

/* Calls end at their own time, or another thread ends them. */
static void *
time_main(void *arg) {
	waiter_t *w = arg;
	pthread_t ender;
	self = w;
	signal_block(SIG_BLOCK, SIGUSR2);
	if (w->end != NULL) {
		pthread_create(&ender, NULL, end_main, w);
	}
	while (!stop) {
		w->end_at = now_ns() + LASTS_MS * MS;
		if (w->end != NULL) {
			sem_post(&w->begun);
		}
		errno = 0;
		int r = w->wait(w, LASTS_MS);
		int err = r == -1 ? errno : 0;
		waiter_late(w, w->end_at);
		w->calls++;
		w->eintr += err == EINTR && w->err != EINTR;
		w->wrong += r != w->ret || err != w->err;
	}
	if (w->end != NULL) {
		sem_post(&w->begun);
		pthread_join(ender, NULL);
	}
	return NULL;
}

/* A signal of the program's: does it come in a call, or has that yet to begin? */
static void
handler(int signum, siginfo_t *info, void *context) {
	(void)signum, (void)info;
	if (self == NULL || !self->inside || self->handled_at != 0) {
		return;
	}
#ifdef __x86_64__
	const ucontext_t    *uc = context;
	const unsigned char *pc =
	    (const unsigned char *)uc->uc_mcontext.gregs[REG_RIP];
	self->too_soon = pc[-2] != 0x0f || pc[-1] != 0x05;
#else
	(void)context;
#endif
	self->handled_at = now_ns();
}

static void
handle(int signum) {
	struct sigaction action = {
	    .sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	if (sigaction(signum, &action, NULL) != 0) {
		die("sigaction");
	}
}

/* Half of the timers have a signal with a higher number than ours. */
static int
waiter_signum(const waiter_t *w) {
	size_t i = (size_t)(w - waiters);
	return i % 2 == 0 ? SIGUSR1 : SIGRTMIN + 3;
}

static void
timer_set(waiter_t *w, timer_t timer, unsigned ms) {
	if (w->wait == wait_nanosleep) {
		struct itimerval value = {{AGAIN_MS / 1000, 0},
		    {ms / 1000, (suseconds_t)ms % 1000 * 1000}};
		setitimer(ITIMER_REAL, ms != 0 ? &value : &(struct itimerval){0},
		    NULL);
	} else {
		struct itimerspec value = {
		    timespec_ms(AGAIN_MS), timespec_ms(ms)};
		timer_settime(timer, 0,
		    ms != 0 ? &value : &(struct itimerspec){0}, NULL);
	}
}

/* A handler ends calls that would last much longer. */
static void *
timer_main(void *arg) {
	waiter_t *w = arg;
	rng_t     rng = {(uint64_t)(w - waiters)};
	timer_t   timer;
	bool      alarmed = w->wait == wait_nanosleep;
	int       signum = alarmed ? SIGALRM : waiter_signum(w);
	self = w;
	struct sigevent event = {
	    .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signum};
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) {
		die("timer_create");
	}
	if (alarmed) {
		signal_block(SIG_UNBLOCK, SIGALRM);
	}
	if (is_masked(w)) {
		signal_block(SIG_BLOCK, signum);
	}
	while (!stop) {
		unsigned ms = 20 + rng_below(&rng, 20);
		w->handled_at = 0;
		w->too_soon = false;
		uint64_t at = now_ns() + ms * MS;
		timer_set(w, timer, ms);
		w->inside = true;
		errno = 0;
		int r = w->wait(w, 3 * AGAIN_MS);
		int err = errno;
		uint64_t handled_at = w->handled_at;
		w->inside = false;
		timer_set(w, timer, 0);
		if (w->too_soon) {
			continue;
		}
		waiter_late(w, at);
		w->calls++;
		w->eintr += err == EINTR && handled_at == 0;
		w->wrong += r != -1 || err != EINTR;
		w->missed += now_ns() > at + AGAIN_MS / 2 * MS
		    && handled_at < at + AGAIN_MS / 2 * MS;
	}
	timer_delete(timer);
	return NULL;
}

static void
run(unsigned seconds) {
	uint64_t end = now_ns() + seconds * UINT64_C(1000000000);
	do {
		bad += table_renew(&table, NOBJECTS, 256, 0.1);
		ctl_do("thread.tcache.flush");
		mesh_pass();
		bad += table_check(&table);
	} while (now_ns() < end);
	stop = true;
}

int
main(int argc, char **argv) {
	if (argc < 3) {
		fprintf(stderr, "usage: waits time|timer SECONDS [CALL]\n");
		return 2;
	}
	bool timers = strcmp(argv[1], "timer") == 0;
	table_init(&table, NOBJECTS, 1, 1);
	handle(SIGUSR1);
	handle(SIGALRM);
	handle(SIGRTMIN + 3);
	signal_block(SIG_BLOCK, SIGALRM);
	for (size_t i = 0; i < NWAITERS; i++) {
		waiter_t *w = &waiters[i];
		if ((timers && !w->handled)
		    || (argc > 3 ? strcmp(argv[3], w->name) != 0
		                 : w->wait == wait_getevents)) {
			continue;
		}
		waiter_open(w);
		pthread_create(
		    &w->thread, NULL, timers ? timer_main : time_main, w);
	}
	run((unsigned)number_parse(argv[2]));
	printf("{\"calls\": {");
	const char *comma = "";
	for (size_t i = 0; i < NWAITERS; i++) {
		waiter_t *w = &waiters[i];
		if (w->thread == 0) {
			continue;
		}
		pthread_join(w->thread, NULL);
		close_ipc(w);
		printf("%s\"%s\": {\"n\": %u, \"early\": %u, \"eintr\": %u, "
		       "\"wrong\": %u, \"missed\": %u, \"latest_ms\": %.1f}",
		    comma, w->name, w->calls, w->early, w->eintr, w->wrong,
		    w->missed, (double)w->latest / (double)MS);
		comma = ", ";
	}
	ctl_epoch();
	printf("}, \"bad\": %u, \"mesh\": ", (unsigned)bad);
	mesh_print();
	puts("}");
	return bad > 0;
}
