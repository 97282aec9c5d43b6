/* py_arena.c -- Arena: one mapped arena of this process, found again by the identity of its segment.
 *
 * An arena mapped twice would have blocks at two addresses, and an array could not be told from the block it
 * lies in, so attach gives the object that is already there. The private half of struct shmrt_arena is used
 * under the GIL only. After a fork the child goes on with the same mapping under its own owner id.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_block.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

PyTypeObject *shmrt_arena_type;
static ShmrtArena *mapped; /* every living Arena, linked by ->next */
static PyObject *default_arena;

/* What `with Runtime()` made current; NULL: the default one. Only what lies there goes to that runtime by reference. */
static PyObject *current_arena;

static void adopt_after_fork(void) {
	current_arena = NULL; /* the parent's runtime is not ours; its reference stays with what we inherited */
	for (ShmrtArena *arena = mapped; arena != NULL; arena = arena->next)
		arena->owner = shmrt_owner_self();
}

static PyObject *arena_wrap(struct shmrt_arena *arena, const struct stat *status) {
	ShmrtArena *self = PyObject_New(ShmrtArena, shmrt_arena_type);
	if (self == NULL) {
		int fd = arena->fd;
		shmrt_arena_detach(arena);
		close(fd);
		return NULL;
	}
	self->arena = *arena;
	self->owner = shmrt_owner_self();
	self->inode = status->st_ino;
	self->device = status->st_dev;
	self->held_bytes = 0;
	memset(self->lent, 0, sizeof(self->lent));
	self->next = mapped;
	mapped = self;
	return (PyObject *)self;
}

static uint64_t address_space_used(void) {
	unsigned long long pages = 0;
	FILE *file = fopen("/proc/self/statm", "re");
	if (file == NULL)
		return 0;
	if (fscanf(file, "%llu", &pages) != 1)
		pages = 0;
	fclose(file);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

PyObject *shmrt_py_arena_create(uint64_t limit_bytes) {
	struct shmrt_arena arena;
	struct shmrt_shortage shortage = {0};
	struct stat status;
	int outcome = shmrt_arena_create(&arena, limit_bytes, &shortage);
	if (outcome == SHMRT_NO_SPACE)
		return shmrt_raise_shortage(&shortage);
	if (outcome == SHMRT_INVALID)
		return shmrt_raise("SegmentError", "an arena of %llu bytes cannot be made; use a smaller shm_limit",
				   (unsigned long long)limit_bytes);
	struct rlimit space;
	if (outcome != SHMRT_OK && errno == ENOMEM && getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) {
		uint64_t used = address_space_used();
		shortage = (struct shmrt_shortage){.needed = limit_bytes, .free = space.rlim_cur > used ? space.rlim_cur - used : 0};
		snprintf(shortage.limit, sizeof(shortage.limit), "address space of this process (ulimit -v)");
		return shmrt_raise_shortage(&shortage);
	}
	if (outcome != SHMRT_OK)
		return shmrt_raise("SegmentError", "an arena of %llu bytes could not be made: %s",
				   (unsigned long long)limit_bytes, strerror(errno));
	if (fstat(arena.fd, &status) != 0)
		memset(&status, 0, sizeof(status));
	return arena_wrap(&arena, &status);
}

PyObject *shmrt_py_arena_create_in(int fd, uint64_t file_offset, uint64_t limit_bytes) {
	struct shmrt_arena arena;
	struct shmrt_shortage shortage = {0};
	struct stat status;
	if (fstat(fd, &status) != 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	int outcome = shmrt_arena_create_in(&arena, own, file_offset, limit_bytes, &shortage);
	if (outcome == SHMRT_OK)
		return arena_wrap(&arena, &status);
	int error = errno;
	close(own);
	if (outcome == SHMRT_NO_SPACE)
		return shmrt_raise_shortage(&shortage);
	return shmrt_raise("SegmentError", "an arena of %llu bytes could not be made: %s", (unsigned long long)limit_bytes,
			   outcome == SHMRT_INVALID ? "it is too large" : strerror(error));
}

PyObject *shmrt_py_arena_attach(int fd, uint64_t file_offset) {
	struct stat status;
	if (fstat(fd, &status) != 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	for (ShmrtArena *known = mapped; known != NULL; known = known->next)
		if (known->inode == status.st_ino && known->device == status.st_dev &&
		    known->arena.file_offset == file_offset)
			return Py_NewRef((PyObject *)known);
	struct shmrt_arena arena;
	char reason[200] = "";
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	int outcome = shmrt_arena_attach(&arena, own, file_offset, reason, sizeof(reason));
	if (outcome != SHMRT_OK) {
		close(own);
		return shmrt_raise("SegmentError", "the arena was refused: %s", reason[0] ? reason : strerror(errno));
	}
	return arena_wrap(&arena, &status);
}

/* Half of the machine's memory as address space; what may really be reserved is asked at each growth. */
uint64_t shmrt_arena_default_limit(void) {
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	uint64_t limit = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 2 : UINT64_C(1) << 30;
	struct rlimit space;
	/* Under `ulimit -v` every process of the runtime maps it all beside what it needs itself. */
	if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY && limit > space.rlim_cur / 8)
		limit = space.rlim_cur / 8;
	return limit < UINT64_C(64) << 20 ? UINT64_C(64) << 20 : limit;
}

bool shmrt_arena_has_default(void) { return default_arena != NULL; }

PyObject *shmrt_arena_default(void) {
	if (default_arena == NULL)
		default_arena = shmrt_py_arena_create(shmrt_arena_default_limit());
	return Py_XNewRef(default_arena);
}

int shmrt_arena_set_default(PyObject *arena) {
	if (Py_TYPE(arena) != shmrt_arena_type) {
		PyErr_Format(PyExc_TypeError, "the default arena must be an Arena, not %.100s", Py_TYPE(arena)->tp_name);
		return -1;
	}
	Py_XSETREF(default_arena, Py_NewRef(arena));
	return 0;
}

static void arena_dealloc(ShmrtArena *self) {
	PyTypeObject *type = Py_TYPE(self);
	for (ShmrtArena **link = &mapped; *link != NULL; link = &(*link)->next) {
		if (*link == self) {
			*link = self->next;
			break;
		}
	}
	int fd = self->arena.fd;
	shmrt_arena_detach(&self->arena);
	if (fd >= 0)
		close(fd);
	PyObject_Free(self);
	Py_DECREF(type);
}

/* ---- methods --------------------------------------------------------------------------------------------- */

static PyObject *arena_class_create(PyObject *type, PyObject *limit) {
	(void)type;
	unsigned long long bytes = PyLong_AsUnsignedLongLong(limit);
	if (bytes == (unsigned long long)-1 && PyErr_Occurred())
		return NULL;
	return shmrt_py_arena_create(bytes);
}

static PyObject *arena_class_attach(PyObject *type, PyObject *args) {
	(void)type;
	int fd;
	unsigned long long offset = 0;
	if (!PyArg_ParseTuple(args, "i|K:attach", &fd, &offset))
		return NULL;
	return shmrt_py_arena_attach(fd, offset);
}

static PyObject *arena_class_default(PyObject *type, PyObject *nothing) {
	(void)type;
	(void)nothing;
	return shmrt_arena_default();
}

static PyObject *arena_class_current(PyObject *type, PyObject *nothing) {
	(void)type;
	(void)nothing;
	return current_arena != NULL ? Py_NewRef(current_arena) : shmrt_arena_default();
}

static PyObject *arena_class_use(PyObject *type, PyObject *arena) {
	(void)type;
	if (arena != Py_None && Py_TYPE(arena) != shmrt_arena_type)
		return PyErr_Format(PyExc_TypeError, "use() takes an Arena or None, not %.100s", Py_TYPE(arena)->tp_name);
	Py_XSETREF(current_arena, arena == Py_None ? NULL : Py_NewRef(arena));
	Py_RETURN_NONE;
}

static PyObject *arena_set_default(ShmrtArena *self, PyObject *nothing) {
	(void)nothing;
	if (shmrt_arena_set_default((PyObject *)self) < 0)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *arena_allocate(ShmrtArena *self, PyObject *size) {
	unsigned long long bytes = PyLong_AsUnsignedLongLong(size);
	if (bytes == (unsigned long long)-1 && PyErr_Occurred())
		return NULL;
	return shmrt_py_block_allocate(self, bytes);
}

static PyObject *arena_stats(ShmrtArena *self, PyObject *nothing) {
	(void)nothing;
	struct shmrt_arena_stats stats;
	shmrt_arena_get_stats(&self->arena, &stats);
	return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K}", "limit", stats.limit, "reserved", stats.reserved, "blocks_free",
			     stats.blocks_free, "blocks_used", stats.blocks_used, "bytes_used", stats.bytes_used);
}

static PyObject *arena_trim(ShmrtArena *self, PyObject *args) {
	unsigned long long keep = 0;
	if (!PyArg_ParseTuple(args, "|K:trim", &keep))
		return NULL;
	return PyLong_FromUnsignedLongLong(shmrt_arena_trim(&self->arena, keep));
}

static PyObject *arena_reclaim_dead(ShmrtArena *self, PyObject *nothing) {
	(void)nothing;
	return PyLong_FromUnsignedLongLong(shmrt_arena_reclaim_dead(&self->arena));
}

/* Without a look at what it has sent: only of a process whose every block in flight lies in a mailbox or a call slot. */
static PyObject *arena_reclaim_of(ShmrtArena *self, PyObject *owner) {
	unsigned long who = PyLong_AsUnsignedLong(owner);
	if (PyErr_Occurred())
		return NULL;
	return PyLong_FromUnsignedLongLong(shmrt_arena_reclaim(&self->arena, (uint32_t)who, NULL, NULL));
}

static PyObject *arena_blocks_of(ShmrtArena *self, PyObject *pid) {
	long who = PyLong_AsLong(pid);
	if (who == -1 && PyErr_Occurred())
		return NULL;
	/* acquire: the words below it are reserved (edge A4 of the arena) */
	uint64_t high = atomic_load_explicit(&self->arena.shared->granules_high, memory_order_acquire), count = 0;
	if (high > self->arena.granule_count)
		high = self->arena.granule_count;
	for (uint64_t index = 0; index < high * SHMRT_BLOCKS_PER_GRANULE; index++) {
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(&self->arena, index, &state, &generation, &owner);
		count += state != SHMRT_BLOCK_FREE && state != SHMRT_BLOCK_SENT && owner != 0 && shmrt_owner_pid(owner) == who;
	}
	return PyLong_FromUnsignedLongLong(count);
}

static PyObject *arena_check(ShmrtArena *self, PyObject *nothing) {
	(void)nothing;
	return PyBool_FromLong(shmrt_arena_check(&self->arena) == SHMRT_OK);
}

static PyObject *arena_get(ShmrtArena *self, void *which) {
	switch ((intptr_t)which) {
	case 0:
		return PyLong_FromLong(self->arena.fd);
	case 1:
		return PyLong_FromUnsignedLongLong(self->inode);
	case 2:
		return PyLong_FromUnsignedLongLong(self->arena.size);
	case 3:
		return PyLong_FromUnsignedLongLong(self->arena.file_offset);
	default:
		return PyLong_FromUnsignedLongLong(self->arena.limit_bytes);
	}
}

static PyMethodDef arena_methods[] = {
	{"create", arena_class_create, METH_O | METH_CLASS, "create(limit_bytes) -> Arena in a segment of its own"},
	{"attach", arena_class_attach, METH_VARARGS | METH_CLASS, "attach(fd, offset=0) -> Arena; the one there if mapped"},
	{"default", arena_class_default, METH_NOARGS | METH_CLASS, "default() -> Arena of this process"},
	{"current", arena_class_current, METH_NOARGS | METH_CLASS, "current() -> Arena of the current runtime"},
	{"use", arena_class_use, METH_O | METH_CLASS, "use(arena): the current one from now on; None: the default"},
	{"set_default", (PyCFunction)arena_set_default, METH_NOARGS, "make it the default of this process"},
	{"allocate", (PyCFunction)arena_allocate, METH_O, "allocate(size) -> Block held by this process"},
	{"stats", (PyCFunction)arena_stats, METH_NOARGS, "limit, reserved, blocks_free, blocks_used, bytes_used"},
	{"trim", (PyCFunction)arena_trim, METH_VARARGS, "trim(keep_bytes=0) -> bytes given back to the system"},
	{"reclaim_dead", (PyCFunction)arena_reclaim_dead, METH_NOARGS, "free what dead processes held -> how many"},
	{"reclaim_of", (PyCFunction)arena_reclaim_of, METH_O, "reclaim_of(owner_id): free what that dead process held -> how many"},
	{"blocks_of", (PyCFunction)arena_blocks_of, METH_O, "blocks_of(pid) -> how many blocks that process holds; what it has sent and nobody has taken is not counted"},
	{"check", (PyCFunction)arena_check, METH_NOARGS, "whether all words are ones that correct writers leave"},
	{0},
};

static PyGetSetDef arena_attributes[] = {
	{"fd", (getter)arena_get, NULL, "descriptor of the segment", (void *)0},
	{"inode", (getter)arena_get, NULL, "identity of the segment", (void *)1},
	{"size", (getter)arena_get, NULL, "virtual bytes mapped", (void *)2},
	{"offset", (getter)arena_get, NULL, "where it begins in its file", (void *)3},
	{"limit", (getter)arena_get, NULL, "most bytes that may be reserved", (void *)4},
	{0},
};

static PyType_Slot arena_slots[] = {
	{Py_tp_doc, "Shared memory for payloads, handed out in blocks."},
	{Py_tp_dealloc, arena_dealloc},
	{Py_tp_methods, arena_methods},
	{Py_tp_getset, arena_attributes},
	{0, NULL},
};

static PyType_Spec arena_spec = {
	.name = "shmrt._native.Arena",
	.basicsize = sizeof(ShmrtArena),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = arena_slots,
};

static PyObject *module_owner_self(PyObject *module, PyObject *nothing) {
	(void)module;
	(void)nothing;
	return PyLong_FromUnsignedLong(shmrt_owner_self());
}

static PyObject *module_owner_is_alive(PyObject *module, PyObject *owner) {
	(void)module;
	unsigned long value = PyLong_AsUnsignedLong(owner);
	if (value == (unsigned long)-1 && PyErr_Occurred())
		return NULL;
	return PyBool_FromLong(value <= UINT32_MAX && shmrt_owner_is_alive((uint32_t)value));
}

static PyObject *module_default_limit(PyObject *module, PyObject *nothing) {
	(void)module;
	(void)nothing;
	return PyLong_FromUnsignedLongLong(shmrt_arena_default_limit());
}

static PyMethodDef functions[] = {
	{"owner_self", module_owner_self, METH_NOARGS, "the owner id of this process: its pid and start time"},
	{"owner_is_alive", module_owner_is_alive, METH_O, "whether the process of an owner id exists"},
	{"default_limit", module_default_limit, METH_NOARGS, "bytes that an arena is limited to if nobody says"},
	{0},
};

int shmrt_py_add_arena(PyObject *module) {
	static bool registered;
	/* Children run the handlers in the order of registration: first its own id is forgotten, then written. */
	(void)shmrt_owner_self();
	if (!registered && pthread_atfork(NULL, NULL, adopt_after_fork) != 0) {
		PyErr_NoMemory();
		return -1;
	}
	registered = true;
	shmrt_arena_type = (PyTypeObject *)PyType_FromSpec(&arena_spec);
	if (shmrt_arena_type == NULL || PyModule_AddFunctions(module, functions) < 0)
		return -1;
	return PyModule_AddObjectRef(module, "Arena", (PyObject *)shmrt_arena_type);
}
