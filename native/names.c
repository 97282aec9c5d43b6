/* names.c -- see names.h.
 *
 * Bytes of names and values are moved as relaxed 64-bit words: a reader may look at an entry while it is
 * filled for somebody else, sees words of two times then, and throws them away after its second look at the
 * sequence and the hash (edge N4).
 */
#include "names.h"

/* Looks for a name that moved meanwhile: each means that a put was made during the look before. */
#define SCANS_MAX 64

#define LOAD(word) atomic_load_explicit(&(word), memory_order_relaxed) /* a fence, or ours alone */
#define STORE(word, value) atomic_store_explicit(&(word), (value), memory_order_relaxed) /* a release follows */

/* ---- making and joining ------------------------------------------------------------------------- */

static struct shmrt_name_entry *entries_of(struct shmrt_names *shared, uint32_t count) {
	uint64_t hashes = shmrt_align_up((uint64_t)count * sizeof(uint64_t), SHMRT_LINE);
	return (struct shmrt_name_entry *)(void *)((uint8_t *)shared + sizeof(*shared) + hashes);
}

void shmrt_names_format(struct shmrt_names *shared, uint32_t count) {
	SHMRT_ASSERT(count >= 1 && count <= SHMRT_NAMES_MAX);
	STORE(shared->count, 0);
	STORE(shared->changes, 0);
	STORE(shared->high, 0);
	for (uint32_t i = 0; i < count; i++) /* what is in the entries does not matter then */
		STORE(shared->hashes[i], 0);
	atomic_store_explicit(&shared->count, count, memory_order_release); /* N1 */
}

int shmrt_names_attach(struct shmrt_name_table *table, void *address, uint64_t size) {
	if (size < sizeof(struct shmrt_names))
		return SHMRT_CORRUPT;
	struct shmrt_names *shared = address;
	uint32_t count = atomic_load_explicit(&shared->count, memory_order_acquire); /* N1 */
	if (count == 0)
		return SHMRT_EMPTY;
	if (count > SHMRT_NAMES_MAX || shmrt_names_bytes(count) > size)
		return SHMRT_CORRUPT;
	*table = (struct shmrt_name_table){.shared = shared, .entries = entries_of(shared, count), .count = count};
	return SHMRT_OK;
}

/* ---- names as words ----------------------------------------------------------------------------- */

static uint32_t words_of(uint32_t bytes) { return (bytes + 7) / 8; }

/* Multiplies each word in and lets the high bits, where a product mixes best, come down. Whoever matches a
 * hash compares the name, too, so a collision costs time only. */
static uint64_t hash_of(const uint64_t *words, uint32_t size) {
	uint64_t hash = UINT64_C(0x9E3779B97F4A7C15) + size;
	for (uint32_t i = 0; i < words_of(size); i++) {
		hash = (hash ^ words[i]) * UINT64_C(0xD6E8FEB86659FD93);
		hash ^= hash >> 32;
	}
	return hash != 0 ? hash : 1;
}

int shmrt_name_key_make(struct shmrt_name_key *key, const void *name, size_t size) {
	if (size == 0)
		return SHMRT_INVALID;
	if (size > SHMRT_NAME_BYTES_MAX)
		return SHMRT_TOO_LARGE;
	memset(key->words, 0, sizeof(key->words));
	memcpy(key->words, name, size);
	key->size = (uint32_t)size;
	key->hash = hash_of(key->words, key->size);
	return SHMRT_OK;
}

/* ---- changes ------------------------------------------------------------------------------------ */

static void write_value(struct shmrt_name_entry *entry, uint64_t sequence, const void *value, uint32_t size) {
	uint64_t words[SHMRT_NAME_VALUE_WORDS] = {0};
	uint32_t side = (uint32_t)(sequence % 2);
	if (size != 0)
		memcpy(words, value, size);
	STORE(entry->value_sizes[side], size);
	for (uint32_t i = 0; i < words_of(size); i++)
		STORE(entry->values[side][i], words[i]);
}

int shmrt_names_put(struct shmrt_name_table *table, const struct shmrt_name_key *key, const void *value, size_t size,
		    uint32_t *index) {
	struct shmrt_names *shared = table->shared;
	if (size > SHMRT_NAME_VALUE_BYTES_MAX)
		return SHMRT_TOO_LARGE;
	uint32_t at = 0;
	while (at < table->count && LOAD(shared->hashes[at]) != 0)
		at++;
	if (at == table->count)
		return SHMRT_FULL;

	struct shmrt_name_entry *entry = &table->entries[at];
	uint64_t sequence = LOAD(entry->sequence) + 1;
	atomic_thread_fence(memory_order_release); /* N4: who still reads its last use finds that its hash is 0 */
	STORE(entry->name_size, key->size);
	for (uint32_t i = 0; i < words_of(key->size); i++)
		STORE(entry->name[i], key->words[i]);
	write_value(entry, sequence, value, (uint32_t)size);
	atomic_store_explicit(&entry->sequence, sequence, memory_order_release); /* N3 */

	if (LOAD(shared->high) <= at) /* before the hash: whoever is told of the name must look far enough */
		STORE(shared->high, at + 1);
	atomic_store_explicit(&shared->hashes[at], key->hash, memory_order_release); /* N2: now it is there */
	atomic_fetch_add_explicit(&shared->changes, 1, memory_order_release);        /* N5 */
	*index = at;
	return SHMRT_OK;
}

static int check_index(const struct shmrt_name_table *table, uint32_t index) {
	if (index >= table->count)
		return SHMRT_INVALID;
	return LOAD(table->shared->hashes[index]) != 0 ? SHMRT_OK : SHMRT_STALE;
}

int shmrt_names_replace(struct shmrt_name_table *table, uint32_t index, const void *value, size_t size) {
	int outcome = check_index(table, index);
	if (outcome != SHMRT_OK || size > SHMRT_NAME_VALUE_BYTES_MAX)
		return outcome != SHMRT_OK ? outcome : SHMRT_TOO_LARGE;
	struct shmrt_name_entry *entry = &table->entries[index];
	uint64_t sequence = LOAD(entry->sequence) + 1;
	atomic_thread_fence(memory_order_release); /* N4: who still reads that side does so under an older sequence */
	write_value(entry, sequence, value, (uint32_t)size);
	atomic_store_explicit(&entry->sequence, sequence, memory_order_release); /* N3: now it counts */
	return SHMRT_OK;
}

/* `high` follows the last entry in use, so that a table that was full once is not slow for ever. */
static void lower_high(struct shmrt_name_table *table) {
	uint32_t old = LOAD(table->shared->high), high = old < table->count ? old : table->count;
	while (high > 0 && LOAD(table->shared->hashes[high - 1]) == 0)
		high--;
	if (high != old)
		atomic_store_explicit(&table->shared->high, high, memory_order_release); /* N5: as a 0 does */
}

int shmrt_names_remove(struct shmrt_name_table *table, uint32_t index) {
	int outcome = check_index(table, index);
	if (outcome != SHMRT_OK)
		return outcome;
	atomic_store_explicit(&table->shared->hashes[index], 0, memory_order_release); /* N5: now it is gone */
	lower_high(table);
	return SHMRT_OK;
}

void shmrt_names_clear(struct shmrt_name_table *table) {
	for (uint32_t i = 0; i < table->count; i++)
		if (LOAD(table->shared->hashes[i]) != 0)
			atomic_store_explicit(&table->shared->hashes[i], 0, memory_order_release); /* N5 */
	lower_high(table);
}

/* ---- looks -------------------------------------------------------------------------------------- */

/* The value at `index` if the name there is `key`, as both were at one moment. */
static bool read_entry(const struct shmrt_name_table *table, uint32_t index, const struct shmrt_name_key *key,
		       struct shmrt_name_value *value) {
	const struct shmrt_name_entry *entry = &table->entries[index];
	for (int tries = 0; tries < SHMRT_NAME_TRIES; tries++) {
		if (atomic_load_explicit(&table->shared->hashes[index], memory_order_acquire) != key->hash) /* N2 */
			return false;
		uint64_t sequence = atomic_load_explicit(&entry->sequence, memory_order_acquire); /* N3 */
		uint32_t side = (uint32_t)(sequence % 2);
		bool same = LOAD(entry->name_size) == key->size;
		for (uint32_t i = 0; same && i < words_of(key->size); i++)
			same = LOAD(entry->name[i]) == key->words[i];
		uint32_t size = LOAD(entry->value_sizes[side]);
		same = same && size <= SHMRT_NAME_VALUE_BYTES_MAX;
		for (uint32_t i = 0; same && i < words_of(size); i++)
			value->words[i] = LOAD(entry->values[side][i]);
		value->size = size;
		atomic_thread_fence(memory_order_acquire); /* N4 */
		if (LOAD(entry->sequence) == sequence && LOAD(table->shared->hashes[index]) == key->hash)
			return same;
	}
	return false;
}

int shmrt_names_next(const struct shmrt_name_table *table, const struct shmrt_name_key *key, uint32_t *index,
		     struct shmrt_name_value *value) {
	const struct shmrt_names *shared = table->shared;
	uint32_t high = atomic_load_explicit(&shared->high, memory_order_acquire); /* N5 */
	high = high < table->count ? high : table->count;
	for (uint32_t i = *index; i < high; i++) {
		if (SHMRT_LIKELY(LOAD(shared->hashes[i]) != key->hash))
			continue;
		if (read_entry(table, i, key, value)) {
			*index = i + 1;
			return SHMRT_OK;
		}
	}
	*index = table->count;
	return SHMRT_EMPTY;
}

int shmrt_names_find(const struct shmrt_name_table *table, const struct shmrt_name_key *key,
		     struct shmrt_name_value *value) {
	uint64_t changes = atomic_load_explicit(&table->shared->changes, memory_order_acquire); /* N5 */
	for (int scans = 0; scans < SCANS_MAX; scans++) {
		uint32_t index = 0;
		if (shmrt_names_next(table, key, &index, value) == SHMRT_OK)
			return SHMRT_OK;
		atomic_thread_fence(memory_order_acquire); /* N5 */
		uint64_t now = atomic_load_explicit(&table->shared->changes, memory_order_acquire); /* N5 */
		if (SHMRT_LIKELY(now == changes))
			break;
		changes = now;
	}
	return SHMRT_EMPTY;
}

uint32_t shmrt_names_count(const struct shmrt_name_table *table) {
	uint32_t used = 0;
	for (uint32_t i = 0; i < table->count; i++)
		used += LOAD(table->shared->hashes[i]) != 0;
	return used;
}

/* ---- check -------------------------------------------------------------------------------------- */

static bool entry_is_sound(const struct shmrt_name_entry *entry, uint64_t hash) {
	uint64_t sequence = LOAD(entry->sequence), words[SHMRT_NAME_WORDS] = {0};
	uint32_t size = LOAD(entry->name_size);
	if (size == 0 || size > SHMRT_NAME_BYTES_MAX || LOAD(entry->value_sizes[sequence % 2]) > SHMRT_NAME_VALUE_BYTES_MAX)
		return false;
	for (uint32_t i = 0; i < words_of(size); i++)
		words[i] = LOAD(entry->name[i]);
	return hash_of(words, size) == hash;
}

int shmrt_names_check(const struct shmrt_name_table *table) {
	uint32_t high = LOAD(table->shared->high);
	if (LOAD(table->shared->count) != table->count || high > table->count)
		return SHMRT_CORRUPT;
	for (uint32_t i = 0; i < table->count; i++) {
		uint64_t hash = LOAD(table->shared->hashes[i]);
		if (hash != 0 && (i >= high || !entry_is_sound(&table->entries[i], hash)))
			return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}
