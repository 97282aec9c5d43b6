/* call.c -- the life of a call: claim, begin, take, reply, read, give up. The steps and what a death leaves: call.h.
 *
 * Nothing here waits but shmrt_call_wait. The word is read once per step and changed from exactly that value.
 */
#include "call_internal.h"

int shmrt_calls_attach(struct shmrt_calls *calls, struct shmrt_control *control, uint64_t size) {
	uint64_t offset = control->calls_offset;
	uint32_t count = control->call_count;
	if (count == 0 || count > SHMRT_CALLS_MAX || offset < sizeof(struct shmrt_control) || offset % SHMRT_LINE != 0 ||
	    offset > size || (size - offset) / sizeof(struct shmrt_call_slot) < count)
		return SHMRT_CORRUPT;
	calls->slots = (struct shmrt_call_slot *)(void *)((uint8_t *)control + offset);
	calls->count = count;
	return SHMRT_OK;
}

/* ---- the caller: before ------------------------------------------------------------------------- */

int shmrt_call_claim(const struct shmrt_calls *calls, uint32_t *cursor, uint32_t *index) {
	uint32_t at = *cursor < calls->count ? *cursor : 0;
	for (uint32_t i = 0; i < calls->count; i++, at = at + 1 < calls->count ? at + 1 : 0) {
		uint64_t word = shmrt_call_word(calls, at);
		if (shmrt_call_state_of(word) != SHMRT_CALL_FREE ||
		    !shmrt_call_swap(&calls->slots[at], word, SHMRT_CALL_IDLE, shmrt_owner_self()))
			continue;
		*index = at;
		*cursor = at + 1;
		return SHMRT_OK;
	}
	return SHMRT_EMPTY;
}

int shmrt_call_begin(const struct shmrt_calls *calls, uint32_t index, uint64_t target, uint64_t deadline_ns, uint32_t bell_index,
		     uint32_t *generation) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	uint64_t word = shmrt_call_word(calls, index);
	if (shmrt_call_state_of(word) != SHMRT_CALL_IDLE || shmrt_call_owner_of(word) != self)
		return SHMRT_STALE;
	*generation = (shmrt_call_generation_of(word) + 1) % SHMRT_CALL_GENERATIONS;
	atomic_store_explicit(&slot->caller, self, memory_order_relaxed);             /* C1: WAITING follows */
	atomic_store_explicit(&slot->bell_index, bell_index, memory_order_relaxed);   /* C1 */
	atomic_store_explicit(&slot->target, target, memory_order_relaxed);           /* C1 */
	atomic_store_explicit(&slot->deadline_ns, deadline_ns, memory_order_relaxed); /* C1 */
	if (!atomic_compare_exchange_strong_explicit(&slot->word, &word, shmrt_call_pack(SHMRT_CALL_WAITING, *generation, self),
						     memory_order_acq_rel, memory_order_relaxed)) /* C1 */
		return SHMRT_STALE;
	atomic_thread_fence(memory_order_seq_cst); /* C4: before the put looks at `closed` */
	return SHMRT_OK;
}

/* ---- the caller: while it waits ----------------------------------------------------------------- */

/* The call has an end, or is not this caller's any more. */
static bool call_is_over(const struct shmrt_calls *calls, uint32_t index, uint32_t generation) {
	uint64_t word = shmrt_call_word(calls, index);
	enum shmrt_call_state state = shmrt_call_state_of(word);
	return (state != SHMRT_CALL_WAITING && state != SHMRT_CALL_TAKEN && state != SHMRT_CALL_WRITING) ||
	       shmrt_call_generation_of(word) != generation;
}

static bool call_spin(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, uint64_t budget_ns) {
	uint64_t start_ns = shmrt_now_ns();
	do {
		for (int i = 0; i < 16; i++) {
			if (call_is_over(calls, index, generation))
				return true;
			shmrt_pause();
		}
	} while (shmrt_now_ns() - start_ns < budget_ns);
	return false;
}

int shmrt_call_wait(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, uint64_t deadline_ns,
		    _Atomic uint32_t *spin_ns) {
	if (call_is_over(calls, index, generation))
		return SHMRT_OK;
	if (spin_ns != NULL && shmrt_usable_cpus() >= 2) {
		bool saw = call_spin(calls, index, generation, shmrt_spin_budget(spin_ns));
		shmrt_spin_learn(spin_ns, saw);
		if (saw)
			return SHMRT_OK;
	}
	struct shmrt_call_slot *slot = &calls->slots[index];
	int rc = SHMRT_OK;
	for (;;) {
		int64_t left = SHMRT_FOREVER;
		if (deadline_ns != 0) {
			uint64_t now_ns = shmrt_now_ns();
			left = now_ns < deadline_ns ? (int64_t)(deadline_ns - now_ns) : 0;
		}
		shmrt_bell_arm(&slot->bell);
		if (call_is_over(calls, index, generation)) { /* B1: the second look */
			rc = SHMRT_OK;
			break;
		}
		if (rc == SHMRT_INTERRUPTED)
			break;
		if (left == 0) {
			rc = SHMRT_TIMEOUT;
			break;
		}
		rc = shmrt_futex_wait_looking(&slot->bell, 1, left);
	}
	shmrt_bell_disarm(&slot->bell);
	return rc;
}

/* ---- the caller: after -------------------------------------------------------------------------- */

/* The reply's blocks become the caller's, all or none. */
static int call_hold_blocks(struct shmrt_call_slot *slot, uint32_t count, struct shmrt_arena *arena) {
	uint32_t self = shmrt_owner_self();
	struct shmrt_block_reference reference;
	for (uint32_t i = 0; i < count; i++) {
		shmrt_call_reference(slot, i, &reference);
		if (shmrt_arena_move(arena, reference.block, reference.generation, SHMRT_BLOCK_QUEUED, 0, SHMRT_BLOCK_HELD, self) ==
		    SHMRT_OK)
			continue;
		while (i-- > 0) {
			shmrt_call_reference(slot, i, &reference);
			int ignored = shmrt_arena_move(arena, reference.block, reference.generation, SHMRT_BLOCK_HELD, self,
						       SHMRT_BLOCK_QUEUED, 0);
			(void)ignored;
		}
		return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}

/* Copies the reply of a REPLIED slot out. */
static int call_copy(struct shmrt_call_slot *slot, struct shmrt_arena *arena, uint8_t *body, struct shmrt_call_message *message) {
	uint32_t inline_size = shmrt_call_load(&slot->inline_size), count = shmrt_call_load(&slot->block_count);
	uint32_t status = shmrt_call_load(&slot->status);
	uint64_t references = (uint64_t)count * sizeof(struct shmrt_block_reference);
	if (count > SHMRT_CALL_INLINE || references + inline_size > SHMRT_CALL_INLINE || status > SHMRT_CALL_CLOSED)
		return SHMRT_CORRUPT;
	if (count != 0) {
		uint64_t token = atomic_load_explicit(&slot->arena, memory_order_relaxed); /* C2 */
		if (arena == NULL || token != shmrt_call_token(arena))
			return SHMRT_FOREIGN;
		if (call_hold_blocks(slot, count, arena) != SHMRT_OK)
			return SHMRT_CORRUPT;
	}
	memcpy(body, slot->body, references + inline_size);
	*message = (struct shmrt_call_message){
		.status = (enum shmrt_call_status)status,
		.flags = (uint16_t)shmrt_call_load(&slot->flags),
		.block_count = (uint16_t)count,
		.inline_size = inline_size,
		.inline_bytes = body + references,
		.blocks = (const struct shmrt_block_reference *)(const void *)body,
	};
	return SHMRT_OK;
}

int shmrt_call_read(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, struct shmrt_arena *arena, uint8_t *body,
		    struct shmrt_call_message *message) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	uint64_t word = shmrt_call_word(calls, index);
	if (!call_is_over(calls, index, generation))
		return SHMRT_EMPTY;
	if (!shmrt_call_is_answered(word) || shmrt_call_generation_of(word) != generation ||
	    atomic_load_explicit(&slot->caller, memory_order_relaxed) != self) /* C1: ours, if it is ours */
		return SHMRT_STALE;
	int rc = SHMRT_OK;
	*message = (struct shmrt_call_message){.status = SHMRT_CALL_OVERLOADED};
	if (shmrt_call_state_of(word) == SHMRT_CALL_REPLIED) {
		rc = call_copy(slot, arena, body, message);
		if (rc == SHMRT_CORRUPT)
			shmrt_call_clear(slot, arena); /* what of it can be freed */
		shmrt_call_store(&slot->block_count, 0);
	}
	return shmrt_call_swap(slot, word, SHMRT_CALL_IDLE, self) ? rc : SHMRT_STALE;
}

int shmrt_call_give_up(const struct shmrt_calls *calls, uint32_t index, uint32_t generation) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	/* A call moves on at most four times (taken, written, replied; or seized), so this ends. */
	for (;;) {
		uint64_t word = shmrt_call_word(calls, index);
		enum shmrt_call_state state = shmrt_call_state_of(word);
		if (shmrt_call_generation_of(word) != generation ||
		    atomic_load_explicit(&slot->caller, memory_order_relaxed) != self) /* C1: ours, if it is ours */
			return SHMRT_STALE;
		if (shmrt_call_is_answered(word))
			return SHMRT_EMPTY;
		if (state == SHMRT_CALL_WAITING || state == SHMRT_CALL_TAKEN) {
			if (shmrt_call_swap(slot, word, SHMRT_CALL_IDLE, self))
				return SHMRT_OK;
		} else if (state == SHMRT_CALL_WRITING) {
			if (shmrt_call_swap(slot, word, SHMRT_CALL_ABANDONED, shmrt_call_owner_of(word)))
				return SHMRT_STALE;
		} else {
			return SHMRT_STALE;
		}
	}
}

void shmrt_call_release(const struct shmrt_calls *calls, uint32_t index) {
	uint64_t word = shmrt_call_word(calls, index);
	if (shmrt_call_state_of(word) == SHMRT_CALL_IDLE && shmrt_call_owner_of(word) == shmrt_owner_self())
		(void)shmrt_call_swap(&calls->slots[index], word, SHMRT_CALL_FREE, 0);
}

/* ---- the server and its mailbox ----------------------------------------------------------------- */

static int call_leave_waiting(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, enum shmrt_call_state to) {
	if (index >= calls->count)
		return SHMRT_CORRUPT;
	uint64_t word = shmrt_call_word(calls, index);
	if (shmrt_call_state_of(word) != SHMRT_CALL_WAITING || shmrt_call_generation_of(word) != generation)
		return SHMRT_STALE;
	return shmrt_call_swap(&calls->slots[index], word, to, shmrt_owner_self()) ? SHMRT_OK : SHMRT_STALE;
}

int shmrt_call_take(const struct shmrt_calls *calls, uint32_t index, uint32_t generation) {
	return call_leave_waiting(calls, index, generation, SHMRT_CALL_TAKEN);
}

int shmrt_call_drop(const struct shmrt_calls *calls, uint32_t index, uint32_t generation) {
	int rc = call_leave_waiting(calls, index, generation, SHMRT_CALL_DROPPED);
	if (rc == SHMRT_OK)
		shmrt_call_ring(calls, index, false);
	return rc;
}

int shmrt_call_reply(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, struct shmrt_arena *arena,
		     const struct shmrt_call_message *message) {
	if (index >= calls->count)
		return SHMRT_STALE;
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	/* WAITING may become TAKEN under us, and anything else says STALE: so this ends. */
	for (;;) {
		uint64_t word = shmrt_call_word(calls, index);
		enum shmrt_call_state state = shmrt_call_state_of(word);
		if ((state != SHMRT_CALL_WAITING && state != SHMRT_CALL_TAKEN) || shmrt_call_generation_of(word) != generation)
			return SHMRT_STALE;
		if (!shmrt_call_swap(slot, word, SHMRT_CALL_WRITING, self))
			continue;
		int rc = shmrt_call_finish(calls, index, generation, arena, message);
		if (rc != SHMRT_INVALID)
			return rc;
		uint64_t writing = shmrt_call_pack(SHMRT_CALL_WRITING, generation, self);
		if (!shmrt_call_swap(slot, writing, state, shmrt_call_owner_of(word)))
			(void)shmrt_call_swap(slot, shmrt_call_pack(SHMRT_CALL_ABANDONED, generation, self), SHMRT_CALL_FREE, 0);
		return rc;
	}
}

bool shmrt_call_is_waiting(const struct shmrt_calls *calls, uint32_t index, uint32_t generation) {
	if (index >= calls->count)
		return false;
	uint64_t word = shmrt_call_word(calls, index);
	enum shmrt_call_state state = shmrt_call_state_of(word);
	if ((state != SHMRT_CALL_WAITING && state != SHMRT_CALL_TAKEN) || shmrt_call_generation_of(word) != generation)
		return false;
	uint64_t deadline_ns = atomic_load_explicit(&calls->slots[index].deadline_ns, memory_order_relaxed); /* C1 */
	return deadline_ns == 0 || shmrt_now_ns() < deadline_ns;
}
