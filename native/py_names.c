/* py_names.c -- the registry of names (names.h) as a Python type.
 *
 * Names is one process's look at the registry of a runtime, which lies in the control segment of its Slots. As long
 * as nobody has reserved that memory there are no names, and reading finds none. Nothing here waits or releases the
 * GIL: a find takes about a microsecond. Who may change something is written in names.h; nothing here checks it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "names.h"
#include "py_message.h"
#include "py_slots_internal.h"

typedef struct {
	PyObject_HEAD
	SlotsObject *slots;
	struct shmrt_name_table table; /* shared is NULL until the memory is there */
} NamesObject;

static PyTypeObject *names_type;

/* ---- errors and arguments ----------------------------------------------------------------------- */

/* Where the registry lies in a control segment; NULL while there is no memory behind it. */
static void *find_area(const SlotsObject *slots, uint64_t *size) {
	struct shmrt_control *control = slots->control;
	if (atomic_load_explicit(&control->extended, memory_order_relaxed) == 0) /* a flag: the table says itself when it is ready */
		return NULL;
	uint64_t offset = control->names_offset < slots->size ? control->names_offset : slots->size;
	*size = slots->size - offset;
	return (uint8_t *)control + offset;
}

/* 1: the table can be used; 0: there is none yet; -1: an exception is set. The writer makes it when it is first
 * needed: it is the only one that does, so nobody is overtaken, and a count of 0 says that nothing is in it. */
static int join(NamesObject *self, bool to_write) {
	uint64_t size;
	if (self->slots->control == NULL) {
		PyErr_SetString(PyExc_ValueError, "the process table is closed");
		return -1;
	}
	if (SHMRT_LIKELY(self->table.shared != NULL))
		return 1;
	void *area = find_area(self->slots, &size);
	int outcome = area ? shmrt_names_attach(&self->table, area, size) : SHMRT_EMPTY;
	if (area && outcome == SHMRT_EMPTY && to_write && size >= SHMRT_NAMES_AREA_BYTES) {
		shmrt_names_format(area, SHMRT_NAMES_DEFAULT);
		outcome = shmrt_names_attach(&self->table, area, size);
	}
	if (outcome == SHMRT_CORRUPT)
		shmrt_raise("SegmentError", "corrupt registry: it does not fit the segment that it lies in");
	else if (outcome == SHMRT_EMPTY && to_write)
		shmrt_raise("SegmentError", "the registry has no memory yet: Calls.reserve() comes first");
	return outcome == SHMRT_OK ? 1 : outcome == SHMRT_EMPTY && !to_write ? 0 : -1;
}

static int key_from(PyObject *name, struct shmrt_name_key *key) {
	Py_ssize_t size;
	if (!PyUnicode_Check(name)) {
		PyErr_Format(PyExc_TypeError, "a name is a str, not %.100s", Py_TYPE(name)->tp_name);
		return -1;
	}
	const char *bytes = PyUnicode_AsUTF8AndSize(name, &size);
	if (bytes == NULL)
		return -1;
	if (shmrt_name_key_make(key, bytes, (size_t)size) != SHMRT_OK) {
		PyErr_Format(PyExc_ValueError, "a name has 1 to %d bytes as UTF-8, not %zd", SHMRT_NAME_BYTES_MAX, size);
		return -1;
	}
	return 0;
}

static int value_from(PyObject *object, Py_buffer *value) {
	if (PyObject_GetBuffer(object, value, PyBUF_SIMPLE) < 0)
		return -1;
	if (value->len <= SHMRT_NAME_VALUE_BYTES_MAX)
		return 0;
	PyErr_Format(PyExc_ValueError, "a value has at most %d bytes, not %zd", SHMRT_NAME_VALUE_BYTES_MAX, value->len);
	PyBuffer_Release(value);
	return -1;
}

static int index_from(PyObject *object, uint32_t *index) {
	unsigned long number = PyLong_AsUnsignedLong(object);
	if (number == (unsigned long)-1 && PyErr_Occurred())
		return -1;
	*index = number < SHMRT_NAMES_MAX ? (uint32_t)number : SHMRT_NAMES_MAX;
	return 0;
}

static PyObject *answer(int outcome, PyObject *index) {
	if (outcome == SHMRT_OK)
		Py_RETURN_NONE;
	PyErr_Format(PyExc_IndexError, "no name is at index %S", index);
	return NULL;
}

static PyObject *bytes_of(const struct shmrt_name_value *value) {
	return PyBytes_FromStringAndSize((const char *)value->words, (Py_ssize_t)value->size);
}

/* ---- changes ------------------------------------------------------------------------------------ */

static PyObject *names_put(NamesObject *self, PyObject *const *args, Py_ssize_t count) {
	struct shmrt_name_key key;
	Py_buffer value;
	uint32_t index;
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "put(name, value)");
		return NULL;
	}
	if (key_from(args[0], &key) < 0 || value_from(args[1], &value) < 0)
		return NULL;
	int outcome = join(self, true);
	if (outcome == 1)
		outcome = shmrt_names_put(&self->table, &key, value.buf, (size_t)value.len, &index);
	PyBuffer_Release(&value);
	if (PyErr_Occurred())
		return NULL;
	if (outcome == SHMRT_OK)
		return PyLong_FromUnsignedLong(index);
	return shmrt_raise_overloaded(self->table.count, "names", "the registry holds its %lu names; a server that ends gives its name "
								  "back", (unsigned long)self->table.count);
}

static PyObject *names_replace(NamesObject *self, PyObject *const *args, Py_ssize_t count) {
	Py_buffer value;
	uint32_t index;
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "replace(index, value)");
		return NULL;
	}
	if (index_from(args[0], &index) < 0 || value_from(args[1], &value) < 0)
		return NULL;
	int outcome = join(self, true);
	if (outcome == 1)
		outcome = shmrt_names_replace(&self->table, index, value.buf, (size_t)value.len);
	PyBuffer_Release(&value);
	return PyErr_Occurred() ? NULL : answer(outcome, args[0]);
}

static PyObject *names_remove(NamesObject *self, PyObject *object) {
	uint32_t index;
	if (index_from(object, &index) < 0 || join(self, true) < 0)
		return NULL;
	return answer(shmrt_names_remove(&self->table, index), object);
}

static PyObject *names_clear(NamesObject *self, PyObject *unused) {
	(void)unused;
	int joined = join(self, false);
	if (joined < 0)
		return NULL;
	if (joined == 1)
		shmrt_names_clear(&self->table);
	Py_RETURN_NONE;
}

/* ---- looks -------------------------------------------------------------------------------------- */

static PyObject *names_find(NamesObject *self, PyObject *name) {
	struct shmrt_name_key key;
	struct shmrt_name_value value;
	int joined = join(self, false);
	if (joined < 0 || key_from(name, &key) < 0)
		return NULL;
	if (joined == 0 || shmrt_names_find(&self->table, &key, &value) != SHMRT_OK)
		Py_RETURN_NONE;
	return bytes_of(&value);
}

static PyObject *names_find_all(NamesObject *self, PyObject *name) {
	struct shmrt_name_key key;
	struct shmrt_name_value value;
	uint32_t index = 0;
	int joined = join(self, false);
	if (joined < 0 || key_from(name, &key) < 0)
		return NULL;
	PyObject *found = PyList_New(0);
	while (found && joined == 1 && shmrt_names_next(&self->table, &key, &index, &value) == SHMRT_OK) {
		PyObject *bytes = bytes_of(&value);
		if (bytes == NULL || PyList_Append(found, bytes) < 0)
			Py_CLEAR(found);
		Py_XDECREF(bytes);
	}
	return found;
}

static PyObject *names_check(NamesObject *self, PyObject *unused) {
	(void)unused;
	int joined = join(self, false);
	if (joined < 0)
		return NULL;
	return PyBool_FromLong(joined == 0 || shmrt_names_check(&self->table) == SHMRT_OK);
}

static PyObject *names_count(NamesObject *self, void *unused) {
	(void)unused;
	int joined = join(self, false);
	return joined < 0 ? NULL : PyLong_FromUnsignedLong(joined ? shmrt_names_count(&self->table) : 0);
}

/* ---- the type ----------------------------------------------------------------------------------- */

static PyObject *names_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
	PyObject *slots;
	static char *words[] = {"", NULL};
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Names", words, &slots) || !shmrt_py_slots_control(slots))
		return NULL;
	NamesObject *self = PyObject_New(NamesObject, type);
	if (self == NULL)
		return NULL;
	self->slots = (SlotsObject *)Py_NewRef(slots);
	self->table = (struct shmrt_name_table){0};
	return (PyObject *)self;
}

static void names_dealloc(NamesObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	Py_DECREF(self->slots);
	PyObject_Free(self);
	Py_DECREF(type);
}

#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL
static PyMethodDef names_methods[] = {
	{"put", FAST(names_put), "put(name, value) -> the index of this value, also beside others of that name"},
	{"replace", FAST(names_replace), "replace(index, value): readers see the old value or the new one"},
	{"remove", (PyCFunction)names_remove, METH_O, "remove(index)"},
	{"clear", (PyCFunction)names_clear, METH_NOARGS, "Remove everything."},
	{"find", (PyCFunction)names_find, METH_O, "find(name) -> the value of the lowest index, or None"},
	{"find_all", (PyCFunction)names_find_all, METH_O, "find_all(name) -> every value of that name"},
	{"check", (PyCFunction)names_check, METH_NOARGS, "Whether every word is one that a writer leaves."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef names_getset[] = {
	{"count", (getter)names_count, NULL, "names that are put and not removed", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot names_slots[] = {
	{Py_tp_doc, "The registry of a runtime: which name stands for what. One process writes, everybody reads."},
	{Py_tp_new, names_new},
	{Py_tp_dealloc, names_dealloc},
	{Py_tp_methods, names_methods},
	{Py_tp_getset, names_getset},
	{0, NULL},
};
static PyType_Spec names_spec = {
	.name = "shmrt._native.Names",
	.basicsize = sizeof(NamesObject),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = names_slots,
};

int shmrt_py_add_names(PyObject *module) {
	names_type = (PyTypeObject *)PyType_FromSpec(&names_spec);
	return names_type ? PyModule_AddObjectRef(module, "Names", (PyObject *)names_type) : -1;
}
