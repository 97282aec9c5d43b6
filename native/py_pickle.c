/* py_pickle.c -- whatever is not an exact builtin: one pickle of protocol 5, its buffers out of band.
 *
 * Plain pickle first, in C. cloudpickle takes over if pickle says it cannot (PicklingError, AttributeError,
 * TypeError, which is also how memoryviews end) or if the bytes name __main__, since another process's
 * __main__ is another module. What __reduce__ itself raises reaches the caller. Runs user code: the encoder
 * must not be used by anybody else meanwhile.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

static PyObject *plain_dumps, *plain_loads, *pickling_error;
static PyObject *dumps_keywords; /* ("protocol", "buffer_callback") */
static PyObject *loads_keywords; /* ("buffers",) */

static int prepare(void) {
	if (dumps_keywords != NULL)
		return 0;
	PyObject *module = PyImport_ImportModule("_pickle");
	if (module == NULL)
		return -1;
	Py_XSETREF(plain_dumps, PyObject_GetAttrString(module, "dumps"));
	Py_XSETREF(plain_loads, PyObject_GetAttrString(module, "loads"));
	Py_XSETREF(pickling_error, PyObject_GetAttrString(module, "PicklingError"));
	Py_XSETREF(loads_keywords, Py_BuildValue("(s)", "buffers"));
	Py_DECREF(module);
	if (plain_dumps == NULL || plain_loads == NULL || pickling_error == NULL || loads_keywords == NULL)
		return -1;
	dumps_keywords = Py_BuildValue("(ss)", "protocol", "buffer_callback");
	return dumps_keywords == NULL ? -1 : 0;
}

/* ---- buffers ------------------------------------------------------------------------------------------- */

#define CAPSULE "shmrt.encoder"

/* False: taken, it travels out of band. True: small, or not in one piece (pickle raises its own error then). */
static PyObject *take_buffer(PyObject *capsule, PyObject *buffer) {
	struct shmrt_encoder *encoder = PyCapsule_GetPointer(capsule, CAPSULE);
	if (encoder == NULL)
		return NULL;
	Py_buffer view;
	if (PyObject_GetBuffer(buffer, &view, PyBUF_FULL_RO) < 0)
		return NULL;
	if (view.len < SHMRT_OUT_OF_BAND_MIN || !PyBuffer_IsContiguous(&view, 'A')) {
		PyBuffer_Release(&view);
		Py_RETURN_TRUE;
	}
	if (shmrt_encoder_add_buffer(encoder, &view) < 0)
		return NULL;
	Py_RETURN_FALSE;
}

static PyMethodDef take_buffer_method = {"take_buffer", take_buffer, METH_O, NULL};

/* ---- pickling ------------------------------------------------------------------------------------------ */

static PyObject *pickle_plainly(PyObject *object, PyObject *callback) {
	PyObject *protocol = PyLong_FromLong(5);
	if (protocol == NULL)
		return NULL;
	PyObject *stack[] = {object, protocol, callback};
	PyObject *bytes = PyObject_Vectorcall(plain_dumps, stack, 1, dumps_keywords);
	Py_DECREF(protocol);
	return bytes;
}

static PyObject *pickle_by_value(PyObject *object, PyObject *callback) {
	PyObject *module = PyImport_ImportModule("shmrt.memory.pickling"), *bytes = NULL;
	if (module != NULL)
		bytes = PyObject_CallMethod(module, "dumps_by_value", "OO", object, callback);
	Py_XDECREF(module);
	if (bytes != NULL && !PyBytes_CheckExact(bytes)) {
		Py_CLEAR(bytes);
		PyErr_SetString(PyExc_SystemError, "pickling by value gave no bytes");
	}
	return bytes;
}

static bool pickle_cannot(void) {
	return PyErr_ExceptionMatches(pickling_error) || PyErr_ExceptionMatches(PyExc_AttributeError) ||
	       PyErr_ExceptionMatches(PyExc_TypeError);
}

static bool names_main(PyObject *bytes) {
	return memmem(PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes), "__main__", 8) != NULL;
}

static void drop_buffers(struct shmrt_encoder *encoder, size_t keep) {
	while (encoder->buffer_count > keep) {
		Py_buffer view = encoder->buffers[--encoder->buffer_count];
		PyBuffer_Release(&view);
	}
}

int shmrt_pickle_append(struct shmrt_encoder *encoder, PyObject *object) {
	if (prepare() < 0)
		return -1;
	size_t buffers = encoder->buffer_count;
	PyObject *capsule = PyCapsule_New(encoder, CAPSULE, NULL), *callback = NULL, *bytes = NULL;
	if (capsule != NULL)
		callback = PyCFunction_New(&take_buffer_method, capsule);
	if (callback == NULL)
		goto done;
	bytes = pickle_plainly(object, callback);
	if (bytes == NULL ? pickle_cannot() : names_main(bytes)) {
		PyErr_Clear();
		Py_CLEAR(bytes);
		drop_buffers(encoder, buffers);
		bytes = pickle_by_value(object, callback);
	}
done:
	Py_XDECREF(callback);
	Py_XDECREF(capsule);
	if (bytes == NULL)
		return -1;
	size_t size = (size_t)PyBytes_GET_SIZE(bytes);
	uint8_t *at = shmrt_encoder_take(encoder, 9 + size);
	if (at != NULL) {
		at[0] = SHMRT_TAG_PICKLE;
		shmrt_write_u64(at + 1, size);
		memcpy(at + 9, PyBytes_AS_STRING(bytes), size);
		encoder->flags |= SHMRT_MESSAGE_HAS_PICKLE;
	}
	Py_DECREF(bytes);
	return at == NULL ? -1 : 0;
}

/* ---- unpickling ---------------------------------------------------------------------------------------- */

static PyObject *buffer_list(const struct shmrt_decoder *decoder) {
	PyObject *list = PyList_New(decoder->body.buffer_count);
	for (uint32_t i = 0; list != NULL && i < decoder->body.buffer_count; i++) {
		PyObject *buffer = shmrt_decode_buffer_view(decoder, i);
		if (buffer == NULL)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, i, buffer);
	}
	return list;
}

PyObject *shmrt_pickle_load(const struct shmrt_decoder *decoder, const uint8_t *bytes, size_t size) {
	if (!decoder->allow_pickle)
		return shmrt_raise("SegmentError", "the message holds an object, which only unpickling can make, and this ring "
						   "was attached with pickle=False; attach it with pickle=True if you trust "
						   "every writer");
	if (prepare() < 0)
		return NULL;
	PyObject *data = PyMemoryView_FromMemory((char *)(uintptr_t)bytes, (Py_ssize_t)size, PyBUF_READ);
	if (data == NULL)
		return NULL;
	PyObject *object = NULL;
	if (decoder->body.buffer_count == 0) {
		object = PyObject_CallOneArg(plain_loads, data);
	} else {
		PyObject *buffers = buffer_list(decoder);
		if (buffers != NULL) {
			PyObject *stack[] = {data, buffers};
			object = PyObject_Vectorcall(plain_loads, stack, 1, loads_keywords);
			Py_DECREF(buffers);
		}
	}
	Py_DECREF(data);
	return object;
}
