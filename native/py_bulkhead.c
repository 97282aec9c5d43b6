/* py_bulkhead.c -- permits as a Python type: bulkhead.h around a call.
 *
 * PermitPool is the base of shmrt.Bulkhead. The permits of one object are worth the same, whichever thread took them, so the object
 * keeps them on a stack and gives the last one back, where it was taken. One that is there no more, since its runtime has ended or
 * the process was forked, stays on the stack with word 0: blocks that are still open count on it. While one waits, the GIL is free.
 */
#include "py_bulkhead.h"

#include "py_message.h"

#include <structmember.h>

static bool is_sound(const struct shmrt_guard *guard) { return shmrt_bulkhead_is_sound((const struct shmrt_bulkhead *)(const void *)guard); }

static PyObject *around(PyObject *guard, PyObject *fn, PyObject *const *args, size_t nargsf, PyObject *names);

/* Its size; a permit stays where it was taken. */
static void carry(struct shmrt_guard *to, const struct shmrt_guard *from, bool only_fresh) {
	struct shmrt_bulkhead *mine = (struct shmrt_bulkhead *)(void *)to;
	uint32_t limit = atomic_load_explicit(&((const struct shmrt_bulkhead *)(const void *)from)->limit, memory_order_relaxed); /* a number by itself */
	if (only_fresh && atomic_load_explicit(&mine->tickets, memory_order_relaxed) != 0) /* a hint */
		return;
	atomic_store_explicit(&mine->limit, limit, memory_order_relaxed); /* a number by itself */
}

static const struct shmrt_py_guard_kind bulkhead_kind = {
	.kind = SHMRT_GUARD_BULKHEAD, .refusals = UINT32_C(1) << SHMRT_BULKHEAD_REFUSED | UINT32_C(1) << SHMRT_BULKHEAD_TIMED_OUT,
	.word = "bulkhead", .fill = shmrt_bulkhead_fill, .is_sound = is_sound, .around = around, .carry = carry};

static PyObject *refuse(BulkheadObject *self) {
	PyObject *error = PyObject_CallMethod((PyObject *)self, "_refusal", NULL);
	if (error != NULL)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_XDECREF(error);
	return NULL;
}

/* ---- methods ------------------------------------------------------------------------------------ */

/* _acquire(timeout_ns; < 0: for ever) -> bool */
static PyObject *bulkhead_acquire(BulkheadObject *self, PyObject *argument) {
	long long timeout = PyLong_AsLongLong(argument);
	if (timeout == -1 && PyErr_Occurred())
		return NULL;
	int outcome = shmrt_py_bulkhead_acquire(self, timeout < 0 ? SHMRT_FOREVER : (int64_t)timeout);
	return outcome < 0 ? NULL : PyBool_FromLong(outcome);
}

static PyObject *bulkhead_try_acquire(BulkheadObject *self, PyObject *unused) {
	(void)unused;
	int outcome = shmrt_py_bulkhead_acquire(self, 0);
	return outcome < 0 ? NULL : PyBool_FromLong(outcome);
}

static PyObject *bulkhead_release(BulkheadObject *self, PyObject *unused) {
	(void)unused;
	if (shmrt_py_guard_is_made(&self->base) < 0)
		return NULL;
	if (self->held_count == 0 || self->held_by != shmrt_owner_self()) {
		PyErr_Format(PyExc_RuntimeError, "bulkhead %R has no permit of this process to give back", self->base.name);
		return NULL;
	}
	if (shmrt_py_bulkhead_give_back(self) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *bulkhead_enter(BulkheadObject *self, PyObject *unused) {
	(void)unused;
	int outcome = shmrt_py_bulkhead_acquire(self, self->timeout_ns);
	if (outcome == 0)
		return refuse(self);
	return outcome < 0 ? NULL : Py_NewRef((PyObject *)self);
}

static PyObject *bulkhead_exit(BulkheadObject *self, PyObject *const *args, Py_ssize_t count) {
	(void)args, (void)count;
	if (shmrt_py_bulkhead_give_back(self) < 0)
		return NULL;
	Py_RETURN_FALSE;
}

static PyObject *around(PyObject *guard, PyObject *fn, PyObject *const *args, size_t nargsf, PyObject *names) {
	BulkheadObject *self = (BulkheadObject *)guard;
	int outcome = shmrt_py_bulkhead_acquire(self, self->timeout_ns);
	if (outcome <= 0)
		return outcome == 0 ? refuse(self) : NULL;
	PyObject *value = PyObject_Vectorcall(fn, args, nargsf, names);
	if (value != NULL && SHMRT_UNLIKELY(PyCoro_CheckExact(value) || PyGen_CheckExact(value) || PyAsyncGen_CheckExact(value))) {
		/* It has not run yet: the permit is held until it has, or until nobody can run it any more. */
		PyObject *followed = PyObject_CallMethod(guard, "_follow", "O", value);
		Py_DECREF(value);
		if (followed != NULL)
			return followed;
		value = NULL;
	}
	PyObject *error = value ? NULL : shmrt_take_exception();
	if (shmrt_py_bulkhead_give_back(self) < 0)
		Py_CLEAR(value);
	if (error != NULL) {
		PyErr_Clear();
		shmrt_give_exception(error);
	}
	return value;
}

/* _poll(place) -> (whether there is a permit, place): for an event loop, which may not sleep here. A place is (index, word), or None. */
static PyObject *bulkhead_poll(BulkheadObject *self, PyObject *argument) {
	struct shmrt_permit place = {0};
	unsigned long long word = 0;
	uint32_t bell;
	if (argument != Py_None && !PyTuple_Check(argument))
		return PyErr_Format(PyExc_TypeError, "a place is what _poll returned, or None, not %R", argument);
	if (argument != Py_None && !PyArg_ParseTuple(argument, "IK", &place.index, &word))
		return NULL;
	place.word = word;
	if (shmrt_py_bulkhead_ready(self) < 0)
		return NULL;
	int outcome = shmrt_py_bulkhead_try(self, self->may_wait ? &place : NULL, &bell);
	if (outcome == SHMRT_EMPTY && word == 0 && place.word != 0)
		shmrt_guard_count(&self->base.guard[0], SHMRT_BULKHEAD_WAITED, 1);
	if (outcome == SHMRT_FULL || (outcome == SHMRT_EMPTY && place.word == 0)) {
		shmrt_guard_count(&self->base.guard[0], SHMRT_BULKHEAD_REFUSED, 1);
		Py_RETURN_NONE;
	}
	if (outcome != SHMRT_OK && outcome != SHMRT_EMPTY)
		return NULL;
	return Py_BuildValue("(O(IK))", outcome == SHMRT_OK ? Py_True : Py_False, place.index, (unsigned long long)place.word);
}

static PyObject *bulkhead_give_up(BulkheadObject *self, PyObject *args) {
	struct shmrt_permit place;
	unsigned long long word;
	int timed_out;
	if (!PyArg_ParseTuple(args, "(IK)p", &place.index, &word, &timed_out) || shmrt_py_bulkhead_ready(self) < 0)
		return NULL;
	place.word = word;
	shmrt_py_bulkhead_leave_line(shmrt_py_bulkhead_of(self), &place);
	if (timed_out)
		shmrt_guard_count(self->base.guard, SHMRT_BULKHEAD_TIMED_OUT, 1);
	Py_RETURN_NONE;
}

static PyObject *bulkhead_resize(BulkheadObject *self, PyObject *argument) {
	unsigned long limit = PyLong_AsUnsignedLong(argument);
	if ((limit == (unsigned long)-1 && PyErr_Occurred()) || shmrt_py_bulkhead_ready(self) < 0)
		return NULL;
	uint32_t size = limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit;
	int outcome = shmrt_bulkhead_resize(shmrt_py_bulkhead_of(self), 0, size);
	while (outcome != SHMRT_OK) {
		if (outcome == SHMRT_INVALID)
			return PyErr_Format(PyExc_ValueError, "max_concurrent=%lu of bulkhead %R must be from 1 to %u: it was made with room for so "
							      "many; make it with a larger max_concurrent",
					    limit, self->base.name, shmrt_py_bulkhead_of(self)->capacity);
		if (shmrt_py_guard_again(&self->base, outcome) < 0)
			return NULL;
		struct shmrt_bulkhead *bulkhead = shmrt_py_bulkhead_of(self);
		PyObject *area = Py_XNewRef((PyObject *)self->base.area);
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_bulkhead_resize(bulkhead, SHMRT_PY_GUARD_SLICE_NS, size);
		Py_END_ALLOW_THREADS
		Py_XDECREF(area);
	}
	Py_RETURN_NONE;
}

static PyObject *bulkhead_look(BulkheadObject *self, PyObject *unused) {
	(void)unused;
	uint32_t used = 0, waiting = 0;
	if (shmrt_py_bulkhead_ready(self) < 0)
		return NULL;
	int outcome = shmrt_bulkhead_look(shmrt_py_bulkhead_of(self), shmrt_py_guard_control(&self->base), 0, &used, &waiting);
	while (outcome != SHMRT_OK) {
		if (shmrt_py_guard_again(&self->base, outcome) < 0)
			return NULL;
		struct shmrt_bulkhead *bulkhead = shmrt_py_bulkhead_of(self);
		const struct shmrt_control *control = shmrt_py_guard_control(&self->base);
		PyObject *area = Py_XNewRef((PyObject *)self->base.area);
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_bulkhead_look(bulkhead, control, SHMRT_PY_GUARD_SLICE_NS, &used, &waiting);
		Py_END_ALLOW_THREADS
		Py_XDECREF(area);
	}
	const struct shmrt_bulkhead *b = shmrt_py_bulkhead_of(self);
	return Py_BuildValue("(IIIIII)", used, waiting, atomic_load_explicit(&b->limit, memory_order_relaxed), b->capacity, /* numbers by themselves */
			     atomic_load_explicit(&b->high_water, memory_order_relaxed), self->held_count);
}

/* _set_up(name, text, max_concurrent, capacity, max_waiting, timeout_ns) */
static PyObject *bulkhead_set_up(BulkheadObject *self, PyObject *args) {
	struct shmrt_bulkhead_settings s;
	PyObject *name, *text;
	long long timeout;
	if (!PyArg_ParseTuple(args, "UUIIIL:_set_up", &name, &text, &s.limit, &s.capacity, &s.most_waiting, &timeout))
		return NULL;
	if (s.limit < 1 || s.limit > s.capacity || s.capacity > SHMRT_PERMITS_MAX || s.most_waiting > SHMRT_WAITERS_MAX) {
		PyErr_SetString(PyExc_ValueError, "these settings make no bulkhead");
		return NULL;
	}
	memcpy(&self->base.settings, &s, sizeof(s));
	self->may_wait = s.most_waiting != 0;
	self->timeout_ns = timeout < 0 ? SHMRT_FOREVER : (int64_t)timeout;
	if (shmrt_py_guard_set_up(&self->base, &bulkhead_kind, shmrt_bulkhead_body_bytes(&s), name, text, Py_None) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static int bulkhead_traverse(BulkheadObject *self, visitproc visit, void *arg) { return shmrt_py_guard_visit(&self->base, visit, arg); }

static PyObject *bulkhead_leave(BulkheadObject *self, PyObject *area) {
	shmrt_py_bulkhead_forget(self, area);
	return shmrt_py_guard_leave(&self->base, area);
}

static void bulkhead_dealloc(BulkheadObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	shmrt_py_bulkhead_drop_all(self);
	shmrt_py_guard_release(&self->base);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef bulkhead_methods[] = {
	{"_set_up", (PyCFunction)bulkhead_set_up, METH_VARARGS, "by the constructor, once"},
	{"call", (PyCFunction)(void (*)(void))shmrt_py_guard_call, METH_FASTCALL | METH_KEYWORDS,
	 "call(fn, /, *args, **kwargs)\n--\n\nCalls it with a permit. BulkheadFull: there was none in time, and nothing was called."},
	{"_wrap", (PyCFunction)shmrt_py_guard_wrap, METH_O, "_wrap(fn) -> a callable with the bulkhead around fn"},
	{"__enter__", (PyCFunction)bulkhead_enter, METH_NOARGS, NULL},
	{"__exit__", (PyCFunction)(void (*)(void))bulkhead_exit, METH_FASTCALL, NULL},
	{"try_acquire", (PyCFunction)bulkhead_try_acquire, METH_NOARGS,
	 "try_acquire()\n--\n\nA permit, for release(), if one is free now."},
	{"_acquire", (PyCFunction)bulkhead_acquire, METH_O, "_acquire(timeout_ns; below 0: for ever) -> whether there is a permit now"},
	{"release", (PyCFunction)bulkhead_release, METH_NOARGS,
	 "release()\n--\n\nGives a permit back that acquire took. RuntimeError if this process has none."},
	{"_poll", (PyCFunction)bulkhead_poll, METH_O, "_poll(place or None) -> (taken, place), or None: refused"},
	{"_give_up", (PyCFunction)bulkhead_give_up, METH_VARARGS, "_give_up(place, timed_out)"},
	{"_resize", (PyCFunction)bulkhead_resize, METH_O, "_resize(max_concurrent)"},
	{"_look", (PyCFunction)bulkhead_look, METH_NOARGS, "(used, waiting, limit, capacity, high water, held by this object)"},
	{"_overload", (PyCFunction)shmrt_py_guard_overload, METH_NOARGS, "_overload() -> refusals since the last report, which is the caller's to make; True; None"},
	{"_leave", (PyCFunction)bulkhead_leave, METH_O, "_leave(area): out of it, if it is in it"},
	{NULL, NULL, 0, NULL},
};
static PyGetSetDef bulkhead_getset[] = {
	SHMRT_PY_GUARD_GETSET,
	{NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef bulkhead_members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(BulkheadObject, base.weakrefs), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};
static PyType_Slot bulkhead_slots[] = {
	{Py_tp_doc, "The base of Bulkhead: permits that processes share."},
	{Py_tp_dealloc, bulkhead_dealloc},
	{Py_tp_traverse, bulkhead_traverse},
	{Py_tp_methods, bulkhead_methods},
	{Py_tp_getset, bulkhead_getset},
	{Py_tp_members, bulkhead_members},
	{0, NULL},
};
static PyType_Spec bulkhead_spec = {
	.name = "shmrt._native.PermitPool",
	.basicsize = sizeof(BulkheadObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = bulkhead_slots,
};

int shmrt_py_add_bulkhead(PyObject *module) {
	PyObject *type = PyType_FromSpec(&bulkhead_spec);
	return type ? PyModule_AddObjectRef(module, "PermitPool", type) : -1;
}
