/* orders.c -- see orders.h. */
#include "orders.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void shmrt_orders_init(struct shmrt_orders *orders, struct shmrt_control *control) {
	memset(orders, 0, sizeof(*orders));
	int failed = pthread_mutex_init(&orders->mutex, NULL);
	SHMRT_ASSERT(failed == 0); /* a plain mutex needs nothing */
	orders->control = control;
}

int shmrt_orders_place(struct shmrt_orders *orders, const struct shmrt_orders_pool *pools, uint32_t pool_count,
		       const struct shmrt_order *rows, uint32_t row_count) {
	uint32_t slots = orders->control->slot_count;
	bool valid = pool_count <= SHMRT_SLOTS_MAX && row_count <= SHMRT_SLOTS_MAX;
	for (uint32_t i = 0; valid && i < pool_count; i++)
		valid = pools[i].first <= slots && pools[i].count <= slots - pools[i].first;
	for (uint32_t i = 0; valid && i < row_count; i++)
		valid = rows[i].slot < slots && rows[i].at < pool_count;
	if (!valid)
		return SHMRT_INVALID;
	pthread_mutex_lock(&orders->mutex);
	memcpy(orders->pools, pools, pool_count * sizeof(*pools));
	memcpy(orders->orders, rows, row_count * sizeof(*rows));
	orders->pool_count = pool_count;
	orders->order_count = row_count;
	orders->done_count = 0;
	pthread_mutex_unlock(&orders->mutex);
	return SHMRT_OK;
}

/* Whether this life of the slot ended, and as one that is replaced at once. */
static bool fell(const struct shmrt_slot *slot, uint32_t epoch) {
	if (atomic_load_explicit(&slot->state, memory_order_acquire) != SHMRT_SLOT_READY || /* F2 */
	    atomic_load_explicit(&slot->epoch, memory_order_relaxed) != epoch ||             /* F2: after state */
	    !shmrt_slot_is_abandoned(slot))
		return false;
	/* Its main thread has written its last, and F4 makes that visible. What others write there may come a moment later: then
	 * the death came first, and whoever asks a pool to be smaller meets the successor. */
	if (atomic_load_explicit(&slot->stop_requested, memory_order_relaxed) != 0) /* a hint */
		return false;
	uint32_t reason = atomic_load_explicit(&slot->kill_reason, memory_order_acquire); /* F6 */
	if (reason == SHMRT_KILL_TIMEOUT || reason == SHMRT_KILL_CANCEL || reason == SHMRT_KILL_CHAOS)
		return true; /* its task was meant, or nobody in particular */
	if (reason != SHMRT_KILL_NONE)
		return false; /* it was meant: maybe nobody is to follow */
	uint64_t phase = shmrt_slot_phase_get(slot) & 0xFF;
	bool in_task = phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_ENCODE;
	return !in_task || atomic_load_explicit(&slot->done, memory_order_relaxed) > 0; /* F4: after the mark */
}

static void send(struct shmrt_orders *orders, const struct shmrt_order *order) {
	struct shmrt_orders_pool *pool = &orders->pools[order->at];
	uint32_t at = pool->first, end = pool->first + pool->count;
	while (at < end && shmrt_slot_claim(&orders->control->slots[at], pool->pool, order->worker, shmrt_now_ns()) != SHMRT_OK)
		at++;
	if (at == end)
		return; /* none is free: the root starts one when one is */
	pool->sent = true;
	struct shmrt_order_message message = {
		.slot = at,
		.epoch = atomic_load_explicit(&orders->control->slots[at].epoch, memory_order_relaxed), /* ours: just claimed */
		.pair = at - pool->first,
		.worker = order->worker,
		.restarts = order->restarts,
	};
	ssize_t written; /* a pipe that nobody has written to takes it whole, at once */
	do
		written = write(pool->pipe, &message, sizeof(message));
	while (written < 0 && errno == EINTR);
	orders->done[orders->done_count++] = (struct shmrt_order_done){
		.pool = pool->pool,
		.dead = order->slot,
		.slot = at,
		.epoch = message.epoch,
		.worker = order->worker,
		.told = written == (ssize_t)sizeof(message),
	};
}

bool shmrt_orders_carry_out(struct shmrt_orders *orders) {
	pthread_mutex_lock(&orders->mutex);
	uint32_t before = orders->done_count;
	for (uint32_t i = 0; i < orders->order_count; i++) {
		const struct shmrt_order *order = &orders->orders[i];
		if (!orders->pools[order->at].sent && fell(&orders->control->slots[order->slot], order->epoch))
			send(orders, order);
	}
	bool any = orders->done_count > before;
	pthread_mutex_unlock(&orders->mutex);
	return any;
}

uint32_t shmrt_orders_take_back(struct shmrt_orders *orders, struct shmrt_order_done *done) {
	pthread_mutex_lock(&orders->mutex);
	uint32_t count = orders->done_count;
	memcpy(done, orders->done, count * sizeof(*done));
	orders->order_count = orders->pool_count = orders->done_count = 0;
	pthread_mutex_unlock(&orders->mutex);
	return count;
}
