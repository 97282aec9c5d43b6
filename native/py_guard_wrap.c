/* py_guard_wrap.c -- a function with a guard around it: what a decorator leaves behind.
 *
 * A Python function that takes and passes on any arguments would cost more than a breaker does. GuardedCall behaves as a function
 * where it matters: it binds as a method, carries what functools.wraps writes, and is pickled by name where it has one.
 */
#include "py_guard.h"

#include <structmember.h>

typedef struct {
	PyObject_HEAD
	GuardObject *guard;
	PyObject *fn, *dict, *weakrefs;
	vectorcallfunc vectorcall;
} CallObject;

static PyTypeObject *call_type;

PyObject *shmrt_py_guard_call(GuardObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
	if (count < 1)
		return PyErr_Format(PyExc_TypeError, "call() needs a function to call");
	if (self->kind == NULL)
		return PyErr_Format(PyExc_RuntimeError, "this %.50s was not made by its constructor", Py_TYPE(self)->tp_name);
	return self->kind->around((PyObject *)self, args[0], args + 1, (size_t)(count - 1), names);
}

static PyObject *call_vectorcall(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *names) {
	CallObject *self = (CallObject *)object;
	return self->guard->kind->around((PyObject *)self->guard, self->fn, args, nargsf, names);
}

PyObject *shmrt_py_guard_wrap(GuardObject *guard, PyObject *fn) {
	if (guard->kind == NULL || !PyCallable_Check(fn))
		return PyErr_Format(PyExc_TypeError, "a %.50s decorates a function, not %R", Py_TYPE(guard)->tp_name, fn);
	CallObject *self = PyObject_GC_New(CallObject, call_type);
	if (self == NULL)
		return NULL;
	self->guard = (GuardObject *)Py_NewRef(guard);
	self->fn = Py_NewRef(fn);
	self->dict = self->weakrefs = NULL;
	self->vectorcall = call_vectorcall;
	PyObject_GC_Track((PyObject *)self);
	return (PyObject *)self;
}

static PyObject *call_get(PyObject *self, PyObject *object, PyObject *type) {
	(void)type;
	return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

/* By name where the name leads back here, as a function is; else by what it is made of. */
static PyObject *call_reduce(PyObject *object, PyObject *unused) {
	(void)unused;
	CallObject *self = (CallObject *)object;
	PyObject *helper = PyImport_ImportModule("shmrt.guard.wrapping");
	PyObject *reduced = helper ? PyObject_CallMethod(helper, "reduce_call", "OOO", object, (PyObject *)self->guard, self->fn) : NULL;
	Py_XDECREF(helper);
	return reduced;
}

static PyObject *call_repr(PyObject *object) {
	CallObject *self = (CallObject *)object;
	return PyUnicode_FromFormat("<%R behind %s %R>", self->fn, self->guard->kind->word, self->guard->name);
}

static int call_traverse(CallObject *self, visitproc visit, void *arg) {
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->guard);
	Py_VISIT(self->fn);
	Py_VISIT(self->dict);
	return 0;
}

static int call_clear(CallObject *self) {
	Py_CLEAR(self->dict); /* guard and fn are needed as long as it can be called */
	return 0;
}

static void call_dealloc(CallObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	if (self->weakrefs != NULL)
		PyObject_ClearWeakRefs((PyObject *)self);
	Py_CLEAR(self->dict);
	Py_CLEAR(self->fn);
	Py_CLEAR(self->guard);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyMethodDef call_methods[] = {
	{"__reduce__", call_reduce, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};
static PyMemberDef call_members[] = {
	{"guard", T_OBJECT, offsetof(CallObject, guard), READONLY, "what is around the function"},
	{"__vectorcalloffset__", T_PYSSIZET, offsetof(CallObject, vectorcall), READONLY, NULL},
	{"__dictoffset__", T_PYSSIZET, offsetof(CallObject, dict), READONLY, NULL},
	{"__weaklistoffset__", T_PYSSIZET, offsetof(CallObject, weakrefs), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};
static PyGetSetDef call_getset[] = {
	{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot call_slots[] = {
	{Py_tp_dealloc, call_dealloc},
	{Py_tp_traverse, call_traverse},
	{Py_tp_clear, call_clear},
	{Py_tp_call, PyVectorcall_Call},
	{Py_tp_descr_get, call_get},
	{Py_tp_repr, call_repr},
	{Py_tp_methods, call_methods},
	{Py_tp_members, call_members},
	{Py_tp_getset, call_getset},
	{0, NULL},
};
static PyType_Spec call_spec = {
	.name = "shmrt._native.GuardedCall",
	.basicsize = sizeof(CallObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = call_slots,
};

int shmrt_py_add_guarded_call(PyObject *module) {
	call_type = (PyTypeObject *)PyType_FromSpec(&call_spec);
	return call_type ? PyModule_AddObjectRef(module, "GuardedCall", (PyObject *)call_type) : -1;
}
