/* ring_take.c -- get and leases: the consumer's side. The steps and what a death leaves: ring.h.
 *
 * The one store that decides about a message is the one of its slot's state, or of `head`.
 */
#include "ring_internal.h"

/* The oldest message that nobody holds; EMPTY when there is none. Moves `next` over what is not FULL. */
int shmrt_ring_oldest(struct shmrt_ring *ring, struct shmrt_ring_view *view, uint64_t *position) {
	uint64_t at = view->next;
	while (at != view->tail && shmrt_ring_slot_at(ring, at)->state != SHMRT_RING_SLOT_FULL)
		at++;
	if (SHMRT_LIKELY(shmrt_ring_load(&ring->shared->returned) == 0)) {
		if (at != view->next) {
			view->next = at;
			shmrt_ring_store(&ring->shared->next, at);
		}
		*position = at;
		return at == view->tail ? SHMRT_EMPTY : SHMRT_OK;
	}
	bool found = false; /* some came back: the lowest sequence is the oldest */
	uint64_t lowest = 0;
	for (at = view->head; at != view->tail; at++) {
		const struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, at);
		uint64_t age = slot->sequence - ring->start;
		if (slot->state != SHMRT_RING_SLOT_FULL || (found && age >= lowest))
			continue;
		found = true;
		lowest = age;
		*position = at;
	}
	return found ? SHMRT_OK : SHMRT_EMPTY;
}

/* After the slot at `position` stopped being FULL; `line` tells whether it stood in line. */
void shmrt_ring_pass(struct shmrt_ring *ring, struct shmrt_ring_view *view, uint64_t position, bool in_line) {
	if (!in_line)
		shmrt_ring_add(&ring->shared->returned, UINT64_MAX);
	else if (position == view->next)
		shmrt_ring_store(&ring->shared->next, ++view->next);
}

void shmrt_ring_make_hole(struct shmrt_ring *ring, struct shmrt_ring_view *view) {
	shmrt_ring_store(&ring->shared->holes, ++view->holes);
	shmrt_ring_advance(ring, view);
}


/* The blocks of a TAKING slot become the caller's. */
static int ring_hold_blocks(struct shmrt_ring *ring, struct shmrt_ring_slot *slot, uint16_t count) {
	const struct shmrt_block_reference *references = shmrt_ring_references(slot);
	uint32_t self = shmrt_owner_self();
	for (uint16_t i = 0; i < count; i++) {
		if (shmrt_arena_move(&ring->blocks, references[i].block, references[i].generation,
				     SHMRT_BLOCK_QUEUED, 0, SHMRT_BLOCK_HELD, self) == SHMRT_OK)
			continue;
		while (i-- > 0) {
			int ignored = shmrt_arena_move(&ring->blocks, references[i].block, references[i].generation,
						       SHMRT_BLOCK_HELD, self, SHMRT_BLOCK_QUEUED, 0);
			(void)ignored;
		}
		return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}

/* A message that names what it does not own is thrown away, so that those behind it can be had. */
static int ring_throw_away(struct shmrt_ring *ring, struct shmrt_ring_slot *slot) {
	uint64_t bytes = shmrt_ring_message_bytes(ring, slot);
	shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FREEING);
	shmrt_ring_finish(ring, slot);
	shmrt_ring_add(&ring->shared->bytes_out, bytes);
	return SHMRT_CORRUPT;
}

/* The message leaves the ring: FULL or LEASED -> DONE; `take` may be NULL. Until then it stays whole. */
static int ring_hand_over(struct shmrt_ring *ring, struct shmrt_ring_slot *slot, shmrt_ring_take take, void *context) {
	uint16_t count = slot->block_count;
	struct shmrt_ring_message message = {.inline_size = slot->inline_size, .flags = slot->flags, .block_count = count};
	if (SHMRT_UNLIKELY(!shmrt_ring_fits(ring, message.inline_size, count)))
		return ring_throw_away(ring, slot);
	message.blocks = shmrt_ring_references(slot);
	message.inline_bytes = (const uint8_t *)(message.blocks + count);
	if (count != 0) {
		slot->owner = shmrt_owner_self();
		shmrt_ring_set_state(slot, SHMRT_RING_SLOT_TAKING);
		if (ring_hold_blocks(ring, slot, count) != SHMRT_OK)
			return ring_throw_away(ring, slot);
	}
	if (take != NULL)
		take(context, &message);
	shmrt_ring_set_state(slot, SHMRT_RING_SLOT_DONE); /* the commit */
	shmrt_ring_add(&ring->shared->bytes_out, shmrt_ring_message_bytes(ring, slot));
	return SHMRT_OK;
}

/* Before a message leaves: room will be there; and whoever waits for the end may have it. */
static void ring_wake_for_room(struct shmrt_ring *ring) {
	shmrt_ring_wake(&ring->shared->bell_not_full);
	if (SHMRT_UNLIKELY(atomic_load_explicit(&ring->shared->closed, memory_order_relaxed) != 0)) /* R1 */
		shmrt_ring_wake(&ring->shared->bell_not_empty);
}

/* What a caller wants to have, and what it got. */
struct ring_order {
	uint64_t count;
	shmrt_ring_take take;
	void *context;
	uint64_t done;
	uint64_t *lease;     /* not NULL: one message on loan, named here */
	bool run;            /* shmrt_ring_get_run: plain messages, */
	bool first_alone;    /* or one that is not */
	bool fragile;        /* it ended because of one that is not */
};

/* Decoding it may fail for another reason than damage or want of memory. */
static inline bool ring_is_fragile(const struct shmrt_ring_slot *slot) {
	return slot->block_count != 0 || (slot->flags & (SHMRT_MESSAGE_HAS_PICKLE | SHMRT_MESSAGE_HAS_ARRAY)) != 0;
}

/* As shmrt_ring_view, without a look at the putters' line while there is more than enough to take. */
static int ring_take_view(struct shmrt_ring *ring, struct shmrt_ring_view *view) {
	const struct shmrt_ring_shared *shared = ring->shared;
	view->head = shmrt_ring_load(&shared->head);
	view->next = shmrt_ring_load(&shared->next);
	view->tail = shmrt_ring_load(&shared->tail_seen);
	view->holes = shmrt_ring_load(&shared->holes);
	uint64_t span = view->tail - view->head;
	if (SHMRT_LIKELY(view->next != view->tail && span <= ring->slots && view->next - view->head <= span && view->holes <= span))
		return SHMRT_OK;
	return shmrt_ring_view(ring, view);
}

static inline const struct shmrt_ring_slot *ring_slot_after(const struct shmrt_ring *ring, const struct shmrt_ring_slot *slot) {
	const uint8_t *after = (const uint8_t *)slot + ring->slot_stride;
	if (SHMRT_UNLIKELY(after == ring->slot_base + ring->slots * ring->slot_stride))
		after = ring->slot_base;
	return (const struct shmrt_ring_slot *)(const void *)after;
}

/* Up to `most` messages without blocks from the head on, where no hole and none out of line is anywhere: they are copied out,
 * and the head passes all of them in one step. Their slots stay unwritten, so that the putter's copies of the lines are not
 * thrown away. Answers how many. */
static uint64_t ring_pass_run(struct shmrt_ring *ring, struct shmrt_ring_view *view, uint64_t most, struct ring_order *order) {
	struct shmrt_ring_shared *shared = ring->shared;
	uint16_t fragile = order->run ? SHMRT_MESSAGE_HAS_PICKLE | SHMRT_MESSAGE_HAS_ARRAY : 0;
	uint64_t left = view->tail - view->head, count = 0, bytes = 0;
	const uint64_t far = shmrt_ring_ahead(left);
	const struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, view->head), *ahead = shmrt_ring_slot_at(ring, view->head + far);
	for (most = most < left ? most : left; count < most; count++) {
		struct shmrt_ring_message message = {
			.inline_bytes = (const uint8_t *)(slot + 1), .inline_size = slot->inline_size, .flags = slot->flags};
		if (SHMRT_UNLIKELY(slot->state != SHMRT_RING_SLOT_FULL || slot->owner != 0 || slot->block_count != 0 ||
				   (message.flags & fragile) != 0 || !shmrt_ring_fits(ring, message.inline_size, 0)))
			break;
		if (count == 0)
			ring_wake_for_room(ring);
		if (far != 0 && count + far < left) /* it was put: its writer is done with it */
			for (uint32_t i = 0; i < sizeof(*slot) + message.inline_size && i < SHMRT_RING_AHEAD_BYTES; i += 64)
				__builtin_prefetch((const uint8_t *)ahead + i);
		order->take(order->context, &message);
		bytes += message.inline_size;
		slot = ring_slot_after(ring, slot);
		ahead = ring_slot_after(ring, ahead);
	}
	if (count == 0)
		return 0;
	shmrt_ring_step();
	shmrt_ring_store_head(shared, view->head += count); /* the commit */
	shmrt_ring_step();
	shmrt_ring_store(&shared->next, view->next = view->head);
	shmrt_ring_add(&shared->bytes_out, bytes);
	order->done += count;
	return count;
}

static int ring_get_chunk(struct shmrt_ring *ring, struct ring_order *order) {
	struct shmrt_ring_view view;
	int rc = ring_take_view(ring, &view);
	uint64_t most = order->count - order->done, end = order->done + (most < SHMRT_RING_CHUNK ? most : SHMRT_RING_CHUNK);
	while (rc == SHMRT_OK && order->done < end && !order->fragile) {
		uint64_t position;
		rc = shmrt_ring_oldest(ring, &view, &position);
		if (rc != SHMRT_OK && (rc = shmrt_ring_view(ring, &view)) == SHMRT_OK)
			rc = shmrt_ring_oldest(ring, &view, &position); /* of what was put since that look */
		if (rc != SHMRT_OK)
			break;
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
		if (SHMRT_LIKELY(position == view.head && view.holes == 0 && slot->block_count == 0 &&
				 shmrt_ring_load(&ring->shared->returned) == 0) &&
		    ring_pass_run(ring, &view, end - order->done, order) != 0)
			continue;
		if (slot->block_count != 0 && ring->arena == NULL)
			return SHMRT_INVALID;
		order->fragile = order->run && ring_is_fragile(slot);
		if (SHMRT_UNLIKELY(order->fragile) && (order->done != 0 || !order->first_alone))
			break;
		ring_wake_for_room(ring);
		bool in_line = slot->owner == 0;
		rc = ring_hand_over(ring, slot, order->take, order->context);
		shmrt_ring_pass(ring, &view, position, in_line);
		shmrt_ring_make_hole(ring, &view);
		if (rc == SHMRT_OK)
			order->done++;
	}
	return rc;
}

static int ring_lease_one(struct shmrt_ring *ring, struct ring_order *order) {
	struct shmrt_ring_view view;
	uint64_t position;
	int rc = shmrt_ring_view(ring, &view);
	if (rc == SHMRT_OK)
		rc = shmrt_ring_oldest(ring, &view, &position);
	if (rc != SHMRT_OK)
		return rc;
	struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
	struct shmrt_ring_message message = {
		.inline_size = slot->inline_size, .flags = slot->flags, .block_count = slot->block_count};
	bool in_line = slot->owner == 0;
	if (message.block_count != 0 && ring->arena == NULL)
		return SHMRT_INVALID;
	if (!shmrt_ring_fits(ring, message.inline_size, message.block_count)) {
		rc = ring_throw_away(ring, slot);
		shmrt_ring_pass(ring, &view, position, in_line);
		shmrt_ring_make_hole(ring, &view);
		return rc;
	}
	message.blocks = shmrt_ring_references(slot);
	message.inline_bytes = (const uint8_t *)(message.blocks + message.block_count);
	order->take(order->context, &message);
	*order->lease = slot->sequence;
	slot->owner = shmrt_owner_self();
	shmrt_ring_set_state(slot, SHMRT_RING_SLOT_LEASED); /* the commit */
	shmrt_ring_add(&ring->shared->leased, 1);
	shmrt_ring_step();
	shmrt_ring_pass(ring, &view, position, in_line);
	return SHMRT_OK;
}

/* One look under the mutex. EMPTY: nothing to have, and nothing that may come back has. */
static int ring_receive_once(struct shmrt_ring *ring, struct ring_order *order) {
	shmrt_ring_take_back(ring, false); /* before newer messages, however many of them there are */
	for (;;) {
		int rc = order->lease != NULL ? ring_lease_one(ring, order) : ring_get_chunk(ring, order);
		if (order->done != 0)
			return SHMRT_OK; /* a bad one behind them is for the next call */
		if (rc != SHMRT_EMPTY || !shmrt_ring_take_back(ring, true))
			return rc;
	}
}

/* get and lease: wait until there is something. */
static int ring_receive(struct shmrt_ring *ring, int64_t timeout_ns, struct ring_order *order) {
	struct shmrt_ring_shared *shared = ring->shared;
	struct shmrt_ring_patience patience = {.timeout_ns = timeout_ns};
	for (;;) {
		/* R3: leased before returned: what comes back is counted in one of them at any time */
		if (atomic_load_explicit(&shared->leased, memory_order_acquire) == 0 && shmrt_ring_seems_empty(ring)) {
			if (timeout_ns <= 0)
				return SHMRT_EMPTY;
			shmrt_ring_spin(ring, false, &patience);
		}
		shmrt_ring_linger(ring);
		int rc = shmrt_ring_lock(ring, SHMRT_RING_TAKE);
		if (rc != SHMRT_OK)
			return rc;
		if (SHMRT_UNLIKELY(patience.waited_ns != 0)) {
			shmrt_ring_add(&shared->blocked_empty_ns, patience.waited_ns);
			patience.waited_ns = 0;
		}
		rc = ring_receive_once(ring, order);
		if (rc == SHMRT_EMPTY && atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0 && /* R1 */
		    shmrt_ring_load(&shared->leased) == 0)
			rc = SHMRT_CLOSED; /* with leases out a message may still come back */
		if (rc == SHMRT_EMPTY && timeout_ns > 0) {
			rc = shmrt_ring_wait(ring, SHMRT_RING_TAKE, false, &patience);
			if (rc == SHMRT_OK)
				continue;
			if (rc == SHMRT_INTERRUPTED)
				shmrt_ring_keep_waited(ring, false, &patience);
			return rc;
		}
		shmrt_ring_unlock(ring, SHMRT_RING_TAKE);
		return rc;
	}
}

static int ring_get(struct shmrt_ring *ring, int64_t timeout_ns, struct ring_order *order) {
	if (order->count == 0)
		return SHMRT_OK;
	int rc = ring_receive(ring, timeout_ns, order);
	while (rc == SHMRT_OK && order->done < order->count && !order->fragile && !shmrt_ring_seems_empty(ring)) {
		uint64_t before = order->done; /* the next chunk */
		if (shmrt_ring_lock(ring, SHMRT_RING_TAKE) != SHMRT_OK)
			break; /* what we have is worth more than why there is no more */
		int ignored = ring_get_chunk(ring, order);
		(void)ignored;
		shmrt_ring_unlock(ring, SHMRT_RING_TAKE);
		if (order->done == before)
			break;
	}
	return rc;
}

int shmrt_ring_get(struct shmrt_ring *ring, uint64_t count, int64_t timeout_ns, shmrt_ring_take take, void *context,
		   uint64_t *done) {
	struct ring_order order = {.count = count, .take = take, .context = context};
	int rc = ring_get(ring, timeout_ns, &order);
	*done = order.done;
	return rc;
}

int shmrt_ring_get_run(struct shmrt_ring *ring, bool first_alone, uint64_t count, int64_t timeout_ns, shmrt_ring_take take,
		       void *context, uint64_t *done, bool *fragile) {
	struct ring_order order = {
		.count = count, .take = take, .context = context, .run = true, .first_alone = first_alone};
	int rc = ring_get(ring, timeout_ns, &order);
	*done = order.done;
	*fragile = order.fragile;
	return rc;
}

int shmrt_ring_lease(struct shmrt_ring *ring, int64_t timeout_ns, shmrt_ring_take take, void *context,
		     uint64_t *position) {
	struct ring_order order = {.take = take, .context = context, .lease = position};
	return ring_receive(ring, timeout_ns, &order);
}

/* The caller's lease, wherever the message lies now; NULL if it is not (any more) the caller's. */
static struct shmrt_ring_slot *ring_find_lease(struct shmrt_ring *ring, const struct shmrt_ring_view *view,
					       uint64_t sequence) {
	uint32_t self = shmrt_owner_self();
	struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, sequence);
	if (sequence - view->head < view->tail - view->head && slot->state == SHMRT_RING_SLOT_LEASED &&
	    slot->owner == self && slot->sequence == sequence)
		return slot;
	for (uint64_t position = view->head; position != view->tail; position++) { /* moved into a hole */
		slot = shmrt_ring_slot_at(ring, position);
		if (slot->state == SHMRT_RING_SLOT_LEASED && slot->owner == self && slot->sequence == sequence)
			return slot;
	}
	return NULL;
}

enum ring_lease_end { RING_RELEASE, RING_KEEP, RING_GIVE_BACK };

static int ring_end_lease(struct shmrt_ring *ring, uint64_t sequence, enum ring_lease_end how) {
	struct shmrt_ring_shared *shared = ring->shared;
	struct shmrt_ring_view view;
	int rc = shmrt_ring_lock(ring, SHMRT_RING_TAKE);
	if (rc != SHMRT_OK)
		return rc;
	rc = shmrt_ring_view(ring, &view);
	struct shmrt_ring_slot *slot = rc == SHMRT_OK ? ring_find_lease(ring, &view, sequence) : NULL;
	if (slot == NULL) {
		shmrt_ring_unlock(ring, SHMRT_RING_TAKE);
		return rc == SHMRT_OK ? SHMRT_STALE : rc;
	}
	if (how == RING_GIVE_BACK) {
		shmrt_ring_wake(&shared->bell_not_empty);
		shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FULL); /* the commit; owner stays: out of line */
		shmrt_ring_add(&shared->returned, 1); /* before leased: an unlocked look sees one of them */
		shmrt_ring_step();
		shmrt_ring_lease_less(shared);
	} else {
		ring_wake_for_room(ring);
		if (how == RING_KEEP) {
			rc = ring_hand_over(ring, slot, NULL, NULL);
		} else {
			shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FREEING); /* the commit */
			shmrt_ring_add(&shared->bytes_out, shmrt_ring_message_bytes(ring, slot));
			shmrt_ring_finish(ring, slot);
		}
		shmrt_ring_add(&shared->leased, UINT64_MAX);
		shmrt_ring_make_hole(ring, &view);
	}
	shmrt_ring_unlock(ring, SHMRT_RING_TAKE);
	return rc;
}

int shmrt_ring_release(struct shmrt_ring *ring, uint64_t position) {
	return ring_end_lease(ring, position, RING_RELEASE);
}

int shmrt_ring_release_keep(struct shmrt_ring *ring, uint64_t position) {
	return ring_end_lease(ring, position, RING_KEEP);
}

int shmrt_ring_give_back(struct shmrt_ring *ring, uint64_t position) {
	return ring_end_lease(ring, position, RING_GIVE_BACK);
}
