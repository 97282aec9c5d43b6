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

/* class(text, **kwargs), raised; takes over args and kwargs. */
static PyObject *raise_with(PyObject *class, PyObject *args, PyObject *kwargs) {
	PyObject *error = class && args && kwargs ? PyObject_Call(class, args, kwargs) : NULL;
	if (error != NULL)
		PyErr_SetObject(class, error);
	Py_XDECREF(error);
	Py_XDECREF(kwargs);
	Py_XDECREF(args);
	Py_XDECREF(class);
	return NULL;
}

PyObject *shmrt_raise_too_large(uint64_t size, uint64_t limit) {
	unsigned long long needed = size, most = limit;
	PyObject *text = PyUnicode_FromFormat("a message of %llu bytes can never fit: the shared memory for payloads is limited to "
					      "%llu bytes; raise shm_limit of the Runtime, or send less at once", needed, most);
	return raise_with(error_class("MessageTooLarge"), Py_BuildValue("(N)", text),
			  Py_BuildValue("{s:K,s:K}", "size", needed, "limit", most));
}

PyObject *shmrt_raise_overloaded(uint64_t capacity, const char *where, const char *format, ...) {
	va_list arguments;
	va_start(arguments, format);
	PyObject *text = PyUnicode_FromFormatV(format, arguments);
	va_end(arguments);
	PyObject *args = text ? Py_BuildValue("(N)", text) : NULL;
	return raise_with(error_class("Overloaded"), args,
			  Py_BuildValue("{s:K,s:s}", "capacity", (unsigned long long)capacity, "where", where));
}

PyObject *shmrt_raise_shortage(const struct shmrt_shortage *shortage) {
	char limit[sizeof(shortage->limit) + 1] = {0};
	memcpy(limit, shortage->limit, sizeof(shortage->limit));
	PyObject *args = Py_BuildValue("(N)", PyUnicode_FromFormat("no space for %llu bytes of shared memory: the %s leaves %llu; "
							 "take messages out, send smaller ones or raise that limit",
							 (unsigned long long)shortage->needed, limit[0] ? limit : "machine",
							 (unsigned long long)shortage->free));
	PyObject *kwargs = Py_BuildValue("{s:K,s:K,s:s}", "needed", (unsigned long long)shortage->needed, "free",
			       (unsigned long long)shortage->free, "hint", limit[0] ? limit : "machine");
	return raise_with(error_class("SegmentError"), args, kwargs);
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

void shmrt_give_exception(PyObject *error) {
#if PY_VERSION_HEX >= 0x030C0000
	PyErr_SetRaisedException(error);
#else
	PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}
