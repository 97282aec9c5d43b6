/* py_worker.h -- the state of a worker's loop, shared by py_worker.c, py_worker_receive.c, py_worker_task.c and py_publish.c. */
#ifndef SHMRT_PY_WORKER_H
#define SHMRT_PY_WORKER_H

#include "hub_chunk.h"
#include "part.h"
#include "py_message.h"

typedef struct {
	PyObject_HEAD
	struct shmrt_control *control;
	struct shmrt_lanes *lanes;
	uint64_t lanes_size;
	struct shmrt_slot *slot;                   /* NULL: it stands by */
	uint32_t slot_count, slot_index, hub_slot; /* of the table, ours, and that of the hub we serve */
	struct shmrt_lane_consumer tasks;
	struct shmrt_lane_producer results;
	ShmrtArena *arena;
	struct shmrt_encoder encoder, log_encoder;
	PyObject **functions; /* by number: the record as it came, (callable, retry_on), or what its unpickling raised */
	uint32_t function_count;
	PyObject *pack_exception; /* shmrt.process.remote.pack_exception */
	struct shmrt_part part; /* of the chunk that is running */
	uint64_t current_task;
	bool ring_deferred, stop_requested;
	uint64_t spin_ns; /* how long to look for the next task before sleeping */
	uint64_t started, done, busy_ns, blocked_ns, logs_dropped;
} WorkerLoop;

/* ---- py_worker_receive.c: blocks and functions ---- */
/* Python objects for the record's blocks. movable: it runs once only, so the blocks become ours and writable.
 * 0, or -1 with an exception and nothing in `buffers` to be released. */
int shmrt_worker_receive_blocks(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body, bool movable,
				PyObject **buffers);
static inline void shmrt_worker_release_buffers(PyObject **buffers, uint16_t count) {
	while (count)
		Py_DECREF(buffers[--count]);
}
/* Views that outlive a task which may run again: their blocks become KEPT by us, so the sender does not re-use them. Before
 * the commit: after it the sender re-uses what is SENT. */
void shmrt_worker_keep_or_leave(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body,
				PyObject **buffers);
/* Keeps a function record as it came. -1 with MemoryError. */
int shmrt_worker_learn_function(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body);
/* The (callable, retry_on) of a function, or the exception that its unpickling raised; borrowed. */
PyObject *shmrt_worker_function_of(WorkerLoop *self, uint32_t number);

/* ---- py_worker_task.c ---- */
/* 0: went on; 1: the worker must end (SystemExit); -1: exception that ends the loop. */
int shmrt_worker_run_task(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body);
/* Task, start and phase are stored, and no order to end stands against it (H2). -1: a signal handler raised. */
int shmrt_worker_begin(WorkerLoop *self, uint64_t id, uint64_t *start_ns);
/* Behind its last outcome. */
void shmrt_worker_end(WorkerLoop *self, uint64_t start_ns, uint32_t tasks);

/* ---- py_worker_chunk.c ---- */
/* As run_task, for the items of a chunk. */
int shmrt_worker_run_chunk(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body);
/* TERM, or the word that its handler and the root store in the slot: looked at between two tasks. */
static inline bool shmrt_worker_stop_wanted(const WorkerLoop *self) {
	return self->stop_requested || atomic_load_explicit(&self->slot->stop_requested, memory_order_relaxed); /* a flag: its ring follows */
}

/* ---- py_publish.c: the way of a result into its lane ---- */
/* Tells the hub as far as it wants to know (hub_chunk.h): idle, at once; else at most every SHMRT_RING_EVERY_NS. */
void shmrt_worker_ring_hub(WorkerLoop *self, bool idle);
/* Sleeps on our own bell; the caller has armed it and looked again. -1: a signal handler raised. */
int shmrt_worker_sleep(WorkerLoop *self, int64_t timeout_ns);
/* Room for a record of `body` bytes; waits while the hub is behind. NULL with an exception only if a signal handler raised. */
struct shmrt_record_header *shmrt_worker_reserve(WorkerLoop *self, uint64_t body);
/* Commits one record; the message's blocks become SENT first. */
int shmrt_worker_publish(WorkerLoop *self, uint8_t kind, uint64_t id, uint32_t attempt, const struct shmrt_message *message);
/* Encoder -> message; waits while the arena is short. -1 with an exception set. */
int shmrt_worker_finish_message(WorkerLoop *self, struct shmrt_encoder *encoder, struct shmrt_message *message);
/* What the reader will do with a pickled result, done here first: its failure is this task's failure. */
int shmrt_worker_verify(WorkerLoop *self, const struct shmrt_message *message, PyObject *original);
int shmrt_worker_publish_object(WorkerLoop *self, uint8_t kind, uint64_t id, uint32_t attempt, PyObject *object, bool verified);
/* The exception that is set, packed for the program, new reference; *again: it is named in retry_on. NULL with an exception. */
PyObject *shmrt_worker_pack_exception(WorkerLoop *self, PyObject *retry_on, uint32_t *again);
/* What a task was given: its record, and a Block for each of the record's blocks. movable: they became this process's. */
struct shmrt_worker_arguments {
	const struct shmrt_record_header *header;
	const uint8_t *body;
	PyObject **buffers;
	bool movable;
};
/* The result of that task. What lies in its arguments goes by reference: the value is dropped then, before the commit. */
int shmrt_worker_publish_result(WorkerLoop *self, const struct shmrt_worker_arguments *arguments, PyObject **value);
/* The exception that is set becomes this record. Never fails but by a signal handler or a corrupt lane. arguments: of the
 * task that raised it, or NULL. */
int shmrt_worker_publish_exception(WorkerLoop *self, uint8_t kind, uint64_t id, PyObject *retry_on,
				   const struct shmrt_worker_arguments *arguments);

#endif
