/* test_slots.c -- a slot can be used again wherever its claimer, its process or its killer dies; every
 * kind of death is noticed, once; the beat says that a process is scheduled and ends orphans. */
#define _GNU_SOURCE
#include "slots.h"
#include "sweep.h"
#include "watch.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(condition)                                                                      \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                               \
		}                                                                              \
	} while (0)

#define WATCHDOG_NS INT64_C(60000000000)
#define SLOTS 200

static struct shmrt_control *control;

static void new_control(void) {
	size_t size = shmrt_control_bytes(SLOTS);
	if (control == NULL) {
		void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		EXPECT(pages != MAP_FAILED);
		control = pages;
	}
	control->header.token[0]++; /* a table of its own */
	shmrt_control_format(control, SLOTS);
	EXPECT(shmrt_control_check(control, size) == SHMRT_OK);
	EXPECT(shmrt_control_check(control, size - 1) == SHMRT_CORRUPT);
}

static uint32_t state_of(const struct shmrt_slot *slot) {
	return atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
}

/* ---- sweeps: what the root does next works from any state ---------------------------------------- */
enum step { CLAIM, SET_PROCESS, HOLD, READY, GONE, FREE, ORDER_KILL, TASK };

static struct shmrt_slot *swept; /* the slot under the sweep */

static void operation(void *context) {
	int result = SHMRT_OK;
	switch (*(const enum step *)context) {
	case CLAIM:
		result = shmrt_slot_claim(swept, 3, 4, 5);
		break;
	case SET_PROCESS:
		shmrt_slot_set_process(swept, 1234, 0xABC004D2);
		break;
	case HOLD:
		result = shmrt_slot_hold_death_mutex(swept);
		break;
	case READY:
		result = shmrt_slot_ready(swept);
		break;
	case GONE:
		result = shmrt_slot_gone(swept, 9, true);
		break;
	case FREE:
		result = shmrt_slot_free(swept);
		break;
	case ORDER_KILL:
		result = shmrt_slot_order_kill(swept, SHMRT_KILL_TIMEOUT, 42) ? SHMRT_OK : SHMRT_STALE;
		break;
	case TASK:
		shmrt_slot_task_begin(swept, 43, 44);
		shmrt_slot_phase_set(swept, SHMRT_PHASE_RUN);
		break;
	}
	SHMRT_ASSERT(result == SHMRT_OK);
}

#define LOAD(word) atomic_load_explicit(&slot->word, memory_order_acquire) /* the edge under test */

/* What may be relied on in a copy; then the root's repair. */
static int judge(void *copy, size_t step_number, void *context) {
	(void)step_number;
	enum step step = *(const enum step *)context;
	struct shmrt_slot *slot = copy;
	if (shmrt_slot_check(slot) != SHMRT_OK)
		return -2;
	uint32_t state = state_of(slot);
	int outcome = SWEEP_BEFORE;
	switch (step) {
	case CLAIM:
		if (state == SHMRT_SLOT_EMPTY)
			break;
		outcome = SWEEP_AFTER;
		if (state != SHMRT_SLOT_STARTING || LOAD(pid) != 0 || LOAD(owner) != 0 || LOAD(pool) != 3 ||
		    LOAD(worker) != 4 || LOAD(spawn_ns) != 5 || LOAD(kill_reason) != 0 || LOAD(kill_task_id) != 0 ||
		    LOAD(task_id) != 0 || (LOAD(phase) & 0xFF) != SHMRT_PHASE_BOOT || LOAD(beats) != 0 ||
		    LOAD(epoch) != 8 || LOAD(bell) != 0 || LOAD(stop_requested) != 0 || LOAD(oom) != 0)
			return -3;
		if (shmrt_slot_is_abandoned(slot))
			return -4; /* the mark of the dead would kill the newborn */
		break;
	case SET_PROCESS:
		outcome = LOAD(pid) == 1234 ? SWEEP_AFTER : SWEEP_BEFORE;
		if (outcome == SWEEP_AFTER && LOAD(owner) != 0xABC004D2)
			return -5;
		break;
	case HOLD:
		outcome = (atomic_load_explicit(shmrt_death_word(slot), memory_order_acquire) & FUTEX_WAITERS) /* F4 */
				  ? SWEEP_AFTER
				  : SWEEP_BEFORE;
		break;
	case READY:
		outcome = state == SHMRT_SLOT_READY ? SWEEP_AFTER : SWEEP_BEFORE;
		break;
	case GONE:
		outcome = state == SHMRT_SLOT_GONE ? SWEEP_AFTER : SWEEP_BEFORE;
		if (outcome == SWEEP_AFTER && (LOAD(wait_status) != 9 || LOAD(oom) != 1))
			return -6;
		break;
	case FREE:
		outcome = state == SHMRT_SLOT_EMPTY ? SWEEP_AFTER : SWEEP_BEFORE;
		break;
	case ORDER_KILL:
		outcome = LOAD(kill_reason) == SHMRT_KILL_TIMEOUT ? SWEEP_AFTER : SWEEP_BEFORE;
		if (outcome == SWEEP_AFTER && LOAD(kill_task_id) != 42)
			return -7;
		break;
	case TASK:
		outcome = (LOAD(phase) & 0xFF) == SHMRT_PHASE_RUN ? SWEEP_AFTER : SWEEP_BEFORE;
		if (outcome == SWEEP_AFTER && (LOAD(task_id) != 43 || LOAD(task_start_ns) != 44))
			return -8;
		break;
	}
	uint32_t epoch = LOAD(epoch);
	if ((state == SHMRT_SLOT_STARTING || state == SHMRT_SLOT_READY) && shmrt_slot_gone(slot, 0, false) != SHMRT_OK)
		return -9;
	if (state_of(slot) == SHMRT_SLOT_GONE && shmrt_slot_free(slot) != SHMRT_OK)
		return -10;
	if (shmrt_slot_claim(slot, 1, 1, 1) != SHMRT_OK || LOAD(epoch) == epoch || shmrt_slot_is_abandoned(slot))
		return -11;
	if (step == HOLD) /* locking here would happen in the middle of the other lock */
		return outcome;
	if (shmrt_slot_hold_death_mutex(slot) != SHMRT_OK || shmrt_slot_ready(slot) != SHMRT_OK)
		return -12;
	pthread_mutex_unlock(&slot->death); /* the copy must not stay in this thread's list */
	return outcome;
}

static void sweep_step(enum step step, const char *what) {
	struct sweep_report report = sweep_run(operation, &step, swept, sizeof *swept, judge, &step);
	sweep_expect(&report, what);
}

/* A slot in which a process has died: every word is used, the mutex bears the kernel's mark. */
static void leave_a_dead_life(struct shmrt_slot *slot) {
	memset(slot, 0, sizeof *slot);
	atomic_store_explicit(&slot->epoch, 6, memory_order_relaxed); /* F2 */
	EXPECT(shmrt_slot_claim(slot, 1, 2, 3) == SHMRT_OK);
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		EXPECT(shmrt_slot_hold_death_mutex(slot) == SHMRT_OK && shmrt_slot_ready(slot) == SHMRT_OK);
		shmrt_slot_task_begin(slot, 99, 100);
		shmrt_slot_phase_set(slot, SHMRT_PHASE_RUN);
		atomic_store_explicit(&slot->beats, 7, memory_order_relaxed); /* no edge */
		atomic_store_explicit(&slot->bell, 1, memory_order_relaxed);  /* B1 */
		kill(getpid(), SIGKILL);
	}
	shmrt_slot_set_process(slot, pid, 77);
	EXPECT(waitpid(pid, NULL, 0) == pid);
	EXPECT(shmrt_slot_order_kill(slot, SHMRT_KILL_CANCEL, 99));
	EXPECT(!shmrt_slot_order_kill(slot, SHMRT_KILL_TIMEOUT, 98) && LOAD(kill_task_id) == 99);
	EXPECT(shmrt_slot_is_abandoned(slot) && shmrt_slot_claim(slot, 0, 0, 0) == SHMRT_STALE);
	EXPECT(shmrt_slot_hold_death_mutex(slot) == SHMRT_STALE); /* not for a newcomer without a claim */
	EXPECT(shmrt_slot_gone(slot, SIGKILL, false) == SHMRT_OK && shmrt_slot_gone(slot, 0, 0) == SHMRT_STALE);
	EXPECT(shmrt_slot_free(slot) == SHMRT_OK && shmrt_slot_free(slot) == SHMRT_STALE);
}

static void test_sweeps(void) {
	new_control();
	swept = &control->slots[2];
	leave_a_dead_life(swept);
	sweep_step(CLAIM, "claim after a death");
	sweep_step(SET_PROCESS, "set_process");
	sweep_step(HOLD, "hold the death mutex");
	sweep_step(READY, "ready");
	sweep_step(TASK, "task_begin, phase_set");
	sweep_step(ORDER_KILL, "order_kill");
	pthread_mutex_unlock(&swept->death);
	sweep_step(GONE, "gone");
	sweep_step(FREE, "free");
}

/* ---- real deaths --------------------------------------------------------------------------------- */
static void *stay(void *unused) {
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

/* Starts a process that holds slot `index` and then follows the pipe: 'x' exec, 'm' main thread ends,
 * 'e' exit. SIGKILL comes from outside. */
static pid_t start_holder(uint32_t index, int *pipe_end) {
	struct shmrt_slot *slot = &control->slots[index];
	int ends[2];
	EXPECT(shmrt_slot_claim(slot, 0, index, 1) == SHMRT_OK && pipe(ends) == 0);
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ends[1]);
		EXPECT(shmrt_slot_hold_death_mutex(slot) == SHMRT_OK && shmrt_slot_ready(slot) == SHMRT_OK);
		char order = 0;
		pthread_t thread;
		while (read(ends[0], &order, 1) < 0 && errno == EINTR)
			;
		if (order == 'x')
			execlp("sleep", "sleep", "1000", (char *)NULL);
		if (order == 'm' && pthread_create(&thread, NULL, stay, NULL) == 0)
			pthread_exit(NULL);
		_exit(0);
	}
	close(ends[0]);
	*pipe_end = ends[1];
	shmrt_slot_set_process(slot, pid, 1);
	while (state_of(slot) != SHMRT_SLOT_READY)
		sched_yield();
	return pid;
}

static void end_holder(uint32_t index, pid_t pid, int pipe_end) {
	int status;
	kill(pid, SIGKILL);
	close(pipe_end);
	EXPECT(waitpid(pid, &status, 0) == pid);
	EXPECT(shmrt_slot_is_abandoned(&control->slots[index]));
	EXPECT(shmrt_slot_gone(&control->slots[index], status, false) == SHMRT_OK);
	EXPECT(shmrt_slot_free(&control->slots[index]) == SHMRT_OK);
}

static void test_every_kind_of_death_is_noticed_once(void) {
	new_control();
	_Atomic uint32_t *bell = &control->slots[SHMRT_SLOT_ROOT].bell;
	for (const char *kind = "kxme"; *kind; kind++) {
		int pipe_end;
		pid_t pid = start_holder(5, &pipe_end);
		shmrt_bell_arm(bell);
		EXPECT(shmrt_slots_watch(control, 0, SLOTS, bell, 0) == SHMRT_TIMEOUT);
		EXPECT(!shmrt_slot_is_abandoned(&control->slots[5]));
		if (*kind == 'k')
			EXPECT(kill(pid, SIGKILL) == 0);
		else
			EXPECT(write(pipe_end, kind, 1) == 1);
		EXPECT(shmrt_slots_watch(control, 0, SLOTS, bell, WATCHDOG_NS) == SHMRT_OK);
		EXPECT(shmrt_slot_is_abandoned(&control->slots[5]));
		EXPECT(shmrt_slots_watch(control, 0, SLOTS, bell, 1000000) == SHMRT_TIMEOUT); /* once */
		if (*kind == 'x' || *kind == 'm') /* a mark, but the process lives: only its pidfd says gone */
			EXPECT(waitpid(pid, NULL, WNOHANG) == 0);
		end_holder(5, pid, pipe_end);
	}
}

/* More processes than one sleep can watch, and deaths between two calls. */
static void test_many(uint32_t count) {
	static pid_t pids[SLOTS];
	static int pipes[SLOTS];
	new_control();
	for (uint32_t i = 0; i < count; i++)
		pids[i] = start_holder(2 + i, &pipes[i]);
	_Atomic uint32_t *bell = &control->slots[SHMRT_SLOT_ROOT].bell;
	shmrt_bell_arm(bell);
	EXPECT(shmrt_slots_watch(control, 2, count, bell, 0) == SHMRT_TIMEOUT);
	for (uint32_t i = 0; i < count; i += count / 5) {
		uint32_t victim = count - 1 - i;
		EXPECT(kill(pids[victim], SIGKILL) == 0);
		EXPECT(shmrt_slots_watch(control, 2, count, bell, WATCHDOG_NS) == SHMRT_OK);
		EXPECT(shmrt_slot_is_abandoned(&control->slots[2 + victim]));
	}
	for (uint32_t i = 0; i < count; i++)
		end_holder(2 + i, pids[i], pipes[i]);
}

/* The watch sleeps while its own process claims a slot: it takes the new word. */
static void *watch_in_a_thread(void *unused) {
	(void)unused;
	shmrt_bell_arm(&control->slots[SHMRT_SLOT_ROOT].bell);
	int result = shmrt_slots_watch(control, 0, SLOTS, &control->slots[SHMRT_SLOT_ROOT].bell, WATCHDOG_NS);
	return (void *)(intptr_t)result;
}

static void test_a_claim_is_taken_in(void) {
	for (int i = 0; i < 20; i++) {
		new_control();
		pthread_t thread;
		void *result;
		int pipe_end;
		EXPECT(pthread_create(&thread, NULL, watch_in_a_thread, NULL) == 0);
		pid_t pid = start_holder(9, &pipe_end);
		EXPECT(kill(pid, SIGKILL) == 0 && pthread_join(thread, &result) == 0);
		EXPECT((intptr_t)result == SHMRT_OK && shmrt_slot_is_abandoned(&control->slots[9]));
		end_holder(9, pid, pipe_end);
	}
}

static void test_a_bell_ends_the_watch(void) {
	new_control();
	pthread_t thread;
	void *result;
	EXPECT(pthread_create(&thread, NULL, watch_in_a_thread, NULL) == 0);
	while (atomic_load_explicit(&control->slots[SHMRT_SLOT_ROOT].bell, memory_order_acquire) == 0) /* B1 */
		sched_yield();
	shmrt_slots_ring_all(control);
	EXPECT(pthread_join(thread, &result) == 0 && (intptr_t)result == SHMRT_OK);
}

/* Runs `test` in a process whose kernel has no futex_waitv. */
static void without_waitv(void (*test)(void)) {
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		struct sock_filter code[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 449, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		};
		struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
		    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
			fprintf(stderr, "SKIPPED without futex_waitv: no seccomp\n");
			exit(0);
		}
		errno = 0;
		EXPECT(syscall(449, NULL, 0, 0, NULL, 0) < 0 && errno == ENOSYS);
		test();
		exit(0);
	}
	int status;
	EXPECT(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- the beat ------------------------------------------------------------------------------------ */
static void wait_for_a_beat(const struct shmrt_slot *slot) {
	uint64_t beats = LOAD(beats);
	while (LOAD(beats) == beats)
		sched_yield();
}

static void thread_count_is(int expected) {
	char command[64], line[16] = "";
	snprintf(command, sizeof command, "ls /proc/%d/task | wc -l", (int)getpid());
	FILE *found = popen(command, "r");
	EXPECT(found != NULL && fgets(line, sizeof line, found) != NULL);
	pclose(found);
	if (atoi(line) != 0) /* there is a /proc */
		EXPECT(atoi(line) == expected);
}

/* An idle process beats until it parks, then sleeps without a timer, and beats again when woken. Prepared: its thread is
 * there before the slot is known. A fork of such a process has no thread yet, and gets its own. */
enum prepared { NOT_PREPARED, PREPARED, COPY_OF_PREPARED };
static void test_beat(enum prepared prepared) {
	new_control();
	struct shmrt_slot *slot = &control->slots[3];
	EXPECT(shmrt_slot_claim(slot, 0, 0, 1) == SHMRT_OK);
	int ends[2], told[2];
	EXPECT(pipe(ends) == 0 && pipe(told) == 0);
	pid_t parent = getpid(), beats_for, pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		char order;
		close(ends[1]);
		if (prepared != NOT_PREPARED) {
			EXPECT(shmrt_beat_prepare() == SHMRT_OK);
			thread_count_is(2);
		}
		pid_t copy = prepared == COPY_OF_PREPARED ? fork() : 0;
		if (copy > 0) {
			EXPECT(waitpid(copy, NULL, 0) == copy);
			_exit(0);
		}
		if (prepared == COPY_OF_PREPARED)
			parent = getppid(); /* whose death would be ours */
		EXPECT(shmrt_slot_hold_death_mutex(slot) == SHMRT_OK && shmrt_slot_ready(slot) == SHMRT_OK);
		EXPECT(shmrt_beat_start(control, 3, parent, SHMRT_SLOT_PROGRAM) == SHMRT_OK);
		thread_count_is(2);
		EXPECT(write(told[1], &(pid_t){getpid()}, sizeof(pid_t)) == sizeof(pid_t));
		while (read(ends[0], &order, 1) == 1) {
			shmrt_slot_phase_set(slot, order == 'p' ? SHMRT_PHASE_PARKED : SHMRT_PHASE_RUN);
			if (order != 'p')
				shmrt_beat_wake();
		}
		_exit(0);
	}
	close(ends[0]);
	close(told[1]);
	EXPECT(read(told[0], &beats_for, sizeof beats_for) == sizeof beats_for);
	close(told[0]);
	wait_for_a_beat(slot);
	wait_for_a_beat(slot);
	EXPECT(LOAD(rss_bytes) > 4096 && LOAD(beat_ns) != 0);
	for (int round = 0; round < 2; round++) {
		EXPECT(write(ends[1], "p", 1) == 1);
		/* The kernel says what the thread sleeps in: futex(word, op, 1, no timeout). */
		char command[256];
		snprintf(command, sizeof command,
			 "for t in /proc/%d/task/*; do read -r n; grep -q shmrt-beat $t/comm && cat $t/syscall; done "
			 "</dev/null 2>/dev/null",
			 (int)beats_for);
		for (int64_t give_up = (int64_t)shmrt_now_ns() + WATCHDOG_NS;;) {
			char line[256] = "";
			FILE *found = popen(command, "r");
			EXPECT(found != NULL);
			bool any = fgets(line, sizeof line, found) != NULL;
			pclose(found);
			long number;
			unsigned long word, op, value, timeout;
			if (!any) {
				fprintf(stderr, "SKIPPED: the beat's sleep cannot be seen in /proc\n");
				break;
			}
			if (sscanf(line, "%ld %lx %lx %lx %lx", &number, &word, &op, &value, &timeout) == 5 &&
			    number == SYS_futex && value == 1 && timeout == 0)
				break;
			EXPECT((int64_t)shmrt_now_ns() < give_up);
		}
		EXPECT(write(ends[1], "r", 1) == 1);
		wait_for_a_beat(slot);
		wait_for_a_beat(slot);
	}
	close(ends[1]);
	EXPECT(waitpid(pid, NULL, 0) == pid);
}

/* `orphan`: the middle process (its root) dies. Else: the program dies, which is slot 0's mark. */
static void test_nobody_is_orphaned(bool orphan) {
	new_control();
	int alive[2], hold[2];
	EXPECT(pipe(alive) == 0 && pipe(hold) == 0);
	EXPECT(shmrt_slot_claim(&control->slots[0], 0, 0, 1) == SHMRT_OK);
	EXPECT(shmrt_slot_claim(&control->slots[4], 0, 0, 1) == SHMRT_OK);
	pid_t middle = fork();
	EXPECT(middle >= 0);
	if (middle == 0) {
		pid_t root = getpid();
		if (!orphan) /* plays the program, too */
			EXPECT(shmrt_slot_hold_death_mutex(&control->slots[0]) == SHMRT_OK);
		if (fork() == 0) {
			close(alive[0]);
			setpgid(0, 0);
			EXPECT(shmrt_beat_start(control, 4, orphan ? root : 0, SHMRT_SLOT_PROGRAM) == SHMRT_OK);
			(void)!write(alive[1], "a", 1);
			for (;;)
				pause();
		}
		for (;;)
			pause();
	}
	close(alive[1]);
	char byte;
	EXPECT(read(alive[0], &byte, 1) == 1);
	wait_for_a_beat(&control->slots[4]);
	kill(middle, SIGKILL);
	EXPECT(waitpid(middle, NULL, 0) == middle);
	EXPECT(read(alive[0], &byte, 1) == 0); /* the end of the pipe: nobody holds it any more */
	close(alive[0]), close(hold[0]), close(hold[1]);
}

static void few(void) { test_many(20); }

int main(void) {
	test_sweeps();
	test_every_kind_of_death_is_noticed_once();
	few();
	test_many(SWEEP_SANITIZED ? 60 : 140);
	test_a_claim_is_taken_in();
	test_a_bell_ends_the_watch();
	without_waitv(test_every_kind_of_death_is_noticed_once);
	without_waitv(few);
	without_waitv(test_a_bell_ends_the_watch);
	test_beat(NOT_PREPARED);
	test_beat(PREPARED);
	test_beat(COPY_OF_PREPARED);
	test_nobody_is_orphaned(true);
	test_nobody_is_orphaned(false);
	printf("%zu states\n", sweep_total_states());
	return 0;
}
