/* py_ring.c -- RingCore: one many-to-many ring mapped here; the base of shmrt.Ring.
 *
 * The type, what it says about itself, and what a ring's answers mean as exceptions. It is made in py_ring_make.c; its
 * traffic is py_ring_messages.c's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

#include <errno.h>
#include <unistd.h>

/* Overloaded, counted: a put that found no room, or no memory for what it would put. */
static PyObject *refuse(RingCore *self, bool for_memory) {
	PyObject *name = PyObject_GetAttrString((PyObject *)self, "_name"); /* None: anonymous */
	const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
	PyErr_Clear();
	shmrt_ring_count(&self->ring, &self->ring.shared->refused, 1);
	if (for_memory)
		shmrt_raise_overloaded(self->arena->arena.limit_bytes, "memory",
				       "the %llu bytes of shared memory of the ring are in use and were not given back in time; take "
				       "messages out, wait longer or raise its limit", (unsigned long long)self->arena->arena.limit_bytes);
	else
		shmrt_raise_overloaded(self->ring.slots, text ? text : "ring",
				       "the ring%s%s holds its %llu messages; take some out, wait longer or use more slots", text ? " " : "",
				       text ? text : "", (unsigned long long)self->ring.slots);
	Py_XDECREF(name);
	int ignored = shmrt_py_overload_look((PyObject *)self, &self->ring);
	(void)ignored; /* an exception is set in any case */
	return NULL;
}

PyObject *shmrt_py_ring_raise(RingCore *self, int outcome, const char *waiting) {
	PyObject *module, *class;
	switch (outcome) {
	case SHMRT_EMPTY:
	case SHMRT_TIMEOUT:
	case SHMRT_FULL:
		if (strcmp(waiting, "get") != 0)
			return refuse(self, strcmp(waiting, "memory") == 0);
		module = PyImport_ImportModule("queue");
		class = module ? PyObject_GetAttrString(module, "Empty") : NULL;
		Py_XDECREF(module);
		if (class != NULL)
			PyErr_SetNone(class);
		Py_XDECREF(class);
		return NULL;
	case SHMRT_CLOSED:
		if (strcmp(waiting, "get") == 0)
			return shmrt_raise("EndOfRing", "the ring is closed and everything in it was taken");
		return shmrt_raise("RingClosed", "the ring is closed: it takes no more messages");
	case SHMRT_TOO_LARGE:
		return shmrt_raise("MessageTooLarge", "a message is larger than a slot of this ring");
	case SHMRT_STALE:
		if (strcmp(waiting, "lease") == 0)
			return shmrt_raise("SegmentError", "the lease is not this process's any more: it was forked or ended before");
		return shmrt_raise("SegmentError", "a block of the message is not this process's to send");
	case SHMRT_SYSTEM:
		return PyErr_SetFromErrno(PyExc_OSError);
	default:
		return shmrt_raise("SegmentError", "corrupt ring: a word in it is one that no writer leaves (%s, code %d)", waiting,
				   outcome);
	}
}

/* ---- life ---- */

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
	(void)args;
	(void)kwargs;
	RingCore *self = (RingCore *)type->tp_alloc(type, 0);
	if (self != NULL) {
		self->fd = -1;
		self->allow_pickle = true;
	}
	return (PyObject *)self;
}

static int ring_traverse(RingCore *self, visitproc visit, void *arg) {
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->pending);
	return 0;
}

static int ring_clear(RingCore *self) {
	Py_CLEAR(self->pending);
	return 0;
}

static void ring_dealloc(RingCore *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	Py_CLEAR(self->pending);
	shmrt_encoder_clear(&self->encoder);
	PyMem_Free(self->inbox);
	shmrt_py_ring_free_outbox(self->outbox);
	if (self->address != NULL) {
		shmrt_unmap(self->address, self->size);
		close(self->fd);
	}
	Py_XDECREF(self->arena);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

/* ---- looking -------------------------------------------------------------------------------------------------- */

static bool is_made(RingCore *self) {
	if (self->address != NULL)
		return true;
	shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	return false;
}

static PyObject *ring_qsize(RingCore *self, PyObject *nothing) {
	(void)nothing;
	if (!is_made(self))
		return NULL;
	return PyLong_FromUnsignedLongLong(shmrt_ring_depth(&self->ring));
}

static PyObject *ring_close(RingCore *self, PyObject *nothing) {
	(void)nothing;
	if (!is_made(self))
		return NULL;
	int outcome;
	do {
		outcome = shmrt_ring_close(&self->ring);
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return NULL;
	} while (outcome == SHMRT_INTERRUPTED);
	if (outcome != SHMRT_OK && outcome != SHMRT_CLOSED)
		return shmrt_py_ring_raise(self, outcome, "close");
	Py_RETURN_NONE;
}

static int put_number(PyObject *dict, const char *name, _Atomic uint64_t *word, double unit) {
	/* relaxed: numbers for people */
	uint64_t value = atomic_load_explicit(word, memory_order_relaxed);
	PyObject *number = unit == 0 ? PyLong_FromUnsignedLongLong(value) : PyFloat_FromDouble((double)value * unit);
	int outcome = number ? PyDict_SetItemString(dict, name, number) : -1;
	Py_XDECREF(number);
	return outcome;
}

static PyObject *ring_stats(RingCore *self, PyObject *nothing) {
	(void)nothing;
	if (!is_made(self))
		return NULL;
	struct shmrt_ring_shared *shared = self->ring.shared;
	PyObject *dict = Py_BuildValue("{s:K,s:K,s:K,s:K,s:O}", "depth", (unsigned long long)shmrt_ring_depth(&self->ring), "capacity",
				       (unsigned long long)self->ring.slots, "messages_in",
				       (unsigned long long)shmrt_ring_messages_in(&self->ring), "messages_out",
				       (unsigned long long)shmrt_ring_messages_out(&self->ring), "closed",
				       atomic_load_explicit(&shared->closed, memory_order_relaxed) ? Py_True : Py_False);
	if (dict == NULL)
		return NULL;
	if (put_number(dict, "high_water", &shared->high_water, 0) < 0 || put_number(dict, "leased", &shared->leased, 0) < 0 ||
	    put_number(dict, "bytes_in", &shared->bytes_in, 0) < 0 || put_number(dict, "bytes_out", &shared->bytes_out, 0) < 0 ||
	    put_number(dict, "blocked_full", &shared->blocked_full_ns, 1e-9) < 0 ||
	    put_number(dict, "blocked_empty", &shared->blocked_empty_ns, 1e-9) < 0 ||
	    put_number(dict, "drops", &shared->dropped, 0) < 0 || put_number(dict, "repairs", &shared->repairs, 0) < 0 ||
	    put_number(dict, "refused", &shared->refused, 0) < 0) {
		Py_DECREF(dict);
		return NULL;
	}
	return dict;
}

static PyObject *ring_overload(RingCore *self, PyObject *nothing) {
	(void)nothing;
	return is_made(self) ? shmrt_py_overload_take(&self->ring) : NULL;
}

static PyObject *ring_check(RingCore *self, PyObject *nothing) {
	(void)nothing;
	if (!is_made(self))
		return NULL;
	return PyBool_FromLong(shmrt_ring_check(&self->ring) == SHMRT_OK);
}

static PyObject *ring_attribute(RingCore *self, void *which) {
	if (!is_made(self))
		return NULL;
	const struct shmrt_segment_header *header = self->address;
	switch ((intptr_t)which) {
	case 0:
		return PyLong_FromUnsignedLongLong(self->ring.slots);
	case 1:
		return PyLong_FromLong(self->fd);
	case 2:
		return PyLong_FromUnsignedLongLong(self->size);
	case 3:
		return PyBytes_FromStringAndSize((const char *)header->token, sizeof(header->token));
	case 4:
		return Py_NewRef((PyObject *)self->arena);
	case 5:
		return PyLong_FromUnsignedLongLong(self->ring.slot_bytes);
	case 6:
		return PyLong_FromLong((long)self->ring.on_full);
	default:
		return PyBool_FromLong(self->allow_pickle);
	}
}

/* ---- the type ------------------------------------------------------------------------------------------------ */

static PyGetSetDef ring_attributes[] = {
	{"capacity", (getter)ring_attribute, NULL, "exact number of messages that it holds", (void *)0},
	{"_fd", (getter)ring_attribute, NULL, "descriptor of the segment", (void *)1},
	{"_size", (getter)ring_attribute, NULL, "bytes mapped", (void *)2},
	{"_token", (getter)ring_attribute, NULL, "equal tokens mean the same ring", (void *)3},
	{"_arena", (getter)ring_attribute, NULL, "where its payloads lie", (void *)4},
	{"_slot_bytes", (getter)ring_attribute, NULL, "bytes of a message inside a slot", (void *)5},
	{"_on_full", (getter)ring_attribute, NULL, "number of the policy", (void *)6},
	{"_pickle", (getter)ring_attribute, NULL, "whether objects are unpickled", (void *)7},
	{0},
};

static PyMethodDef ring_methods[] = {
	{"_make", (PyCFunction)shmrt_py_ring_make, METH_VARARGS, "for Ring.create"},
	{"_file_size", shmrt_py_ring_file_size, METH_VARARGS | METH_CLASS, "for Ring.create"},
	{"_make_in", (PyCFunction)shmrt_py_ring_make_in, METH_VARARGS, "for Ring.create"},
	{"_join", (PyCFunction)shmrt_py_ring_join, METH_VARARGS, "for Ring.attach"},
	{"qsize", (PyCFunction)ring_qsize, METH_NOARGS, "messages waiting; a moment's view"},
	{"close", (PyCFunction)ring_close, METH_NOARGS, "no more puts, for everybody; gets go on until it is empty"},
	{"_overload", (PyCFunction)ring_overload, METH_NOARGS, "for shmrt.overloads"},
	{"_stats", (PyCFunction)ring_stats, METH_NOARGS, "for Ring.stats"},
	{"_check", (PyCFunction)ring_check, METH_NOARGS, "whether its words, at rest, are ones that writers leave"},
	{0},
};

static PyMethodDef methods[sizeof(ring_methods) / sizeof(ring_methods[0]) + 16];

static PyType_Slot ring_slots[] = {
	{Py_tp_doc, "One many-to-many ring mapped in this process; use shmrt.Ring."},
	{Py_tp_new, ring_new},
	{Py_tp_dealloc, ring_dealloc},
	{Py_tp_traverse, ring_traverse},
	{Py_tp_clear, ring_clear},
	{Py_tp_methods, methods},
	{Py_tp_getset, ring_attributes},
	{0, NULL},
};

static PyType_Spec ring_spec = {
	.name = "shmrt._native.RingCore",
	.basicsize = sizeof(RingCore),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = ring_slots,
};

int shmrt_py_add_ring(PyObject *module) {
	size_t count = 0;
	for (PyMethodDef *method = ring_methods; method->ml_name != NULL; method++)
		methods[count++] = *method;
	for (PyMethodDef *method = shmrt_py_ring_messages; method->ml_name != NULL; method++)
		methods[count++] = *method;
	PyObject *type = PyType_FromSpec(&ring_spec);
	if (type == NULL)
		return -1;
	int outcome = PyModule_AddObjectRef(module, "RingCore", type);
	Py_DECREF(type);
	return outcome;
}
