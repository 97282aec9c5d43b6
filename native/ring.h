/* ring.h -- a bounded many-to-many ring of messages under two robust mutexes; needs no runtime.
 *
 * Byte map: struct shmrt_ring_shared in layout.h, then `slots` slots of slot_stride bytes
 * (struct shmrt_ring_slot and slot_bytes of body). Position p lives in slot (p - start) % slots.
 *
 * put_mutex is for who puts, take_mutex for who takes: each side has words and lines of its own, and stores nothing that the
 * other stores, so that one putter and one taker meet in the lines of the message and now and then in those of `tail` and
 * `head`. Putters know `head` from their last look at it (head_seen), takers `tail` (tail_seen): these lag, never lead. Who has
 * to do with all of it takes both, put_mutex first: to move or drop messages when a put finds no room, to arm a bell, to
 * close, to repair. A mutex is held for a copy of at most slot_bytes per message, 32 messages at most.
 *
 * Whoever locks next after a holder died gets EOWNERDEAD, and repairs under both before anything else (ring_lock.c;
 * shmrt_ring_repair: idempotent, so a repairer may die), and wakes every sleeper. The other side may have gone on meanwhile.
 *
 *   put: [put] intent; fill the slot; blocks WRITING|me (or HELD|me) -> QUEUED; bytes_next; wake sleepers on
 *        not_empty; tail = tail + 1 (the commit); bytes_in; intent = 0 [unlock]
 *        Messages without blocks go in together, as far as there is room by the head last seen: one intent, of the first;
 *        all slots; tail = tail + n (the commit of all).
 *        Died before the commit: the repair frees QUEUED blocks that the intended slot names; WRITING
 *        and HELD ones name the dead producer and are reclaimed from the arena; none of a run is in. After: all are in.
 *   get: [take] wake sleepers on not_full; slot TAKING|me; blocks QUEUED -> HELD|me; copy out; slot DONE
 *        (the commit); next; head passes the DONE prefix [unlock]
 *        Died before the commit: the repair makes the slot FULL again, its blocks QUEUED; if one was
 *        reclaimed from the arena meanwhile, the message is lost with its taker. After: lost with it.
 *        Messages without blocks from the head on, with no hole and none out of line anywhere: copy all of them out;
 *        head = head + n (the commit of all); next. Died before: all are there. Their slots are not stored into, and below
 *        `head` their state means nothing.
 *   lease: as get, but the slot stays LEASED|me and its blocks QUEUED. release: slot FREEING (the
 *        commit); blocks -> FREE; DONE. A holder that died: any later get or lease (at the latest
 *        1 ms after this process last looked; at once if it finds nothing else), drop_oldest that finds
 *        nothing else, or waiting turns the slot back into FULL, before newer messages.
 *   get of a plain run (shmrt_ring_get_run): as get, but it ends before a message whose decoding may fail
 *        (a pickle, blocks, an array), and such a one is taken alone. A get_many so takes what it is sure
 *        to return; each fragile message behind it is leased, decoded, and then released (it is returned)
 *        or given back (its decoding failed, the next get raises for it). Died in the middle: what a plain
 *        run had taken is lost with its taker, as after a get; the leased message is FULL again; nothing
 *        else had left the ring. A message that kills whoever decodes it is thus met at most once in the
 *        middle of a get_many and once at its head, where it is taken before it is decoded, and is gone.
 *   drop_oldest: [both] aside = the new count of drops; slot DROPPING (the commit); blocks -> FREE; DONE.
 *
 * A wake comes before its commit and under the waker's mutex, and a bell is armed under both, after a look: who is woken and
 * sees nothing yet has to have that mutex before it sleeps again, and looks after the unlock (or the repair). So no
 * death can lose a wake-up, and arming needs no fence. There is at most one system call per bell and hold of a mutex, and
 * none if nobody sleeps.
 *
 * `slots` is the exact bound on messages held, leased ones included: a slow lease at the head keeps no
 * other slot busy, since it is moved (under both) into a DONE slot behind it when room is wanted.
 * A lease is therefore named by the message's sequence, not by where it lies.
 *
 * Sleepers: while leases are out they wake every 20 ms to look for dead holders. Where two CPUs are
 * usable they first look at the positions for up to 50 us without a mutex. A putter at a full ring lets some
 * places become free in that time, a taker that finds message after message alone lets the putter get ahead
 * for about half a microsecond: in step, each message would cost both of them a wait for the other's line.
 *
 * bytes_in and bytes_out count inline bytes and those of the blocks; what is dropped or thrown away counts
 * as out. So their difference is what is in the ring, and a repair restores exactly that: bytes_in from the
 * intent of a put that was committed, then bytes_out as the rest. How many messages went in and out follows from the positions.
 *
 * Edge R1: unlock -> lock of a mutex: everything under it. Edge R2: tail (release) -> a taker's look at it (acquire): the
 * message. Edge R4: head, then holes (release) -> a putter's look at holes, then at head (acquire): the slot may be
 * overwritten; and with no holes and no room by that head, the ring was full when holes was read.
 */
#ifndef SHMRT_RING_H
#define SHMRT_RING_H

#include "arena.h"
#include "bell.h"

struct shmrt_ring_message { /* what a put takes and a get gives; the caller owns the memory */
	const uint8_t *inline_bytes;
	uint32_t inline_size;
	uint16_t flags;
	uint16_t block_count;
	const struct shmrt_block_reference *blocks;
};

struct shmrt_ring {
	struct shmrt_ring_shared *shared;
	uint64_t size;
	int fd;
	uint64_t slots, slot_bytes, slot_stride; /* checked copies of the geometry */
	uint8_t *slot_base;
	struct shmrt_arena *arena; /* where its blocks live; NULL: none may be sent or taken. Kept by the caller. */
	enum shmrt_ring_full_policy on_full;
	/* Private to ring*.c. Several threads of a process may use one of these at a time. */
	uint64_t mask, start;       /* slots - 1 if that is a power of two, else 0; position of the first message */
	bool may_spin;
	struct shmrt_arena blocks, put_blocks; /* own copies of *arena, one per mutex: no sharing of its hints */
	_Atomic uint32_t spin_message_ns, spin_room_ns; /* learned: how long to look before sleeping */
	_Atomic uint32_t lone, lone_most;             /* takes of a lone message in a row; how many before it is worth to wait for more */
	_Atomic uint64_t lease_look_ns;        /* when this process last looked for dead lease holders */
	uint64_t lock_slice_ns;         /* longest sleep behind one holder of the mutex */
	int lock_tries;                 /* looks at a taken mutex before sleeping on it */
	/* Private, see ring_report.h: something was refused, dropped or expired here since somebody looked, and when one did. */
	_Atomic bool noted;
	_Atomic uint64_t looked_ns;
	/* What a mailbox has to do before drop_oldest forgets a message; copies only, under the mutex. NULL: nothing. */
	void (*before_drop)(void *context, const struct shmrt_ring_message *);
	void *drop_context;
};

uint64_t shmrt_ring_bytes(uint64_t slots, uint64_t slot_bytes);
/* Into zeroed, reserved memory whose segment header is already formatted; does not publish. */
SHMRT_MUST_USE int shmrt_ring_format(struct shmrt_ring_shared *, uint64_t slots, uint64_t slot_bytes,
				     enum shmrt_ring_full_policy, uint64_t arena_offset, uint64_t start);
SHMRT_MUST_USE int shmrt_ring_attach(struct shmrt_ring *, void *address, uint64_t size, int fd, struct shmrt_arena *);

/* Puts `count` messages in order; *done says how many are in, whatever the answer (bulk: up to 32 under
 * one lock, as room appears). OK: all; FULL (policy raise, or timeout 0); TIMEOUT; CLOSED; TOO_LARGE;
 * STALE (a block is not the caller's to send); INVALID (blocks without an arena); CORRUPT; INTERRUPTED
 * (a signal, or 100 ms behind a stopped holder of the mutex: look at signals and at the clock, call
 * again with the rest).
 * drop_newest drops and counts, and takes the blocks as if it had put; drop_oldest frees the dropped
 * message's blocks, never drops a leased one, and waits only if all are leased.
 *
 * Each block must be WRITING|self, or HELD|self with flags bit 0 (read-only): a frozen array is sent
 * without a copy. Either way the block belongs to the ring once its message is in: the receiver may
 * free it and anybody write to it at any time. So the sender may send a HELD block only if no view of
 * it can be used any more (it gives up its own, or makes a copy and sends that). Messages that are not
 * in keep their blocks as they were. One call per block at a time: two threads must not send the same. */
SHMRT_MUST_USE int shmrt_ring_put(struct shmrt_ring *, const struct shmrt_ring_message *, uint64_t count,
				  int64_t timeout_ns, uint64_t *done);
/* Takes at most `count` messages; waits for the first one only. Each is copied by `take(context, message)`
 * under the mutex (copy only: no allocation by Python, no user code). Blocks are HELD|self afterwards.
 * OK: *done >= 1; EMPTY (timeout 0); TIMEOUT; CLOSED (drained and no lease out: a message of a lease may
 * come back); INTERRUPTED as above; CORRUPT: a damaged message was thrown away, the next call goes on. */
typedef void (*shmrt_ring_take)(void *context, const struct shmrt_ring_message *);
SHMRT_MUST_USE int shmrt_ring_get(struct shmrt_ring *, uint64_t count, int64_t timeout_ns, shmrt_ring_take, void *context, uint64_t *done);
/* As get, for a caller that must be able to return all that it takes: see `get of a plain run` above.
 * first_alone: a fragile message may be taken, alone, if it is the first; else OK with *done = 0 is possible.
 * *fragile: the run ended because of such a message; the next may be one, too, and is for a lease. */
SHMRT_MUST_USE int shmrt_ring_get_run(struct shmrt_ring *, bool first_alone, uint64_t count, int64_t timeout_ns, shmrt_ring_take,
				      void *context, uint64_t *done, bool *fragile);
/* *position names the lease for one of the three ends. The blocks stay the ring's (QUEUED): views of
 * them are borrowed and end with the lease, except after release_keep. */
SHMRT_MUST_USE int shmrt_ring_lease(struct shmrt_ring *, int64_t timeout_ns, shmrt_ring_take, void *context, uint64_t *position);
/* Done with it; its blocks are freed. STALE: not (or no more) a lease of this process; INTERRUPTED: again. */
SHMRT_MUST_USE int shmrt_ring_release(struct shmrt_ring *, uint64_t position);
/* Done with it; its blocks are HELD|self, as after a get. */
SHMRT_MUST_USE int shmrt_ring_release_keep(struct shmrt_ring *, uint64_t position);
/* FULL again, before newer messages. */
SHMRT_MUST_USE int shmrt_ring_give_back(struct shmrt_ring *, uint64_t position);
/* No more puts; gets go on until it is empty, then CLOSED. Wakes everybody. */
SHMRT_MUST_USE int shmrt_ring_close(struct shmrt_ring *);
/* Messages that wait, leased ones not counted; that were put; that were taken, and not dropped. A moment's view. */
uint64_t shmrt_ring_depth(const struct shmrt_ring *);
uint64_t shmrt_ring_messages_in(const struct shmrt_ring *);
uint64_t shmrt_ring_messages_out(const struct shmrt_ring *);

/* Under the mutex (or with nobody else there). Returns whether it changed anything. */
bool shmrt_ring_repair(struct shmrt_ring *);
SHMRT_MUST_USE int shmrt_ring_check(const struct shmrt_ring *);

#endif
