/* py_message_arrays.c -- arrays that go by reference: recognised, frozen, sent, thawed.
 *
 * An array of shmrt.empty, and one that was received, lies in a block of the arena already, so its block is sent and nothing
 * is copied. The receiver must not see it change under its hands: the array, and every array that it is a view of, becomes
 * read-only for the sender. If the message is not sent in the end, `shmrt_encoder_thaw` makes them writable again. What
 * arrived writable stays so, and is copied, unless the sender says that nobody else has it (a pipeline between its stages).
 * A worker returns what it was given, or a view of that, by the block's name alone.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"
#include "py_codec.h"

/* The Block at the end of an array's chain of bases, borrowed; NULL if it is no array on a Block. */
static ShmrtBlock *block_of_array(PyObject *object) {
	PyTypeObject *type = shmrt_array_type();
	PyObject *at = Py_NewRef(object);
	for (int i = 0; type != NULL && i < 64 && PyObject_TypeCheck(at, type); i++) {
		PyObject *base = PyObject_GetAttrString(at, "base");
		Py_DECREF(at);
		if (base == NULL) {
			PyErr_Clear();
			return NULL;
		}
		at = base; /* the array below keeps it alive */
	}
	Py_DECREF(at);
	if (PyMemoryView_Check(at)) /* what pickle makes an array of, and of a part of a block */
		at = PyMemoryView_GET_BASE(at);
	return at != NULL && Py_TYPE(at) == shmrt_block_type ? (ShmrtBlock *)at : NULL;
}

static int set_writable(PyObject *array, bool writable) {
	PyObject *flags = PyObject_GetAttrString(array, "flags");
	int outcome = flags ? PyObject_SetAttrString(flags, "writeable", writable ? Py_True : Py_False) : -1;
	Py_XDECREF(flags);
	return outcome;
}

static int is_writable(PyObject *array) {
	PyObject *flags = PyObject_GetAttrString(array, "flags");
	PyObject *writable = flags ? PyObject_GetAttrString(flags, "writeable") : NULL;
	int outcome = writable ? PyObject_IsTrue(writable) : -1;
	Py_XDECREF(writable);
	Py_XDECREF(flags);
	return outcome;
}

/* The array and every array it is a view of become read-only; remembered for a thaw. */
static int freeze(struct shmrt_encoder *encoder, PyObject *array) {
	PyTypeObject *type = shmrt_array_type();
	if (encoder->frozen == NULL && (encoder->frozen = PyList_New(0)) == NULL)
		return -1;
	PyObject *at = Py_NewRef(array);
	while (at != NULL && PyObject_TypeCheck(at, type)) {
		int writable = is_writable(at);
		if (writable < 0 || (writable && (set_writable(at, false) < 0 || PyList_Append(encoder->frozen, at) < 0)))
			break;
		PyObject *base = PyObject_GetAttrString(at, "base");
		Py_SETREF(at, base);
	}
	bool failed = PyErr_Occurred() != NULL;
	Py_XDECREF(at);
	return failed ? -1 : 0;
}

/* The result of a task names a block of its arguments (one that this process lent to others meanwhile is lent on instead). What was lent to the task is its sender's all the time; what became
 * this process's is given away. Either way nobody here may look at it any more: py_publish.c sees to that. */
static bool try_return(const ShmrtBlock *block, const struct shmrt_message *message, struct shmrt_block_reference *reference,
		       enum shmrt_block_state *state) {
	for (uint16_t i = 0; i < message->block_count; i++)
		if (message->blocks[i].block == block->index)
			return false; /* a block is given back once */
	reference->flags |= block->disowned ? SHMRT_REFERENCE_RETURNED : 0;
	*state = SHMRT_BLOCK_SENT; /* not this message's to free */
	return true;
}

/* Adds the block that a buffer lies in to the message, if it may go by reference; where in it the buffer begins. */
bool shmrt_message_try_reference(struct shmrt_encoder *encoder, const Py_buffer *view, ShmrtArena *arena,
				 struct shmrt_message *message, uint64_t *offset) {
	const uint8_t *at = view->buf;
	if (at < arena->arena.data || at >= arena->arena.base + arena->arena.size || view->obj == NULL)
		return false;
	ShmrtBlock *block = block_of_array(view->obj);
	if (block == NULL || block->arena != arena || at < block->data || (uint64_t)view->len > block->size ||
	    (uint64_t)(at - block->data) > block->size - (uint64_t)view->len)
		return false;
	*offset = (uint64_t)(at - block->data);
	struct shmrt_block_reference reference = {
		.block = block->index, .size = *offset + (uint64_t)view->len, .generation = block->generation};
	enum shmrt_block_state state = SHMRT_BLOCK_HELD;
	if (block->returnable && encoder->returns && !block->shared) {
		reference.flags = block->read_only ? SHMRT_REFERENCE_READ_ONLY : 0;
		if (!try_return(block, message, &reference, &state))
			return false;
	} else {
		/* A slice of what the user made may lie beside one that is still written to; what arrived writable may be. */
		if (block->made_here ? *offset != 0 : !block->read_only && !encoder->passes_on)
			return false;
		if (freeze(encoder, view->obj) < 0) {
			PyErr_Clear();
			return false;
		}
		if (!shmrt_py_block_lend(block))
			return false; /* it is somebody's at the moment: copied, and frozen all the same */
		reference.flags = SHMRT_REFERENCE_READ_ONLY;
	}
	message->blocks[message->block_count] = reference;
	message->states[message->block_count++] = state;
	return true;
}

void shmrt_encoder_thaw(struct shmrt_encoder *encoder) {
	if (encoder->frozen == NULL)
		return;
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	for (Py_ssize_t i = PyList_GET_SIZE(encoder->frozen); i-- > 0;) { /* bases first: a view asks its base */
		PyObject *array = PyList_GET_ITEM(encoder->frozen, i);
		ShmrtBlock *block = block_of_array(array);
		if (block != NULL)
			block->read_only = false;
		if (set_writable(array, true) < 0)
			PyErr_Clear();
	}
	Py_CLEAR(encoder->frozen);
	PyErr_Restore(type, value, traceback);
}
