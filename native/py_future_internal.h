/* py_future_internal.h -- what the files of the future share; nobody else includes it.
 *
 * Nothing here is shared memory; all words belong to this process and the interpreter's lock guards them.
 *
 * The lock rule. While nobody asked for `_condition`, the interpreter's lock is the future's lock: a section that
 * changes the state must then call nothing that could release it. Once the condition exists every change of state
 * takes it, and looks at the state again afterwards, because acquiring may let other threads run. The condition,
 * the waiters and the callback list live in one block (`struct watch`) that most futures never get; a future that
 * has the block is *watched* and its origin is told so once.
 *
 * The method functions are named as in the table of py_future.c, which also has their documentation.
 */
#ifndef SHMRT_PY_FUTURE_INTERNAL_H
#define SHMRT_PY_FUTURE_INTERNAL_H

#include "py_future.h"

enum state { STATE_PENDING, STATE_RUNNING, STATE_CANCELLED, STATE_NOTIFIED, STATE_FINISHED, STATE_COUNT };

struct watch {
	PyObject *condition; /* NULL until asked for; then every change of state takes it */
	PyObject *waiters;   /* NULL until asked for */
	PyObject *callbacks; /* NULL until asked for */
	PyObject *chained;   /* asyncio's future that the outcome is copied to, before any callback; NULL: none */
	PyObject *guard;     /* told of the outcome before anybody else is; NULL: nobody asked for that, or it was told */
	bool guard_wants_value;
};

struct core_future {
	PyObject_HEAD
	const struct shmrt_future_origin *origin; /* NULL for one that somebody made by hand */
	PyObject *origin_object;
	uint64_t token;
	void *payload;   /* undecoded; given back by the decoder or by dealloc */
	PyObject *value; /* the result or the exception, once decoded or set */
	struct watch *watch;
	PyObject *worker;
	unsigned long decoder; /* the thread inside origin->decode; 0 if none */
	uint32_t attempts;
	uint8_t state;     /* enum state */
	uint8_t outcome : 2; /* enum shmrt_outcome; meaningful once value or payload is set */
	uint8_t watch_told : 1;
	uint8_t taken_back : 1; /* the origin gave the task back: whoever cancels now succeeds */
};

/* A lock of this process, and those who wait for it to be told (py_future_condition.c). */
struct sleeper;
struct condition {
	PyObject_HEAD
	struct sleeper *sleepers;   /* longest first */
	unsigned long owner;        /* thread; 0: free */
	uint32_t depth, blocked;    /* how often the owner took it; threads that want it */
	_Atomic uint32_t released;  /* raised when it becomes free; those sleep on it */
};

/* What all futures have in common: made by py_future.c, the type and the strings when the module is imported, the rest
 * together with the public class. */
struct shmrt__future_common {
	PyTypeObject *core_type;
	PyTypeObject *public_class; /* made on first use: importing concurrent.futures costs 10 ms */
	PyObject *state_names[STATE_COUNT]; /* the words of concurrent.futures._base */
	PyObject *cancelled_error, *invalid_state_error, *logger;
	PyTypeObject *condition_type;
	PyTypeObject *as_completed_type; /* the waiter of concurrent.futures.as_completed; NULL: it has none of that name */
	PyObject *chain_code; /* of asyncio's callback (shmrt/chained.py); NULL until the first is seen */
	PyObject *chained_type; /* asyncio.Future */
	PyObject *running_loop; /* asyncio's function: that of this thread, or None */
	PyObject *settle_chains, *copy_state; /* what is called in the loop, and what that calls unless it is a plain value */
	Py_ssize_t chain_loop, chain_destination; /* their places in the closure */
	PyObject *str_acquire, *str_release, *str_wait, *str_notify_all, *str_is_owned;
	PyObject *str_add_result, *str_add_exception, *str_add_cancelled;
	PyObject *str_lock, *str_finished_futures, *str_event, *str_set, *str_get_loop, *str_done, *str_set_result;
};
extern struct shmrt__future_common shmrt__future;

static inline struct core_future *core(PyObject *future) { return (struct core_future *)future; }
static inline bool is_done(const struct core_future *self) { return self->state >= STATE_CANCELLED; }
static inline bool is_cancelled(const struct core_future *self) {
	return self->state == STATE_CANCELLED || self->state == STATE_NOTIFIED;
}

/* ---- collector: why a future is off its list is told in py_future.c ---- */

static inline void shmrt__future_track(struct core_future *self) {
	if (!PyObject_GC_IsTracked((PyObject *)self))
		PyObject_GC_Track((PyObject *)self);
}

/* A dict of plain values is off the collector's list today and may be on it tomorrow; only a tuple stays off. */
static inline void shmrt__future_track_for(struct core_future *self, PyObject *value) {
	if (PyObject_IS_GC(value) && (!PyTuple_CheckExact(value) || PyObject_GC_IsTracked(value)))
		shmrt__future_track(self);
}

/* ---- py_future_watch.c: the watch block, the lock in it, what the origin is told ---- */

struct watch *shmrt__future_need_watch(struct core_future *self); /* NULL with MemoryError */
/* Store `made` (stolen) in *place unless another thread was faster; either way a new reference to what is there. */
PyObject *shmrt__future_keep_first(PyObject **place, PyObject *made);
PyObject *shmrt__future_need_condition(struct core_future *self); /* new reference */
/* Tell the origin once that this future needs the dispatcher. */
void shmrt__future_tell_watch(struct core_future *self);
/* Let the origin deliver what already arrived, unless only the dispatcher may complete this one. */
void shmrt__future_poll(struct core_future *self);
/* Whether this thread is inside `with future._condition`; the dispatcher could then never complete it. */
int shmrt__future_owns_condition(struct core_future *self);
int shmrt__future_acquire(struct core_future *self, PyObject **held);
void shmrt__future_release(PyObject *held);

/* ---- py_future_condition.c ---- */
PyObject *shmrt__condition_new(void);
int shmrt__condition_ready(void); /* makes the type */
int shmrt__condition_take_slowly(PyObject *condition); /* of one that is taken; -1: a signal handler raised */
void shmrt__condition_give_slowly(PyObject *condition); /* after the last release */
void shmrt__condition_tell_all(PyObject *condition);
static inline struct condition *shmrt__condition_of_ours(PyObject *condition) {
	return Py_TYPE(condition) == shmrt__future.condition_type ? (struct condition *)condition : NULL;
}

/* *held: the condition that was acquired, or NULL when the interpreter's lock suffices. -1 with an exception. */
static inline int shmrt__future_lock(struct core_future *self, PyObject **held) {
	*held = NULL;
	if (SHMRT_LIKELY(self->watch == NULL || self->watch->condition == NULL))
		return 0;
	PyObject *object = self->watch->condition;
	struct condition *condition = shmrt__condition_of_ours(object);
	if (condition == NULL)
		return shmrt__future_acquire(self, held);
	Py_INCREF(object);
	if (SHMRT_LIKELY(condition->owner == 0)) {
		condition->owner = PyThread_get_thread_ident();
		condition->depth = 1;
	} else if (shmrt__condition_take_slowly(object) < 0) {
		Py_DECREF(object);
		return -1;
	}
	*held = object;
	return 0;
}
static inline void shmrt__future_unlock(PyObject *held) {
	if (held == NULL)
		return;
	struct condition *condition = shmrt__condition_of_ours(held);
	if (condition == NULL) {
		shmrt__future_release(held);
		return;
	}
	if (--condition->depth == 0)
		shmrt__condition_give_slowly(held);
	Py_DECREF(held);
}

/* ---- py_future_callbacks.c: who is told of a change ---- */
int shmrt__future_run_callbacks(struct core_future *self, bool propagate); /* -1: one raised no Exception, and `propagate` */
PyObject *shmrt__future_set_guard(PyObject *future, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt__future_refuse(PyObject *future, PyObject *exception);
/* Tells the guard, once: outcome, and the exception, the value if it wants that, or None. */
void shmrt__future_tell_guard(struct core_future *self, enum shmrt_outcome outcome, PyObject *object);
void shmrt__future_tell_waiters(struct core_future *self, PyObject *method); /* its name */
void shmrt__future_notify(struct core_future *self);

/* ---- py_future_batch.c ---- */
void shmrt__future_tell(PyObject *waiter, PyObject *future, PyObject *method); /* now, or with the batch of this thread */
/* Hands the outcome to the loop of its `chained`, now or with the batch of this thread. */
void shmrt__future_tell_chained(struct core_future *self);
void shmrt__future_batch_flush(void); /* what this thread has put off */

/* ---- py_future_chain.c ---- */
/* The asyncio future that this callback of asyncio's copies an outcome to (borrowed); NULL: it is another callback. */
PyObject *shmrt__future_chained_by(PyObject *callback);
/* Of a future that is done: has the loop of `chained` copy the outcome in its next round. 0: it runs in another thread, or not
 * at all; -1 with an exception. */
int shmrt__future_chain_done(PyObject *source, PyObject *chained);
int shmrt__future_hand_over(PyObject *loop, PyObject *chains); /* takes the list; -1 with an exception */
extern PyMethodDef shmrt__future_settle_chains; /* of one list; called by the loop */

/* ---- py_future_value.c: decoding, once ---- */
void shmrt__future_drop_payload(struct core_future *self, void *payload);
int shmrt__future_need_value(struct core_future *self);
/* The answer of result() or exception() for a future that is done. */
PyObject *shmrt__future_answer(struct core_future *self, bool want_exception);

/* ---- py_future_methods.c: arguments and words ---- */
PyObject *shmrt__future_one_argument(const char *method, const char *name, PyObject *const *args, Py_ssize_t nargs,
				     PyObject *kwnames, bool optional);
#define SHMRT__FUTURE_ONE_ARGUMENT(method, name, optional)                                                             \
	shmrt__future_one_argument(method, name, args, nargs, kwnames, optional)
const char *shmrt__future_short_name(PyObject *object);
PyObject *shmrt__future_done(PyObject *self, PyObject *ignored);
PyObject *shmrt__future_cancelled(PyObject *self, PyObject *ignored);
PyObject *shmrt__future_running(PyObject *future, PyObject *ignored);
PyObject *shmrt__future_await(PyObject *self);
PyObject *shmrt__future_repr(PyObject *future);

/* ---- methods of the other files ---- */
#define SHMRT__FUTURE_METHOD(name) PyObject *shmrt__future_##name(PyObject *, PyObject *const *, Py_ssize_t, PyObject *)
SHMRT__FUTURE_METHOD(result);            /* py_future_wait.c */
SHMRT__FUTURE_METHOD(exception);         /* py_future_wait.c */
SHMRT__FUTURE_METHOD(add_done_callback); /* py_future_callbacks.c */
SHMRT__FUTURE_METHOD(set_result);        /* py_future_state.c, as all that follow */
SHMRT__FUTURE_METHOD(set_exception);
PyObject *shmrt__future_cancel(PyObject *future, PyObject *ignored);
PyObject *shmrt__future_kill(PyObject *future, PyObject *ignored);
PyObject *shmrt__future_set_running_or_notify_cancel(PyObject *future, PyObject *ignored);

/* ---- py_future_attributes.c: the attributes of the standard library's futures, and ours ---- */
extern PyGetSetDef shmrt__future_getset[];
int shmrt__future_setattro(PyObject *self, PyObject *name, PyObject *value);

#endif
