/* py_ring_messages.c -- put and get of RingCore: objects in, objects out.
 *
 * Every call first tries with the GIL held, since a ring that has room or a message answers in less time than
 * giving the GIL away takes; only waiting releases it. User code runs before the ring is touched (pickling)
 * or after (unpickling), never under its mutex: a message is copied out of its slot first.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring.h"

#include <errno.h>
#include <math.h>
#include <time.h>

#define BATCH 32
#define INBOX_MAX (UINT64_C(1) << 20) /* bytes that a get_many copies out at once */
#define REFERENCE_SIZE sizeof(struct shmrt_block_reference)

/* ---- time ------------------------------------------------------------------------------------------------- */

int shmrt_py_timeout(PyObject *timeout, int64_t *timeout_ns) {
	if (timeout == NULL || timeout == Py_None) {
		*timeout_ns = SHMRT_FOREVER;
		return 0;
	}
	if (PyBool_Check(timeout) || !(PyFloat_Check(timeout) || PyIndex_Check(timeout))) {
		PyErr_Format(PyExc_TypeError, "timeout must be seconds or None, not %R", timeout);
		return -1;
	}
	double seconds = PyFloat_AsDouble(timeout);
	if (seconds == -1.0 && PyErr_Occurred())
		return -1;
	if (isnan(seconds) || seconds < 0) {
		PyErr_Format(PyExc_ValueError, "timeout=%R must be at least 0 seconds, or None", timeout);
		return -1;
	}
	*timeout_ns = seconds > 9e9 ? SHMRT_FOREVER : (int64_t)(seconds * 1e9);
	return 0;
}

struct deadline {
	int64_t timeout_ns;
	uint64_t until_ns;
};

static struct deadline deadline_after(int64_t timeout_ns) {
	struct deadline deadline = {timeout_ns, 0};
	if (timeout_ns > 0 && timeout_ns != SHMRT_FOREVER)
		deadline.until_ns = shmrt_now_ns() + (uint64_t)timeout_ns;
	return deadline;
}

static int64_t time_left(const struct deadline *deadline) {
	if (deadline->until_ns == 0)
		return deadline->timeout_ns;
	uint64_t now = shmrt_now_ns();
	return now >= deadline->until_ns ? 0 : (int64_t)(deadline->until_ns - now);
}

/* ---- putting ------------------------------------------------------------------------------------------------- */

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

/* Is a block in use that somebody may still free: on its way, or held by another process? */
static bool others_use_blocks(RingCore *self) {
	struct shmrt_arena *arena = &self->arena->arena;
	/* acquire: the words below it are reserved (edge A4 of the arena) */
	uint64_t high = atomic_load_explicit(&arena->shared->granules_high, memory_order_acquire);
	if (high > arena->granule_count)
		high = arena->granule_count;
	for (uint64_t index = 0; index < high * SHMRT_BLOCKS_PER_GRANULE; index++) {
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(arena, index, &state, &generation, &owner);
		if (state != SHMRT_BLOCK_FREE && owner != self->arena->owner)
			return true;
	}
	return false;
}

/* Sleeps without the GIL; -1 if a signal handler raised. */
static int nap(int64_t nanoseconds) {
	struct timespec time = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
	Py_BEGIN_ALLOW_THREADS
	nanosleep(&time, NULL);
	Py_END_ALLOW_THREADS
	return PyErr_CheckSignals();
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
		if (!others_use_blocks(self)) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		int64_t left = time_left(deadline);
		if (left <= 0 || self->ring.on_full == SHMRT_RING_RAISE) {
			shmrt_py_ring_raise(self, SHMRT_TIMEOUT, "memory");
			return -1;
		}
		/* relaxed: a hint that waiting is over */
		if (atomic_load_explicit(&self->ring.shared->closed, memory_order_relaxed)) {
			shmrt_py_ring_raise(self, SHMRT_CLOSED, "put");
			return -1;
		}
		if (nap(pause < left ? pause : left) < 0)
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
		int64_t left = time_left(deadline);
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
	struct deadline deadline = deadline_after(timeout_ns);
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
	return result;
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

/* (first, timeout=None) or (timeout=None), positional or by name. */
static int parse(const char *function, const char *first, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
		 PyObject **value, int64_t *timeout_ns) {
	PyObject *timeout = NULL;
	Py_ssize_t position = 0, most = first ? 2 : 1;
	if (SHMRT_UNLIKELY(nargs > most)) {
		PyErr_Format(PyExc_TypeError, "%s() takes at most %zd arguments, not %zd", function, most, nargs);
		return -1;
	}
	if (first != NULL && position < nargs)
		*value = args[position++];
	if (position < nargs)
		timeout = args[position];
	for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
		PyObject *name = PyTuple_GET_ITEM(kwnames, i);
		if (timeout == NULL && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
			timeout = args[nargs + i];
		} else if (first != NULL && *value == NULL && PyUnicode_CompareWithASCIIString(name, first) == 0) {
			*value = args[nargs + i];
		} else {
			PyErr_Format(PyExc_TypeError, "%s() got an unexpected argument %R", function, name);
			return -1;
		}
	}
	if (SHMRT_UNLIKELY(first != NULL && *value == NULL)) {
		PyErr_Format(PyExc_TypeError, "%s() needs the argument '%s'", function, first);
		return -1;
	}
	return shmrt_py_timeout(timeout, timeout_ns);
}

static PyObject *ring_put(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	if (SHMRT_LIKELY(nargs == 1 && kwnames == NULL))
		return put_object(self, args[0], SHMRT_FOREVER);
	PyObject *object = NULL;
	int64_t timeout_ns;
	if (parse("put", "obj", args, nargs, kwnames, &object, &timeout_ns) < 0)
		return NULL;
	return put_object(self, object, timeout_ns);
}

static PyObject *ring_put_nowait(RingCore *self, PyObject *object) { return put_object(self, object, 0); }

/* ---- putting many ------------------------------------------------------------------------------------------------- */

struct outbox {
	struct shmrt_encoder encoders[BATCH];
	struct shmrt_message messages[BATCH];
	struct shmrt_ring_message out[BATCH];
	uint64_t carried; /* index of one that is encoded and goes first next time; 0: none */
};

static bool needs_blocks(const RingCore *self, const struct shmrt_encoder *encoder) {
	return encoder->buffer_count > 0 || encoder->size > self->ring.slot_bytes;
}

/* Finishes up to BATCH objects of the iterator; fewer with *stop at its end or at an error (then set). One that
 * needs blocks goes alone: waiting for memory must not hold up messages that others may wait for. */
static uint64_t fill_outbox(RingCore *self, struct outbox *box, PyObject *iterator, const struct deadline *deadline,
			    bool *stop) {
	uint64_t count = 0;
	while (count < BATCH) {
		struct shmrt_encoder *encoder = &box->encoders[count];
		if (count == 0 && box->carried != 0) {
			struct shmrt_encoder ready = box->encoders[box->carried];
			box->encoders[box->carried] = *encoder;
			*encoder = ready;
			box->carried = 0;
		} else {
			PyObject *object = PyIter_Next(iterator);
			int outcome = object ? shmrt_encode(encoder, object) : -1;
			Py_XDECREF(object);
			if (outcome < 0)
				break;
			if (count > 0 && needs_blocks(self, encoder)) {
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
	*stop = count < BATCH;
	return count;
}

static void empty_outbox(RingCore *self, struct outbox *box, uint64_t done, uint64_t count) {
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	for (uint64_t i = 0; i < count; i++) {
		shmrt_message_clear(&box->messages[i], self->arena, i >= done);
		if (i >= done)
			shmrt_encoder_thaw(&box->encoders[i]);
		shmrt_encoder_reset(&box->encoders[i]);
	}
	PyErr_Restore(type, value, traceback);
}

static PyObject *ring_put_many(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *objects = NULL;
	int64_t timeout_ns;
	if (parse("put_many", "objs", args, nargs, kwnames, &objects, &timeout_ns) < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	PyObject *iterator = PyObject_GetIter(objects);
	if (iterator == NULL)
		return NULL;
	struct outbox *box = PyMem_Calloc(1, sizeof(*box));
	if (box == NULL) {
		Py_DECREF(iterator);
		return PyErr_NoMemory();
	}
	struct deadline deadline = deadline_after(timeout_ns);
	uint64_t total = 0;
	bool stop = false, failed = false;
	while (!stop && !failed) {
		PyObject *type = NULL, *value = NULL, *traceback = NULL;
		uint64_t done = 0, count = fill_outbox(self, box, iterator, &deadline, &stop);
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
		/* Out of time with some of them in: the number says which. */
		failed = PyErr_Occurred() || total == 0 || (outcome != SHMRT_FULL && outcome != SHMRT_TIMEOUT);
		if (failed && !PyErr_Occurred())
			shmrt_py_ring_raise(self, outcome, "put");
		stop = true;
	}
	for (int i = 0; i < BATCH; i++)
		shmrt_encoder_clear(&box->encoders[i]);
	PyMem_Free(box);
	Py_DECREF(iterator);
	return failed ? NULL : PyLong_FromUnsignedLongLong(total);
}

/* ---- getting ------------------------------------------------------------------------------------------------------- */

struct letter { /* a message copied out of its slot: references, then inline bytes */
	uint8_t *bytes;
	uint32_t inline_size;
	uint16_t flags, block_count;
	bool damaged;
};
struct mail {
	struct letter letters[BATCH];
	uint8_t *bytes;
	uint64_t slot_bytes, count, capacity;
};

/* Under the ring's mutex: copies only. */
static void take_letter(void *context, const struct shmrt_ring_message *message) {
	struct mail *mail = context;
	if (mail->count == mail->capacity)
		return;
	struct letter *letter = &mail->letters[mail->count];
	uint64_t references = message->block_count * REFERENCE_SIZE;
	*letter = (struct letter){mail->bytes + mail->count++ * mail->slot_bytes, message->inline_size, message->flags,
				  message->block_count, references + message->inline_size > mail->slot_bytes};
	if (letter->damaged)
		return;
	if (references > 0)
		memcpy(letter->bytes, message->blocks, references);
	memcpy(letter->bytes + references, message->inline_bytes, message->inline_size);
}

/* A Block per reference; `lent`: the blocks stay the ring's. 0, or -1 with everything given back. */
static int open_blocks(RingCore *self, const struct letter *letter, bool lent, PyObject **blocks) {
	uint16_t made = 0;
	for (uint16_t i = 0; i < letter->block_count; i++) {
		struct shmrt_block_reference reference;
		memcpy(&reference, letter->bytes + i * REFERENCE_SIZE, REFERENCE_SIZE);
		bool read_only = lent || (reference.flags & 1) || (letter->flags & SHMRT_MESSAGE_READ_ONLY);
		blocks[i] = PyErr_Occurred() ? NULL
					     : shmrt_py_block_new(self->arena, &reference, SHMRT_BLOCK_HELD,
								  self->arena->owner, read_only);
		if (blocks[i] != NULL) {
			if (lent)
				shmrt_py_block_disown(blocks[i]);
			made++;
		} else if (!lent) { /* go on: the blocks after a damaged one are ours to free, too */
			(void)!shmrt_arena_free(&self->arena->arena, reference.block, reference.generation, SHMRT_BLOCK_HELD,
						self->arena->owner);
		}
	}
	if (made == letter->block_count)
		return 0;
	for (uint16_t i = 0; i < letter->block_count; i++)
		Py_CLEAR(blocks[i]);
	return -1;
}

/* This process holds more of the arena than its part: what it takes is copied out, so that puts go on. */
static int copy_out_if_greedy(RingCore *self, uint16_t count, PyObject **blocks) {
	for (uint16_t i = 0; i < count && self->arena->held_bytes > self->arena->arena.limit_bytes / 4; i++) {
		PyObject *copy = PyByteArray_FromObject(blocks[i]);
		if (copy == NULL)
			return -1;
		if (((ShmrtBlock *)blocks[i])->read_only) {
			PyObject *view = PyMemoryView_FromObject(copy);
			Py_SETREF(copy, view ? PyObject_CallMethod(view, "toreadonly", NULL) : NULL);
			Py_XDECREF(view);
			if (copy == NULL)
				return -1;
		}
		Py_SETREF(blocks[i], copy);
	}
	return 0;
}

static PyObject *decode_letter(RingCore *self, const struct letter *letter, bool lent, PyObject **kept_blocks) {
	if (SHMRT_UNLIKELY(letter->damaged))
		return shmrt_raise("SegmentError", "corrupt message: it is larger than its slot");
	const uint8_t *bytes = letter->bytes + letter->block_count * REFERENCE_SIZE;
	if (SHMRT_LIKELY(letter->block_count == 0))
		return shmrt_decode_message(bytes, letter->inline_size, letter->flags, NULL, 0, self->allow_pickle);
	PyObject **blocks = PyMem_Calloc(letter->block_count, sizeof(*blocks)), *object = NULL;
	if (blocks == NULL)
		return PyErr_NoMemory();
	if (open_blocks(self, letter, lent, blocks) == 0) {
		if (lent || copy_out_if_greedy(self, letter->block_count, blocks) == 0)
			object = shmrt_decode_message(bytes, letter->inline_size, letter->flags, blocks, letter->block_count,
						      self->allow_pickle);
		if (object != NULL && kept_blocks != NULL && (*kept_blocks = PyTuple_New(letter->block_count)) == NULL)
			Py_CLEAR(object);
	}
	for (uint16_t i = 0; i < letter->block_count; i++) {
		if (object != NULL && kept_blocks != NULL)
			PyTuple_SET_ITEM(*kept_blocks, i, blocks[i]);
		else
			Py_XDECREF(blocks[i]);
	}
	PyMem_Free(blocks);
	return object;
}

/* Memory for up to `count` messages. The ring's own if it is free and enough. */
static int open_mail(RingCore *self, struct mail *mail, uint64_t count) {
	mail->slot_bytes = self->ring.slot_bytes;
	mail->count = 0;
	mail->capacity = INBOX_MAX / mail->slot_bytes;
	mail->capacity = mail->capacity < 1 ? 1 : mail->capacity > BATCH ? BATCH : mail->capacity;
	if (mail->capacity > count)
		mail->capacity = count;
	if (mail->capacity == 1 && !self->inbox_busy) {
		if (self->inbox == NULL && (self->inbox = PyMem_Malloc(mail->slot_bytes)) == NULL)
			goto no_memory;
		self->inbox_busy = true;
		mail->bytes = self->inbox;
		return 0;
	}
	mail->bytes = PyMem_Malloc(mail->capacity * mail->slot_bytes);
	if (mail->bytes != NULL)
		return 0;
no_memory:
	PyErr_NoMemory();
	return -1;
}

static void close_mail(RingCore *self, struct mail *mail) {
	if (mail->bytes == self->inbox)
		self->inbox_busy = false;
	else
		PyMem_Free(mail->bytes);
}

typedef int (*receive)(RingCore *, struct mail *, int64_t timeout_ns, uint64_t *position);

static int receive_get(RingCore *self, struct mail *mail, int64_t timeout_ns, uint64_t *position) {
	(void)position;
	uint64_t done = 0;
	return shmrt_ring_get(&self->ring, mail->capacity, timeout_ns, take_letter, mail, &done);
}

static int receive_lease(RingCore *self, struct mail *mail, int64_t timeout_ns, uint64_t *position) {
	return shmrt_ring_lease(&self->ring, timeout_ns, take_letter, mail, position);
}

/* OK: mail->count letters, at least one. -1 with an exception. */
static int wait_for_mail(RingCore *self, struct mail *mail, receive receive, int64_t timeout_ns, uint64_t *position) {
	int outcome = receive(self, mail, 0, position);
	if (SHMRT_LIKELY(outcome == SHMRT_OK))
		return 0;
	struct deadline deadline = deadline_after(timeout_ns);
	for (;;) {
		if (mail->count > 0) /* taken before it was interrupted */
			return 0;
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return -1;
		int64_t left = time_left(&deadline);
		if (outcome != SHMRT_INTERRUPTED && ((outcome != SHMRT_EMPTY && outcome != SHMRT_TIMEOUT) || left <= 0)) {
			shmrt_py_ring_raise(self, outcome, "get");
			return -1;
		}
		Py_BEGIN_ALLOW_THREADS
		outcome = receive(self, mail, left, position);
		Py_END_ALLOW_THREADS
		if (outcome == SHMRT_OK)
			return 0;
	}
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
	if (open_mail(self, &mail, 1) < 0)
		return NULL;
	PyObject *object = NULL;
	if (wait_for_mail(self, &mail, receive_get, timeout_ns, &position) == 0)
		object = decode_letter(self, &mail.letters[0], false, NULL);
	close_mail(self, &mail);
	return object;
}

static PyObject *ring_get(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	int64_t timeout_ns = SHMRT_FOREVER;
	if ((nargs > 0 || kwnames != NULL) && parse("get", NULL, args, nargs, kwnames, NULL, &timeout_ns) < 0)
		return NULL;
	return get_object(self, timeout_ns);
}

static PyObject *ring_get_nowait(RingCore *self, PyObject *nothing) {
	(void)nothing;
	return get_object(self, 0);
}

/* ---- getting many ---------------------------------------------------------------------------------------------------- */

/* The exception that is set, as an object. */
static PyObject *catch(void) {
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	if (traceback != NULL)
		PyException_SetTraceback(value, traceback);
	Py_XDECREF(type);
	Py_XDECREF(traceback);
	return value;
}

/* Decodes what was taken. From the first message that raises on, everything is kept for the calls to come. */
static int deliver(RingCore *self, struct mail *mail, PyObject *list) {
	for (uint64_t i = 0; i < mail->count; i++) {
		PyObject *object = decode_letter(self, &mail->letters[i], false, NULL);
		int outcome;
		if (self->pending == NULL && object != NULL) {
			outcome = PyList_Append(list, object);
		} else {
			PyObject *item = object ? PyTuple_Pack(1, object) : catch();
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
		if (open_mail(self, &mail, most - (uint64_t)PyList_GET_SIZE(list)) < 0)
			return -1;
		int outcome = 0;
		if (PyList_GET_SIZE(list) == 0)
			outcome = wait_for_mail(self, &mail, receive_get, timeout_ns, &position);
		else
			(void)receive_get(self, &mail, 0, &position); /* nothing, or whatever is wrong: the next call says it */
		if (outcome == 0)
			outcome = deliver(self, &mail, list);
		close_mail(self, &mail);
		if (outcome < 0)
			return -1;
		if (mail.count < mail.capacity)
			break;
	}
	return 0;
}

static PyObject *ring_get_many(RingCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	PyObject *most = NULL;
	int64_t timeout_ns;
	if (parse("get_many", "max_items", args, nargs, kwnames, &most, &timeout_ns) < 0)
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

/* ---- leases ---------------------------------------------------------------------------------------------------------- */

/* lease_take(timeout) -> (object, position, blocks): for Ring.lease. */
static PyObject *ring_lease_take(RingCore *self, PyObject *timeout) {
	int64_t timeout_ns;
	if (shmrt_py_timeout(timeout, &timeout_ns) < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	struct mail mail;
	uint64_t position = 0;
	if (open_mail(self, &mail, 1) < 0)
		return NULL;
	PyObject *object = NULL, *blocks = NULL, *answer = NULL;
	if (wait_for_mail(self, &mail, receive_lease, timeout_ns, &position) == 0) {
		object = decode_letter(self, &mail.letters[0], true, &blocks);
		if (object != NULL && blocks == NULL)
			blocks = PyTuple_New(0);
		if (object != NULL && blocks != NULL)
			answer = Py_BuildValue("(OKO)", object, (unsigned long long)position, blocks);
		if (answer == NULL) { /* a message that cannot be read would come back for ever */
			PyObject *type, *value, *traceback;
			PyErr_Fetch(&type, &value, &traceback);
			while (shmrt_ring_release(&self->ring, position) == SHMRT_INTERRUPTED)
				continue;
			PyErr_Restore(type, value, traceback);
		}
	}
	Py_XDECREF(object);
	Py_XDECREF(blocks);
	close_mail(self, &mail);
	return answer;
}

/* A view lives on behind the lease if somebody refers to its Block beside our tuple. */
static bool any_in_use(PyObject *blocks) {
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(blocks); i++)
		if (Py_REFCNT(PyTuple_GET_ITEM(blocks, i)) > 1)
			return true;
	return false;
}

/* lease_end(position, blocks, done): done, or given back to the ring. Views that are still alive stay valid. */
static PyObject *ring_lease_end(RingCore *self, PyObject *args) {
	unsigned long long position;
	PyObject *blocks;
	int done;
	if (!PyArg_ParseTuple(args, "KO!p:lease_end", &position, &PyTuple_Type, &blocks, &done))
		return NULL;
	bool in_use = any_in_use(blocks);
	int outcome;
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(blocks); i++) {
		PyObject *item = PyTuple_GET_ITEM(blocks, i);
		if (Py_TYPE(item) != shmrt_block_type) {
			PyErr_SetString(PyExc_TypeError, "lease_end() needs what lease_take() gave");
			return NULL;
		}
		ShmrtBlock *block = (ShmrtBlock *)item;
		/* Given back while we look at it: as a sender that looks on. */
		if (!done && in_use && block->owner == shmrt_owner_self() &&
		    shmrt_arena_share(&self->arena->arena, block->index, block->generation, block->owner)) {
			block->shared = true;
			block->disowned = false;
		}
	}
	do {
		if (!done)
			outcome = shmrt_ring_give_back(&self->ring, position);
		else if (in_use)
			outcome = shmrt_ring_release_keep(&self->ring, position);
		else
			outcome = shmrt_ring_release(&self->ring, position);
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return NULL;
	} while (outcome == SHMRT_INTERRUPTED);
	if (outcome != SHMRT_OK)
		return shmrt_py_ring_raise(self, outcome, "lease");
	for (Py_ssize_t i = 0; done && in_use && i < PyTuple_GET_SIZE(blocks); i++)
		((ShmrtBlock *)PyTuple_GET_ITEM(blocks, i))->disowned = false;
	Py_RETURN_NONE;
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL | METH_KEYWORDS

PyMethodDef shmrt_py_ring_messages[] = {
	{"put", FAST(ring_put), "put(obj, timeout=None): returns when it is in"},
	{"put_nowait", (PyCFunction)ring_put_nowait, METH_O, "put(obj, timeout=0)"},
	{"put_many", FAST(ring_put_many), "put_many(objs, timeout=None) -> how many are in"},
	{"get", FAST(ring_get), "get(timeout=None) -> the oldest object"},
	{"get_nowait", (PyCFunction)ring_get_nowait, METH_NOARGS, "get(timeout=0)"},
	{"get_many", FAST(ring_get_many), "get_many(max_items, timeout=None) -> list; waits for the first one only"},
	{"_lease_take", (PyCFunction)ring_lease_take, METH_O, "for Ring.lease"},
	{"_lease_end", (PyCFunction)ring_lease_end, METH_VARARGS, "for Ring.lease"},
	{0},
};
