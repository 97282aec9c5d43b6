/* py_calls_watch.c -- watched calls: begun here, collected by whoever waits at the door.
 *
 * A process may have many calls out and one thread that waits for all of them. Their ends ring one bell, that of the
 * door: a call slot of this process that carries no call. The list of what is out is this process's alone and used
 * under the GIL; a call leaves it before its answer is read, since reading may run user code.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_mailbox.h"
#include "py_turn.h"

static bool open_door(CallsObject *self) {
	if (!self->has_door && shmrt_py_calls_claim(self, &self->door) == 0)
		self->has_door = true;
	return self->has_door;
}

static bool watch(CallsObject *self, uint32_t index, uint32_t generation, uint64_t deadline_ns) {
	if (self->watched_count == self->watched_capacity) {
		size_t capacity = self->watched_capacity ? self->watched_capacity * 2 : 16;
		struct shmrt_py_watched *more = PyMem_Realloc(self->watched, capacity * sizeof(*more));
		if (more == NULL) {
			PyErr_NoMemory();
			return false;
		}
		self->watched = more;
		self->watched_capacity = capacity;
	}
	self->watched[self->watched_count++] = (struct shmrt_py_watched){index, generation, deadline_ns};
	return true;
}

/* The order does not matter: the last one takes its place. */
static struct shmrt_py_watched unwatch(CallsObject *self, size_t at) {
	struct shmrt_py_watched call = self->watched[at];
	self->watched[at] = self->watched[--self->watched_count];
	return call;
}

static bool find_watched(const CallsObject *self, uint32_t index, uint32_t generation, size_t *at) {
	for (*at = 0; *at < self->watched_count; ++*at)
		if (self->watched[*at].index == index && self->watched[*at].generation == generation)
			return true;
	return false;
}

/* Puts; -1 with an exception. */
static int put(MailboxObject *mailbox, struct shmrt_py_outgoing *outgoing, const struct deadline *deadline) {
	bool waits = mailbox->mailbox.on_full == SHMRT_RING_BLOCK || mailbox->mailbox.on_full == SHMRT_RING_DROP_OLDEST;
	int outcome = shmrt_mailbox_put(&mailbox->mailbox, &outgoing->out, 0);
	while (SHMRT_UNLIKELY(outcome == SHMRT_INTERRUPTED || (outcome == SHMRT_FULL && waits))) {
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return -1;
		int64_t left = shmrt_py_time_left(deadline);
		if (left <= 0) {
			outcome = SHMRT_TIMEOUT;
			break;
		}
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_mailbox_put(&mailbox->mailbox, &outgoing->out, left);
		Py_END_ALLOW_THREADS
	}
	if (SHMRT_LIKELY(outcome == SHMRT_OK))
		return 0;
	shmrt_py_mailbox_raise(mailbox, outcome);
	return -1;
}

PyObject *shmrt_py_calls_begin(CallsObject *self, PyObject *const *args, Py_ssize_t nargs) {
	MailboxObject *mailbox;
	struct shmrt_py_outgoing outgoing;
	int64_t timeout_ns;
	uint32_t index, generation;
	size_t at;
	if (nargs != 6) {
		PyErr_SetString(PyExc_TypeError, "begin(mailbox, target, name, args, kwargs, timeout)");
		return NULL;
	}
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || (mailbox = shmrt_py_mailbox_enter(args[0])) == NULL)
		return NULL;
	uint64_t target = PyLong_AsUnsignedLongLong(args[1]);
	if ((target == UINT64_MAX && PyErr_Occurred()) || shmrt_py_timeout(args[5], &timeout_ns) < 0)
		return NULL;
	shmrt_py_mailbox_bind(mailbox, self);
	struct deadline deadline = {timeout_ns, timeout_ns == SHMRT_FOREVER ? 0 : shmrt_turn_limit(shmrt_now_ns() + (uint64_t)timeout_ns)};
	if (shmrt_py_outgoing_make(&outgoing, mailbox, SHMRT_MAIL_CALL, args[2], args[3], args[4], &deadline) < 0)
		return NULL;
	PyObject *reference = NULL;
	bool sent = false;
	if (!open_door(self) || shmrt_py_calls_claim(self, &index) < 0)
		goto done;
	if (shmrt_call_begin(&self->calls, index, target, deadline.until_ns, self->door, &generation) != SHMRT_OK) {
		shmrt_raise("SegmentError", "corrupt call slot %u: it changed while it was this process's", index);
		goto done;
	}
	self->begun++;
	reference = shmrt_py_reference_new(index, generation);
	shmrt_py_outgoing_address(&outgoing, index, generation);
	Py_INCREF(mailbox);
	sent = reference != NULL && put(mailbox, &outgoing, &deadline) == 0;
	Py_DECREF(mailbox);
	if (!sent || !watch(self, index, generation, deadline.until_ns)) {
		PyObject *type, *value, *traceback;
		PyErr_Fetch(&type, &value, &traceback);
		Py_CLEAR(reference);
		shmrt_py_calls_cancel(self, index, generation);
		PyErr_Restore(type, value, traceback);
	} else {
		/* Its end may have rung before it was in the list, and the collector may have to wake sooner for it. */
		shmrt_bell_ring(&self->calls.slots[self->door].bell);
	}
done:
	shmrt_py_outgoing_end(&outgoing, sent);
	if (shmrt_py_mailbox_look(mailbox) < 0 && reference != NULL) {
		if (find_watched(self, index, generation, &at))
			unwatch(self, at);
		shmrt_py_calls_cancel(self, index, generation);
		Py_CLEAR(reference);
	}
	return reference;
}

PyObject *shmrt_py_calls_cancel_watched(CallsObject *self, PyObject *reference) {
	uint32_t index, generation;
	size_t at;
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || shmrt_py_reference(reference, &index, &generation) < 0)
		return NULL;
	if (!find_watched(self, index, generation, &at))
		Py_RETURN_FALSE;
	unwatch(self, at);
	shmrt_py_calls_cancel(self, index, generation);
	Py_RETURN_TRUE;
}

/* ---- collecting ---- */

/* Appends (reference, status, value). An answer that cannot be decoded is an ERROR with its exception as the value. -1 with an
 * exception: no memory, or something like a KeyboardInterrupt, which is not the answer's alone and is raised, too. */
static int deliver(CallsObject *self, const struct shmrt_py_watched *call, bool expired, PyObject *list) {
	int status = SHMRT_CALL_TIMEOUT;
	PyObject *value = NULL, *interrupt = NULL;
	if (expired) {
		int given_up = shmrt_call_give_up(&self->calls, call->index, call->generation);
		if (given_up == SHMRT_OK)
			shmrt_py_calls_give_back(self, call->index);
		if (given_up != SHMRT_EMPTY)
			value = Py_NewRef(Py_None);
	}
	if (value == NULL && (value = shmrt_py_calls_read(self, call->index, call->generation, &status)) == NULL) {
		value = shmrt_take_exception();
		status = SHMRT_CALL_ERROR;
		interrupt = PyErr_GivenExceptionMatches(value, PyExc_Exception) ? NULL : Py_NewRef(value);
	}
	PyObject *reference = shmrt_py_reference_new(call->index, call->generation);
	PyObject *row = reference ? Py_BuildValue("(NiN)", reference, status, value) : NULL;
	int outcome = row ? PyList_Append(list, row) : -1;
	Py_XDECREF(row);
	if (interrupt != NULL) {
		PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
		Py_DECREF(interrupt);
		return -1;
	}
	return outcome;
}

/* Takes what has ended. *next_ns: when the first of the others expires; 0: never. */
static int collect_ended(CallsObject *self, PyObject *list, uint64_t *next_ns) {
	uint64_t now_ns = shmrt_now_ns();
	*next_ns = 0;
	for (size_t at = 0; at < self->watched_count;) {
		const struct shmrt_py_watched *call = &self->watched[at];
		uint64_t word = shmrt_call_word(&self->calls, call->index);
		enum shmrt_call_state state = shmrt_call_state_of(word);
		bool open = shmrt_call_generation_of(word) == call->generation &&
			    (state == SHMRT_CALL_WAITING || state == SHMRT_CALL_TAKEN || state == SHMRT_CALL_WRITING);
		bool expired = open && call->deadline_ns != 0 && call->deadline_ns <= now_ns;
		if (open && !expired) {
			if (call->deadline_ns != 0 && (*next_ns == 0 || call->deadline_ns < *next_ns))
				*next_ns = call->deadline_ns;
			at++;
			continue;
		}
		struct shmrt_py_watched ended = unwatch(self, at);
		if (deliver(self, &ended, expired, list) < 0)
			return -1;
	}
	return 0;
}

PyObject *shmrt_py_calls_collect(CallsObject *self, PyObject *timeout) {
	int64_t timeout_ns;
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || shmrt_py_timeout(timeout, &timeout_ns) < 0 || !open_door(self))
		return NULL;
	if (self->collecting) { /* one sleeper per bell: who wakes disarms it */
		PyErr_SetString(PyExc_RuntimeError, "another thread of this process collects already");
		return NULL;
	}
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	_Atomic uint32_t *bell = &self->calls.slots[self->door].bell;
	PyObject *list = self->collected ? self->collected : PyList_New(0);
	self->collected = NULL;
	self->collecting = true;
	while (list != NULL) {
		uint64_t next_ns, now_ns = shmrt_now_ns();
		int64_t left = shmrt_py_time_left(&deadline);
		shmrt_bell_arm(bell); /* B1: then the second look, which is the only one here */
		if (PyErr_CheckSignals() < 0 || collect_ended(self, list, &next_ns) < 0) {
			self->collected = list; /* for the next call */
			list = NULL;
			break;
		}
		if (PyList_GET_SIZE(list) > 0 || self->woken || left <= 0)
			break;
		if (next_ns != 0 && (left == SHMRT_FOREVER || next_ns - now_ns < (uint64_t)left))
			left = next_ns > now_ns ? (int64_t)(next_ns - now_ns) : 1;
		Py_BEGIN_ALLOW_THREADS
		(void)!shmrt_bell_sleep(bell, left);
		Py_END_ALLOW_THREADS
	}
	shmrt_bell_disarm(bell);
	self->woken = self->collecting = false;
	return list;
}

PyObject *shmrt_py_calls_wake(CallsObject *self, PyObject *nothing) {
	(void)nothing;
	if (shmrt_py_calls_enter((PyObject *)self) == NULL || !open_door(self))
		return NULL;
	self->woken = true; /* under the GIL, which the collector has when it looks */
	shmrt_bell_ring(&self->calls.slots[self->door].bell);
	Py_RETURN_NONE;
}
