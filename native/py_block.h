/* py_block.h -- the struct behind a Block object, for the files that make and send blocks. */
#ifndef SHMRT_PY_BLOCK_H
#define SHMRT_PY_BLOCK_H

#include "py_message.h"

typedef struct ShmrtBlock {
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
	bool made_here;  /* by shmrt.empty; else it was received */
	bool returnable; /* an argument of the task that runs: its result may name it instead of a copy */
	bool shared;     /* went by reference: this process keeps a share (arena.h) */
	struct ShmrtBlock *next_lent; /* of the arena's: those that keep a share */
} ShmrtBlock;

extern PyTypeObject *shmrt_block_type, *shmrt_arena_type;

/* A fresh block of this process for shmrt.empty. NULL with SegmentError or MessageTooLarge. */
PyObject *shmrt_py_block_allocate(ShmrtArena *arena, uint64_t size);
/* Makes the block ready to be sent by reference: HELD by this process with a share kept. False: copy instead. */
bool shmrt_py_block_lend(ShmrtBlock *block);
/* The Block that this process lent and still looks at, if the reference is to it: what came back is given to its share, so
 * that it can be lent again. New reference; NULL: none. */
PyObject *shmrt_py_block_came_back(ShmrtArena *arena, const struct shmrt_block_reference *reference);


/* ---- the blocks of a message that was taken (py_blocks.c) ---- */
enum shmrt_blocks_whose {
	BLOCKS_OURS, /* this process's: taken */
	BLOCKS_LENT, /* the ring's while the lease lasts; views are read-only */
	BLOCKS_SOON, /* the ring's, and this process's if decoding succeeds: as if taken, but disowned until then */
};
/* A Block per reference. 0, or -1 with an exception and everything given back. */
int shmrt_py_blocks_open(ShmrtArena *arena, const uint8_t *references, uint16_t count, uint16_t flags,
			 enum shmrt_blocks_whose whose, PyObject **blocks);
/* Blocks that no Block took over. */
void shmrt_py_blocks_free(ShmrtArena *arena, const uint8_t *references, uint16_t count);
/* This process holds more of the arena than its part: what it takes is copied out, so that puts go on. */
int shmrt_py_blocks_copy_out_if_greedy(ShmrtArena *arena, uint16_t count, PyObject **blocks);
/* Is a block in use that somebody else may still free: on its way, or held by another process? */
bool shmrt_py_blocks_are_used_by_others(ShmrtArena *arena);

#endif
