/* py_encoder.c -- the encoder's memory: bytes, out-of-band buffers, and what was met already.
 *
 * An encoder is used again and again, so its memory stays; only that of one big message is given back. The set of what was
 * met is open addressing on the objects' addresses and lives for one encoding: no object dies meanwhile, so an address
 * stands for one object.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_codec.h"

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

void shmrt_encoder_release_buffers(struct shmrt_encoder *encoder, size_t keep) {
	while (encoder->buffer_count > keep) {
		Py_buffer view = encoder->buffers[--encoder->buffer_count];
		PyBuffer_Release(&view); /* may run code: the encoder no longer names it */
	}
}

void shmrt_encoder_reset(struct shmrt_encoder *encoder) {
	encoder->size = 0;
	encoder->flags = 0;
	if (encoder->buffer_count)
		shmrt_encoder_release_buffers(encoder, 0);
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

/* 0: new, now remembered. SHMRT_ENCODE_SLOW: met before. -1: no memory. */
int shmrt_encoder_seen_many(struct shmrt_encoder *encoder, const void *object) {
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
		return SHMRT_ENCODE_SLOW;
	encoder->seen_set[slot] = object;
	encoder->seen_count++;
	return 0;
}
