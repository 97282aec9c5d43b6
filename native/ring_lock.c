/* ring_lock.c -- the two mutexes of a ring: how a caller gets them, and what it does when a holder died.
 *
 * Whoever gets a mutex whose holder died stores `damaged` before it makes the mutex usable; whoever then holds either of them
 * takes the other, too, and repairs before anything else. `damaged` goes back to 0 last, under both: until then whoever comes
 * repairs again. It is what remains of a death where its mutex was made usable and let go of, to take the putters' first. The
 * other side may go on meanwhile, since it touches nothing that the dead holder of this one alone had touched; if the dead had
 * both, both say so.
 */
#include "ring_internal.h"

#include <errno.h>

static int lock_one(struct shmrt_ring *ring, pthread_mutex_t *mutex, int tries) {
	if (SHMRT_UNLIKELY(!shmrt_mutex_is_sound(mutex)))
		return SHMRT_CORRUPT;
	int error = pthread_mutex_trylock(mutex);
	if (SHMRT_LIKELY(error == 0))
		return SHMRT_OK;
	if (error == EBUSY) {
		unsigned pauses = 16; /* a few messages per turn of the lock */
		for (int i = 0; i < tries && error == EBUSY; i++) {
			for (unsigned j = 0; j < pauses; j++)
				shmrt_pause();
			if (pauses < 64)
				pauses *= 2; /* each failed try takes the line from the holder */
			error = pthread_mutex_trylock(mutex);
		}
	}
	if (error == EBUSY)
		error = shmrt_mutex_lock_within(mutex, ring->lock_slice_ns);
	if (error == ETIMEDOUT)
		return SHMRT_INTERRUPTED;
	if (error != 0 && error != EOWNERDEAD)
		return SHMRT_CORRUPT;
	if (error == 0)
		return SHMRT_OK;
	atomic_store_explicit(&ring->shared->damaged, 1, memory_order_relaxed); /* R1 */
	shmrt_ring_step();
	if (pthread_mutex_consistent(mutex) == 0)
		return SHMRT_OK;
	pthread_mutex_unlock(mutex);
	return SHMRT_CORRUPT;
}

/* With both held. */
static void lock_mend(struct shmrt_ring *ring) {
	struct shmrt_ring_shared *shared = ring->shared;
	if (atomic_load_explicit(&shared->damaged, memory_order_relaxed) == 0) /* R1 */
		return;
	shmrt_ring_repair(ring);
	/* The dead holder may have cleared a bell without waking, and the repair may have made room. */
	shmrt_bell_ring_always(&shared->bell_not_empty);
	shmrt_bell_ring_always(&shared->bell_not_full);
	shmrt_ring_step();
	atomic_store_explicit(&shared->damaged, 0, memory_order_relaxed); /* R1; last: until here the next one repairs again */
}

/* With `side` held, and so it is afterwards if the answer is OK; else nothing is. */
static int lock_repair(struct shmrt_ring *ring, enum shmrt_ring_side side, int tries) {
	struct shmrt_ring_shared *shared = ring->shared;
	int rc = SHMRT_OK;
	if (side == SHMRT_RING_TAKE) { /* the putters' comes first */
		shmrt_ring_unlock(ring, SHMRT_RING_TAKE);
		rc = lock_one(ring, &shared->put_mutex, tries);
		if (rc != SHMRT_OK)
			return rc;
	}
	if (side != SHMRT_RING_BOTH)
		rc = lock_one(ring, &shared->take_mutex, tries);
	if (rc != SHMRT_OK) {
		shmrt_ring_unlock(ring, SHMRT_RING_PUT);
		return rc;
	}
	lock_mend(ring);
	shmrt_ring_unlock(ring, SHMRT_RING_BOTH & ~side);
	return SHMRT_OK;
}

int shmrt_ring_lock_after(struct shmrt_ring *ring, enum shmrt_ring_side side, int tries) {
	struct shmrt_ring_shared *shared = ring->shared;
	if ((side & SHMRT_RING_PUT) != 0) {
		int rc = lock_one(ring, &shared->put_mutex, tries);
		if (SHMRT_UNLIKELY(rc != SHMRT_OK))
			return rc;
	}
	if ((side & SHMRT_RING_TAKE) != 0) {
		int rc = lock_one(ring, &shared->take_mutex, tries);
		if (SHMRT_UNLIKELY(rc != SHMRT_OK)) {
			shmrt_ring_unlock(ring, side & SHMRT_RING_PUT);
			return rc;
		}
	}
	if (SHMRT_LIKELY(atomic_load_explicit(&shared->damaged, memory_order_relaxed) == 0)) /* R1 */
		return SHMRT_OK;
	return lock_repair(ring, side, tries);
}

int shmrt_ring_lock(struct shmrt_ring *ring, enum shmrt_ring_side side) {
	return shmrt_ring_lock_after(ring, side, ring->may_spin ? ring->lock_tries : 0);
}

int shmrt_ring_lock_rest(struct shmrt_ring *ring) {
	int rc = lock_one(ring, &ring->shared->take_mutex, ring->may_spin ? ring->lock_tries : 0);
	if (rc == SHMRT_OK)
		lock_mend(ring);
	return rc;
}

void shmrt_ring_await_waker(struct shmrt_ring *ring, enum shmrt_ring_side side) {
	if (shmrt_ring_lock_after(ring, side, 0) == SHMRT_OK)
		shmrt_ring_unlock(ring, side);
}

void shmrt_ring_unlock(struct shmrt_ring *ring, enum shmrt_ring_side side) {
	int error = 0;
	if ((side & SHMRT_RING_TAKE) != 0)
		error = pthread_mutex_unlock(&ring->shared->take_mutex);
	SHMRT_ASSERT(error == 0);
	if ((side & SHMRT_RING_PUT) != 0)
		error = pthread_mutex_unlock(&ring->shared->put_mutex);
	SHMRT_ASSERT(error == 0);
}
