/* ring_report.h -- what a full ring counts, and whose turn it is to report it.
 *
 * Words `refused`, `expired`, `abandoned`, `cleared` of struct shmrt_ring_shared are added to, atomically and without the
 * mutex, by the process that it happened to, once it has. Died before: that one is not counted, and nobody was told of it.
 * There is nothing to repair. They live as long as the ring: no restart of whoever puts or takes resets them. `dropped` is
 * the ring's own (ring.h), but for a mailbox with drop_newest, where the putter adds to it.
 *
 * A report is made at most once in SHMRT_REPORT_NS, however many processes meet the full ring: whoever moves `told_ns` by
 * compare-and-swap makes it, of everything since `told_*`, which only grow and are raised by compare-and-swap, so that no
 * refusal is reported twice. Died after `told_ns`: the next report says it, in a second. Died after `told_*`: those are
 * counted and never reported.
 */
#ifndef SHMRT_RING_REPORT_H
#define SHMRT_RING_REPORT_H

#include "ring.h"

#define SHMRT_REPORT_NS UINT64_C(1000000000)

struct shmrt_ring_tally {
	uint64_t refused, dropped, expired;
};

/* `word` is one of the four above. */
void shmrt_ring_count(struct shmrt_ring *, _Atomic uint64_t *word, uint64_t more);
/* Whether to ask somebody who can report: at most once in SHMRT_REPORT_NS per process, and not if it was done just now. */
SHMRT_MUST_USE bool shmrt_ring_wants_report(struct shmrt_ring *, uint64_t now_ns);
/* True: the report is the caller's to make, of so many since the last one. */
SHMRT_MUST_USE bool shmrt_ring_take_report(struct shmrt_ring *, uint64_t now_ns, struct shmrt_ring_tally *since);
/* Whether there is anything that no report has told. */
bool shmrt_ring_has_news(const struct shmrt_ring *);

#endif
