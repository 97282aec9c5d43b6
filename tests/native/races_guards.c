/* races_guards.c -- for ThreadSanitizer: threads share a breaker, and a bulkhead of one permit, on one mapping.
 *
 * Who has the permit adds to a plain number: the bulkhead alone keeps two of them apart, and hands on what the last one wrote.
 * Who looks at the breaker without its mutex (edge Q2) may read a side that is written meanwhile: word by word, so that it is no
 * data race. That it finds the gate moved then is for test_breaker_look.c.
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
static uint8_t breaker_region[REGION] __attribute__((aligned(4096)));
static struct shmrt_breaker *breaker = (void *)breaker_region;

static const struct shmrt_breaker_settings settings = {
	.failure_threshold = 2, .success_threshold = 1, .half_open_max = 2, .reset_ns = 1000, .reset_max_ns = 1000, .growth = 1.0,
	.trial_ns = 1000000000, .window = SHMRT_WINDOW_CALLS, .window_size = 20, .min_calls = 19, .failure_rate = 1.0};

static void pass_the_breaker(struct shmrt_holder me, unsigned turn) {
	struct shmrt_admission admission;
	struct shmrt_breaker_change change;
	struct shmrt_breaker_side side;
	uint64_t retry;
	uint32_t trials;
	int rc = shmrt_breaker_admit(breaker, &table.control, me, shmrt_now_ns(), PATIENCE_NS, &admission, &retry, &change);
	CHECK(rc == SHMRT_OK || rc == SHMRT_FULL);
	shmrt_breaker_look(breaker, &side, &trials);
	CHECK(side.state <= SHMRT_BREAKER_DISABLED && trials <= settings.half_open_max);
	if (rc == SHMRT_OK)
		CHECK(shmrt_breaker_settle(breaker, &admission, turn % 3 ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS, false,
					   shmrt_now_ns(), PATIENCE_NS, &change) == SHMRT_OK);
}

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
		pass_the_bulkhead(me), pass_the_breaker(me, turn);
	return NULL;
}

int main(void) {
	static const struct shmrt_bulkhead_settings one = {.capacity = 1, .limit = 1, .most_waiting = THREADS};
	pthread_t threads[THREADS];
	world_begin();
	world_set(DEAD, SHMRT_SLOT_READY);
	guard_make(bulkhead_region, REGION, SHMRT_GUARD_BULKHEAD, shmrt_bulkhead_body_bytes(&one), shmrt_bulkhead_fill, &one);
	guard_make(breaker_region, REGION, SHMRT_GUARD_BREAKER, shmrt_breaker_body_bytes(&settings), shmrt_breaker_fill, &settings);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(number == THREADS * TURNS);
	return 0;
}
