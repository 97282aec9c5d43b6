/* py_death_watch.c -- DeathWatch: the root's death watch, a thread that turns deaths into an eventfd.
 *
 * A pthread of the root that sleeps on the death mutexes and the root's own bell (watch.h) and
 * only writes an eventfd. It holds no lock and allocates nothing, so the root may fork
 * while it runs; a forked child does not have it and must not stop it.
 *
 * The watch arms the bell before it writes the eventfd and sleeps on the bell as armed. Whoever rings
 * after that ends the sleep, whoever changed a state before it is seen by the root's look after the
 * write: nothing falls between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_slots_internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

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
		if (atomic_load_explicit(&self->stopping, memory_order_acquire)) /* D1: pairs with watch_stop */
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
		atomic_store_explicit(&self->stopping, 1, memory_order_release); /* D1: seen after the ring */
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
	if (!PyArg_ParseTuple(args, "O!i", shmrt_py_slots_type, &slots, &eventfd))
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

int shmrt_py_add_death_watch(PyObject *module) {
	PyObject *watch = PyType_FromSpec(&watch_spec);
	int failed = !watch || PyModule_AddObjectRef(module, "DeathWatch", watch) < 0;
	Py_XDECREF(watch);
	return failed ? -1 : 0;
}
