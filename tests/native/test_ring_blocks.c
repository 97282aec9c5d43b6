/* test_ring_blocks.c -- ring and real arena together: payloads cross processes whole, and none is lost
 * or kept when senders and receivers are killed. */
#define _GNU_SOURCE
#include "check.h"
#include "ring.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct shmrt_arena arena;
static struct shmrt_ring ring;
static struct shmrt_shortage shortage;
static _Atomic uint64_t *count; /* messages that came out whole */

static void send_one(uint64_t number, int64_t timeout_ns) {
	uint64_t size = 500 + number % 13 * 700, done;
	struct shmrt_block block;
	if (shmrt_arena_alloc(&arena, size, shmrt_owner_self(), &block, &shortage) != SHMRT_OK)
		_exit(3);
	memset(block.data, (int)(number & 0xFF), size);
	struct shmrt_block_reference reference = {.block = block.block, .size = size, .generation = block.generation};
	struct shmrt_ring_message message = {.inline_bytes = (const uint8_t *)&number, .inline_size = sizeof number,
					     .block_count = 1, .blocks = &reference};
	int rc;
	do
		rc = shmrt_ring_put(&ring, &message, 1, timeout_ns, &done);
	while (rc == SHMRT_INTERRUPTED);
	if (rc != SHMRT_OK)
		_exit(4);
}

struct received { uint64_t number; struct shmrt_block_reference reference; };
static void receive(void *context, const struct shmrt_ring_message *message) {
	struct received *received = context;
	memcpy(&received->number, message->inline_bytes, sizeof received->number);
	received->reference = message->blocks[0];
}

static int receive_one(int64_t timeout_ns) {
	struct received received;
	struct shmrt_block block;
	uint64_t done;
	int rc;
	do
		rc = shmrt_ring_get(&ring, 1, timeout_ns, receive, &received, &done);
	while (rc == SHMRT_INTERRUPTED);
	if (rc != SHMRT_OK)
		return rc;
	if (shmrt_arena_resolve(&arena, &received.reference, &block) != SHMRT_OK)
		_exit(5);
	for (uint64_t i = 0; i < received.reference.size; i++)
		if (block.data[i] != (uint8_t)received.number)
			_exit(6);
	if (shmrt_arena_free(&arena, block.block, block.generation, SHMRT_BLOCK_HELD, shmrt_owner_self()) != SHMRT_OK)
		_exit(7);
	atomic_fetch_add(count, 1);
	return SHMRT_OK;
}

static pid_t start(bool sends) {
	pid_t child = fork();
	CHECK(child >= 0);
	if (child != 0)
		return child;
	alarm(200);
	if (sends)
		for (uint64_t number = (uint64_t)getpid();; number++)
			send_one(number, SHMRT_FOREVER);
	int rc = SHMRT_OK;
	while (rc == SHMRT_OK)
		rc = receive_one(SHMRT_FOREVER);
	_exit(rc == SHMRT_CLOSED ? 0 : 8);
}

int main(void) {
	alarm(200); /* only a failure ends here */
	uint64_t bytes = shmrt_ring_bytes(4, 64);
	uint8_t *memory = mmap(NULL, bytes + 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	count = (_Atomic uint64_t *)(void *)(memory + shmrt_align_up(bytes, 8));
	CHECK(shmrt_arena_create(&arena, 4 << 20, &shortage) == SHMRT_OK);
	CHECK(shmrt_ring_format((struct shmrt_ring_shared *)(void *)memory, 4, 64, SHMRT_RING_BLOCK, 0, 0) == SHMRT_OK);
	CHECK(shmrt_ring_attach(&ring, memory, bytes, -1, &arena) == SHMRT_OK);
	pid_t children[4] = {start(true), start(true), start(false), start(false)};
	uint64_t seed = shmrt_now_ns();
	printf("seed %llu\n", (unsigned long long)seed);
	for (unsigned i = 0; i < 60; i++) {
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
		struct timespec delay = {.tv_nsec = (long)(seed >> 40) % 1000000};
		nanosleep(&delay, NULL); /* chooses the instruction at which it dies; nothing relies on it */
		unsigned place = (unsigned)(seed >> 33) % 4;
		uint32_t owner = shmrt_owner_of(children[place]);
		int status;
		CHECK(kill(children[place], SIGKILL) == 0 && waitpid(children[place], &status, 0) == children[place]);
		CHECK(WIFSIGNALED(status));
		shmrt_arena_reclaim(&arena, owner, NULL, NULL);
		children[place] = start(place < 2);
	}
	for (unsigned place = 0; place < 2; place++) { /* blocked in a put, or between two */
		int status;
		uint32_t owner = shmrt_owner_of(children[place]);
		CHECK(kill(children[place], SIGKILL) == 0 && waitpid(children[place], &status, 0) == children[place]);
		shmrt_arena_reclaim(&arena, owner, NULL, NULL);
	}
	int rc;
	do
		rc = shmrt_ring_close(&ring);
	while (rc == SHMRT_INTERRUPTED);
	CHECK(rc == SHMRT_OK);
	for (unsigned place = 2; place < 4; place++) {
		int status;
		CHECK(waitpid(children[place], &status, 0) == children[place] && status == 0);
	}
	shmrt_arena_reclaim_dead(&arena);
	struct shmrt_arena_stats stats;
	shmrt_arena_get_stats(&arena, &stats);
	printf("%llu whole messages, %llu blocks left\n", (unsigned long long)atomic_load(count),
	       (unsigned long long)stats.blocks_used);
	CHECK(atomic_load(count) > 0 && stats.blocks_used == 0);
	CHECK(shmrt_ring_check(&ring) == SHMRT_OK && shmrt_arena_check(&arena) == SHMRT_OK);
	shmrt_arena_detach(&arena);
	return 0;
}
