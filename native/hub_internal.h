/* hub_internal.h -- what the files hub_*.c share, and who completes futures; all of it under the hub's mutex unless it says so. */
#ifndef SHMRT_HUB_INTERNAL_H
#define SHMRT_HUB_INTERNAL_H

#include "hub.h"

/* ---- between hub_*.c, under the mutex ---- */
/* Gives the mutex back. If `finished` has changed since it was `before`, those who are parked for outcomes are woken. */
void shmrt_hub__unlock_and_tell(struct shmrt_hub *, uint64_t before);
static inline uint64_t shmrt_hub__finished(struct shmrt_hub *hub) {
	return atomic_load_explicit(&hub->finished, memory_order_relaxed); /* under the mutex */
}
void shmrt_hub__finish(struct shmrt_task *, enum shmrt_task_outcome);
void shmrt_hub__enqueue(struct shmrt_task *, bool front);
void shmrt_hub__dispatch(struct shmrt_hub_pool *);
void shmrt_hub__measure(struct shmrt_hub_pool *);
bool shmrt_hub__drain(struct shmrt_hub_pool *, uint32_t offset, uint32_t most);
bool shmrt_hub__look_at_worker(struct shmrt_hub_pool *, uint32_t offset, uint64_t now_ns, uint64_t *next_ns);
void shmrt_hub__watch_age(struct shmrt_hub_pool *, struct shmrt_hub_worker *, uint64_t now_ns);
bool shmrt_hub__revoke(struct shmrt_task *);
/* Of a task in a lane. NULL: its worker is through with it and has stepped on, so another's record may lie there. */
_Atomic uint32_t *shmrt_hub__claim_of(const struct shmrt_task *);
/* Its worker's end was ordered because of this task, which was running then: its outcome is decided. */
bool shmrt_hub__is_condemned(const struct shmrt_hub_worker *, const struct shmrt_task *);
/* By pidfd. False: it could not be sent, since the process is gone or this one is out of descriptors. */
bool shmrt_hub__signal(struct shmrt_hub_worker *, int signal_number);
void shmrt_hub__open_process(struct shmrt_hub_worker *);
void shmrt_hub__doubt(struct shmrt_hub_pool *, struct shmrt_hub_worker *);
/* Of an adopted worker: whether its slot says what cannot be. */
bool shmrt_hub__contradicts(const struct shmrt_hub_worker *, uint32_t state);
/* Of a doubtful one: whether nothing of it writes any more and nobody else will say so better. */
bool shmrt_hub__may_bury(const struct shmrt_hub *, const struct shmrt_hub_worker *, uint32_t state);
void shmrt_hub__leave_doubtful(struct shmrt_hub_pool *, struct shmrt_hub_worker *);
void shmrt_hub__take_back_blocks(struct shmrt_hub *, struct shmrt_task *, uint32_t dead);
/* At a worker that has tasks, or might get some: whether it still can serve them. */
void shmrt_hub__look_closer(struct shmrt_hub_pool *, struct shmrt_hub_worker *, uint64_t now_ns);
void shmrt_hub__rebalance(struct shmrt_hub_pool *, uint64_t now_ns, uint64_t *next_ns);
struct shmrt_task *shmrt_hub__find(struct shmrt_hub *, uint64_t id);
SHMRT_MUST_USE int shmrt_hub__id_take(struct shmrt_hub *, struct shmrt_task *); /* SYSTEM: no memory */
void shmrt_hub__id_give_back(struct shmrt_hub *, const struct shmrt_task *);
struct shmrt_note *shmrt_hub__note(struct shmrt_hub *, enum shmrt_note_kind, struct shmrt_hub_pool *, struct shmrt_hub_worker *);
void shmrt_hub__wake_dispatcher(struct shmrt_hub *);
void shmrt_hub__reset_worker(struct shmrt_hub_worker *);
void shmrt_hub__blocks_free(struct shmrt_hub *, struct shmrt_payload *, enum shmrt_block_state, uint32_t owner);
static inline void shmrt_list_append(struct shmrt_task_list *list, struct shmrt_task *task) {
	task->next = NULL;
	task->previous = list->last;
	if (list->last)
		list->last->next = task;
	else
		list->first = task;
	list->last = task;
	list->count++;
}
static inline void shmrt_list_prepend(struct shmrt_task_list *list, struct shmrt_task *task) {
	task->previous = NULL;
	task->next = list->first;
	if (list->first)
		list->first->previous = task;
	else
		list->last = task;
	list->first = task;
	list->count++;
}
static inline void shmrt_list_remove(struct shmrt_task_list *list, struct shmrt_task *task) {
	if (task->previous)
		task->previous->next = task->next;
	else
		list->first = task->next;
	if (task->next)
		task->next->previous = task->previous;
	else
		list->last = task->previous;
	task->next = task->previous = NULL;
	list->count--;
}

/* Tasks that submit keeps back until there are a dozen, behind lanes that have enough: no ring is asked for. */
static inline bool shmrt_hub__has_stock(const struct shmrt_hub_pool *pool) {
	return pool->backlog_count > 0 && !pool->full && pool->ready_count > 0 && !pool->paused;
}

#endif
