/* py_codec.h -- what the files of the codec share: py_codec.c (builtins), py_pickle.c (all else),
 * py_message.c (buffers and blocks). Others use py_message.h.
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
/* Takes over `view`; its index, or -1 with the view released. */
Py_ssize_t shmrt_encoder_add_buffer(struct shmrt_encoder *, Py_buffer *view);

/* Appends TAG_PICKLE and the pickle of `object`; -1 with an exception. Runs user code. */
int shmrt_pickle_append(struct shmrt_encoder *, PyObject *object);

/* numpy.ndarray if this process has it; borrowed. */
PyTypeObject *shmrt_array_type(void);
/* Appends an exact ndarray: 0, -1 with an exception, 1 if pickle has to take it. */
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
/* Buffer `index` of the body as bytes or as an object for pickle (a view on the block, or a copy). New reference. */
PyObject *shmrt_decode_buffer_copy(const struct shmrt_decoder *, uint32_t index, bool as_bytes);
PyObject *shmrt_decode_buffer_view(const struct shmrt_decoder *, uint32_t index);
/* at and end span the pickle. */
PyObject *shmrt_pickle_load(const struct shmrt_decoder *, const uint8_t *bytes, size_t size);

#endif
