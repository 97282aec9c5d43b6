/* py_mailbox_take.c -- the server's side: take the next message, say when it is done, empty a mailbox nobody serves.
 *
 * A call is TAKEN by this process before its message leaves the mailbox, and it is decoded afterwards: a message that kills
 * who decodes it does so once. What the root wants comes before messages.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"
#include "py_turn.h"

/* ---- taking ---- */

static uint8_t *borrow_inbox(MailboxObject *self) {
	if (!self->inbox_busy && (self->inbox != NULL || (self->inbox = PyMem_Malloc((size_t)self->mailbox.ring.slot_bytes)) != NULL)) {
		self->inbox_busy = true;
		return self->inbox;
	}
	uint8_t *bytes = PyMem_Malloc((size_t)self->mailbox.ring.slot_bytes);
	if (bytes == NULL)
		PyErr_NoMemory();
	return bytes;
}

static void return_inbox(MailboxObject *self, uint8_t *bytes) {
	if (bytes == self->inbox)
		self->inbox_busy = false;
	else
		PyMem_Free(bytes);
}

/* The same names come again and again: the object, and its hash, are made once. New reference. */
static PyObject *name_of(MailboxObject *self, const struct shmrt_mail *mail) {
	uint32_t size = mail->envelope.name_size, hash = size;
	for (uint32_t i = 0; i < size; i++)
		hash = hash * 31 + mail->name[i];
	PyObject **known = &self->names[hash % SHMRT_PY_NAMES];
	if (*known != NULL) {
		Py_ssize_t known_size;
		const char *bytes = PyUnicode_AsUTF8AndSize(*known, &known_size);
		if (bytes != NULL && (uint32_t)known_size == size && memcmp(bytes, mail->name, size) == 0)
			return Py_NewRef(*known);
	}
	PyObject *name = PyUnicode_DecodeUTF8((const char *)mail->name, size, NULL);
	if (name != NULL) {
		PyUnicode_InternInPlace(&name);
		Py_XSETREF(*known, Py_NewRef(name));
	}
	return name;
}

static int decode_body(MailboxObject *self, const struct shmrt_mail *mail, PyObject **args, PyObject **kwargs) {
	if (SHMRT_LIKELY(mail->block_count == 0))
		return shmrt_decode_call(mail->body, mail->body_size, mail->flags, NULL, 0, args, kwargs);
	PyObject **blocks = PyMem_Calloc(mail->block_count, sizeof(*blocks));
	int outcome = -1;
	if (blocks == NULL) {
		shmrt_py_blocks_free(self->arena, mail->bytes, mail->block_count);
		PyErr_NoMemory();
		return -1;
	}
	if (shmrt_py_blocks_open(self->arena, mail->bytes, mail->block_count, mail->flags, BLOCKS_OURS, blocks) == 0 &&
	    shmrt_py_blocks_copy_out_if_greedy(self->arena, mail->block_count, blocks) == 0)
		outcome = shmrt_decode_call(mail->body, mail->body_size, mail->flags, blocks, mail->block_count, args, kwargs);
	for (uint16_t i = 0; i < mail->block_count; i++)
		Py_XDECREF(blocks[i]);
	PyMem_Free(blocks);
	return outcome;
}

static PyObject *deliver(MailboxObject *self, const struct shmrt_mail *mail) {
	PyObject *args = NULL, *kwargs = NULL;
	PyObject *name = name_of(self, mail);
	if (name == NULL)
		shmrt_py_blocks_free(self->arena, mail->bytes, mail->block_count);
	if (name == NULL || decode_body(self, mail, &args, &kwargs) < 0) {
		if (!PyErr_ExceptionMatches(PyExc_Exception)) { /* a KeyboardInterrupt is not the message's */
			Py_XDECREF(name);
			return NULL;
		}
		Py_XSETREF(name, Py_NewRef(Py_None));
		args = shmrt_take_exception();
	}
	uint64_t call = mail->envelope.kind == SHMRT_MAIL_CALL ? (uint64_t)mail->envelope.index << 32 | mail->envelope.generation : 0;
	PyObject *message = PyTuple_New(5), *kind = PyLong_FromLong(mail->envelope.kind), *reference = PyLong_FromUnsignedLongLong(call);
	if (message == NULL || kind == NULL || reference == NULL) {
		Py_XDECREF(message);
		Py_XDECREF(kind);
		Py_XDECREF(reference);
		Py_XDECREF(name);
		Py_XDECREF(args);
		Py_XDECREF(kwargs);
		return NULL;
	}
	PyTuple_SET_ITEM(message, 0, kind);
	PyTuple_SET_ITEM(message, 1, reference);
	PyTuple_SET_ITEM(message, 2, name);
	PyTuple_SET_ITEM(message, 3, args);
	PyTuple_SET_ITEM(message, 4, kwargs ? kwargs : Py_NewRef(Py_None));
	return message;
}

/* What a take that is not OK left; 0: go on. */
static int clear_up(MailboxObject *self, const struct shmrt_mail *mail, int outcome) {
	if (mail->block_count != 0)
		shmrt_py_blocks_free(self->arena, mail->bytes, mail->block_count);
	if (outcome == SHMRT_STALE) /* counted */
		return shmrt_py_mailbox_look(self);
	shmrt_py_mailbox_raise(self, outcome);
	return -1;
}

PyObject *shmrt_py_mailbox_take(MailboxObject *self, PyObject *const *args, Py_ssize_t nargs) {
	int64_t timeout_ns = SHMRT_FOREVER;
	if (nargs != 5) {
		PyErr_SetString(PyExc_TypeError, "take(calls, slots, index, seen, timeout)");
		return NULL;
	}
	CallsObject *calls = shmrt_py_calls_enter(args[0]);
	struct shmrt_control *control = calls ? shmrt_py_slots_control(args[1]) : NULL;
	struct shmrt_slot *slot = control ? shmrt_py_slots_at((SlotsObject *)args[1], args[2]) : NULL;
	unsigned long seen = slot ? PyLong_AsUnsignedLong(args[3]) : 0;
	if (slot == NULL || PyErr_Occurred() || (args[4] != Py_None && shmrt_py_timeout(args[4], &timeout_ns) < 0) ||
	    shmrt_py_mailbox_enter((PyObject *)self) == NULL)
		return NULL;
	shmrt_py_mailbox_bind(self, calls);
	struct shmrt_mail mail = {.bytes = borrow_inbox(self)};
	if (mail.bytes == NULL)
		return NULL;
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	PyObject *answer = NULL;
	for (;;) {
		if (SHMRT_UNLIKELY(shmrt_mailbox_is_called(slot, (uint32_t)seen))) {
			answer = PyLong_FromUnsignedLong(atomic_load_explicit(&slot->control_count, memory_order_acquire)); /* C5 */
			break;
		}
		int outcome = shmrt_mailbox_take(&self->mailbox, &calls->calls, &mail);
		if (outcome == SHMRT_OK) {
			shmrt_slot_task_begin(slot, ++self->taken, shmrt_now_ns());
			shmrt_turn = (struct shmrt_turn){mail.envelope.deadline_ns, false};
			shmrt_slot_phase_set(slot, SHMRT_PHASE_DECODE);
			answer = deliver(self, &mail);
			shmrt_slot_phase_set(slot, SHMRT_PHASE_RUN);
			uint64_t started = atomic_load_explicit(&slot->started, memory_order_relaxed); /* ours alone */
			atomic_store_explicit(&slot->started, started + 1, memory_order_relaxed);      /* ours alone */
			break;
		}
		if (outcome != SHMRT_EMPTY && outcome != SHMRT_INTERRUPTED) {
			if (clear_up(self, &mail, outcome) < 0)
				break;
			continue;
		}
		if (PyErr_CheckSignals() < 0)
			break;
		int64_t left = shmrt_py_time_left(&deadline);
		if (left <= 0) {
			answer = Py_NewRef(Py_None);
			break;
		}
		if (outcome == SHMRT_INTERRUPTED)
			continue; /* it has waited at the mutex */
		Py_BEGIN_ALLOW_THREADS
		(void)!shmrt_mailbox_wait(&self->mailbox, control, (uint32_t)(slot - control->slots), (uint32_t)seen, left);
		Py_END_ALLOW_THREADS
	}
	return_inbox(self, mail.bytes);
	return answer;
}

PyObject *shmrt_py_mailbox_done(MailboxObject *self, PyObject *const *args, Py_ssize_t nargs) {
	(void)self;
	if (nargs != 2) {
		PyErr_SetString(PyExc_TypeError, "done(slots, index)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_control(args[0]) ? shmrt_py_slots_at((SlotsObject *)args[0], args[1]) : NULL;
	if (slot == NULL)
		return NULL;
	/* relaxed: all of them are written by this thread alone */
	uint64_t begun_ns = atomic_load_explicit(&slot->task_start_ns, memory_order_relaxed), now_ns = shmrt_now_ns();
	uint64_t busy_ns = atomic_load_explicit(&slot->busy_ns, memory_order_relaxed) + (begun_ns < now_ns ? now_ns - begun_ns : 0);
	atomic_store_explicit(&slot->busy_ns, busy_ns, memory_order_relaxed);
	atomic_store_explicit(&slot->done, atomic_load_explicit(&slot->done, memory_order_relaxed) + 1, memory_order_relaxed);
	shmrt_slot_phase_set(slot, SHMRT_PHASE_SPIN);
	shmrt_turn = (struct shmrt_turn){0, false};
	Py_RETURN_NONE;
}

/* ---- emptying ---- */

PyObject *shmrt_py_mailbox_drop_all(MailboxObject *self, PyObject *const *args, Py_ssize_t nargs) {
	struct shmrt_py_failure failure;
	unsigned long count = 0, cleared = 0;
	if (nargs != 2) {
		PyErr_SetString(PyExc_TypeError, "drop_all(calls, reason)");
		return NULL;
	}
	CallsObject *calls = shmrt_py_calls_enter(args[0]);
	if (calls == NULL || shmrt_py_mailbox_enter((PyObject *)self) == NULL)
		return NULL;
	shmrt_py_mailbox_bind(self, calls);
	struct shmrt_mail mail = {.bytes = borrow_inbox(self)};
	if (mail.bytes == NULL || shmrt_py_failure_begin(&failure, calls, args[1]) < 0) {
		if (mail.bytes != NULL)
			return_inbox(self, mail.bytes);
		return NULL;
	}
	/* As many as it can hold: with somebody who goes on putting there is no end. */
	for (uint64_t most = self->mailbox.ring.slots; most > 0; most--) {
		int outcome = shmrt_mailbox_take(&self->mailbox, &calls->calls, &mail);
		if (outcome == SHMRT_EMPTY || outcome == SHMRT_INTERRUPTED)
			break; /* INTERRUPTED: behind a stopped holder. The calls are failed by fail_waiting in any case */
		if (mail.block_count != 0)
			shmrt_py_blocks_free(self->arena, mail.bytes, mail.block_count);
		if (outcome == SHMRT_OK && mail.envelope.kind == SHMRT_MAIL_CALL)
			(void)shmrt_py_failure_reply(&failure, mail.envelope.index, mail.envelope.generation);
		count++;
		cleared += outcome != SHMRT_STALE; /* those are counted as what they are */
	}
	shmrt_py_failure_end(&failure);
	return_inbox(self, mail.bytes);
	if (cleared != 0)
		shmrt_ring_count(&self->mailbox.ring, &self->mailbox.ring.shared->cleared, cleared);
	return PyLong_FromUnsignedLong(count);
}
