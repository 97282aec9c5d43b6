/* test_sweep.c -- the harness itself: it sees every state of a store sequence, and a deliberate bug. */
#include "sweep.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct region {
	_Atomic uint64_t tail;
	uint8_t payload[24];
	uint32_t pid;
};

static struct region region;

static void write_payload(void) {
	for (size_t i = 0; i < sizeof region.payload; i++)
		((volatile uint8_t *)region.payload)[i] = 'x';
	region.pid = (uint32_t)getpid(); /* a system call inside the operation */
}

static void right(void *context) {
	(void)context;
	write_payload();
	atomic_store_explicit(&region.tail, 1, memory_order_release); /* the commit */
}

static void wrong(void *context) {
	(void)context;
	atomic_store_explicit(&region.tail, 1, memory_order_release); /* the bug: commit before payload */
	atomic_signal_fence(memory_order_seq_cst);                    /* keeps the compiler from repairing it */
	write_payload();
}

static int judge(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	struct region *left = copy;
	if (atomic_load_explicit(&left->tail, memory_order_acquire) == 0) /* the commit */
		return SWEEP_BEFORE;
	for (size_t i = 0; i < sizeof left->payload; i++)
		if (left->payload[i] != 'x')
			return SWEEP_BROKEN;
	memset(left, 0xEE, sizeof *left); /* a judge may scribble */
	return SWEEP_AFTER;
}

int main(void) {
	struct sweep_report report = sweep_run(right, NULL, &region, sizeof region, judge, NULL);
	sweep_expect(&report, "payload, then tail");
	if (atomic_load_explicit(&region.tail, memory_order_acquire) != 1 || region.payload[23] != 'x') { /* commit */
		fprintf(stderr, "the operation did not run in this process\n");
		return 1;
	}
	if (!report.skipped && report.changes < sizeof region.payload) {
		fprintf(stderr, "only %zu changes seen in %zu states\n", report.changes, report.states);
		return 1;
	}
	memset(&region, 0, sizeof region);
	report = sweep_run(wrong, NULL, &region, sizeof region, judge, NULL);
	if (!report.skipped && report.broken != SWEEP_BROKEN) {
		fprintf(stderr, "a commit before its payload went unnoticed in %zu states\n", report.states);
		return 1;
	}
	printf("%zu states\n", sweep_total_states());
	return 0;
}
