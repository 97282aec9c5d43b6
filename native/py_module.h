/* py_module.h -- what the py_*.c files offer each other. */
#ifndef SHMRT_PY_MODULE_H
#define SHMRT_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base.h"

/* One per py_*.c; called once when the module is imported. */
int shmrt_py_add_chunk(PyObject *module);  /* py_chunk.c: Ready, Failure, pull */
int shmrt_py_add_layout(PyObject *module); /* py_layout.c: LAYOUT, LAYOUT_VERSION */
int shmrt_py_add_future(PyObject *module); /* py_future.c and py_future_*.c: future_class */
int shmrt_py_add_future_manual(PyObject *module); /* py_future_manual.c: ManualFutureSource */
int shmrt_py_add_process(PyObject *module); /* py_process.c: prctl, pidfd, descriptors over sockets, poll */
int shmrt_py_add_slots(PyObject *module); /* py_slots.c and py_slots_*.c: Slots */
int shmrt_py_add_death_watch(PyObject *module); /* py_death_watch.c: DeathWatch; after Slots */
int shmrt_py_add_names(PyObject *module); /* py_names.c: Names; after Slots */
int shmrt_py_add_guards(PyObject *module); /* py_guard_area.c, py_guard.c, py_breaker*.c, py_bulkhead*.c, py_bucket.c; after Slots */
int shmrt_py_add_bench(PyObject *module); /* py_bench.c: ping_pong_ns */
int shmrt_py_add_message(PyObject *module); /* py_message.c: encode, decode */
int shmrt_py_add_block(PyObject *module); /* py_block.c: Block */
int shmrt_py_add_arena(PyObject *module); /* py_arena.c: Arena */
int shmrt_py_add_ring(PyObject *module); /* py_ring.c and py_ring_*.c: RingCore */
int shmrt_py_add_calls(PyObject *module); /* py_calls.c and py_calls_*.c: Calls; after Slots and Arena */
int shmrt_py_add_mailbox(PyObject *module); /* py_mailbox.c and py_mailbox_*.c: Mailbox; after Calls */
int shmrt_py_add_overload(PyObject *module); /* py_overload.c: turn */
int shmrt_py_add_parts(PyObject *module); /* py_parts.c: parts_are_same */

/* py_errors.c: takes the exception that is set now, as one object with its traceback. New reference. */
PyObject *shmrt_take_exception(void);
/* Sets it again; takes the reference over. */
void shmrt_give_exception(PyObject *error);

/* The table behind a Slots object, or NULL with a TypeError. The mapping lives as long as the process
 * unless somebody calls close(). */
struct shmrt_control;
struct shmrt_control *shmrt_py_slots_control(PyObject *slots);

int shmrt_py_add_hub(PyObject *module);    /* py_hub.c and py_hub_*.c, py_pool.c: Hub, PoolCore */
int shmrt_py_add_front(PyObject *module);  /* py_front.c: PoolFront */
int shmrt_py_add_worker(PyObject *module); /* py_worker.c and py_worker_*.c: WorkerLoop */

#endif
