/* py_worker_chunk.c -- the items of a chunk in a worker: begin, call, write the outcome down, one after the other.
 *
 * The protocol is told in hub_chunk.h. Order of the stores that the hub relies on when this process dies:
 *
 *   claim (1, one item begun)             died here: the phase still names no task, so nothing was begun
 *   a PART opened: progress word 0, id    died here: the same
 *   task_id, start, phase DECODE          died from here on: the item that is begun and has no outcome is the ambiguous one
 *   call
 *   the outcome's bytes, progress word    died before: ambiguous; died after: its outcome is collected
 *   claim (one more begun)                died before: between two items, and nothing is ambiguous
 *   PART committed, claim bit: the last   died before: collected from where it lies
 *   phase SPIN, head released
 *
 * All of it happens in program order; the reader is the hub behind the death notice (F4), so only the compiler has to be
 * kept from changing it. Any code of the user may log, and so close the PART: the next outcome opens another.
 */
#include "py_turn.h"
#include "py_worker.h"

#define PART_BYTES 16384 /* outcomes in one record; enough for a chunk of small ones */
#define OUTCOME_MAX 4096 /* longer ones travel by themselves */

/* ---- the open record ---- */

static _Atomic uint64_t *progress_of(const struct shmrt_part *part) {
	return (_Atomic uint64_t *)(void *)(part->record + 1);
}

static int open_part(WorkerLoop *self, uint64_t id, uint32_t first) {
	uint64_t most = shmrt_lane_record_max(self->results.capacity) - sizeof(struct shmrt_record_header);
	uint64_t body = most < PART_BYTES ? most / 16 * 16 : PART_BYTES;
	struct shmrt_record_header *record = shmrt_worker_reserve(self, body);
	if (record == NULL)
		return -1;
	self->part = (struct shmrt_part){.record = record, .id = id, .first = first, .room = (uint32_t)(body - sizeof(uint64_t))};
	atomic_store_explicit(progress_of(&self->part), 0, memory_order_relaxed); /* F4 */
	record->id = id;
	record->attempt = first;
	record->function = atomic_load_explicit(&self->slot->epoch, memory_order_relaxed); /* fixed while we live */
	atomic_signal_fence(memory_order_seq_cst); /* nothing of an earlier turn of the lane is taken for this */
	record->kind = SHMRT_RECORD_OPEN_PART;
	return 0;
}

static void commit_part(WorkerLoop *self, bool last, uint64_t elapsed_ns) {
	struct shmrt_part *part = &self->part;
	uint64_t ticks = elapsed_ns / SHMRT_PART_TICK_NS;
	uint32_t size = (uint32_t)sizeof(uint64_t) + part->used;
	part->record->kind = SHMRT_RECORD_PART;
	part->record->inline_size = size;
	part->record->function = ticks > UINT32_MAX ? UINT32_MAX : (uint32_t)ticks;
	part->record->claim = last;
	shmrt_lane_shrink(&self->results, part->record, size);
	shmrt_lane_commit(&self->results);
	part->record = NULL;
}

void shmrt_worker_close_part(WorkerLoop *self) {
	if (SHMRT_LIKELY(self->part.record == NULL))
		return;
	if (self->part.count)
		commit_part(self, false, 0);
	else {
		self->part.record->kind = SHMRT_RECORD_PAD; /* its room is given back */
		shmrt_lane_abort(&self->results);
		self->part.record = NULL;
	}
}

/* ---- one outcome ---- */

/* 0, or -1 with an exception: nothing was written. */
static int put_outcome(WorkerLoop *self, uint64_t id, uint32_t index, PyObject *object, bool is_error) {
	struct shmrt_encoder *encoder = &self->encoder;
	shmrt_encoder_reset(encoder);
	if (shmrt_encode(encoder, object) < 0)
		return -1;
	size_t size = encoder->size - 1; /* without the kind of the body, which is PLAIN */
	if (encoder->buffer_count || size > OUTCOME_MAX) {
		struct shmrt_message message;
		if (shmrt_worker_finish_message(self, encoder, &message) < 0)
			return -1;
		int result = 0;
		if (!is_error && message.flags & SHMRT_MESSAGE_HAS_PICKLE)
			result = shmrt_worker_verify(self, &message, object);
		if (result == 0)
			result = shmrt_worker_publish(self, is_error ? SHMRT_RECORD_ERROR : SHMRT_RECORD_RESULT, id, 0, &message);
		shmrt_message_clear(&message, self->arena, result < 0);
		return result;
	}
	if (!is_error && encoder->flags & SHMRT_MESSAGE_HAS_PICKLE) {
		const struct shmrt_message message = {
			.inline_bytes = encoder->bytes, .inline_size = (uint32_t)encoder->size, .flags = encoder->flags};
		if (shmrt_worker_verify(self, &message, object) < 0)
			return -1;
	}
	struct shmrt_part *part = &self->part;
	if (part->record && part->room - part->used < size + sizeof(uint32_t))
		shmrt_worker_close_part(self);
	if (part->record == NULL && open_part(self, id, index) < 0)
		return -1;
	uint8_t *at = (uint8_t *)(part->record + 1) + sizeof(uint64_t) + part->used;
	uint32_t head = (uint32_t)size << 2 | (is_error ? SHMRT_ITEM_ERROR : SHMRT_ITEM_VALUE);
	memcpy(at, &head, sizeof(head));
	memcpy(at + sizeof(head), encoder->bytes + 1, size);
	part->used += (uint32_t)(sizeof(head) + size);
	part->count++;
	atomic_store_explicit(progress_of(part), (uint64_t)part->count << 32 | part->used, memory_order_release); /* F4 */
	return 0;
}

/* The next item, new reference; NULL with an exception, which concerns that item alone. */
static PyObject *next_item(const uint8_t **at, const uint8_t *end) {
	uint32_t length = 0;
	if ((size_t)(end - *at) >= sizeof(length))
		memcpy(&length, *at, sizeof(length));
	if (length == 0 || length > (size_t)(end - *at) - sizeof(length))
		return shmrt_raise("SegmentError", "corrupt message: an item of a chunk is longer than the chunk");
	const uint8_t *bytes = *at + sizeof(length);
	*at = bytes + length;
	return shmrt_decode_piece(bytes, length);
}

/* The exception that is set is the item's outcome. */
static int put_exception(WorkerLoop *self, uint64_t id, uint32_t index) {
	uint32_t again;
	PyObject *packed = shmrt_worker_pack_exception(self, NULL, &again);
	int result = packed ? put_outcome(self, id, index, packed, true) : -1;
	Py_XDECREF(packed);
	return result;
}

/* ---- the chunk ---- */

/* One more may be begun: counted, so that the hub knows. */
static bool begin_next(_Atomic uint32_t *claim) {
	uint32_t before = atomic_load_explicit(claim, memory_order_relaxed), begun; /* H1 */
	do {
		begun = before >> SHMRT_CLAIM_BEGUN_SHIFT & SHMRT_CHUNK_ITEMS_MAX;
		if (begun >= before >> SHMRT_CLAIM_END_SHIFT)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(claim, &before, before + (UINT32_C(1) << SHMRT_CLAIM_BEGUN_SHIFT),
							memory_order_acq_rel, memory_order_relaxed)); /* H1 */
	return true;
}

/* The callable, borrowed; NULL: *failure is why there is none. */
static PyObject *callable_of(WorkerLoop *self, uint32_t function, PyObject **failure) {
	PyObject *entry = shmrt_worker_function_of(self, function);
	if (entry == NULL)
		entry = *failure = shmrt_take_exception();
	else if (!PyTuple_Check(entry))
		*failure = Py_NewRef(entry);
	return *failure ? NULL : PyTuple_GET_ITEM(entry, 0);
}

int shmrt_worker_run_chunk(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body) {
	_Atomic uint32_t *claim = (_Atomic uint32_t *)&((struct shmrt_record_header *)(void *)(uintptr_t)body - 1)->claim;
	uint32_t offered = header->claim & ~(UINT32_C(0xFFF)), index = 0;
	uint64_t start_ns = shmrt_now_ns();
	if (!atomic_compare_exchange_strong_explicit(claim, &offered, offered | 1 | UINT32_C(1) << SHMRT_CLAIM_BEGUN_SHIFT,
						     memory_order_acq_rel, memory_order_relaxed)) /* H1 */
		return 0; /* taken back */
	if (open_part(self, header->id, 0) < 0)
		return -1;
	if (self->ring_deferred && (self->done == 0 || self->busy_ns / self->done > SHMRT_RING_EVERY_NS / 2))
		shmrt_worker_ring_hub(self, true); /* a result must not wait behind a long task */
	if (shmrt_worker_begin(self, header->id, &start_ns) < 0)
		return -1;
	shmrt_turn = (struct shmrt_turn){0, true};
	PyObject *failure = NULL, *function = callable_of(self, header->function, &failure);
	const uint8_t *at = body, *end = body + header->inline_size;
	Py_XINCREF(function);
	uint64_t ready_ns = shmrt_now_ns(); /* to import it is no part of what its calls take */
	int result = 0;
	for (;;) {
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_RUN);
		PyObject *value = NULL, *item = failure ? NULL : next_item(&at, end);
		atomic_store_explicit(&self->slot->started, ++self->started, memory_order_relaxed); /* ours alone */
		if (item) {
			value = header->attempt & SHMRT_CHUNK_STAR && PyTuple_Check(item) ? PyObject_Call(function, item, NULL)
											  : PyObject_CallOneArg(function, item);
			Py_DECREF(item);
		} else if (failure)
			PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
		if (value) {
			result = put_outcome(self, header->id, index, value, false);
			Py_DECREF(value);
		}
		if (PyErr_Occurred()) {
			/* sys.exit, in the call or in a reduction, ends the process with that code, and the item with it. */
			if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
				result = 1;
				goto leave;
			}
			result = put_exception(self, header->id, index);
		}
		if (result < 0)
			goto leave; /* a signal handler raised, or the lane is corrupt */
		index++;
		if ((result = PyErr_CheckSignals()) < 0)
			goto leave;
		if (shmrt_worker_stop_wanted(self) || !begin_next(claim))
			break;
	}
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_ENCODE);
	if (self->part.record == NULL && open_part(self, header->id, index) < 0) {
		result = -1;
		goto leave;
	}
	commit_part(self, true, shmrt_now_ns() - ready_ns);
	shmrt_worker_end(self, start_ns, index);
leave:
	Py_XDECREF(function);
	Py_XDECREF(failure);
	return result;
}
