/* ring_report.c -- counts beside the mutex, and the turn to report them. Who writes what, and what a death leaves: ring_report.h. */
#include "ring_report.h"

static uint64_t report_load(const _Atomic uint64_t *word) {
	return atomic_load_explicit(word, memory_order_relaxed); /* a count orders nothing */
}

void shmrt_ring_count(struct shmrt_ring *ring, _Atomic uint64_t *word, uint64_t more) {
	atomic_fetch_add_explicit(word, more, memory_order_relaxed);             /* a count orders nothing */
	atomic_store_explicit(&ring->noted, true, memory_order_relaxed);         /* private */
}

static bool report_is_due(uint64_t now_ns, uint64_t told_ns) {
	return told_ns == 0 || now_ns - told_ns >= SHMRT_REPORT_NS;
}

bool shmrt_ring_wants_report(struct shmrt_ring *ring, uint64_t now_ns) {
	uint64_t looked_ns = atomic_load_explicit(&ring->looked_ns, memory_order_relaxed); /* private */
	atomic_store_explicit(&ring->noted, false, memory_order_relaxed);                  /* private */
	if (!report_is_due(now_ns, looked_ns) || !report_is_due(now_ns, report_load(&ring->shared->told_ns)))
		return false;
	atomic_store_explicit(&ring->looked_ns, now_ns, memory_order_relaxed); /* private */
	return true;
}

/* How much `told` was behind `total`, which it is not any more. */
static uint64_t report_raise(_Atomic uint64_t *told, uint64_t total) {
	uint64_t before = report_load(told);
	while (before < total)
		if (atomic_compare_exchange_weak_explicit(told, &before, total, memory_order_relaxed, memory_order_relaxed)) /* a count */
			return total - before;
	return 0;
}

bool shmrt_ring_has_news(const struct shmrt_ring *ring) {
	const struct shmrt_ring_shared *shared = ring->shared;
	return report_load(&shared->refused) > report_load(&shared->told_refused) ||
	       report_load(&shared->dropped) > report_load(&shared->told_dropped) ||
	       report_load(&shared->expired) > report_load(&shared->told_expired);
}

bool shmrt_ring_take_report(struct shmrt_ring *ring, uint64_t now_ns, struct shmrt_ring_tally *since) {
	struct shmrt_ring_shared *shared = ring->shared;
	uint64_t told_ns = report_load(&shared->told_ns);
	if (!report_is_due(now_ns, told_ns) || !shmrt_ring_has_news(ring) ||
	    !atomic_compare_exchange_strong_explicit(&shared->told_ns, &told_ns, now_ns, memory_order_relaxed, memory_order_relaxed)) /* a turn */
		return false;
	since->refused = report_raise(&shared->told_refused, report_load(&shared->refused));
	since->dropped = report_raise(&shared->told_dropped, report_load(&shared->dropped));
	since->expired = report_raise(&shared->told_expired, report_load(&shared->expired));
	return since->refused + since->dropped + since->expired != 0;
}
