/* hub_death.c -- what the hub does about one worker: adopt it, time it, take leave of it.
 *
 * A worker's life as the hub sees it, by its slot: a new epoch (adopt) -> READY (dispatch) -> death mutex
 * abandoned (its main thread writes no more: deliver, decide, put back) -> GONE (nothing of it writes any more:
 * reason, blocks, lanes, slot). GONE may come without the notice before it; then both steps run.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hub_chunk.h"

#define STACK_WAIT_NS UINT64_C(30000000)  /* longest wait for a worker's stack */
#define STACK_STEP_NS UINT64_C(4000000)
#define STACK_BYTES_MAX (SHMRT_STACK_BYTES - 1)

static void adopt(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, uint32_t epoch) {
	struct shmrt_slot *slot = worker->slot;
	uint32_t offset = (uint32_t)(worker - pool->workers);
	uint8_t *pair = (uint8_t *)pool->lanes + sizeof(struct shmrt_lanes) + offset * pool->pair_bytes;
	worker->epoch = epoch;
	worker->index = atomic_load_explicit(&slot->worker, memory_order_relaxed); /* F2 */
	worker->pid = atomic_load_explicit(&slot->pid, memory_order_acquire); /* F2 */
	worker->owner = atomic_load_explicit(&slot->owner, memory_order_relaxed); /* F2: with pid */
	if (worker->owner == pool->hub->owner)
		worker->owner = 0; /* overwritten: its blocks are not ours */
	worker->generation = atomic_load_explicit(&pool->hub->control->root_generation, memory_order_acquire); /* F7 */
	shmrt_hub__open_process(worker);
	memset(worker->known_functions, 0, pool->function_capacity / 8);
	struct shmrt_lane_shared *tasks = (struct shmrt_lane_shared *)(void *)pair;
	struct shmrt_lane_shared *results =
		(struct shmrt_lane_shared *)(void *)(pair + shmrt_lane_bytes(pool->task_capacity));
	/* Formatted by us; the worker has stored nothing but a head there and a tail here. */
	while (shmrt_lane_attach_producer(&worker->tasks, tasks, pool->task_capacity) != SHMRT_OK ||
	       shmrt_lane_attach_consumer(&worker->results, results, pool->result_capacity) != SHMRT_OK) {
		shmrt_hub__doubt(pool, worker);
		shmrt_lane_format(tasks, 0);
		shmrt_lane_format(results, 0);
	}
}

void shmrt_hub__reset_worker(struct shmrt_hub_worker *worker) {
	if (worker->pidfd >= 0)
		close(worker->pidfd);
	struct shmrt_hub_worker fresh = {
		.slot = worker->slot, .known_functions = worker->known_functions, .stacks_fd = worker->stacks_fd,
		.stack_offset = worker->stack_offset, .pidfd = -1};
	*worker = fresh;
}

/* Blocks that the dead worker kept although its task goes on elsewhere become the sender's again. */
void shmrt_hub__take_back_blocks(struct shmrt_hub *hub, struct shmrt_task *task, uint32_t dead) {
	for (uint16_t i = 0; i < task->arguments.block_count; i++) {
		struct shmrt_block_reference *reference = &task->arguments.blocks[i];
		int result = shmrt_arena_move(&hub->arena, reference->block, reference->generation, SHMRT_BLOCK_KEPT, dead,
					      SHMRT_BLOCK_SENT, hub->owner);
		(void)result; /* STALE: it never took it */
	}
}

static bool ordered_for_another(const struct shmrt_slot *slot, const struct shmrt_task *task) {
	uint32_t reason = atomic_load_explicit(&slot->kill_reason, memory_order_acquire); /* H2 */
	if (reason == SHMRT_KILL_NONE)
		return false;
	if (reason != SHMRT_KILL_TIMEOUT && reason != SHMRT_KILL_CANCEL)
		return true;
	return atomic_load_explicit(&slot->kill_task_id, memory_order_relaxed) != task->id; /* H2 */
}

bool shmrt_hub__is_condemned(const struct shmrt_hub_worker *worker, const struct shmrt_task *task) {
	uint32_t reason = atomic_load_explicit(&worker->slot->kill_reason, memory_order_acquire); /* H2 */
	return (reason == SHMRT_KILL_TIMEOUT || reason == SHMRT_KILL_CANCEL) &&
	       atomic_load_explicit(&worker->slot->kill_task_id, memory_order_relaxed) == task->id; /* H2 */
}

/* True if the task goes back to the backlog now; else its end is told once the exit status is known. */
static bool try_again(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, struct shmrt_task *task) {
	uint32_t reason = atomic_load_explicit(&worker->slot->kill_reason, memory_order_acquire); /* H2 */
	if (task->flags & SHMRT_TASK_KILL || task->max_attempts <= 1 || pool->broken ||
	    reason == SHMRT_KILL_STOP)
		return false;
	if (ordered_for_another(worker->slot, task)) {
		pool->requeued++; /* shmrt's own doing: costs the message no attempt */
	} else {
		bool timed_out = reason == SHMRT_KILL_TIMEOUT;
		if (reason == SHMRT_KILL_CANCEL || (timed_out && !(task->flags & SHMRT_TASK_RETRY_TIMEOUT)))
			return false;
		if (task->begun + 1 >= task->max_attempts)
			return false;
		task->begun++;
		task->deaths += !timed_out;
		if (task->begun + 1 == task->max_attempts)
			task->flags |= SHMRT_TASK_ALONE;
		pool->retried++;
	}
	shmrt_hub__take_back_blocks(pool->hub, task, worker->owner);
	shmrt_hub__enqueue(task, true);
	return true;
}

static void take_leave(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	struct shmrt_slot *slot = worker->slot;
	uint32_t offset = (uint32_t)(worker - pool->workers);
	worker->abandoned = true;
	/* The kernel marks the root's own death before it signals the root's children, so a worker that died of that is
	 * known as such here, before anybody could order it. */
	if (shmrt_slot_is_abandoned(&pool->hub->control->slots[SHMRT_SLOT_ROOT]))
		shmrt_slot_order_kill(slot, SHMRT_KILL_ROOT_LOST, 0);
	if (worker->ready) {
		worker->ready = false;
		pool->ready_count--;
	}
	/* The main thread is dead, the process may not be (exec, a thread that lives on): nothing may go on. */
	if (worker->kill_stage != 2 && shmrt_hub__signal(worker, SIGKILL))
		worker->kill_stage = 2;
	while (shmrt_hub__drain(pool, offset, UINT32_MAX))
		;
	if (worker->doubtful) {
		shmrt_hub__leave_doubtful(pool, worker);
		return;
	}
	uint64_t phase = shmrt_slot_phase_get(slot) & 0xFF;
	uint64_t running = atomic_load_explicit(&slot->task_id, memory_order_relaxed); /* F1: with phase */
	bool begun = phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_BLOCKED;
	uint64_t start_ns = atomic_load_explicit(&slot->task_start_ns, memory_order_relaxed); /* F1: with phase */
	/* Once an order is confirmed for the oldest, no task behind it is begun (H2), whatever the phase says. */
	struct shmrt_task *oldest = worker->lane.first;
	bool condemned = oldest && shmrt_hub__is_condemned(worker, oldest);
	/* From the youngest to the oldest, each to the front: their order stays. */
	while (worker->lane.last) {
		struct shmrt_task *task = worker->lane.last;
		shmrt_list_remove(&worker->lane, task);
		if (condemned ? task == oldest : begun && task->id == running) {
			if (task->items && !shmrt_hub__salvage(worker, task)) { /* it died between two items */
				shmrt_hub__go_on(task);
				continue;
			}
			if (worker->crash_elapsed_ns == 0) /* else it is the time at which the order was given */
				worker->crash_elapsed_ns = shmrt_now_ns() - start_ns;
			if (!try_again(pool, worker, task)) {
				task->state = SHMRT_TASK_VICTIM;
				worker->victim = task;
			}
		} else if (task->flags & SHMRT_TASK_KILL)
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

static bool has_stack(const struct shmrt_hub_worker *worker) {
	char first = 0;
	return worker->stacks_fd >= 0 && pread(worker->stacks_fd, &first, 1, (off_t)worker->stack_offset) == 1 && first != 0;
}

/* What faulthandler wrote, once; the room is empty afterwards. */
static char *take_stack(const struct shmrt_hub_worker *worker) {
	if (!has_stack(worker))
		return NULL;
	char *text = malloc(STACK_BYTES_MAX + 1);
	if (text == NULL)
		return NULL;
	ssize_t got = pread(worker->stacks_fd, text, STACK_BYTES_MAX, (off_t)worker->stack_offset);
	text[got > 0 ? got : 0] = 0;
	static const char nothing[1];
	if (pwrite(worker->stacks_fd, nothing, 1, (off_t)worker->stack_offset) != 1)
		text[0] = 0; /* cannot happen on a memfd; better no stack than one shown twice */
	return text;
}

static void bury(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	struct shmrt_hub *hub = pool->hub;
	struct shmrt_slot *slot = worker->slot;
	if (!worker->abandoned)
		take_leave(pool, worker);
	uint32_t reason = atomic_load_explicit(&slot->kill_reason, memory_order_acquire); /* H2 */
	struct shmrt_crash crash = {
		.pid = worker->pid,
		.wait_status = atomic_load_explicit(&slot->wait_status, memory_order_relaxed), /* F2: before GONE */
		.oom = atomic_load_explicit(&slot->oom, memory_order_relaxed),                 /* F2: before GONE */
		.worker = worker->index,
		.kill_reason = reason,
		.elapsed_ns = worker->crash_elapsed_ns,
	};
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	if (worker->doubtful) {
		crash.wait_status = state == SHMRT_SLOT_GONE ? crash.wait_status : SIGKILL;
		crash.kill_reason = SHMRT_KILL_DOUBT;
	}
	crash.stack = take_stack(worker);
	bool clean = WIFEXITED(crash.wait_status) && WEXITSTATUS(crash.wait_status) == 0;
	pool->restarts += !(clean && worker->stop_sent) && reason != SHMRT_KILL_STOP;
	pool->killed += reason == SHMRT_KILL_CHAOS;
	pool->buried_busy_ns += atomic_load_explicit(&slot->busy_ns, memory_order_relaxed);       /* statistics */
	pool->buried_blocked_ns += atomic_load_explicit(&slot->blocked_ns, memory_order_relaxed); /* statistics */
	struct shmrt_task *task = worker->victim;
	worker->victim = NULL;
	struct shmrt_note *note = shmrt_hub__note(hub, SHMRT_NOTE_GONE, pool, worker);
	if (note) {
		note->crash = crash;
		note->crash.stack = crash.stack ? strdup(crash.stack) : NULL;
	}
	if (task) {
		bool meant = !ordered_for_another(slot, task);
		task->crash = crash;
		crash.stack = NULL;
		task->begun++;
		if (task->flags & SHMRT_TASK_KILL || (reason == SHMRT_KILL_CANCEL && meant))
			shmrt_hub__finish(task, SHMRT_TASK_CANCELLED);
		else if (pool->broken)
			shmrt_hub__finish(task, SHMRT_TASK_BROKEN);
		else if (reason == SHMRT_KILL_STOP) /* its pool's time to end was over */
			shmrt_hub__finish(task, SHMRT_TASK_CANCELLED);
		else if (reason == SHMRT_KILL_TIMEOUT && meant)
			shmrt_hub__finish(task, SHMRT_TASK_TIMED_OUT);
		else if (task->items) {
			shmrt_hub__take_crash(task, &task->crash);
			free(task->crash.stack);
			task->crash.stack = NULL;
			shmrt_hub__go_on(task);
		} else {
			task->deaths += meant;
			shmrt_hub__finish(task, task->max_attempts > 1 && task->begun >= task->max_attempts && meant
						? SHMRT_TASK_POISON
						: SHMRT_TASK_CRASHED);
		}
	}
	free(crash.stack);
	if (worker->owner)
		shmrt_arena_reclaim(&hub->arena, worker->owner, NULL, NULL);
	shmrt_lane_format(worker->tasks.shared, 0);
	shmrt_lane_format(worker->results.shared, 0);
	shmrt_hub__reset_worker(worker);
	pool->full = false; /* who waits for a fresh worker looks again */
	if (shmrt_slot_free(slot) != SHMRT_OK && state > SHMRT_SLOT_GONE) /* else it is EMPTY already */
		atomic_store_explicit(&slot->state, SHMRT_SLOT_EMPTY, memory_order_release); /* F2 */
	shmrt_bell_ring_always(&hub->control->slots[SHMRT_SLOT_ROOT].bell);
}

/* Orders the end of the worker because of `task`; withdrawn if that task just ended. */
static bool order_kill(struct shmrt_hub_worker *worker, enum shmrt_kill_reason reason, uint64_t task_id) {
	struct shmrt_slot *slot = worker->slot;
	if (!shmrt_slot_order_kill(slot, reason, task_id))
		return false; /* somebody else is ending it already */
	atomic_thread_fence(memory_order_seq_cst); /* H2 */
	uint64_t phase = shmrt_slot_phase_get(slot) & 0xFF;
	if (phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_BLOCKED &&
	    atomic_load_explicit(&slot->task_id, memory_order_relaxed) == task_id) /* F1, H2 */
		return true;
	uint32_t ordered = reason;
	atomic_compare_exchange_strong_explicit(&slot->kill_reason, &ordered, SHMRT_KILL_NONE, memory_order_acq_rel,
						memory_order_relaxed); /* H2 */
	shmrt_bell_ring_always(&slot->bell); /* it may have stopped before its next task */
	return false;
}

static void sooner(uint64_t *next_ns, uint64_t at_ns) {
	if (at_ns < *next_ns)
		*next_ns = at_ns;
}

static void watch_time(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, uint64_t now_ns, uint64_t *next_ns) {
	struct shmrt_task *task = worker->lane.first;
	struct shmrt_slot *slot = worker->slot;
	if (worker->kill_stage == 1) {
		bool told = has_stack(worker);
		if (now_ns - worker->kill_ns >= STACK_WAIT_NS || (told && now_ns - worker->kill_ns >= 2 * STACK_STEP_NS)) {
			(void)shmrt_hub__signal(worker, SIGKILL); /* else it is gone already */
			worker->kill_stage = 2;
		} else
			sooner(next_ns, now_ns + STACK_STEP_NS);
		return;
	}
	if (task == NULL || worker->kill_stage == 2)
		return;
	uint64_t phase = shmrt_slot_phase_get(slot) & 0xFF;
	bool begun = phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_ENCODE &&
		     atomic_load_explicit(&slot->task_id, memory_order_relaxed) == task->id; /* F1 */
	if (begun && task->flags & SHMRT_TASK_KILL) {
		if (order_kill(worker, SHMRT_KILL_CANCEL, task->id) && shmrt_hub__signal(worker, SIGKILL))
			worker->kill_stage = 2;
		return;
	}
	if (task->flags & SHMRT_TASK_KILL)
		sooner(next_ns, now_ns + 1000000); /* claimed, about to begin */
	if (pool->timed == 0)
		return;
	for (struct shmrt_task *later = begun ? task->next : task; later; later = later->next) {
		/* Not begun: it cannot run out before now + its time; a deadline ends it at once. */
		if (later->timeout_ns != SHMRT_FOREVER)
			sooner(next_ns, now_ns + (uint64_t)later->timeout_ns);
		if (later->deadline_ns == 0)
			continue;
		if (later->deadline_ns > now_ns)
			sooner(next_ns, later->deadline_ns);
		else if (shmrt_hub__revoke(later)) {
			shmrt_hub__finish(later, SHMRT_TASK_EXPIRED);
			pool->full = false; /* its place is free, and no result will say so */
			sooner(next_ns, now_ns);
			return; /* the list changed; the next round goes on */
		}
	}
	if (!begun || task->timeout_ns == SHMRT_FOREVER)
		return;
	uint64_t start_ns = atomic_load_explicit(&slot->task_start_ns, memory_order_relaxed); /* F1 */
	uint64_t end_ns = start_ns + (uint64_t)task->timeout_ns;
	if (now_ns < end_ns) {
		sooner(next_ns, end_ns);
		return;
	}
	if (!order_kill(worker, SHMRT_KILL_TIMEOUT, task->id))
		return;
	worker->crash_elapsed_ns = now_ns - start_ns;
	worker->kill_ns = now_ns;
	/* faulthandler in the worker answers SIGUSR1 with its Python stack, even inside a C call that holds the GIL. */
	worker->kill_stage = shmrt_hub__signal(worker, SIGUSR1) ? 1 : 2;
	sooner(next_ns, now_ns + STACK_STEP_NS);
}

bool shmrt_hub__look_at_worker(struct shmrt_hub_pool *pool, uint32_t offset, uint64_t now_ns, uint64_t *next_ns) {
	struct shmrt_hub_worker *worker = &pool->workers[offset];
	struct shmrt_slot *slot = worker->slot;
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	bool moved = false;
	uint32_t epoch = atomic_load_explicit(&slot->epoch, memory_order_relaxed); /* F2: after state */
	if (worker->epoch == 0) {
		if (state == SHMRT_SLOT_EMPTY || epoch == 0)
			return false;
		if (state != SHMRT_SLOT_GONE && atomic_load_explicit(&slot->pid, memory_order_acquire) == 0) /* F2 */
			return false; /* claimed, not forked yet; GONE without a pid: the fork failed */
		adopt(pool, worker, epoch);
		moved = true;
	}
	if (shmrt_hub__contradicts(worker, state) || (state == SHMRT_SLOT_GONE && worker->pidfd >= 0 && !shmrt_pidfd_is_gone(worker->pidfd)))
		shmrt_hub__doubt(pool, worker);
	if (worker->doubtful) {
		if (!worker->abandoned) {
			take_leave(pool, worker);
			moved = true;
		}
		if (!shmrt_hub__may_bury(pool->hub, worker, state))
			return moved;
		bury(pool, worker);
		return true;
	}
	if (state == SHMRT_SLOT_READY && !worker->ready && !worker->abandoned) {
		worker->ready = moved = true;
		pool->ready_count++;
		pool->full = false;
	}
	moved |= shmrt_hub__drain(pool, offset, 256);
	if (state == SHMRT_SLOT_GONE) {
		bury(pool, worker);
		return true;
	}
	if (!worker->abandoned && shmrt_slot_is_abandoned(slot)) {
		take_leave(pool, worker);
		return true;
	}
	if (worker->abandoned)
		return moved;
	if (worker->lane.count || pool->backlog_count)
		shmrt_hub__look_closer(pool, worker, now_ns);
	watch_time(pool, worker, now_ns, next_ns);
	shmrt_hub__watch_age(pool, worker, now_ns);
	return moved;
}
