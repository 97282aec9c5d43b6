/* py_ring_get.c -- get and get_many of RingCore: objects out.
 *
 * A message stays in the ring until a call takes it that returns its object or raises for it. So a get_many takes a plain run,
 * whose decoding fails only for want of memory or for damage, and leases each message behind it that may fail: a pickle,
 * blocks, an array (ring.h says who may die where). What it could decode is released and returned. The first one that
 * it could not goes back, with all behind it still there, and is what the next get raises for, in whatever process.
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

/* Raises what an earlier get_many could not; always NULL. */
static PyObject *raise_pending(RingCore *self) {
	PyObject *error = self->pending;
	self->pending = NULL;
	PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_DECREF(error);
	return NULL;
}

static PyObject *get_object(RingCore *self, int64_t timeout_ns) {
	if (SHMRT_UNLIKELY(self->address == NULL))
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	if (SHMRT_UNLIKELY(self->pending != NULL))
		return raise_pending(self);
	struct mail mail;
	uint64_t position;
	if (shmrt_py_ring_open_mail(self, &mail, 1) < 0)
		return NULL;
	PyObject *object = NULL;
	if (shmrt_py_ring_wait_for_mail(self, &mail, receive_get, timeout_ns, &position) == 0)
		object = shmrt_py_ring_decode_letter(self, &mail.letters[0], BLOCKS_OURS, NULL);
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

static int receive_first(RingCore *self, struct mail *mail, int64_t timeout_ns, uint64_t *fragile) {
	uint64_t done = 0;
	bool stopped;
	int outcome = shmrt_ring_get_run(&self->ring, true, mail->capacity, timeout_ns, shmrt_py_ring_take_letter, mail, &done,
					 &stopped);
	*fragile = stopped;
	return outcome;
}

/* The exception that is set becomes the next call's; an earlier one wins. */
static void postpone(RingCore *self) {
	PyObject *error = shmrt_take_exception();
	if (self->pending == NULL)
		self->pending = error;
	else
		Py_XDECREF(error);
}

/* Behind a damaged message, which is gone; of all else that is wrong the next call hears by itself. */
static void postpone_damage(RingCore *self, int outcome) {
	if (outcome != SHMRT_CORRUPT)
		return;
	shmrt_py_ring_raise(self, outcome, "get");
	postpone(self);
}

/* Whatever of a plain run is there: maybe nothing. */
static void receive_more(RingCore *self, struct mail *mail, uint64_t *fragile) {
	uint64_t done = 0;
	bool stopped;
	int outcome = shmrt_ring_get_run(&self->ring, false, mail->capacity, 0, shmrt_py_ring_take_letter, mail, &done, &stopped);
	postpone_damage(self, outcome);
	*fragile = stopped;
}

/* Steals `object`. -1 with an exception. */
static inline int append(PyObject *list, PyObject *object) {
	Py_ssize_t size = PyList_GET_SIZE(list);
	if (SHMRT_LIKELY(size < ((PyListObject *)list)->allocated)) { /* room that with_room has made */
		PyList_SET_ITEM(list, size, object);
		Py_SET_SIZE(list, size + 1);
		return 0;
	}
	int outcome = PyList_Append(list, object);
	Py_DECREF(object);
	return outcome;
}

/* Decodes what was taken. 0, or -1 with an exception: nothing is to be returned. */
static int deliver(RingCore *self, struct mail *mail, PyObject *list) {
	for (uint64_t i = 0; i < mail->count; i++) {
		PyObject *object = shmrt_py_ring_decode_letter(self, &mail->letters[i], BLOCKS_OURS, NULL);
		if (SHMRT_LIKELY(object != NULL && append(list, object) == 0))
			continue;
		if (mail->count == 1 && PyList_GET_SIZE(list) == 0)
			return -1;
		postpone(self); /* damage or no memory: that one is gone, and those behind it are returned */
	}
	return 0;
}

/* 1: one more object is in the list. 0: there is none, or its decoding failed and it went back into the ring. */
static int deliver_loan(RingCore *self, struct mail *mail, PyObject *list) {
	uint64_t position;
	int outcome = shmrt_ring_lease(&self->ring, 0, shmrt_py_ring_take_letter, mail, &position);
	if (outcome != SHMRT_OK) {
		postpone_damage(self, outcome);
		return 0;
	}
	PyObject *blocks = NULL;
	PyObject *object = shmrt_py_ring_decode_letter(self, &mail->letters[0], BLOCKS_SOON, &blocks);
	outcome = object ? PyList_Append(list, object) : -1;
	Py_XDECREF(object);
	if (outcome == 0) {
		do
			outcome = shmrt_ring_release_keep(&self->ring, position);
		while (outcome == SHMRT_INTERRUPTED);
		for (Py_ssize_t i = 0; outcome == SHMRT_OK && blocks != NULL && i < PyTuple_GET_SIZE(blocks); i++)
			((ShmrtBlock *)PyTuple_GET_ITEM(blocks, i))->disowned = false;
		Py_XDECREF(blocks);
		if (outcome == SHMRT_OK)
			return 1;
		/* Its blocks are not ours, so neither is the object. */
		(void)!PyList_SetSlice(list, PyList_GET_SIZE(list) - 1, PyList_GET_SIZE(list), NULL);
		shmrt_py_ring_raise(self, outcome, "lease");
		postpone(self);
		return 0;
	}
	if (PyErr_ExceptionMatches(PyExc_Exception))
		PyErr_Clear(); /* the message is there to raise it again */
	else
		postpone(self); /* a KeyboardInterrupt is not the message's */
	Py_XDECREF(blocks);
	do
		outcome = shmrt_ring_give_back(&self->ring, position);
	while (outcome == SHMRT_INTERRUPTED);
	return 0;
}

/* An empty list, in whose place comes one with room for as many, if there is memory for it: no growing then. */
static PyObject *with_room(PyObject *list, uint64_t count) {
	PyObject *roomy = PyList_New((Py_ssize_t)count);
	if (roomy == NULL) {
		PyErr_Clear();
		return list;
	}
	Py_SET_SIZE(roomy, 0);
	Py_DECREF(list);
	return roomy;
}

static int get_batches(RingCore *self, uint64_t most, int64_t timeout_ns, PyObject **result) {
	PyObject *list = *result;
	struct mail mail;
	bool ended = false;
	while ((uint64_t)PyList_GET_SIZE(list) < most && !ended && self->pending == NULL) {
		uint64_t fragile = 0;
		if (shmrt_py_ring_open_mail(self, &mail, most - (uint64_t)PyList_GET_SIZE(list)) < 0)
			return -1;
		int outcome = 0;
		if (PyList_GET_SIZE(list) == 0)
			outcome = shmrt_py_ring_wait_for_mail(self, &mail, receive_first, timeout_ns, &fragile);
		else
			receive_more(self, &mail, &fragile);
		if (outcome == 0 && PyList_GET_SIZE(list) == 0 && mail.count > 1)
			list = *result = with_room(list, mail.count);
		if (outcome == 0)
			outcome = deliver(self, &mail, list);
		ended = mail.count < mail.capacity && !fragile;
		while (outcome == 0 && fragile && (uint64_t)PyList_GET_SIZE(list) < most && self->pending == NULL) {
			mail.count = mail.used = 0;
			if (deliver_loan(self, &mail, list) == 0)
				ended = true;
			if (ended || !shmrt_py_ring_is_fragile(&mail.letters[0]))
				break;
		}
		shmrt_py_ring_close_mail(self, &mail);
		if (outcome < 0)
			return -1;
	}
	return 0;
}

/* At least 1, and no more than a list may hold; -1 with an exception. */
static Py_ssize_t parse_max_items(PyObject *most) {
	if (PyBool_Check(most) || !PyIndex_Check(most)) {
		PyErr_Format(PyExc_TypeError, "max_items must be a whole number of at least 1, not %R", most);
		return -1;
	}
	Py_ssize_t count = PyNumber_AsSsize_t(most, NULL);
	if (count == -1 && PyErr_Occurred())
		return -1;
	if (count < 1) {
		PyErr_Format(PyExc_ValueError, "max_items=%R must be at least 1", most);
		return -1;
	}
	return count;
}

PyObject *shmrt_py_ring_get_many(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *most = NULL;
	int64_t timeout_ns;
	if (shmrt_py_ring_parse("get_many", "max_items", args, nargs, kwnames, &most, &timeout_ns) < 0)
		return NULL;
	Py_ssize_t count = parse_max_items(most);
	if (count < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	if (SHMRT_UNLIKELY(self->pending != NULL))
		return raise_pending(self);
	PyObject *list = PyList_New(0);
	if (list == NULL)
		return NULL;
	if (get_batches(self, (uint64_t)count, timeout_ns, &list) < 0) {
		if (PyList_GET_SIZE(list) == 0) {
			Py_DECREF(list);
			return NULL;
		}
		postpone(self);
	}
	if (PyList_GET_SIZE(list) == 0 && self->pending != NULL) {
		Py_DECREF(list);
		return raise_pending(self);
	}
	return list;
}
