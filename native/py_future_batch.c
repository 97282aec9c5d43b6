/* py_future_batch.c -- many completions, told in one go.
 *
 * The dispatcher completes futures one after the other. Waking whoever waits after each of them would have two threads
 * pass the interpreter's lock to and fro; so while a thread has a batch open, what waiters and event loops are to hear is
 * noted here and told when it closes: a waiter of as_completed is woken once, an event loop is called once. A future's
 * state has changed before its note is made, and its waiters are those that it had at that moment: each hears once.
 *
 * Told earlier, so that nobody waits for a note: before user code is called, before this thread blocks on a condition, and
 * when there are many. The interpreter's lock guards all words; one thread has the batch at a time, others tell at once.
 */
#include "py_future_internal.h"

#define MANY 256

/* A waiter, its future and the method; or an event loop, what is to be settled in it, and no method. */
struct note {
	PyObject *to, *what, *method;
};

static struct {
	unsigned long thread; /* 0: closed */
	size_t count;
	struct note all[MANY];
} batch;

static bool is_ours(void) { return batch.thread != 0 && batch.thread == PyThread_get_thread_ident(); }

void shmrt_future_batch_begin(void) {
	if (batch.thread == 0)
		batch.thread = PyThread_get_thread_ident();
}

void shmrt_future_batch_end(void) {
	if (!is_ours())
		return;
	shmrt__future_batch_flush();
	batch.thread = 0;
}

/* ---- telling ---- */

static PyObject *call(PyObject *object, PyObject *method) { return PyObject_CallMethodNoArgs(object, method); }

/* What each of its add_* does, for all at once. */
static int tell_as_completed(PyObject *waiter, const struct note *notes, size_t count) {
	int result = -1;
	PyObject *lock = PyObject_GetAttr(waiter, shmrt__future.str_lock);
	PyObject *taken = lock ? call(lock, shmrt__future.str_acquire) : NULL;
	if (taken != NULL) {
		PyObject *finished = PyObject_GetAttr(waiter, shmrt__future.str_finished_futures);
		PyObject *event = finished && PyList_CheckExact(finished) ? PyObject_GetAttr(waiter, shmrt__future.str_event) : NULL;
		result = event ? 0 : -1;
		for (size_t i = 0; result == 0 && i < count; i++)
			result = PyList_Append(finished, notes[i].what);
		PyObject *told = event ? call(event, shmrt__future.str_set) : NULL;
		result = told ? result : -1;
		Py_XDECREF(told);
		Py_XDECREF(event);
		Py_XDECREF(finished);
		PyObject *type, *value, *traceback;
		PyErr_Fetch(&type, &value, &traceback);
		PyObject *given = call(lock, shmrt__future.str_release);
		if (given == NULL)
			PyErr_WriteUnraisable(lock);
		Py_XDECREF(given);
		PyErr_Restore(type, value, traceback);
	}
	Py_XDECREF(taken);
	Py_XDECREF(lock);
	return result;
}

static int tell_loop(PyObject *loop, const struct note *notes, size_t count) {
	PyObject *chains = PyList_New((Py_ssize_t)count);
	for (size_t i = 0; chains && i < count; i++)
		PyList_SET_ITEM(chains, (Py_ssize_t)i, Py_NewRef(notes[i].what));
	return chains ? shmrt__future_hand_over(loop, chains) : -1;
}

static void tell_one(PyObject *waiter, PyObject *future, PyObject *method) {
	PyObject *answer = PyObject_CallMethodOneArg(waiter, method, future);
	if (answer == NULL)
		PyErr_WriteUnraisable(future);
	Py_XDECREF(answer);
}

static size_t tell_some(const struct note *notes, size_t count) {
	size_t same = 1;
	int result = 0;
	while (same < count && notes[same].to == notes[0].to && (notes[same].method == NULL) == (notes[0].method == NULL))
		same++;
	if (notes[0].method == NULL)
		result = tell_loop(notes[0].to, notes, same);
	else if (Py_TYPE(notes[0].to) == shmrt__future.as_completed_type)
		result = tell_as_completed(notes[0].to, notes, same);
	else
		for (size_t i = 0; i < same; i++)
			tell_one(notes[i].to, notes[i].what, notes[i].method);
	if (result < 0)
		PyErr_WriteUnraisable(notes[0].to);
	return same;
}

void shmrt__future_batch_flush(void) {
	PyObject *type, *value, *traceback;
	if (batch.count == 0 || !is_ours())
		return;
	PyErr_Fetch(&type, &value, &traceback);
	while (batch.count != 0) {
		/* Telling runs other code, which may add notes of this very thread: those come after these. */
		struct note notes[MANY];
		size_t count = batch.count;
		memcpy(notes, batch.all, count * sizeof(notes[0]));
		batch.count = 0;
		for (size_t at = 0; at < count;)
			at += tell_some(notes + at, count - at);
		for (size_t i = 0; i < count; i++) {
			Py_DECREF(notes[i].to);
			Py_DECREF(notes[i].what);
		}
	}
	PyErr_Restore(type, value, traceback);
}

/* ---- noting ---- */

void shmrt__future_tell(PyObject *waiter, PyObject *future, PyObject *method) {
	if (!is_ours()) {
		tell_one(waiter, future, method);
		return;
	}
	if (batch.count == MANY)
		shmrt__future_batch_flush();
	batch.all[batch.count++] = (struct note){Py_NewRef(waiter), Py_NewRef(future), method};
}

void shmrt__future_tell_chained(struct core_future *self) {
	PyObject *chained = self->watch ? self->watch->chained : NULL;
	if (chained == NULL)
		return;
	self->watch->chained = NULL;
	PyObject *loop = PyObject_CallMethodNoArgs(chained, shmrt__future.str_get_loop);
	PyObject *chain = loop ? PyTuple_Pack(2, chained, (PyObject *)self) : NULL;
	if (chain != NULL && is_ours()) {
		if (batch.count == MANY)
			shmrt__future_batch_flush();
		batch.all[batch.count++] = (struct note){Py_NewRef(loop), Py_NewRef(chain), NULL};
	} else if (chain != NULL) {
		PyObject *chains = PyList_New(1);
		if (chains != NULL)
			PyList_SET_ITEM(chains, 0, Py_NewRef(chain));
		if (chains == NULL || shmrt__future_hand_over(loop, chains) < 0)
			PyErr_WriteUnraisable((PyObject *)self);
	} else
		PyErr_WriteUnraisable((PyObject *)self);
	Py_XDECREF(chain);
	Py_XDECREF(loop);
	Py_DECREF(chained);
}
