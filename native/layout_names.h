/* layout_names.h -- layout.h continued: the registry of names.
 *
 * The rules are those of layout.h, which includes this file; nobody else does.
 */
#ifndef SHMRT_LAYOUT_NAMES_H
#define SHMRT_LAYOUT_NAMES_H

#define SHMRT_NAMES_DEFAULT 1024
#define SHMRT_NAMES_MAX 65536
#define SHMRT_NAME_BYTES_MAX 180
#define SHMRT_NAME_VALUE_BYTES_MAX 120
#define SHMRT_NAME_WORDS 23       /* a name, filled up with zeros */
#define SHMRT_NAME_VALUE_WORDS 15 /* a value, filled up with zeros */

/* One name and its value, twice: a new value is written beside the one that readers see. In use exactly
 * while its word in the hash array is not 0. Everything here is written by the one writer only. */
struct shmrt_name_entry {
	_Atomic uint64_t sequence; /* values[sequence % 2] counts; only grows */
	_Atomic uint32_t name_size;
	_Atomic uint32_t value_sizes[2];
	uint32_t reserved0;
	_Atomic uint64_t name[SHMRT_NAME_WORDS];
	_Atomic uint64_t values[2][SHMRT_NAME_VALUE_WORDS];
};
_Static_assert(offsetof(struct shmrt_name_entry, name) == 24, "shared layout changed");
_Static_assert(offsetof(struct shmrt_name_entry, values) == 208, "shared layout changed");
_Static_assert(sizeof(struct shmrt_name_entry) == 448, "shared layout changed");
_Static_assert(SHMRT_NAME_WORDS * 8 >= SHMRT_NAME_BYTES_MAX, "a name fits its words");
_Static_assert(SHMRT_NAME_VALUE_WORDS * 8 >= SHMRT_NAME_VALUE_BYTES_MAX, "a value fits its words");

/* This, then `count` hash words, filled up to whole lines, then `count` entries. */
struct shmrt_names {
	_Atomic uint32_t count; /* stored last when the table is made; 0: there is none yet */
	uint32_t reserved0;
	uint8_t reserved1[SHMRT_LINE - 8];
	_Atomic uint64_t changes; /* raised after each put: who found nothing looks again when it moved */
	_Atomic uint32_t high;    /* hashes from here on are 0 */
	uint8_t reserved2[SHMRT_LINE - 12];
	_Atomic uint64_t hashes[]; /* of the names; 0: the entry is free */
};
_Static_assert(offsetof(struct shmrt_names, changes) == 128, "shared layout changed");
_Static_assert(offsetof(struct shmrt_names, hashes) == 256, "shared layout changed");

/* What a control segment has room for. */
#define SHMRT_NAMES_AREA_BYTES                                                                 \
	(sizeof(struct shmrt_names) + SHMRT_NAMES_DEFAULT * (sizeof(uint64_t) + sizeof(struct shmrt_name_entry)))
_Static_assert(SHMRT_NAMES_DEFAULT * sizeof(uint64_t) % SHMRT_LINE == 0, "the hashes fill whole lines");

#endif
