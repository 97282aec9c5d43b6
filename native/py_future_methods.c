/* py_future_methods.c -- the methods of a future that neither wait nor change it: what it is at the moment, and await.
 *
 * Each lets the origin deliver first what already arrived, so that a program that only asks `done()` gets on.
 */
#include "py_future_internal.h"

static const char *const state_words[STATE_COUNT] = {"pending", "running", "cancelled", "cancelled", "finished"};

/* ---- arguments ---- */

/* The one argument of a method, positional or by its name; NULL with TypeError set, or NULL alone if `optional`. */
PyObject *shmrt__future_one_argument(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs,
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

/* ---- what it is at the moment ---- */

PyObject *shmrt__future_done(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	shmrt__future_poll(core(self));
	return PyBool_FromLong(is_done(core(self)));
}

PyObject *shmrt__future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	shmrt__future_poll(core(self));
	return PyBool_FromLong(is_cancelled(core(self)));
}

PyObject *shmrt__future_running(PyObject *future, PyObject *Py_UNUSED(ignored)) {
	struct core_future *self = core(future);
	shmrt__future_poll(self);
	int running = self->state == STATE_RUNNING;
	if (self->state == STATE_PENDING && self->origin_object != NULL) {
		PyObject *origin_object = Py_NewRef(self->origin_object);
		running = self->origin->running(origin_object, self->token) && !is_done(self);
		Py_DECREF(origin_object);
	}
	return PyBool_FromLong(running);
}

const char *shmrt__future_short_name(PyObject *object) {
	const char *name = Py_TYPE(object)->tp_name, *dot = strrchr(name, '.');
	return dot ? dot + 1 : name;
}

PyObject *shmrt__future_repr(PyObject *future) {
	struct core_future *self = core(future);
	shmrt__future_poll(self);
	if (self->state == STATE_FINISHED) {
		if (shmrt__future_need_value(self) < 0)
			return NULL;
		PyObject *value = Py_NewRef(self->value ? self->value : Py_None);
		const char *verb = self->outcome == SHMRT_OUTCOME_EXCEPTION ? "raised" : "returned";
		PyObject *text = PyUnicode_FromFormat("<%s at %p state=finished %s %s>", shmrt__future_short_name(future),
						      (void *)self, verb, shmrt__future_short_name(value));
		Py_DECREF(value);
		return text;
	}
	return PyUnicode_FromFormat("<%s at %p state=%s>", shmrt__future_short_name(future), (void *)self,
				    state_words[self->state]);
}

/* ---- asyncio ---- */

/* Awaiting means: wrap for the running loop, then await that. */
PyObject *shmrt__future_await(PyObject *self) {
	PyObject *asyncio = PyImport_ImportModule("asyncio");
	PyObject *loop = asyncio ? PyObject_CallMethod(asyncio, "get_running_loop", NULL) : NULL;
	PyObject *wrapped = loop ? PyObject_CallMethod(asyncio, "wrap_future", "O", self) : NULL;
	PyObject *iterator = wrapped ? PyObject_CallMethod(wrapped, "__await__", NULL) : NULL;
	Py_XDECREF(wrapped);
	Py_XDECREF(loop);
	Py_XDECREF(asyncio);
	return iterator;
}
