/* test_hub_lanes.c -- tasks and chunks in a lane whose worker has stepped on, and when they get there.
 *
 * No worker and no thread here: the test does in the lane what a worker does, step by step, and lets the hub act in between. A
 * record that the worker has stepped over is nobody's: another may lie there while the outcome of the first still waits in
 * the result lane. Whoever cancels or splits the first must not touch the second.
 */
#include "check.h"
#include "hub_chunk.h"

enum { SELF = 0, WORKER = 2, SLOTS = 4, CAPACITY = 1024, BODY = 200, ITEMS = 40, ITEM = 5 };

static union {
	struct shmrt_control control;
	uint8_t bytes[sizeof(struct shmrt_control) + SLOTS * sizeof(struct shmrt_slot) + sizeof(struct shmrt_guards)];
} table __attribute__((aligned(4096)));
static union lane_memory {
	struct shmrt_lane_shared shared;
	uint8_t bytes[sizeof(struct shmrt_lane_shared) + (1 << 16)];
} __attribute__((aligned(128))) task_lane, result_lane;
static struct shmrt_hub hub;
static struct shmrt_hub_pool pool;
static struct shmrt_hub_worker worker;
static struct shmrt_function function;
static struct shmrt_task_list pinned;
static uint64_t known;
static struct shmrt_lane_consumer consumer; /* what the worker is to its task lane */

static void begin(uint64_t capacity) {
	struct shmrt_arena arena = {0};
	memset(&pool, 0, sizeof(pool));
	memset(&worker, 0, sizeof(worker));
	shmrt_control_format(&table.control, SLOTS);
	CHECK(shmrt_hub_open(&hub, &table.control, SELF, &arena) == SHMRT_OK);
	shmrt_lane_format(&task_lane.shared, 0);
	shmrt_lane_format(&result_lane.shared, 0);
	known = 1; /* it has the function */
	worker.slot = &table.control.slots[WORKER];
	worker.known_functions = &known;
	worker.ready = true;
	CHECK(shmrt_lane_attach_producer(&worker.tasks, &task_lane.shared, capacity) == SHMRT_OK);
	CHECK(shmrt_lane_attach_consumer(&worker.results, &result_lane.shared, capacity) == SHMRT_OK);
	CHECK(shmrt_lane_attach_consumer(&consumer, &task_lane.shared, capacity) == SHMRT_OK);
	pool.hub = &hub;
	pool.options = (struct shmrt_pool_options){.first_slot = WORKER, .slot_count = 1, .max_workers = 1, .stacks_fd = -1};
	pool.workers = &worker;
	pool.pinned = &pinned;
	pool.ready_count = 1;
	function = (struct shmrt_function){.used = true};
	pool.functions = &function;
	pool.function_capacity = 1;
	hub.pools[0] = &pool;
	hub.pool_high = 1;
}

static void end(void) {
	while (worker.lane.first) {
		struct shmrt_task *task = worker.lane.first;
		shmrt_list_remove(&worker.lane, task);
		shmrt_hub__finish(task, SHMRT_TASK_LOST);
	}
	CHECK(shmrt_hub_fail_backlog(&pool, SHMRT_TASK_LOST) < 1000);
	CHECK(pool.pending == 0 && pool.open_tasks == 0 && pool.backlog_count == 0);
	struct shmrt_task *task = shmrt_hub_take_completed(&hub);
	while (task) {
		struct shmrt_task *next = task->next;
		shmrt_hub_task_free(&hub, task);
		task = next;
	}
	shmrt_hub_close(&hub);
}

/* items: 0 for a plain task. */
static struct shmrt_task *submit(uint32_t items) {
	static uint8_t body[ITEMS * ITEM + BODY];
	struct shmrt_task *task = shmrt_hub_task_new(&hub);
	CHECK(task != NULL);
	uint32_t size = items ? items * ITEM : BODY, length = 1;
	for (uint32_t i = 0; i < items; i++)
		memcpy(body + (size_t)i * ITEM, &length, sizeof(length));
	CHECK(shmrt_payload_set(&task->arguments, body, size, 0, NULL, 0) == SHMRT_OK);
	task->items = items;
	CHECK(shmrt_hub_submit(&pool, task) == SHMRT_OK);
	return task;
}

static _Atomic uint32_t *peek_claim(struct shmrt_record_header *header) {
	const uint8_t *body;
	CHECK(shmrt_lane_peek(&consumer, header, &body) == SHMRT_OK);
	return (_Atomic uint32_t *)&((struct shmrt_record_header *)(void *)(uintptr_t)body - 1)->claim;
}

/* As a worker that is through with the next record: claimed, all its items begun, its outcome published, the record given back. */
static void serve(void) {
	struct shmrt_record_header header;
	_Atomic uint32_t *claim = peek_claim(&header);
	uint32_t count = header.kind == SHMRT_RECORD_CHUNK ? header.attempt & SHMRT_CHUNK_ITEMS_MAX : 0;
	atomic_store(claim, header.claim | 1 | count << SHMRT_CLAIM_BEGUN_SHIFT);
	shmrt_lane_advance(&consumer, &header);
	shmrt_lane_release(&consumer);
}

/* A task that was served, whose outcome nobody has collected yet, and one that lies where its record was. */
static struct shmrt_task *overwrite(uint32_t items, struct shmrt_task **over, const uint8_t **at) {
	struct shmrt_task *first = submit(items);
	CHECK(first->state == SHMRT_TASK_LANE);
	const void *place = first->claim;
	for (int round = 0; round < 64; round++) {
		serve();
		*over = submit(items);
		CHECK((*over)->state == SHMRT_TASK_LANE);
		if ((void *)(*over)->claim == place) {
			*at = place;
			return first;
		}
	}
	CHECK(false);
	return NULL;
}

static void test_cancel_after_the_worker_stepped_on(void) {
	struct shmrt_task *over;
	const uint8_t *at;
	begin(CAPACITY);
	struct shmrt_task *first = overwrite(0, &over, &at);
	CHECK(shmrt_hub_cancel(&hub, first->id) == NULL); /* it was run */
	CHECK(shmrt_hub_is_running(&hub, first->id) == 1 && shmrt_hub_is_running(&hub, over->id) == 0);
	CHECK((atomic_load(over->claim) & 3) == 0);
	CHECK(shmrt_hub_cancel(&hub, over->id) == over);
	shmrt_hub_task_free(&hub, over);
	end();
}

static void test_kill_after_the_worker_stepped_on(void) {
	struct shmrt_task *over;
	const uint8_t *at;
	begin(CAPACITY);
	struct shmrt_task *first = overwrite(0, &over, &at);
	first->flags |= SHMRT_TASK_KILL;
	CHECK(!shmrt_hub__revoke(first) && (atomic_load(over->claim) & 3) == 0);
	end();
}

static void test_split_after_the_worker_stepped_on(void) {
	struct shmrt_task *over;
	const uint8_t *at;
	struct shmrt_record_header header;
	begin(CAPACITY);
	struct shmrt_task *first = overwrite(ITEMS, &over, &at);
	_Atomic uint32_t *claim = peek_claim(&header);
	CHECK(claim == over->claim);
	uint32_t running = header.claim | 1 | UINT32_C(3) << SHMRT_CLAIM_BEGUN_SHIFT; /* its third item */
	atomic_store(claim, running);
	CHECK(shmrt_hub_split(&hub, first->id) == -1 && first->items == ITEMS && atomic_load(claim) == running);
	CHECK(shmrt_hub_split(&hub, over->id) == 3 && over->items == 3);
	CHECK(atomic_load(claim) >> SHMRT_CLAIM_END_SHIFT == 3);
	end();
}

/* In a lane without outcome, but not overwritten: that it was taken can still be read. */
static void test_step_without_another(void) {
	begin(CAPACITY);
	struct shmrt_task *task = submit(ITEMS);
	serve();
	CHECK(shmrt_hub_split(&hub, task->id) == -1 && task->items == ITEMS);
	CHECK(shmrt_hub_cancel(&hub, task->id) == NULL && shmrt_hub_is_running(&hub, task->id) == 1);
	end();
}

/* An idle worker gets the next chunk, however many items those before it have: in the backlog nobody would come for it. */
static void test_many_items_are_few_tasks(void) {
	begin(1 << 16);
	pool.measured = true;
	pool.credit = 64;
	for (int i = 0; i < 8; i++)
		CHECK(submit(ITEMS)->state == SHMRT_TASK_LANE);
	CHECK(pool.pending == UINT64_C(8) * ITEMS && pool.open_tasks == 8 && pool.backlog_count == 0);
	end();
}

/* All of them are taken back, and wait for a worker: the next one must not wait behind them for a dozen. */
static void test_an_empty_lane_is_no_stock(void) {
	begin(1 << 16);
	pool.measured = true;
	pool.credit = 64;
	pool.ready_count = 0;
	for (int i = 0; i < 8; i++)
		CHECK(submit(ITEMS)->state == SHMRT_TASK_BACKLOG);
	pool.ready_count = 1;
	CHECK(submit(ITEMS)->state == SHMRT_TASK_LANE && pool.backlog_count == 0);
	end();
}

int main(void) {
	test_cancel_after_the_worker_stepped_on();
	test_kill_after_the_worker_stepped_on();
	test_split_after_the_worker_stepped_on();
	test_step_without_another();
	test_many_items_are_few_tasks();
	test_an_empty_lane_is_no_stock();
	return 0;
}
