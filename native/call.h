/* call.h -- call slots: how the caller of a server gets its reply, without a process in between.
 *
 * Byte map: struct shmrt_call_slot in layout_calls.h, call_count of them behind the process slots. A call is
 * named by its slot and a generation that is never used twice there (it wraps after 2^28 calls). Every step is
 * one compare-and-swap of the word from exactly what was read, so of two that race one has it and the other is told.
 *
 *   FREE(g) -> IDLE(g, caller)           claim: the caller keeps the slot between its calls
 *   IDLE -> WAITING(g+1, caller)         begin: target, deadline, bell are stored before; then the request is put
 *   WAITING -> TAKEN(g, server)          take: before the request leaves the mailbox and before user code runs
 *   WAITING -> DROPPED(g, putter)        drop: before a full mailbox forgets the request
 *   WAITING, TAKEN -> WRITING(g, writer) reply, or a failure: one writer, whoever it is
 *   WRITING -> REPLIED(g, writer)        after status, sizes, references and bytes are stored
 *   REPLIED, DROPPED -> IDLE(g, caller)  read: the caller has copied it, its blocks are HELD by the caller
 *   WAITING, TAKEN -> IDLE(g, caller)    give up (deadline, interrupt): a late reply finds another word
 *   WRITING -> ABANDONED(g, writer)      give up while somebody writes: the caller takes another slot,
 *   ABANDONED -> FREE                    the writer finds it so and clears it
 *
 * A writer stores block_count = 0, references, block_count = n, then its blocks become QUEUED, then the word.
 * Whoever has read or cleared a reply stores block_count = 0 before the word. So block_count names blocks
 * only in WRITING, REPLIED and ABANDONED, and only those that are QUEUED are the slot's.
 *
 * Who dies leaves, and who repairs it:
 *   caller   IDLE, WAITING that name it; TAKEN, WRITING, REPLIED, DROPPED whose `caller` it is: reclaim makes
 *            them FREE. Its request is found stale by whoever takes it. Of a reply that it was reading it
 *            holds some blocks (the arena's to reclaim), and the others are QUEUED (reclaim frees them).
 *   server   TAKEN(g, server): fail_taken. The request is in the mailbox if the server died before it left,
 *            but then it is stale: it runs at most once.
 *   writer   WRITING(g, writer): fail_taken frees the QUEUED blocks that it names and writes the reason in its
 *            place; those not yet QUEUED name the dead and are the arena's to reclaim. REPLIED or DROPPED with
 *            the bell not rung: fail_taken rings it. ABANDONED: fail_taken or reclaim clears it.
 *   failer   (the root) as a writer: whoever replaces it fails what it had TAKEN or was WRITING.
 *   reclaimer  ABANDONED(g, reclaimer) while it clears: as a writer.
 *
 * Why no caller sleeps past the end of its call. Every end is a change of the word, then the bell with a
 * full fence in between; the sleeper arms the bell, fence, and looks at the word again (B1). An end whose
 * writer died before it rang is rung by fail_taken(writer), which must be called for every process that
 * dies. A call whose server cannot take it any more is found by fail_waiting: WAITING is stored before the
 * request is put, the mailbox is closed before the scan; so a put that came before the close was scanned,
 * and a put that comes after it says CLOSED (C4).
 *
 * Edge C1: begin stores WAITING (acq_rel) -> take, fail_waiting load it (acquire): target, deadline, bell_index.
 * Edge C2: the writer stores REPLIED (acq_rel) -> the caller loads it (acquire): status, sizes, bytes, blocks.
 * Edge C3: read, give up, clear store IDLE or FREE (acq_rel) -> the next writer's swap: nobody reads the body.
 * Edge C4 (Dekker): begin stores WAITING, full fence, then the put looks at `closed`; the closer stores
 * `closed`, full fence, then scans the words. One of the two sees the other, even if the closer could not
 * have the mailbox's mutex because its holder is stopped.
 */
#ifndef SHMRT_CALL_H
#define SHMRT_CALL_H

#include "arena.h"
#include "bell.h"

#define SHMRT_CALL_GENERATIONS (UINT32_C(1) << 28)

struct shmrt_calls { /* the table as one process knows it: geometry is read once and checked */
	struct shmrt_call_slot *slots;
	uint32_t count;
};

struct shmrt_call_message { /* a reply, to be written or as it was read; the caller owns the memory */
	enum shmrt_call_status status;
	uint16_t flags; /* SHMRT_MESSAGE_* */
	uint16_t block_count;
	uint32_t inline_size;
	const uint8_t *inline_bytes;
	const struct shmrt_block_reference *blocks;
};

static inline uint64_t shmrt_call_pack(enum shmrt_call_state state, uint32_t generation, uint32_t owner) {
	return (uint64_t)state | (uint64_t)generation << 4 | (uint64_t)owner << 32;
}
static inline enum shmrt_call_state shmrt_call_state_of(uint64_t word) { return (enum shmrt_call_state)(word & 15); }
static inline uint32_t shmrt_call_generation_of(uint64_t word) {
	return (uint32_t)(word >> 4) & (SHMRT_CALL_GENERATIONS - 1);
}
static inline uint32_t shmrt_call_owner_of(uint64_t word) { return (uint32_t)(word >> 32); }
static inline uint64_t shmrt_call_word(const struct shmrt_calls *calls, uint32_t index) {
	return atomic_load_explicit(&calls->slots[index].word, memory_order_acquire); /* C1, C2, C3 */
}
/* It has an answer that its caller has not read: REPLIED or DROPPED. */
static inline bool shmrt_call_is_answered(uint64_t word) {
	enum shmrt_call_state state = shmrt_call_state_of(word);
	return state == SHMRT_CALL_REPLIED || state == SHMRT_CALL_DROPPED;
}

/* CORRUPT: the table does not lie inside of `size` bytes. */
SHMRT_MUST_USE int shmrt_calls_attach(struct shmrt_calls *, struct shmrt_control *, uint64_t size);

/* ---- the caller ---- */
/* Any FREE slot, sought from *cursor on, becomes IDLE|self. EMPTY: there is none. */
SHMRT_MUST_USE int shmrt_call_claim(const struct shmrt_calls *, uint32_t *cursor, uint32_t *index);
/* IDLE|self -> WAITING. bell_index: which slot's bell its end rings. STALE: the slot is not IDLE|self. */
SHMRT_MUST_USE int shmrt_call_begin(const struct shmrt_calls *, uint32_t index, uint64_t target, uint64_t deadline_ns,
				    uint32_t bell_index, uint32_t *generation);
/* Sleeps on the slot's own bell until the call has an end: OK; TIMEOUT; INTERRUPTED. spin_ns: how long to look first,
 * learned from call to call (bell.h); NULL: not at all. */
SHMRT_MUST_USE int shmrt_call_wait(const struct shmrt_calls *, uint32_t index, uint32_t generation, uint64_t deadline_ns,
				   _Atomic uint32_t *spin_ns);
/* The answer is copied to `body` (SHMRT_CALL_INLINE bytes, into which the message points), its blocks are HELD|self, the
 * slot is IDLE. EMPTY: none yet. STALE: not this call's slot any more. With CORRUPT (sizes or blocks that no writer leaves)
 * and FOREIGN (blocks of another arena than `arena`, which may be NULL) the slot is IDLE, too. */
SHMRT_MUST_USE int shmrt_call_read(const struct shmrt_calls *, uint32_t index, uint32_t generation, struct shmrt_arena *arena,
				   uint8_t *body, struct shmrt_call_message *);
/* The caller does not wait any more. OK: the slot is IDLE. STALE: it was being written, another slot is to be used. EMPTY:
 * there is an answer to be read. */
SHMRT_MUST_USE int shmrt_call_give_up(const struct shmrt_calls *, uint32_t index, uint32_t generation);
/* IDLE|self -> FREE. */
void shmrt_call_release(const struct shmrt_calls *, uint32_t index);

/* ---- the server and its mailbox ---- */
/* WAITING -> TAKEN|self. STALE: nobody waits for it (any more). */
SHMRT_MUST_USE int shmrt_call_take(const struct shmrt_calls *, uint32_t index, uint32_t generation);
/* WAITING -> DROPPED|self, and its bell is rung. STALE as above. */
SHMRT_MUST_USE int shmrt_call_drop(const struct shmrt_calls *, uint32_t index, uint32_t generation);
/* WAITING or TAKEN by anybody -> REPLIED, and its bell is rung. Each block must be WRITING|self, or HELD|self with flags bit 0,
 * as in ring.h. STALE: nobody waits for it; INVALID: a block is not to be sent: the call stays as it was. Then the blocks
 * are the caller's as before, except those that were freed. */
SHMRT_MUST_USE int shmrt_call_reply(const struct shmrt_calls *, uint32_t index, uint32_t generation, struct shmrt_arena *arena,
				    const struct shmrt_call_message *);
/* WAITING or TAKEN, and its deadline did not pass. */
bool shmrt_call_is_waiting(const struct shmrt_calls *, uint32_t index, uint32_t generation);

/* ---- after a death ---- */
/* Which calls to fail; each seized one is WRITING|self and must be finished. */
enum shmrt_call_seizure {
	SHMRT_SEIZE_TAKEN,   /* TAKEN or WRITING by the process `whom`, which is dead. Also rings what it left unrung. */
	SHMRT_SEIZE_WAITING, /* WAITING for the target `whom`: its mailbox is closed */
	SHMRT_SEIZE_ALL,     /* WAITING or TAKEN, whoever it is; also what dead writers left */
};
SHMRT_MUST_USE bool shmrt_call_seize(const struct shmrt_calls *, uint32_t index, enum shmrt_call_seizure, uint64_t whom,
				     struct shmrt_arena *arena, uint32_t *generation);
/* WRITING|self -> REPLIED. As reply; STALE: the caller gave up meanwhile, or died. */
SHMRT_MUST_USE int shmrt_call_finish(const struct shmrt_calls *, uint32_t index, uint32_t generation, struct shmrt_arena *arena,
				     const struct shmrt_call_message *);
/* Slots whose caller is dead become FREE, replies in them are thrown away. Returns how many. Without the arena that a
 * reply's blocks lie in (NULL, or another one) its slot is left to somebody who has it. */
uint32_t shmrt_calls_reclaim(const struct shmrt_calls *, struct shmrt_arena *arena);
/* Whether a word is one that a writer leaves. */
SHMRT_MUST_USE int shmrt_call_check(const struct shmrt_calls *, uint32_t index);

#endif
