/* py_future_attributes.c -- attributes that the standard library reads and writes, and ours: worker, attempts.
 *
 * concurrent.futures.wait, as_completed, and executors of others know a future by `_state`, `_result`, `_exception`,
 * `_condition`, `_waiters` and `_done_callbacks`; here these are views of the C struct. Writing one changes just that word,
 * as it does there. What such an attribute gives away may close a reference cycle, so it puts the future back on the
 * collector's list (py_future.c).
 */
#include "py_future_internal.h"

static int refuse_delete(PyObject *value, const char *name) {
	if (value != NULL)
		return 0;
	PyErr_Format(PyExc_AttributeError, "a future's %s cannot be deleted", name);
	return -1;
}

/* ---- state and value ---- */

static PyObject *get_state(PyObject *self, void *Py_UNUSED(closure)) {
	shmrt__future_poll(core(self));
	return Py_NewRef(shmrt__future.state_names[core(self)->state]);
}

static int set_state(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_state") < 0)
		return -1;
	for (int i = 0; i < STATE_COUNT; i++) {
		int equal = PyObject_RichCompareBool(value, shmrt__future.state_names[i], Py_EQ);
		if (equal < 0)
			return -1;
		if (equal) {
			core(self)->state = (uint8_t)i;
			return 0;
		}
	}
	PyErr_Format(PyExc_ValueError, "%R is no state of a future; use the names in concurrent.futures._base", value);
	return -1;
}

static PyObject *get_value(struct core_future *self, bool want_exception) {
	shmrt__future_poll(self);
	if (shmrt__future_need_value(self) < 0)
		return NULL;
	bool failed = self->outcome == SHMRT_OUTCOME_EXCEPTION;
	return Py_NewRef(self->value != NULL && failed == want_exception ? self->value : Py_None);
}

/* `_result` and `_exception` share one place, where an exception outranks a result, as it does in result(). */
static void put_value(struct core_future *self, PyObject *value, bool exception) {
	bool has_exception = self->value != NULL && self->outcome == SHMRT_OUTCOME_EXCEPTION;
	if (!exception && has_exception)
		return;
	if (exception && value == Py_None && !has_exception)
		return;
	PyObject *old = self->value;
	self->value = Py_NewRef(value);
	self->outcome = exception && value != Py_None ? SHMRT_OUTCOME_EXCEPTION : SHMRT_OUTCOME_VALUE;
	shmrt__future_track_for(self, value);
	Py_XDECREF(old);
}

static PyObject *get_result(PyObject *self, void *Py_UNUSED(closure)) { return get_value(core(self), false); }
static PyObject *get_exception(PyObject *self, void *Py_UNUSED(closure)) { return get_value(core(self), true); }

static int set_result(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_result") < 0)
		return -1;
	put_value(core(self), value, false);
	return 0;
}

static int set_exception(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	if (refuse_delete(value, "_exception") < 0)
		return -1;
	put_value(core(self), value, true);
	return 0;
}

/* ---- condition, waiters, callbacks ---- */

static PyObject *get_condition(PyObject *self, void *Py_UNUSED(closure)) { return shmrt__future_need_condition(core(self)); }

/* Which list: the closure is the offset in struct watch. */
static PyObject *get_list(PyObject *future, void *closure) {
	struct core_future *self = core(future);
	size_t offset = (size_t)(uintptr_t)closure;
	PyObject *there = self->watch ? *(PyObject **)((char *)self->watch + offset) : NULL;
	if (there != NULL)
		return Py_NewRef(there);
	PyObject *made = PyList_New(0);
	struct watch *watch = made ? shmrt__future_need_watch(self) : NULL;
	if (watch == NULL) {
		Py_XDECREF(made);
		return NULL;
	}
	PyObject *list = shmrt__future_keep_first((PyObject **)((char *)watch + offset), made);
	shmrt__future_tell_watch(self);
	return list;
}

static int set_watch_member(PyObject *future, PyObject *value, void *closure) {
	struct core_future *self = core(future);
	size_t offset = (size_t)(uintptr_t)closure;
	if (refuse_delete(value, "condition, waiters or callbacks") < 0)
		return -1;
	if (offset != offsetof(struct watch, condition) && !PyList_Check(value)) {
		PyErr_Format(PyExc_TypeError, "waiters and callbacks of a future are lists, not %s", Py_TYPE(value)->tp_name);
		return -1;
	}
	struct watch *watch = shmrt__future_need_watch(self);
	if (watch == NULL)
		return -1;
	PyObject **place = (PyObject **)((char *)watch + offset), *old = *place;
	*place = Py_NewRef(value);
	Py_XDECREF(old);
	shmrt__future_tell_watch(self);
	return 0;
}

/* ---- ours ---- */

static PyObject *get_worker(PyObject *self, void *Py_UNUSED(closure)) {
	shmrt__future_poll(core(self));
	return Py_NewRef(core(self)->worker ? core(self)->worker : Py_None);
}

static PyObject *get_attempts(PyObject *self, void *Py_UNUSED(closure)) {
	shmrt__future_poll(core(self));
	return PyLong_FromUnsignedLong(core(self)->attempts);
}

/* ---- any other attribute ---- */

/* Whoever gets the dict may close a cycle through it. */
static PyObject *get_dict(PyObject *self, void *Py_UNUSED(closure)) {
	PyObject *dict = PyObject_GenericGetDict(self, NULL);
	if (dict != NULL)
		shmrt__future_track(core(self));
	return dict;
}

static int set_dict(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	int result = PyObject_GenericSetDict(self, value, NULL);
	if (result == 0)
		shmrt__future_track(core(self));
	return result;
}

int shmrt__future_setattro(PyObject *self, PyObject *name, PyObject *value) {
	int result = PyObject_GenericSetAttr(self, name, value);
	/* Our own slots start with an underscore and track by themselves. */
	if (result == 0 && value != NULL && !(PyUnicode_GET_LENGTH(name) > 0 && PyUnicode_READ_CHAR(name, 0) == '_' &&
					      PyObject_HasAttr((PyObject *)shmrt__future.core_type, name)))
		shmrt__future_track(core(self));
	return result;
}

#define MEMBER(member) ((void *)offsetof(struct watch, member))

PyGetSetDef shmrt__future_getset[] = {
	{"_state", get_state, set_state, NULL, NULL},
	{"_result", get_result, set_result, NULL, NULL},
	{"_exception", get_exception, set_exception, NULL, NULL},
	{"_condition", get_condition, set_watch_member, NULL, MEMBER(condition)},
	{"_waiters", get_list, set_watch_member, NULL, MEMBER(waiters)},
	{"_done_callbacks", get_list, set_watch_member, NULL, MEMBER(callbacks)},
	{"worker", get_worker, NULL, "The name of the worker that completed the task, or None.", NULL},
	{"attempts", get_attempts, NULL, "How often the task was begun.", NULL},
	{"__dict__", get_dict, set_dict, NULL, NULL},
	{0},
};
