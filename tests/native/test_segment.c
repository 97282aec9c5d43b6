/* test_segment.c -- budget by made-up control groups, creating, and every refusal to attach. */
#define _GNU_SOURCE
#include "cgroup.h"
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;
#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
			failures++;                                                            \
		}                                                                              \
	} while (0)

static char root[] = "/tmp/shmrt-groups-XXXXXX";

static void put(const char *path, const char *text) {
	char full[512];
	snprintf(full, sizeof(full), "%s/%s", root, path);
	for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
		*at = 0;
		(void)mkdir(full, 0700);
		*at = '/';
	}
	FILE *file = fopen(full, "we");
	CHECK(file != NULL && fputs(text, file) >= 0);
	if (file != NULL)
		fclose(file);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw) {
	(void)info, (void)type, (void)ftw;
	return remove(path);
}

#define MIB (UINT64_C(1) << 20)

static void test_budget(void) {
	struct shmrt_shortage shortage;
	CHECK(shmrt_budget_check(4096, -1, &shortage) == SHMRT_OK);
	CHECK(shmrt_budget_check(UINT64_MAX, -1, &shortage) == SHMRT_NO_SPACE);
	CHECK(shortage.needed == UINT64_MAX && shortage.free < UINT64_MAX && shortage.limit[0] != 0);
	CHECK(shmrt_budget_check(UINT64_MAX, -1, NULL) == SHMRT_NO_SPACE);

	CHECK(mkdtemp(root) != NULL);
	char line[1024];
	/* Version 1: the group itself is unlimited, its parent is not; the name needs decoding. */
	put("cgroup", "5:cpu,cpuacct:/c\n4:memory:/job one/step\n0::/\n");
	snprintf(line, sizeof(line),
		 "30 20 0:1 / %s/v1\\040mem rw shared:5 - cgroup cgroup rw,memory\n"
		 "31 20 0:2 /c %s/cpu rw - cgroup cgroup rw,cpuacct,cpu\n"
		 "32 20 0:3 / %s/v2 rw - cgroup2 cgroup2 rw\n",
		 root, root, root);
	put("mountinfo", line);
	put("v1 mem/job one/step/memory.limit_in_bytes", "9223372036854771712\n");
	put("v1 mem/job one/step/memory.usage_in_bytes", "1000000\n");
	put("v1 mem/job one/memory.limit_in_bytes", "33554432\n"); /* 32 MiB */
	put("v1 mem/job one/memory.usage_in_bytes", "20971520\n"); /* 20 MiB, 4 of them idle cache */
	put("v1 mem/job one/memory.stat", "cache 9\ntotal_inactive_file 4194304\n");
	put("v2/memory.max", "max\n");
	put("v2/memory.current", "77\n");
	put("cpu/cpu.cfs_quota_us", "150000\n");
	put("cpu/cpu.cfs_period_us", "100000\n");
	shmrt_cgroup_look_in(root);
	CHECK(shmrt_budget_check(14 * MIB, -1, &shortage) == SHMRT_OK);
	CHECK(shmrt_budget_check(14 * MIB + 1, -1, &shortage) == SHMRT_NO_SPACE);
	CHECK(shortage.free == 14 * MIB && strcmp(shortage.limit, "memory cgroup /job one") == 0);
	CHECK(shmrt_cgroup_cpus() == 2); /* 1.5, rounded up; the mount shows only the own group */

	/* Version 2: an ancestor binds; more used than allowed leaves nothing. */
	put("cgroup", "0::/a/b/c\n");
	put("v2/a/memory.max", "8388608\n");
	put("v2/a/memory.current", "9388608\n");
	put("v2/a/memory.stat", "anon 5\ninactive_file 0\n");
	put("v2/a/b/memory.max", "max\n");
	put("v2/a/b/cpu.max", "50000 100000\n");
	put("v2/a/b/c/cpu.max", "max 100000\n");
	CHECK(shmrt_budget_check(1, -1, &shortage) == SHMRT_NO_SPACE);
	CHECK(shortage.free == 0 && strcmp(shortage.limit, "memory cgroup /a") == 0);
	CHECK(shmrt_cgroup_cpus() == 1);
	int fd = -1;
	void *address = NULL;
	CHECK(shmrt_segment_create(SHMRT_SEGMENT_RING, "shmrt-test", 4096, &fd, &address, &shortage) == SHMRT_NO_SPACE);
	CHECK(fd == -1 && address == NULL);

	/* Nothing readable is no limit. */
	put("cgroup", "nonsense\n::\n0::relative\n");
	put("mountinfo", "nonsense\n - \n");
	CHECK(shmrt_budget_check(1, -1, &shortage) == SHMRT_OK && shmrt_cgroup_cpus() == UINT64_MAX);
	shmrt_cgroup_look_in("/proc/self");
	CHECK(nftw(root, remove_entry, 8, FTW_DEPTH | FTW_PHYS) == 0);
}

static int attach(int fd, enum shmrt_segment_kind kind, char *reason) {
	void *address = NULL;
	uint64_t size = 0;
	reason[0] = 0;
	int outcome = shmrt_segment_attach(fd, kind, &address, &size, reason, 200);
	if (outcome == SHMRT_OK)
		shmrt_unmap(address, size);
	else {
		CHECK(address == NULL && reason[0] != 0);
	}
	return outcome;
}

static void test_attach(void) {
	struct shmrt_shortage shortage;
	char reason[200];
	int fd = -1;
	void *address = NULL;
	uint64_t size = 3 * 4096 + 128;
	CHECK(shmrt_segment_create(SHMRT_SEGMENT_LANES, "shmrt-test", size, &fd, &address, &shortage) == SHMRT_OK);
	struct shmrt_segment_header *header = address;
	CHECK(attach(fd, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN && strstr(reason, "not ready") != NULL);
	shmrt_segment_publish(address);
	CHECK(attach(fd, SHMRT_SEGMENT_LANES, reason) == SHMRT_OK);
	CHECK(attach(fd, SHMRT_SEGMENT_RING, reason) == SHMRT_FOREIGN);
	CHECK(header->creator == shmrt_owner_self() && (header->token[0] | header->token[1]) != 0);

	/* No byte of the header, whatever its value, may do more than be refused. */
	struct shmrt_segment_header saved;
	memcpy(&saved, header, sizeof(saved));
	for (size_t i = 0; i < sizeof(saved); i++) {
		for (int value = 0; value < 256; value += 5) {
			((uint8_t *)header)[i] = (uint8_t)value;
			int outcome = attach(fd, SHMRT_SEGMENT_LANES, reason);
			bool same = ((const uint8_t *)&saved)[i] == (uint8_t)value;
			CHECK(outcome == SHMRT_OK || outcome == SHMRT_FOREIGN || outcome == SHMRT_CORRUPT);
			CHECK((i >= 24 || same) == (outcome == SHMRT_OK));
		}
		((uint8_t *)header)[i] = ((const uint8_t *)&saved)[i];
	}
	CHECK(fchmod(fd, 0660) == 0);
	CHECK(attach(fd, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN && strstr(reason, "600") != NULL);
	CHECK(fchmod(fd, 0600) == 0);
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int read_only = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(attach(read_only, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN);
	header->kind = SHMRT_SEGMENT_BOARD;
	CHECK(attach(read_only, SHMRT_SEGMENT_BOARD, reason) == SHMRT_OK);
	header->kind = SHMRT_SEGMENT_LANES;
	close(read_only);
	CHECK(shmrt_punch_hole(fd, 4096, 4096) == SHMRT_OK);
	CHECK(attach(fd, SHMRT_SEGMENT_LANES, reason) == SHMRT_CORRUPT && strstr(reason, "reserved") != NULL);

	/* Not sealed, too small, closed, no file at all. */
	int other = memfd_create("shmrt-test", MFD_CLOEXEC);
	CHECK(fchmod(other, 0600) == 0 && ftruncate(other, (off_t)size) == 0);
	CHECK(pwrite(other, address, 4096, 0) == 4096);
	CHECK(attach(other, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN && strstr(reason, "sealed") != NULL);
	close(other);
	CHECK(attach(other, SHMRT_SEGMENT_LANES, reason) == SHMRT_SYSTEM);
	other = shmrt_memfd_create("shmrt-test", 16);
	CHECK(attach(other, SHMRT_SEGMENT_LANES, reason) == SHMRT_CORRUPT);
	close(other);
	other = shmrt_memfd_create("shmrt-test", 4096);
	CHECK(attach(other, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN);
	close(other);
	other = open("/", O_RDONLY | O_CLOEXEC);
	CHECK(attach(other, SHMRT_SEGMENT_LANES, reason) == SHMRT_FOREIGN);
	close(other);
	shmrt_unmap(address, size);
	close(fd);

	/* Inside a file: the segment may be smaller than what is left, never larger. */
	fd = shmrt_memfd_create("shmrt-test", 4 * 4096);
	CHECK(shmrt_fallocate(fd, 0, 4 * 4096) == SHMRT_OK);
	CHECK(shmrt_map(fd, 4096, 3 * 4096, true, &address) == SHMRT_OK);
	CHECK(shmrt_segment_format(address, SHMRT_SEGMENT_RING, 2 * 4096) == SHMRT_OK);
	shmrt_segment_publish(address);
	void *second = NULL;
	CHECK(shmrt_segment_attach_at(fd, 4096, SHMRT_SEGMENT_RING, &second, &size, reason, sizeof(reason)) == SHMRT_OK);
	CHECK(size == 2 * 4096);
	shmrt_unmap(second, size);
	header = address;
	header->size = 4 * 4096;
	CHECK(shmrt_segment_attach_at(fd, 4096, SHMRT_SEGMENT_RING, &second, &size, reason, sizeof(reason)) == SHMRT_CORRUPT);
	CHECK(shmrt_segment_attach_at(fd, UINT64_MAX, SHMRT_SEGMENT_RING, &second, &size, reason, sizeof(reason)) ==
	      SHMRT_CORRUPT);
	shmrt_unmap(address, 3 * 4096);
	close(fd);
	CHECK(shmrt_segment_format(&size, SHMRT_SEGMENT_RING, 8) == SHMRT_INVALID);
}

int main(void) {
	test_budget();
	test_attach();
	return failures != 0;
}
