/* test_bell.c -- no ring is lost: two processes pass a number to and fro and sleep without a timer, so a
 * lost wake hangs here until the driver's watchdog. */
#include "bell.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 20000

struct shared {
	_Alignas(128) _Atomic uint32_t bells[2];
	_Alignas(128) _Atomic uint64_t number; /* even: the parent's turn */
};

static void wait_for(struct shared *shared, int self, uint64_t wanted) {
	_Atomic uint32_t *bell = &shared->bells[self];
	while (atomic_load_explicit(&shared->number, memory_order_acquire) != wanted) { /* the turn */
		shmrt_bell_arm(bell);
		if (atomic_load_explicit(&shared->number, memory_order_acquire) == wanted) { /* B1: second look */
			shmrt_bell_disarm(bell);
			return;
		}
		SHMRT_ASSERT(shmrt_bell_sleep(bell, SHMRT_FOREVER) != SHMRT_SYSTEM);
	}
}

int main(void) {
	struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	SHMRT_ASSERT(shared != MAP_FAILED);
	pid_t pid = fork();
	SHMRT_ASSERT(pid >= 0);
	int self = pid == 0;
	for (uint64_t i = 0; i < ROUNDS; i++) {
		wait_for(shared, self, 2 * i + (uint64_t)self);
		atomic_store_explicit(&shared->number, 2 * i + (uint64_t)self + 1, memory_order_release); /* the turn */
		shmrt_bell_ring(&shared->bells[!self]);
	}
	if (self)
		_exit(0);
	int status;
	SHMRT_ASSERT(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	/* A ring that nobody waits for costs no system call and leaves nothing. */
	shmrt_bell_disarm(&shared->bells[0]);
	SHMRT_ASSERT(!shmrt_bell_ring(&shared->bells[0]));
	shmrt_bell_arm(&shared->bells[0]);
	SHMRT_ASSERT(shmrt_bell_sleep(&shared->bells[0], 1000) == SHMRT_TIMEOUT);
	shmrt_bell_ring_always(&shared->bells[0]);
	SHMRT_ASSERT(shmrt_bell_sleep(&shared->bells[0], SHMRT_FOREVER) == SHMRT_OK);
	munmap(shared, sizeof *shared);
	return 0;
}
