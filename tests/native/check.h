/* check.h -- ends a C test at the first condition that does not hold, and says where and which. */
#ifndef SHMRT_TEST_CHECK_H
#define SHMRT_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                            \
	do {                                                                                        \
		if (!(condition)) {                                                                 \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);      \
			exit(1);                                                                    \
		}                                                                                   \
	} while (0)

#endif
