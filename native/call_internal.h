/* call_internal.h -- what the two files of call slots share: the words of a reply, and its blocks; nobody else includes it. */
#ifndef SHMRT_CALL_INTERNAL_H
#define SHMRT_CALL_INTERNAL_H

#include "call.h"

static inline bool shmrt_call_swap(struct shmrt_call_slot *slot, uint64_t from, enum shmrt_call_state state, uint32_t owner) {
	/* C1, C2, C3: what was done under the old word is over before the new one shows */
	return atomic_compare_exchange_strong_explicit(&slot->word, &from,
						       shmrt_call_pack(state, shmrt_call_generation_of(from), owner),
						       memory_order_acq_rel, memory_order_acquire);
}

/* The order of stores within this process matters to who looks after its death; release keeps it everywhere. */
static inline void shmrt_call_store(_Atomic uint32_t *word, uint32_t value) {
	atomic_store_explicit(word, value, memory_order_release); /* C2 follows; see call.h, `A writer stores` */
}
static inline uint32_t shmrt_call_load(const _Atomic uint32_t *word) {
	return atomic_load_explicit(word, memory_order_acquire); /* C2, or after the writer's death */
}

static inline uint64_t shmrt_call_token(const struct shmrt_arena *arena) {
	return arena == NULL ? 0 : arena->shared->header.token[0];
}

static inline void shmrt_call_reference(const struct shmrt_call_slot *slot, uint32_t i, struct shmrt_block_reference *reference) {
	memcpy(reference, slot->body + i * sizeof(*reference), sizeof(*reference));
}

/* How many blocks the reply names: 0 if the number cannot be. */
static inline uint32_t shmrt_call_block_count(const struct shmrt_call_slot *slot) {
	uint32_t count = shmrt_call_load(&slot->block_count);
	return count <= SHMRT_CALL_INLINE / sizeof(struct shmrt_block_reference) ? count : 0;
}

/* Blocks that nobody will read any more. The word says that the slot is the caller's to clear. */
void shmrt_call_clear(struct shmrt_call_slot *, struct shmrt_arena *);
void shmrt_call_ring(const struct shmrt_calls *, uint32_t index, bool always);

#endif
