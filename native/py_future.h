/* py_future.h -- the C half of shmrt's Future and what it needs from whoever completes it.
 *
 * `CoreFuture` is a heap type with a fixed struct right after PyObject_HEAD; the public class is
 * type("Future", (CoreFuture, concurrent.futures.Future), {"__slots__": ()}), made on first use, so that
 * isinstance, as_completed, wait, asyncio.wrap_future work. Condition, waiters and callback list are made only
 * when somebody asks for them; from then on the future is *watched*.
 *
 * A result arrives as an undecoded message and is decoded by the first thread that asks for it, or as an object. No user
 * code runs while a bare future is completed.
 */
#ifndef SHMRT_PY_FUTURE_H
#define SHMRT_PY_FUTURE_H

#include "py_module.h"

enum shmrt_outcome {
	SHMRT_OUTCOME_VALUE = 1,     /* payload decodes to the result */
	SHMRT_OUTCOME_EXCEPTION = 2, /* payload decodes to the exception */
	SHMRT_OUTCOME_CANCELLED = 3,
};

/* What the future's origin offers; all are called with the GIL held. `origin` is borrowed from the future,
 * which owns one reference to `origin_object`. `token` is the origin's number for the task. */
struct shmrt_future_origin {
	/* Complete whatever bare futures can be completed now. Runs no user code. */
	void (*poll)(PyObject *origin_object);
	/* Block (GIL released) until `future` is done or timeout_ns passed. 1 done, 0 not, -1 exception set. */
	int (*wait)(PyObject *origin_object, PyObject *future, int64_t timeout_ns);
	/* Take the task back if it has not begun. 1 taken back (the caller marks the future cancelled), 0 too late. */
	int (*cancel)(PyObject *origin_object, uint64_t token);
	/* End the task even if it runs; the future then ends in CancelledError. 1 ordered, 0 already done. */
	int (*kill)(PyObject *origin_object, uint64_t token);
	/* This future now has a condition or callbacks: complete it from the dispatcher thread. */
	void (*watch)(PyObject *origin_object, uint64_t token);
	/* True once user code for it was begun (for Future.running()). */
	int (*running)(PyObject *origin_object, uint64_t token);
	/* This future was completed, but not by the origin: threads that wait for it have to look again. May be NULL. */
	void (*settled)(PyObject *origin_object);
	/* New reference: the decoded value or exception object; NULL with an exception set. `payload` as given to complete. */
	PyObject *(*decode)(PyObject *origin_object, void *payload, enum shmrt_outcome outcome);
	/* The payload is no longer needed (decoded, or the future died). */
	void (*drop)(PyObject *origin_object, void *payload);
};

/* The public class (borrowed); the first call makes it and imports concurrent.futures. NULL with an exception set. */
PyObject *shmrt_future_class(void);
/* A new pending future of the public class (new reference). Without an origin (both NULL) it is completed by
 * set_result and set_exception, like a standard one. */
PyObject *shmrt_future_new(PyObject *origin_object, const struct shmrt_future_origin *origin, uint64_t token);
/* For an origin that has the number only when the task is on its way: before the interpreter's lock is given up. */
void shmrt_future_set_token(PyObject *future, uint64_t token);
/* True if a condition, waiters or callbacks exist: only the dispatcher thread may complete it. */
int shmrt_future_is_watched(PyObject *future);
/* Completes it: takes over `payload` (may be NULL for CANCELLED). A future that is already done or cancelled drops it
 * silently. For a watched one takes its condition, notifies waiters and runs callbacks (dispatcher thread only).
 * worker: borrowed string or NULL; attempts: how often it was begun. Never fails, never leaves an exception set. */
void shmrt_future_complete(PyObject *future, enum shmrt_outcome outcome, void *payload, PyObject *worker, uint32_t attempts);
/* The same with a ready Python object (value or exception instance), stolen reference. */
void shmrt_future_complete_object(PyObject *future, enum shmrt_outcome outcome, PyObject *object, PyObject *worker, uint32_t attempts);
int shmrt_future_is_done(PyObject *future);
/* Its origin's number for the task. -1 with TypeError: it is no future of an origin. */
int shmrt_future_token(PyObject *future, uint64_t *token);
/* Around many completions by one thread: waiters and event loops are woken once for many of them (py_future_batch.c). Under
 * the interpreter's lock; if another thread has a batch open, this one has none. */
void shmrt_future_batch_begin(void);
void shmrt_future_batch_end(void);

#endif
