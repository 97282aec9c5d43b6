/* py_codec.c -- exact builtins to bytes and back, without user code and without pickle.
 *
 * Encoding walks the object once. Whatever is not an exact builtin, is nested deeper than
 * SHMRT_CODEC_DEPTH_MAX (so also every cycle), or is met twice makes the whole object one pickle instead:
 * that keeps identity as pickle does. Decoding treats every byte as hostile.
 *
 * No allocation of Python happens while encoding (a collection could run finalisers that change what is
 * being walked), which is why sets are read by _PySet_NextEntry where it exists.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

#define SLOW 1 /* not for the fast codec: pickle it */

/* ---- the encoder's memory --------------------------------------------------------------------------- */

uint8_t *shmrt_encoder_grow(struct shmrt_encoder *encoder, size_t size) {
	size_t needed = encoder->size + size;
	if (needed < size) {
		PyErr_NoMemory();
		return NULL;
	}
	size_t capacity = encoder->capacity < 512 ? 512 : encoder->capacity * 2;
	if (capacity < needed)
		capacity = needed + needed / 8;
	uint8_t *bytes = PyMem_Realloc(encoder->bytes, capacity);
	if (bytes == NULL) {
		PyErr_NoMemory();
		return NULL;
	}
	encoder->bytes = bytes;
	encoder->capacity = capacity;
	return bytes;
}

Py_ssize_t shmrt_encoder_add_buffer(struct shmrt_encoder *encoder, Py_buffer *view) {
	if (encoder->buffer_count == encoder->buffer_capacity) {
		size_t capacity = encoder->buffer_capacity ? encoder->buffer_capacity * 2 : 4;
		Py_buffer *buffers = PyMem_Realloc(encoder->buffers, capacity * sizeof(*buffers));
		if (buffers == NULL) {
			PyBuffer_Release(view);
			PyErr_NoMemory();
			return -1;
		}
		encoder->buffers = buffers;
		encoder->buffer_capacity = capacity;
	}
	encoder->buffers[encoder->buffer_count] = *view;
	return (Py_ssize_t)encoder->buffer_count++;
}

static void release_buffers(struct shmrt_encoder *encoder, size_t keep) {
	while (encoder->buffer_count > keep) {
		Py_buffer view = encoder->buffers[--encoder->buffer_count];
		PyBuffer_Release(&view); /* may run code: the encoder no longer names it */
	}
}

void shmrt_encoder_reset(struct shmrt_encoder *encoder) {
	encoder->size = 0;
	encoder->flags = 0;
	if (encoder->buffer_count)
		release_buffers(encoder, 0);
	if (encoder->frozen)
		Py_CLEAR(encoder->frozen);
	if (encoder->capacity > 1 << 20) { /* one big message must not hold its memory for ever */
		PyMem_Free(encoder->bytes);
		encoder->bytes = NULL;
		encoder->capacity = 0;
	}
}

void shmrt_encoder_clear(struct shmrt_encoder *encoder) {
	shmrt_encoder_reset(encoder);
	PyMem_Free(encoder->bytes);
	PyMem_Free(encoder->buffers);
	PyMem_Free(encoder->seen_set);
	memset(encoder, 0, sizeof(*encoder));
}

/* ---- what was met already ---------------------------------------------------------------------------- */

static size_t seen_slot(const struct shmrt_encoder *encoder, const void *object) {
	size_t mask = encoder->seen_capacity - 1;
	size_t slot = (size_t)(((uint64_t)(uintptr_t)object >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20) & mask;
	while (encoder->seen_set[slot] != NULL && encoder->seen_set[slot] != object)
		slot = (slot + 1) & mask;
	return slot;
}

static int seen_rebuild(struct shmrt_encoder *encoder, size_t capacity) {
	const void **old = encoder->seen_set;
	size_t old_capacity = old ? encoder->seen_capacity : 0;
	const void **fresh = PyMem_Calloc(capacity, sizeof(*fresh));
	if (fresh == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	encoder->seen_set = fresh;
	encoder->seen_capacity = capacity;
	for (size_t i = 0; i < old_capacity; i++)
		if (old[i])
			fresh[seen_slot(encoder, old[i])] = old[i];
	PyMem_Free(old);
	return 0;
}

/* 0: new, now remembered. SLOW: met before. -1: no memory. */
static int seen_add_many(struct shmrt_encoder *encoder, const void *object) {
	if (encoder->seen_set == NULL) {
		if (seen_rebuild(encoder, 64) < 0)
			return -1;
		for (size_t i = 0; i < 8; i++)
			encoder->seen_set[seen_slot(encoder, encoder->seen[i])] = encoder->seen[i];
	} else if (encoder->seen_count * 2 >= encoder->seen_capacity &&
		   seen_rebuild(encoder, encoder->seen_capacity * 2) < 0) {
		return -1;
	}
	size_t slot = seen_slot(encoder, object);
	if (encoder->seen_set[slot] == object)
		return SLOW;
	encoder->seen_set[slot] = object;
	encoder->seen_count++;
	return 0;
}

static inline int seen_add(struct shmrt_encoder *encoder, const void *object) {
	if (encoder->seen_count >= 8)
		return seen_add_many(encoder, object);
	for (size_t i = 0; i < encoder->seen_count; i++)
		if (encoder->seen[i] == object)
			return SLOW;
	encoder->seen[encoder->seen_count++] = object;
	return 0;
}

static inline void seen_forget(struct shmrt_encoder *encoder) {
	encoder->seen_count = 0;
	if (SHMRT_UNLIKELY(encoder->seen_set != NULL)) {
		PyMem_Free(encoder->seen_set);
		encoder->seen_set = NULL;
		encoder->seen_capacity = 0;
	}
}

/* An object that only its container refers to cannot be met again. */
#define CHECK_SEEN(encoder, object, depth)                                                                             \
	do {                                                                                                           \
		if (Py_REFCNT(object) != 1 || (depth) == 0) {                                                          \
			int seen_ = seen_add(encoder, object);                                                         \
			if (seen_ != 0)                                                                                \
				return seen_;                                                                          \
		}                                                                                                      \
	} while (0)
#define SHARED_LEAF_MIN 256 /* smaller shared strings and bytes are simply written again */

/* ---- encoding ------------------------------------------------------------------------------------------ */

static int put_tag(struct shmrt_encoder *encoder, uint8_t tag) {
	uint8_t *at = shmrt_encoder_take(encoder, 1);
	if (at == NULL)
		return -1;
	*at = tag;
	return 0;
}

static int put_sized(struct shmrt_encoder *encoder, uint8_t small, uint8_t large, const void *bytes, size_t size) {
	uint8_t *at;
	if (small != 0 && size < 256) {
		if ((at = shmrt_encoder_take(encoder, 2 + size)) == NULL)
			return -1;
		at[0] = small;
		at[1] = (uint8_t)size;
		at += 2;
	} else {
		if (size > SIZE_MAX / 2 || (at = shmrt_encoder_take(encoder, 9 + size)) == NULL)
			return -1;
		at[0] = large;
		shmrt_write_u64(at + 1, size);
		at += 9;
	}
	memcpy(at, bytes, size);
	return 0;
}

static int put_long(struct shmrt_encoder *encoder, PyObject *object) {
	int overflow;
	long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
	uint8_t *at;
	if (SHMRT_LIKELY(overflow == 0)) {
		if (value >= INT8_MIN && value <= INT8_MAX) {
			if ((at = shmrt_encoder_take(encoder, 2)) == NULL)
				return -1;
			at[0] = SHMRT_TAG_INT8;
			at[1] = (uint8_t)(int8_t)value;
		} else if (value >= INT32_MIN && value <= INT32_MAX) {
			if ((at = shmrt_encoder_take(encoder, 5)) == NULL)
				return -1;
			at[0] = SHMRT_TAG_INT32;
			shmrt_write_i32(at + 1, (int32_t)value);
		} else {
			if ((at = shmrt_encoder_take(encoder, 9)) == NULL)
				return -1;
			at[0] = SHMRT_TAG_INT64;
			shmrt_write_i64(at + 1, value);
		}
		return 0;
	}
	size_t bits = _PyLong_NumBits(object);
	if (bits >= UINT32_MAX)
		return SLOW;
	size_t size = bits / 8 + 1;
	if ((at = shmrt_encoder_take(encoder, 5 + size)) == NULL)
		return -1;
	at[0] = SHMRT_TAG_INT_BIG;
	shmrt_write_u32(at + 1, (uint32_t)size);
#if PY_VERSION_HEX >= 0x030D0000
	return _PyLong_AsByteArray((PyLongObject *)object, at + 5, size, 1, 1, 1);
#else
	return _PyLong_AsByteArray((PyLongObject *)object, at + 5, size, 1, 1);
#endif
}

static int put_unicode(struct shmrt_encoder *encoder, PyObject *object, int depth) {
#if PY_VERSION_HEX < 0x030C0000
	if (PyUnicode_READY(object) < 0)
		return -1;
#endif
	Py_ssize_t length = PyUnicode_GET_LENGTH(object);
	if (length > SHARED_LEAF_MIN)
		CHECK_SEEN(encoder, object, depth);
	if (SHMRT_LIKELY(PyUnicode_IS_ASCII(object)))
		return put_sized(encoder, SHMRT_TAG_ASCII8, SHMRT_TAG_ASCII64, PyUnicode_DATA(object), (size_t)length);
	size_t kind = (size_t)PyUnicode_KIND(object), size = (size_t)length * kind;
	uint8_t *at = shmrt_encoder_take(encoder, 10 + size);
	if (at == NULL)
		return -1;
	at[0] = SHMRT_TAG_UNICODE;
	at[1] = (uint8_t)kind;
	shmrt_write_u64(at + 2, (uint64_t)length);
	memcpy(at + 10, PyUnicode_DATA(object), size);
	return 0;
}

static int put_buffer(struct shmrt_encoder *encoder, PyObject *object, uint8_t tag) {
	Py_buffer view;
	if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) < 0)
		return -1;
	Py_ssize_t index = shmrt_encoder_add_buffer(encoder, &view);
	uint8_t *at = index < 0 ? NULL : shmrt_encoder_take(encoder, 5);
	if (at == NULL)
		return -1;
	at[0] = tag;
	shmrt_write_u32(at + 1, (uint32_t)index);
	return 0;
}

static int put_count(struct shmrt_encoder *encoder, uint8_t tag, Py_ssize_t count) {
	if (count > UINT32_MAX)
		return SLOW;
	uint8_t *at = shmrt_encoder_take(encoder, 5);
	if (at == NULL)
		return -1;
	at[0] = tag;
	shmrt_write_u32(at + 1, (uint32_t)count);
	return 0;
}

static int put_object(struct shmrt_encoder *encoder, PyObject *object, int depth);

static int put_tuple(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	Py_ssize_t count = PyTuple_GET_SIZE(object);
	if (count > 0)
		CHECK_SEEN(encoder, object, depth);
	if (count < 256) {
		uint8_t *at = shmrt_encoder_take(encoder, 2);
		if (at == NULL)
			return -1;
		at[0] = SHMRT_TAG_TUPLE8;
		at[1] = (uint8_t)count;
	} else {
		int outcome = put_count(encoder, SHMRT_TAG_TUPLE32, count);
		if (outcome != 0)
			return outcome;
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		int outcome = put_object(encoder, PyTuple_GET_ITEM(object, i), depth + 1);
		if (outcome != 0)
			return outcome;
	}
	return 0;
}

static int put_list(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	CHECK_SEEN(encoder, object, depth);
	Py_ssize_t count = PyList_GET_SIZE(object);
	int outcome = put_count(encoder, SHMRT_TAG_LIST, count);
	for (Py_ssize_t i = 0; outcome == 0 && i < count; i++)
		outcome = put_object(encoder, PyList_GET_ITEM(object, i), depth + 1);
	return outcome;
}

static int put_dict(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	CHECK_SEEN(encoder, object, depth);
	int outcome = put_count(encoder, SHMRT_TAG_DICT, PyDict_GET_SIZE(object));
	Py_ssize_t position = 0;
	PyObject *key, *value;
	while (outcome == 0 && PyDict_Next(object, &position, &key, &value)) {
		outcome = put_object(encoder, key, depth + 1);
		if (outcome == 0)
			outcome = put_object(encoder, value, depth + 1);
	}
	return outcome;
}

static int put_set(struct shmrt_encoder *encoder, PyObject *object, int depth, uint8_t tag) {
	if (PySet_GET_SIZE(object) > 0 || tag == SHMRT_TAG_SET)
		CHECK_SEEN(encoder, object, depth);
	int outcome = put_count(encoder, tag, PySet_GET_SIZE(object));
#if PY_VERSION_HEX < 0x030D0000
	Py_ssize_t position = 0;
	PyObject *key;
	Py_hash_t hash;
	while (outcome == 0 && _PySet_NextEntry(object, &position, &key, &hash))
		outcome = put_object(encoder, key, depth + 1);
#else
	/* From 3.12 on an allocation no longer collects, so an iterator cannot run finalisers. */
	PyObject *iterator = PyObject_GetIter(object), *key;
	if (iterator == NULL)
		return -1;
	while (outcome == 0 && (key = PyIter_Next(iterator)) != NULL) {
		outcome = put_object(encoder, key, depth + 1);
		Py_DECREF(key);
	}
	Py_DECREF(iterator);
	if (outcome == 0 && PyErr_Occurred())
		return -1;
#endif
	return outcome;
}

/* 0, -1 with an exception, or SLOW. */
static int put_object(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	PyTypeObject *type = Py_TYPE(object);
	if (type == &PyUnicode_Type)
		return put_unicode(encoder, object, depth);
	if (type == &PyLong_Type)
		return put_long(encoder, object);
	if (type == &PyFloat_Type) {
		uint8_t *at = shmrt_encoder_take(encoder, 9);
		if (at == NULL)
			return -1;
		at[0] = SHMRT_TAG_FLOAT;
		shmrt_write_f64(at + 1, PyFloat_AS_DOUBLE(object));
		return 0;
	}
	if (type == &PyBytes_Type) {
		Py_ssize_t size = PyBytes_GET_SIZE(object);
		if (size > SHARED_LEAF_MIN)
			CHECK_SEEN(encoder, object, depth);
		if (size >= SHMRT_OUT_OF_BAND_MIN)
			return put_buffer(encoder, object, SHMRT_TAG_BUFFER_BYTES);
		return put_sized(encoder, SHMRT_TAG_BYTES8, SHMRT_TAG_BYTES64, PyBytes_AS_STRING(object), (size_t)size);
	}
	if (object == Py_None)
		return put_tag(encoder, SHMRT_TAG_NONE);
	if (type == &PyBool_Type)
		return put_tag(encoder, object == Py_True ? SHMRT_TAG_TRUE : SHMRT_TAG_FALSE);
	if (depth > SHMRT_CODEC_DEPTH_MAX)
		return SLOW;
	if (type == &PyTuple_Type)
		return put_tuple(encoder, object, depth);
	if (type == &PyList_Type)
		return put_list(encoder, object, depth);
	if (type == &PyDict_Type)
		return put_dict(encoder, object, depth);
	if (type == &PySet_Type)
		return put_set(encoder, object, depth, SHMRT_TAG_SET);
	if (type == &PyFrozenSet_Type)
		return put_set(encoder, object, depth, SHMRT_TAG_FROZENSET);
	if (type == &PyByteArray_Type) {
		CHECK_SEEN(encoder, object, depth);
		if (PyByteArray_GET_SIZE(object) >= SHMRT_OUT_OF_BAND_MIN)
			return put_buffer(encoder, object, SHMRT_TAG_BUFFER_BYTEARRAY);
		return put_sized(encoder, 0, SHMRT_TAG_BYTEARRAY, PyByteArray_AS_STRING(object),
				 (size_t)PyByteArray_GET_SIZE(object));
	}
	if (type == &PyComplex_Type) {
		Py_complex value = PyComplex_AsCComplex(object);
		uint8_t *at = shmrt_encoder_take(encoder, 17);
		if (at == NULL)
			return -1;
		at[0] = SHMRT_TAG_COMPLEX;
		shmrt_write_f64(at + 1, value.real);
		shmrt_write_f64(at + 9, value.imag);
		return 0;
	}
	if (type == shmrt_array_type()) {
		CHECK_SEEN(encoder, object, depth);
		return shmrt_array_append(encoder, object);
	}
	return SLOW;
}

/* A body begins with its kind; more than one object in a body is not decodable, so this is its start. */
static int begin_body(struct shmrt_encoder *encoder) {
	if (encoder->size != 0)
		return 0;
	return put_tag(encoder, SHMRT_BODY_PLAIN);
}

int shmrt_encode(struct shmrt_encoder *encoder, PyObject *object) {
	size_t start = encoder->size, buffers = encoder->buffer_count;
	if (begin_body(encoder) < 0)
		return -1;
	int outcome = put_object(encoder, object, 0);
	seen_forget(encoder);
	if (SHMRT_LIKELY(outcome == 0))
		return 0;
	encoder->size = start;
	release_buffers(encoder, buffers);
	if (outcome == SLOW) {
		if (begin_body(encoder) == 0 && shmrt_pickle_append(encoder, object) == 0)
			return 0;
		encoder->size = start;
		release_buffers(encoder, buffers);
	}
	return -1;
}

static int put_call(struct shmrt_encoder *encoder, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
	uint8_t *at = shmrt_encoder_take(encoder, 9);
	if (at == NULL)
		return -1;
	at[0] = SHMRT_TAG_CALL;
	shmrt_write_u32(at + 1, (uint32_t)nargs);
	shmrt_write_u32(at + 5, (uint32_t)named);
	for (Py_ssize_t i = 0; i < nargs; i++) {
		int outcome = put_object(encoder, args[i], 0); /* 0: remembered, `f(x, x)` */
		if (outcome != 0)
			return outcome;
	}
	for (Py_ssize_t i = 0; i < named; i++) {
		PyObject *name = PyTuple_GET_ITEM(kwnames, i);
		int outcome = PyUnicode_CheckExact(name) ? put_object(encoder, name, 1) : SLOW;
		if (outcome == 0)
			outcome = put_object(encoder, args[nargs + i], 0);
		if (outcome != 0)
			return outcome;
	}
	return 0;
}

static PyObject *call_as_pair(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
	PyObject *positional = PyTuple_New(nargs), *keywords = NULL, *pair = NULL;
	if (positional == NULL)
		return NULL;
	for (Py_ssize_t i = 0; i < nargs; i++)
		PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
	if ((keywords = PyDict_New()) == NULL)
		goto done;
	for (Py_ssize_t i = 0; i < named; i++)
		if (PyDict_SetItem(keywords, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0)
			goto done;
	pair = PyTuple_Pack(2, positional, keywords);
done:
	Py_DECREF(positional);
	Py_XDECREF(keywords);
	return pair;
}

int shmrt_encode_call(struct shmrt_encoder *encoder, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	size_t start = encoder->size, buffers = encoder->buffer_count;
	nargs = PyVectorcall_NARGS((size_t)nargs);
	if (begin_body(encoder) < 0)
		return -1;
	int outcome = put_call(encoder, args, nargs, kwnames);
	seen_forget(encoder);
	if (SHMRT_LIKELY(outcome == 0))
		return 0;
	encoder->size = start;
	release_buffers(encoder, buffers);
	if (outcome != SLOW)
		return -1;
	PyObject *pair = call_as_pair(args, nargs, kwnames);
	if (pair == NULL)
		return -1;
	outcome = begin_body(encoder) < 0 ? -1 : shmrt_pickle_append(encoder, pair);
	Py_DECREF(pair);
	if (outcome < 0) {
		encoder->size = start;
		release_buffers(encoder, buffers);
	}
	return outcome;
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

void *shmrt_decode_corrupt(const char *reason) {
	shmrt_raise("SegmentError", "corrupt message: %s", reason);
	return NULL;
}

/* `size` bytes at the reader, which moves past them; NULL with SegmentError. */
static inline const uint8_t *take(struct shmrt_decoder *decoder, size_t size) {
	if (SHMRT_UNLIKELY((size_t)(decoder->end - decoder->at) < size))
		return shmrt_decode_corrupt("it ends in the middle of an object");
	const uint8_t *at = decoder->at;
	decoder->at += size;
	return at;
}

static inline const uint8_t *take_sized(struct shmrt_decoder *decoder, bool small, size_t *size) {
	const uint8_t *at = take(decoder, small ? 1 : 8);
	if (at == NULL)
		return NULL;
	uint64_t announced = small ? *at : shmrt_read_u64(at);
	*size = (size_t)announced;
	return take(decoder, (size_t)announced);
}

/* A number of items, each of which takes at least one byte: nothing larger than the message is allocated for. */
static int take_count(struct shmrt_decoder *decoder, size_t bytes_per_item, Py_ssize_t *count) {
	const uint8_t *at = take(decoder, 4);
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

static PyObject *get_ascii(struct shmrt_decoder *decoder, bool small) {
	size_t size;
	const uint8_t *bytes = take_sized(decoder, small, &size);
	if (bytes == NULL)
		return NULL;
	if (!shmrt_codec_is_ascii(bytes, size))
		return shmrt_decode_corrupt("a byte of an ASCII string is above 127");
	if (size <= 1) /* the interpreter shares these */
		return PyUnicode_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
	PyObject *text = PyUnicode_New((Py_ssize_t)size, 127);
	if (text != NULL)
		memcpy(PyUnicode_DATA(text), bytes, size);
	return text;
}

static PyObject *get_unicode(struct shmrt_decoder *decoder) {
	const uint8_t *at = take(decoder, 9);
	if (at == NULL)
		return NULL;
	unsigned kind = at[0];
	uint64_t length = shmrt_read_u64(at + 1);
	if (kind != 1 && kind != 2 && kind != 4)
		return shmrt_decode_corrupt("a string has characters of an unknown size");
	if (length > (uint64_t)(decoder->end - decoder->at) / kind)
		return shmrt_decode_corrupt("a string passes its end");
	const uint8_t *bytes = take(decoder, (size_t)length * kind);
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

static PyObject *get_object(struct shmrt_decoder *decoder, int depth);

static PyObject *get_tuple(struct shmrt_decoder *decoder, Py_ssize_t count, int depth) {
	PyObject *tuple = PyTuple_New(count);
	if (tuple == NULL)
		return NULL;
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *item = get_object(decoder, depth + 1);
		if (item == NULL) {
			Py_DECREF(tuple);
			return NULL;
		}
		PyTuple_SET_ITEM(tuple, i, item);
	}
	return tuple;
}

static PyObject *get_list(struct shmrt_decoder *decoder, int depth) {
	Py_ssize_t count;
	if (take_count(decoder, 1, &count) < 0)
		return NULL;
	PyObject *list = PyList_New(count);
	if (list == NULL)
		return NULL;
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *item = get_object(decoder, depth + 1);
		if (item == NULL) {
			Py_DECREF(list);
			return NULL;
		}
		PyList_SET_ITEM(list, i, item);
	}
	return list;
}

/* A container as a dict key or set item: no correct writer makes it. */
static void *not_hashable(void) {
	if (PyErr_ExceptionMatches(PyExc_TypeError)) {
		PyErr_Clear();
		shmrt_decode_corrupt("a key cannot be hashed");
	}
	return NULL;
}

static PyObject *get_dict(struct shmrt_decoder *decoder, int depth) {
	Py_ssize_t count;
	if (take_count(decoder, 2, &count) < 0)
		return NULL;
	PyObject *dict = PyDict_New();
	for (Py_ssize_t i = 0; dict != NULL && i < count; i++) {
		PyObject *key = get_object(decoder, depth + 1);
		PyObject *value = key ? get_object(decoder, depth + 1) : NULL;
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

static PyObject *get_set(struct shmrt_decoder *decoder, int depth, bool frozen) {
	Py_ssize_t count;
	if (take_count(decoder, 1, &count) < 0)
		return NULL;
	PyObject *set = frozen ? PyFrozenSet_New(NULL) : PySet_New(NULL);
	for (Py_ssize_t i = 0; set != NULL && i < count; i++) {
		PyObject *item = get_object(decoder, depth + 1);
		if (item == NULL || PySet_Add(set, item) < 0) {
			if (item != NULL)
				not_hashable();
			Py_CLEAR(set);
		}
		Py_XDECREF(item);
	}
	return set;
}

static PyObject *get_array(struct shmrt_decoder *decoder) {
	const uint8_t *head = take(decoder, 3), *lengths = NULL, *at = NULL;
	if (head != NULL && (lengths = take(decoder, 8 * (size_t)head[2])) != NULL)
		at = take(decoder, 1);
	if (at == NULL)
		return NULL;
	PyObject *buffer = NULL;
	if (*at != 0) {
		size_t size;
		if ((at = take_sized(decoder, false, &size)) != NULL)
			buffer = PyByteArray_FromStringAndSize((const char *)at, (Py_ssize_t)size);
	} else if ((at = take(decoder, 4)) != NULL) {
		buffer = shmrt_decode_buffer_view(decoder, shmrt_read_u32(at));
	}
	if (buffer == NULL)
		return NULL;
	PyObject *array = shmrt_array_make(head, lengths, buffer);
	Py_DECREF(buffer);
	return array;
}

static PyObject *get_object(struct shmrt_decoder *decoder, int depth) {
	const uint8_t *at = take(decoder, 1);
	if (at == NULL)
		return NULL;
	size_t size;
	Py_ssize_t count;
	switch (*at) {
	case SHMRT_TAG_NONE:
		return Py_NewRef(Py_None);
	case SHMRT_TAG_FALSE:
		return Py_NewRef(Py_False);
	case SHMRT_TAG_TRUE:
		return Py_NewRef(Py_True);
	case SHMRT_TAG_INT8:
		return (at = take(decoder, 1)) ? PyLong_FromLong((int8_t)*at) : NULL;
	case SHMRT_TAG_INT32:
		return (at = take(decoder, 4)) ? PyLong_FromLong(shmrt_read_i32(at)) : NULL;
	case SHMRT_TAG_INT64:
		return (at = take(decoder, 8)) ? PyLong_FromLongLong(shmrt_read_i64(at)) : NULL;
	case SHMRT_TAG_INT_BIG:
		if ((at = take(decoder, 4)) == NULL)
			return NULL;
		size = shmrt_read_u32(at);
		return (at = take(decoder, size)) ? _PyLong_FromByteArray(at, size, 1, 1) : NULL;
	case SHMRT_TAG_FLOAT:
		return (at = take(decoder, 8)) ? PyFloat_FromDouble(shmrt_read_f64(at)) : NULL;
	case SHMRT_TAG_COMPLEX:
		return (at = take(decoder, 16)) ? PyComplex_FromDoubles(shmrt_read_f64(at), shmrt_read_f64(at + 8)) : NULL;
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
		at = take(decoder, 4);
		return at ? shmrt_decode_buffer_copy(decoder, shmrt_read_u32(at), as_bytes) : NULL;
	}
	case SHMRT_TAG_ARRAY:
		return get_array(decoder);
	default:
		break;
	}
	if (depth > SHMRT_CODEC_DEPTH_MAX + 1)
		return shmrt_decode_corrupt("it is nested too deeply");
	switch (*at) {
	case SHMRT_TAG_TUPLE8:
		if ((at = take(decoder, 1)) == NULL)
			return NULL;
		if (*at > decoder->end - decoder->at)
			return shmrt_decode_corrupt("it announces more items than it has bytes");
		return get_tuple(decoder, *at, depth);
	case SHMRT_TAG_TUPLE32:
		return take_count(decoder, 1, &count) < 0 ? NULL : get_tuple(decoder, count, depth);
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

/* The body of a message: inline, or in its first block (held by *view then). */
static int open_body(struct shmrt_decoder *decoder, Py_buffer *view, const uint8_t *bytes, size_t size, uint16_t flags) {
	const char *reason = "";
	view->obj = NULL;
	if (flags & SHMRT_MESSAGE_BODY_IN_BLOCK) {
		if (decoder->buffer_count == 0 || size != 0) {
			shmrt_decode_corrupt("its body should be in a block");
			return -1;
		}
		if (PyObject_GetBuffer(decoder->buffers[0], view, PyBUF_SIMPLE) < 0)
			return -1;
		bytes = view->buf;
		size = (size_t)view->len;
	}
	if (shmrt_body_parse(bytes, size, &decoder->body, &reason) != SHMRT_OK) {
		PyBuffer_Release(view);
		shmrt_decode_corrupt(reason);
		return -1;
	}
	decoder->at = decoder->body.codec;
	decoder->end = decoder->at + decoder->body.codec_size;
	return 0;
}

static int check_end(struct shmrt_decoder *decoder) {
	if (decoder->at == decoder->end)
		return 0;
	shmrt_decode_corrupt("bytes are left over after the object");
	return -1;
}

PyObject *shmrt_decode_message(const uint8_t *inline_bytes, uint32_t inline_size, uint16_t flags,
			       PyObject *const *buffers, uint16_t buffer_count, bool allow_pickle) {
	struct shmrt_decoder decoder = {.buffers = buffers, .buffer_count = buffer_count, .allow_pickle = allow_pickle};
	Py_buffer view;
	if (open_body(&decoder, &view, inline_bytes, inline_size, flags) < 0)
		return NULL;
	PyObject *object = get_object(&decoder, 0);
	if (object != NULL && check_end(&decoder) < 0)
		Py_CLEAR(object);
	PyBuffer_Release(&view);
	return object;
}

static int get_call(struct shmrt_decoder *decoder, PyObject **args, PyObject **kwargs) {
	const uint8_t *at = take(decoder, 9);
	if (at == NULL)
		return -1;
	uint64_t positional = shmrt_read_u32(at + 1), named = shmrt_read_u32(at + 5);
	if (positional + 2 * named > (uint64_t)(decoder->end - decoder->at)) {
		shmrt_decode_corrupt("it announces more arguments than it has bytes");
		return -1;
	}
	if ((*args = get_tuple(decoder, (Py_ssize_t)positional, 0)) == NULL)
		return -1;
	if (named == 0)
		return 0;
	if ((*kwargs = PyDict_New()) == NULL)
		return -1;
	for (uint64_t i = 0; i < named; i++) {
		PyObject *name = get_object(decoder, 1), *value = NULL;
		int outcome = -1;
		if (name != NULL && !PyUnicode_CheckExact(name))
			shmrt_decode_corrupt("the name of an argument is no string");
		else if (name != NULL && (value = get_object(decoder, 1)) != NULL)
			outcome = PyDict_SetItem(*kwargs, name, value);
		Py_XDECREF(name);
		Py_XDECREF(value);
		if (outcome < 0)
			return -1;
	}
	return 0;
}

static int split_pair(PyObject *pair, PyObject **args, PyObject **kwargs) {
	if (pair == NULL)
		return -1;
	if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyTuple_CheckExact(PyTuple_GET_ITEM(pair, 0)) ||
	    !PyDict_CheckExact(PyTuple_GET_ITEM(pair, 1))) {
		Py_DECREF(pair);
		shmrt_decode_corrupt("it is no call");
		return -1;
	}
	*args = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
	if (PyDict_GET_SIZE(PyTuple_GET_ITEM(pair, 1)) > 0)
		*kwargs = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
	Py_DECREF(pair);
	return 0;
}

int shmrt_decode_call(const uint8_t *inline_bytes, uint32_t inline_size, uint16_t flags, PyObject *const *buffers,
		      uint16_t buffer_count, PyObject **args, PyObject **kwargs) {
	struct shmrt_decoder decoder = {.buffers = buffers, .buffer_count = buffer_count, .allow_pickle = true};
	Py_buffer view;
	*args = *kwargs = NULL;
	if (open_body(&decoder, &view, inline_bytes, inline_size, flags) < 0)
		return -1;
	int outcome;
	if (decoder.at[0] == SHMRT_TAG_CALL)
		outcome = get_call(&decoder, args, kwargs);
	else
		outcome = split_pair(get_object(&decoder, 0), args, kwargs);
	if (outcome == 0)
		outcome = check_end(&decoder);
	if (outcome < 0) {
		Py_CLEAR(*args);
		Py_CLEAR(*kwargs);
	}
	PyBuffer_Release(&view);
	return outcome;
}
