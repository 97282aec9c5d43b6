/* ring_wait.c -- how a caller sleeps until there is something to do.
 *
 * Writes: the bells (1 by a sleeper under both mutexes, 0 by a waker under its own), lease states of dead holders.
 * A bell is armed under both after a look under both that found nothing, and rung under one of them before the
 * change that it announces; so whoever is woken and does not see it yet queues up at that mutex before it sleeps
 * again, and looks after the change. A waker that dies in between leaves the mutex ownerless, and the next to
 * lock it wakes everybody.
 */
#include "ring_internal.h"

#define SPIN_MOST_NS 50000u  /* looks at an empty or full ring before sleeping on its bell */
#define SPIN_LEAST_NS 2000u
#define HYSTERESIS_NS 30000u  /* a producer at a full ring waits this long for more than one place, */
#define HYSTERESIS_MOST 128u /* and for no more than so many */
#define HYSTERESIS_PAUSES 64 /* between two looks meanwhile: each look takes the line from the takers */
#define LINGER_PAUSES 24     /* about half a microsecond, without a look at the putters' line */
#define LINGER_LOOKS 6
#define LINGER_FEW 4u        /* messages that are not worth a look at that line, and so a wait */
#define LINGER_ENOUGH 24u
#define LONE_LEAST 8u
#define LONE_MOST 4096u
#define LEASE_LOOK_LEAST_NS 1000000u

void shmrt_ring_wake(_Atomic uint32_t *bell) {
	shmrt_ring_step();
	if (SHMRT_UNLIKELY(atomic_load_explicit(bell, memory_order_relaxed) != 0)) { /* R1 */
		atomic_store_explicit(bell, 0, memory_order_relaxed); /* R1; the system call orders it */
		shmrt_futex_wake(bell, INT32_MAX);
	}
	shmrt_ring_step();
}

bool shmrt_ring_take_back(struct shmrt_ring *ring, bool always) {
	struct shmrt_ring_shared *shared = ring->shared;
	if (SHMRT_LIKELY(shmrt_ring_load(&shared->leased) == 0))
		return false;
	uint64_t now = shmrt_now_ns();
	uint64_t last = atomic_load_explicit(&ring->lease_look_ns, memory_order_relaxed); /* under the mutex */
	if (!always && now - last < LEASE_LOOK_LEAST_NS)
		return false;
	atomic_store_explicit(&ring->lease_look_ns, now, memory_order_relaxed);
	struct shmrt_ring_view view;
	if (shmrt_ring_view(ring, &view) != SHMRT_OK)
		return false;
	uint32_t alive = shmrt_owner_self(), dead = 0;
	bool any = false;
	for (uint64_t position = view.head; position != view.tail; position++) {
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(ring, position);
		uint32_t owner = slot->owner;
		if (slot->state != SHMRT_RING_SLOT_LEASED || owner == alive)
			continue;
		if (owner != dead && shmrt_owner_is_alive(owner)) {
			alive = owner;
			continue;
		}
		dead = owner;
		any = true;
		shmrt_ring_wake(&shared->bell_not_empty);
		shmrt_ring_set_state(slot, SHMRT_RING_SLOT_FULL); /* owner stays: out of line */
		shmrt_ring_add(&shared->returned, 1); /* before leased: an unlocked look sees one of them */
		shmrt_ring_step();
		shmrt_ring_lease_less(shared);
		shmrt_ring_add(&shared->repairs, 1);
	}
	return any;
}

bool shmrt_ring_seems_empty(const struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	/* next before tail: if they are equal, the ring was empty when tail was read. */
	uint64_t next = atomic_load_explicit(&shared->next, memory_order_acquire); /* keeps the order: R2 after it */
	return next == shmrt_ring_load(&shared->tail_seen) && /* else no look at the putters' line */
	       next == shmrt_ring_peek(&shared->tail) &&
	       shmrt_ring_load(&shared->returned) == 0 &&
	       atomic_load_explicit(&shared->closed, memory_order_relaxed) == 0; /* a hint */
}

bool shmrt_ring_seems_full(const struct shmrt_ring *ring, uint64_t room_wanted) {
	const struct shmrt_ring_shared *shared = ring->shared;
	uint64_t used = shmrt_ring_load(&shared->tail) - shmrt_ring_load(&shared->head) -
			shmrt_ring_load(&shared->holes);
	return used + room_wanted > ring->slots &&
	       atomic_load_explicit(&shared->closed, memory_order_relaxed) == 0; /* a hint */
}

static void ring_learn(_Atomic uint32_t *budget, uint64_t waited_ns) {
	uint32_t now = atomic_load_explicit(budget, memory_order_relaxed); /* private; any value is right */
	if (waited_ns < 2 * SPIN_MOST_NS)
		now = now * 2 > SPIN_MOST_NS || now == 0 ? SPIN_MOST_NS : now * 2;
	else
		now = now / 2 < SPIN_LEAST_NS ? SPIN_LEAST_NS : now / 2;
	atomic_store_explicit(budget, now, memory_order_relaxed);
}

void shmrt_ring_spin(struct shmrt_ring *ring, bool for_room, struct shmrt_ring_patience *patience) {
	if (!ring->may_spin || patience->spun ||
	    atomic_load_explicit(&ring->shared->closed, memory_order_relaxed) != 0) /* a hint */
		return;
	_Atomic uint32_t *learned = for_room ? &ring->spin_room_ns : &ring->spin_message_ns;
	uint64_t budget = atomic_load_explicit(learned, memory_order_relaxed); /* private; any value is right */
	budget = budget == 0 ? SPIN_MOST_NS : budget;
	if (budget > (uint64_t)patience->timeout_ns)
		budget = (uint64_t)patience->timeout_ns;
	uint64_t start = shmrt_now_ns(), spent = 0;
	uint64_t wanted = ring->slots / 4 < HYSTERESIS_MOST ? ring->slots / 4 + 1 : HYSTERESIS_MOST;
	patience->spun = true;
	while (spent < budget && patience->spun) {
		bool picky = for_room && spent < HYSTERESIS_NS && wanted > 1;
		for (int i = 0; i < (picky ? 1 : 8) && patience->spun; i++) {
			patience->spun = for_room ? shmrt_ring_seems_full(ring, picky ? wanted : 1)
						  : shmrt_ring_seems_empty(ring);
			for (int j = 0; j < (picky ? HYSTERESIS_PAUSES : 1) && patience->spun; j++)
				shmrt_pause();
		}
		spent = shmrt_now_ns() - start;
	}
	patience->waited_ns += spent;
	if (!patience->spun)
		ring_learn(learned, spent);
}

void shmrt_ring_linger(struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	uint64_t next = shmrt_ring_load(&shared->next);
	if (SHMRT_LIKELY(next != shmrt_ring_load(&shared->tail_seen)) || !ring->may_spin)
		return;
	uint64_t ready = shmrt_ring_peek(&shared->tail) - next;
	if (ready == 0 || ready >= LINGER_FEW)
		return;
	/* relaxed: private, and any value is right */
	uint32_t lone = atomic_load_explicit(&ring->lone, memory_order_relaxed) + 1;
	uint32_t most = atomic_load_explicit(&ring->lone_most, memory_order_relaxed);
	bool more = lone < most || most == 0;
	if (!more) {
		uint64_t before = 0, now = ready;
		for (int look = 0; look < LINGER_LOOKS && now != before && now < LINGER_ENOUGH; look++) {
			for (int i = 0; i < LINGER_PAUSES; i++)
				shmrt_pause();
			before = now;
			now = shmrt_ring_peek(&shared->tail) - next;
		}
		more = now > ready;
		lone = more ? lone : 0; /* two that answer each other */
		most = more ? LONE_LEAST : most < LONE_MOST ? most * 2 : LONE_MOST;
	}
	atomic_store_explicit(&ring->lone, lone, memory_order_relaxed); /* private */
	atomic_store_explicit(&ring->lone_most, most == 0 ? LONE_LEAST : most, memory_order_relaxed); /* private */
}

/* Under both: whether a put or get has something to do after all. */
static bool ring_is_ready(struct shmrt_ring *ring, bool for_room) {
	struct shmrt_ring_shared *shared = ring->shared;
	bool closed = atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0; /* R1 */
	struct shmrt_ring_view view;
	uint64_t position;
	if (shmrt_ring_view(ring, &view) != SHMRT_OK)
		return true; /* the look says so */
	if (for_room)
		return closed || view.holes != 0 || view.tail - view.head < ring->slots;
	return (closed && shmrt_ring_load(&shared->leased) == 0) || shmrt_ring_oldest(ring, &view, &position) == SHMRT_OK;
}

/* The other one, too, if it is not held. */
static int ring_hold_both(struct shmrt_ring *ring, enum shmrt_ring_side held) {
	if (held == SHMRT_RING_PUT) {
		int rc = shmrt_ring_lock_rest(ring);
		if (rc != SHMRT_OK)
			shmrt_ring_unlock(ring, SHMRT_RING_PUT);
		return rc;
	}
	shmrt_ring_unlock(ring, held);
	return shmrt_ring_lock(ring, SHMRT_RING_BOTH);
}

int shmrt_ring_wait(struct shmrt_ring *ring, enum shmrt_ring_side held, bool for_room, struct shmrt_ring_patience *patience) {
	struct shmrt_ring_shared *shared = ring->shared;
	_Atomic uint32_t *bell = for_room ? &shared->bell_not_full : &shared->bell_not_empty;
	_Atomic uint32_t *budget = for_room ? &ring->spin_room_ns : &ring->spin_message_ns;
	uint64_t now = shmrt_now_ns();
	if (patience->deadline_ns == 0 && patience->timeout_ns != SHMRT_FOREVER)
		patience->deadline_ns = now + (uint64_t)patience->timeout_ns;
	int64_t left = SHMRT_FOREVER;
	if (patience->timeout_ns != SHMRT_FOREVER)
		left = now >= patience->deadline_ns ? 0 : (int64_t)(patience->deadline_ns - now);
	if (left == 0) {
		shmrt_ring_unlock(ring, held);
		return SHMRT_TIMEOUT;
	}
	if (ring->may_spin && !patience->spun) {
		shmrt_ring_unlock(ring, held);
		shmrt_ring_spin(ring, for_room, patience);
		patience->spun = true; /* whatever it saw: two vain looks in a row, then sleep */
		return SHMRT_OK;
	}
	if (held != SHMRT_RING_BOTH) {
		int rc = ring_hold_both(ring, held);
		if (rc != SHMRT_OK)
			return rc;
		if (ring_is_ready(ring, for_room)) {
			shmrt_ring_unlock(ring, SHMRT_RING_BOTH);
			return SHMRT_OK;
		}
	}
	bool leases = shmrt_ring_load(&shared->leased) != 0;
	int64_t sleep_ns = leases && left > SHMRT_RING_LEASE_LOOK_NS ? SHMRT_RING_LEASE_LOOK_NS : left;
	atomic_store_explicit(bell, 1, memory_order_relaxed); /* R1: whoever changes the ring locks later */
	shmrt_ring_unlock(ring, SHMRT_RING_BOTH);
	/* Only a mailbox is ever closed without the mutex, when its holder is stopped. */
	atomic_thread_fence(memory_order_seq_cst); /* B1: the second look */
	bool ended = for_room && atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0; /* B1: after the fence */
	int rc = ended ? SHMRT_OK : shmrt_futex_wait_looking(bell, 1, sleep_ns);
	uint64_t slept = shmrt_now_ns() - now;
	patience->waited_ns += slept;
	ring_learn(budget, rc == SHMRT_OK ? slept : UINT64_MAX);
	patience->spun = false;
	/* Not for room: a taker gives much of it back in one turn of its mutex, which those who wait for room would only contend for. */
	if (rc == SHMRT_OK && !for_room && shmrt_ring_seems_empty(ring))
		shmrt_ring_await_waker(ring, SHMRT_RING_PUT);
	if (rc == SHMRT_TIMEOUT)
		rc = SHMRT_OK; /* look once more; the deadline decides above */
	return rc;
}

void shmrt_ring_keep_waited(struct shmrt_ring *ring, bool for_room, struct shmrt_ring_patience *patience) {
	enum shmrt_ring_side side = for_room ? SHMRT_RING_PUT : SHMRT_RING_TAKE;
	if (patience->waited_ns == 0 || shmrt_ring_lock_after(ring, side, 0) != SHMRT_OK)
		return;
	shmrt_ring_add(for_room ? &ring->shared->blocked_full_ns : &ring->shared->blocked_empty_ns, patience->waited_ns);
	patience->waited_ns = 0;
	shmrt_ring_unlock(ring, side);
}
