/* py_submit.c -- the way of a call into the ledger.
 *
 * A submit encodes the call, takes a task, makes its future and hands both to the hub; the table of
 * functions is kept by Python (shmrt.process.functions), with the last function remembered here.
 */
#include "py_hub.h"
#include "py_parts.h"
#include "py_turn.h"

int shmrt_py_check_open(ShmrtPoolCore *self) {
	if (shmrt_py_hub_check(self->hub) < 0)
		return -1;
	if (self->pool == NULL || self->pool->closed) {
		PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
		return -1;
	}
	if (self->pool->broken) {
		PyObject *error = PyObject_CallFunction(self->hub->make_error, "s{sOsIsKsOsI}", "broken", "pool", self->name, "worker",
							0U, "elapsed_ns", 0ULL, "stack", Py_None, "attempts", 0U);
		if (error)
			PyErr_SetObject((PyObject *)Py_TYPE(error), error);
		Py_XDECREF(error);
		return -1;
	}
	return 0;
}

int shmrt_py_number_of(ShmrtPoolCore *self, PyObject *function, PyObject *retry_on, uint32_t *number) {
	if (function == self->last_function && retry_on == self->last_retry_on) {
		int same = self->last_parts == NULL ? 1 : shmrt_py_parts_are_same(self->last_parts);
		if (same < 0)
			return -1;
		if (same == 1 && self->last_function == function) { /* the check may have run code that submits */
			*number = self->last_number;
			return 0;
		}
	}
	PyObject *answer = PyObject_CallFunctionObjArgs(self->register_function, function, retry_on, NULL);
	if (answer == NULL)
		return -1;
	/* A number, and how long it may be remembered: True (the pickle of an importable function never changes), as long as these
	 * parts are the same, or None. */
	PyObject *parts;
	unsigned int value;
	int parsed = PyArg_ParseTuple(answer, "IO", &value, &parts);
	if (parsed && parts != Py_True && parts != Py_None && !shmrt_py_is_parts(parts)) {
		PyErr_Format(PyExc_TypeError, "a function is remembered by True, None or its parts, not by %R", parts);
		parsed = 0;
	}
	if (parsed) {
		*number = value;
		if (parts != Py_None) {
			Py_XSETREF(self->last_function, Py_NewRef(function));
			Py_XSETREF(self->last_retry_on, Py_NewRef(retry_on));
			Py_XSETREF(self->last_parts, parts == Py_True ? NULL : Py_NewRef(parts));
			self->last_number = value;
		}
	}
	Py_DECREF(answer);
	return parsed ? 0 : -1;
}

/* Blocks of a message that was just finished become SENT: from now on the ledger answers for them. */
static void blocks_sent(ShmrtPoolCore *self, struct shmrt_message *message) {
	struct shmrt_arena *arena = &self->hub->arena->arena;
	for (uint16_t i = 0; i < message->block_count; i++) {
		int moved = shmrt_arena_move(arena, message->blocks[i].block, message->blocks[i].generation, message->states[i],
					     self->hub->arena->owner, SHMRT_BLOCK_SENT, self->hub->arena->owner);
		SHMRT_ASSERT(moved == SHMRT_OK); /* we own it */
	}
}

/* Encoder -> payload. Waits while shared memory is short and tasks under way will free some; what they have freed before they were
 * found to be through counts, too. */
int shmrt_py_finish_payload(ShmrtPoolCore *self, struct shmrt_encoder *encoder, struct shmrt_payload *payload) {
	struct shmrt_message message;
	bool busy = true;
	for (int tries = 0;; tries++) {
		struct shmrt_shortage shortage = {0};
		int result = shmrt_message_finish(encoder, self->hub->arena, self->inline_max, &message, &shortage);
		if (result == SHMRT_OK)
			break;
		if (result == SHMRT_SYSTEM && PyErr_Occurred())
			return -1;
		if (result == SHMRT_TOO_LARGE) {
			shmrt_raise_too_large(shortage.needed ? shortage.needed : encoder->size, self->hub->arena->arena.limit_bytes);
			return -1;
		}
		if (result != SHMRT_NO_SPACE || !busy || tries > 6000) {
			shmrt_raise_shortage(&shortage);
			return -1;
		}
		busy = shmrt_hub_is_busy(&self->hub->hub);
		Py_BEGIN_ALLOW_THREADS
		bool moved;
		uint64_t next_ns = shmrt_hub_pump(&self->hub->hub, &moved), now_ns = shmrt_now_ns();
		if (!moved && busy)
			result = shmrt_hub_park(&self->hub->hub, next_ns < now_ns + 10000000 ? next_ns : now_ns + 10000000, true, NULL);
		Py_END_ALLOW_THREADS
		if (PyErr_CheckSignals() < 0)
			return -1;
		shmrt_py_hub_apply(self->hub, false);
	}
	int result = shmrt_payload_set(payload, message.inline_bytes, message.inline_size, message.flags, message.blocks, message.block_count);
	if (result == SHMRT_OK)
		blocks_sent(self, &message);
	shmrt_message_clear(&message, self->hub->arena, result != SHMRT_OK);
	if (result != SHMRT_OK) {
		PyErr_NoMemory();
		return -1;
	}
	return 0;
}

int shmrt_py_hand_over(ShmrtPoolCore *self, struct shmrt_task *task, PyObject *future) {
	task->future = Py_NewRef(future);
	task->pool_object = Py_NewRef((PyObject *)self);
	int result = shmrt_hub_submit(self->pool, task);
	if (result == SHMRT_OK) {
		shmrt_future_set_token(future, task->id);
		return 0;
	}
	task->future = task->pool_object = NULL;
	Py_DECREF(future);
	Py_DECREF(self);
	if (result != SHMRT_CLOSED)
		PyErr_NoMemory();
	else if (shmrt_py_check_open(self) == 0)
		PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
	return -1;
}

struct call_options {
	int64_t timeout_ns;
	int64_t deadline_ns; /* from now; SHMRT_FOREVER: none of its own */
	bool inherits;       /* has no more time than the task that submits it */
	uint32_t max_attempts;
	int32_t priority, affinity;
	uint8_t flags;
	bool passes_on;
	PyObject *retry_on;
};

static PyObject *submit(ShmrtPoolCore *self, const struct call_options *options, PyObject *function, PyObject *const *args,
			Py_ssize_t nargs, PyObject *kwnames) {
	uint32_t number;
	if (shmrt_py_check_open(self) < 0)
		return NULL;
	ShmrtHub *hub = self->hub;
	if (atomic_load_explicit(&hub->hub.completed_count, memory_order_relaxed) > 64) /* a hint: let go of what nobody asks for */
		shmrt_py_hub_apply(hub, false);
	if (shmrt_py_number_of(self, function, options->retry_on, &number) < 0)
		return NULL;
	struct shmrt_encoder own = {0}, *encoder = self->encoding ? &own : &self->encoder;
	bool shared = encoder == &self->encoder;
	if (shared)
		self->encoding = true;
	struct shmrt_task *task = NULL;
	PyObject *future = NULL;
	shmrt_encoder_reset(encoder);
	encoder->passes_on = options->passes_on;
	if (shmrt_encode_call(encoder, args, nargs, kwnames) < 0)
		goto done;
	task = shmrt_hub_task_new(&hub->hub);
	if (task == NULL) {
		PyErr_NoMemory();
		goto done;
	}
	if (shmrt_py_finish_payload(self, encoder, &task->arguments) < 0)
		goto done;
	task->function = number;
	task->timeout_ns = options->timeout_ns;
	task->max_attempts = options->max_attempts;
	task->priority = options->priority;
	task->affinity = options->affinity;
	task->flags = options->flags;
	if (options->deadline_ns != SHMRT_FOREVER)
		task->deadline_ns = shmrt_now_ns() + (uint64_t)options->deadline_ns;
	if (options->inherits)
		task->deadline_ns = shmrt_turn_limit(task->deadline_ns);
	future = shmrt_future_new((PyObject *)hub, &shmrt_hub_origin, 0);
	if (future != NULL && shmrt_py_hand_over(self, task, future) == 0)
		task = NULL; /* the ledger's now */
	else
		Py_CLEAR(future);
done:
	if (task)
		shmrt_hub_task_free(&hub->hub, task);
	if (encoder->buffer_count > 0)
		shmrt_encoder_reset(encoder); /* else it would hold the last arrays until the next submit */
	if (shared)
		self->encoding = false;
	else
		shmrt_encoder_clear(&own);
	return future;
}

PyObject *shmrt_py_pool_submit(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	if (nargs < 1) {
		PyErr_SetString(PyExc_TypeError, "submit() needs the function to call as its first positional argument");
		return NULL;
	}
	if (!PyCallable_Check(args[0])) {
		PyErr_Format(PyExc_TypeError, "submit() needs a callable, not %R", args[0]);
		return NULL;
	}
	struct call_options options = {
		.timeout_ns = self->timeout_ns, .deadline_ns = SHMRT_FOREVER, .inherits = true, .max_attempts = self->max_attempts,
		.affinity = -1, .retry_on = Py_None};
	return submit(self, &options, args[0], args + 1, nargs - 1, kwnames);
}

/* submit_with((timeout_ns, deadline_ns, max_attempts, priority, affinity, retry_on, flags), fn, *args, **kwargs)
 * flags: 1 (or True) runs a task again that ran out of time; 2: the arguments' arrays were received, and nobody else has them */
PyObject *shmrt_py_pool_submit_with(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	struct call_options options = {0};
	long long timeout_ns, deadline_ns;
	int flags;
	if (nargs < 2 || !PyTuple_Check(args[0]) || !PyCallable_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "submit_with() needs an options tuple and a callable");
		return NULL;
	}
	if (!PyArg_ParseTuple(args[0], "LLIiiOi", &timeout_ns, &deadline_ns, &options.max_attempts, &options.priority, &options.affinity,
			      &options.retry_on, &flags))
		return NULL;
	options.timeout_ns = timeout_ns < 0 ? SHMRT_FOREVER : timeout_ns;
	options.deadline_ns = deadline_ns < 0 ? SHMRT_FOREVER : deadline_ns;
	options.inherits = deadline_ns != -1; /* -1: none at all, whatever the task that submits has; -2: none of its own */
	options.flags = flags & 1 ? SHMRT_TASK_RETRY_TIMEOUT : 0;
	options.passes_on = flags & 2;
	return submit(self, &options, args[1], args + 2, nargs - 2, kwnames);
}
