/* py_parts.h -- what a function by value is made of, to see that it is still the same: py_parts.c. */
#ifndef SHMRT_PY_PARTS_H
#define SHMRT_PY_PARTS_H

#include "py_module.h"

bool shmrt_py_is_parts(PyObject *); /* whether the next may be asked about it */
SHMRT_MUST_USE int shmrt_py_parts_are_same(PyObject *parts); /* 1, 0, or -1 with an exception */

#endif
