/* test_hub_park.c -- threads of one hub sleep on one bell, and what one of them finds another may wait for.
 *
 * No threads here: `syscall` below stands in for the C library's, so the test is called in the place where a thread is about
 * to sleep, lets others do what they can do just then, and sees whether the kernel would have let it sleep on.
 */
#include "check.h"
#include "hub_internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SELF = 0, WORKER = 2, SLOTS = 4 };

static union {
	struct shmrt_control control;
	uint8_t bytes[sizeof(struct shmrt_control) + SLOTS * sizeof(struct shmrt_slot) + sizeof(struct shmrt_guards)];
} table __attribute__((aligned(4096)));
static struct shmrt_hub hub;
static struct shmrt_hub_pool pool;
static struct shmrt_hub_worker worker;
static struct shmrt_function function;
static struct shmrt_task_list pinned;

/* ---- the kernel ---- */

static void (*meanwhile)(void); /* once, when somebody is about to sleep: before the kernel compares */
static bool slept, woken, timed;
static uint64_t began_ns, asked_ns, end_ns; /* the test began, the kernel was asked; when it was told to end the sleep */
static uint32_t slept_as;
static int bell_wakes, behind_wakes;
static int in_front; /* so many others sleep on the bell, in front */
static const void *slept_on;

long syscall(long number, ...) {
	va_list more;
	va_start(more, number);
	_Atomic uint32_t *word = va_arg(more, _Atomic uint32_t *);
	int operation = va_arg(more, int);
	uint32_t expected = va_arg(more, uint32_t);
	const struct timespec *timeout = va_arg(more, const struct timespec *);
	(void)va_arg(more, void *);
	uint32_t bits = va_arg(more, uint32_t);
	va_end(more);
	CHECK(number == SYS_futex);
	bool ours = word == &table.control.slots[SELF].bell;
	if (operation == FUTEX_WAKE) {
		woken |= slept && slept_on == word;
		bell_wakes += ours;
		return 1;
	}
	uint32_t kinds = operation == FUTEX_WAKE_BITSET || operation == FUTEX_WAIT_BITSET ? bits : UINT32_MAX;
	if (operation == FUTEX_WAKE_BITSET) {
		bool wakes = slept && slept_on == word && (slept_as & kinds) != 0;
		woken |= wakes;
		bell_wakes += ours && (kinds & SHMRT_BELL_FRONT) != 0;
		behind_wakes += ours && kinds == SHMRT_BELL_BEHIND;
		return wakes + (ours && (kinds & SHMRT_BELL_FRONT) != 0 ? in_front : 0);
	}
	asked_ns = shmrt_now_ns();
	void (*others)(void) = meanwhile;
	meanwhile = NULL;
	if (others)
		others();
	if (atomic_load_explicit(word, memory_order_relaxed) != expected) {
		errno = EAGAIN;
		return -1;
	}
	slept = true;
	slept_on = word;
	woken = false;
	timed = timeout != NULL;
	CHECK(timeout == NULL || operation == FUTEX_WAIT_BITSET); /* which is told the end */
	end_ns = timeout ? (uint64_t)timeout->tv_sec * UINT64_C(1000000000) + (uint64_t)timeout->tv_nsec : UINT64_MAX;
	slept_as = kinds;
	others = meanwhile; /* set by the first: what happens while it sleeps */
	meanwhile = NULL;
	if (others)
		others();
	if (woken)
		return 0;
	errno = ETIMEDOUT;
	return -1;
}

/* ---- the world ---- */

/* However long this machine was busy with others in between. */
static bool lasts(uint64_t ns) { return end_ns >= began_ns + ns && end_ns <= asked_ns + ns; }
static _Atomic uint32_t *bell(void) { return &table.control.slots[SELF].bell; }
static uint32_t word(void) { return atomic_load_explicit(bell(), memory_order_relaxed); }
static uint64_t finished(void) { return atomic_load_explicit(&hub.finished, memory_order_relaxed); }

static void begin(void) {
	struct shmrt_arena arena = {0};
	memset(&pool, 0, sizeof(pool));
	memset(&worker, 0, sizeof(worker));
	shmrt_control_format(&table.control, SLOTS);
	CHECK(shmrt_hub_open(&hub, &table.control, SELF, &arena) == SHMRT_OK);
	worker.slot = &table.control.slots[WORKER];
	pool.hub = &hub;
	pool.options = (struct shmrt_pool_options){.first_slot = WORKER, .slot_count = 1, .max_workers = 1, .stacks_fd = -1};
	pool.workers = &worker;
	pool.pinned = &pinned;
	function = (struct shmrt_function){.used = true};
	pool.functions = &function;
	pool.function_capacity = 1;
	hub.pools[0] = &pool;
	hub.pool_high = 1;
	meanwhile = NULL;
	slept = woken = timed = false;
	bell_wakes = behind_wakes = in_front = 0;
}

static void end(void) {
	struct shmrt_task *task = shmrt_hub_take_completed(&hub);
	while (task) {
		struct shmrt_task *next = task->next;
		shmrt_hub_task_free(&hub, task);
		task = next;
	}
	struct shmrt_note *note;
	while ((note = shmrt_hub_take_note(&hub)) != NULL)
		shmrt_hub_note_free(&hub, note);
	shmrt_hub_close(&hub);
}

/* A task whose deadline is over: the next pump, by whichever thread, finds its outcome. */
static uint64_t submit_expired(void) {
	struct shmrt_task *task = shmrt_hub_task_new(&hub);
	CHECK(task != NULL);
	task->max_attempts = 1;
	task->timeout_ns = SHMRT_FOREVER;
	task->deadline_ns = 1;
	task->affinity = -1;
	CHECK(shmrt_hub_submit(&pool, task) == SHMRT_OK);
	return task->id;
}

/* What a thread does that waits for an outcome which is not there: it has looked, now it parks. */
static struct shmrt_hub_rest rest_of_one_that_has_looked(void) {
	return (struct shmrt_hub_rest){.outcomes = true, .seen = finished()};
}
static int park_until(struct shmrt_hub_rest *rest, uint64_t until_ns) {
	began_ns = shmrt_now_ns();
	return shmrt_hub_park(&hub, until_ns, true, rest);
}
static int park(struct shmrt_hub_rest *rest) { return park_until(rest, UINT64_MAX); }

/* ---- others ---- */

static void ring(void) { shmrt_bell_ring(bell()); }
static void pump(void) {
	bool moved;
	(void)shmrt_hub_pump(&hub, &moved);
	CHECK(moved);
}
/* Others that go to sleep meanwhile: what the kernel saw of them is not what the test asks for. */
static void aside(bool urgent, struct shmrt_hub_rest *rest) {
	bool slept_before = slept, woken_before = woken, timed_before = timed;
	const void *on_before = slept_on;
	uint64_t end_before = end_ns, asked_before = asked_ns, began_before = began_ns;
	(void)shmrt_hub_park(&hub, UINT64_MAX, urgent, rest);
	slept = slept_before, woken = woken_before, timed = timed_before;
	slept_on = on_before;
	end_ns = end_before, asked_ns = asked_before, began_ns = began_before;
}
static void another_parks(void) {
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	aside(true, &rest);
}
static void the_hubs_thread_parks(void) { aside(false, NULL); }
static void a_worker_rings_and_another_parks(void) {
	ring();
	another_parks();
}
static void a_worker_rings_and_the_hubs_thread_parks_until_urgent(void) {
	ring();
	the_hubs_thread_parks();
	shmrt_hub_make_urgent(&hub);
}
static void a_worker_rings_and_another_finds(void) {
	ring();
	pump();
	another_parks();
}
static void another_finds(void) { pump(); }
static void another_finds_and_parks(void) {
	pump();
	another_parks();
}
static uint64_t doomed;
static void another_cancels(void) {
	struct shmrt_task *task = shmrt_hub_cancel(&hub, doomed);
	CHECK(task != NULL);
	shmrt_hub_task_free(&hub, task);
}
static void another_kills(void) { CHECK(shmrt_hub_kill_task(&hub, doomed)); }
static void another_fails_the_backlog(void) { CHECK(shmrt_hub_fail_backlog(&pool, SHMRT_TASK_LOST) == 1); }
static void another_breaks_the_pool(void) { shmrt_hub_break_pool(&pool); }
static void another_completes_a_future(void) { shmrt_hub_tell(&hub); }

static bool finds(void (*change)(void)) {
	return change == a_worker_rings_and_another_finds || change == another_finds || change == another_finds_and_parks;
}

static void (*asleep_then)(void);
static void it_sleeps(void) { meanwhile = asleep_then; }

/* ---- tests ---- */

static void test_about_to_sleep(void) {
	static void (*const changes[])(void) = {
		a_worker_rings_and_another_parks, a_worker_rings_and_the_hubs_thread_parks_until_urgent, a_worker_rings_and_another_finds,
		another_finds,			  another_finds_and_parks,				  another_cancels,
		another_kills,			  another_fails_the_backlog,				  another_breaks_the_pool,
		another_completes_a_future,
	};
	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		begin();
		doomed = submit_expired();
		if (!finds(changes[i])) /* else the pump in some of them would find it over */
			shmrt_hub__find(&hub, doomed)->deadline_ns = 0;
		struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
		meanwhile = changes[i];
		CHECK(park(&rest) == SHMRT_OK && !slept);
		CHECK(atomic_load_explicit(&hub.parked, memory_order_relaxed) == 0);
		end();
	}
}

static void test_asleep(void) {
	static void (*const changes[])(void) = {
		ring,	       another_finds,		  another_cancels,	      another_kills,
		another_fails_the_backlog, another_breaks_the_pool, another_completes_a_future,
	};
	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		begin();
		doomed = submit_expired();
		if (!finds(changes[i]))
			shmrt_hub__find(&hub, doomed)->deadline_ns = 0;
		struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
		asleep_then = changes[i];
		meanwhile = it_sleeps;
		CHECK(park(&rest) == SHMRT_OK && slept && woken);
		end();
	}
}

static void test_looked_before(void) {
	begin();
	submit_expired();
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	pump(); /* by another thread, after our look */
	CHECK(park(&rest) == SHMRT_OK && !slept);
	rest = rest_of_one_that_has_looked();
	shmrt_hub_tell(&hub);
	CHECK(park(&rest) == SHMRT_OK && !slept);
	rest = rest_of_one_that_has_looked();
	CHECK(park(&rest) == SHMRT_TIMEOUT && slept);
	end();
}

static void test_nobody_is_rung_for_nothing(void) {
	begin();
	submit_expired();
	the_hubs_thread_parks();
	int before = bell_wakes;
	CHECK(word() == 1);
	pump(); /* nobody is parked for outcomes: the hub's thread sleeps on */
	CHECK(word() == 1 && bell_wakes == before);
	end();
}

/* A ring that a busy worker defers comes within SHMRT_RING_EVERY_NS after another ring: until a sleep of that length has ended by
 * itself and the word is still the same, none may be longer. */
static void test_short_sleeps(void) {
	begin();
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	CHECK(park(&rest) == SHMRT_TIMEOUT && slept && timed && lasts(SHMRT_RING_EVERY_NS));
	CHECK(park(&rest) == SHMRT_TIMEOUT && !timed); /* quiet */
	CHECK(park(&rest) == SHMRT_TIMEOUT && !timed);
	ring(); /* while we were awake */
	CHECK(park(&rest) == SHMRT_TIMEOUT && timed && lasts(SHMRT_RING_EVERY_NS));
	ring();
	another_parks(); /* and the word is armed again when we come */
	CHECK(park(&rest) == SHMRT_TIMEOUT && timed && lasts(SHMRT_RING_EVERY_NS));
	asleep_then = ring;
	meanwhile = it_sleeps;
	CHECK(park(&rest) == SHMRT_OK && woken);
	CHECK(park(&rest) == SHMRT_TIMEOUT && timed && lasts(SHMRT_RING_EVERY_NS));
	CHECK(park(&rest) == SHMRT_TIMEOUT && !timed);
	/* A sleep that is shorter for another reason says nothing. */
	rest = rest_of_one_that_has_looked();
	CHECK(park_until(&rest, shmrt_now_ns() + SHMRT_RING_EVERY_NS / 2) == SHMRT_TIMEOUT);
	CHECK(park(&rest) == SHMRT_TIMEOUT && timed);
	end();
}

/* Results are wanted at once since the hub's thread has looked whether they are. */
static void test_watched_since_the_look(void) {
	begin();
	uint64_t id = submit_expired();
	struct shmrt_task *task = shmrt_hub__find(&hub, id);
	pool.backlog_count--; /* as if it were in a lane: the backlog is urgent by itself */
	CHECK(!shmrt_hub_is_urgent(&hub));
	shmrt_hub_watch(&hub, id); /* no bell is armed that it could make urgent */
	CHECK(word() == 0 && shmrt_hub_is_urgent(&hub));
	CHECK(shmrt_hub_park(&hub, UINT64_MAX, false, NULL) == SHMRT_OK && !slept);
	CHECK(shmrt_hub_park(&hub, UINT64_MAX, true, NULL) == SHMRT_TIMEOUT && slept);
	pool.backlog_count++;
	CHECK(task->flags & SHMRT_TASK_WATCHED);
	pump();
	end();
}

/* A bell that is urgent already does not say that the hub's thread knows: who made it so may be gone again without a pump. What
 * a worker has published before, without a ring, is taken by whoever wants results from now on. */
static uint64_t wanted;
static void another_comes_and_goes_and_results_are_wanted(void) {
	CHECK(word() == 1);
	another_parks();
	CHECK(word() >= 2);
	uint64_t before = hub.pumps;
	shmrt_hub_watch(&hub, wanted);
	CHECK(hub.pumps == before + 1);
	shmrt_hub_watch(&hub, wanted); /* once is enough: from now on workers ring */
	CHECK(hub.pumps == before + 1 && word() != 1);
	CHECK(atomic_load_explicit(&hub.lazy_since, memory_order_relaxed) == 0);
}
static void test_watched_behind_an_urgent_bell(void) {
	begin();
	wanted = submit_expired();
	shmrt_hub__find(&hub, wanted)->deadline_ns = 0;
	pool.backlog_count--; /* as if it were in a lane */
	meanwhile = another_comes_and_goes_and_results_are_wanted;
	(void)shmrt_hub_park(&hub, UINT64_MAX, false, NULL);
	CHECK(meanwhile == NULL);
	pool.backlog_count++;
	shmrt_hub__find(&hub, wanted)->deadline_ns = 1;
	pump();
	end();
}

/* A worker that rang and has another task may defer its next ring: the hub's thread, which that ring woke, is to take short sleeps. */
static bool rings_it(uint64_t since_ns, void (*then)(void)) {
	int before = bell_wakes;
	atomic_store_explicit(&hub.lazy_since, since_ns, memory_order_relaxed);
	shmrt_hub_make_urgent(&hub);
	if (then)
		then();
	CHECK(atomic_load_explicit(&hub.lazy_since, memory_order_relaxed) == 0 && bell_wakes <= before + 1);
	return bell_wakes == before + 1;
}
static bool rings_it_just_after_a_ring(void (*then)(void)) {
	for (;;) { /* again, if this machine was busy with others */
		uint64_t since_ns = shmrt_now_ns();
		if (rings_it(since_ns, then))
			return true;
		if (shmrt_now_ns() - since_ns < SHMRT_RING_EVERY_NS)
			return false;
	}
}
static void a_task_comes_behind(void) {
	worker.lane.count = 1;
	atomic_store_explicit(&hub.sleeping_until, UINT64_MAX - 1, memory_order_relaxed); /* a sleep that ends by itself, but late */
	struct shmrt_task *task = shmrt_hub_task_new(&hub);
	CHECK(task != NULL);
	task->max_attempts = 1;
	task->timeout_ns = SHMRT_FOREVER;
	task->affinity = -1;
	task->arguments.bytes = task->arguments.local;
	CHECK(shmrt_hub_submit(&pool, task) == SHMRT_OK && task->state == SHMRT_TASK_LANE);
	CHECK(worker.lane.count == 2);
	CHECK(shmrt_hub_cancel(&hub, task->id) == task);
	shmrt_hub_task_free(&hub, task);
}
static void test_wanted_just_after_a_ring(void) {
	begin();
	worker.lane.count = 2;
	CHECK(!rings_it(1, NULL)); /* it has slept for long: no ring is deferred now */
	CHECK(rings_it_just_after_a_ring(NULL) && word() == 0);
	worker.lane.count = 1; /* who has nothing else to do rings */
	for (int i = 0; i < 3; i++)
		CHECK(!rings_it_just_after_a_ring(NULL));
	static uint64_t known = 1;
	static union {
		struct shmrt_lane_shared shared;
		uint8_t bytes[sizeof(struct shmrt_lane_shared) + 1024];
	} lane __attribute__((aligned(128)));
	shmrt_lane_format(&lane.shared, 0);
	CHECK(shmrt_lane_attach_producer(&worker.tasks, &lane.shared, 1024) == SHMRT_OK);
	worker.known_functions = &known;
	worker.ready = true;
	pool.ready_count = 1;
	CHECK(rings_it_just_after_a_ring(a_task_comes_behind));
	end();
}

static struct shmrt_hub_rest own; /* of the hub's thread */
static void the_hubs_own_thread_sleeps(void) {
	slept = timed = false;
	began_ns = shmrt_now_ns();
	CHECK(shmrt_hub_park(&hub, UINT64_MAX, shmrt_hub_is_urgent(&hub), &own) == SHMRT_TIMEOUT && slept);
}
static struct shmrt_task *submit_one(void) {
	struct shmrt_task *task = shmrt_hub_task_new(&hub);
	CHECK(task != NULL);
	task->max_attempts = 1;
	task->timeout_ns = SHMRT_FOREVER;
	task->affinity = -1;
	task->arguments.bytes = task->arguments.local;
	CHECK(shmrt_hub_submit(&pool, task) == SHMRT_OK);
	return task;
}
static bool is_rung_by_a_submit(void) {
	int before = bell_wakes;
	atomic_store_explicit(bell(), 1, memory_order_relaxed); /* as it is while somebody sleeps lazily */
	CHECK(submit_one()->state == SHMRT_TASK_BACKLOG);
	CHECK(bell_wakes <= before + 1);
	return bell_wakes == before + 1;
}

/* Behind lanes that have enough, tasks are kept back, and no worker rings for them: the hub's thread looks in time. */
static void test_what_is_kept_back(void) {
	begin();
	worker.ready = true;
	pool.ready_count = 1;
	pool.open_tasks = SHMRT_STOCK * 2 + 1; /* in its lane */
	own = (struct shmrt_hub_rest){0};
	the_hubs_own_thread_sleeps();
	CHECK(!timed && hub.thread_until_ns == UINT64_MAX);
	CHECK(is_rung_by_a_submit()); /* it sleeps until somebody rings */
	CHECK(!shmrt_hub_is_urgent(&hub));
	hub.thread_until_ns = 0; /* it is awake, and looks before it sleeps */
	CHECK(!is_rung_by_a_submit());
	the_hubs_own_thread_sleeps();
	CHECK(timed && lasts(SHMRT_RING_EVERY_NS));
	uint64_t soon_ns = shmrt_now_ns() + SHMRT_RING_EVERY_NS;
	CHECK(hub.thread_until_ns <= soon_ns);
	hub.thread_until_ns = soon_ns - SHMRT_RING_EVERY_NS / 2;
	CHECK(!is_rung_by_a_submit()); /* it looks by itself */
	hub.thread_until_ns = soon_ns + UINT64_C(10000000000);
	CHECK(is_rung_by_a_submit()); /* it does, for something else, in ten seconds */
	/* A thread that waits for an outcome, or for room, is not the hub's. */
	hub.thread_until_ns = 0;
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	(void)park(&rest);
	(void)shmrt_hub_park(&hub, shmrt_now_ns() + 1000, true, NULL);
	CHECK(hub.thread_until_ns == 0);
	/* What waits for room, or for a worker, is waited for urgently. */
	pool.full = true;
	CHECK(shmrt_hub_is_urgent(&hub));
	pool.full = false;
	pool.ready_count = 0;
	CHECK(shmrt_hub_is_urgent(&hub));
	pool.open_tasks -= SHMRT_STOCK * 2 + 1;
	CHECK(shmrt_hub_fail_backlog(&pool, SHMRT_TASK_LOST) == 4);
	end();
}

/* Whoever waits leaves the CPUs to workers that go on by themselves. */
static void test_who_goes_on(void) {
	begin();
	bool moved;
	pool.pending = 3;
	pool.mean_ns = SHMRT_WORK_NS;
	for (uint32_t count = 0; count < 4; count++) {
		worker.lane.count = count;
		(void)shmrt_hub_pump(&hub, &moved);
		CHECK(atomic_load_explicit(&hub.going_on, memory_order_relaxed) == (count >= 2));
	}
	pool.mean_ns--; /* through before anybody could be woken */
	(void)shmrt_hub_pump(&hub, &moved);
	CHECK(atomic_load_explicit(&hub.going_on, memory_order_relaxed) == 0);
	worker.lane.count = 0;
	pool.pending = 0;
	end();
}

/* ---- the hub's thread behind others ---- */

static void the_hubs_own_thread_sleeps_until(uint64_t until_ns) {
	slept = timed = false;
	began_ns = shmrt_now_ns();
	int result = shmrt_hub_park(&hub, until_ns, shmrt_hub_is_urgent(&hub), &own);
	CHECK(slept && result == (woken ? SHMRT_OK : SHMRT_TIMEOUT));
}

/* A ring that wakes somebody in front leaves it asleep; one that wakes nobody wakes it. It sleeps as long as it would alone, and
 * SHMRT_BEHIND_NS if that is longer. */
static void test_behind_others(void) {
	begin();
	own = (struct shmrt_hub_rest){0};
	asleep_then = ring;
	meanwhile = it_sleeps;
	the_hubs_own_thread_sleeps_until(UINT64_MAX);
	CHECK(woken && (slept_as & SHMRT_BELL_FRONT) && !timed && behind_wakes == 0); /* alone: one system call */
	CHECK(!atomic_load_explicit(&hub.thread_behind, memory_order_relaxed));
	atomic_store_explicit(&hub.parked, 1, memory_order_relaxed);
	meanwhile = it_sleeps;
	the_hubs_own_thread_sleeps_until(UINT64_MAX);
	CHECK(woken && slept_as == SHMRT_BELL_BEHIND && !timed && behind_wakes == 1);
	CHECK(atomic_load_explicit(&hub.thread_behind, memory_order_relaxed) && hub.thread_until_ns == UINT64_MAX);
	in_front = 1;
	meanwhile = it_sleeps;
	the_hubs_own_thread_sleeps_until(UINT64_MAX);
	CHECK(!woken && behind_wakes == 1);
	uint64_t now_ns;
	do { /* again, if this machine was busy with others and the time had come */
		slept = false;
		now_ns = began_ns = shmrt_now_ns();
		CHECK(shmrt_hub_park(&hub, now_ns + SHMRT_BEHIND_NS / 2, false, &own) == SHMRT_TIMEOUT);
	} while (!slept && shmrt_now_ns() > now_ns + SHMRT_BEHIND_NS / 2);
	CHECK(slept && lasts(SHMRT_BEHIND_NS) && hub.thread_until_ns >= now_ns + SHMRT_BEHIND_NS);
	the_hubs_own_thread_sleeps_until(now_ns + UINT64_C(60000000000));
	CHECK(end_ns >= now_ns + UINT64_C(60000000000) && end_ns <= asked_ns + UINT64_C(60000000000));
	slept = false;
	CHECK(shmrt_hub_park(&hub, 1, false, &own) == SHMRT_TIMEOUT && !slept); /* its time has come */
	/* A short sleep that ended by itself is one here, too. */
	pool.watched = 1;
	own = (struct shmrt_hub_rest){0};
	the_hubs_own_thread_sleeps_until(UINT64_MAX);
	CHECK(timed && lasts(SHMRT_BEHIND_NS));
	the_hubs_own_thread_sleeps_until(UINT64_MAX);
	CHECK(!timed);
	pool.watched = 0;
	/* What is kept back waits as long. */
	pool.ready_count = 1;
	worker.ready = true;
	pool.open_tasks = SHMRT_STOCK * 2 + 1;
	hub.thread_until_ns = shmrt_now_ns() + SHMRT_BEHIND_NS;
	in_front = 0;
	CHECK(!is_rung_by_a_submit());
	hub.thread_until_ns += UINT64_C(10000000000);
	CHECK(is_rung_by_a_submit());
	pool.open_tasks -= SHMRT_STOCK * 2 + 1;
	CHECK(shmrt_hub_fail_backlog(&pool, SHMRT_TASK_LOST) == 2);
	end();
}

/* The hub's thread sleeps behind us until `until_ns`, and a ring wakes us: whether we wake it. */
static bool wakes_it(uint64_t until_ns) {
	hub.thread_until_ns = until_ns;
	atomic_store_explicit(&hub.thread_behind, 1, memory_order_relaxed);
	atomic_store_explicit(&hub.lazy_since, 0, memory_order_relaxed);
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	uint64_t pumps = hub.pumps, start_ns = shmrt_now_ns();
	int before = behind_wakes;
	asleep_then = ring;
	meanwhile = it_sleeps;
	uint32_t numbers = atomic_load_explicit(&hub.armed, memory_order_relaxed);
	CHECK(park(&rest) == SHMRT_OK && woken);
	uint64_t rung_ns = atomic_load_explicit(&table.control.slots[SELF].rung_ns, memory_order_relaxed);
	CHECK(rung_ns >= start_ns && rung_ns <= shmrt_now_ns()); /* who rang may not have come to say so */
	CHECK(hub.pumps > pumps && word() >= 2); /* whatever we waited for: others are to ring, and what is there was found */
	CHECK(atomic_load_explicit(&hub.armed, memory_order_relaxed) != numbers);
	CHECK(behind_wakes <= before + 1);
	CHECK(atomic_load_explicit(&hub.thread_behind, memory_order_relaxed) == (behind_wakes == before));
	return behind_wakes > before;
}
static bool is_lazy(void) { return atomic_load_explicit(&hub.lazy_since, memory_order_relaxed) != 0; }
static uint64_t soon(void) { return shmrt_now_ns() + SHMRT_BEHIND_NS / 2; }

static void test_standing_in(void) {
	begin();
	CHECK(!wakes_it(UINT64_MAX) && is_lazy()); /* nobody wants results: whoever begins to must tell it, from now on */
	CHECK(!wakes_it(soon()) && is_lazy());
	pool.watched = 1;
	CHECK(wakes_it(UINT64_MAX) && !is_lazy()); /* a ring may be deferred now, and it is to take short sleeps */
	CHECK(!wakes_it(soon()) && !is_lazy());
	pool.watched = 0;
	/* What it has to look for by itself, and did not know of. */
	worker.ready = true;
	worker.lane.count = pool.pending = pool.ready_count = 2; /* it looks in 10 ms whether somebody idle could take the second */
	CHECK(wakes_it(UINT64_MAX));
	CHECK(wakes_it(shmrt_now_ns() + UINT64_C(60000000000)));
	CHECK(!wakes_it(shmrt_now_ns() + 2 * SHMRT_BEHIND_NS)); /* it wakes before */
	worker.lane.count = pool.pending = pool.ready_count = 0;
	worker.ready = false;
	/* Without a ring nobody stands in, nor where the hub's thread is awake, or in front. */
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	atomic_store_explicit(&hub.thread_behind, 1, memory_order_relaxed);
	uint64_t pumps = hub.pumps;
	CHECK(park(&rest) == SHMRT_TIMEOUT && hub.pumps == pumps);
	atomic_store_explicit(&hub.thread_behind, 0, memory_order_relaxed);
	asleep_then = ring;
	meanwhile = it_sleeps;
	CHECK(park(&rest) == SHMRT_OK && hub.pumps == pumps && word() == 0);
	/* Somebody has armed it since the ring, and may sleep for long: nobody is to defer by that ring. */
	atomic_store_explicit(&hub.thread_behind, 1, memory_order_relaxed);
	atomic_store_explicit(&table.control.slots[SELF].rung_ns, 0, memory_order_relaxed);
	asleep_then = a_worker_rings_and_another_parks;
	meanwhile = it_sleeps;
	CHECK(park(&rest) == SHMRT_OK && slept && word() >= 2);
	CHECK(atomic_load_explicit(&table.control.slots[SELF].rung_ns, memory_order_relaxed) == 0);
	/* A ring that is not known to have come defers nothing. */
	atomic_store_explicit(&hub.thread_behind, 1, memory_order_relaxed);
	atomic_store_explicit(&table.control.slots[SELF].rung_ns, 0, memory_order_relaxed);
	meanwhile = ring;
	slept = false;
	CHECK(park(&rest) == SHMRT_OK && !slept);
	CHECK(atomic_load_explicit(&table.control.slots[SELF].rung_ns, memory_order_relaxed) == 0);
	/* Whoever waits for room is woken like the others. */
	atomic_store_explicit(&hub.thread_behind, 1, memory_order_relaxed);
	meanwhile = it_sleeps;
	CHECK(shmrt_hub_park(&hub, UINT64_MAX, true, NULL) == SHMRT_OK && hub.pumps > pumps && word() >= 2);
	end();
}

static void test_words(void) {
	begin();
	struct shmrt_hub_rest rest = rest_of_one_that_has_looked();
	the_hubs_thread_parks();
	CHECK(word() == 1);
	(void)park(&rest);
	uint32_t first = word();
	CHECK(first >= 2);
	the_hubs_thread_parks(); /* never lower */
	CHECK(word() == first);
	ring();
	(void)park(&rest);
	CHECK(word() >= 2 && word() != first);
	atomic_store_explicit(&hub.armed, UINT32_MAX - 2, memory_order_relaxed);
	for (int i = 0; i < 6; i++) {
		uint32_t before = word();
		ring();
		(void)park(&rest);
		CHECK(word() >= 2 && word() != before);
	}
	end();
}

int main(void) {
	test_about_to_sleep();
	test_asleep();
	test_looked_before();
	test_nobody_is_rung_for_nothing();
	test_short_sleeps();
	test_watched_since_the_look();
	test_watched_behind_an_urgent_bell();
	test_wanted_just_after_a_ring();
	test_what_is_kept_back();
	test_who_goes_on();
	test_behind_others();
	test_standing_in();
	test_words();
	return 0;
}
