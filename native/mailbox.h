/* mailbox.h -- what a server receives: a ring whose messages begin with an envelope.
 *
 * Byte map: ring.h; each message is a struct shmrt_mail_envelope (layout_calls.h), a name, and the codec's
 * bytes. All rules of the ring hold: whoever locks next after a death repairs.
 *
 *   put    a call: its slot is WAITING before (call.h), then a put of the ring.
 *          Died before the commit: the slot is WAITING and names the dead caller: reclaim. After: the
 *          message is in; it is found stale once the slot was reclaimed.
 *   take   [take] copy; for a call WAITING -> TAKEN|self; slot of the ring DONE [unlock]
 *          Died before TAKEN: the message is in the ring, and the next incarnation of the server takes it.
 *          Between: the repair leaves it in the ring, but its call is TAKEN by the dead and will be failed:
 *          whoever takes the message next finds it stale. After: gone, and the call is failed. So a call runs
 *          at most once, and its caller hears of the death at once; a cast or info is lost with its taker
 *          only after it has left the ring.
 *   drop   (policy drop_oldest) a call's slot WAITING -> DROPPED and its bell rung, then the ring drops it.
 *          Died between: the message is still in and is found stale.
 *   close  `closed`, full fence, then the bells; the mutexes are tried for them, no longer than each
 *          SHMRT_MAILBOX_LOCK_NS. Died between: whoever closes again.
 *
 * A take finds a message stale when its deadline has passed (`expired`), and a call, too, when its slot is not WAITING with
 * its generation (`abandoned`: cancelled, given up, reclaimed, failed); it throws it away, counts it and says so. The policy drop_newest is the ring's
 * `raise`, since a put must hear of it; the drops are counted by the putter, which alone knows.
 *
 * The taker sleeps on the ring's bell_not_empty for three reasons: a message, a raised control_count of its
 * process slot, stop_requested. The bell is armed under both mutexes after a look at the messages, then, after a
 * full fence, comes the look at the two words. Ringing for them: the word, full fence, bell 1 -> 2, wake. Not
 * 0: a ringer that dies before the wake leaves a bell that the next put rings.
 *
 * Edge C5 (Dekker): send_control or request_stop stores its word, full fence, then looks at the bell -> the taker
 * arms the bell, full fence, looks at the word. One of the two sees the other.
 */
#ifndef SHMRT_MAILBOX_H
#define SHMRT_MAILBOX_H

#include "call.h"
#include "ring.h"
#include "slots.h"

#define SHMRT_MAILBOX_LOCK_NS UINT64_C(10000000) /* longest sleep behind a stopped holder of one of the two mutexes: a timeout may be late by two */

struct shmrt_mailbox {
	struct shmrt_ring ring;
	struct shmrt_calls calls; /* count 0: not known; what is dropped then waits for its deadline */
	enum shmrt_ring_full_policy on_full;
	_Atomic uint32_t spin_ns;      /* private: learned, see bell.h */
	_Atomic uint64_t spin_look_ns; /* private: when may_spin was found out */
	_Atomic bool may_spin;         /* there are fewer spinners than CPUs */
};

/* After shmrt_ring_attach of `ring`. `calls` may be NULL. The mailbox must not move afterwards. */
void shmrt_mailbox_attach(struct shmrt_mailbox *, const struct shmrt_calls *calls);

/* Waits for room, if the policy says so. OK; FULL (raise; drop_newest, counted; no room without waiting); TIMEOUT; CLOSED;
 * TOO_LARGE; STALE; INVALID; CORRUPT; INTERRUPTED as in ring.h. */
SHMRT_MUST_USE int shmrt_mailbox_put(struct shmrt_mailbox *, const struct shmrt_ring_message *, int64_t timeout_ns);

struct shmrt_mail { /* a message taken: references, then envelope, name and body, in the caller's memory */
	uint8_t *bytes; /* room for a whole slot */
	uint32_t inline_size;
	uint16_t flags, block_count;
	struct shmrt_mail_envelope envelope;
	const uint8_t *name; /* name_size bytes, then body_size of body */
	const uint8_t *body;
	uint32_t body_size;
	bool expired; /* STALE because its deadline was over, not because nobody waited */
};
/* The oldest message without waiting. OK; EMPTY; STALE: it was thrown away and counted, its blocks are HELD|self and named by the mail;
 * INTERRUPTED behind a stopped holder; CORRUPT: thrown away, blocks as before. */
SHMRT_MUST_USE int shmrt_mailbox_take(struct shmrt_mailbox *, const struct shmrt_calls *, struct shmrt_mail *);

/* The taker's waiting: phase SPIN, then PARKED. OK: look again; TIMEOUT; INTERRUPTED. */
SHMRT_MUST_USE int shmrt_mailbox_wait(struct shmrt_mailbox *, struct shmrt_control *, uint32_t slot_index, uint32_t seen,
				      int64_t timeout_ns);
/* Whether the root has something to say. */
static inline bool shmrt_mailbox_is_called(const struct shmrt_slot *slot, uint32_t seen) {
	return atomic_load_explicit(&slot->control_count, memory_order_acquire) != seen || /* C5 */
	       atomic_load_explicit(&slot->stop_requested, memory_order_acquire) != 0;     /* C5 */
}
/* After a word was changed that the taker looks at. */
void shmrt_mailbox_ring(struct shmrt_mailbox *);
/* No more puts. Never waits longer than twice SHMRT_MAILBOX_LOCK_NS. */
void shmrt_mailbox_close(struct shmrt_mailbox *);

#endif
