/* test_ring_stress.c -- processes put, get and lease while others of them are killed, and nothing is lost.
 *
 * Every producer numbers its messages and notes in shared memory which it began and which put returned;
 * every consumer counts what it saw. After the last kill the producers finish, the ring is closed, the
 * consumers drain it. A sleeper that nobody wakes, or a mutex that nobody repairs, ends in the watchdog.
 *
 *	test_ring_stress [kills] [seed]
 */
#define _GNU_SOURCE
#include "ring_world.h"

#include <sched.h>
#include <signal.h>
#include <time.h>

#define PRODUCERS 3
#define CONSUMERS 3
#define EACH 200000 /* most messages of a producer */
#define OWNERS 4096

struct shared_state {
	_Atomic uint32_t begun[PRODUCERS];
	_Atomic uint32_t enough; /* the kills are over: stop at the next message */
	_Atomic uint32_t leases_out;
	_Atomic uint8_t returned[PRODUCERS][EACH];
	_Atomic uint8_t seen[PRODUCERS][EACH];
};
static struct shared_state *state;
static struct world world;
static uint64_t random_word;

static uint32_t random_below(uint32_t most) {
	random_word ^= random_word << 13, random_word ^= random_word >> 7, random_word ^= random_word << 17;
	return (uint32_t)(random_word >> 20) % most;
}

struct stress_message { uint32_t producer, number; uint8_t bytes[96]; };

static void produce(uint32_t producer) {
	struct stress_message body = {.producer = producer};
	for (;;) {
		uint32_t number = atomic_load(&state->begun[producer]);
		if (number == EACH || atomic_load(&state->enough))
			_exit(0);
		atomic_store(&state->begun[producer], number + 1);
		uint32_t size = 8 + (number * 7 + producer) % 97;
		body.number = number;
		memset(body.bytes, (int)(number & 0xFF), sizeof body.bytes);
		struct shmrt_block_reference block;
		struct shmrt_ring_message message = {.inline_bytes = (const uint8_t *)&body, .inline_size = size, .blocks = &block};
		if (number % 3 == 0 && size <= SLOT_BYTES - sizeof block) {
			block = block_new(&world.arena, number % 2 ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_WRITING);
			message.block_count = 1;
		}
		uint64_t done;
		int rc = shmrt_ring_put(&world.ring, &message, 1, SHMRT_FOREVER, &done);
		if (rc == SHMRT_INTERRUPTED)
			rc = shmrt_ring_put(&world.ring, &message, 1, SHMRT_FOREVER, &done);
		if (rc != SHMRT_OK)
			_exit(10);
		atomic_store(&state->returned[producer][number], 1);
	}
}

struct received { struct stress_message body; uint32_t size; uint16_t block_count; struct shmrt_block_reference block; };

static void receive(void *context, const struct shmrt_ring_message *message) {
	struct received *received = context;
	received->size = message->inline_size <= sizeof received->body ? message->inline_size : 0;
	memcpy(&received->body, message->inline_bytes, received->size);
	received->block_count = message->block_count;
	if (message->block_count == 1)
		received->block = message->blocks[0];
}

static void look(const struct received *received) {
	const struct stress_message *body = &received->body;
	if (received->size < 8 || body->producer >= PRODUCERS || body->number >= EACH ||
	    received->size != 8 + (body->number * 7 + body->producer) % 97 || received->block_count > 1)
		_exit(11);
	for (uint32_t i = 0; i < received->size - 8; i++)
		if (body->bytes[i] != (uint8_t)body->number)
			_exit(12);
	atomic_fetch_add(&state->seen[body->producer][body->number], 1);
}

static void consume(bool leases) {
	for (;;) {
		struct received received;
		uint64_t done, position;
		int rc = leases ? shmrt_ring_lease(&world.ring, SHMRT_FOREVER, receive, &received, &position)
				: shmrt_ring_get(&world.ring, 1, SHMRT_FOREVER, receive, &received, &done);
		if (rc == SHMRT_CLOSED)
			_exit(0);
		if (rc == SHMRT_INTERRUPTED)
			continue;
		if (rc != SHMRT_OK)
			_exit(20 - rc);
		look(&received);
		if (leases) {
			while ((rc = shmrt_ring_release(&world.ring, position)) == SHMRT_INTERRUPTED)
				;
			if (rc != SHMRT_OK)
				_exit(40 - rc);
		} else if (received.block_count == 1 &&
			   shmrt_arena_free(&world.arena, received.block.block, received.block.generation,
					    SHMRT_BLOCK_HELD, shmrt_owner_self()) != SHMRT_OK) {
			_exit(13);
		}
	}
}

static pid_t start(uint32_t place, bool leases) {
	bool may_spin = random_below(2) != 0 && world.ring.may_spin;
	pid_t child = fork();
	CHECK(child >= 0);
	if (child != 0)
		return child;
	world.ring.may_spin = may_spin;
	alarm(200); /* also ends children of a parent that failed */
	if (place < PRODUCERS)
		produce(place);
	consume(leases);
	_exit(99);
}

/* As blocks_reclaim, beside living processes: what a repair took back meanwhile is no longer ours. */
static void reclaim(uint32_t dead) {
	for (uint64_t block = 0; block < BLOCKS; block++) {
		enum shmrt_block_state block_state;
		uint32_t generation, owner;
		shmrt_arena_state(&world.arena, block, &block_state, &generation, &owner);
		if (block_state != SHMRT_BLOCK_FREE && owner == dead) {
			int ignored = shmrt_arena_free(&world.arena, block, generation, block_state, owner);
			(void)ignored;
		}
	}
}

static void expect_exit(pid_t child) {
	int status;
	CHECK(waitpid(child, &status, 0) == child);
	if (status != 0)
		fprintf(stderr, "a process ended with status %x\n", (unsigned)status);
	CHECK(status == 0);
}

/* `leases`: consumers lease and nothing may be missing; else they get, and nothing may come twice. */
static void storm(const char *name, uint64_t slots, bool leases, bool kill_consumers, unsigned kills) {
	static uint32_t dead[OWNERS];
	uint32_t dead_count = 0, killed_consumers = 0;
	pid_t children[PRODUCERS + CONSUMERS];
	memset((void *)state, 0, sizeof *state);
	world_make(&world, slots, SHMRT_RING_BLOCK, UINT64_MAX - 1000);
	for (uint32_t place = 0; place < PRODUCERS + CONSUMERS; place++)
		children[place] = start(place, leases);
	for (unsigned i = 0; i < kills; i++) {
		struct timespec delay = {.tv_nsec = (long)random_below(1500000)};
		nanosleep(&delay, NULL); /* chooses the instruction at which it dies; nothing relies on it */
		uint32_t place = random_below(kill_consumers ? PRODUCERS + CONSUMERS : PRODUCERS);
		uint32_t owner = shmrt_owner_of(children[place]);
		kill(children[place], SIGKILL);
		int status;
		CHECK(waitpid(children[place], &status, 0) == children[place]);
		CHECK(WIFSIGNALED(status) || status == 0);
		killed_consumers += place >= PRODUCERS;
		if (owner != 0 && dead_count < OWNERS)
			dead[dead_count++] = owner;
		if (random_below(2) != 0 && owner != 0)
			reclaim(owner);
		children[place] = start(place, leases);
	}
	atomic_store(&state->enough, 1);
	for (uint32_t place = 0; place < PRODUCERS; place++)
		expect_exit(children[place]);
	int rc;
	while ((rc = shmrt_ring_close(&world.ring)) == SHMRT_INTERRUPTED)
		;
	CHECK(rc == SHMRT_OK);
	for (uint32_t place = PRODUCERS; place < PRODUCERS + CONSUMERS; place++)
		expect_exit(children[place]);
	for (uint32_t i = 0; i < dead_count; i++)
		reclaim(dead[i]);
	uint64_t put = 0, missing = 0, twice = 0, invented = 0;
	for (uint32_t producer = 0; producer < PRODUCERS; producer++)
		for (uint32_t number = 0; number < EACH; number++) {
			unsigned seen = atomic_load(&state->seen[producer][number]);
			bool returned = atomic_load(&state->returned[producer][number]) != 0;
			put += returned;
			missing += returned && seen == 0;
			twice += seen > 1 ? seen - 1 : 0;
			invented += seen != 0 && number >= atomic_load(&state->begun[producer]);
		}
	printf("%s: %llu put, %u killed (%u consumers), %llu missing, %llu again, %llu repairs\n", name,
	       (unsigned long long)put, kills, killed_consumers, (unsigned long long)missing, (unsigned long long)twice,
	       (unsigned long long)shmrt_ring_load(&world.ring.shared->repairs));
	fflush(stdout);
	CHECK(put > 0 && invented == 0);
	if (leases)
		CHECK(missing == 0 && twice <= killed_consumers);
	else
		CHECK(twice == 0 && missing <= killed_consumers);
	CHECK(shmrt_ring_check(&world.ring) == SHMRT_OK && shmrt_ring_depth(&world.ring) == 0);
	CHECK(blocks_used(&world.arena) == 0);
}

int main(int argc, char **argv) {
	unsigned kills = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 60;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : shmrt_now_ns() % 1000000 + 1;
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	random_word = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
	alarm(200); /* only a failure ends here */
	shmrt_usable_cpus();
	state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(state != MAP_FAILED);
	storm("producers die", 8, false, false, kills);
	storm("producers and takers die", 3, false, true, kills);
	storm("producers and lease holders die", 8, true, true, kills);
	storm("one slot", 1, true, true, kills);
	return 0;
}
