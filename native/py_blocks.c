/* py_blocks.c -- the blocks of a message as Block objects, and what is done when the arena runs short.
 *
 * A message names its blocks in its first bytes, which are a private copy. Of one that was taken they are this process's
 * (HELD) from that moment on; so whatever goes wrong later has to free those that no Block took over.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"

#define REFERENCE_SIZE sizeof(struct shmrt_block_reference)

static void free_held(ShmrtArena *arena, const struct shmrt_block_reference *reference) {
	(void)!shmrt_arena_free(&arena->arena, reference->block, reference->generation, SHMRT_BLOCK_HELD, arena->owner);
}

int shmrt_py_blocks_open(ShmrtArena *arena, const uint8_t *references, uint16_t count, uint16_t flags,
			 enum shmrt_blocks_whose whose, PyObject **blocks) {
	uint16_t made = 0;
	for (uint16_t i = 0; i < count; i++) {
		struct shmrt_block_reference reference;
		memcpy(&reference, references + i * REFERENCE_SIZE, REFERENCE_SIZE);
		bool read_only = whose == BLOCKS_LENT || (reference.flags & 1) || (flags & SHMRT_MESSAGE_READ_ONLY);
		blocks[i] = PyErr_Occurred() ? NULL
					     : shmrt_py_block_new(arena, &reference, SHMRT_BLOCK_HELD, arena->owner, read_only);
		if (blocks[i] != NULL) {
			if (whose != BLOCKS_OURS)
				shmrt_py_block_disown(blocks[i]);
			made++;
		} else if (whose == BLOCKS_OURS) { /* go on: the blocks after a damaged one are ours to free, too */
			free_held(arena, &reference);
		}
	}
	if (made == count)
		return 0;
	for (uint16_t i = 0; i < count; i++)
		Py_CLEAR(blocks[i]);
	return -1;
}

void shmrt_py_blocks_free(ShmrtArena *arena, const uint8_t *references, uint16_t count) {
	for (uint16_t i = 0; i < count; i++) {
		struct shmrt_block_reference reference;
		memcpy(&reference, references + i * REFERENCE_SIZE, REFERENCE_SIZE);
		free_held(arena, &reference);
	}
}

int shmrt_py_blocks_copy_out_if_greedy(ShmrtArena *arena, uint16_t count, PyObject **blocks) {
	for (uint16_t i = 0; i < count && arena->held_bytes > arena->arena.limit_bytes / 4; i++) {
		PyObject *copy = PyByteArray_FromObject(blocks[i]);
		if (copy == NULL)
			return -1;
		if (((ShmrtBlock *)blocks[i])->read_only) {
			PyObject *view = PyMemoryView_FromObject(copy);
			Py_SETREF(copy, view ? PyObject_CallMethod(view, "toreadonly", NULL) : NULL);
			Py_XDECREF(view);
			if (copy == NULL)
				return -1;
		}
		Py_SETREF(blocks[i], copy);
	}
	return 0;
}

bool shmrt_py_blocks_are_used_by_others(ShmrtArena *self) {
	struct shmrt_arena *arena = &self->arena;
	/* acquire: the words below it are reserved (edge A4 of the arena) */
	uint64_t high = atomic_load_explicit(&arena->shared->granules_high, memory_order_acquire);
	if (high > arena->granule_count)
		high = arena->granule_count;
	for (uint64_t index = 0; index < high * SHMRT_BLOCKS_PER_GRANULE; index++) {
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(arena, index, &state, &generation, &owner);
		if (state != SHMRT_BLOCK_FREE && owner != self->owner)
			return true;
	}
	return false;
}
