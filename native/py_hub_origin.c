/* py_hub_origin.c -- the hub as the origin of futures (py_future.h): what a future asks of it.
 *
 * A thread that waits for a result turns the hub's wheel itself, without the GIL, so that a result needs no switch to
 * another thread; it spins as long as a sleep and a wake would take, then sleeps on the program's bell. Where that spinning
 * was in vain a few times, though the result came soon after, the worker most likely needed this very CPU: then it sleeps
 * at once, for a number of waits, and looks again whether that has changed.
 */
#include "py_hub.h"

#define SPIN_NS UINT64_C(50000) /* about one sleeping wake: spinning longer than that never pays */
#define SPIN_SHORT_NS UINT64_C(4000)
#define SOON_NS UINT64_C(200000) /* a result that comes later says nothing of CPUs */
#define INSIST 16 /* waits with a long look in vain, until looks become short */
#define REST 256  /* waits with a short look, until one is long again */

static void origin_poll(PyObject *hub) {
	ShmrtHub *self = (ShmrtHub *)hub;
	if (!shmrt_py_hub_is_ours(self) || self->closed)
		return;
	if (atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0) { /* a hint */
		bool moved;
		shmrt_hub_pump(&self->hub, &moved);
	}
	shmrt_py_hub_apply(self, false);
}

/* One writer at a time: the interpreter's lock. */
static void learn(ShmrtHub *self, uint64_t waited_ns, bool slept) {
	if (!slept)
		self->vain_spins = self->vain_spins >= INSIST || self->vain_spins < 2 ? 0 : self->vain_spins - 2;
	else if (waited_ns < SOON_NS)
		self->vain_spins = self->vain_spins + 1 < INSIST + REST ? self->vain_spins + 1 : INSIST - 1;
}

int shmrt_py_hub_wait(PyObject *hub, PyObject *future, int64_t timeout_ns) {
	ShmrtHub *self = (ShmrtHub *)hub;
	if (shmrt_py_hub_check(self) < 0)
		return -1;
	uint64_t start_ns = shmrt_now_ns(), now_ns = start_ns;
	uint64_t end_ns = timeout_ns == SHMRT_FOREVER || (uint64_t)timeout_ns > UINT64_MAX / 4 ? UINT64_MAX : start_ns + (uint64_t)timeout_ns;
	bool may_spin = shmrt_usable_cpus() >= 2;
	uint64_t spin_ns = self->vain_spins < INSIST ? SPIN_NS : SPIN_SHORT_NS;
	struct shmrt_hub_rest rest = {.outcomes = true};
	int result = 0;
	bool slept = false;
	for (;;) {
		rest.seen = atomic_load_explicit(&self->hub.finished, memory_order_acquire); /* H3: before the look, see park */
		shmrt_py_hub_apply(self, false);
		if (shmrt_future_is_done(future)) {
			result = 1;
			break;
		}
		if (now_ns >= end_ns)
			break;
		self->waiters++; /* we have looked: whoever completes a future from now on tells the hub */
		Py_BEGIN_ALLOW_THREADS
		bool moved, spins;
		uint64_t next_ns;
		do {
			next_ns = shmrt_hub_pump(&self->hub, &moved);
			now_ns = shmrt_now_ns();
			/* Workers that have more to do than CPUs need this one, and ring when it is worth a wake. */
			spins = !moved && may_spin && now_ns - start_ns < spin_ns &&
				atomic_load_explicit(&self->hub.going_on, memory_order_relaxed) < (uint32_t)shmrt_usable_cpus(); /* a hint */
			if (spins)
				for (int i = 0; i < 16; i++)
					shmrt_pause();
		} while (spins &&
			 atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0); /* a hint */
		if (!moved && atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0) { /* a hint */
			uint64_t until_ns = next_ns < end_ns ? next_ns : end_ns;
			/* A signal that comes between the look for signals and the sleep, or to another thread, interrupts nothing. */
			if (until_ns > now_ns + self->signal_ns)
				until_ns = now_ns + self->signal_ns;
			int ended = shmrt_hub_park(&self->hub, until_ns, true, &rest);
			(void)ended; /* whatever ended it: look at everything */
			now_ns = shmrt_now_ns();
			slept = true;
		}
		Py_END_ALLOW_THREADS
		self->waiters--;
		if (PyErr_CheckSignals() < 0) {
			result = -1;
			break;
		}
		if (self->closed && !shmrt_future_is_done(future)) {
			result = shmrt_py_hub_check(self);
			break;
		}
	}
	if (result == 1 && may_spin)
		learn(self, now_ns - start_ns, slept);
	return result;
}

static int origin_cancel(PyObject *hub, uint64_t token) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = shmrt_hub_cancel(&self->hub, token);
	if (task == NULL)
		return 0;
	PyObject *future = task->future;
	task->future = NULL;
	shmrt_py_hub_free_task(self, task);
	Py_XDECREF(future); /* the caller holds another reference */
	return 1;
}

static void origin_settled(PyObject *hub) {
	ShmrtHub *self = (ShmrtHub *)hub;
	if (self->waiters && shmrt_py_hub_is_ours(self)) /* some thread may wait for this very future */
		shmrt_hub_tell(&self->hub);
}

static int origin_kill(PyObject *hub, uint64_t token) {
	ShmrtHub *self = (ShmrtHub *)hub;
	int known = shmrt_hub_kill_task(&self->hub, token);
	shmrt_py_hub_apply(self, false);
	return known;
}

static void origin_watch(PyObject *hub, uint64_t token) { shmrt_hub_watch(&((ShmrtHub *)hub)->hub, token); }

static int origin_running(PyObject *hub, uint64_t token) { return shmrt_hub_is_running(&((ShmrtHub *)hub)->hub, token); }

const struct shmrt_future_origin shmrt_hub_origin = {
	.poll = origin_poll,
	.wait = shmrt_py_hub_wait,
	.cancel = origin_cancel,
	.kill = origin_kill,
	.watch = origin_watch,
	.running = origin_running,
	.settled = origin_settled,
	.decode = shmrt_py_hub_decode,
	.drop = shmrt_py_hub_drop,
};
