/* test_arena_stress.c -- processes that allocate, write, send, take, free and trim, killed at random.
 *
 * Blocks travel through a table of words: a sender marks its block SENT and stores the reference; a
 * receiver takes the block first and clears the word after, so that a death in between leaves a stale
 * reference at worst. Whoever owns a block fills it with its own pattern and looks later whether it is
 * still there: two owners, or memory that was given back under an owner, would show. After each death
 * the parent and a fresh child repair at the same time.
 *
 *	test_arena_stress [seed [kills]]
 */
#define _GNU_SOURCE
#include "arena.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 4
#define TABLE 64
#define HELD_MAX 24
#define KIB UINT64_C(1024)
#define LIMIT (UINT64_C(12) * KIB * KIB)

struct shared {
	_Atomic uint64_t table[TABLE]; /* block index << 28 | generation; 0: empty */
	_Atomic uint64_t turns[CHILDREN];
	_Atomic uint64_t taken, refused;
	_Atomic int stop;
};

struct held {
	struct shmrt_block block;
	uint64_t mark;
	enum shmrt_block_state state;
};

static struct shared *shared;
static struct shmrt_arena arena;
static uint64_t random_state;

static uint64_t next_random(void) {
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
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

/* The ends and some of the middle: enough to notice a stranger, cheap enough for many turns. */
static void mark(const struct held *held) {
	uint64_t words = held->block.capacity / 8, *data = (uint64_t *)(void *)held->block.data;
	for (uint64_t at = 0; at < words; at += 1 + words / 16)
		data[at] = held->mark + at;
	data[words - 1] = held->mark;
}

static void is_marked(const struct held *held) {
	uint64_t words = held->block.capacity / 8;
	const uint64_t *data = (const uint64_t *)(const void *)held->block.data;
	MUST(data[words - 1] == held->mark);
	for (uint64_t at = 0; at < words - 1; at += 1 + words / 16)
		MUST(data[at] == held->mark + at);
}

static void let_go(const struct held *held, uint32_t self) {
	is_marked(held);
	MUST(shmrt_arena_free(&arena, held->block.block, held->block.generation, held->state, self) == SHMRT_OK);
}

static bool allocate(struct held *held, uint32_t self) {
	static const uint64_t sizes[] = {900, 5000, 30000, 40 * KIB, 128 * KIB, 250 * KIB, 300 * KIB, 700 * KIB};
	struct shmrt_shortage shortage;
	int outcome = shmrt_arena_alloc(&arena, sizes[next_random() % 8], self, &held->block, &shortage);
	MUST(outcome == SHMRT_OK || outcome == SHMRT_NO_SPACE);
	if (outcome == SHMRT_NO_SPACE) {
		atomic_fetch_add_explicit(&shared->refused, 1, memory_order_relaxed);
		return false;
	}
	held->mark = next_random();
	held->state = SHMRT_BLOCK_WRITING;
	mark(held);
	return true;
}

/* True if it left our hands. */
static bool send_block(const struct held *held, uint32_t self) {
	uint64_t index = held->block.block, reference = index << 28 | held->block.generation, empty = 0;
	_Atomic uint64_t *entry = &shared->table[next_random() % TABLE];
	is_marked(held);
	if (held->state != SHMRT_BLOCK_WRITING || atomic_load_explicit(entry, memory_order_relaxed) != 0)
		return false;
	MUST(shmrt_arena_move(&arena, index, held->block.generation, SHMRT_BLOCK_WRITING, self, SHMRT_BLOCK_SENT, self) ==
	     SHMRT_OK);
	if (atomic_compare_exchange_strong_explicit(entry, &empty, reference, memory_order_release, memory_order_relaxed))
		return true;
	MUST(shmrt_arena_move(&arena, index, held->block.generation, SHMRT_BLOCK_SENT, self, SHMRT_BLOCK_WRITING, self) ==
	     SHMRT_OK);
	return false;
}

static bool take(struct held *held, uint32_t self) {
	_Atomic uint64_t *entry = &shared->table[next_random() % TABLE];
	uint64_t word = atomic_load_explicit(entry, memory_order_acquire);
	if (word == 0)
		return false;
	struct shmrt_block_reference reference = {.block = word >> 28, .generation = (uint32_t)(word & 0xFFFFFFF), .size = 1};
	enum shmrt_block_state state;
	uint32_t generation, sender;
	shmrt_arena_state(&arena, reference.block, &state, &generation, &sender);
	bool taken = state == SHMRT_BLOCK_SENT && generation == reference.generation &&
		     shmrt_arena_move(&arena, reference.block, generation, SHMRT_BLOCK_SENT, sender, SHMRT_BLOCK_HELD, self) ==
			     SHMRT_OK;
	/* Taken by us, by another who is dead or about to clear it, or freed with its dead sender. */
	(void)atomic_compare_exchange_strong_explicit(entry, &word, 0, memory_order_relaxed, memory_order_relaxed);
	if (!taken)
		return false;
	MUST(shmrt_arena_resolve(&arena, &reference, &held->block) == SHMRT_OK);
	held->state = SHMRT_BLOCK_HELD;
	held->mark = ((uint64_t *)(void *)held->block.data)[0];
	is_marked(held); /* whole, as it was sent */
	atomic_fetch_add_explicit(&shared->taken, 1, memory_order_relaxed);
	if (next_random() % 2 == 0) {
		held->mark = next_random();
		mark(held);
	}
	return true;
}

static void child(int number, uint64_t seed, pid_t parent) {
	static struct held held[HELD_MAX];
	size_t count = 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it ended before the line above: nobody would end us */
		_exit(0);
	random_state = seed;
	uint32_t self = shmrt_owner_self();
	if (next_random() % 2 == 0)
		(void)shmrt_arena_reclaim_dead(&arena); /* beside the parent's */
	while (atomic_load_explicit(&shared->stop, memory_order_relaxed) == 0) {
		atomic_fetch_add_explicit(&shared->turns[number], 1, memory_order_relaxed);
		uint64_t choice = next_random() % 100;
		if (choice < 35 && count < HELD_MAX) {
			count += allocate(&held[count], self);
		} else if (choice < 55 && count < HELD_MAX) {
			count += take(&held[count], self);
		} else if (choice < 97 && count > 0) {
			size_t which = next_random() % count;
			if (choice >= 75 || !send_block(&held[which], self)) {
				if (choice < 75)
					continue;
				let_go(&held[which], self);
			}
			held[which] = held[--count];
		} else if (choice >= 97) {
			(void)shmrt_arena_trim(&arena, next_random() % LIMIT);
		}
	}
	while (count > 0)
		let_go(&held[--count], self);
	_exit(0);
}

static pid_t start(int number) {
	uint64_t seed = next_random() | 1;
	pid_t parent = getpid(), pid = fork();
	if (pid == 0)
		child(number, seed, parent);
	MUST(pid > 0);
	return pid;
}

/* Waits until the child has made some turns, and a random piece of one more. */
static void wait_for_moment(int number, pid_t pid) {
	uint64_t goal = atomic_load_explicit(&shared->turns[number], memory_order_relaxed) + next_random() % 200;
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

int main(int argc, char **argv) {
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : shmrt_now_ns() | 1;
	int kills = argc > 2 ? atoi(argv[2]) : 150;
	printf("seed %llu, %d kills\n", (unsigned long long)random_state, kills);
	fflush(stdout);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct shmrt_shortage shortage;
	MUST(shmrt_arena_create(&arena, LIMIT, &shortage) == SHMRT_OK);
	pid_t pids[CHILDREN];
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = start(i);
	uint64_t repaired = 0;
	for (int i = 0; i < kills; i++) {
		int number = (int)(next_random() % CHILDREN), status;
		wait_for_moment(number, pids[number]);
		MUST(kill(pids[number], SIGKILL) == 0);
		MUST(waitpid(pids[number], &status, 0) == pids[number] && WIFSIGNALED(status));
		pids[number] = start(number);
		repaired += shmrt_arena_reclaim_dead(&arena);
	}
	atomic_store_explicit(&shared->stop, 1, memory_order_relaxed);
	int ended_well = 0;
	for (int i = 0; i < CHILDREN; i++) {
		int status;
		MUST(waitpid(pids[i], &status, 0) == pids[i]);
		ended_well += status == 0;
	}
	MUST(ended_well == CHILDREN);
	(void)shmrt_arena_reclaim_dead(&arena);
	MUST(shmrt_arena_reclaim_dead(&arena) == 0);
	MUST(shmrt_arena_check(&arena) == SHMRT_OK);
	struct shmrt_arena_stats stats;
	shmrt_arena_get_stats(&arena, &stats);
	MUST(stats.blocks_used == 0);
	MUST(stats.reserved <= LIMIT);
	(void)shmrt_arena_trim(&arena, 0);
	shmrt_arena_get_stats(&arena, &stats);
	MUST(stats.reserved == 0);
	struct stat info;
	MUST(fstat(arena.fd, &info) == 0 && info.st_blocks * 512 < (off_t)(1024 * KIB)); /* words only */
	struct shmrt_block whole;
	MUST(shmrt_arena_alloc(&arena, LIMIT, shmrt_owner_self(), &whole, &shortage) == SHMRT_OK);
	printf("%llu blocks handed over, %llu times full, %llu words repaired by the parent\n",
	       (unsigned long long)atomic_load_explicit(&shared->taken, memory_order_relaxed),
	       (unsigned long long)atomic_load_explicit(&shared->refused, memory_order_relaxed),
	       (unsigned long long)repaired);
	return 0;
}
