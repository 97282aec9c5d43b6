/* py_message_finish.c -- from encoded bytes to a message.
 *
 * Three shapes, the first that fits `inline_max` (block references count towards it):
 *   inline body, a block per big buffer;  body in the first block, a block per big buffer;
 *   one block that holds body and buffers, for messages of many buffers in small slots.
 * Blocks are WRITING|owner until the transport commits them: who dies before leaves nothing that outlives him.
 * An array that lies in a block already is not copied: its block is HELD|owner, with a share kept for the sender's own view,
 * or, where a task returns what it was lent, SENT by another, whose it stays.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"
#include "py_codec.h"

#define COPY_WITHOUT_GIL (1 << 20)
#define PACK_ALIGNMENT 64
#define REFERENCE_SIZE sizeof(struct shmrt_block_reference)

/* ---- the shape ---------------------------------------------------------------------------------------------- */

struct plan {
	size_t body_size;
	size_t block_count;
	uint64_t total;     /* bytes to be copied into blocks */
	bool body_in_block; /* the first block begins with the body */
	bool packed;        /* and holds every buffer, too */
};

static int make_plan(const struct shmrt_encoder *encoder, uint64_t inline_max, struct plan *plan) {
	size_t count = encoder->buffer_count;
	plan->body_size = encoder->size + shmrt_body_table_size(count);
	plan->block_count = count;
	plan->body_in_block = plan->packed = false;
	if (count <= SHMRT_MESSAGE_BLOCKS_MAX && plan->body_size <= UINT32_MAX &&
	    plan->body_size + count * REFERENCE_SIZE <= inline_max)
		return SHMRT_OK;
	plan->body_in_block = true;
	plan->block_count = count + 1;
	if (plan->block_count <= SHMRT_MESSAGE_BLOCKS_MAX && plan->block_count * REFERENCE_SIZE <= inline_max)
		return SHMRT_OK;
	plan->packed = true;
	plan->block_count = 1;
	return REFERENCE_SIZE <= inline_max ? SHMRT_OK : SHMRT_TOO_LARGE;
}

/* Codec bytes, then the buffers, then the table: one body that is whole in itself. */
static uint64_t packed_size(const struct shmrt_encoder *encoder) {
	uint64_t size = encoder->size;
	for (size_t i = 0; i < encoder->buffer_count; i++)
		size = shmrt_align_up(size, PACK_ALIGNMENT) + (uint64_t)encoder->buffers[i].len;
	return size + shmrt_body_table_size(encoder->buffer_count);
}

/* The most that this message can take in blocks, to say at once that it never fits. */
static uint64_t bytes_needed(const struct shmrt_encoder *encoder, const struct plan *plan) {
	if (plan->packed)
		return packed_size(encoder);
	uint64_t bytes = plan->body_in_block ? plan->body_size : 0;
	for (size_t i = 0; i < encoder->buffer_count; i++)
		bytes += (uint64_t)encoder->buffers[i].len;
	return bytes;
}

/* ---- blocks ------------------------------------------------------------------------------------------------- */

static int take_block(ShmrtArena *arena, uint64_t size, struct shmrt_message *message, uint8_t **data,
		      struct shmrt_shortage *shortage) {
	struct shmrt_block block;
	int outcome = shmrt_arena_alloc(&arena->arena, size == 0 ? 1 : size, arena->owner, &block, shortage);
	if (outcome == SHMRT_NO_SPACE && shmrt_arena_reclaim_dead(&arena->arena) > 0)
		outcome = shmrt_arena_alloc(&arena->arena, size == 0 ? 1 : size, arena->owner, &block, shortage);
	if (outcome != SHMRT_OK)
		return outcome;
	message->blocks[message->block_count] =
		(struct shmrt_block_reference){.block = block.block, .size = size, .generation = block.generation};
	message->states[message->block_count++] = SHMRT_BLOCK_WRITING;
	*data = block.data;
	return SHMRT_OK;
}

void shmrt_copy_all(const struct shmrt_copy *copies, size_t count, uint64_t total) {
	if (total < COPY_WITHOUT_GIL) {
		for (size_t i = 0; i < count; i++)
			memcpy(copies[i].to, copies[i].from, copies[i].size);
		return;
	}
	Py_BEGIN_ALLOW_THREADS
	for (size_t i = 0; i < count; i++)
		memcpy(copies[i].to, copies[i].from, copies[i].size);
	Py_END_ALLOW_THREADS
}

/* Takes blocks and says what is to be copied where. */
static int place_buffers(struct shmrt_encoder *encoder, ShmrtArena *arena, const struct plan *plan,
			 struct shmrt_message *message, struct shmrt_body_buffer *table, struct shmrt_copy *copies,
			 size_t *copy_count, struct shmrt_shortage *shortage) {
	uint8_t *data = NULL;
	uint64_t offset = encoder->size;
	*copy_count = 0;
	if (plan->body_in_block) {
		int outcome = take_block(arena, plan->packed ? packed_size(encoder) : plan->body_size,
					 message, &data, shortage);
		if (outcome != SHMRT_OK)
			return outcome;
		copies[(*copy_count)++] = (struct shmrt_copy){data, encoder->bytes, plan->packed ? encoder->size : plan->body_size};
	}
	for (size_t i = 0; i < encoder->buffer_count; i++) {
		const Py_buffer *view = &encoder->buffers[i];
		struct shmrt_body_buffer *entry = &table[i];
		*entry = (struct shmrt_body_buffer){.size = (uint64_t)view->len};
		if (plan->packed) {
			offset = shmrt_align_up(offset, PACK_ALIGNMENT);
			entry->offset = offset;
			entry->place = 1;
			copies[(*copy_count)++] = (struct shmrt_copy){data + offset, view->buf, (size_t)view->len};
			offset += (uint64_t)view->len;
			continue;
		}
		entry->place = (uint32_t)message->block_count + 1;
		if (shmrt_message_try_reference(encoder, view, arena, message, &entry->offset))
			continue;
		entry->offset = 0;
		uint8_t *at;
		int outcome = take_block(arena, (uint64_t)view->len, message, &at, shortage);
		if (outcome != SHMRT_OK)
			return outcome;
		copies[(*copy_count)++] = (struct shmrt_copy){at, view->buf, (size_t)view->len};
	}
	if (plan->packed)
		copies[(*copy_count)++] = (struct shmrt_copy){data + offset, encoder->bytes + encoder->size,
							shmrt_body_table_size(encoder->buffer_count)};
	return SHMRT_OK;
}

static int finish_with_blocks(struct shmrt_encoder *encoder, ShmrtArena *arena, const struct plan *plan,
			      struct shmrt_message *message, struct shmrt_shortage *shortage) {
	uint64_t total = bytes_needed(encoder, plan);
	if (total > arena->arena.limit_bytes) {
		shortage->needed = total;
		shortage->free = arena->arena.limit_bytes;
		return SHMRT_TOO_LARGE;
	}
	size_t count = encoder->buffer_count;
	int outcome = SHMRT_SYSTEM;
	size_t copy_count = 0;
	struct shmrt_body_buffer *table = PyMem_Malloc((count + 1) * sizeof(*table));
	struct shmrt_copy *copies = PyMem_Malloc((count + 2) * sizeof(*copies));
	message->blocks = PyMem_Malloc(plan->block_count * (sizeof(*message->blocks) + sizeof(*message->states)));
	if (table == NULL || copies == NULL || message->blocks == NULL) {
		PyErr_NoMemory();
		goto done;
	}
	message->states = (enum shmrt_block_state *)(void *)(message->blocks + plan->block_count);
	size_t table_size = shmrt_body_table_size(count), codec_size = encoder->size - 1;
	/* Behind the codec's bytes but not counted in: finishing again after NO_SPACE writes it anew. */
	if (shmrt_encoder_take(encoder, table_size) == NULL)
		goto done;
	encoder->size -= table_size;
	outcome = place_buffers(encoder, arena, plan, message, table, copies, &copy_count, shortage);
	if (outcome != SHMRT_OK)
		goto done;
	if (count > 0) {
		encoder->bytes[0] = SHMRT_BODY_BUFFERS;
		shmrt_body_write_table(encoder->bytes + encoder->size, table, (uint32_t)count, codec_size);
	}
	shmrt_copy_all(copies, copy_count, total);
	message->inline_bytes = encoder->bytes;
	message->inline_size = plan->body_in_block ? 0 : (uint32_t)plan->body_size;
	message->flags = (uint16_t)(encoder->flags | (plan->body_in_block ? SHMRT_MESSAGE_BODY_IN_BLOCK : 0));
done:
	PyMem_Free(table);
	PyMem_Free(copies);
	if (outcome != SHMRT_OK)
		shmrt_message_clear(message, arena, true);
	return outcome;
}

/* ---- no arena ----------------------------------------------------------------------------------------------- */

/* Without an arena everything has to be in the inline bytes. */
static int finish_embedded(struct shmrt_encoder *encoder, uint64_t inline_max, struct shmrt_message *message) {
	size_t count = encoder->buffer_count, size = encoder->size;
	uint64_t needed = shmrt_align_up(packed_size(encoder), 8);
	if (needed > inline_max || needed > UINT32_MAX)
		return SHMRT_TOO_LARGE;
	struct shmrt_body_buffer *table = PyMem_Malloc((count + 1) * sizeof(*table));
	if (table == NULL || shmrt_encoder_take(encoder, (size_t)needed - size) == NULL) {
		PyMem_Free(table);
		PyErr_NoMemory();
		return SHMRT_SYSTEM;
	}
	encoder->size = size;
	uint64_t offset = size;
	for (size_t i = 0; i < count; i++) {
		uint64_t aligned = shmrt_align_up(offset, PACK_ALIGNMENT);
		memset(encoder->bytes + offset, 0, aligned - offset);
		table[i] = (struct shmrt_body_buffer){.offset = aligned, .size = (uint64_t)encoder->buffers[i].len};
		memcpy(encoder->bytes + aligned, encoder->buffers[i].buf, (size_t)encoder->buffers[i].len);
		offset = aligned + (uint64_t)encoder->buffers[i].len;
	}
	encoder->bytes[0] = SHMRT_BODY_BUFFERS;
	shmrt_body_write_table(encoder->bytes + offset, table, (uint32_t)count, size - 1);
	PyMem_Free(table);
	message->inline_bytes = encoder->bytes;
	message->inline_size = (uint32_t)(offset + shmrt_body_table_size(count));
	message->flags = encoder->flags;
	return SHMRT_OK;
}

/* ---- finish and clear --------------------------------------------------------------------------------------- */

int shmrt_message_finish(struct shmrt_encoder *encoder, ShmrtArena *arena, uint64_t inline_max,
			 struct shmrt_message *message, struct shmrt_shortage *shortage) {
	struct plan plan;
	message->blocks = NULL;
	message->states = NULL;
	message->block_count = 0;
	if (SHMRT_LIKELY(encoder->buffer_count == 0 && encoder->size <= inline_max && encoder->size <= UINT32_MAX)) {
		message->inline_bytes = encoder->bytes;
		message->inline_size = (uint32_t)encoder->size;
		message->flags = encoder->flags;
		return SHMRT_OK;
	}
	if (arena == NULL && encoder->buffer_count > 0)
		return finish_embedded(encoder, inline_max, message);
	if (arena == NULL || make_plan(encoder, inline_max, &plan) != SHMRT_OK)
		return SHMRT_TOO_LARGE;
	return finish_with_blocks(encoder, arena, &plan, message, shortage);
}

void shmrt_message_clear(struct shmrt_message *message, ShmrtArena *arena, bool free_blocks) {
	if (message->blocks == NULL)
		return;
	for (uint16_t i = 0; free_blocks && i < message->block_count; i++)
		/* One by reference goes back to the share that its Block keeps. */
		(void)!shmrt_arena_free(&arena->arena, message->blocks[i].block, message->blocks[i].generation,
					message->states[i], arena->owner);
	PyMem_Free(message->blocks);
	message->blocks = NULL;
	message->states = NULL;
	message->block_count = 0;
}
