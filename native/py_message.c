/* py_message.c -- encode() and decode(): control messages as bytes, for Python.
 *
 * A control message needs no arena: everything, buffers too, is in its bytes. So this is the whole codec without shared
 * memory, which is how tests reach it; `code_call` is a call there and back.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

static PyObject *module_encode(PyObject *module, PyObject *object) {
	(void)module;
	struct shmrt_encoder encoder = {0};
	struct shmrt_message message;
	struct shmrt_shortage shortage;
	PyObject *bytes = NULL;
	if (shmrt_encode(&encoder, object) == 0) {
		int outcome = shmrt_message_finish(&encoder, NULL, UINT64_MAX, &message, &shortage);
		if (outcome == SHMRT_OK)
			bytes = PyBytes_FromStringAndSize((const char *)message.inline_bytes, message.inline_size);
		else if (outcome == SHMRT_TOO_LARGE)
			shmrt_raise("MessageTooLarge", "an object of more than 4 GiB cannot be one control message");
	}
	shmrt_encoder_clear(&encoder);
	return bytes;
}

static PyObject *module_decode(PyObject *module, PyObject *args) {
	(void)module;
	Py_buffer view;
	int allow_pickle = 1;
	if (!PyArg_ParseTuple(args, "y*|p:decode", &view, &allow_pickle))
		return NULL;
	PyObject *object = NULL;
	if (view.len > UINT32_MAX)
		shmrt_decode_corrupt("it is longer than any control message");
	else
		object = shmrt_decode_message(view.buf, (uint32_t)view.len, 0, NULL, 0, allow_pickle);
	PyBuffer_Release(&view);
	return object;
}

static PyObject *module_code_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	(void)module;
	struct shmrt_encoder encoder = {0};
	struct shmrt_message message;
	struct shmrt_shortage shortage;
	PyObject *positional = NULL, *keywords = NULL, *pair = NULL;
	if (shmrt_encode_call(&encoder, args, nargs, kwnames) == 0 &&
	    shmrt_message_finish(&encoder, NULL, UINT64_MAX, &message, &shortage) == SHMRT_OK &&
	    shmrt_decode_call(message.inline_bytes, message.inline_size, message.flags, NULL, 0, &positional, &keywords) == 0)
		pair = Py_BuildValue("(OO)", positional, keywords ? keywords : Py_None);
	Py_XDECREF(positional);
	Py_XDECREF(keywords);
	shmrt_encoder_clear(&encoder);
	return pair;
}

static PyMethodDef functions[] = {
	{"encode", module_encode, METH_O, "encode(object) -> bytes that decode() turns back"},
	{"decode", module_decode, METH_VARARGS, "decode(bytes, allow_pickle=True) -> object"},
	{"code_call", (PyCFunction)(void (*)(void))module_code_call, METH_FASTCALL | METH_KEYWORDS,
	 "code_call(*args, **kwargs) -> (args, kwargs or None) as a worker would get them; for tests"},
	{0},
};

int shmrt_py_add_message(PyObject *module) { return PyModule_AddFunctions(module, functions); }
