/* segment.c -- see segment.h. */
#define _GNU_SOURCE
#include "segment.h"

#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The kernel charges in batches per CPU and needs pages for its own tables: leave it this much. */
#define BUDGET_MARGIN (UINT64_C(2) << 20)

/* ---- budget -------------------------------------------------------------------------------------- */

static void lower_to(struct shmrt_shortage *least, uint64_t free, const char *format, const char *name) {
	if (free >= least->free)
		return;
	least->free = free;
	/* The end of a long path names the group; its beginning is where the hierarchy is mounted. */
	size_t length = strlen(name), most = sizeof(least->limit) - 32;
	snprintf(least->limit, sizeof(least->limit), format, length > most ? name + (length - most) : name);
}

static uint64_t less_margin(uint64_t free) { return free > BUDGET_MARGIN ? free - BUDGET_MARGIN : 0; }

static void look_at_group(void *context, const char *directory, const char *group, int version) {
	struct shmrt_shortage *least = context;
	uint64_t limit, usage, cache = 0;
	if (version == 1) {
		if (!shmrt_cgroup_read(directory, "memory.limit_in_bytes", &limit) ||
		    !shmrt_cgroup_read(directory, "memory.usage_in_bytes", &usage))
			return;
		(void)shmrt_cgroup_read_key(directory, "memory.stat", "total_inactive_file", &cache);
	} else {
		if (!shmrt_cgroup_read(directory, "memory.max", &limit) ||
		    !shmrt_cgroup_read(directory, "memory.current", &usage))
			return;
		(void)shmrt_cgroup_read_key(directory, "memory.stat", "inactive_file", &cache);
	}
	/* File cache that nobody used lately is dropped before anybody is killed. */
	usage = usage > cache ? usage - cache : 0;
	lower_to(least, less_margin(limit > usage ? limit - usage : 0), "memory cgroup %s", group);
}

static uint64_t machine_available(void) {
	FILE *file = fopen("/proc/meminfo", "re");
	if (file == NULL)
		return UINT64_MAX;
	char line[128];
	unsigned long long kilobytes = 0;
	bool found = false;
	while (!found && fgets(line, sizeof(line), file) != NULL)
		found = sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1;
	fclose(file);
	return found ? (uint64_t)kilobytes * 1024 : UINT64_MAX;
}

int shmrt_budget_check(uint64_t needed, int fd, struct shmrt_shortage *shortage) {
	struct shmrt_shortage least = {.needed = needed, .free = UINT64_MAX};
	lower_to(&least, less_margin(machine_available()), "%s", "available memory of the machine");
	shmrt_cgroup_each("memory", look_at_group, &least);
	struct statvfs info;
	/* An anonymous memfd lives on a mount without a limit, which reports 0 blocks. */
	if (fd >= 0 && fstatvfs(fd, &info) == 0 && info.f_blocks != 0)
		lower_to(&least, (uint64_t)info.f_bavail * info.f_frsize, "%s", "file system of the segment");
	if (shortage != NULL)
		*shortage = least;
	return needed <= least.free ? SHMRT_OK : SHMRT_NO_SPACE;
}

/* ---- creating ------------------------------------------------------------------------------------ */

int shmrt_segment_format(void *address, enum shmrt_segment_kind kind, uint64_t size) {
	struct shmrt_segment_header *header = address;
	if (size < sizeof(*header))
		return SHMRT_INVALID;
	uint64_t token[2];
	ssize_t length;
	do
		length = getrandom(token, sizeof(token), 0);
	while (length < 0 && errno == EINTR);
	if (length != sizeof(token))
		return SHMRT_SYSTEM;
	/* relaxed: nobody else looks before the publication */
	atomic_store_explicit(&header->magic, 0, memory_order_relaxed);
	header->layout_version = SHMRT_LAYOUT_VERSION;
	header->kind = kind;
	header->size = size;
	memcpy(header->token, token, sizeof(token));
	header->creator = shmrt_owner_self();
	header->reserved0 = 0;
	header->created_ns = shmrt_now_ns();
	memset(header->reserved, 0, sizeof(header->reserved));
	return SHMRT_OK;
}

void shmrt_segment_publish(void *address) {
	struct shmrt_segment_header *header = address;
	/* edge S1: everything written before is visible to who finds the magic */
	atomic_store_explicit(&header->magic, SHMRT_MAGIC, memory_order_release);
}

int shmrt_segment_reserve(int fd, uint64_t offset, uint64_t size, struct shmrt_shortage *shortage) {
	int outcome = shmrt_budget_check(size, -1, shortage);
	if (outcome == SHMRT_OK)
		outcome = shmrt_fallocate(fd, offset, size);
	if (outcome == SHMRT_SYSTEM && errno == ENOSPC) {
		if (shortage != NULL)
			lower_to(shortage, 0, "%s", "the kernel's limit on shared memory");
		outcome = SHMRT_NO_SPACE;
	}
	return outcome;
}

int shmrt_segment_create_part(enum shmrt_segment_kind kind, const char *name, uint64_t size, uint64_t reserved, int *fd,
			      void **address, struct shmrt_shortage *shortage) {
	int made = shmrt_memfd_create(name, size);
	if (made < 0)
		return made;
	void *at = NULL;
	int outcome = shmrt_segment_reserve(made, 0, reserved, shortage);
	if (outcome == SHMRT_OK)
		outcome = shmrt_map(made, 0, size, true, &at);
	if (outcome == SHMRT_OK) {
		outcome = shmrt_segment_format(at, kind, size);
		if (outcome != SHMRT_OK)
			shmrt_unmap(at, size);
	}
	if (outcome != SHMRT_OK) {
		int error = errno;
		close(made);
		errno = error;
		return outcome;
	}
	*fd = made;
	*address = at;
	return SHMRT_OK;
}

int shmrt_segment_create(enum shmrt_segment_kind kind, const char *name, uint64_t size, int *fd, void **address,
			 struct shmrt_shortage *shortage) {
	return shmrt_segment_create_part(kind, name, size, size, fd, address, shortage);
}

/* ---- attaching ----------------------------------------------------------------------------------- */

#define REFUSE(result, ...)                                                                    \
	do {                                                                                   \
		snprintf(reason, reason_size, __VA_ARGS__);                                    \
		return (result);                                                               \
	} while (0)

static bool is_memfd(int fd) {
	char link[48], target[16];
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, target, sizeof(target));
	/* Without an answer expect the seals: a file that could shrink could kill its readers. */
	return length < 0 || (length >= 7 && memcmp(target, "/memfd:", 7) == 0);
}

/* What the descriptor itself must promise before a byte is read. */
static int check_file(int fd, uint64_t offset, enum shmrt_segment_kind kind, struct stat *info, bool *writable,
		      char *reason, size_t reason_size) {
	if (fstat(fd, info) != 0)
		REFUSE(SHMRT_SYSTEM, "descriptor %d cannot be looked at: %s", fd, strerror(errno));
	if (!S_ISREG(info->st_mode))
		REFUSE(SHMRT_FOREIGN, "descriptor %d is no memory file", fd);
	if (info->st_uid != geteuid())
		REFUSE(SHMRT_FOREIGN, "the segment belongs to user %u, not to user %u", (unsigned)info->st_uid,
		       (unsigned)geteuid());
	if ((info->st_mode & 077) != 0)
		REFUSE(SHMRT_FOREIGN, "the segment's mode is %03o: others could change it, it must be 600",
		       (unsigned)info->st_mode & 0777);
	int seals = fcntl(fd, F_GET_SEALS);
	const int needed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	if (is_memfd(fd) && (seals < 0 || (seals & needed) != needed))
		REFUSE(SHMRT_FOREIGN, "the segment is not sealed: it could shrink under its readers");
	int flags = fcntl(fd, F_GETFL);
	*writable = flags >= 0 && (flags & O_ACCMODE) == O_RDWR;
#ifdef F_SEAL_FUTURE_WRITE
	if (seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0)
		*writable = false;
#endif
	if (!*writable && kind != SHMRT_SEGMENT_BOARD)
		REFUSE(SHMRT_FOREIGN, "the segment cannot be written through this descriptor");
	uint64_t file_size = (uint64_t)info->st_size;
	if (offset > file_size || file_size - offset < sizeof(struct shmrt_segment_header))
		REFUSE(SHMRT_CORRUPT, "the file has %llu bytes, too few for a segment header at %llu",
		       (unsigned long long)file_size, (unsigned long long)offset);
	return SHMRT_OK;
}

static int check_header(const struct shmrt_segment_header *header, uint64_t magic, uint64_t room, bool exact,
			enum shmrt_segment_kind kind, char *reason, size_t reason_size) {
	if (magic == 0)
		REFUSE(SHMRT_FOREIGN, "the segment is not ready: its creator has not finished it");
	if (magic != SHMRT_MAGIC)
		REFUSE(SHMRT_FOREIGN, "no shmrt segment: the magic number is %016llx", (unsigned long long)magic);
	if (header->layout_version != SHMRT_LAYOUT_VERSION)
		REFUSE(SHMRT_FOREIGN, "the segment has layout version %u, this shmrt reads version %d",
		       header->layout_version, SHMRT_LAYOUT_VERSION);
	if (header->kind != (uint32_t)kind)
		REFUSE(SHMRT_FOREIGN, "the segment is of kind %u, expected kind %d", header->kind, (int)kind);
	if (header->size < sizeof(*header) || header->size > room || (exact && header->size != room))
		REFUSE(SHMRT_CORRUPT, "the segment claims %llu bytes, the file has %llu",
		       (unsigned long long)header->size, (unsigned long long)room);
	return SHMRT_OK;
}

int shmrt_segment_attach_at(int fd, uint64_t offset, enum shmrt_segment_kind kind, void **address, uint64_t *size,
			    char *reason, size_t reason_size) {
	struct stat info;
	bool writable;
	int outcome = check_file(fd, offset, kind, &info, &writable, reason, reason_size);
	if (outcome != SHMRT_OK)
		return outcome;
	uint64_t room = (uint64_t)info.st_size - offset;
	bool exact = offset == 0 && is_memfd(fd);

	/* First through read: a hole reads as zeros and costs no page, where touching a mapping might. */
	struct shmrt_segment_header header;
	ssize_t length;
	do
		length = pread(fd, &header, sizeof(header), (off_t)offset);
	while (length < 0 && errno == EINTR);
	if (length != (ssize_t)sizeof(header))
		REFUSE(SHMRT_SYSTEM, "the segment header cannot be read: %s",
		       length < 0 ? strerror(errno) : "the file is too short");
	/* relaxed: a local copy */
	uint64_t magic = atomic_load_explicit(&header.magic, memory_order_relaxed);
	outcome = check_header(&header, magic, room, exact, kind, reason, reason_size);
	if (outcome != SHMRT_OK)
		return outcome;
	/* Arenas and the process table reserve on demand, and a ring's file may carry an arena; all others are whole. */
	if (kind != SHMRT_SEGMENT_ARENA && kind != SHMRT_SEGMENT_RING && kind != SHMRT_SEGMENT_CONTROL &&
	    (uint64_t)info.st_blocks * 512 < header.size)
		REFUSE(SHMRT_CORRUPT, "the segment's memory is not reserved: %llu of %llu bytes",
		       (unsigned long long)info.st_blocks * 512, (unsigned long long)header.size);

	uint64_t mapped = header.size;
	void *at;
	outcome = shmrt_map(fd, offset, mapped, writable, &at);
	if (outcome != SHMRT_OK)
		REFUSE(outcome, "%llu bytes cannot be mapped: %s", (unsigned long long)mapped, strerror(errno));
	/* edge S1: what the read saw in pieces is complete once the magic is seen here */
	struct shmrt_segment_header *shared = at;
	magic = atomic_load_explicit(&shared->magic, memory_order_acquire);
	memcpy((uint8_t *)&header + sizeof(magic), (const uint8_t *)shared + sizeof(magic),
	       sizeof(header) - sizeof(magic));
	outcome = check_header(&header, magic, room, exact, kind, reason, reason_size);
	if (outcome == SHMRT_OK && header.size != mapped) {
		snprintf(reason, reason_size, "the segment changed its size while it was opened");
		outcome = SHMRT_CORRUPT;
	}
	if (outcome != SHMRT_OK) {
		shmrt_unmap(at, mapped);
		return outcome;
	}
	*address = at;
	*size = mapped;
	return SHMRT_OK;
}

int shmrt_segment_attach(int fd, enum shmrt_segment_kind kind, void **address, uint64_t *size, char *reason,
			 size_t reason_size) {
	return shmrt_segment_attach_at(fd, 0, kind, address, size, reason, reason_size);
}
