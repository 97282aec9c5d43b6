/* py_future_manual.c -- ManualFutureSource: an origin of futures that a test drives by hand.
 *
 * It stands where the hub stands, with everything visible: `calls` lists what futures asked of it, `post` puts a
 * completion where a real one would lie in a lane, `dispatch` does what the dispatcher thread does. A payload is one
 * Python object; `decoder`, if set, is called with it like a decoder of messages. Words belong to this process and
 * the interpreter's lock guards them.
 */
#include "py_future.h"

#include <time.h>

struct source {
	PyObject_HEAD
	PyObject *futures; /* dict: token -> future that was not completed */
	PyObject *posted;  /* list of (token, outcome, object, worker, attempts) */
	PyObject *calls;   /* list of (name, token) */
	PyObject *decoder; /* callable or NULL */
	unsigned long long next_token, polls, decodes;
	Py_ssize_t payloads; /* handed to futures and not dropped */
	char accepts_cancel, accepts_kill, is_running;
};

static PyTypeObject *source_type;

static inline struct source *source(PyObject *object) { return (struct source *)object; }

static void record(PyObject *self, const char *name, uint64_t token) {
	PyObject *entry = Py_BuildValue("(sK)", name, (unsigned long long)token);
	if (entry == NULL || PyList_Append(source(self)->calls, entry) < 0)
		PyErr_WriteUnraisable(self);
	Py_XDECREF(entry);
}

/* 1 completed, 0 no such future (completed or forgotten earlier), -1 exception. */
static int complete(PyObject *self, PyObject *entry) {
	unsigned long long token;
	const char *outcome;
	PyObject *object, *worker;
	unsigned int attempts;
	if (!PyArg_ParseTuple(entry, "KsOOI", &token, &outcome, &object, &worker, &attempts))
		return -1;
	PyObject *key = PyLong_FromUnsignedLongLong(token);
	PyObject *future = key ? Py_XNewRef(PyDict_GetItemWithError(source(self)->futures, key)) : NULL;
	if (future == NULL || PyDict_DelItem(source(self)->futures, key) < 0) {
		Py_XDECREF(key);
		return PyErr_Occurred() ? -1 : 0;
	}
	Py_DECREF(key);
	if (worker == Py_None)
		worker = NULL;
	if (strcmp(outcome, "cancelled") == 0) {
		shmrt_future_complete(future, SHMRT_OUTCOME_CANCELLED, NULL, worker, attempts);
	} else if (strcmp(outcome, "object") == 0) {
		enum shmrt_outcome which = PyExceptionInstance_Check(object) ? SHMRT_OUTCOME_EXCEPTION : SHMRT_OUTCOME_VALUE;
		shmrt_future_complete_object(future, which, Py_NewRef(object), worker, attempts);
	} else {
		source(self)->payloads++;
		shmrt_future_complete(future, strcmp(outcome, "value") == 0 ? SHMRT_OUTCOME_VALUE : SHMRT_OUTCOME_EXCEPTION,
				      Py_NewRef(object), worker, attempts);
	}
	Py_DECREF(future);
	return 1;
}

/* Delivers what was posted: to bare futures only, or (the dispatcher) to all. */
static int deliver(PyObject *self, bool watched_too) {
	Py_ssize_t i = 0;
	int count = 0;
	while (i < PyList_GET_SIZE(source(self)->posted)) {
		PyObject *entry = PyList_GET_ITEM(source(self)->posted, i);
		PyObject *future = PyDict_GetItemWithError(source(self)->futures, PyTuple_GET_ITEM(entry, 0));
		if (future != NULL && !watched_too && shmrt_future_is_watched(future)) {
			i++;
			continue;
		}
		Py_INCREF(entry);
		int failed = PyList_SetSlice(source(self)->posted, i, i + 1, NULL);
		int done = failed ? -1 : complete(self, entry);
		Py_DECREF(entry);
		if (done < 0)
			return -1;
		count += done;
	}
	return count;
}

/* ---- the origin ---- */

static void origin_poll(PyObject *self) {
	source(self)->polls++;
	if (deliver(self, false) < 0)
		PyErr_WriteUnraisable(self);
}

static int origin_wait(PyObject *self, PyObject *future, int64_t timeout_ns) {
	/* A tool for tests may look every millisecond; the hub parks on its bell. */
	const struct timespec slice = {.tv_sec = 0, .tv_nsec = 1000000};
	for (int64_t waited = 0;; waited += slice.tv_nsec) {
		if (deliver(self, false) < 0 || PyErr_CheckSignals() < 0)
			return -1;
		if (shmrt_future_is_done(future))
			return 1;
		if (waited >= timeout_ns)
			return 0;
		Py_BEGIN_ALLOW_THREADS
		nanosleep(&slice, NULL);
		Py_END_ALLOW_THREADS
	}
}

static int origin_cancel(PyObject *self, uint64_t token) {
	record(self, "cancel", token);
	return source(self)->accepts_cancel;
}

static int origin_kill(PyObject *self, uint64_t token) {
	record(self, "kill", token);
	return source(self)->accepts_kill;
}

static void origin_watch(PyObject *self, uint64_t token) { record(self, "watch", token); }

static int origin_running(PyObject *self, uint64_t token) {
	record(self, "running", token);
	return source(self)->is_running;
}

static PyObject *origin_decode(PyObject *self, void *payload, enum shmrt_outcome outcome) {
	(void)outcome;
	source(self)->decodes++;
	if (source(self)->decoder == NULL || source(self)->decoder == Py_None)
		return Py_NewRef((PyObject *)payload);
	return PyObject_CallOneArg(source(self)->decoder, (PyObject *)payload);
}

static void origin_drop(PyObject *self, void *payload) {
	source(self)->payloads--;
	Py_DECREF((PyObject *)payload);
}

static const struct shmrt_future_origin manual_origin = {
	.poll = origin_poll,
	.wait = origin_wait,
	.cancel = origin_cancel,
	.kill = origin_kill,
	.watch = origin_watch,
	.running = origin_running,
	.decode = origin_decode,
	.drop = origin_drop,
};

/* ---- the type ---- */

static PyObject *source_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
	PyObject *self = type->tp_alloc(type, 0);
	if (self == NULL)
		return NULL;
	source(self)->futures = PyDict_New();
	source(self)->posted = PyList_New(0);
	source(self)->calls = PyList_New(0);
	source(self)->accepts_cancel = source(self)->accepts_kill = 1;
	if (!source(self)->futures || !source(self)->posted || !source(self)->calls) {
		Py_DECREF(self);
		return NULL;
	}
	return self;
}

static int source_traverse(PyObject *self, visitproc visit, void *arg) {
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(source(self)->futures);
	Py_VISIT(source(self)->posted);
	Py_VISIT(source(self)->calls);
	Py_VISIT(source(self)->decoder);
	return 0;
}

static int source_clear(PyObject *self) {
	Py_CLEAR(source(self)->futures);
	Py_CLEAR(source(self)->posted);
	Py_CLEAR(source(self)->calls);
	Py_CLEAR(source(self)->decoder);
	return 0;
}

static void source_dealloc(PyObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	source_clear(self);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *source_make(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	unsigned long long token = source(self)->next_token++;
	PyObject *key = PyLong_FromUnsignedLongLong(token);
	PyObject *future = key ? shmrt_future_new(self, &manual_origin, token) : NULL;
	if (future != NULL && PyDict_SetItem(source(self)->futures, key, future) < 0)
		Py_CLEAR(future);
	Py_XDECREF(key);
	return future;
}

static PyObject *build_entry(PyObject *args, PyObject *kwargs) {
	static char *names[] = {"token", "outcome", "object", "worker", "attempts", NULL};
	unsigned long long token;
	const char *outcome;
	PyObject *object = Py_None, *worker = Py_None;
	unsigned int attempts = 1;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ks|OOI", names, &token, &outcome, &object, &worker, &attempts))
		return NULL;
	if (strcmp(outcome, "value") && strcmp(outcome, "exception") && strcmp(outcome, "cancelled") && strcmp(outcome, "object")) {
		PyErr_Format(PyExc_ValueError, "outcome is %s; use value, exception, cancelled or object", outcome);
		return NULL;
	}
	return Py_BuildValue("(KsOOI)", token, outcome, object, worker, attempts);
}

static PyObject *source_post(PyObject *self, PyObject *args, PyObject *kwargs) {
	PyObject *entry = build_entry(args, kwargs);
	int failed = entry == NULL || PyList_Append(source(self)->posted, entry) < 0;
	Py_XDECREF(entry);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *source_complete(PyObject *self, PyObject *args, PyObject *kwargs) {
	PyObject *entry = build_entry(args, kwargs);
	int done = entry ? complete(self, entry) : -1;
	Py_XDECREF(entry);
	return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *source_dispatch(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	shmrt_future_batch_begin(); /* as the dispatcher does */
	int count = deliver(self, true);
	shmrt_future_batch_end();
	return count < 0 ? NULL : PyLong_FromLong(count);
}

static PyObject *source_forget(PyObject *self, PyObject *token) {
	if (PyDict_DelItem(source(self)->futures, token) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *get_decoder(PyObject *self, void *Py_UNUSED(closure)) {
	return Py_NewRef(source(self)->decoder ? source(self)->decoder : Py_None);
}

static int set_decoder(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
	PyObject *old = source(self)->decoder;
	source(self)->decoder = Py_XNewRef(value);
	Py_XDECREF(old);
	return 0;
}

static PyObject *get_calls(PyObject *self, void *Py_UNUSED(closure)) { return Py_NewRef(source(self)->calls); }

#define COUNTER(name)                                                                                                        \
	static PyObject *get_##name(PyObject *self, void *Py_UNUSED(closure)) {                                              \
		return PyLong_FromLongLong((long long)source(self)->name);                                                   \
	}
#define SWITCH(name)                                                                                                         \
	static PyObject *get_##name(PyObject *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(source(self)->name); }  \
	static int set_##name(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {                                   \
		int truth = value ? PyObject_IsTrue(value) : 0;                                                              \
		if (truth >= 0)                                                                                              \
			source(self)->name = (char)truth;                                                                    \
		return truth < 0 ? -1 : 0;                                                                                   \
	}
COUNTER(polls)
COUNTER(decodes)
COUNTER(payloads)
SWITCH(accepts_cancel)
SWITCH(accepts_kill)
SWITCH(is_running)

static PyGetSetDef source_getset[] = {
	{"calls", get_calls, NULL, "What futures asked for, oldest first: (name, token).", NULL},
	{"polls", get_polls, NULL, "How often a future asked to deliver.", NULL},
	{"decodes", get_decodes, NULL, "How often a payload was decoded.", NULL},
	{"payloads", get_payloads, NULL, "Payloads that futures hold now.", NULL},
	{"decoder", get_decoder, set_decoder, "Called with a payload to decode it, or None.", NULL},
	{"accepts_cancel", get_accepts_cancel, set_accepts_cancel, "What cancel is answered with.", NULL},
	{"accepts_kill", get_accepts_kill, set_accepts_kill, "What kill is answered with.", NULL},
	{"is_running", get_is_running, set_is_running, "What running is answered with.", NULL},
	{0},
};

#define KEYWORDS (METH_VARARGS | METH_KEYWORDS)

static PyMethodDef source_methods[] = {
	{"new", source_make, METH_NOARGS, "new($self)\n--\n\nA pending future; its token is the number of those made before."},
	{"post", (PyCFunction)(void (*)(void))source_post, KEYWORDS,
	 "post($self, token, outcome, object=None, worker=None, attempts=1)\n--\n\n"
	 "Lay a completion down to be found by poll, wait or dispatch."},
	{"complete", (PyCFunction)(void (*)(void))source_complete, KEYWORDS,
	 "complete($self, token, outcome, object=None, worker=None, attempts=1)\n--\n\n"
	 "Complete at once, in this thread; False if it was completed through this source before."},
	{"dispatch", source_dispatch, METH_NOARGS, "dispatch($self)\n--\n\nDeliver all that was posted, to watched futures too."},
	{"forget", source_forget, METH_O, "forget($self, token)\n--\n\nLet go of a pending future."},
	{0},
};

static PyType_Slot source_slots[] = {
	{Py_tp_new, source_new},	 {Py_tp_dealloc, source_dealloc}, {Py_tp_traverse, source_traverse},
	{Py_tp_clear, source_clear},	 {Py_tp_methods, source_methods}, {Py_tp_getset, source_getset},
	{Py_tp_doc, "An origin of futures that a test drives by hand."}, {0},
};

static PyType_Spec source_spec = {
	.name = "shmrt._native.ManualFutureSource",
	.basicsize = sizeof(struct source),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.slots = source_slots,
};

int shmrt_py_add_future_manual(PyObject *module) {
	if (source_type == NULL)
		source_type = (PyTypeObject *)PyType_FromSpec(&source_spec);
	return source_type == NULL ? -1 : PyModule_AddObjectRef(module, "ManualFutureSource", (PyObject *)source_type);
}
