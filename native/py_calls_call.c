/* py_calls_call.c -- call: a request into a mailbox, then the wait for its reply, in one.
 *
 * The way of a call slot: claimed (IDLE), begun (WAITING), and in every case IDLE again or abandoned when this returns. The
 * answer wins over everything that can happen beside it: who gives up looks once more.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"
#include "py_turn.h"

struct exchange {
	CallsObject *calls;
	MailboxObject *mailbox;
	struct shmrt_py_outgoing outgoing;
	struct deadline deadline;
	uint32_t index, generation;
	bool sent;
};

/* Without the GIL. OK: the call has an end; else why there is none. */
static int put_and_wait(struct exchange *exchange) {
	if (!exchange->sent) {
		int outcome = shmrt_mailbox_put(&exchange->mailbox->mailbox, &exchange->outgoing.out, shmrt_py_time_left(&exchange->deadline));
		if (outcome != SHMRT_OK)
			return outcome;
		exchange->sent = true;
	}
	return shmrt_call_wait(&exchange->calls->calls, exchange->index, exchange->generation, exchange->deadline.until_ns,
			       &exchange->calls->spin_ns);
}

/* How a call without an answer ended, or -1 with an exception. */
static int status_of(struct exchange *exchange, int outcome) {
	switch (outcome) {
	case SHMRT_TIMEOUT:
		if (exchange->sent)
			return SHMRT_CALL_TIMEOUT;
		/* fall through */
	case SHMRT_FULL:
		shmrt_py_mailbox_refused(exchange->mailbox, outcome);
		return SHMRT_CALL_OVERLOADED;
	case SHMRT_INTERRUPTED: /* the mutex of the mailbox was not to be had in time */
		return SHMRT_CALL_TIMEOUT;
	case SHMRT_CLOSED:
		return SHMRT_CALL_CLOSED;
	default:
		shmrt_py_mailbox_raise(exchange->mailbox, outcome);
		return -1;
	}
}

static PyObject *finish(struct exchange *exchange, int outcome) {
	CallsObject *calls = exchange->calls;
	int status = SHMRT_CALL_REPLY;
	PyObject *value = NULL;
	if (outcome != SHMRT_OK) {
		int given_up = shmrt_call_give_up(&calls->calls, exchange->index, exchange->generation);
		if (given_up == SHMRT_OK)
			shmrt_py_calls_give_back(calls, exchange->index);
		if (given_up != SHMRT_EMPTY) {
			status = status_of(exchange, outcome);
			value = status < 0 ? NULL : Py_NewRef(Py_None);
		}
	}
	if (value == NULL && status >= 0)
		value = shmrt_py_calls_read(calls, exchange->index, exchange->generation, &status);
	if (value == NULL)
		return NULL;
	PyObject *pair = PyTuple_New(2), *number = PyLong_FromLong(status);
	if (pair == NULL || number == NULL) {
		Py_XDECREF(pair);
		Py_XDECREF(number);
		Py_DECREF(value);
		return NULL;
	}
	PyTuple_SET_ITEM(pair, 0, number);
	PyTuple_SET_ITEM(pair, 1, value);
	return pair;
}

PyObject *shmrt_py_calls_call(CallsObject *self, PyObject *const *args, Py_ssize_t nargs) {
	struct exchange exchange = {.calls = self};
	int64_t timeout_ns;
	if (nargs != 6) {
		PyErr_SetString(PyExc_TypeError, "call(mailbox, target, name, args, kwargs, timeout)");
		return NULL;
	}
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || (exchange.mailbox = shmrt_py_mailbox_enter(args[0])) == NULL)
		return NULL;
	uint64_t target = PyLong_AsUnsignedLongLong(args[1]);
	if ((target == UINT64_MAX && PyErr_Occurred()) || shmrt_py_timeout(args[5], &timeout_ns) < 0)
		return NULL;
	shmrt_py_mailbox_bind(exchange.mailbox, self);
	/* Without a limit of its own it has none: that was asked for. */
	exchange.deadline =
		(struct deadline){timeout_ns, timeout_ns == SHMRT_FOREVER ? 0 : shmrt_turn_limit(shmrt_now_ns() + (uint64_t)timeout_ns)};
	if (SHMRT_UNLIKELY(exchange.deadline.until_ns != 0 && shmrt_turn.passes_on && shmrt_py_time_left(&exchange.deadline) == 0))
		return Py_BuildValue("(iO)", SHMRT_CALL_TIMEOUT, Py_None); /* of no use to whoever waits for the task that calls */
	if (shmrt_py_outgoing_make(&exchange.outgoing, exchange.mailbox, SHMRT_MAIL_CALL, args[2], args[3], args[4], &exchange.deadline) < 0)
		return NULL;
	if (shmrt_py_calls_claim(self, &exchange.index) < 0) {
		shmrt_py_outgoing_end(&exchange.outgoing, false);
		return NULL;
	}
	int outcome = shmrt_call_begin(&self->calls, exchange.index, target, exchange.deadline.until_ns, exchange.index, &exchange.generation);
	if (outcome != SHMRT_OK) {
		shmrt_py_outgoing_end(&exchange.outgoing, false);
		return shmrt_raise("SegmentError", "corrupt call slot %u: it changed while it was this process's", exchange.index);
	}
	self->begun++;
	shmrt_py_outgoing_address(&exchange.outgoing, exchange.index, exchange.generation);
	Py_INCREF(exchange.mailbox); /* another thread may drop the last reference meanwhile */
	bool interrupted = false;
	for (;;) {
		Py_BEGIN_ALLOW_THREADS
		outcome = put_and_wait(&exchange);
		Py_END_ALLOW_THREADS
		if (SHMRT_LIKELY(outcome != SHMRT_INTERRUPTED))
			break;
		interrupted = PyErr_CheckSignals() < 0;
		if (interrupted || shmrt_py_time_left(&exchange.deadline) <= 0)
			break;
	}
	shmrt_py_outgoing_end(&exchange.outgoing, exchange.sent);
	PyObject *pair = NULL;
	if (SHMRT_UNLIKELY(interrupted)) {
		PyObject *type, *value, *traceback;
		PyErr_Fetch(&type, &value, &traceback);
		shmrt_py_calls_cancel(self, exchange.index, exchange.generation);
		PyErr_Restore(type, value, traceback);
	} else {
		pair = finish(&exchange, outcome);
		if (shmrt_py_mailbox_look(exchange.mailbox) < 0)
			Py_CLEAR(pair);
	}
	Py_DECREF(exchange.mailbox);
	return pair;
}
