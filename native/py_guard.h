/* py_guard.h -- what the Python types of breakers, bulkheads and rate limits share; nobody else includes it.
 *
 * A guard object speaks for an entry of the runtime that its process belongs to now, or, outside any, for one in memory of its own.
 * Which runtime that is may change under it (a `with Runtime()` begins or ends, the process is forked), so each use compares one
 * number first: shmrt_py_guards_epoch moves whenever an answer may be different, and then the object asks again and is joined anew.
 */
#ifndef SHMRT_PY_GUARD_H
#define SHMRT_PY_GUARD_H

#include "py_module.h"
#include "guards.h"

#define SHMRT_PY_GUARD_SLICE_NS INT64_C(100000000) /* longest wait for a mutex between two looks for signals */

/* A runtime's area as this process maps it; guards that are joined there keep it. */
typedef struct {
	PyObject_HEAD
	struct shmrt_guard_area area;
	void *address;
	uint64_t size;
} AreaObject;

struct shmrt_py_guard_kind {
	uint32_t kind; /* enum shmrt_guard_kind */
	uint32_t refusals; /* which of its counters those are, as bits */
	const char *word;
	int (*fill)(struct shmrt_guard *, const void *settings);
	bool (*is_sound)(const struct shmrt_guard *);
	/* fn(...) with the guard around it; nargsf as of a vectorcall. */
	PyObject *(*around)(PyObject *guard, PyObject *fn, PyObject *const *args, size_t nargsf, PyObject *names);
	/* What `from` knows goes on in `to`; only_fresh: unless somebody has used that one already. */
	void (*carry)(struct shmrt_guard *to, const struct shmrt_guard *from, bool only_fresh);
};

typedef struct {
	PyObject_HEAD
	const struct shmrt_py_guard_kind *kind;
	struct shmrt_guard *guard; /* the entry that counts now: in the area, or `own` */
	struct shmrt_guard *own; /* allocated once: a thread may be in it while the object is joined elsewhere */
	AreaObject *area;
	uint64_t epoch; /* when it was joined; 0: never */
	uint32_t owner; /* whose memory `own` is: a forked child makes its own */
	uint64_t body_bytes;
	PyObject *name, *text;
	PyObject *clock; /* a callable that gives seconds, for tests; NULL: the monotonic clock */
	PyObject *weakrefs;
	union {
		uint64_t words[12];
		double numbers[12];
	} settings;
} GuardObject;

extern uint64_t shmrt_py_guards_epoch;
extern PyTypeObject *shmrt_py_area_type;

/* Name, text and clock, and memory of its own; the settings must have been written. -1: an exception is set. */
int shmrt_py_guard_set_up(GuardObject *, const struct shmrt_py_guard_kind *, uint64_t body_bytes, PyObject *name, PyObject *text,
			  PyObject *clock);
int shmrt_py_guard_join(GuardObject *);
/* Before each use: 0, or -1 with an exception. */
static inline int shmrt_py_guard_enter(GuardObject *self) {
	if (SHMRT_LIKELY(self->epoch == shmrt_py_guards_epoch))
		return 0;
	return shmrt_py_guard_join(self);
}
void shmrt_py_guard_release(GuardObject *); /* for dealloc: all that set_up and join took */
int shmrt_py_guard_visit(GuardObject *, visitproc, void *);
struct shmrt_holder shmrt_py_guard_holder(const GuardObject *);
static inline const struct shmrt_control *shmrt_py_guard_control(const GuardObject *self) {
	return self->area != NULL ? self->area->area.control : NULL;
}
/* Now, by its clock. -1: its clock raised. */
int shmrt_py_guard_now(const GuardObject *, uint64_t *now_ns);
/* After INTERRUPTED: 0 to try again, with the GIL released and the slice above as patience; -1: a signal handler raised. After
 * CORRUPT: raises, -1. */
int shmrt_py_guard_again(GuardObject *, int outcome);
/* For what is done by its object alone: -1 when the constructor never ran. */
int shmrt_py_guard_is_made(const GuardObject *);
/* call(fn, ...) of every kind. */
PyObject *shmrt_py_guard_call(GuardObject *, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *shmrt_py_guard_wrap(GuardObject *, PyObject *fn); /* a GuardedCall */
PyObject *shmrt_py_guard_counters(GuardObject *, void *unused);
PyObject *shmrt_py_guard_name(GuardObject *, void *unused);
PyObject *shmrt_py_guard_text(GuardObject *, void *unused);
PyObject *shmrt_py_guard_is_shared(GuardObject *, void *unused);
PyObject *shmrt_py_guard_overload(GuardObject *, PyObject *unused); /* refusals since the last report, True or None: shmrt.overloads */
PyObject *shmrt_py_guard_leave(GuardObject *, PyObject *area); /* out of that area, if it is in it */

#define SHMRT_PY_GUARD_GETSET                                                                                                  \
	{"name", (getter)shmrt_py_guard_name, NULL, "its name; equal names of one runtime are one guard", NULL},              \
	{"settings_text", (getter)shmrt_py_guard_text, NULL, "its settings in words", NULL},                                  \
	{"is_shared", (getter)shmrt_py_guard_is_shared, NULL, "whether it is joined to a runtime now", NULL},                 \
	{"_counters", (getter)shmrt_py_guard_counters, NULL, "its counters, by number", NULL}

int shmrt_py_add_guard_functions(PyObject *module); /* py_guard.c */
int shmrt_py_add_guarded_call(PyObject *module); /* py_guard_wrap.c */
int shmrt_py_add_breaker(PyObject *module); /* py_breaker.c */
int shmrt_py_add_bulkhead(PyObject *module); /* py_bulkhead.c */
int shmrt_py_add_bucket(PyObject *module);  /* py_bucket.c */

#endif
