/* py_decode.c -- bytes back to builtins.
 *
 * Decoding treats every byte as hostile: it was written by another process, which may have been killed in the middle or be
 * no friend. Nothing is read past the end, nothing larger than the message is allocated, and nesting has an end; what
 * does not fit raises SegmentError("corrupt message: ...").
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

#define APART __attribute__((noinline)) /* else shmrt_decode_object would save all registers for the smallest object */

void *shmrt_decode_corrupt(const char *reason) {
	shmrt_raise("SegmentError", "corrupt message: %s", reason);
	return NULL;
}

/* ---- sizes and counts ---------------------------------------------------------------------------------- */

static inline const uint8_t *take_sized(struct shmrt_decoder *decoder, bool small, size_t *size) {
	const uint8_t *at = shmrt_decoder_take(decoder, small ? 1 : 8);
	if (at == NULL)
		return NULL;
	uint64_t announced = small ? *at : shmrt_read_u64(at);
	*size = (size_t)announced;
	return shmrt_decoder_take(decoder, (size_t)announced);
}

/* A number of items, each of which takes at least one byte: nothing larger than the message is allocated for. */
static int take_count(struct shmrt_decoder *decoder, size_t bytes_per_item, Py_ssize_t *count) {
	const uint8_t *at = shmrt_decoder_take(decoder, 4);
	if (at == NULL)
		return -1;
	uint64_t announced = shmrt_read_u32(at);
	if (announced * bytes_per_item > (uint64_t)(decoder->end - decoder->at)) {
		shmrt_decode_corrupt("it announces more items than it has bytes");
		return -1;
	}
	*count = (Py_ssize_t)announced;
	return 0;
}

/* ---- strings ------------------------------------------------------------------------------------------- */

static PyObject *make_ascii(const uint8_t *bytes, size_t size) {
	bool few = size - 8 <= 8;
	uint64_t first = 0, last = 0;
	if (few) { /* names and words: two reads that overlap */
		first = shmrt_read_u64(bytes);
		last = shmrt_read_u64(bytes + size - 8);
	}
	if (SHMRT_UNLIKELY(few ? ((first | last) & UINT64_C(0x8080808080808080)) != 0 : !shmrt_codec_is_ascii(bytes, size)))
		return shmrt_decode_corrupt("a byte of an ASCII string is above 127");
	if (size <= 1) /* the interpreter shares these */
		return PyUnicode_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
	PyObject *text = PyUnicode_New((Py_ssize_t)size, 127);
	if (SHMRT_UNLIKELY(text == NULL))
		return NULL;
	uint8_t *data = (uint8_t *)(((PyASCIIObject *)text) + 1);
	if (few) {
		shmrt_write_u64(data, first);
		shmrt_write_u64(data + size - 8, last);
	} else {
		memcpy(data, bytes, size);
	}
	return text;
}

static APART PyObject *get_ascii(struct shmrt_decoder *decoder, bool small) {
	size_t size;
	const uint8_t *bytes = take_sized(decoder, small, &size);
	return bytes ? make_ascii(bytes, size) : NULL;
}

static APART PyObject *get_unicode(struct shmrt_decoder *decoder) {
	const uint8_t *at = shmrt_decoder_take(decoder, 9);
	if (at == NULL)
		return NULL;
	unsigned kind = at[0];
	uint64_t length = shmrt_read_u64(at + 1);
	if (kind != 1 && kind != 2 && kind != 4)
		return shmrt_decode_corrupt("a string has characters of an unknown size");
	if (length > (uint64_t)(decoder->end - decoder->at) / kind)
		return shmrt_decode_corrupt("a string passes its end");
	const uint8_t *bytes = shmrt_decoder_take(decoder, (size_t)length * kind);
	if (bytes == NULL)
		return NULL;
	if (kind == 1)
		return PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, bytes, (Py_ssize_t)length);
	/* The characters may lie unaligned, which the interpreter's own reader does not allow. */
	uint8_t *aligned = PyMem_Malloc((size_t)length * kind + 4);
	if (aligned == NULL)
		return PyErr_NoMemory();
	memcpy(aligned, bytes, (size_t)length * kind);
	PyObject *text = NULL;
	bool valid = true;
	if (kind == 4)
		for (uint64_t i = 0; i < length && valid; i++)
			valid = shmrt_read_u32(aligned + 4 * i) <= 0x10FFFF;
	if (valid)
		text = PyUnicode_FromKindAndData((int)kind, aligned, (Py_ssize_t)length);
	else
		shmrt_decode_corrupt("a character is beyond U+10FFFF");
	PyMem_Free(aligned);
	return text;
}

/* ---- containers ---------------------------------------------------------------------------------------- */

/* Reads `count` items. 0, or -1 with an exception: those behind it stay as they are. What most items are is read here, without
 * a call for each; all else, and whatever does not fit, is shmrt_decode_object's. */
static inline int get_items(struct shmrt_decoder *decoder, PyObject **items, Py_ssize_t count, int depth) {
	const uint8_t *at = decoder->at, *const end = decoder->end;
	for (PyObject **const last = items + count; items != last; items++) {
		size_t left = (size_t)(end - at), size;
		PyObject *item;
		if (SHMRT_UNLIKELY(left == 0))
			goto other;
		switch (at[0]) {
		case SHMRT_TAG_NONE:
			item = Py_NewRef(Py_None);
			at += 1;
			break;
		case SHMRT_TAG_FALSE:
			item = Py_NewRef(Py_False);
			at += 1;
			break;
		case SHMRT_TAG_TRUE:
			item = Py_NewRef(Py_True);
			at += 1;
			break;
		case SHMRT_TAG_INT8:
			if (SHMRT_UNLIKELY(left < 2))
				goto other;
			item = PyLong_FromLong((int8_t)at[1]);
			at += 2;
			break;
		case SHMRT_TAG_INT32:
			if (SHMRT_UNLIKELY(left < 5))
				goto other;
			item = PyLong_FromLong(shmrt_read_i32(at + 1));
			at += 5;
			break;
		case SHMRT_TAG_FLOAT:
			if (SHMRT_UNLIKELY(left < 9))
				goto other;
			item = PyFloat_FromDouble(shmrt_read_f64(at + 1));
			at += 9;
			break;
		case SHMRT_TAG_ASCII8:
			if (SHMRT_UNLIKELY(left < 2 || left - 2 < (size = at[1])))
				goto other;
			item = make_ascii(at + 2, size);
			at += 2 + size;
			break;
		case SHMRT_TAG_BYTES8:
			if (SHMRT_UNLIKELY(left < 2 || left - 2 < (size = at[1])))
				goto other;
			item = PyBytes_FromStringAndSize((const char *)at + 2, (Py_ssize_t)size);
			at += 2 + size;
			break;
		default:
		other:
			decoder->at = at;
			item = shmrt_decode_object(decoder, depth);
			at = decoder->at;
		}
		if (SHMRT_UNLIKELY(item == NULL))
			return -1;
		*items = item;
	}
	decoder->at = at;
	return 0;
}

PyObject *shmrt_decode_tuple(struct shmrt_decoder *decoder, Py_ssize_t count, int depth) {
	PyObject *tuple = PyTuple_New(count);
	if (SHMRT_LIKELY(tuple != NULL && get_items(decoder, ((PyTupleObject *)tuple)->ob_item, count, depth + 1) == 0))
		return tuple;
	Py_XDECREF(tuple);
	return NULL;
}

static APART PyObject *get_list(struct shmrt_decoder *decoder, int depth) {
	Py_ssize_t count;
	if (take_count(decoder, 1, &count) < 0)
		return NULL;
	PyObject *list = PyList_New(count);
	if (SHMRT_LIKELY(list != NULL && get_items(decoder, ((PyListObject *)list)->ob_item, count, depth + 1) == 0))
		return list;
	Py_XDECREF(list);
	return NULL;
}

/* A container as a dict key or set item: no correct writer makes it. */
static void *not_hashable(void) {
	if (PyErr_ExceptionMatches(PyExc_TypeError)) {
		PyErr_Clear();
		shmrt_decode_corrupt("a key cannot be hashed");
	}
	return NULL;
}

static APART PyObject *get_dict(struct shmrt_decoder *decoder, int depth) {
	Py_ssize_t count;
	if (take_count(decoder, 2, &count) < 0)
		return NULL;
	PyObject *dict = PyDict_New();
	for (Py_ssize_t i = 0; dict != NULL && i < count; i++) {
		PyObject *key = shmrt_decode_object(decoder, depth + 1);
		PyObject *value = key ? shmrt_decode_object(decoder, depth + 1) : NULL;
		if (value == NULL || PyDict_SetItem(dict, key, value) < 0) {
			if (value != NULL)
				not_hashable();
			Py_CLEAR(dict);
		}
		Py_XDECREF(key);
		Py_XDECREF(value);
	}
	return dict;
}

static APART PyObject *get_set(struct shmrt_decoder *decoder, int depth, bool frozen) {
	Py_ssize_t count;
	if (take_count(decoder, 1, &count) < 0)
		return NULL;
	PyObject *set = frozen ? PyFrozenSet_New(NULL) : PySet_New(NULL);
	for (Py_ssize_t i = 0; set != NULL && i < count; i++) {
		PyObject *item = shmrt_decode_object(decoder, depth + 1);
		if (item == NULL || PySet_Add(set, item) < 0) {
			if (item != NULL)
				not_hashable();
			Py_CLEAR(set);
		}
		Py_XDECREF(item);
	}
	return set;
}

/* ---- arrays -------------------------------------------------------------------------------------------- */

static APART PyObject *get_array(struct shmrt_decoder *decoder) {
	const uint8_t *head = shmrt_decoder_take(decoder, 3), *lengths = NULL, *at = NULL;
	if (head != NULL && (lengths = shmrt_decoder_take(decoder, 8 * (size_t)head[2])) != NULL)
		at = shmrt_decoder_take(decoder, 1);
	if (at == NULL)
		return NULL;
	PyObject *buffer = NULL;
	if (*at != 0) {
		size_t size;
		if ((at = take_sized(decoder, false, &size)) != NULL)
			buffer = PyByteArray_FromStringAndSize((const char *)at, (Py_ssize_t)size);
	} else if ((at = shmrt_decoder_take(decoder, 4)) != NULL) {
		buffer = shmrt_decode_buffer_view(decoder, shmrt_read_u32(at));
	}
	if (buffer == NULL)
		return NULL;
	PyObject *array = shmrt_array_make(head, lengths, buffer);
	Py_DECREF(buffer);
	return array;
}

/* ---- any object ---------------------------------------------------------------------------------------- */

static APART PyObject *decode_container(struct shmrt_decoder *decoder, uint8_t tag, int depth) {
	const uint8_t *at;
	size_t size;
	Py_ssize_t count;
	if (depth > SHMRT_CODEC_DEPTH_MAX + 1)
		return shmrt_decode_corrupt("it is nested too deeply");
	switch (tag) {
	case SHMRT_TAG_TUPLE8:
		if ((at = shmrt_decoder_take(decoder, 1)) == NULL)
			return NULL;
		if (*at > decoder->end - decoder->at)
			return shmrt_decode_corrupt("it announces more items than it has bytes");
		return shmrt_decode_tuple(decoder, *at, depth);
	case SHMRT_TAG_TUPLE32:
		return take_count(decoder, 1, &count) < 0 ? NULL : shmrt_decode_tuple(decoder, count, depth);
	case SHMRT_TAG_LIST:
		return get_list(decoder, depth);
	case SHMRT_TAG_DICT:
		return get_dict(decoder, depth);
	case SHMRT_TAG_SET:
		return get_set(decoder, depth, false);
	case SHMRT_TAG_FROZENSET:
		return get_set(decoder, depth, true);
	case SHMRT_TAG_PICKLE:
		if (depth != 0)
			return shmrt_decode_corrupt("it has a pickle inside an object");
		at = take_sized(decoder, false, &size);
		return at ? shmrt_pickle_load(decoder, at, size) : NULL;
	default:
		return shmrt_decode_corrupt("it has an unknown tag");
	}
}

PyObject *shmrt_decode_object(struct shmrt_decoder *decoder, int depth) {
	const uint8_t *at = shmrt_decoder_take(decoder, 1);
	if (at == NULL)
		return NULL;
	size_t size;
	switch (*at) {
	case SHMRT_TAG_NONE:
		return Py_NewRef(Py_None);
	case SHMRT_TAG_FALSE:
		return Py_NewRef(Py_False);
	case SHMRT_TAG_TRUE:
		return Py_NewRef(Py_True);
	case SHMRT_TAG_INT8:
		return (at = shmrt_decoder_take(decoder, 1)) ? PyLong_FromLong((int8_t)*at) : NULL;
	case SHMRT_TAG_INT32:
		return (at = shmrt_decoder_take(decoder, 4)) ? PyLong_FromLong(shmrt_read_i32(at)) : NULL;
	case SHMRT_TAG_INT64:
		return (at = shmrt_decoder_take(decoder, 8)) ? PyLong_FromLongLong(shmrt_read_i64(at)) : NULL;
	case SHMRT_TAG_INT_BIG:
		if ((at = shmrt_decoder_take(decoder, 4)) == NULL)
			return NULL;
		size = shmrt_read_u32(at);
		return (at = shmrt_decoder_take(decoder, size)) ? _PyLong_FromByteArray(at, size, 1, 1) : NULL;
	case SHMRT_TAG_FLOAT:
		return (at = shmrt_decoder_take(decoder, 8)) ? PyFloat_FromDouble(shmrt_read_f64(at)) : NULL;
	case SHMRT_TAG_COMPLEX:
		at = shmrt_decoder_take(decoder, 16);
		return at ? PyComplex_FromDoubles(shmrt_read_f64(at), shmrt_read_f64(at + 8)) : NULL;
	case SHMRT_TAG_ASCII8:
		return get_ascii(decoder, true);
	case SHMRT_TAG_ASCII64:
		return get_ascii(decoder, false);
	case SHMRT_TAG_UNICODE:
		return get_unicode(decoder);
	case SHMRT_TAG_BYTES8:
	case SHMRT_TAG_BYTES64:
		at = take_sized(decoder, *at == SHMRT_TAG_BYTES8, &size);
		return at ? PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)size) : NULL;
	case SHMRT_TAG_BYTEARRAY:
		at = take_sized(decoder, false, &size);
		return at ? PyByteArray_FromStringAndSize((const char *)at, (Py_ssize_t)size) : NULL;
	case SHMRT_TAG_BUFFER_BYTES:
	case SHMRT_TAG_BUFFER_BYTEARRAY: {
		bool as_bytes = *at == SHMRT_TAG_BUFFER_BYTES;
		at = shmrt_decoder_take(decoder, 4);
		return at ? shmrt_decode_buffer_copy(decoder, shmrt_read_u32(at), as_bytes) : NULL;
	}
	case SHMRT_TAG_ARRAY:
		return get_array(decoder);
	default:
		return decode_container(decoder, *at, depth);
	}
}

PyObject *shmrt_decode_plain(const uint8_t *bytes, size_t size, bool allow_pickle) {
	struct shmrt_decoder decoder = {.at = bytes, .end = bytes + size, .allow_pickle = allow_pickle};
	PyObject *object;
	if (SHMRT_LIKELY(size >= 2 && bytes[0] == SHMRT_TAG_TUPLE8 && bytes[1] <= size - 2)) { /* most messages are tuples */
		decoder.at += 2;
		object = shmrt_decode_tuple(&decoder, bytes[1], 0);
	} else {
		object = shmrt_decode_object(&decoder, 0);
	}
	if (SHMRT_UNLIKELY(object != NULL && decoder.at != decoder.end)) {
		Py_DECREF(object);
		return shmrt_decode_corrupt("bytes are left over after the object");
	}
	return object;
}
