/* py_bulkhead_permits.c -- the permits that one object holds: taken, waited for, given back. See py_bulkhead.c. */
#include "py_bulkhead.h"

#include "py_deadline.h"

/* What was taken before a fork is its parent's. */
static void forget_foreign(BulkheadObject *self) {
	uint32_t me = shmrt_owner_self();
	if (SHMRT_LIKELY(self->held_by == me))
		return;
	for (uint32_t i = 0; i < self->held_count; i++)
		self->held[i].permit.word = 0;
	self->held_by = me;
}

static int make_room(BulkheadObject *self) {
	if (self->held_count < self->held_room)
		return 0;
	uint32_t room = self->held_room ? self->held_room * 2 : 8;
	struct held *held = realloc(self->held, room * sizeof(*held));
	if (held == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	self->held = held;
	self->held_room = room;
	return 0;
}

int shmrt_py_bulkhead_ready(BulkheadObject *self) {
	if (shmrt_py_guard_enter(&self->base) < 0)
		return -1;
	forget_foreign(self);
	return 0;
}

/* What stands on the stack with word 0 is given back already. The area may go with it. */
static int give_one_back(struct held *held) {
	int outcome = SHMRT_OK;
	if (held->permit.word != 0)
		outcome = shmrt_bulkhead_give_back(held->bulkhead, 0, &held->permit);
	if (SHMRT_UNLIKELY(outcome == SHMRT_INTERRUPTED)) { /* in a moment without the mutex, whatever signals say */
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_bulkhead_give_back(held->bulkhead, SHMRT_PY_GUARD_SLICE_NS, &held->permit);
		Py_END_ALLOW_THREADS
	}
	Py_XDECREF((PyObject *)held->area);
	return outcome;
}

void shmrt_py_bulkhead_leave_line(struct shmrt_bulkhead *bulkhead, struct shmrt_permit *place) {
	if (place->word == 0)
		return;
	int outcome;
	Py_BEGIN_ALLOW_THREADS
	outcome = shmrt_bulkhead_leave_line(bulkhead, SHMRT_PY_GUARD_SLICE_NS, place);
	Py_END_ALLOW_THREADS
	(void)outcome;
}

int shmrt_py_bulkhead_try(BulkheadObject *self, struct shmrt_permit *place, uint32_t *bell) {
	struct shmrt_permit permit;
	if (make_room(self) < 0)
		return SHMRT_PY_RAISED;
	/* Where it belongs now: while the GIL is free another thread may join it elsewhere. */
	struct shmrt_holder holder = shmrt_py_guard_holder(&self->base);
	struct shmrt_bulkhead *bulkhead = shmrt_py_bulkhead_of(self);
	const struct shmrt_control *control = shmrt_py_guard_control(&self->base);
	AreaObject *area = (AreaObject *)Py_XNewRef((PyObject *)self->base.area);
	int outcome = shmrt_bulkhead_take(bulkhead, control, holder, 0, &permit, place, bell);
	while (outcome == SHMRT_INTERRUPTED || outcome == SHMRT_CORRUPT) {
		if (shmrt_py_guard_again(&self->base, outcome) < 0) {
			Py_XDECREF((PyObject *)area);
			return SHMRT_PY_RAISED;
		}
		Py_BEGIN_ALLOW_THREADS
		outcome = shmrt_bulkhead_take(bulkhead, control, holder, SHMRT_PY_GUARD_SLICE_NS, &permit, place, bell);
		Py_END_ALLOW_THREADS
	}
	struct held held = {permit, bulkhead, area};
	if (outcome == SHMRT_OK && make_room(self) == 0) { /* other threads may have filled it while the GIL was free */
		self->held[self->held_count++] = held;
		return SHMRT_OK;
	}
	if (outcome == SHMRT_OK) {
		give_one_back(&held);
		outcome = SHMRT_PY_RAISED;
	} else {
		Py_XDECREF((PyObject *)area);
	}
	return outcome;
}

int shmrt_py_bulkhead_acquire(BulkheadObject *self, int64_t timeout_ns) {
	struct shmrt_permit place = {0};
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	bool waits = self->may_wait && timeout_ns > 0, waited = false;
	for (;;) {
		uint32_t bell = 0;
		if (shmrt_py_bulkhead_ready(self) < 0)
			return -1;
		struct shmrt_bulkhead *bulkhead = shmrt_py_bulkhead_of(self);
		AreaObject *area = (AreaObject *)Py_XNewRef((PyObject *)self->base.area); /* the mapping stays meanwhile */
		uint64_t epoch = shmrt_py_guards_epoch;
		int outcome = shmrt_py_bulkhead_try(self, waits ? &place : NULL, &bell);
		int64_t left = outcome == SHMRT_EMPTY && waits ? shmrt_py_time_left(&deadline) : 0;
		if (outcome == SHMRT_EMPTY && left > 0) {
			if (!waited)
				shmrt_guard_count(&bulkhead->guard, SHMRT_BULKHEAD_WAITED, 1);
			waited = true;
			int woken;
			Py_BEGIN_ALLOW_THREADS
			woken = shmrt_futex_wait(&bulkhead->bell, bell, left < SHMRT_BULKHEAD_SLICE_NS ? left : SHMRT_BULKHEAD_SLICE_NS);
			Py_END_ALLOW_THREADS
			(void)woken; /* whatever it was, the next look tells */
			int signalled = PyErr_CheckSignals();
			if (signalled < 0 || epoch != shmrt_py_guards_epoch) /* or it belongs to another runtime now */
				shmrt_py_bulkhead_leave_line(bulkhead, &place);
			Py_XDECREF((PyObject *)area);
			if (signalled < 0)
				return -1;
			continue;
		}
		shmrt_py_bulkhead_leave_line(bulkhead, &place);
		if (outcome == SHMRT_EMPTY || outcome == SHMRT_FULL)
			shmrt_guard_count(&bulkhead->guard, waited ? SHMRT_BULKHEAD_TIMED_OUT : SHMRT_BULKHEAD_REFUSED, 1);
		Py_XDECREF((PyObject *)area);
		return outcome == SHMRT_OK ? 1 : outcome == SHMRT_EMPTY || outcome == SHMRT_FULL ? 0 : -1;
	}
}

int shmrt_py_bulkhead_give_back(BulkheadObject *self) {
	forget_foreign(self);
	if (self->held_count == 0)
		return 0;
	struct held held = self->held[--self->held_count];
	int outcome = give_one_back(&held);
	return outcome == SHMRT_OK ? 0 : shmrt_py_guard_again(&self->base, outcome);
}

void shmrt_py_bulkhead_forget(BulkheadObject *self, PyObject *area) {
	for (uint32_t i = 0; i < self->held_count; i++)
		if (self->held[i].area != NULL && (PyObject *)self->held[i].area == area) {
			self->held[i] = (struct held){0};
			Py_DECREF(area);
		}
}

void shmrt_py_bulkhead_drop_all(BulkheadObject *self) {
	forget_foreign(self);
	while (self->held_count > 0)
		(void)give_one_back(&self->held[--self->held_count]); /* corrupt memory: nobody counts on it */
	free(self->held);
	self->held = NULL;
}
