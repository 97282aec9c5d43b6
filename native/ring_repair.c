/* ring_repair.c -- format, attach, look, repair, check: the ring's bytes at rest.
 *
 * A repair runs under the mutex after its holder died, so at most one put, get or release was under
 * way. It finishes or undoes that one, then recounts everything that can be counted from the slots.
 * Every step may be repeated: a repairer that dies leaves work for the next one, never damage.
 */
#include "ring_internal.h"

#include <errno.h>

#define SLOTS_MAX (UINT64_C(1) << 32)
#define SLOT_BYTES_MAX (UINT64_C(1) << 30)
#define RING_BYTES_MAX (UINT64_C(1) << 46)

static uint64_t ring_stride(uint64_t slot_bytes) {
	return shmrt_align_up(sizeof(struct shmrt_ring_slot) + slot_bytes, 64);
}

uint64_t shmrt_ring_bytes(uint64_t slots, uint64_t slot_bytes) {
	if (slots == 0 || slots > SLOTS_MAX || slot_bytes == 0 || slot_bytes > SLOT_BYTES_MAX)
		return 0;
	uint64_t bytes = sizeof(struct shmrt_ring_shared) + slots * ring_stride(slot_bytes);
	return bytes > RING_BYTES_MAX ? 0 : bytes;
}

int shmrt_ring_format(struct shmrt_ring_shared *shared, uint64_t slots, uint64_t slot_bytes,
		      enum shmrt_ring_full_policy on_full, uint64_t arena_offset, uint64_t start) {
	if (shmrt_ring_bytes(slots, slot_bytes) == 0 || (unsigned)on_full > SHMRT_RING_DROP_NEWEST)
		return SHMRT_INVALID;
	shared->slots = slots;
	shared->slot_bytes = slot_bytes;
	shared->slot_stride = ring_stride(slot_bytes);
	shared->slots_offset = sizeof(struct shmrt_ring_shared);
	shared->arena_offset = arena_offset;
	shared->on_full = on_full;
	shared->start = start;
	shmrt_ring_store(&shared->head, start);
	shmrt_ring_store(&shared->next, start);
	shmrt_ring_store(&shared->tail, start);
	shmrt_ring_store(&shared->head_seen, start);
	shmrt_ring_store(&shared->tail_seen, start);
	int rc = shmrt_mutex_make(&shared->put_mutex);
	return rc == SHMRT_OK ? shmrt_mutex_make(&shared->take_mutex) : rc;
}

int shmrt_ring_attach(struct shmrt_ring *ring, void *address, uint64_t size, int fd, struct shmrt_arena *arena) {
	memset(ring, 0, sizeof(*ring));
	if (size < sizeof(struct shmrt_ring_shared))
		return SHMRT_CORRUPT;
	ring->shared = address;
	ring->size = size;
	ring->fd = fd;
	ring->slots = ring->shared->slots;
	ring->slot_bytes = ring->shared->slot_bytes;
	ring->slot_stride = ring->shared->slot_stride;
	ring->start = ring->shared->start;
	uint64_t offset = ring->shared->slots_offset;
	uint32_t on_full = ring->shared->on_full;
	uint64_t needed = shmrt_ring_bytes(ring->slots, ring->slot_bytes);
	if (needed == 0 || needed > size || ring->slot_stride != ring_stride(ring->slot_bytes) ||
	    offset != sizeof(struct shmrt_ring_shared) || on_full > SHMRT_RING_DROP_NEWEST)
		return SHMRT_CORRUPT;
	ring->on_full = (enum shmrt_ring_full_policy)on_full;
	ring->slot_base = (uint8_t *)address + offset;
	ring->mask = shmrt_is_power_of_two(ring->slots) ? ring->slots - 1 : 0;
	ring->may_spin = shmrt_usable_cpus() >= 2;
	ring->lock_slice_ns = SHMRT_RING_LOCK_SLICE_NS;
	ring->lock_tries = SHMRT_RING_LOCK_TRIES;
	ring->arena = arena;
	if (arena != NULL) {
		ring->blocks = *arena; /* shares the mapping, not the hints: see ring.h */
		memset(ring->blocks.warm_count, 0, sizeof(ring->blocks.warm_count));
		ring->put_blocks = ring->blocks;
	}
	/* No look at the positions: somebody may be moving them, or have died doing so. Every call
	 * checks them again under the mutex. */
	return SHMRT_OK;
}

int shmrt_ring_view(struct shmrt_ring *ring, struct shmrt_ring_view *view) {
	view->head = shmrt_ring_load(&ring->shared->head);
	view->next = shmrt_ring_load(&ring->shared->next);
	view->tail = shmrt_ring_peek(&ring->shared->tail);
	view->holes = shmrt_ring_load(&ring->shared->holes);
	uint64_t span = view->tail - view->head;
	if (SHMRT_UNLIKELY(span > ring->slots || view->next - view->head > span || view->holes > span))
		return SHMRT_CORRUPT;
	shmrt_ring_store(&ring->shared->tail_seen, view->tail);
	return SHMRT_OK;
}

void shmrt_ring_advance(struct shmrt_ring *ring, struct shmrt_ring_view *view) {
	uint64_t head = view->head;
	while (head != view->tail && shmrt_ring_slot_at(ring, head)->state == SHMRT_RING_SLOT_DONE)
		head++;
	uint64_t freed = head - view->head;
	if (freed == 0)
		return;
	if (view->next - view->head < freed) {
		view->next = head;
		shmrt_ring_store(&ring->shared->next, head);
	}
	view->head = head;
	view->holes -= freed <= view->holes ? freed : view->holes;
	shmrt_ring_store_head(ring->shared, head);
	atomic_store_explicit(&ring->shared->holes, view->holes, memory_order_release); /* R4: head first */
}

bool shmrt_ring_compact(struct shmrt_ring *ring, struct shmrt_ring_view *view) {
	shmrt_ring_advance(ring, view);
	uint64_t head = view->head, hole = head;
	if (view->tail - head < ring->slots)
		return true;
	while (hole != view->tail && shmrt_ring_slot_at(ring, hole)->state != SHMRT_RING_SLOT_DONE)
		hole++;
	if (hole == view->tail)
		return false;
	while (hole + 1 != view->tail && shmrt_ring_slot_at(ring, hole + 1)->state == SHMRT_RING_SLOT_DONE)
		hole++; /* as far from the head as this run goes: the head then passes the others */
	struct shmrt_ring_slot *from = shmrt_ring_slot_at(ring, head), *to = shmrt_ring_slot_at(ring, hole);
	uint32_t state = from->state, owner = from->owner;
	if (state != SHMRT_RING_SLOT_LEASED && state != SHMRT_RING_SLOT_FULL)
		return false;
	memcpy(to + 1, from + 1, ring->slot_bytes);
	to->owner = owner != 0 ? owner : SHMRT_RING_OUT_OF_LINE;
	to->inline_size = from->inline_size;
	to->block_count = from->block_count;
	to->flags = from->flags;
	to->sequence = from->sequence;
	shmrt_ring_step();
	shmrt_ring_store(&ring->shared->aside, (hole - head) << 8 | state);
	shmrt_ring_set_state(from, SHMRT_RING_SLOT_MOVING);
	shmrt_ring_set_state(to, (enum shmrt_ring_slot_state)state);
	shmrt_ring_set_state(from, SHMRT_RING_SLOT_DONE);
	if (state == SHMRT_RING_SLOT_FULL && owner == 0)
		shmrt_ring_add(&ring->shared->returned, 1);
	shmrt_ring_advance(ring, view); /* the hole count is the same: one filled, one made */
	return view->tail - view->head < ring->slots;
}

void shmrt_ring_free_queued(struct shmrt_ring *ring, struct shmrt_ring_slot *slot) {
	uint16_t count = slot->block_count;
	if (count == 0 || ring->arena == NULL || !shmrt_ring_fits(ring, 0, count))
		return;
	struct shmrt_block_reference *references = shmrt_ring_references(slot);
	for (uint16_t i = 0; i < count; i++) {
		/* STALE: freed before, by a repairer that died, or still the dead sender's (WRITING). */
		int ignored = shmrt_arena_free(&ring->blocks, references[i].block, references[i].generation,
					       SHMRT_BLOCK_QUEUED, 0);
		(void)ignored;
	}
}

/* The blocks of a message whose taker died go back to QUEUED; false if one is gone (reclaimed before). */
static bool ring_queue_again(struct shmrt_ring *ring, struct shmrt_ring_slot *slot) {
	uint16_t count = slot->block_count;
	if (count == 0)
		return true;
	if (ring->arena == NULL || !shmrt_ring_fits(ring, 0, count))
		return false;
	struct shmrt_block_reference *references = shmrt_ring_references(slot);
	for (uint16_t i = 0; i < count; i++) {
		uint64_t block = references[i].block;
		uint32_t generation = references[i].generation;
		if (shmrt_arena_move(&ring->blocks, block, generation, SHMRT_BLOCK_HELD, slot->owner,
				     SHMRT_BLOCK_QUEUED, 0) != SHMRT_OK &&
		    shmrt_arena_move(&ring->blocks, block, generation, SHMRT_BLOCK_QUEUED, 0, SHMRT_BLOCK_QUEUED, 0) !=
			    SHMRT_OK)
			return false;
	}
	return true;
}

void shmrt_ring_finish(struct shmrt_ring *ring, struct shmrt_ring_slot *slot) {
	uint32_t state = slot->state;
	if (state == SHMRT_RING_SLOT_TAKING) {
		if (ring_queue_again(ring, slot)) {
			shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FULL); /* owner stays: out of line */
			return;
		}
		shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FREEING);
	} else if (state == SHMRT_RING_SLOT_DROPPING) {
		shmrt_ring_store(&ring->shared->dropped, shmrt_ring_load(&ring->shared->aside));
	} else if (state != SHMRT_RING_SLOT_FREEING) {
		return;
	}
	shmrt_ring_free_queued(ring, slot);
	shmrt_ring_set_state(slot, SHMRT_RING_SLOT_DONE);
}

/* Stores only what differs, so that a second repair is seen to change nothing. */
static bool ring_correct(_Atomic uint64_t *word, uint64_t value) {
	if (shmrt_ring_load(word) == value)
		return false;
	shmrt_ring_store(word, value);
	return true;
}

static bool ring_undo_put(struct shmrt_ring *ring, uint64_t tail) {
	uint64_t intent = shmrt_ring_load(&ring->shared->intent);
	if (intent == 0)
		return false;
	if (intent - 1 == tail - ring->start) { /* not committed */
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, tail);
		shmrt_ring_free_queued(ring, slot);
		shmrt_ring_step();
		slot->block_count = 0;
		shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FREE);
	} else if (tail - ring->start - intent < SHMRT_RING_CHUNK) { /* of one or more messages */
		shmrt_ring_store(&ring->shared->bytes_in, shmrt_ring_load(&ring->shared->bytes_next));
	}
	shmrt_ring_step();
	shmrt_ring_store(&ring->shared->intent, 0);
	return true;
}

bool shmrt_ring_repair(struct shmrt_ring *ring) {
	struct shmrt_ring_shared *shared = ring->shared;
	uint64_t head = shmrt_ring_load(&shared->head), tail = shmrt_ring_load(&shared->tail);
	if (tail - head > ring->slots)
		return false; /* not the trace of a death: every call answers CORRUPT */
	bool changed = ring_undo_put(ring, tail);
	uint64_t leased = 0, returned = 0, holes = 0, bytes = 0, next = tail;
	for (uint64_t position = head; position != tail; position++) {
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
		if (slot->state == SHMRT_RING_SLOT_MOVING) {
			uint64_t aside = shmrt_ring_load(&shared->aside), distance = aside >> 8;
			uint32_t state = (uint32_t)(aside & 0xFF);
			if (distance != 0 && distance < tail - position)
				shmrt_ring_set_state(shmrt_ring_slot_at(ring, position + distance),
						     state == SHMRT_RING_SLOT_LEASED ? SHMRT_RING_SLOT_LEASED
										     : SHMRT_RING_SLOT_FULL);
			shmrt_ring_set_state(slot, SHMRT_RING_SLOT_DONE);
			changed = true;
		}
		if (slot->state >= SHMRT_RING_SLOT_TAKING) {
			shmrt_ring_finish(ring, slot);
			changed = true;
		}
		if (slot->state == SHMRT_RING_SLOT_FULL || slot->state == SHMRT_RING_SLOT_LEASED)
			bytes += shmrt_ring_message_bytes(ring, slot);
		if (slot->state == SHMRT_RING_SLOT_FULL && slot->owner != 0)
			returned++;
		else if (slot->state == SHMRT_RING_SLOT_FULL && next == tail)
			next = position;
		else if (slot->state == SHMRT_RING_SLOT_LEASED)
			leased++;
		else if (slot->state == SHMRT_RING_SLOT_DONE)
			holes++;
	}
	while (head != tail && shmrt_ring_slot_at(ring, head)->state == SHMRT_RING_SLOT_DONE) {
		head++;
		holes--;
	}
	changed |= ring_correct(&shared->next, next);
	changed |= ring_correct(&shared->head, head);
	changed |= ring_correct(&shared->holes, holes);
	changed |= ring_correct(&shared->leased, leased);
	changed |= ring_correct(&shared->returned, returned);
	changed |= ring_correct(&shared->bytes_out, shmrt_ring_load(&shared->bytes_in) - bytes);
	ring_correct(&shared->head_seen, head); /* these two may lag at any time: no damage */
	ring_correct(&shared->tail_seen, tail);
	if (changed)
		shmrt_ring_add(&shared->repairs, 1);
	return changed;
}

static int ring_check_slot(const struct shmrt_ring *ring, uint64_t position, uint64_t tail) {
	struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
	uint32_t state = slot->state;
	if (state == SHMRT_RING_SLOT_DONE)
		return SHMRT_OK;
	if (state != SHMRT_RING_SLOT_FULL && state != SHMRT_RING_SLOT_LEASED)
		return SHMRT_CORRUPT;
	if (!shmrt_ring_fits(ring, slot->inline_size, slot->block_count))
		return SHMRT_CORRUPT;
	if (slot->sequence - ring->start >= tail - ring->start)
		return SHMRT_CORRUPT;
	if (state == SHMRT_RING_SLOT_FULL && slot->owner == 0 && slot->sequence != position)
		return SHMRT_CORRUPT;
	for (uint16_t i = 0; i < slot->block_count && ring->arena != NULL; i++) {
		const struct shmrt_block_reference *reference = &shmrt_ring_references(slot)[i];
		struct shmrt_block block;
		enum shmrt_block_state block_state;
		uint32_t generation, owner;
		if (shmrt_arena_resolve(ring->arena, reference, &block) != SHMRT_OK)
			return SHMRT_CORRUPT;
		shmrt_arena_state(ring->arena, reference->block, &block_state, &generation, &owner);
		if (block_state != SHMRT_BLOCK_QUEUED || generation != reference->generation)
			return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}

int shmrt_ring_check(const struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	struct shmrt_ring_view view = {
		.head = shmrt_ring_load(&shared->head), .next = shmrt_ring_load(&shared->next),
		.tail = shmrt_ring_load(&shared->tail), .holes = shmrt_ring_load(&shared->holes)};
	uint64_t span = view.tail - view.head, ahead = view.tail - view.next, seen = view.tail - shmrt_ring_load(&shared->tail_seen);
	if (span > ring->slots || ahead > span || view.holes > span || seen > ahead || shmrt_ring_load(&shared->intent) != 0 ||
	    view.tail - shmrt_ring_load(&shared->head_seen) < span)
		return SHMRT_CORRUPT;
	uint64_t leased = 0, returned = 0, holes = 0, bytes = 0;
	for (uint64_t position = view.head; position != view.tail; position++) {
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
		if (ring_check_slot(ring, position, view.tail) != SHMRT_OK)
			return SHMRT_CORRUPT;
		bool full = slot->state == SHMRT_RING_SLOT_FULL;
		if (full && slot->owner == 0 && position - view.head < view.next - view.head)
			return SHMRT_CORRUPT; /* in line, yet passed over */
		bytes += slot->state == SHMRT_RING_SLOT_DONE ? 0 : shmrt_ring_message_bytes(ring, slot);
		returned += full && slot->owner != 0;
		leased += slot->state == SHMRT_RING_SLOT_LEASED;
		holes += slot->state == SHMRT_RING_SLOT_DONE;
	}
	bool counted = leased == shmrt_ring_load(&shared->leased) && holes == view.holes &&
		       returned == shmrt_ring_load(&shared->returned) &&
		       shmrt_ring_load(&shared->bytes_in) - shmrt_ring_load(&shared->bytes_out) == bytes;
	return counted ? SHMRT_OK : SHMRT_CORRUPT;
}
