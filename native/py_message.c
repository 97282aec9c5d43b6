/* py_message.c -- from encoded bytes to a message and from block references to buffers.
 *
 * Three shapes, the first that fits `inline_max` (block references count towards it):
 *   inline body, a block per big buffer;  body in the first block, a block per big buffer;
 *   one block that holds body and buffers, for messages of many buffers in small slots.
 * Blocks are WRITING|owner until the transport commits them: who dies before leaves nothing that outlives him.
 * An array of shmrt.empty is not copied: its block is HELD|owner, with a share kept for the sender's own view.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"
#include "py_codec.h"

#include <errno.h>

#define COPY_WITHOUT_GIL (1 << 20)
#define PACK_ALIGNMENT 64
#define REFERENCE_SIZE sizeof(struct shmrt_block_reference)

/* ---- arrays that go by reference -------------------------------------------------------------------------- */

/* The Block at the end of an array's chain of bases, borrowed; NULL if it is no array on a Block. */
static ShmrtBlock *block_of_array(PyObject *object) {
	PyTypeObject *type = shmrt_array_type();
	PyObject *at = Py_NewRef(object);
	for (int i = 0; type != NULL && i < 64 && PyObject_TypeCheck(at, type); i++) {
		PyObject *base = PyObject_GetAttrString(at, "base");
		Py_DECREF(at);
		if (base == NULL) {
			PyErr_Clear();
			return NULL;
		}
		at = base; /* the array below keeps it alive */
	}
	Py_DECREF(at);
	return Py_TYPE(at) == shmrt_block_type ? (ShmrtBlock *)at : NULL;
}

static int set_writable(PyObject *array, bool writable) {
	PyObject *flags = PyObject_GetAttrString(array, "flags");
	int outcome = flags ? PyObject_SetAttrString(flags, "writeable", writable ? Py_True : Py_False) : -1;
	Py_XDECREF(flags);
	return outcome;
}

static int is_writable(PyObject *array) {
	PyObject *flags = PyObject_GetAttrString(array, "flags");
	PyObject *writable = flags ? PyObject_GetAttrString(flags, "writeable") : NULL;
	int outcome = writable ? PyObject_IsTrue(writable) : -1;
	Py_XDECREF(writable);
	Py_XDECREF(flags);
	return outcome;
}

/* The array and every array it is a view of become read-only; remembered for a thaw. */
static int freeze(struct shmrt_encoder *encoder, PyObject *array) {
	PyTypeObject *type = shmrt_array_type();
	if (encoder->frozen == NULL && (encoder->frozen = PyList_New(0)) == NULL)
		return -1;
	PyObject *at = Py_NewRef(array);
	while (at != NULL && PyObject_TypeCheck(at, type)) {
		int writable = is_writable(at);
		if (writable < 0 || (writable && (set_writable(at, false) < 0 || PyList_Append(encoder->frozen, at) < 0)))
			break;
		PyObject *base = PyObject_GetAttrString(at, "base");
		Py_SETREF(at, base);
	}
	bool failed = PyErr_Occurred() != NULL;
	Py_XDECREF(at);
	return failed ? -1 : 0;
}

void shmrt_encoder_thaw(struct shmrt_encoder *encoder) {
	if (encoder->frozen == NULL)
		return;
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	for (Py_ssize_t i = PyList_GET_SIZE(encoder->frozen); i-- > 0;) { /* bases first: a view asks its base */
		PyObject *array = PyList_GET_ITEM(encoder->frozen, i);
		ShmrtBlock *block = block_of_array(array);
		if (block != NULL)
			block->read_only = false;
		if (set_writable(array, true) < 0)
			PyErr_Clear();
	}
	Py_CLEAR(encoder->frozen);
	PyErr_Restore(type, value, traceback);
}

/* ---- finish ------------------------------------------------------------------------------------------------- */

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

/* Sends the buffer's own block if it is a whole array of shmrt.empty. */
static bool try_reference(struct shmrt_encoder *encoder, const Py_buffer *view, ShmrtArena *arena,
			  struct shmrt_block_reference *reference) {
	const uint8_t *at = view->buf;
	if (at < arena->arena.data || at >= arena->arena.base + arena->arena.size || view->obj == NULL)
		return false;
	ShmrtBlock *block = block_of_array(view->obj);
	if (block == NULL || block->arena != arena || block->data != at || (uint64_t)view->len > block->size)
		return false;
	if (freeze(encoder, view->obj) < 0) {
		PyErr_Clear();
		return false;
	}
	if (!shmrt_py_block_lend(block))
		return false; /* it is somebody's at the moment: copied, and frozen all the same */
	*reference = (struct shmrt_block_reference){
		.block = block->index, .size = (uint64_t)view->len, .generation = block->generation, .flags = 1};
	return true;
}

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

struct copy {
	uint8_t *to;
	const uint8_t *from;
	size_t size;
};

static void copy_all(const struct copy *copies, size_t count, uint64_t total) {
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
			 struct shmrt_message *message, struct shmrt_body_buffer *table, struct copy *copies,
			 size_t *copy_count, struct shmrt_shortage *shortage) {
	uint8_t *data = NULL;
	uint64_t offset = encoder->size;
	*copy_count = 0;
	if (plan->body_in_block) {
		int outcome = take_block(arena, plan->packed ? packed_size(encoder) : plan->body_size,
					 message, &data, shortage);
		if (outcome != SHMRT_OK)
			return outcome;
		copies[(*copy_count)++] = (struct copy){data, encoder->bytes, plan->packed ? encoder->size : plan->body_size};
	}
	for (size_t i = 0; i < encoder->buffer_count; i++) {
		const Py_buffer *view = &encoder->buffers[i];
		struct shmrt_body_buffer *entry = &table[i];
		*entry = (struct shmrt_body_buffer){.size = (uint64_t)view->len};
		if (plan->packed) {
			offset = shmrt_align_up(offset, PACK_ALIGNMENT);
			entry->offset = offset;
			entry->place = 1;
			copies[(*copy_count)++] = (struct copy){data + offset, view->buf, (size_t)view->len};
			offset += (uint64_t)view->len;
			continue;
		}
		entry->place = (uint32_t)message->block_count + 1;
		if (try_reference(encoder, view, arena, &message->blocks[message->block_count])) {
			message->states[message->block_count++] = SHMRT_BLOCK_HELD;
			continue;
		}
		uint8_t *at;
		int outcome = take_block(arena, (uint64_t)view->len, message, &at, shortage);
		if (outcome != SHMRT_OK)
			return outcome;
		copies[(*copy_count)++] = (struct copy){at, view->buf, (size_t)view->len};
	}
	if (plan->packed)
		copies[(*copy_count)++] = (struct copy){data + offset, encoder->bytes + encoder->size,
							shmrt_body_table_size(encoder->buffer_count)};
	return SHMRT_OK;
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
	struct copy *copies = PyMem_Malloc((count + 2) * sizeof(*copies));
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
	copy_all(copies, copy_count, total);
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

/* ---- buffers of a message that is decoded --------------------------------------------------------------------- */

/* The bytes of a buffer inside an exported view; -1 with SegmentError. */
static int check_range(const struct shmrt_body_buffer *entry, Py_ssize_t available) {
	if (entry->offset <= (uint64_t)available && entry->size <= (uint64_t)available - entry->offset)
		return 0;
	shmrt_decode_corrupt("a buffer passes the end of its block");
	return -1;
}

static int find_buffer(const struct shmrt_decoder *decoder, uint32_t index, struct shmrt_body_buffer *entry) {
	const char *reason = "";
	if (shmrt_body_buffer(&decoder->body, index, decoder->buffer_count, entry, &reason) == SHMRT_OK)
		return 0;
	shmrt_decode_corrupt(reason);
	return -1;
}

static PyObject *copy_out(const uint8_t *from, size_t size, bool as_bytes) {
	PyObject *object = as_bytes ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size)
				    : PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (object == NULL)
		return NULL;
	struct copy copy = {(uint8_t *)(as_bytes ? PyBytes_AS_STRING(object) : PyByteArray_AS_STRING(object)), from, size};
	copy_all(&copy, 1, size);
	return object;
}

PyObject *shmrt_decode_buffer_copy(const struct shmrt_decoder *decoder, uint32_t index, bool as_bytes) {
	struct shmrt_body_buffer entry;
	if (find_buffer(decoder, index, &entry) < 0)
		return NULL;
	if (entry.place == 0)
		return copy_out(decoder->body.start + entry.offset, (size_t)entry.size, as_bytes);
	Py_buffer view;
	if (PyObject_GetBuffer(decoder->buffers[entry.place - 1], &view, PyBUF_SIMPLE) < 0)
		return NULL;
	PyObject *object = NULL;
	if (check_range(&entry, view.len) == 0)
		object = copy_out((const uint8_t *)view.buf + entry.offset, (size_t)entry.size, as_bytes);
	PyBuffer_Release(&view);
	return object;
}

PyObject *shmrt_decode_buffer_view(const struct shmrt_decoder *decoder, uint32_t index) {
	struct shmrt_body_buffer entry;
	if (find_buffer(decoder, index, &entry) < 0)
		return NULL;
	if (entry.place == 0)
		return copy_out(decoder->body.start + entry.offset, (size_t)entry.size, false);
	PyObject *owner = decoder->buffers[entry.place - 1];
	Py_buffer view;
	if (PyObject_GetBuffer(owner, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	Py_ssize_t length = view.len;
	PyBuffer_Release(&view);
	if (check_range(&entry, length) < 0)
		return NULL;
	if (entry.offset == 0 && entry.size == (uint64_t)length)
		return Py_NewRef(owner);
	PyObject *whole = PyMemoryView_FromObject(owner);
	if (whole == NULL)
		return NULL;
	PyObject *part = PySequence_GetSlice(whole, (Py_ssize_t)entry.offset, (Py_ssize_t)(entry.offset + entry.size));
	Py_DECREF(whole);
	return part;
}

/* ---- module functions ------------------------------------------------------------------------------------------ */

static PyObject *module_encode(PyObject *module, PyObject *object) {
	(void)module;
	struct shmrt_encoder encoder = {0};
	struct shmrt_message message;
	struct shmrt_shortage shortage;
	PyObject *bytes = NULL;
	if (shmrt_encode(&encoder, object) == 0) {
		int outcome = shmrt_message_finish(&encoder, NULL, UINT64_MAX, &message, &shortage);
		if (outcome == SHMRT_OK)
			bytes = PyBytes_FromStringAndSize((const char *)message.inline_bytes, message.inline_size);
		else if (outcome == SHMRT_TOO_LARGE)
			shmrt_raise("MessageTooLarge", "an object of more than 4 GiB cannot be one control message");
	}
	shmrt_encoder_clear(&encoder);
	return bytes;
}

static PyObject *module_decode(PyObject *module, PyObject *args) {
	(void)module;
	Py_buffer view;
	int allow_pickle = 1;
	if (!PyArg_ParseTuple(args, "y*|p:decode", &view, &allow_pickle))
		return NULL;
	PyObject *object = NULL;
	if (view.len > UINT32_MAX)
		shmrt_decode_corrupt("it is longer than any control message");
	else
		object = shmrt_decode_message(view.buf, (uint32_t)view.len, 0, NULL, 0, allow_pickle);
	PyBuffer_Release(&view);
	return object;
}

static PyObject *module_code_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	(void)module;
	struct shmrt_encoder encoder = {0};
	struct shmrt_message message;
	struct shmrt_shortage shortage;
	PyObject *positional = NULL, *keywords = NULL, *pair = NULL;
	if (shmrt_encode_call(&encoder, args, nargs, kwnames) == 0 &&
	    shmrt_message_finish(&encoder, NULL, UINT64_MAX, &message, &shortage) == SHMRT_OK &&
	    shmrt_decode_call(message.inline_bytes, message.inline_size, message.flags, NULL, 0, &positional, &keywords) == 0)
		pair = Py_BuildValue("(OO)", positional, keywords ? keywords : Py_None);
	Py_XDECREF(positional);
	Py_XDECREF(keywords);
	shmrt_encoder_clear(&encoder);
	return pair;
}

static PyMethodDef functions[] = {
	{"encode", module_encode, METH_O, "encode(object) -> bytes that decode() turns back"},
	{"decode", module_decode, METH_VARARGS, "decode(bytes, allow_pickle=True) -> object"},
	{"code_call", (PyCFunction)(void (*)(void))module_code_call, METH_FASTCALL | METH_KEYWORDS,
	 "code_call(*args, **kwargs) -> (args, kwargs or None) as a worker would get them; for tests"},
	{0},
};

int shmrt_py_add_message(PyObject *module) { return PyModule_AddFunctions(module, functions); }
