/* test_call.c -- one call after the other: what each step answers, and what it refuses. */
#include "call_world.h"
#include "slots.h"

#define TARGET 5

static struct call_world world;
static struct call_memory memory;
static uint8_t body[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
static struct shmrt_call_message message;

static int say(uint32_t index, uint32_t generation, uint16_t blocks) {
	struct shmrt_call_message reply = reply_make(&world, &memory, 3, 10, blocks, false);
	return shmrt_call_reply(&world.calls, index, generation, &world.arena, &reply);
}
static int hear(uint32_t index, uint32_t generation) {
	return shmrt_call_read(&world.calls, index, generation, &world.arena, body, &message);
}

static void test_a_reply_comes_once_and_to_its_own_call(void) {
	call_world_make(&world);
	uint32_t first = call_make(&world, 0, TARGET), second;
	CHECK(hear(0, first) == SHMRT_EMPTY && shmrt_call_is_waiting(&world.calls, 0, first));
	CHECK(shmrt_call_take(&world.calls, 0, first) == SHMRT_OK && shmrt_call_take(&world.calls, 0, first) == SHMRT_STALE);
	CHECK(say(0, first, 1) == SHMRT_OK && say(0, first, 0) == SHMRT_STALE);
	CHECK(!shmrt_call_is_waiting(&world.calls, 0, first));
	CHECK(shmrt_call_give_up(&world.calls, 0, first) == SHMRT_EMPTY);
	CHECK(hear(0, first) == SHMRT_OK && reply_is_whole(&message, 3, 10, 1) && message.status == SHMRT_CALL_REPLY);
	CHECK(hear(0, first) == SHMRT_STALE);
	CHECK(shmrt_call_begin(&world.calls, 0, TARGET, 0, 0, &second) == SHMRT_OK && second != first);
	CHECK(shmrt_call_take(&world.calls, 0, first) == SHMRT_STALE && say(0, first, 0) == SHMRT_STALE);
	CHECK(say(0, second, 0) == SHMRT_OK && hear(0, second) == SHMRT_OK);
	CHECK(say(CALLS, second, 0) == SHMRT_STALE && shmrt_call_take(&world.calls, UINT32_MAX, 0) == SHMRT_CORRUPT);
}

static void test_the_generation_begins_again_after_the_last(void) {
	call_world_make(&world);
	atomic_store_explicit(&world.calls.slots[0].word, shmrt_call_pack(SHMRT_CALL_FREE, SHMRT_CALL_GENERATIONS - 1, 0),
			      memory_order_relaxed);
	CHECK(call_make(&world, 0, TARGET) == 0 && say(0, 0, 0) == SHMRT_OK && hear(0, 0) == SHMRT_OK);
	CHECK(shmrt_call_owner_of(shmrt_call_word(&world.calls, 0)) == shmrt_owner_self());
}

static void test_claims_take_what_is_free_only(void) {
	call_world_make(&world);
	uint32_t cursor = 2, index;
	bool had[CALLS] = {false};
	for (unsigned i = 0; i < CALLS; i++) {
		CHECK(shmrt_call_claim(&world.calls, &cursor, &index) == SHMRT_OK && !had[index]);
		had[index] = true;
	}
	CHECK(shmrt_call_claim(&world.calls, &cursor, &index) == SHMRT_EMPTY);
	shmrt_call_release(&world.calls, 1);
	CHECK(shmrt_call_claim(&world.calls, &cursor, &index) == SHMRT_OK && index == 1);
	CHECK(shmrt_calls_reclaim(&world.calls, &world.arena) == 0); /* its owner lives */
}

static void test_a_failure_ends_the_calls_it_is_meant_for(void) {
	call_world_make(&world);
	uint32_t generations[CALLS], seized;
	for (uint32_t i = 0; i < CALLS; i++)
		generations[i] = call_make(&world, i, TARGET + i);
	CHECK(shmrt_call_take(&world.calls, 2, generations[2]) == SHMRT_OK);
	struct shmrt_call_message down = down_make();
	for (uint32_t i = 0; i < CALLS; i++)
		CHECK(shmrt_call_seize(&world.calls, i, SHMRT_SEIZE_WAITING, TARGET + 1, NULL, &seized) == (i == 1));
	CHECK(shmrt_call_finish(&world.calls, 1, seized = generations[1], NULL, &down) == SHMRT_OK);
	CHECK(hear(1, generations[1]) == SHMRT_OK && message.status == SHMRT_CALL_DOWN && bell_of(&world, 1) == 0);
	for (uint32_t i = 0; i < CALLS; i++)
		if (shmrt_call_seize(&world.calls, i, SHMRT_SEIZE_ALL, 0, NULL, &seized))
			CHECK(shmrt_call_finish(&world.calls, i, seized, NULL, &down) == SHMRT_OK);
	CHECK(hear(0, generations[0]) == SHMRT_OK && hear(2, generations[2]) == SHMRT_OK);
}

static void test_what_no_writer_leaves_is_refused(void) {
	call_world_make(&world);
	struct shmrt_call_slot *slot = &world.calls.slots[0];
	for (unsigned damage = 0; damage < 4; damage++) {
		uint32_t generation = 0;
		if (damage == 0)
			generation = call_make(&world, 0, TARGET);
		else
			CHECK(shmrt_call_begin(&world.calls, 0, TARGET, 0, 0, &generation) == SHMRT_OK);
		CHECK(say(0, generation, damage == 3) == SHMRT_OK);
		_Atomic uint32_t *words[] = {&slot->inline_size, &slot->block_count, &slot->status};
		if (damage < 3)
			atomic_store_explicit(words[damage], UINT32_MAX - 5, memory_order_relaxed);
		else
			atomic_store_explicit(&slot->arena, 1, memory_order_relaxed);
		CHECK(hear(0, generation) == (damage == 3 ? SHMRT_FOREIGN : SHMRT_CORRUPT));
		CHECK(state_of(&world, 0) == SHMRT_CALL_IDLE && shmrt_call_check(&world.calls, 0) == SHMRT_OK);
	}
	struct shmrt_calls calls;
	static uint8_t memory_of_control[sizeof(struct shmrt_control) + 3 * sizeof(struct shmrt_slot)] __attribute__((aligned(SHMRT_LINE)));
	struct shmrt_control *control = (struct shmrt_control *)(void *)memory_of_control;
	shmrt_control_format(control, 3);
	CHECK(shmrt_control_check(control, shmrt_control_bytes(3)) == SHMRT_OK);
	CHECK(shmrt_calls_attach(&calls, control, shmrt_control_bytes(3)) == SHMRT_OK && calls.count == SHMRT_CALLS_DEFAULT);
	CHECK(shmrt_calls_attach(&calls, control, control->names_offset - 1) == SHMRT_CORRUPT);
	control->calls_offset += 8;
	CHECK(shmrt_control_check(control, shmrt_control_bytes(3)) == SHMRT_CORRUPT);
	CHECK(shmrt_calls_attach(&calls, control, shmrt_control_bytes(3)) == SHMRT_CORRUPT);
}

static void test_waits_end(void) {
	call_world_make(&world);
	uint32_t generation = call_make(&world, 0, TARGET);
	_Atomic uint32_t spin_ns = 0;
	uint64_t begin_ns = shmrt_now_ns();
	CHECK(shmrt_call_wait(&world.calls, 0, generation, begin_ns + 20000000, &spin_ns) == SHMRT_TIMEOUT);
	CHECK(shmrt_now_ns() - begin_ns >= 20000000);
	pid_t child = fork();
	if (child == 0) {
		while (bell_of(&world, 0) == 0) /* until the caller sleeps */
			usleep(100);
		_exit(say(0, generation, 0) == SHMRT_OK ? 0 : 1);
	}
	int status;
	CHECK(shmrt_call_wait(&world.calls, 0, generation, 0, NULL) == SHMRT_OK && hear(0, generation) == SHMRT_OK);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void) {
	test_a_reply_comes_once_and_to_its_own_call();
	test_the_generation_begins_again_after_the_last();
	test_claims_take_what_is_free_only();
	test_a_failure_ends_the_calls_it_is_meant_for();
	test_what_no_writer_leaves_is_refused();
	test_waits_end();
	return 0;
}
