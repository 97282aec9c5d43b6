/* py_future_wait.c -- result() and exception(): waiting until a future is done, then its answer.
 *
 * A thread waits in the origin, which gives the interpreter's lock away and turns the hub's wheel meanwhile: a result then
 * needs no switch to another thread. A future without an origin, and one whose condition this very thread holds, is waited
 * for on the condition, as the standard library does: the dispatcher could not complete the latter otherwise.
 */
#include "py_future_internal.h"

#include "ops.h"

static int64_t now_ns(void) { return (int64_t)shmrt_now_ns(); }

/* INT64_MAX stands for "no limit". */
static int parse_timeout(PyObject *timeout, int64_t *timeout_ns) {
	*timeout_ns = INT64_MAX;
	if (timeout == NULL || timeout == Py_None)
		return 0;
	double seconds = PyFloat_AsDouble(timeout);
	if (seconds == -1.0 && PyErr_Occurred())
		return -1;
	if (seconds != seconds) {
		PyErr_SetString(PyExc_ValueError, "timeout is nan; give a number of seconds or None");
		return -1;
	}
	if (seconds <= 0.0)
		*timeout_ns = 0;
	else if (seconds < 4e9) /* 127 years: beyond that it is no limit */
		*timeout_ns = (int64_t)(seconds * 1e9);
	return 0;
}

static int64_t remaining_ns(int64_t deadline) {
	if (deadline == INT64_MAX)
		return INT64_MAX;
	int64_t now = now_ns();
	return now < deadline ? deadline - now : 0;
}

static int wait_condition(struct core_future *self, int64_t deadline) {
	PyObject *condition = shmrt__future_need_condition(self);
	if (condition == NULL)
		return -1;
	Py_DECREF(condition);
	if (shmrt__future_lock(self, &condition) < 0)
		return -1;
	int result = 0;
	while (result == 0 && !is_done(self)) {
		int64_t remaining = remaining_ns(deadline);
		if (remaining == 0)
			break;
		PyObject *limit = remaining == INT64_MAX ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)remaining / 1e9);
		PyObject *woken = limit ? PyObject_CallMethodOneArg(condition, shmrt__future.str_wait, limit) : NULL;
		if (woken == NULL)
			result = -1;
		Py_XDECREF(woken);
		Py_XDECREF(limit);
	}
	shmrt__future_unlock(condition);
	return result;
}

/* 0 when done; -1 with TimeoutError or whatever interrupted the wait. */
static int wait_done(struct core_future *self, int64_t timeout_ns) {
	int64_t deadline = timeout_ns == INT64_MAX ? INT64_MAX : now_ns() + timeout_ns;
	int result = 0;
	if (self->origin_object == NULL || shmrt__future_owns_condition(self)) {
		result = wait_condition(self, deadline);
	} else {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		const struct shmrt_future_origin *origin = self->origin;
		while (!is_done(self)) {
			int64_t remaining = remaining_ns(deadline);
			result = origin->wait(origin_object, (PyObject *)self, remaining);
			if (result < 0 || (remaining == 0 && result == 0))
				break;
		}
		result = result < 0 ? -1 : 0;
		Py_DECREF(origin_object);
	}
	if (result == 0 && !is_done(self)) {
		PyErr_SetNone(PyExc_TimeoutError);
		return -1;
	}
	return result;
}

/* ---- methods ---- */

static PyObject *ask(PyObject *future, PyObject *timeout, bool want_exception) {
	struct core_future *self = core(future);
	if (!is_done(self)) {
		int64_t timeout_ns;
		if (parse_timeout(timeout, &timeout_ns) < 0 || wait_done(self, timeout_ns) < 0)
			return NULL;
	}
	return shmrt__future_answer(self, want_exception);
}

PyObject *shmrt__future_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *timeout = SHMRT__FUTURE_ONE_ARGUMENT("result", "timeout", true);
	return timeout == NULL && PyErr_Occurred() ? NULL : ask(self, timeout, false);
}

PyObject *shmrt__future_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *timeout = SHMRT__FUTURE_ONE_ARGUMENT("exception", "timeout", true);
	return timeout == NULL && PyErr_Occurred() ? NULL : ask(self, timeout, true);
}
