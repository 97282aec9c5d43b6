/* ring.c -- put, close and the counts of a ring. The steps and what a death leaves: ring.h.
 *
 * In every function below a mutex is held from shmrt_ring_lock to shmrt_ring_unlock, and each store
 * that decides about a message is set apart by shmrt_ring_step: in a put that is the one of `tail`.
 */
#include "ring_internal.h"

/* ---- put ---------------------------------------------------------------------------------------- */

/* What the sender's block is now: WRITING, or HELD if the receiver may only read it. */
static bool ring_sendable(struct shmrt_ring *ring, const struct shmrt_block_reference *reference,
			  enum shmrt_block_state *from) {
	uint32_t generation, owner;
	struct shmrt_block block;
	if (shmrt_arena_resolve(&ring->put_blocks, reference, &block) != SHMRT_OK)
		return false;
	shmrt_arena_state(&ring->put_blocks, reference->block, from, &generation, &owner);
	return generation == reference->generation && owner == shmrt_owner_self() &&
	       (*from == SHMRT_BLOCK_WRITING || (*from == SHMRT_BLOCK_HELD && (reference->flags & 1) != 0));
}

/* All of the message's blocks become QUEUED, or none. */
static int ring_queue_blocks(struct shmrt_ring *ring, const struct shmrt_ring_message *message) {
	enum shmrt_block_state from;
	uint32_t self = shmrt_owner_self();
	for (uint16_t i = 0; i < message->block_count; i++)
		if (!ring_sendable(ring, &message->blocks[i], &from))
			return SHMRT_STALE;
	for (uint16_t i = 0; i < message->block_count; i++) {
		const struct shmrt_block_reference *reference = &message->blocks[i];
		if (ring_sendable(ring, reference, &from) &&
		    shmrt_arena_move(&ring->put_blocks, reference->block, reference->generation, from, self,
				     SHMRT_BLOCK_QUEUED, 0) == SHMRT_OK)
			continue;
		while (i-- > 0) { /* named twice, or another thread sends it as well */
			reference = &message->blocks[i];
			int ignored = shmrt_arena_move(&ring->put_blocks, reference->block, reference->generation,
						       SHMRT_BLOCK_QUEUED, 0, SHMRT_BLOCK_WRITING, self);
			(void)ignored;
		}
		return SHMRT_STALE;
	}
	return SHMRT_OK;
}

/* A put that drops its own message has taken its blocks, as one that succeeds. */
static void ring_discard(struct shmrt_ring *ring, const struct shmrt_ring_message *message) {
	enum shmrt_block_state from;
	for (uint16_t i = 0; i < message->block_count; i++) {
		const struct shmrt_block_reference *reference = &message->blocks[i];
		if (ring_sendable(ring, reference, &from)) {
			int ignored = shmrt_arena_free(&ring->put_blocks, reference->block, reference->generation,
						       from, shmrt_owner_self());
			(void)ignored;
		}
	}
	shmrt_ring_add(&ring->shared->dropped, 1);
	atomic_store_explicit(&ring->noted, true, memory_order_relaxed); /* private */
}

/* Under the putters' mutex alone: a view in which `head` is one that was seen, and `holes` is not known. */
static int ring_see_head(struct shmrt_ring *ring, struct shmrt_ring_view *view, uint64_t *holes) {
	/* R4: holes first. If they were 0 and this head leaves no room, there was none then: the head cannot have been further back. */
	*holes = shmrt_ring_peek(&ring->shared->holes);
	view->head = shmrt_ring_peek(&ring->shared->head);
	if (SHMRT_UNLIKELY(view->tail - view->head > ring->slots))
		return SHMRT_CORRUPT;
	shmrt_ring_store(&ring->shared->head_seen, view->head);
	return SHMRT_OK;
}

static void ring_raise_high_water(struct shmrt_ring *ring, struct shmrt_ring_view *view, enum shmrt_ring_side side, uint64_t more) {
	struct shmrt_ring_shared *shared = ring->shared;
	uint64_t holes = view->holes;
	if (side == SHMRT_RING_PUT && ring_see_head(ring, view, &holes) != SHMRT_OK)
		return; /* the next look says so */
	uint64_t held = view->tail - view->head + more;
	if (holes < held && held - holes > shmrt_ring_load(&shared->high_water))
		shmrt_ring_store(&shared->high_water, held - holes);
}

static uint64_t ring_bytes_of(const struct shmrt_ring_message *message) {
	uint64_t bytes = message->inline_size;
	for (uint16_t i = 0; i < message->block_count; i++)
		bytes += message->blocks[i].size;
	return bytes;
}

static inline void ring_fetch_slot(const struct shmrt_ring *ring, uint64_t position, uint64_t bytes) {
	const uint8_t *slot = (const uint8_t *)shmrt_ring_slot_at(ring, position);
	for (uint64_t i = 0; i < sizeof(struct shmrt_ring_slot) + bytes && i < SHMRT_RING_AHEAD_BYTES; i += 64)
		shmrt_prefetch_write(slot + i);
}

/* A slot that is most likely needed soon, and that the takers have read: fetch it for writing meanwhile. */
static void ring_fetch_ahead(const struct shmrt_ring *ring, const struct shmrt_ring_view *view, uint64_t bytes) {
	uint64_t far = shmrt_ring_ahead(view->head + ring->slots - view->tail);
	if (far != 0)
		ring_fetch_slot(ring, view->tail + far, bytes);
}

/* All that a run is going to write, at once: the waits for lines that the takers have read lie beside each other, where the
 * stores, which go in order, would wait for one after the other. What is fetched earlier the takers' CPU often fetches back. */
static __attribute__((noinline)) void ring_fetch_run(const struct shmrt_ring *ring, uint64_t tail, const struct shmrt_ring_message *messages,
			   uint64_t count) {
	for (uint64_t i = 0; i < count; i++)
		ring_fetch_slot(ring, tail + i, messages[i].inline_size);
}

/* `count` messages for which there is room, and which come in together, or one that has blocks. */
static int ring_put_run(struct shmrt_ring *ring, struct shmrt_ring_view *view, enum shmrt_ring_side side,
			const struct shmrt_ring_message *messages, uint64_t count) {
	struct shmrt_ring_shared *shared = ring->shared;
	struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, view->tail);
	uint64_t bytes = shmrt_ring_load(&shared->bytes_in);
	if (count > 1)
		ring_fetch_run(ring, view->tail, messages, count);
	else
		ring_fetch_ahead(ring, view, messages->block_count * sizeof(struct shmrt_block_reference) + messages->inline_size);
	slot->block_count = 0; /* what the last message here named is none of the repair's business */
	slot->state = SHMRT_RING_SLOT_FREE;
	shmrt_ring_step();
	shmrt_ring_store(&shared->intent, view->tail - ring->start + 1);
	shmrt_ring_step();
	for (uint64_t position = view->tail, end = position + count;;) {
		const struct shmrt_ring_message *message = messages++;
		size_t reference_bytes = message->block_count * sizeof(struct shmrt_block_reference);
		uint8_t *body = (uint8_t *)shmrt_ring_references(slot);
		if (reference_bytes != 0)
			memcpy(body, message->blocks, reference_bytes);
		if (message->inline_size != 0)
			memcpy(body + reference_bytes, message->inline_bytes, message->inline_size);
		slot->owner = 0;
		slot->inline_size = message->inline_size;
		slot->flags = message->flags;
		slot->sequence = position;
		shmrt_ring_step();
		slot->block_count = message->block_count;
		shmrt_ring_step();
		if (message->block_count != 0 && ring_queue_blocks(ring, message) != SHMRT_OK) {
			slot->block_count = 0;
			shmrt_ring_step();
			shmrt_ring_store(&shared->intent, 0);
			return SHMRT_STALE;
		}
		slot->state = SHMRT_RING_SLOT_FULL;
		bytes += ring_bytes_of(message);
		if (++position == end)
			break;
		slot = shmrt_ring_slot_at(ring, position);
	}
	shmrt_ring_store(&shared->bytes_next, bytes);
	if (SHMRT_UNLIKELY(view->tail + count - view->head - view->holes > shmrt_ring_load(&shared->high_water)))
		ring_raise_high_water(ring, view, side, count);
	shmrt_ring_wake(&shared->bell_not_empty);
	atomic_store_explicit(&shared->tail, view->tail += count, memory_order_release); /* R2; the commit */
	shmrt_ring_step();
	shmrt_ring_store(&shared->bytes_in, bytes); /* the intent tells the repair of it */
	shmrt_ring_step();
	shmrt_ring_store(&shared->intent, 0);
	return SHMRT_OK;
}

static void ring_drop(struct shmrt_ring *ring, struct shmrt_ring_view *view, uint64_t position) {
	struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
	bool in_line = slot->owner == 0;
	uint64_t bytes = shmrt_ring_message_bytes(ring, slot);
	if (ring->before_drop != NULL && shmrt_ring_fits(ring, slot->inline_size, slot->block_count)) {
		struct shmrt_ring_message message = {
			.inline_size = slot->inline_size, .flags = slot->flags, .block_count = slot->block_count,
			.blocks = shmrt_ring_references(slot)};
		message.inline_bytes = (const uint8_t *)(message.blocks + message.block_count);
		ring->before_drop(ring->drop_context, &message);
	}
	shmrt_ring_store(&ring->shared->aside, shmrt_ring_load(&ring->shared->dropped) + 1);
	atomic_store_explicit(&ring->noted, true, memory_order_relaxed); /* private */
	shmrt_ring_set_state(slot, SHMRT_RING_SLOT_DROPPING);
	shmrt_ring_finish(ring, slot);
	shmrt_ring_add(&ring->shared->bytes_out, bytes);
	shmrt_ring_pass(ring, view, position, in_line);
	shmrt_ring_make_hole(ring, view);
}

/* OK: one message fits. FULL: it does not, whatever the policy could do. Takes the takers' mutex, too, where it has to move
 * or to drop messages: that is then in *side. */
static int ring_make_room(struct shmrt_ring *ring, struct shmrt_ring_view *view, enum shmrt_ring_side *side) {
	uint64_t oldest, holes;
	if (SHMRT_LIKELY(view->tail - view->head < ring->slots))
		return SHMRT_OK;
	if (*side != SHMRT_RING_BOTH) {
		int rc = ring_see_head(ring, view, &holes);
		if (rc != SHMRT_OK || view->tail - view->head < ring->slots)
			return rc;
		if (holes == 0 && ring->on_full != SHMRT_RING_DROP_OLDEST)
			return SHMRT_FULL;
		rc = shmrt_ring_lock_rest(ring);
		if (rc != SHMRT_OK)
			return rc;
		*side = SHMRT_RING_BOTH;
	}
	int rc = shmrt_ring_view(ring, view);
	if (rc != SHMRT_OK || view->tail - view->head < ring->slots)
		return rc;
	if (view->holes != 0)
		return shmrt_ring_compact(ring, view) ? SHMRT_OK : SHMRT_CORRUPT;
	if (ring->on_full != SHMRT_RING_DROP_OLDEST)
		return SHMRT_FULL;
	if (shmrt_ring_oldest(ring, view, &oldest) != SHMRT_OK &&
	    (!shmrt_ring_take_back(ring, true) || shmrt_ring_oldest(ring, view, &oldest) != SHMRT_OK))
		return SHMRT_FULL; /* everything is leased */
	ring_drop(ring, view, oldest);
	return shmrt_ring_compact(ring, view) ? SHMRT_OK : SHMRT_CORRUPT;
}

/* How many of `most` messages may come in together: at least the first, which may, and those behind it without blocks. */
static uint64_t ring_run_of(const struct shmrt_ring *ring, const struct shmrt_ring_message *messages, uint64_t most) {
	uint64_t count = 1;
	if (messages[0].block_count == 0)
		while (count < most && messages[count].block_count == 0 && shmrt_ring_fits(ring, messages[count].inline_size, 0))
			count++;
	return count;
}

/* As many as there is room for, at most a chunk. OK: go on. FULL: room is wanted. Else: the answer. */
static int ring_put_chunk(struct shmrt_ring *ring, const struct shmrt_ring_message *messages, uint64_t count,
			  enum shmrt_ring_side *side, uint64_t *done) {
	struct shmrt_ring_shared *shared = ring->shared;
	struct shmrt_ring_view view = {.head = shmrt_ring_load(&shared->head_seen), .tail = shmrt_ring_load(&shared->tail)};
	uint64_t end = count - *done < SHMRT_RING_CHUNK ? count : *done + SHMRT_RING_CHUNK;
	int rc = SHMRT_OK;
	while (rc == SHMRT_OK && *done < end) {
		const struct shmrt_ring_message *message = &messages[*done];
		if (atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0) /* R1 */
			return SHMRT_CLOSED;
		if (!shmrt_ring_fits(ring, message->inline_size, message->block_count))
			return SHMRT_TOO_LARGE;
		if (message->block_count != 0 && ring->arena == NULL)
			return SHMRT_INVALID;
		rc = ring_make_room(ring, &view, side);
		uint64_t run = 1;
		if (rc == SHMRT_FULL && ring->on_full == SHMRT_RING_DROP_NEWEST) {
			ring_discard(ring, message);
			rc = SHMRT_OK;
		} else if (rc == SHMRT_OK) {
			uint64_t room = view.head + ring->slots - view.tail;
			run = ring_run_of(ring, message, room < end - *done ? room : end - *done);
			rc = ring_put_run(ring, &view, *side, message, run);
		}
		if (rc == SHMRT_OK)
			*done += run;
	}
	return rc;
}

int shmrt_ring_put(struct shmrt_ring *ring, const struct shmrt_ring_message *messages, uint64_t count,
		   int64_t timeout_ns, uint64_t *done) {
	struct shmrt_ring_patience patience = {.timeout_ns = timeout_ns};
	*done = 0;
	while (*done < count) {
		if (ring->on_full == SHMRT_RING_BLOCK && timeout_ns > 0 && shmrt_ring_seems_full(ring, 1))
			shmrt_ring_spin(ring, true, &patience);
		enum shmrt_ring_side side = SHMRT_RING_PUT;
		int rc = shmrt_ring_lock(ring, side);
		if (rc != SHMRT_OK)
			return rc;
		if (SHMRT_UNLIKELY(patience.waited_ns != 0)) {
			shmrt_ring_add(&ring->shared->blocked_full_ns, patience.waited_ns);
			patience.waited_ns = 0;
		}
		rc = ring_put_chunk(ring, messages, count, &side, done);
		if (rc == SHMRT_FULL && timeout_ns > 0 && ring->on_full != SHMRT_RING_RAISE) {
			rc = shmrt_ring_wait(ring, side, true, &patience);
			if (SHMRT_UNLIKELY(rc == SHMRT_INTERRUPTED))
				shmrt_ring_keep_waited(ring, true, &patience);
		} else {
			shmrt_ring_unlock(ring, side);
		}
		if (rc != SHMRT_OK)
			return rc;
	}
	return SHMRT_OK;
}

int shmrt_ring_close(struct shmrt_ring *ring) {
	int rc = shmrt_ring_lock(ring, SHMRT_RING_BOTH);
	if (rc != SHMRT_OK)
		return rc;
	shmrt_ring_wake(&ring->shared->bell_not_empty);
	shmrt_ring_wake(&ring->shared->bell_not_full);
	atomic_store_explicit(&ring->shared->closed, 1, memory_order_relaxed); /* R1 */
	shmrt_ring_unlock(ring, SHMRT_RING_BOTH);
	return SHMRT_OK;
}

uint64_t shmrt_ring_messages_in(const struct shmrt_ring *ring) {
	return shmrt_ring_peek(&ring->shared->tail) - ring->start;
}

uint64_t shmrt_ring_messages_out(const struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	uint64_t left = shmrt_ring_peek(&shared->holes) + shmrt_ring_peek(&shared->head) - ring->start;
	uint64_t dropped = ring->on_full == SHMRT_RING_DROP_OLDEST ? shmrt_ring_load(&shared->dropped) : 0;
	return dropped < left ? left - dropped : 0;
}

uint64_t shmrt_ring_depth(const struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	/* Four words that others move: read in the order that cannot make the difference negative by
	 * much, and cut to what is possible. */
	uint64_t gone = shmrt_ring_load(&shared->head) + shmrt_ring_load(&shared->holes) +
			shmrt_ring_load(&shared->leased);
	uint64_t waiting = atomic_load_explicit(&shared->tail, memory_order_acquire) - gone; /* R2 */
	if (waiting > UINT64_MAX / 2)
		return 0;
	return waiting < ring->slots ? waiting : ring->slots;
}
