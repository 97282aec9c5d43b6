/* py_block.c -- Block: one arena block as a Python object that exports its memory.
 *
 * Arrays and memoryviews refer to the Block, so the block is given back when the last view dies. A Block
 * that a forked child inherited frees nothing: the words name the parent. What a process still holds when
 * it ends names a dead owner and is reclaimed by whoever runs short.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"

PyTypeObject *shmrt_block_type;

static ShmrtBlock *block_make(ShmrtArena *arena, uint64_t size, enum shmrt_block_state state, uint32_t owner) {
	ShmrtBlock *self = PyObject_New(ShmrtBlock, shmrt_block_type);
	if (self == NULL)
		return NULL;
	self->arena = (ShmrtArena *)Py_NewRef((PyObject *)arena);
	self->index = 0;
	self->size = size;
	self->data = NULL;
	self->generation = 0;
	self->owner = owner;
	self->state = state;
	self->exports = self->writable_exports = 0;
	self->counted = 0;
	self->read_only = self->made_here = self->returnable = self->shared = false;
	self->next_lent = NULL;
	self->disowned = true; /* until it has a block */
	return self;
}

PyObject *shmrt_py_block_new(ShmrtArena *arena, const struct shmrt_block_reference *reference,
			     enum shmrt_block_state state, uint32_t owner, bool read_only) {
	struct shmrt_block block;
	int outcome = shmrt_arena_resolve(&arena->arena, reference, &block);
	if (outcome == SHMRT_STALE)
		return shmrt_raise("SegmentError", "corrupt message: it names block %llu, which was re-used since",
				   (unsigned long long)reference->block);
	if (outcome != SHMRT_OK)
		return shmrt_raise("SegmentError", "corrupt message: it names block %llu, which the arena does not have",
				   (unsigned long long)reference->block);
	ShmrtBlock *self = block_make(arena, reference->size, state, owner);
	if (self == NULL)
		return NULL;
	self->index = block.block;
	self->generation = block.generation;
	self->data = block.data;
	self->read_only = read_only;
	self->disowned = false;
	if (self->size > block.capacity) { /* resolve checks it too; the message may change under us */
		Py_DECREF(self);
		return shmrt_raise("SegmentError", "corrupt message: a buffer is larger than its block");
	}
	self->counted = block.capacity;
	arena->held_bytes += block.capacity;
	return (PyObject *)self;
}

PyObject *shmrt_py_block_allocate(ShmrtArena *arena, uint64_t size) {
	struct shmrt_block block;
	struct shmrt_shortage shortage = {0};
	/* From 2 KiB up a block has room for the share of a sender. */
	uint64_t wanted = size < 2 * SHMRT_BLOCK_BYTES_MIN ? 2 * SHMRT_BLOCK_BYTES_MIN : size;
	ShmrtBlock *self = block_make(arena, size, SHMRT_BLOCK_HELD, arena->owner);
	if (self == NULL)
		return NULL;
	int outcome = shmrt_arena_alloc(&arena->arena, wanted, arena->owner, &block, &shortage);
	if (outcome == SHMRT_NO_SPACE && shmrt_arena_reclaim_dead(&arena->arena) > 0)
		outcome = shmrt_arena_alloc(&arena->arena, wanted, arena->owner, &block, &shortage);
	if (outcome != SHMRT_OK) {
		Py_DECREF(self);
		if (outcome == SHMRT_NO_SPACE)
			return shmrt_raise_shortage(&shortage);
		if (outcome == SHMRT_TOO_LARGE)
			return shmrt_raise_too_large(size, arena->arena.limit_bytes);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	(void)!shmrt_arena_move(&arena->arena, block.block, block.generation, SHMRT_BLOCK_WRITING, arena->owner,
				SHMRT_BLOCK_HELD, arena->owner);
	self->index = block.block;
	self->generation = block.generation;
	self->data = block.data;
	self->disowned = false;
	self->made_here = true;
	return (PyObject *)self;
}

bool shmrt_py_block_lend(ShmrtBlock *block) {
	struct shmrt_arena *arena = &block->arena->arena;
	if (block->disowned || block->owner != shmrt_owner_self() || block->writable_exports > 0)
		return false;
	if (!shmrt_arena_share(arena, block->index, block->generation, block->owner))
		return false;
	if (!block->shared) {
		ShmrtBlock **bucket = &block->arena->lent[block->index % SHMRT_LENT_BUCKETS];
		block->next_lent = *bucket;
		*bucket = block;
	}
	block->shared = true;
	block->read_only = true;
	return true;
}

PyObject *shmrt_py_block_came_back(ShmrtArena *arena, const struct shmrt_block_reference *reference) {
	ShmrtBlock *block = arena->lent[reference->block % SHMRT_LENT_BUCKETS];
	while (block != NULL && (block->index != reference->block || block->generation != reference->generation))
		block = block->next_lent;
	if (block == NULL || block->owner != shmrt_owner_self() || reference->size > block->size)
		return NULL;
	/* The share inherits it. */
	if (shmrt_arena_free(&arena->arena, block->index, block->generation, SHMRT_BLOCK_HELD, block->owner) != SHMRT_OK)
		return NULL;
	return Py_NewRef((PyObject *)block);
}

static void forget_lent(ShmrtBlock *block) {
	ShmrtBlock **link = &block->arena->lent[block->index % SHMRT_LENT_BUCKETS];
	while (*link != NULL && *link != block)
		link = &(*link)->next_lent;
	if (*link != NULL)
		*link = block->next_lent;
}

Py_ssize_t shmrt_py_block_exports(PyObject *block) { return ((ShmrtBlock *)block)->exports; }

void shmrt_py_block_disown(PyObject *block) { ((ShmrtBlock *)block)->disowned = true; }

static void block_dealloc(ShmrtBlock *self) {
	PyTypeObject *type = Py_TYPE(self);
	if (self->shared)
		forget_lent(self);
	if (!self->disowned && self->owner == shmrt_owner_self()) {
		struct shmrt_arena *arena = &self->arena->arena;
		if (self->shared)
			shmrt_arena_unshare(arena, self->index, self->generation, self->owner);
		else /* STALE: a repair freed it before us */
			(void)!shmrt_arena_free(arena, self->index, self->generation, self->state, self->owner);
	}
	self->arena->held_bytes -= self->counted;
	Py_DECREF(self->arena);
	PyObject_Free(self);
	Py_DECREF(type);
}

static int block_get_buffer(ShmrtBlock *self, Py_buffer *view, int flags) {
	if (PyBuffer_FillInfo(view, (PyObject *)self, self->data, (Py_ssize_t)self->size, self->read_only, flags) < 0)
		return -1;
	self->exports++;
	/* Whoever did not ask for a writable one may still write if it says it is not read-only. */
	view->internal = self->read_only ? NULL : self;
	self->writable_exports += !self->read_only;
	return 0;
}

static void block_release_buffer(ShmrtBlock *self, Py_buffer *view) {
	self->exports--;
	self->writable_exports -= view->internal != NULL;
}

static Py_ssize_t block_length(ShmrtBlock *self) { return (Py_ssize_t)self->size; }

static PyObject *block_state(ShmrtBlock *self, void *closure) {
	(void)closure;
	static const char *const names[] = {"free", "writing", "sent", "held", "kept", "queued"};
	enum shmrt_block_state state;
	uint32_t generation, owner;
	shmrt_arena_state(&self->arena->arena, self->index, &state, &generation, &owner);
	if (generation != self->generation || (unsigned)state >= sizeof(names) / sizeof(names[0]))
		return PyUnicode_FromString("free");
	return PyUnicode_FromString(names[state]);
}

static PyObject *block_owner(ShmrtBlock *self, void *closure) {
	(void)closure;
	enum shmrt_block_state state;
	uint32_t generation, owner;
	shmrt_arena_state(&self->arena->arena, self->index, &state, &generation, &owner);
	return PyLong_FromLong(shmrt_owner_pid(owner));
}

static PyObject *block_read_only(ShmrtBlock *self, void *closure) {
	(void)closure;
	return PyBool_FromLong(self->read_only);
}

static PyObject *block_number(ShmrtBlock *self, void *closure) {
	(void)closure;
	return PyLong_FromUnsignedLongLong(self->index);
}

static PyObject *block_generation(ShmrtBlock *self, void *closure) {
	(void)closure;
	return PyLong_FromUnsignedLong(self->generation);
}

static PyGetSetDef block_attributes[] = {
	{"number", (getter)block_number, NULL, "which block of the arena, the same in every process", NULL},
	{"generation", (getter)block_generation, NULL, "how often it was given back before", NULL},
	{"state", (getter)block_state, NULL, "what the block's word says now", NULL},
	{"owner_pid", (getter)block_owner, NULL, "the process that the block's word names now, or 0", NULL},
	{"readonly", (getter)block_read_only, NULL, "whether buffers taken from now on are read-only", NULL},
	{0},
};

static PyType_Slot block_slots[] = {
	{Py_tp_doc, "A block of shared memory that is given back when the last view on it dies."},
	{Py_tp_dealloc, block_dealloc},
	{Py_tp_getset, block_attributes},
	{Py_bf_getbuffer, block_get_buffer},
	{Py_bf_releasebuffer, block_release_buffer},
	{Py_sq_length, block_length},
	{0, NULL},
};

static PyType_Spec block_spec = {
	.name = "shmrt._native.Block",
	.basicsize = sizeof(ShmrtBlock),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = block_slots,
};

int shmrt_py_add_block(PyObject *module) {
	shmrt_block_type = (PyTypeObject *)PyType_FromSpec(&block_spec);
	if (shmrt_block_type == NULL)
		return -1;
	return PyModule_AddObjectRef(module, "Block", (PyObject *)shmrt_block_type);
}

void shmrt_py_block_adopt(PyObject *object, enum shmrt_block_state state, uint32_t owner) {
	ShmrtBlock *block = (ShmrtBlock *)object;
	block->state = state;
	block->owner = owner;
	block->disowned = block->returnable = false;
}
