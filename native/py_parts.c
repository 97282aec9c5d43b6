/* py_parts.c -- whether a function by value is what it was when it was pickled; asked for each task that is submitted.
 *
 * Its parts are what shmrt.process.functions found: ((function, code, defaults), ...), ((globals, name, value), ...) and
 * ((cell, value), ...). Each must still be the same object in the same place, and no function may have got attributes or
 * keyword-only defaults, which are mutable.
 */
#include "py_parts.h"

static bool is_row(PyObject *row, Py_ssize_t size) { return PyTuple_CheckExact(row) && PyTuple_GET_SIZE(row) == size; }

bool shmrt_py_is_parts(PyObject *parts) {
	if (!is_row(parts, 3))
		return false;
	for (Py_ssize_t kind = 0; kind < 3; kind++) {
		PyObject *rows = PyTuple_GET_ITEM(parts, kind);
		if (!PyTuple_CheckExact(rows))
			return false;
		for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(rows); i++) {
			PyObject *row = PyTuple_GET_ITEM(rows, i);
			if (!is_row(row, kind == 2 ? 2 : 3))
				return false;
			PyObject *first = PyTuple_GET_ITEM(row, 0);
			if (!(kind == 0 ? PyFunction_Check(first) : kind == 1 ? PyDict_Check(first) : PyCell_Check(first)))
				return false;
		}
	}
	return true;
}

static bool is_function_same(PyObject *row) {
	PyFunctionObject *function = (PyFunctionObject *)PyTuple_GET_ITEM(row, 0);
	PyObject *defaults = function->func_defaults ? function->func_defaults : Py_None;
	PyObject *named = function->func_kwdefaults, *attributes = function->func_dict;
	return function->func_code == PyTuple_GET_ITEM(row, 1) && defaults == PyTuple_GET_ITEM(row, 2) &&
	       (named == NULL || named == Py_None || PyDict_GET_SIZE(named) == 0) &&
	       (attributes == NULL || PyDict_GET_SIZE(attributes) == 0);
}

int shmrt_py_parts_are_same(PyObject *parts) {
	PyObject *functions = PyTuple_GET_ITEM(parts, 0), *names = PyTuple_GET_ITEM(parts, 1), *cells = PyTuple_GET_ITEM(parts, 2);
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(functions); i++)
		if (!is_function_same(PyTuple_GET_ITEM(functions, i)))
			return 0;
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(cells); i++) {
		PyObject *row = PyTuple_GET_ITEM(cells, i);
		if (PyCell_GET(PyTuple_GET_ITEM(row, 0)) != PyTuple_GET_ITEM(row, 1)) /* NULL: emptied */
			return 0;
	}
	int same = 1;
	Py_INCREF(parts); /* a key of those globals may run code of its own when it is compared */
	for (Py_ssize_t i = 0; same == 1 && i < PyTuple_GET_SIZE(names); i++) {
		PyObject *row = PyTuple_GET_ITEM(names, i);
		PyObject *found = PyDict_GetItemWithError(PyTuple_GET_ITEM(row, 0), PyTuple_GET_ITEM(row, 1));
		if (found == NULL && PyErr_Occurred())
			same = -1;
		else
			same = (found ? found : Py_None) == PyTuple_GET_ITEM(row, 2); /* a builtin, maybe: None */
	}
	Py_DECREF(parts);
	return same;
}

/* parts_are_same(parts) */
static PyObject *parts_are_same(PyObject *Py_UNUSED(module), PyObject *parts) {
	if (!shmrt_py_is_parts(parts))
		return PyErr_Format(PyExc_TypeError, "parts are three tuples of rows, not %R", parts);
	int same = shmrt_py_parts_are_same(parts);
	return same < 0 ? NULL : PyBool_FromLong(same);
}

static PyMethodDef methods[] = {
	{"parts_are_same", parts_are_same, METH_O, "Whether a function by value is what it was: see shmrt.process.functions."},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_parts(PyObject *module) { return PyModule_AddFunctions(module, methods); }
