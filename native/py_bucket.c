/* py_bucket.c -- the token bucket as a Python type: bucket.h. TokenBucket is the base of shmrt.RateLimit, which sleeps. */
#include "py_guard.h"
#include "bucket.h"

#include <structmember.h>

static bool is_sound(const struct shmrt_guard *guard) { return shmrt_bucket_is_sound((const struct shmrt_bucket *)(const void *)guard); }

/* What was taken outside is taken inside, too: of two times at which it is full, the later one counts. */
static void carry(struct shmrt_guard *to, const struct shmrt_guard *from, bool only_fresh) {
	struct shmrt_bucket *mine = (struct shmrt_bucket *)(void *)to;
	uint64_t theirs = atomic_load_explicit(&((const struct shmrt_bucket *)(const void *)from)->full_ns, memory_order_relaxed); /* orders nothing but itself */
	uint64_t full = atomic_load_explicit(&mine->full_ns, memory_order_relaxed); /* orders nothing but itself */
	if (only_fresh && full != 0)
		return;
	while (full < theirs)
		if (atomic_compare_exchange_weak_explicit(&mine->full_ns, &full, theirs, memory_order_relaxed, memory_order_relaxed)) /* orders nothing but itself */
			break;
}

static const struct shmrt_py_guard_kind bucket_kind = {
	.kind = SHMRT_GUARD_BUCKET, .refusals = UINT32_C(1) << SHMRT_BUCKET_REFUSED,
	.word = "rate limit", .fill = shmrt_bucket_fill, .is_sound = is_sound, .carry = carry};

static struct shmrt_bucket *bucket_of(GuardObject *self) { return (struct shmrt_bucket *)(void *)self->guard; }

/* From 1 to burst; -1: an exception is set. */
static int tokens_of(GuardObject *self, PyObject *object, uint64_t *tokens) {
	int overflow = 0;
	if (PyBool_Check(object) || !PyIndex_Check(object)) {
		PyErr_Format(PyExc_TypeError, "tokens must be a whole number, not %R", object);
		return -1;
	}
	PyObject *index = PyNumber_Index(object);
	long long value = index ? PyLong_AsLongLongAndOverflow(index, &overflow) : -1;
	Py_XDECREF(index);
	if (index == NULL || (value == -1 && overflow == 0 && PyErr_Occurred()))
		return -1;
	if (overflow != 0 || value < 1 || (uint64_t)value > bucket_of(self)->burst) {
		PyErr_Format(PyExc_ValueError, "tokens=%R of rate limit %R must be from 1 to its burst, %llu: more can never be there at once; take "
					       "fewer, or make burst larger",
			     object, self->name, (unsigned long long)bucket_of(self)->burst);
		return -1;
	}
	*tokens = (uint64_t)value;
	return 0;
}

/* _take(tokens, patience_ns; below 0: for ever) -> (whether they were taken, nanoseconds until they are there) */
static PyObject *bucket_take(GuardObject *self, PyObject *const *args, Py_ssize_t count) {
	uint64_t now, tokens, wait = 0;
	if (count != 2)
		return PyErr_Format(PyExc_TypeError, "_take(tokens, patience_ns)");
	long long patience = PyLong_AsLongLong(args[1]);
	if (PyErr_Occurred() || shmrt_py_guard_enter(self) < 0 || tokens_of(self, args[0], &tokens) < 0 || shmrt_py_guard_now(self, &now) < 0)
		return NULL;
	int outcome = shmrt_bucket_take(bucket_of(self), tokens, now, patience < 0 ? UINT64_MAX : (uint64_t)patience, &wait);
	return Py_BuildValue("(OK)", outcome == SHMRT_OK ? Py_True : Py_False, (unsigned long long)wait);
}

static PyObject *bucket_try_acquire(GuardObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
	uint64_t now, tokens = 1, wait = 0;
	Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
	if (count + named > 1 || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "tokens") != 0))
		return PyErr_Format(PyExc_TypeError, "try_acquire(tokens=1) takes nothing else");
	if (shmrt_py_guard_enter(self) < 0 || (count + named == 1 && tokens_of(self, args[0], &tokens) < 0) || shmrt_py_guard_now(self, &now) < 0)
		return NULL;
	return PyBool_FromLong(shmrt_bucket_take(bucket_of(self), tokens, now, 0, &wait) == SHMRT_OK);
}

static PyObject *bucket_tokens(GuardObject *self, void *unused) {
	(void)unused;
	uint64_t now;
	if (shmrt_py_guard_enter(self) < 0 || shmrt_py_guard_now(self, &now) < 0)
		return NULL;
	return PyLong_FromUnsignedLongLong(shmrt_bucket_tokens(bucket_of(self), now));
}

static PyObject *bucket_refill(GuardObject *self, PyObject *unused) {
	(void)unused;
	if (shmrt_py_guard_enter(self) < 0)
		return NULL;
	shmrt_bucket_refill(bucket_of(self));
	Py_RETURN_NONE;
}

/* _set_up(name, text, clock, token_ns, burst) */
static PyObject *bucket_set_up(GuardObject *self, PyObject *args) {
	PyObject *name, *text, *clock;
	unsigned long long token, burst;
	if (!PyArg_ParseTuple(args, "UUOKK:_set_up", &name, &text, &clock, &token, &burst))
		return NULL;
	if (token == 0 || burst == 0 || burst > INT64_MAX / token) {
		PyErr_SetString(PyExc_ValueError, "these settings make no rate limit");
		return NULL;
	}
	struct shmrt_bucket_settings s = {.token_ns = token, .burst = burst};
	memcpy(&self->settings, &s, sizeof(s));
	if (shmrt_py_guard_set_up(self, &bucket_kind, sizeof(struct shmrt_bucket) - sizeof(struct shmrt_guard), name, text, clock) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static int bucket_traverse(GuardObject *self, visitproc visit, void *arg) { return shmrt_py_guard_visit(self, visit, arg); }

static void bucket_dealloc(GuardObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	shmrt_py_guard_release(self);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef bucket_methods[] = {
	{"_set_up", (PyCFunction)bucket_set_up, METH_VARARGS, "by the constructor, once"},
	{"_take", (PyCFunction)(void (*)(void))bucket_take, METH_FASTCALL, "_take(tokens, patience_ns) -> (taken, nanoseconds to wait)"},
	{"try_acquire", (PyCFunction)(void (*)(void))bucket_try_acquire, METH_FASTCALL | METH_KEYWORDS,
	 "try_acquire(tokens=1)\n--\n\nTakes them if they are there now."},
	{"refill", (PyCFunction)bucket_refill, METH_NOARGS, "refill()\n--\n\nThe bucket is full at once."},
	{"_overload", (PyCFunction)shmrt_py_guard_overload, METH_NOARGS, "_overload() -> refusals since the last report, which is the caller's to make; True; None"},
	{"_leave", (PyCFunction)shmrt_py_guard_leave, METH_O, "_leave(area): out of it, if it is in it"},
	{NULL, NULL, 0, NULL},
};
static PyGetSetDef bucket_getset[] = {
	SHMRT_PY_GUARD_GETSET,
	{"tokens", (getter)bucket_tokens, NULL, "whole tokens that are there now", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef bucket_members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(GuardObject, weakrefs), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};
static PyType_Slot bucket_slots[] = {
	{Py_tp_doc, "The base of RateLimit: a token bucket that processes share."},
	{Py_tp_dealloc, bucket_dealloc},
	{Py_tp_traverse, bucket_traverse},
	{Py_tp_methods, bucket_methods},
	{Py_tp_getset, bucket_getset},
	{Py_tp_members, bucket_members},
	{0, NULL},
};
static PyType_Spec bucket_spec = {
	.name = "shmrt._native.TokenBucket",
	.basicsize = sizeof(GuardObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = bucket_slots,
};

int shmrt_py_add_bucket(PyObject *module) {
	PyObject *type = PyType_FromSpec(&bucket_spec);
	return type ? PyModule_AddObjectRef(module, "TokenBucket", type) : -1;
}
