/* test_orders.c -- the death watch gives the place of a dead worker to a standby: which deaths it may answer, that a
 * standby is sent once, and that nothing is carried out that is not placed. Real processes, real deaths. */
#define _GNU_SOURCE
#include "orders.h"

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 16
#define FIRST 4 /* of the pool's slots */
#define COUNT 4
#define POOL 7

static struct shmrt_control *control;
static struct shmrt_orders orders;

static void new_table(void) {
	size_t size = shmrt_control_bytes(SLOTS);
	void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(pages != MAP_FAILED);
	control = pages;
	shmrt_control_format(control, SLOTS);
	shmrt_orders_init(&orders, control);
}

/* What a worker was doing when it died. */
struct life {
	uint64_t phase;
	uint64_t done;
	uint32_t reason; /* who ordered its death, if anybody did */
	bool asked_to_stop;
	bool alive;
};

/* A process that has lived in this slot; dead on return unless `life.alive`. */
static pid_t live(uint32_t index, struct life life) {
	struct shmrt_slot *slot = &control->slots[index];
	CHECK(shmrt_slot_claim(slot, POOL, index - FIRST, 1) == SHMRT_OK);
	int ends[2];
	CHECK(pipe(ends) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(shmrt_slot_hold_death_mutex(slot) == SHMRT_OK && shmrt_slot_ready(slot) == SHMRT_OK);
		shmrt_slot_phase_set(slot, life.phase);
		atomic_store_explicit(&slot->done, life.done, memory_order_relaxed); /* F4: before the death */
		CHECK(write(ends[1], "r", 1) == 1);
		for (;;)
			pause();
	}
	char said;
	CHECK(read(ends[0], &said, 1) == 1);
	close(ends[0]);
	close(ends[1]);
	shmrt_slot_set_process(slot, pid, 1);
	if (life.asked_to_stop)
		atomic_store_explicit(&slot->stop_requested, 1, memory_order_relaxed); /* F4: before the death */
	if (life.reason != SHMRT_KILL_NONE)
		CHECK(shmrt_slot_order_kill(slot, life.reason, 0));
	if (!life.alive) {
		CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
		CHECK(shmrt_slot_is_abandoned(slot));
	}
	return pid;
}

static void bury(uint32_t index) {
	CHECK(shmrt_slot_gone(&control->slots[index], 9, false) == SHMRT_OK && shmrt_slot_free(&control->slots[index]) == SHMRT_OK);
}

static struct shmrt_order order_for(uint32_t index) {
	uint32_t epoch = atomic_load_explicit(&control->slots[index].epoch, memory_order_relaxed); /* ours: we have claimed it */
	return (struct shmrt_order){.at = 0, .slot = index, .epoch = epoch, .worker = index - FIRST, .restarts = 5};
}

static void place(int pipe_end, uint32_t count, const struct shmrt_order *rows) {
	struct shmrt_orders_pool pool = {.pool = POOL, .first = FIRST, .count = COUNT, .pipe = pipe_end};
	CHECK(shmrt_orders_place(&orders, &pool, 1, rows, count) == SHMRT_OK);
}

/* Empty: -1, with EAGAIN. */
static ssize_t take(int pipe_end, struct shmrt_order_message *message) {
	CHECK(fcntl(pipe_end, F_SETFL, O_NONBLOCK) == 0);
	return read(pipe_end, message, sizeof(*message));
}

/* Whether the death of such a life is answered. */
static bool is_answered(struct life life) {
	int ends[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	struct shmrt_order_message message;
	CHECK(pipe(ends) == 0);
	pid_t pid = live(FIRST, life);
	struct shmrt_order order = order_for(FIRST);
	place(ends[1], 1, &order);
	bool any = shmrt_orders_carry_out(&orders);
	CHECK(!shmrt_orders_carry_out(&orders)); /* once */
	CHECK(shmrt_orders_take_back(&orders, done) == (any ? 1 : 0));
	CHECK((take(ends[0], &message) == (ssize_t)sizeof(message)) == any);
	if (any)
		bury(message.slot);
	if (life.alive)
		CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
	bury(FIRST);
	close(ends[0]);
	close(ends[1]);
	return any;
}

static void test_which_deaths_are_answered(void) {
	const uint64_t in_task[] = {SHMRT_PHASE_DECODE, SHMRT_PHASE_RUN, SHMRT_PHASE_ENCODE};
	const uint64_t in_none[] = {SHMRT_PHASE_BOOT, SHMRT_PHASE_PARKED, SHMRT_PHASE_SPIN, SHMRT_PHASE_BLOCKED};
	const uint32_t for_a_task[] = {SHMRT_KILL_TIMEOUT, SHMRT_KILL_CANCEL, SHMRT_KILL_CHAOS};
	const uint32_t for_another_end[] = {SHMRT_KILL_RECYCLE, SHMRT_KILL_SHRINK, SHMRT_KILL_STOP, SHMRT_KILL_ROOT_LOST,
					    SHMRT_KILL_RESTART, 99};
	for (int i = 0; i < 3; i++) {
		CHECK(!is_answered((struct life){.phase = in_task[i]})); /* its first: the root may want to wait */
		CHECK(is_answered((struct life){.phase = in_task[i], .done = 1}));
		CHECK(is_answered((struct life){.phase = SHMRT_PHASE_RUN, .reason = for_a_task[i]}));
	}
	for (int i = 0; i < 4; i++)
		CHECK(is_answered((struct life){.phase = in_none[i]}));
	for (int i = 0; i < 6; i++)
		CHECK(!is_answered((struct life){.phase = SHMRT_PHASE_PARKED, .reason = for_another_end[i]}));
	CHECK(!is_answered((struct life){.phase = SHMRT_PHASE_PARKED, .asked_to_stop = true}));
	CHECK(!is_answered((struct life){.phase = SHMRT_PHASE_PARKED, .alive = true}));
}

static void test_what_the_standby_and_the_root_are_told(void) {
	int ends[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	struct shmrt_order_message message;
	CHECK(pipe(ends) == 0);
	live(FIRST, (struct life){.phase = SHMRT_PHASE_PARKED});
	live(FIRST + 1, (struct life){.phase = SHMRT_PHASE_PARKED});
	struct shmrt_order rows[2] = {order_for(FIRST), order_for(FIRST + 1)};
	rows[0].epoch--; /* an earlier life: nobody's to replace */
	rows[1].worker = 3;
	place(ends[1], 2, rows);
	CHECK(shmrt_orders_carry_out(&orders));
	CHECK(take(ends[0], &message) == (ssize_t)sizeof(message));
	const struct shmrt_slot *slot = &control->slots[FIRST + 2]; /* the first that is EMPTY */
	uint32_t epoch = atomic_load_explicit(&slot->epoch, memory_order_relaxed); /* nobody changes it now */
	CHECK(message.slot == FIRST + 2 && message.pair == 2 && message.worker == 3 && message.restarts == 5);
	CHECK(message.epoch == epoch);
	CHECK(atomic_load_explicit(&slot->state, memory_order_acquire) == SHMRT_SLOT_STARTING);          /* F2 */
	CHECK(atomic_load_explicit(&slot->pool, memory_order_relaxed) == POOL);                          /* F2 */
	CHECK(atomic_load_explicit(&slot->worker, memory_order_relaxed) == 3);                           /* F2 */
	CHECK(atomic_load_explicit(&slot->pid, memory_order_acquire) == 0);                              /* F5 */
	CHECK(shmrt_orders_take_back(&orders, done) == 1);
	CHECK(done[0].pool == POOL && done[0].dead == FIRST + 1 && done[0].slot == FIRST + 2);
	CHECK(done[0].epoch == epoch && done[0].worker == 3 && done[0].told);
	CHECK(shmrt_orders_take_back(&orders, done) == 0);
	for (uint32_t i = 0; i < 3; i++)
		bury(FIRST + i);
	close(ends[0]);
	close(ends[1]);
}

static void test_one_standby_takes_one_place(void) {
	int ends[2], other[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	struct shmrt_order_message message;
	CHECK(pipe(ends) == 0 && pipe(other) == 0);
	for (uint32_t i = 0; i < 2; i++)
		live(FIRST + i, (struct life){.phase = SHMRT_PHASE_PARKED});
	live(FIRST + COUNT, (struct life){.phase = SHMRT_PHASE_PARKED}); /* of another pool */
	struct shmrt_order rows[3] = {order_for(FIRST), order_for(FIRST + 1), order_for(FIRST + COUNT)};
	rows[2].at = 1;
	struct shmrt_orders_pool pools[2] = {
		{.pool = POOL, .first = FIRST, .count = COUNT, .pipe = ends[1]},
		{.pool = POOL + 1, .first = FIRST + COUNT, .count = 2, .pipe = other[1]},
	};
	CHECK(shmrt_orders_place(&orders, pools, 2, rows, 3) == SHMRT_OK);
	CHECK(shmrt_orders_carry_out(&orders) && shmrt_orders_take_back(&orders, done) == 2);
	CHECK(take(ends[0], &message) == (ssize_t)sizeof(message) && message.worker == 0);
	CHECK(take(ends[0], &message) < 0 && errno == EAGAIN);
	CHECK(take(other[0], &message) == (ssize_t)sizeof(message) && message.slot == FIRST + COUNT + 1 && message.pair == 1);
	CHECK(done[1].pool == POOL + 1);
	bury(FIRST);
	bury(FIRST + 1);
	bury(FIRST + 2);
	bury(FIRST + COUNT);
	bury(FIRST + COUNT + 1);
	for (int i = 0; i < 2; i++) {
		close(ends[i]);
		close(other[i]);
	}
}

static void test_a_full_pool_waits_for_the_root(void) {
	int ends[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	CHECK(pipe(ends) == 0);
	for (uint32_t i = 0; i < COUNT; i++)
		live(FIRST + i, (struct life){.phase = SHMRT_PHASE_PARKED});
	struct shmrt_order order = order_for(FIRST);
	place(ends[1], 1, &order);
	CHECK(!shmrt_orders_carry_out(&orders));
	bury(FIRST + 1); /* the hub has freed one meanwhile */
	CHECK(shmrt_orders_carry_out(&orders) && shmrt_orders_take_back(&orders, done) == 1 && done[0].slot == FIRST + 1);
	for (uint32_t i = 0; i < COUNT; i++)
		bury(FIRST + i);
	close(ends[0]);
	close(ends[1]);
}

static void test_a_standby_that_is_dead_is_told_to_the_root(void) {
	int ends[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
	CHECK(pipe(ends) == 0);
	close(ends[0]);
	live(FIRST, (struct life){.phase = SHMRT_PHASE_PARKED});
	struct shmrt_order order = order_for(FIRST);
	place(ends[1], 1, &order);
	CHECK(shmrt_orders_carry_out(&orders) && !shmrt_orders_carry_out(&orders));
	CHECK(shmrt_orders_take_back(&orders, done) == 1 && !done[0].told && done[0].slot == FIRST + 1);
	bury(FIRST);
	bury(FIRST + 1);
	close(ends[1]);
}

static void test_nothing_is_done_that_is_not_placed(void) {
	int ends[2];
	struct shmrt_order_done done[SHMRT_SLOTS_MAX];
	CHECK(pipe(ends) == 0);
	live(FIRST, (struct life){.phase = SHMRT_PHASE_PARKED});
	struct shmrt_order order = order_for(FIRST), wrong = order;
	struct shmrt_orders_pool pool = {.pool = POOL, .first = FIRST, .count = COUNT, .pipe = ends[1]}, far = pool;
	CHECK(!shmrt_orders_carry_out(&orders));
	place(ends[1], 1, &order);
	CHECK(shmrt_orders_take_back(&orders, done) == 0 && !shmrt_orders_carry_out(&orders));
	far.first = SLOTS - 1;
	CHECK(shmrt_orders_place(&orders, &far, 1, &order, 1) == SHMRT_INVALID);
	far.first = SLOTS + 1;
	far.count = 0;
	CHECK(shmrt_orders_place(&orders, &far, 1, &order, 1) == SHMRT_INVALID);
	wrong.slot = SLOTS;
	CHECK(shmrt_orders_place(&orders, &pool, 1, &wrong, 1) == SHMRT_INVALID);
	wrong = order;
	wrong.at = 1;
	CHECK(shmrt_orders_place(&orders, &pool, 1, &wrong, 1) == SHMRT_INVALID);
	CHECK(!shmrt_orders_carry_out(&orders));
	bury(FIRST);
	close(ends[0]);
	close(ends[1]);
}

int main(void) {
	new_table();
	test_which_deaths_are_answered();
	test_what_the_standby_and_the_root_are_told();
	test_one_standby_takes_one_place();
	test_a_full_pool_waits_for_the_root();
	test_a_standby_that_is_dead_is_told_to_the_root();
	test_nothing_is_done_that_is_not_placed();
	printf("orders: fine\n");
	return 0;
}
