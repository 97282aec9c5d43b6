/* py_future.c -- shmrt's Future: a C base that becomes a real concurrent.futures.Future on first use.
 *
 * The type, its life and its public class; what a future does is in the other py_future_*.c, and what they rely on in
 * py_future_internal.h.
 *
 * A new future holds nothing that could close a reference cycle and is taken off the collector's list (the biggest
 * single cost of submitting in bulk). It is put back once it gets a watch block, an attribute, or a value that the
 * collector knows. Instances of subclasses always stay on the list.
 */
#include "py_future_internal.h"

struct shmrt__future_common shmrt__future;

/* ---- life ---- */

static PyObject *future_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
	PyObject *future = type->tp_alloc(type, 0);
	if (future != NULL && type == shmrt__future.public_class)
		PyObject_GC_UnTrack(future);
	return future;
}

static int future_init(PyObject *self, PyObject *args, PyObject *kwargs) {
	if (PyTuple_GET_SIZE(args) == 0 && (kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0))
		return 0;
	PyErr_Format(PyExc_TypeError, "%s() takes no arguments", shmrt__future_short_name(self));
	return -1;
}

static int future_traverse(PyObject *future, visitproc visit, void *arg) {
	struct core_future *self = core(future);
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->origin_object);
	Py_VISIT(self->value);
	if (self->watch != NULL) {
		Py_VISIT(self->watch->condition);
		Py_VISIT(self->watch->waiters);
		Py_VISIT(self->watch->callbacks);
		Py_VISIT(self->watch->chained);
		Py_VISIT(self->watch->guard);
	}
	return 0;
}

static int future_clear(PyObject *future) {
	struct core_future *self = core(future);
	struct watch *watch = self->watch;
	void *payload = self->payload;
	self->watch = NULL;
	self->payload = NULL;
	shmrt__future_drop_payload(self, payload);
	if (watch != NULL) {
		Py_XDECREF(watch->condition);
		Py_XDECREF(watch->waiters);
		Py_XDECREF(watch->callbacks);
		Py_XDECREF(watch->chained);
		Py_XDECREF(watch->guard);
		PyMem_Free(watch);
	}
	Py_CLEAR(self->value);
	Py_CLEAR(self->worker);
	Py_CLEAR(self->origin_object);
	return 0;
}

static void future_dealloc(PyObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	future_clear(self);
	type->tp_free(self);
	Py_DECREF(type);
}

/* ---- the type ---- */

#define METHOD(name, flags, doc) {#name, (PyCFunction)(void (*)(void))shmrt__future_##name, flags, doc}
#define WITH_ARGUMENT (METH_FASTCALL | METH_KEYWORDS)

static PyMethodDef future_methods[] = {
	METHOD(result, WITH_ARGUMENT,
	       "result($self, timeout=None)\n--\n\nThe value, waiting for it at most `timeout` seconds; raises what the task raised."),
	METHOD(exception, WITH_ARGUMENT,
	       "exception($self, timeout=None)\n--\n\nThe exception that the task raised, or None; waits like result()."),
	METHOD(done, METH_NOARGS, "done($self)\n--\n\nTrue once it has a result, an exception, or was cancelled."),
	METHOD(cancelled, METH_NOARGS, "cancelled($self)\n--\n\nTrue if it was cancelled."),
	METHOD(running, METH_NOARGS, "running($self)\n--\n\nTrue while a worker executes the task."),
	METHOD(cancel, METH_NOARGS, "cancel($self)\n--\n\nTake the task back if no worker has begun it; True if that worked."),
	{"_set_guard", (PyCFunction)(void (*)(void))shmrt__future_set_guard, METH_FASTCALL,
	 "_set_guard(fn, wants_value): fn(future, outcome, exception, value or None), once, before anybody else hears of it"},
	{"_refuse", shmrt__future_refuse, METH_O, "_refuse(exception) -> whether it had not begun, and has ended with that now"},
	METHOD(kill, METH_NOARGS,
	       "kill($self)\n--\n\nEnd the task even if it runs, by killing its worker; the future ends in CancelledError. "
	       "False if it was done already."),
	METHOD(add_done_callback, WITH_ARGUMENT,
	       "add_done_callback($self, fn)\n--\n\nCall fn(future) once it is done, at once if it is."),
	METHOD(set_result, WITH_ARGUMENT, "set_result($self, result)\n--\n\nFor executors and tests: complete it with a value."),
	METHOD(set_exception, WITH_ARGUMENT,
	       "set_exception($self, exception)\n--\n\nFor executors and tests: complete it with an exception."),
	METHOD(set_running_or_notify_cancel, METH_NOARGS,
	       "set_running_or_notify_cancel($self)\n--\n\nFor executors: mark it running; False if it was cancelled."),
	{0},
};

static PyType_Slot core_slots[] = {
	{Py_tp_new, future_new},
	{Py_tp_init, future_init},
	{Py_tp_dealloc, future_dealloc},
	{Py_tp_traverse, future_traverse},
	{Py_tp_clear, future_clear},
	{Py_tp_repr, shmrt__future_repr},
	{Py_tp_setattro, shmrt__future_setattro},
	{Py_tp_methods, future_methods},
	{Py_tp_getset, shmrt__future_getset},
	{Py_am_await, shmrt__future_await},
	{Py_tp_doc, "The C half of shmrt's Future."},
	{0},
};

static PyType_Spec core_spec = {
	.name = "shmrt._native.CoreFuture",
	.basicsize = sizeof(struct core_future),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = core_slots,
};

/* ---- the public class ---- */

static int fetch(PyObject *module, const char *name, PyObject **place) {
	PyObject *found = PyObject_GetAttrString(module, name);
	if (found == NULL)
		return -1;
	PyObject *old = *place;
	*place = found;
	Py_XDECREF(old);
	return 0;
}

static int fetch_words(PyObject *base) {
	static const char *const names[STATE_COUNT] = {"PENDING", "RUNNING", "CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"};
	for (int i = 0; i < STATE_COUNT; i++)
		if (fetch(base, names[i], &shmrt__future.state_names[i]) < 0)
			return -1;
	if (fetch(base, "CancelledError", &shmrt__future.cancelled_error) < 0 ||
	    fetch(base, "InvalidStateError", &shmrt__future.invalid_state_error) < 0)
		return -1;
	PyObject *waiter = PyObject_GetAttrString(base, "_AsCompletedWaiter");
	if (waiter == NULL)
		PyErr_Clear();
	else if (PyType_Check(waiter) && shmrt__future.as_completed_type == NULL)
		shmrt__future.as_completed_type = (PyTypeObject *)Py_NewRef(waiter);
	Py_XDECREF(waiter);
	return fetch(base, "LOGGER", &shmrt__future.logger);
}

/* Borrowed. Imports may run other threads; the first class that is ready stays the only one. */
PyObject *shmrt_future_class(void) {
	if (shmrt__future.public_class != NULL)
		return (PyObject *)shmrt__future.public_class;
	PyObject *made = NULL, *standard = NULL, *dict = NULL;
	PyObject *base = PyImport_ImportModule("concurrent.futures._base");
	if (base == NULL || (shmrt__future.public_class == NULL && fetch_words(base) < 0) ||
	    fetch(base, "Future", &standard) < 0)
		goto out;
	dict = PyObject_GetAttrString((PyObject *)shmrt__future.core_type, "__dict__");
	PyObject *descriptor = dict ? PyMapping_GetItemString(dict, "__dict__") : NULL;
	if (descriptor == NULL)
		goto out;
	made = PyObject_CallFunction((PyObject *)&PyType_Type, "s(OO){s()sssssN}", "Future", shmrt__future.core_type, standard,
				     "__slots__", "__module__", "shmrt", "__doc__",
				     "The result of a task: a concurrent.futures.Future with kill(), worker, attempts and await.",
				     "__dict__", descriptor);
	if (made != NULL && shmrt__future.public_class == NULL)
		shmrt__future.public_class = (PyTypeObject *)Py_NewRef(made);
out:
	Py_XDECREF(made);
	Py_XDECREF(dict);
	Py_XDECREF(standard);
	Py_XDECREF(base);
	return made == NULL ? NULL : (PyObject *)shmrt__future.public_class;
}

/* ---- the module's part ---- */

static PyObject *module_future_class(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
	return Py_XNewRef(shmrt_future_class());
}

static PyMethodDef module_methods[] = {
	{"future_class", module_future_class, METH_NOARGS,
	 "future_class()\n--\n\nThe class of all futures; made, and concurrent.futures imported, by the first call."},
	{0},
};

static const struct {
	PyObject **place;
	const char *text;
} strings[] = {
	{&shmrt__future.str_acquire, "acquire"}, {&shmrt__future.str_release, "release"}, {&shmrt__future.str_wait, "wait"},
	{&shmrt__future.str_notify_all, "notify_all"}, {&shmrt__future.str_is_owned, "_is_owned"},
	{&shmrt__future.str_add_result, "add_result"}, {&shmrt__future.str_add_exception, "add_exception"},
	{&shmrt__future.str_add_cancelled, "add_cancelled"}, {&shmrt__future.str_lock, "lock"},
	{&shmrt__future.str_finished_futures, "finished_futures"}, {&shmrt__future.str_event, "event"},
	{&shmrt__future.str_set, "set"}, {&shmrt__future.str_get_loop, "get_loop"}, {&shmrt__future.str_done, "done"},
	{&shmrt__future.str_set_result, "set_result"},
};

int shmrt_py_add_future(PyObject *module) {
	if (shmrt__future.core_type == NULL) {
		shmrt__future.core_type = (PyTypeObject *)PyType_FromSpec(&core_spec);
		if (shmrt__future.core_type == NULL)
			return -1;
		for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
			if ((*strings[i].place = PyUnicode_InternFromString(strings[i].text)) == NULL)
				return -1;
	}
	if (shmrt__condition_ready() < 0)
		return -1;
	return PyModule_AddFunctions(module, module_methods);
}
