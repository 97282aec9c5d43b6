/* codec.h -- the wire form of an object's body: tags, little fixed-width fields, the table of buffers.
 *
 * Owns no shared bytes; no Python.h. A body is
 *
 *   kind:1 | codec bytes | embedded buffers | table: 24 bytes per buffer | codec size:8 | buffer count:4
 *
 * and with kind PLAIN, which has no buffers, only the first two. Fields are little-endian and unaligned. The
 * table stands at the end because the number of buffers is known only when the object was walked. Every
 * body is input: shmrt_body_parse checks it once, shmrt_body_buffer checks each entry.
 */
#ifndef SHMRT_CODEC_H
#define SHMRT_CODEC_H

#include "base.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire form is little-endian");

enum shmrt_body_kind {
	SHMRT_BODY_PLAIN = 0,
	SHMRT_BODY_BUFFERS = 1,
};

enum shmrt_tag {
	SHMRT_TAG_NONE = 0x01,  /* from here to BYTES64: objects that hold no others */
	SHMRT_TAG_FALSE,
	SHMRT_TAG_TRUE,
	SHMRT_TAG_INT8,         /* value:1 */
	SHMRT_TAG_INT32,        /* value:4 */
	SHMRT_TAG_INT64,        /* value:8 */
	SHMRT_TAG_INT_BIG,      /* size:4, two's complement */
	SHMRT_TAG_FLOAT,        /* value:8 */
	SHMRT_TAG_COMPLEX,      /* real:8, imaginary:8 */
	SHMRT_TAG_ASCII8,       /* size:1, bytes */
	SHMRT_TAG_ASCII64,      /* size:8, bytes */
	SHMRT_TAG_UNICODE,      /* bytes per character:1, characters:8, characters */
	SHMRT_TAG_BYTES8,       /* size:1, bytes */
	SHMRT_TAG_BYTES64,      /* size:8, bytes */
	SHMRT_TAG_BYTEARRAY,    /* size:8, bytes */
	SHMRT_TAG_TUPLE8,       /* count:1, items */
	SHMRT_TAG_TUPLE32,      /* count:4, items */
	SHMRT_TAG_LIST,         /* count:4, items */
	SHMRT_TAG_DICT,         /* count:4, key, value, ... */
	SHMRT_TAG_SET,          /* count:4, items */
	SHMRT_TAG_FROZENSET,    /* count:4, items */
	SHMRT_TAG_BUFFER_BYTES, /* buffer:4; arrives as bytes */
	SHMRT_TAG_BUFFER_BYTEARRAY, /* buffer:4; arrives as bytearray */
	SHMRT_TAG_PICKLE,       /* size:8, pickle; the whole object. Its buffers are all the body's, in order */
	SHMRT_TAG_ARRAY,        /* py_array.c: character:1, order:1, dimensions:1, lengths:8 each, then a buffer or bytes */
	SHMRT_TAG_CALL,         /* positional:4, objects, named:4, (name, object)... */
};

#define SHMRT_CODEC_DEPTH_MAX 64

struct shmrt_body {
	const uint8_t *codec;
	size_t codec_size;
	const uint8_t *start; /* of the whole body; offsets of embedded buffers count from here */
	size_t size;
	const uint8_t *table;
	uint32_t buffer_count;
};

/* Where one buffer lies: in the body itself, or in one of the message's blocks. */
struct shmrt_body_buffer {
	uint64_t offset;
	uint64_t size;
	uint32_t place; /* 0: in the body; otherwise block place - 1 */
	uint32_t flags; /* none yet */
};
_Static_assert(sizeof(struct shmrt_body_buffer) == 24, "the wire form changed");

#define SHMRT_BODY_TRAILER 12

static inline size_t shmrt_body_table_size(size_t buffer_count) {
	return buffer_count == 0 ? 0 : buffer_count * sizeof(struct shmrt_body_buffer) + SHMRT_BODY_TRAILER;
}

/* Checks the outline. *reason is a constant sentence when the answer is SHMRT_CORRUPT. */
SHMRT_MUST_USE int shmrt_body_parse(const uint8_t *bytes, size_t size, struct shmrt_body *, const char **reason);
/* Entry `index` of the table; its place is at most `block_count`, embedded ranges lie inside the body. */
SHMRT_MUST_USE int shmrt_body_buffer(const struct shmrt_body *, uint32_t index, uint32_t block_count,
				     struct shmrt_body_buffer *, const char **reason);
/* Writes table and trailer to `at`, shmrt_body_table_size bytes. */
void shmrt_body_write_table(uint8_t *at, const struct shmrt_body_buffer *, uint32_t count, uint64_t codec_size);

/* All of the bytes are below 128. */
bool shmrt_codec_is_ascii(const uint8_t *bytes, size_t size);

#define SHMRT_CODEC_FIELD(type, name)                                                                                  \
	static inline void shmrt_write_##name(uint8_t *at, type value) { memcpy(at, &value, sizeof(value)); }          \
	static inline type shmrt_read_##name(const uint8_t *at) {                                                      \
		type value;                                                                                            \
		memcpy(&value, at, sizeof(value));                                                                     \
		return value;                                                                                          \
	}
SHMRT_CODEC_FIELD(uint32_t, u32)
SHMRT_CODEC_FIELD(uint64_t, u64)
SHMRT_CODEC_FIELD(int32_t, i32)
SHMRT_CODEC_FIELD(int64_t, i64)
SHMRT_CODEC_FIELD(double, f64)

/* Whether a body is one object that holds no other (None, a number, a string): decoding it makes nothing that the
 * collector knows, so it runs no code of the user's. */
static inline bool shmrt_body_is_single(const uint8_t *bytes, uint32_t size) {
	return size >= 2 && bytes[0] == SHMRT_BODY_PLAIN && bytes[1] >= SHMRT_TAG_NONE && bytes[1] <= SHMRT_TAG_BYTES64;
}

#endif
