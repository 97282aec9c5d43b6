/* test_guards_stress.c -- processes that share breakers, permits, a line, a rate limit and joins, killed at random.
 *
 * Three have slots in the process table, one has none. They check as they go: a bulkhead of one permit lets one in at a time, and
 * whoever locks a breaker finds it whole. After each kill the parent looks, too. In the end everything comes back: no permit,
 * place or trial stays with the dead, every breaker closes, and each name was joined once.
 *
 *	test_guards_stress [seed [kills]]
 */
#define _GNU_SOURCE
#include "guards_world.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 4
#define TURNS 100000
#define NAMES 24
#define HELD_MAX 3
#define PATIENCE_NS INT64_C(20000000)
#define TRIES 3000 /* a minute: whoever has the mutex may have to wait for a CPU */

enum { IN_A_ROW, CALLS, TIME, BREAKERS };
enum { ONE, SOME, BULKHEADS };

struct shared {
	_Atomic uint64_t turns[CHILDREN];
	_Atomic uint64_t entered[BULKHEADS]; /* takes that came back */
	_Atomic uint32_t inside;             /* owner of who is in the bulkhead of one */
	_Atomic uint32_t killed[CHILDREN];   /* owners; a killed process is seen for a while after its main thread has ended */
	_Atomic uint64_t tried[BREAKERS];    /* trials that came back; each has a ticket of its own */
	_Atomic uint64_t promised;
	_Atomic int stop;
};

static struct shared *shared;
static struct shmrt_guard_area area;
static struct shmrt_breaker *breakers[BREAKERS];
static struct shmrt_bulkhead *bulkheads[BULKHEADS];
static struct shmrt_bucket *bucket;
static uint64_t random_state;

static uint64_t next_random(void) {
	random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
	return random_state;
}

#define MUST(condition)                                                                        \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: pid %d: failed: %s\n", __FILE__, __LINE__,     \
				(int)getpid(), #condition);                                    \
			_exit(3);                                                              \
		}                                                                              \
	} while (0)
/* Whoever holds the mutex lives and will let go, or is dead and has: nobody waits for ever. */
#define PATIENTLY(outcome, call)                                                               \
	do {                                                                                   \
		int tries_ = 0;                                                                \
		while (((outcome) = (call)) == SHMRT_INTERRUPTED)                              \
			MUST(++tries_ < TRIES);                                                \
		MUST((outcome) != SHMRT_CORRUPT);                                              \
	} while (0)

/* ---- what there is ------------------------------------------------------------------------------ */

static const char *const kinds[] = {"in a row", "calls", "time"};

static struct shmrt_breaker_settings breaker_settings(unsigned which) {
	struct shmrt_breaker_settings s = {.failure_threshold = 3, .success_threshold = 2, .half_open_max = 3, .window = which, .growth = 1.5,
					   .reset_ns = 50000, .reset_max_ns = 200000, .trial_ns = 2000000};
	if (which != IN_A_ROW)
		s.window_size = 8, s.min_calls = 5, s.bucket_ns = 30000, s.failure_rate = 0.5, s.slow_rate = 0.9, s.slow_ns = 1;
	return s;
}

/* Its tickets count the trials here. */
static int fill_from_zero(struct shmrt_guard *guard, const void *settings) {
	int outcome = shmrt_breaker_fill(guard, settings);
	side_now((struct shmrt_breaker *)(void *)guard)->tickets = 0;
	return outcome;
}

/* Joins, and checks what comes. */
static struct shmrt_guard *join(uint32_t kind, const char *name, const void *settings) {
	struct shmrt_guard_plan plan = {.kind = kind, .name = name, .name_size = strlen(name), .text = "", .settings = settings};
	struct shmrt_guard *guard;
	struct shmrt_shortage shortage;
	bool made;
	int outcome;
	if (kind == SHMRT_GUARD_BREAKER)
		plan.body_bytes = shmrt_breaker_body_bytes(settings), plan.fill = fill_from_zero;
	else if (kind == SHMRT_GUARD_BULKHEAD)
		plan.body_bytes = shmrt_bulkhead_body_bytes(settings), plan.fill = shmrt_bulkhead_fill;
	else
		plan.body_bytes = sizeof(struct shmrt_bucket) - sizeof(struct shmrt_guard), plan.fill = shmrt_bucket_fill;
	PATIENTLY(outcome, shmrt_guard_join(&area, &plan, &guard, &made, &shortage));
	MUST(outcome == SHMRT_OK);
	MUST(kind != SHMRT_GUARD_BREAKER || shmrt_breaker_is_sound((struct shmrt_breaker *)(void *)guard));
	MUST(kind != SHMRT_GUARD_BULKHEAD || shmrt_bulkhead_is_sound((struct shmrt_bulkhead *)(void *)guard));
	MUST(kind != SHMRT_GUARD_BUCKET || shmrt_bucket_is_sound((struct shmrt_bucket *)(void *)guard));
	return guard;
}

static void join_all(void) {
	static const struct shmrt_bulkhead_settings sizes[] = {{.capacity = 2, .limit = 1, .most_waiting = 3}, {.capacity = 6, .limit = 4, .most_waiting = 2}};
	static const struct shmrt_bucket_settings rate = {.token_ns = 2000, .burst = 20};
	for (unsigned i = 0; i < BREAKERS; i++) {
		struct shmrt_breaker_settings s = breaker_settings(i);
		breakers[i] = (struct shmrt_breaker *)(void *)join(SHMRT_GUARD_BREAKER, kinds[i], &s);
	}
	bulkheads[ONE] = (struct shmrt_bulkhead *)(void *)join(SHMRT_GUARD_BULKHEAD, "one", &sizes[ONE]);
	bulkheads[SOME] = (struct shmrt_bulkhead *)(void *)join(SHMRT_GUARD_BULKHEAD, "some", &sizes[SOME]);
	bucket = (struct shmrt_bucket *)(void *)join(SHMRT_GUARD_BUCKET, "rate", &rate);
}

/* ---- what children do --------------------------------------------------------------------------- */

static struct shmrt_holder me;
static struct shmrt_permit held[HELD_MAX];
static unsigned held_count;

static void count(_Atomic uint64_t *number) { atomic_fetch_add_explicit(number, 1, memory_order_relaxed); }

/* Under the mutex nothing moves: the side that counts, its window and the gate belong together. */
static void look_at_a_breaker(struct shmrt_breaker *breaker) {
	int outcome;
	PATIENTLY(outcome, shmrt_guard_lock(&breaker->guard, PATIENCE_NS));
	const struct shmrt_breaker_side *side = side_now(breaker);
	uint64_t gate = shmrt_breaker_gate(breaker);
	MUST(shmrt_gate_state(gate) == side->state && shmrt_gate_era(gate) == side->era);
	MUST(window_adds_up(&breaker->settings, side, window_now(breaker)));
	shmrt_guard_unlock(&breaker->guard);
	struct shmrt_breaker_side seen;
	shmrt_breaker_look(breaker, &seen, NULL);
	MUST(seen.failed <= seen.results && seen.state <= SHMRT_BREAKER_HALF_OPEN);
}

static void call_through(unsigned which) {
	struct shmrt_breaker *breaker = breakers[which];
	struct shmrt_admission admission;
	struct shmrt_breaker_change change;
	uint64_t retry;
	int outcome;
	PATIENTLY(outcome, shmrt_breaker_admit(breaker, area.control, me, shmrt_now_ns(), PATIENCE_NS, &admission, &retry, &change));
	if (outcome == SHMRT_FULL)
		return;
	MUST(outcome == SHMRT_OK);
	if (admission.trial != 0) { /* long enough to die in */
		count(&shared->tried[which]);
		for (uint64_t spins = next_random() % 4000; spins > 0; spins--)
			shmrt_pause();
	}
	enum shmrt_verdict result = next_random() % 10 < 7 ? SHMRT_VERDICT_SUCCESS : next_random() % 3 ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_IGNORED;
	PATIENTLY(outcome, shmrt_breaker_settle(breaker, &admission, result, next_random() % 8 == 0, shmrt_now_ns(), PATIENCE_NS, &change));
	MUST(outcome == SHMRT_OK);
}

static bool is_killed(uint32_t owner) {
	for (int i = 0; i < CHILDREN; i++)
		if (atomic_load_explicit(&shared->killed[i], memory_order_acquire) == owner) /* of this test */
			return true;
	return !shmrt_owner_is_alive(owner);
}

/* One at a time. Who was inside may be dead, but it never lives. */
static void go_inside(void) {
	struct shmrt_permit permit, place = {0};
	bool waits = next_random() % 2 == 0;
	uint32_t bell;
	int outcome;
	for (int i = 0; i < 4; i++) {
		PATIENTLY(outcome, shmrt_bulkhead_take(bulkheads[ONE], area.control, me, PATIENCE_NS, &permit, waits ? &place : NULL, &bell));
		if (outcome != SHMRT_EMPTY || !waits)
			break;
		int ignored = shmrt_futex_wait(&bulkheads[ONE]->bell, bell, 100000);
		(void)ignored;
	}
	if (outcome == SHMRT_OK) {
		count(&shared->entered[ONE]);
		uint32_t before = atomic_exchange_explicit(&shared->inside, me.owner, memory_order_acq_rel); /* of this test */
		MUST(before == 0 || is_killed(before));
		for (uint64_t spins = next_random() % 50; spins > 0; spins--)
			shmrt_pause();
		uint32_t mine = me.owner;
		MUST(atomic_compare_exchange_strong_explicit(&shared->inside, &mine, 0, memory_order_acq_rel, memory_order_relaxed)); /* as above */
		PATIENTLY(outcome, shmrt_bulkhead_give_back(bulkheads[ONE], PATIENCE_NS, &permit));
	}
	PATIENTLY(outcome, shmrt_bulkhead_leave_line(bulkheads[ONE], PATIENCE_NS, &place));
}

static void let_go(void) {
	struct shmrt_permit *permit = &held[--held_count];
	int outcome;
	PATIENTLY(outcome, shmrt_bulkhead_give_back(bulkheads[SOME], PATIENCE_NS, permit));
}

static void take_tokens(void) {
	uint64_t wait, tokens = 1 + next_random() % 3, now = shmrt_now_ns();
	if (shmrt_bucket_take(bucket, tokens, now, 5000, &wait) == SHMRT_OK)
		atomic_fetch_add_explicit(&shared->promised, tokens, memory_order_relaxed);
	uint64_t full = atomic_load_explicit(&bucket->full_ns, memory_order_relaxed);
	MUST(full <= shmrt_now_ns() + 20 * 2000 + 5000);
}

static void join_something(void) {
	static const struct shmrt_bulkhead_settings size = {.capacity = 3, .limit = 1, .most_waiting = 1};
	char name[16];
	snprintf(name, sizeof(name), "n%u", (unsigned)(next_random() % NAMES));
	struct shmrt_guard *guard = join(SHMRT_GUARD_BULKHEAD, name, &size);
	MUST(guard->name_size == strlen(name) && memcmp(guard->name, name, guard->name_size) == 0);
}

static void turn(void) {
	uint64_t choice = next_random() % 1000, now = shmrt_now_ns();
	unsigned which = (unsigned)(next_random() % BREAKERS);
	struct shmrt_breaker *breaker = breakers[which];
	struct shmrt_breaker_change change;
	uint32_t out, waiting, bell;
	int outcome;
	if (choice < 400) {
		call_through(which);
	} else if (choice < 420) {
		PATIENTLY(outcome, shmrt_breaker_set(breaker, next_random() % 4 ? SHMRT_BREAKER_CLOSED : SHMRT_BREAKER_OPEN, now, PATIENCE_NS, &change));
	} else if (choice < 480) {
		look_at_a_breaker(breaker);
	} else if (choice < 700) {
		go_inside();
	} else if (choice < 800 && held_count < HELD_MAX) {
		PATIENTLY(outcome, shmrt_bulkhead_take(bulkheads[SOME], area.control, me, PATIENCE_NS, &held[held_count], NULL, &bell));
		if (outcome == SHMRT_OK)
			count(&shared->entered[SOME]), held_count++;
	} else if (choice < 900 && held_count > 0) {
		let_go();
	} else if (choice < 910) {
		PATIENTLY(outcome, shmrt_bulkhead_resize(bulkheads[SOME], PATIENCE_NS, 2 + (uint32_t)(next_random() % 5)));
	} else if (choice < 920) {
		PATIENTLY(outcome, shmrt_bulkhead_look(bulkheads[next_random() % BULKHEADS], area.control, PATIENCE_NS, &out, &waiting));
	} else if (choice < 980) {
		take_tokens();
	} else {
		join_something();
	}
}

static void child(int number, uint64_t seed, pid_t parent) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it ended before the line above: nobody would end us */
		_exit(0);
	random_state = seed;
	me = (struct shmrt_holder){.owner = shmrt_owner_self(), .slot = SHMRT_GUARD_NO_SLOT};
	if (number != 0) {
		struct shmrt_slot *slot = &area.control->slots[number + 1];
		me.slot = (uint32_t)number + 1;
		shmrt_slot_set_process(slot, (int32_t)getpid(), me.owner);
		MUST(shmrt_slot_hold_death_mutex(slot) == SHMRT_OK && shmrt_slot_ready(slot) == SHMRT_OK);
	}
	join_all();
	while (atomic_load_explicit(&shared->stop, memory_order_relaxed) == 0) {
		count(&shared->turns[number]);
		turn();
	}
	while (held_count > 0)
		let_go();
	_exit(0);
}

/* ---- the parent --------------------------------------------------------------------------------- */

static pid_t start(int number) {
	uint64_t seed = next_random() | 1;
	if (number != 0)
		MUST(shmrt_slot_claim(&area.control->slots[number + 1], 0, 0, shmrt_now_ns()) == SHMRT_OK);
	pid_t parent = getpid(), pid = fork();
	if (pid == 0)
		child(number, seed, parent);
	MUST(pid > 0);
	return pid;
}

static void bury(int number, pid_t pid, int *status) {
	MUST(waitpid(pid, status, 0) == pid);
	if (number != 0)
		MUST(shmrt_slot_gone(&area.control->slots[number + 1], *status, false) == SHMRT_OK &&
		     shmrt_slot_free(&area.control->slots[number + 1]) == SHMRT_OK);
}

static uint64_t all_turns(void) {
	uint64_t turns = 0;
	for (int i = 0; i < CHILDREN; i++)
		turns += atomic_load_explicit(&shared->turns[i], memory_order_relaxed);
	return turns;
}

/* Waits until the child has made some turns, and a random piece of one more. */
static void wait_for_moment(int number, pid_t pid) {
	uint64_t goal = atomic_load_explicit(&shared->turns[number], memory_order_relaxed) + next_random() % 400;
	while (atomic_load_explicit(&shared->turns[number], memory_order_relaxed) < goal) {
		int status;
		if (waitpid(pid, &status, WNOHANG) == pid) {
			fprintf(stderr, "child %d ended by itself with status %x\n", (int)pid, (unsigned)status);
			exit(1);
		}
		sched_yield();
	}
	for (uint64_t spins = next_random() % 3000; spins > 0; spins--)
		shmrt_pause();
}

static void stop_others(const pid_t *pids, int number, int signal_number) {
	for (int i = 0; i < CHILDREN; i++) {
		int status;
		if (i == number)
			continue;
		MUST(kill(pids[i], signal_number) == 0);
		MUST(signal_number != SIGSTOP || (waitpid(pids[i], &status, WUNTRACED) == pids[i] && WIFSTOPPED(status)));
	}
}

/* Mutexes that the dead held, while nobody else runs who would repair. */
static unsigned count_abandoned(void) {
	unsigned abandoned = 0;
	struct shmrt_guard *guard = NULL;
	while ((guard = shmrt_guard_next(&area, guard)) != NULL)
		abandoned += ((uint32_t)guard->mutex.__data.__lock & FUTEX_OWNER_DIED) != 0;
	return abandoned + (((uint32_t)area.head->mutex.__data.__lock & FUTEX_OWNER_DIED) != 0);
}

/* Counts and words of a bulkhead under its mutex; nobody dies meanwhile. */
static void look_at_a_bulkhead(struct shmrt_bulkhead *b) {
	uint32_t out, waiting, words = 0, places = 0;
	int outcome;
	PATIENTLY(outcome, shmrt_bulkhead_look(b, area.control, PATIENCE_NS, &out, &waiting));
	PATIENTLY(outcome, shmrt_guard_lock(&b->guard, PATIENCE_NS));
	MUST(outcome == SHMRT_OK);
	struct shmrt_waiter *line = (struct shmrt_waiter *)(void *)(b->words + b->capacity);
	for (uint32_t i = 0; i < b->capacity; i++)
		words += atomic_load_explicit(&b->words[i], memory_order_relaxed) != 0;
	for (uint32_t i = 0; i < shmrt_bulkhead_places(b->capacity, b->most_waiting); i++)
		places += atomic_load_explicit(&line[i].word, memory_order_relaxed) != 0;
	MUST(words == atomic_load_explicit(&b->used, memory_order_relaxed) && places == atomic_load_explicit(&b->waiting, memory_order_relaxed));
	shmrt_guard_unlock(&b->guard);
}

static void close_a_breaker(struct shmrt_breaker *breaker) {
	uint64_t now = shmrt_now_ns(), retry;
	struct shmrt_admission admission;
	struct shmrt_breaker_change change;
	me = (struct shmrt_holder){.owner = shmrt_owner_self(), .slot = SHMRT_GUARD_NO_SLOT};
	for (int i = 0; i < 20 && shmrt_gate_state(shmrt_breaker_gate(breaker)) != SHMRT_BREAKER_CLOSED; i++, now += 10000000)
		if (shmrt_breaker_admit(breaker, area.control, me, now, 0, &admission, &retry, &change) == SHMRT_OK)
			MUST(shmrt_breaker_settle(breaker, &admission, SHMRT_VERDICT_SUCCESS, false, now, 0, &change) == SHMRT_OK);
	MUST(shmrt_gate_state(shmrt_breaker_gate(breaker)) == SHMRT_BREAKER_CLOSED);
}

/* Each name once, one entry behind the other, memory behind all. */
static void look_at_the_area(uint64_t offset) {
	struct stat info;
	uint64_t bytes = 0;
	unsigned entries = 0;
	struct shmrt_guard *guard = NULL;
	while ((guard = shmrt_guard_next(&area, guard)) != NULL) {
		struct shmrt_guard *other = guard;
		entries++, bytes += guard->size;
		while ((other = shmrt_guard_next(&area, other)) != NULL)
			MUST(other->kind != guard->kind || other->name_size != guard->name_size || memcmp(other->name, guard->name, guard->name_size) != 0);
	}
	uint64_t reserved = atomic_load_explicit(&area.head->reserved, memory_order_relaxed);
	MUST(entries > 6 && entries <= NAMES + 6 && bytes == atomic_load_explicit(&area.head->used, memory_order_relaxed) && bytes <= reserved);
	MUST(fstat(area.fd, &info) == 0 && (uint64_t)info.st_blocks * 512 >= offset + reserved);
}

int main(int argc, char **argv) {
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : shmrt_now_ns() | 1;
	int least = argc > 2 ? atoi(argv[2]) : 100, kills = 0, status;
	unsigned abandoned = 0;
	uint64_t offset = shmrt_align_up(shmrt_control_table_bytes(SLOTS), 4096), size = offset + SHMRT_GUARD_AREA_BYTES;
	void *address;
	printf("seed %llu, %d kills at least\n", (unsigned long long)random_state, least);
	fflush(stdout);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = shmrt_memfd_create("guards", size);
	MUST(shared != MAP_FAILED && fd >= 0 && shmrt_fallocate(fd, 0, offset) == SHMRT_OK && shmrt_map(fd, 0, size, true, &address) == SHMRT_OK);
	shmrt_control_format(address, SLOTS);
	shmrt_guards_format(shmrt_guards_of(address), offset);
	MUST(shmrt_guard_area_attach(&area, address, size, fd, SHMRT_GUARD_NO_SLOT) == SHMRT_OK);
	pid_t pids[CHILDREN];
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = start(i);
	while (atomic_load_explicit(&area.head->used, memory_order_acquire) == 0)
		sched_yield(); /* one of them makes the first entry, whoever dies meanwhile */
	/* Until enough was done, and enough died with a mutex. */
	while (kills < least || all_turns() < TURNS || abandoned < (unsigned)least / 20) {
		int number = (int)(next_random() % CHILDREN);
		wait_for_moment(number, pids[number]);
		atomic_store_explicit(&shared->killed[number], shmrt_owner_of(pids[number]), memory_order_release); /* of this test */
		bool alone = next_random() % 2 == 0;
		if (alone)
			stop_others(pids, number, SIGSTOP);
		MUST(kill(pids[number], SIGKILL) == 0);
		bury(number, pids[number], &status);
		if (alone) {
			abandoned += count_abandoned();
			stop_others(pids, number, SIGCONT);
		}
		MUST(WIFSIGNALED(status) && ++kills < 100 * least);
		if (breakers[0] == NULL)
			join_all();
		for (unsigned i = 0; i < BULKHEADS; i++)
			look_at_a_bulkhead(bulkheads[i]);
		for (unsigned i = 0; i < BREAKERS; i++)
			look_at_a_breaker(breakers[i]);
		pids[number] = start(number);
	}
	atomic_store_explicit(&shared->stop, 1, memory_order_relaxed);
	int ended_well = 0;
	for (int i = 0; i < CHILDREN; i++) {
		bury(i, pids[i], &status);
		ended_well += status == 0;
	}
	MUST(ended_well == CHILDREN);
	for (unsigned i = 0; i < BULKHEADS; i++) {
		uint32_t out, waiting;
		MUST(shmrt_bulkhead_look(bulkheads[i], area.control, 0, &out, &waiting) == SHMRT_OK && out == 0 && waiting == 0);
		look_at_a_bulkhead(bulkheads[i]);
		uint64_t entered = atomic_load_explicit(&shared->entered[i], memory_order_relaxed);
		uint64_t taken = counter_of(&bulkheads[i]->guard, SHMRT_BULKHEAD_TAKEN);
		MUST(taken >= entered && taken <= entered + (uint64_t)kills);
	}
	uint64_t promised = atomic_load_explicit(&shared->promised, memory_order_relaxed), told = counter_of(&bucket->guard, SHMRT_BUCKET_TAKEN);
	MUST(told >= promised && told <= promised + 3 * (uint64_t)kills);
	uint64_t lost = 0, trials = 0;
	for (unsigned i = 0; i < BREAKERS; i++) {
		lost += counter_of(&breakers[i]->guard, SHMRT_BREAKER_LOST);
		look_at_a_breaker(breakers[i]);
		uint64_t tried = atomic_load_explicit(&shared->tried[i], memory_order_relaxed), tickets = side_now(breakers[i])->tickets;
		MUST(tickets >= tried && tickets <= tried + (uint64_t)kills); /* no change is lost under another */
		trials += tried;
		close_a_breaker(breakers[i]);
		MUST(counter_of(&breakers[i]->guard, SHMRT_BREAKER_OPENED) > 0);
	}
	look_at_the_area(offset);
	printf("%llu turns, %d kills, at least %u of them with a mutex, %llu times inside, %llu trials, %llu lost, %llu permits of the dead\n",
	       (unsigned long long)all_turns(), kills, abandoned, (unsigned long long)shared->entered[ONE],
	       (unsigned long long)trials, (unsigned long long)lost,
	       (unsigned long long)(counter_of(&bulkheads[ONE]->guard, SHMRT_BULKHEAD_LOST) + counter_of(&bulkheads[SOME]->guard, SHMRT_BULKHEAD_LOST)));
	return 0;
}
