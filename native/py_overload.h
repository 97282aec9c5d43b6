/* py_overload.h -- how Python hears that a ring or mailbox was full. */
#ifndef SHMRT_PY_OVERLOAD_H
#define SHMRT_PY_OVERLOAD_H

#include "py_module.h"
#include "ring_report.h"

/* Has shmrt.overloads.due(place) called, at most once a second. 0; -1 with what a signal handler raised meanwhile, in the place
 * of the exception that may be set. */
SHMRT_MUST_USE int shmrt_py_overload_report(PyObject *place, struct shmrt_ring *ring);
/* After anything that may have counted: one look at a private word. */
static inline int shmrt_py_overload_look(PyObject *place, struct shmrt_ring *ring) {
	if (SHMRT_LIKELY(!atomic_load_explicit(&ring->noted, memory_order_relaxed))) /* private */
		return 0;
	return shmrt_py_overload_report(place, ring);
}
/* For `_overload` of a place: (refused, dropped, expired) since the last report, if it is the caller's turn to make one; True: it
 * is not, and there is something to be told; None: there is not. */
PyObject *shmrt_py_overload_take(struct shmrt_ring *ring);

#endif
