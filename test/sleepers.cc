/*
 * Threads sleep and are woken in every way that libstdc++, pthreads and the kernel
 * have, on small objects of the heap, while slabs mesh, join, part and fork.
 *
 * Threads come in pairs: one sleeps, its partner wakes it after a random time.
 * Who has not returned LOST_NS after it was woken is lost; a signal then lets it
 * look again, so that it can go on.  What pairs tell each other otherwise is in
 * memory that is not the heap's, with private futexes, which nothing disturbs.
 */
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <latch>
#include <semaphore>
#include <thread>

#include <getopt.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include "measure.h"
#include "objects.h"
}

#define LOST_NS UINT64_C(5000000000)
#define MS UINT64_C(1000000)
/* Of so many objects made at a time one stays, so slabs are sparse. */
#define SPARSE 64
/* Sleeps before another object is taken; short ones. */
#define ROUNDS 100
#define ROUNDS_QUICK 5000
#define PAIRS_MAX 1000
#define OBJECTS_MAX 1000000

namespace {

const char usage[] =
    "usage: sleepers [-s seconds] [-t pairs] [-w way[,way...]] [-r seed]\n"
    "                [-f ms between forks] [-bopq]\n"
    "  -b  the threads block all signals\n"
    "  -o  all sleep once, and are woken when their slabs have meshed, and after\n"
    "      three forks with -f\n"
    "  -p  another thread asks for passes\n"
    "  -q  all sleeps are as short as can be, of threads with little priority\n"
    "      on one processor\n";

double   seconds = 5;
unsigned npairs = 32;
unsigned fork_ms;
uint64_t seed = 1;
bool     blocked, once, passes, quick;

std::atomic<bool>     stop;
std::atomic<uint64_t> bad, checked, interrupted, nforks, nfaults;
/* Longest time past its timeout that a wait took. */
std::atomic<uint64_t> late_ns;
/* Written by children, too. */
std::atomic<uint64_t> *child_bad;

void
expect(bool ok, const char *what) {
	if (!ok) {
		std::fprintf(stderr, "not so: %s\n", what);
		bad++;
	}
}

void
raise_to(std::atomic<uint64_t> &most, uint64_t n) {
	for (uint64_t old = most; old < n && !most.compare_exchange_weak(old, n);) {
	}
}

long
futex(const void *word, int op, uint32_t val, const void *timeout_or_val2 = nullptr,
    const void *word2 = nullptr, uint32_t val3 = 0) {
	long r = syscall(SYS_futex, word, op, val, timeout_or_val2, word2, val3);
	/* Where a C library gives up the process. */
	nfaults += r < 0 && errno == EFAULT;
	return r;
}

timespec
from_now(clockid_t clock, unsigned s) {
	timespec t;
	clock_gettime(clock, &t);
	t.tv_sec += s;
	return t;
}

/* Of threads; lies outside of the heap. */
struct Event {
	std::atomic<uint32_t> value;

	void
	wait(uint32_t wanted) {
		for (uint32_t now; (now = value) < wanted;) {
			futex(&value, FUTEX_WAIT_PRIVATE, now);
		}
	}
	void
	set(uint32_t now) {
		value = now;
		futex(&value, FUTEX_WAKE_PRIVATE, INT_MAX);
	}
};

/******************************************************************************/
/* The ways. */

/* An object on which one sleeps; all but the event lies in the heap. */
struct Way {
	const uint64_t key = mix64(uint64_t(this));
	Event         *event;
	/* Slabs of few regions mesh better. */
	char padding[128] = {};

	virtual ~Way() {
		expect(key == mix64(uint64_t(this)), "an object is whole");
	}
	/* Before each sleep, by who is to sleep. */
	virtual void
	reset() {
	}
	/* By the partner, before the sleep and to end it. */
	virtual void
	prepare() {
	}
	virtual void wake() = 0;
	virtual void wait() = 0;
};

struct Future : Way {
	std::promise<int> promise;
	bool              timed = false, used = false;

	void
	reset() override {
		if (used) {
			promise = std::promise<int>();
			timed = !timed;
		}
	}
	void
	wake() override {
		promise.set_value(1);
	}
	void
	wait() override {
		auto future = promise.get_future();
		used = true;
		while (timed
		    && future.wait_for(std::chrono::seconds(60))
		        != std::future_status::ready) {
		}
		expect(future.get() == 1, "a future has its value");
	}
};

/* get() would join the thread instead. */
struct Async : Way {
	std::future<int> future;

	void
	prepare() override {
		event->set(0);
		future = std::async(std::launch::async, [event = event] {
			event->wait(1);
			return 1;
		});
	}
	void
	wake() override {
		event->set(1);
	}
	void
	wait() override {
		while (future.wait_for(std::chrono::seconds(60))
		    != std::future_status::ready) {
		}
		expect(future.get() == 1, "a future has its value");
	}
};

struct Atomic : Way {
	std::atomic<int> word = 0;

	void
	reset() override {
		word = 0;
	}
	void
	wake() override {
		word = 1;
		word.notify_all();
	}
	void
	wait() override {
		word.wait(0);
	}
};

struct Flag : Way {
	std::atomic_flag flag;

	void
	reset() override {
		flag.clear();
	}
	void
	wake() override {
		flag.test_and_set();
		flag.notify_one();
	}
	void
	wait() override {
		flag.wait(false);
	}
};

struct Latch : Way {
	alignas(std::latch) char place[sizeof(std::latch)];

	std::latch *
	latch() {
		return reinterpret_cast<std::latch *>(place);
	}
	void
	reset() override {
		new (place) std::latch(1);
	}
	void
	wake() override {
		latch()->count_down();
	}
	void
	wait() override {
		latch()->wait();
	}
};

struct Semaphore : Way {
	std::counting_semaphore<1000> semaphore{0};

	void
	wake() override {
		semaphore.release();
	}
	void
	wait() override {
		semaphore.acquire();
	}
};

template <int shared, int robust, int protocol>
struct Mutex : Way {
	pthread_mutex_t mutex;

	Mutex() {
		pthread_mutexattr_t attr;
		pthread_mutexattr_init(&attr);
		pthread_mutexattr_setpshared(&attr, shared);
		pthread_mutexattr_setrobust(&attr, robust);
		pthread_mutexattr_setprotocol(&attr, protocol);
		expect(pthread_mutex_init(&mutex, &attr) == 0, "a mutex is made");
	}
	void
	prepare() override {
		expect(pthread_mutex_lock(&mutex) == 0, "a mutex is free");
	}
	void
	wake() override {
		pthread_mutex_unlock(&mutex);
	}
	void
	wait() override {
		expect(pthread_mutex_lock(&mutex) == 0, "a mutex is locked");
		pthread_mutex_unlock(&mutex);
	}
};

using Shared = Mutex<PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_STALLED,
    PTHREAD_PRIO_NONE>;
using Private = Mutex<PTHREAD_PROCESS_PRIVATE, PTHREAD_MUTEX_STALLED,
    PTHREAD_PRIO_NONE>;
using Robust = Mutex<PTHREAD_PROCESS_PRIVATE, PTHREAD_MUTEX_ROBUST,
    PTHREAD_PRIO_NONE>;
using Pi = Mutex<PTHREAD_PROCESS_PRIVATE, PTHREAD_MUTEX_STALLED,
    PTHREAD_PRIO_INHERIT>;
using SharedPi = Mutex<PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_STALLED,
    PTHREAD_PRIO_INHERIT>;
using RobustPi = Mutex<PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST,
    PTHREAD_PRIO_INHERIT>;

/* A mutex whose owner ends: the kernel unlocks it. */
template <typename Base>
struct Heir : Base {
	std::thread owner;

	void
	prepare() override {
		this->event->set(0);
		owner = std::thread([this, event = this->event] {
			pthread_mutex_lock(&this->mutex);
			event->set(1);
			event->wait(2);
		});
		this->event->wait(1);
	}
	void
	wake() override {
		this->event->set(2);
		owner.join();
	}
	void
	wait() override {
		expect(pthread_mutex_lock(&this->mutex) == EOWNERDEAD,
		    "a mutex is inherited");
		pthread_mutex_consistent(&this->mutex);
		pthread_mutex_unlock(&this->mutex);
	}
};

struct Cond : Way {
	pthread_mutex_t mutex;
	pthread_cond_t  cond;
	bool            woken = false, timed = false;

	Cond() {
		pthread_mutexattr_t mutex_attr;
		pthread_condattr_t  cond_attr;
		pthread_mutexattr_init(&mutex_attr);
		pthread_mutexattr_setpshared(&mutex_attr, PTHREAD_PROCESS_SHARED);
		pthread_mutex_init(&mutex, &mutex_attr);
		pthread_condattr_init(&cond_attr);
		pthread_condattr_setpshared(&cond_attr, PTHREAD_PROCESS_SHARED);
		pthread_cond_init(&cond, &cond_attr);
	}
	void
	reset() override {
		woken = false;
		timed = !timed;
	}
	void
	wake() override {
		pthread_mutex_lock(&mutex);
		woken = true;
		pthread_cond_signal(&cond);
		pthread_mutex_unlock(&mutex);
	}
	void
	wait() override {
		timespec until = from_now(CLOCK_REALTIME, 60);
		pthread_mutex_lock(&mutex);
		while (!woken) {
			if (timed) {
				pthread_cond_timedwait(&cond, &mutex, &until);
			} else {
				pthread_cond_wait(&cond, &mutex);
			}
		}
		pthread_mutex_unlock(&mutex);
	}
};

struct Rwlock : Way {
	pthread_rwlock_t lock;
	bool             writes = false;

	Rwlock() {
		pthread_rwlockattr_t attr;
		pthread_rwlockattr_init(&attr);
		pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
		pthread_rwlock_init(&lock, &attr);
	}
	void
	reset() override {
		writes = !writes;
	}
	void
	prepare() override {
		pthread_rwlock_wrlock(&lock);
	}
	void
	wake() override {
		pthread_rwlock_unlock(&lock);
	}
	void
	wait() override {
		if (writes) {
			pthread_rwlock_wrlock(&lock);
		} else {
			pthread_rwlock_rdlock(&lock);
		}
		pthread_rwlock_unlock(&lock);
	}
};

struct Barrier : Way {
	pthread_barrier_t barrier;

	Barrier() {
		pthread_barrierattr_t attr;
		pthread_barrierattr_init(&attr);
		pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
		pthread_barrier_init(&barrier, &attr, 2);
	}
	void
	wake() override {
		pthread_barrier_wait(&barrier);
	}
	void
	wait() override {
		pthread_barrier_wait(&barrier);
	}
};

struct Sem : Way {
	sem_t sem;
	bool  timed = false;

	Sem() {
		sem_init(&sem, 1, 0);
	}
	void
	reset() override {
		timed = !timed;
	}
	void
	wake() override {
		sem_post(&sem);
	}
	void
	wait() override {
		timespec until = from_now(CLOCK_REALTIME, 60);
		while ((timed ? sem_timedwait(&sem, &until) : sem_wait(&sem)) != 0) {
			interrupted += errno == EINTR;
		}
	}
};

/* FUTEX_WAIT and FUTEX_WAKE, and what those differ from below. */
struct Word : Way {
	std::atomic<uint32_t> word = 0;

	void
	reset() override {
		word = 0;
	}
	void
	wake() override {
		word = 1;
		futex(&word, FUTEX_WAKE, 1);
	}
	virtual long
	sleep() {
		return futex(&word, FUTEX_WAIT, 0);
	}
	void
	wait() override {
		while (word == 0) {
			interrupted += sleep() != 0 && errno == EINTR;
		}
	}
};

struct PrivateWord : Word {
	void
	wake() override {
		word = 1;
		futex(&word, FUTEX_WAKE_PRIVATE, 1);
	}
	long
	sleep() override {
		return futex(&word, FUTEX_WAIT_PRIVATE, 0);
	}
};

struct Timed : Word {
	long
	sleep() override {
		timespec timeout = {60, 0};
		return futex(&word, FUTEX_WAIT, 0, &timeout);
	}
};

struct Bitset : Word {
	void
	wake() override {
		word = 1;
		futex(&word, FUTEX_WAKE_BITSET, 1, nullptr, nullptr, 5);
	}
	long
	sleep() override {
		timespec until = from_now(CLOCK_MONOTONIC, 60);
		return futex(&word, FUTEX_WAIT_BITSET, 0, &until, nullptr, 4);
	}
};

/* Its timeout ends the first wait, in time. */
struct Timeout : Word {
	void
	wait() override {
		uint64_t ns = 1 + mix64(now_ns()) % (20 * MS), begin = now_ns();
		timespec timeout = {0, long(ns)};
		while (word == 0) {
			long r = futex(&word, FUTEX_WAIT, 0, &timeout);
			if (r != 0 && errno == ETIMEDOUT) {
				uint64_t took = now_ns() - begin;
				expect(took >= ns, "no timeout comes early");
				raise_to(late_ns, took - ns);
				break;
			}
			interrupted += r != 0 && errno == EINTR;
		}
		Word::wait();
	}
};

/* A word that the program itself sends its sleepers to, in another object. */
struct Requeue : Word {
	std::atomic<uint32_t> *other = new std::atomic<uint32_t>[16]();

	~Requeue() override {
		delete[] other;
	}
	void
	wake() override {
		futex(&word, FUTEX_CMP_REQUEUE, 0, (void *)INT_MAX, other, 0);
		word = 1;
		futex(other, FUTEX_WAKE, INT_MAX);
		/* Who was late, or began anew. */
		futex(&word, FUTEX_WAKE, INT_MAX);
	}
};

struct WakeOp : Requeue {
	void
	wake() override {
		futex(other, FUTEX_WAKE_OP, 1, (void *)1, &word,
		    FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0));
	}
};

/* futex_waitv(2) on two words in two objects. */
struct Waitv : Requeue {
	void
	reset() override {
		word = 0;
		other[0] = 0;
	}
	void
	wake() override {
		std::atomic<uint32_t> *one = now_ns() % 2 ? other : &word;
		one[0] = 1;
		futex(one, FUTEX_WAKE, 1);
	}
	void
	wait() override {
		while (word == 0 && other[0] == 0) {
			futex_waitv v[2] = {{0, uint64_t(&word), FUTEX_32, 0},
			    {0, uint64_t(other), FUTEX_32, 0}};
			interrupted += syscall(SYS_futex_waitv, v, 2, 0, nullptr,
			        0)
			        < 0
			    && errno == EINTR;
		}
	}
};

/* A thread that the C library knows nothing of; at its end the kernel wakes. */
struct ClearTid : Word {
	static constexpr size_t stack_size = 16384;
	char                   *stack = static_cast<char *>(outside_alloc(stack_size));

	~ClearTid() override {
		munmap(stack, stack_size);
	}
	void
	reset() override {
		word = 1;
	}
	static int
	body(void *event) {
		static_cast<Event *>(event)->wait(1);
		return 0;
	}
	void
	prepare() override {
		event->set(0);
		expect(clone(body, stack + stack_size,
		           CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND
		               | CLONE_THREAD | CLONE_SYSVSEM
		               | CLONE_CHILD_CLEARTID,
		           event, nullptr, nullptr, &word)
		        > 0,
		    "a thread is made");
	}
	void
	wake() override {
		event->set(1);
	}
	void
	wait() override {
		while (word == 1) {
			interrupted += futex(&word, FUTEX_WAIT, 1) != 0
			    && errno == EINTR;
		}
	}
};

struct WordPi : Word {
	void
	prepare() override {
		expect(futex(&word, FUTEX_LOCK_PI, 0) == 0, "a lock is free");
	}
	void
	wake() override {
		expect(futex(&word, FUTEX_UNLOCK_PI, 0) == 0,
		    "its owner unlocks");
	}
	void
	wait() override {
		expect(futex(&word, FUTEX_LOCK_PI, 0) == 0, "one gets the lock");
		futex(&word, FUTEX_UNLOCK_PI, 0);
	}
};

/* What a condition variable with a mutex that inherits priorities would use. */
struct RequeuePi : Requeue {
	void
	wake() override {
		futex(other, FUTEX_LOCK_PI, 0);
		word = 1;
		futex(&word, FUTEX_CMP_REQUEUE_PI, 1, nullptr, other, 1);
		futex(other, FUTEX_UNLOCK_PI, 0);
	}
	void
	wait() override {
		while (word == 0) {
			if (futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, nullptr, other)
			    == 0) {
				futex(other, FUTEX_UNLOCK_PI, 0);
				break;
			}
			interrupted += errno == EINTR;
		}
	}
};

/* With -o, what is freed when all have objects, or those would be close together. */
Way                 **spare;
std::atomic<unsigned> nspare;

template <typename T>
Way *
make(rng_t *rng) {
	Way     *all[SPARSE];
	unsigned kept = rng_below(rng, SPARSE);
	for (Way *&way : all) {
		way = new T;
	}
	for (unsigned i = 0; i < SPARSE; i++) {
		if (i == kept) {
			continue;
		}
		if (once) {
			spare[nspare++] = all[i];
		} else {
			delete all[i];
		}
	}
	ctl_do("thread.tcache.flush");
	return all[kept];
}

struct {
	const char *name;
	Way *(*make)(rng_t *);
	bool                  wanted = false;
	std::atomic<uint64_t> sleeps = 0, lost = 0, longest_ns = 0;
} ways[] = {
    {"future", make<Future>},
    {"async", make<Async>},
    {"atomic", make<Atomic>},
    {"flag", make<Flag>},
    {"latch", make<Latch>},
    {"semaphore", make<Semaphore>},
    {"private", make<Private>},
    {"shared", make<Shared>},
    {"robust", make<Robust>},
    {"heir", make<Heir<Robust>>},
    {"pi", make<Pi>},
    {"shared_pi", make<SharedPi>},
    {"robust_pi", make<RobustPi>},
    {"heir_pi", make<Heir<RobustPi>>},
    {"cond", make<Cond>},
    {"rwlock", make<Rwlock>},
    {"barrier", make<Barrier>},
    {"sem", make<Sem>},
    {"word", make<Word>},
    {"private_word", make<PrivateWord>},
    {"timed", make<Timed>},
    {"bitset", make<Bitset>},
    {"timeout", make<Timeout>},
    {"requeue", make<Requeue>},
    {"wake_op", make<WakeOp>},
    {"waitv", make<Waitv>},
    {"clear_tid", make<ClearTid>},
    {"word_pi", make<WordPi>},
    {"requeue_pi", make<RequeuePi>},
};
const unsigned nways = sizeof(ways) / sizeof(ways[0]);

/******************************************************************************/
/* Pairs. */

/* Outside of the heap. */
struct Pair {
	/* Numbers of sleeps: to be prepared, prepared, ended by the partner. */
	Event ready, prepared, done;
	Event event;
	/* What of is asleep. */
	std::atomic<unsigned> kind;
	Way                  *way;
	/* When it was woken; 0 once it has returned. */
	std::atomic<uint64_t> woken_at;
	std::atomic<bool>     lost, ended;
	pthread_t             sleeper;
	std::atomic<pid_t>    sleeper_tid, waker_tid;
	rng_t                 rng;
};

Pair *pairs;
/* With -o, what is slept until. */
Event *gate;

void
threads_set_up() {
	if (blocked) {
		sigset_t all;
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, nullptr);
	}
	if (quick) {
		cpu_set_t one;
		CPU_ZERO(&one);
		CPU_SET(0, &one);
		sched_setaffinity(0, sizeof(one), &one);
		setpriority(PRIO_PROCESS, gettid(), 10);
	}
}

void
pair_choose(Pair *p) {
	delete p->way;
	do {
		p->kind = rng_below(&p->rng, nways);
	} while (!ways[p->kind].wanted);
	p->way = ways[p->kind].make(&p->rng);
	p->way->event = &p->event;
}

void
sleeper_main(Pair *p) {
	p->sleeper_tid = gettid();
	threads_set_up();
	uint32_t round = 0;
	while (!stop) {
		if (round % (quick ? ROUNDS_QUICK : ROUNDS) == 0) {
			pair_choose(p);
		}
		p->way->reset();
		p->ready.set(++round);
		p->prepared.wait(round);
		p->way->wait();
		uint64_t now = now_ns(), since = p->woken_at.exchange(0);
		expect(since != 0, "nobody returns before it is woken");
		p->done.wait(round);
		if (!p->lost.exchange(false)) {
			raise_to(ways[p->kind].longest_ns, now - since);
		}
		ways[p->kind].sleeps++;
		if (once) {
			break;
		}
	}
	delete p->way;
	p->ready.set(UINT32_MAX);
	p->ended = true;
}

void
pause_some(rng_t *rng) {
	double   u = unit(rng_next(rng));
	uint64_t ns;
	if (once) {
		gate->wait(1);
		return;
	} else if (quick) {
		/* Not asleep: that takes longer. */
		for (uint64_t end = now_ns() + rng_below(rng, 20000);
		     now_ns() < end;) {
		}
		return;
	} else if (u < 0.3) {
		return;
	} else if (u < 0.945) {
		ns = rng_below(rng, 200000);
	} else if (u < 0.995) {
		ns = MS + rng_below(rng, 20 * MS);
	} else {
		ns = 100 * MS + rng_below(rng, 1900 * MS);
	}
	timespec t = {time_t(ns / (1000 * MS)), long(ns % (1000 * MS))};
	nanosleep(&t, nullptr);
}

void
waker_main(Pair *p) {
	p->waker_tid = gettid();
	threads_set_up();
	rng_t rng = {p->rng.state ^ 1};
	for (uint32_t round = 1;; round++) {
		p->ready.wait(round);
		if (p->ready.value == UINT32_MAX) {
			return;
		}
		p->way->prepare();
		p->prepared.set(round);
		pause_some(&rng);
		p->woken_at = now_ns();
		p->way->wake();
		p->done.set(round);
	}
}

/* Says where a thread is. */
void
thread_print(const char *what, pid_t tid) {
	for (const char *name : {"syscall", "stack"}) {
		char path[64], text[2000];
		std::snprintf(path, sizeof(path), "/proc/self/task/%d/%s", tid, name);
		std::FILE *file = std::fopen(path, "r");
		size_t     n = file == nullptr
		        ? 0
		        : std::fread(text, 1, sizeof(text), file);
		std::fprintf(stderr, "%s %d %s: %.*s\n", what, tid, name, int(n),
		    text);
		if (file != nullptr) {
			std::fclose(file);
		}
	}
}

/* Counts who is lost, and lets it look again.  Returns whether all have ended. */
bool
pairs_look_after() {
	bool all = true;
	for (unsigned i = 0; i < npairs; i++) {
		Pair    *p = &pairs[i];
		uint64_t since = p->woken_at, now = now_ns();
		if (p->ended) {
			continue;
		}
		all = false;
		if (since == 0 || now < since + LOST_NS) {
			continue;
		}
		if (!p->lost.exchange(true)) {
			ways[p->kind].lost++;
			std::fprintf(stderr, "lost: %s, object %p\n",
			    ways[p->kind].name, (void *)p->way);
			thread_print("sleeper", p->sleeper_tid);
			thread_print("waker", p->waker_tid);
		}
		if (!blocked) {
			pthread_kill(p->sleeper, SIGUSR1);
		}
	}
	return all;
}

/******************************************************************************/
/* What goes on around them. */

void
nap(uint64_t ms) {
	std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

void
check(table_t *t) {
	checked += t->n;
	bad += table_check(t);
}

void
thin(table_t *t) {
	checked += t->n;
	bad += table_thin(t, 0.1, thin_random);
	ctl_do("thread.tcache.flush");
}

void
churner_main() {
	table_t t;
	table_init(&t, OBJECTS_MAX, seed, UINT64_C(1) << 32);
	for (unsigned round = 0; !stop; round++) {
		if (once && round == 3) {
			nap(100);
			round--;
			continue;
		}
		table_fill(&t, size_t(2) << 20, 32, 400);
		table_fill(&t, size_t(4) << 20, 32, 4000);
		thin(&t);
		for (unsigned i = 0; i < 10000 && !stop; i++) {
			object_bump(table_pick(&t));
		}
		check(&t);
		nap(20);
	}
	bad += table_free(&t);
}

void
passer_main() {
	while (!stop) {
		mesh_pass();
		nap(10);
	}
}

/* Children live for a while; parent and child write to the same objects. */
void
forker_main() {
	table_t t;
	table_init(&t, OBJECTS_MAX, seed + 1, UINT64_C(2) << 32);
	while (!stop) {
		table_fill(&t, size_t(2) << 20, 32, 4000);
		thin(&t);
		nap(rng_below(&t.rng, 2 * fork_ms));
		pid_t pid = fork();
		if (pid < 0) {
			die("fork");
		}
		for (size_t i = 0; i < t.n; i++) {
			t.objects[i].id += pid == 0;
			object_rewrite(&t.objects[i]);
		}
		if (pid == 0) {
			nap(100);
			*child_bad += table_check(&t);
			_exit(0);
		}
		int status;
		nforks++;
		expect(waitpid(pid, &status, 0) == pid && status == 0,
		    "a child ends well");
		check(&t);
	}
	bad += table_free(&t);
}

void
nothing(int signum) {
	(void)signum;
}

/* The number of objects that have meshed, all waiting. */
unsigned
pairs_meshed() {
	unsigned n = 0;
	for (unsigned i = 0; i < npairs; i++) {
		n += mesh_range(pairs[i].way, sizeof(Way));
	}
	return n;
}

void
run_once() {
	for (unsigned i = 0; i < npairs; i++) {
		pairs[i].prepared.wait(1);
	}
	for (unsigned i = 0; i < nspare; i++) {
		delete spare[i];
	}
	ctl_do("thread.tcache.flush");
	nap(300);
	for (uint64_t end = now_ns() + uint64_t(seconds * 1e9);
	     now_ns() < end && pairs_meshed() < npairs / 4;) {
		if (passes) {
			mesh_pass();
		}
		nap(10);
	}
	std::printf("\"meshed\": %u, ", pairs_meshed());
	for (unsigned i = 0; fork_ms != 0 && i < 3; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			_exit(0);
		}
		expect(pid > 0 && waitpid(pid, nullptr, 0) == pid, "a child ends");
		nforks++;
		nap(fork_ms);
	}
	gate->set(1);
}

void
print() {
	uint64_t sleeps = 0, lost = 0, longest = 0;
	const char *separator = "\"ways\": {";
	for (auto &way : ways) {
		if (!way.wanted) {
			continue;
		}
		std::printf(
		    "%s\"%s\": {\"sleeps\": %llu, \"lost\": %llu,"
		    " \"longest_ms\": %.1f}",
		    separator, way.name, (unsigned long long)way.sleeps,
		    (unsigned long long)way.lost, double(way.longest_ns) / 1e6);
		separator = ", ";
		sleeps += way.sleeps;
		lost += way.lost;
		longest = std::max(longest, uint64_t(way.longest_ns));
	}
	std::printf(
	    "}, \"sleeps\": %llu, \"lost\": %llu, \"longest_ms\": %.1f,"
	    " \"late_ms\": %.1f, \"interrupted\": %llu, \"faults\": %llu,"
	    " \"forks\": %llu, \"checked\": %llu, \"bad\": %llu, \"mesh\": ",
	    (unsigned long long)sleeps, (unsigned long long)lost,
	    double(longest) / 1e6, double(late_ns) / 1e6,
	    (unsigned long long)interrupted, (unsigned long long)nfaults,
	    (unsigned long long)nforks,
	    (unsigned long long)checked,
	    (unsigned long long)(bad + *child_bad));
	ctl_epoch();
	mesh_print();
	std::printf("}\n");
}

/* Marks the ways of a list, all of them without. */
void
ways_choose(char *list) {
	for (auto &way : ways) {
		/* userfaultfd has no answer for this one. */
		way.wanted = list == nullptr && way.make != make<ClearTid>;
	}
	for (char *name = list; name != nullptr;) {
		char *one = strsep(&name, ",");
		bool  known = false;
		for (auto &way : ways) {
			bool same = std::strcmp(one, way.name) == 0;
			way.wanted |= same;
			known |= same;
		}
		if (!known) {
			std::fprintf(stderr, "no such way: %s\n", one);
			std::exit(2);
		}
	}
}

} // namespace

int
main(int argc, char **argv) {
	char *list = nullptr;
	for (int option;
	     (option = getopt(argc, argv, "s:t:w:r:f:bopq")) != -1;) {
		switch (option) {
		case 's':
			seconds = std::atof(optarg);
			break;
		case 't':
			npairs = unsigned(number_parse(optarg));
			break;
		case 'w':
			list = optarg;
			break;
		case 'r':
			seed = number_parse(optarg);
			break;
		case 'f':
			fork_ms = unsigned(number_parse(optarg));
			break;
		case 'b':
			blocked = true;
			break;
		case 'o':
			once = true;
			break;
		case 'p':
			passes = true;
			break;
		case 'q':
			quick = true;
			break;
		default:
			std::fputs(usage, stderr);
			return 2;
		}
	}
	ways_choose(list);
	if (npairs == 0 || npairs > PAIRS_MAX) {
		std::fputs(usage, stderr);
		return 2;
	}
	pairs = static_cast<Pair *>(outside_alloc(npairs * sizeof(Pair)));
	spare = static_cast<Way **>(
	    outside_alloc(npairs * SPARSE * sizeof(Way *)));
	gate = static_cast<Event *>(outside_alloc(sizeof(Event)));
	child_bad = static_cast<std::atomic<uint64_t> *>(
	    outside_alloc_shared(sizeof(*child_bad)));
	struct sigaction action = {};
	action.sa_handler = nothing;
	action.sa_flags = SA_RESTART;
	sigaction(SIGUSR1, &action, nullptr);

	std::printf("{");
	std::fflush(stdout);
	std::thread churner(churner_main), passer, forker;
	if (passes && !once) {
		passer = std::thread(passer_main);
	}
	if (fork_ms != 0 && !once) {
		forker = std::thread(forker_main);
	}
	for (unsigned i = 0; i < npairs; i++) {
		pairs[i].rng.state = mix64(seed + i);
		/* Never joined, so that signals may be sent to any of them. */
		pairs[i].sleeper = (new std::thread(sleeper_main, &pairs[i]))
		                       ->native_handle();
		new std::thread(waker_main, &pairs[i]);
	}
	if (once) {
		run_once();
	}
	uint64_t end = now_ns() + uint64_t(seconds * 1e9);
	while (!once && now_ns() < end) {
		pairs_look_after();
		nap(100);
	}
	stop = true;
	/* Who is lost for good ends with the process. */
	end = now_ns() + 2 * LOST_NS;
	while (!pairs_look_after() && now_ns() < end) {
		nap(10);
	}
	churner.join();
	if (forker.joinable()) {
		forker.join();
	}
	if (passer.joinable()) {
		passer.join();
	}
	print();
	std::fflush(stdout);
	_exit(bad + *child_bad > 0);
}
