/* py_ring_put.c -- put and put_many of RingCore: objects in.
 *
 * An object is encoded before the ring is touched. A message whose payload does not fit its slot takes blocks of the arena,
 * and waits for them as long as the call may wait, but only while somebody else can free some: else it would wait in vain.
 * What was not sent in the end leaves nothing behind: its blocks are freed, its arrays are writable again.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

#include <errno.h>

/* ---- one object ---- */

static struct shmrt_encoder *borrow_encoder(RingCore *self) {
	if (!self->encoder_busy) {
		self->encoder_busy = true;
		return &self->encoder;
	}
	struct shmrt_encoder *encoder = PyMem_Calloc(1, sizeof(*encoder));
	if (encoder == NULL)
		PyErr_NoMemory();
	return encoder;
}

static void return_encoder(RingCore *self, struct shmrt_encoder *encoder) {
	shmrt_encoder_reset(encoder);
	if (encoder == &self->encoder) {
		self->encoder_busy = false;
		return;
	}
	shmrt_encoder_clear(encoder);
	PyMem_Free(encoder);
}

/* Turns the encoded object into a message; waits while the arena is short and somebody else can free some of it. */
static int finish(RingCore *self, struct shmrt_encoder *encoder, struct shmrt_message *message,
		  const struct deadline *deadline) {
	struct shmrt_shortage shortage = {0};
	for (int64_t pause = 50000;; pause = pause < 5000000 ? pause * 2 : 5000000) {
		int outcome = shmrt_message_finish(encoder, self->arena, self->ring.slot_bytes, message, &shortage);
		if (SHMRT_LIKELY(outcome == SHMRT_OK))
			return 0;
		if (outcome == SHMRT_TOO_LARGE) {
			shmrt_raise("MessageTooLarge", "a message of %llu bytes can never fit: the shared memory of the ring is "
						       "limited to %llu bytes", (unsigned long long)shortage.needed,
				    (unsigned long long)self->arena->arena.limit_bytes);
			return -1;
		}
		if (outcome != SHMRT_NO_SPACE) {
			if (!PyErr_Occurred())
				PyErr_SetFromErrno(PyExc_OSError);
			return -1;
		}
		if (!shmrt_py_blocks_are_used_by_others(self->arena)) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		int64_t left = shmrt_py_time_left(deadline);
		if (left <= 0 || self->ring.on_full == SHMRT_RING_RAISE) {
			shmrt_py_ring_raise(self, SHMRT_TIMEOUT, "memory");
			return -1;
		}
		/* relaxed: a hint that waiting is over */
		if (atomic_load_explicit(&self->ring.shared->closed, memory_order_relaxed)) {
			shmrt_py_ring_raise(self, SHMRT_CLOSED, "put");
			return -1;
		}
		if (shmrt_py_nap(pause < left ? pause : left) < 0)
			return -1;
	}
}

static void as_ring_message(const struct shmrt_message *message, struct shmrt_ring_message *out) {
	*out = (struct shmrt_ring_message){
		.inline_bytes = message->inline_bytes,
		.inline_size = message->inline_size,
		.flags = message->flags,
		.block_count = message->block_count,
		.blocks = message->blocks,
	};
}

/* Puts them all or says why not; -1: a signal handler raised. */
static int put_messages(RingCore *self, const struct shmrt_ring_message *messages, uint64_t count,
			const struct deadline *deadline, uint64_t *done) {
	*done = 0;
	int outcome = shmrt_ring_put(&self->ring, messages, count, 0, done);
	while (SHMRT_UNLIKELY(outcome == SHMRT_FULL || outcome == SHMRT_TIMEOUT || outcome == SHMRT_INTERRUPTED)) {
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return -1;
		int64_t left = shmrt_py_time_left(deadline);
		if (outcome != SHMRT_INTERRUPTED && (left <= 0 || self->ring.on_full == SHMRT_RING_RAISE))
			return outcome;
		uint64_t more = 0;
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_ring_put(&self->ring, messages + *done, count - *done, left, &more);
		Py_END_ALLOW_THREADS
		*done += more;
	}
	return outcome;
}

static PyObject *put_object(RingCore *self, PyObject *object, int64_t timeout_ns) {
	if (SHMRT_UNLIKELY(self->address == NULL))
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	struct shmrt_encoder *encoder = borrow_encoder(self);
	if (encoder == NULL)
		return NULL;
	PyObject *result = NULL;
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	struct shmrt_message message;
	if (shmrt_encode(encoder, object) == 0 && finish(self, encoder, &message, &deadline) == 0) {
		struct shmrt_ring_message out;
		uint64_t done;
		as_ring_message(&message, &out);
		int outcome = put_messages(self, &out, 1, &deadline, &done);
		shmrt_message_clear(&message, self->arena, done == 0);
		if (SHMRT_LIKELY(outcome == SHMRT_OK))
			result = Py_NewRef(Py_None);
		else if (!PyErr_Occurred())
			shmrt_py_ring_raise(self, outcome, "put");
	}
	if (SHMRT_UNLIKELY(result == NULL))
		shmrt_encoder_thaw(encoder);
	return_encoder(self, encoder);
	if (SHMRT_UNLIKELY(shmrt_py_overload_look((PyObject *)self, &self->ring) < 0))
		Py_CLEAR(result);
	return result;
}

PyObject *shmrt_py_ring_put(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	if (SHMRT_LIKELY(nargs == 1 && kwnames == NULL))
		return put_object(self, args[0], SHMRT_FOREVER);
	PyObject *object = NULL;
	int64_t timeout_ns;
	if (shmrt_py_ring_parse("put", "obj", args, nargs, kwnames, &object, &timeout_ns) < 0)
		return NULL;
	return put_object(self, object, timeout_ns);
}

PyObject *shmrt_py_ring_put_nowait(RingCore *self, PyObject *object) { return put_object(self, object, 0); }

/* ---- many ---- */

struct shmrt_py_outbox {
	struct shmrt_encoder encoders[SHMRT_PY_RING_BATCH];
	struct shmrt_message messages[SHMRT_PY_RING_BATCH];
	struct shmrt_ring_message out[SHMRT_PY_RING_BATCH];
	uint64_t carried; /* index of one that is encoded and goes first next time; 0: none */
};

#define OUTBOX_KEEPS 4096 /* bytes of each of its encoders */

void shmrt_py_ring_free_outbox(struct shmrt_py_outbox *box) {
	if (box == NULL)
		return;
	for (int i = 0; i < SHMRT_PY_RING_BATCH; i++)
		shmrt_encoder_clear(&box->encoders[i]);
	PyMem_Free(box);
}

/* The ring's own if no other thread has it; else a new one, or NULL with MemoryError. */
static struct shmrt_py_outbox *borrow_outbox(RingCore *self) {
	if (self->outbox == NULL || self->outbox_busy) {
		struct shmrt_py_outbox *box = PyMem_Calloc(1, sizeof(*box));
		if (box == NULL)
			PyErr_NoMemory();
		if (self->outbox != NULL || box == NULL)
			return box;
		self->outbox = box;
	}
	self->outbox_busy = true;
	return self->outbox;
}

static void return_outbox(RingCore *self, struct shmrt_py_outbox *box) {
	if (box != self->outbox) {
		shmrt_py_ring_free_outbox(box);
		return;
	}
	for (int i = 0; i < SHMRT_PY_RING_BATCH; i++) {
		struct shmrt_encoder *encoder = &box->encoders[i];
		if (encoder->size != 0 || encoder->buffer_count != 0 || encoder->capacity > OUTBOX_KEEPS)
			shmrt_encoder_clear(encoder);
	}
	box->carried = 0;
	self->outbox_busy = false;
}

static bool needs_blocks(const RingCore *self, const struct shmrt_encoder *encoder) {
	return encoder->buffer_count > 0 || encoder->size > self->ring.slot_bytes;
}

/* What put_many puts: a list or a tuple itself, which needs no iterator, or one. */
struct source {
	PyObject *objects; /* owned */
	Py_ssize_t next;
	bool is_list, is_tuple;
};

static int open_source(struct source *source, PyObject *objects) {
	*source = (struct source){.is_list = PyList_CheckExact(objects), .is_tuple = PyTuple_CheckExact(objects)};
	source->objects = source->is_list || source->is_tuple ? Py_NewRef(objects) : PyObject_GetIter(objects);
	if (source->objects != NULL)
		return 0;
	if (Py_TYPE(objects)->tp_iter == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
		PyErr_Clear();
		PyErr_Format(PyExc_TypeError, "objs must be an iterable of objects to put, not %R", objects);
	}
	return -1;
}

/* New reference; NULL at the end, or with an exception. A list may change meanwhile: user code runs while objects are encoded. */
static inline PyObject *next_of(struct source *source) {
	PyObject *objects = source->objects;
	if (SHMRT_LIKELY(source->is_list))
		return source->next < PyList_GET_SIZE(objects) ? Py_NewRef(PyList_GET_ITEM(objects, source->next++)) : NULL;
	if (source->is_tuple)
		return source->next < PyTuple_GET_SIZE(objects) ? Py_NewRef(PyTuple_GET_ITEM(objects, source->next++)) : NULL;
	return PyIter_Next(objects);
}

/* Finishes up to SHMRT_PY_RING_BATCH objects of the source; fewer with *stop at its end or at an error (then set). One
 * that needs blocks goes alone: waiting for memory must not hold up messages that others may wait for. */
static uint64_t fill_outbox(RingCore *self, struct shmrt_py_outbox *box, struct source *source, const struct deadline *deadline,
			    bool *stop) {
	uint64_t count = 0;
	while (count < SHMRT_PY_RING_BATCH) {
		struct shmrt_encoder *encoder = &box->encoders[count];
		if (count == 0 && box->carried != 0) {
			struct shmrt_encoder ready = box->encoders[box->carried];
			box->encoders[box->carried] = *encoder;
			*encoder = ready;
			box->carried = 0;
		} else {
			PyObject *object = next_of(source);
			int outcome = object ? shmrt_encode(encoder, object) : -1;
			Py_XDECREF(object);
			if (outcome < 0)
				break;
			if (SHMRT_LIKELY(!needs_blocks(self, encoder))) { /* as finish would */
				box->messages[count].blocks = NULL;
				box->out[count++] = (struct shmrt_ring_message){.inline_bytes = encoder->bytes, .flags = encoder->flags,
										.inline_size = (uint32_t)encoder->size};
				continue;
			}
			if (count > 0) {
				box->carried = count;
				return count;
			}
		}
		if (finish(self, encoder, &box->messages[count], deadline) < 0) {
			shmrt_encoder_thaw(encoder);
			shmrt_encoder_reset(encoder);
			break;
		}
		as_ring_message(&box->messages[count], &box->out[count]);
		if (box->messages[count++].block_count > 0)
			return count;
	}
	*stop = count < SHMRT_PY_RING_BATCH;
	return count;
}

static void empty_outbox(RingCore *self, struct shmrt_py_outbox *box, uint64_t done, uint64_t count) {
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	for (uint64_t i = 0; i < count; i++) {
		struct shmrt_encoder *encoder = &box->encoders[i];
		if (SHMRT_LIKELY(box->messages[i].blocks == NULL && encoder->buffer_count == 0 && encoder->frozen == NULL &&
				 encoder->capacity <= OUTBOX_KEEPS)) { /* nothing to give back */
			encoder->size = 0;
			encoder->flags = 0;
			continue;
		}
		shmrt_message_clear(&box->messages[i], self->arena, i >= done);
		if (i >= done)
			shmrt_encoder_thaw(encoder);
		shmrt_encoder_reset(encoder);
	}
	PyErr_Restore(type, value, traceback);
}

PyObject *shmrt_py_ring_put_many(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *objects = NULL;
	int64_t timeout_ns;
	if (shmrt_py_ring_parse("put_many", "objs", args, nargs, kwnames, &objects, &timeout_ns) < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	struct source source;
	if (open_source(&source, objects) < 0)
		return NULL;
	struct shmrt_py_outbox *box = borrow_outbox(self);
	if (box == NULL) {
		Py_DECREF(source.objects);
		return NULL;
	}
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	uint64_t total = 0;
	bool stop = false, failed = false;
	while (!stop && !failed) {
		PyObject *type = NULL, *value = NULL, *traceback = NULL;
		uint64_t done = 0, count = fill_outbox(self, box, &source, &deadline, &stop);
		PyErr_Fetch(&type, &value, &traceback); /* an object that cannot be sent: those before it still go */
		int outcome = count == 0 ? SHMRT_OK : put_messages(self, box->out, count, &deadline, &done);
		empty_outbox(self, box, done, count);
		total += done;
		if (type != NULL && !PyErr_Occurred() && outcome == SHMRT_OK) {
			PyErr_Restore(type, value, traceback);
			failed = true;
			break;
		}
		Py_XDECREF(type);
		Py_XDECREF(value);
		Py_XDECREF(traceback);
		if (outcome == SHMRT_OK)
			continue;
		/* Out of time with some of them in: the number says which, and the rest counts as one refusal. */
		failed = PyErr_Occurred() || total == 0 || (outcome != SHMRT_FULL && outcome != SHMRT_TIMEOUT);
		if (failed && !PyErr_Occurred())
			shmrt_py_ring_raise(self, outcome, "put");
		else if (!failed)
			shmrt_ring_count(&self->ring, &self->ring.shared->refused, 1);
		stop = true;
	}
	failed = shmrt_py_overload_look((PyObject *)self, &self->ring) < 0 || failed;
	return_outbox(self, box);
	Py_DECREF(source.objects);
	return failed ? NULL : PyLong_FromUnsignedLongLong(total);
}
