/* py_death_watch.c -- DeathWatch: the root's death watch, a thread that turns deaths into an eventfd.
 *
 * A pthread of the root that sleeps on the death mutexes and the root's own bell (watch.h) and
 * only writes an eventfd. It holds no lock and allocates nothing, so the root may fork
 * while it runs; a forked child does not have it and must not stop it.
 *
 * The watch arms the bell before it writes the eventfd and sleeps on the bell as armed. Whoever rings
 * after that ends the sleep, whoever changed a state before it is seen by the root's look after the
 * write: nothing falls between.
 *
 * While the root sleeps, the watch also carries out what it was told to do about deaths (orders.h).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "orders.h"
#include "py_slots_internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#define REST_NS INT64_C(3000000)

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
	struct shmrt_orders *orders;
} WatchObject;

static void *watch_main(void *argument) {
	WatchObject *self = argument;
	_Atomic uint32_t *bell = &self->control->slots[SHMRT_SLOT_ROOT].bell;
	for (;;) {
		shmrt_bell_arm(bell);
		if (atomic_load_explicit(&self->stopping, memory_order_acquire)) /* D1: pairs with watch_stop */
			return NULL;
		if (shmrt_orders_carry_out(self->orders)) {
			/* Who was sent rings when it is ready, and needs the CPU more than the root does until then. */
			(void)!shmrt_slots_watch(self->control, 0, self->count, bell, REST_NS);
			continue;
		}
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
	self->orders = malloc(sizeof(*self->orders));
	if (!self->orders) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	shmrt_orders_init(self->orders, control);
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

/* ---- standing orders ---- */

/* One row of place(): (pool, first, count, pipe, [(slot, epoch, worker, restarts), ...]). */
static int add_pool(PyObject *row, struct shmrt_orders_pool *pool, uint32_t at, struct shmrt_order *orders, uint32_t *count) {
	PyObject *workers;
	*pool = (struct shmrt_orders_pool){0};
	if (!PyArg_ParseTuple(row, "IIIiO!;place() takes rows of (pool, first, count, pipe, list)", &pool->pool, &pool->first,
			      &pool->count, &pool->pipe, &PyList_Type, &workers))
		return -1;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(workers); i++) {
		struct shmrt_order order = {.at = at};
		if (*count == SHMRT_SLOTS_MAX) {
			PyErr_SetString(PyExc_ValueError, "more orders than there can be slots");
			return -1;
		}
		if (!PyArg_ParseTuple(PyList_GET_ITEM(workers, i), "IIII;a worker is (slot, epoch, worker, restarts)", &order.slot,
				      &order.epoch, &order.worker, &order.restarts))
			return -1;
		orders[(*count)++] = order;
	}
	return 0;
}

static PyObject *watch_place(WatchObject *self, PyObject *rows) {
	if (!PyList_Check(rows) || PyList_GET_SIZE(rows) > SHMRT_SLOTS_MAX) {
		PyErr_SetString(PyExc_TypeError, "place(rows) takes a list, of at most as many pools as there can be slots");
		return NULL;
	}
	Py_ssize_t pool_count = PyList_GET_SIZE(rows);
	uint32_t order_count = 0;
	struct shmrt_orders_pool *pools = PyMem_New(struct shmrt_orders_pool, (size_t)pool_count + 1);
	struct shmrt_order *orders = PyMem_New(struct shmrt_order, SHMRT_SLOTS_MAX);
	if (!pools || !orders)
		PyErr_NoMemory();
	for (Py_ssize_t i = 0; !PyErr_Occurred() && i < pool_count; i++) {
		int failed = add_pool(PyList_GET_ITEM(rows, i), &pools[i], (uint32_t)i, orders, &order_count);
		(void)failed; /* an exception is set */
	}
	if (!PyErr_Occurred() && shmrt_orders_place(self->orders, pools, (uint32_t)pool_count, orders, order_count) != SHMRT_OK)
		PyErr_SetString(PyExc_IndexError, "a slot is outside of the table");
	PyMem_Free(pools);
	PyMem_Free(orders);
	if (PyErr_Occurred())
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *watch_take_back(WatchObject *self, PyObject *Py_UNUSED(ignored)) {
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	uint32_t count = shmrt_orders_take_back(self->orders, done);
	PyObject *found = PyList_New(count);
	for (uint32_t i = 0; found && i < count; i++) {
		PyObject *row = Py_BuildValue("(IIIIIO)", done[i].pool, done[i].dead, done[i].slot, done[i].epoch, done[i].worker,
					      done[i].told ? Py_True : Py_False);
		if (!row)
			Py_CLEAR(found);
		else
			PyList_SET_ITEM(found, i, row);
	}
	return found;
}

static void watch_dealloc(WatchObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	Py_XDECREF(watch_stop(self, NULL));
	if (self->owner == getpid()) /* in a fork the thread is gone, and may have held the mutex */
		free(self->orders);
	Py_XDECREF(self->slots);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef watch_methods[] = {
	{"place", (PyCFunction)watch_place, METH_O,
	 "place([(pool, first, count, pipe, [(slot, epoch, worker, restarts), ...]), ...]): whom the watch replaces at once, until"
	 " take_back()."},
	{"take_back", (PyCFunction)watch_take_back, METH_NOARGS,
	 "No order holds any more; [(pool, dead slot, slot, epoch, worker, told), ...] says what was done."},
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
