/* py_mailbox_put.c -- requests and casts on their way into a mailbox.
 *
 * A message is encoded and its blocks are taken before the mailbox is touched: nothing can fail between a call slot's
 * WAITING and the put but the put itself. What was not sent leaves nothing behind: its blocks are freed, its arrays are
 * writable again.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"

#include <errno.h>

#define ENVELOPE_SIZE sizeof(struct shmrt_mail_envelope)

void shmrt_py_mailbox_refused(MailboxObject *self, int outcome) {
	if (outcome != SHMRT_FULL || self->mailbox.on_full != SHMRT_RING_DROP_NEWEST) /* else it was dropped, and counted as that */
		shmrt_ring_count(&self->mailbox.ring, &self->mailbox.ring.shared->refused, 1);
}

PyObject *shmrt_py_mailbox_raise(MailboxObject *self, int outcome) {
	switch (outcome) {
	case SHMRT_FULL:
	case SHMRT_TIMEOUT:
		shmrt_py_mailbox_refused(self, outcome);
		return shmrt_raise_overloaded(self->mailbox.ring.slots, "mailbox", "the mailbox holds its %llu messages; call less often, wait "
					      "longer or give it more slots", (unsigned long long)self->mailbox.ring.slots);
	case SHMRT_CLOSED:
		return shmrt_raise("RingClosed", "the mailbox is closed: its server is gone for good");
	case SHMRT_TOO_LARGE:
		return shmrt_raise("MessageTooLarge", "a message is larger than a slot of this mailbox");
	case SHMRT_STALE:
		return shmrt_raise("SegmentError", "a block of the message is not this process's to send");
	default:
		return shmrt_raise("SegmentError", "corrupt mailbox: a word in it is one that no writer leaves (code %d)", outcome);
	}
}

/* ---- encoding ---- */

static int borrow(struct shmrt_py_outgoing *outgoing) {
	MailboxObject *self = outgoing->mailbox;
	size_t size = (size_t)self->mailbox.ring.slot_bytes;
	if (!self->encoder_busy) {
		if (self->outbox == NULL && (self->outbox = PyMem_Malloc(size)) == NULL)
			goto no_memory;
		self->encoder_busy = true;
		outgoing->encoder = &self->encoder;
		outgoing->bytes = self->outbox;
		return 0;
	}
	outgoing->bytes = PyMem_Malloc(size);
	outgoing->encoder = outgoing->bytes ? PyMem_Calloc(1, sizeof(*outgoing->encoder)) : NULL;
	if (outgoing->encoder != NULL)
		return 0;
	PyMem_Free(outgoing->bytes);
no_memory:
	PyErr_NoMemory();
	return -1;
}

void shmrt_py_outgoing_end(struct shmrt_py_outgoing *outgoing, bool sent) {
	MailboxObject *self = outgoing->mailbox;
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	shmrt_message_clear(&outgoing->message, self->arena, !sent);
	if (!sent)
		shmrt_encoder_thaw(outgoing->encoder);
	shmrt_encoder_reset(outgoing->encoder);
	if (outgoing->encoder == &self->encoder) {
		self->encoder_busy = false;
	} else {
		shmrt_encoder_clear(outgoing->encoder);
		PyMem_Free(outgoing->encoder);
		PyMem_Free(outgoing->bytes);
	}
	PyErr_Restore(type, value, traceback);
}

/* By the conventions of vectorcall. */
static int encode_arguments(struct shmrt_encoder *encoder, PyObject *args, PyObject *kwargs) {
	Py_ssize_t nargs = PyTuple_GET_SIZE(args), named = kwargs ? PyDict_GET_SIZE(kwargs) : 0, position = 0;
	if (SHMRT_LIKELY(named == 0))
		return shmrt_encode_call(encoder, &PyTuple_GET_ITEM(args, 0), nargs, NULL);
	PyObject *kwnames = PyTuple_New(named), *key, *value;
	PyObject **vector = PyMem_Malloc((size_t)(nargs + named) * sizeof(*vector));
	int outcome = -1;
	if (kwnames != NULL && vector != NULL) {
		Py_ssize_t i = 0;
		for (; i < nargs; i++)
			vector[i] = Py_NewRef(PyTuple_GET_ITEM(args, i));
		while (PyDict_Next(kwargs, &position, &key, &value)) {
			PyTuple_SET_ITEM(kwnames, i - nargs, Py_NewRef(key));
			vector[i++] = Py_NewRef(value);
		}
		outcome = shmrt_encode_call(encoder, vector, nargs, kwnames);
		while (i-- > 0)
			Py_DECREF(vector[i]);
	} else {
		PyErr_NoMemory();
	}
	PyMem_Free(vector);
	Py_XDECREF(kwnames);
	return outcome;
}

/* Waits while the arena is short and somebody else can free some of it. */
static int finish(struct shmrt_py_outgoing *outgoing, uint64_t inline_max, const struct deadline *deadline) {
	MailboxObject *self = outgoing->mailbox;
	struct shmrt_shortage shortage = {0};
	for (int64_t pause = 50000;; pause = pause < 5000000 ? pause * 2 : 5000000) {
		int outcome = shmrt_message_finish(outgoing->encoder, self->arena, inline_max, &outgoing->message, &shortage);
		if (SHMRT_LIKELY(outcome == SHMRT_OK))
			return 0;
		if (outcome == SHMRT_TOO_LARGE) {
			shmrt_raise_too_large(shortage.needed, self->arena->arena.limit_bytes);
			return -1;
		}
		if (outcome != SHMRT_NO_SPACE) {
			if (!PyErr_Occurred())
				PyErr_SetFromErrno(PyExc_OSError);
			return -1;
		}
		if (!shmrt_py_blocks_are_used_by_others(self->arena)) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		int64_t left = shmrt_py_time_left(deadline);
		if (left <= 0 || self->mailbox.on_full == SHMRT_RING_RAISE) {
			shmrt_py_mailbox_refused(self, SHMRT_TIMEOUT);
			shmrt_raise_overloaded(self->arena->arena.limit_bytes, "memory",
					       "the shared memory for payloads is in use and was not given back in time");
			return -1;
		}
		/* relaxed: a hint that waiting is over */
		if (atomic_load_explicit(&self->mailbox.ring.shared->closed, memory_order_relaxed)) {
			shmrt_py_mailbox_raise(self, SHMRT_CLOSED);
			return -1;
		}
		if (shmrt_py_nap(pause < left ? pause : left) < 0)
			return -1;
	}
}

int shmrt_py_outgoing_make(struct shmrt_py_outgoing *outgoing, MailboxObject *self, int kind, PyObject *name, PyObject *args,
			   PyObject *kwargs, const struct deadline *deadline) {
	Py_ssize_t name_size;
	*outgoing = (struct shmrt_py_outgoing){.mailbox = self};
	if (!PyUnicode_Check(name) || !PyTuple_Check(args) || (kwargs != Py_None && !PyDict_Check(kwargs))) {
		PyErr_Format(PyExc_TypeError, "a message is (str, tuple, dict or None), not (%.50s, %.50s, %.50s)", Py_TYPE(name)->tp_name,
			     Py_TYPE(args)->tp_name, Py_TYPE(kwargs)->tp_name);
		return -1;
	}
	const char *name_bytes = PyUnicode_AsUTF8AndSize(name, &name_size);
	if (name_bytes == NULL)
		return -1;
	if (name_size > SHMRT_MAIL_NAME_MAX) {
		PyErr_Format(PyExc_ValueError, "name=%R has %zd bytes, more than %d", name, name_size, SHMRT_MAIL_NAME_MAX);
		return -1;
	}
	if (borrow(outgoing) < 0)
		return -1;
	size_t head = ENVELOPE_SIZE + (size_t)name_size;
	if (encode_arguments(outgoing->encoder, args, kwargs == Py_None ? NULL : kwargs) < 0 ||
	    finish(outgoing, self->mailbox.ring.slot_bytes - head, deadline) < 0) {
		shmrt_py_outgoing_end(outgoing, false);
		return -1;
	}
	const struct shmrt_message *message = &outgoing->message;
	struct shmrt_mail_envelope envelope = {
		.kind = (uint8_t)kind, .name_size = (uint8_t)name_size, .sender = shmrt_owner_self(), .deadline_ns = deadline->until_ns};
	memcpy(outgoing->bytes, &envelope, ENVELOPE_SIZE);
	memcpy(outgoing->bytes + ENVELOPE_SIZE, name_bytes, (size_t)name_size);
	memcpy(outgoing->bytes + head, message->inline_bytes, message->inline_size);
	outgoing->out = (struct shmrt_ring_message){
		.inline_bytes = outgoing->bytes,
		.inline_size = (uint32_t)head + message->inline_size,
		.flags = message->flags,
		.block_count = message->block_count,
		.blocks = message->blocks,
	};
	return 0;
}

/* ---- cast ---- */

PyObject *shmrt_py_mailbox_cast(MailboxObject *self, PyObject *const *args, Py_ssize_t nargs) {
	struct shmrt_py_outgoing outgoing;
	int64_t timeout_ns, wanted_ns = SHMRT_FOREVER;
	if (nargs != 5 && nargs != 6) {
		PyErr_SetString(PyExc_TypeError, "cast(kind, name, args, kwargs, timeout, deadline=None)");
		return NULL;
	}
	long kind = PyLong_AsLong(args[0]);
	if ((kind == -1 && PyErr_Occurred()) || shmrt_py_timeout(args[4], &timeout_ns) < 0 ||
	    (nargs == 6 && args[5] != Py_None && shmrt_py_timeout(args[5], &wanted_ns) < 0))
		return NULL;
	if (kind != SHMRT_MAIL_CAST && kind != SHMRT_MAIL_INFO) {
		PyErr_Format(PyExc_ValueError, "kind=%ld must be MAIL_CAST or MAIL_INFO", kind);
		return NULL;
	}
	/* How long the sender waits is not how long the message may; but for room it need not wait any longer. */
	uint64_t until_ns = wanted_ns == SHMRT_FOREVER ? 0 : shmrt_now_ns() + (uint64_t)wanted_ns;
	struct deadline deadline = shmrt_py_deadline_after(wanted_ns < timeout_ns ? wanted_ns : timeout_ns);
	if (shmrt_py_outgoing_make(&outgoing, self, (int)kind, args[1], args[2], args[3], &deadline) < 0)
		return NULL;
	memcpy(outgoing.bytes + offsetof(struct shmrt_mail_envelope, deadline_ns), &until_ns, sizeof(until_ns));
	bool waits = self->mailbox.on_full == SHMRT_RING_BLOCK || self->mailbox.on_full == SHMRT_RING_DROP_OLDEST;
	int outcome = shmrt_mailbox_put(&self->mailbox, &outgoing.out, 0);
	while (SHMRT_UNLIKELY(outcome == SHMRT_INTERRUPTED || (outcome == SHMRT_FULL && waits))) {
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			break;
		int64_t left = shmrt_py_time_left(&deadline);
		if (left <= 0)
			break;
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_mailbox_put(&self->mailbox, &outgoing.out, left);
		Py_END_ALLOW_THREADS
	}
	shmrt_py_outgoing_end(&outgoing, outcome == SHMRT_OK);
	if (PyErr_Occurred())
		return NULL;
	bool dropped = outcome == SHMRT_FULL && self->mailbox.on_full == SHMRT_RING_DROP_NEWEST;
	if (SHMRT_UNLIKELY(outcome != SHMRT_OK && !dropped))
		shmrt_py_mailbox_raise(self, outcome == SHMRT_INTERRUPTED ? SHMRT_TIMEOUT : outcome);
	if (shmrt_py_mailbox_look(self) < 0 || PyErr_Occurred())
		return NULL;
	return PyBool_FromLong(!dropped);
}
