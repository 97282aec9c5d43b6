/* test_call_stress.c -- callers that lose patience and servers that answer late race for the same slots.
 *
 * Threads of one process: the words are the same for all. Every reply that a caller reads must be that of its own call;
 * every call ends; and in the end no slot and no block is lost. Prints the seed; run it with another: test_call_stress 7.
 */
#include "call_world.h"

#include <pthread.h>

#define CALLERS 2
#define SERVERS 2
#ifdef __SANITIZE_THREAD__ /* every access costs ten there, and one run of each kind is enough */
#define ROUNDS 8000
#else
#define ROUNDS 60000
#endif
#define LATE 4

static struct call_world world;
static _Atomic uint64_t requests[CALLERS]; /* reference + 1; 0: none */
static _Atomic uint32_t callers_left = CALLERS;
static _Atomic uint64_t replies, dropped, timeouts, abandoned, failed;
static unsigned seed = 1;

static unsigned draw(unsigned *state, unsigned most) {
	*state = *state * 1103515245 + 12345;
	return (*state >> 8) % most;
}
static void count(_Atomic uint64_t *number) { atomic_fetch_add_explicit(number, 1, memory_order_relaxed); }

/* What stands in a reply follows from its call. */
static unsigned number_of(uint32_t generation) { return generation % 60000; }
static uint32_t size_of(uint32_t generation) { return generation % 90; }

static void answer(uint64_t reference, unsigned *state) {
	uint32_t index = (uint32_t)(reference >> 32), generation = (uint32_t)reference;
	struct call_memory memory;
	uint16_t blocks = draw(state, 4) == 0;
	struct shmrt_call_message message = reply_make(&world, &memory, number_of(generation), size_of(generation), blocks, false);
	if (shmrt_call_reply(&world.calls, index, generation, &world.arena, &message) == SHMRT_OK) {
		count(&replies);
		return;
	}
	count(&dropped);
	for (uint16_t i = 0; i < blocks; i++) { /* ours still, unless it was freed with an abandoned slot */
		int ignored = shmrt_arena_free(&world.arena, memory.blocks[i].block, memory.blocks[i].generation, SHMRT_BLOCK_WRITING,
					       shmrt_owner_self());
		(void)ignored;
	}
}

static void *serve(void *context) {
	unsigned state = seed * 77 + (unsigned)(uintptr_t)context;
	uint64_t late[LATE] = {0};
	while (atomic_load_explicit(&callers_left, memory_order_acquire) != 0) { /* of this test */
		for (unsigned i = 0; i < CALLERS; i++) {
			/* acquire, release: of this test */
			uint64_t request = atomic_exchange_explicit(&requests[i], 0, memory_order_acq_rel);
			if (request == 0 || shmrt_call_take(&world.calls, (uint32_t)((request - 1) >> 32), (uint32_t)(request - 1)) != SHMRT_OK)
				continue;
			unsigned place = draw(&state, 2 * LATE);
			if (place >= LATE) {
				answer(request - 1, &state);
				continue;
			}
			if (late[place] != 0)
				answer(late[place] - 1, &state);
			late[place] = request; /* a while later, when its caller may have gone on */
		}
		unsigned place = draw(&state, 64);
		if (place < LATE && late[place] != 0) {
			answer(late[place] - 1, &state);
			late[place] = 0;
		}
	}
	for (unsigned i = 0; i < LATE; i++)
		if (late[i] != 0)
			answer(late[i] - 1, &state);
	return NULL;
}

static void read_answer(uint32_t index, uint32_t generation) {
	uint8_t body[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
	struct shmrt_call_message message;
	CHECK(shmrt_call_read(&world.calls, index, generation, &world.arena, body, &message) == SHMRT_OK);
	if (message.status == SHMRT_CALL_DOWN)
		return;
	CHECK(message.status == SHMRT_CALL_REPLY);
	CHECK(reply_is_whole(&message, number_of(generation), size_of(generation), message.block_count));
	for (uint16_t i = 0; i < message.block_count; i++)
		CHECK(shmrt_arena_free(&world.arena, message.blocks[i].block, message.blocks[i].generation, SHMRT_BLOCK_HELD,
				       shmrt_owner_self()) == SHMRT_OK);
}

static void *call(void *context) {
	unsigned me = (unsigned)(uintptr_t)context, state = seed * 99 + me;
	uint32_t cursor = 0, index = 0, generation;
	_Atomic uint32_t spin_ns = 0;
	bool have = false;
	for (unsigned round = 0; round < ROUNDS; round++) {
		/* An abandoned one comes back when its writer is done. */
		uint64_t since_ns = shmrt_now_ns();
		while (!have) {
			have = shmrt_call_claim(&world.calls, &cursor, &index) == SHMRT_OK;
			CHECK(shmrt_now_ns() - since_ns < UINT64_C(20000000000));
		}
		uint64_t patience_ns = draw(&state, 8) == 0 ? 100000 : draw(&state, 3000);
		uint64_t deadline_ns = shmrt_now_ns() + patience_ns;
		CHECK(shmrt_call_begin(&world.calls, index, me, deadline_ns, index, &generation) == SHMRT_OK);
		uint64_t reference = (uint64_t)index << 32 | generation;
		atomic_store_explicit(&requests[me], reference + 1, memory_order_release); /* of this test */
		int rc = shmrt_call_wait(&world.calls, index, generation, deadline_ns, draw(&state, 2) ? &spin_ns : NULL);
		if (rc == SHMRT_TIMEOUT) {
			count(&timeouts);
			rc = shmrt_call_give_up(&world.calls, index, generation);
			if (rc == SHMRT_STALE) {
				count(&abandoned);
				have = false;
			}
			if (rc != SHMRT_EMPTY)
				continue;
		}
		read_answer(index, generation);
	}
	if (have)
		shmrt_call_release(&world.calls, index);
	atomic_fetch_sub_explicit(&callers_left, 1, memory_order_acq_rel); /* of this test */
	return NULL;
}

/* The root, which fails what waits for the first caller's server, again and again. */
static void *fail(void *context) {
	(void)context;
	struct shmrt_call_message down = down_make();
	while (atomic_load_explicit(&callers_left, memory_order_acquire) != 0) { /* of this test */
		for (uint32_t i = 0; i < CALLS; i++) {
			uint32_t generation;
			if (!shmrt_call_seize(&world.calls, i, SHMRT_SEIZE_WAITING, 0, &world.arena, &generation))
				continue;
			int ignored = shmrt_call_finish(&world.calls, i, generation, &world.arena, &down);
			(void)ignored;
			count(&failed);
		}
		usleep(50);
	}
	return NULL;
}

int main(int count_of_arguments, char **arguments) {
	pthread_t threads[CALLERS + SERVERS + 1];
	unsigned n = 0;
	if (count_of_arguments > 1)
		seed = (unsigned)atoi(arguments[1]);
	printf("seed %u\n", seed);
	call_world_make(&world);
	for (uintptr_t i = 0; i < CALLERS; i++)
		CHECK(pthread_create(&threads[n++], NULL, call, (void *)i) == 0);
	for (uintptr_t i = 0; i < SERVERS; i++)
		CHECK(pthread_create(&threads[n++], NULL, serve, (void *)i) == 0);
	CHECK(pthread_create(&threads[n++], NULL, fail, NULL) == 0);
	while (n > 0)
		CHECK(pthread_join(threads[--n], NULL) == 0);
	for (uint32_t i = 0; i < CALLS; i++)
		CHECK(state_of(&world, i) == SHMRT_CALL_FREE && shmrt_call_check(&world.calls, i) == SHMRT_OK);
	CHECK(blocks_used(&world.arena) == 0);
	printf("%llu replies, %llu dropped, %llu timeouts, %llu abandoned, %llu failed\n", (unsigned long long)replies,
	       (unsigned long long)dropped, (unsigned long long)timeouts, (unsigned long long)abandoned, (unsigned long long)failed);
	CHECK(replies != 0 && dropped != 0 && timeouts != 0 && failed != 0);
	return 0;
}
