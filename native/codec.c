/* codec.c -- see codec.h. Checks and writes the outline of a body; the objects in it are py_encode.c's and py_decode.c's. */
#include "codec.h"

int shmrt_body_parse(const uint8_t *bytes, size_t size, struct shmrt_body *body, const char **reason) {
	if (size < 2) {
		*reason = "it is shorter than any message";
		return SHMRT_CORRUPT;
	}
	*body = (struct shmrt_body){.codec = bytes + 1, .codec_size = size - 1, .start = bytes, .size = size};
	if (bytes[0] == SHMRT_BODY_PLAIN)
		return SHMRT_OK;
	if (bytes[0] != SHMRT_BODY_BUFFERS) {
		*reason = "its kind is unknown";
		return SHMRT_CORRUPT;
	}
	if (size < 2 + shmrt_body_table_size(1)) {
		*reason = "its table of buffers is cut off";
		return SHMRT_CORRUPT;
	}
	uint64_t codec_size = shmrt_read_u64(bytes + size - SHMRT_BODY_TRAILER);
	uint32_t count = shmrt_read_u32(bytes + size - 4);
	size_t room = size - 1 - SHMRT_BODY_TRAILER;
	if (count == 0 || count > room / sizeof(struct shmrt_body_buffer)) {
		*reason = "its number of buffers is out of range";
		return SHMRT_CORRUPT;
	}
	size_t table_size = count * sizeof(struct shmrt_body_buffer);
	if (codec_size < 1 || codec_size > room - table_size) {
		*reason = "its codec size is out of range";
		return SHMRT_CORRUPT;
	}
	body->codec_size = (size_t)codec_size;
	body->table = bytes + size - SHMRT_BODY_TRAILER - table_size;
	body->buffer_count = count;
	return SHMRT_OK;
}

int shmrt_body_buffer(const struct shmrt_body *body, uint32_t index, uint32_t block_count,
		      struct shmrt_body_buffer *buffer, const char **reason) {
	if (index >= body->buffer_count) {
		*reason = "it names a buffer that it does not have";
		return SHMRT_CORRUPT;
	}
	memcpy(buffer, body->table + (size_t)index * sizeof(*buffer), sizeof(*buffer));
	if (buffer->place > block_count) {
		*reason = "a buffer lies in a block that it does not have";
		return SHMRT_CORRUPT;
	}
	if (buffer->place == 0 &&
	    (buffer->offset > body->size || buffer->size > body->size - buffer->offset)) {
		*reason = "an embedded buffer passes its end";
		return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}

void shmrt_body_write_table(uint8_t *at, const struct shmrt_body_buffer *buffers, uint32_t count, uint64_t codec_size) {
	memcpy(at, buffers, count * sizeof(*buffers));
	at += count * sizeof(*buffers);
	shmrt_write_u64(at, codec_size);
	shmrt_write_u32(at + 8, count);
}

bool shmrt_codec_is_ascii(const uint8_t *bytes, size_t size) {
	uint64_t high = 0;
	size_t i = 0;
	for (; i + 8 <= size; i += 8)
		high |= shmrt_read_u64(bytes + i);
	for (; i < size; i++)
		high |= bytes[i];
	return (high & UINT64_C(0x8080808080808080)) == 0;
}
