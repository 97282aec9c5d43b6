/* test_ops.c -- system calls: sleeping, sealed memory, processes and their ids, CPUs. */
#define _GNU_SOURCE
#include "cgroup.h"
#include "ops.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;
#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
			failures++;                                                            \
		}                                                                              \
	} while (0)

static void test_futex(void) {
	_Atomic uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	atomic_store(word, 7);
	CHECK(shmrt_futex_wait(word, 8, SHMRT_FOREVER) == SHMRT_OK);
	CHECK(shmrt_futex_wait(word, 7, 0) == SHMRT_TIMEOUT);
	CHECK(shmrt_futex_wait(word, 8, -5) == SHMRT_OK);
	uint64_t before = shmrt_now_ns();
	CHECK(shmrt_futex_wait(word, 7, 2000000) == SHMRT_TIMEOUT);
	CHECK(shmrt_now_ns() - before >= 2000000);
	CHECK(shmrt_futex_wake(word, 1) == 0);
	/* Another process sleeps and must be woken: a private futex would never hear of it. */
	pid_t child = fork();
	if (child == 0)
		_exit(shmrt_futex_wait(word, 7, SHMRT_FOREVER) == SHMRT_OK ? 0 : 1);
	while (shmrt_futex_wake(word, 1) == 0)
		sched_yield();
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	munmap(word, 4096);
}

static void test_memfd(void) {
	int fd = shmrt_memfd_create("shmrt-test", 1 << 20);
	CHECK(fd >= 0);
	struct stat info;
	CHECK(fstat(fd, &info) == 0 && (info.st_mode & 07777) == 0600 && info.st_size == 1 << 20);
	CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
	int seals = fcntl(fd, F_GET_SEALS);
	CHECK((seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) ==
	      (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	CHECK((seals & F_SEAL_WRITE) == 0);
	CHECK(ftruncate(fd, 4096) != 0 && ftruncate(fd, 2 << 20) != 0);
	CHECK(info.st_blocks == 0);
	CHECK(shmrt_fallocate(fd, 4096, 8192) == SHMRT_OK);
	CHECK(fstat(fd, &info) == 0 && info.st_blocks * 512 == 8192);
	CHECK(shmrt_fallocate(fd, 0, UINT64_MAX) == SHMRT_INVALID);
	CHECK(shmrt_fallocate(fd, UINT64_MAX, 1) == SHMRT_INVALID);
	CHECK(shmrt_fallocate(fd, 1 << 20, 1) == SHMRT_SYSTEM); /* sealed against growing */
	void *address;
	CHECK(shmrt_map(fd, 0, 1 << 20, true, &address) == SHMRT_OK);
	memset(address, 1, 12288);
	CHECK(shmrt_punch_hole(fd, 4096, 4096) == SHMRT_OK);
	CHECK(((uint8_t *)address)[4095] == 1 && ((uint8_t *)address)[4096] == 0);
	CHECK(shmrt_punch_hole(fd, 0, 0) == SHMRT_OK);
	shmrt_unmap(address, 1 << 20);
	CHECK(shmrt_map(fd, 1, 4096, true, &address) == SHMRT_SYSTEM);
	close(fd);
	CHECK(shmrt_memfd_create("shmrt-test", 0) == SHMRT_INVALID);
	CHECK(shmrt_fallocate(fd, 0, 4096) == SHMRT_SYSTEM && errno == EBADF);
}

static void *sleeper(void *stop) {
	char byte;
	(void)!read(*(int *)stop, &byte, 1);
	return NULL;
}

static void test_processes(void) {
	uint32_t self = shmrt_owner_self();
	CHECK(self != 0 && shmrt_owner_pid(self) == getpid());
	CHECK(shmrt_owner_of(getpid()) == self && shmrt_owner_is_alive(self));
	CHECK(!shmrt_owner_is_alive(0));
	CHECK(shmrt_owner_of(0) == 0 && shmrt_owner_of(-1) == 0);
	/* The same pid with another start time is somebody else. */
	CHECK(!shmrt_owner_is_alive(self ^ 1U << 25));
	int ready[2], stop[2];
	CHECK(pipe(ready) == 0 && pipe(stop) == 0);
	pid_t child = fork();
	if (child == 0) {
		uint32_t mine = shmrt_owner_self();
		(void)!write(ready[1], &mine, sizeof(mine));
		sleeper(&stop[0]);
		_exit(0);
	}
	uint32_t owner = 0;
	CHECK(read(ready[0], &owner, sizeof(owner)) == sizeof(owner));
	CHECK(owner != self && shmrt_owner_pid(owner) == child && shmrt_owner_of(child) == owner);
	CHECK(shmrt_owner_is_alive(owner));
	int pidfd = shmrt_pidfd_open(child);
	CHECK(pidfd >= 0 && !shmrt_pidfd_is_gone(pidfd));
	CHECK(shmrt_pidfd_signal(pidfd, 0) == SHMRT_OK);
	/* Without descriptors nothing can be read, and nobody alive may be taken for dead. */
	struct rlimit limit, none = {0, 0};
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	none.rlim_max = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
	CHECK(shmrt_owner_is_alive(owner));
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	CHECK(shmrt_pidfd_signal(pidfd, SIGKILL) == SHMRT_OK);
	struct pollfd polled = {.fd = pidfd, .events = POLLIN};
	CHECK(poll(&polled, 1, -1) == 1);
	CHECK(shmrt_pidfd_is_gone(pidfd));
	CHECK(!shmrt_owner_is_alive(owner)); /* a zombie */
	CHECK(waitpid(child, NULL, 0) == child);
	CHECK(!shmrt_owner_is_alive(owner));
	CHECK(shmrt_pidfd_signal(pidfd, SIGKILL) == SHMRT_SYSTEM && errno == ESRCH);
	close(pidfd);
	CHECK(shmrt_pidfd_open(child) == SHMRT_SYSTEM);

	/* A leader that ended while a thread runs on: the process is not gone. */
	child = fork();
	if (child == 0) {
		pthread_t thread;
		pthread_create(&thread, NULL, sleeper, &stop[0]);
		uint32_t mine = shmrt_owner_self();
		(void)!write(ready[1], &mine, sizeof(mine));
		pthread_exit(NULL);
	}
	CHECK(read(ready[0], &owner, sizeof(owner)) == sizeof(owner));
	char path[64], state = '?';
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)child);
	while (state != 'Z') {
		FILE *file = fopen(path, "re");
		CHECK(file != NULL && fscanf(file, "%*s %*s %c", &state) == 1);
		fclose(file);
		sched_yield();
	}
	CHECK(shmrt_owner_is_alive(owner));
	pidfd = shmrt_pidfd_open(child);
	CHECK(pidfd >= 0 && !shmrt_pidfd_is_gone(pidfd));
	close(pidfd);
	close(stop[1]);
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child);
	close(stop[0]);
	close(ready[0]);
	close(ready[1]);
}

static void count_visit(void *context, const char *directory, const char *group, int version) {
	int *count = context;
	(*count)++;
	CHECK(directory[0] == '/' && group[0] == '/' && (version == 1 || version == 2));
	CHECK(access(directory, F_OK) == 0);
}

static void test_cpus(void) {
	int cpus = shmrt_usable_cpus();
	cpu_set_t set;
	CPU_ZERO(&set);
	CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
	CHECK(cpus >= 1 && cpus <= CPU_COUNT(&set));
	pid_t child = fork(); /* the cache must not outlive a fork */
	if (child == 0) {
		cpu_set_t one;
		CPU_ZERO(&one);
		for (size_t i = 0; i < CPU_SETSIZE; i++)
			if (CPU_ISSET(i, &set)) {
				CPU_SET(i, &one);
				break;
			}
		_exit(sched_setaffinity(0, sizeof(one), &one) == 0 && shmrt_usable_cpus() == 1 ? 0 : 1);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	int groups = 0;
	shmrt_cgroup_each("memory", count_visit, &groups);
	shmrt_cgroup_each("no-such-controller", count_visit, &groups);
}

int main(void) {
	test_futex();
	test_memfd();
	test_processes();
	test_cpus();
	return failures != 0;
}
