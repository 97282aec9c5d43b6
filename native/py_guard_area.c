/* py_guard_area.c -- the guards of a runtime as a Python type: all of them, for whoever looks or steers by name.
 *
 * GuardArea maps the control segment once more, for itself: guards that are joined keep it, and so may outlive the Slots that it
 * was made from. Nothing here waits for a mutex for longer than a moment, so the root may use it.
 */
#include "py_guard.h"

#include "breaker.h"
#include "bucket.h"
#include "bulkhead.h"
#include "py_message.h"
#include "py_slots_internal.h"

#include <fcntl.h>
#include <unistd.h>

#define MOMENT_NS INT64_C(2000000)

PyTypeObject *shmrt_py_area_type;

static PyObject *counters_of(const struct shmrt_guard *guard) {
	PyObject *tuple = PyTuple_New(SHMRT_GUARD_COUNTERS);
	for (int i = 0; tuple != NULL && i < SHMRT_GUARD_COUNTERS; i++) {
		uint64_t count = atomic_load_explicit(&guard->counters[i], memory_order_relaxed); /* a count by itself */
		PyObject *number = PyLong_FromUnsignedLongLong(count);
		if (number == NULL)
			Py_CLEAR(tuple);
		else
			PyTuple_SET_ITEM(tuple, i, number);
	}
	return tuple;
}

/* What its kind adds: (state, left_ns) | (used, waiting, limit) | (tokens, burst). */
static PyObject *facts_of(const AreaObject *self, struct shmrt_guard *guard) {
	uint64_t now = shmrt_now_ns(), left = 0;
	if (guard->kind == SHMRT_GUARD_BREAKER && shmrt_breaker_is_sound((struct shmrt_breaker *)(void *)guard)) {
		enum shmrt_breaker_state state = shmrt_breaker_state_at((struct shmrt_breaker *)(void *)guard, now, &left);
		return Py_BuildValue("(iK)", (int)state, (unsigned long long)left);
	}
	if (guard->kind == SHMRT_GUARD_BULKHEAD && shmrt_bulkhead_is_sound((struct shmrt_bulkhead *)(void *)guard)) {
		struct shmrt_bulkhead *bulkhead = (struct shmrt_bulkhead *)(void *)guard;
		uint32_t used = atomic_load_explicit(&bulkhead->used, memory_order_relaxed);       /* a count by itself */
		uint32_t waiting = atomic_load_explicit(&bulkhead->waiting, memory_order_relaxed); /* a count by itself */
		if (shmrt_bulkhead_look(bulkhead, self->area.control, 0, &used, &waiting) == SHMRT_CORRUPT)
			return PyTuple_New(0);
		uint32_t limit = atomic_load_explicit(&bulkhead->limit, memory_order_relaxed); /* a number by itself */
		return Py_BuildValue("(III)", used, waiting, limit);
	}
	if (guard->kind == SHMRT_GUARD_BUCKET && shmrt_bucket_is_sound((struct shmrt_bucket *)(void *)guard)) {
		struct shmrt_bucket *bucket = (struct shmrt_bucket *)(void *)guard;
		return Py_BuildValue("(KK)", (unsigned long long)shmrt_bucket_tokens(bucket, now), (unsigned long long)bucket->burst);
	}
	return PyTuple_New(0);
}

static PyObject *area_list(AreaObject *self, PyObject *unused) {
	(void)unused;
	PyObject *rows = PyList_New(0);
	struct shmrt_guard *guard = NULL;
	while (rows != NULL && (guard = shmrt_guard_next(&self->area, guard)) != NULL) {
		PyObject *facts = facts_of(self, guard), *counters = counters_of(guard);
		PyObject *name = PyUnicode_DecodeUTF8((const char *)guard->name, (Py_ssize_t)guard->name_size, "replace");
		PyObject *text = PyUnicode_DecodeUTF8((const char *)guard->text, (Py_ssize_t)guard->text_size, "replace");
		PyObject *row = facts && counters && name && text ? Py_BuildValue("(IOOOO)", guard->kind, name, text, facts, counters) : NULL;
		if (row == NULL || PyList_Append(rows, row) < 0)
			Py_CLEAR(rows);
		Py_XDECREF(row);
		Py_XDECREF(text);
		Py_XDECREF(name);
		Py_XDECREF(counters);
		Py_XDECREF(facts);
	}
	return rows;
}

static struct shmrt_guard *find(const AreaObject *self, uint32_t kind, const char *name) {
	struct shmrt_guard *guard = NULL;
	size_t size = strlen(name);
	while ((guard = shmrt_guard_next(&self->area, guard)) != NULL)
		if (guard->kind == kind && guard->name_size == size && memcmp(guard->name, name, size) == 0)
			return guard;
	return NULL;
}

static PyObject *area_set_breaker(AreaObject *self, PyObject *args) {
	const char *name;
	int state;
	if (!PyArg_ParseTuple(args, "si:set_breaker", &name, &state))
		return NULL;
	struct shmrt_breaker *breaker = (struct shmrt_breaker *)(void *)find(self, SHMRT_GUARD_BREAKER, name);
	if (breaker == NULL || !shmrt_breaker_is_sound(breaker))
		return PyErr_Format(PyExc_LookupError, "no breaker named %s", name);
	if (state < SHMRT_BREAKER_CLOSED || state > SHMRT_BREAKER_DISABLED || state == SHMRT_BREAKER_HALF_OPEN)
		return PyErr_Format(PyExc_ValueError, "a breaker cannot be put into state %d", state);
	struct shmrt_breaker_change change;
	int outcome = shmrt_breaker_set(breaker, (enum shmrt_breaker_state)state, shmrt_now_ns(), MOMENT_NS, &change);
	if (outcome != SHMRT_OK)
		return PyErr_Format(PyExc_TimeoutError, "breaker %s is being changed by a process that is stopped", name);
	return Py_BuildValue("(ii)", (int)change.from, (int)change.to);
}

static PyObject *area_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
	static char *words[] = {"slots", "slot", NULL};
	PyObject *slots;
	unsigned int slot = SHMRT_GUARD_NO_SLOT;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|I:GuardArea", words, &slots, &slot) || !shmrt_py_slots_control(slots))
		return NULL;
	SlotsObject *table = (SlotsObject *)slots;
	AreaObject *self = (AreaObject *)type->tp_alloc(type, 0);
	if (self == NULL)
		return NULL;
	self->area.fd = -1;
	self->size = table->size;
	int fd = fcntl(table->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0 || shmrt_map(fd, 0, self->size, true, &self->address) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		if (fd >= 0)
			close(fd);
		Py_DECREF(self);
		return NULL;
	}
	if (shmrt_control_check(self->address, self->size) != SHMRT_OK ||
	    shmrt_guard_area_attach(&self->area, self->address, self->size, fd, slot) != SHMRT_OK) {
		close(fd);
		Py_DECREF(self);
		return shmrt_raise("SegmentError", "corrupt shared memory: the guards do not fit the segment that they lie in");
	}
	return (PyObject *)self;
}

static void area_dealloc(AreaObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	if (self->address != NULL)
		shmrt_unmap(self->address, self->size);
	if (self->area.fd >= 0)
		close(self->area.fd);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef area_methods[] = {
	{"list", (PyCFunction)area_list, METH_NOARGS, "(kind, name, settings, facts, counters) of every guard"},
	{"set_breaker", (PyCFunction)area_set_breaker, METH_VARARGS, "set_breaker(name, state) -> (state before, state now)"},
	{NULL, NULL, 0, NULL},
};
static PyType_Slot area_slots[] = {
	{Py_tp_doc, "The breakers, bulkheads and rate limits of a runtime. GuardArea(slots, slot of this process)."},
	{Py_tp_new, area_new},
	{Py_tp_dealloc, area_dealloc},
	{Py_tp_methods, area_methods},
	{0, NULL},
};
static PyType_Spec area_spec = {
	.name = "shmrt._native.GuardArea",
	.basicsize = sizeof(AreaObject),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = area_slots,
};

int shmrt_py_add_guards(PyObject *module) {
	shmrt_py_area_type = (PyTypeObject *)PyType_FromSpec(&area_spec);
	if (shmrt_py_area_type == NULL || PyModule_AddObjectRef(module, "GuardArea", (PyObject *)shmrt_py_area_type) < 0)
		return -1;
	if (shmrt_py_add_guard_functions(module) < 0 || shmrt_py_add_guarded_call(module) < 0 || shmrt_py_add_breaker(module) < 0)
		return -1;
	return shmrt_py_add_bulkhead(module) < 0 ? -1 : shmrt_py_add_bucket(module);
}
