/* py_future.c -- shmrt's Future: a C base that becomes a real concurrent.futures.Future on first use.
 *
 * Nothing here is shared memory; all words belong to this process and the interpreter's lock guards them.
 *
 * The lock rule. While nobody asked for `_condition`, the interpreter's lock is the future's lock: a section that
 * changes the state must then call nothing that could release it. Once the condition exists every change of state
 * takes it, and looks at the state again afterwards, because acquiring may let other threads run. The condition,
 * the waiters and the callback list live in one block (`struct watch`) that most futures never get; a future that
 * has the block is *watched* and its origin is told so once.
 *
 * A result arrives as an undecoded payload. Whoever asks first decodes it, alone: decoding moves the blocks of a
 * message to their new owner, so it cannot be done twice. Others wait on `decoded`, a word of this process that counts
 * finished decodes. A failing decode becomes the future's exception; user code can only hurt the thread that asked.
 *
 * A new future holds nothing that could close a reference cycle and is taken off the collector's list (the biggest
 * single cost of submitting in bulk). It is put back once it gets a watch block, an attribute, or a value that the
 * collector knows. Instances of subclasses always stay on the list.
 */
#include "py_future.h"

#include "ops.h"

enum state { STATE_PENDING, STATE_RUNNING, STATE_CANCELLED, STATE_NOTIFIED, STATE_FINISHED, STATE_COUNT };

struct watch {
	PyObject *condition; /* NULL until asked for; then every change of state takes it */
	PyObject *waiters;   /* NULL until asked for */
	PyObject *callbacks; /* NULL until asked for */
};

struct core_future {
	PyObject_HEAD
	const struct shmrt_future_origin *origin; /* NULL for one that somebody made by hand */
	PyObject *origin_object;
	uint64_t token;
	void *payload;   /* undecoded; given back by the decoder or by dealloc */
	PyObject *value; /* the result or the exception, once decoded or set */
	struct watch *watch;
	PyObject *worker;
	unsigned long decoder; /* the thread inside origin->decode; 0 if none */
	uint32_t attempts;
	uint8_t state;     /* enum state */
	uint8_t outcome : 2; /* enum shmrt_outcome; meaningful once value or payload is set */
	uint8_t watch_told : 1;
	uint8_t taken_back : 1; /* the origin gave the task back: whoever cancels now succeeds */
};

static PyTypeObject *core_type;
static PyTypeObject *public_class; /* made on first use: importing concurrent.futures costs 10 ms */
static PyObject *state_names[STATE_COUNT];
static PyObject *cancelled_error, *invalid_state_error, *logger, *condition_type;
static _Atomic uint32_t decoded; /* finished decodes of this process; those who wait for one sleep on it */
static uint32_t decode_waiters;  /* guarded by the interpreter's lock */
static PyObject *str_acquire, *str_release, *str_wait, *str_notify_all, *str_is_owned;

static const char *const state_words[STATE_COUNT] = {"pending", "running", "cancelled", "cancelled", "finished"};

static inline struct core_future *core(PyObject *future) { return (struct core_future *)future; }
static inline bool is_done(const struct core_future *self) { return self->state >= STATE_CANCELLED; }
static inline bool is_cancelled(const struct core_future *self) {
	return self->state == STATE_CANCELLED || self->state == STATE_NOTIFIED;
}

static int64_t now_ns(void) { return (int64_t)shmrt_now_ns(); }

/* ---- memory: collector, payload, watch block ---- */

static void track(struct core_future *self) {
	if (!PyObject_GC_IsTracked((PyObject *)self))
		PyObject_GC_Track((PyObject *)self);
}

/* A dict of plain values is off the collector's list today and may be on it tomorrow; only a tuple stays off. */
static void track_for(struct core_future *self, PyObject *value) {
	if (PyObject_IS_GC(value) && (!PyTuple_CheckExact(value) || PyObject_GC_IsTracked(value)))
		track(self);
}

static void drop_payload(struct core_future *self, void *payload) {
	PyObject *type, *value, *traceback;
	if (payload == NULL || self->origin == NULL || self->origin_object == NULL)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->drop(origin_object, payload);
	Py_DECREF(origin_object);
	PyErr_Restore(type, value, traceback);
}

static struct watch *need_watch(struct core_future *self) {
	if (self->watch == NULL) {
		struct watch *watch = PyMem_Calloc(1, sizeof(*watch));
		if (watch == NULL) {
			PyErr_NoMemory();
			return NULL;
		}
		self->watch = watch;
		track(self);
	}
	return self->watch;
}

/* Tell the origin once that this future needs the dispatcher. */
static void tell_watch(struct core_future *self) {
	if (self->watch_told || is_done(self) || self->origin_object == NULL)
		return;
	self->watch_told = 1;
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->watch(origin_object, self->token);
	Py_DECREF(origin_object);
}

/* Let the origin deliver what already arrived, unless only the dispatcher may complete this one. */
static void poll_origin(struct core_future *self) {
	if (is_done(self) || self->watch != NULL || self->origin_object == NULL)
		return;
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->poll(origin_object);
	Py_DECREF(origin_object);
}

/* Store `made` (stolen) in *place unless another thread was faster; either way a new reference to what is there. */
static PyObject *keep_first(PyObject **place, PyObject *made) {
	if (*place == NULL)
		*place = made;
	else
		Py_DECREF(made);
	return Py_NewRef(*place);
}

static PyObject *need_condition(struct core_future *self) {
	if (self->watch != NULL && self->watch->condition != NULL)
		return Py_NewRef(self->watch->condition);
	poll_origin(self);
	PyObject *made = PyObject_CallNoArgs(condition_type);
	if (made == NULL)
		return NULL;
	struct watch *watch = need_watch(self);
	if (watch == NULL) {
		Py_DECREF(made);
		return NULL;
	}
	PyObject *condition = keep_first(&watch->condition, made);
	tell_watch(self);
	return condition;
}

/* ---- the lock of one future ---- */

/* *held: the condition that was acquired, or NULL when the interpreter's lock suffices. */
static int lock(struct core_future *self, PyObject **held) {
	*held = NULL;
	if (self->watch == NULL || self->watch->condition == NULL)
		return 0;
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *answer = PyObject_CallMethodNoArgs(condition, str_acquire);
	if (answer == NULL) {
		Py_DECREF(condition);
		return -1;
	}
	Py_DECREF(answer);
	*held = condition;
	return 0;
}

static void unlock(PyObject *held) {
	PyObject *type, *value, *traceback;
	if (held == NULL)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *answer = PyObject_CallMethodNoArgs(held, str_release);
	if (answer == NULL)
		PyErr_WriteUnraisable(held);
	Py_XDECREF(answer);
	Py_DECREF(held);
	PyErr_Restore(type, value, traceback);
}

/* ---- completion ---- */

/* Takes the exception that is set now, as one object with its traceback. */
static PyObject *take_exception(void) {
#if PY_VERSION_HEX >= 0x030C0000
	return PyErr_GetRaisedException();
#else
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	if (traceback != NULL)
		PyException_SetTraceback(value, traceback);
	Py_XDECREF(type);
	Py_XDECREF(traceback);
	return value;
#endif
}

/* The words of the standard library, which people grep their logs for. */
static void log_failed_callback(PyObject *future) {
	PyObject *failure = take_exception();
	PyObject *method = PyObject_GetAttrString(logger, "exception");
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

static int run_callbacks(struct core_future *self, bool propagate) {
	if (self->watch == NULL || self->watch->callbacks == NULL)
		return 0;
	PyObject *callbacks = Py_NewRef(self->watch->callbacks);
	int result = 0;
	for (Py_ssize_t i = 0; result == 0 && PyList_Check(callbacks) && i < PyList_GET_SIZE(callbacks); i++) {
		PyObject *callback = Py_NewRef(PyList_GET_ITEM(callbacks, i));
		result = call_callback((PyObject *)self, callback, propagate);
		Py_DECREF(callback);
	}
	Py_DECREF(callbacks);
	return result;
}

static void tell_waiters(struct core_future *self, const char *verb) {
	if (self->watch == NULL || self->watch->waiters == NULL)
		return;
	PyObject *waiters = PySequence_List(self->watch->waiters);
	if (waiters == NULL) {
		PyErr_WriteUnraisable((PyObject *)self);
		return;
	}
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(waiters); i++) {
		PyObject *answer = PyObject_CallMethod(PyList_GET_ITEM(waiters, i), verb, "O", (PyObject *)self);
		if (answer == NULL)
			PyErr_WriteUnraisable((PyObject *)self);
		Py_XDECREF(answer);
	}
	Py_DECREF(waiters);
}

static void notify_condition(struct core_future *self) {
	if (self->watch == NULL || self->watch->condition == NULL)
		return;
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *answer = PyObject_CallMethodNoArgs(condition, str_notify_all);
	if (answer == NULL)
		PyErr_WriteUnraisable((PyObject *)self);
	Py_XDECREF(answer);
	Py_DECREF(condition);
}

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
		track_for(self, self->value);
	if (self->watch != NULL) {
		if (completion->state == STATE_NOTIFIED)
			tell_waiters(self, "add_cancelled");
		else if (completion->state == STATE_FINISHED)
			tell_waiters(self, completion->outcome == SHMRT_OUTCOME_EXCEPTION ? "add_exception" : "add_result");
		notify_condition(self);
	}
	Py_XDECREF(old_value);
	Py_XDECREF(old_worker);
}

/* For the origin: cannot fail, and a future that is done already swallows the completion. */
static void complete(struct core_future *self, const struct completion *completion) {
	PyObject *held;
	bool interrupted = false;
	Py_INCREF(self);
	while (lock(self, &held) < 0) {
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
		unlock(held);
		drop_payload(self, completion->payload);
		Py_XDECREF(completion->value);
	} else {
		settle(self, completion);
		unlock(held);
		run_callbacks(self, false);
	}
	Py_DECREF(self);
	if (interrupted)
		PyErr_SetInterrupt();
}

/* For set_result and set_exception: takes `value`. */
static PyObject *set_by_hand(struct core_future *self, enum shmrt_outcome outcome, PyObject *value) {
	PyObject *held;
	if (lock(self, &held) < 0)
		return NULL;
	if (is_done(self)) {
		PyErr_Format(invalid_state_error, "%U: %R", state_names[self->state], self);
		unlock(held);
		return NULL;
	}
	settle(self, &(struct completion){.state = STATE_FINISHED, .outcome = outcome, .value = Py_NewRef(value)});
	unlock(held);
	if (run_callbacks(self, true) < 0)
		return NULL;
	Py_RETURN_NONE;
}

PyObject *shmrt_future_new(PyObject *origin_object, const struct shmrt_future_origin *origin, uint64_t token) {
	if (SHMRT_UNLIKELY(public_class == NULL) && shmrt_future_class() == NULL)
		return NULL;
	PyObject *future = public_class->tp_alloc(public_class, 0);
	if (future == NULL)
		return NULL;
	PyObject_GC_UnTrack(future);
	core(future)->origin = origin;
	core(future)->origin_object = Py_XNewRef(origin_object);
	core(future)->token = token;
	return future;
}

int shmrt_future_is_watched(PyObject *future) { return core(future)->watch != NULL; }

int shmrt_future_is_done(PyObject *future) { return is_done(core(future)); }

void shmrt_future_complete(PyObject *future, enum shmrt_outcome outcome, void *payload, PyObject *worker, uint32_t attempts) {
	struct completion completion = {
		.state = STATE_FINISHED, .outcome = outcome, .payload = payload, .worker = worker, .attempts = attempts};
	if (outcome == SHMRT_OUTCOME_CANCELLED) {
		completion.state = STATE_NOTIFIED;
		completion.payload = NULL;
		drop_payload(core(future), payload);
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

/* ---- asking for the value ---- */

/* Waits until another thread has decoded. -1: interrupted, or the decoding asks for its own result. */
static int await_decoder(struct core_future *self) {
	while (self->decoder != 0) {
		if (self->decoder == PyThread_get_thread_ident()) {
			PyErr_SetString(PyExc_RuntimeError, "a result was asked for by the code that decodes this very result");
			return -1;
		}
		/* Read under the interpreter's lock, so a decode that ends from here on changes it: no wake is lost. */
		uint32_t seen = atomic_load_explicit(&decoded, memory_order_relaxed); /* ordered by that lock */
		int result;
		decode_waiters++;
		Py_BEGIN_ALLOW_THREADS
		/* The limit only bounds how late a signal is looked at. */
		result = shmrt_futex_wait(&decoded, seen, INT64_C(50000000));
		Py_END_ALLOW_THREADS
		decode_waiters--;
		(void)result; /* every outcome means: look again */
		if (PyErr_CheckSignals() < 0)
			return -1;
	}
	return 0;
}

/* Makes sure that a finished future's value is an object. Whatever decoding raised is kept as the exception; if that
 * is no Exception (an interrupt), -1 tells the asking thread at once. */
static int need_value(struct core_future *self) {
	if (SHMRT_UNLIKELY(self->decoder != 0) && await_decoder(self) < 0)
		return -1;
	if (self->value != NULL || self->payload == NULL)
		return 0;
	void *payload = self->payload;
	enum shmrt_outcome outcome = self->outcome;
	int result = 0;
	Py_INCREF(self);
	self->decoder = PyThread_get_thread_ident();
	PyObject *origin_object = Py_NewRef(self->origin_object);
	PyObject *value = self->origin->decode(origin_object, payload, outcome);
	PyObject *interrupt = NULL;
	if (value == NULL) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_SystemError, "decoding a result failed without saying why");
		if (!PyErr_ExceptionMatches(PyExc_Exception))
			result = -1;
		value = take_exception();
		outcome = SHMRT_OUTCOME_EXCEPTION;
		interrupt = result < 0 ? Py_NewRef(value) : NULL;
	}
	PyObject *surplus = value;
	if (self->value == NULL) { /* else somebody wrote _result meanwhile */
		self->value = value;
		self->outcome = outcome & 3;
		track_for(self, value);
		surplus = NULL;
	}
	self->payload = NULL;
	self->decoder = 0;
	atomic_fetch_add_explicit(&decoded, 1, memory_order_relaxed); /* ordered by the interpreter's lock */
	if (decode_waiters != 0)
		shmrt_futex_wake(&decoded, INT32_MAX);
	drop_payload(self, payload);
	Py_XDECREF(surplus);
	Py_DECREF(origin_object);
	if (interrupt != NULL) {
		PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
		Py_DECREF(interrupt);
	}
	Py_DECREF(self);
	return result;
}

static PyObject *raise_object(PyObject *exception) {
	if (PyExceptionInstance_Check(exception))
		PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
	else if (PyExceptionClass_Check(exception))
		PyErr_SetNone(exception);
	else
		PyErr_SetString(PyExc_TypeError, "exceptions must derive from BaseException");
	return NULL;
}

/* The answer of result() or exception() for a future that is done. */
static PyObject *answer(struct core_future *self, bool want_exception) {
	if (is_cancelled(self)) {
		PyErr_SetNone(cancelled_error);
		return NULL;
	}
	if (need_value(self) < 0)
		return NULL;
	if (self->value == NULL)
		Py_RETURN_NONE;
	/* Raising or returning may run other threads, and those may write `_result`: hold on to what was found. */
	PyObject *value = Py_NewRef(self->value);
	bool failed = self->outcome == SHMRT_OUTCOME_EXCEPTION;
	if (failed == want_exception)
		return value;
	if (failed)
		raise_object(value);
	Py_DECREF(value);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

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

/* Whether this thread is inside `with future._condition`; the dispatcher could then never complete it. */
static int owns_condition(struct core_future *self) {
	if (self->watch == NULL || self->watch->condition == NULL)
		return 0;
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *owned = PyObject_CallMethodNoArgs(condition, str_is_owned);
	int result = owned == NULL ? 0 : PyObject_IsTrue(owned);
	PyErr_Clear();
	Py_XDECREF(owned);
	Py_DECREF(condition);
	return result > 0;
}

static int64_t remaining_ns(int64_t deadline) {
	if (deadline == INT64_MAX)
		return INT64_MAX;
	int64_t now = now_ns();
	return now < deadline ? deadline - now : 0;
}

static int wait_condition(struct core_future *self, int64_t deadline) {
	PyObject *condition = need_condition(self);
	if (condition == NULL)
		return -1;
	Py_DECREF(condition);
	if (lock(self, &condition) < 0)
		return -1;
	int result = 0;
	while (result == 0 && !is_done(self)) {
		int64_t remaining = remaining_ns(deadline);
		if (remaining == 0)
			break;
		PyObject *limit = remaining == INT64_MAX ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)remaining / 1e9);
		PyObject *woken = limit ? PyObject_CallMethodOneArg(condition, str_wait, limit) : NULL;
		if (woken == NULL)
			result = -1;
		Py_XDECREF(woken);
		Py_XDECREF(limit);
	}
	unlock(condition);
	return result;
}

/* 0 when done; -1 with TimeoutError or whatever interrupted the wait. */
static int wait_done(struct core_future *self, int64_t timeout_ns) {
	int64_t deadline = timeout_ns == INT64_MAX ? INT64_MAX : now_ns() + timeout_ns;
	int result = 0;
	if (self->origin_object == NULL || owns_condition(self)) {
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

/* The one argument of a method, positional or by its name; NULL with TypeError set, or NULL alone if `optional`. */
static PyObject *one_argument(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs,
			      PyObject *kwnames, bool optional) {
	Py_ssize_t total = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
	if (total == 1 && (nargs == 1 || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), name) == 0))
		return args[0];
	if (total == 1)
		PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", method, PyTuple_GET_ITEM(kwnames, 0));
	else if (total != 0 || !optional)
		PyErr_Format(PyExc_TypeError, "%s() takes %s, '%s'; %zd were given", method,
			     optional ? "at most one argument" : "one argument", name, total);
	return NULL;
}

#define ONE_ARGUMENT(method, name, optional) one_argument(method, name, args, nargs, kwnames, optional)

static PyObject *ask(PyObject *future, PyObject *timeout, bool want_exception) {
	struct core_future *self = core(future);
	if (!is_done(self)) {
		int64_t timeout_ns;
		if (parse_timeout(timeout, &timeout_ns) < 0 || wait_done(self, timeout_ns) < 0)
			return NULL;
	}
	return answer(self, want_exception);
}

static PyObject *future_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *timeout = ONE_ARGUMENT("result", "timeout", true);
	return timeout == NULL && PyErr_Occurred() ? NULL : ask(self, timeout, false);
}

static PyObject *future_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *timeout = ONE_ARGUMENT("exception", "timeout", true);
	return timeout == NULL && PyErr_Occurred() ? NULL : ask(self, timeout, true);
}

static PyObject *future_done(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	poll_origin(core(self));
	return PyBool_FromLong(is_done(core(self)));
}

static PyObject *future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	poll_origin(core(self));
	return PyBool_FromLong(is_cancelled(core(self)));
}

static PyObject *future_running(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	poll_origin(self);
	int running = self->state == STATE_RUNNING;
	if (self->state == STATE_PENDING && self->origin_object != NULL) {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		running = self->origin->running(origin_object, self->token) && !is_done(self);
		Py_DECREF(origin_object);
	}
	return PyBool_FromLong(running);
}

static PyObject *future_cancel(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	PyObject *held;
	/* The origin is asked before the condition is taken: it has locks of its own. */
	if (self->state == STATE_PENDING && self->origin_object != NULL && !self->taken_back) {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		if (self->origin->cancel(origin_object, self->token) > 0)
			self->taken_back = 1;
		Py_DECREF(origin_object);
	}
	if (lock(self, &held) < 0)
		return NULL;
	bool mine = self->state == STATE_PENDING && (self->origin_object == NULL || self->taken_back);
	if (mine) /* without an origin the executor that made it notifies the waiters, as the standard ones do */
		settle(self, &(struct completion){.state = self->origin_object == NULL ? STATE_CANCELLED : STATE_NOTIFIED,
						  .outcome = SHMRT_OUTCOME_CANCELLED});
	bool cancelled = is_cancelled(self);
	unlock(held);
	if (mine && run_callbacks(self, true) < 0)
		return NULL;
	return PyBool_FromLong(cancelled);
}

static PyObject *future_kill(PyObject *future, PyObject *ignored) {
	struct core_future *self = core(future);
	poll_origin(self);
	if (is_done(self))
		Py_RETURN_FALSE;
	if (self->origin_object == NULL)
		return future_cancel(future, ignored);
	PyObject *origin_object = Py_NewRef(self->origin_object);
	int ordered = self->origin->kill(origin_object, self->token);
	Py_DECREF(origin_object);
	return PyBool_FromLong(ordered > 0);
}

static PyObject *future_add_done_callback(PyObject *future, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	struct core_future *self = core(future);
	PyObject *callback = ONE_ARGUMENT("add_done_callback", "fn", false);
	PyObject *held;
	if (callback == NULL)
		return NULL;
	if (!is_done(self) && (self->watch == NULL || self->watch->callbacks == NULL)) {
		/* Made before the state is looked at: an allocation may start the collector, and that other code. */
		PyObject *list = PyList_New(0);
		struct watch *watch = list ? need_watch(self) : NULL;
		if (watch == NULL) {
			Py_XDECREF(list);
			return NULL;
		}
		Py_DECREF(keep_first(&watch->callbacks, list));
	}
	if (lock(self, &held) < 0)
		return NULL;
	if (!is_done(self)) {
		int failed = PyList_Append(self->watch->callbacks, callback);
		unlock(held);
		if (failed)
			return NULL;
		tell_watch(self);
		Py_RETURN_NONE;
	}
	unlock(held);
	if (call_callback(future, callback, true) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *future_set_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *value = ONE_ARGUMENT("set_result", "result", false);
	return value ? set_by_hand(core(self), SHMRT_OUTCOME_VALUE, value) : NULL;
}

static PyObject *future_set_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *value = ONE_ARGUMENT("set_exception", "exception", false);
	if (value == NULL)
		return NULL;
	return set_by_hand(core(self), value == Py_None ? SHMRT_OUTCOME_VALUE : SHMRT_OUTCOME_EXCEPTION, value);
}

static PyObject *future_set_running_or_notify_cancel(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	PyObject *held;
	if (lock(self, &held) < 0)
		return NULL;
	PyObject *result = NULL;
	if (self->state == STATE_CANCELLED) {
		self->state = STATE_NOTIFIED;
		tell_waiters(self, "add_cancelled");
		result = Py_NewRef(Py_False);
	} else if (self->state == STATE_PENDING) {
		self->state = STATE_RUNNING;
		result = Py_NewRef(Py_True);
	} else {
		PyObject *logged = PyObject_CallMethod(logger, "critical", "snO", "Future %s in unexpected state: %s",
						       (Py_ssize_t)(intptr_t)self, state_names[self->state]);
		Py_XDECREF(logged);
		PyErr_SetString(PyExc_RuntimeError, "Future in unexpected state");
	}
	unlock(held);
	return result;
}

/* Awaiting means: wrap for the running loop, then await that. */
static PyObject *future_await(PyObject *self) {
	PyObject *asyncio = PyImport_ImportModule("asyncio");
	PyObject *loop = asyncio ? PyObject_CallMethod(asyncio, "get_running_loop", NULL) : NULL;
	PyObject *wrapped = loop ? PyObject_CallMethod(asyncio, "wrap_future", "O", self) : NULL;
	PyObject *iterator = wrapped ? PyObject_CallMethod(wrapped, "__await__", NULL) : NULL;
	Py_XDECREF(wrapped);
	Py_XDECREF(loop);
	Py_XDECREF(asyncio);
	return iterator;
}

static const char *short_name(PyObject *object) {
	const char *name = Py_TYPE(object)->tp_name, *dot = strrchr(name, '.');
	return dot ? dot + 1 : name;
}

static PyObject *future_repr(PyObject *future) {
	struct core_future *self = core(future);
	poll_origin(self);
	if (self->state == STATE_FINISHED) {
		if (need_value(self) < 0)
			return NULL;
		PyObject *value = Py_NewRef(self->value ? self->value : Py_None);
		PyObject *text = PyUnicode_FromFormat("<%s at %p state=finished %s %s>", short_name(future), (void *)self,
						      self->outcome == SHMRT_OUTCOME_EXCEPTION ? "raised" : "returned",
						      short_name(value));
		Py_DECREF(value);
		return text;
	}
	return PyUnicode_FromFormat("<%s at %p state=%s>", short_name(future), (void *)self, state_words[self->state]);
}

/* ---- attributes that the standard library reads and writes ---- */

static int refuse_delete(PyObject *value, const char *name) {
	if (value != NULL)
		return 0;
	PyErr_Format(PyExc_AttributeError, "a future's %s cannot be deleted", name);
	return -1;
}

static PyObject *get_state(PyObject *self, void *Py_UNUSED(closure)) {
	poll_origin(core(self));
	return Py_NewRef(state_names[core(self)->state]);
}

static int set_state(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_state") < 0)
		return -1;
	for (int i = 0; i < STATE_COUNT; i++) {
		int equal = PyObject_RichCompareBool(value, state_names[i], Py_EQ);
		if (equal < 0)
			return -1;
		if (equal) {
			core(self)->state = (uint8_t)i;
			return 0;
		}
	}
	PyErr_Format(PyExc_ValueError, "%R is no state of a future; use the names in concurrent.futures._base", value);
	return -1;
}

static PyObject *get_value(struct core_future *self, bool want_exception) {
	poll_origin(self);
	if (need_value(self) < 0)
		return NULL;
	bool failed = self->outcome == SHMRT_OUTCOME_EXCEPTION;
	return Py_NewRef(self->value != NULL && failed == want_exception ? self->value : Py_None);
}

/* `_result` and `_exception` share one place, where an exception outranks a result, as it does in result(). */
static void put_value(struct core_future *self, PyObject *value, bool exception) {
	bool has_exception = self->value != NULL && self->outcome == SHMRT_OUTCOME_EXCEPTION;
	if (!exception && has_exception)
		return;
	if (exception && value == Py_None && !has_exception)
		return;
	PyObject *old = self->value;
	self->value = Py_NewRef(value);
	self->outcome = exception && value != Py_None ? SHMRT_OUTCOME_EXCEPTION : SHMRT_OUTCOME_VALUE;
	track_for(self, value);
	Py_XDECREF(old);
}

static PyObject *get_result(PyObject *self, void *Py_UNUSED(closure)) { return get_value(core(self), false); }
static PyObject *get_exception(PyObject *self, void *Py_UNUSED(closure)) { return get_value(core(self), true); }

static int set_result(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_result") < 0)
		return -1;
	put_value(core(self), value, false);
	return 0;
}

static int set_exception(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_exception") < 0)
		return -1;
	put_value(core(self), value, true);
	return 0;
}

static PyObject *get_condition(PyObject *self, void *Py_UNUSED(closure)) { return need_condition(core(self)); }

/* Which list: the closure is the offset in struct watch. */
static PyObject *get_list(PyObject *future, void *closure) {
	struct core_future *self = core(future);
	size_t offset = (size_t)(uintptr_t)closure;
	PyObject *made = PyList_New(0);
	struct watch *watch = made ? need_watch(self) : NULL;
	if (watch == NULL) {
		Py_XDECREF(made);
		return NULL;
	}
	PyObject *list = keep_first((PyObject **)((char *)watch + offset), made);
	tell_watch(self);
	return list;
}

static int set_watch_member(PyObject *future, PyObject *value, void *closure) {
	struct core_future *self = core(future);
	size_t offset = (size_t)(uintptr_t)closure;
	if (refuse_delete(value, "condition, waiters or callbacks") < 0)
		return -1;
	if (offset != offsetof(struct watch, condition) && !PyList_Check(value)) {
		PyErr_Format(PyExc_TypeError, "waiters and callbacks of a future are lists, not %s", Py_TYPE(value)->tp_name);
		return -1;
	}
	struct watch *watch = need_watch(self);
	if (watch == NULL)
		return -1;
	PyObject **place = (PyObject **)((char *)watch + offset), *old = *place;
	*place = Py_NewRef(value);
	Py_XDECREF(old);
	tell_watch(self);
	return 0;
}

static PyObject *get_worker(PyObject *self, void *Py_UNUSED(closure)) {
	poll_origin(core(self));
	return Py_NewRef(core(self)->worker ? core(self)->worker : Py_None);
}

static PyObject *get_attempts(PyObject *self, void *Py_UNUSED(closure)) {
	poll_origin(core(self));
	return PyLong_FromUnsignedLong(core(self)->attempts);
}

/* Whoever gets the dict may close a cycle through it. */
static PyObject *get_dict(PyObject *self, void *Py_UNUSED(closure)) {
	PyObject *dict = PyObject_GenericGetDict(self, NULL);
	if (dict != NULL)
		track(core(self));
	return dict;
}

static int set_dict(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	int result = PyObject_GenericSetDict(self, value, NULL);
	if (result == 0)
		track(core(self));
	return result;
}

static int future_setattro(PyObject *self, PyObject *name, PyObject *value) {
	int result = PyObject_GenericSetAttr(self, name, value);
	/* Our own slots start with an underscore and track by themselves. */
	if (result == 0 && value != NULL && !(PyUnicode_GET_LENGTH(name) > 0 && PyUnicode_READ_CHAR(name, 0) == '_' &&
					      PyObject_HasAttr((PyObject *)core_type, name)))
		track(core(self));
	return result;
}

/* ---- life ---- */

static PyObject *future_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
	PyObject *future = type->tp_alloc(type, 0);
	if (future != NULL && type == public_class)
		PyObject_GC_UnTrack(future);
	return future;
}

static int future_init(PyObject *self, PyObject *args, PyObject *kwargs) {
	if (PyTuple_GET_SIZE(args) == 0 && (kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0))
		return 0;
	PyErr_Format(PyExc_TypeError, "%s() takes no arguments", short_name(self));
	return -1;
}

static int future_traverse(PyObject *future, visitproc visit, void *arg) {
	struct core_future *self = core(future);
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->origin_object);
	Py_VISIT(self->value);
	if (self->watch != NULL) {
		Py_VISIT(self->watch->condition);
		Py_VISIT(self->watch->waiters);
		Py_VISIT(self->watch->callbacks);
	}
	return 0;
}

static int future_clear(PyObject *future) {
	struct core_future *self = core(future);
	struct watch *watch = self->watch;
	void *payload = self->payload;
	self->watch = NULL;
	self->payload = NULL;
	drop_payload(self, payload);
	if (watch != NULL) {
		Py_XDECREF(watch->condition);
		Py_XDECREF(watch->waiters);
		Py_XDECREF(watch->callbacks);
		PyMem_Free(watch);
	}
	Py_CLEAR(self->value);
	Py_CLEAR(self->worker);
	Py_CLEAR(self->origin_object);
	return 0;
}

static void future_dealloc(PyObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	future_clear(self);
	type->tp_free(self);
	Py_DECREF(type);
}

#define METHOD(name, flags, doc) {#name, (PyCFunction)(void (*)(void))future_##name, flags, doc}
#define WITH_ARGUMENT (METH_FASTCALL | METH_KEYWORDS)

static PyMethodDef future_methods[] = {
	METHOD(result, WITH_ARGUMENT,
	       "result($self, timeout=None)\n--\n\nThe value, waiting for it at most `timeout` seconds; raises what the task raised."),
	METHOD(exception, WITH_ARGUMENT,
	       "exception($self, timeout=None)\n--\n\nThe exception that the task raised, or None; waits like result()."),
	METHOD(done, METH_NOARGS, "done($self)\n--\n\nTrue once it has a result, an exception, or was cancelled."),
	METHOD(cancelled, METH_NOARGS, "cancelled($self)\n--\n\nTrue if it was cancelled."),
	METHOD(running, METH_NOARGS, "running($self)\n--\n\nTrue while a worker executes the task."),
	METHOD(cancel, METH_NOARGS, "cancel($self)\n--\n\nTake the task back if no worker has begun it; True if that worked."),
	METHOD(kill, METH_NOARGS,
	       "kill($self)\n--\n\nEnd the task even if it runs, by killing its worker; the future ends in CancelledError. "
	       "False if it was done already."),
	METHOD(add_done_callback, WITH_ARGUMENT,
	       "add_done_callback($self, fn)\n--\n\nCall fn(future) once it is done, at once if it is."),
	METHOD(set_result, WITH_ARGUMENT, "set_result($self, result)\n--\n\nFor executors and tests: complete it with a value."),
	METHOD(set_exception, WITH_ARGUMENT,
	       "set_exception($self, exception)\n--\n\nFor executors and tests: complete it with an exception."),
	METHOD(set_running_or_notify_cancel, METH_NOARGS,
	       "set_running_or_notify_cancel($self)\n--\n\nFor executors: mark it running; False if it was cancelled."),
	{0},
};

#define MEMBER(member) ((void *)offsetof(struct watch, member))

static PyGetSetDef future_getset[] = {
	{"_state", get_state, set_state, NULL, NULL},
	{"_result", get_result, set_result, NULL, NULL},
	{"_exception", get_exception, set_exception, NULL, NULL},
	{"_condition", get_condition, set_watch_member, NULL, MEMBER(condition)},
	{"_waiters", get_list, set_watch_member, NULL, MEMBER(waiters)},
	{"_done_callbacks", get_list, set_watch_member, NULL, MEMBER(callbacks)},
	{"worker", get_worker, NULL, "The name of the worker that completed the task, or None.", NULL},
	{"attempts", get_attempts, NULL, "How often the task was begun.", NULL},
	{"__dict__", get_dict, set_dict, NULL, NULL},
	{0},
};

static PyType_Slot core_slots[] = {
	{Py_tp_new, future_new},
	{Py_tp_init, future_init},
	{Py_tp_dealloc, future_dealloc},
	{Py_tp_traverse, future_traverse},
	{Py_tp_clear, future_clear},
	{Py_tp_repr, future_repr},
	{Py_tp_setattro, future_setattro},
	{Py_tp_methods, future_methods},
	{Py_tp_getset, future_getset},
	{Py_am_await, future_await},
	{Py_tp_doc, "The C half of shmrt's Future."},
	{0},
};

static PyType_Spec core_spec = {
	.name = "shmrt._native.CoreFuture",
	.basicsize = sizeof(struct core_future),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = core_slots,
};

/* ---- the public class ---- */

static int fetch(PyObject *module, const char *name, PyObject **place) {
	PyObject *found = PyObject_GetAttrString(module, name);
	if (found == NULL)
		return -1;
	PyObject *old = *place;
	*place = found;
	Py_XDECREF(old);
	return 0;
}

static int fetch_words(PyObject *base, PyObject *threading) {
	static const char *const names[STATE_COUNT] = {"PENDING", "RUNNING", "CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"};
	for (int i = 0; i < STATE_COUNT; i++)
		if (fetch(base, names[i], &state_names[i]) < 0)
			return -1;
	if (fetch(base, "CancelledError", &cancelled_error) < 0 || fetch(base, "InvalidStateError", &invalid_state_error) < 0)
		return -1;
	return fetch(base, "LOGGER", &logger) < 0 || fetch(threading, "Condition", &condition_type) < 0 ? -1 : 0;
}

/* Borrowed. Imports may run other threads; the first class that is ready stays the only one. */
PyObject *shmrt_future_class(void) {
	if (public_class != NULL)
		return (PyObject *)public_class;
	PyObject *made = NULL, *standard = NULL, *dict = NULL;
	PyObject *base = PyImport_ImportModule("concurrent.futures._base");
	PyObject *threading = base ? PyImport_ImportModule("threading") : NULL;
	if (threading == NULL || (public_class == NULL && fetch_words(base, threading) < 0) || fetch(base, "Future", &standard) < 0)
		goto out;
	dict = PyObject_GetAttrString((PyObject *)core_type, "__dict__");
	PyObject *descriptor = dict ? PyMapping_GetItemString(dict, "__dict__") : NULL;
	if (descriptor == NULL)
		goto out;
	made = PyObject_CallFunction((PyObject *)&PyType_Type, "s(OO){s()sssssN}", "Future", core_type, standard, "__slots__",
				     "__module__", "shmrt", "__doc__",
				     "The result of a task: a concurrent.futures.Future with kill(), worker, attempts and await.",
				     "__dict__", descriptor);
	if (made != NULL && public_class == NULL)
		public_class = (PyTypeObject *)Py_NewRef(made);
out:
	Py_XDECREF(made);
	Py_XDECREF(dict);
	Py_XDECREF(standard);
	Py_XDECREF(threading);
	Py_XDECREF(base);
	return made == NULL ? NULL : (PyObject *)public_class;
}

static PyObject *module_future_class(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
	return Py_XNewRef(shmrt_future_class());
}

static PyMethodDef module_methods[] = {
	{"future_class", module_future_class, METH_NOARGS,
	 "future_class()\n--\n\nThe class of all futures; made, and concurrent.futures imported, by the first call."},
	{0},
};

int shmrt_py_add_future(PyObject *module) {
	if (core_type == NULL) {
		core_type = (PyTypeObject *)PyType_FromSpec(&core_spec);
		if (core_type == NULL)
			return -1;
		str_acquire = PyUnicode_InternFromString("acquire");
		str_release = PyUnicode_InternFromString("release");
		str_wait = PyUnicode_InternFromString("wait");
		str_notify_all = PyUnicode_InternFromString("notify_all");
		str_is_owned = PyUnicode_InternFromString("_is_owned");
		if (!str_acquire || !str_release || !str_wait || !str_notify_all || !str_is_owned)
			return -1;
	}
	return PyModule_AddFunctions(module, module_methods);
}
