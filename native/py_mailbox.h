/* py_mailbox.h -- the structs behind Mailbox and Calls, and what their files offer each other.
 *
 * User code runs before shared memory is touched (pickling) or after (unpickling), never while a ring's mutex is held or
 * a call slot is being written. What is waited for without the GIL works on copies and on memory that stays mapped.
 */
#ifndef SHMRT_PY_MAILBOX_H
#define SHMRT_PY_MAILBOX_H

#include "mailbox.h"
#include "py_block.h"
#include "py_deadline.h"
#include "py_overload.h"
#include "py_ring.h"
#include "py_slots_internal.h"

#define SHMRT_PY_IDLE_MOST 32  /* call slots that a process keeps between its calls */
#define SHMRT_PY_NAMES 16      /* names of handlers that a taker remembers; a power of two */

struct shmrt_py_watched {
	uint32_t index, generation;
	uint64_t deadline_ns; /* 0: none */
};

typedef struct {
	PyObject_HEAD
	PyObject *slots; /* keeps the table open */
	struct shmrt_calls calls;
	ShmrtArena *arena; /* where replies lie; NULL until it is known */
	uint32_t owner;    /* of whom all below is: a forked child begins anew */
	uint32_t cursor, idle_count;
	uint32_t idle[SHMRT_PY_IDLE_MOST];
	/* Watched calls: those of `begin`. Their ends ring the bell of the door, a call slot that carries no call. */
	bool has_door, woken, collecting;
	PyObject *collected; /* by a collect that raised instead of returning it; or NULL */
	uint32_t door;
	struct shmrt_py_watched *watched;
	size_t watched_count, watched_capacity;
	_Atomic uint32_t spin_ns;
	struct shmrt_encoder encoder; /* of replies; a thread that finds it in use makes its own */
	bool encoder_busy;
	uint64_t begun, replies_dropped;
} CallsObject;

typedef struct {
	PyObject_HEAD
	struct shmrt_mailbox mailbox;
	void *address; /* NULL: not made */
	uint64_t size, inode;
	int fd;
	ShmrtArena *arena;
	CallsObject *calls; /* whose table `mailbox` has a copy of */
	struct shmrt_encoder encoder;
	uint8_t *outbox, *inbox; /* a slot's bytes each; `outbox` goes with the encoder */
	bool encoder_busy, inbox_busy;
	PyObject *names[SHMRT_PY_NAMES];
	uint64_t taken;
	PyObject *weak_references;
} MailboxObject;

extern PyTypeObject *shmrt_py_calls_type, *shmrt_py_mailbox_type;

/* ---- py_calls.c ---- */
/* Arguments by type, or NULL with TypeError or ValueError (closed). After a fork the Calls is made this process's. */
CallsObject *shmrt_py_calls_enter(PyObject *object);
MailboxObject *shmrt_py_mailbox_enter(PyObject *object);
/* The mailbox's calls and arena become known to each other. */
void shmrt_py_mailbox_bind(MailboxObject *, CallsObject *);
/* An IDLE slot of this process; -1 with Overloaded. */
int shmrt_py_calls_claim(CallsObject *, uint32_t *index);
/* IDLE again: kept, or FREE if enough are kept. */
void shmrt_py_calls_give_back(CallsObject *, uint32_t index);
/* The arena of replies: NULL if this process has none yet. */
ShmrtArena *shmrt_py_calls_arena(CallsObject *);
/* An answer is there or was given up: what it is, as (status, value); new reference. The slot is given back. */
PyObject *shmrt_py_calls_read(CallsObject *, uint32_t index, uint32_t generation, int *status);
/* The caller does not want it any more, whatever its state. */
void shmrt_py_calls_cancel(CallsObject *, uint32_t index, uint32_t generation);
int shmrt_py_reference(PyObject *reference, uint32_t *index, uint32_t *generation);
static inline PyObject *shmrt_py_reference_new(uint32_t index, uint32_t generation) {
	return PyLong_FromUnsignedLongLong((uint64_t)index << 32 | generation);
}

/* ---- py_calls_reply.c ---- */
struct shmrt_py_failure { /* a reason, encoded once for many calls */
	CallsObject *calls;
	struct shmrt_encoder encoder, brief; /* brief: fits every slot */
};
int shmrt_py_failure_begin(struct shmrt_py_failure *, CallsObject *, PyObject *reason); /* -1 with an exception */
/* Writes it into a seized slot. */
void shmrt_py_failure_finish(struct shmrt_py_failure *, uint32_t index, uint32_t generation);
/* The same for a call that is WAITING or TAKEN. True: somebody waited for it. */
bool shmrt_py_failure_reply(struct shmrt_py_failure *, uint32_t index, uint32_t generation);
void shmrt_py_failure_end(struct shmrt_py_failure *);

/* ---- py_mailbox_put.c ---- */
struct shmrt_py_outgoing {
	MailboxObject *mailbox;
	struct shmrt_encoder *encoder;
	uint8_t *bytes; /* envelope, name, inline body */
	struct shmrt_message message;
	struct shmrt_ring_message out;
};
/* Encodes; -1 with an exception and nothing left behind. */
int shmrt_py_outgoing_make(struct shmrt_py_outgoing *, MailboxObject *, int kind, PyObject *name, PyObject *args,
			   PyObject *kwargs, const struct deadline *);
static inline void shmrt_py_outgoing_address(struct shmrt_py_outgoing *outgoing, uint32_t index, uint32_t generation) {
	memcpy(outgoing->bytes + offsetof(struct shmrt_mail_envelope, index), &index, sizeof(index));
	memcpy(outgoing->bytes + offsetof(struct shmrt_mail_envelope, generation), &generation, sizeof(generation));
}
/* `sent`: its blocks are the mailbox's. Keeps the exception that may be set. */
void shmrt_py_outgoing_end(struct shmrt_py_outgoing *, bool sent);
/* A put that answered FULL or TIMEOUT is over. */
void shmrt_py_mailbox_refused(MailboxObject *, int outcome);
static inline int shmrt_py_mailbox_look(MailboxObject *self) {
	return shmrt_py_overload_look((PyObject *)self, &self->mailbox.ring);
}
/* What a put's answer means as an exception; always NULL. */
PyObject *shmrt_py_mailbox_raise(MailboxObject *, int outcome);

/* ---- methods; what they do is told in the tables of py_calls.c and py_mailbox.c ---- */
#define SHMRT_FAST_METHOD(type, name) PyObject *shmrt_py_##name(type *, PyObject *const *args, Py_ssize_t nargs)
SHMRT_FAST_METHOD(CallsObject, calls_call);  /* py_calls_call.c */
SHMRT_FAST_METHOD(CallsObject, calls_begin); /* py_calls_watch.c */
PyObject *shmrt_py_calls_collect(CallsObject *, PyObject *timeout);
PyObject *shmrt_py_calls_wake(CallsObject *, PyObject *nothing);
PyObject *shmrt_py_calls_cancel_watched(CallsObject *, PyObject *reference);
SHMRT_FAST_METHOD(CallsObject, calls_reply); /* py_calls_reply.c */
SHMRT_FAST_METHOD(CallsObject, calls_fail_taken);
SHMRT_FAST_METHOD(CallsObject, calls_fail_waiting);
PyObject *shmrt_py_calls_fail_all(CallsObject *, PyObject *reason);
PyObject *shmrt_py_calls_reclaim(CallsObject *, PyObject *nothing);
SHMRT_FAST_METHOD(MailboxObject, mailbox_cast); /* py_mailbox_put.c */
SHMRT_FAST_METHOD(MailboxObject, mailbox_take); /* py_mailbox_take.c */
SHMRT_FAST_METHOD(MailboxObject, mailbox_done);
SHMRT_FAST_METHOD(MailboxObject, mailbox_drop_all);

#endif
