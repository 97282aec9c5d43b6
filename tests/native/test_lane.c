/* test_lane.c -- a lane is whole wherever its producer or consumer dies: swept after every instruction
 * (sweep.h), attacked with bytes no producer writes, and with processes killed at random. */
#define _GNU_SOURCE
#include "lane.h"
#include "sweep.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(condition)                                                                      \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                               \
		}                                                                              \
	} while (0)

#define CAPACITY 1024
#define BODY_MAX (CAPACITY / 4 - sizeof(struct shmrt_record_header))

static _Alignas(4096) uint8_t region[sizeof(struct shmrt_lane_shared) + CAPACITY];
static struct shmrt_lane_shared *const lane = (void *)region;

static uint8_t byte_of(uint64_t id, uint64_t i) { return (uint8_t)(id * 31 + i * 7 + 1); }

/* 0, or the answer of reserve. */
static int put(struct shmrt_lane_producer *producer, uint64_t id, uint64_t body) {
	struct shmrt_record_header *record;
	int result = shmrt_lane_reserve(producer, body, &record);
	if (result != SHMRT_OK)
		return result;
	record->kind = SHMRT_RECORD_TASK;
	record->id = id;
	record->inline_size = (uint32_t)body;
	uint8_t *bytes = (uint8_t *)(record + 1);
	for (uint64_t i = 0; i < body; i++)
		bytes[i] = byte_of(id, i);
	return SHMRT_OK;
}

/* Reads one record and verifies every byte; its id in *id. */
static int take(struct shmrt_lane_consumer *consumer, uint64_t *id) {
	struct shmrt_record_header header;
	const uint8_t *body;
	int result = shmrt_lane_peek(consumer, &header, &body);
	if (result != SHMRT_OK)
		return result;
	for (uint64_t i = 0; i < header.inline_size; i++)
		if (body[i] != byte_of(header.id, i))
			return SHMRT_CORRUPT;
	if (header.kind != SHMRT_RECORD_TASK || header.block_count != 0 || header.function != 0)
		return SHMRT_CORRUPT;
	*id = header.id;
	shmrt_lane_advance(consumer, &header);
	return SHMRT_OK;
}

/* ---- sweeps -------------------------------------------------------------------------------------- */
struct expected { /* ids in the lane: [first, last) before and after the operation */
	uint64_t first_before, last_before, first_after, last_after;
};

static int judge(void *copy, size_t step, void *context) {
	(void)step;
	const struct expected *expected = context;
	struct shmrt_lane_shared *left = copy;
	struct shmrt_lane_consumer consumer;
	struct shmrt_lane_producer producer;
	if (shmrt_lane_check(left, CAPACITY) != SHMRT_OK ||
	    shmrt_lane_attach_consumer(&consumer, left, CAPACITY) != SHMRT_OK ||
	    shmrt_lane_attach_producer(&producer, left, CAPACITY) != SHMRT_OK)
		return -2;
	uint64_t first = UINT64_MAX, last = 0, id;
	int result;
	while ((result = take(&consumer, &id)) == SHMRT_OK) {
		if (first == UINT64_MAX)
			first = id;
		else if (id != last)
			return -3; /* lost or twice */
		last = id + 1;
	}
	if (result != SHMRT_EMPTY)
		return -4; /* torn */
	bool is_empty = first == UINT64_MAX;
	/* The successors go on: the room is whole, and a new record arrives. */
	shmrt_lane_release(&consumer);
	if (put(&producer, 77, BODY_MAX) != SHMRT_OK)
		return -5;
	shmrt_lane_commit(&producer);
	if (take(&consumer, &id) != SHMRT_OK || id != 77 || take(&consumer, &id) != SHMRT_EMPTY)
		return -6;
	if (is_empty ? expected->first_before == expected->last_before
		     : first == expected->first_before && last == expected->last_before)
		return SWEEP_BEFORE;
	if (is_empty ? expected->first_after == expected->last_after
		     : first == expected->first_after && last == expected->last_after)
		return SWEEP_AFTER;
	return -7;
}

struct work {
	struct shmrt_lane_producer producer;
	struct shmrt_lane_consumer consumer;
	uint64_t next;
	uint64_t body;
	uint64_t count;
	bool shrinks;
	int result;
};

static void operation_put(void *context) {
	struct work *work = context;
	for (uint64_t i = 0; i < work->count; i++) {
		work->result = put(&work->producer, work->next + i, work->body);
		if (work->result != SHMRT_OK) {
			shmrt_lane_abort(&work->producer);
			return;
		}
	}
	shmrt_lane_commit(&work->producer);
}

static void operation_put_and_shrink(void *context) {
	struct work *work = context;
	struct shmrt_record_header *record;
	work->result = shmrt_lane_reserve(&work->producer, BODY_MAX, &record);
	if (work->result != SHMRT_OK)
		return;
	record->kind = SHMRT_RECORD_TASK;
	record->id = work->next;
	record->inline_size = (uint32_t)work->body;
	for (uint64_t i = 0; i < work->body; i++)
		((uint8_t *)(record + 1))[i] = byte_of(work->next, i);
	shmrt_lane_shrink(&work->producer, record, work->body);
	shmrt_lane_commit(&work->producer);
}

static void operation_take(void *context) {
	struct work *work = context;
	uint64_t id;
	for (uint64_t i = 0; i < work->count; i++)
		work->result = take(&work->consumer, &id);
	shmrt_lane_release(&work->consumer);
}

/* A lane at `start` that holds records of `body` until at most `room` bytes are free. */
static struct work prepare(uint64_t start, uint64_t body, uint64_t records_max, uint64_t room) {
	struct work work = {.body = body, .next = 1, .count = 1};
	memset(region, 0xA5, sizeof region); /* what an earlier life left */
	shmrt_lane_format(lane, start);
	EXPECT(shmrt_lane_attach_producer(&work.producer, lane, CAPACITY) == SHMRT_OK);
	EXPECT(shmrt_lane_attach_consumer(&work.consumer, lane, CAPACITY) == SHMRT_OK);
	while (work.next <= records_max && shmrt_lane_free_bytes(&work.producer) > room &&
	       put(&work.producer, work.next, body) == SHMRT_OK) {
		shmrt_lane_commit(&work.producer);
		work.next++;
	}
	return work;
}

static void sweep_all(void) {
	static const uint64_t bodies[] = {0, 1, 7, 8, 63, 64, 65, BODY_MAX};
	static const uint64_t starts[] = {0, CAPACITY - 16, CAPACITY - 32, 0x100000000 - 80, UINT64_MAX - 47,
					  UINT64_MAX - 255};
	static const struct {
		uint64_t records_max, room;
	} fills[] = {{0, 0}, {1, 0}, {UINT64_MAX, 300}, {UINT64_MAX, 0}};
	size_t done = 0, refused = 0;
	for (size_t b = 0; b < sizeof bodies / sizeof *bodies; b++)
		for (size_t s = 0; s < sizeof starts / sizeof *starts; s++)
			for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
				uint64_t body = bodies[b];
				for (uint64_t count = 1; count <= 3; count += 2) { /* one, and a batch */
					struct work work = prepare(starts[s], body, fills[f].records_max, fills[f].room);
					work.count = count;
					struct expected expected = {1, work.next, 1, work.next + count};
					struct sweep_report report = sweep_run(operation_put, &work, region,
									       sizeof region, judge, &expected);
					if (work.result == SHMRT_OK) {
						sweep_expect(&report, "reserve and commit");
						done++;
					} else {
						EXPECT(work.result == SHMRT_FULL);
						sweep_expect_clean(&report, "reserve in a full lane");
						EXPECT(report.seen[SWEEP_AFTER] == 0);
						refused++;
					}
				}
				struct work work = prepare(starts[s], body, fills[f].records_max, fills[f].room);
				struct expected expected = {1, work.next, 1, work.next + 1};
				struct sweep_report report = sweep_run(operation_put_and_shrink, &work, region,
								       sizeof region, judge, &expected);
				sweep_expect_clean(&report, "reserve, shrink, commit");
				EXPECT((work.result == SHMRT_OK) == (report.seen[SWEEP_AFTER] > 0));

				for (uint64_t count = 1; count <= 2; count++) {
					work = prepare(starts[s], body, fills[f].records_max, fills[f].room);
					if (work.next <= count)
						continue;
					work.count = count;
					expected = (struct expected){1, work.next, 1 + count, work.next};
					report = sweep_run(operation_take, &work, region, sizeof region, judge,
							   &expected);
					EXPECT(work.result == SHMRT_OK);
					sweep_expect(&report, "peek, advance, release");
					done++;
				}
			}
	EXPECT(done > 300 && refused > 30);
}

/* ---- answers ------------------------------------------------------------------------------------- */
static void test_answers(void) {
	struct work work = prepare(0, 8, 0, 0);
	struct shmrt_record_header *record;
	EXPECT(shmrt_lane_reserve(&work.producer, BODY_MAX + 1, &record) == SHMRT_TOO_LARGE);
	EXPECT(shmrt_lane_reserve(&work.producer, UINT64_MAX, &record) == SHMRT_TOO_LARGE);
	EXPECT(shmrt_lane_is_empty(&work.consumer) && !shmrt_lane_has_uncommitted(&work.producer));
	EXPECT(put(&work.producer, 1, 8) == SHMRT_OK && shmrt_lane_has_uncommitted(&work.producer));
	EXPECT(shmrt_lane_is_empty(&work.consumer) && shmrt_lane_used(lane) == 0);
	uint64_t tail = atomic_exchange(&lane->tail, CAPACITY - 1); /* its consumer writes over it */
	shmrt_lane_abort(&work.producer);
	EXPECT(!shmrt_lane_has_uncommitted(&work.producer) && work.producer.tail == tail);
	atomic_store(&lane->tail, tail);
	EXPECT(put(&work.producer, 2, 8) == SHMRT_OK);
	shmrt_lane_commit(&work.producer);
	uint64_t id;
	EXPECT(take(&work.consumer, &id) == SHMRT_OK && id == 2);
	EXPECT(shmrt_lane_used(lane) == 48); /* taken, not yet given back */
	shmrt_lane_release(&work.consumer);
	EXPECT(shmrt_lane_used(lane) == 0 && shmrt_lane_free_bytes(&work.producer) == CAPACITY);
	EXPECT(shmrt_lane_attach_producer(&work.producer, lane, 1000) == SHMRT_CORRUPT);
	EXPECT(shmrt_lane_attach_consumer(&work.consumer, lane, 512) == SHMRT_CORRUPT);
	/* Any record goes in whatever the turn of an empty lane. */
	for (uint64_t start = 0; start < CAPACITY; start += 16) {
		work = prepare(UINT64_MAX - CAPACITY + 1 + start, 0, 0, 0);
		EXPECT(put(&work.producer, 9, BODY_MAX) == SHMRT_OK);
	}
}

static uint64_t random_state;
static uint64_t next_random(void) {
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Bytes no producer writes: every operation answers, and none reads outside (the sanitizer looks). */
static void test_garbage(void) {
	for (int round = 0; round < 20000; round++) {
		uint64_t body = next_random() % 64;
		struct work work = prepare((next_random() % 64) * 16, body, next_random() % 12, 0);
		for (uint64_t n = 1 + next_random() % 3; n > 0; n--) {
			uint64_t at = next_random() % 5 == 0 ? (next_random() % 2) * 128 + next_random() % 8
							     : 256 + next_random() % 512;
			region[at] = (uint8_t)next_random();
		}
		struct shmrt_record_header header;
		const uint8_t *bytes;
		struct shmrt_lane_consumer consumer;
		int checked = shmrt_lane_check(lane, CAPACITY);
		EXPECT(checked == SHMRT_OK || checked == SHMRT_CORRUPT);
		int result = shmrt_lane_attach_consumer(&consumer, lane, CAPACITY);
		EXPECT(result == SHMRT_OK || (result == SHMRT_CORRUPT && checked == SHMRT_CORRUPT));
		if (result != SHMRT_OK)
			continue;
		uint64_t sum = 0;
		while ((result = shmrt_lane_peek(&consumer, &header, &bytes)) == SHMRT_OK) {
			uint64_t size = header.inline_size + header.block_count * sizeof(struct shmrt_block_reference);
			EXPECT(bytes >= lane->data && bytes + size <= lane->data + CAPACITY);
			for (uint64_t i = 0; i < size; i++)
				sum += bytes[i];
			shmrt_lane_advance(&consumer, &header);
		}
		EXPECT(result == SHMRT_CORRUPT || result == SHMRT_EMPTY);
		EXPECT((result == SHMRT_EMPTY) == (checked == SHMRT_OK));
		EXPECT(sum != UINT64_MAX);
		result = put(&work.producer, 5, 40);
		EXPECT(result == SHMRT_OK || result == SHMRT_FULL || result == SHMRT_CORRUPT);
	}
}

/* ---- killed at random ---------------------------------------------------------------------------- */
struct stage {
	_Atomic uint64_t durable; /* id of the last record whose effect is durable; only the consumer stores it */
	_Atomic uint64_t sent;    /* progress of the producer, to choose the moment of the kill by */
	_Alignas(SHMRT_LINE) uint8_t lane[sizeof(struct shmrt_lane_shared) + CAPACITY];
};

/* The last id that is in the lane or was consumed. The lane's bytes stand still: their writer is us. */
static uint64_t last_id(struct stage *stage) {
	struct shmrt_lane_shared *shared = (void *)stage->lane;
	struct shmrt_lane_consumer reader;
	struct shmrt_record_header header;
	const uint8_t *body;
	EXPECT(shmrt_lane_attach_consumer(&reader, shared, CAPACITY) == SHMRT_OK);
	uint64_t id = atomic_load_explicit(&stage->durable, memory_order_acquire); /* after head: not older */
	int result;
	while ((result = shmrt_lane_peek(&reader, &header, &body)) == SHMRT_OK) {
		id = header.id;
		shmrt_lane_advance(&reader, &header);
	}
	EXPECT(result == SHMRT_EMPTY);
	return id;
}

static void produce(struct stage *stage) {
	struct shmrt_lane_producer producer;
	EXPECT(shmrt_lane_attach_producer(&producer, (void *)stage->lane, CAPACITY) == SHMRT_OK);
	for (uint64_t id = last_id(stage) + 1;; id++) {
		int result;
		while ((result = put(&producer, id, next_random() % (BODY_MAX + 1))) == SHMRT_FULL) {
			shmrt_lane_commit(&producer);
			sched_yield();
		}
		EXPECT(result == SHMRT_OK);
		if (next_random() % 3 == 0)
			shmrt_lane_commit(&producer);
		atomic_fetch_add_explicit(&stage->sent, 1, memory_order_relaxed); /* progress only */
	}
}

/* False when the lane is empty. */
static bool consume_one(struct stage *stage, struct shmrt_lane_consumer *consumer) {
	uint64_t id;
	int result = take(consumer, &id);
	if (result == SHMRT_EMPTY) {
		shmrt_lane_release(consumer);
		return false;
	}
	EXPECT(result == SHMRT_OK); /* torn otherwise */
	uint64_t durable = atomic_load_explicit(&stage->durable, memory_order_relaxed); /* ours alone */
	EXPECT(id <= durable + 1); /* lost otherwise; a repeat of a predecessor's is dropped by its id */
	if (id == durable + 1)
		atomic_store_explicit(&stage->durable, id, memory_order_release); /* before the release of head */
	if (next_random() % 4 == 0)
		shmrt_lane_release(consumer);
	return true;
}

static void consume(struct stage *stage) {
	struct shmrt_lane_consumer consumer;
	EXPECT(shmrt_lane_attach_consumer(&consumer, (void *)stage->lane, CAPACITY) == SHMRT_OK);
	for (;;)
		if (!consume_one(stage, &consumer))
			sched_yield();
}

static pid_t start(struct stage *stage, void (*role)(struct stage *)) {
	uint64_t seed = next_random();
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		random_state = seed;
		role(stage);
		_exit(9);
	}
	return pid;
}

static void test_kills(int kills) {
	struct stage *stage = mmap(NULL, sizeof *stage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	EXPECT(stage != MAP_FAILED);
	shmrt_lane_format((void *)stage->lane, UINT64_MAX - 65535); /* passes the wrap on its way */
	void (*const roles[2])(struct stage *) = {produce, consume};
	pid_t pids[2] = {start(stage, produce), start(stage, consume)};
	for (int kill_number = 0; kill_number < kills; kill_number++) {
		int role = (int)(next_random() % 2);
		_Atomic uint64_t *progress = role == 0 ? &stage->sent : &stage->durable;
		uint64_t from = atomic_load_explicit(progress, memory_order_relaxed), /* progress only */
			wanted = from + 1 + next_random() % 100;
		while (atomic_load_explicit(progress, memory_order_relaxed) < wanted) { /* progress only */
			for (int i = 0; i < 2; i++) { /* a child that ended by itself found something */
				siginfo_t info = {0};
				EXPECT(waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
				       info.si_pid == 0);
			}
			sched_yield();
		}
		int status;
		kill(pids[role], SIGKILL);
		EXPECT(waitpid(pids[role], &status, 0) == pids[role] && WIFSIGNALED(status));
		pids[role] = start(stage, roles[role]);
	}
	for (int i = 0; i < 2; i++) {
		int status;
		kill(pids[i], SIGKILL);
		EXPECT(waitpid(pids[i], &status, 0) == pids[i] && WIFSIGNALED(status));
	}
	EXPECT(shmrt_lane_check((void *)stage->lane, CAPACITY) == SHMRT_OK);
	uint64_t last = last_id(stage);
	struct shmrt_lane_consumer consumer;
	EXPECT(shmrt_lane_attach_consumer(&consumer, (void *)stage->lane, CAPACITY) == SHMRT_OK);
	while (consume_one(stage, &consumer))
		;
	EXPECT(atomic_load_explicit(&stage->durable, memory_order_relaxed) == last); /* everybody is dead */
	printf("%d kills, %llu records\n", kills, (unsigned long long)last);
	munmap(stage, sizeof *stage);
}

int main(void) {
	const char *given = getenv("SEED");
	random_state = given ? strtoull(given, NULL, 10) : (uint64_t)getpid() * 2654435761u + 1;
	fprintf(stderr, "SEED=%llu\n", (unsigned long long)random_state);
	test_answers();
	test_garbage();
	sweep_all();
	test_kills(SWEEP_SANITIZED ? 60 : 500);
	printf("%zu states\n", sweep_total_states());
	return 0;
}
