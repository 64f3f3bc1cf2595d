/*
 * What programs do to their process while the heap is meshed: close descriptors
 * that are not theirs, handle and block signals, run other programs, become
 * daemons, end threads and processes in every way.
 *
 * usage: odd SCENARIO [ARG]
 */
#define _GNU_SOURCE
#include "scenario.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <jemalloc/jemalloc.h>

#define NFILES 16
/* Larger than any address: what meant the store would hit the file. */
#define FILE_SIZE ((off_t)1 << 48)
#define NPLACES 32
#define PAGE ((size_t)4096)

extern char **environ;

/******************************************************************************/
/* All descriptors are closed. */

/* Of the program's own: holes, and pages where the held objects lie. */
static int   files[NFILES];
static off_t places[NPLACES];

static const char page_text[PAGE] = "the program's own";

static bool
file_good(int fd) {
	struct stat st;
	char        text[PAGE];
	size_t      npages = 0;
	for (unsigned i = 0; i < NPLACES; i++) {
		bool again = false;
		for (unsigned j = 0; j < i; j++) {
			again |= places[j] == places[i];
		}
		npages += !again;
		if (pread(fd, text, PAGE, places[i]) != (ssize_t)PAGE
		    || memcmp(text, page_text, PAGE) != 0) {
			return false;
		}
	}
	return fstat(fd, &st) == 0 && st.st_size == FILE_SIZE
	    && (uint64_t)st.st_blocks * 512 == npages * PAGE;
}

/* Closes all but 0 to 2; files of the program's own take the numbers over. */
static void
files_take(void) {
	if (close_range(3, ~0u, 0) != 0) {
		die("close_range");
	}
	for (unsigned i = 0; i < NFILES; i++) {
		files[i] = memfd_create("odd", 0);
		if (files[i] < 0 || ftruncate(files[i], FILE_SIZE) != 0) {
			die("memfd_create");
		}
	}
}

static void
files_fill(void) {
	for (unsigned i = 0; i < NPLACES; i++) {
		places[i] = (off_t)((uintptr_t)table_pick(&held)->p
		    & ~(PAGE - 1));
		for (unsigned j = 0; j < NFILES; j++) {
			if (pwrite(files[j], page_text, PAGE, places[i])
			    != (ssize_t)PAGE) {
				die("pwrite");
			}
		}
	}
}

static void
files_open(void) {
	files_take();
	files_fill();
}

static void
files_check(void) {
	for (unsigned i = 0; i < NFILES; i++) {
		expect(file_good(files[i]), "the program's file is untouched");
	}
}

/*
 * Uses what is meshed, and meshes more; new: also where the store has no window
 * yet, since slabs of another arena lie far away.
 */
static void
heap_use(table_t *t, bool new) {
	static unsigned arena;
	unsigned        narenas;
	size_t          size = sizeof(narenas);
	mallctl("opt.narenas", &narenas, &size, NULL, 0);
	held_rewrite();
	if (new) {
		arena = (arena + 1) % narenas;
		outside_alloc((size_t)128 << 20);
		mallctl("thread.arena", NULL, NULL, &arena, sizeof(arena));
	}
	churn(t, (size_t)8 << 20);
	churn(&held, table_bytes(&held) * 4);
	held_rewrite();
}

static void
close_child(table_t *t, bool closes) {
	uint64_t before = nmeshes();
	check(&held);
	if (closes) {
		files_open();
	}
	heap_use(t, true);
	pid_t pid = fork_or_die();
	if (pid == 0) {
		uint64_t before2 = nmeshes();
		heap_use(t, true);
		child_end(before2);
	}
	heap_use(t, false);
	child_wait(pid, 0);
	if (closes) {
		files_check();
	}
	child_end(before);
}

/* When: "first", before anything is meshed; "meshed"; in a "child"; or while a
 * child is "alive". */
static void
run_close(void) {
	static table_t t;
	bool           in_child = strcmp(scenario_arg, "child") == 0;
	bool           alive = strcmp(scenario_arg, "alive") == 0;
	if (strcmp(scenario_arg, "first") == 0) {
		files_fill();
	} else if (!in_child && !alive) {
		files_open();
	}
	if (!in_child && !alive) {
		heap_use(&t, true);
	}
	pid_t pid = fork_or_die();
	if (pid == 0) {
		close_child(&t, in_child);
	}
	if (alive) {
		heap_use(&t, false);
		files_open();
	}
	heap_use(&t, true);
	pid_t second = fork_or_die();
	if (second == 0) {
		close_child(&t, false);
	}
	heap_use(&t, false);
	child_wait(pid, 0);
	child_wait(second, 0);
	if (!in_child) {
		files_check();
	}
	results->bad += table_free(&t);
}

/* Again and again, as who leaves nothing open to chance; meshing goes on. */
static void
run_close_often(void) {
	static table_t t;
	uint64_t       before = 0;
	for (unsigned round = 0; round < 10; round++) {
		files_open();
		for (unsigned i = 0; i < 1000; i++) {
			int fd = open("/dev/null", O_RDONLY);
			close_range(NFILES + 3, ~0u, 0);
			expect(fd == NFILES + 3 && close(fd) != 0,
			    "a program's own number is the next one");
		}
		churn(&t, (size_t)4 << 20);
		files_check();
		if (round == 4) {
			before = nmeshes();
		}
	}
	results->count = nmeshes() - before;
	results->bad += table_free(&t);
}

/******************************************************************************/
/* Numbers of descriptors. */

#define NSTANDARD 3
#define NCLOSED 20
#define KEPT_OUT 200
#define LIMIT 64

/* Closes the standard descriptors, and others that may have been inherited. */
static void
standard_close(void) {
	for (int i = 1; i < NSTANDARD; i++) {
		if (dup3(i, KEPT_OUT + i, O_CLOEXEC) < 0) {
			die("dup3");
		}
	}
	close_range(0, NCLOSED - 1, 0);
}

/* Whether none of them is open, nor can be written to. */
static void
standard_check(void) {
	for (int i = 0; i < NCLOSED; i++) {
		results->lost += fcntl(i, F_GETFD) != -1;
		results->count++;
	}
}

/* A daemon whose standard descriptors are closed logs to them all the same. */
static void
run_standard(void) {
	for (unsigned i = 0; i < 30; i++) {
		churn(&held, (size_t)4 << 20);
		standard_check();
		for (int fd = 0; fd < NSTANDARD; fd++) {
			ssize_t n = write(fd, "a line of the log\n", 18);
			results->lost += n != -1 || errno != EBADF;
		}
		if (i % 10 == 0) {
			pid_t pid = fork_or_die();
			if (pid == 0) {
				uint64_t before = nmeshes();
				standard_check();
				churn(&held, (size_t)4 << 20);
				standard_check();
				child_end(before);
			}
			child_wait(pid, 0);
		}
	}
	for (int i = 1; i < NSTANDARD; i++) {
		dup2(KEPT_OUT + i, i);
	}
}

/* The lowest number that is free is the one that was closed last, always. */
static void
run_lowest(void) {
	uint64_t n = *scenario_arg != '\0' ? number_parse(scenario_arg) : 100000;
	for (; results->count < n; results->count++) {
		if (results->count % 10000 == 0) {
			/* What comes next takes another store. */
			pid_t pid = fork_or_die();
			if (pid == 0) {
				_exit(0);
			}
			child_wait(pid, 0);
		}
		close(0);
		if (results->count % 1000 == 0) {
			churn(&held, (size_t)4 << 20);
		}
		int fd = open("/dev/null", O_RDONLY);
		if (fd != 0) {
			results->lost++;
			close(fd);
		}
	}
}

/* As many descriptors as the limit lets any program have. */
static void
limit_use_up(void) {
	int      fds[LIMIT];
	unsigned n = 0;
	while (n < LIMIT && (fds[n] = open("/dev/null", O_RDONLY)) >= 0) {
		n++;
	}
	results->count++;
	if (n != LIMIT - NSTANDARD) {
		fprintf(stderr, "%u descriptors instead of %d\n", n,
		    LIMIT - NSTANDARD);
		results->lost++;
	}
	/* With all of them taken slabs mesh on, or not. */
	churn(&held, (size_t)4 << 20);
	while (n > 0) {
		close(fds[--n]);
	}
}

static void
limit_set(void) {
	/* The hard one stays: without, or rights, ours cannot be out of the way. */
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = LIMIT;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
		die("setrlimit");
	}
}

/* The limit is set "early", before anything has meshed, or late. */
static void
run_limit(void) {
	limit_set();
	for (unsigned i = 0; i < 20; i++) {
		limit_use_up();
		churn(&held, (size_t)4 << 20);
		if (i % 5 == 0) {
			pid_t pid = fork_or_die();
			if (pid == 0) {
				uint64_t before = nmeshes();
				churn(&held, (size_t)4 << 20);
				limit_use_up();
				child_end(before);
			}
			child_wait(pid, 0);
		}
	}
}

/* Another program has the descriptors that it is meant to have. */
static void
run_inherited(void) {
	load_start(2);
	for (unsigned i = 0; i < 30; i++) {
		char  line[512];
		FILE *list = popen("ls -l /proc/self/fd", "r");
		for (unsigned n = 0; fgets(line, sizeof(line), list) != NULL;) {
			/* The standard ones and that of the directory. */
			n += strstr(line, " -> ") != NULL;
			if (n > NSTANDARD + 1 || strstr(line, "jemalloc") != NULL
			    || strstr(line, "userfaultfd") != NULL) {
				fputs(line, stderr);
				results->lost++;
			}
		}
		results->count += pclose(list) == 0;
		churn(&held, (size_t)4 << 20);
	}
}

/******************************************************************************/
/* Signals. */

static void
signal_count(int signum) {
	(void)signum;
	results->count++;
}

static void
fork_often(unsigned n) {
	for (unsigned i = 0; i < n; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			uint64_t before = nmeshes();
			check(&held);
			held_rewrite();
			churn(&held, table_bytes(&held) * 2);
			child_end(before);
		}
		held_rewrite();
		churn(&held, (size_t)8 << 20);
		child_wait(pid, 0);
	}
}

/* Handlers of faults, on a stack of their own, that must never be called. */
static void
run_handlers(void) {
	stack_t          stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
	struct sigaction action = {
	    .sa_handler = signal_count, .sa_flags = SA_ONSTACK};
	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	load_start(3);
	fork_often(3);
}

/* All threads block all signals, also those that would be an error to. */
static void
run_blocked(void) {
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	load_start(3);
	fork_often(3);
}

static sigjmp_buf handler_env;
static table_t    handler_table;

/* Not inside malloc(): the main thread waits for the signal. */
static void
handler_malloc(int signum) {
	churn(&handler_table, (size_t)1 << 20);
	results->count++;
	if (signum == SIGUSR2) {
		siglongjmp(handler_env, 1);
	}
}

/* malloc(), free() and passes in a signal handler, which may not return. */
static void
run_handler_malloc(void) {
	struct sigaction action = {.sa_handler = handler_malloc};
	sigset_t         one, old;
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	load_start(2);
	for (unsigned i = 0; i < 5; i++) {
		raise(SIGUSR1);
		if (sigsetjmp(handler_env, 1) == 0) {
			raise(SIGUSR2);
		}
		sigemptyset(&one);
		sigaddset(&one, SIGUSR1);
		pthread_sigmask(SIG_BLOCK, &one, &old);
		/* Not to the process: another thread could take it. */
		pthread_kill(pthread_self(), SIGUSR1);
		sigsuspend(&old);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		held_rewrite();
	}
	results->bad += table_free(&handler_table);
}

/* Coroutines whose stacks are small objects of the heap. */
#define NCOROUTINES 128
#define COROUTINE_STACK 14000

static ucontext_t scheduler, coroutines[NCOROUTINES];

static void
coroutine_main(int self) {
	volatile uint64_t words[64];
	for (unsigned round = 0;; round++) {
		for (unsigned i = 0; i < 64; i++) {
			words[i] = mix64((uint64_t)self + i + round);
		}
		/* Ticks, which mesh, come from these. */
		void *p[100];
		for (unsigned i = 0; i < 100; i++) {
			p[i] = malloc(100);
		}
		for (unsigned i = 0; i < 100; i++) {
			free(p[i]);
		}
		ctl_do("thread.tcache.flush");
		swapcontext(&coroutines[self], &scheduler);
		for (unsigned i = 0; i < 64; i++) {
			if (words[i] != mix64((uint64_t)self + i + round)) {
				results->bad++;
			}
		}
	}
}

static void
run_coroutines(void) {
	static void *stacks[NCOROUTINES], *others[NCOROUTINES];
	for (unsigned i = 0; i < NCOROUTINES; i++) {
		stacks[i] = malloc(COROUTINE_STACK);
		others[i] = malloc(COROUTINE_STACK);
	}
	for (unsigned i = 0; i < NCOROUTINES; i++) {
		free(others[i]);
		getcontext(&coroutines[i]);
		coroutines[i].uc_stack.ss_sp = stacks[i];
		coroutines[i].uc_stack.ss_size = COROUTINE_STACK;
		makecontext(
		    &coroutines[i], (void (*)(void))coroutine_main, 1, (int)i);
	}
	ctl_do("thread.tcache.flush");
	uint64_t before = nmeshes();
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < NCOROUTINES; i++) {
			swapcontext(&scheduler, &coroutines[i]);
		}
		if (round == 10) {
			mesh_pass();
		}
	}
	results->count = nmeshes() - before;
	for (unsigned i = 0; i < NCOROUTINES; i++) {
		free(stacks[i]);
	}
}

/******************************************************************************/
/* Other programs, and daemons. */

static void
run_command(unsigned how) {
	static char *const         argv[] = {"true", NULL};
	pid_t                      pid;
	volatile object_t         *o;
	posix_spawn_file_actions_t actions;
	switch (how % 5) {
	case 0:
		expect(system("exit 7") == 7 << 8, "system() works");
		break;
	case 1: {
		FILE *pipe = popen("echo out", "r");
		char  text[8] = "";
		expect(pipe != NULL && fgets(text, sizeof(text), pipe) != NULL
		        && strcmp(text, "out\n") == 0 && pclose(pipe) == 0,
		    "popen() works");
		break;
	}
	case 2:
		posix_spawn_file_actions_init(&actions);
		posix_spawn_file_actions_addclosefrom_np(&actions, 0);
		errno = posix_spawnp(
		    &pid, "true", &actions, NULL, argv, environ);
		if (errno != 0) {
			die("posix_spawnp");
		}
		posix_spawn_file_actions_destroy(&actions);
		child_wait(pid, 0);
		break;
	case 3:
		/* A child that shares the memory, and writes to it. */
		o = table_pick(&held);
		pid = vfork();
		if (pid < 0) {
			die("vfork");
		}
		if (pid == 0) {
			for (unsigned i = 0; i < 1000; i++) {
				object_bump((object_t *)o);
			}
			_exit(0);
		}
		child_wait(pid, 0);
		break;
	default:
		pid = fork_or_die();
		if (pid == 0) {
			execvp(argv[0], argv);
			_exit(127);
		}
		child_wait(pid, 0);
	}
}

static void
run_commands(void) {
	load_start(3);
	for (unsigned i = 0; i < 10; i++) {
		run_command(i);
		churn(&held, (size_t)4 << 20);
	}
}

/* Forks twice, leads a session, closes everything and goes on. */
static void
run_daemon(void) {
	load_start(2);
	/* So that the daemon's end is ours to wait for. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid_t pid = fork_or_die();
	if (pid == 0) {
		setsid();
		pid = fork_or_die();
		if (pid != 0) {
			_exit(0);
		}
		uint64_t before = nmeshes();
		close_range(0, ~0u, 0);
		(void)!chdir("/");
		int null = open("/dev/null", O_RDWR);
		dup(null);
		dup(null);
		files_open();
		check(&held);
		load_start(2);
		fork_often(2);
		load_stop();
		files_check();
		child_end(before);
	}
	child_wait(pid, 0);
	held_rewrite();
	churn(&held, (size_t)16 << 20);
	child_wait(-1, 0);
}

/*
 * A daemon that began as root: closes all, drops its rights, and forks.  It may
 * get no new descriptor of a kind that it had.
 */
static void
run_rights(void) {
	files_open();
	if (setresgid(65534, 65534, 65534) != 0
	    || setresuid(65534, 65534, 65534) != 0) {
		die("setresuid");
	}
	load_start(3);
	fork_often(3);
	load_stop();
	files_check();
}

/******************************************************************************/
/* Threads. */

static pthread_key_t key;

/* Of a thread that has ended: frees, allocates and frees again. */
static void
key_destroy(void *arg) {
	table_t *t = arg;
	results->bad += table_thin(t, 0.1, thin_random);
	table_fill(t, (size_t)64 << 10, 16, 1024);
	results->bad += table_free(t);
	munmap(t->objects, t->max * sizeof(object_t));
	free(t);
	results->count++;
}

static void *
mortal_main(void *arg) {
	table_t *t = malloc(sizeof(*t));
	table_init(t, 20000, (uintptr_t)t, (uintptr_t)t << 16);
	pthread_setspecific(key, t);
	table_fill(t, (size_t)1 << 20, 16, 4096);
	results->bad += table_thin(t, 0.2, thin_random);
	results->bad += table_check(t);
	switch ((uintptr_t)arg % 3) {
	case 0:
		pthread_exit(NULL);
	case 1:
		pause();
	}
	return NULL;
}

/* Threads come and go, joined, detached and cancelled, with destructors. */
static void
run_threads(void) {
	pthread_key_create(&key, key_destroy);
	load_start(2);
	for (unsigned i = 0; i < 10; i++) {
		pthread_t each[6];
		for (uintptr_t j = 0; j < 6; j++) {
			thread_start(&each[j], mortal_main, (void *)j);
		}
		for (unsigned j = 0; j < 6; j++) {
			if (j % 3 == 1) {
				pthread_cancel(each[j]);
			}
			if (j < 3) {
				pthread_join(each[j], NULL);
			} else {
				pthread_detach(each[j]);
			}
		}
		churn(&held, (size_t)4 << 20);
	}
	while (results->count < 60) {
		sleep_ms(10);
	}
}

static void *
doomed_main(void *arg) {
	static table_t t;
	(void)arg;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	pthread_cancel(pthread_self());
	uint64_t before = nmeshes();
	for (unsigned i = 0; i < 20; i++) {
		churn(&t, (size_t)8 << 20);
	}
	results->count = nmeshes() - before;
	results->bad += table_free(&t);
	results->lost--;
	pthread_testcancel();
	return NULL;
}

/* malloc() and free() are no points of cancellation, nor is a pass. */
static void
run_cancel(void) {
	pthread_t thread;
	void     *value;
	results->lost = 1;
	thread_start(&thread, doomed_main, NULL);
	pthread_join(thread, &value);
	expect(value == PTHREAD_CANCELED, "the thread is cancelled at last");
}

static void *
heir_main(void *arg) {
	static table_t t;
	pthread_t     *main_thread = arg;
	pthread_join(*main_thread, NULL);
	uint64_t before = nmeshes();
	for (unsigned i = 0; i < 4; i++) {
		churn(&t, (size_t)8 << 20);
		churn(&held, (size_t)8 << 20);
		held_rewrite();
	}
	results->count = nmeshes() - before;
	pid_t pid = fork_or_die();
	if (pid == 0) {
		before = nmeshes();
		churn(&held, (size_t)8 << 20);
		child_end(before);
	}
	child_wait(pid, 0);
	scenario_end();
}

/* The main thread ends; others go on. */
static void
run_main_exit(void) {
	static pthread_t self;
	pthread_t        heir;
	self = pthread_self();
	load_start(1);
	thread_start(&heir, heir_main, &self);
	pthread_exit(NULL);
}

/******************************************************************************/
/* Ends. */

static void
at_end(void) {
	static table_t t;
	table_init(&t, 100000, 1, UINT64_C(1) << 60);
	table_fill(&t, (size_t)1 << 20, 16, 4096);
	results->bad += table_free(&t);
	check(&held);
	results->count++;
}

static void *
end_main(void *arg) {
	switch ((uintptr_t)arg % 4) {
	case 0:
		exit(3);
	case 1:
		_exit(3);
	case 2:
		quick_exit(3);
	default:
		/* As return from main(). */
		pthread_exit(NULL);
	}
}

/* Processes end in all ways while others threads and passes are at work. */
static void
run_ends(void) {
	for (uintptr_t i = 0; i < 12; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			uint64_t before = nmeshes();
			atexit(at_end);
			(void)at_quick_exit(at_end);
			load_start(2);
			churn(&held, (size_t)4 << 20);
			results->child_meshes += nmeshes() - before;
			sleep_ms((unsigned)i);
			if (i % 4 == 3) {
				exit(3);
			}
			pthread_t thread;
			thread_start(&thread, end_main, (void *)i);
			for (;;) {
				pause();
			}
		}
		child_wait(pid, 3);
	}
	expect(results->count == 9, "functions for the end were called");
}

/******************************************************************************/
/* Signals arrive in children as they are born. */

static pid_t       first_process;
static atomic_bool signals_enough;

/* What a child does to its objects is no matter to its parent. */
static void
child_spoils(int sig) {
	(void)sig;
	if (getpid() != first_process) {
		for (size_t i = 0; i < held.n; i++) {
			*(volatile unsigned char *)held.objects[i].p ^= 1;
		}
		results->count++;
	}
}

static void *
signals_main(void *arg) {
	while (!signals_enough) {
		/* To all of the process group: children, too. */
		kill(0, SIGUSR1);
		usleep(1000);
	}
	return arg;
}

static void
run_interrupted(void) {
	first_process = getpid();
	setpgid(0, 0);
	signal(SIGUSR1, child_spoils);
	churn(&held, (size_t)32 << 20);
	pthread_t thread;
	thread_start(&thread, signals_main, NULL);
	for (unsigned i = 0; i < 10; i++) {
		pid_t pid = fork_or_die();
		if (pid == 0) {
			_exit(0);
		}
		child_wait(pid, 0);
		check(&held);
		churn(&held, (size_t)32 << 20);
	}
	signals_enough = true;
	pthread_join(thread, NULL);
}

/******************************************************************************/
/* What a child's C library sets back before any handler runs. */

#define NSTREAMS 200
#define NOWNERS 48
#define NPADS 15
/* glibc has the values of later keys on the heap, 32 at a time. */
#define NKEYS 40
#define VALUES_SIZE ((size_t)512)
/* A stream of fopen(), all told. */
#define STREAM_SIZE ((size_t)472)

typedef struct {
	pthread_t thread;
	void     *pads[NPADS];
} owner_t;

static FILE             *streams[NSTREAMS];
static pthread_key_t     late_key;
static pthread_barrier_t owners_turn;

/* A thread with a value for a late key, in a slab with little else. */
static void *
owner_main(void *arg) {
	owner_t *owner = arg;
	for (unsigned i = 0; i < NPADS; i++) {
		owner->pads[i] = malloc(VALUES_SIZE);
	}
	pthread_setspecific(late_key, owner);
	for (unsigned i = 0; i < NPADS; i++) {
		free(owner->pads[i]);
	}
	ctl_do("thread.tcache.flush");
	pthread_barrier_wait(&owners_turn);
	/* A child is born. */
	pthread_barrier_wait(&owners_turn);
	expect(pthread_getspecific(late_key) == owner,
	    "a thread has its value after a fork");
	return NULL;
}

static void *
streams_try(void *arg) {
	for (unsigned i = 0; i < NSTREAMS; i++) {
		expect(ftrylockfile(streams[i]) != 0,
		    "a stream is locked after a fork");
	}
	return arg;
}

static void
run_libc(void) {
	static owner_t owners[NOWNERS];
	static void   *pads[NSTREAMS][NPADS];
	for (unsigned i = 0; i < NSTREAMS; i++) {
		streams[i] = fopen("/dev/null", "w");
		if (streams[i] == NULL) {
			die("fopen");
		}
		for (unsigned j = 0; j < NPADS; j++) {
			pads[i][j] = malloc(STREAM_SIZE);
		}
	}
	for (unsigned i = 0; i < NSTREAMS; i++) {
		for (unsigned j = 0; j < NPADS; j++) {
			free(pads[i][j]);
		}
	}
	for (unsigned i = 0; i < NKEYS; i++) {
		pthread_key_create(&late_key, NULL);
	}
	pthread_barrier_init(&owners_turn, NULL, NOWNERS + 1);
	for (unsigned i = 0; i < NOWNERS; i++) {
		thread_start(&owners[i].thread, owner_main, &owners[i]);
	}
	pthread_barrier_wait(&owners_turn);
	ctl_do("thread.tcache.flush");
	mesh_pass();
	for (unsigned i = 0; i < NSTREAMS; i++) {
		results->count += mesh_range(streams[i], STREAM_SIZE);
		flockfile(streams[i]);
	}

	pid_t pid = fork_or_die();
	if (pid == 0) {
		_exit(0);
	}
	child_wait(pid, 0);
	pthread_t thread;
	thread_start(&thread, streams_try, NULL);
	pthread_join(thread, NULL);
	pthread_barrier_wait(&owners_turn);
	for (unsigned i = 0; i < NOWNERS; i++) {
		pthread_join(owners[i].thread, NULL);
	}
}

/******************************************************************************/
/* Slabs die before and after a fork, and leave the store while the child lives. */

#define NDEAD_ROUNDS 4
#define DEAD_BYTES ((size_t)16 << 20)

static void
run_dead(void) {
	table_t dying = {0}, fresh = {0};
	for (unsigned i = 0; i < NDEAD_ROUNDS; i++) {
		churn(&dying, DEAD_BYTES);
		table_thin(&dying, 0.5, thin_random);
		ctl_do("thread.tcache.flush");
		pid_t pid = fork_or_die();
		if (pid == 0) {
			uint64_t before = nmeshes();
			sleep_ms(i % 3 * 50);
			check(&dying);
			churn(&fresh, DEAD_BYTES);
			table_free(&dying);
			ctl_do("thread.tcache.flush");
			sleep_ms(150);
			churn(&fresh, DEAD_BYTES);
			held_rewrite();
			child_end(before);
		}
		table_thin(&dying, 0.2, thin_random);
		ctl_do("thread.tcache.flush");
		sleep_ms(i % 4 * 50);
		/* What has left the store is used anew. */
		sleep_ms(100);
		table_fill(&fresh, DEAD_BYTES, 16, 4096);
		held_rewrite();
		check(&dying);
		table_thin(&fresh, 0.1, thin_random);
		child_wait(pid, 0);
		check(&fresh);
		check(&held);
	}
}

int
main(int argc, char **argv) {
	static const scenario_t scenarios[] = {
	    {"close", run_close},
	    {"close_often", run_close_often},
	    {"standard", run_standard},
	    {"lowest", run_lowest},
	    {"limit", run_limit},
	    {"inherited", run_inherited},
	    {"handlers", run_handlers},
	    {"blocked", run_blocked},
	    {"handler_malloc", run_handler_malloc},
	    {"coroutines", run_coroutines},
	    {"commands", run_commands},
	    {"daemon", run_daemon},
	    {"rights", run_rights},
	    {"threads", run_threads},
	    {"cancel", run_cancel},
	    {"main_exit", run_main_exit},
	    {"ends", run_ends},
	    {"interrupted", run_interrupted},
	    {"libc", run_libc},
	    {"dead", run_dead},
	};
	const char *name = argc > 1 ? argv[1] : "";
	const char *when = argc > 2 ? argv[2] : "";
	if (strcmp(when, "first") == 0) {
		files_take();
	} else if (strcmp(name, "standard") == 0) {
		standard_close();
	} else if (strcmp(name, "limit") == 0
	    || strcmp(name, "inherited") == 0) {
		close_range(NSTANDARD, ~0u, 0);
	}
	if (strcmp(when, "early") == 0) {
		limit_set();
	}
	return scenario_main(
	    argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
