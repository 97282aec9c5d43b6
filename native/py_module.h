/* py_module.h -- what the py_*.c files offer each other. */
#ifndef SHMRT_PY_MODULE_H
#define SHMRT_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base.h"

/* One per py_*.c; called once when the module is imported. */
int shmrt_py_add_layout(PyObject *module); /* py_layout.c: LAYOUT, LAYOUT_VERSION */
int shmrt_py_add_future(PyObject *module); /* py_future.c: future_class */
int shmrt_py_add_future_manual(PyObject *module); /* py_future_manual.c: ManualFutureSource */

#endif
