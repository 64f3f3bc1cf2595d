/*
 * Does with signals and threads what programs do, while the heap is meshed, and
 * says what came of it.  Each case is one such program; see cases below.
 */
#define _GNU_SOURCE
#include "measure.h"
#include "objects.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOBJECTS 65536
#define NTHREADS 4
/* Two of them make a slab; so few that one or another is always in use. */
#define STACK_SIZE ((size_t)14 << 10)
#define NSTACKS ((size_t)16)

static table_t       table;
static atomic_bool   stop;
static atomic_uint   bad;
static atomic_ullong count;
static sem_t         ready, go;
/* Signals that reached the program. */
static volatile sig_atomic_t caught;

static pthread_t
thread_start(void *(*main)(void *), void *arg) {
	pthread_t thread;
	errno = pthread_create(&thread, NULL, main, arg);
	if (errno != 0) {
		die("pthread_create");
	}
	return thread;
}

static void
await(sem_t *sem) {
	while (sem_wait(sem) != 0) {
	}
}

static void
pause_ms(unsigned ms) {
	struct timespec left = {ms / 1000, ms % 1000 * 1000000};
	while (nanosleep(&left, &left) != 0) {
	}
}

static void
handler(int signum) {
	(void)signum;
	caught = caught + 1;
}

static void
handle(int signum, void (*how)(int)) {
	struct sigaction action = {.sa_handler = how, .sa_flags = SA_RESTART};
	if (sigaction(signum, &action, NULL) != 0) {
		die("sigaction");
	}
}

/* Makes the heap sparse anew. */
static void
fragment(void) {
	bad += table_renew(&table, NOBJECTS, 256, 0.1);
	ctl_do("thread.tcache.flush");
}

/*
 * Has the heap meshed now and prints what came of it.  On a busy machine a
 * thread may be too late to answer, which is not what any case is about.
 */
static void
step(const char *name) {
	uint64_t end = now_ns() + UINT64_C(10000000000);
	ctl_epoch();
	uint64_t before = mesh_stat("nmeshes");
	fragment();
	do {
		mesh_pass();
		ctl_epoch();
	} while (mesh_stat("nmeshes") == before
	    && strstr(mesh_off(), "answer") != NULL && now_ns() < end);
	bad += table_check(&table);
	printf("\"%s\": {\"new\": %llu, \"mesh\": ", name,
	    (unsigned long long)(mesh_stat("nmeshes") - before));
	mesh_print();
	printf("}, ");
}

/* Meshes for so long. */
static void
mesh_for(unsigned ms) {
	uint64_t end = now_ns() + ms * UINT64_C(1000000);
	do {
		fragment();
		mesh_pass();
		bad += table_check(&table);
	} while (now_ns() < end);
}

/* A thread blocks all signals for a while. */
static void *
block_main(void *arg) {
	(void)arg;
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	sem_post(&ready);
	await(&go);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	sem_post(&ready);
	await(&go);
	return NULL;
}

static void
case_block(void) {
	step("free");
	pthread_t thread = thread_start(block_main, NULL);
	await(&ready);
	step("blocked");
	sem_post(&go);
	await(&ready);
	step("unblocked");
	sem_post(&go);
	pthread_join(thread, NULL);
}

/* A thread takes whatever signal comes: all of them, or SIGUSR1 only. */
static void *
sigwait_main(void *arg) {
	int      signum;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (arg != NULL) {
		sigfillset(&set);
	}
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	sem_post(&ready);
	while (sigwait(&set, &signum) == 0 && signum != SIGUSR1) {
		handler(signum);
	}
	return NULL;
}

static void
sigwait_step(const char *name, void *arg) {
	pthread_t thread = thread_start(sigwait_main, arg);
	await(&ready);
	pause_ms(100);
	step(name);
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
}

static void
case_sigwait(void) {
	step("free");
	sigwait_step("all", "");
	sigwait_step("one", NULL);
}

/* The same of a process that gives up root: then it may not read its own calls. */
static void
case_secret(void) {
	const uid_t nobody = 65534;
	if (setresgid(nobody, nobody, nobody) != 0
	    || setresuid(nobody, nobody, nobody) != 0) {
		die("setresuid");
	}
	case_sigwait();
	step("then");
}

/* A thread is there that has nothing to do with signals. */
static void *
idle_main(void *arg) {
	(void)arg;
	await(&go);
	return NULL;
}

/* No thread of the program's takes SIGWINCH, and a descriptor tells of it. */
static void
case_descriptor(void) {
	const unsigned times = 1000;
	sigset_t       set;
	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	struct pollfd told = {
	    signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), POLLIN, 0};
	pthread_t threads[NTHREADS];
	for (int i = 0; i < NTHREADS; i++) {
		threads[i] = thread_start(idle_main, NULL);
	}
	step("free");
	for (unsigned i = 0; i < times; i++) {
		struct signalfd_siginfo info;
		kill(getpid(), SIGWINCH);
		caught += poll(&told, 1, 100) == 1
		    && read(told.fd, &info, sizeof(info)) == sizeof(info);
	}
	printf("\"sent\": %u, ", times);
	for (int i = 0; i < NTHREADS; i++) {
		sem_post(&go);
	}
	for (int i = 0; i < NTHREADS; i++) {
		pthread_join(threads[i], NULL);
	}
}

/* Another process stops a thread, as debuggers do, until it is told to end. */
static pid_t
debugger_start(pid_t tid) {
	int told[2];
	if (pipe(told) != 0) {
		die("pipe");
	}
	pid_t pid = fork();
	if (pid == 0) {
		/* Where a process may only trace its descendants it is let to first. */
		char byte;
		int  status;
		close(told[1]);
		bool err = read(told[0], &byte, 1) != 1
		    || ptrace(PTRACE_SEIZE, tid, NULL, NULL) != 0
		    || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) != 0
		    || waitpid(tid, &status, __WALL) != tid;
		kill(getppid(), err ? SIGKILL : SIGUSR1);
		while (!err) {
			pause();
		}
		_exit(1);
	}
	prctl(PR_SET_PTRACER, pid, 0, 0, 0);
	bad += write(told[1], "", 1) != 1;
	close(told[0]);
	close(told[1]);
	while (caught == 0) {
		pause_ms(1);
	}
	return pid;
}

static void *
traced_main(void *arg) {
	*(pid_t *)arg = gettid();
	sem_post(&ready);
	await(&go);
	return NULL;
}

static void
case_debugger(void) {
	pid_t     tid;
	pthread_t thread = thread_start(traced_main, &tid);
	await(&ready);
	handle(SIGUSR1, handler);
	pid_t pid = debugger_start(tid);
	step("stopped");
	/* What it traced goes on. */
	kill(pid, SIGKILL);
	bad += waitpid(pid, NULL, 0) != pid;
	step("then");
	sem_post(&go);
	pthread_join(thread, NULL);
}

static void *
job_main(void *arg) {
	(void)arg;
	while (!stop) {
		struct timespec sleep = {0, 200000000};
		uint64_t        begin = now_ns();
		bad += nanosleep(&sleep, NULL) != 0;
		bad += poll(NULL, 0, 200) != 0;
		bad += now_ns() - begin < 400000000;
		count += 2;
	}
	return NULL;
}

/* Another process stops and continues this one, as a shell does with its jobs. */
static void
case_job(void) {
	pid_t parent = getpid(), pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent) {
			pause_ms(30);
			kill(parent, SIGSTOP);
			pause_ms(10);
			kill(parent, SIGCONT);
		}
		_exit(0);
	}
	pthread_t thread = thread_start(job_main, NULL);
	mesh_for(8000);
	stop = true;
	pthread_join(thread, NULL);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	printf("\"calls\": %llu, ", (unsigned long long)count);
	step("then");
}

static void *
sender_main(void *arg) {
	const pthread_t *to = arg;
	/* One more, should the other one have begun a call just before that. */
	for (unsigned last = 0; last < 100; last += stop) {
		pthread_kill(*to, SIGRTMIN + 3);
		struct timespec pause = {0, stop ? 1000000 : 1000};
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void *
storm_main(void *arg) {
	int id = *(int *)arg;
	sem_post(&ready);
	while (!stop) {
		struct sembuf   wait = {.sem_op = -1};
		struct timespec timeout = {.tv_sec = 10};
		bad += semtimedop(id, &wait, 1, &timeout) == 0
		    || errno != EINTR;
		count++;
	}
	return NULL;
}

/* Signals come all the time, also while the thread they are for is stopped. */
static void
case_storm(void) {
	int id = semget(IPC_PRIVATE, 1, 0600);
	if (id == -1) {
		die("semget");
	}
	/* A higher number than ours: it has to wait for our handler. */
	handle(SIGRTMIN + 3, handler);
	pthread_t thread = thread_start(storm_main, &id);
	await(&ready);
	pthread_t sender = thread_start(sender_main, &thread);
	mesh_for(200);
	stop = true;
	pthread_join(sender, NULL);
	pthread_join(thread, NULL);
	semctl(id, 0, IPC_RMID);
	printf("\"calls\": %llu, ", (unsigned long long)count);
	step("then");
}

/* The program takes the signals itself, one after the other. */
static void
case_take(void) {
	pthread_t thread = thread_start(idle_main, NULL);
	step("free");
	handle(SIGURG, handler);
	step("one");
	handle(SIGWINCH, handler);
	step("both");
	printf("\"caught_before\": %d, ", (int)caught);
	raise(SIGURG);
	raise(SIGWINCH);
	handle(SIGURG, SIG_DFL);
	step("again");
	sem_post(&go);
	pthread_join(thread, NULL);
}

/* Uses an arena of its own, which gets a thread of its own. */
static void *
allocate_main(void *arg) {
	void **objects = arg;
	while (!stop) {
		for (size_t i = 0; i < NOBJECTS; i++) {
			objects[i] = malloc(256);
		}
		for (size_t i = 0; i < NOBJECTS; i++) {
			free(objects[i]);
		}
	}
	return NULL;
}

/* It takes the first one, where jemalloc has threads of its own. */
static void
case_late(void) {
	uint64_t  end = now_ns() + UINT64_C(10000000000), before;
	pthread_t thread = thread_start(
	    allocate_main, outside_alloc(NOBJECTS * sizeof(void *)));
	/* The program's two, and two of jemalloc's. */
	do {
		fragment();
	} while (status_number("Threads") < 4 && now_ns() < end);
	step("free");
	handle(SIGURG, handler);
	ctl_epoch();
	before = mesh_stat("nmeshes");
	do {
		fragment();
		ctl_epoch();
	} while (mesh_stat("nmeshes") == before && now_ns() < end);
	printf("\"late\": %llu, ",
	    (unsigned long long)(mesh_stat("nmeshes") - before));
	stop = true;
	pthread_join(thread, NULL);
}

/* Signals that were left alone are left alone, and others get through. */
static void
case_leave(void) {
	pthread_t thread = thread_start(idle_main, NULL);
	for (int i = 1; i <= SIGRTMAX; i++) {
		if ((i >= 32 && i < SIGRTMIN) || i == SIGURG || i == SIGKILL
		    || i == SIGSTOP) {
			continue;
		}
		handle(i, handler);
	}
	step("free");
	unsigned sent = 0;
	for (int i = 1; i <= SIGRTMAX; i++) {
		struct sigaction action;
		if ((i >= 32 && i < SIGRTMIN) || i == SIGURG || i == SIGKILL
		    || i == SIGSTOP) {
			continue;
		}
		sigaction(i, NULL, &action);
		bad += action.sa_handler != handler;
		raise(i);
		sent++;
	}
	/* Others may send ours as well. */
	for (unsigned i = 0; i < 1000; i++) {
		kill(getpid(), SIGURG);
	}
	step("again");
	printf("\"sent\": %u, ", sent);
	sem_post(&go);
	pthread_join(thread, NULL);
}

/* Threads go to sleep in system calls that restart, and count those that fail. */
typedef struct {
	int pipe[2];
	int sock;
} sleeper_t;

static void *
read_main(void *arg) {
	sleeper_t *s = arg;
	char       byte;
	while (!stop) {
		bad += read(s->pipe[0], &byte, 1) != 1;
		count++;
	}
	return NULL;
}

static void *
write_main(void *arg) {
	sleeper_t *s = arg;
	while (!stop) {
		pause_ms(1);
		bad += write(s->pipe[1], "", 1) != 1;
		count++;
	}
	return NULL;
}

static void *
accept_main(void *arg) {
	sleeper_t *s = arg;
	while (!stop) {
		int fd = accept(s->sock, NULL, NULL);
		bad += fd < 0;
		close(fd);
		count++;
	}
	return NULL;
}

static void *
connect_main(void *arg) {
	sleeper_t         *s = arg;
	struct sockaddr_un name;
	socklen_t          size = sizeof(name);
	getsockname(s->sock, (struct sockaddr *)&name, &size);
	while (!stop) {
		pause_ms(1);
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		bad += connect(fd, (struct sockaddr *)&name, size) != 0;
		close(fd);
		count++;
	}
	return NULL;
}

static void *
semaphore_main(void *arg) {
	(void)arg;
	while (!stop) {
		bad += sem_wait(&go) != 0;
		count++;
	}
	return NULL;
}

static void *
child_main(void *arg) {
	(void)arg;
	while (!stop) {
		char *sleep[] = {"sleep", "0.02", NULL};
		int   status;
		pid_t pid = vfork();
		if (pid == 0) {
			execvp(sleep[0], sleep);
			_exit(1);
		}
		bad += waitpid(pid, &status, 0) != pid || status != 0;
		count++;
	}
	return NULL;
}

static void
case_restart(void) {
	static sleeper_t   s;
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	pthread_t          threads[6];
	s.sock = socket(AF_UNIX, SOCK_STREAM, 0);
	if (pipe(s.pipe) != 0
	    || bind(s.sock, (struct sockaddr *)&name, sizeof(sa_family_t)) != 0
	    || listen(s.sock, 10) != 0) {
		die("pipe, socket");
	}
	threads[0] = thread_start(read_main, &s);
	threads[1] = thread_start(write_main, &s);
	threads[2] = thread_start(accept_main, &s);
	threads[3] = thread_start(connect_main, &s);
	threads[4] = thread_start(semaphore_main, NULL);
	threads[5] = thread_start(child_main, NULL);
	for (unsigned i = 0; i < 20; i++) {
		mesh_for(50);
		sem_post(&go);
	}
	stop = true;
	sem_post(&go);
	/* Those that wait for each other may wait for ever now. */
	pthread_join(threads[4], NULL);
	printf("\"calls\": %llu, ", (unsigned long long)count);
}

/* Short-lived threads write to the objects. */
static void *
bump_main(void *arg) {
	size_t first = (size_t)(uintptr_t)arg;
	for (unsigned round = 0; round < 50; round++) {
		for (size_t i = first; i < table.n; i += NTHREADS * 8) {
			object_bump(&table.objects[i]);
		}
	}
	count++;
	return NULL;
}

/* Starts them, eight at a time, and ends sometimes before they do. */
static void *
breed_main(void *arg) {
	size_t    first = (size_t)(uintptr_t)arg * 8;
	pthread_t threads[8];
	for (size_t i = 0; i < 8; i++) {
		threads[i] = thread_start(bump_main, (void *)(first + i));
	}
	for (size_t i = 0; i < 8; i++) {
		pthread_join(threads[i], NULL);
	}
	return NULL;
}

static void *
pass_main(void *arg) {
	(void)arg;
	while (!stop) {
		mesh_pass();
	}
	return NULL;
}

static void
breed(unsigned ms) {
	uint64_t  end = now_ns() + ms * UINT64_C(1000000);
	pthread_t passes = thread_start(pass_main, NULL);
	while (now_ns() < end) {
		fragment();
		for (unsigned i = 0; i < 8; i++) {
			pthread_t threads[NTHREADS];
			for (size_t j = 0; j < NTHREADS; j++) {
				threads[j] = thread_start(
				    breed_main, (void *)j);
			}
			for (size_t j = 0; j < NTHREADS; j++) {
				pthread_join(threads[j], NULL);
			}
		}
		bad += table_check(&table);
	}
	stop = true;
	pthread_join(passes, NULL);
	printf("\"threads\": %llu, ", (unsigned long long)count);
}

static void
case_breed(void) {
	breed(3000);
	step("then");
}

static void finish(void);

/* The first thread ends, as it may, and stays as a zombie. */
static void *
orphan_main(void *arg) {
	pthread_join(*(pthread_t *)arg, NULL);
	pthread_t thread = thread_start(idle_main, NULL);
	step("orphaned");
	sem_post(&go);
	pthread_join(thread, NULL);
	finish();
	exit(bad > 0);
}

static void
case_orphan(void) {
	static pthread_t self;
	self = pthread_self();
	thread_start(orphan_main, &self);
	pthread_exit(NULL);
}

/* Stacks in the heap: of coroutines, and of signal handlers. */
static void **stacks;

/* Writes to its stack and looks at it again and again. */
static void
stack_use(uint64_t salt) {
	volatile uint64_t words[64];
	for (unsigned round = 0; round < 200; round++) {
		for (uint64_t i = 0; i < 64; i++) {
			words[i] = mix64(salt + round + i);
		}
		for (uint64_t i = 0; i < 64; i++) {
			bad += words[i] != mix64(salt + round + i);
		}
	}
	count++;
}

static void
coroutine_main(unsigned salt) {
	stack_use(salt);
}

static void *
coroutines_main(void *arg) {
	rng_t rng = {(uint64_t)(uintptr_t)arg};
	while (!stop) {
		/* Each thread has stacks of its own. */
		size_t i = rng_below(&rng, NSTACKS / NTHREADS) * NTHREADS
		    + (size_t)(uintptr_t)arg;
		ucontext_t here, there;
		getcontext(&there);
		there.uc_stack.ss_sp = stacks[i];
		there.uc_stack.ss_size = STACK_SIZE;
		there.uc_link = &here;
		makecontext(&there, (void (*)(void))coroutine_main, 1,
		    (unsigned)rng_next(&rng));
		swapcontext(&here, &there);
	}
	return NULL;
}

static void *
altstacks_main(void *arg) {
	rng_t   rng = {(uint64_t)(uintptr_t)arg};
	stack_t off = {.ss_flags = SS_DISABLE};
	while (!stop) {
		stack_t stack = {.ss_size = STACK_SIZE};
		stack.ss_sp =
		    stacks[rng_below(&rng, NSTACKS / NTHREADS) * NTHREADS
		        + (size_t)(uintptr_t)arg];
		sigaltstack(&stack, NULL);
		stack_use(rng_next(&rng));
		sigaltstack(&off, NULL);
	}
	return NULL;
}

/* Allocates stacks such that each has a slab that could be meshed. */
static void
stacks_alloc(rng_t *rng) {
	for (size_t i = 0; i < 2 * NSTACKS; i++) {
		stacks[i] = malloc(STACK_SIZE);
	}
	for (size_t i = 0; i < NSTACKS; i++) {
		unsigned which = rng_below(rng, 2);
		free(stacks[2 * i + which]);
		stacks[i] = stacks[2 * i + 1 - which];
	}
	ctl_do("thread.tcache.flush");
}

static void
stacks_run(void *(*main)(void *)) {
	uint64_t end = now_ns() + UINT64_C(3000000000);
	rng_t    rng = {1};
	stacks = outside_alloc(2 * NSTACKS * sizeof(void *));
	ctl_epoch();
	while (now_ns() < end || mesh_stat("nmeshes") < NSTACKS) {
		pthread_t threads[NTHREADS];
		stop = false;
		stacks_alloc(&rng);
		for (size_t i = 0; i < NTHREADS; i++) {
			threads[i] = thread_start(main, (void *)i);
		}
		/* Until they are there. */
		uint64_t before = count;
		while (count < before + 8 * NTHREADS) {
			pause_ms(1);
		}
		for (unsigned i = 0; i < 4; i++) {
			mesh_pass();
		}
		stop = true;
		for (size_t i = 0; i < NTHREADS; i++) {
			pthread_join(threads[i], NULL);
		}
		for (size_t i = 0; i < NSTACKS; i++) {
			free(stacks[i]);
		}
		ctl_epoch();
	}
	printf("\"meshes\": %llu, \"uses\": %llu, ",
	    (unsigned long long)mesh_stat("nmeshes"),
	    (unsigned long long)count);
}

static void
case_coroutines(void) {
	stacks_run(coroutines_main);
}

static void
case_altstacks(void) {
	stacks_run(altstacks_main);
}

/* Where the handler of a signal ran, one of the program's without SA_ONSTACK. */
static char       *altstack;
static size_t      altstack_size;
static atomic_uint on_altstack;

static void
deep_handler(int signum) {
	volatile char room[12000];
	memset((char *)room, signum, sizeof(room));
	on_altstack += (size_t)((char *)room - altstack) < altstack_size;
	caught = caught + 1;
}

/* Has a small stack for signals, as Rust's threads have, that none of its own uses. */
static void *
altstack_main(void *arg) {
	stack_t stack = {.ss_sp = altstack, .ss_size = altstack_size};
	(void)arg;
	if (sigaltstack(&stack, NULL) != 0) {
		die("sigaltstack");
	}
	sem_post(&ready);
	while (!stop) {
		poll(NULL, 0, 50);
		count++;
	}
	return NULL;
}

static void
case_altstack(void) {
	struct sigaction action = {
	    .sa_handler = deep_handler, .sa_flags = SA_RESTART};
	sigaction(SIGUSR1, &action, NULL);
	/* Beside it, what must stay as it is. */
	altstack_size = SIGSTKSZ;
	char *room = outside_alloc(altstack_size + (64 << 10));
	altstack = room + (64 << 10);
	pthread_t thread = thread_start(altstack_main, NULL);
	await(&ready);
	pthread_t passes = thread_start(pass_main, NULL);
	for (unsigned i = 0; i < 600; i++) {
		fragment();
		pthread_kill(thread, SIGUSR1);
		pause_ms(2);
	}
	stop = true;
	pthread_join(passes, NULL);
	pthread_join(thread, NULL);
	bad += on_altstack + !is_zero(room, 64 << 10);
	step("then");
}

/* Sleeps with so much of its stack in use. */
static void
small_sleep(size_t used) {
	volatile char room[used];
	memset((char *)room, 1, used);
	poll(NULL, 0, 5);
	count += (unsigned char)room[used / 2];
}

static void *
small_main(void *arg) {
	for (unsigned i = 0; i < 20; i++) {
		small_sleep((size_t)(uintptr_t)arg);
	}
	return NULL;
}

/* Threads whose stacks are as small as they may be, and well used. */
static void
case_small(void) {
	uint64_t       end = now_ns() + UINT64_C(3000000000);
	pthread_t      passes = thread_start(pass_main, NULL);
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN);
	while (now_ns() < end) {
		pthread_t threads[NTHREADS];
		for (uintptr_t i = 0; i < NTHREADS; i++) {
			errno = pthread_create(&threads[i], &attr, small_main,
			    (void *)((i + 1) * 1500));
			if (errno != 0) {
				die("pthread_create");
			}
		}
		fragment();
		for (int i = 0; i < NTHREADS; i++) {
			pthread_join(threads[i], NULL);
		}
	}
	stop = true;
	pthread_join(passes, NULL);
	step("then");
}

/* Threads are cancelled as they wait, and look which signals they block then. */
static void
cancelled(void *arg) {
	sigset_t set;
	(void)arg;
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	bad += sigismember(&set, SIGUSR1);
	count++;
}

static void *
cancel_main(void *arg) {
	pthread_cleanup_push(cancelled, NULL);
	sem_post(&ready);
	switch ((uintptr_t)arg % 3) {
	case 0:
		poll(NULL, 0, 100000);
		break;
	case 1:
		pause();
		break;
	default:
		sleep(100);
	}
	pthread_cleanup_pop(1);
	return NULL;
}

static void
case_cancel(void) {
	pthread_t passes = thread_start(pass_main, NULL);
	for (uintptr_t i = 0; i < 300; i++) {
		pthread_t thread = thread_start(cancel_main, (void *)i);
		await(&ready);
		fragment();
		pthread_cancel(thread);
		pthread_join(thread, NULL);
	}
	stop = true;
	pthread_join(passes, NULL);
	step("then");
}

/* The program sets all signals back, as daemons do first. */
static void
case_reset(void) {
	pthread_t thread = thread_start(pass_main, NULL);
	uint64_t  end = now_ns() + UINT64_C(1000000000);
	while (now_ns() < end) {
		fragment();
		for (unsigned i = 0; i < 100; i++) {
			for (int j = 1; j <= SIGRTMAX; j++) {
				signal(j, SIG_DFL);
			}
			count++;
		}
	}
	stop = true;
	pthread_join(thread, NULL);
	step("then");
}

/* The program replaces itself while it is meshed, so many times. */
static const char *exec_path;
static unsigned    exec_left;

static void
case_exec(void) {
	if (exec_left > 0) {
		char left[16];
		snprintf(left, sizeof(left), "%u", exec_left - 1);
		fragment();
		thread_start(pass_main, NULL);
		pause_ms(5);
		execl(exec_path, exec_path, "exec", left, (char *)NULL);
		die("execl");
	}
	step("then");
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {{"block", case_block}, {"sigwait", case_sigwait},
    {"secret", case_secret}, {"descriptor", case_descriptor},
    {"debugger", case_debugger}, {"job", case_job}, {"storm", case_storm},
    {"take", case_take}, {"late", case_late}, {"leave", case_leave},
    {"cancel", case_cancel}, {"restart", case_restart}, {"breed", case_breed},
    {"orphan", case_orphan}, {"coroutines", case_coroutines},
    {"altstacks", case_altstacks}, {"altstack", case_altstack},
    {"small", case_small}, {"reset", case_reset}, {"exec", case_exec}};

static void
finish(void) {
	bad += table_free(&table);
	printf("\"caught\": %d, \"bad\": %u}\n", (int)caught, bad);
}

int
main(int argc, char **argv) {
	exec_path = argv[0];
	exec_left = argc > 2 ? (unsigned)number_parse(argv[2]) : 0;
	table_init(&table, NOBJECTS, 1, 1);
	sem_init(&ready, 0, 0);
	sem_init(&go, 0, 0);
	for (size_t i = 0; argc > 1 && i < sizeof(cases) / sizeof(cases[0]);
	     i++) {
		if (strcmp(argv[1], cases[i].name) == 0) {
			putchar('{');
			cases[i].run();
			finish();
			return bad > 0;
		}
	}
	fprintf(stderr, "usage: signals CASE [TIMES]\n");
	return 2;
}
