/* races_ring.c -- for ThreadSanitizer: threads put, get and lease on one mapping of a ring with four slots. */
#include "ring_world.h"

#include <pthread.h>

#define PUTTERS 2
#define TAKERS 2
#define EACH 2000

static struct world world;
static _Atomic unsigned taken;

static void *put(void *nothing) {
	struct world mine;
	world_attach(&mine, world.region, world.size);
	for (unsigned i = 0; i < EACH; i++) {
		int rc;
		while ((rc = world_put(&mine, 1 + i % (MESSAGES - 1), SHMRT_FOREVER)) == SHMRT_INTERRUPTED)
			;
		CHECK(rc == SHMRT_OK);
	}
	return nothing;
}

static void *take(void *leases) {
	struct world mine;
	world_attach(&mine, world.region, world.size);
	for (;;) {
		struct catch caught = {0};
		uint64_t done, position;
		int rc = leases ? shmrt_ring_lease(&mine.ring, SHMRT_FOREVER, catch_message, &caught, &position)
				: shmrt_ring_get(&mine.ring, 3, SHMRT_FOREVER, catch_message, &caught, &done);
		if (rc == SHMRT_INTERRUPTED)
			continue;
		if (rc == SHMRT_CLOSED)
			return NULL;
		CHECK(rc == SHMRT_OK && !caught.torn);
		atomic_fetch_add_explicit(&taken, caught.count, memory_order_relaxed);
		if (leases) {
			while ((rc = shmrt_ring_release(&mine.ring, position)) == SHMRT_INTERRUPTED)
				;
			CHECK(rc == SHMRT_OK);
		} else
			catch_free(&mine, &caught);
	}
}

int main(void) {
	pthread_t putters[PUTTERS], takers[TAKERS];
	for (unsigned i = 1; i < MESSAGES; i++)
		plan[i] = (struct message_plan){.size = i % 60, .blocks = i % 3 == 0, .frozen = i % 2};
	world_make(&world, 4, SHMRT_RING_BLOCK, 0);
	for (uintptr_t i = 0; i < TAKERS; i++)
		CHECK(pthread_create(&takers[i], NULL, take, (void *)(i % 2)) == 0);
	for (unsigned i = 0; i < PUTTERS; i++)
		CHECK(pthread_create(&putters[i], NULL, put, NULL) == 0);
	for (unsigned i = 0; i < PUTTERS; i++)
		CHECK(pthread_join(putters[i], NULL) == 0);
	CHECK(shmrt_ring_close(&world.ring) == SHMRT_OK);
	for (unsigned i = 0; i < TAKERS; i++)
		CHECK(pthread_join(takers[i], NULL) == 0);
	CHECK(taken == PUTTERS * EACH && blocks_used(&world.arena) == 0 && shmrt_ring_check(&world.ring) == SHMRT_OK);
	return 0;
}
