/* py_ring_get.c -- get and get_many of RingCore: objects out.
 *
 * A message whose decoding raises takes nothing from those after it: what a get_many had taken out of the ring by then is
 * kept in `pending`, in order, for the calls to come, which look there first.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

/* ---- one ---- */

static int receive_get(RingCore *self, struct mail *mail, int64_t timeout_ns, uint64_t *position) {
	(void)position;
	uint64_t done = 0;
	return shmrt_ring_get(&self->ring, mail->capacity, timeout_ns, shmrt_py_ring_take_letter, mail, &done);
}

/* New reference: the next decoded object or NULL with its exception. */
static PyObject *take_pending(RingCore *self) {
	PyObject *item = Py_NewRef(PyList_GET_ITEM(self->pending, 0));
	if (PyList_SetSlice(self->pending, 0, 1, NULL) < 0) {
		Py_DECREF(item);
		return NULL;
	}
	if (PyList_GET_SIZE(self->pending) == 0)
		Py_CLEAR(self->pending);
	PyObject *object = NULL;
	if (PyTuple_CheckExact(item))
		object = Py_NewRef(PyTuple_GET_ITEM(item, 0));
	else
		PyErr_SetObject((PyObject *)Py_TYPE(item), item);
	Py_DECREF(item);
	return object;
}

static PyObject *get_object(RingCore *self, int64_t timeout_ns) {
	if (SHMRT_UNLIKELY(self->address == NULL))
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	if (SHMRT_UNLIKELY(self->pending != NULL))
		return take_pending(self);
	struct mail mail;
	uint64_t position;
	if (shmrt_py_ring_open_mail(self, &mail, 1) < 0)
		return NULL;
	PyObject *object = NULL;
	if (shmrt_py_ring_wait_for_mail(self, &mail, receive_get, timeout_ns, &position) == 0)
		object = shmrt_py_ring_decode_letter(self, &mail.letters[0], false, NULL);
	shmrt_py_ring_close_mail(self, &mail);
	return object;
}

PyObject *shmrt_py_ring_get(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	int64_t timeout_ns = SHMRT_FOREVER;
	if ((nargs > 0 || kwnames != NULL) && shmrt_py_ring_parse("get", NULL, args, nargs, kwnames, NULL, &timeout_ns) < 0)
		return NULL;
	return get_object(self, timeout_ns);
}

PyObject *shmrt_py_ring_get_nowait(RingCore *self, PyObject *nothing) {
	(void)nothing;
	return get_object(self, 0);
}

/* ---- many ---- */

/* Decodes what was taken. From the first message that raises on, everything is kept for the calls to come. */
static int deliver(RingCore *self, struct mail *mail, PyObject *list) {
	for (uint64_t i = 0; i < mail->count; i++) {
		PyObject *object = shmrt_py_ring_decode_letter(self, &mail->letters[i], false, NULL);
		int outcome;
		if (self->pending == NULL && object != NULL) {
			outcome = PyList_Append(list, object);
		} else {
			PyObject *item = object ? PyTuple_Pack(1, object) : shmrt_take_exception();
			if (self->pending == NULL)
				self->pending = PyList_New(0);
			outcome = item == NULL || self->pending == NULL ? -1 : PyList_Append(self->pending, item);
			Py_XDECREF(item);
		}
		Py_XDECREF(object);
		if (outcome < 0)
			return -1;
	}
	return 0;
}

static int get_batches(RingCore *self, uint64_t most, int64_t timeout_ns, PyObject *list) {
	struct mail mail;
	uint64_t position;
	while ((uint64_t)PyList_GET_SIZE(list) < most && self->pending == NULL) {
		if (shmrt_py_ring_open_mail(self, &mail, most - (uint64_t)PyList_GET_SIZE(list)) < 0)
			return -1;
		int outcome = 0;
		if (PyList_GET_SIZE(list) == 0)
			outcome = shmrt_py_ring_wait_for_mail(self, &mail, receive_get, timeout_ns, &position);
		else
			(void)receive_get(self, &mail, 0, &position); /* nothing, or whatever is wrong: the next call says it */
		if (outcome == 0)
			outcome = deliver(self, &mail, list);
		shmrt_py_ring_close_mail(self, &mail);
		if (outcome < 0)
			return -1;
		if (mail.count < mail.capacity)
			break;
	}
	return 0;
}

PyObject *shmrt_py_ring_get_many(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *most = NULL;
	int64_t timeout_ns;
	if (shmrt_py_ring_parse("get_many", "max_items", args, nargs, kwnames, &most, &timeout_ns) < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	Py_ssize_t count = PyBool_Check(most) ? 0 : PyNumber_AsSsize_t(most, NULL);
	if (count == -1 && PyErr_Occurred())
		return NULL;
	if (count < 1) {
		PyErr_Format(PyExc_ValueError, "max_items=%R must be at least 1", most);
		return NULL;
	}
	PyObject *list = PyList_New(0);
	if (list == NULL)
		return NULL;
	while (self->pending != NULL && PyList_GET_SIZE(list) < count) {
		if (PyList_GET_SIZE(list) > 0 && !PyTuple_CheckExact(PyList_GET_ITEM(self->pending, 0)))
			return list; /* the next call raises it */
		PyObject *object = take_pending(self);
		int outcome = object ? PyList_Append(list, object) : -1;
		Py_XDECREF(object);
		if (outcome < 0) {
			Py_DECREF(list);
			return NULL;
		}
	}
	if (PyList_GET_SIZE(list) > 0)
		timeout_ns = 0;
	if (get_batches(self, (uint64_t)count, timeout_ns, list) < 0) {
		Py_DECREF(list);
		return NULL;
	}
	if (PyList_GET_SIZE(list) == 0 && self->pending != NULL) {
		Py_DECREF(list);
		return take_pending(self); /* NULL: the first one raised */
	}
	return list;
}
