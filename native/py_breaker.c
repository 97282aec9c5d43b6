/* py_breaker.c -- the circuit breaker as a Python type: breaker.h around a call.
 *
 * Breaker is the base of shmrt.CircuitBreaker, which checks arguments and adds what need not be fast. While it is closed and nothing
 * has failed, a call costs one look at a shared word before it and a count after it. No lock is held while the call runs.
 *
 * A ticket is a tuple of plain numbers, (era, trial, ticket, start_ns): it may cross to another process of the runtime.
 */
#include "py_breaker.h"

PyTypeObject *shmrt_py_breaker_type;

static void carry(struct shmrt_guard *to, const struct shmrt_guard *from, bool only_fresh) {
	struct shmrt_breaker_side side;
	const struct shmrt_breaker *origin = (const struct shmrt_breaker *)(const void *)from;
	if (only_fresh && shmrt_gate_era(shmrt_breaker_gate(origin)) == 0)
		return; /* nothing has ever happened there */
	shmrt_breaker_look(origin, &side, NULL);
	shmrt_breaker_carry((struct shmrt_breaker *)(void *)to, &side, only_fresh);
}
static bool is_sound(const struct shmrt_guard *guard) { return shmrt_breaker_is_sound((const struct shmrt_breaker *)(const void *)guard); }

static const struct shmrt_py_guard_kind breaker_kind = {
	.kind = SHMRT_GUARD_BREAKER, .refusals = UINT32_C(1) << SHMRT_BREAKER_REFUSED,
	.word = "breaker", .fill = shmrt_breaker_fill, .is_sound = is_sound, .around = shmrt_py_breaker_around, .carry = carry};

static struct shmrt_breaker *breaker_of(BreakerObject *self) { return (struct shmrt_breaker *)(void *)self->base.guard; }

/* ---- asking and telling ------------------------------------------------------------------------- */

/* What was raised where nobody could catch it. A Ctrl-C that arrived there comes again, where somebody can. */
static void report_unraisable(PyObject *where) {
	bool interrupted = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
	PyErr_WriteUnraisable(where);
	if (interrupted)
		PyErr_SetInterrupt();
}

/* A change of state is told to the object, which reports it; what goes wrong there is not the caller's. */
static void tell(BreakerObject *self, struct shmrt_breaker_change change) {
	if (SHMRT_LIKELY(change.from == change.to))
		return;
	PyObject *error = shmrt_take_exception();
	PyObject *answer = PyObject_CallMethod((PyObject *)self, "_changed", "ii", (int)change.from, (int)change.to);
	if (answer == NULL)
		report_unraisable((PyObject *)self);
	Py_XDECREF(answer);
	if (error != NULL)
		shmrt_give_exception(error);
}

static int refuse(BreakerObject *self, uint64_t retry_ns) {
	PyObject *seconds = retry_ns == SHMRT_FOREVER ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)retry_ns / 1e9);
	PyObject *error = seconds ? PyObject_CallMethod((PyObject *)self, "_refusal", "O", seconds) : NULL;
	Py_XDECREF(seconds);
	if (error != NULL)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error); /* with the exception that is being handled as its context */
	Py_XDECREF(error);
	return -1;
}

int shmrt_py_breaker_admit(BreakerObject *self, struct shmrt_py_ticket *ticket) {
	uint64_t now = 0, retry_ns = 0;
	struct shmrt_breaker_change change;
	if (shmrt_py_guard_enter(&self->base) < 0)
		return -1;
	uint64_t gate = shmrt_breaker_gate(breaker_of(self));
	if (SHMRT_LIKELY(shmrt_gate_state(gate) == SHMRT_BREAKER_CLOSED && !self->is_timed)) {
		*ticket = (struct shmrt_py_ticket){.admission = {.era = shmrt_gate_era(gate)}};
		return 0;
	}
	if (shmrt_py_guard_now(&self->base, &now) < 0)
		return -1;
	ticket->start_ns = now + 1;
	struct shmrt_holder holder = shmrt_py_guard_holder(&self->base);
	int outcome = shmrt_breaker_admit(breaker_of(self), shmrt_py_guard_control(&self->base), holder, now, 0, &ticket->admission, &retry_ns,
					  &change);
	while (outcome == SHMRT_INTERRUPTED || outcome == SHMRT_CORRUPT) {
		if (shmrt_py_guard_again(&self->base, outcome) < 0)
			return -1;
		struct shmrt_breaker *breaker = breaker_of(self);
		const struct shmrt_control *control = shmrt_py_guard_control(&self->base);
		PyObject *area = Py_XNewRef((PyObject *)self->base.area); /* the mapping stays meanwhile */
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_breaker_admit(breaker, control, holder, now, SHMRT_PY_GUARD_SLICE_NS, &ticket->admission, &retry_ns, &change);
		Py_END_ALLOW_THREADS
		Py_XDECREF(area);
	}
	tell(self, change);
	return outcome == SHMRT_OK ? 0 : refuse(self, retry_ns);
}

/* The exception that is set now, if any, stays set. */
int shmrt_py_breaker_settle(BreakerObject *self, const struct shmrt_py_ticket *ticket, enum shmrt_verdict result, int64_t duration_ns) {
	struct shmrt_breaker_change change;
	uint64_t now = 0;
	if (SHMRT_UNLIKELY(self->base.epoch != shmrt_py_guards_epoch)) {
		PyObject *error = shmrt_take_exception();
		int joined = shmrt_py_guard_join(&self->base);
		if (error != NULL)
			shmrt_give_exception(error);
		else if (joined < 0)
			return -1;
		if (joined < 0)
			return 0;
	}
	struct shmrt_breaker *breaker = breaker_of(self);
	uint64_t gate = shmrt_breaker_gate(breaker);
	if (SHMRT_LIKELY(result == SHMRT_VERDICT_SUCCESS && shmrt_gate_state(gate) == SHMRT_BREAKER_CLOSED && !shmrt_gate_is_watched(gate) &&
			 shmrt_gate_era(gate) == ticket->admission.era)) {
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_SUCCESSES, 1);
		return 0;
	}
	PyObject *error = shmrt_take_exception();
	if (shmrt_py_guard_now(&self->base, &now) < 0) {
		Py_XDECREF(error);
		return -1;
	}
	if (duration_ns < 0)
		duration_ns = ticket->start_ns != 0 && now >= ticket->start_ns ? (int64_t)(now - ticket->start_ns + 1) : 0;
	bool slow = self->slow_ns != 0 && result != SHMRT_VERDICT_IGNORED && (uint64_t)duration_ns > self->slow_ns;
	int outcome = shmrt_breaker_settle(breaker, &ticket->admission, result, slow, now, 0, &change);
	while (outcome != SHMRT_OK) {
		if (shmrt_py_guard_again(&self->base, outcome) < 0) {
			Py_XDECREF(error); /* a Ctrl-C counts more than what the call raised */
			return -1;
		}
		PyObject *area = Py_XNewRef((PyObject *)self->base.area);
		breaker = breaker_of(self);
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_breaker_settle(breaker, &ticket->admission, result, slow, now, SHMRT_PY_GUARD_SLICE_NS, &change);
		Py_END_ALLOW_THREADS
		Py_XDECREF(area);
	}
	if (error != NULL)
		shmrt_give_exception(error);
	tell(self, change);
	return 0;
}

/* What an exception says. -1: the user's predicate raised. */
static int judge_error(BreakerObject *self, PyObject *error) {
	if (!PyErr_GivenExceptionMatches(error, PyExc_Exception)) /* Ctrl-C, cancellation, exit: not the callee's failure */
		return SHMRT_VERDICT_IGNORED;
	if (self->exclude != NULL && PyErr_GivenExceptionMatches(error, self->exclude))
		return SHMRT_VERDICT_IGNORED;
	if (self->exclude_if == NULL)
		return SHMRT_VERDICT_FAILURE;
	PyObject *answer = PyObject_CallOneArg(self->exclude_if, error);
	int excluded = answer ? PyObject_IsTrue(answer) : -1;
	Py_XDECREF(answer);
	return excluded < 0 ? -1 : excluded ? SHMRT_VERDICT_IGNORED : SHMRT_VERDICT_FAILURE;
}

/* The call raised: its exception is set, and stays so unless something worse has come. */
int shmrt_py_breaker_settle_error(BreakerObject *self, const struct shmrt_py_ticket *ticket) {
	PyObject *error = shmrt_take_exception();
	int result = judge_error(self, error);
	if (result < 0) { /* the predicate is broken: the call failed, and both are told */
		report_unraisable(self->exclude_if);
		result = SHMRT_VERDICT_FAILURE;
	}
	shmrt_give_exception(error);
	return shmrt_py_breaker_settle(self, ticket, (enum shmrt_verdict)result, -1);
}

/* The call returned: what that says. -1: the user's predicate raised, and it counts as failed. */
int shmrt_py_breaker_settle_value(BreakerObject *self, const struct shmrt_py_ticket *ticket, PyObject *value) {
	enum shmrt_verdict result = SHMRT_VERDICT_SUCCESS;
	if (SHMRT_UNLIKELY(self->failure_if != NULL)) {
		PyObject *answer = PyObject_CallOneArg(self->failure_if, value);
		int failed = answer ? PyObject_IsTrue(answer) : -1;
		Py_XDECREF(answer);
		result = failed != 0 ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS;
		if (failed < 0)
			return shmrt_py_breaker_settle(self, ticket, result, -1), -1;
	}
	return shmrt_py_breaker_settle(self, ticket, result, -1);
}

/* ---- life --------------------------------------------------------------------------------------- */

/* _set_up(name, text, clock, (failure_threshold, success_threshold, half_open_max, window, window_size, min_calls, bucket_ns, slow_ns,
 * reset_ns, reset_max_ns, trial_ns), (growth, failure_rate, slow_rate), exclude, exclude_if, failure_if) */
static PyObject *breaker_set_up(BreakerObject *self, PyObject *args) {
	struct shmrt_breaker_settings s = {0};
	PyObject *name, *text, *clock, *exclude, *exclude_if, *failure_if;
	unsigned long long bucket, slow, reset, reset_max, trial;
	if (!PyArg_ParseTuple(args, "UUO(IIIIIIKKKKK)(ddd)OOO:_set_up", &name, &text, &clock, &s.failure_threshold, &s.success_threshold,
			      &s.half_open_max, &s.window, &s.window_size, &s.min_calls, &bucket, &slow, &reset, &reset_max, &trial, &s.growth,
			      &s.failure_rate, &s.slow_rate, &exclude, &exclude_if, &failure_if))
		return NULL;
	s.bucket_ns = bucket, s.slow_ns = slow, s.reset_ns = reset, s.reset_max_ns = reset_max, s.trial_ns = trial;
	if (!shmrt_breaker_settings_are_sound(&s)) {
		PyErr_SetString(PyExc_ValueError, "these settings make no breaker");
		return NULL;
	}
	_Static_assert(sizeof(s) <= sizeof(self->base.settings), "the settings fit");
	memcpy(&self->base.settings, &s, sizeof(s));
	self->slow_ns = s.slow_ns;
	self->is_timed = s.slow_ns != 0;
	if (shmrt_py_guard_set_up(&self->base, &breaker_kind, shmrt_breaker_body_bytes(&s), name, text, clock) < 0)
		return NULL;
	self->exclude = PyTuple_Check(exclude) && PyTuple_GET_SIZE(exclude) == 0 ? NULL : Py_NewRef(exclude);
	self->exclude_if = exclude_if == Py_None ? NULL : Py_NewRef(exclude_if);
	self->failure_if = failure_if == Py_None ? NULL : Py_NewRef(failure_if);
	Py_RETURN_NONE;
}

static int breaker_clear(BreakerObject *self) {
	Py_CLEAR(self->exclude);
	Py_CLEAR(self->exclude_if);
	Py_CLEAR(self->failure_if);
	return 0;
}

static int breaker_traverse(BreakerObject *self, visitproc visit, void *arg) {
	Py_VISIT(self->exclude);
	Py_VISIT(self->exclude_if);
	Py_VISIT(self->failure_if);
	return shmrt_py_guard_visit(&self->base, visit, arg);
}

static void breaker_dealloc(BreakerObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	breaker_clear(self);
	shmrt_py_guard_release(&self->base);
	type->tp_free(self);
	Py_DECREF(type);
}

/* ---- looks -------------------------------------------------------------------------------------- */

static PyObject *breaker_look(BreakerObject *self, PyObject *unused) {
	(void)unused;
	struct shmrt_breaker_side side;
	uint64_t now, left;
	uint32_t trials;
	if (shmrt_py_guard_enter(&self->base) < 0 || shmrt_py_guard_now(&self->base, &now) < 0)
		return NULL;
	shmrt_breaker_pass(breaker_of(self), now);
	shmrt_breaker_look(breaker_of(self), &side, &trials);
	int state = (int)shmrt_breaker_side_state(&side, now, &left);
	double since = side.since_ns < now ? (double)(now - side.since_ns) / 1e9 : 0.0;
	return Py_BuildValue("(idIIKKKIdI)", state, (double)left / 1e9, side.row, side.attempt, (unsigned long long)side.results,
			     (unsigned long long)side.failed, (unsigned long long)side.slow, trials, since, side.era);
}

static PyObject *breaker_state_now(BreakerObject *self, void *unused) {
	(void)unused;
	uint64_t now, left;
	if (shmrt_py_guard_enter(&self->base) < 0 || shmrt_py_guard_now(&self->base, &now) < 0)
		return NULL;
	return PyLong_FromLong((long)shmrt_breaker_state_at(breaker_of(self), now, &left));
}

static PyObject *breaker_set(BreakerObject *self, PyObject *argument) {
	long state = PyLong_AsLong(argument);
	struct shmrt_breaker_change change;
	uint64_t now;
	if ((state == -1 && PyErr_Occurred()) || shmrt_py_guard_enter(&self->base) < 0 || shmrt_py_guard_now(&self->base, &now) < 0)
		return NULL;
	if (state < SHMRT_BREAKER_CLOSED || state > SHMRT_BREAKER_DISABLED || state == SHMRT_BREAKER_HALF_OPEN)
		return PyErr_Format(PyExc_ValueError, "a breaker cannot be put into state %ld", state);
	int outcome = shmrt_breaker_set(breaker_of(self), (enum shmrt_breaker_state)state, now, 0, &change);
	while (outcome != SHMRT_OK) {
		if (shmrt_py_guard_again(&self->base, outcome) < 0)
			return NULL;
		struct shmrt_breaker *breaker = breaker_of(self);
		PyObject *area = Py_XNewRef((PyObject *)self->base.area); /* the mapping stays meanwhile */
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_breaker_set(breaker, (enum shmrt_breaker_state)state, now, SHMRT_PY_GUARD_SLICE_NS, &change);
		Py_END_ALLOW_THREADS
		Py_XDECREF(area);
	}
	tell(self, change);
	Py_RETURN_NONE;
}

static PyMethodDef breaker_methods[] = {
	{"_set_up", (PyCFunction)breaker_set_up, METH_VARARGS, "by the constructor, once"},
	{"_look", (PyCFunction)breaker_look, METH_NOARGS,
	 "(state, seconds left open, row, attempt, results, failed, slow, trials, seconds in that state, era)"},
	{"_set", (PyCFunction)breaker_set, METH_O, "_set(state)"},
	{"_overload", (PyCFunction)shmrt_py_guard_overload, METH_NOARGS, "_overload() -> refusals since the last report, which is the caller's to make; True; None"},
	{"_leave", (PyCFunction)shmrt_py_guard_leave, METH_O, "_leave(area): out of it, if it is in it"},
	SHMRT_PY_BREAKER_CALLS,
	{NULL, NULL, 0, NULL},
};
static PyGetSetDef breaker_getset[] = {
	SHMRT_PY_GUARD_GETSET,
	{"_state", (getter)breaker_state_now, NULL, "as the next call will find it", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef breaker_members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(BreakerObject, base.weakrefs), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};
static PyType_Slot breaker_slots[] = {
	{Py_tp_doc, "The base of CircuitBreaker: a call, and what its result does to a state that processes share."},
	{Py_tp_dealloc, breaker_dealloc},
	{Py_tp_traverse, breaker_traverse},
	{Py_tp_clear, breaker_clear},
	{Py_tp_methods, breaker_methods},
	{Py_tp_getset, breaker_getset},
	{Py_tp_members, breaker_members},
	{0, NULL},
};
static PyType_Spec breaker_spec = {
	.name = "shmrt._native.Breaker",
	.basicsize = sizeof(BreakerObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = breaker_slots,
};

int shmrt_py_add_breaker(PyObject *module) {
	shmrt_py_breaker_type = (PyTypeObject *)PyType_FromSpec(&breaker_spec);
	if (shmrt_py_breaker_type == NULL || shmrt_py_breaker_prepare() < 0)
		return -1;
	return PyModule_AddObjectRef(module, "Breaker", (PyObject *)shmrt_py_breaker_type);
}
