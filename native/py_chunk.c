/* py_chunk.c -- many items of a map as one task: on its way out, and its outcomes on their way back.
 *
 * PoolCore.submit_chunk encodes as many of the items as travel well together; the chunk's future ends with a list of one
 * outcome for each, in order, and the running time. An outcome is the value itself, or a Failure around the exception.
 * Nothing of an item that needs blocks, or that cannot be pickled, is in a chunk: the caller submits it by itself.
 */
#include "py_chunk.h"

#include <structmember.h>

#include "py_turn.h"

#define BYTES_MAX 65536 /* encoded items of one chunk */

/* ---- Failure ---- */

typedef struct {
	PyObject_HEAD
	PyObject *exception;
} Failure;

static PyTypeObject *failure_type;

/* Steals the exception. */
static PyObject *failure_new(PyObject *exception) {
	Failure *self = exception ? PyObject_New(Failure, failure_type) : NULL;
	if (self)
		self->exception = exception;
	else
		Py_XDECREF(exception);
	return (PyObject *)self;
}

static int failure_init(Failure *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"exception", NULL};
	PyObject *exception;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Failure", names, &exception))
		return -1;
	Py_XSETREF(self->exception, Py_NewRef(exception));
	return 0;
}

static void failure_dealloc(Failure *self) {
	PyTypeObject *type = Py_TYPE(self);
	Py_XDECREF(self->exception);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

/* ---- Ready: an iterator over what is there ---- */

typedef struct {
	PyObject_HEAD
	PyObject *ready; /* list of outcomes, or NULL */
	Py_ssize_t position;
} Ready;

static PyObject *str_more;

static int ready_traverse(Ready *self, visitproc visit, void *arg) {
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->ready);
	return 0;
}

static int ready_clear(Ready *self) {
	Py_CLEAR(self->ready);
	return 0;
}

static void ready_dealloc(Ready *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	ready_clear(self);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

/* What _more() found goes behind what is left: another thread may have asked, too. */
static int ready_add(Ready *self, PyObject *more) {
	if (!PyList_Check(more)) {
		PyErr_Format(PyExc_TypeError, "_more() returns a list, not %R", more);
		return -1;
	}
	if (self->ready && self->position < PyList_GET_SIZE(self->ready))
		return PyList_SetSlice(self->ready, PyList_GET_SIZE(self->ready), PyList_GET_SIZE(self->ready), more);
	self->position = 0;
	Py_XSETREF(self->ready, Py_NewRef(more));
	return 0;
}

static PyObject *ready_next(Ready *self) {
	while (SHMRT_UNLIKELY(self->ready == NULL || self->position >= PyList_GET_SIZE(self->ready))) {
		PyObject *more = PyObject_CallMethodNoArgs((PyObject *)self, str_more);
		int added = more ? ready_add(self, more) : -1;
		Py_XDECREF(more);
		if (added < 0)
			return NULL; /* StopIteration, too */
	}
	PyObject *outcome = PyList_GET_ITEM(self->ready, self->position);
	PyList_SET_ITEM(self->ready, self->position, Py_NewRef(Py_None)); /* it is not kept longer than it is wanted */
	self->position++;
	if (SHMRT_UNLIKELY(Py_TYPE(outcome) == failure_type)) {
		PyObject *exception = Py_NewRef(((Failure *)outcome)->exception);
		Py_DECREF(outcome);
		PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
		Py_DECREF(exception);
		return NULL;
	}
	return outcome;
}

static PyObject *ready_drop(Ready *self, PyObject *Py_UNUSED(ignored)) {
	Py_CLEAR(self->ready);
	Py_RETURN_NONE;
}

/* ---- out ---- */

/* How many of the items were encoded; those behind do not fit, or have to travel by themselves. */
static Py_ssize_t encode_items(struct shmrt_encoder *encoder, PyObject *items, size_t most) {
	Py_ssize_t taken = 0;
	while (taken < PyList_GET_SIZE(items) && taken < SHMRT_CHUNK_ITEMS_MAX) {
		size_t start = encoder->size;
		static const uint32_t no_length = 0;
		if (shmrt_encoder_append(encoder, &no_length, sizeof(no_length)) < 0)
			return -1;
		PyObject *item = Py_NewRef(PyList_GET_ITEM(items, taken));
		int result = shmrt_encode(encoder, item);
		Py_DECREF(item);
		if (result < 0 && !PyErr_ExceptionMatches(PyExc_Exception))
			return -1;
		PyErr_Clear(); /* it comes again when the item is submitted by itself */
		size_t length = encoder->size - start - sizeof(uint32_t);
		if (result < 0 || encoder->buffer_count || encoder->size > most) {
			shmrt_encoder_cut(encoder, start);
			break;
		}
		uint32_t word = (uint32_t)length;
		memcpy(encoder->bytes + start, &word, sizeof(word));
		taken++;
	}
	return taken;
}

/* submit_chunk((inherits, priority), fn, items, star) -> (future, number of items in it), or None: not even the first goes. */
PyObject *shmrt_py_pool_submit_chunk(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs) {
	int inherits, priority;
	if (nargs != 4 || !PyTuple_Check(args[0]) || !PyList_Check(args[2]) || !PyArg_ParseTuple(args[0], "pi", &inherits, &priority)) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "submit_chunk() needs options, a callable, a list and a flag");
		return NULL;
	}
	if (inherits && shmrt_turn_limit(0) != 0)
		Py_RETURN_NONE; /* each of its tasks has a deadline then */
	if (shmrt_py_check_open(self) < 0)
		return NULL;
	ShmrtHub *hub = self->hub;
	if (atomic_load_explicit(&hub->hub.completed_count, memory_order_relaxed) > 64) /* a hint */
		shmrt_py_hub_apply(hub, false);
	uint32_t number;
	if (shmrt_py_number_of(self, args[1], Py_None, &number) < 0)
		return NULL;
	struct shmrt_encoder own = {0}, *encoder = self->encoding ? &own : &self->encoder;
	bool shared = encoder == &self->encoder;
	if (shared)
		self->encoding = true;
	shmrt_encoder_reset(encoder);
	PyObject *answer = NULL, *future = NULL;
	struct shmrt_task *task = NULL;
	Py_ssize_t taken = encode_items(encoder, args[2], self->inline_max < BYTES_MAX ? self->inline_max : BYTES_MAX);
	if (taken == 0)
		answer = Py_NewRef(Py_None);
	if (taken <= 0)
		goto done;
	task = shmrt_hub_task_new(&hub->hub);
	if (task == NULL || shmrt_payload_set(&task->arguments, encoder->bytes, (uint32_t)encoder->size, encoder->flags, NULL, 0) != SHMRT_OK) {
		PyErr_NoMemory();
		goto done;
	}
	task->function = number;
	task->items = (uint32_t)taken;
	task->star = args[3] == Py_True;
	task->priority = priority;
	future = shmrt_future_new((PyObject *)hub, &shmrt_hub_origin, 0);
	answer = future ? Py_BuildValue("On", future, taken) : NULL;
	if (answer != NULL && shmrt_py_hand_over(self, task, future) == 0)
		task = NULL; /* the ledger's now */
	else
		Py_CLEAR(answer);
done:
	if (task)
		shmrt_hub_task_free(&hub->hub, task);
	Py_XDECREF(future);
	if (shared)
		self->encoding = false;
	else
		shmrt_encoder_clear(&own);
	return answer;
}

/* split(future) -> how many of its items the chunk keeps, those that were begun; -1: it is not running. */
PyObject *shmrt_py_pool_split(ShmrtPoolCore *self, PyObject *future) {
	uint64_t id;
	if (shmrt_py_hub_check(self->hub) < 0 || shmrt_future_token(future, &id) < 0)
		return NULL;
	return PyLong_FromLongLong(shmrt_hub_split(&self->hub->hub, id));
}

/* ---- back ---- */

static PyObject *failed_now(void) { return failure_new(shmrt_take_exception()); }

/* One outcome; always an object, unless there is no memory. */
static PyObject *decode_outcome(ShmrtHub *hub, struct shmrt_task *task, enum shmrt_item_kind kind, const uint8_t *bytes, uint32_t size,
				uint32_t *alone) {
	PyObject *object = NULL;
	bool is_error = kind == SHMRT_ITEM_ERROR;
	if (kind == SHMRT_ITEM_CRASH && size >= sizeof(struct shmrt_crash)) {
		struct shmrt_crash crash;
		memcpy(&crash, bytes, sizeof(crash));
		crash.stack = size > sizeof(crash) ? (char *)(uintptr_t)bytes + sizeof(crash) : NULL; /* with its NUL */
		object = shmrt_py_hub_describe(hub, task, SHMRT_TASK_CRASHED, &crash, 1);
		return object ? failure_new(object) : failed_now();
	}
	if (kind == SHMRT_ITEM_ALONE && size == 1 && *alone < task->alone_count) {
		is_error = *bytes;
		object = shmrt_py_hub_decode_payload(hub, &task->alone[(*alone)++]);
	} else if (kind <= SHMRT_ITEM_ERROR)
		object = shmrt_decode_piece(bytes, size);
	else
		shmrt_raise("SegmentError", "corrupt outcome of a chunk");
	if (object && is_error) {
		Py_SETREF(object, shmrt_py_hub_unpack(hub, task, object, 1));
		return object ? failure_new(object) : failed_now();
	}
	return object ? object : failed_now();
}

PyObject *shmrt_py_chunk_decode(ShmrtHub *hub, struct shmrt_task *task) {
	const struct shmrt_payload *result = &task->result;
	PyObject *outcomes = PyList_New(task->items);
	uint32_t at = 0, alone = 0;
	for (uint32_t i = 0; outcomes && i < task->items; i++) {
		uint32_t head, left = result->size - at;
		if (left < sizeof(head)) {
			Py_DECREF(outcomes);
			return PyErr_NoMemory(); /* the ledger could not keep an outcome */
		}
		memcpy(&head, result->bytes + at, sizeof(head));
		at += (uint32_t)sizeof(head);
		if (head >> 2 > left - sizeof(head)) {
			Py_DECREF(outcomes);
			return shmrt_raise("SegmentError", "corrupt outcomes of a chunk");
		}
		PyObject *outcome = decode_outcome(hub, task, head & 3, result->bytes + at, head >> 2, &alone);
		at += head >> 2;
		if (outcome == NULL)
			Py_CLEAR(outcomes);
		else
			PyList_SET_ITEM(outcomes, i, outcome);
	}
	return outcomes ? Py_BuildValue("NK", outcomes, (unsigned long long)task->elapsed_ns) : NULL;
}

/* ---- in ---- */

/* pull(iterator, list, most): appends so many of its items; False: it has ended. What it raises is raised, and what came
 * before is in the list. */
static PyObject *module_pull(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
	Py_ssize_t most = nargs == 3 ? PyLong_AsSsize_t(args[2]) : -1;
	if (nargs != 3 || !PyIter_Check(args[0]) || !PyList_Check(args[1]) || (most == -1 && PyErr_Occurred())) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "pull() needs an iterator, a list and a number");
		return NULL;
	}
	while (most-- > 0) {
		PyObject *item = PyIter_Next(args[0]);
		if (item == NULL)
			return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
		int result = PyList_Append(args[1], item);
		Py_DECREF(item);
		if (result < 0)
			return NULL;
	}
	Py_RETURN_TRUE;
}

/* ---- the types ---- */

static PyMemberDef failure_members[] = {
	{"exception", T_OBJECT, offsetof(Failure, exception), READONLY, "why there is no value"},
	{0},
};
static PyType_Slot failure_slots[] = {
	{Py_tp_init, (void *)failure_init},
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)failure_dealloc},
	{Py_tp_members, failure_members},
	{Py_tp_doc, "Failure(exception)\n--\n\nThe outcome of an item that has no value."},
	{0, NULL},
};
static PyType_Spec failure_spec = {"shmrt._native.Failure", sizeof(Failure), 0, Py_TPFLAGS_DEFAULT, failure_slots};

static PyMethodDef ready_methods[] = {
	{"_drop", (PyCFunction)ready_drop, METH_NOARGS, "Forget what is there."},
	{0},
};
static PyType_Slot ready_slots[] = {
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)ready_dealloc},
	{Py_tp_traverse, (void *)ready_traverse},
	{Py_tp_clear, (void *)ready_clear},
	{Py_tp_iter, (void *)PyObject_SelfIter},
	{Py_tp_iternext, (void *)ready_next},
	{Py_tp_methods, ready_methods},
	{Py_tp_doc, "Iterates over the outcomes that _more() of its subclass gives, a list at a time, and raises the Failures."},
	{0, NULL},
};
static PyType_Spec ready_spec = {"shmrt._native.Ready", sizeof(Ready), 0,
				 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, ready_slots};

static PyMethodDef functions[] = {
	{"pull", (PyCFunction)(void (*)(void))module_pull, METH_FASTCALL, "pull(iterator, list, most) -> whether there may be more"},
	{0},
};

int shmrt_py_add_chunk(PyObject *module) {
	PyObject *failure = PyType_FromSpec(&failure_spec), *ready = PyType_FromSpec(&ready_spec);
	failure_type = (PyTypeObject *)failure;
	str_more = PyUnicode_InternFromString("_more");
	int result = failure && ready && str_more ? 0 : -1;
	if (result == 0)
		result = PyModule_AddObjectRef(module, "Failure", failure);
	if (result == 0)
		result = PyModule_AddObjectRef(module, "Ready", ready);
	Py_XDECREF(ready); /* the module keeps it; the other one is kept here, too */
	return result == 0 ? PyModule_AddFunctions(module, functions) : -1;
}
