/* py_turn.h -- until when the message that this thread is dealing with is wanted.
 *
 * Set by whoever takes a message, a worker's loop or a server's, for the thread that runs it, and by nobody else. In a task
 * of a pool what is called or submitted from that thread gets no more time than the task has (`passes_on`): an exception ends
 * the task alone, and nobody wants its result any more. In a server's handler it would end the server, so that a caller with
 * little patience could crash what it calls; there the handler asks, with shmrt.deadline(), and decides.
 */
#ifndef SHMRT_PY_TURN_H
#define SHMRT_PY_TURN_H

#include "py_module.h"

struct shmrt_turn {
	uint64_t deadline_ns; /* 0: none */
	bool passes_on;
};
extern _Thread_local struct shmrt_turn shmrt_turn;

/* The sooner of the two; 0: none. */
static inline uint64_t shmrt_turn_limit(uint64_t until_ns) {
	if (SHMRT_LIKELY(shmrt_turn.deadline_ns == 0) || !shmrt_turn.passes_on)
		return until_ns;
	return until_ns == 0 || shmrt_turn.deadline_ns < until_ns ? shmrt_turn.deadline_ns : until_ns;
}

#endif
