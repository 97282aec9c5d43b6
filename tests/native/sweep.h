/* sweep.h -- looks at shared memory as a kill -9 would leave it, after every single instruction.
 *
 * A process that is killed stops between two instructions, and every store before that point is
 * visible to the survivors. So: run an operation one instruction at a time, copy the shared region
 * after each, and let a judge treat the copy as what a dead process left behind (attach anew, check,
 * repair, drain). The copy is page aligned and holds the region's bytes at the same offsets, so code
 * that uses offsets only works on it as it would on the original; private structs must be attached
 * anew to the copy.
 *
 *	static void put(void *context) { lane_send(context, "hello"); }
 *	static int judge(void *copy, size_t step, void *expected) {
 *		if (!valid(copy))
 *			return SWEEP_BROKEN;                    // ends the sweep: red
 *		return holds(copy, expected) ? SWEEP_AFTER : SWEEP_BEFORE;
 *	}
 *	...
 *	struct sweep_report report = sweep_run(put, &producer, region, size, judge, "hello");
 *	sweep_expect(&report, "put of one record");             // clean, and both outcomes were seen
 *
 * How: on x86-64 with the trap flag in the own process (about 90 000 steps per second); elsewhere, or
 * with SWEEP_PTRACE=1 in the environment, by ptrace on a forked child that shares this process's CPU.
 * In both ways the operation has run once in this process when sweep_run returns. With neither, and
 * under AddressSanitizer (whose own code would be stepped), the sweep is skipped loudly: the judge then
 * sees only the region before and after.
 *
 * Rules: the operation must be the only thread that touches the region and must not allocate, print,
 * or block signals (the judge runs in between, in a signal handler on its own 1 MiB stack, with
 * single-stepping off; it may do anything if the operation keeps to this, and may scribble on the
 * copy). System calls inside the operation are fine. The judge's answer must depend on the copy alone:
 * it is called only when the bytes changed, and an unchanged state counts like the one before it. The
 * first instruction is judged, too: the state before the operation. Keep payloads small: a `rep movs`
 * is one step per element.
 */
#ifndef SHMRT_TEST_SWEEP_H
#define SHMRT_TEST_SWEEP_H

#include <stdbool.h>
#include <stddef.h>

#define SWEEP_BROKEN (-1) /* any negative answer ends the sweep and makes it red */
#define SWEEP_BEFORE 0    /* the operation has not happened */
#define SWEEP_AFTER 1     /* the operation has happened */
#define SWEEP_OUTCOMES 64 /* answers 2 .. 63: whatever states in between are legal, counted apart */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SWEEP_SANITIZED 1
#else
#define SWEEP_SANITIZED 0
#endif

struct sweep_report {
	size_t states;               /* instructions after which the region was looked at */
	size_t changes;              /* states that differed from the one before: calls of the judge */
	size_t seen[SWEEP_OUTCOMES]; /* states per answer */
	int broken;                  /* the negative answer, or 0 */
	size_t broken_step;          /* where */
	bool skipped;                /* only before and after were judged */
};

struct sweep_report sweep_run(void (*operation)(void *context), void *context, void *region, size_t size,
			      int (*judge)(void *copy, size_t step, void *judge_context), void *judge_context);

/* Ends the test with a message unless the sweep was clean and saw both SWEEP_BEFORE and SWEEP_AFTER. */
void sweep_expect(const struct sweep_report *report, const char *what);
/* The same for operations that have one outcome only (a check, a read, a refused request). */
void sweep_expect_clean(const struct sweep_report *report, const char *what);

/* States judged since the program started, over all sweeps; for a closing line of the test. With SWEEP_COUNT=path
 * in the environment the program writes at its end how many sweeps and states there were, for docs/proof.md. */
size_t sweep_total_states(void);
/* SWEEP_LONG=1 in the environment: look at all states where the short tier looks at a sample. */
bool sweep_is_long(void);

#endif
