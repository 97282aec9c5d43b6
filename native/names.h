/* names.h -- the registry of a runtime: which name stands for what, for everybody, without a lock.
 *
 *     0    count, then on a line of its own: changes, high      struct shmrt_names
 *   256    u64 hashes[count], contiguous: what a find runs over
 *     ...  entries[count]                                       struct shmrt_name_entry
 *
 * One process writes (the root; when it is dead, the program, before it starts another). Any process reads.
 * A name may be put several times: its values are then a group, found in the order of their indexes.
 *
 * Each change becomes real by one store, whatever is written around it:
 *
 *   put      hashes[i] = hash      the entry behind it was filled while the word was 0
 *   replace  sequence += 1         the other of the two values counts from now on
 *   remove   hashes[i] = 0
 *   clear    one remove after the other
 *
 * So a writer that dies anywhere leaves the change wholly made or not made at all. Nothing has to be
 * repaired: bytes in an entry without a hash, bytes of a value that does not count and a `high` that is too
 * high are what the next change writes over. A reader never waits for the writer; it starts again only when a
 * change was completed under its eyes, SHMRT_NAME_TRIES times at most, and then says that it found nothing.
 *
 * A find that finds nothing is right about one moment of its run, also when the name moved from one index to
 * another meanwhile (put there, then removed here). A find_all has every value whose entry was there the
 * whole time, and may have those that came or went.
 *
 * Edge N1: format stores count (release) -> attach loads count (acquire): an empty table is there.
 * Edge N2: put stores the hash (release) -> find loads it (acquire): name, sequence and value belong to it.
 * Edge N3: put, replace store sequence (release) -> find loads it (acquire): the value that it says counts.
 * Edge N4: put, replace: what was stored before (a hash of 0, the sequence), fence, new bytes -> find: bytes,
 * fence, sequence and hash again: who read new bytes sees that the entry is not what it was.
 * Edge N5: put raises changes (release) before any later remove stores its 0 -> find: the 0, fence, changes
 * again: who missed a name that moved sees that something was put.
 */
#ifndef SHMRT_NAMES_H
#define SHMRT_NAMES_H

#include "layout.h"

#define SHMRT_NAME_TRIES 1024

/* A table as one process knows it: geometry is read from shared memory once, and checked. */
struct shmrt_name_table {
	struct shmrt_names *shared;
	struct shmrt_name_entry *entries;
	uint32_t count;
};

/* A name made ready for a search: its hash and its bytes, filled up with zeros to whole words. */
struct shmrt_name_key {
	uint64_t hash; /* never 0 */
	uint32_t size;
	uint64_t words[SHMRT_NAME_WORDS];
};

struct shmrt_name_value {
	uint32_t size;
	uint64_t words[SHMRT_NAME_VALUE_WORDS]; /* the bytes, from the first on */
};

static inline uint64_t shmrt_names_bytes(uint32_t count) {
	uint64_t hashes = shmrt_align_up((uint64_t)count * sizeof(uint64_t), SHMRT_LINE);
	return sizeof(struct shmrt_names) + hashes + (uint64_t)count * sizeof(struct shmrt_name_entry);
}
/* An empty table in memory that nobody uses as one; `count` from 1 to SHMRT_NAMES_MAX. */
void shmrt_names_format(struct shmrt_names *, uint32_t count);
/* EMPTY: not formatted yet. CORRUPT: the count does not fit `size`. */
SHMRT_MUST_USE int shmrt_names_attach(struct shmrt_name_table *, void *address, uint64_t size);

/* INVALID: no bytes at all; TOO_LARGE: more than SHMRT_NAME_BYTES_MAX. */
SHMRT_MUST_USE int shmrt_name_key_make(struct shmrt_name_key *, const void *name, size_t size);

/* Changes: by the one writer, in one thread at a time. put: FULL when every entry is in use. The value:
 * TOO_LARGE above SHMRT_NAME_VALUE_BYTES_MAX. INVALID: no such index; STALE: nothing is at that index. */
SHMRT_MUST_USE int shmrt_names_put(struct shmrt_name_table *, const struct shmrt_name_key *, const void *value,
				   size_t size, uint32_t *index);
SHMRT_MUST_USE int shmrt_names_replace(struct shmrt_name_table *, uint32_t index, const void *value, size_t size);
SHMRT_MUST_USE int shmrt_names_remove(struct shmrt_name_table *, uint32_t index);
void shmrt_names_clear(struct shmrt_name_table *);

/* Looks: by anybody, at any time. The value of the lowest index under that name, or EMPTY. */
SHMRT_MUST_USE int shmrt_names_find(const struct shmrt_name_table *, const struct shmrt_name_key *,
				    struct shmrt_name_value *);
/* The first value under that name at *index or above; *index becomes the one after it. EMPTY: no more. */
SHMRT_MUST_USE int shmrt_names_next(const struct shmrt_name_table *, const struct shmrt_name_key *, uint32_t *index,
				    struct shmrt_name_value *);
/* Entries in use. */
uint32_t shmrt_names_count(const struct shmrt_name_table *);
/* CORRUPT when a word is one that no writer leaves, dead or alive. Only while nobody writes. */
SHMRT_MUST_USE int shmrt_names_check(const struct shmrt_name_table *);

#endif
