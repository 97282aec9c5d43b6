/* py_future_chain.c -- asyncio's futures that wait for ours.
 *
 * asyncio.wrap_future, and run_in_executor with it, gives our future a callback that has the loop copy the outcome, and
 * wakes the loop for each. That callback is known by its code (shmrt/chained.py). Of such a one the asyncio future is kept,
 * and not the callback; the loop is handed many outcomes at once, and copies them here. What is no plain value is copied by
 * asyncio's own function. One that is done when it is wrapped needs no wake at all: the loop comes round anyway. Another asyncio, whose code does not look like that, is left to do it in its own way.
 */
#include "py_future_internal.h"

static int learn(PyObject *code) {
	PyObject *module = PyImport_ImportModule("shmrt.chained");
	PyObject *known = module ? PyObject_GetAttrString(module, "CODE") : NULL;
	PyObject *type = known ? PyObject_GetAttrString(module, "Future") : NULL;
	PyObject *copy = type ? PyObject_GetAttrString(module, "copy_state") : NULL;
	PyObject *running = copy ? PyObject_GetAttrString(module, "running_loop") : NULL;
	PyObject *places = running ? PyObject_GetAttrString(module, "PLACES") : NULL;
	PyObject *settle = places ? PyCFunction_New(&shmrt__future_settle_chains, NULL) : NULL;
	int result = -1;
	if (settle != NULL && PyArg_ParseTuple(places, "nn", &shmrt__future.chain_loop, &shmrt__future.chain_destination)) {
		Py_XSETREF(shmrt__future.settle_chains, Py_NewRef(settle));
		Py_XSETREF(shmrt__future.copy_state, Py_NewRef(copy));
		Py_XSETREF(shmrt__future.running_loop, Py_NewRef(running));
		Py_XSETREF(shmrt__future.chained_type, Py_NewRef(type));
		Py_XSETREF(shmrt__future.chain_code, Py_NewRef(known)); /* None: nothing is ever equal to that */
		result = 0;
	}
	Py_XDECREF(settle);
	Py_XDECREF(places);
	Py_XDECREF(running);
	Py_XDECREF(copy);
	Py_XDECREF(type);
	Py_XDECREF(known);
	Py_XDECREF(module);
	if (result < 0)
		PyErr_WriteUnraisable(code);
	return result;
}

PyObject *shmrt__future_chained_by(PyObject *callback) {
	if (!PyFunction_Check(callback))
		return NULL;
	PyObject *code = PyFunction_GET_CODE(callback);
	if (shmrt__future.chain_code == NULL &&
	    (PyUnicode_CompareWithASCIIString(((PyCodeObject *)code)->co_name, "_call_set_state") != 0 || learn(code) < 0))
		return NULL;
	if (code != shmrt__future.chain_code)
		return NULL;
	PyObject *closure = PyFunction_GET_CLOSURE(callback);
	PyObject *loop = PyCell_GET(PyTuple_GET_ITEM(closure, shmrt__future.chain_loop));
	PyObject *destination = PyCell_GET(PyTuple_GET_ITEM(closure, shmrt__future.chain_destination));
	if (loop == NULL || loop == Py_None || destination == NULL || (PyObject *)Py_TYPE(destination) != shmrt__future.chained_type)
		return NULL;
	return destination;
}

int shmrt__future_hand_over(PyObject *loop, PyObject *chains) {
	PyObject *closed = PyObject_CallMethod(loop, "is_closed", NULL), *answer = NULL;
	int result = closed ? PyObject_IsTrue(closed) : -1;
	if (result == 0)
		answer = PyObject_CallMethod(loop, "call_soon_threadsafe", "OO", shmrt__future.settle_chains, chains);
	if (result == 0 && answer == NULL)
		result = -1;
	Py_XDECREF(answer);
	Py_XDECREF(closed);
	Py_DECREF(chains);
	return result < 0 ? -1 : 0; /* of a loop that is closed nobody waits any more */
}

int shmrt__future_chain_done(PyObject *source, PyObject *chained) {
	PyObject *loop = PyObject_CallMethodNoArgs(chained, shmrt__future.str_get_loop);
	PyObject *running = loop ? PyObject_CallNoArgs(shmrt__future.running_loop) : NULL;
	int result = running ? running == loop : -1;
	if (result == 1) {
		PyObject *chains = Py_BuildValue("[(OO)]", chained, source);
		PyObject *answer = chains ? PyObject_CallMethod(loop, "call_soon", "OO", shmrt__future.settle_chains, chains) : NULL;
		result = answer ? 1 : -1;
		Py_XDECREF(answer);
		Py_XDECREF(chains);
	}
	Py_XDECREF(running);
	Py_XDECREF(loop);
	return result;
}

/* ---- in the loop's thread ---- */

static int copy(PyObject *destination, PyObject *source) {
	PyObject *answer;
	struct core_future *ours = core(source);
	if (ours->state != STATE_FINISHED || shmrt__future_need_value(ours) < 0 || ours->outcome != SHMRT_OUTCOME_VALUE) {
		if (PyErr_Occurred())
			return -1;
		answer = PyObject_CallFunctionObjArgs(shmrt__future.copy_state, source, destination, NULL);
	} else {
		PyObject *value = Py_NewRef(ours->value ? ours->value : Py_None);
		PyObject *done = PyObject_CallMethodNoArgs(destination, shmrt__future.str_done);
		if (done == Py_True) { /* cancelled meanwhile */
			Py_DECREF(value);
			Py_DECREF(done);
			return 0;
		}
		answer = done ? PyObject_CallMethodOneArg(destination, shmrt__future.str_set_result, value) : NULL;
		Py_XDECREF(done);
		Py_DECREF(value);
	}
	Py_XDECREF(answer);
	return answer ? 0 : -1;
}

/* As a loop does with a callback that fails. */
static void tell_handler(PyObject *destination) {
	PyObject *failure = shmrt_take_exception();
	PyObject *loop = PyObject_CallMethodNoArgs(destination, shmrt__future.str_get_loop);
	PyObject *context = Py_BuildValue("{sssOsO}", "message", "Exception while an outcome was copied", "exception", failure, "future",
					  destination);
	PyObject *answer = loop && context ? PyObject_CallMethod(loop, "call_exception_handler", "O", context) : NULL;
	if (answer == NULL)
		PyErr_WriteUnraisable(destination);
	Py_XDECREF(answer);
	Py_XDECREF(context);
	Py_XDECREF(loop);
	Py_XDECREF(failure);
}

static PyObject *settle_chains(PyObject *Py_UNUSED(self), PyObject *chains) {
	Py_ssize_t count = PyList_Check(chains) ? PyList_GET_SIZE(chains) : 0;
	for (Py_ssize_t i = 0; i < count && i < PyList_GET_SIZE(chains); i++) {
		PyObject *chain = Py_NewRef(PyList_GET_ITEM(chains, i)), *rest;
		PyObject *destination = PyTuple_GET_ITEM(chain, 0);
		bool failed = copy(destination, PyTuple_GET_ITEM(chain, 1)) < 0;
		bool ends = failed && !PyErr_ExceptionMatches(PyExc_Exception);
		if (ends && i + 1 < count && (rest = PyList_GetSlice(chains, i + 1, count)) != NULL) {
			/* What ends the loop must not lose what the others wait for: they come next, if it runs again. */
			PyObject *type, *value, *traceback;
			PyErr_Fetch(&type, &value, &traceback);
			PyObject *loop = PyObject_CallMethodNoArgs(destination, shmrt__future.str_get_loop);
			if (loop == NULL || shmrt__future_hand_over(loop, Py_NewRef(rest)) < 0)
				PyErr_WriteUnraisable(destination);
			Py_XDECREF(loop);
			Py_DECREF(rest);
			PyErr_Restore(type, value, traceback);
		}
		if (failed && !ends)
			tell_handler(destination);
		Py_DECREF(chain);
		if (ends)
			return NULL;
	}
	Py_RETURN_NONE;
}

PyMethodDef shmrt__future_settle_chains = {"settle_chains", settle_chains, METH_O,
					   "settle_chains(list of (asyncio future, ours)): copy the outcomes."};
