/* py_deadline.h -- how long a call from Python may still wait, over all its attempts. */
#ifndef SHMRT_PY_DEADLINE_H
#define SHMRT_PY_DEADLINE_H

#include "py_module.h"
#include "ops.h"

#include <time.h>

struct deadline {
	int64_t timeout_ns;
	uint64_t until_ns; /* 0: never, or at once */
};

static inline struct deadline shmrt_py_deadline_after(int64_t timeout_ns) {
	struct deadline deadline = {timeout_ns, 0};
	if (timeout_ns > 0 && timeout_ns != SHMRT_FOREVER)
		deadline.until_ns = shmrt_now_ns() + (uint64_t)timeout_ns;
	return deadline;
}

static inline int64_t shmrt_py_time_left(const struct deadline *deadline) {
	if (deadline->until_ns == 0)
		return deadline->timeout_ns;
	uint64_t now = shmrt_now_ns();
	return now >= deadline->until_ns ? 0 : (int64_t)(deadline->until_ns - now);
}

/* Sleeps without the GIL; -1 if a signal handler raised. */
static inline int shmrt_py_nap(int64_t nanoseconds) {
	struct timespec time = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
	Py_BEGIN_ALLOW_THREADS
	nanosleep(&time, NULL);
	Py_END_ALLOW_THREADS
	return PyErr_CheckSignals();
}

#endif
