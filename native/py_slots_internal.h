/* py_slots_internal.h -- what the files of Slots and DeathWatch share; nobody else includes it.
 *
 * Every method of Slots is a thin call into slots.c: who may call which is written there and in layout.h.
 */
#ifndef SHMRT_PY_SLOTS_INTERNAL_H
#define SHMRT_PY_SLOTS_INTERNAL_H

#include "py_module.h"
#include "segment.h"
#include "slots.h"

typedef struct {
	PyObject_HEAD
	struct shmrt_control *control;
	uint64_t size;
	uint32_t count;
	int fd;
} SlotsObject;

extern PyTypeObject *shmrt_py_slots_type;

/* py_slots.c: the slot of an index, or NULL with IndexError, ValueError (closed) or TypeError. */
struct shmrt_slot *shmrt_py_slots_at(SlotsObject *self, PyObject *index);
/* None, or what a result of slots.c means as an exception; `verb` says what the slot cannot be. */
PyObject *shmrt_py_slots_answer(int result, struct shmrt_slot *slot, const char *verb);

/* Methods; what they do is told in the table of py_slots.c. py_slots_life.c: */
PyObject *shmrt_py_slots_claim(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_set_process(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_hold_death_mutex(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_ready(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_gone(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_gone_anyway(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_free(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_order_kill(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_request_stop(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_ring(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_ring_all(SlotsObject *, PyObject *unused);
PyObject *shmrt_py_slots_park(SlotsObject *, PyObject *const *args, Py_ssize_t count);
PyObject *shmrt_py_slots_send_control(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_start_beat(SlotsObject *, PyObject *const *args, Py_ssize_t count);
/* py_slots_look.c: */
PyObject *shmrt_py_slots_is_abandoned(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_state(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_control_count(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_epoch(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_info(SlotsObject *, PyObject *index);
PyObject *shmrt_py_slots_scan(SlotsObject *, PyObject *indexes);

#endif
