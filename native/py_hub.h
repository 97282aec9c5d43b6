/* py_hub.h -- the Python objects around the hub, shared by py_hub.c, py_hub_*.c, py_pool.c, py_front.c and py_submit.c. */
#ifndef SHMRT_PY_HUB_H
#define SHMRT_PY_HUB_H

#include "hub.h"
#include "py_future.h"
#include "py_message.h"

#define SHMRT_SIGNAL_NS UINT64_C(250000000)

typedef struct {
	PyObject_HEAD
	struct shmrt_hub hub;
	struct shmrt_control *control;
	uint64_t control_size;
	ShmrtArena *arena;
	PyObject *make_error;        /* shmrt.process.remote.make_error(kind, facts) */
	PyObject *unpack_exception;  /* shmrt.process.remote.unpack_exception(packed, worker, pid, attempt) */
	struct shmrt_task *deferred; /* finished tasks of watched futures, for the dispatcher thread */
	struct shmrt_task **deferred_end;
	uint32_t waiters;            /* threads inside wait that have looked and do not hold the GIL */
	uint32_t vain_spins;         /* py_hub_origin.c: waits that spun in vain */
	uint64_t signal_ns;          /* how late Ctrl-C may be noticed by a thread that waits for a result, at worst */
	uint32_t forks;              /* shmrt_py_fork_count when it was opened */
	bool closed;
	bool dispatcher_wanted;      /* something waits for the dispatcher thread outside of our lists */
} ShmrtHub;

typedef struct {
	PyObject_HEAD
	ShmrtHub *hub;
	struct shmrt_hub_pool *pool; /* NULL once removed; not freed while anybody waits in it */
	uint32_t waiters;            /* threads inside wait_pending; under the GIL */
	PyObject *name;
	PyObject *worker_names;      /* list of str, by worker index */
	PyObject *register_function; /* callable(fn, retry_on) -> number; keeps the table */
	PyObject *last_function, *last_retry_on; /* fast path: the last function, whose pickle is still the same */
	PyObject *last_parts; /* as long as these are; NULL: for good (py_parts.h) */
	uint32_t last_number;
	struct shmrt_encoder encoder;
	bool encoding;               /* the encoder is in use: pickling ran user code that submits again */
	uint64_t inline_max;
	int64_t timeout_ns;          /* defaults of a task */
	uint32_t max_attempts;
} ShmrtPoolCore;

extern const struct shmrt_future_origin shmrt_hub_origin; /* py_hub_origin.c */

/* ---- py_hub.c: the owner ---- */
extern _Atomic uint32_t shmrt_py_fork_count; /* raised in every forked child */
/* Whether this process opened the hub; a forked child owns nothing of it. */
static inline bool shmrt_py_hub_is_ours(const ShmrtHub *self) {
	return atomic_load_explicit(&shmrt_py_fork_count, memory_order_relaxed) == self->forks; /* ours alone */
}

/* Raised by a forked child that uses what its parent owns: RuntimeDown naming both pids. 0: this is the owner. */
int shmrt_py_hub_check(ShmrtHub *self);

/* ---- py_hub_deliver.c ---- */
/* Hands finished tasks over. dispatcher: also those of watched futures. Returns how many. */
Py_ssize_t shmrt_py_hub_apply(ShmrtHub *self, bool dispatcher);
/* The object of a payload, whose blocks and copies it takes over. New reference, or NULL with an exception. */
PyObject *shmrt_py_hub_decode_payload(ShmrtHub *self, struct shmrt_payload *payload);
/* The exception that these packed arguments are. */
PyObject *shmrt_py_hub_unpack(ShmrtHub *self, struct shmrt_task *task, PyObject *packed, uint32_t attempts);
/* The exception for an outcome that has no message of the worker's. */
PyObject *shmrt_py_hub_describe(ShmrtHub *self, struct shmrt_task *task, enum shmrt_task_outcome outcome,
				const struct shmrt_crash *crash, uint32_t attempts);
void shmrt_py_hub_free_task(ShmrtHub *self, struct shmrt_task *task);
/* For shmrt_hub_origin: `payload` is the task. */
PyObject *shmrt_py_hub_decode(PyObject *hub, void *payload, enum shmrt_outcome outcome);
void shmrt_py_hub_drop(PyObject *hub, void *payload);

/* ---- py_hub_origin.c ---- */
/* Waits until the future is done (GIL released). 1 done, 0 timeout, -1 exception. */
int shmrt_py_hub_wait(PyObject *hub, PyObject *future, int64_t timeout_ns);

int shmrt_py_add_pool(PyObject *module); /* py_pool.c */

/* ---- py_submit.c ---- */
/* Number of a function for this pool, as the table in Python gives it. -1 with an exception. */
int shmrt_py_number_of(ShmrtPoolCore *self, PyObject *function, PyObject *retry_on, uint32_t *number);
int shmrt_py_check_open(ShmrtPoolCore *self); /* -1: shut down, broken, or not ours; exception set */
/* Encoder -> payload. Waits while shared memory is short and tasks under way will free some. */
int shmrt_py_finish_payload(ShmrtPoolCore *self, struct shmrt_encoder *encoder, struct shmrt_payload *payload);
/* The task, with all but its future, becomes the ledger's, and its outcome that future's. -1 with an exception: it stays ours. */
int shmrt_py_hand_over(ShmrtPoolCore *self, struct shmrt_task *task, PyObject *future);
PyObject *shmrt_py_pool_submit(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *shmrt_py_pool_submit_with(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

#endif
