/* test_names.c -- a name is there or not, and its value old or new, wherever the writer dies and whatever it
 * does between two instructions of a reader; bytes that no writer leaves stop nobody. */
#define _GNU_SOURCE
#include "names.h"
#include "sweep.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(condition)                                                                      \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                               \
		}                                                                              \
	} while (0)
#define REQUIRE(condition)                                                                     \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			return SWEEP_BROKEN;                                                   \
		}                                                                              \
	} while (0)

#define NAMES 4
#define REGION 4096

static _Alignas(4096) uint8_t region[REGION];
static struct shmrt_name_table table;

/* ---- words of the tests ------------------------------------------------------------------------- */

/* A value says its own number in every byte, and by its length: a mix of two is seen. */
static size_t fill(uint8_t *bytes, uint8_t number) {
	size_t size = 9 + (size_t)number % 4 * 8;
	memset(bytes, number, size);
	return size;
}

static struct shmrt_name_key key_of(const char *name) {
	struct shmrt_name_key key;
	EXPECT(shmrt_name_key_make(&key, name, strlen(name)) == SHMRT_OK);
	return key;
}

static uint32_t put(struct shmrt_name_table *into, const char *name, uint8_t number) {
	uint8_t bytes[SHMRT_NAME_VALUE_BYTES_MAX];
	struct shmrt_name_key key = key_of(name);
	uint32_t index;
	size_t size = fill(bytes, number);
	EXPECT(shmrt_names_put(into, &key, bytes, size, &index) == SHMRT_OK);
	return index;
}

static int replace(struct shmrt_name_table *into, uint32_t index, uint8_t number) {
	uint8_t bytes[SHMRT_NAME_VALUE_BYTES_MAX];
	size_t size = fill(bytes, number);
	return shmrt_names_replace(into, index, bytes, size);
}

/* The number of a value that is whole, or -2. */
static int number_of(const struct shmrt_name_value *value) {
	uint8_t bytes[SHMRT_NAME_VALUE_BYTES_MAX];
	uint8_t number = *(const uint8_t *)value->words;
	if (value->size != fill(bytes, number) || memcmp(bytes, value->words, value->size) != 0)
		return -2;
	return number;
}

/* The number under a name, -1: not there, -2: a mix. */
static int look(const struct shmrt_name_table *in, const char *name) {
	struct shmrt_name_key key = key_of(name);
	struct shmrt_name_value value;
	return shmrt_names_find(in, &key, &value) == SHMRT_OK ? number_of(&value) : -1;
}

static void new_table(void) {
	memset(region, 0, REGION);
	EXPECT(shmrt_names_attach(&table, region, REGION) == SHMRT_EMPTY);
	memset(region, 0xA5, REGION); /* what lay there before must not matter */
	shmrt_names_format((void *)region, NAMES);
	EXPECT(shmrt_names_attach(&table, region, REGION) == SHMRT_OK && table.count == NAMES);
}

/* ---- plain use ---------------------------------------------------------------------------------- */

static void test_use(void) {
	struct shmrt_name_key key = key_of("a");
	struct shmrt_name_value value;
	uint32_t index;
	new_table();
	EXPECT(look(&table, "a") == -1 && shmrt_names_count(&table) == 0);
	EXPECT(put(&table, "a", 1) == 0 && put(&table, "bb", 2) == 1 && put(&table, "a", 3) == 2);
	EXPECT(look(&table, "a") == 1 && look(&table, "bb") == 2 && look(&table, "b") == -1);

	index = 0; /* a group, in the order of the indexes */
	EXPECT(shmrt_names_next(&table, &key, &index, &value) == SHMRT_OK && index == 1 && number_of(&value) == 1);
	EXPECT(shmrt_names_next(&table, &key, &index, &value) == SHMRT_OK && index == 3 && number_of(&value) == 3);
	EXPECT(shmrt_names_next(&table, &key, &index, &value) == SHMRT_EMPTY);

	for (uint8_t number = 10; number < 20; number++) {
		EXPECT(replace(&table, 1, number) == SHMRT_OK && look(&table, "bb") == number);
		EXPECT(shmrt_names_check(&table) == SHMRT_OK);
	}
	EXPECT(shmrt_names_remove(&table, 0) == SHMRT_OK && look(&table, "a") == 3);
	EXPECT(shmrt_names_remove(&table, 0) == SHMRT_STALE && replace(&table, 0, 1) == SHMRT_STALE);
	EXPECT(shmrt_names_remove(&table, NAMES) == SHMRT_INVALID && replace(&table, NAMES, 1) == SHMRT_INVALID);
	EXPECT(put(&table, "c", 4) == 0 && put(&table, "d", 5) == 3 && shmrt_names_count(&table) == NAMES);
	EXPECT(shmrt_names_put(&table, &key, "x", 1, &index) == SHMRT_FULL);
	EXPECT(look(&table, "c") == 4 && look(&table, "d") == 5 && shmrt_names_check(&table) == SHMRT_OK);
	EXPECT(shmrt_names_remove(&table, 3) == SHMRT_OK && shmrt_names_remove(&table, 2) == SHMRT_OK);
	EXPECT(atomic_load_explicit(&table.shared->high, memory_order_relaxed) == 2); /* a find is short again */
	shmrt_names_clear(&table);
	EXPECT(shmrt_names_count(&table) == 0 && look(&table, "bb") == -1 && shmrt_names_check(&table) == SHMRT_OK);
	EXPECT(atomic_load_explicit(&table.shared->high, memory_order_relaxed) == 0);
}

static void test_bounds(void) {
	uint8_t bytes[SHMRT_NAME_BYTES_MAX + 1];
	struct shmrt_name_key key, other;
	struct shmrt_name_value value;
	uint32_t index;
	new_table();
	memset(bytes, 'n', sizeof(bytes));
	EXPECT(shmrt_name_key_make(&key, bytes, 0) == SHMRT_INVALID);
	EXPECT(shmrt_name_key_make(&key, bytes, SHMRT_NAME_BYTES_MAX + 1) == SHMRT_TOO_LARGE);
	EXPECT(shmrt_name_key_make(&key, bytes, SHMRT_NAME_BYTES_MAX) == SHMRT_OK);
	EXPECT(shmrt_name_key_make(&other, bytes, SHMRT_NAME_BYTES_MAX - 1) == SHMRT_OK);
	EXPECT(shmrt_names_put(&table, &key, bytes, SHMRT_NAME_VALUE_BYTES_MAX + 1, &index) == SHMRT_TOO_LARGE);
	EXPECT(shmrt_names_put(&table, &key, bytes, SHMRT_NAME_VALUE_BYTES_MAX, &index) == SHMRT_OK);
	EXPECT(shmrt_names_find(&table, &key, &value) == SHMRT_OK && value.size == SHMRT_NAME_VALUE_BYTES_MAX);
	EXPECT(memcmp(value.words, bytes, value.size) == 0);
	EXPECT(shmrt_names_find(&table, &other, &value) == SHMRT_EMPTY);
	EXPECT(shmrt_names_replace(&table, index, bytes, SHMRT_NAME_VALUE_BYTES_MAX + 1) == SHMRT_TOO_LARGE);
	EXPECT(shmrt_names_replace(&table, index, NULL, 0) == SHMRT_OK);
	EXPECT(shmrt_names_find(&table, &key, &value) == SHMRT_OK && value.size == 0);
	/* Zeros at the end of a name belong to it. */
	EXPECT(shmrt_name_key_make(&key, "z", 1) == SHMRT_OK && shmrt_name_key_make(&other, "z\0", 2) == SHMRT_OK);
	EXPECT(shmrt_names_put(&table, &key, "1", 1, &index) == SHMRT_OK);
	EXPECT(shmrt_names_find(&table, &other, &value) == SHMRT_EMPTY);
}

/* What no writer leaves: it is seen by check, read by nobody beyond its bounds, and ends every find. */
static void test_foreign_bytes(void) {
	struct shmrt_name_table found;
	new_table();
	EXPECT(shmrt_names_attach(&found, region, shmrt_names_bytes(NAMES)) == SHMRT_OK);
	EXPECT(shmrt_names_attach(&found, region, shmrt_names_bytes(NAMES) - 1) == SHMRT_CORRUPT);
	EXPECT(shmrt_names_attach(&found, region, 8) == SHMRT_CORRUPT);
	atomic_store_explicit(&table.shared->count, UINT32_MAX, memory_order_relaxed); /* nobody else is here */
	EXPECT(shmrt_names_attach(&found, region, REGION) == SHMRT_CORRUPT && shmrt_names_check(&table) == SHMRT_CORRUPT);

	new_table();
	put(&table, "a", 1);
	struct shmrt_name_entry *entry = &table.entries[0];
	atomic_store_explicit(&entry->value_sizes[0], UINT32_MAX, memory_order_relaxed); /* as above, and below */
	atomic_store_explicit(&entry->value_sizes[1], UINT32_MAX, memory_order_relaxed);
	EXPECT(look(&table, "a") == -1 && shmrt_names_check(&table) == SHMRT_CORRUPT);

	new_table();
	put(&table, "a", 1);
	atomic_store_explicit(&entry->name_size, UINT32_MAX, memory_order_relaxed);
	EXPECT(look(&table, "a") == -1 && shmrt_names_check(&table) == SHMRT_CORRUPT);

	new_table();
	put(&table, "a", 1);
	atomic_store_explicit(&table.shared->high, UINT32_MAX, memory_order_relaxed);
	EXPECT(look(&table, "a") == 1 && look(&table, "b") == -1 && shmrt_names_check(&table) == SHMRT_CORRUPT);
	EXPECT(shmrt_names_remove(&table, 0) == SHMRT_OK && shmrt_names_check(&table) == SHMRT_OK);
}

/* ---- a death at every instruction of the writer ------------------------------------------------- */

enum { PUT, PUT_BEHIND, REPLACE, REPLACE_AGAIN, REMOVE, REMOVE_LAST, CLEAR, OPERATIONS };
static const char *const what[] = {"put",    "put behind the others", "replace", "replace again",
				   "remove", "remove the last",       "clear"};
static struct shmrt_name_key key_new; /* made before the sweep, as a value is */
static uint8_t value_new[SHMRT_NAME_VALUE_BYTES_MAX];
static size_t value_new_size;

static uint64_t first_sequence; /* of every entry, and of the count of changes: near where they run over, in some sweeps */

/* Index 0 was in use once, "keep" is at 1, "mine" at 2 (and once more at 3, but for PUT_BEHIND). */
static void prepare(int operation) {
	new_table();
	if (first_sequence != 0) {
		atomic_store_explicit(&table.shared->changes, first_sequence, memory_order_relaxed); /* nobody else is here */
		for (uint32_t i = 0; i < NAMES; i++)
			atomic_store_explicit(&table.entries[i].sequence, first_sequence, memory_order_relaxed);
	}
	put(&table, "an older and longer name", 9);
	put(&table, "keep", 50);
	put(&table, "mine", 60);
	put(&table, "mine", 61);
	if (operation != PUT_BEHIND)
		EXPECT(shmrt_names_remove(&table, 0) == SHMRT_OK);
	else
		EXPECT(shmrt_names_remove(&table, 3) == SHMRT_OK);
	if (operation == REPLACE_AGAIN)
		EXPECT(replace(&table, 2, 63) == SHMRT_OK);
	key_new = key_of("new");
	value_new_size = fill(value_new, 70);
}

static void operate(void *context) {
	uint32_t index;
	int result = SHMRT_OK;
	switch (*(const int *)context) {
	case PUT:
	case PUT_BEHIND:
		result = shmrt_names_put(&table, &key_new, value_new, value_new_size, &index);
		break;
	case REPLACE:
	case REPLACE_AGAIN:
		result = shmrt_names_replace(&table, 2, value_new, value_new_size);
		break;
	case REMOVE:
		result = shmrt_names_remove(&table, 2);
		break;
	case REMOVE_LAST:
		result = shmrt_names_remove(&table, 3);
		break;
	default:
		shmrt_names_clear(&table);
	}
	SHMRT_ASSERT(result == SHMRT_OK);
}

/* What a reader sees in the bytes: before, after, or for clear one between. Changes nothing. */
static int read_outcome(const struct shmrt_name_table *left, int operation) {
	struct shmrt_name_key mine = key_of("mine");
	struct shmrt_name_value value;
	uint32_t index = 0;
	int numbers[3] = {-1, -1, -1}, found = 0;
	while (found < 3 && shmrt_names_next(left, &mine, &index, &value) == SHMRT_OK)
		numbers[found++] = number_of(&value);
	int keep = look(left, "keep"), new = look(left, "new"), first = operation == REPLACE_AGAIN ? 63 : 60;
	REQUIRE(look(left, "never put") == -1 && look(left, "mine") == numbers[0]);
	REQUIRE(keep == 50 || (keep == -1 && operation == CLEAR));
	if (operation == PUT || operation == PUT_BEHIND) {
		REQUIRE((new == -1 || new == 70) && numbers[0] == 60 && found == (operation == PUT ? 2 : 1));
		return new == 70 ? SWEEP_AFTER : SWEEP_BEFORE;
	}
	REQUIRE(new == -1);
	if (operation == REPLACE || operation == REPLACE_AGAIN) {
		REQUIRE(found == 2 && numbers[1] == 61 && (numbers[0] == first || numbers[0] == 70));
		return numbers[0] == 70 ? SWEEP_AFTER : SWEEP_BEFORE;
	}
	if (operation == REMOVE || operation == REMOVE_LAST) {
		REQUIRE(found == 2 || (found == 1 && numbers[0] == (operation == REMOVE ? 61 : 60)));
		return found == 1 ? SWEEP_AFTER : SWEEP_BEFORE;
	}
	int used = (keep != -1) + found;
	REQUIRE(keep == -1 || found == 2); /* from the first index on */
	REQUIRE(found == 0 || numbers[found - 1] == 61);
	return used == 3 ? SWEEP_BEFORE : used == 0 ? SWEEP_AFTER : 1 + used;
}

/* What the next writer does, after a death or two: every change works, and clear leaves an empty table. */
static int go_on(struct shmrt_name_table *left) {
	uint32_t used = shmrt_names_count(left);
	if (used == NAMES)
		REQUIRE(shmrt_names_remove(left, 0) == SHMRT_OK);
	uint32_t index = put(left, "next", 80);
	REQUIRE(look(left, "next") == 80 && shmrt_names_check(left) == SHMRT_OK);
	REQUIRE(replace(left, index, 81) == SHMRT_OK && look(left, "next") == 81);
	for (uint32_t i = 0; i < NAMES; i++)
		if (shmrt_names_remove(left, i) == SHMRT_OK) /* each entry is filled anew by the put after it */
			REQUIRE(put(left, "last", 82) <= i && look(left, "last") == 82);
	REQUIRE(shmrt_names_check(left) == SHMRT_OK);
	shmrt_names_clear(left);
	for (uint32_t i = 0; i < NAMES; i++)
		REQUIRE(look(left, "last") == (i == 0 ? -1 : 90) && put(left, "last", (uint8_t)(90 + i)) == i);
	REQUIRE(shmrt_names_count(left) == NAMES && shmrt_names_check(left) == SHMRT_OK);
	return SWEEP_BEFORE;
}

#define STATES_MAX 256
static uint8_t states[STATES_MAX][REGION]; /* what deaths left */
static size_t states_count;
static bool collect;

static int judge(void *copy, size_t step, void *context) {
	(void)step;
	struct shmrt_name_table left;
	REQUIRE(shmrt_names_attach(&left, copy, REGION) == SHMRT_OK && shmrt_names_check(&left) == SHMRT_OK);
	if (collect) {
		REQUIRE(states_count < STATES_MAX);
		memcpy(states[states_count++], copy, REGION);
	}
	int outcome = read_outcome(&left, *(const int *)context);
	if (outcome < 0 || go_on(&left) < 0)
		return SWEEP_BROKEN;
	return outcome;
}

/* The second writer dies, too: whatever it did, a third one finds a table. */
static int judge_second(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	struct shmrt_name_table left;
	REQUIRE(shmrt_names_attach(&left, copy, REGION) == SHMRT_OK && shmrt_names_check(&left) == SHMRT_OK);
	int mine = look(&left, "mine"), keep = look(&left, "keep");
	REQUIRE((mine == -1 || mine == 60 || mine == 61 || mine == 63 || mine == 70) && (keep == -1 || keep == 50));
	return go_on(&left);
}

static void second_put(void *context) {
	(void)context;
	uint32_t index;
	if (shmrt_names_put(&table, &key_new, value_new, value_new_size, &index) == SHMRT_FULL)
		shmrt_names_clear(&table);
}
static void second_clear(void *context) {
	(void)context;
	shmrt_names_clear(&table);
}

static void test_deaths_of_writers(void) {
	for (int operation = 0; operation < OPERATIONS; operation++) {
		prepare(operation);
		states_count = 0;
		collect = true;
		struct sweep_report report = sweep_run(operate, &operation, region, REGION, judge, &operation);
		collect = false;
		sweep_expect(&report, what[operation]);
		if (operation == CLEAR && !report.skipped)
			EXPECT(report.seen[2] > 0 && report.seen[3] > 0);
		for (size_t i = 0; i < states_count && (first_sequence == 0 || sweep_is_long()); i++) {
			memcpy(region, states[i], REGION);
			report = sweep_run(second_put, NULL, region, REGION, judge_second, NULL);
			sweep_expect_clean(&report, "put after a death");
			memcpy(region, states[i], REGION);
			report = sweep_run(second_clear, NULL, region, REGION, judge_second, NULL);
			sweep_expect_clean(&report, "clear after a death");
		}
		printf("%-22s from %016llx on, %3zu states left\n", what[operation], (unsigned long long)first_sequence, states_count);
	}
}

/* ---- a writer between any two instructions of a reader ------------------------------------------- */

/* The reader is stepped. A word behind the table changes at every step, so that the judge is asked at every
 * step; at step `at` it puts the bytes there that the writer had made by then. */
#define CLOCK (REGION - sizeof(uint64_t))
#define ENOUGH (-2) /* ends the stepping: the rest of the find runs at full speed */
static struct {
	size_t at;
	const uint8_t *bytes;
	int result;
	struct shmrt_name_value value;
} meanwhile;

static void find(void *context) { meanwhile.result = shmrt_names_find(&table, context, &meanwhile.value); }

static int change_meanwhile(void *copy, size_t step, void *context) {
	(void)copy, (void)context;
	if (step == meanwhile.at) {
		memcpy(region, meanwhile.bytes, CLOCK);
		return ENOUGH;
	}
	++*(uint64_t *)(void *)(region + CLOCK);
	return SWEEP_BEFORE;
}

/* Every pair of an instant of the reader and a state of the writer; what `name` may give is `one` or `other`. */
static size_t find_during(const uint8_t *before, const char *name, int one, int other, const char *title) {
	struct shmrt_name_key key = key_of(name);
	size_t runs = 0, seen[2] = {0, 0};
	for (size_t i = 0; i < states_count; i++) {
		struct sweep_report report = {.broken = ENOUGH};
		for (meanwhile.at = 0; report.broken == ENOUGH; meanwhile.at++) {
			memcpy(region, before, REGION);
			meanwhile.bytes = states[i];
			report = sweep_run(find, &key, region, REGION, change_meanwhile, NULL);
			EXPECT(report.broken == ENOUGH || report.broken == 0);
			int found = meanwhile.result == SHMRT_OK ? number_of(&meanwhile.value) : -1;
			if (found != one && found != other) {
				fprintf(stderr, "%s: %s is %d at step %zu, writer's state %zu\n", title, name, found,
					meanwhile.at, i);
				exit(1);
			}
			seen[found == other]++;
			runs++;
		}
	}
	EXPECT((seen[0] > 0 || one == other) && seen[1] > 0);
	return runs;
}

static bool can_interleave(void) {
#if defined(__x86_64__) && !SWEEP_SANITIZED
	return getenv("SWEEP_PTRACE") == NULL; /* the judge must run in the process of the reader */
#else
	return false;
#endif
}

/* A state of the writer: what it had done at some point of what it does. */
static void note_state(void) {
	EXPECT(states_count < STATES_MAX);
	memcpy(states[states_count++], region, REGION);
}

static int judge_nothing(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	EXPECT(states_count < STATES_MAX);
	memcpy(states[states_count++], copy, REGION);
	return SWEEP_BEFORE;
}

/* Another name takes the place that "mine" had, byte by byte, as a writer does it. */
static void take_its_place(void *context) {
	uint32_t index;
	(void)!shmrt_names_remove(&table, 0);
	(void)!shmrt_names_put(&table, context, value_new, value_new_size, &index);
}
/* The second writes over the bytes that a reader may be reading. */
static void replace_twice(void *context) {
	(void)context;
	for (int i = 0; i < 2; i++)
		(void)!shmrt_names_replace(&table, 0, value_new, value_new_size);
}

static void test_readers_beside_a_writer(void) {
	static uint8_t before[REGION];
	if (!can_interleave()) {
		fprintf(stderr, "SKIPPED: a reader cannot be stepped beside a writer here\n");
		return;
	}
	size_t runs = 0;
	struct shmrt_name_key other = key_of("she");
	value_new_size = fill(value_new, 91);

	new_table();
	put(&table, "he", 33);
	memcpy(before, region, REGION);
	states_count = 0;
	struct sweep_report report = sweep_run(take_its_place, &other, region, REGION, judge_nothing, NULL);
	sweep_expect_clean(&report, "another name in the same place");
	runs += find_during(before, "he", 33, -1, "a find while its entry is used anew");
	runs += find_during(before, "she", -1, 91, "a find while it is put");

	/* Values of one length, so that only their bytes tell them apart. */
	new_table();
	put(&table, "he", 1);
	memcpy(before, region, REGION);
	value_new_size = fill(value_new, 5);
	states_count = 0;
	report = sweep_run(replace_twice, NULL, region, REGION, judge_nothing, NULL);
	sweep_expect_clean(&report, "two values");
	runs += find_during(before, "he", 1, 5, "a find while its value changes twice");

	/* Another name with the same hash is there, and then one with the same end: neither is the one asked for. */
	const char *asked = "begin 1 and the end 1";
	struct shmrt_name_key same_hash = key_of("begin 1 and the end 2"), same_end = key_of("begin 2 and the end 1");
	uint32_t index;
	same_hash.hash = key_of(asked).hash;
	value_new_size = fill(value_new, 91);
	new_table();
	EXPECT(shmrt_names_put(&table, &same_hash, value_new, value_new_size, &index) == SHMRT_OK);
	memcpy(before, region, REGION);
	states_count = 0;
	report = sweep_run(take_its_place, &same_end, region, REGION, judge_nothing, NULL);
	sweep_expect_clean(&report, "names that share something");
	runs += find_during(before, asked, -1, -1, "a find of a name that was never put");

	/* The name is always there: at one index before it leaves the other. */
	new_table();
	put(&table, "x", 1);
	put(&table, "he", 33);
	EXPECT(shmrt_names_remove(&table, 0) == SHMRT_OK);
	memcpy(before, region, REGION);
	states_count = 0;
	note_state();
	put(&table, "he", 34);
	note_state();
	EXPECT(shmrt_names_remove(&table, 1) == SHMRT_OK);
	note_state();
	runs += find_during(before, "he", 33, 34, "a find while its name moves");
	printf("%zu finds beside a writer\n", runs);
}

/* ---- real deaths -------------------------------------------------------------------------------- */

#define KILLS 200
static void write_for_ever(struct shmrt_name_table *shared) {
	for (uint8_t number = 0;; number = (uint8_t)((number + 1) % 100)) {
		shmrt_names_clear(shared);
		put(shared, "a", number);
		put(shared, "other", 7);
		EXPECT(replace(shared, 0, (uint8_t)(number / 2)) == SHMRT_OK);
		EXPECT(shmrt_names_remove(shared, 0) == SHMRT_OK);
		put(shared, "b", number);
	}
}

static void test_killed_writers(void) {
	void *pages = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	EXPECT(pages != MAP_FAILED);
	struct shmrt_name_table shared;
	shmrt_names_format(pages, NAMES);
	EXPECT(shmrt_names_attach(&shared, pages, REGION) == SHMRT_OK);
	size_t there = 0;
	for (int i = 0; i < KILLS; i++) {
		uint64_t changes = atomic_load_explicit(&shared.shared->changes, memory_order_acquire); /* N5 */
		pid_t pid = fork();
		EXPECT(pid >= 0);
		if (pid == 0)
			write_for_ever(&shared);
		for (size_t looks = 0, enough = 50 + (size_t)i * 7; looks < enough; looks++) {
			int a = look(&shared, "a"), b = look(&shared, "b"), other = look(&shared, "other");
			EXPECT(a >= -1 && a < 100 && b >= -1 && b < 100 && (other == -1 || other == 7));
			there += (size_t)((a != -1) + (b != -1));
			if (atomic_load_explicit(&shared.shared->changes, memory_order_acquire) == changes) /* N5: not begun */
				enough++;
		}
		EXPECT(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
		EXPECT(shmrt_names_check(&shared) == SHMRT_OK);
	}
	EXPECT(there > 0 && go_on(&shared) == SWEEP_BEFORE);
	munmap(pages, REGION);
}

int main(void) {
	test_use();
	test_bounds();
	test_foreign_bytes();
	static const uint64_t sequences[] = {0, (UINT64_C(1) << 32) - 2, UINT64_MAX - 2, UINT64_MAX - 1, UINT64_MAX};
	for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++) {
		first_sequence = sequences[i];
		test_deaths_of_writers();
	}
	first_sequence = 0;
	test_readers_beside_a_writer();
	test_killed_writers();
	printf("%zu states\n", sweep_total_states());
	return 0;
}
