/* py_bulkhead.h -- what py_bulkhead.c and py_bulkhead_permits.c share; nobody else includes it. */
#ifndef SHMRT_PY_BULKHEAD_H
#define SHMRT_PY_BULKHEAD_H

#include "py_guard.h"
#include "bulkhead.h"

struct held {
	struct shmrt_permit permit;
	struct shmrt_bulkhead *bulkhead;
	AreaObject *area; /* keeps the bulkhead mapped; NULL: it is the object's own */
};

typedef struct {
	GuardObject base;
	struct held *held; /* a stack */
	uint32_t held_count, held_room;
	uint32_t held_by; /* a forked child holds nothing */
	bool may_wait;
	int64_t timeout_ns; /* how long a call or a with block waits */
} BulkheadObject;

static inline struct shmrt_bulkhead *shmrt_py_bulkhead_of(const BulkheadObject *self) {
	return (struct shmrt_bulkhead *)(void *)self->base.guard;
}
/* Before each use: 0, or -1 with an exception. */
int shmrt_py_bulkhead_ready(BulkheadObject *);
#define SHMRT_PY_RAISED 1 /* an exception is set; outcomes are 0 or less */
/* One try. OK, EMPTY (in the line now, if there is a place), FULL, or SHMRT_PY_RAISED. *bell is for the wait that follows. */
int shmrt_py_bulkhead_try(BulkheadObject *, struct shmrt_permit *place, uint32_t *bell);
/* 1: there is a permit; 0: there is none in time; -1: an exception. Without the GIL while it waits. */
int shmrt_py_bulkhead_acquire(BulkheadObject *, int64_t timeout_ns);
/* Gives the permit back that was taken last, if there is one. -1: an exception. */
int shmrt_py_bulkhead_give_back(BulkheadObject *);
/* Whatever happens the place is left; an exception that is set stays. */
void shmrt_py_bulkhead_leave_line(struct shmrt_bulkhead *, struct shmrt_permit *place);
void shmrt_py_bulkhead_forget(BulkheadObject *, PyObject *area); /* that area ends: what was taken there is not there to be given back */
void shmrt_py_bulkhead_drop_all(BulkheadObject *);             /* for dealloc: nobody can give them back any more */

#endif
