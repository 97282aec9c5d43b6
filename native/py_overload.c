/* py_overload.c -- reports of full places on their way to Python, and until when a message is wanted.
 *
 * The counts are in the ring (ring_report.h). What is done with a report, and in which processes, is shmrt.overloads' to say; it
 * is imported when first needed. Nothing here is called while a ring's mutex is held.
 */
#include "py_overload.h"
#include "py_turn.h"

#include "ops.h"

_Thread_local struct shmrt_turn shmrt_turn;

int shmrt_py_overload_report(PyObject *place, struct shmrt_ring *ring) {
	if (!shmrt_ring_wants_report(ring, shmrt_now_ns()))
		return 0;
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *module = PyImport_ImportModule("shmrt.overloads");
	PyObject *answer = module ? PyObject_CallMethod(module, "due", "O", place) : NULL;
	Py_XDECREF(module);
	if (answer == NULL && PyErr_ExceptionMatches(PyExc_Exception))
		PyErr_Clear(); /* a report that cannot be made changes nothing about what it was of */
	if (answer == NULL && PyErr_Occurred()) {
		Py_XDECREF(type);
		Py_XDECREF(value);
		Py_XDECREF(traceback);
		return -1;
	}
	Py_XDECREF(answer);
	PyErr_Restore(type, value, traceback);
	return 0;
}

PyObject *shmrt_py_overload_take(struct shmrt_ring *ring) {
	struct shmrt_ring_tally since;
	if (!shmrt_ring_take_report(ring, shmrt_now_ns(), &since)) {
		if (shmrt_ring_has_news(ring))
			Py_RETURN_TRUE;
		Py_RETURN_NONE;
	}
	return Py_BuildValue("(KKK)", (unsigned long long)since.refused, (unsigned long long)since.dropped,
			     (unsigned long long)since.expired);
}

/* turn() -> (seconds left until the deadline of the message that this thread deals with or None, whether it is passed on) */
static PyObject *turn(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
	if (shmrt_turn.deadline_ns == 0)
		return Py_BuildValue("(OO)", Py_None, Py_False);
	uint64_t now_ns = shmrt_now_ns();
	double left = shmrt_turn.deadline_ns > now_ns ? (double)(shmrt_turn.deadline_ns - now_ns) * 1e-9 : 0.0;
	return Py_BuildValue("(dO)", left, shmrt_turn.passes_on ? Py_True : Py_False);
}

static PyMethodDef methods[] = {
	{"turn", turn, METH_NOARGS, "Seconds left for the message that this thread deals with, or None; whether that is passed on."},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_overload(PyObject *module) { return PyModule_AddFunctions(module, methods); }
