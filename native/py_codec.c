/* py_codec.c -- one body: an object or a call to bytes and back.
 *
 * Here is decided what a body is: builtins by the fast codec (py_encode.c, py_decode.c), one pickle of all of it where
 * that does not go (py_pickle.c), and a call either as its arguments one by one or as a pickled pair. After a failure the
 * encoder is as it was before, with the buffers released that the attempt had added.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

/* ---- objects ------------------------------------------------------------------------------------------- */

/* A body begins with its kind; so this is its start, or, in an encoder that is not empty, a piece. */
static int begin_body(struct shmrt_encoder *encoder) {
	if (encoder->size != 0)
		return 0;
	return shmrt_encoder_put_tag(encoder, SHMRT_BODY_PLAIN);
}

int shmrt_encode(struct shmrt_encoder *encoder, PyObject *object) {
	size_t start = encoder->size, buffers = encoder->buffer_count;
	if (begin_body(encoder) < 0)
		return -1;
	int outcome = shmrt_encode_object(encoder, object, 0);
	shmrt_encoder_forget(encoder);
	if (SHMRT_LIKELY(outcome == 0))
		return 0;
	encoder->size = start;
	shmrt_encoder_release_buffers(encoder, buffers);
	if (outcome == SHMRT_ENCODE_SLOW) {
		if (begin_body(encoder) == 0 && shmrt_pickle_append(encoder, object) == 0)
			return 0;
		encoder->size = start;
		shmrt_encoder_release_buffers(encoder, buffers);
	}
	return -1;
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
	/* The outline that open_body would check says no more than this. */
	if (SHMRT_LIKELY(inline_size >= 2 && inline_bytes[0] == SHMRT_BODY_PLAIN && (flags & SHMRT_MESSAGE_BODY_IN_BLOCK) == 0))
		return shmrt_decode_plain(inline_bytes + 1, inline_size - 1, allow_pickle);
	struct shmrt_decoder decoder = {.buffers = buffers, .buffer_count = buffer_count, .allow_pickle = allow_pickle};
	Py_buffer view;
	if (open_body(&decoder, &view, inline_bytes, inline_size, flags) < 0)
		return NULL;
	PyObject *object = shmrt_decode_object(&decoder, 0);
	if (object != NULL && check_end(&decoder) < 0)
		Py_CLEAR(object);
	PyBuffer_Release(&view);
	return object;
}

PyObject *shmrt_decode_piece(const uint8_t *bytes, size_t size) { return shmrt_decode_plain(bytes, size, true); }

int shmrt_encoder_append(struct shmrt_encoder *encoder, const void *bytes, size_t size) {
	uint8_t *at = shmrt_encoder_take(encoder, size);
	if (at == NULL)
		return -1;
	memcpy(at, bytes, size);
	return 0;
}

void shmrt_encoder_cut(struct shmrt_encoder *encoder, size_t size) {
	encoder->size = size;
	shmrt_encoder_release_buffers(encoder, 0);
}

/* ---- calls --------------------------------------------------------------------------------------------- */

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
	int outcome = shmrt_encode_arguments(encoder, args, nargs, kwnames);
	shmrt_encoder_forget(encoder);
	if (SHMRT_LIKELY(outcome == 0))
		return 0;
	encoder->size = start;
	shmrt_encoder_release_buffers(encoder, buffers);
	if (outcome != SHMRT_ENCODE_SLOW)
		return -1;
	PyObject *pair = call_as_pair(args, nargs, kwnames);
	if (pair == NULL)
		return -1;
	outcome = begin_body(encoder) < 0 ? -1 : shmrt_pickle_append(encoder, pair);
	Py_DECREF(pair);
	if (outcome < 0) {
		encoder->size = start;
		shmrt_encoder_release_buffers(encoder, buffers);
	}
	return outcome;
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

/* *args a tuple, *kwargs a dict or left as it is. -1 with an exception; what was set stays set. */
static int decode_arguments(struct shmrt_decoder *decoder, PyObject **args, PyObject **kwargs) {
	const uint8_t *at = shmrt_decoder_take(decoder, 9);
	if (at == NULL)
		return -1;
	uint64_t positional = shmrt_read_u32(at + 1), named = shmrt_read_u32(at + 5);
	if (positional + 2 * named > (uint64_t)(decoder->end - decoder->at)) {
		shmrt_decode_corrupt("it announces more arguments than it has bytes");
		return -1;
	}
	if ((*args = shmrt_decode_tuple(decoder, (Py_ssize_t)positional, 0)) == NULL)
		return -1;
	if (named == 0)
		return 0;
	if ((*kwargs = PyDict_New()) == NULL)
		return -1;
	for (uint64_t i = 0; i < named; i++) {
		PyObject *name = shmrt_decode_object(decoder, 1), *value = NULL;
		int outcome = -1;
		if (name != NULL && !PyUnicode_CheckExact(name))
			shmrt_decode_corrupt("the name of an argument is no string");
		else if (name != NULL && (value = shmrt_decode_object(decoder, 1)) != NULL)
			outcome = PyDict_SetItem(*kwargs, name, value);
		Py_XDECREF(name);
		Py_XDECREF(value);
		if (outcome < 0)
			return -1;
	}
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
		outcome = decode_arguments(&decoder, args, kwargs);
	else
		outcome = split_pair(shmrt_decode_object(&decoder, 0), args, kwargs);
	if (outcome == 0)
		outcome = check_end(&decoder);
	if (outcome < 0) {
		Py_CLEAR(*args);
		Py_CLEAR(*kwargs);
	}
	PyBuffer_Release(&view);
	return outcome;
}
