/* py_future_condition.c -- FutureCondition: what a future gives away as `_condition`.
 *
 * It stands for threading.Condition(), which takes longer to make, to take and to give back than a small task takes to
 * run; concurrent.futures.wait and as_completed do all three for every future. It is re-entrant and has the methods, the
 * answers and the errors of the standard one. Instances refer to nothing.
 *
 * Nothing here is shared memory. The interpreter's lock guards all words; `released` and a sleeper's `told` are futex
 * words besides. Both are read under that lock before a thread sleeps on them, so no wake falls in between.
 */
#include "py_future_internal.h"

#include "ops.h"

#define LOOK_NS INT64_C(50000000) /* how late a signal is looked at by a thread that sleeps here */

struct sleeper {
	struct sleeper *next;
	_Atomic uint32_t told;
};

static inline struct condition *condition(PyObject *object) { return (struct condition *)object; }

PyObject *shmrt__condition_new(void) {
	PyTypeObject *type = shmrt__future.condition_type;
	struct condition *self = PyObject_New(struct condition, type);
	if (self == NULL)
		return NULL;
	memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
	return (PyObject *)self;
}

static void condition_dealloc(PyObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_Free(self);
	Py_DECREF(type);
}

/* ---- the lock ---- */

/* Until it is ours or until_ns (0: for ever). 1, 0, or -1: a signal handler raised; `steadfast` goes on after that, and
 * leaves the signal's exception to the caller. */
static int take_slowly(struct condition *self, uint64_t until_ns, bool steadfast) {
	unsigned long me = PyThread_get_thread_ident();
	int result = 1;
	while (self->owner != 0) {
		int64_t patience = LOOK_NS;
		if (until_ns != 0) {
			uint64_t now = shmrt_now_ns();
			if (now >= until_ns)
				return 0;
			if (until_ns - now < (uint64_t)patience)
				patience = (int64_t)(until_ns - now);
		}
		uint32_t seen = atomic_load_explicit(&self->released, memory_order_relaxed); /* ordered by the interpreter's lock */
		int slept;
		self->blocked++;
		Py_BEGIN_ALLOW_THREADS
		slept = shmrt_futex_wait(&self->released, seen, patience);
		Py_END_ALLOW_THREADS
		self->blocked--;
		(void)slept; /* every outcome means: look again */
		if (PyErr_Occurred() == NULL && PyErr_CheckSignals() < 0) {
			if (!steadfast)
				return -1;
			result = -1;
		}
	}
	self->owner = me;
	self->depth = 1;
	return result;
}

int shmrt__condition_take_slowly(PyObject *object) {
	struct condition *self = condition(object);
	if (self->owner == PyThread_get_thread_ident()) {
		self->depth++;
		return 0;
	}
	shmrt__future_batch_flush(); /* whoever holds it may wait for what this thread has put off */
	return take_slowly(self, 0, false) < 0 ? -1 : 0;
}

static void let_go(struct condition *self) {
	self->owner = 0;
	atomic_fetch_add_explicit(&self->released, 1, memory_order_relaxed); /* ordered by the interpreter's lock */
	if (self->blocked != 0)
		shmrt_futex_wake(&self->released, 1);
}

void shmrt__condition_give_slowly(PyObject *self) { let_go(condition(self)); }

static bool is_mine(const struct condition *self, const char *what) {
	if (self->owner == PyThread_get_thread_ident())
		return true;
	if (what != NULL)
		PyErr_Format(PyExc_RuntimeError, "cannot %s un-acquired lock", what);
	return false;
}

static PyObject *acquire(struct condition *self, bool blocking, double timeout) {
	if (!blocking && timeout != -1.0) {
		PyErr_SetString(PyExc_ValueError, "can't specify a timeout for a non-blocking call");
		return NULL;
	}
	if (timeout != -1.0 && !(timeout >= 0.0)) {
		PyErr_SetString(PyExc_ValueError, "timeout value must be a non-negative number");
		return NULL;
	}
	int got = 1;
	if (self->owner == PyThread_get_thread_ident())
		self->depth++;
	else if (self->owner == 0) {
		self->owner = PyThread_get_thread_ident();
		self->depth = 1;
	} else if (!blocking || timeout == 0.0)
		got = 0;
	else
		got = take_slowly(self, timeout < 0.0 || timeout > 4e9 ? 0 : shmrt_now_ns() + (uint64_t)(timeout * 1e9), false);
	return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *condition_acquire(PyObject *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"blocking", "timeout", NULL};
	int blocking = 1;
	double timeout = -1.0;
	if (PyTuple_GET_SIZE(args) == 0 && kwargs == NULL)
		return acquire(condition(self), true, -1.0);
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|pd:acquire", names, &blocking, &timeout))
		return NULL;
	return acquire(condition(self), blocking, timeout);
}

static PyObject *condition_enter(PyObject *self, PyObject *Py_UNUSED(ignored)) { return acquire(condition(self), true, -1.0); }

static PyObject *condition_release(PyObject *object, PyObject *Py_UNUSED(ignored)) {
	struct condition *self = condition(object);
	if (!is_mine(self, "release"))
		return NULL;
	if (--self->depth == 0)
		let_go(self);
	Py_RETURN_NONE;
}

static PyObject *condition_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count)) {
	return condition_release(self, NULL);
}

static PyObject *condition_is_owned(PyObject *self, PyObject *Py_UNUSED(ignored)) {
	return PyBool_FromLong(is_mine(condition(self), NULL));
}

/* ---- waiting ---- */

static void forget_sleeper(struct condition *self, struct sleeper *sleeper) {
	for (struct sleeper **place = &self->sleepers; *place; place = &(*place)->next)
		if (*place == sleeper) {
			*place = sleeper->next;
			return;
		}
}

/* timeout_ns: INT64_MAX for ever. 1 told, 0 not, -1 a signal handler raised; it is ours again in any case. */
static int wait_until_told(struct condition *self, int64_t timeout_ns) {
	struct sleeper sleeper = {0}, **place = &self->sleepers;
	while (*place)
		place = &(*place)->next;
	*place = &sleeper;
	uint64_t end_ns = timeout_ns == INT64_MAX ? UINT64_MAX : shmrt_now_ns() + (uint64_t)timeout_ns;
	uint32_t depth = self->depth;
	int result = 0;
	let_go(self);
	while (result == 0 && atomic_load_explicit(&sleeper.told, memory_order_relaxed) == 0) { /* ordered by the interpreter's lock */
		int64_t patience = LOOK_NS;
		if (end_ns != UINT64_MAX) {
			uint64_t now = shmrt_now_ns();
			if (now >= end_ns)
				break;
			if (end_ns - now < (uint64_t)patience)
				patience = (int64_t)(end_ns - now);
		}
		int slept;
		Py_BEGIN_ALLOW_THREADS
		slept = shmrt_futex_wait(&sleeper.told, 0, patience);
		Py_END_ALLOW_THREADS
		(void)slept; /* every outcome means: look again */
		result = PyErr_CheckSignals();
	}
	bool told = atomic_load_explicit(&sleeper.told, memory_order_relaxed) != 0; /* ordered by the interpreter's lock */
	if (!told)
		forget_sleeper(self, &sleeper);
	if (take_slowly(self, 0, true) < 0)
		result = -1;
	self->depth = depth;
	return result < 0 ? -1 : told;
}

static int parse_timeout(PyObject *timeout, int64_t *timeout_ns) {
	*timeout_ns = INT64_MAX;
	if (timeout == NULL || timeout == Py_None)
		return 0;
	double seconds = PyFloat_AsDouble(timeout);
	if (seconds == -1.0 && PyErr_Occurred())
		return -1;
	if (seconds < 4e9) /* 127 years: beyond that it is no limit */
		*timeout_ns = seconds > 0.0 ? (int64_t)(seconds * 1e9) : 0;
	return 0;
}

static PyObject *condition_wait(PyObject *object, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"timeout", NULL};
	PyObject *timeout = NULL;
	int64_t timeout_ns;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:wait", names, &timeout) || !is_mine(condition(object), "wait on") ||
	    parse_timeout(timeout, &timeout_ns) < 0)
		return NULL;
	int told = wait_until_told(condition(object), timeout_ns);
	return told < 0 ? NULL : PyBool_FromLong(told);
}

static PyObject *condition_wait_for(PyObject *object, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"predicate", "timeout", NULL};
	PyObject *predicate, *timeout = NULL;
	int64_t timeout_ns;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:wait_for", names, &predicate, &timeout) ||
	    parse_timeout(timeout, &timeout_ns) < 0)
		return NULL;
	uint64_t end_ns = timeout_ns == INT64_MAX ? UINT64_MAX : shmrt_now_ns() + (uint64_t)timeout_ns;
	for (;;) {
		PyObject *answer = PyObject_CallNoArgs(predicate);
		int yes = answer ? PyObject_IsTrue(answer) : -1;
		if (yes != 0) {
			if (yes < 0)
				Py_CLEAR(answer);
			return answer;
		}
		uint64_t now = end_ns == UINT64_MAX ? 0 : shmrt_now_ns();
		if (now >= end_ns)
			return answer;
		Py_DECREF(answer);
		if (!is_mine(condition(object), "wait on") ||
		    wait_until_told(condition(object), end_ns == UINT64_MAX ? INT64_MAX : (int64_t)(end_ns - now)) < 0)
			return NULL;
	}
}

static void tell_sleepers(struct condition *self, Py_ssize_t count) {
	while (self->sleepers && count-- > 0) {
		struct sleeper *first = self->sleepers;
		self->sleepers = first->next;
		atomic_store_explicit(&first->told, 1, memory_order_relaxed); /* ordered by the interpreter's lock, which we keep */
		shmrt_futex_wake(&first->told, 1);
	}
}

static PyObject *condition_notify(PyObject *object, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"n", NULL};
	Py_ssize_t count = 1;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|n:notify", names, &count) || !is_mine(condition(object), "notify on"))
		return NULL;
	tell_sleepers(condition(object), count);
	Py_RETURN_NONE;
}

static PyObject *condition_notify_all(PyObject *object, PyObject *Py_UNUSED(ignored)) {
	if (!is_mine(condition(object), "notify on"))
		return NULL;
	tell_sleepers(condition(object), PY_SSIZE_T_MAX);
	Py_RETURN_NONE;
}

void shmrt__condition_tell_all(PyObject *self) { tell_sleepers(condition(self), PY_SSIZE_T_MAX); }

/* ---- the type ---- */

#define WITH_KEYWORDS(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS, doc}

static PyMethodDef condition_methods[] = {
	WITH_KEYWORDS("acquire", condition_acquire, "acquire(blocking=True, timeout=-1) -> bool: take it; a thread that has it takes it again."),
	{"release", condition_release, METH_NOARGS, "release(): give it back as often as it was taken."},
	{"__enter__", condition_enter, METH_NOARGS, "acquire()"},
	{"__exit__", (PyCFunction)(void (*)(void))condition_exit, METH_FASTCALL, "release()"},
	WITH_KEYWORDS("wait", condition_wait, "wait(timeout=None) -> bool: give it back, sleep until told, take it again; False: not told."),
	WITH_KEYWORDS("wait_for", condition_wait_for, "wait_for(predicate, timeout=None): wait until the predicate is true; its last answer."),
	WITH_KEYWORDS("notify", condition_notify, "notify(n=1): tell as many of those that wait."),
	{"notify_all", condition_notify_all, METH_NOARGS, "notify_all(): tell all that wait."},
	{"notifyAll", condition_notify_all, METH_NOARGS, "The old name of notify_all."},
	{"_is_owned", condition_is_owned, METH_NOARGS, "Whether this thread has it."},
	{0},
};

static PyType_Slot condition_slots[] = {
	{Py_tp_dealloc, condition_dealloc},
	{Py_tp_methods, condition_methods},
	{Py_tp_doc, "The condition of a future: a re-entrant lock and those who wait, as threading.Condition()."},
	{0},
};

static PyType_Spec condition_spec = {
	.name = "shmrt._native.FutureCondition",
	.basicsize = sizeof(struct condition),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = condition_slots,
};

int shmrt__condition_ready(void) {
	if (shmrt__future.condition_type == NULL)
		shmrt__future.condition_type = (PyTypeObject *)PyType_FromSpec(&condition_spec);
	return shmrt__future.condition_type == NULL ? -1 : 0;
}
