/* py_worker_receive.c -- what a worker receives beside the bytes: the blocks of a record, and the functions it was sent.
 *
 * The blocks of a task that runs once only become the worker's. Those of a task that may run again, and of a function, stay
 * the sender's: they are lent, read-only, and the sender re-uses them once the task is done. So a view that outlives the
 * task has to make its block KEPT before the result is committed.
 */
#include "py_worker.h"

/* ---- blocks ---- */

/* Python objects for the record's blocks. movable: it runs once only, so the blocks become ours and writable. */
int shmrt_worker_receive_blocks(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body, bool movable,
				PyObject **buffers) {
	const struct shmrt_block_reference *references = (const struct shmrt_block_reference *)(const void *)body;
	for (uint16_t i = 0; i < header->block_count; i++) {
		enum shmrt_block_state state = SHMRT_BLOCK_FREE;
		uint32_t generation = 0, owner = 0;
		struct shmrt_block block;
		buffers[i] = NULL;
		int result = shmrt_arena_resolve(&self->arena->arena, &references[i], &block);
		if (result == SHMRT_OK) {
			shmrt_arena_state(&self->arena->arena, references[i].block, &state, &generation, &owner);
			result = state == SHMRT_BLOCK_SENT ? SHMRT_OK : SHMRT_STALE;
		}
		if (result == SHMRT_OK && movable)
			result = shmrt_arena_move(&self->arena->arena, references[i].block, references[i].generation,
						  SHMRT_BLOCK_SENT, owner, SHMRT_BLOCK_HELD, self->arena->owner);
		if (result == SHMRT_OK) {
			buffers[i] = shmrt_py_block_new(self->arena, &references[i], movable ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_SENT,
							movable ? self->arena->owner : owner,
							!movable || references[i].flags & 1);
			if (buffers[i] && !movable)
				shmrt_py_block_disown(buffers[i]);
		} else
			shmrt_raise("SegmentError", "a payload block of this message is not there any more (code %d)", result);
		if (buffers[i] == NULL) {
			while (i--)
				Py_DECREF(buffers[i]);
			return -1;
		}
	}
	return 0;
}

/* Views that outlive a task which may run again: their blocks become KEPT by us, so the sender does not re-use them. */
void shmrt_worker_keep_or_leave(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body, PyObject **buffers) {
	const struct shmrt_block_reference *references = (const struct shmrt_block_reference *)(const void *)body;
	for (uint16_t i = 0; i < header->block_count; i++) {
		if (shmrt_py_block_exports(buffers[i]) == 0 && Py_REFCNT(buffers[i]) == 1)
			continue;
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(&self->arena->arena, references[i].block, &state, &generation, &owner);
		if (state == SHMRT_BLOCK_SENT &&
		    shmrt_arena_move(&self->arena->arena, references[i].block, references[i].generation, SHMRT_BLOCK_SENT, owner,
				     SHMRT_BLOCK_KEPT, self->arena->owner) == SHMRT_OK)
			shmrt_py_block_adopt(buffers[i], SHMRT_BLOCK_KEPT, self->arena->owner);
	}
}

/* ---- functions ---- */

int shmrt_worker_learn_function(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body) {
	uint32_t number = header->function;
	if (number >= UINT32_C(1) << 24 || header->block_count > SHMRT_MESSAGE_BLOCKS_MAX)
		return 0;
	if (number >= self->function_count) {
		uint32_t count = number * 2 + 16;
		PyObject **functions = PyMem_Realloc(self->functions, count * sizeof(PyObject *));
		if (functions == NULL) {
			PyErr_NoMemory();
			return -1;
		}
		memset(functions + self->function_count, 0, (count - self->function_count) * sizeof(PyObject *));
		self->functions = functions;
		self->function_count = count;
	}
	/* Kept as it came: unpickling may import or run anything, which belongs to the first task that names it. */
	uint64_t size = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference) + header->inline_size;
	PyObject *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof(*header) + size));
	if (record == NULL)
		return -1;
	memcpy(PyBytes_AS_STRING(record), header, sizeof(*header));
	memcpy(PyBytes_AS_STRING(record) + sizeof(*header), body, size);
	Py_XSETREF(self->functions[number], record);
	return 0;
}

/* The callable that another process found under (module, qualified name), with nothing to retry on. New reference. */
static PyObject *find_by_name(PyObject *name) {
	PyObject *found = PyImport_Import(PyTuple_GET_ITEM(name, 0)), *dot = PyUnicode_FromString(".");
	PyObject *parts = dot ? PyUnicode_Split(PyTuple_GET_ITEM(name, 1), dot, -1) : NULL;
	for (Py_ssize_t i = 0; found && parts && i < PyList_GET_SIZE(parts); i++)
		Py_SETREF(found, PyObject_GetAttr(found, PyList_GET_ITEM(parts, i)));
	PyObject *entry = found && parts ? PyTuple_Pack(2, found, Py_None) : NULL;
	Py_XDECREF(found);
	Py_XDECREF(parts);
	Py_XDECREF(dot);
	return entry;
}

/* The (callable, retry_on) of a function, or the exception that its unpickling raised; borrowed. Its blocks stay the
 * program's while a task that names it is not done. */
PyObject *shmrt_worker_function_of(WorkerLoop *self, uint32_t number) {
	PyObject *entry = number < self->function_count ? self->functions[number] : NULL;
	if (entry == NULL)
		return shmrt_raise("SegmentError", "this worker was never sent function %u", number);
	if (!PyBytes_Check(entry))
		return entry;
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *function = NULL;
	struct shmrt_record_header header;
	memcpy(&header, PyBytes_AS_STRING(entry), sizeof(header));
	const uint8_t *body = (const uint8_t *)PyBytes_AS_STRING(entry) + sizeof(header);
	Py_INCREF(entry);
	if (shmrt_worker_receive_blocks(self, &header, body, false, buffers) == 0) {
		uint64_t references = (uint64_t)header.block_count * sizeof(struct shmrt_block_reference);
		function = shmrt_decode_message(body + references, header.inline_size, header.flags, buffers, header.block_count, true);
		shmrt_worker_release_buffers(buffers, header.block_count);
	}
	Py_DECREF(entry);
	if (function && PyTuple_Check(function) && PyTuple_GET_SIZE(function) == 2 && PyUnicode_Check(PyTuple_GET_ITEM(function, 0)) &&
	    PyUnicode_Check(PyTuple_GET_ITEM(function, 1)))
		Py_SETREF(function, find_by_name(function));
	if (function == NULL || !PyTuple_Check(function) || PyTuple_GET_SIZE(function) != 2) {
		/* Each task that names it fails with this; the worker lives on. */
		Py_XDECREF(function);
		if (!PyErr_Occurred())
			shmrt_raise("SegmentError", "corrupt function record");
		function = shmrt_take_exception();
	}
	Py_XSETREF(self->functions[number], function);
	return function;
}
