/* py_slots.c -- the process table (slots.h) as a Python type.
 *
 * Slots is one mapping of a control segment; methods take a slot's index. Here it is made, attached and closed; the methods
 * on one slot are in py_slots_life.c and py_slots_look.c.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_slots_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

PyTypeObject *shmrt_py_slots_type;

/* ---- errors ------------------------------------------------------------------------------------- */
static PyObject *raise_segment_error(const char *text, const struct shmrt_shortage *shortage) {
	PyObject *module = PyImport_ImportModule("shmrt.errors");
	if (!module)
		return NULL;
	PyObject *type = PyObject_GetAttrString(module, "SegmentError");
	Py_DECREF(module);
	if (!type)
		return NULL;
	PyObject *arguments = Py_BuildValue("(s)", text);
	PyObject *keywords = shortage ? Py_BuildValue("{sKsKss}", "needed", (unsigned long long)shortage->needed, "free",
						      (unsigned long long)shortage->free, "hint", shortage->limit)
				      : PyDict_New();
	PyObject *error = arguments && keywords ? PyObject_Call(type, arguments, keywords) : NULL;
	if (error)
		PyErr_SetObject(type, error);
	Py_XDECREF(error);
	Py_XDECREF(arguments);
	Py_XDECREF(keywords);
	Py_DECREF(type);
	return NULL;
}

struct shmrt_slot *shmrt_py_slots_at(SlotsObject *self, PyObject *index) {
	if (!self->control) {
		PyErr_SetString(PyExc_ValueError, "the process table is closed");
		return NULL;
	}
	unsigned long value = PyLong_AsUnsignedLong(index);
	if (value == (unsigned long)-1 && PyErr_Occurred())
		return NULL;
	if (value >= self->count) {
		PyErr_Format(PyExc_IndexError, "slot %lu does not exist: the table has %u", value, self->count);
		return NULL;
	}
	return &self->control->slots[value];
}

/* A change of state that the slot's present state forbids says so in words. */
PyObject *shmrt_py_slots_answer(int result, struct shmrt_slot *slot, const char *verb) {
	static const char *const names[] = {"EMPTY", "STARTING", "READY", "GONE"};
	if (result == SHMRT_OK)
		Py_RETURN_NONE;
	if (result == SHMRT_SYSTEM)
		return PyErr_SetFromErrno(PyExc_OSError);
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	PyErr_Format(PyExc_RuntimeError, "a slot in state %s cannot be %s (result %d)",
		     state < 4 ? names[state] : "unknown", verb, result);
	return NULL;
}

/* ---- making and leaving ------------------------------------------------------------------------- */
static PyObject *slots_wrap(int fd, void *address, uint64_t size) {
	SlotsObject *self = PyObject_New(SlotsObject, shmrt_py_slots_type);
	if (!self) {
		shmrt_unmap(address, size);
		close(fd);
		return NULL;
	}
	self->control = address;
	self->size = size;
	self->count = self->control->slot_count;
	self->fd = fd;
	return (PyObject *)self;
}

static PyObject *slots_create(PyObject *type, PyObject *argument) {
	(void)type;
	long count = PyLong_AsLong(argument);
	if (count == -1 && PyErr_Occurred())
		return NULL;
	if (count < SHMRT_SLOT_FIRST_WORKER + 1 || count > SHMRT_SLOTS_MAX) {
		PyErr_Format(PyExc_ValueError, "count=%ld must be from %d to %d", count, SHMRT_SLOT_FIRST_WORKER + 1,
			     SHMRT_SLOTS_MAX);
		return NULL;
	}
	struct shmrt_shortage shortage = {0};
	uint64_t size = shmrt_control_bytes((uint32_t)count);
	void *address = NULL;
	int fd = -1;
	int result = shmrt_segment_create_part(SHMRT_SEGMENT_CONTROL, "shmrt-slots", size, shmrt_control_table_bytes((uint32_t)count),
					       &fd, &address, &shortage);
	if (result == SHMRT_NO_SPACE)
		return raise_segment_error("there is not enough memory for the process table", &shortage);
	if (result != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (shmrt_control_format(address, (uint32_t)count) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		shmrt_unmap(address, size);
		close(fd);
		return NULL;
	}
	shmrt_segment_publish(address);
	return slots_wrap(fd, address, size);
}

static PyObject *slots_attach(PyObject *type, PyObject *argument) {
	(void)type;
	int fd = PyObject_AsFileDescriptor(argument);
	if (fd < 0)
		return NULL;
	char reason[200] = "";
	void *address = NULL;
	uint64_t size = 0;
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (shmrt_segment_attach(own, SHMRT_SEGMENT_CONTROL, &address, &size, reason, sizeof(reason)) != SHMRT_OK) {
		close(own);
		return raise_segment_error(reason, NULL);
	}
	if (shmrt_control_check(address, size) != SHMRT_OK) {
		shmrt_unmap(address, size);
		close(own);
		return raise_segment_error("the process table's geometry does not fit its segment", NULL);
	}
	return slots_wrap(own, address, size);
}

static PyObject *slots_close(SlotsObject *self, PyObject *unused) {
	(void)unused;
	if (self->control) {
		shmrt_unmap(self->control, self->size);
		close(self->fd);
		self->control = NULL;
		self->fd = -1;
	}
	Py_RETURN_NONE;
}

/* The mapping outlives the object: a death mutex that this process holds lies in it, and a thread of
 * its (the beat, a watch) may read it until the end. Only close() unmaps. */
static void slots_dealloc(SlotsObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_Free(self);
	Py_DECREF(type);
}

/* ---- the table as a whole ----------------------------------------------------------------------- */

static PyObject *slots_raise_generation(SlotsObject *self, PyObject *unused) {
	(void)unused;
	if (!self->control)
		return PyErr_Format(PyExc_ValueError, "the process table is closed");
	/* F7: written by the program only; a reader of the new number sees what led to it. */
	return PyLong_FromUnsignedLongLong(
		atomic_fetch_add_explicit(&self->control->root_generation, 1, memory_order_acq_rel) + 1);
}

static PyObject *slots_generation(SlotsObject *self, void *unused) {
	(void)unused;
	if (!self->control)
		return PyErr_Format(PyExc_ValueError, "the process table is closed");
	return PyLong_FromUnsignedLongLong(atomic_load_explicit(&self->control->root_generation, memory_order_acquire)); /* F7 */
}
static PyObject *slots_fd(SlotsObject *self, void *unused) {
	(void)unused;
	return PyLong_FromLong(self->fd);
}
static PyObject *slots_count(SlotsObject *self, void *unused) {
	(void)unused;
	return PyLong_FromUnsignedLong(self->count);
}
/* For native types that work on the same mapping (the hub, the worker loop): its address. */
static PyObject *slots_address(SlotsObject *self, void *unused) {
	(void)unused;
	return PyLong_FromVoidPtr(self->control);
}

struct shmrt_control *shmrt_py_slots_control(PyObject *object) {
	if (!shmrt_py_slots_type || !PyObject_TypeCheck(object, shmrt_py_slots_type) || !((SlotsObject *)object)->control) {
		PyErr_Format(PyExc_TypeError, "an open Slots is needed, not %R", object);
		return NULL;
	}
	return ((SlotsObject *)object)->control;
}

/* ---- the type ----------------------------------------------------------------------------------- */

#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL
static PyMethodDef slots_methods[] = {
	{"create", slots_create, METH_O | METH_STATIC, "create(count) -> a new table of `count` slots"},
	{"attach", slots_attach, METH_O | METH_STATIC, "attach(fd) -> the table behind a descriptor (which is duplicated)"},
	{"close", (PyCFunction)slots_close, METH_NOARGS, "Unmap. The mapping must hold no mutex of this process."},
	{"claim", FAST(shmrt_py_slots_claim), "claim(index, pool, worker) -> epoch; EMPTY -> STARTING"},
	{"set_process", FAST(shmrt_py_slots_set_process), "set_process(index, pid)"},
	{"hold_death_mutex", (PyCFunction)shmrt_py_slots_hold_death_mutex, METH_O, "Lock the slot's death mutex for life."},
	{"ready", (PyCFunction)shmrt_py_slots_ready, METH_O, "STARTING -> READY"},
	{"gone", FAST(shmrt_py_slots_gone), "gone(index, wait_status, oom); STARTING or READY -> GONE"},
	{"gone_anyway", FAST(shmrt_py_slots_gone_anyway),
	 "gone_anyway(index, epoch, wait_status, oom) -> bool; GONE, of a reaped process; False if its slot was overwritten"},
	{"free", (PyCFunction)shmrt_py_slots_free, METH_O, "GONE -> EMPTY"},
	{"order_kill", FAST(shmrt_py_slots_order_kill), "order_kill(index, reason, task_id=0) -> whether this reason came first"},
	{"is_abandoned", (PyCFunction)shmrt_py_slots_is_abandoned, METH_O, "Whether the kernel marked the death mutex."},
	{"request_stop", (PyCFunction)shmrt_py_slots_request_stop, METH_O, "Ask the process to leave after its message."},
	{"state", (PyCFunction)shmrt_py_slots_state, METH_O, "One of the SLOT_* constants."},
	{"epoch", (PyCFunction)shmrt_py_slots_epoch, METH_O, "How often the slot was claimed."},
	{"info", (PyCFunction)shmrt_py_slots_info, METH_O, "Every word of the slot as a dict."},
	{"scan", (PyCFunction)shmrt_py_slots_scan, METH_O, "scan(indexes) -> [(state, abandoned), ...]"},
	{"ring", (PyCFunction)shmrt_py_slots_ring, METH_O, "Ring the slot's bell; whether a sleeper was woken."},
	{"ring_all", (PyCFunction)shmrt_py_slots_ring_all, METH_NOARGS, "Ring every bell, unconditionally."},
	{"park", FAST(shmrt_py_slots_park), "park(index, timeout_ns) -> rang; negative: no limit"},
	{"send_control", (PyCFunction)shmrt_py_slots_send_control, METH_O, "send_control(index) -> the slot's control count, raised"},
	{"control_count", (PyCFunction)shmrt_py_slots_control_count, METH_O, "How many control messages the process was sent."},
	{"start_beat", FAST(shmrt_py_slots_start_beat), "start_beat(index, root_pid, hub_slot)"},
	{"raise_generation", (PyCFunction)slots_raise_generation, METH_NOARGS, "Count one more root; its number."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef slots_getset[] = {
	{"fd", (getter)slots_fd, NULL, "descriptor of the segment", NULL},
	{"count", (getter)slots_count, NULL, "number of slots", NULL},
	{"generation", (getter)slots_generation, NULL, "how many roots were started", NULL},
	{"address", (getter)slots_address, NULL, "where the table is mapped", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots_slots[] = {
	{Py_tp_doc, "The process table of a runtime: who lives, who is dead, and what each was doing."},
	{Py_tp_dealloc, slots_dealloc},
	{Py_tp_methods, slots_methods},
	{Py_tp_getset, slots_getset},
	{0, NULL},
};
static PyType_Spec slots_spec = {
	.name = "shmrt._native.Slots",
	.basicsize = sizeof(SlotsObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = slots_slots,
};

/* ---- constants ---------------------------------------------------------------------------------- */
static const struct {
	const char *name;
	long value;
} constants[] = {
	{"SLOT_PROGRAM", SHMRT_SLOT_PROGRAM},
	{"SLOT_ROOT", SHMRT_SLOT_ROOT},
	{"SLOT_FIRST_WORKER", SHMRT_SLOT_FIRST_WORKER},
	{"SLOTS_MAX", SHMRT_SLOTS_MAX},
	{"SLOT_EMPTY", SHMRT_SLOT_EMPTY},
	{"SLOT_STARTING", SHMRT_SLOT_STARTING},
	{"SLOT_READY", SHMRT_SLOT_READY},
	{"SLOT_GONE", SHMRT_SLOT_GONE},
	{"PHASE_BOOT", SHMRT_PHASE_BOOT},
	{"PHASE_PARKED", SHMRT_PHASE_PARKED},
	{"PHASE_SPIN", SHMRT_PHASE_SPIN},
	{"PHASE_DECODE", SHMRT_PHASE_DECODE},
	{"PHASE_RUN", SHMRT_PHASE_RUN},
	{"PHASE_ENCODE", SHMRT_PHASE_ENCODE},
	{"PHASE_BLOCKED", SHMRT_PHASE_BLOCKED},
	{"PHASE_STOPPING", SHMRT_PHASE_STOPPING},
	{"KILL_NONE", SHMRT_KILL_NONE},
	{"KILL_TIMEOUT", SHMRT_KILL_TIMEOUT},
	{"KILL_CANCEL", SHMRT_KILL_CANCEL},
	{"KILL_CHAOS", SHMRT_KILL_CHAOS},
	{"KILL_RECYCLE", SHMRT_KILL_RECYCLE},
	{"KILL_SHRINK", SHMRT_KILL_SHRINK},
	{"KILL_STOP", SHMRT_KILL_STOP},
	{"KILL_ROOT_LOST", SHMRT_KILL_ROOT_LOST},
	{"KILL_RESTART", SHMRT_KILL_RESTART},
};

int shmrt_py_add_slots(PyObject *module) {
	shmrt_py_slots_type = (PyTypeObject *)PyType_FromSpec(&slots_spec);
	if (!shmrt_py_slots_type || PyModule_AddObjectRef(module, "Slots", (PyObject *)shmrt_py_slots_type) < 0)
		return -1;
	int failed = 0;
	for (size_t i = 0; !failed && i < sizeof(constants) / sizeof(constants[0]); i++)
		failed = PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0;
	return failed ? -1 : 0;
}
