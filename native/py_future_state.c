/* py_future_state.c -- the life of a future: pending, running, cancelled or finished, and who may change that.
 *
 * A future is made by its origin, which completes it with an undecoded payload, or by hand (an executor, a test), and then
 * set_result and set_exception complete it. Whoever is second finds it done: an origin's completion is swallowed, a second
 * set_result raises. Every change goes through `settle`, under the future's lock (the rule is in py_future_internal.h);
 * callbacks run after it, without.
 */
#include "py_future_internal.h"

/* What a completion brings. `value` is owned by the caller until `settle` took it. */
struct completion {
	enum state state;
	enum shmrt_outcome outcome;
	void *payload;
	PyObject *value;
	PyObject *worker; /* borrowed */
	uint32_t attempts;
};

/* The change of state itself; the lock is held. Everything new is in place before anything old is released,
 * because a destructor may run Python code. */
static void settle(struct core_future *self, const struct completion *completion) {
	PyObject *old_value = self->value;
	self->value = completion->value;
	self->payload = completion->payload;
	self->outcome = completion->outcome & 3;
	if (completion->attempts != 0)
		self->attempts = completion->attempts;
	PyObject *old_worker = NULL;
	if (completion->worker != NULL) {
		old_worker = self->worker;
		self->worker = Py_NewRef(completion->worker);
	}
	self->state = (uint8_t)completion->state;
	if (self->value != NULL)
		shmrt__future_track_for(self, self->value);
	if (self->watch != NULL) {
		if (completion->state == STATE_NOTIFIED)
			shmrt__future_tell_waiters(self, shmrt__future.str_add_cancelled);
		else if (completion->state == STATE_FINISHED)
			shmrt__future_tell_waiters(self, completion->outcome == SHMRT_OUTCOME_EXCEPTION ? shmrt__future.str_add_exception
													: shmrt__future.str_add_result);
		shmrt__future_notify(self);
	}
	Py_XDECREF(old_value);
	Py_XDECREF(old_worker);
}

/* Before the state changes: whoever has the result finds that the guard has it, too. What it wants to see is decoded for that;
 * a value that cannot be is an exception, as it will be for whoever asks. */
static void tell_guard(struct core_future *self, struct completion *completion) {
	if (SHMRT_LIKELY(self->watch == NULL || self->watch->guard == NULL) || is_done(self))
		return;
	bool wanted = completion->outcome == SHMRT_OUTCOME_EXCEPTION || self->watch->guard_wants_value;
	if (completion->state == STATE_FINISHED && wanted && completion->value == NULL && completion->payload != NULL) {
		PyObject *object = self->origin->decode(self->origin_object, completion->payload, completion->outcome);
		if (object == NULL) {
			object = shmrt_take_exception();
			completion->outcome = SHMRT_OUTCOME_EXCEPTION;
		}
		void *payload = completion->payload;
		completion->payload = NULL;
		completion->value = object;
		shmrt__future_drop_payload(self, payload);
	}
	enum shmrt_outcome outcome = completion->state == STATE_FINISHED ? completion->outcome : SHMRT_OUTCOME_CANCELLED;
	shmrt__future_tell_guard(self, outcome, completion->value);
}

/* For the origin: cannot fail, and a future that is done already swallows the completion. */
static void complete(struct core_future *self, struct completion *completion) {
	PyObject *held;
	bool interrupted = false;
	Py_INCREF(self);
	tell_guard(self, completion);
	while (shmrt__future_lock(self, &held) < 0) {
		bool again = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
		if (!again) {
			/* Somebody stored a condition that cannot be acquired; a completion is worth more than its lock. */
			PyErr_WriteUnraisable((PyObject *)self);
			break;
		}
		PyErr_Clear();
		interrupted = true;
	}
	if (is_done(self)) {
		shmrt__future_unlock(held);
		shmrt__future_drop_payload(self, completion->payload);
		Py_XDECREF(completion->value);
	} else {
		settle(self, completion);
		shmrt__future_unlock(held);
		shmrt__future_run_callbacks(self, false);
	}
	Py_DECREF(self);
	if (interrupted)
		PyErr_SetInterrupt();
}

/* After a change that did not come from the origin; without the lock. */
static void tell_origin(struct core_future *self) {
	if (self->origin_object == NULL || self->origin->settled == NULL)
		return;
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->settled(origin_object);
	Py_DECREF(origin_object);
}

/* For set_result and set_exception: takes `value`. */
static PyObject *set_by_hand(struct core_future *self, enum shmrt_outcome outcome, PyObject *value) {
	PyObject *held;
	if (shmrt__future_lock(self, &held) < 0)
		return NULL;
	if (is_done(self)) {
		PyErr_Format(shmrt__future.invalid_state_error, "%U: %R", shmrt__future.state_names[self->state], self);
		shmrt__future_unlock(held);
		return NULL;
	}
	settle(self, &(struct completion){.state = STATE_FINISHED, .outcome = outcome, .value = Py_NewRef(value)});
	shmrt__future_unlock(held);
	tell_origin(self);
	if (shmrt__future_run_callbacks(self, true) < 0)
		return NULL;
	Py_RETURN_NONE;
}

/* ---- for the origin (py_future.h) ---- */

PyObject *shmrt_future_new(PyObject *origin_object, const struct shmrt_future_origin *origin, uint64_t token) {
	if (SHMRT_UNLIKELY(shmrt__future.public_class == NULL) && shmrt_future_class() == NULL)
		return NULL;
	PyObject *future = shmrt__future.public_class->tp_alloc(shmrt__future.public_class, 0);
	if (future == NULL)
		return NULL;
	PyObject_GC_UnTrack(future);
	core(future)->origin = origin;
	core(future)->origin_object = Py_XNewRef(origin_object);
	core(future)->token = token;
	return future;
}

void shmrt_future_set_token(PyObject *future, uint64_t token) { core(future)->token = token; }

int shmrt_future_is_watched(PyObject *future) { return core(future)->watch != NULL; }

int shmrt_future_is_done(PyObject *future) { return is_done(core(future)); }

int shmrt_future_token(PyObject *future, uint64_t *token) {
	if (!PyObject_TypeCheck(future, shmrt__future.core_type) || core(future)->origin == NULL) {
		PyErr_Format(PyExc_TypeError, "this is no future of a pool: %R", future);
		return -1;
	}
	*token = core(future)->token;
	return 0;
}

void shmrt_future_complete(PyObject *future, enum shmrt_outcome outcome, void *payload, PyObject *worker, uint32_t attempts) {
	struct completion completion = {
		.state = STATE_FINISHED, .outcome = outcome, .payload = payload, .worker = worker, .attempts = attempts};
	if (outcome == SHMRT_OUTCOME_CANCELLED) {
		completion.state = STATE_NOTIFIED;
		completion.payload = NULL;
		shmrt__future_drop_payload(core(future), payload);
	}
	complete(core(future), &completion);
}

void shmrt_future_complete_object(PyObject *future, enum shmrt_outcome outcome, PyObject *object, PyObject *worker,
				  uint32_t attempts) {
	struct completion completion = {
		.state = STATE_FINISHED, .outcome = outcome, .value = object, .worker = worker, .attempts = attempts};
	if (outcome == SHMRT_OUTCOME_CANCELLED) {
		completion.state = STATE_NOTIFIED;
		completion.value = NULL;
		Py_XDECREF(object);
	}
	complete(core(future), &completion);
}

/* ---- methods that change the state ---- */

PyObject *shmrt__future_cancel(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	PyObject *held;
	/* The origin is asked before the condition is taken: it has locks of its own. */
	if (self->state == STATE_PENDING && self->origin_object != NULL && !self->taken_back) {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		if (self->origin->cancel(origin_object, self->token) > 0)
			self->taken_back = 1;
		Py_DECREF(origin_object);
	}
	if (shmrt__future_lock(self, &held) < 0)
		return NULL;
	bool mine = self->state == STATE_PENDING && (self->origin_object == NULL || self->taken_back);
	if (mine) /* without an origin the executor that made it notifies the waiters, as the standard ones do */
		settle(self, &(struct completion){.state = self->origin_object == NULL ? STATE_CANCELLED : STATE_NOTIFIED,
						  .outcome = SHMRT_OUTCOME_CANCELLED});
	bool cancelled = is_cancelled(self);
	shmrt__future_unlock(held);
	if (mine)
		tell_origin(self);
	if (mine)
		shmrt__future_tell_guard(self, SHMRT_OUTCOME_CANCELLED, NULL);
	if (mine && shmrt__future_run_callbacks(self, true) < 0)
		return NULL;
	return PyBool_FromLong(cancelled);
}

/* A task that has not begun is taken back, as by cancel, and ends with the exception. */
PyObject *shmrt__future_refuse(PyObject *future, PyObject *exception) {
	struct core_future *self = core(future);
	PyObject *held;
	if (self->state != STATE_PENDING || self->origin_object == NULL)
		Py_RETURN_FALSE;
	if (!self->taken_back) {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		if (self->origin->cancel(origin_object, self->token) > 0)
			self->taken_back = 1;
		Py_DECREF(origin_object);
	}
	if (!self->taken_back)
		Py_RETURN_FALSE;
	shmrt__future_tell_guard(self, SHMRT_OUTCOME_CANCELLED, NULL); /* it did not run: that says nothing */
	if (shmrt__future_lock(self, &held) < 0)
		return NULL;
	bool mine = self->state == STATE_PENDING;
	if (mine)
		settle(self, &(struct completion){
				     .state = STATE_FINISHED, .outcome = SHMRT_OUTCOME_EXCEPTION, .value = Py_NewRef(exception)});
	shmrt__future_unlock(held);
	if (mine)
		tell_origin(self);
	if (mine && shmrt__future_run_callbacks(self, true) < 0)
		return NULL;
	return PyBool_FromLong(mine);
}

PyObject *shmrt__future_kill(PyObject *future, PyObject *ignored) {
	struct core_future *self = core(future);
	shmrt__future_poll(self);
	if (is_done(self))
		Py_RETURN_FALSE;
	if (self->origin_object == NULL)
		return shmrt__future_cancel(future, ignored);
	PyObject *origin_object = Py_NewRef(self->origin_object);
	int ordered = self->origin->kill(origin_object, self->token);
	Py_DECREF(origin_object);
	return PyBool_FromLong(ordered > 0);
}

PyObject *shmrt__future_set_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *value = SHMRT__FUTURE_ONE_ARGUMENT("set_result", "result", false);
	return value ? set_by_hand(core(self), SHMRT_OUTCOME_VALUE, value) : NULL;
}

PyObject *shmrt__future_set_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *value = SHMRT__FUTURE_ONE_ARGUMENT("set_exception", "exception", false);
	if (value == NULL)
		return NULL;
	return set_by_hand(core(self), value == Py_None ? SHMRT_OUTCOME_VALUE : SHMRT_OUTCOME_EXCEPTION, value);
}

PyObject *shmrt__future_set_running_or_notify_cancel(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	PyObject *held;
	if (shmrt__future_lock(self, &held) < 0)
		return NULL;
	PyObject *result = NULL;
	if (self->state == STATE_CANCELLED) {
		self->state = STATE_NOTIFIED;
		shmrt__future_tell_waiters(self, shmrt__future.str_add_cancelled);
		result = Py_NewRef(Py_False);
	} else if (self->state == STATE_PENDING) {
		self->state = STATE_RUNNING;
		result = Py_NewRef(Py_True);
	} else {
		PyObject *logged = PyObject_CallMethod(shmrt__future.logger, "critical", "snO", "Future %s in unexpected state: %s",
						       (Py_ssize_t)(intptr_t)self, shmrt__future.state_names[self->state]);
		Py_XDECREF(logged);
		PyErr_SetString(PyExc_RuntimeError, "Future in unexpected state");
	}
	shmrt__future_unlock(held);
	return result;
}
