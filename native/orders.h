/* orders.h -- standing orders: what the root's death watch does while the root itself sleeps.
 *
 * A standby (ADR 12) reads from its pipe which slot it is to take. The root would have to wake for that, and to find its
 * way through half a millisecond of an interpreter that has slept, on the CPUs that tear the dead process down. So before it
 * sleeps it places orders, one for each worker that it would replace at once: "should this one die, whoever reads from
 * this pipe has a slot of its pool, its number and its restarts". The death watch, a thread without an interpreter, carries them
 * out. When the root wakes it takes its orders back, hears what was done, and does all that is left to do.
 *
 * Between place and take_back the root does nothing else, so whoever claims slots is alone at it (slots.h). Each standby
 * is sent once. An order is for one life (epoch) of its slot, and for a worker that had done a task or was in none, or was
 * killed for the sake of its task: whatever else a death may call for (a wait, a count, an end) is the root's to decide.
 *
 * Everything here is private memory of the root, under one mutex; a fork of it never looks here. If the root dies
 *     before the claim                  nothing was done
 *     between the claim and the write   the slot is STARTING without a pid, as between any claim and its fork
 *     after the write                   the standby has its slot, and ends with the root like all that it has started
 * and whoever cleans up after a root does so in all three.
 */
#ifndef SHMRT_ORDERS_H
#define SHMRT_ORDERS_H

#include <pthread.h>

#include "slots.h"

/* One pool with a standby. */
struct shmrt_orders_pool {
	uint32_t pool, first, count; /* its number, its slots */
	int pipe;                    /* of the standby */
	bool sent;
};
/* One worker that is to be replaced. */
struct shmrt_order {
	uint32_t at;       /* index of its pool here */
	uint32_t slot;
	uint32_t epoch;
	uint32_t worker;   /* its number in the pool */
	uint32_t restarts; /* what its successor is told */
};
struct shmrt_order_done {
	uint32_t pool, dead; /* whose order, which slot died */
	uint32_t slot, epoch, worker;
	bool told; /* false: nobody reads from that pipe any more; the slot is claimed all the same */
};
/* What a standby reads, all at once. */
struct shmrt_order_message {
	uint32_t slot, epoch, pair, worker, restarts;
};

struct shmrt_orders {
	pthread_mutex_t mutex;
	struct shmrt_control *control;
	uint32_t pool_count, order_count, done_count;
	struct shmrt_orders_pool pools[SHMRT_SLOTS_MAX];
	struct shmrt_order orders[SHMRT_SLOTS_MAX];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
};

void shmrt_orders_init(struct shmrt_orders *, struct shmrt_control *);
/* By the root, before it sleeps; what was placed before must have been taken back. INVALID, and nothing placed, where a
 * slot or a pool's range is outside of the table. */
SHMRT_MUST_USE int shmrt_orders_place(struct shmrt_orders *, const struct shmrt_orders_pool *pools, uint32_t pool_count,
				      const struct shmrt_order *orders, uint32_t order_count);
/* By the death watch, after each of its sleeps. Whether there was anything to do. */
bool shmrt_orders_carry_out(struct shmrt_orders *);
/* By the root, when it wakes: from now on nothing is carried out. How many were, in `done`. */
uint32_t shmrt_orders_take_back(struct shmrt_orders *, struct shmrt_order_done *done);

#endif
