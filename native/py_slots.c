/* py_slots.c -- the process table (slots.h) as a Python type, and the root's death watch.
 *
 *   Slots       one mapping of a control segment; methods take a slot's index. Every method is a thin
 *               call into slots.c: who may call which is written there and in layout.h.
 *   DeathWatch  a pthread of the root that sleeps on the death mutexes and the root's own bell and
 *               only writes an eventfd. It holds no lock and allocates nothing, so the root may fork
 *               while it runs; a forked child does not have it and must not stop it.
 *
 * The watch arms the bell before it writes the eventfd and sleeps on the bell as armed. Whoever rings
 * after that ends the sleep, whoever changed a state before it is seen by the root's look after the
 * write: nothing falls between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "py_module.h"
#include "segment.h"
#include "slots.h"

typedef struct {
	PyObject_HEAD
	struct shmrt_control *control;
	uint64_t size;
	uint32_t count;
	int fd;
} SlotsObject;

static PyTypeObject *slots_type;

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

static struct shmrt_slot *slot_at(SlotsObject *self, PyObject *index) {
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
static PyObject *answer(int result, struct shmrt_slot *slot, const char *verb) {
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
	SlotsObject *self = PyObject_New(SlotsObject, slots_type);
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
	int result = shmrt_segment_create(SHMRT_SEGMENT_CONTROL, "shmrt-slots", size, &fd, &address, &shortage);
	if (result == SHMRT_NO_SPACE)
		return raise_segment_error("there is not enough memory for the process table", &shortage);
	if (result != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	shmrt_control_format(address, (uint32_t)count);
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

/* ---- one slot's life ---------------------------------------------------------------------------- */
static PyObject *slots_claim(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "claim(index, pool, worker)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]);
	unsigned long pool = slot ? PyLong_AsUnsignedLong(args[1]) : 0;
	unsigned long worker = slot && !PyErr_Occurred() ? PyLong_AsUnsignedLong(args[2]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	int result = shmrt_slot_claim(slot, (uint32_t)pool, (uint32_t)worker, shmrt_now_ns());
	if (result != SHMRT_OK)
		return answer(result, slot, "claimed");
	return PyLong_FromUnsignedLong(atomic_load_explicit(&slot->epoch, memory_order_relaxed)); /* ours: just claimed */
}

static PyObject *slots_set_process(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "set_process(index, pid)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]);
	long pid = slot ? PyLong_AsLong(args[1]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	uint32_t owner = pid == (long)getpid() ? shmrt_owner_self() : shmrt_owner_of((int32_t)pid);
	shmrt_slot_set_process(slot, (int32_t)pid, owner);
	Py_RETURN_NONE;
}

static PyObject *slots_hold_death_mutex(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? answer(shmrt_slot_hold_death_mutex(slot), slot, "held") : NULL;
}

static PyObject *slots_ready(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? answer(shmrt_slot_ready(slot), slot, "made ready") : NULL;
}

static PyObject *slots_gone(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "gone(index, wait_status, oom)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]);
	long status = slot ? PyLong_AsLong(args[1]) : 0;
	int oom = slot && !PyErr_Occurred() ? PyObject_IsTrue(args[2]) : 0;
	if (!slot || oom < 0 || PyErr_Occurred())
		return NULL;
	return answer(shmrt_slot_gone(slot, (int32_t)status, oom), slot, "marked gone");
}

static PyObject *slots_free(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? answer(shmrt_slot_free(slot), slot, "freed") : NULL;
}

static PyObject *slots_order_kill(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count < 2 || count > 3) {
		PyErr_SetString(PyExc_TypeError, "order_kill(index, reason, task_id=0)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]);
	long reason = slot ? PyLong_AsLong(args[1]) : 0;
	unsigned long long task = slot && count == 3 ? PyLong_AsUnsignedLongLong(args[2]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	if (reason <= SHMRT_KILL_NONE || reason > SHMRT_KILL_RESTART) {
		PyErr_Format(PyExc_ValueError, "reason=%ld must be one of the KILL_* constants", reason);
		return NULL;
	}
	return PyBool_FromLong(shmrt_slot_order_kill(slot, (enum shmrt_kill_reason)reason, task));
}

static PyObject *slots_is_abandoned(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? PyBool_FromLong(shmrt_slot_is_abandoned(slot)) : NULL;
}

static PyObject *slots_request_stop(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	if (!slot)
		return NULL;
	atomic_store_explicit(&slot->stop_requested, 1, memory_order_release); /* B1: before the ring, which fences */
	shmrt_bell_ring(&slot->bell);
	Py_RETURN_NONE;
}

static PyObject *slots_state(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? PyLong_FromUnsignedLong(atomic_load_explicit(&slot->state, memory_order_acquire)) : NULL; /* F2 */
}

static PyObject *slots_epoch(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? PyLong_FromUnsignedLong(atomic_load_explicit(&slot->epoch, memory_order_acquire)) : NULL; /* F2 */
}

/* ---- looking ------------------------------------------------------------------------------------ */
static int put(PyObject *dict, const char *key, PyObject *value) {
	int result = value ? PyDict_SetItemString(dict, key, value) : -1;
	Py_XDECREF(value);
	return result;
}
static int put_unsigned(PyObject *dict, const char *key, uint64_t value) {
	return put(dict, key, PyLong_FromUnsignedLongLong(value));
}
static int put_signed(PyObject *dict, const char *key, int64_t value) {
	return put(dict, key, PyLong_FromLongLong(value));
}

#define LOAD(field) atomic_load_explicit(&slot->field, memory_order_relaxed) /* a report: each word for itself */

static PyObject *slots_info(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	PyObject *info = slot ? PyDict_New() : NULL;
	if (!info)
		return NULL;
	uint64_t phase = shmrt_slot_phase_get(slot); /* F1: before the task it belongs to */
	if (put_unsigned(info, "state", atomic_load_explicit(&slot->state, memory_order_acquire)) < 0 || /* F2 */
	    put_unsigned(info, "epoch", LOAD(epoch)) < 0 || put_signed(info, "pid", LOAD(pid)) < 0 ||
	    put_signed(info, "wait_status", LOAD(wait_status)) < 0 || put_unsigned(info, "owner", LOAD(owner)) < 0 ||
	    put_unsigned(info, "pool", LOAD(pool)) < 0 || put_unsigned(info, "worker", LOAD(worker)) < 0 ||
	    put_unsigned(info, "oom", LOAD(oom)) < 0 || put_unsigned(info, "spawn_ns", LOAD(spawn_ns)) < 0 ||
	    put_unsigned(info, "phase", phase & 0xFF) < 0 || put_unsigned(info, "phase_sequence", phase >> 8) < 0 ||
	    put_unsigned(info, "task_id", LOAD(task_id)) < 0 ||
	    put_unsigned(info, "task_start_ns", LOAD(task_start_ns)) < 0 ||
	    put_unsigned(info, "started", LOAD(started)) < 0 || put_unsigned(info, "done", LOAD(done)) < 0 ||
	    put_unsigned(info, "busy_ns", LOAD(busy_ns)) < 0 || put_unsigned(info, "logs_dropped", LOAD(logs_dropped)) < 0 ||
	    put_unsigned(info, "blocked_ns", LOAD(blocked_ns)) < 0 || put_unsigned(info, "beat_ns", LOAD(beat_ns)) < 0 ||
	    put_unsigned(info, "beats", LOAD(beats)) < 0 || put_unsigned(info, "main_cpu_ns", LOAD(main_cpu_ns)) < 0 ||
	    put_unsigned(info, "rss_bytes", LOAD(rss_bytes)) < 0 ||
	    put_unsigned(info, "kill_reason", LOAD(kill_reason)) < 0 ||
	    put_unsigned(info, "stop_requested", LOAD(stop_requested)) < 0 ||
	    put_unsigned(info, "kill_task_id", LOAD(kill_task_id)) < 0) {
		Py_DECREF(info);
		return NULL;
	}
	return info;
}

/* What the root asks of each slot after a wake: one call instead of one per slot and word. */
static PyObject *slots_scan(SlotsObject *self, PyObject *indexes) {
	PyObject *items = PySequence_Fast(indexes, "scan(indexes) takes a sequence of slot indexes");
	if (!items)
		return NULL;
	Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
	PyObject *found = PyList_New(count);
	for (Py_ssize_t i = 0; found && i < count; i++) {
		struct shmrt_slot *slot = slot_at(self, PySequence_Fast_GET_ITEM(items, i));
		PyObject *row = slot ? Py_BuildValue("(IO)", atomic_load_explicit(&slot->state, memory_order_acquire), /* F2 */
						     shmrt_slot_is_abandoned(slot) ? Py_True : Py_False)
				     : NULL;
		if (!row)
			Py_CLEAR(found);
		else
			PyList_SET_ITEM(found, i, row);
	}
	Py_DECREF(items);
	return found;
}

/* ---- bells, beat, generation -------------------------------------------------------------------- */
static PyObject *slots_ring(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = slot_at(self, index);
	return slot ? PyBool_FromLong(shmrt_bell_ring(&slot->bell)) : NULL;
}

static PyObject *slots_ring_all(SlotsObject *self, PyObject *unused) {
	(void)unused;
	if (self->control)
		shmrt_slots_ring_all(self->control);
	Py_RETURN_NONE;
}

/* Sleeps on the slot's bell until it rings or `timeout_ns` passed; True when it rang. For simple loops
 * in Python: the caller looks again at what it waits for after each return. */
static PyObject *slots_park(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "park(index, timeout_ns)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]);
	long long timeout = slot ? PyLong_AsLongLong(args[1]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	int result = SHMRT_OK;
	shmrt_bell_arm(&slot->bell);
	if (atomic_load_explicit(&slot->stop_requested, memory_order_acquire) == 0) { /* B1: the second look */
		Py_BEGIN_ALLOW_THREADS;
		result = shmrt_bell_sleep(&slot->bell, timeout < 0 ? SHMRT_FOREVER : timeout);
		Py_END_ALLOW_THREADS;
	}
	shmrt_bell_disarm(&slot->bell);
	if (result == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
		return NULL;
	return PyBool_FromLong(result != SHMRT_TIMEOUT);
}

static PyObject *slots_start_beat(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "start_beat(index, root_pid, hub_slot)");
		return NULL;
	}
	struct shmrt_slot *slot = slot_at(self, args[0]), *hub = slot ? slot_at(self, args[2]) : NULL;
	long root = hub ? PyLong_AsLong(args[1]) : 0;
	if (!hub || PyErr_Occurred())
		return NULL;
	return answer(shmrt_beat_start(self->control, (uint32_t)(slot - self->control->slots), (int32_t)root,
				       (uint32_t)(hub - self->control->slots)), slot, "given a beat");
}

static PyObject *slots_raise_generation(SlotsObject *self, PyObject *unused) {
	(void)unused;
	if (!self->control)
		return PyErr_Format(PyExc_ValueError, "the process table is closed");
	/* Written by the program only; acq_rel so that a reader of the new number sees what led to it. */
	return PyLong_FromUnsignedLongLong(
		atomic_fetch_add_explicit(&self->control->root_generation, 1, memory_order_acq_rel) + 1);
}

static PyObject *slots_generation(SlotsObject *self, void *unused) {
	(void)unused;
	if (!self->control)
		return PyErr_Format(PyExc_ValueError, "the process table is closed");
	return PyLong_FromUnsignedLongLong(atomic_load_explicit(&self->control->root_generation, memory_order_acquire)); /* a count by itself */
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
	if (!slots_type || !PyObject_TypeCheck(object, slots_type) || !((SlotsObject *)object)->control) {
		PyErr_Format(PyExc_TypeError, "an open Slots is needed, not %R", object);
		return NULL;
	}
	return ((SlotsObject *)object)->control;
}

#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL
static PyMethodDef slots_methods[] = {
	{"create", slots_create, METH_O | METH_STATIC, "create(count) -> a new table of `count` slots"},
	{"attach", slots_attach, METH_O | METH_STATIC, "attach(fd) -> the table behind a descriptor (which is duplicated)"},
	{"close", (PyCFunction)slots_close, METH_NOARGS, "Unmap. The mapping must hold no mutex of this process."},
	{"claim", FAST(slots_claim), "claim(index, pool, worker) -> epoch; EMPTY -> STARTING"},
	{"set_process", FAST(slots_set_process), "set_process(index, pid)"},
	{"hold_death_mutex", (PyCFunction)slots_hold_death_mutex, METH_O, "Lock the slot's death mutex for life."},
	{"ready", (PyCFunction)slots_ready, METH_O, "STARTING -> READY"},
	{"gone", FAST(slots_gone), "gone(index, wait_status, oom); STARTING or READY -> GONE"},
	{"free", (PyCFunction)slots_free, METH_O, "GONE -> EMPTY"},
	{"order_kill", FAST(slots_order_kill), "order_kill(index, reason, task_id=0) -> whether this reason came first"},
	{"is_abandoned", (PyCFunction)slots_is_abandoned, METH_O, "Whether the kernel marked the death mutex."},
	{"request_stop", (PyCFunction)slots_request_stop, METH_O, "Ask the process to leave after its message."},
	{"state", (PyCFunction)slots_state, METH_O, "One of the SLOT_* constants."},
	{"epoch", (PyCFunction)slots_epoch, METH_O, "How often the slot was claimed."},
	{"info", (PyCFunction)slots_info, METH_O, "Every word of the slot as a dict."},
	{"scan", (PyCFunction)slots_scan, METH_O, "scan(indexes) -> [(state, abandoned), ...]"},
	{"ring", (PyCFunction)slots_ring, METH_O, "Ring the slot's bell; whether a sleeper was woken."},
	{"ring_all", (PyCFunction)slots_ring_all, METH_NOARGS, "Ring every bell, unconditionally."},
	{"park", FAST(slots_park), "park(index, timeout_ns) -> rang; negative: no limit"},
	{"start_beat", FAST(slots_start_beat), "start_beat(index, root_pid, hub_slot)"},
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

/* ---- DeathWatch --------------------------------------------------------------------------------- */
typedef struct {
	PyObject_HEAD
	PyObject *slots; /* keeps the mapping */
	struct shmrt_control *control;
	uint32_t count;
	int eventfd;
	pid_t owner;
	bool running;
	pthread_t thread;
	_Atomic int stopping;
} WatchObject;

static void *watch_main(void *argument) {
	WatchObject *self = argument;
	_Atomic uint32_t *bell = &self->control->slots[SHMRT_SLOT_ROOT].bell;
	for (;;) {
		shmrt_bell_arm(bell);
		if (atomic_load_explicit(&self->stopping, memory_order_acquire)) /* pairs with watch_stop */
			return NULL;
		uint64_t one = 1;
		if (write(self->eventfd, &one, sizeof(one)) < 0 && errno == EBADF)
			return NULL;
		(void)!shmrt_slots_watch(self->control, 0, self->count, bell, SHMRT_FOREVER);
	}
}

static PyObject *watch_stop(WatchObject *self, PyObject *unused) {
	(void)unused;
	if (self->running && self->owner == getpid()) {
		self->running = false;
		atomic_store_explicit(&self->stopping, 1, memory_order_release); /* seen after the ring */
		shmrt_bell_ring_always(&self->control->slots[SHMRT_SLOT_ROOT].bell);
		Py_BEGIN_ALLOW_THREADS;
		pthread_join(self->thread, NULL);
		Py_END_ALLOW_THREADS;
	}
	Py_RETURN_NONE;
}

static PyObject *watch_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
	PyObject *slots;
	int eventfd;
	if (keywords && PyDict_GET_SIZE(keywords)) {
		PyErr_SetString(PyExc_TypeError, "DeathWatch(slots, eventfd) takes no keywords");
		return NULL;
	}
	if (!PyArg_ParseTuple(args, "O!i", slots_type, &slots, &eventfd))
		return NULL;
	struct shmrt_control *control = shmrt_py_slots_control(slots);
	WatchObject *self = control ? (WatchObject *)type->tp_alloc(type, 0) : NULL;
	if (!self)
		return NULL;
	self->slots = Py_NewRef(slots);
	self->control = control;
	self->count = ((SlotsObject *)slots)->count;
	self->eventfd = eventfd;
	self->owner = getpid();
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the main thread */
	int failed = pthread_create(&self->thread, NULL, watch_main, self);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed) {
		errno = failed;
		PyErr_SetFromErrno(PyExc_OSError);
		Py_DECREF(self);
		return NULL;
	}
	self->running = true;
	return (PyObject *)self;
}

static void watch_dealloc(WatchObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	Py_XDECREF(watch_stop(self, NULL));
	Py_XDECREF(self->slots);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef watch_methods[] = {
	{"stop", (PyCFunction)watch_stop, METH_NOARGS, "End the thread. Nothing happens in a forked child."},
	{NULL, NULL, 0, NULL},
};
static PyType_Slot watch_slots[] = {
	{Py_tp_doc, "DeathWatch(slots, eventfd): writes the eventfd whenever a process died or the root's bell rang."},
	{Py_tp_new, watch_new},
	{Py_tp_dealloc, watch_dealloc},
	{Py_tp_methods, watch_methods},
	{0, NULL},
};
static PyType_Spec watch_spec = {
	.name = "shmrt._native.DeathWatch",
	.basicsize = sizeof(WatchObject),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = watch_slots,
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
	slots_type = (PyTypeObject *)PyType_FromSpec(&slots_spec);
	if (!slots_type || PyModule_AddObjectRef(module, "Slots", (PyObject *)slots_type) < 0)
		return -1;
	PyObject *watch = PyType_FromSpec(&watch_spec);
	int failed = !watch || PyModule_AddObjectRef(module, "DeathWatch", watch) < 0;
	Py_XDECREF(watch);
	for (size_t i = 0; !failed && i < sizeof(constants) / sizeof(constants[0]); i++)
		failed = PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0;
	return failed ? -1 : 0;
}
