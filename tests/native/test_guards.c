/* test_guards.c -- the area of the guards, who holds what, permits and their line, and the arithmetic of rate limits. */
#define _GNU_SOURCE
#include "guards_world.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OFFSET UINT64_C(65536) /* of the area in its segment */

/* ---- the area ----------------------------------------------------------------------------------- */

static struct shmrt_guard_area area;
static struct shmrt_shortage shortage;
static struct shmrt_guard *guard;
static bool made;

static void make_area(void) {
	void *address;
	int fd = shmrt_memfd_create("guards", OFFSET + SHMRT_GUARD_AREA_BYTES);
	CHECK(fd >= 0 && shmrt_map(fd, 0, OFFSET + SHMRT_GUARD_AREA_BYTES, true, &address) == SHMRT_OK);
	CHECK(shmrt_fallocate(fd, 0, OFFSET) == SHMRT_OK);
	struct shmrt_control *control = address;
	shmrt_control_format(control, SLOTS);
	shmrt_guards_format(shmrt_guards_of(control), OFFSET);
	CHECK(shmrt_guard_area_attach(&area, control, OFFSET + SHMRT_GUARD_AREA_BYTES - 1, fd, ALIVE) == SHMRT_CORRUPT);
	CHECK(shmrt_guard_area_attach(&area, control, OFFSET - 1, fd, ALIVE) == SHMRT_CORRUPT);
	CHECK(shmrt_guard_area_attach(&area, control, OFFSET + SHMRT_GUARD_AREA_BYTES, fd, ALIVE) == SHMRT_OK && area.slot == ALIVE);
}
static void drop_area(void) {
	close(area.fd);
	shmrt_unmap(area.control, OFFSET + SHMRT_GUARD_AREA_BYTES);
}

static uint64_t used(void) { return atomic_load_explicit(&area.head->used, memory_order_relaxed); }
static uint64_t reserved(void) { return atomic_load_explicit(&area.head->reserved, memory_order_relaxed); }
static uint64_t backed(void) {
	struct stat info;
	CHECK(fstat(area.fd, &info) == 0);
	return (uint64_t)info.st_blocks * 512 - OFFSET;
}

static int fill_body(struct shmrt_guard *entry, const void *settings) {
	const uint8_t *bytes = (const uint8_t *)(entry + 1);
	for (uint64_t i = 0; i < entry->size - sizeof(*entry); i++)
		if (bytes[i] != 0) /* settings: whether it fails */
			return SHMRT_CORRUPT;
	return settings == NULL ? SHMRT_OK : SHMRT_INVALID;
}
static int join(uint32_t kind, const char *name, const char *text, uint64_t body) {
	struct shmrt_guard_plan plan = {.kind = kind, .name = name, .name_size = strlen(name), .text = text, .text_size = strlen(text),
					.body_bytes = body, .fill = fill_body};
	return shmrt_guard_join(&area, &plan, &guard, &made, &shortage);
}

static void test_join(void) {
	struct shmrt_guard *first, *again;
	make_area();
	CHECK(shmrt_guard_next(&area, NULL) == NULL && used() == 0 && reserved() == 0);
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "x=1", 100) == SHMRT_OK && made);
	first = guard;
	CHECK(first->size == 1024 + 128 && first->kind == SHMRT_GUARD_BREAKER && first->name_size == 1 && memcmp(first->text, "x=1", 3) == 0);
	CHECK(used() == first->size && reserved() == SHMRT_GUARD_STEP_BYTES && backed() == SHMRT_GUARD_STEP_BYTES);
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "x=1", 100) == SHMRT_OK && !made && guard == first);
	CHECK(join(SHMRT_GUARD_BULKHEAD, "a", "x=1", 100) == SHMRT_OK && made && guard != first); /* names of another kind are others */
	CHECK(join(SHMRT_GUARD_BREAKER, "ab", "x=1", 100) == SHMRT_OK && made);
	again = guard;
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "x=2", 100) == SHMRT_FOREIGN && guard == first && !made);
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "x=11", 100) == SHMRT_FOREIGN && guard == first);
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "x=1", 300) == SHMRT_FOREIGN && guard == first); /* a text that does not tell all */
	CHECK(join(SHMRT_GUARD_BREAKER, "ab", "x=1", 100) == SHMRT_OK && guard == again);
	int entries = 0;
	for (guard = NULL; (guard = shmrt_guard_next(&area, guard)) != NULL; entries++)
		CHECK(shmrt_guard_lock(guard, 0) == SHMRT_OK && (shmrt_guard_unlock(guard), true));
	CHECK(entries == 3 && !mutex_is_held(&area.head->mutex));

	char name[SHMRT_GUARD_NAME_BYTES_MAX + 1], text[SHMRT_GUARD_TEXT_BYTES_MAX + 1]; /* as long as they may be */
	memset(name, 'n', sizeof(name)), memset(text, 't', sizeof(text));
	name[sizeof(name) - 1] = text[sizeof(text) - 1] = 0;
	CHECK(join(SHMRT_GUARD_BUCKET, name, text, 0) == SHMRT_OK && made && guard->size == 1024);
	CHECK(join(SHMRT_GUARD_BUCKET, name, text, 0) == SHMRT_OK && !made);
	CHECK(join(SHMRT_GUARD_BUCKET, name + 1, text, 0) == SHMRT_OK && made);
	drop_area();
}

/* What a join of the dead left behind `used`, and one that fails, is not there. */
static void test_leftovers(void) {
	make_area();
	CHECK(join(SHMRT_GUARD_BREAKER, "a", "", 0) == SHMRT_OK);
	memset(area.entries + used(), 0xA5, SHMRT_GUARD_STEP_BYTES - used());
	CHECK(shmrt_guard_next(&area, guard) == NULL);
	uint64_t before = used();
	struct shmrt_guard_plan bad = {.kind = 1, .name = "b", .name_size = 1, .text = "", .body_bytes = 500, .fill = fill_body, .settings = &area};
	CHECK(shmrt_guard_join(&area, &bad, &guard, &made, &shortage) == SHMRT_INVALID && !made && used() == before);
	CHECK(join(SHMRT_GUARD_BREAKER, "b", "", 700) == SHMRT_OK && made); /* its body was zeros: fill_body looks */
	for (int i = 0; i < SHMRT_GUARD_COUNTERS; i++)
		CHECK(counter_of(guard, i) == 0);
	drop_area();
}

static void test_full(void) {
	char name[16];
	unsigned count = 0;
	make_area();
	for (uint64_t body = 1 << 20;; count++) { /* 15 of them, and what is left is filled to the last byte */
		snprintf(name, sizeof(name), "%u", count);
		if (SHMRT_GUARD_AREA_BYTES - used() < shmrt_guard_bytes(body))
			break;
		CHECK(join(SHMRT_GUARD_BULKHEAD, name, "", body) == SHMRT_OK && made && reserved() >= used() && backed() >= reserved());
	}
	shortage.needed = 7;
	CHECK(join(SHMRT_GUARD_BULKHEAD, "big", "", 1 << 20) == SHMRT_NO_SPACE && shortage.needed == 0 && !made);
	CHECK(!mutex_is_held(&area.head->mutex));
	uint64_t left = SHMRT_GUARD_AREA_BYTES - used();
	CHECK(join(SHMRT_GUARD_BULKHEAD, "big", "", left - 1024 + 1) == SHMRT_NO_SPACE);
	CHECK(join(SHMRT_GUARD_BULKHEAD, "last", "", left - 1024) == SHMRT_OK && used() == SHMRT_GUARD_AREA_BYTES);
	CHECK(reserved() == SHMRT_GUARD_AREA_BYTES && backed() == SHMRT_GUARD_AREA_BYTES);
	CHECK(join(SHMRT_GUARD_BULKHEAD, "0", "", 1 << 20) == SHMRT_OK && !made); /* who is there is found */
	CHECK(join(SHMRT_GUARD_BULKHEAD, "more", "", 0) == SHMRT_NO_SPACE);
	drop_area();
}

/* Bytes that no join leaves end every look, and are not built upon. */
static void test_foreign_bytes(void) {
	make_area();
	CHECK(join(1, "a", "", 0) == SHMRT_OK && join(1, "b", "", 0) == SHMRT_OK && join(1, "c", "", 0) == SHMRT_OK);
	struct shmrt_guard *first = shmrt_guard_next(&area, NULL), *second = shmrt_guard_next(&area, first);
	static const uint32_t sizes[] = {0, 8, 1023, 1024 + 8, 4096, UINT32_MAX, UINT32_MAX - 127};
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		second->size = sizes[i];
		CHECK(shmrt_guard_next(&area, first) == NULL && join(1, "a", "", 0) == SHMRT_OK && !made);
	}
	second->size = 1024, second->name_size = SHMRT_GUARD_NAME_BYTES_MAX + 1;
	CHECK(shmrt_guard_next(&area, first) == NULL);
	second->name_size = 1, second->text_size = SHMRT_GUARD_TEXT_BYTES_MAX + 1;
	CHECK(shmrt_guard_next(&area, first) == NULL);
	second->text_size = 0;
	CHECK(shmrt_guard_next(&area, first) == second);
	uint64_t right = used();
	static const uint64_t wrong[] = {SHMRT_GUARD_AREA_BYTES + 1, SHMRT_GUARD_AREA_BYTES + 128, UINT64_MAX, UINT64_MAX - 1023};
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		atomic_store_explicit(&area.head->used, wrong[i], memory_order_relaxed); /* nobody else is here */
		CHECK(shmrt_guard_next(&area, NULL) == NULL && join(1, "new", "", 0) == SHMRT_CORRUPT && !made);
		CHECK(first->name[0] == 'a' && used() == wrong[i] && !mutex_is_held(&area.head->mutex));
	}
	atomic_store_explicit(&area.head->used, right, memory_order_relaxed);
	CHECK(join(1, "new", "", 0) == SHMRT_OK && made);
	drop_area();
}

/* ---- the mutex ---------------------------------------------------------------------------------- */

static void *lock_and_end(void *context) {
	CHECK(shmrt_guard_lock(context, 0) == SHMRT_OK);
	return NULL;
}
static void *look_at_a_locked_one(void *context) {
	CHECK(shmrt_guard_lock(context, 0) == SHMRT_INTERRUPTED && shmrt_guard_lock(context, 1000000) == SHMRT_INTERRUPTED);
	return NULL;
}

static void test_mutex(void) {
	pthread_t thread;
	make_area();
	CHECK(join(1, "a", "", 0) == SHMRT_OK);
	CHECK(pthread_create(&thread, NULL, lock_and_end, guard) == 0 && pthread_join(thread, NULL) == 0);
	CHECK(shmrt_guard_lock(guard, 0) == SHMRT_STALE); /* once: it is repaired then */
	CHECK(pthread_create(&thread, NULL, look_at_a_locked_one, guard) == 0 && pthread_join(thread, NULL) == 0);
	shmrt_guard_unlock(guard);
	CHECK(shmrt_guard_lock(guard, 0) == SHMRT_OK && (shmrt_guard_unlock(guard), true));
	pid_t pid = fork();
	if (pid == 0) {
		CHECK(shmrt_guard_lock(guard, 0) == SHMRT_OK && pthread_mutex_lock(&area.head->mutex) == 0);
		_exit(0);
	}
	int status;
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(join(1, "b", "", 0) == SHMRT_OK && made && join(1, "c", "", 0) == SHMRT_OK);
	guard = shmrt_guard_next(&area, NULL);
	CHECK(shmrt_guard_lock(guard, 0) == SHMRT_STALE && (shmrt_guard_unlock(guard), true));
	drop_area();
}

static void test_holders(void) {
	struct shmrt_holder nobody = {.owner = 0x3FFFFF, .slot = SHMRT_GUARD_NO_SLOT}, self = {.owner = shmrt_owner_self(), .slot = DEAD};
	struct shmrt_holder parent = {.owner = shmrt_owner_of(getppid()), .slot = SHMRT_GUARD_NO_SLOT};
	CHECK(shmrt_holder_is_alive(&table.control, holder_in(ALIVE)) && shmrt_holder_is_alive(&table.control, holder_in(OTHER)));
	CHECK(!shmrt_holder_is_alive(&table.control, holder_in(DEAD)));
	CHECK(shmrt_holder_is_alive(&table.control, self)); /* whatever a table says */
	CHECK(!shmrt_holder_is_alive(&table.control, nobody) && !shmrt_holder_is_alive(NULL, nobody));
	CHECK(shmrt_holder_is_alive(&table.control, parent) && shmrt_holder_is_alive(NULL, parent));
	struct shmrt_holder before = {.owner = holder_in(ALIVE).owner + 1024, .slot = ALIVE}; /* the slot is another's by now */
	CHECK(!shmrt_holder_is_alive(&table.control, before));
	world_set(ALIVE, SHMRT_SLOT_EMPTY);
	CHECK(!shmrt_holder_is_alive(&table.control, holder_in(ALIVE)));
	world_set(ALIVE, SHMRT_SLOT_READY);
	table.control.slots[ALIVE].death.__data.__lock = FUTEX_OWNER_DIED; /* as the kernel marks it */
	CHECK(!shmrt_holder_is_alive(&table.control, holder_in(ALIVE)));
	table.control.slots[ALIVE].death.__data.__lock = 0;
}

/* ---- permits ------------------------------------------------------------------------------------ */

static uint64_t memory[8192];
static struct shmrt_bulkhead *bulkhead;

static void make_bulkhead(uint32_t capacity, uint32_t limit, uint32_t most_waiting) {
	struct shmrt_bulkhead_settings s = {.capacity = capacity, .limit = limit, .most_waiting = most_waiting};
	bulkhead = (struct shmrt_bulkhead *)(void *)memory;
	guard_make(memory, sizeof(memory), SHMRT_GUARD_BULKHEAD, shmrt_bulkhead_body_bytes(&s), shmrt_bulkhead_fill, &s);
	CHECK(shmrt_bulkhead_is_sound(bulkhead));
}
static int take(uint32_t slot, struct shmrt_permit *permit, struct shmrt_permit *place) {
	uint32_t bell;
	return shmrt_bulkhead_take(bulkhead, &table.control, holder_in(slot), 0, permit, place, &bell);
}
static void give_back(struct shmrt_permit *permit) { CHECK(shmrt_bulkhead_give_back(bulkhead, 0, permit) == SHMRT_OK && permit->word == 0); }
static void are_out(uint32_t permits, uint32_t line) {
	uint32_t out = 99, waiting = 99;
	CHECK(shmrt_bulkhead_look(bulkhead, &table.control, 0, &out, &waiting) == SHMRT_OK && out == permits && waiting == line);
}
static struct shmrt_waiter *waiter(uint32_t index) { return (struct shmrt_waiter *)(void *)(bulkhead->words + bulkhead->capacity) + index; }
static uint32_t bell(void) { return atomic_load_explicit(&bulkhead->bell, memory_order_relaxed); }

static void test_permits(void) {
	struct shmrt_permit a, b, c, none = {0};
	make_bulkhead(4, 2, 0);
	CHECK(take(ALIVE, &a, NULL) == SHMRT_OK && take(OTHER, &b, NULL) == SHMRT_OK && a.word != b.word && a.index != b.index);
	CHECK(take(ALIVE, &c, NULL) == SHMRT_EMPTY && take(ALIVE, &c, &none) == SHMRT_FULL && none.word == 0); /* no line at all */
	struct shmrt_permit copy = a;
	give_back(&a), give_back(&copy); /* twice: the second does nothing */
	are_out(1, 0);
	copy = (struct shmrt_permit){.index = 4, .word = 1};
	give_back(&copy), give_back(&none);
	are_out(1, 0);
	CHECK(take(DEAD, &a, NULL) == SHMRT_OK && take(ALIVE, &c, NULL) == SHMRT_OK); /* the dead one's is taken back first */
	CHECK(counter_of(&bulkhead->guard, SHMRT_BULKHEAD_LOST) == 1 && counter_of(&bulkhead->guard, SHMRT_BULKHEAD_TAKEN) == 4);
	give_back(&a); /* it is another's by now, or nobody's */
	are_out(2, 0);
	CHECK(shmrt_bulkhead_resize(bulkhead, 0, 5) == SHMRT_INVALID && shmrt_bulkhead_resize(bulkhead, 0, 0) == SHMRT_INVALID);
	CHECK(shmrt_bulkhead_resize(bulkhead, 0, 1) == SHMRT_OK);
	are_out(2, 0); /* those that are out stay out */
	give_back(&b);
	CHECK(take(ALIVE, &a, NULL) == SHMRT_EMPTY);
	give_back(&c);
	CHECK(take(ALIVE, &a, NULL) == SHMRT_OK && take(ALIVE, &b, NULL) == SHMRT_EMPTY);
	CHECK(shmrt_bulkhead_resize(bulkhead, 0, 4) == SHMRT_OK);
	for (int i = 0; i < 3; i++)
		CHECK(take(ALIVE, &b, NULL) == SHMRT_OK);
	CHECK(take(ALIVE, &b, NULL) == SHMRT_EMPTY && atomic_load_explicit(&bulkhead->high_water, memory_order_relaxed) == 4);
	are_out(4, 0);
	CHECK(bell() == 0); /* nobody waited */
}

/* Tickets at their end: a word still names its holder. */
static void test_tickets(void) {
	static const uint32_t starts[] = {(1U << 21) - 2, UINT32_MAX - 1};
	for (int i = 0; i < 2; i++) {
		struct shmrt_permit held[4];
		make_bulkhead(4, 4, 2);
		atomic_store_explicit(&bulkhead->tickets, starts[i], memory_order_relaxed); /* nobody else is here */
		for (int j = 0; j < 4; j++)
			CHECK(take(ALIVE, &held[j], NULL) == SHMRT_OK && held[j].word >> 32 == holder_in(ALIVE).owner &&
			      (held[j].word >> 21 & 2047) == ALIVE);
		are_out(4, 0);
		for (int j = 0; j < 4; j++)
			give_back(&held[j]);
		are_out(0, 0);
	}
	struct shmrt_holder without = {.owner = holder_in(ALIVE).owner, .slot = UINT32_MAX};
	struct shmrt_permit permit;
	make_bulkhead(1, 1, 0);
	CHECK(shmrt_bulkhead_take(bulkhead, &table.control, without, 0, &permit, NULL, NULL) == SHMRT_OK);
	CHECK((permit.word >> 21 & 2047) == SHMRT_GUARD_NO_SLOT && permit.word >> 32 == without.owner);
}

static void test_line(void) {
	struct shmrt_permit held, other, first = {0}, second = {0}, third = {0};
	make_bulkhead(2, 1, 2);
	CHECK(take(ALIVE, &held, NULL) == SHMRT_OK);
	CHECK(take(ALIVE, &other, &first) == SHMRT_EMPTY && first.word != 0 && take(OTHER, &other, &second) == SHMRT_EMPTY && second.word != 0);
	CHECK(take(OTHER, &other, &third) == SHMRT_FULL && third.word == 0);
	CHECK(take(ALIVE, &other, &first) == SHMRT_EMPTY); /* it stays where it is */
	are_out(1, 2);
	give_back(&held);
	CHECK(bell() == 1);
	CHECK(take(OTHER, &held, &second) == SHMRT_EMPTY && second.word != 0); /* not its turn */
	/* The first has a permit coming: it takes nobody's place in the line any more. There is room for one, and no more. */
	struct shmrt_permit fourth = {0};
	CHECK(take(OTHER, &held, &third) == SHMRT_EMPTY && third.word != 0 && take(OTHER, &held, &fourth) == SHMRT_FULL && fourth.word == 0);
	CHECK(shmrt_bulkhead_leave_line(bulkhead, 0, &third) == SHMRT_OK);
	CHECK(take(ALIVE, &held, &first) == SHMRT_OK && first.word == 0);
	are_out(1, 1);
	CHECK(take(ALIVE, &other, &first) == SHMRT_EMPTY); /* behind the second now, though its place is before */
	CHECK(first.index < second.index && waiter(first.index)->order > waiter(second.index)->order);
	give_back(&held);
	CHECK(take(ALIVE, &held, &first) == SHMRT_EMPTY && take(OTHER, &held, &second) == SHMRT_OK);
	uint32_t rung = bell();
	CHECK(shmrt_bulkhead_leave_line(bulkhead, 0, &second) == SHMRT_OK && bell() == rung); /* it has none */
	CHECK(take(OTHER, &other, &second) == SHMRT_EMPTY);
	give_back(&held);
	rung = bell();
	CHECK(shmrt_bulkhead_leave_line(bulkhead, 0, &first) == SHMRT_OK && first.word == 0 && bell() == rung + 1); /* tells the next */
	CHECK(take(OTHER, &held, &second) == SHMRT_OK);
	are_out(1, 0);
	/* More permits are told, too. */
	CHECK(take(ALIVE, &other, &first) == SHMRT_EMPTY && take(OTHER, &other, &second) == SHMRT_EMPTY);
	rung = bell();
	CHECK(shmrt_bulkhead_resize(bulkhead, 0, 2) == SHMRT_OK && bell() == rung + 1);
	CHECK(take(OTHER, &other, &second) == SHMRT_EMPTY); /* one is free, and one is before it */
	CHECK(take(ALIVE, &other, NULL) == SHMRT_OK); /* who does not wait goes by them */
}

/* Who is before, but stopped or dead, is passed by: the stopped one after a while, the dead one at once. */
static void test_passed_by(void) {
	for (int killed = 0; killed < 2; killed++) {
		struct shmrt_permit held, other, first = {0}, second = {0};
		make_bulkhead(1, 1, 2);
		world_let_die(false);
		CHECK(take(ALIVE, &held, NULL) == SHMRT_OK && take(DYING, &other, &first) == SHMRT_EMPTY);
		CHECK(take(OTHER, &other, &second) == SHMRT_EMPTY);
		give_back(&held);
		if (killed)
			world_let_die(true);
		else
			CHECK(take(OTHER, &other, &second) == SHMRT_EMPTY && (waiter(first.index)->seen_ns -= SHMRT_BULKHEAD_STALE_NS + 1, true));
		CHECK(take(OTHER, &other, &second) == SHMRT_OK);
		are_out(1, killed ? 0 : 1);
		if (!killed) { /* it goes on: where it was in the line, it is first again */
			give_back(&other);
			CHECK(take(ALIVE, &held, &second) == SHMRT_OK);
			CHECK(take(DYING, &held, &first) == SHMRT_EMPTY && first.word != 0);
		}
		world_let_die(false);
	}
	/* Taken for dead, and it is not: it joins again. */
	struct shmrt_permit held, other, place = {0};
	make_bulkhead(1, 1, 2);
	CHECK(take(ALIVE, &held, NULL) == SHMRT_OK && take(DYING, &other, &place) == SHMRT_EMPTY);
	world_let_die(true);
	are_out(1, 0);
	world_let_die(false);
	struct shmrt_permit old = place;
	CHECK(shmrt_bulkhead_leave_line(bulkhead, 0, &old) == SHMRT_OK && take(DYING, &other, &place) == SHMRT_EMPTY && place.word != 0);
	are_out(1, 1);
	/* The same at its own look: its own place goes, and no other's. */
	world_let_die(true);
	CHECK(take(DYING, &other, &place) == SHMRT_EMPTY && place.word != 0);
	CHECK(atomic_load_explicit(&bulkhead->waiting, memory_order_relaxed) == 1);
	world_let_die(false);
	give_back(&held);
	CHECK(take(DYING, &other, &place) == SHMRT_OK);
	are_out(1, 0);
}

static void test_bulkhead_bytes(void) {
	make_bulkhead(2, 2, 1);
	atomic_store_explicit(&bulkhead->limit, 3, memory_order_relaxed); /* nobody else is here */
	CHECK(!shmrt_bulkhead_is_sound(bulkhead));
	make_bulkhead(2, 2, 1);
	bulkhead->capacity = SHMRT_PERMITS_MAX + 1;
	CHECK(!shmrt_bulkhead_is_sound(bulkhead));
	make_bulkhead(2, 2, 1);
	bulkhead->most_waiting = 2000;
	CHECK(!shmrt_bulkhead_is_sound(bulkhead));
	/* Counts that say that a permit is free when none is: nobody looks for ever. */
	struct shmrt_permit permit;
	make_bulkhead(2, 2, 1);
	CHECK(take(ALIVE, &permit, NULL) == SHMRT_OK && take(ALIVE, &permit, NULL) == SHMRT_OK);
	atomic_store_explicit(&bulkhead->used, 0, memory_order_relaxed);
	CHECK(take(ALIVE, &permit, NULL) == SHMRT_EMPTY);
	are_out(2, 0);
}

/* ---- rate limits -------------------------------------------------------------------------------- */

static struct shmrt_bucket *bucket;

static void make_bucket(uint64_t token_ns, uint64_t burst) {
	struct shmrt_bucket_settings s = {.token_ns = token_ns, .burst = burst};
	bucket = (struct shmrt_bucket *)(void *)memory;
	guard_make(memory, sizeof(memory), SHMRT_GUARD_BUCKET, sizeof(*bucket) - sizeof(struct shmrt_guard), shmrt_bucket_fill, &s);
}
static uint64_t full_ns(void) { return atomic_load_explicit(&bucket->full_ns, memory_order_relaxed); }

static void test_bucket(void) {
	uint64_t wait, now = AT;
	make_bucket(100, 5);
	CHECK(shmrt_bucket_is_sound(bucket) && shmrt_bucket_tokens(bucket, now) == 5);
	CHECK(shmrt_bucket_take(bucket, 6, now, UINT64_MAX, &wait) == SHMRT_TOO_LARGE);
	CHECK(shmrt_bucket_take(bucket, 0, now, 0, &wait) == SHMRT_OK && shmrt_bucket_tokens(bucket, now) == 5);
	for (uint64_t left = 5; left-- > 0;)
		CHECK(shmrt_bucket_take(bucket, 1, now, 0, &wait) == SHMRT_OK && wait == 0 && shmrt_bucket_tokens(bucket, now) == left);
	CHECK(shmrt_bucket_take(bucket, 1, now, 99, &wait) == SHMRT_FULL && wait == 100 && full_ns() == now + 500);
	CHECK(shmrt_bucket_take(bucket, 1, now + 99, 0, &wait) == SHMRT_FULL && wait == 1);
	CHECK(shmrt_bucket_tokens(bucket, now + 99) == 0 && shmrt_bucket_tokens(bucket, now + 100) == 1);
	CHECK(shmrt_bucket_take(bucket, 1, now + 100, 0, &wait) == SHMRT_OK && wait == 0);
	CHECK(shmrt_bucket_take(bucket, 2, now + 100, 200, &wait) == SHMRT_OK && wait == 200); /* taken now, there later */
	CHECK(shmrt_bucket_take(bucket, 1, now + 100, 299, &wait) == SHMRT_FULL && wait == 300);
	CHECK(counter_of(&bucket->guard, SHMRT_BUCKET_TAKEN) == 8 && counter_of(&bucket->guard, SHMRT_BUCKET_REFUSED) == 3);
	CHECK(counter_of(&bucket->guard, SHMRT_BUCKET_WAITED) == 1);
	CHECK(shmrt_bucket_take(bucket, 1, now - 50, UINT64_MAX, &wait) == SHMRT_OK && wait == 450); /* a clock that is behind */
	shmrt_bucket_refill(bucket);
	CHECK(shmrt_bucket_tokens(bucket, now) == 5);
	CHECK(shmrt_bucket_take(bucket, 5, now + 10000, 0, &wait) == SHMRT_OK && shmrt_bucket_take(bucket, 1, now + 10000, 0, &wait) == SHMRT_FULL);
}

__extension__ typedef unsigned __int128 wide;

/* No sum runs over: what was promised once is not promised twice. */
static void test_bucket_ends(void) {
	static const struct { uint64_t token_ns, burst; } sizes[] = {
		{1, INT64_MAX}, {INT64_MAX, 1}, {(UINT64_C(1) << 62) - 1, 2}, {UINT64_C(86400000000000), 106751}, {1, 1}, {UINT64_C(1) << 62, 1}};
	static const uint64_t times[] = {0, 1, AT, INT64_MAX - 1, (uint64_t)INT64_MAX + 5, UINT64_MAX - 7, UINT64_MAX};
	static const uint64_t patiences[] = {0, 1, INT64_MAX, UINT64_MAX};
	for (unsigned i = 0; i < 6 * 7 * 4; i++) {
		uint64_t token = sizes[i % 6].token_ns, burst = sizes[i % 6].burst, now = times[i / 6 % 7], patience = patiences[i / 42], wait;
		wide promised = now; /* as if numbers had no end */
		make_bucket(token, burst);
		CHECK(shmrt_bucket_is_sound(bucket) && shmrt_bucket_tokens(bucket, now) == burst);
		for (unsigned turn = 0; turn < 9; turn++) {
			uint64_t tokens = turn % 3 == 2 ? 1 : burst;
			wide room = (wide)burst * token, next = promised + (wide)tokens * token;
			wide later = next - now > room ? next - now - room : 0;
			int rc = shmrt_bucket_take(bucket, tokens, now, patience, &wait);
			if (rc == SHMRT_OK) {
				CHECK(next <= UINT64_MAX && later == wait && later <= patience && full_ns() == (uint64_t)next);
				promised = next;
			} else {
				CHECK(rc == SHMRT_FULL && (later > patience || next > UINT64_MAX) && full_ns() == (promised == now ? full_ns() : (uint64_t)promised));
			}
			wide free = promised - now >= room ? 0 : (room - (promised - now)) / token;
			CHECK(shmrt_bucket_tokens(bucket, now) == (uint64_t)free);
		}
	}
	make_bucket(100, 5);
	bucket->token_ns = 0;
	CHECK(!shmrt_bucket_is_sound(bucket));
	make_bucket(100, INT64_MAX / 100);
	CHECK(shmrt_bucket_is_sound(bucket));
	make_bucket(100, INT64_MAX / 100 + 1);
	CHECK(!shmrt_bucket_is_sound(bucket));
	make_bucket(1, 0);
	CHECK(!shmrt_bucket_is_sound(bucket));
}

int main(void) {
	world_begin();
	test_join();
	test_leftovers();
	test_full();
	test_foreign_bytes();
	test_mutex();
	test_holders();
	test_permits();
	test_tickets();
	test_line();
	test_passed_by();
	test_bulkhead_bytes();
	test_bucket();
	test_bucket_ends();
	puts("guards: as they should be");
	return 0;
}
