/* py_calls.c -- Calls: the call slots of a runtime as one process uses them.
 *
 * One per process and runtime. Its lists are used under the GIL; what they say is confirmed by the words in shared memory.
 * A forked child inherits the object but owns no slot: its first use starts with empty lists, and the parent's
 * slots stay the parent's, whose owner id stands in them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"

#include <errno.h>

PyTypeObject *shmrt_py_calls_type;

/* ---- whose it is ---- */

static void begin_anew(CallsObject *self) {
	self->owner = shmrt_owner_self();
	self->idle_count = 0;
	self->has_door = self->woken = self->collecting = false;
	Py_CLEAR(self->collected);
	self->watched_count = 0;
	self->encoder_busy = false; /* whoever used it is a thread of the parent's */
	memset(&self->encoder, 0, sizeof(self->encoder));
}

CallsObject *shmrt_py_calls_enter(PyObject *object) {
	if (Py_TYPE(object) != shmrt_py_calls_type) {
		PyErr_Format(PyExc_TypeError, "a Calls is needed, not %R", object);
		return NULL;
	}
	CallsObject *self = (CallsObject *)object;
	if (shmrt_py_slots_control(self->slots) == NULL)
		return NULL;
	if (SHMRT_UNLIKELY(self->owner != shmrt_owner_self()))
		begin_anew(self);
	return self;
}

/* A method's own object: only closing and forking can have happened to it. */
#define ENTER(self)                                                   \
	if (shmrt_py_calls_enter((PyObject *)(self)) == NULL)         \
		return NULL

int shmrt_py_reference(PyObject *reference, uint32_t *index, uint32_t *generation) {
	unsigned long long value = PyLong_AsUnsignedLongLong(reference);
	if (value == (unsigned long long)-1 && PyErr_Occurred())
		return -1;
	*index = (uint32_t)(value >> 32);
	*generation = (uint32_t)value;
	return 0;
}

ShmrtArena *shmrt_py_calls_arena(CallsObject *self) {
	if (self->arena == NULL && shmrt_arena_has_default())
		self->arena = (ShmrtArena *)shmrt_arena_default();
	return self->arena;
}

static struct shmrt_arena *arena_of(CallsObject *self) {
	ShmrtArena *arena = shmrt_py_calls_arena(self);
	return arena ? &arena->arena : NULL;
}

/* ---- call slots ---- */

int shmrt_py_calls_claim(CallsObject *self, uint32_t *index) {
	while (self->idle_count > 0) {
		*index = self->idle[--self->idle_count];
		uint64_t word = shmrt_call_word(&self->calls, *index);
		if (SHMRT_LIKELY(shmrt_call_state_of(word) == SHMRT_CALL_IDLE && shmrt_call_owner_of(word) == self->owner))
			return 0;
	}
	for (int attempt = 0; attempt < 2; attempt++) {
		if (shmrt_call_claim(&self->calls, &self->cursor, index) == SHMRT_OK)
			return 0;
		if (attempt == 0 && shmrt_calls_reclaim(&self->calls, arena_of(self)) == 0)
			break;
	}
	shmrt_raise_overloaded(self->calls.count, "calls", "all %u call slots of the runtime are in use: that many calls wait for their "
			       "replies", self->calls.count);
	return -1;
}

void shmrt_py_calls_give_back(CallsObject *self, uint32_t index) {
	if (self->idle_count < SHMRT_PY_IDLE_MOST)
		self->idle[self->idle_count++] = index;
	else
		shmrt_call_release(&self->calls, index);
}

/* ---- answers ---- */

static PyObject *decode_answer(ShmrtArena *arena, const uint8_t *body, const struct shmrt_call_message *message) {
	if (SHMRT_LIKELY(message->block_count == 0)) {
		if (message->inline_size == 0)
			Py_RETURN_NONE; /* the status says it all */
		return shmrt_decode_message(message->inline_bytes, message->inline_size, message->flags, NULL, 0, true);
	}
	PyObject *blocks[SHMRT_CALL_INLINE / sizeof(struct shmrt_block_reference)], *object = NULL;
	memset(blocks, 0, sizeof(blocks));
	if (shmrt_py_blocks_open(arena, body, message->block_count, message->flags, BLOCKS_OURS, blocks) < 0)
		return NULL;
	if (shmrt_py_blocks_copy_out_if_greedy(arena, message->block_count, blocks) == 0)
		object = shmrt_decode_message(message->inline_bytes, message->inline_size, message->flags, blocks, message->block_count,
					      true);
	for (uint16_t i = 0; i < message->block_count; i++)
		Py_XDECREF(blocks[i]);
	return object;
}

PyObject *shmrt_py_calls_read(CallsObject *self, uint32_t index, uint32_t generation, int *status) {
	uint8_t body[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
	struct shmrt_call_message message;
	int outcome = shmrt_call_read(&self->calls, index, generation, arena_of(self), body, &message);
	if (outcome == SHMRT_OK || outcome == SHMRT_CORRUPT || outcome == SHMRT_FOREIGN)
		shmrt_py_calls_give_back(self, index);
	if (outcome == SHMRT_FOREIGN)
		return shmrt_raise("SegmentError", "a reply lies in shared memory that this process does not use");
	if (outcome != SHMRT_OK)
		return shmrt_raise("SegmentError", "corrupt call slot %u: a word in it is one that no writer leaves (code %d)", index, outcome);
	*status = (int)message.status;
	return decode_answer(self->arena, body, &message);
}

void shmrt_py_calls_cancel(CallsObject *self, uint32_t index, uint32_t generation) {
	int outcome = shmrt_call_give_up(&self->calls, index, generation);
	if (outcome == SHMRT_OK) {
		shmrt_py_calls_give_back(self, index);
	} else if (outcome == SHMRT_EMPTY) { /* the reply came first: nobody wants it */
		uint8_t body[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
		struct shmrt_call_message message;
		outcome = shmrt_call_read(&self->calls, index, generation, arena_of(self), body, &message);
		if (outcome == SHMRT_OK && message.block_count != 0)
			shmrt_py_blocks_free(self->arena, body, message.block_count);
		if (outcome != SHMRT_STALE)
			shmrt_py_calls_give_back(self, index);
	}
}

static PyObject *calls_is_waiting(CallsObject *self, PyObject *reference) {
	uint32_t index, generation;
	ENTER(self);
	if (shmrt_py_reference(reference, &index, &generation) < 0)
		return NULL;
	return PyBool_FromLong(shmrt_call_is_waiting(&self->calls, index, generation));
}

static PyObject *calls_stats(CallsObject *self, PyObject *nothing) {
	(void)nothing;
	static const char *const names[] = {"free", "idle", "waiting", "taken", "writing", "replied", "dropped", "abandoned"};
	uint32_t counts[sizeof(names) / sizeof(names[0])] = {0}, corrupt = 0;
	ENTER(self);
	for (uint32_t index = 0; index < self->calls.count; index++) {
		enum shmrt_call_state state = shmrt_call_state_of(shmrt_call_word(&self->calls, index));
		if (state <= SHMRT_CALL_ABANDONED)
			counts[state]++;
		else
			corrupt++;
	}
	PyObject *dict = Py_BuildValue("{s:I,s:n,s:n,s:K,s:K,s:I}", "capacity", self->calls.count, "kept", (Py_ssize_t)self->idle_count,
				       "watched", (Py_ssize_t)self->watched_count, "begun", (unsigned long long)self->begun,
				       "replies_dropped", (unsigned long long)self->replies_dropped, "corrupt", corrupt);
	for (size_t i = 0; dict != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
		PyObject *number = PyLong_FromUnsignedLong(counts[i]);
		if (number == NULL || PyDict_SetItemString(dict, names[i], number) < 0)
			Py_CLEAR(dict);
		Py_XDECREF(number);
	}
	return dict;
}

static PyObject *calls_check(CallsObject *self, PyObject *nothing) {
	(void)nothing;
	ENTER(self);
	for (uint32_t index = 0; index < self->calls.count; index++)
		if (shmrt_call_check(&self->calls, index) != SHMRT_OK)
			Py_RETURN_FALSE;
	Py_RETURN_TRUE;
}

/* ---- life ---- */

/* Memory behind calls and names: once per runtime, by the program. */
static PyObject *calls_reserve(CallsObject *self, PyObject *nothing) {
	(void)nothing;
	ENTER(self);
	struct shmrt_control *control = ((SlotsObject *)self->slots)->control;
	if (atomic_load_explicit(&control->extended, memory_order_relaxed) != 0) /* a flag: whoever finds 0 does it again */
		Py_RETURN_NONE;
	struct shmrt_shortage shortage = {0};
	uint64_t offset = control->calls_offset, end = shmrt_control_names_end(control->slot_count);
	int outcome = shmrt_segment_reserve(((SlotsObject *)self->slots)->fd, offset, end - offset, &shortage);
	if (outcome == SHMRT_NO_SPACE)
		return shmrt_raise_shortage(&shortage);
	if (outcome != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	atomic_store_explicit(&control->extended, 1, memory_order_relaxed); /* as above */
	Py_RETURN_NONE;
}

static PyObject *calls_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"slots", "arena", NULL};
	PyObject *slots, *arena = Py_None;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:Calls", names, &slots, &arena))
		return NULL;
	if (arena != Py_None && Py_TYPE(arena) != shmrt_arena_type)
		return PyErr_Format(PyExc_TypeError, "arena must be an Arena or None, not %R", arena);
	struct shmrt_control *control = shmrt_py_slots_control(slots);
	CallsObject *self = control ? (CallsObject *)type->tp_alloc(type, 0) : NULL;
	if (self == NULL)
		return NULL;
	self->slots = Py_NewRef(slots);
	self->arena = arena == Py_None ? NULL : (ShmrtArena *)Py_NewRef(arena);
	begin_anew(self);
	if (shmrt_calls_attach(&self->calls, control, ((SlotsObject *)slots)->size) != SHMRT_OK) {
		Py_DECREF(self);
		return shmrt_raise("SegmentError", "the call slots do not fit the segment of the process table");
	}
	return (PyObject *)self;
}

static void calls_dealloc(CallsObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	if (self->owner == shmrt_owner_self()) {
		bool open = self->calls.count != 0 && ((SlotsObject *)self->slots)->control != NULL;
		while (open && self->watched_count > 0) {
			struct shmrt_py_watched *call = &self->watched[--self->watched_count];
			shmrt_py_calls_cancel(self, call->index, call->generation);
		}
		while (open && self->idle_count > 0)
			shmrt_call_release(&self->calls, self->idle[--self->idle_count]);
		if (open && self->has_door)
			shmrt_call_release(&self->calls, self->door);
		shmrt_encoder_clear(&self->encoder);
	}
	PyMem_Free(self->watched);
	Py_XDECREF(self->collected);
	Py_XDECREF(self->arena);
	Py_XDECREF(self->slots);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL
static PyMethodDef calls_methods[] = {
	{"reserve", (PyCFunction)calls_reserve, METH_NOARGS, "Put memory behind call slots and names; once per runtime is enough."},
	{"call", FAST(shmrt_py_calls_call), "call(mailbox, target, name, args, kwargs, timeout) -> (status, value)"},
	{"begin", FAST(shmrt_py_calls_begin), "begin(mailbox, target, name, args, kwargs, timeout) -> reference of a watched call"},
	{"collect", (PyCFunction)shmrt_py_calls_collect, METH_O, "collect(timeout) -> [(reference, status, value), ...] of watched calls that ended"},
	{"wake", (PyCFunction)shmrt_py_calls_wake, METH_NOARGS, "End a collect."},
	{"cancel", (PyCFunction)shmrt_py_calls_cancel_watched, METH_O, "cancel(reference) -> whether the watched call was still to be collected"},
	{"reply", FAST(shmrt_py_calls_reply), "reply(reference, status, value) -> whether somebody waited for it"},
	{"is_waiting", (PyCFunction)calls_is_waiting, METH_O, "is_waiting(reference) -> whether a reply would still arrive"},
	{"fail_taken", FAST(shmrt_py_calls_fail_taken), "fail_taken(owner_id, reason) -> calls ended that a dead process had taken"},
	{"fail_waiting", FAST(shmrt_py_calls_fail_waiting), "fail_waiting(target, reason) -> calls ended that nobody took; close the mailbox first"},
	{"fail_all", (PyCFunction)shmrt_py_calls_fail_all, METH_O, "fail_all(reason) -> calls ended, whoever's they were"},
	{"reclaim", (PyCFunction)shmrt_py_calls_reclaim, METH_NOARGS, "reclaim() -> slots freed whose callers are dead"},
	{"stats", (PyCFunction)calls_stats, METH_NOARGS, "Slots by state, and what this process did."},
	{"_check", (PyCFunction)calls_check, METH_NOARGS, "whether its words, at rest, are ones that writers leave"},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot calls_slots[] = {
	{Py_tp_doc, "Calls(slots, arena=None)\n--\n\nThe call slots of a runtime: where callers get their replies."},
	{Py_tp_new, calls_new},
	{Py_tp_dealloc, calls_dealloc},
	{Py_tp_methods, calls_methods},
	{0, NULL},
};
static PyType_Spec calls_spec = {"shmrt._native.Calls", sizeof(CallsObject), 0, Py_TPFLAGS_DEFAULT, calls_slots};

static const struct {
	const char *name;
	long value;
} constants[] = {
	{"CALL_REPLY", SHMRT_CALL_REPLY},
	{"CALL_ERROR", SHMRT_CALL_ERROR},
	{"CALL_DOWN", SHMRT_CALL_DOWN},
	{"CALL_TIMEOUT", SHMRT_CALL_TIMEOUT},
	{"CALL_OVERLOADED", SHMRT_CALL_OVERLOADED},
	{"CALL_CLOSED", SHMRT_CALL_CLOSED},
	{"MAIL_CALL", SHMRT_MAIL_CALL},
	{"MAIL_CAST", SHMRT_MAIL_CAST},
	{"MAIL_INFO", SHMRT_MAIL_INFO},
};

int shmrt_py_add_calls(PyObject *module) {
	shmrt_py_calls_type = (PyTypeObject *)PyType_FromSpec(&calls_spec);
	if (shmrt_py_calls_type == NULL || PyModule_AddObjectRef(module, "Calls", (PyObject *)shmrt_py_calls_type) < 0)
		return -1;
	for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
			return -1;
	return 0;
}
