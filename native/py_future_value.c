/* py_future_value.c -- from an undecoded payload to the value of a future, once.
 *
 * A result arrives as an undecoded payload. Whoever asks first decodes it, alone: decoding moves the blocks of a
 * message to their new owner, so it cannot be done twice. Others wait on `decoded`, a word of this process that counts
 * finished decodes. A failing decode becomes the future's exception; user code can only hurt the thread that asked.
 */
#include "py_future_internal.h"

#include "ops.h"

static _Atomic uint32_t decoded; /* finished decodes of this process; those who wait for one sleep on it */
static uint32_t decode_waiters;  /* guarded by the interpreter's lock */

void shmrt__future_drop_payload(struct core_future *self, void *payload) {
	PyObject *type, *value, *traceback;
	if (payload == NULL || self->origin == NULL || self->origin_object == NULL)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->drop(origin_object, payload);
	Py_DECREF(origin_object);
	PyErr_Restore(type, value, traceback);
}

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
int shmrt__future_need_value(struct core_future *self) {
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
		value = shmrt_take_exception();
		outcome = SHMRT_OUTCOME_EXCEPTION;
		interrupt = result < 0 ? Py_NewRef(value) : NULL;
	}
	PyObject *surplus = value;
	if (self->value == NULL) { /* else somebody wrote _result meanwhile */
		self->value = value;
		self->outcome = outcome & 3;
		shmrt__future_track_for(self, value);
		surplus = NULL;
	}
	self->payload = NULL;
	self->decoder = 0;
	atomic_fetch_add_explicit(&decoded, 1, memory_order_relaxed); /* ordered by the interpreter's lock */
	if (decode_waiters != 0)
		shmrt_futex_wake(&decoded, INT32_MAX);
	shmrt__future_drop_payload(self, payload);
	Py_XDECREF(surplus);
	Py_DECREF(origin_object);
	if (interrupt != NULL) {
		PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
		Py_DECREF(interrupt);
	}
	Py_DECREF(self);
	return result;
}

/* ---- the answer ---- */

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
PyObject *shmrt__future_answer(struct core_future *self, bool want_exception) {
	if (is_cancelled(self)) {
		PyErr_SetNone(shmrt__future.cancelled_error);
		return NULL;
	}
	if (shmrt__future_need_value(self) < 0)
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
