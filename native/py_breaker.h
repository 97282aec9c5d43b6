/* py_breaker.h -- what py_breaker.c and py_breaker_call.c share; nobody else includes it. */
#ifndef SHMRT_PY_BREAKER_H
#define SHMRT_PY_BREAKER_H

#include "py_guard.h"
#include "breaker.h"

#include <structmember.h>

typedef struct {
	GuardObject base;
	PyObject *exclude;    /* exception types that say nothing; NULL: none */
	PyObject *exclude_if; /* callable(exception): whether it says nothing; NULL */
	PyObject *failure_if; /* callable(value): whether a value is a failure; NULL */
	uint64_t slow_ns;
	bool is_timed; /* the time at which a call begins matters */
} BreakerObject;

struct shmrt_py_ticket {
	struct shmrt_admission admission;
	uint64_t start_ns; /* one more than the time at which it began; 0: nobody asked for that */
};

/* 0: the call may go; -1: refused, or something else is raised. */
int shmrt_py_breaker_admit(BreakerObject *, struct shmrt_py_ticket *);
/* How it ended: -1 if something new is raised. duration_ns < 0: since the ticket. */
int shmrt_py_breaker_settle(BreakerObject *, const struct shmrt_py_ticket *, enum shmrt_verdict, int64_t duration_ns);
int shmrt_py_breaker_settle_error(BreakerObject *, const struct shmrt_py_ticket *);
int shmrt_py_breaker_settle_value(BreakerObject *, const struct shmrt_py_ticket *, PyObject *value);

/* py_breaker_call.c: the ways around a call. */
int shmrt_py_breaker_prepare(void);
PyObject *shmrt_py_breaker_around(PyObject *, PyObject *fn, PyObject *const *args, size_t nargsf, PyObject *names);
PyObject *shmrt_py_breaker_enter(BreakerObject *, PyObject *unused);
PyObject *shmrt_py_breaker_exit(BreakerObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_breaker_begin(BreakerObject *, PyObject *unused);
PyObject *shmrt_py_breaker_end(BreakerObject *, PyObject *const *args, Py_ssize_t count);

#define SHMRT_PY_BREAKER_CALLS                                                                                                 \
	{"call", (PyCFunction)(void (*)(void))shmrt_py_guard_call, METH_FASTCALL | METH_KEYWORDS,                            \
	 "call(fn, /, *args, **kwargs)\n--\n\nCalls it and takes note of how it ends. CircuitOpen: refused, nothing was called."},      \
	{"_wrap", (PyCFunction)shmrt_py_guard_wrap, METH_O, "_wrap(fn) -> a callable with the breaker around fn"},                \
	{"__enter__", (PyCFunction)shmrt_py_breaker_enter, METH_NOARGS, NULL},                                               \
	{"__exit__", (PyCFunction)(void (*)(void))shmrt_py_breaker_exit, METH_FASTCALL, NULL},                               \
	{"_begin", (PyCFunction)shmrt_py_breaker_begin, METH_NOARGS, "_begin() -> a ticket, or CircuitOpen"},                \
	{"_end", (PyCFunction)(void (*)(void))shmrt_py_breaker_end, METH_FASTCALL,                                           \
	 "_end(ticket, exception or None, value, seconds=None): how the call ended; None and no exception: it has a value"}

#endif
