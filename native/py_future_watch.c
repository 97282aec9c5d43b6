/* py_future_watch.c -- the watch block of a future: its condition, that as a lock, and telling the origin of it.
 *
 * Most futures are born, completed and asked without anybody looking at `_condition`, so the block is made when it is
 * first needed. Making it may run other code (an allocation may start the collector), so
 * whoever made something keeps it only if no other thread was faster. The lock rule is in py_future_internal.h.
 */
#include "py_future_internal.h"

struct watch *shmrt__future_need_watch(struct core_future *self) {
	if (self->watch == NULL) {
		struct watch *watch = PyMem_Calloc(1, sizeof(*watch));
		if (watch == NULL) {
			PyErr_NoMemory();
			return NULL;
		}
		self->watch = watch;
		shmrt__future_track(self);
	}
	return self->watch;
}

/* Tell the origin once that this future needs the dispatcher. */
void shmrt__future_tell_watch(struct core_future *self) {
	if (self->watch_told || is_done(self) || self->origin_object == NULL)
		return;
	self->watch_told = 1;
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->watch(origin_object, self->token);
	Py_DECREF(origin_object);
}

/* Let the origin deliver what already arrived, unless only the dispatcher may complete this one. */
void shmrt__future_poll(struct core_future *self) {
	if (is_done(self) || self->watch != NULL || self->origin_object == NULL)
		return;
	PyObject *origin_object = Py_NewRef(self->origin_object);
	self->origin->poll(origin_object);
	Py_DECREF(origin_object);
}

/* Store `made` (stolen) in *place unless another thread was faster; either way a new reference to what is there. */
PyObject *shmrt__future_keep_first(PyObject **place, PyObject *made) {
	if (*place == NULL)
		*place = made;
	else
		Py_DECREF(made);
	return Py_NewRef(*place);
}

PyObject *shmrt__future_need_condition(struct core_future *self) {
	if (self->watch != NULL && self->watch->condition != NULL)
		return Py_NewRef(self->watch->condition);
	shmrt__future_poll(self);
	PyObject *made = shmrt__condition_new();
	if (made == NULL)
		return NULL;
	struct watch *watch = shmrt__future_need_watch(self);
	if (watch == NULL) {
		Py_DECREF(made);
		return NULL;
	}
	PyObject *condition = shmrt__future_keep_first(&watch->condition, made);
	shmrt__future_tell_watch(self);
	return condition;
}

/* ---- the lock of one future ---- */

/* A condition that is not ours exists. It is kept by *held, since somebody may store another one in the future meanwhile. */
int shmrt__future_acquire(struct core_future *self, PyObject **held) {
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *answer = PyObject_CallMethodNoArgs(condition, shmrt__future.str_acquire);
	if (answer == NULL) {
		Py_DECREF(condition);
		return -1;
	}
	Py_DECREF(answer);
	*held = condition;
	return 0;
}

/* Whatever exception is set stays set: releasing is what one does on the way out of a failure, too. */
void shmrt__future_release(PyObject *held) {
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *answer = PyObject_CallMethodNoArgs(held, shmrt__future.str_release);
	if (answer == NULL)
		PyErr_WriteUnraisable(held);
	Py_XDECREF(answer);
	Py_DECREF(held);
	PyErr_Restore(type, value, traceback);
}

/* Whether this thread is inside `with future._condition`; the dispatcher could then never complete it. */
int shmrt__future_owns_condition(struct core_future *self) {
	if (self->watch == NULL || self->watch->condition == NULL)
		return 0;
	const struct condition *ours = shmrt__condition_of_ours(self->watch->condition);
	if (ours != NULL)
		return ours->owner == PyThread_get_thread_ident();
	PyObject *condition = Py_NewRef(self->watch->condition);
	PyObject *owned = PyObject_CallMethodNoArgs(condition, shmrt__future.str_is_owned);
	int result = owned == NULL ? 0 : PyObject_IsTrue(owned);
	PyErr_Clear();
	Py_XDECREF(owned);
	Py_DECREF(condition);
	return result > 0;
}
