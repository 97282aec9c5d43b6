/* py_ring_make.c -- making a ring and joining one.
 *
 * A ring lives in a memfd with its payloads in an arena of its own descriptor, or, named, in one file: ring first, arena
 * behind it. Either is formatted, published and then joined like one that somebody else made, so what cannot be joined is
 * never handed out. A failure gives descriptor and mapping back.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define SLOT_BYTES_MIN 32 /* one block reference always fits */
#define PAGE UINT64_C(4096)

static uint64_t file_bytes(uint64_t slots, uint64_t slot_bytes) {
	return shmrt_align_up(shmrt_ring_bytes(slots, slot_bytes), PAGE);
}

static int check_made(RingCore *self) {
	if (self->address == NULL)
		return 0;
	PyErr_SetString(PyExc_RuntimeError, "this ring object is made already");
	return -1;
}

/* Formats the mapped memory and joins it. Takes over fd, memory; gives both back on failure. */
static int settle(RingCore *self, int fd, void *memory, uint64_t size, bool format, const uint64_t geometry[4],
		  ShmrtArena *arena) {
	int outcome = SHMRT_OK;
	if (format) {
		outcome = shmrt_ring_format(memory, geometry[0], geometry[1], (enum shmrt_ring_full_policy)geometry[2], geometry[3], 0);
		if (outcome == SHMRT_OK)
			shmrt_segment_publish(memory);
	}
	if (outcome == SHMRT_OK)
		outcome = shmrt_ring_attach(&self->ring, memory, size, fd, &arena->arena);
	if (outcome != SHMRT_OK) {
		shmrt_unmap(memory, size);
		close(fd);
		shmrt_raise("SegmentError", "the ring was refused: its geometry is not one that a writer leaves (code %d)", outcome);
		return -1;
	}
	self->address = memory;
	self->size = size;
	self->fd = fd;
	self->arena = (ShmrtArena *)Py_NewRef((PyObject *)arena);
	return 0;
}

/* _make(slots, slot_bytes, on_full): an anonymous ring whose payloads lie in the default arena. */
PyObject *shmrt_py_ring_make(RingCore *self, PyObject *args) {
	unsigned long long slots, slot_bytes;
	int on_full;
	if (!PyArg_ParseTuple(args, "KKi:_make", &slots, &slot_bytes, &on_full) || check_made(self) < 0)
		return NULL;
	if (slot_bytes < SLOT_BYTES_MIN)
		slot_bytes = SLOT_BYTES_MIN;
	PyObject *arena = shmrt_arena_default();
	if (arena == NULL)
		return NULL;
	struct shmrt_shortage shortage = {0};
	void *memory = NULL;
	int fd = -1;
	uint64_t size = file_bytes(slots, slot_bytes), geometry[4] = {slots, slot_bytes, (uint64_t)on_full, 0};
	int outcome = shmrt_segment_create(SHMRT_SEGMENT_RING, "shmrt-ring", size, &fd, &memory, &shortage);
	if (outcome == SHMRT_NO_SPACE)
		shmrt_raise_shortage(&shortage);
	else if (outcome != SHMRT_OK)
		shmrt_raise("SegmentError", "a ring of %llu bytes could not be made: %s", (unsigned long long)size, strerror(errno));
	else
		outcome = settle(self, fd, memory, size, true, geometry, (ShmrtArena *)arena);
	Py_DECREF(arena);
	if (outcome != SHMRT_OK)
		return NULL;
	Py_RETURN_NONE;
}

/* _file_size(slots, slot_bytes, limit) -> bytes of a named ring's file, most of them never reserved. */
PyObject *shmrt_py_ring_file_size(PyObject *type, PyObject *args) {
	(void)type;
	unsigned long long slots, slot_bytes, limit;
	if (!PyArg_ParseTuple(args, "KKK:_file_size", &slots, &slot_bytes, &limit))
		return NULL;
	if (slot_bytes < SLOT_BYTES_MIN)
		slot_bytes = SLOT_BYTES_MIN;
	return PyLong_FromUnsignedLongLong(file_bytes(slots, slot_bytes) + shmrt_arena_bytes(limit));
}

static int reserve_and_map(int fd, uint64_t size, void **memory) {
	struct shmrt_shortage shortage = {0};
	int outcome = shmrt_budget_check(size, fd, &shortage);
	if (outcome == SHMRT_OK)
		outcome = shmrt_fallocate(fd, 0, size);
	if (outcome == SHMRT_OK)
		outcome = shmrt_map(fd, 0, size, true, memory);
	if (outcome == SHMRT_OK)
		return 0;
	if (outcome == SHMRT_NO_SPACE)
		shmrt_raise_shortage(&shortage);
	else
		shmrt_raise("SegmentError", "a ring of %llu bytes could not be made: %s", (unsigned long long)size, strerror(errno));
	return -1;
}

/* _make_in(fd, slots, slot_bytes, on_full, limit): ring and arena in the caller's fresh file. */
PyObject *shmrt_py_ring_make_in(RingCore *self, PyObject *args) {
	unsigned long long slots, slot_bytes, limit;
	int fd, on_full;
	if (!PyArg_ParseTuple(args, "iKKiK:_make_in", &fd, &slots, &slot_bytes, &on_full, &limit) || check_made(self) < 0)
		return NULL;
	if (slot_bytes < SLOT_BYTES_MIN)
		slot_bytes = SLOT_BYTES_MIN;
	uint64_t size = file_bytes(slots, slot_bytes), geometry[4] = {slots, slot_bytes, (uint64_t)on_full, size};
	void *memory = NULL;
	PyObject *arena = shmrt_py_arena_create_in(fd, size, limit);
	if (arena == NULL || reserve_and_map(fd, size, &memory) < 0) {
		Py_XDECREF(arena);
		return NULL;
	}
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3), outcome = -1;
	if (own < 0 || shmrt_segment_format(memory, SHMRT_SEGMENT_RING, size) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		shmrt_unmap(memory, size);
		if (own >= 0)
			close(own);
	} else {
		outcome = settle(self, own, memory, size, true, geometry, (ShmrtArena *)arena);
	}
	Py_DECREF(arena);
	if (outcome < 0)
		return NULL;
	Py_RETURN_NONE;
}

/* _join(fd, arena or None, pickle): None means that the arena is in the same file. */
PyObject *shmrt_py_ring_join(RingCore *self, PyObject *args) {
	int fd, allow_pickle;
	PyObject *arena;
	if (!PyArg_ParseTuple(args, "iOp:_join", &fd, &arena, &allow_pickle) || check_made(self) < 0)
		return NULL;
	char reason[200] = "";
	void *memory = NULL;
	uint64_t size = 0;
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	int outcome = shmrt_segment_attach(own, SHMRT_SEGMENT_RING, &memory, &size, reason, sizeof(reason));
	if (outcome != SHMRT_OK || size < sizeof(struct shmrt_ring_shared)) {
		if (outcome == SHMRT_OK)
			shmrt_unmap(memory, size);
		close(own);
		return shmrt_raise("SegmentError", "the ring was refused: %s", reason[0] ? reason : "it is too small");
	}
	uint64_t arena_offset = ((struct shmrt_ring_shared *)memory)->arena_offset;
	if (arena != Py_None) {
		Py_INCREF(arena);
	} else if (arena_offset < size) {
		arena = shmrt_raise("SegmentError", "the ring was refused: its arena lies inside it");
	} else {
		arena = shmrt_py_arena_attach(own, arena_offset);
	}
	if (arena == NULL || !PyObject_TypeCheck(arena, shmrt_arena_type)) {
		if (arena != NULL)
			PyErr_SetString(PyExc_TypeError, "_join() needs an Arena or None");
		shmrt_unmap(memory, size);
		close(own);
		Py_XDECREF(arena);
		return NULL;
	}
	outcome = settle(self, own, memory, size, false, NULL, (ShmrtArena *)arena);
	self->allow_pickle = allow_pickle;
	/* What this process will send most likely goes back there: its arrays should lie in the same arena. */
	if (outcome == 0 && arena_offset == 0 && !shmrt_arena_has_default())
		outcome = shmrt_arena_set_default(arena);
	Py_DECREF(arena);
	if (outcome < 0)
		return NULL;
	Py_RETURN_NONE;
}
