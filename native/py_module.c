/* py_module.c -- the extension module: collects the types and functions of the other py_*.c files.
 *
 * Each py_*.c exports one `int shmrt_py_add_<name>(PyObject *module)`; the table below calls them in order.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ops.h"
#include "py_module.h"

#ifndef SHMRT_OVER_ALL_FILES
#define SHMRT_OVER_ALL_FILES 0 /* 1 where build_ext.py had it optimized so */
#endif

static const struct {
	int (*add)(PyObject *module);
} parts[] = {
	{shmrt_py_add_layout},
	{shmrt_py_add_future},
	{shmrt_py_add_future_manual},
	{shmrt_py_add_process},
	{shmrt_py_add_slots},
	{shmrt_py_add_death_watch},
	{shmrt_py_add_names},
	{shmrt_py_add_guards},
	{shmrt_py_add_message},
	{shmrt_py_add_block},
	{shmrt_py_add_arena},
	{shmrt_py_add_bench},
	{shmrt_py_add_hub},
	{shmrt_py_add_front},
	{shmrt_py_add_worker},
	{shmrt_py_add_ring},
	{shmrt_py_add_calls},
	{shmrt_py_add_mailbox},
	{shmrt_py_add_overload},
	{shmrt_py_add_parts},
	{shmrt_py_add_chunk},
};

static int module_exec(PyObject *module) {
	shmrt_signals_are_looked_for = true;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		if (parts[i].add(module) < 0)
			return -1;
	return PyModule_AddIntConstant(module, "OVER_ALL_FILES", SHMRT_OVER_ALL_FILES);
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, (void *)module_exec},
#if PY_VERSION_HEX >= 0x030C0000
	{Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
	{0, NULL},
};

static struct PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "shmrt._native",
	.m_doc = "The native core of shmrt: rings, lanes, slots, arena and dispatch in shared memory.",
	.m_size = 0,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module_definition); }
