/* call_write.c -- the writer's side of a call slot, and what is done after a death. See call.h.
 *
 * A slot that is cleared or written is WRITING or ABANDONED and names this process: nobody else touches its reply. Every
 * step may be cut short: what it leaves names the dead and is taken over by the next who cleans up.
 */
#include "call_internal.h"

/* ---- writing ------------------------------------------------------------------------------------ */

static bool call_sendable(struct shmrt_arena *arena, const struct shmrt_block_reference *reference, enum shmrt_block_state *from) {
	uint32_t generation, owner;
	struct shmrt_block block;
	if (shmrt_arena_resolve(arena, reference, &block) != SHMRT_OK)
		return false;
	shmrt_arena_state(arena, reference->block, from, &generation, &owner);
	return generation == reference->generation && owner == shmrt_owner_self() &&
	       (*from == SHMRT_BLOCK_WRITING || (*from == SHMRT_BLOCK_HELD && (reference->flags & 1) != 0));
}

/* All of the message's blocks become QUEUED, or none. */
static int call_queue_blocks(struct shmrt_arena *arena, const struct shmrt_call_message *message) {
	enum shmrt_block_state from;
	uint32_t self = shmrt_owner_self();
	for (uint16_t i = 0; i < message->block_count; i++)
		if (!call_sendable(arena, &message->blocks[i], &from))
			return SHMRT_INVALID;
	for (uint16_t i = 0; i < message->block_count; i++) {
		const struct shmrt_block_reference *reference = &message->blocks[i];
		if (call_sendable(arena, reference, &from) &&
		    shmrt_arena_move(arena, reference->block, reference->generation, from, self, SHMRT_BLOCK_QUEUED, 0) == SHMRT_OK)
			continue;
		while (i-- > 0) { /* named twice, or another thread sends it as well */
			reference = &message->blocks[i];
			int ignored = shmrt_arena_move(arena, reference->block, reference->generation, SHMRT_BLOCK_QUEUED, 0,
						       SHMRT_BLOCK_WRITING, self);
			(void)ignored;
		}
		return SHMRT_INVALID;
	}
	return SHMRT_OK;
}

int shmrt_call_write(struct shmrt_call_slot *slot, struct shmrt_arena *arena, const struct shmrt_call_message *message) {
	uint64_t references = (uint64_t)message->block_count * sizeof(struct shmrt_block_reference);
	shmrt_call_store(&slot->block_count, 0);
	if (references + message->inline_size > SHMRT_CALL_INLINE || (message->block_count != 0 && arena == NULL))
		return SHMRT_INVALID;
	shmrt_call_store(&slot->status, message->status);
	shmrt_call_store(&slot->flags, message->flags);
	shmrt_call_store(&slot->inline_size, message->inline_size);
	atomic_store_explicit(&slot->arena, shmrt_call_token(arena), memory_order_relaxed); /* C2: block_count, REPLIED follow */
	if (references != 0)
		memcpy(slot->body, message->blocks, references);
	if (message->inline_size != 0)
		memcpy(slot->body + references, message->inline_bytes, message->inline_size);
	if (message->block_count == 0)
		return SHMRT_OK;
	shmrt_call_store(&slot->block_count, message->block_count); /* before the first of them is QUEUED */
	int rc = call_queue_blocks(arena, message);
	if (rc != SHMRT_OK)
		shmrt_call_store(&slot->block_count, 0);
	return rc;
}

void shmrt_call_clear(struct shmrt_call_slot *slot, struct shmrt_arena *arena) {
	uint32_t count = shmrt_call_block_count(slot);
	/* relaxed: with block_count */
	bool ours = arena != NULL && atomic_load_explicit(&slot->arena, memory_order_relaxed) == shmrt_call_token(arena);
	for (uint32_t i = 0; ours && i < count; i++) {
		struct shmrt_block_reference reference;
		shmrt_call_reference(slot, i, &reference);
		/* STALE: freed before, taken by a reader that died, or still the dead writer's. */
		int ignored = shmrt_arena_free(arena, reference.block, reference.generation, SHMRT_BLOCK_QUEUED, 0);
		(void)ignored;
	}
	shmrt_call_store(&slot->block_count, 0);
}

void shmrt_call_ring(const struct shmrt_calls *calls, uint32_t index, bool always) {
	uint32_t bell_index = atomic_load_explicit(&calls->slots[index].bell_index, memory_order_relaxed); /* C1 */
	if (bell_index >= calls->count)
		return; /* damaged: its caller has a deadline */
	if (always)
		shmrt_bell_ring_always(&calls->slots[bell_index].bell);
	else
		shmrt_bell_ring(&calls->slots[bell_index].bell);
}

/* ABANDONED|self: nobody reads what was written. */
static void call_free_abandoned(struct shmrt_call_slot *slot, uint32_t generation, struct shmrt_arena *arena) {
	uint64_t word = shmrt_call_pack(SHMRT_CALL_ABANDONED, generation, shmrt_owner_self());
	shmrt_call_clear(slot, arena);
	(void)shmrt_call_swap(slot, word, SHMRT_CALL_FREE, 0);
}

int shmrt_call_finish(const struct shmrt_calls *calls, uint32_t index, uint32_t generation, struct shmrt_arena *arena,
		      const struct shmrt_call_message *message) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	int rc = shmrt_call_write(slot, arena, message);
	if (rc != SHMRT_OK)
		return rc;
	if (SHMRT_LIKELY(shmrt_call_swap(slot, shmrt_call_pack(SHMRT_CALL_WRITING, generation, self), SHMRT_CALL_REPLIED, self))) {
		shmrt_call_ring(calls, index, false);
		return SHMRT_OK;
	}
	call_free_abandoned(slot, generation, arena);
	return SHMRT_STALE;
}

/* ---- after a death ------------------------------------------------------------------------------ */

/* What the writer `dead` left in this slot; true: it is WRITING|self now. */
static bool call_seize_from(const struct shmrt_calls *calls, uint32_t index, uint64_t word, struct shmrt_arena *arena) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint32_t self = shmrt_owner_self();
	switch (shmrt_call_state_of(word)) {
	case SHMRT_CALL_TAKEN:
		return shmrt_call_swap(slot, word, SHMRT_CALL_WRITING, self);
	case SHMRT_CALL_WRITING:
		if (!shmrt_call_swap(slot, word, SHMRT_CALL_WRITING, self))
			return false;
		shmrt_call_clear(slot, arena);
		return true;
	case SHMRT_CALL_ABANDONED:
		if (shmrt_call_swap(slot, word, SHMRT_CALL_ABANDONED, self))
			call_free_abandoned(slot, shmrt_call_generation_of(word), arena);
		return false;
	default: /* REPLIED, DROPPED: it may have died before it rang */
		shmrt_call_ring(calls, index, true);
		return false;
	}
}

bool shmrt_call_seize(const struct shmrt_calls *calls, uint32_t index, enum shmrt_call_seizure which, uint64_t whom,
		      struct shmrt_arena *arena, uint32_t *generation) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	/* A lost swap is looked at again: a call moves on a few times only, and a new one of this slot finds its mailbox closed. */
	for (int tries = 0; tries < 64; tries++) {
		uint64_t word = shmrt_call_word(calls, index);
		enum shmrt_call_state state = shmrt_call_state_of(word);
		uint32_t owner = shmrt_call_owner_of(word);
		*generation = shmrt_call_generation_of(word);
		bool mine = false;
		if (state == SHMRT_CALL_FREE || state == SHMRT_CALL_IDLE || state > SHMRT_CALL_ABANDONED)
			return false;
		if (state == SHMRT_CALL_WAITING)
			/* relaxed: C1, as the swap below confirms that the word is still the one it belongs to */
			mine = which == SHMRT_SEIZE_ALL ||
			       (which == SHMRT_SEIZE_WAITING &&
				atomic_load_explicit(&slot->target, memory_order_relaxed) == whom);
		else if (which == SHMRT_SEIZE_TAKEN)
			return owner == whom && call_seize_from(calls, index, word, arena);
		else if (which == SHMRT_SEIZE_ALL && state != SHMRT_CALL_TAKEN)
			return owner != shmrt_owner_self() && !shmrt_owner_is_alive(owner) &&
			       call_seize_from(calls, index, word, arena);
		else
			mine = which == SHMRT_SEIZE_ALL;
		if (!mine)
			return false;
		if (shmrt_call_swap(slot, word, SHMRT_CALL_WRITING, shmrt_owner_self()))
			return true;
	}
	return false;
}

/* Whether `owner` is dead; remembers the last answers, since many slots name the same processes. */
struct call_deaths { uint32_t alive, dead; };
static bool call_is_dead(struct call_deaths *known, uint32_t owner) {
	if (owner == known->alive || owner == shmrt_owner_self())
		return false;
	if (owner == known->dead)
		return true;
	bool alive = shmrt_owner_is_alive(owner);
	*(alive ? &known->alive : &known->dead) = owner;
	return !alive;
}

uint32_t shmrt_calls_reclaim(const struct shmrt_calls *calls, struct shmrt_arena *arena) {
	struct call_deaths known = {0, 0};
	uint32_t count = 0, self = shmrt_owner_self();
	for (uint32_t index = 0; index < calls->count; index++) {
		struct shmrt_call_slot *slot = &calls->slots[index];
		uint64_t word = shmrt_call_word(calls, index);
		enum shmrt_call_state state = shmrt_call_state_of(word);
		uint32_t owner = shmrt_call_owner_of(word);
		uint32_t caller = atomic_load_explicit(&slot->caller, memory_order_relaxed); /* C1 */
		if (state == SHMRT_CALL_FREE || state > SHMRT_CALL_ABANDONED)
			continue;
		if (state == SHMRT_CALL_IDLE || state == SHMRT_CALL_WAITING)
			caller = owner;
		if (!call_is_dead(&known, state == SHMRT_CALL_ABANDONED ? owner : caller))
			continue;
		if (state <= SHMRT_CALL_TAKEN) {
			count += shmrt_call_swap(slot, word, SHMRT_CALL_FREE, 0);
			continue;
		}
		if (state == SHMRT_CALL_WRITING && !call_is_dead(&known, owner)) {
			(void)shmrt_call_swap(slot, word, SHMRT_CALL_ABANDONED, owner); /* its writer frees it */
			continue;
		}
		/* relaxed: with block_count */
		uint64_t token = atomic_load_explicit(&slot->arena, memory_order_relaxed);
		if (shmrt_call_block_count(slot) != 0 && token != shmrt_call_token(arena))
			continue; /* for somebody who can free them */
		if (shmrt_call_swap(slot, word, SHMRT_CALL_ABANDONED, self)) {
			call_free_abandoned(slot, shmrt_call_generation_of(word), arena);
			count++;
		}
	}
	return count;
}

int shmrt_call_check(const struct shmrt_calls *calls, uint32_t index) {
	struct shmrt_call_slot *slot = &calls->slots[index];
	uint64_t word = shmrt_call_word(calls, index);
	enum shmrt_call_state state = shmrt_call_state_of(word);
	uint32_t count = shmrt_call_load(&slot->block_count), owner = shmrt_call_owner_of(word);
	if (state > SHMRT_CALL_ABANDONED || (state == SHMRT_CALL_FREE) != (owner == 0))
		return SHMRT_CORRUPT;
	if (state != SHMRT_CALL_WRITING && state != SHMRT_CALL_REPLIED && state != SHMRT_CALL_ABANDONED && count != 0)
		return SHMRT_CORRUPT;
	if (state == SHMRT_CALL_REPLIED &&
	    (uint64_t)count * sizeof(struct shmrt_block_reference) + shmrt_call_load(&slot->inline_size) > SHMRT_CALL_INLINE)
		return SHMRT_CORRUPT;
	return SHMRT_OK;
}
