/* py_chunk.h -- what py_pool.c and py_hub_deliver.c need of py_chunk.c. */
#ifndef SHMRT_PY_CHUNK_H
#define SHMRT_PY_CHUNK_H

#include "hub_chunk.h"
#include "py_hub.h"

PyObject *shmrt_py_pool_submit_chunk(ShmrtPoolCore *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *shmrt_py_pool_split(ShmrtPoolCore *self, PyObject *future);
/* The value of a chunk's future: (outcomes, running time in nanoseconds). */
PyObject *shmrt_py_chunk_decode(ShmrtHub *hub, struct shmrt_task *task);

#endif
