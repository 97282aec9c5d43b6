/* py_ring_lease.c -- leases of RingCore: an object on blocks that stay the ring's until the lease ends.
 *
 * The holder may die at any moment; then the message goes back into the ring (ring_wait.c). So a lease copies nothing and
 * owns nothing: its Blocks are disowned, and become this process's only when the lease ends while a view of them lives on.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

static int receive_lease(RingCore *self, struct mail *mail, int64_t timeout_ns, uint64_t *position) {
	return shmrt_ring_lease(&self->ring, timeout_ns, shmrt_py_ring_take_letter, mail, position);
}

/* lease_take(timeout) -> (object, position, blocks): for Ring.lease. */
PyObject *shmrt_py_ring_lease_take(RingCore *self, PyObject *timeout) {
	int64_t timeout_ns;
	if (shmrt_py_timeout(timeout, &timeout_ns) < 0)
		return NULL;
	if (self->address == NULL)
		return shmrt_raise("RingClosed", "the ring was never made; use Ring.create or Ring.attach");
	struct mail mail;
	uint64_t position = 0;
	if (shmrt_py_ring_open_mail(self, &mail, 1) < 0)
		return NULL;
	PyObject *object = NULL, *blocks = NULL, *answer = NULL;
	if (shmrt_py_ring_wait_for_mail(self, &mail, receive_lease, timeout_ns, &position) == 0) {
		object = shmrt_py_ring_decode_letter(self, &mail.letters[0], BLOCKS_LENT, &blocks);
		if (object != NULL && blocks == NULL)
			blocks = PyTuple_New(0);
		if (object != NULL && blocks != NULL)
			answer = Py_BuildValue("(OKO)", object, (unsigned long long)position, blocks);
		if (answer == NULL) { /* a message that cannot be read would come back for ever */
			PyObject *type, *value, *traceback;
			PyErr_Fetch(&type, &value, &traceback);
			while (shmrt_ring_release(&self->ring, position) == SHMRT_INTERRUPTED)
				continue;
			PyErr_Restore(type, value, traceback);
		}
	}
	Py_XDECREF(object);
	Py_XDECREF(blocks);
	shmrt_py_ring_close_mail(self, &mail);
	return answer;
}

/* A view lives on behind the lease if somebody refers to its Block beside our tuple. */
static bool any_in_use(PyObject *blocks) {
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(blocks); i++)
		if (Py_REFCNT(PyTuple_GET_ITEM(blocks, i)) > 1)
			return true;
	return false;
}

/* lease_end(position, blocks, done): done, or given back to the ring. Views that are still alive stay valid. */
PyObject *shmrt_py_ring_lease_end(RingCore *self, PyObject *args) {
	unsigned long long position;
	PyObject *blocks;
	int done;
	if (!PyArg_ParseTuple(args, "KO!p:lease_end", &position, &PyTuple_Type, &blocks, &done))
		return NULL;
	bool in_use = any_in_use(blocks);
	int outcome;
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(blocks); i++) {
		PyObject *item = PyTuple_GET_ITEM(blocks, i);
		if (Py_TYPE(item) != shmrt_block_type) {
			PyErr_SetString(PyExc_TypeError, "lease_end() needs what lease_take() gave");
			return NULL;
		}
		ShmrtBlock *block = (ShmrtBlock *)item;
		/* Given back while we look at it: as a sender that looks on. */
		if (!done && in_use && block->owner == shmrt_owner_self() &&
		    shmrt_arena_share(&self->arena->arena, block->index, block->generation, block->owner)) {
			block->shared = true;
			block->disowned = false;
		}
	}
	do {
		if (!done)
			outcome = shmrt_ring_give_back(&self->ring, position);
		else if (in_use)
			outcome = shmrt_ring_release_keep(&self->ring, position);
		else
			outcome = shmrt_ring_release(&self->ring, position);
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return NULL;
	} while (outcome == SHMRT_INTERRUPTED);
	if (outcome != SHMRT_OK)
		return shmrt_py_ring_raise(self, outcome, "lease");
	for (Py_ssize_t i = 0; done && in_use && i < PyTuple_GET_SIZE(blocks); i++)
		((ShmrtBlock *)PyTuple_GET_ITEM(blocks, i))->disowned = false;
	Py_RETURN_NONE;
}
