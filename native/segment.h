/* segment.h -- makes, checks and maps shared segments; knows how much memory may still be taken.
 *
 * A segment is an anonymous sealed memfd (or, for a named ring, a file in /dev/shm). Pages are
 * reserved with fallocate before anyone touches them, so that running short is an answer here and
 * never a SIGBUS there. fallocate beyond a memory cgroup would get the caller OOM-killed, so the
 * budget is compared first: the runtime's shm_limit, the machine's available memory, and every
 * memory cgroup (v1 and v2) on the process's own path; for a file in /dev/shm also statvfs.
 *
 * Edge S1: format stores magic (release) -> attach loads magic (acquire): the header is complete.
 * Dies before: magic is 0, the segment is nobody's and vanishes with its last descriptor.
 */
#ifndef SHMRT_SEGMENT_H
#define SHMRT_SEGMENT_H

#include "layout.h"
#include "ops.h"

struct shmrt_shortage {
	uint64_t needed;
	uint64_t free;
	char limit[160]; /* whose limit: "shm_limit of the runtime", "memory cgroup /a/b", ... */
};

/* May `needed` more bytes be reserved? *shortage (may be NULL) names the tightest limit either way.
 * fd >= 0: also looks at the file system behind it. Reads some files: about 0.1 ms. */
SHMRT_MUST_USE int shmrt_budget_check(uint64_t needed, int fd, struct shmrt_shortage *shortage);

/* Creates, reserves and maps a segment of `size` bytes and writes its header, all but the magic. */
SHMRT_MUST_USE int shmrt_segment_create(enum shmrt_segment_kind kind, const char *name, uint64_t size,
					int *fd, void **address, struct shmrt_shortage *shortage);
/* The same, but memory is behind the first `reserved` bytes only; the rest is reserved when it is needed. */
SHMRT_MUST_USE int shmrt_segment_create_part(enum shmrt_segment_kind kind, const char *name, uint64_t size, uint64_t reserved,
					     int *fd, void **address, struct shmrt_shortage *shortage);
/* Memory behind a range of an existing segment; the budget is asked first. NO_SPACE fills the shortage in. */
SHMRT_MUST_USE int shmrt_segment_reserve(int fd, uint64_t offset, uint64_t size, struct shmrt_shortage *shortage);
/* Writes the header into fresh zeroed memory (used by create and by named rings). */
SHMRT_MUST_USE int shmrt_segment_format(void *address, enum shmrt_segment_kind kind, uint64_t size);
/* The last step of creating: from now on attach succeeds. */
void shmrt_segment_publish(void *address);
/* Checks size, seals (memfd only), owner and mode, magic, version, kind, and maps it. A board that may not
 * be written is mapped read-only; other kinds must be writable. Every refusal
 * leaves nothing mapped and puts one sentence into `reason`. */
SHMRT_MUST_USE int shmrt_segment_attach(int fd, enum shmrt_segment_kind kind, void **address,
					uint64_t *size, char *reason, size_t reason_size);
/* The same for a segment that begins inside a file, at a page-aligned offset. */
SHMRT_MUST_USE int shmrt_segment_attach_at(int fd, uint64_t offset, enum shmrt_segment_kind kind, void **address,
					   uint64_t *size, char *reason, size_t reason_size);

#endif
