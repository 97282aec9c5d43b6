/* py_bench.c -- how long a cache line takes from one CPU to another and back.
 *
 * Every figure that two processes make together is worth only what this one says at the same time: on a shared
 * machine it moves by a factor of several. A forked child answers a word in a page that both map; both are pinned.
 *
 * Bytes: two words, SHMRT_LINE apart. `ping` is written by the caller only, `pong` by the child only.
 * Edges: P1 ping store -> child's ping load; P2 pong store -> caller's pong load. The words carry nothing else.
 * If the child dies, the caller sees its pong no more: it gives up after a second and says so. If the caller dies,
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
};

#define SAMPLES 101
#define PATIENCE_NS UINT64_C(1000000000)

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

static void answer(struct shmrt_bench_page *page, pid_t parent, int cpu) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || pin(cpu) < 0)
		_exit(1);
	uint64_t seen = 0;
	for (;;) {
		uint64_t now = atomic_load_explicit(&page->ping, memory_order_acquire); /* P1 */
		if (now == UINT64_MAX)
			_exit(0);
		if (now != seen) {
			seen = now;
			atomic_store_explicit(&page->pong, seen, memory_order_release); /* P2 */
		}
	}
}

/* One round trip. False when no answer came within the patience. */
static bool ask(struct shmrt_bench_page *page, uint64_t number) {
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

static int by_value(const void *one, const void *two) {
	double a = *(const double *)one, b = *(const double *)two;
	return (a > b) - (a < b);
}

static bool measure(struct shmrt_bench_page *page, long rounds, double *median) {
	double samples[SAMPLES];
	long each = rounds / SAMPLES > 0 ? rounds / SAMPLES : 1;
	uint64_t number = 0;
	if (!ask(page, ++number)) /* waits until the child is there */
		return false;
	for (int sample = 0; sample < SAMPLES; sample++) {
		uint64_t begin = shmrt_now_ns();
		for (long round = 0; round < each; round++)
			if (!ask(page, ++number))
				return false;
		samples[sample] = (double)(shmrt_now_ns() - begin) / (double)each;
	}
	qsort(samples, SAMPLES, sizeof(samples[0]), by_value);
	*median = samples[SAMPLES / 2];
	return true;
}

PyDoc_STRVAR(ping_pong_doc, "ping_pong_ns(rounds, /)\n--\n\n"
	"Median nanoseconds for a cache line to go to another CPU and back. Needs two CPUs.");

static PyObject *ping_pong_ns(PyObject *module, PyObject *argument) {
	(void)module;
	long rounds = PyLong_AsLong(argument);
	if (rounds == -1 && PyErr_Occurred())
		return NULL;
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
	if (child == 0)
		answer(page, parent, cpus[1]);
	if (child < 0) {
		munmap(page, sizeof(*page));
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	double median = 0;
	bool answered = false;
	Py_BEGIN_ALLOW_THREADS;
	if (pin(cpus[0]) == 0)
		answered = measure(page, rounds, &median);
	atomic_store_explicit(&page->ping, UINT64_MAX, memory_order_release); /* P1: the word to end */
	if (!answered)
		kill(child, SIGKILL);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	sched_setaffinity(0, sizeof(before), &before);
	Py_END_ALLOW_THREADS;
	munmap(page, sizeof(*page));
	if (!answered)
		return PyErr_Format(PyExc_TimeoutError, "the other CPU did not answer for a second");
	return PyFloat_FromDouble(median);
}

static PyMethodDef bench_methods[] = {
	{"ping_pong_ns", ping_pong_ns, METH_O, ping_pong_doc},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_bench(PyObject *module) { return PyModule_AddFunctions(module, bench_methods); }
