/* py_publish.c -- the way of a worker's results, exceptions and notes into its result lane.
 *
 * Nothing between reserve and commit releases the GIL, so other threads of the worker may publish log records. Died before
 * the commit: nothing was published, and the blocks name a dead owner. Died after: it is delivered.
 */
#include "py_block.h"
#include "py_codec.h"
#include "py_worker.h"

/* ---- bells ---- */

void shmrt_worker_ring_hub(WorkerLoop *self, bool idle) {
	struct shmrt_slot *hub = &self->control->slots[self->hub_slot];
	_Atomic uint32_t *bell = &hub->bell;
	atomic_thread_fence(memory_order_seq_cst);                             /* B1: our commit, then this look */
	uint32_t wanted = atomic_load_explicit(bell, memory_order_relaxed);    /* B1 */
	self->ring_deferred = false;
	if (wanted == 0)
		return; /* nobody sleeps; whoever arms looks at our lane afterwards */
	if (wanted == 1 && shmrt_lane_used(self->results.shared) < self->results.capacity / 2)
		return; /* wanted lazily */
	uint64_t now_ns = shmrt_now_ns();
	/* Whoever is rung looks at all lanes. A neighbour may have rung since our look at the clock; whatever else stands
	 * there defers nothing. */
	uint64_t rung_ns = atomic_load_explicit(&hub->rung_ns, memory_order_relaxed); /* a hint */
	if (!idle && now_ns < rung_ns + SHMRT_RING_EVERY_NS && rung_ns < now_ns + SHMRT_RING_EVERY_NS) {
		self->ring_deferred = true;
		return;
	}
	shmrt_bell_ring(bell);
	/* After the ring: nobody may defer by one that has not come. */
	atomic_store_explicit(&hub->rung_ns, now_ns, memory_order_relaxed); /* a hint */
}

/* Sleeps on our own bell; the caller has armed it and looked again. -1: a signal handler raised. */
int shmrt_worker_sleep(WorkerLoop *self, int64_t timeout_ns) {
	int result;
	Py_BEGIN_ALLOW_THREADS
	result = shmrt_bell_sleep(&self->slot->bell, timeout_ns);
	Py_END_ALLOW_THREADS
	(void)result; /* whatever ended the sleep, the caller looks again */
	return PyErr_CheckSignals();
}

/* ---- publishing ---- */

struct shmrt_record_header *shmrt_worker_reserve(WorkerLoop *self, uint64_t body) {
	struct shmrt_record_header *record;
	uint64_t blocked_since = 0, phase_before = shmrt_slot_phase_get(self->slot) & 0xFF;
	for (;;) {
		int result = shmrt_lane_reserve(&self->results, body, &record);
		if (result == SHMRT_OK)
			break;
		if (result != SHMRT_FULL) {
			shmrt_raise("SegmentError", "the result lane of this worker is corrupt (code %d); the worker ends", result);
			return NULL;
		}
		if (blocked_since == 0) {
			blocked_since = shmrt_now_ns();
			shmrt_slot_phase_set(self->slot, SHMRT_PHASE_BLOCKED);
		}
		shmrt_bell_arm(&self->slot->bell);
		if (shmrt_lane_free_bytes(&self->results) < shmrt_record_bytes(body) * 2) {
			shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
			if (shmrt_worker_sleep(self, INT64_C(100000000)) < 0) /* a wake lost to a death costs 0.1 s at most */
				return NULL;
		}
	}
	if (blocked_since) {
		self->blocked_ns += shmrt_now_ns() - blocked_since;
		atomic_store_explicit(&self->slot->blocked_ns, self->blocked_ns, memory_order_relaxed); /* ours alone */
		shmrt_slot_phase_set(self->slot, (enum shmrt_phase)phase_before);
	}
	return record;
}

/* Commits one record; the message's blocks become SENT first. */
int shmrt_worker_publish(WorkerLoop *self, uint8_t kind, uint64_t id, uint32_t attempt, const struct shmrt_message *message) {
	uint64_t references = (uint64_t)message->block_count * sizeof(struct shmrt_block_reference);
	shmrt_part_close(&self->part, &self->results);
	struct shmrt_record_header *record = shmrt_worker_reserve(self, references + message->inline_size);
	if (record == NULL)
		return -1;
	for (uint16_t i = 0; i < message->block_count; i++) {
		if (message->states[i] == SHMRT_BLOCK_SENT)
			continue; /* the task's argument: the hub's all the time */
		int moved = shmrt_arena_move(&self->arena->arena, message->blocks[i].block, message->blocks[i].generation,
					     message->states[i], self->arena->owner, SHMRT_BLOCK_SENT, self->arena->owner);
		SHMRT_ASSERT(moved == SHMRT_OK); /* we own it */
	}
	record->kind = kind;
	record->flags = (uint8_t)message->flags;
	record->block_count = message->block_count;
	record->inline_size = message->inline_size;
	record->id = id;
	record->attempt = attempt;
	uint8_t *body = (uint8_t *)(record + 1);
	if (references)
		memcpy(body, message->blocks, references);
	memcpy(body + references, message->inline_bytes, message->inline_size);
	shmrt_lane_commit(&self->results);
	return 0;
}

#define SHORTAGES_MAX 200

/* Others hold the memory; the hub copies out when it is short, so room comes. */
static int wait_for_room(WorkerLoop *self) {
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_BLOCKED);
	shmrt_bell_arm(&self->slot->bell);
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
	if (shmrt_worker_sleep(self, INT64_C(10000000)) < 0)
		return -1;
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_ENCODE);
	return 0;
}

/* Encoder -> message; waits while the arena is short. -1 with an exception set. */
int shmrt_worker_finish_message(WorkerLoop *self, struct shmrt_encoder *encoder, struct shmrt_message *message) {
	uint64_t inline_max = shmrt_lane_record_max(self->results.capacity) - 64 -
			      SHMRT_MESSAGE_BLOCKS_MAX * sizeof(struct shmrt_block_reference);
	if (shmrt_lane_record_max(self->results.capacity) < 64 + 4 * SHMRT_MESSAGE_BLOCKS_MAX * sizeof(struct shmrt_block_reference))
		inline_max = shmrt_lane_record_max(self->results.capacity) / 2;
	for (int tries = 0;; tries++) {
		struct shmrt_shortage shortage = {0};
		int result = shmrt_message_finish(encoder, self->arena, inline_max, message, &shortage);
		if (result == SHMRT_OK)
			return 0;
		if (result == SHMRT_SYSTEM && PyErr_Occurred())
			return -1;
		if (result == SHMRT_TOO_LARGE) {
			shmrt_raise_too_large(shortage.needed ? shortage.needed : encoder->size, self->arena->arena.limit_bytes);
			return -1;
		}
		if (result != SHMRT_NO_SPACE || tries >= SHORTAGES_MAX) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		if (wait_for_room(self) < 0)
			return -1;
	}
}

/* What the reader will do with a pickled result, done here first: its failure is this task's failure. */
int shmrt_worker_verify(WorkerLoop *self, const struct shmrt_message *message, PyObject *original) {
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX];
	uint16_t made = 0;
	for (; made < message->block_count; made++) {
		buffers[made] = shmrt_py_block_new(self->arena, &message->blocks[made], message->states[made],
						   self->arena->owner, true);
		if (buffers[made] == NULL)
			break;
		shmrt_py_block_disown(buffers[made]);
	}
	PyObject *again = NULL;
	if (made == message->block_count)
		again = shmrt_decode_message(message->inline_bytes, message->inline_size, message->flags, buffers,
					     message->block_count, true);
	if (again && Py_TYPE(again) != Py_TYPE(original) && strcmp(Py_TYPE(again)->tp_name, Py_TYPE(original)->tp_name) != 0) {
		PyErr_Format(PyExc_TypeError, "the result of type %s comes out of its pickle as %s", Py_TYPE(original)->tp_name,
			     Py_TYPE(again)->tp_name);
		Py_CLEAR(again);
	}
	int result = again ? 0 : -1;
	Py_XDECREF(again);
	while (made)
		Py_DECREF(buffers[--made]);
	return result;
}

int shmrt_worker_publish_object(WorkerLoop *self, uint8_t kind, uint64_t id, uint32_t attempt, PyObject *object, bool verified) {
	struct shmrt_message message;
	shmrt_encoder_reset(&self->encoder);
	if (shmrt_encode(&self->encoder, object) < 0)
		return -1;
	if (shmrt_worker_finish_message(self, &self->encoder, &message) < 0)
		return -1;
	int result = 0;
	if (!verified && message.flags & SHMRT_MESSAGE_HAS_PICKLE)
		result = shmrt_worker_verify(self, &message, object);
	if (result == 0) {
		result = shmrt_worker_publish(self, kind, id, attempt, &message);
		shmrt_message_clear(&message, self->arena, result < 0);
	} else
		shmrt_message_clear(&message, self->arena, true);
	return result;
}

/* ---- results that name arguments ---- */

static void set_returnable(const struct shmrt_worker_arguments *arguments, bool returnable) {
	for (uint16_t i = 0; i < arguments->header->block_count; i++)
		((ShmrtBlock *)arguments->buffers[i])->returnable = returnable;
}

/* The argument that block `at` of the message is; NULL: it is none. */
static ShmrtBlock *argument_of(const struct shmrt_worker_arguments *arguments, const struct shmrt_message *message, uint16_t at) {
	for (uint16_t i = 0; message->states[at] == SHMRT_BLOCK_SENT && i < arguments->header->block_count; i++)
		if (((ShmrtBlock *)arguments->buffers[i])->index == message->blocks[at].block)
			return (ShmrtBlock *)arguments->buffers[i];
	return NULL;
}

static int copy_instead(WorkerLoop *self, struct shmrt_message *message, uint16_t at, const ShmrtBlock *seen) {
	struct shmrt_block fresh;
	struct shmrt_shortage shortage = {0};
	uint64_t size = message->blocks[at].size;
	for (int tries = 0;; tries++) {
		int result = shmrt_arena_alloc(&self->arena->arena, size, self->arena->owner, &fresh, &shortage);
		if (result == SHMRT_OK)
			break;
		if (result != SHMRT_NO_SPACE || tries >= SHORTAGES_MAX) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		if (wait_for_room(self) < 0)
			return -1;
	}
	memcpy(fresh.data, seen->data, size);
	message->blocks[at] = (struct shmrt_block_reference){.block = fresh.block, .size = size, .generation = fresh.generation};
	message->states[at] = SHMRT_BLOCK_WRITING;
	return 0;
}

/* The value is gone. What nobody here looks at any more is given up; what the task has put by is copied for the result. */
static int give_up_arguments(WorkerLoop *self, const struct shmrt_worker_arguments *arguments, struct shmrt_message *message) {
	for (uint16_t at = 0; at < message->block_count; at++) {
		ShmrtBlock *block = argument_of(arguments, message, at);
		if (block == NULL)
			continue;
		if (Py_REFCNT(block) > 1 || block->exports > 0) {
			if (copy_instead(self, message, at, block) < 0)
				return -1;
		} else if (arguments->movable) {
			block->disowned = true;
			message->states[at] = SHMRT_BLOCK_HELD;
		}
	}
	return 0;
}

static bool names_arguments(const struct shmrt_message *message) {
	for (uint16_t at = 0; at < message->block_count; at++)
		if (message->states[at] == SHMRT_BLOCK_SENT)
			return true;
	return false;
}

int shmrt_worker_publish_result(WorkerLoop *self, const struct shmrt_worker_arguments *arguments, PyObject **value) {
	struct shmrt_message message;
	shmrt_encoder_reset(&self->encoder);
	set_returnable(arguments, true);
	self->encoder.returns = true;
	int result = shmrt_encode(&self->encoder, *value);
	if (result == 0)
		result = shmrt_worker_finish_message(self, &self->encoder, &message);
	self->encoder.returns = false;
	set_returnable(arguments, false);
	if (result < 0)
		return -1;
	if (message.flags & SHMRT_MESSAGE_HAS_PICKLE)
		result = shmrt_worker_verify(self, &message, *value);
	if (result == 0 && names_arguments(&message)) {
		shmrt_encoder_release_buffers(&self->encoder, 0);
		Py_CLEAR(*value);
		result = give_up_arguments(self, arguments, &message);
	}
	if (result == 0 && !arguments->movable)
		shmrt_worker_keep_or_leave(self, arguments->header, arguments->body, arguments->buffers);
	if (result == 0)
		result = shmrt_worker_publish(self, SHMRT_RECORD_RESULT, arguments->header->id, 0, &message);
	shmrt_encoder_release_buffers(&self->encoder, 0); /* else it would hold them until the next result */
	shmrt_message_clear(&message, self->arena, result < 0);
	return result;
}

/* ---- exceptions ---- */

PyObject *shmrt_worker_pack_exception(WorkerLoop *self, PyObject *retry_on, uint32_t *again) {
	PyObject *type, *value, *traceback;
	*again = 0;
	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	if (traceback)
		PyException_SetTraceback(value, traceback);
	if (retry_on && retry_on != Py_None) {
		int matches = PyObject_IsInstance(value, retry_on);
		if (matches < 0)
			PyErr_Clear();
		*again = matches > 0;
	}
	PyObject *packed = PyObject_CallOneArg(self->pack_exception, value);
	if (packed == NULL) { /* even its type's machinery raises */
		PyErr_Clear();
		packed = Py_BuildValue("(Osssss)", Py_None, type ? ((PyTypeObject *)type)->tp_name : "Exception",
				       "an exception that cannot be described", "", "", "");
	}
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
	return packed;
}

int shmrt_worker_publish_exception(WorkerLoop *self, uint8_t kind, uint64_t id, PyObject *retry_on,
				   const struct shmrt_worker_arguments *arguments) {
	uint32_t again;
	PyObject *packed = shmrt_worker_pack_exception(self, retry_on, &again);
	/* Its traceback, gone now, looked at the arguments, which the task may need again. */
	if (arguments != NULL && !arguments->movable)
		shmrt_worker_keep_or_leave(self, arguments->header, arguments->body, arguments->buffers);
	int result = packed ? shmrt_worker_publish_object(self, kind, id, again, packed, true) : -1;
	Py_XDECREF(packed);
	return result;
}
