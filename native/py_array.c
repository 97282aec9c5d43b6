/* py_array.c -- numpy arrays in the codec, without numpy's headers and without pickle.
 *
 * An exact ndarray of a plain number type, whole in C or Fortran order, is written as format, order, shape and
 * its bytes (out of band from SHMRT_OUT_OF_BAND_MIN up). All else that is an array (objects, records, dates,
 * foreign byte orders, subclasses, slices with gaps) is left to pickle. numpy is found when the sender has
 * imported it, and imported by the receiver only to make an array that arrived.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

#define DIMENSIONS_MAX 32

PyTypeObject *shmrt_array_type(void) {
	static PyTypeObject *type; /* numpy is never unloaded */
	if (SHMRT_LIKELY(type != NULL))
		return type;
	PyObject *numpy = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy"); /* borrowed; not imported here */
	PyObject *found = numpy ? PyObject_GetAttrString(numpy, "ndarray") : NULL;
	if (found == NULL)
		PyErr_Clear(); /* not there, or its import is under way */
	else if (PyType_Check(found))
		type = (PyTypeObject *)found;
	else
		Py_DECREF(found);
	return type;
}

/* The number types whose buffer format and numpy character are the same; complex ones are 'Z' and one of fdg. */
static bool is_plain(const char *format) {
	if (format == NULL)
		return false;
	if (format[0] == 'Z')
		return format[1] != 0 && strchr("fdg", format[1]) != NULL && format[2] == 0;
	return format[0] != 0 && format[1] == 0 && strchr("?bBhHiIlLqQefdg", format[0]) != NULL;
}

/* TAG_ARRAY | character:1 | order:1 | dimensions:1 | length:8 each | inline:1 | buffer:4 or size:8, bytes */
int shmrt_array_append(struct shmrt_encoder *encoder, PyObject *array) {
	Py_buffer view;
	if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) < 0) {
		PyErr_Clear(); /* a type without a buffer format */
		return SHMRT_ENCODE_SLOW;
	}
	bool c_order = PyBuffer_IsContiguous(&view, 'C');
	if (!is_plain(view.format) || view.ndim > DIMENSIONS_MAX || !(c_order || PyBuffer_IsContiguous(&view, 'F'))) {
		PyBuffer_Release(&view);
		return SHMRT_ENCODE_SLOW;
	}
	bool out_of_band = view.len >= SHMRT_OUT_OF_BAND_MIN;
	size_t head = 5 + 8 * (size_t)view.ndim;
	uint8_t *at = shmrt_encoder_take(encoder, head + (out_of_band ? 4 : 8 + (size_t)view.len));
	if (at == NULL) {
		PyBuffer_Release(&view);
		return -1;
	}
	at[0] = SHMRT_TAG_ARRAY;
	encoder->flags |= SHMRT_MESSAGE_HAS_ARRAY;
	/* Complex ones by numpy's own character: F, D, G. */
	at[1] = (uint8_t)(view.format[0] == 'Z' ? view.format[1] - 'a' + 'A' : view.format[0]);
	at[2] = c_order ? 'C' : 'F';
	at[3] = (uint8_t)view.ndim;
	for (int i = 0; i < view.ndim; i++)
		shmrt_write_u64(at + 4 + 8 * i, (uint64_t)view.shape[i]);
	at[head - 1] = !out_of_band;
	at += head;
	if (out_of_band) {
		Py_ssize_t index = shmrt_encoder_add_buffer(encoder, &view);
		if (index < 0)
			return -1;
		shmrt_write_u32(at, (uint32_t)index);
		return 0;
	}
	shmrt_write_u64(at, (uint64_t)view.len);
	memcpy(at + 8, view.buf, (size_t)view.len);
	PyBuffer_Release(&view);
	return 0;
}

/* ---- decoding ------------------------------------------------------------------------------------------------ */

static PyObject *array_class; /* numpy.ndarray, once imported */
static PyObject *dtypes[128]; /* by character */

static PyObject *dtype_of(char character) {
	PyObject **known = &dtypes[(unsigned char)character];
	if (*known != NULL)
		return *known;
	PyObject *numpy = PyImport_ImportModule("numpy");
	if (numpy == NULL)
		return NULL;
	if (array_class == NULL)
		array_class = PyObject_GetAttrString(numpy, "ndarray");
	if (array_class != NULL)
		*known = PyObject_CallMethod(numpy, "dtype", "C", character);
	Py_DECREF(numpy);
	return *known;
}

PyObject *shmrt_array_make(const uint8_t *head, const uint8_t *lengths, PyObject *buffer) {
	char character = (char)head[0], order = (char)head[1];
	if ((order != 'C' && order != 'F') || head[0] >= 128 || character == 0 ||
	    strchr("?bBhHiIlLqQefdgFDG", character) == NULL)
		return shmrt_decode_corrupt("an array has an unknown type or order");
	PyObject *dtype = dtype_of(character);
	PyObject *shape = dtype ? PyTuple_New(head[2]) : NULL;
	for (int i = 0; shape != NULL && i < head[2]; i++) {
		PyObject *length = PyLong_FromUnsignedLongLong(shmrt_read_u64(lengths + 8 * i));
		if (length == NULL)
			Py_CLEAR(shape);
		else
			PyTuple_SET_ITEM(shape, i, length);
	}
	if (shape == NULL)
		return NULL;
	PyObject *array;
	if (SHMRT_LIKELY(order == 'C')) {
		PyObject *stack[] = {shape, dtype, buffer};
		array = PyObject_Vectorcall(array_class, stack, 3, NULL);
	} else {
		array = PyObject_CallFunction(array_class, "OOOiOs", shape, dtype, buffer, 0, Py_None, "F");
	}
	Py_DECREF(shape);
	if (array == NULL && (PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_TypeError) ||
			      PyErr_ExceptionMatches(PyExc_OverflowError))) {
		PyErr_Clear();
		return shmrt_decode_corrupt("an array's shape does not fit its bytes");
	}
	return array;
}
