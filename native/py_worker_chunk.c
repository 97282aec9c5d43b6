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

#define OUTCOME_MAX 4096 /* longer ones travel by themselves */

static int open_part(WorkerLoop *self, uint64_t id, uint32_t first) {
	uint64_t body = shmrt_part_body(self->results.capacity);
	struct shmrt_record_header *record = shmrt_worker_reserve(self, body);
	if (record == NULL)
		return -1;
	uint32_t epoch = atomic_load_explicit(&self->slot->epoch, memory_order_relaxed); /* fixed while we live */
	shmrt_part_open(&self->part, record, body, id, first, epoch);
	return 0;
}

/* ---- one outcome ---- */

/* 0, or -1 with an exception: nothing was written. */
static int put_outcome(WorkerLoop *self, uint64_t id, uint32_t index, PyObject *object, bool is_error) {
	struct shmrt_encoder *encoder = &self->encoder;
	shmrt_encoder_reset(encoder);
	if (shmrt_encode(encoder, object) < 0)
		return -1;
	size_t size = encoder->size - 1; /* without the kind of the body, which is PLAIN */
	if (encoder->buffer_count || size > OUTCOME_MAX || size > shmrt_part_body(self->results.capacity) - 16) {
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
	for (;;) {
		if (self->part.record == NULL && open_part(self, id, index) < 0)
			return -1;
		if (shmrt_part_put(&self->part, encoder->bytes + 1, (uint32_t)size, is_error))
			return 0;
		shmrt_part_close(&self->part, &self->results);
	}
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
	uint32_t offered = header->claim & ~UINT32_C(0xFFF);
	uint32_t first = header->attempt >> SHMRT_CHUNK_FIRST_SHIFT & SHMRT_CHUNK_ITEMS_MAX, index = first;
	uint64_t start_ns = shmrt_now_ns();
	if (!atomic_compare_exchange_strong_explicit(claim, &offered, offered | 1 | UINT32_C(1) << SHMRT_CLAIM_BEGUN_SHIFT,
						     memory_order_acq_rel, memory_order_relaxed)) /* H1 */
		return 0; /* taken back */
	if (open_part(self, header->id, first) < 0)
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
	shmrt_part_commit(&self->part, &self->results, true, shmrt_now_ns() - ready_ns);
	shmrt_worker_end(self, start_ns, index - first);
leave:
	Py_XDECREF(function);
	Py_XDECREF(failure);
	return result;
}
