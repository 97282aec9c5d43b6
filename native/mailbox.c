/* mailbox.c -- put, take, wait, ring, close. The steps and what a death leaves: mailbox.h. */
#include "mailbox.h"

#include "ring_internal.h"
#include "ring_report.h"

#define SPIN_LOOK_NS UINT64_C(1000000) /* how long the number of spinners is believed */
#define LOCK_TRIES 8                   /* a mutex that is still taken then has a holder without a CPU, most likely */
#define RUNG 2                         /* bell_not_empty: rung for something that is not in the ring */

/* ---- putting ------------------------------------------------------------------------------------ */

/* false: no writer leaves such a message. */
static bool mail_open(const struct shmrt_ring_message *message, struct shmrt_mail_envelope *envelope) {
	if (message->inline_size < sizeof(*envelope))
		return false;
	memcpy(envelope, message->inline_bytes, sizeof(*envelope));
	return envelope->kind >= SHMRT_MAIL_CALL && envelope->kind <= SHMRT_MAIL_INFO &&
	       message->inline_size - sizeof(*envelope) >= envelope->name_size;
}

/* For the ring, under its mutex: the caller of a call hears that it is dropped, before it is. */
static void mailbox_before_drop(void *context, const struct shmrt_ring_message *message) {
	struct shmrt_mailbox *mailbox = context;
	struct shmrt_mail_envelope envelope;
	if (mailbox->calls.count != 0 && mail_open(message, &envelope) && envelope.kind == SHMRT_MAIL_CALL) {
		int ignored = shmrt_call_drop(&mailbox->calls, envelope.index, envelope.generation);
		(void)ignored; /* STALE: nobody waits for it */
	}
}

void shmrt_mailbox_attach(struct shmrt_mailbox *mailbox, const struct shmrt_calls *calls) {
	struct shmrt_ring *ring = &mailbox->ring;
	mailbox->on_full = ring->on_full;
	if (ring->on_full == SHMRT_RING_DROP_NEWEST)
		ring->on_full = SHMRT_RING_RAISE;
	ring->lock_slice_ns = SHMRT_MAILBOX_LOCK_NS;
	ring->lock_tries = LOCK_TRIES;
	ring->before_drop = mailbox_before_drop;
	ring->drop_context = mailbox;
	mailbox->calls = calls != NULL ? *calls : (struct shmrt_calls){0};
}

int shmrt_mailbox_put(struct shmrt_mailbox *mailbox, const struct shmrt_ring_message *message, int64_t timeout_ns) {
	uint64_t done;
	int rc = shmrt_ring_put(&mailbox->ring, message, 1, timeout_ns, &done);
	if (SHMRT_UNLIKELY(rc == SHMRT_FULL) && mailbox->on_full == SHMRT_RING_DROP_NEWEST)
		shmrt_ring_count(&mailbox->ring, &mailbox->ring.shared->dropped, 1); /* with this policy nothing else stores it */
	return rc;
}

/* ---- taking ------------------------------------------------------------------------------------- */

struct mailbox_order {
	const struct shmrt_calls *calls;
	struct shmrt_mail *mail;
	uint64_t slot_bytes;
	int verdict;
};

/* For the ring, under its mutex and before the message leaves it. */
static void mailbox_take_one(void *context, const struct shmrt_ring_message *message) {
	struct mailbox_order *order = context;
	struct shmrt_mail *mail = order->mail;
	uint64_t references = message->block_count * sizeof(struct shmrt_block_reference);
	struct shmrt_ring_message copy = *message;
	mail->block_count = 0;
	order->verdict = SHMRT_CORRUPT;
	if (references + message->inline_size > order->slot_bytes)
		return;
	if (references != 0)
		memcpy(mail->bytes, message->blocks, references);
	memcpy(mail->bytes + references, message->inline_bytes, message->inline_size);
	mail->block_count = message->block_count;
	mail->inline_size = message->inline_size;
	mail->flags = message->flags;
	copy.inline_bytes = mail->bytes + references;
	if (!mail_open(&copy, &mail->envelope))
		return;
	mail->name = copy.inline_bytes + sizeof(mail->envelope);
	mail->body = mail->name + mail->envelope.name_size;
	mail->body_size = mail->inline_size - (uint32_t)sizeof(mail->envelope) - mail->envelope.name_size;
	/* Read here, not before the wait for the mutex: nothing is handed out whose time is over. */
	mail->expired = mail->envelope.deadline_ns != 0 && mail->envelope.deadline_ns <= shmrt_now_ns();
	order->verdict = mail->expired ? SHMRT_STALE : SHMRT_OK;
	if (!mail->expired && mail->envelope.kind == SHMRT_MAIL_CALL)
		order->verdict = shmrt_call_take(order->calls, mail->envelope.index, mail->envelope.generation);
}

int shmrt_mailbox_take(struct shmrt_mailbox *mailbox, const struct shmrt_calls *calls, struct shmrt_mail *mail) {
	struct mailbox_order order = {.calls = calls, .mail = mail, .slot_bytes = mailbox->ring.slot_bytes, .verdict = SHMRT_OK};
	uint64_t done;
	mail->block_count = 0;
	mail->expired = false;
	if (shmrt_ring_seems_empty(&mailbox->ring))
		return SHMRT_EMPTY;
	int rc = shmrt_ring_get(&mailbox->ring, 1, 0, mailbox_take_one, &order, &done);
	if (rc == SHMRT_CLOSED)
		return SHMRT_EMPTY; /* what comes after the end is the root's to say */
	if (SHMRT_UNLIKELY(rc == SHMRT_OK && order.verdict == SHMRT_STALE))
		shmrt_ring_count(&mailbox->ring, mail->expired ? &mailbox->ring.shared->expired : &mailbox->ring.shared->abandoned, 1);
	return rc == SHMRT_OK ? order.verdict : rc;
}

/* ---- waiting ------------------------------------------------------------------------------------ */

static bool mailbox_is_empty(const struct shmrt_mailbox *mailbox) {
	const struct shmrt_ring_shared *shared = mailbox->ring.shared;
	/* next before tail: if they are equal, the ring was empty when tail was read. */
	uint64_t next = atomic_load_explicit(&shared->next, memory_order_acquire); /* keeps the order: R2 after it */
	return next == shmrt_ring_load(&shared->tail_seen) && next == shmrt_ring_peek(&shared->tail) &&
	       shmrt_ring_load(&shared->returned) == 0;
}

/* Are there fewer spinning processes than CPUs, one left out? Asked at most once in SPIN_LOOK_NS: the table is long. */
static bool mailbox_may_spin(struct shmrt_mailbox *mailbox, struct shmrt_control *control, uint32_t slot_index, uint64_t now_ns) {
	int cpus = shmrt_usable_cpus();
	if (cpus < 2)
		return false;
	/* relaxed: private, and any value is right */
	uint64_t looked_ns = atomic_load_explicit(&mailbox->spin_look_ns, memory_order_relaxed);
	if (looked_ns != 0 && now_ns - looked_ns < SPIN_LOOK_NS)
		return atomic_load_explicit(&mailbox->may_spin, memory_order_relaxed); /* private */
	uint32_t spinners = 0, count = control->slot_count;
	for (uint32_t i = 0; i < count && i < SHMRT_SLOTS_MAX; i++) {
		const struct shmrt_slot *slot = &control->slots[i];
		/* relaxed: an estimate */
		spinners += i != slot_index &&
			    (atomic_load_explicit(&slot->phase, memory_order_relaxed) & 0xFF) == SHMRT_PHASE_SPIN &&
			    atomic_load_explicit(&slot->state, memory_order_relaxed) == SHMRT_SLOT_READY;
	}
	bool may = spinners < (uint32_t)cpus - 1;
	atomic_store_explicit(&mailbox->may_spin, may, memory_order_relaxed);       /* private */
	atomic_store_explicit(&mailbox->spin_look_ns, now_ns, memory_order_relaxed); /* private */
	return may;
}

/* True: there is something, after how long. */
static bool mailbox_spin(struct shmrt_mailbox *mailbox, const struct shmrt_slot *slot, uint32_t seen, uint64_t start_ns,
			 uint64_t budget_ns) {
	do {
		for (int i = 0; i < 16; i++) {
			if (!mailbox_is_empty(mailbox) || shmrt_mailbox_is_called(slot, seen))
				return true;
			shmrt_pause();
		}
	} while (shmrt_now_ns() - start_ns < budget_ns);
	return false;
}

/* Armed under both mutexes after a look. OK: do not sleep. EMPTY: sleep. */
static int mailbox_arm(struct shmrt_mailbox *mailbox, const struct shmrt_slot *slot, uint32_t seen) {
	int rc = shmrt_ring_lock(&mailbox->ring, SHMRT_RING_BOTH);
	if (rc == SHMRT_INTERRUPTED)
		return SHMRT_INTERRUPTED;
	if (rc != SHMRT_OK)
		return SHMRT_OK; /* the take says what is wrong */
	bool empty = mailbox_is_empty(mailbox);
	if (empty)
		atomic_store_explicit(&mailbox->ring.shared->bell_not_empty, 1, memory_order_relaxed); /* R1: a put locks later */
	shmrt_ring_unlock(&mailbox->ring, SHMRT_RING_BOTH);
	atomic_thread_fence(memory_order_seq_cst); /* C5: armed, then the look */
	return empty && !shmrt_mailbox_is_called(slot, seen) ? SHMRT_EMPTY : SHMRT_OK;
}

int shmrt_mailbox_wait(struct shmrt_mailbox *mailbox, struct shmrt_control *control, uint32_t slot_index, uint32_t seen,
		       int64_t timeout_ns) {
	struct shmrt_slot *slot = &control->slots[slot_index];
	struct shmrt_ring *ring = &mailbox->ring;
	uint64_t start_ns = shmrt_now_ns();
	uint64_t budget_ns = shmrt_spin_budget(&mailbox->spin_ns);
	if (budget_ns > (uint64_t)timeout_ns)
		budget_ns = (uint64_t)timeout_ns;
	shmrt_slot_phase_set(slot, SHMRT_PHASE_SPIN);
	if (timeout_ns > 0 && mailbox_may_spin(mailbox, control, slot_index, start_ns)) {
		bool saw = mailbox_spin(mailbox, slot, seen, start_ns, budget_ns);
		shmrt_spin_learn(&mailbox->spin_ns, saw);
		if (saw)
			return SHMRT_OK;
	}
	/* Out of SPIN before the last look: a parked process needs no beat. */
	shmrt_slot_phase_set(slot, SHMRT_PHASE_PARKED);
	int rc = mailbox_arm(mailbox, slot, seen);
	if (rc == SHMRT_EMPTY) {
		int64_t left = timeout_ns;
		if (left != SHMRT_FOREVER)
			left -= (int64_t)(shmrt_now_ns() - start_ns);
		rc = shmrt_futex_wait(&ring->shared->bell_not_empty, 1, left);
		if (rc == SHMRT_OK)
			shmrt_ring_await_waker(ring, SHMRT_RING_PUT);
	}
	shmrt_slot_phase_set(slot, SHMRT_PHASE_SPIN);
	shmrt_beat_wake();
	return rc;
}

/* ---- ringing and closing ------------------------------------------------------------------------ */

void shmrt_mailbox_ring(struct shmrt_mailbox *mailbox) {
	_Atomic uint32_t *bell = &mailbox->ring.shared->bell_not_empty;
	uint32_t armed = 1;
	atomic_thread_fence(memory_order_seq_cst); /* C5: the word, then the look at the bell */
	if (atomic_load_explicit(bell, memory_order_relaxed) != 0 && /* C5: after the fence */
	    (atomic_compare_exchange_strong_explicit(bell, &armed, RUNG, memory_order_acq_rel, memory_order_relaxed) || /* C5 */
	     armed == RUNG))
		shmrt_futex_wake(bell, INT32_MAX);
}

void shmrt_mailbox_close(struct shmrt_mailbox *mailbox) {
	struct shmrt_ring *ring = &mailbox->ring;
	atomic_store_explicit(&ring->shared->closed, 1, memory_order_release); /* C4: not under the mutex, whose holder may be stopped */
	atomic_thread_fence(memory_order_seq_cst);                             /* C4: before the words are scanned; B1: and the bells */
	bool locked = shmrt_ring_lock(ring, SHMRT_RING_BOTH) == SHMRT_OK;
	/* Who arms one later looks at `closed` after it. */
	shmrt_bell_ring_always(&ring->shared->bell_not_empty);
	shmrt_bell_ring_always(&ring->shared->bell_not_full);
	if (locked)
		shmrt_ring_unlock(ring, SHMRT_RING_BOTH);
}
