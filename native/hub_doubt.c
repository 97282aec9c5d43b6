/* hub_doubt.c -- a worker that wrote over what it shares: its lanes, its slot.
 *
 * A bug in a C library can do that. All that the hub reads there is checked before it is used; what no life of a worker
 * leaves makes the worker doubtful: it is killed, and from then on nothing of it is believed. What is true of it stands in
 * private memory of others: here in struct shmrt_hub_worker, with the root in its own table, which makes the slot
 * GONE whatever it says (shmrt_slot_gone_anyway).
 *
 * Its tasks: those that it cannot have begun, by their claim words, go back to the backlog as after any death. All others
 * may have run, whatever its phase says now, so each of them costs an attempt, or ends in WorkerCrashed.
 *
 * What cannot be told from the truth is believed: a result with other bytes, a start time, a counter.
 */
#include <signal.h>
#include <unistd.h>

#include "hub_chunk.h"

#define CLOSER_NS UINT64_C(100000000)
#define CLOSER_MOST_NS UINT64_C(2000000000)
#define ORDER_WAIT_NS UINT64_C(2000000000) /* who orders a kill signals at once; a stack dump comes before it */

void shmrt_hub__open_process(struct shmrt_hub_worker *worker) {
	/* -1 when it is gone already: then GONE follows and nothing needs to be signalled. */
	worker->pidfd = shmrt_pidfd_open(worker->pid);
	if (worker->pidfd >= 0 && worker->owner && shmrt_owner_of(worker->pid) != worker->owner) {
		close(worker->pidfd); /* the pid is somebody else's by now */
		worker->pidfd = -1;
	}
}

bool shmrt_hub__signal(struct shmrt_hub_worker *worker, int signal_number) {
	if (worker->pidfd < 0)
		shmrt_hub__open_process(worker); /* this process may have been out of descriptors before */
	return worker->pidfd >= 0 && shmrt_pidfd_signal(worker->pidfd, signal_number) == SHMRT_OK;
}

void shmrt_hub__doubt(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	if (worker->doubtful)
		return;
	worker->doubtful = true;
	pool->doubted++;
	if (worker->ready) {
		worker->ready = false;
		pool->ready_count--;
	}
	if (worker->kill_stage != 2 && shmrt_hub__signal(worker, SIGKILL))
		worker->kill_stage = 2;
}

bool shmrt_hub__contradicts(const struct shmrt_hub_worker *worker, uint32_t state) {
	return atomic_load_explicit(&worker->slot->epoch, memory_order_relaxed) != worker->epoch || /* F2: after state */
	       !(state == SHMRT_SLOT_READY || state == SHMRT_SLOT_GONE || (state == SHMRT_SLOT_STARTING && !worker->ready));
}

bool shmrt_hub__may_bury(const struct shmrt_hub *hub, const struct shmrt_hub_worker *worker, uint32_t state) {
	const struct shmrt_control *control = hub->control;
	if (worker->pidfd >= 0 && !shmrt_pidfd_is_gone(worker->pidfd))
		return false;
	if (state == SHMRT_SLOT_GONE)
		return true;
	/* Its root would say GONE. If that died, the program killed all that it had started, and the slot may not have told. */
	return worker->pidfd >= 0 && (shmrt_slot_is_abandoned(&control->slots[SHMRT_SLOT_ROOT]) ||
				      atomic_load_explicit(&control->root_generation, memory_order_acquire) != worker->generation); /* F7 */
}

/* By its claim word; what is neither offered nor taken back was begun, for all that is known. */
static bool may_have_begun(const struct shmrt_task *task) {
	const _Atomic uint32_t *claim = shmrt_hub__claim_of(task);
	return claim == NULL || atomic_load_explicit(claim, memory_order_acquire) != shmrt_hub__offered(task); /* H1 */
}

static void end_or_again(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, struct shmrt_task *task) {
	task->begun++;
	if (task->flags & SHMRT_TASK_KILL) {
		shmrt_hub__finish(task, SHMRT_TASK_CANCELLED);
		return;
	}
	if (pool->broken) {
		shmrt_hub__finish(task, SHMRT_TASK_BROKEN);
		return;
	}
	struct shmrt_crash crash = {
		.pid = worker->pid, .wait_status = SIGKILL, .worker = worker->index, .kill_reason = SHMRT_KILL_DOUBT};
	if (task->items) { /* which of them it has run nobody knows */
		shmrt_hub__spoil(task, &crash);
		return;
	}
	task->deaths++;
	if (task->begun < task->max_attempts) {
		if (task->begun + 1 == task->max_attempts)
			task->flags |= SHMRT_TASK_ALONE;
		pool->retried++;
		shmrt_hub__take_back_blocks(pool->hub, task, worker->owner);
		shmrt_hub__enqueue(task, true);
		return;
	}
	task->crash = crash;
	shmrt_hub__finish(task, task->max_attempts > 1 ? SHMRT_TASK_POISON : SHMRT_TASK_CRASHED);
}

void shmrt_hub__leave_doubtful(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	worker->abandoned = true;
	/* From the youngest to the oldest, each to the front: their order stays. */
	while (worker->lane.last) {
		struct shmrt_task *task = worker->lane.last;
		bool begun = may_have_begun(task);
		shmrt_list_remove(&worker->lane, task);
		if (begun)
			end_or_again(pool, worker, task);
		else if (task->flags & SHMRT_TASK_KILL)
			shmrt_hub__finish(task, SHMRT_TASK_CANCELLED);
		else if (pool->broken)
			shmrt_hub__finish(task, SHMRT_TASK_BROKEN);
		else {
			pool->requeued++;
			shmrt_hub__enqueue(task, true);
		}
	}
	pool->full = false;
}

/* Its oldest task has been that for a while. It runs, most likely; but if its lanes do not say to it what they say here, it
 * sleeps, and nothing else would end that. */
static void compare(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	const struct shmrt_lane_shared *tasks = worker->tasks.shared;
	uint64_t head = atomic_load_explicit(&tasks->head, memory_order_acquire); /* L2: before the look at results */
	uint64_t tail = atomic_load_explicit(&tasks->tail, memory_order_relaxed); /* ours alone */
	bool quiet = shmrt_lane_is_empty(&worker->results);
	/* It publishes before it steps: what it stepped over and gave no result for is lost. */
	if (tail != worker->tasks.committed || (head == worker->tasks.committed && quiet)) {
		shmrt_hub__doubt(pool, worker);
		return;
	}
	if (quiet)
		shmrt_lane_release(&worker->results); /* it may wait for room that there is */
	shmrt_bell_ring_always(&worker->slot->bell); /* its word may have been overwritten while it slept */
}

static void look_at(struct shmrt_hub *hub, uint64_t at_ns) {
	if (at_ns < atomic_load_explicit(&hub->closer_ns, memory_order_relaxed)) /* under the mutex */
		atomic_store_explicit(&hub->closer_ns, at_ns, memory_order_relaxed); /* under the mutex */
}

void shmrt_hub__look_closer(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, uint64_t now_ns) {
	uint64_t phase = shmrt_slot_phase_get(worker->slot) & 0xFF;
	uint32_t reason = atomic_load_explicit(&worker->slot->kill_reason, memory_order_relaxed); /* a hint: H2 decides */
	if (phase > SHMRT_PHASE_STOPPING || reason > SHMRT_KILL_RESTART) {
		shmrt_hub__doubt(pool, worker);
		return;
	}
	if (worker->kill_stage != 0)
		return;
	if (reason == SHMRT_KILL_NONE)
		worker->ordered_ns = 0;
	else {
		if (worker->ordered_ns == 0)
			worker->ordered_ns = now_ns;
		else if (now_ns - worker->ordered_ns > ORDER_WAIT_NS && shmrt_hub__signal(worker, SIGKILL))
			worker->kill_stage = 2; /* nobody has carried that out: it was no order */
		look_at(pool->hub, now_ns + ORDER_WAIT_NS / 8);
		return;
	}
	const struct shmrt_task *first = worker->lane.first;
	if (first == NULL)
		return;
	if (worker->first_id != first->id) {
		worker->first_id = first->id;
		worker->first_ns = now_ns;
		worker->look_ns = now_ns + CLOSER_NS;
	} else if (now_ns >= worker->look_ns) {
		uint64_t age_ns = now_ns - worker->first_ns;
		worker->look_ns = now_ns + (age_ns < CLOSER_MOST_NS ? age_ns : CLOSER_MOST_NS);
		compare(pool, worker);
	}
	look_at(pool->hub, worker->look_ns);
}
