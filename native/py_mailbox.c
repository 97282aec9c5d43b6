/* py_mailbox.c -- Mailbox: the mapped mailbox of one server; puts in py_mailbox_put.c, takes in py_mailbox_take.c.
 *
 * A mailbox outlives the processes of its server: its memory is a memfd of its own, its payloads lie in the arena of the
 * runtime. To tell the callers of calls that a full mailbox drops, it has to know the call slots of the runtime: from its
 * making, or from the first call or take that it is used for.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "py_mailbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOT_BYTES_MIN 320 /* an envelope, the longest name, one block reference */
_Static_assert(SLOT_BYTES_MIN >= sizeof(struct shmrt_mail_envelope) + SHMRT_MAIL_NAME_MAX + sizeof(struct shmrt_block_reference),
	       "every name leaves room for a body in a block");

PyTypeObject *shmrt_py_mailbox_type;

MailboxObject *shmrt_py_mailbox_enter(PyObject *object) {
	if (SHMRT_LIKELY(Py_TYPE(object) == shmrt_py_mailbox_type))
		return (MailboxObject *)object;
	PyErr_Format(PyExc_TypeError, "a Mailbox is needed, not %R", object);
	return NULL;
}

void shmrt_py_mailbox_bind(MailboxObject *self, CallsObject *calls) {
	if (calls->arena == NULL)
		calls->arena = (ShmrtArena *)Py_NewRef((PyObject *)self->arena);
	if (SHMRT_LIKELY(self->calls == calls))
		return;
	self->mailbox.calls = calls->calls;
	Py_XSETREF(self->calls, (CallsObject *)Py_NewRef((PyObject *)calls));
}

/* ---- life ---- */

/* Takes over fd and memory; gives both back on failure. `arena` and `calls` may be None. */
static PyObject *mailbox_wrap(int fd, void *memory, uint64_t size, PyObject *arena, PyObject *calls) {
	struct stat status;
	MailboxObject *self = NULL;
	if (arena != Py_None && Py_TYPE(arena) != shmrt_arena_type)
		PyErr_Format(PyExc_TypeError, "arena must be an Arena or None, not %R", arena);
	else if (calls == Py_None || shmrt_py_calls_enter(calls) != NULL)
		self = (MailboxObject *)shmrt_py_mailbox_type->tp_alloc(shmrt_py_mailbox_type, 0);
	PyObject *owned = self == NULL ? NULL : arena == Py_None ? shmrt_arena_default() : Py_NewRef(arena);
	if (owned == NULL || fstat(fd, &status) != 0)
		goto failed;
	if (shmrt_ring_attach(&self->mailbox.ring, memory, size, fd, &((ShmrtArena *)owned)->arena) != SHMRT_OK ||
	    self->mailbox.ring.slot_bytes < SLOT_BYTES_MIN) {
		shmrt_raise("SegmentError", "the mailbox was refused: its geometry is not one that a writer leaves");
		goto failed;
	}
	shmrt_mailbox_attach(&self->mailbox, NULL);
	self->address = memory;
	self->size = size;
	self->inode = status.st_ino;
	self->fd = fd;
	self->arena = (ShmrtArena *)owned;
	if (calls != Py_None)
		shmrt_py_mailbox_bind(self, (CallsObject *)calls);
	return (PyObject *)self;
failed:
	if (!PyErr_Occurred())
		PyErr_SetFromErrno(PyExc_OSError);
	shmrt_unmap(memory, size);
	close(fd);
	Py_XDECREF(owned);
	Py_XDECREF(self);
	return NULL;
}

static PyObject *mailbox_create(PyObject *type, PyObject *args) {
	(void)type;
	unsigned long long slots, slot_bytes;
	int on_full;
	PyObject *arena = Py_None, *calls = Py_None;
	if (!PyArg_ParseTuple(args, "KKi|OO:create", &slots, &slot_bytes, &on_full, &arena, &calls))
		return NULL;
	if (slot_bytes < SLOT_BYTES_MIN)
		slot_bytes = SLOT_BYTES_MIN;
	uint64_t size = shmrt_align_up(shmrt_ring_bytes(slots, slot_bytes), 4096);
	if (size == 0 || on_full < SHMRT_RING_BLOCK || on_full > SHMRT_RING_DROP_NEWEST)
		return PyErr_Format(PyExc_ValueError, "no mailbox has slots=%llu, slot_bytes=%llu, on_full=%d", slots, slot_bytes, on_full);
	struct shmrt_shortage shortage = {0};
	void *memory = NULL;
	int fd = -1;
	int outcome = shmrt_segment_create(SHMRT_SEGMENT_RING, "shmrt-mailbox", size, &fd, &memory, &shortage);
	if (outcome == SHMRT_NO_SPACE)
		return shmrt_raise_shortage(&shortage);
	if (outcome == SHMRT_OK) {
		outcome = shmrt_ring_format(memory, slots, slot_bytes, (enum shmrt_ring_full_policy)on_full, 0, 0);
		if (outcome == SHMRT_OK) {
			shmrt_segment_publish(memory);
			return mailbox_wrap(fd, memory, size, arena, calls);
		}
		shmrt_unmap(memory, size);
		close(fd);
	}
	return shmrt_raise("SegmentError", "a mailbox of %llu bytes could not be made: %s", (unsigned long long)size, strerror(errno));
}

static PyObject *mailbox_attach(PyObject *type, PyObject *args) {
	(void)type;
	int fd;
	PyObject *arena = Py_None, *calls = Py_None;
	char reason[200] = "";
	void *memory = NULL;
	uint64_t size = 0;
	if (!PyArg_ParseTuple(args, "i|OO:attach", &fd, &arena, &calls))
		return NULL;
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (shmrt_segment_attach(own, SHMRT_SEGMENT_RING, &memory, &size, reason, sizeof(reason)) != SHMRT_OK) {
		close(own);
		return shmrt_raise("SegmentError", "the mailbox was refused: %s", reason[0] ? reason : strerror(errno));
	}
	return mailbox_wrap(own, memory, size, arena, calls);
}

static void mailbox_dealloc(MailboxObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	if (self->weak_references != NULL)
		PyObject_ClearWeakRefs((PyObject *)self);
	shmrt_encoder_clear(&self->encoder);
	PyMem_Free(self->outbox);
	PyMem_Free(self->inbox);
	for (int i = 0; i < SHMRT_PY_NAMES; i++)
		Py_XDECREF(self->names[i]);
	if (self->address != NULL) {
		shmrt_unmap(self->address, self->size);
		close(self->fd);
		Py_DECREF(self->arena);
	}
	Py_XDECREF(self->calls);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

/* ---- looking and ending ---- */

static PyObject *mailbox_qsize(MailboxObject *self, PyObject *nothing) {
	(void)nothing;
	return PyLong_FromUnsignedLongLong(shmrt_ring_depth(&self->mailbox.ring));
}

static PyObject *mailbox_ring(MailboxObject *self, PyObject *nothing) {
	(void)nothing;
	shmrt_mailbox_ring(&self->mailbox);
	Py_RETURN_NONE;
}

static PyObject *mailbox_close(MailboxObject *self, PyObject *nothing) {
	(void)nothing;
	Py_BEGIN_ALLOW_THREADS
	shmrt_mailbox_close(&self->mailbox);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *mailbox_stats(MailboxObject *self, PyObject *nothing) {
	(void)nothing;
	struct shmrt_ring_shared *shared = self->mailbox.ring.shared;
#define LOAD(field) ((unsigned long long)atomic_load_explicit(&shared->field, memory_order_relaxed)) /* numbers for people */
	return Py_BuildValue("{s:K,s:K,s:O,s:K,s:K,s:K,s:K,s:K,s:d,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "depth",
			     (unsigned long long)shmrt_ring_depth(&self->mailbox.ring), "capacity", self->mailbox.ring.slots, "closed",
			     LOAD(closed) ? Py_True : Py_False, "high_water", LOAD(high_water), "messages_in", (unsigned long long)shmrt_ring_messages_in(&self->mailbox.ring),
			     "messages_out", (unsigned long long)shmrt_ring_messages_out(&self->mailbox.ring), "bytes_in", LOAD(bytes_in), "bytes_out", LOAD(bytes_out),
			     "blocked_full", (double)LOAD(blocked_full_ns) * 1e-9, "drops", LOAD(dropped), "repairs", LOAD(repairs),
			     "refused", LOAD(refused), "expired", LOAD(expired), "abandoned", LOAD(abandoned), "cleared", LOAD(cleared),
			     "taken", (unsigned long long)self->taken);
#undef LOAD
}

static PyObject *mailbox_overload(MailboxObject *self, PyObject *nothing) {
	(void)nothing;
	return shmrt_py_overload_take(&self->mailbox.ring);
}

static PyObject *mailbox_attribute(MailboxObject *self, void *which) {
	const struct shmrt_segment_header *header = self->address;
	switch ((intptr_t)which) {
	case 0:
		return PyLong_FromUnsignedLongLong(self->mailbox.ring.slots);
	case 1:
		return PyLong_FromLong(self->fd);
	case 2:
		return PyBytes_FromStringAndSize((const char *)header->token, sizeof(header->token));
	case 3:
		return PyLong_FromUnsignedLongLong(self->inode);
	case 4:
		return Py_NewRef(self->calls ? (PyObject *)self->calls : Py_None);
	default:
		return PyLong_FromLong((long)self->mailbox.on_full);
	}
}

/* ---- the type ---- */

static PyGetSetDef mailbox_attributes[] = {
	{"capacity", (getter)mailbox_attribute, NULL, "exact number of messages that it holds", (void *)0},
	{"fd", (getter)mailbox_attribute, NULL, "descriptor of the segment", (void *)1},
	{"token", (getter)mailbox_attribute, NULL, "equal tokens mean the same mailbox", (void *)2},
	{"inode", (getter)mailbox_attribute, NULL, "of the segment", (void *)3},
	{"calls", (getter)mailbox_attribute, NULL, "the Calls that it is used with, or None", (void *)4},
	{"on_full", (getter)mailbox_attribute, NULL, "number of the policy", (void *)5},
	{0},
};

#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL
static PyMethodDef mailbox_methods[] = {
	{"create", mailbox_create, METH_VARARGS | METH_STATIC, "create(slots, slot_bytes, on_full, arena=None, calls=None) -> Mailbox"},
	{"attach", mailbox_attach, METH_VARARGS | METH_STATIC, "attach(fd, arena=None, calls=None) -> the mailbox behind a descriptor (which is duplicated)"},
	{"cast", FAST(shmrt_py_mailbox_cast), "cast(kind, name, args, kwargs, timeout, deadline=None) -> False if it was dropped"},
	{"take", FAST(shmrt_py_mailbox_take), "take(calls, slots, index, seen, timeout) -> message, control count, or None after the timeout"},
	{"done", FAST(shmrt_py_mailbox_done), "done(slots, index): the message taken last is dealt with"},
	{"drop_all", FAST(shmrt_py_mailbox_drop_all), "drop_all(calls, reason) -> messages thrown away; their callers get DOWN"},
	{"ring", (PyCFunction)mailbox_ring, METH_NOARGS, "Wake the taker: its slot's control count was raised, or its stop requested."},
	{"close", (PyCFunction)mailbox_close, METH_NOARGS, "No more puts, for everybody. Takes go on."},
	{"qsize", (PyCFunction)mailbox_qsize, METH_NOARGS, "messages waiting; a moment's view"},
	{"stats", (PyCFunction)mailbox_stats, METH_NOARGS, "Counts of the mailbox, which outlive its servers, and how many this process took."},
	{"_overload", (PyCFunction)mailbox_overload, METH_NOARGS, "For shmrt.overloads: what a report has to tell, if it is our turn."},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef mailbox_members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(MailboxObject, weak_references), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot mailbox_slots[] = {
	{Py_tp_doc, "The mailbox of a server: requests and casts, in order."},
	{Py_tp_dealloc, mailbox_dealloc},
	{Py_tp_methods, mailbox_methods},
	{Py_tp_getset, mailbox_attributes},
	{Py_tp_members, mailbox_members},
	{0, NULL},
};
static PyType_Spec mailbox_spec = {"shmrt._native.Mailbox", sizeof(MailboxObject), 0,
				   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, mailbox_slots};

int shmrt_py_add_mailbox(PyObject *module) {
	shmrt_py_mailbox_type = (PyTypeObject *)PyType_FromSpec(&mailbox_spec);
	if (shmrt_py_mailbox_type == NULL)
		return -1;
	return PyModule_AddObjectRef(module, "Mailbox", (PyObject *)shmrt_py_mailbox_type);
}
