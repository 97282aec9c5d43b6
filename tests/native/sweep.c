/* sweep.c -- the two ways to stop after every instruction: the trap flag, and ptrace. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sweep.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define STACK_BYTES ((size_t)1 << 20)

/* The sweep under way; one at a time, since a signal handler has no argument. */
static struct {
	const uint8_t *region;
	size_t size;
	uint8_t *copy; /* given to the judge, which may scribble on it */
	uint8_t *last; /* the region at the judge's last call */
	int (*judge)(void *copy, size_t step, void *judge_context);
	void *judge_context;
	int answer; /* the last one */
	struct sweep_report report;
} sweep;

static size_t total_states, total_changes, total_sweeps;
static pid_t counter; /* whose sweeps these are: a forked child counts for itself, and says nothing */

static void die(const char *what) {
	fprintf(stderr, "sweep: %s: %s\n", what, strerror(errno));
	exit(3);
}

static uint8_t *new_pages(size_t size) {
	void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		die("mmap");
	return pages;
}

/* Judges the bytes at `now` unless they are those of the last call. */
static void look(const uint8_t *now) {
	struct sweep_report *report = &sweep.report;
	if (report->broken < 0)
		return;
	if (report->states == 0 || memcmp(now, sweep.last, sweep.size) != 0) {
		memcpy(sweep.last, now, sweep.size);
		memcpy(sweep.copy, now, sweep.size);
		sweep.answer = sweep.judge(sweep.copy, report->states, sweep.judge_context);
		report->changes++;
	}
	if (sweep.answer >= SWEEP_OUTCOMES)
		sweep.answer = SWEEP_BROKEN;
	if (sweep.answer < 0) {
		report->broken = sweep.answer;
		report->broken_step = report->states;
	} else {
		report->seen[sweep.answer]++;
	}
	report->states++;
}

/* ---- in the own process: the trap flag ---------------------------------------------------------- */
#if defined(__x86_64__) && !SWEEP_SANITIZED
#define HAVE_TRAP_FLAG 1

static void on_trap(int signal_number, siginfo_t *info, void *context) {
	(void)signal_number, (void)info;
	int saved_errno = errno;
	look(sweep.region);
	if (sweep.report.broken < 0) /* the rest of the operation runs at full speed */
		((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)0x100;
	errno = saved_errno;
}

/* The red zone is stepped over first: the push would overwrite locals that live there. */
static inline __attribute__((always_inline)) void trap_flag_on(void) {
	__asm__ __volatile__("leaq -128(%%rsp), %%rsp\n\tpushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
			     "leaq 128(%%rsp), %%rsp" ::: "memory", "cc");
}

static inline __attribute__((always_inline)) void trap_flag_off(void) {
	__asm__ __volatile__("leaq -128(%%rsp), %%rsp\n\tpushfq\n\tandq $-257, (%%rsp)\n\tpopfq\n\t"
			     "leaq 128(%%rsp), %%rsp" ::: "memory", "cc");
}

static void run_with_trap_flag(void (*operation)(void *context), void *context) {
	stack_t own_stack = {.ss_sp = new_pages(STACK_BYTES), .ss_size = STACK_BYTES}, old_stack;
	struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK}, old_action;
	sigemptyset(&action.sa_mask);
	if (sigaltstack(&own_stack, &old_stack) < 0 || sigaction(SIGTRAP, &action, &old_action) < 0)
		die("cannot catch SIGTRAP");
	trap_flag_on();
	operation(context);
	trap_flag_off();
	sigaction(SIGTRAP, &old_action, NULL);
	sigaltstack(&old_stack, NULL);
	munmap(own_stack.ss_sp, STACK_BYTES);
}
#else
#define HAVE_TRAP_FLAG 0
#endif

/* ---- a forked child under ptrace ----------------------------------------------------------------
 * On aarch64 this needs atomics that are one instruction (LSE): a load-exclusive loop never ends when
 * it is stepped. Returns false when the kernel refuses to trace. */
static bool run_with_ptrace(void (*operation)(void *context), void *context) {
	cpu_set_t old_cpus, one_cpu;
	int cpu = sched_getcpu();
	bool pinned = cpu >= 0 && sched_getaffinity(0, sizeof old_cpus, &old_cpus) == 0;
	if (pinned) { /* 2.7 times faster than with two CPUs */
		CPU_ZERO(&one_cpu);
		CPU_SET((size_t)cpu, &one_cpu);
		sched_setaffinity(0, sizeof one_cpu, &one_cpu);
	}
	uint8_t *before = new_pages(sweep.size), *now = new_pages(sweep.size);
	memcpy(before, sweep.region, sweep.size);

	int status = 0;
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(1);
		raise(SIGSTOP);
		operation(context);
		raise(SIGSTOP);
		_exit(0);
	}
	bool traced = waitpid(child, &status, 0) == child && WIFSTOPPED(status);
	if (traced) {
		struct iovec to = {now, sweep.size}, from = {(void *)(uintptr_t)sweep.region, sweep.size};
		while (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
		       WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP && sweep.report.broken == 0) {
			if (process_vm_readv(child, &to, 1, &from, 1, 0) != (ssize_t)sweep.size)
				die("process_vm_readv");
			look(now);
		}
		if (sweep.report.broken == 0 && !(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP)) {
			fprintf(stderr, "sweep: the traced operation ended with status 0x%x\n", (unsigned)status);
			exit(3);
		}
		kill(child, SIGKILL);
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		/* A shared region was changed by the child: run from the same state here. */
		memcpy((void *)(uintptr_t)sweep.region, before, sweep.size);
		operation(context);
	}
	munmap(before, sweep.size);
	munmap(now, sweep.size);
	if (pinned)
		sched_setaffinity(0, sizeof old_cpus, &old_cpus);
	return traced;
}

/* ---- the door ----------------------------------------------------------------------------------- */
struct sweep_report sweep_run(void (*operation)(void *context), void *context, void *region, size_t size,
			      int (*judge)(void *copy, size_t step, void *judge_context), void *judge_context) {
	memset(&sweep, 0, sizeof sweep);
	sweep.region = region;
	sweep.size = size;
	sweep.judge = judge;
	sweep.judge_context = judge_context;
	sweep.copy = new_pages(size);
	sweep.last = new_pages(size);

	bool done = false;
	bool want_ptrace = getenv("SWEEP_PTRACE") != NULL;
	look(region);
#if HAVE_TRAP_FLAG
	if (!want_ptrace) {
		run_with_trap_flag(operation, context);
		done = true;
	}
#endif
	if (!done && !SWEEP_SANITIZED && (want_ptrace || !HAVE_TRAP_FLAG))
		done = run_with_ptrace(operation, context);
	if (!done) {
		static bool told;
		if (!told)
			fprintf(stderr, "sweep: SKIPPED, only the states before and after are judged (%s)\n",
				SWEEP_SANITIZED ? "sanitizer" : "no way to single-step here");
		told = true;
		sweep.report.skipped = true;
		operation(context);
	}
	look(region);

	munmap(sweep.copy, size);
	munmap(sweep.last, size);
	total_states += sweep.report.states;
	total_changes += sweep.report.changes;
	total_sweeps++;
	counter = getpid();
	return sweep.report;
}

void sweep_expect_clean(const struct sweep_report *report, const char *what) {
	if (report->broken < 0) {
		fprintf(stderr, "sweep: %s: broken (answer %d) after step %zu\n", what, report->broken,
			report->broken_step);
		exit(1);
	}
	if (!report->skipped && report->states < 8) {
		fprintf(stderr, "sweep: %s: only %zu states: nothing was stepped\n", what, report->states);
		exit(1);
	}
}

void sweep_expect(const struct sweep_report *report, const char *what) {
	sweep_expect_clean(report, what);
	if (report->seen[SWEEP_BEFORE] == 0 || report->seen[SWEEP_AFTER] == 0) {
		fprintf(stderr, "sweep: %s: did not bite: %zu states before, %zu after, of %zu\n", what,
			report->seen[SWEEP_BEFORE], report->seen[SWEEP_AFTER], report->states);
		exit(1);
	}
}

size_t sweep_total_states(void) { return total_states; }

bool sweep_is_long(void) {
	const char *word = getenv("SWEEP_LONG");
	return word != NULL && word[0] == '1';
}

/* At the end of the program. */
__attribute__((destructor)) static void write_count(void) {
	const char *path = getenv("SWEEP_COUNT");
	FILE *file = path != NULL && counter == getpid() ? fopen(path, "w") : NULL;
	if (file == NULL)
		return;
	fprintf(file, "%zu %zu %zu\n", total_sweeps, total_states, total_changes);
	fclose(file);
}
