/* test_slots_sweep.c -- whoever carries on a slot's life after a death dies, too, after every instruction.
 *
 * A slot's life is a row of steps by three processes: the root claims, the worker holds the death mutex and is ready, the
 * root says gone, the hub frees. Here every step dies everywhere; over each state that it leaves, the repair (go on to GONE,
 * EMPTY and the next claim) dies everywhere; and the repair after that must end as one that was never disturbed. The epoch
 * and the sequence of the phase begin where their words run over.
 */
#define _GNU_SOURCE
#include "slots.h"
#include "sweep.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(condition)                                                                      \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                               \
		}                                                                              \
	} while (0)
#define LOAD(from, word) atomic_load_explicit(&(from)->word, memory_order_acquire) /* F2 */
#define STATES_MAX 512

enum step { CLAIM, SET_PROCESS, READY, TASK, ORDER_KILL, GONE, FREE, STEPS };
static const char *const names[] = {"claim", "set_process", "ready", "task", "order_kill", "gone", "free"};

static struct shmrt_slot *swept;                       /* the slot under the sweep, in memory shared with children */
static uint8_t states[STATES_MAX][sizeof(struct shmrt_slot)]; /* what deaths left */
static size_t state_count;
static bool collect;
static uint8_t whole[sizeof(struct shmrt_slot)]; /* what an undisturbed repair makes of the state under way */

static void operate(void *context) {
	int result = SHMRT_OK;
	switch (*(const enum step *)context) {
	case CLAIM:
		result = shmrt_slot_claim(swept, 3, 4, 5);
		break;
	case SET_PROCESS:
		shmrt_slot_set_process(swept, 1234, 0xABC004D2);
		break;
	case READY:
		result = shmrt_slot_ready(swept);
		break;
	case TASK:
		shmrt_slot_task_begin(swept, 43, 44);
		shmrt_slot_phase_set(swept, SHMRT_PHASE_RUN);
		break;
	case ORDER_KILL:
		result = shmrt_slot_order_kill(swept, SHMRT_KILL_TIMEOUT, 42) ? SHMRT_OK : SHMRT_STALE;
		break;
	case GONE:
		result = shmrt_slot_gone(swept, 9, true);
		break;
	default:
		result = shmrt_slot_free(swept);
	}
	SHMRT_ASSERT(result == SHMRT_OK);
}

/* What the survivors do with a slot whose process is gone, from wherever it stands. */
static void go_on(struct shmrt_slot *slot) {
	uint32_t state = LOAD(slot, state);
	int ignored = SHMRT_OK;
	if (state == SHMRT_SLOT_STARTING || state == SHMRT_SLOT_READY)
		ignored = shmrt_slot_gone(slot, 9, false);
	if (LOAD(slot, state) == SHMRT_SLOT_GONE)
		ignored = shmrt_slot_free(slot);
	if (LOAD(slot, state) == SHMRT_SLOT_EMPTY)
		ignored = shmrt_slot_claim(slot, 6, 7, 8);
	(void)ignored;
}
static void operate_go_on(void *context) { go_on(context); }

/* The words that count the lives may be further on after a death; nothing else may differ. */
static bool is_same_life(const uint8_t *one, const uint8_t *other) {
	static struct shmrt_slot a, b;
	memcpy(&a, one, sizeof a);
	memcpy(&b, other, sizeof b);
	bool counted = LOAD(&a, epoch) != 0 && LOAD(&b, epoch) != 0 && (LOAD(&a, phase) & 0xFF) == (LOAD(&b, phase) & 0xFF);
	atomic_store_explicit(&a.epoch, 0, memory_order_relaxed);
	atomic_store_explicit(&b.epoch, 0, memory_order_relaxed);
	atomic_store_explicit(&a.phase, 0, memory_order_relaxed);
	atomic_store_explicit(&b.phase, 0, memory_order_relaxed);
	return counted && memcmp(&a, &b, sizeof a) == 0;
}

static int judge(void *copy, size_t step_number, void *context) {
	(void)step_number, (void)context;
	struct shmrt_slot *slot = copy;
	if (shmrt_slot_check(slot) != SHMRT_OK)
		return -2;
	if (collect) {
		if (state_count == STATES_MAX)
			return -3;
		memcpy(states[state_count++], copy, sizeof *slot);
	}
	uint32_t epoch = LOAD(slot, epoch), state = LOAD(slot, state);
	go_on(slot);
	if (shmrt_slot_check(slot) != SHMRT_OK || LOAD(slot, state) != SHMRT_SLOT_STARTING || shmrt_slot_is_abandoned(slot))
		return -4;
	if (LOAD(slot, epoch) == epoch && !(state == SHMRT_SLOT_STARTING && LOAD(slot, worker) == 7))
		return -5; /* the next life has the number of the one before */
	if (shmrt_slot_hold_death_mutex(slot) != SHMRT_OK || shmrt_slot_ready(slot) != SHMRT_OK)
		return -6;
	pthread_mutex_unlock(&slot->death); /* the copy must not stay in this thread's list */
	return SWEEP_BEFORE;
}

/* As judge, and it ends like the repair that nobody disturbed. */
static int judge_repair(void *copy, size_t step_number, void *context) {
	(void)step_number, (void)context;
	if (shmrt_slot_check(copy) != SHMRT_OK)
		return -7;
	static uint8_t left[sizeof(struct shmrt_slot)] __attribute__((aligned(SHMRT_LINE)));
	memcpy(left, copy, sizeof left);
	if (LOAD((struct shmrt_slot *)(void *)left, state) != SHMRT_SLOT_STARTING ||
	    LOAD((struct shmrt_slot *)(void *)left, worker) != 7)
		go_on((struct shmrt_slot *)(void *)left);
	if (!is_same_life(left, whole))
		return -8;
	return judge(copy, step_number, context);
}

/* A slot whose process was killed; every word is used. */
static void leave_a_dead_life(uint32_t epoch, uint64_t phase) {
	memset(swept, 0, sizeof *swept);
	atomic_store_explicit(&swept->epoch, epoch, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&swept->phase, phase, memory_order_relaxed); /* F1 */
	EXPECT(shmrt_slot_claim(swept, 1, 2, 3) == SHMRT_OK && LOAD(swept, epoch) != 0);
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		EXPECT(shmrt_slot_hold_death_mutex(swept) == SHMRT_OK && shmrt_slot_ready(swept) == SHMRT_OK);
		shmrt_slot_task_begin(swept, 99, 100);
		shmrt_slot_phase_set(swept, SHMRT_PHASE_RUN);
		atomic_store_explicit(&swept->bell, 1, memory_order_relaxed); /* B1 */
		kill(getpid(), SIGKILL);
	}
	shmrt_slot_set_process(swept, pid, 77);
	EXPECT(waitpid(pid, NULL, 0) == pid && shmrt_slot_is_abandoned(swept));
	EXPECT(shmrt_slot_order_kill(swept, SHMRT_KILL_CANCEL, 99));
	EXPECT(shmrt_slot_gone(swept, SIGKILL, false) == SHMRT_OK && shmrt_slot_free(swept) == SHMRT_OK);
}

static void sweep_life(uint32_t epoch, uint64_t phase) {
	static uint8_t lived[sizeof(struct shmrt_slot)];
	leave_a_dead_life(epoch, phase);
	for (enum step step = CLAIM; step < STEPS; step++) {
		state_count = 0;
		collect = true;
		struct sweep_report report = sweep_run(operate, &step, swept, sizeof *swept, judge, &step);
		collect = false;
		sweep_expect_clean(&report, names[step]);
		EXPECT(report.skipped || report.changes > 1);
		memcpy(lived, swept, sizeof lived);
		for (size_t i = 0; i < state_count; i++) {
			memcpy(swept, states[i], sizeof *swept);
			go_on(swept);
			memcpy(whole, swept, sizeof whole);
			memcpy(swept, states[i], sizeof *swept);
			report = sweep_run(operate_go_on, swept, swept, sizeof *swept, judge_repair, NULL);
			sweep_expect_clean(&report, "the repair after it");
		}
		memcpy(swept, lived, sizeof lived);
	}
}

int main(void) {
	static const uint32_t epochs[] = {6, UINT32_MAX - 2, UINT32_MAX - 1, UINT32_MAX};
	static const uint64_t phases[] = {0, (UINT64_C(1) << 32) - 256, UINT64_MAX - 1023, UINT64_MAX - 511, UINT64_MAX - 255};
	swept = mmap(NULL, sizeof *swept, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	EXPECT(swept != MAP_FAILED);
	for (size_t i = 0; i < sizeof epochs / sizeof *epochs; i++)
		for (size_t j = 0; j < sizeof phases / sizeof *phases; j++)
			if (sweep_is_long() || i == j || (i == 0 && j == 4))
				sweep_life(epochs[i], phases[j] & ~UINT64_C(0xFF));
	printf("%zu states\n", sweep_total_states());
	return 0;
}
