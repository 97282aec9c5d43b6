/* py_ring_mail.c -- messages taken out of a ring: copied under its mutex, decoded afterwards.
 *
 * A letter is a message as it lay in its slot, copied by `shmrt_py_ring_take_letter` under the ring's mutex, where nothing
 * may fail, allocate or run user code. But for a lease its blocks are this process's from that moment on; so whatever goes
 * wrong later (a reference that is damaged, no memory) has to free those that no Block took over.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_ring_internal.h"

#define INBOX_MAX (UINT64_C(1) << 20) /* bytes that a get_many copies out at once */
#define INBOX_KEEPS (UINT64_C(32) << 10) /* bytes for many messages that stay the ring's; for one it always keeps them */
#define REFERENCE_SIZE sizeof(struct shmrt_block_reference)
#define LETTER_SIZE(bytes) shmrt_align_up(bytes, 8) /* each begins where references may */

/* ---- taking ---- */

/* Memory for up to `count` messages. The ring's own if it is free and enough. */
int shmrt_py_ring_open_mail(RingCore *self, struct mail *mail, uint64_t count) {
	mail->slot_bytes = self->ring.slot_bytes;
	mail->count = mail->used = 0;
	mail->capacity = INBOX_MAX / mail->slot_bytes;
	mail->capacity = mail->capacity < 1 ? 1 : mail->capacity > SHMRT_PY_RING_BATCH ? SHMRT_PY_RING_BATCH : mail->capacity;
	if (mail->capacity > count)
		mail->capacity = count;
	uint64_t bytes = mail->capacity * LETTER_SIZE(mail->slot_bytes);
	bool keep = !self->inbox_busy && (mail->capacity == 1 || bytes <= INBOX_KEEPS);
	if (!keep || self->inbox_bytes < bytes) {
		mail->bytes = PyMem_Malloc(bytes);
		if (mail->bytes == NULL) {
			PyErr_NoMemory();
			return -1;
		}
		if (!keep)
			return 0;
		PyMem_Free(self->inbox);
		self->inbox = mail->bytes;
		self->inbox_bytes = bytes;
	}
	self->inbox_busy = true;
	mail->bytes = self->inbox;
	return 0;
}

void shmrt_py_ring_close_mail(RingCore *self, struct mail *mail) {
	if (mail->bytes == self->inbox)
		self->inbox_busy = false;
	else
		PyMem_Free(mail->bytes);
}

/* Under the ring's mutex: copies only. */
void shmrt_py_ring_take_letter(void *context, const struct shmrt_ring_message *message) {
	struct mail *mail = context;
	if (mail->count == mail->capacity)
		return;
	struct letter *letter = &mail->letters[mail->count++];
	uint64_t references = message->block_count * REFERENCE_SIZE, size = references + message->inline_size;
	letter->bytes = mail->bytes + mail->used;
	letter->inline_size = message->inline_size;
	letter->flags = message->flags;
	atomic_signal_fence(memory_order_seq_cst); /* one load of both would wait for two stores that were just made */
	letter->block_count = message->block_count;
	letter->damaged = size > mail->slot_bytes;
	if (letter->damaged)
		return;
	mail->used += LETTER_SIZE(size); /* close together: few lines of the nearest cache */
	if (references > 0)
		memcpy(letter->bytes, message->blocks, references);
	memcpy(letter->bytes + references, message->inline_bytes, message->inline_size);
}

int shmrt_py_ring_wait_on(RingCore *self, struct mail *mail, receive receive, int64_t timeout_ns, uint64_t *position,
			  int outcome) {
	struct deadline deadline = shmrt_py_deadline_after(timeout_ns);
	for (;;) {
		if (mail->count > 0) /* taken before it was interrupted */
			return 0;
		if (outcome == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
			return -1;
		int64_t left = shmrt_py_time_left(&deadline);
		if (outcome != SHMRT_INTERRUPTED && ((outcome != SHMRT_EMPTY && outcome != SHMRT_TIMEOUT) || left <= 0)) {
			shmrt_py_ring_raise(self, outcome, "get");
			return -1;
		}
		Py_BEGIN_ALLOW_THREADS
		outcome = receive(self, mail, left, position);
		Py_END_ALLOW_THREADS
		if (outcome == SHMRT_OK)
			return 0;
	}
}

/* ---- decoding ---- */

PyObject *shmrt_py_ring_decode_rest(RingCore *self, const struct letter *letter, enum shmrt_blocks_whose whose,
				    PyObject **kept_blocks) {
	if (SHMRT_UNLIKELY(letter->damaged))
		return shmrt_raise("SegmentError", "corrupt message: it is larger than its slot");
	const uint8_t *bytes = letter->bytes + letter->block_count * REFERENCE_SIZE;
	PyObject **blocks = PyMem_Calloc(letter->block_count, sizeof(*blocks)), *object = NULL;
	if (blocks == NULL)
		return PyErr_NoMemory();
	if (shmrt_py_blocks_open(self->arena, letter->bytes, letter->block_count, letter->flags, whose, blocks) == 0) {
		PyObject *kept = kept_blocks ? PyTuple_New(letter->block_count) : NULL; /* before any is copied out */
		for (uint16_t i = 0; kept != NULL && i < letter->block_count; i++)
			PyTuple_SET_ITEM(kept, i, Py_NewRef(blocks[i]));
		if ((kept_blocks == NULL || kept != NULL) &&
		    (whose == BLOCKS_LENT || shmrt_py_blocks_copy_out_if_greedy(self->arena, letter->block_count, blocks) == 0))
			object = shmrt_decode_message(bytes, letter->inline_size, letter->flags, blocks, letter->block_count,
						      self->allow_pickle);
		if (object != NULL && kept_blocks != NULL)
			*kept_blocks = kept;
		else
			Py_XDECREF(kept);
	}
	for (uint16_t i = 0; i < letter->block_count; i++)
		Py_XDECREF(blocks[i]);
	PyMem_Free(blocks);
	return object;
}
