/* py_errors.c -- raises the classes of shmrt.errors from C, and catches whatever was raised.
 *
 * The module shmrt.errors is imported when first needed: most programs never raise one of its classes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_message.h"

static PyObject *error_class(const char *name) {
	PyObject *module = PyImport_ImportModule("shmrt.errors");
	if (module == NULL)
		return NULL;
	PyObject *class = PyObject_GetAttrString(module, name);
	Py_DECREF(module);
	return class;
}

PyObject *shmrt_raise(const char *error_name, const char *format, ...) {
	va_list arguments;
	va_start(arguments, format);
	PyObject *text = PyUnicode_FromFormatV(format, arguments);
	va_end(arguments);
	PyObject *class = text ? error_class(error_name) : NULL;
	if (class != NULL)
		PyErr_SetObject(class, text);
	Py_XDECREF(class);
	Py_XDECREF(text);
	return NULL;
}

PyObject *shmrt_raise_shortage(const struct shmrt_shortage *shortage) {
	PyObject *class = error_class("SegmentError"), *args = NULL, *kwargs = NULL, *error = NULL;
	if (class == NULL)
		return NULL;
	char limit[sizeof(shortage->limit) + 1] = {0};
	memcpy(limit, shortage->limit, sizeof(shortage->limit));
	args = Py_BuildValue("(N)", PyUnicode_FromFormat("no space for %llu bytes of shared memory: the %s leaves %llu; "
							 "take messages out, send smaller ones or raise that limit",
							 (unsigned long long)shortage->needed, limit[0] ? limit : "machine",
							 (unsigned long long)shortage->free));
	kwargs = Py_BuildValue("{s:K,s:K,s:s}", "needed", (unsigned long long)shortage->needed, "free",
			       (unsigned long long)shortage->free, "hint", limit[0] ? limit : "machine");
	if (args != NULL && kwargs != NULL)
		error = PyObject_Call(class, args, kwargs);
	if (error != NULL)
		PyErr_SetObject(class, error);
	Py_XDECREF(error);
	Py_XDECREF(kwargs);
	Py_XDECREF(args);
	Py_DECREF(class);
	return NULL;
}

PyObject *shmrt_take_exception(void) {
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
