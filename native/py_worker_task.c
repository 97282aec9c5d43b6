/* py_worker_task.c -- one task in a worker: claim it, decode, call, encode, publish.
 *
 * Order of the stores that others rely on (slots.h F1, hub.h H1 and H2):
 *
 *   claim the record (1), look at its deadline, which may be over: then say so, and nothing is begun
 *                                            died here: not begun, the hub puts it back
 *   task_id, start, phase DECODE             died from here to the commit: this task is the ambiguous one
 *   fence, look at kill_reason               set: nothing is begun; wait to be killed or for the order to be withdrawn
 *   phase RUN, call, phase ENCODE
 *   blocks SENT, result record, commit       died after: the result is delivered
 *   phase SPIN, head released                died before: the task is still in the lane, its id is resolved: dropped
 *
 * The head is released by the loop (py_worker.c), once this is over.
 */
#include "py_turn.h"
#include "py_worker.h"

static PyObject *call_function(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body,
			       PyObject **buffers, PyObject **retry_on) {
	PyObject *entry = shmrt_worker_function_of(self, header->function);
	if (entry == NULL)
		return NULL;
	if (!PyTuple_Check(entry)) {
		PyErr_SetObject((PyObject *)Py_TYPE(entry), entry);
		return NULL;
	}
	*retry_on = PyTuple_GET_ITEM(entry, 1);
	PyObject *function = PyTuple_GET_ITEM(entry, 0), *args, *kwargs = NULL;
	uint64_t references = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference);
	if (shmrt_decode_call(body + references, header->inline_size, header->flags, buffers, header->block_count, &args, &kwargs) < 0)
		return NULL;
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_RUN);
	PyObject *value = PyObject_Call(function, args, kwargs);
	Py_DECREF(args);
	Py_XDECREF(kwargs);
	return value;
}

/* 0: none. */
static uint64_t deadline_of(const struct shmrt_record_header *header, const uint8_t *body) {
	uint64_t deadline_ns = 0, references = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference);
	if (SHMRT_LIKELY((header->attempt & SHMRT_ATTEMPT_DEADLINE) == 0) ||
	    sizeof(*header) + references + header->inline_size + sizeof(deadline_ns) > header->size)
		return 0;
	memcpy(&deadline_ns, body + references + header->inline_size, sizeof(deadline_ns));
	return deadline_ns;
}

static bool is_condemned(const WorkerLoop *self) {
	return atomic_load_explicit(&self->slot->kill_reason, memory_order_relaxed) != SHMRT_KILL_NONE; /* H2 */
}

int shmrt_worker_begin(WorkerLoop *self, uint64_t id, uint64_t *start_ns) {
	shmrt_slot_task_begin(self->slot, id, *start_ns);
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_DECODE);
	atomic_thread_fence(memory_order_seq_cst); /* H2 */
	while (is_condemned(self)) { /* H2 */
		/* Not begun, and it stays so until the order is carried out or withdrawn. A phase that came back before that would
		 * have the hub time this task, order again, and so on; and its time begins when it does. */
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_STOPPING);
		while (is_condemned(self)) {
			shmrt_bell_arm(&self->slot->bell);
			if (is_condemned(self) && shmrt_worker_sleep(self, INT64_C(5000000)) < 0)
				return -1;
		}
		*start_ns = shmrt_now_ns();
		shmrt_slot_task_begin(self->slot, id, *start_ns);
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_DECODE);
		atomic_thread_fence(memory_order_seq_cst); /* H2 */
	}
	self->current_task = id;
	return 0;
}

void shmrt_worker_end(WorkerLoop *self, uint64_t start_ns, uint32_t tasks) {
	shmrt_turn = (struct shmrt_turn){0, false};
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_SPIN);
	self->busy_ns += shmrt_now_ns() - start_ns;
	self->done += tasks;
	atomic_store_explicit(&self->slot->busy_ns, self->busy_ns, memory_order_relaxed); /* ours alone */
	atomic_store_explicit(&self->slot->done, self->done, memory_order_relaxed);       /* ours alone */
	self->current_task = 0;
}

/* 0: went on; 1: the worker must end (SystemExit); -1: exception that ends the loop. */
int shmrt_worker_run_task(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body) {
	_Atomic uint32_t *claim = (_Atomic uint32_t *)&((struct shmrt_record_header *)(void *)(uintptr_t)body - 1)->claim;
	uint32_t offered = header->claim & 0x100;
	bool movable = offered == 0;
	if (!atomic_compare_exchange_strong_explicit(claim, &offered, offered | 1, memory_order_acq_rel, memory_order_relaxed)) /* H1 */
		return 0; /* taken back */
	uint64_t start_ns = shmrt_now_ns();
	uint64_t deadline_ns = deadline_of(header, body);
	if (SHMRT_UNLIKELY(deadline_ns != 0 && deadline_ns <= start_ns)) { /* the hub was late, or is stopped */
		const struct shmrt_message nothing = {.inline_bytes = (const uint8_t *)""};
		return shmrt_worker_publish(self, SHMRT_RECORD_EXPIRED, header->id, 0, &nothing);
	}
	if (self->ring_deferred && (self->done == 0 || self->busy_ns / self->done > SHMRT_RING_EVERY_NS / 2))
		shmrt_worker_ring_hub(self, true); /* a result must not wait behind a long task */
	if (shmrt_worker_begin(self, header->id, &start_ns) < 0)
		return -1;
	shmrt_turn = (struct shmrt_turn){deadline_ns, true};
	atomic_store_explicit(&self->slot->started, ++self->started, memory_order_relaxed); /* ours alone */
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *retry_on = NULL, *value = NULL;
	bool received = header->block_count <= SHMRT_MESSAGE_BLOCKS_MAX &&
			shmrt_worker_receive_blocks(self, header, body, movable, buffers) == 0;
	struct shmrt_worker_arguments arguments = {header, body, buffers, movable};
	if (received)
		value = call_function(self, header, body, buffers, &retry_on);
	else if (!PyErr_Occurred())
		shmrt_raise("SegmentError", "a message names %u blocks; at most %d are possible", header->block_count,
			    SHMRT_MESSAGE_BLOCKS_MAX);
	if (value == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
		if (received)
			shmrt_worker_release_buffers(buffers, header->block_count);
		return 1; /* the process ends with that code, and the task with it */
	}
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_ENCODE);
	int result;
	if (value) {
		result = shmrt_worker_publish_result(self, &arguments, &value);
		if (result < 0 && PyErr_Occurred() && shmrt_lane_has_uncommitted(&self->results))
			shmrt_lane_abort(&self->results);
		if (result < 0 && PyErr_ExceptionMatches(PyExc_SystemExit)) {
			/* sys.exit in its reduction is sys.exit in the task: raised in the program it would end that. */
			PyObject *type, *error, *traceback;
			PyErr_Fetch(&type, &error, &traceback);
			Py_XDECREF(value);
			shmrt_worker_release_buffers(buffers, header->block_count);
			PyErr_Restore(type, error, traceback);
			return 1;
		}
		Py_CLEAR(value);
		if (result < 0)
			result = shmrt_worker_publish_exception(self, SHMRT_RECORD_ERROR, header->id, retry_on, &arguments);
	} else
		result = shmrt_worker_publish_exception(self, SHMRT_RECORD_ERROR, header->id, retry_on, received ? &arguments : NULL);
	if (received)
		shmrt_worker_release_buffers(buffers, header->block_count);
	shmrt_worker_end(self, start_ns, 1);
	return result;
}
