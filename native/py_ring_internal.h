/* py_ring_internal.h -- what the files of RingCore share; nobody else includes it.
 *
 * Every call that puts or gets first tries with the GIL held, since a ring that has room or a message answers in less time
 * than giving the GIL away takes; only waiting releases it. User code runs before the ring is touched (pickling)
 * or after (unpickling), never under its mutex: a message is copied out of its slot first.
 */
#ifndef SHMRT_PY_RING_INTERNAL_H
#define SHMRT_PY_RING_INTERNAL_H

#include "py_deadline.h"
#include "py_ring.h"

#define SHMRT_PY_RING_BATCH 32 /* messages that a put_many or get_many moves at once */

/* ---- py_ring_messages.c: the arguments of a method ---- */

/* (first, timeout=None) or (timeout=None), positional or by name. */
int shmrt_py_ring_parse(const char *function, const char *first, PyObject *const *args, Py_ssize_t nargs,
			PyObject *kwnames, PyObject **value, int64_t *timeout_ns);

/* ---- py_ring_mail.c: messages that were taken out of the ring ---- */

struct letter { /* a message copied out of its slot: references, then inline bytes */
	uint8_t *bytes;
	uint32_t inline_size;
	uint16_t flags, block_count;
	bool damaged;
};
/* As ring_take.c sees it: its decoding may fail without damage. */
static inline bool shmrt_py_ring_is_fragile(const struct letter *letter) {
	return letter->block_count != 0 || (letter->flags & (SHMRT_MESSAGE_HAS_PICKLE | SHMRT_MESSAGE_HAS_ARRAY)) != 0;
}
struct mail {
	struct letter letters[SHMRT_PY_RING_BATCH];
	uint8_t *bytes;
	uint64_t slot_bytes, count, capacity;
	uint64_t used; /* of `bytes` */
};

/* Memory for up to `count` messages. The ring's own if it is free and enough. -1 with MemoryError. */
int shmrt_py_ring_open_mail(RingCore *self, struct mail *mail, uint64_t count);
void shmrt_py_ring_close_mail(RingCore *self, struct mail *mail);
/* For ring_take.c, under the ring's mutex: copies only. `context` is the mail. */
void shmrt_py_ring_take_letter(void *context, const struct shmrt_ring_message *message);

typedef int (*receive)(RingCore *, struct mail *, int64_t timeout_ns, uint64_t *position);

/* After a first try that answered `outcome`, no OK: waits, without the GIL. */
int shmrt_py_ring_wait_on(RingCore *self, struct mail *mail, receive receive, int64_t timeout_ns, uint64_t *position,
			  int outcome);
/* OK: mail->count letters, at least one. -1 with an exception. */
static inline int shmrt_py_ring_wait_for_mail(RingCore *self, struct mail *mail, receive receive, int64_t timeout_ns,
					      uint64_t *position) {
	int outcome = receive(self, mail, 0, position);
	if (SHMRT_LIKELY(outcome == SHMRT_OK))
		return 0;
	return shmrt_py_ring_wait_on(self, mail, receive, timeout_ns, position, outcome);
}
PyObject *shmrt_py_ring_decode_rest(RingCore *self, const struct letter *letter, enum shmrt_blocks_whose whose,
				    PyObject **kept_blocks); /* one that is damaged or has blocks */
/* The object of a letter, new reference. kept_blocks: a tuple of its Blocks, or NULL if there are none. */
static inline PyObject *shmrt_py_ring_decode_letter(RingCore *self, const struct letter *letter, enum shmrt_blocks_whose whose,
						    PyObject **kept_blocks) {
	if (SHMRT_LIKELY(letter->block_count == 0 && !letter->damaged))
		return shmrt_decode_message(letter->bytes, letter->inline_size, letter->flags, NULL, 0, self->allow_pickle);
	return shmrt_py_ring_decode_rest(self, letter, whose, kept_blocks);
}

/* ---- methods; what they do is told in the tables of py_ring_messages.c and py_ring.c ---- */
PyObject *shmrt_py_ring_put(RingCore *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames); /* py_ring_put.c */
PyObject *shmrt_py_ring_put_nowait(RingCore *, PyObject *object);
PyObject *shmrt_py_ring_put_many(RingCore *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *shmrt_py_ring_get(RingCore *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames); /* py_ring_get.c */
PyObject *shmrt_py_ring_get_nowait(RingCore *, PyObject *nothing);
PyObject *shmrt_py_ring_get_many(RingCore *, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *shmrt_py_ring_lease_take(RingCore *, PyObject *timeout); /* py_ring_lease.c */
PyObject *shmrt_py_ring_lease_end(RingCore *, PyObject *args);
PyObject *shmrt_py_ring_make(RingCore *, PyObject *args); /* py_ring_make.c */
PyObject *shmrt_py_ring_make_in(RingCore *, PyObject *args);
PyObject *shmrt_py_ring_join(RingCore *, PyObject *args);
PyObject *shmrt_py_ring_file_size(PyObject *type, PyObject *args);

#endif
