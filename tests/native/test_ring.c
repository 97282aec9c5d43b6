/* test_ring.c -- what put, get, lease and close promise, in one process and between a few. */
#define _GNU_SOURCE
#include "ring_world.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/time.h>

static struct world world;

static void fill(uint64_t slots, enum shmrt_ring_full_policy on_full, unsigned count) {
	world_make(&world, slots, on_full, UINT64_MAX - 2);
	for (unsigned number = 1; number <= count; number++)
		CHECK(world_put(&world, number, 0) == SHMRT_OK);
}

static void sound(void) {
	CHECK(shmrt_ring_check(&world.ring) == SHMRT_OK);
}

static void test_bound_and_order(void) {
	for (unsigned slots = 1; slots <= 9; slots++) {
		fill(slots, SHMRT_RING_BLOCK, slots);
		for (unsigned round = 0; round < 3 * slots; round++) {
			CHECK(world_put(&world, 60, 0) == SHMRT_FULL && shmrt_ring_depth(&world.ring) == slots);
			CHECK(world_get(&world) == round % 50 + 1);
			CHECK(world_put(&world, (round + slots) % 50 + 1, 0) == SHMRT_OK);
			sound();
		}
		while (world_get(&world) != 0)
			;
		CHECK(blocks_used(&world.arena) == 0 && shmrt_ring_depth(&world.ring) == 0);
	}
}

static void test_full_policies(void) {
	fill(2, SHMRT_RING_RAISE, 2);
	CHECK(world_put(&world, 5, SHMRT_FOREVER) == SHMRT_FULL);
	fill(2, SHMRT_RING_BLOCK, 2);
	uint64_t before = shmrt_now_ns();
	CHECK(world_put(&world, 5, 3000000) == SHMRT_TIMEOUT && shmrt_now_ns() - before >= 3000000);
	CHECK(world_get(&world) == 1 && blocks_used(&world.arena) == plan[2].blocks);
	fill(2, SHMRT_RING_DROP_NEWEST, 2);
	CHECK(world_put(&world, 5, 0) == SHMRT_OK && shmrt_ring_load(&world.ring.shared->dropped) == 1);
	CHECK(world_get(&world) == 1 && world_get(&world) == 2 && world_get(&world) == 0);
	CHECK(blocks_used(&world.arena) == 0);
	fill(2, SHMRT_RING_DROP_OLDEST, 2);
	CHECK(world_put(&world, 5, 0) == SHMRT_OK && world_put(&world, 6, 0) == SHMRT_OK);
	CHECK(shmrt_ring_load(&world.ring.shared->dropped) == 2);
	CHECK(world_get(&world) == 5 && world_get(&world) == 6 && blocks_used(&world.arena) == 0);
	sound();
	/* A leased message is never dropped; with all leased there is no room. */
	uint64_t lease, other;
	fill(2, SHMRT_RING_DROP_OLDEST, 2);
	CHECK(world_lease(&world, &lease) == 1 && world_put(&world, 5, 0) == SHMRT_OK);
	CHECK(world_lease(&world, &other) == 5 && world_put(&world, 6, 0) == SHMRT_FULL);
	CHECK(world_put(&world, 6, 1000000) == SHMRT_TIMEOUT);
	CHECK(shmrt_ring_release(&world.ring, lease) == SHMRT_OK && world_put(&world, 6, 0) == SHMRT_OK);
	CHECK(shmrt_ring_give_back(&world.ring, other) == SHMRT_OK);
	CHECK(world_get(&world) == 5 && world_get(&world) == 6 && blocks_used(&world.arena) == 0);
	/* Holders that died make room for it. */
	fill(2, SHMRT_RING_DROP_OLDEST, 2);
	CHECK(world_lease(&world, &lease) == 1 && world_lease(&world, &other) == 2);
	world_kill_holders(&world);
	CHECK(world_put(&world, 6, 0) == SHMRT_OK && world_get(&world) == 2 && world_get(&world) == 6);
	sound();
}

static void test_sizes_and_blocks(void) {
	uint8_t bytes[SLOT_BYTES + 1] = {0};
	uint64_t done;
	struct shmrt_block_reference blocks[3];
	fill(4, SHMRT_RING_BLOCK, 0);
	struct shmrt_ring_message messages[2] = {{.inline_bytes = bytes, .inline_size = SLOT_BYTES},
						 {.inline_bytes = bytes, .inline_size = SLOT_BYTES + 1}};
	CHECK(shmrt_ring_put(&world.ring, messages, 2, 0, &done) == SHMRT_TOO_LARGE && done == 1);
	messages[1] = (struct shmrt_ring_message){.block_count = 6, .blocks = blocks};
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_TOO_LARGE && done == 0);
	/* A block that is not the sender's, named twice, held but writable: nothing changes. */
	blocks[0] = block_new(&world.arena, SHMRT_BLOCK_WRITING);
	blocks[1] = blocks[0];
	messages[1].block_count = 2;
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_STALE && done == 0);
	CHECK(shmrt_arena_free(&world.arena, blocks[0].block, blocks[0].generation, SHMRT_BLOCK_WRITING,
			       shmrt_owner_self()) == SHMRT_OK);
	messages[1].block_count = 1;
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_STALE);
	blocks[0] = block_new(&world.arena, SHMRT_BLOCK_HELD);
	blocks[0].flags = 0;
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_STALE);
	blocks[0].flags = 1;
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_OK);
	sound();
	world.ring.arena = NULL;
	CHECK(shmrt_ring_put(&world.ring, messages + 1, 1, 0, &done) == SHMRT_INVALID);
}

static void test_bulk(void) {
	struct message_memory memory[70];
	struct shmrt_ring_message messages[70];
	struct catch caught = {0};
	uint64_t done;
	fill(100, SHMRT_RING_BLOCK, 0);
	for (unsigned i = 0; i < 70; i++)
		messages[i] = message_make(&world.arena, i + 1, &memory[i]);
	CHECK(shmrt_ring_put(&world.ring, messages, 70, 0, &done) == SHMRT_OK && done == 70);
	CHECK(shmrt_ring_get(&world.ring, 79, 0, catch_message, &caught, &done) == SHMRT_OK && done == 70);
	for (unsigned i = 0; i < 70; i++)
		CHECK(caught.numbers[i] == i + 1 && !caught.torn);
	catch_free(&world, &caught);
	CHECK(shmrt_ring_get(&world.ring, 5, 0, catch_message, &caught, &done) == SHMRT_EMPTY && done == 0);
	fill(3, SHMRT_RING_BLOCK, 0);
	for (unsigned i = 0; i < 5; i++)
		messages[i] = message_make(&world.arena, i + 1, &memory[i]);
	CHECK(shmrt_ring_put(&world.ring, messages, 5, 0, &done) == SHMRT_FULL && done == 3);
	CHECK(shmrt_ring_put(&world.ring, messages + 3, 2, 500000, &done) == SHMRT_TIMEOUT && done == 0);
	CHECK(world_get(&world) == 1);
	CHECK(shmrt_ring_put(&world.ring, messages + 3, 2, 0, &done) == SHMRT_FULL && done == 1);
	sound();
}

/* A run ends before what may fail to decode (here: blocks, or a number with bit 2 or 3), and takes that alone. */
static void test_runs(void) {
	struct catch caught = {0};
	uint64_t done, lease;
	bool fragile;
	fill(8, SHMRT_RING_BLOCK, 5);
	CHECK(shmrt_ring_get_run(&world.ring, true, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 1 && fragile && caught.numbers[0] == 1);
	CHECK(shmrt_ring_get_run(&world.ring, false, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 0 && fragile && caught.count == 1);
	CHECK(world_lease(&world, &lease) == 2 && shmrt_ring_release(&world.ring, lease) == SHMRT_OK);
	CHECK(shmrt_ring_get_run(&world.ring, false, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 1 && fragile && caught.numbers[1] == 3);
	CHECK(world_lease(&world, &lease) == 4 && shmrt_ring_give_back(&world.ring, lease) == SHMRT_OK);
	CHECK(shmrt_ring_get_run(&world.ring, true, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 1 && fragile && caught.numbers[2] == 4);
	CHECK(shmrt_ring_get_run(&world.ring, true, 1, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 1 && caught.numbers[3] == 5 && !caught.torn);
	CHECK(shmrt_ring_get_run(&world.ring, true, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_EMPTY);
	CHECK(done == 0 && !fragile);
	CHECK(shmrt_ring_load(&world.ring.shared->bytes_in) == shmrt_ring_load(&world.ring.shared->bytes_out));
	catch_free(&world, &caught);
	sound();
	caught = (struct catch){0};
	fill(8, SHMRT_RING_BLOCK, 3);
	CHECK(world_get(&world) == 1); /* what may fail is first, something plain behind it */
	CHECK(shmrt_ring_get_run(&world.ring, true, 9, 0, catch_message, &caught, &done, &fragile) == SHMRT_OK);
	CHECK(done == 1 && fragile && caught.numbers[0] == 2 && shmrt_ring_depth(&world.ring) == 1);
	catch_free(&world, &caught);
	sound();
}

static void test_leases(void) {
	uint64_t a, b, c;
	/* A slow lease keeps no other slot busy, and its name stays good when the message moves. */
	fill(3, SHMRT_RING_BLOCK, 3);
	CHECK(world_lease(&world, &a) == 1);
	for (unsigned round = 0; round < 20; round++) {
		CHECK(world_put(&world, 60, 0) == SHMRT_FULL);
		CHECK(world_get(&world) == round + 2 && world_put(&world, round + 4, 0) == SHMRT_OK);
		sound();
	}
	CHECK(shmrt_ring_depth(&world.ring) == 2);
	CHECK(shmrt_ring_give_back(&world.ring, a) == SHMRT_OK && shmrt_ring_release(&world.ring, a) == SHMRT_STALE);
	CHECK(world_get(&world) == 1 && world_get(&world) == 22 && world_get(&world) == 23);
	CHECK(world_get(&world) == 0 && blocks_used(&world.arena) == 0);
	/* What comes back comes before newer messages, in its old order. */
	fill(5, SHMRT_RING_BLOCK, 5);
	CHECK(world_lease(&world, &a) == 1 && world_lease(&world, &b) == 2 && world_lease(&world, &c) == 3);
	CHECK(shmrt_ring_release(&world.ring, b) == SHMRT_OK);
	world_kill_holders(&world);
	CHECK(shmrt_ring_release(&world.ring, c) == SHMRT_STALE);
	CHECK(world_get(&world) == 1 && world_get(&world) == 3 && world_get(&world) == 4);
	sound();
	CHECK(world_get(&world) == 5 && blocks_used(&world.arena) == 0);
	/* A lease that keeps its blocks leaves them held. */
	fill(2, SHMRT_RING_BLOCK, 0);
	struct catch caught = {0};
	CHECK(world_put(&world, 5, 0) == SHMRT_OK);
	CHECK(shmrt_ring_lease(&world.ring, 0, catch_message, &caught, &a) == SHMRT_OK);
	CHECK(shmrt_ring_release_keep(&world.ring, a) == SHMRT_OK && caught.block_count == 1);
	catch_free(&world, &caught);
	CHECK(blocks_used(&world.arena) == 0);
	sound();
}

static void test_close(void) {
	uint64_t lease, done;
	struct catch caught = {0};
	fill(3, SHMRT_RING_BLOCK, 2);
	CHECK(shmrt_ring_close(&world.ring) == SHMRT_OK && world_put(&world, 5, SHMRT_FOREVER) == SHMRT_CLOSED);
	CHECK(world_get(&world) == 1 && world_lease(&world, &lease) == 2);
	/* The last one may still come back, so it is not the end yet. */
	CHECK(shmrt_ring_get(&world.ring, 1, 1000000, catch_message, &caught, &done) == SHMRT_TIMEOUT);
	CHECK(shmrt_ring_give_back(&world.ring, lease) == SHMRT_OK && world_get(&world) == 2);
	CHECK(shmrt_ring_get(&world.ring, 1, SHMRT_FOREVER, catch_message, &caught, &done) == SHMRT_CLOSED);
	CHECK(shmrt_ring_lease(&world.ring, 0, catch_message, &caught, &lease) == SHMRT_CLOSED);
}

static void test_damage(void) {
	struct catch caught = {0};
	uint64_t done;
	fill(4, SHMRT_RING_BLOCK, 3);
	shmrt_ring_slot_at(&world.ring, world.ring.start)->inline_size = 1 << 20;
	shmrt_ring_references(shmrt_ring_slot_at(&world.ring, world.ring.start + 1))->generation += 9;
	CHECK(shmrt_ring_check(&world.ring) == SHMRT_CORRUPT);
	CHECK(shmrt_ring_get(&world.ring, 1, 0, catch_message, &caught, &done) == SHMRT_CORRUPT && done == 0);
	CHECK(shmrt_ring_get(&world.ring, 1, 0, catch_message, &caught, &done) == SHMRT_CORRUPT && caught.count == 0);
	CHECK(world_get(&world) == 3); /* one bad message does not hide the others */
	_Atomic uint64_t *words[] = {&world.ring.shared->head, &world.ring.shared->tail, &world.ring.shared->next,
				     &world.ring.shared->holes};
	for (unsigned i = 0; i < 4; i++) {
		fill(4, SHMRT_RING_BLOCK, 4);
		shmrt_ring_store(words[i], UINT64_C(0x123456789) + i);
		CHECK(shmrt_ring_get(&world.ring, 1, 0, catch_message, &caught, &done) == SHMRT_CORRUPT);
		CHECK(world_put(&world, 6, 0) == (i == 2 ? SHMRT_FULL : SHMRT_CORRUPT)); /* `next` is the takers' business */
		CHECK(shmrt_ring_release(&world.ring, 1) == SHMRT_CORRUPT);
	}
	struct shmrt_ring ring;
	uint64_t *geometry = &world.ring.shared->slots;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t lies[] = {0, geometry[i] + 1000, UINT64_MAX, UINT64_C(1) << 33}, right = geometry[i];
		for (unsigned j = 0; j < 4; j++) {
			geometry[i] = lies[j];
			CHECK(shmrt_ring_attach(&ring, world.region, shmrt_ring_bytes(4, SLOT_BYTES), -1, NULL) == SHMRT_CORRUPT);
		}
		geometry[i] = right;
	}
	CHECK(shmrt_ring_attach(&ring, world.region, shmrt_ring_bytes(4, SLOT_BYTES) - 1, -1, NULL) == SHMRT_CORRUPT);
	CHECK(shmrt_ring_bytes(0, 8) == 0 && shmrt_ring_bytes(1, 0) == 0 && shmrt_ring_bytes(UINT64_MAX, UINT64_MAX) == 0);
}

static void on_signal(int number) { (void)number; }

/* True once somebody has armed the bell: the child is asleep, or about to be and will not miss a ring. */
static void wait_armed(const _Atomic uint32_t *bell) {
	while (atomic_load(bell) == 0)
		usleep(100);
}

static pid_t child_gets(int64_t timeout_ns, int expected, unsigned number) {
	pid_t child = fork();
	if (child != 0)
		return child;
	struct catch caught = {0};
	uint64_t done;
	int rc = shmrt_ring_get(&world.ring, 1, timeout_ns, catch_message, &caught, &done);
	_exit(rc == expected && (rc != SHMRT_OK || caught.numbers[0] == number) ? 0 : 1);
}

static void expect(pid_t child, int expected) {
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == expected);
}

static void test_sleepers(void) {
	fill(2, SHMRT_RING_BLOCK, 0);
	pid_t child = child_gets(SHMRT_FOREVER, SHMRT_OK, 1);
	wait_armed(&world.ring.shared->bell_not_empty);
	CHECK(world_put(&world, 1, 0) == SHMRT_OK);
	expect(child, 0);
	fill(2, SHMRT_RING_BLOCK, 0);
	pid_t several[3];
	for (unsigned i = 0; i < 3; i++)
		several[i] = child_gets(SHMRT_FOREVER, SHMRT_CLOSED, 0);
	wait_armed(&world.ring.shared->bell_not_empty);
	CHECK(shmrt_ring_close(&world.ring) == SHMRT_OK);
	for (unsigned i = 0; i < 3; i++)
		expect(several[i], 0);
	fill(1, SHMRT_RING_BLOCK, 1);
	if ((child = fork()) == 0)
		_exit(world_put(&world, 2, SHMRT_FOREVER) == SHMRT_OK ? 0 : 1);
	wait_armed(&world.ring.shared->bell_not_full);
	CHECK(world_get(&world) == 1);
	expect(child, 0);
	CHECK(world_get(&world) == 2);
	/* A signal is an answer, not a delay. */
	struct sigaction action = {.sa_handler = on_signal};
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	child = child_gets(SHMRT_FOREVER, SHMRT_INTERRUPTED, 0);
	atomic_store(&world.ring.shared->bell_not_empty, 0);
	for (int status; waitpid(child, &status, WNOHANG) == 0; usleep(1000))
		kill(child, SIGUSR1); /* again, in case it was not asleep yet */
}

static void test_holders(void) {
	/* A lease holder dies while somebody sleeps for ever: nobody rings, yet the message comes. */
	fill(2, SHMRT_RING_BLOCK, 1);
	uint64_t lease;
	int pipes[2];
	CHECK(pipe(pipes) == 0);
	pid_t holder = fork();
	if (holder == 0) {
		CHECK(world_lease(&world, &lease) == 1 && write(pipes[1], "x", 1) == 1);
		for (;;)
			pause();
	}
	char byte;
	CHECK(read(pipes[0], &byte, 1) == 1);
	pid_t sleeper = child_gets(SHMRT_FOREVER, SHMRT_OK, 1);
	wait_armed(&world.ring.shared->bell_not_empty);
	CHECK(kill(holder, SIGKILL) == 0);
	expect(holder, SIGKILL);
	expect(sleeper, 0);
	/* The holder of a mutex is stopped, then dies: first an answer, then a repair. The other side goes on. */
	for (enum shmrt_ring_side side = SHMRT_RING_PUT; side <= SHMRT_RING_BOTH; side++) {
		bool takes = (side & SHMRT_RING_TAKE) == 0, puts = (side & SHMRT_RING_PUT) == 0;
		fill(4, SHMRT_RING_BLOCK, 2);
		if ((holder = fork()) == 0) {
			CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); /* nobody stays behind when a check fails */
			CHECK(shmrt_ring_lock(&world.ring, side) == SHMRT_OK);
			if (!puts)
				shmrt_ring_store(&world.ring.shared->intent, world.ring.shared->tail - world.ring.start + 1);
			if (!takes)
				shmrt_ring_store(&world.ring.shared->leased, 7);
			CHECK(write(pipes[1], "x", 1) == 1);
			for (;;)
				pause();
		}
		CHECK(read(pipes[0], &byte, 1) == 1);
		uint64_t done;
		struct catch caught = {0};
		CHECK(world_put(&world, 3, 0) == (puts ? SHMRT_OK : SHMRT_INTERRUPTED));
		CHECK(takes ? world_get(&world) == 1
			    : shmrt_ring_get(&world.ring, 1, 0, catch_message, &caught, &done) == SHMRT_INTERRUPTED);
		CHECK(kill(holder, SIGKILL) == 0);
		expect(holder, SIGKILL);
		CHECK(world_put(&world, 4, 0) == SHMRT_OK);
		for (unsigned number = takes ? 2 : 1; number <= 4; number++)
			CHECK((number == 3 && !puts) || world_get(&world) == number);
		CHECK(shmrt_ring_load(&world.ring.shared->repairs) == 1);
		CHECK(atomic_load_explicit(&world.ring.shared->damaged, memory_order_relaxed) == 0);
		sound();
	}
	close(pipes[0]);
	close(pipes[1]);
}

int main(void) {
	alarm(200); /* only a failure ends here */
	dead_owner();
	for (unsigned number = 1; number < MESSAGES; number++)
		plan[number] = (struct message_plan){.size = number % 19, .blocks = (uint16_t)(number % 5 == 0), .frozen = number % 2};
	plan[60].blocks = 0;
	plan[2].blocks = 1;
	test_bound_and_order();
	test_full_policies();
	test_sizes_and_blocks();
	test_bulk();
	test_runs();
	test_leases();
	test_close();
	test_damage();
	test_sleepers();
	test_holders();
	printf("ring: ok\n");
	return 0;
}
