/* py_hub.c -- Hub: the dispatcher as Python sees it.
 *
 * Who completes futures: any thread that holds the GIL may hand finished tasks over to bare futures
 * (no user code runs; py_hub_deliver.c); watched futures belong to the dispatcher thread, which sleeps in
 * `Hub.dispatch_once`. It takes the notes, too, and so does whoever must not miss one: a pool that ends, above all. What a
 * future asks of the hub, waiting above all, is in py_hub_origin.c.
 */
#include "hub_internal.h"
#include "py_hub.h"

#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

/* ---- the owner ---- */

_Atomic uint32_t shmrt_py_fork_count; /* raised in every forked child */

static void count_fork(void) { atomic_fetch_add_explicit(&shmrt_py_fork_count, 1, memory_order_relaxed); /* ours alone */ }

int shmrt_py_hub_check(ShmrtHub *self) {
	if (!shmrt_py_hub_is_ours(self)) {
		shmrt_raise("RuntimeDown", "this runtime belongs to process %d, and this is its forked child %d, which owns nothing of "
			    "it; make a Pool of its own here", (int)shmrt_owner_pid(self->hub.owner), (int)getpid());
		return -1;
	}
	if (self->closed) {
		shmrt_raise("RuntimeDown", "this runtime was stopped");
		return -1;
	}
	return 0;
}

/* ---- the dispatcher thread ---- */

/* The oldest note that nobody has taken, as a tuple; None: there is none. Any thread, but one at a time: while a value is
 * unpickled its note is nowhere else. */
static PyObject *hub_take_note(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	struct shmrt_note *note = shmrt_hub_take_note(&self->hub);
	if (note == NULL)
		Py_RETURN_NONE;
	PyObject *value, *object = NULL;
	if (note->payload.bytes) {
		value = shmrt_py_hub_decode_payload(self, &note->payload);
		if (value == NULL && !PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) { /* a note that cannot be decoded tells that */
			PyErr_Clear();
			value = Py_NewRef(Py_None);
		}
	} else
		value = Py_NewRef(Py_None);
	if (value) /* else Ctrl-C, in this thread */
		object = Py_BuildValue("(iIIIIKN{sisisIsIsz})", (int)note->kind, note->pool, note->slot, note->epoch, note->worker,
				       (unsigned long long)note->task, value, "pid", note->crash.pid, "wait_status",
				       note->crash.wait_status, "oom", note->crash.oom, "kill_reason", note->crash.kill_reason, "stack",
				       note->crash.stack);
	shmrt_hub_note_free(&self->hub, note);
	return object;
}

/* Has the dispatcher thread return from its sleep, now or the next time. */
static PyObject *hub_wake_dispatcher(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	self->dispatcher_wanted = true; /* under the GIL */
	shmrt_hub__wake_dispatcher(&self->hub);
	Py_RETURN_NONE;
}

/* Sleeps until there is something only this thread may do, and does the completions. False: stopped, and nothing is left. */
static PyObject *hub_dispatch_once(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	uint32_t seen = atomic_load_explicit(&self->hub.dispatcher_word, memory_order_acquire); /* H5: looked at before the lists */
	if (self->dispatcher_wanted || shmrt_hub_has_notes(&self->hub)) {
		self->dispatcher_wanted = false;
		Py_RETURN_TRUE;
	}
	shmrt_future_batch_begin();
	Py_ssize_t completed = shmrt_py_hub_apply(self, true);
	shmrt_future_batch_end();
	if (completed > 0)
		Py_RETURN_TRUE;
	if (atomic_load_explicit(&self->hub.stop, memory_order_acquire)) /* H4: set by stop_thread */
		Py_RETURN_FALSE;
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_dispatcher_wait(&self->hub, seen);
	Py_END_ALLOW_THREADS
	Py_RETURN_TRUE;
}

/* ---- the hub's thread ---- */

static PyObject *hub_start(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	int result;
	Py_BEGIN_ALLOW_THREADS
	result = shmrt_hub_start_thread(&self->hub);
	Py_END_ALLOW_THREADS
	if (result != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *hub_stop(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	if (!shmrt_py_hub_is_ours(self) || self->closed)
		Py_RETURN_NONE;
	self->closed = true;
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_stop_thread(&self->hub);
	Py_END_ALLOW_THREADS
	shmrt_py_hub_apply(self, false);
	shmrt_bell_ring_always(&self->control->slots[self->hub.self_slot].bell); /* waiters find it closed */
	Py_RETURN_NONE;
}

static PyObject *hub_pump(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	bool moved;
	if (shmrt_py_hub_check(self) < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_pump(&self->hub, &moved);
	Py_END_ALLOW_THREADS
	shmrt_py_hub_apply(self, false);
	return PyBool_FromLong(moved);
}

static PyObject *hub_stats(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	struct shmrt_hub *hub = &self->hub;
	pthread_mutex_lock(&hub->mutex);
	PyObject *stats = Py_BuildValue("{sKsKsKsKsI}", "pumps", (unsigned long long)hub->pumps, "sleeps", (unsigned long long)hub->sleeps,
					"notes_dropped", (unsigned long long)hub->notes_dropped, "completed_waiting",
					(unsigned long long)hub->completed.count, "parked",
					(unsigned int)atomic_load_explicit(&hub->parked, memory_order_relaxed)); /* a look */
	pthread_mutex_unlock(&hub->mutex);
	return stats;
}

/* ---- the type ---- */

static int hub_init(ShmrtHub *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"control_fd", "arena", "slot", NULL};
	int control_fd;
	PyObject *arena;
	char reason[200];
	void *address;
	unsigned int self_slot = SHMRT_SLOT_PROGRAM;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|I", names, &control_fd, &arena, &self_slot))
		return -1;
	if (shmrt_segment_attach(control_fd, SHMRT_SEGMENT_CONTROL, &address, &self->control_size, reason, sizeof(reason)) != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot use the control segment: %s", reason);
		return -1;
	}
	self->control = address;
	if (self_slot >= self->control->slot_count) {
		PyErr_Format(PyExc_ValueError, "there is no slot %u", self_slot);
		return -1;
	}
	self->arena = (ShmrtArena *)Py_NewRef(arena);
	self->deferred_end = &self->deferred;
	self->signal_ns = SHMRT_SIGNAL_NS;
	self->forks = atomic_load_explicit(&shmrt_py_fork_count, memory_order_relaxed); /* ours alone */
	if (shmrt_hub_open(&self->hub, self->control, self_slot, &self->arena->arena) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	PyObject *remote = PyImport_ImportModule("shmrt.process.remote");
	if (remote == NULL)
		return -1;
	self->make_error = PyObject_GetAttrString(remote, "make_error");
	self->unpack_exception = PyObject_GetAttrString(remote, "unpack_exception");
	Py_DECREF(remote);
	return self->make_error && self->unpack_exception ? 0 : -1;
}

static void hub_dealloc(ShmrtHub *self) {
	PyTypeObject *type = Py_TYPE(self);
	if (shmrt_py_hub_is_ours(self) && self->control) {
		shmrt_hub_stop_thread(&self->hub);
		shmrt_unmap(self->control, self->control_size);
		shmrt_hub_close(&self->hub);
	}
	Py_XDECREF(self->arena);
	Py_XDECREF(self->make_error);
	Py_XDECREF(self->unpack_exception);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef hub_methods[] = {
	{"start", (PyCFunction)hub_start, METH_NOARGS, "Start the hub's thread."},
	{"stop", (PyCFunction)hub_stop, METH_NOARGS, "Stop the hub's thread; waiting threads get RuntimeDown."},
	{"pump", (PyCFunction)hub_pump, METH_NOARGS, "Turn the wheel once; whether anything moved."},
	{"dispatch_once", (PyCFunction)hub_dispatch_once, METH_NOARGS, "The dispatcher thread's work; False once stopped."},
	{"take_note", (PyCFunction)hub_take_note, METH_NOARGS, "The oldest note, or None; by one thread at a time."},
	{"wake_dispatcher", (PyCFunction)hub_wake_dispatcher, METH_NOARGS, "Have dispatch_once return."},
	{"stats", (PyCFunction)hub_stats, METH_NOARGS, "Counters of the hub."},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef hub_members[] = {
	{"signal_ns", T_ULONGLONG, offsetof(ShmrtHub, signal_ns), 0,
	 "How long a thread that waits for a result sleeps at most, so that it sees a signal; no wake-up depends on it."},
	{0},
};

static PyType_Slot hub_slots[] = {
	{Py_tp_init, (void *)hub_init},
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)hub_dealloc},
	{Py_tp_methods, hub_methods},
	{Py_tp_members, hub_members},
	{Py_tp_doc, "Hub(control_fd, arena)\n--\n\nDispatches the tasks of every pool of this process."},
	{0, NULL},
};

static PyType_Spec hub_spec = {"shmrt._native.Hub", sizeof(ShmrtHub), 0, Py_TPFLAGS_DEFAULT, hub_slots};

int shmrt_py_add_hub(PyObject *module) {
	static bool registered;
	if (!registered) {
		pthread_atfork(NULL, NULL, count_fork);
		registered = true;
	}
	PyObject *type = PyType_FromSpec(&hub_spec);
	if (type == NULL || PyModule_AddObjectRef(module, "Hub", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	return shmrt_py_add_pool(module);
}
