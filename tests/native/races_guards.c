/* races_guards.c -- for ThreadSanitizer: threads share a bulkhead of one permit, on one mapping.
 *
 * Who has the permit adds to a plain number: the bulkhead alone keeps two of them apart, and hands on what the last one wrote.
 *
 * No breaker: who looks at one without its mutex (edge Q2) reads plain bytes that are written meanwhile, by design, and finds
 * afterwards that the gate has moved. That is a data race by the letter of C11; test_breaker_look.c steps through it instead.
 */
#include "guards_world.h"

#include <pthread.h>

#define THREADS 3
#define TURNS 1500
#define REGION 4096
#define PATIENCE_NS INT64_C(10000000000)

static uint8_t bulkhead_region[REGION] __attribute__((aligned(4096)));
static struct shmrt_bulkhead *bulkhead = (void *)bulkhead_region;
static uint64_t number; /* plain: only with the permit */

static void pass_the_bulkhead(struct shmrt_holder me) {
	struct shmrt_permit permit, place = {0};
	uint32_t bell;
	for (;;) {
		int rc = shmrt_bulkhead_take(bulkhead, &table.control, me, PATIENCE_NS, &permit, &place, &bell);
		if (rc == SHMRT_OK)
			break;
		CHECK(rc == SHMRT_EMPTY || rc == SHMRT_INTERRUPTED);
		if (rc == SHMRT_EMPTY) {
			rc = shmrt_futex_wait(&bulkhead->bell, bell, SHMRT_BULKHEAD_SLICE_NS);
			CHECK(rc == SHMRT_OK || rc == SHMRT_TIMEOUT || rc == SHMRT_INTERRUPTED);
		}
	}
	number++;
	CHECK(shmrt_bulkhead_give_back(bulkhead, PATIENCE_NS, &permit) == SHMRT_OK);
}

static void *work(void *which) {
	struct shmrt_holder me = holder_in(ALIVE + (uint32_t)(uintptr_t)which);
	for (unsigned turn = 0; turn < TURNS; turn++)
		pass_the_bulkhead(me);
	return NULL;
}

int main(void) {
	static const struct shmrt_bulkhead_settings one = {.capacity = 1, .limit = 1, .most_waiting = THREADS};
	pthread_t threads[THREADS];
	world_begin();
	world_set(DEAD, SHMRT_SLOT_READY);
	guard_make(bulkhead_region, REGION, SHMRT_GUARD_BULKHEAD, shmrt_bulkhead_body_bytes(&one), shmrt_bulkhead_fill, &one);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(number == THREADS * TURNS);
	return 0;
}
