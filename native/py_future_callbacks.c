/* py_future_callbacks.c -- who is told when a future changes: its callbacks, its waiters, threads on its condition.
 *
 * Callbacks are user code, called without the future's lock, in the order in which they were added. The waiters are those
 * of concurrent.futures.wait and as_completed; they and the condition are told under the lock, as the standard library
 * does. What they raise must not end the dispatcher, which completes the futures of everybody.
 */
#include "py_future_internal.h"

/* The words of the standard library, which people grep their logs for. */
static void log_failed_callback(PyObject *future) {
	PyObject *failure = shmrt_take_exception();
	PyObject *method = PyObject_GetAttrString(shmrt__future.logger, "exception");
	PyObject *args = Py_BuildValue("(sO)", "exception calling callback for %r", future);
	PyObject *kwargs = Py_BuildValue("{sO}", "exc_info", failure);
	PyObject *answer = method && args && kwargs ? PyObject_Call(method, args, kwargs) : NULL;
	if (answer == NULL)
		PyErr_WriteUnraisable(future);
	Py_XDECREF(answer);
	Py_XDECREF(kwargs);
	Py_XDECREF(args);
	Py_XDECREF(method);
	Py_XDECREF(failure);
}

/* Calls one callback. An Exception is logged. Another BaseException is returned as -1 if `propagate`, else logged too:
 * it must not end the dispatcher. */
static int call_callback(PyObject *future, PyObject *callback, bool propagate) {
	PyObject *answer = PyObject_CallOneArg(callback, future);
	if (answer != NULL) {
		Py_DECREF(answer);
		return 0;
	}
	if (propagate && !PyErr_ExceptionMatches(PyExc_Exception))
		return -1;
	log_failed_callback(future);
	return 0;
}

int shmrt__future_run_callbacks(struct core_future *self, bool propagate) {
	if (self->watch == NULL)
		return 0;
	shmrt__future_tell_chained(self);
	if (self->watch == NULL || self->watch->callbacks == NULL)
		return 0;
	PyObject *callbacks = Py_NewRef(self->watch->callbacks);
	int result = 0;
	for (Py_ssize_t i = 0; result == 0 && PyList_Check(callbacks) && i < PyList_GET_SIZE(callbacks); i++) {
		PyObject *callback = Py_NewRef(PyList_GET_ITEM(callbacks, i));
		shmrt__future_batch_flush(); /* it may take long, or wait for what was put off */
		result = call_callback((PyObject *)self, callback, propagate);
		Py_DECREF(callback);
	}
	Py_DECREF(callbacks);
	return result;
}

/* The place for one more callback: `chained`, or the list. Made before the state is looked at: an allocation may start the
 * collector, and that other code. -1 with an exception. */
static int make_room(struct core_future *self, PyObject *chained) {
	struct watch *watch = shmrt__future_need_watch(self);
	if (watch == NULL)
		return -1;
	if (watch->callbacks != NULL || (chained != NULL && watch->chained == NULL))
		return 0;
	PyObject *list = PyList_New(0);
	if (list == NULL)
		return -1;
	Py_DECREF(shmrt__future_keep_first(&watch->callbacks, list));
	return 0;
}

PyObject *shmrt__future_add_done_callback(PyObject *future, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	struct core_future *self = core(future);
	PyObject *callback = SHMRT__FUTURE_ONE_ARGUMENT("add_done_callback", "fn", false);
	PyObject *held;
	if (callback == NULL)
		return NULL;
	PyObject *chained = shmrt__future_chained_by(callback);
	for (;; shmrt__future_unlock(held)) {
		if (!is_done(self) && make_room(self, chained) < 0)
			return NULL;
		if (shmrt__future_lock(self, &held) < 0)
			return NULL;
		if (is_done(self) || self->watch->callbacks != NULL || (chained != NULL && self->watch->chained == NULL))
			break; /* else another thread took the room while we waited for the lock */
	}
	if (!is_done(self)) {
		int failed = 0;
		if (self->watch->callbacks != NULL)
			failed = PyList_Append(self->watch->callbacks, callback);
		else
			self->watch->chained = Py_NewRef(chained);
		shmrt__future_unlock(held);
		if (failed)
			return NULL;
		shmrt__future_tell_watch(self);
		Py_RETURN_NONE;
	}
	shmrt__future_unlock(held);
	int taken = chained ? shmrt__future_chain_done(future, chained) : 0;
	if (taken < 0 || (taken == 0 && call_callback(future, callback, true) < 0))
		return NULL;
	Py_RETURN_NONE;
}

/* ---- the guard ---- */

void shmrt__future_tell_guard(struct core_future *self, enum shmrt_outcome outcome, PyObject *object) {
	PyObject *guard = self->watch ? self->watch->guard : NULL;
	if (guard == NULL)
		return;
	self->watch->guard = NULL;
	PyObject *answer = PyObject_CallFunction(guard, "OiO", (PyObject *)self, (int)outcome, object ? object : Py_None);
	if (answer == NULL)
		PyErr_WriteUnraisable(guard);
	Py_XDECREF(answer);
	Py_DECREF(guard);
}

PyObject *shmrt__future_set_guard(PyObject *future, PyObject *const *args, Py_ssize_t count) {
	struct core_future *self = core(future);
	int wants_value = count == 2 ? PyObject_IsTrue(args[1]) : -1;
	if (wants_value < 0)
		return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "_set_guard(fn, wants_value)");
	if (self->state == STATE_FINISHED && (wants_value || self->outcome == SHMRT_OUTCOME_EXCEPTION) && shmrt__future_need_value(self) < 0)
		return NULL;
	struct watch *watch = shmrt__future_need_watch(self);
	if (watch == NULL)
		return NULL;
	Py_XSETREF(watch->guard, Py_NewRef(args[0]));
	watch->guard_wants_value = wants_value;
	if (!is_done(self)) {
		shmrt__future_tell_watch(self);
		Py_RETURN_NONE;
	}
	shmrt__future_tell_guard(self, self->state == STATE_FINISHED ? self->outcome : SHMRT_OUTCOME_CANCELLED, self->value);
	Py_RETURN_NONE;
}

/* ---- waiters ---- */

void shmrt__future_tell_waiters(struct core_future *self, PyObject *method) {
	if (self->watch == NULL || self->watch->waiters == NULL)
		return;
	PyObject *waiters = PySequence_Tuple(self->watch->waiters);
	if (waiters == NULL) {
		PyErr_WriteUnraisable((PyObject *)self);
		return;
	}
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(waiters); i++)
		shmrt__future_tell(PyTuple_GET_ITEM(waiters, i), (PyObject *)self, method);
	Py_DECREF(waiters);
}

void shmrt__future_notify(struct core_future *self) {
	if (self->watch == NULL || self->watch->condition == NULL)
		return;
	if (shmrt__condition_of_ours(self->watch->condition)) {
		shmrt__condition_tell_all(self->watch->condition);
		return;
	}
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *answer = PyObject_CallMethodNoArgs(condition, shmrt__future.str_notify_all);
	if (answer == NULL)
		PyErr_WriteUnraisable((PyObject *)self);
	Py_XDECREF(answer);
	Py_DECREF(condition);
}
