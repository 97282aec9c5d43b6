/* py_breaker_call.c -- the ways to put a breaker around something: a call, a with block, a ticket that is carried by hand. */
#include "py_breaker.h"

/* The with blocks that this thread is in, innermost last. Tasks of an event loop interleave theirs, so where a loop runs they are kept
 * in a context variable instead, as (breaker, ticket, the one before); that costs five times as much. */
#define BLOCKS_MAX 64
static _Thread_local struct {
	BreakerObject *breaker; /* compared only: the with statement keeps it */
	struct shmrt_py_ticket ticket;
} blocks[BLOCKS_MAX];
static _Thread_local int block_count;

static PyObject *context_blocks, *follow_name, *asyncio_name;
static PyObject *running_loop; /* _asyncio._get_running_loop, once somebody has imported it */

int shmrt_py_breaker_prepare(void) {
	context_blocks = PyContextVar_New("shmrt_breakers", NULL);
	follow_name = PyUnicode_InternFromString("_follow");
	asyncio_name = PyUnicode_InternFromString("_asyncio");
	return context_blocks && follow_name && asyncio_name ? 0 : -1;
}

/* -1: an exception is set. */
static int loop_is_running(void) {
	if (SHMRT_LIKELY(running_loop == NULL)) {
		PyObject *module = PyImport_GetModule(asyncio_name);
		if (SHMRT_LIKELY(module == NULL))
			return PyErr_Occurred() ? -1 : 0;
		running_loop = PyObject_GetAttrString(module, "_get_running_loop");
		Py_DECREF(module);
		if (running_loop == NULL)
			return -1;
	}
	PyObject *loop = PyObject_CallNoArgs(running_loop);
	Py_XDECREF(loop);
	return loop == NULL ? -1 : loop != Py_None;
}

static PyObject *pack(const struct shmrt_py_ticket *ticket) {
	return Py_BuildValue("(IIIK)", ticket->admission.era, ticket->admission.trial, ticket->admission.ticket,
			     (unsigned long long)ticket->start_ns);
}

static int unpack(PyObject *object, struct shmrt_py_ticket *ticket) {
	unsigned long long start;
	if (!PyTuple_Check(object)) {
		PyErr_Format(PyExc_TypeError, "a ticket is what _begin returned, not %R", object);
		return -1;
	}
	if (!PyArg_ParseTuple(object, "IIIK;a ticket is what _begin returned", &ticket->admission.era, &ticket->admission.trial,
			      &ticket->admission.ticket, &start))
		return -1;
	ticket->start_ns = start;
	return 0;
}

/* ---- a call ------------------------------------------------------------------------------------- */

PyObject *shmrt_py_breaker_around(PyObject *guard, PyObject *fn, PyObject *const *args, size_t nargsf, PyObject *names) {
	BreakerObject *self = (BreakerObject *)guard;
	struct shmrt_py_ticket ticket;
	if (shmrt_py_breaker_admit(self, &ticket) < 0)
		return NULL;
	PyObject *value = PyObject_Vectorcall(fn, args, nargsf, names);
	if (SHMRT_UNLIKELY(value == NULL)) {
		(void)shmrt_py_breaker_settle_error(self, &ticket);
		return NULL;
	}
	if (SHMRT_UNLIKELY(PyCoro_CheckExact(value) || PyGen_CheckExact(value) || PyAsyncGen_CheckExact(value))) {
		/* It has not run yet: it is told of when it has, and gives its ticket back if nobody lets it. */
		PyObject *packed = pack(&ticket);
		PyObject *followed = packed ? PyObject_CallMethodObjArgs(guard, follow_name, packed, value, NULL) : NULL;
		Py_XDECREF(packed);
		Py_DECREF(value);
		return followed;
	}
	if (shmrt_py_breaker_settle_value(self, &ticket, value) < 0)
		Py_CLEAR(value);
	return value;
}

/* ---- a block ------------------------------------------------------------------------------------ */

static PyObject *enter_in_context(BreakerObject *self, const struct shmrt_py_ticket *ticket) {
	PyObject *before = NULL, *token = NULL, *packed = pack(ticket);
	if (packed != NULL && PyContextVar_Get(context_blocks, Py_None, &before) == 0) {
		PyObject *block = PyTuple_Pack(3, (PyObject *)self, packed, before);
		token = block ? PyContextVar_Set(context_blocks, block) : NULL;
		Py_XDECREF(block);
		Py_DECREF(before);
	}
	Py_XDECREF(packed);
	Py_XDECREF(token);
	return token ? Py_NewRef((PyObject *)self) : NULL;
}

PyObject *shmrt_py_breaker_enter(BreakerObject *self, PyObject *unused) {
	(void)unused;
	struct shmrt_py_ticket ticket;
	if (shmrt_py_breaker_admit(self, &ticket) < 0)
		return NULL;
	int in_loop = loop_is_running();
	if (in_loop < 0)
		return NULL;
	if (in_loop || block_count == BLOCKS_MAX)
		return enter_in_context(self, &ticket);
	blocks[block_count].breaker = self;
	blocks[block_count++].ticket = ticket;
	return Py_NewRef((PyObject *)self);
}

/* The innermost block of this breaker in `block` and those before it, taken out; a new reference to what is left, or NULL. */
static PyObject *take_out(PyObject *block, PyObject *self, PyObject **packed, int depth) {
	if (!PyTuple_Check(block) || PyTuple_GET_SIZE(block) != 3 || depth > 1000)
		return Py_NewRef(block);
	PyObject *before = PyTuple_GET_ITEM(block, 2);
	if (PyTuple_GET_ITEM(block, 0) == self) {
		*packed = Py_NewRef(PyTuple_GET_ITEM(block, 1));
		return Py_NewRef(before);
	}
	PyObject *rest = take_out(before, self, packed, depth + 1);
	PyObject *again = rest ? PyTuple_Pack(3, PyTuple_GET_ITEM(block, 0), PyTuple_GET_ITEM(block, 1), rest) : NULL;
	Py_XDECREF(rest);
	return again;
}

/* 1: *ticket is that of the innermost block; 0: there is none; -1: an exception. */
static int leave_in_context(BreakerObject *self, struct shmrt_py_ticket *ticket) {
	PyObject *block = NULL, *packed = NULL;
	if (PyContextVar_Get(context_blocks, Py_None, &block) < 0)
		return -1;
	PyObject *rest = take_out(block, (PyObject *)self, &packed, 0);
	PyObject *token = rest && packed ? PyContextVar_Set(context_blocks, rest) : NULL;
	int found = packed == NULL ? 0 : token == NULL ? -1 : unpack(packed, ticket) < 0 ? -1 : 1;
	Py_XDECREF(token);
	Py_XDECREF(packed);
	Py_XDECREF(rest);
	Py_DECREF(block);
	return PyErr_Occurred() ? -1 : found;
}

static bool leave_in_thread(BreakerObject *self, struct shmrt_py_ticket *ticket) {
	for (int i = block_count; i-- > 0;)
		if (blocks[i].breaker == self) {
			*ticket = blocks[i].ticket;
			for (block_count--; i < block_count; i++) /* left out of order */
				blocks[i] = blocks[i + 1];
			return true;
		}
	return false;
}

PyObject *shmrt_py_breaker_exit(BreakerObject *self, PyObject *const *args, Py_ssize_t count) {
	struct shmrt_py_ticket ticket;
	if (count != 3)
		return PyErr_Format(PyExc_TypeError, "__exit__(type, value, traceback)");
	if (shmrt_py_guard_is_made(&self->base) < 0)
		return NULL;
	int found = loop_is_running();
	if (found == 0)
		found = leave_in_thread(self, &ticket) ? 1 : leave_in_context(self, &ticket);
	else if (found > 0)
		found = leave_in_context(self, &ticket);
	if (found < 0)
		return NULL;
	if (found == 0) { /* left elsewhere than it was entered: a trial is given up when its time is over */
		uint64_t gate = shmrt_breaker_gate((struct shmrt_breaker *)(void *)self->base.guard);
		ticket = (struct shmrt_py_ticket){.admission = {.era = shmrt_gate_era(gate)}};
	}
	if (args[1] == Py_None || !PyExceptionInstance_Check(args[1])) {
		if (shmrt_py_breaker_settle(self, &ticket, SHMRT_VERDICT_SUCCESS, -1) < 0)
			return NULL;
		Py_RETURN_FALSE;
	}
	shmrt_give_exception(Py_NewRef(args[1]));
	if (shmrt_py_breaker_settle_error(self, &ticket) < 0)
		return NULL;
	PyErr_Clear(); /* the with statement raises it again */
	Py_RETURN_FALSE;
}

/* ---- by hand ------------------------------------------------------------------------------------ */

PyObject *shmrt_py_breaker_begin(BreakerObject *self, PyObject *unused) {
	(void)unused;
	struct shmrt_py_ticket ticket = {0};
	return shmrt_py_breaker_admit(self, &ticket) < 0 ? NULL : pack(&ticket);
}

PyObject *shmrt_py_breaker_end(BreakerObject *self, PyObject *const *args, Py_ssize_t count) {
	struct shmrt_py_ticket ticket;
	if (count != 3)
		return PyErr_Format(PyExc_TypeError, "_end(ticket, exception or None, value)");
	if (unpack(args[0], &ticket) < 0)
		return NULL;
	if (args[1] == Py_None) {
		if (shmrt_py_breaker_settle_value(self, &ticket, args[2]) < 0)
			return NULL;
		Py_RETURN_NONE;
	}
	if (!PyExceptionInstance_Check(args[1]))
		return PyErr_Format(PyExc_TypeError, "an exception, not %R", args[1]);
	shmrt_give_exception(Py_NewRef(args[1]));
	if (shmrt_py_breaker_settle_error(self, &ticket) < 0)
		return NULL;
	PyErr_Clear();
	Py_RETURN_NONE;
}
