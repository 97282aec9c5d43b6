/* py_message_buffers.c -- the out-of-band buffers of a message that is decoded: as copies, or as views on their block.
 *
 * Where a buffer lies is told by the body's table, which is as hostile as every byte of a message: each range is checked
 * against what its block really exports before it is read.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

/* The bytes of a buffer inside an exported view; -1 with SegmentError. */
static int check_range(const struct shmrt_body_buffer *entry, Py_ssize_t available) {
	if (entry->offset <= (uint64_t)available && entry->size <= (uint64_t)available - entry->offset)
		return 0;
	shmrt_decode_corrupt("a buffer passes the end of its block");
	return -1;
}

static int find_buffer(const struct shmrt_decoder *decoder, uint32_t index, struct shmrt_body_buffer *entry) {
	const char *reason = "";
	if (shmrt_body_buffer(&decoder->body, index, decoder->buffer_count, entry, &reason) == SHMRT_OK)
		return 0;
	shmrt_decode_corrupt(reason);
	return -1;
}

static PyObject *copy_out(const uint8_t *from, size_t size, bool as_bytes) {
	PyObject *object = as_bytes ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size)
				    : PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (object == NULL)
		return NULL;
	struct shmrt_copy copy = {(uint8_t *)(as_bytes ? PyBytes_AS_STRING(object) : PyByteArray_AS_STRING(object)), from, size};
	shmrt_copy_all(&copy, 1, size);
	return object;
}

PyObject *shmrt_decode_buffer_copy(const struct shmrt_decoder *decoder, uint32_t index, bool as_bytes) {
	struct shmrt_body_buffer entry;
	if (find_buffer(decoder, index, &entry) < 0)
		return NULL;
	if (entry.place == 0)
		return copy_out(decoder->body.start + entry.offset, (size_t)entry.size, as_bytes);
	Py_buffer view;
	if (PyObject_GetBuffer(decoder->buffers[entry.place - 1], &view, PyBUF_SIMPLE) < 0)
		return NULL;
	PyObject *object = NULL;
	if (check_range(&entry, view.len) == 0)
		object = copy_out((const uint8_t *)view.buf + entry.offset, (size_t)entry.size, as_bytes);
	PyBuffer_Release(&view);
	return object;
}

PyObject *shmrt_decode_buffer_view(const struct shmrt_decoder *decoder, uint32_t index) {
	struct shmrt_body_buffer entry;
	if (find_buffer(decoder, index, &entry) < 0)
		return NULL;
	if (entry.place == 0)
		return copy_out(decoder->body.start + entry.offset, (size_t)entry.size, false);
	PyObject *owner = decoder->buffers[entry.place - 1];
	Py_buffer view;
	if (PyObject_GetBuffer(owner, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	Py_ssize_t length = view.len;
	PyBuffer_Release(&view);
	if (check_range(&entry, length) < 0)
		return NULL;
	if (entry.offset == 0 && entry.size == (uint64_t)length)
		return Py_NewRef(owner);
	PyObject *whole = PyMemoryView_FromObject(owner);
	if (whole == NULL)
		return NULL;
	PyObject *part = PySequence_GetSlice(whole, (Py_ssize_t)entry.offset, (Py_ssize_t)(entry.offset + entry.size));
	Py_DECREF(whole);
	return part;
}
