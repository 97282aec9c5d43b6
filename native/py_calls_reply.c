/* py_calls_reply.c -- the other end of a call: a reply, or that there will be none.
 *
 * A reply is encoded before the call slot is touched: if that fails, the call is as it was and can still be answered
 * with an error. A reason for many calls is encoded once; each call gets blocks of its own if it needs any, and a
 * brief form of the reason if it cannot have them: a caller is never left waiting because its failure is too long to tell.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"

#include <errno.h>

#define BRIEF_TEXT 40 /* characters of a text in a brief reason */
#define BRIEF_ITEMS 4

static struct shmrt_arena *arena_of(CallsObject *self) {
	ShmrtArena *arena = shmrt_py_calls_arena(self);
	return arena ? &arena->arena : NULL;
}

static struct shmrt_call_message as_reply(int status, const struct shmrt_message *message) {
	return (struct shmrt_call_message){
		.status = (enum shmrt_call_status)status,
		.flags = message->flags,
		.block_count = message->block_count,
		.inline_size = message->inline_size,
		.inline_bytes = message->inline_bytes,
		.blocks = message->blocks,
	};
}

/* ---- one reply ---- */

/* Waits while the arena is short, somebody else can free some of it, and the caller still waits. */
static int finish(CallsObject *self, struct shmrt_encoder *encoder, struct shmrt_message *message, uint32_t index,
		  uint32_t generation) {
	struct shmrt_shortage shortage = {0};
	for (int64_t pause = 50000;; pause = pause < 5000000 ? pause * 2 : 5000000) {
		int outcome = shmrt_message_finish(encoder, self->arena, SHMRT_CALL_INLINE, message, &shortage);
		if (SHMRT_LIKELY(outcome == SHMRT_OK))
			return 0;
		if (outcome == SHMRT_TOO_LARGE)
			shmrt_raise_too_large(shortage.needed, self->arena->arena.limit_bytes);
		else if (outcome != SHMRT_NO_SPACE && !PyErr_Occurred())
			PyErr_SetFromErrno(PyExc_OSError);
		else if (outcome == SHMRT_NO_SPACE && (!shmrt_py_blocks_are_used_by_others(self->arena) ||
						       !shmrt_call_is_waiting(&self->calls, index, generation)))
			shmrt_raise_shortage(&shortage);
		if (outcome != SHMRT_NO_SPACE || PyErr_Occurred() || shmrt_py_nap(pause) < 0)
			return -1;
	}
}

PyObject *shmrt_py_calls_reply(CallsObject *self, PyObject *const *args, Py_ssize_t nargs) {
	uint32_t index, generation;
	if (nargs != 3) {
		PyErr_SetString(PyExc_TypeError, "reply(reference, status, value)");
		return NULL;
	}
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || shmrt_py_reference(args[0], &index, &generation) < 0)
		return NULL;
	long status = PyLong_AsLong(args[1]);
	if (status == -1 && PyErr_Occurred())
		return NULL;
	if (status < SHMRT_CALL_REPLY || status > SHMRT_CALL_CLOSED) {
		PyErr_Format(PyExc_ValueError, "status=%ld must be one of the CALL_* constants", status);
		return NULL;
	}
	if (!shmrt_call_is_waiting(&self->calls, index, generation)) {
		self->replies_dropped++;
		Py_RETURN_FALSE;
	}
	struct shmrt_encoder own = {0}, *encoder = self->encoder_busy ? &own : &self->encoder;
	bool borrowed = encoder == &self->encoder;
	if (borrowed)
		self->encoder_busy = true;
	int outcome = SHMRT_SYSTEM;
	struct shmrt_message message = {0};
	if (shmrt_encode(encoder, args[2]) == 0) {
		/* Only what does not fit the slot needs an arena, and then there must be one. */
		if (shmrt_py_calls_arena(self) == NULL && (encoder->buffer_count > 0 || encoder->size > SHMRT_CALL_INLINE))
			self->arena = (ShmrtArena *)shmrt_arena_default();
		if (!PyErr_Occurred() && finish(self, encoder, &message, index, generation) == 0) {
			struct shmrt_call_message reply = as_reply((int)status, &message);
			outcome = shmrt_call_reply(&self->calls, index, generation, arena_of(self), &reply);
			shmrt_message_clear(&message, self->arena, outcome != SHMRT_OK);
			if (outcome == SHMRT_INVALID)
				shmrt_raise("SegmentError", "a block of the reply is not this process's to send");
		}
	}
	if (outcome != SHMRT_OK) {
		PyObject *type, *value, *traceback;
		PyErr_Fetch(&type, &value, &traceback);
		shmrt_encoder_thaw(encoder);
		PyErr_Restore(type, value, traceback);
	}
	if (borrowed) {
		shmrt_encoder_reset(encoder);
		self->encoder_busy = false;
	} else {
		shmrt_encoder_clear(encoder);
	}
	if (PyErr_Occurred())
		return NULL;
	self->replies_dropped += outcome != SHMRT_OK;
	return PyBool_FromLong(outcome == SHMRT_OK);
}

/* ---- failures ---- */

/* Fits every call slot: texts cut, a few items, no objects. New reference. */
static PyObject *brief_form(PyObject *reason, bool nested) {
	if (reason == Py_None || PyBool_Check(reason) || PyFloat_CheckExact(reason))
		return Py_NewRef(reason);
	if (PyTuple_CheckExact(reason) && !nested) {
		Py_ssize_t count = PyTuple_GET_SIZE(reason) < BRIEF_ITEMS ? PyTuple_GET_SIZE(reason) : BRIEF_ITEMS;
		PyObject *brief = PyTuple_New(count);
		for (Py_ssize_t i = 0; brief != NULL && i < count; i++) {
			PyObject *item = brief_form(PyTuple_GET_ITEM(reason, i), true);
			if (item == NULL)
				Py_CLEAR(brief);
			else
				PyTuple_SET_ITEM(brief, i, item);
		}
		return brief;
	}
	PyObject *text = PyUnicode_CheckExact(reason) ? Py_NewRef(reason) : PyUnicode_FromString(Py_TYPE(reason)->tp_name);
	PyObject *cut = text ? PyUnicode_Substring(text, 0, BRIEF_TEXT) : NULL;
	Py_XDECREF(text);
	return cut;
}

int shmrt_py_failure_begin(struct shmrt_py_failure *failure, CallsObject *calls, PyObject *reason) {
	*failure = (struct shmrt_py_failure){.calls = calls};
	PyObject *brief = brief_form(reason, false);
	int outcome = brief ? shmrt_encode(&failure->brief, brief) : -1;
	Py_XDECREF(brief);
	if (outcome == 0)
		outcome = shmrt_encode(&failure->encoder, reason);
	if (outcome < 0)
		shmrt_py_failure_end(failure);
	return outcome;
}

void shmrt_py_failure_end(struct shmrt_py_failure *failure) {
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	shmrt_encoder_clear(&failure->encoder);
	shmrt_encoder_clear(&failure->brief);
	PyErr_Restore(type, value, traceback);
}

/* The long form with blocks of its own, or else the brief one. True: it has blocks. */
static void prepare(struct shmrt_py_failure *failure, struct shmrt_message *message) {
	struct shmrt_shortage shortage;
	ShmrtArena *arena = shmrt_py_calls_arena(failure->calls);
	if (shmrt_message_finish(&failure->encoder, arena, SHMRT_CALL_INLINE, message, &shortage) == SHMRT_OK)
		return;
	PyErr_Clear();
	(void)!shmrt_message_finish(&failure->brief, NULL, SHMRT_CALL_INLINE, message, &shortage);
}

void shmrt_py_failure_finish(struct shmrt_py_failure *failure, uint32_t index, uint32_t generation) {
	struct shmrt_message message;
	CallsObject *calls = failure->calls;
	prepare(failure, &message);
	struct shmrt_call_message reply = as_reply(SHMRT_CALL_DOWN, &message);
	int outcome = shmrt_call_finish(&calls->calls, index, generation, arena_of(calls), &reply);
	if (outcome == SHMRT_INVALID) { /* its blocks are gone, whoever took them: the brief form has none */
		struct shmrt_message brief;
		struct shmrt_shortage shortage;
		(void)!shmrt_message_finish(&failure->brief, NULL, SHMRT_CALL_INLINE, &brief, &shortage);
		reply = as_reply(SHMRT_CALL_DOWN, &brief);
		outcome = shmrt_call_finish(&calls->calls, index, generation, NULL, &reply);
	}
	shmrt_message_clear(&message, calls->arena, outcome != SHMRT_OK);
}

bool shmrt_py_failure_reply(struct shmrt_py_failure *failure, uint32_t index, uint32_t generation) {
	struct shmrt_message message;
	CallsObject *calls = failure->calls;
	prepare(failure, &message);
	struct shmrt_call_message reply = as_reply(SHMRT_CALL_DOWN, &message);
	int outcome = shmrt_call_reply(&calls->calls, index, generation, arena_of(calls), &reply);
	shmrt_message_clear(&message, calls->arena, outcome != SHMRT_OK);
	return outcome == SHMRT_OK;
}

static PyObject *fail(CallsObject *self, enum shmrt_call_seizure which, uint64_t whom, PyObject *reason) {
	struct shmrt_py_failure failure;
	unsigned long count = 0;
	if (shmrt_py_failure_begin(&failure, self, reason) < 0)
		return NULL;
	for (uint32_t index = 0; index < self->calls.count; index++) {
		uint32_t generation;
		if (!shmrt_call_seize(&self->calls, index, which, whom, arena_of(self), &generation))
			continue;
		shmrt_py_failure_finish(&failure, index, generation);
		count++;
	}
	shmrt_py_failure_end(&failure);
	return PyLong_FromUnsignedLong(count);
}

static PyObject *fail_for(CallsObject *self, PyObject *const *args, Py_ssize_t nargs, enum shmrt_call_seizure which,
			  const char *usage) {
	if (nargs != 2) {
		PyErr_SetString(PyExc_TypeError, usage);
		return NULL;
	}
	if (shmrt_py_calls_enter((PyObject *)self) == NULL)
		return NULL;
	uint64_t whom = PyLong_AsUnsignedLongLong(args[0]);
	if (whom == UINT64_MAX && PyErr_Occurred())
		return NULL;
	return fail(self, which, whom, args[1]);
}

PyObject *shmrt_py_calls_fail_taken(CallsObject *self, PyObject *const *args, Py_ssize_t nargs) {
	return fail_for(self, args, nargs, SHMRT_SEIZE_TAKEN, "fail_taken(owner_id, reason)");
}

PyObject *shmrt_py_calls_fail_waiting(CallsObject *self, PyObject *const *args, Py_ssize_t nargs) {
	return fail_for(self, args, nargs, SHMRT_SEIZE_WAITING, "fail_waiting(target, reason)");
}

PyObject *shmrt_py_calls_fail_all(CallsObject *self, PyObject *reason) {
	if (shmrt_py_calls_enter((PyObject *)self) == NULL)
		return NULL;
	return fail(self, SHMRT_SEIZE_ALL, 0, reason);
}

PyObject *shmrt_py_calls_reclaim(CallsObject *self, PyObject *nothing) {
	(void)nothing;
	if (shmrt_py_calls_enter((PyObject *)self) == NULL)
		return NULL;
	return PyLong_FromUnsignedLong(shmrt_calls_reclaim(&self->calls, arena_of(self)));
}
