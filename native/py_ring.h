/* py_ring.h -- the struct behind RingCore, and what its files offer; see py_ring_internal.h. */
#ifndef SHMRT_PY_RING_H
#define SHMRT_PY_RING_H

#include "py_block.h"
#include "py_overload.h"
#include "ring.h"

typedef struct {
	PyObject_HEAD
	struct shmrt_ring ring;
	void *address; /* NULL: not made */
	uint64_t size;
	int fd;
	ShmrtArena *arena;
	bool allow_pickle;
	/* Kept between calls; a thread that finds them in use makes its own. */
	struct shmrt_encoder encoder;
	uint8_t *inbox;
	uint64_t inbox_bytes;
	struct shmrt_py_outbox *outbox; /* of put_many */
	bool encoder_busy, inbox_busy, outbox_busy;
	/* An exception that a get_many could not raise, since it had objects to return: the next call's. NULL: none. It
	 * stands for no message that is still to be had. */
	PyObject *pending;
} RingCore;

/* None: SHMRT_FOREVER. -1 with ValueError or TypeError. */
int shmrt_py_timeout(PyObject *timeout, int64_t *timeout_ns);
/* Raises what a ring's answer means; always NULL. `waiting`: "put" or "get". */
PyObject *shmrt_py_ring_raise(RingCore *self, int outcome, const char *waiting);

void shmrt_py_ring_free_outbox(struct shmrt_py_outbox *); /* py_ring_put.c */
extern PyMethodDef shmrt_py_ring_messages[]; /* py_ring_messages.c: put, get, lease and their kin */

#endif
