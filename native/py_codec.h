/* py_codec.h -- what the files of the codec share: py_codec.c (bodies), py_encoder.c (memory), py_encode.c and
 * py_decode.c (builtins), py_pickle.c (all else), py_message*.c (buffers and blocks). Others use py_message.h.
 */
#ifndef SHMRT_PY_CODEC_H
#define SHMRT_PY_CODEC_H

#include "codec.h"
#include "py_message.h"

/* Room for `size` more bytes; NULL with MemoryError. */
uint8_t *shmrt_encoder_grow(struct shmrt_encoder *, size_t size);
static inline uint8_t *shmrt_encoder_take(struct shmrt_encoder *encoder, size_t size) {
	if (SHMRT_UNLIKELY(encoder->capacity - encoder->size < size) && shmrt_encoder_grow(encoder, size) == NULL)
		return NULL;
	uint8_t *at = encoder->bytes + encoder->size;
	encoder->size += size;
	return at;
}
static inline int shmrt_encoder_put_tag(struct shmrt_encoder *encoder, uint8_t tag) {
	uint8_t *at = shmrt_encoder_take(encoder, 1);
	if (at == NULL)
		return -1;
	*at = tag;
	return 0;
}
/* Takes over `view`; its index, or -1 with the view released. */
Py_ssize_t shmrt_encoder_add_buffer(struct shmrt_encoder *, Py_buffer *view);
/* Releases all buffers but the first `keep`: an attempt that failed had added them. */
void shmrt_encoder_release_buffers(struct shmrt_encoder *, size_t keep);
/* Once more than a few objects were met. 0: new, now remembered. SHMRT_ENCODE_SLOW: met before. -1: no memory. */
int shmrt_encoder_seen_many(struct shmrt_encoder *, const void *object);
/* Forgets what was met; after each object or call. */
static inline void shmrt_encoder_forget(struct shmrt_encoder *encoder) {
	encoder->seen_count = 0;
	if (SHMRT_UNLIKELY(encoder->seen_set != NULL)) {
		PyMem_Free(encoder->seen_set);
		encoder->seen_set = NULL;
		encoder->seen_capacity = 0;
	}
}

#define SHMRT_ENCODE_SLOW 1 /* not for the fast codec: pickle it */
/* Appends one builtin at this depth: 0, -1 with an exception, or SHMRT_ENCODE_SLOW. */
int shmrt_encode_object(struct shmrt_encoder *, PyObject *object, int depth);
/* Appends the arguments of a call, by the conventions of vectorcall: the same. */
int shmrt_encode_arguments(struct shmrt_encoder *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

/* Appends TAG_PICKLE and the pickle of `object`; -1 with an exception. Runs user code. */
int shmrt_pickle_append(struct shmrt_encoder *, PyObject *object);

/* numpy.ndarray if this process has it; borrowed. */
PyTypeObject *shmrt_array_type(void);
/* Appends an exact ndarray: 0, -1 with an exception, SHMRT_ENCODE_SLOW if pickle has to take it. */
int shmrt_array_append(struct shmrt_encoder *, PyObject *array);
/* head: character, order, dimensions. New reference: an array on `buffer`. */
PyObject *shmrt_array_make(const uint8_t *head, const uint8_t *lengths, PyObject *buffer);

/* One message being decoded. */
struct shmrt_decoder {
	const uint8_t *at, *end;
	struct shmrt_body body;
	PyObject *const *buffers; /* one per block reference */
	uint16_t buffer_count;
	bool allow_pickle;
};
/* Always NULL, with SegmentError("corrupt message: reason"). */
void *shmrt_decode_corrupt(const char *reason);
/* `size` bytes at the reader, which moves past them; NULL with SegmentError. */
static inline const uint8_t *shmrt_decoder_take(struct shmrt_decoder *decoder, size_t size) {
	if (SHMRT_UNLIKELY((size_t)(decoder->end - decoder->at) < size))
		return shmrt_decode_corrupt("it ends in the middle of an object");
	const uint8_t *at = decoder->at;
	decoder->at += size;
	return at;
}
/* The next object, new reference. */
PyObject *shmrt_decode_object(struct shmrt_decoder *, int depth);
/* The one object that all of these bytes are, with no buffers: a plain body behind its kind, or a piece. New reference. */
PyObject *shmrt_decode_plain(const uint8_t *bytes, size_t size, bool allow_pickle);
/* A tuple of the next `count` objects, no more than bytes are left. New reference. */
PyObject *shmrt_decode_tuple(struct shmrt_decoder *, Py_ssize_t count, int depth);
/* Buffer `index` of the body as bytes or as an object for pickle (a view on the block, or a copy). New reference. */
PyObject *shmrt_decode_buffer_copy(const struct shmrt_decoder *, uint32_t index, bool as_bytes);
PyObject *shmrt_decode_buffer_view(const struct shmrt_decoder *, uint32_t index);
/* at and end span the pickle. */
PyObject *shmrt_pickle_load(const struct shmrt_decoder *, const uint8_t *bytes, size_t size);

/* ---- buffers (py_message_finish.c, py_message_arrays.c) ---- */
struct shmrt_copy {
	uint8_t *to;
	const uint8_t *from;
	size_t size;
};
/* All of them, `total` bytes; releases the GIL for 1 MiB or more. */
void shmrt_copy_all(const struct shmrt_copy *copies, size_t count, uint64_t total);
/* Adds the buffer's own block to the message if it may go by reference; false: it has to be copied. */
bool shmrt_message_try_reference(struct shmrt_encoder *, const Py_buffer *view, ShmrtArena *arena, struct shmrt_message *message,
				 uint64_t *offset);

#endif
