/* test_part_sweep.c -- a worker dies at any instruction while it writes the outcomes of a chunk: the hub finds each that was
 * written, whole and once, and at most one item that was begun and has none.
 */
#include "check.h"
#include "hub_chunk.h"
#include "part.h"
#include "sweep.h"

#include <stdio.h>
#include <stdlib.h>

#define CAPACITY 1024
#define TASK_ID UINT64_C(0x700000003)
#define EPOCH 9
#define ITEMS 6

/* What a death leaves: the lane, the claim word, and (for the judge alone) how much the worker had done for certain. */
struct left {
	_Alignas(64) uint8_t lane[sizeof(struct shmrt_lane_shared) + CAPACITY];
	_Atomic uint32_t claim;
	volatile uint32_t written, logs; /* puts that have returned, log records that are committed */
};
static _Alignas(4096) struct left region;

static struct shmrt_lane_shared *lane_of(struct left *left) { return (struct shmrt_lane_shared *)(void *)left->lane; }

static struct shmrt_lane_producer producer;
static uint32_t first; /* of the outcomes written by an operation */
static uint32_t room;  /* asked for: small ones are full soon */

static uint32_t length_of(uint32_t item) { return 1 + item * 7 % 23; }

static void fill(uint8_t *bytes, uint32_t item) {
	for (uint32_t i = 0; i < length_of(item); i++)
		bytes[i] = (uint8_t)(item * 31 + i);
}

static void open_part(struct shmrt_part *part, uint32_t item, uint32_t epoch) {
	struct shmrt_record_header *record;
	CHECK(shmrt_lane_reserve(&producer, room, &record) == SHMRT_OK);
	shmrt_part_open(part, record, room, TASK_ID, item, epoch);
}

static void put_log(struct shmrt_part *part) {
	struct shmrt_record_header *record;
	shmrt_part_close(part, &producer);
	CHECK(shmrt_lane_reserve(&producer, 8, &record) == SHMRT_OK);
	record->kind = SHMRT_RECORD_LOG;
	record->inline_size = 8;
	shmrt_lane_commit(&producer);
	region.logs++;
}

/* As py_worker_chunk.c does it: begin, call (which may log), write. */
static void write_outcomes(uint32_t end, uint32_t epoch, uint32_t log_at, bool last) {
	struct shmrt_part part = {0};
	open_part(&part, first, epoch);
	for (uint32_t item = first; item < end; item++) {
		uint8_t bytes[32];
		fill(bytes, item);
		atomic_store(&region.claim, (item - first + 1) << SHMRT_CLAIM_BEGUN_SHIFT | 1);
		if (item == log_at)
			put_log(&part);
		for (;;) {
			if (part.record == NULL)
				open_part(&part, item, epoch);
			if (shmrt_part_put(&part, bytes, length_of(item), item % 3 == 1))
				break;
			shmrt_part_close(&part, &producer);
		}
		region.written++;
	}
	if (last)
		shmrt_part_commit(&part, &producer, true, 1000);
}

static void operation(void *context) { write_outcomes(ITEMS, EPOCH, *(uint32_t *)context, true); }

static struct shmrt_slot slot;

/* The outcomes in the result are the items from `first` on. */
static bool is_prefix(const struct shmrt_task *task) {
	uint32_t at = 0;
	for (uint32_t item = first; item < task->items_done; item++) {
		uint32_t head;
		uint8_t bytes[32];
		fill(bytes, item);
		if (task->result.size - at < sizeof(head))
			return false;
		memcpy(&head, task->result.bytes + at, sizeof(head));
		at += (uint32_t)sizeof(head);
		if (head != (length_of(item) << 2 | (item % 3 == 1)) || memcmp(task->result.bytes + at, bytes, length_of(item)) != 0)
			return false;
		at += length_of(item);
	}
	return at == task->result.size;
}

/* Answers how many outcomes there are, or what is wrong. */
static int judge(void *copy, size_t step, void *context) {
	struct left *left = copy;
	(void)step;
	(void)context;
	struct shmrt_lane_shared at_its_record = {0}; /* the worker has not stepped over it */
	struct shmrt_hub_worker worker = {
		.slot = &slot, .epoch = EPOCH, .tasks = {.shared = &at_its_record, .capacity = CAPACITY}};
	struct shmrt_hub_pool pool = {.workers = &worker};
	struct shmrt_task task = {
		.id = TASK_ID, .pool = &pool, .items = ITEMS, .items_done = first, .items_sent = first, .claim = &left->claim};
	struct shmrt_record_header header;
	const uint8_t *body;
	uint32_t logs = 0;
	bool ended = false;
	int answer = SWEEP_BROKEN, result;
	if (shmrt_lane_attach_consumer(&worker.results, lane_of(left), CAPACITY) != SHMRT_OK)
		return -2;
	while ((result = shmrt_lane_peek(&worker.results, &header, &body)) == SHMRT_OK) {
		logs += header.kind == SHMRT_RECORD_LOG;
		if (header.kind == SHMRT_RECORD_PART) {
			if (ended || shmrt_hub__take_part(&task, &header, body) != SHMRT_OK) {
				answer = -3;
				goto done;
			}
			ended = header.claim & 1;
		}
		shmrt_lane_advance(&worker.results, &header);
	}
	bool running = ended ? task.items_done < ITEMS : shmrt_hub__salvage(&worker, &task);
	uint32_t begun = first + (atomic_load(&left->claim) >> SHMRT_CLAIM_BEGUN_SHIFT & SHMRT_CHUNK_ITEMS_MAX);
	if (result != SHMRT_EMPTY || pool.crashed)
		answer = -4;
	else if (logs < left->logs || logs > left->logs + 1)
		answer = -5;
	else if (!is_prefix(&task))
		answer = -6;
	else if (task.items_done < first + left->written || task.items_done > first + left->written + 1)
		answer = -7; /* lost, or made up */
	else if (task.items_done > begun || begun > task.items_done + 1 || running != (begun == task.items_done + 1))
		answer = -8;
	else
		answer = (int)(task.items_done - first);
done:
	if (task.result.bytes != task.result.local)
		free(task.result.bytes);
	return answer;
}

static void start_at(uint64_t position) {
	shmrt_lane_format(lane_of(&region), position);
	CHECK(shmrt_lane_attach_producer(&producer, lane_of(&region), CAPACITY) == SHMRT_OK);
	atomic_store(&region.claim, 1);
	region.written = region.logs = 0;
}

static void consume_all(void) {
	struct shmrt_lane_consumer consumer;
	struct shmrt_record_header header;
	const uint8_t *body;
	CHECK(shmrt_lane_attach_consumer(&consumer, lane_of(&region), CAPACITY) == SHMRT_OK);
	while (shmrt_lane_peek(&consumer, &header, &body) == SHMRT_OK)
		shmrt_lane_advance(&consumer, &header);
	shmrt_lane_release(&consumer);
}

/* What lay in the lane before: nothing, the same chunk by the process that was here before, or earlier outcomes of it by
 * this one, in every position. */
enum before { CLEAN, OTHER_EPOCH, EARLIER_OUTCOMES, BEFORES };

static void dirty(enum before before, uint64_t position) {
	memset(&region, 0, sizeof(region));
	if (before == CLEAN)
		return;
	uint32_t mine = first;
	for (uint64_t at = position; at < position + 64; at += 16) {
		start_at(at);
		first = before == OTHER_EPOCH ? mine : 0;
		for (int lap = 0; lap < 6; lap++) {
			write_outcomes(before == OTHER_EPOCH ? ITEMS : mine, before == OTHER_EPOCH ? EPOCH - 1 : EPOCH, UINT32_MAX, lap % 2 == 0);
			if (lap % 2)
				shmrt_lane_abort(&producer);
			consume_all();
		}
	}
	first = mine;
}

int main(void) {
	static const uint32_t rooms[] = {40, 64, 160}, logs[] = {UINT32_MAX, 2, 3, ITEMS - 1}, firsts[] = {0, 2};
	for (size_t f = 0; f < 2; f++)
		for (size_t r = 0; r < 3; r++)
			for (size_t l = 0; l < 4; l++)
				for (int before = CLEAN; before < BEFORES; before++)
					for (uint64_t position = CAPACITY - 352; position <= CAPACITY; position += sweep_is_long() ? 16 : 96) {
						first = firsts[f];
						room = rooms[r];
						if (before == EARLIER_OUTCOMES && first == 0)
							continue; /* there are none before the first */
						dirty(before, position);
						start_at(position);
						uint32_t log_at = logs[l];
						struct sweep_report report = sweep_run(operation, &log_at, &region, sizeof(region), judge, NULL);
						sweep_expect_clean(&report, "outcomes of a chunk");
						CHECK(report.skipped || report.seen[ITEMS - first] > 0);
					}
	printf("%zu states\n", sweep_total_states());
	return 0;
}
