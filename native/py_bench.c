/* py_bench.c -- how long a cache line takes from one CPU to another and back, and how long a wake does.
 *
 * Every figure that two processes make together is worth only what these say at the same time: on a shared
 * machine they move by a factor of several. A forked child answers a word in a page that both map; both are pinned.
 * For the cache line both look all the time; for the wake both sleep until the other's FUTEX_WAKE. After a rest between two
 * wakes an idle CPU takes longer to come back, so that can be had, too.
 *
 * Bytes: four words, SHMRT_LINE apart. `ping` and `call` are written by the caller only, `pong` and `reply` by the
 * child only.
 * Edges: P1 ping store -> child's ping load; P2 pong store -> caller's pong load; P3 and P4 the same for call and
 * reply. The words carry nothing else.
 * If the child dies, the caller sees its pong no more: it gives up after ten seconds and says so. If the caller dies,
 * the child is ended by its parent-death signal.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_module.h"

#include "ops.h"
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct shmrt_bench_page {
	_Alignas(SHMRT_LINE) _Atomic uint64_t ping;
	_Alignas(SHMRT_LINE) _Atomic uint64_t pong;
	_Alignas(SHMRT_LINE) _Atomic uint32_t call;
	_Alignas(SHMRT_LINE) _Atomic uint32_t reply;
};

typedef void answer_fn(struct shmrt_bench_page *page);
typedef bool ask_fn(struct shmrt_bench_page *page, uint64_t number);

#define SAMPLES 101
#define PATIENCE_NS UINT64_C(10000000000) /* a machine with much else to do may leave the child waiting */

static int pin(int cpu) {
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

static int first_two(const cpu_set_t *allowed, int cpus[2]) {
	int found = 0;
	for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
		if (CPU_ISSET(cpu, allowed))
			cpus[found++] = cpu;
	return found;
}

static void answer_awake(struct shmrt_bench_page *page) {
	uint64_t seen = 0;
	for (;;) {
		uint64_t now = atomic_load_explicit(&page->ping, memory_order_acquire); /* P1 */
		if (now == UINT64_MAX)
			return;
		if (now != seen) {
			seen = now;
			atomic_store_explicit(&page->pong, seen, memory_order_release); /* P2 */
		}
	}
}

/* One round trip. False when no answer came within the patience. */
static bool ask_awake(struct shmrt_bench_page *page, uint64_t number) {
	atomic_store_explicit(&page->ping, number, memory_order_release); /* P1 */
	uint64_t spins = 0, end = 0;
	while (atomic_load_explicit(&page->pong, memory_order_acquire) != number) { /* P2 */
		if ((++spins & 0xFFFFF) != 0)
			continue;
		uint64_t now = shmrt_now_ns();
		if (end == 0)
			end = now + PATIENCE_NS;
		else if (now > end)
			return false;
	}
	return true;
}

static void answer_asleep(struct shmrt_bench_page *page) {
	uint32_t seen = 0;
	for (;;) {
		uint32_t now = atomic_load_explicit(&page->call, memory_order_acquire); /* P3 */
		if (now == UINT32_MAX)
			return;
		if (now == seen) {
			if (shmrt_futex_wait(&page->call, seen, SHMRT_FOREVER) == SHMRT_SYSTEM)
				return;
			continue;
		}
		seen = now;
		atomic_store_explicit(&page->reply, seen, memory_order_release); /* P4 */
		(void)shmrt_futex_wake(&page->reply, 1);
	}
}

/* As ask_awake, but the caller sleeps until it is woken, as the child did. */
static bool ask_asleep(struct shmrt_bench_page *page, uint64_t number) {
	atomic_store_explicit(&page->call, (uint32_t)number, memory_order_release); /* P3 */
	(void)shmrt_futex_wake(&page->call, 1);
	uint64_t end = shmrt_now_ns() + PATIENCE_NS;
	for (;;) {
		uint32_t now = atomic_load_explicit(&page->reply, memory_order_acquire); /* P4 */
		if (now == (uint32_t)number)
			return true;
		if (shmrt_now_ns() > end)
			return false;
		if (shmrt_futex_wait(&page->reply, now, (int64_t)PATIENCE_NS) == SHMRT_SYSTEM)
			return false;
	}
}

static int by_value(const void *one, const void *two) {
	double a = *(const double *)one, b = *(const double *)two;
	return (a > b) - (a < b);
}

static void rest(uint64_t ns) {
	struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
	nanosleep(&time, NULL);
}

/* rest_ns: before each round, not counted. */
static bool measure(struct shmrt_bench_page *page, ask_fn *ask, long rounds, uint64_t rest_ns, double *median) {
	double samples[SAMPLES];
	long each = rounds / SAMPLES > 0 ? rounds / SAMPLES : 1;
	uint64_t number = 0;
	if (!ask(page, ++number)) /* waits until the child is there */
		return false;
	for (int sample = 0; sample < SAMPLES; sample++) {
		uint64_t begin = shmrt_now_ns(), rested = 0;
		for (long round = 0; round < each; round++) {
			if (rest_ns) {
				uint64_t since = shmrt_now_ns();
				rest(rest_ns);
				rested += shmrt_now_ns() - since;
			}
			if (!ask(page, ++number))
				return false;
		}
		samples[sample] = (double)(shmrt_now_ns() - begin - rested) / (double)each;
	}
	qsort(samples, SAMPLES, sizeof(samples[0]), by_value);
	*median = samples[SAMPLES / 2];
	return true;
}

static PyObject *between_two_cpus(long rounds, uint64_t rest_ns, answer_fn *answer, ask_fn *ask) {
	if (rounds < 1 || rounds > 100000000)
		return PyErr_Format(PyExc_ValueError, "rounds=%ld must be from 1 to 100000000", rounds);
	cpu_set_t before;
	int cpus[2];
	if (sched_getaffinity(0, sizeof(before), &before) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (first_two(&before, cpus) < 2)
		return PyErr_Format(PyExc_OSError, "this process may use one CPU only; a round trip needs two");
	struct shmrt_bench_page *page =
		mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return PyErr_SetFromErrno(PyExc_OSError);
	pid_t parent = getpid(), child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent || pin(cpus[1]) < 0)
			_exit(1);
		answer(page);
		_exit(0);
	}
	if (child < 0) {
		munmap(page, sizeof(*page));
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	double median = 0;
	bool answered = false;
	Py_BEGIN_ALLOW_THREADS;
	if (pin(cpus[0]) == 0)
		answered = measure(page, ask, rounds, rest_ns, &median);
	atomic_store_explicit(&page->ping, UINT64_MAX, memory_order_release); /* P1: the word to end */
	atomic_store_explicit(&page->call, UINT32_MAX, memory_order_release); /* P3: likewise */
	(void)shmrt_futex_wake(&page->call, 1);
	if (!answered)
		kill(child, SIGKILL);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	sched_setaffinity(0, sizeof(before), &before);
	Py_END_ALLOW_THREADS;
	munmap(page, sizeof(*page));
	if (!answered)
		return PyErr_Format(PyExc_TimeoutError, "the other CPU did not answer for ten seconds");
	return PyFloat_FromDouble(median);
}

PyDoc_STRVAR(ping_pong_doc, "ping_pong_ns(rounds, /)\n--\n\n"
	"Median nanoseconds for a cache line to go to another CPU and back. Needs two CPUs.");

static PyObject *ping_pong_ns(PyObject *module, PyObject *argument) {
	(void)module;
	long rounds = PyLong_AsLong(argument);
	return rounds == -1 && PyErr_Occurred() ? NULL : between_two_cpus(rounds, 0, answer_awake, ask_awake);
}

PyDoc_STRVAR(wake_doc, "wake_round_trip_ns(rounds, rest_ns=0, /)\n--\n\n"
	"Median nanoseconds to wake a process that sleeps on another CPU and be woken by it. rest_ns: how long both sleep\n"
	"before each round. Needs two CPUs.");

static PyObject *wake_round_trip_ns(PyObject *module, PyObject *args) {
	(void)module;
	long rounds, rest_ns = 0;
	if (!PyArg_ParseTuple(args, "l|l", &rounds, &rest_ns))
		return NULL;
	if (rest_ns < 0 || rest_ns > 1000000000)
		return PyErr_Format(PyExc_ValueError, "rest_ns=%ld must be from 0 to 1000000000", rest_ns);
	return between_two_cpus(rounds, (uint64_t)rest_ns, answer_asleep, ask_asleep);
}

static PyMethodDef bench_methods[] = {
	{"ping_pong_ns", ping_pong_ns, METH_O, ping_pong_doc},
	{"wake_round_trip_ns", wake_round_trip_ns, METH_VARARGS, wake_doc},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_bench(PyObject *module) { return PyModule_AddFunctions(module, bench_methods); }
