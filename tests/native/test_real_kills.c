/* test_real_kills.c -- a real SIGKILL at every instruction of the operations that the kernel has a part in.
 *
 * The sweeps judge copies of memory; here the kernel marks robust mutexes and leaves sleepers asleep as it does. A process
 * is killed in a put, get, lease or release of a ring; the next one finds the mutex ownerless and repairs; in pairs that
 * one is killed, too, anywhere in its repair. A sleeper in a get must have the message that a dead put committed, with
 * nobody's help. A ringer of a bell dies anywhere; ring_always wakes its sleeper. The holder of a death mutex dies anywhere
 * in taking it; the watch says so if and only if it had it.
 *
 * The short tier takes every 29th instruction of the long operations and a few pairs (one seed, printed; SEED repeats), the
 * long tier (SWEEP_LONG=1) all of them and many pairs.
 */
#define _GNU_SOURCE
#include "ring_world.h"
#include "slots.h"
#include "stepkill.h"
#include "sweep.h"
#include "watch.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>

#define WATCHDOG_NS INT64_C(120000000000)

static uint64_t random_state;
static size_t random_below(size_t most) {
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (size_t)(random_state % most);
}

static size_t deaths, sleepers_woken;
static struct world world;
static struct message_memory memory;
static struct shmrt_ring_message outgoing;
static uint64_t lease;

/* ---- rings: one death, and a second one in the repair ------------------------------------------- */

enum { PUT, GET, LEASE, RELEASE, GIVE_BACK, DROP, OPERATIONS };
static const char *const names[] = {"put", "get", "lease", "release", "give back", "put that drops"};

static struct catch incoming;
static void operate(void *context) {
	int ignored = SHMRT_OK;
	switch (*(const int *)context) {
	case PUT:
	case DROP:
		ignored = shmrt_ring_put(&world.ring, &outgoing, 1, 0, &(uint64_t){0});
		break;
	case GET:
		ignored = shmrt_ring_get(&world.ring, 1, 0, catch_message, &incoming, &(uint64_t){0});
		break;
	case LEASE:
		ignored = shmrt_ring_lease(&world.ring, 0, catch_message, &incoming, &lease);
		break;
	case RELEASE:
		ignored = shmrt_ring_release(&world.ring, lease);
		break;
	default:
		ignored = shmrt_ring_give_back(&world.ring, lease);
	}
	(void)ignored;
}
/* Whoever comes next: takes the mutex, so repairs, and does nothing else. */
static void look(void *context) {
	(void)context;
	if (shmrt_ring_lock(&world.ring, SHMRT_RING_BOTH) == SHMRT_OK)
		shmrt_ring_unlock(&world.ring, SHMRT_RING_BOTH);
}

/* Three slots, the messages 1 and 2 (1 with a block) and for a drop 3; whoever works on them is the child that dies. */
static void prepare(int operation) {
	world_make(&world, 3, operation == DROP ? SHMRT_RING_DROP_OLDEST : SHMRT_RING_BLOCK, UINT64_MAX - 1);
	for (unsigned number = 1; number <= (operation == DROP ? 3U : 2U); number++)
		CHECK(world_put(&world, number, 0) == SHMRT_OK);
	memset(&incoming, 0, sizeof incoming);
}
/* In the child, so that blocks and leases are its own. */
static void become_owner(void *context) {
	int operation = *(const int *)context;
	if (operation == PUT || operation == DROP)
		outgoing = message_make(&world.arena, 70, &memory);
	if (operation == RELEASE || operation == GIVE_BACK)
		CHECK(world_lease(&world, &lease) == 1);
}
static struct stepkill kill_within(int operation, size_t steps) {
	deaths++;
	return stepkill(become_owner, operate, &operation, steps);
}

/* What the survivors find: the messages before or after, whole, all blocks accounted for. Returns whether after. */
static bool survive(int operation, uint32_t dead, bool done) {
	blocks_reclaim(&world.arena, dead);
	look(NULL);
	CHECK(shmrt_ring_check(&world.ring) == SHMRT_OK);
	blocks_reclaim(&world.arena, dead);
	atomic_store_explicit(&world.ring.lease_look_ns, 0, memory_order_relaxed); /* as if it was long ago */
	unsigned numbers[5] = {0}, count = 0;
	while (count < 4 && (numbers[count] = world_get(&world)) != 0)
		count++;
	CHECK(blocks_used(&world.arena) == 0);
	bool has_one = count > 0 && numbers[0] == 1, has_new = count > 0 && numbers[count - 1] == 70;
	unsigned old = count - has_new, first = has_one ? 1 : 2;
	for (unsigned i = 0; i < old; i++)
		CHECK(numbers[i] == first + i);
	CHECK(old == (operation == DROP ? 4U : 3U) - first);
	bool after = operation == PUT ? has_new : operation == DROP ? has_new : operation == GET || operation == RELEASE ? !has_one : false;
	CHECK(operation == PUT || operation == DROP || !has_new);
	CHECK((operation != PUT && operation != LEASE && operation != GIVE_BACK) || has_one);
	if (operation == DROP)
		CHECK(!has_new || !has_one); /* full: nothing comes in before something goes */
	if (done && operation != LEASE && operation != GIVE_BACK)
		CHECK(after); /* what returned is there */
	for (unsigned i = 0; i < 3; i++)
		CHECK(world_put(&world, MESSAGES - 1, 0) == SHMRT_OK);
	return after;
}

static void kill_ring(int operation, size_t stride, size_t pairs) {
	bool after = false, before = false;
	size_t last = 0;
	for (size_t k = random_below(stride);; k += stride) {
		prepare(operation);
		struct stepkill life = kill_within(operation, k);
		bool now = survive(operation, life.owner, life.done);
		before = before || !now;
		after = after || now;
		last = life.taken;
		if (life.done)
			break;
	}
	CHECK(before && (after || operation == LEASE || operation == GIVE_BACK));
	size_t repairs = 0;
	for (size_t pair = 0; pair < pairs; pair++) { /* k1 in the operation, k2 in the repair; and again */
		prepare(operation);
		struct stepkill life = kill_within(operation, random_below(last));
		for (unsigned more = 0; more < 2; more++) {
			struct stepkill second = stepkill(NULL, look, NULL, random_below(400));
			deaths++;
			repairs += !second.done;
		}
		survive(operation, life.owner, life.done);
	}
	printf("%-16s killed at every %zu. of %zu instructions, %zu pairs, %zu deaths in a repair\n", names[operation], stride, last, pairs, repairs);
}

/* ---- a sleeper in a get ------------------------------------------------------------------------- */

static bool sleeps(pid_t pid) {
	char path[64], text[64] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	FILE *file = fopen(path, "r");
	CHECK(file != NULL);
	char state = 0;
	CHECK(fscanf(file, "%*d (%60[^)]) %c", text, &state) == 2);
	fclose(file);
	return state == 'S';
}

/* Waits for the child's end; it was promised to come. */
static int end_of(pid_t pid) {
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static void kill_put_beside_a_sleeper(size_t step) {
	bool before = false, after = false;
	for (size_t k = random_below(step);; k += step) {
		world_make(&world, 2, SHMRT_RING_BLOCK, 0);
		fflush(NULL);
		pid_t sleeper = fork();
		CHECK(sleeper >= 0);
		if (sleeper == 0) {
			struct catch caught = {0};
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			alarm(25); /* only what hangs is longer: it ends by SIGALRM */
			int rc = shmrt_ring_get(&world.ring, 1, SHMRT_FOREVER, catch_message, &caught, &(uint64_t){0});
			_exit(rc == SHMRT_OK && !caught.torn && caught.numbers[0] == 70 ? 0 : 1);
		}
		while (atomic_load_explicit(&world.ring.shared->bell_not_empty, memory_order_acquire) == 0 || !sleeps(sleeper))
			sched_yield();
		struct stepkill life = kill_within(PUT, k);
		bool committed = shmrt_ring_load(&world.ring.shared->tail) != 0;
		before = before || !committed;
		after = after || committed;
		CHECK(!life.done || committed);
		if (!committed) { /* the next put finds a ring, and the sleeper */
			blocks_reclaim(&world.arena, life.owner);
			CHECK(world_put(&world, 70, 0) == SHMRT_OK);
		}
		CHECK(end_of(sleeper) == 0);
		sleepers_woken++;
		if (life.done)
			break;
	}
	CHECK(before && after);
}

/* ---- bells -------------------------------------------------------------------------------------- */

struct bell_world {
	_Atomic uint32_t change;
	_Alignas(SHMRT_LINE) _Atomic uint32_t bell;
};
static struct bell_world *bells;

static void ring(void *context) {
	(void)context;
	atomic_store_explicit(&bells->change, 1, memory_order_release); /* the change, then the bell: B1 */
	shmrt_bell_ring(&bells->bell);
}

static void kill_ringer(void) {
	size_t slept_on = 0, k;
	for (k = 0;; k++) {
		atomic_store_explicit(&bells->change, 0, memory_order_relaxed);
		atomic_store_explicit(&bells->bell, 0, memory_order_relaxed);
		pid_t sleeper = fork();
		CHECK(sleeper >= 0);
		if (sleeper == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			alarm(25);
			for (;;) {
				shmrt_bell_arm(&bells->bell);
				if (atomic_load_explicit(&bells->change, memory_order_acquire) == 1)
					_exit(0);
				int ignored = shmrt_bell_sleep(&bells->bell, SHMRT_FOREVER);
				(void)ignored;
			}
		}
		while (atomic_load_explicit(&bells->bell, memory_order_acquire) == 0 || !sleeps(sleeper))
			sched_yield();
		struct stepkill killed = stepkill(NULL, ring, NULL, k);
		deaths++;
		if (!killed.done) {
			slept_on += atomic_load_explicit(&bells->change, memory_order_acquire) == 1 && sleeps(sleeper);
			atomic_store_explicit(&bells->change, 1, memory_order_release); /* as whoever does it again */
			shmrt_bell_ring_always(&bells->bell); /* what root and hub do after every death */
		}
		CHECK(end_of(sleeper) == 0);
		sleepers_woken++;
		if (killed.done)
			break;
	}
	CHECK(slept_on > 0); /* else the rule "after every death ring every bell" would be for nothing */
	printf("ring of a bell   killed at all of %zu instructions, %zu times with the sleeper left asleep\n", k, slept_on);
}

/* ---- death notices ------------------------------------------------------------------------------ */

static struct shmrt_control *control;
#define SLOT 3

static void begin_life(void *context) {
	(void)context;
	if (shmrt_slot_hold_death_mutex(&control->slots[SLOT]) != SHMRT_OK || shmrt_slot_ready(&control->slots[SLOT]) != SHMRT_OK)
		_exit(2);
}

static void kill_holder(void) {
	struct shmrt_slot *slot = &control->slots[SLOT];
	_Atomic uint32_t *bell = &control->slots[SHMRT_SLOT_ROOT].bell;
	size_t noticed = 0, k;
	for (k = 0;; k++) {
		CHECK(shmrt_slot_claim(slot, 0, SLOT, 1) == SHMRT_OK);
		shmrt_bell_arm(bell);
		CHECK(shmrt_slots_watch(control, 0, 8, bell, 0) == SHMRT_TIMEOUT);
		struct stepkill killed = stepkill(NULL, begin_life, NULL, k);
		deaths++;
		bool abandoned = shmrt_slot_is_abandoned(slot);
		CHECK(!killed.done || abandoned);
		CHECK(shmrt_slots_watch(control, 0, 8, bell, abandoned ? WATCHDOG_NS : 0) == (abandoned ? SHMRT_OK : SHMRT_TIMEOUT));
		CHECK(shmrt_slots_watch(control, 0, 8, bell, 0) == SHMRT_TIMEOUT); /* once */
		noticed += abandoned;
		CHECK(abandoned || atomic_load_explicit(&slot->state, memory_order_acquire) == SHMRT_SLOT_STARTING); /* F2 */
		CHECK(shmrt_slot_gone(slot, SIGKILL, false) == SHMRT_OK && shmrt_slot_free(slot) == SHMRT_OK);
		if (killed.done)
			break;
	}
	CHECK(noticed > 1 && noticed < k);
	printf("death mutex      killed at all of %zu instructions, %zu deaths told by the kernel\n", k, noticed);
}

int main(void) {
	const char *given = getenv("SEED");
	random_state = given ? strtoull(given, NULL, 10) : (uint64_t)getpid() * 2654435761U + 1;
	printf("SEED=%llu\n", (unsigned long long)random_state);
	if (SWEEP_SANITIZED || !stepkill_works()) {
		fprintf(stderr, "SKIPPED: %s\n", SWEEP_SANITIZED ? "a sanitizer's own code would be stepped" : "ptrace is refused here");
		return 0;
	}
	stepkill_pin();
	for (unsigned number = 1; number < MESSAGES; number++)
		plan[number] = (struct message_plan){.size = 64, .blocks = (uint16_t)(number == 1)};
	plan[70] = (struct message_plan){.size = 64, .blocks = 1};
	bells = mmap(NULL, sizeof *bells, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	control = mmap(NULL, shmrt_control_bytes(8), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(bells != MAP_FAILED && control != MAP_FAILED);
	control->header.token[0] = 1;
	shmrt_control_format(control, 8);
	for (int operation = 0; operation < OPERATIONS; operation++)
		kill_ring(operation, sweep_is_long() ? 1 : 29, sweep_is_long() ? 400 : 25);
	kill_put_beside_a_sleeper(sweep_is_long() ? 1 : 29);
	kill_ringer();
	kill_holder();
	printf("%zu deaths, %zu sleepers woken\n", deaths, sleepers_woken);
	return 0;
}
