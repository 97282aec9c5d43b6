/* py_ring_messages.c -- the traffic of RingCore as Python sees it: arguments, and the table of methods.
 *
 * A `put(obj)` or `get()` should not pay for arguments that it does not have, so they are read by hand from the vector
 * that the interpreter passes. The methods are in py_ring_put.c, py_ring_get.c and py_ring_lease.c.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

#include <math.h>

int shmrt_py_timeout(PyObject *timeout, int64_t *timeout_ns) {
	if (timeout == NULL || timeout == Py_None) {
		*timeout_ns = SHMRT_FOREVER;
		return 0;
	}
	if (PyBool_Check(timeout) || !(PyFloat_Check(timeout) || PyIndex_Check(timeout))) {
		PyErr_Format(PyExc_TypeError, "timeout must be seconds or None, not %R", timeout);
		return -1;
	}
	double seconds = PyFloat_AsDouble(timeout);
	if (seconds == -1.0 && PyErr_Occurred()) {
		if (!PyErr_ExceptionMatches(PyExc_OverflowError))
			return -1;
		PyErr_Clear(); /* an int beyond every float: for ever, or not a time at all */
		PyObject *zero = PyLong_FromLong(0);
		int negative = zero ? PyObject_RichCompareBool(timeout, zero, Py_LT) : -1;
		Py_XDECREF(zero);
		if (negative < 0)
			return -1;
		seconds = negative ? -INFINITY : INFINITY;
	}
	if (isnan(seconds) || seconds < 0) {
		PyErr_Format(PyExc_ValueError, "timeout=%R must be at least 0 seconds, or None", timeout);
		return -1;
	}
	*timeout_ns = seconds > 9e9 ? SHMRT_FOREVER : (int64_t)(seconds * 1e9);
	return 0;
}

/* (first, timeout=None) or (timeout=None), positional or by name. */
int shmrt_py_ring_parse(const char *function, const char *first, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
			PyObject **value, int64_t *timeout_ns) {
	PyObject *timeout = NULL;
	Py_ssize_t position = 0, most = first ? 2 : 1;
	if (SHMRT_UNLIKELY(nargs > most)) {
		PyErr_Format(PyExc_TypeError, "%s() takes at most %zd arguments, not %zd", function, most, nargs);
		return -1;
	}
	if (first != NULL && position < nargs)
		*value = args[position++];
	if (position < nargs)
		timeout = args[position];
	for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
		PyObject *name = PyTuple_GET_ITEM(kwnames, i);
		if (timeout == NULL && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
			timeout = args[nargs + i];
		} else if (first != NULL && *value == NULL && PyUnicode_CompareWithASCIIString(name, first) == 0) {
			*value = args[nargs + i];
		} else {
			PyErr_Format(PyExc_TypeError, "%s() got an unexpected argument %R", function, name);
			return -1;
		}
	}
	if (SHMRT_UNLIKELY(first != NULL && *value == NULL)) {
		PyErr_Format(PyExc_TypeError, "%s() needs the argument '%s'", function, first);
		return -1;
	}
	return shmrt_py_timeout(timeout, timeout_ns);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL | METH_KEYWORDS

PyMethodDef shmrt_py_ring_messages[] = {
	{"put", FAST(shmrt_py_ring_put), "put(obj, timeout=None): returns when it is in"},
	{"put_nowait", (PyCFunction)shmrt_py_ring_put_nowait, METH_O, "put(obj, timeout=0)"},
	{"put_many", FAST(shmrt_py_ring_put_many), "put_many(objs, timeout=None) -> how many are in"},
	{"get", FAST(shmrt_py_ring_get), "get(timeout=None) -> the oldest object"},
	{"get_nowait", (PyCFunction)shmrt_py_ring_get_nowait, METH_NOARGS, "get(timeout=0)"},
	{"get_many", FAST(shmrt_py_ring_get_many), "get_many(max_items, timeout=None) -> list; waits for the first one only"},
	{"_lease_take", (PyCFunction)shmrt_py_ring_lease_take, METH_O, "for Ring.lease"},
	{"_lease_end", (PyCFunction)shmrt_py_ring_lease_end, METH_VARARGS, "for Ring.lease"},
	{0},
};
