/* py_message.h -- Python objects to messages and back: codec, out-of-band buffers, blocks, arenas.
 *
 * A message is inline bytes plus references to arena blocks (layout.h). Inline bytes hold a small
 * self-describing prologue (how many buffers, where each lies) and the codec's bytes; everything in them
 * is range-checked when read. The fast codec covers exact builtins (None, bool, int, float, complex, str,
 * bytes, tuple, list, dict, set, frozenset, bounded nesting); everything else is one embedded pickle
 * (protocol 5) whose buffers travel out of band: by cloudpickle if plain pickle fails or its bytes name
 * __main__. Objects of bytes, bytearray and contiguous arrays above SHMRT_OUT_OF_BAND_MIN travel as buffers too.
 */
#ifndef SHMRT_PY_MESSAGE_H
#define SHMRT_PY_MESSAGE_H

#include "py_module.h"
#include "arena.h"

#define SHMRT_OUT_OF_BAND_MIN 2048 /* smaller buffers are copied into the inline bytes */
#define SHMRT_MESSAGE_BLOCKS_MAX 1024
#define SHMRT_LENT_BUCKETS 64

/* ---- arenas: one Python object per mapped arena in this process (py_arena.c) ---- */
typedef struct ShmrtArena {
	PyObject_HEAD
	struct shmrt_arena arena; /* private half: used under the GIL only; the hub thread has a copy of its own */
	uint32_t owner;           /* owner id this process writes into block words */
	uint64_t inode, device;   /* identity of the segment, for recognising an arena already mapped */
	uint64_t held_bytes;      /* of blocks received and still viewed by this process */
	struct ShmrtBlock *lent[SHMRT_LENT_BUCKETS]; /* by block: those that this process keeps a share of; borrowed */
	struct ShmrtArena *next;  /* the other arenas of this process */
} ShmrtArena;

/* The process's default arena (owned reference), created on first use; inside a worker the runtime's.
 * shmrt_arena_set_default: what a worker or a runtime calls at its start. */
PyObject *shmrt_arena_default(void);
int shmrt_arena_set_default(PyObject *arena);
bool shmrt_arena_has_default(void);
uint64_t shmrt_arena_default_limit(void);
PyObject *shmrt_py_arena_create(uint64_t limit_bytes);             /* SegmentError on shortage */
PyObject *shmrt_py_arena_create_in(int fd, uint64_t file_offset, uint64_t limit_bytes); /* in the caller's file */
PyObject *shmrt_py_arena_attach(int fd, uint64_t file_offset);     /* dups fd; the same object if already mapped here */

/* ---- blocks: a Python object that exports the buffer of one block (py_block.c) ----
 * Deallocating it frees the block (state, owner as given), unless this process is a forked child. */
PyObject *shmrt_py_block_new(ShmrtArena *arena, const struct shmrt_block_reference *reference,
			     enum shmrt_block_state state, uint32_t owner, bool read_only);
/* Number of exported buffers still alive (views on it). */
Py_ssize_t shmrt_py_block_exports(PyObject *block);
/* After this its deallocation does not free the block (somebody else does). */
void shmrt_py_block_disown(PyObject *block);
/* From now on its deallocation frees the block as (state, owner). */
void shmrt_py_block_adopt(PyObject *block, enum shmrt_block_state state, uint32_t owner);

/* ---- encoding ---- */
struct shmrt_encoder { /* re-usable; zero-initialise */
	uint8_t *bytes;
	size_t size, capacity;
	Py_buffer *buffers; /* out of band, contiguous; released by reset */
	size_t buffer_count, buffer_capacity;
	uint16_t flags;     /* SHMRT_MESSAGE_HAS_PICKLE when decoding may run user code */
	/* Objects met that somebody else refers to too: met twice, the whole object is pickled, as pickle
	 * keeps identity and a tree that shares its branches may be exponentially larger than it looks. */
	const void *seen[8];
	size_t seen_count;
	const void **seen_set; /* open addressing, once there are more than 8 */
	size_t seen_capacity;
	PyObject *frozen; /* list of arrays that finish made read-only because they go by reference */
	/* What is sent was received, and nobody else has it: arrays that arrived writable go by reference, too, and are frozen. */
	bool passes_on;
	bool returns;     /* a result: arrays of the task's own arguments go by reference (SHMRT_REFERENCE_RETURNED) */
};
void shmrt_encoder_reset(struct shmrt_encoder *); /* keeps the byte memory */
void shmrt_encoder_clear(struct shmrt_encoder *);
/* The message was not sent: arrays that finish froze become writable again. Before reset. */
void shmrt_encoder_thaw(struct shmrt_encoder *);
/* Appends one object. -1 with the exception that pickling raised (after plain pickle and cloudpickle). May run
 * user code (and so release the GIL) only for objects outside the fast codec. */
int shmrt_encode(struct shmrt_encoder *, PyObject *object);
/* These bytes as they are. -1 with MemoryError. */
int shmrt_encoder_append(struct shmrt_encoder *, const void *bytes, size_t size);
/* Forgets all behind the first `size` bytes, and every buffer. */
void shmrt_encoder_cut(struct shmrt_encoder *, size_t size);
/* args then kwargs (a dict or NULL) as one body; vectorcall conventions. */
int shmrt_encode_call(struct shmrt_encoder *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

/* A finished message, ready to be copied into a lane record, a ring slot or the heap. */
struct shmrt_message {
	const uint8_t *inline_bytes; /* in the encoder's memory: valid until it is reset */
	uint32_t inline_size;
	uint16_t flags;
	uint16_t block_count;
	struct shmrt_block_reference *blocks; /* from PyMem_Malloc, or NULL */
	enum shmrt_block_state *states;       /* WRITING (copied into), HELD (sent by reference), SENT (by another: returned) */
};
/* Turns what was encoded into a message whose inline bytes are at most inline_max: big buffers and an
 * over-long body are copied into blocks (WRITING|owner); arrays that lie in the same arena go by reference (py_message_arrays.c).
 * SHMRT_OK, SHMRT_NO_SPACE (shortage filled in, nothing taken: wait and call again) or SHMRT_TOO_LARGE;
 * SHMRT_SYSTEM with a Python exception set. Releases the GIL while copying 1 MiB or more. */
int shmrt_message_finish(struct shmrt_encoder *, ShmrtArena *arena, uint64_t inline_max, struct shmrt_message *, struct shmrt_shortage *);
/* Gives back the message's memory; `free_blocks`: also its blocks (it was not sent). */
void shmrt_message_clear(struct shmrt_message *, ShmrtArena *arena, bool free_blocks);

/* ---- decoding ---- */
/* `buffers`: one Python object exporting a buffer per block reference (a Block, a bytearray, ...), borrowed.
 * Malformed bytes raise SegmentError("corrupt ..."); an unpicklable object raises what unpickling raised.
 * allow_pickle false: a message that needs pickle raises shmrt.SegmentError naming the remedy. */
PyObject *shmrt_decode_message(const uint8_t *inline_bytes, uint32_t inline_size, uint16_t flags,
			       PyObject *const *buffers, uint16_t buffer_count, bool allow_pickle);
/* The counterpart of shmrt_encode_call: *args a tuple, *kwargs a dict or NULL. */
int shmrt_decode_call(const uint8_t *inline_bytes, uint32_t inline_size, uint16_t flags, PyObject *const *buffers,
		      uint16_t buffer_count, PyObject **args, PyObject **kwargs);

/* One object without the kind of a body before it: what shmrt_encode appends to an encoder that is not empty. */
PyObject *shmrt_decode_piece(const uint8_t *bytes, size_t size);

/* Raises shmrt.errors.SegmentError with needed, free and hint from a shortage. Always returns NULL. */
PyObject *shmrt_raise_shortage(const struct shmrt_shortage *);
PyObject *shmrt_raise_too_large(uint64_t size, uint64_t limit); /* MessageTooLarge; NULL */
/* Raises shmrt.errors.Overloaded(text, capacity=, where=); NULL. */
PyObject *shmrt_raise_overloaded(uint64_t capacity, const char *where, const char *format, ...);
/* Raises shmrt.errors.<name>(message). Always returns NULL. */
PyObject *shmrt_raise(const char *error_name, const char *format, ...);

#endif
