/* py_front.c -- PoolFront: what Pool inherits so that `submit` is one C call.
 *
 * The bound method holds the pool itself, not only its core: whoever can still submit keeps the pool open. A pool with a
 * bound on what may be pending goes through Python's `_submit_bounded(submit, fn, *args, **kwargs)`.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "py_hub.h"
#include "py_module.h"

typedef struct {
	PyObject_HEAD
	ShmrtPoolCore *core; /* NULL until the pool is open */
	char is_bounded;
} ShmrtPoolFront;

#define ARGUMENTS_FEW 8

static PyObject *submit_bounded(ShmrtPoolFront *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	Py_ssize_t all = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
	PyObject *few[ARGUMENTS_FEW], *result = NULL;
	PyObject **stack = all + 1 <= ARGUMENTS_FEW ? few : PyMem_Malloc((size_t)(all + 1) * sizeof(PyObject *));
	PyObject *method = PyObject_GetAttrString((PyObject *)self, "_submit_bounded");
	PyObject *submit = PyObject_GetAttrString((PyObject *)self->core, "submit");
	if (stack == NULL)
		PyErr_NoMemory();
	else if (method && submit) {
		stack[0] = submit;
		memcpy(stack + 1, args, (size_t)all * sizeof(PyObject *));
		result = PyObject_Vectorcall(method, stack, (size_t)nargs + 1, kwnames);
	}
	if (stack != few)
		PyMem_Free(stack);
	Py_XDECREF(method);
	Py_XDECREF(submit);
	return result;
}

static PyObject *front_submit(ShmrtPoolFront *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
	if (self->core == NULL) {
		PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures: this pool was not opened");
		return NULL;
	}
	if (self->is_bounded)
		return submit_bounded(self, args, nargs, kwnames);
	return shmrt_py_pool_submit(self->core, args, nargs, kwnames);
}

static int front_set_core(ShmrtPoolFront *self, PyObject *core, void *Py_UNUSED(closure)) {
	if (core == NULL || strcmp(Py_TYPE(core)->tp_name, "shmrt._native.PoolCore") != 0) {
		PyErr_SetString(PyExc_TypeError, "_core must be a PoolCore");
		return -1;
	}
	Py_XSETREF(self->core, (ShmrtPoolCore *)Py_NewRef(core));
	return 0;
}

static PyObject *front_get_core(ShmrtPoolFront *self, void *Py_UNUSED(closure)) {
	if (self->core)
		return Py_NewRef((PyObject *)self->core);
	PyErr_SetString(PyExc_AttributeError, "_core");
	return NULL;
}

static void front_dealloc(ShmrtPoolFront *self) {
	PyTypeObject *type = Py_TYPE(self);
	Py_CLEAR(self->core);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef front_methods[] = {
	{"submit", (PyCFunction)(void (*)(void))front_submit, METH_FASTCALL | METH_KEYWORDS,
	 "submit($self, fn, /, *args, **kwargs)\n--\n\n"
	 "Schedules fn(*args, **kwargs) and returns its Future (`concurrent.futures.Executor.submit`).\n\n"
	 "Arguments that cannot be pickled raise here. With max_pending reached it blocks or raises Overloaded."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef front_properties[] = {
	{"_core", (getter)front_get_core, (setter)front_set_core, "The core of the open pool.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef front_members[] = {
	{"_is_bounded", T_BOOL, offsetof(ShmrtPoolFront, is_bounded), 0, "Whether submit has to ask for room."},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot front_slots[] = {
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)front_dealloc},
	{Py_tp_methods, front_methods},
	{Py_tp_getset, front_properties},
	{Py_tp_members, front_members},
	{Py_tp_doc, "The part of a Pool that is written in C."},
	{0, NULL},
};

static PyType_Spec front_spec = {"shmrt._native.PoolFront", sizeof(ShmrtPoolFront), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				 front_slots};

int shmrt_py_add_front(PyObject *module) {
	PyObject *type = PyType_FromSpec(&front_spec);
	if (type == NULL || PyModule_AddObjectRef(module, "PoolFront", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	return 0;
}
