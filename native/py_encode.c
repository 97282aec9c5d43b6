/* py_encode.c -- exact builtins, and the arguments of a call, to bytes: without user code and without pickle.
 *
 * Encoding walks the object once. Whatever is not an exact builtin, is nested deeper than
 * SHMRT_CODEC_DEPTH_MAX (so also every cycle), or is met twice makes the whole object one pickle instead:
 * that keeps identity as pickle does.
 *
 * No allocation of Python happens while encoding (a collection could run finalisers that change what is
 * being walked), which is why sets are read by _PySet_NextEntry where it exists.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

/* ---- what was met already ---------------------------------------------------------------------------- */

static inline int seen_add(struct shmrt_encoder *encoder, const void *object) {
	if (encoder->seen_count >= 8)
		return shmrt_encoder_seen_many(encoder, object);
	for (size_t i = 0; i < encoder->seen_count; i++)
		if (encoder->seen[i] == object)
			return SHMRT_ENCODE_SLOW;
	encoder->seen[encoder->seen_count++] = object;
	return 0;
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

/* ---- values without parts ------------------------------------------------------------------------------ */

#define ITEM_ROOM 16 /* bytes that are enough for any of them but for the characters of a string */

/* Names and words are two words that overlap. */
static inline void copy_short(uint8_t *to, const void *from, size_t size) {
	if (size - 8 <= 8) {
		uint64_t first = shmrt_read_u64(from), last = shmrt_read_u64((const uint8_t *)from + size - 8);
		shmrt_write_u64(to, first);
		shmrt_write_u64(to + size - 8, last);
	} else {
		memcpy(to, from, size);
	}
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

#define LONG_MOST 9 /* bytes that write_long writes */

/* How many bytes it took. */
static inline size_t write_long(uint8_t *at, long long value) {
	if (value >= INT8_MIN && value <= INT8_MAX) {
		at[0] = SHMRT_TAG_INT8;
		at[1] = (uint8_t)(int8_t)value;
		return 2;
	}
	if (value >= INT32_MIN && value <= INT32_MAX) {
		at[0] = SHMRT_TAG_INT32;
		shmrt_write_i32(at + 1, (int32_t)value);
		return 5;
	}
	at[0] = SHMRT_TAG_INT64;
	shmrt_write_i64(at + 1, value);
	return LONG_MOST;
}

static int put_long(struct shmrt_encoder *encoder, PyObject *object) {
	int overflow;
	long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
	uint8_t *at;
	if (SHMRT_LIKELY(overflow == 0)) {
		if (SHMRT_UNLIKELY(encoder->capacity - encoder->size < LONG_MOST) && shmrt_encoder_grow(encoder, LONG_MOST) == NULL)
			return -1;
		encoder->size += write_long(encoder->bytes + encoder->size, value);
		return 0;
	}
	size_t bits = _PyLong_NumBits(object);
	if (bits >= UINT32_MAX)
		return SHMRT_ENCODE_SLOW;
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

/* ---- containers ---------------------------------------------------------------------------------------- */

static int put_count(struct shmrt_encoder *encoder, uint8_t tag, Py_ssize_t count) {
	if (count > UINT32_MAX)
		return SHMRT_ENCODE_SLOW;
	uint8_t *at = shmrt_encoder_take(encoder, 5);
	if (at == NULL)
		return -1;
	at[0] = tag;
	shmrt_write_u32(at + 1, (uint32_t)count);
	return 0;
}

/* What most items are is written here, without a call for each; all else is shmrt_encode_object's. The items stay where they are:
 * a tuple's. */
static int put_items(struct shmrt_encoder *encoder, PyObject *const *items, Py_ssize_t count, int depth) {
	uint8_t *at = encoder->bytes + encoder->size, *end = encoder->bytes + encoder->capacity;
	for (PyObject *const *const last = items + count; items != last; items++) {
		PyObject *object = *items;
		PyTypeObject *type = Py_TYPE(object);
		size_t room = (size_t)(end - at), size;
		if (SHMRT_UNLIKELY(room < ITEM_ROOM)) {
			goto other;
		} else if (type == &PyUnicode_Type) {
			if (!PyUnicode_IS_COMPACT_ASCII(object) || (size = (size_t)PyUnicode_GET_LENGTH(object)) >= SHARED_LEAF_MIN ||
			    room < ITEM_ROOM + size)
				goto other;
			at[0] = SHMRT_TAG_ASCII8;
			at[1] = (uint8_t)size;
			copy_short(at + 2, ((PyASCIIObject *)object) + 1, size);
			at += 2 + size;
		} else if (type == &PyBytes_Type) {
			if ((size = (size_t)PyBytes_GET_SIZE(object)) >= SHARED_LEAF_MIN || room < ITEM_ROOM + size)
				goto other;
			at[0] = SHMRT_TAG_BYTES8;
			at[1] = (uint8_t)size;
			memcpy(at + 2, PyBytes_AS_STRING(object), size);
			at += 2 + size;
		} else if (type == &PyLong_Type) {
			int overflow;
			long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
			if (SHMRT_UNLIKELY(overflow != 0))
				goto other;
			at += write_long(at, value);
		} else if (type == &PyFloat_Type) {
			at[0] = SHMRT_TAG_FLOAT;
			shmrt_write_f64(at + 1, PyFloat_AS_DOUBLE(object));
			at += 9;
		} else if (object == Py_None) {
			*at++ = SHMRT_TAG_NONE;
		} else if (type == &PyBool_Type) {
			*at++ = object == Py_True ? SHMRT_TAG_TRUE : SHMRT_TAG_FALSE;
		} else {
		other:
			encoder->size = (size_t)(at - encoder->bytes);
			int outcome = shmrt_encode_object(encoder, object, depth);
			if (outcome != 0)
				return outcome;
			at = encoder->bytes + encoder->size;
			end = encoder->bytes + encoder->capacity;
		}
	}
	encoder->size = (size_t)(at - encoder->bytes);
	return 0;
}

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
	return put_items(encoder, ((PyTupleObject *)object)->ob_item, count, depth + 1);
}

static int put_list(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	CHECK_SEEN(encoder, object, depth);
	Py_ssize_t count = PyList_GET_SIZE(object);
	int outcome = put_count(encoder, SHMRT_TAG_LIST, count);
	for (Py_ssize_t i = 0; outcome == 0 && i < count; i++)
		outcome = shmrt_encode_object(encoder, PyList_GET_ITEM(object, i), depth + 1);
	return outcome;
}

static int put_dict(struct shmrt_encoder *encoder, PyObject *object, int depth) {
	CHECK_SEEN(encoder, object, depth);
	int outcome = put_count(encoder, SHMRT_TAG_DICT, PyDict_GET_SIZE(object));
	Py_ssize_t position = 0;
	PyObject *key, *value;
	while (outcome == 0 && PyDict_Next(object, &position, &key, &value)) {
		outcome = shmrt_encode_object(encoder, key, depth + 1);
		if (outcome == 0)
			outcome = shmrt_encode_object(encoder, value, depth + 1);
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
		outcome = shmrt_encode_object(encoder, key, depth + 1);
#else
	/* From 3.12 on an allocation no longer collects, so an iterator cannot run finalisers. */
	PyObject *iterator = PyObject_GetIter(object), *key;
	if (iterator == NULL)
		return -1;
	while (outcome == 0 && (key = PyIter_Next(iterator)) != NULL) {
		outcome = shmrt_encode_object(encoder, key, depth + 1);
		Py_DECREF(key);
	}
	Py_DECREF(iterator);
	if (outcome == 0 && PyErr_Occurred())
		return -1;
#endif
	return outcome;
}

/* ---- any object ---------------------------------------------------------------------------------------- */

/* 0, -1 with an exception, or SHMRT_ENCODE_SLOW. */
int shmrt_encode_object(struct shmrt_encoder *encoder, PyObject *object, int depth) {
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
		return shmrt_encoder_put_tag(encoder, SHMRT_TAG_NONE);
	if (type == &PyBool_Type)
		return shmrt_encoder_put_tag(encoder, object == Py_True ? SHMRT_TAG_TRUE : SHMRT_TAG_FALSE);
	if (depth > SHMRT_CODEC_DEPTH_MAX)
		return SHMRT_ENCODE_SLOW;
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
	return SHMRT_ENCODE_SLOW;
}

/* ---- the arguments of a call ---------------------------------------------------------------------------- */

int shmrt_encode_arguments(struct shmrt_encoder *encoder, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
	uint8_t *at = shmrt_encoder_take(encoder, 9);
	if (at == NULL)
		return -1;
	at[0] = SHMRT_TAG_CALL;
	shmrt_write_u32(at + 1, (uint32_t)nargs);
	shmrt_write_u32(at + 5, (uint32_t)named);
	for (Py_ssize_t i = 0; i < nargs; i++) {
		int outcome = shmrt_encode_object(encoder, args[i], 0); /* 0: remembered, `f(x, x)` */
		if (outcome != 0)
			return outcome;
	}
	for (Py_ssize_t i = 0; i < named; i++) {
		PyObject *name = PyTuple_GET_ITEM(kwnames, i);
		int outcome = PyUnicode_CheckExact(name) ? shmrt_encode_object(encoder, name, 1) : SHMRT_ENCODE_SLOW;
		if (outcome == 0)
			outcome = shmrt_encode_object(encoder, args[nargs + i], 0);
		if (outcome != 0)
			return outcome;
	}
	return 0;
}
