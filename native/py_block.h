/* py_block.h -- the struct behind a Block object, for the files that make and send blocks. */
#ifndef SHMRT_PY_BLOCK_H
#define SHMRT_PY_BLOCK_H

#include "py_message.h"

typedef struct {
	PyObject_HEAD
	ShmrtArena *arena; /* owned: the memory stays mapped while a view is alive */
	uint64_t index;
	uint64_t size;
	uint8_t *data;
	uint32_t generation;
	uint32_t owner;               /* who holds it; another process's objects (after a fork) free nothing */
	enum shmrt_block_state state; /* as which it is freed */
	uint64_t counted;             /* its part of the arena's held_bytes */
	Py_ssize_t exports, writable_exports;
	bool read_only;
	bool disowned; /* somebody else frees it */
	bool sendable; /* made by shmrt.empty: may go by reference */
	bool shared;   /* went by reference: this process keeps a share (arena.h) */
} ShmrtBlock;

extern PyTypeObject *shmrt_block_type, *shmrt_arena_type;

/* A fresh block of this process for shmrt.empty. NULL with SegmentError or MessageTooLarge. */
PyObject *shmrt_py_block_allocate(ShmrtArena *arena, uint64_t size);
/* Makes the block ready to be sent by reference: HELD by this process with a share kept. False: copy instead. */
bool shmrt_py_block_lend(ShmrtBlock *block);

#endif
