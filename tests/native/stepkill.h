/* stepkill.h -- a real SIGKILL after exactly so many instructions of an operation, with everything that the kernel does
 * at a death: robust mutexes are marked, sleepers stay asleep, descriptors close.
 *
 *	struct stepkill killed = stepkill(NULL, put, &world, k);
 *	if (killed.done) ...                    // the operation ended before its k-th instruction
 *
 * The operation runs in a forked child, after `prepare`, whose instructions do not count; memory that matters must be shared with it. The child is a tracee from its
 * start, so it dies exactly where it stands. A step over a system call that sleeps ends when that does: operations that
 * sleep need somebody who wakes them. stepkill_works() says whether the kernel lets us trace; if not, and under
 * AddressSanitizer, whose own code would be stepped, a test skips itself loudly.
 */
#ifndef SHMRT_TEST_STEPKILL_H
#define SHMRT_TEST_STEPKILL_H

#include "ops.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

struct stepkill {
	bool done;    /* it returned; what it did is there */
	size_t taken; /* instructions until its death or its end */
	pid_t pid;    /* who it was */
	uint32_t owner; /* its owner id, for those who look for what it left */
};

#define STEPKILL_DIE(what) (perror("stepkill: " what), exit(3))

/* Tracer and tracee take turns: on one CPU that is three times faster than on two. */
static inline void stepkill_pin(void) {
	cpu_set_t one;
	int cpu = sched_getcpu();
	CPU_ZERO(&one);
	CPU_SET(cpu < 0 ? 0 : (size_t)cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
}

static inline struct stepkill stepkill(void (*prepare)(void *context), void (*operation)(void *context), void *context,
				       size_t steps) {
	struct stepkill killed = {0};
	int status = 0;
	fflush(NULL);
	pid_t child = fork();
	if (child < 0)
		STEPKILL_DIE("fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(1);
		(void)shmrt_owner_self(); /* its first answer in a process reads files */
		if (prepare != NULL)
			prepare(context);
		raise(SIGSTOP);
		operation(context);
		raise(SIGSTOP);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		STEPKILL_DIE("the child does not stop");
	killed.pid = child;
	killed.owner = shmrt_owner_of(child);
	while (killed.taken < steps && !killed.done) {
		if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
			STEPKILL_DIE("the child ends by itself");
		killed.done = WSTOPSIG(status) == SIGSTOP;
		killed.taken++;
	}
	kill(child, SIGKILL);
	while (waitpid(child, &status, 0) != child || !WIFSIGNALED(status))
		if (errno == ECHILD)
			STEPKILL_DIE("the child is gone");
	return killed;
}

static inline bool stepkill_works(void) {
	int status;
	pid_t child = fork();
	if (child == 0)
		_exit(ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? 1 : 0);
	return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif
