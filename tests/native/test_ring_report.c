/* test_ring_report.c -- counts of a full ring and the turn to report them: at most one in its time, nothing twice, nothing lost. */
#define _GNU_SOURCE
#include "ring_world.h"

#include "ring_report.h"

#include <pthread.h>

#define THREADS 4
#define EACH 20000

static struct world world;

static void test_a_turn_comes_once_in_its_time(void) {
	struct shmrt_ring_tally since;
	uint64_t now = 5 * SHMRT_REPORT_NS;
	world_make(&world, 4, SHMRT_RING_RAISE, 0);
	struct shmrt_ring *ring = &world.ring;
	CHECK(!shmrt_ring_take_report(ring, now, &since) && !shmrt_ring_has_news(ring));
	shmrt_ring_count(ring, &ring->shared->refused, 1);
	CHECK(ring->noted && shmrt_ring_has_news(ring));
	CHECK(shmrt_ring_wants_report(ring, now) && !ring->noted);
	CHECK(shmrt_ring_take_report(ring, now, &since));
	CHECK(since.refused == 1 && since.dropped == 0 && since.expired == 0 && !shmrt_ring_has_news(ring));
	shmrt_ring_count(ring, &ring->shared->refused, 2);
	shmrt_ring_count(ring, &ring->shared->expired, 3);
	shmrt_ring_count(ring, &ring->shared->abandoned, 7); /* is not reported */
	CHECK(!shmrt_ring_wants_report(ring, now + SHMRT_REPORT_NS - 1));
	CHECK(!shmrt_ring_take_report(ring, now + SHMRT_REPORT_NS - 1, &since) && shmrt_ring_has_news(ring));
	CHECK(shmrt_ring_wants_report(ring, now + SHMRT_REPORT_NS));
	CHECK(!shmrt_ring_wants_report(ring, now + SHMRT_REPORT_NS + 1)); /* asked already */
	CHECK(shmrt_ring_take_report(ring, now + SHMRT_REPORT_NS, &since));
	CHECK(since.refused == 2 && since.dropped == 0 && since.expired == 3 && !shmrt_ring_has_news(ring));
}

/* One that had its turn, read the counts, and was stopped for longer than a turn lasts: the next has told of more meanwhile. */
static void test_a_slow_reporter_takes_nothing_back(void) {
	struct shmrt_ring_tally since;
	world_make(&world, 4, SHMRT_RING_RAISE, 0);
	struct shmrt_ring *ring = &world.ring;
	shmrt_ring_count(ring, &ring->shared->refused, 3);
	shmrt_ring_count(ring, &ring->shared->expired, 1);
	shmrt_ring_store(&ring->shared->told_refused, 10);
	CHECK(shmrt_ring_take_report(ring, SHMRT_REPORT_NS, &since));
	CHECK(since.refused == 0 && since.expired == 1 && shmrt_ring_load(&ring->shared->told_refused) == 10);
}

static _Atomic uint64_t clock_ns;
static _Atomic uint64_t told_refused, told_expired;

static void *refuse_and_report(void *context) {
	struct shmrt_ring ring = *(struct shmrt_ring *)context; /* what is private, as in a process of its own */
	for (int i = 0; i < EACH; i++) {
		struct shmrt_ring_tally since;
		shmrt_ring_count(&ring, &ring.shared->refused, 1);
		shmrt_ring_count(&ring, &ring.shared->expired, 2);
		uint64_t now = atomic_fetch_add_explicit(&clock_ns, SHMRT_REPORT_NS / 2, memory_order_relaxed); /* a clock */
		if (shmrt_ring_take_report(&ring, now, &since)) {
			atomic_fetch_add_explicit(&told_refused, since.refused, memory_order_relaxed); /* a sum */
			atomic_fetch_add_explicit(&told_expired, since.expired, memory_order_relaxed); /* a sum */
		}
	}
	return NULL;
}

static void test_nothing_is_told_twice(void) {
	pthread_t threads[THREADS];
	struct shmrt_ring_tally since = {0};
	world_make(&world, 4, SHMRT_RING_RAISE, 0);
	atomic_store_explicit(&clock_ns, SHMRT_REPORT_NS, memory_order_relaxed); /* before the threads */
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, refuse_and_report, &world.ring) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	if (shmrt_ring_has_news(&world.ring))
		CHECK(shmrt_ring_take_report(&world.ring, UINT64_MAX / 2, &since));
	uint64_t refused = atomic_load_explicit(&told_refused, memory_order_relaxed); /* after the threads */
	uint64_t expired = atomic_load_explicit(&told_expired, memory_order_relaxed); /* after the threads */
	CHECK(refused + since.refused == THREADS * EACH);
	CHECK(expired + since.expired == 2 * THREADS * EACH);
	CHECK(shmrt_ring_check(&world.ring) == SHMRT_OK); /* these words are no part of its soundness */
}

int main(void) {
	test_a_turn_comes_once_in_its_time();
	test_a_slow_reporter_takes_nothing_back();
	test_nothing_is_told_twice();
	puts("ok");
	return 0;
}
