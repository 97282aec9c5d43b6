/* lane.pml -- native/lane.c: one producer, one consumer, and whoever comes after the one that died.
 *
 *   proctype producer   shmrt_lane_attach_producer, _reserve (with refresh_head), _commit
 *   proctype consumer   shmrt_lane_attach_consumer, _peek (with look_for_more), _advance, _release
 *
 * A record is a cell; record number n holds n + 1. Either side may die between any two steps, CRASHES deaths in all; its
 * successor begins with attach, once the kernel has told the death (so it knows all that the dead knew).
 * Checked: no race for a record's bytes, never a wrong record, none lost, none read again but after a death of the consumer
 * before its release, both sides come to their end.
 *
 * With REVOKES the producer is the hub: it takes records back, so many in all, if their worker has not begun them
 * (shmrt_hub__revoke; native/hub_dispatch.c). Both sides decide that with one compare-and-swap of the record's claim. The hub looks at
 * it only while the record is needed (shmrt_hub__claim_of): else another's may lie there. Checked: each record has its effect, or
 * is taken back, and never both. Here the worker does not die: what it has claimed is decided by its death (death.pml).
 *
 * Mutants: TAIL_STORE_RELAXED TAIL_LOAD_RELAXED HEAD_STORE_RELAXED HEAD_LOAD_RELAXED PUBLISH_FIRST RELEASE_FIRST
 * RELEASE_BEFORE_DURABLE ONE_TOO_MANY NO_NOTICE ATTACH_HEAD_ONLY
 * CLAIM_OF_ANOTHER CLAIM_STORES
 */
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef MESSAGES
#define MESSAGES 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#ifndef REVOKES
#define REVOKES 0
#endif

#define TAIL 0
#define HEAD 1
#if REVOKES
#define WORDS (2 + SLOTS)
#define CLAIM(record) (2 + (record) % SLOTS)
#define OFFERED 0
#define TAKEN 1
#define REVOKED 2
#else
#define WORDS 2
#endif
#define CELLS SLOTS
#define PRODUCER 0
#define CONSUMER 1
#define PROCESSES 2
#define HISTORY (MESSAGES + 2 + 2 * REVOKES)
#include "memory.pml"

#ifdef TAIL_STORE_RELAXED
#define store_tail store_relaxed
#else
#define store_tail store_release
#endif
#ifdef TAIL_LOAD_RELAXED
#define load_tail load_relaxed
#else
#define load_tail load_acquire
#endif
#ifdef HEAD_STORE_RELAXED
#define store_head store_relaxed
#else
#define store_head store_release
#endif
#ifdef HEAD_LOAD_RELAXED
#define load_head load_relaxed
#else
#define load_head load_acquire
#endif
#ifdef ONE_TOO_MANY
#define ROOM (SLOTS + 1)
#else
#define ROOM SLOTS
#endif

byte crashes;
byte durable[MESSAGES]; /* how often the effect of a record was made durable */
byte deaths_of_consumer;
#if REVOKES
bool revoked[MESSAGES];
byte revokes;

/* shmrt_hub__revoke of any record that was ever committed. */
inline revoke() {
	do
	:: revokes < REVOKES && tail > 0 ->
		revokes++;
		do
		:: record + 1 < tail -> record++
		:: break
		od;
		load_head(PRODUCER, HEAD, needed);
#ifdef CLAIM_OF_ANOTHER
		needed = 0;
#endif
		if
		:: record >= needed ->
			atomic {
				swap(PRODUCER, CLAIM(record), OFFERED, REVOKED, done);
				revoked[record] = revoked[record] || done;
				done = false
			}
		:: else
		fi;
		record = 0; needed = 0
	:: break
	od
}
#endif

#define MAY_DIE                                                   \
	if                                                        \
	:: crashes < CRASHES -> crashes++; goto died              \
	:: true                                                   \
	fi

/* The successor knows what the dead knew; without the notice it knows nothing. */
inline notice(me) {
#ifdef NO_NOTICE
	d_step {
		i_ = 0;
		do
		:: i_ < VIEWS -> seen[me].at[i_] = 0; i_++
		:: else -> break
		od;
		i_ = 0
	}
#else
	skip
#endif
}

proctype producer() {
	byte tail, head;
#if REVOKES
	byte record, needed;
	bool done;
#endif
attach:
	load_tail(PRODUCER, TAIL, tail);
	load_head(PRODUCER, HEAD, head);
	assert(tail - head <= SLOTS); /* positions_are_valid */
	do
	:: tail < MESSAGES ->
		MAY_DIE;
		do /* reserve */
		:: tail - head < ROOM -> break
		:: else ->
			load_head(PRODUCER, HEAD, head);
			if
			:: tail - head < ROOM
			:: else -> NEWS(PRODUCER, HEAD) /* FULL: comes again */
			fi
		od;
#ifdef PUBLISH_FIRST
		store_tail(PRODUCER, TAIL, tail + 1);
		MAY_DIE;
		cell_write(PRODUCER, tail % SLOTS, tail + 1);
#else
		cell_write(PRODUCER, tail % SLOTS, tail + 1);
#if REVOKES
		store_relaxed(PRODUCER, CLAIM(tail), OFFERED);
#endif
		MAY_DIE;
		store_tail(PRODUCER, TAIL, tail + 1); /* commit */
#endif
		tail++;
#if REVOKES
		revoke()
#endif
	:: else -> break
	od;
	goto over;
died:
	notice(PRODUCER);
	tail = 0; head = 0;
	goto attach;
over:
	skip
}

proctype consumer() {
	byte head, cursor, tail, record;
#if REVOKES
	bool mine;
#endif
attach:
	load_head(CONSUMER, HEAD, head);
	load_tail(CONSUMER, TAIL, tail);
#ifdef ATTACH_HEAD_ONLY
	cursor = tail; /* forgets what was not released */
#else
	cursor = head;
#endif
	assert(tail - head <= SLOTS);
	do
	:: cursor < MESSAGES ->
		MAY_DIE;
		do /* look_for_more */
		:: cursor != tail -> break
		:: else ->
			load_tail(CONSUMER, TAIL, tail);
			if
			:: cursor != tail
			:: else -> NEWS(CONSUMER, TAIL) /* EMPTY: comes again */
			fi
		od;
#ifdef RELEASE_FIRST
		store_head(CONSUMER, HEAD, cursor + 1);
		MAY_DIE;
#endif
		cell_read(CONSUMER, cursor % SLOTS, record);
		assert(record == cursor + 1);
		record = 0;
		MAY_DIE;
#if REVOKES
#ifdef CLAIM_STORES
		store_relaxed(CONSUMER, CLAIM(cursor), TAKEN);
		mine = true;
#else
		swap(CONSUMER, CLAIM(cursor), OFFERED, TAKEN, mine);
		assert(mine || revoked[cursor]);
#endif
#endif
		cursor++; /* advance */
#ifdef RELEASE_BEFORE_DURABLE
		store_head(CONSUMER, HEAD, cursor);
		head = cursor;
		MAY_DIE;
		durable[cursor - 1]++;
#else
#if REVOKES
		durable[cursor - 1] = durable[cursor - 1] + mine;
		mine = false;
		assert(!revoked[cursor - 1] || durable[cursor - 1] == 0);
#else
		durable[cursor - 1]++;
#endif
		assert(durable[cursor - 1] <= 1 + deaths_of_consumer);
		MAY_DIE;
#ifndef RELEASE_FIRST
		if /* release now, or with the records after it */
		:: store_head(CONSUMER, HEAD, cursor); head = cursor
		:: cursor < MESSAGES && cursor - head < SLOTS
		fi
#endif
#endif
	:: else -> break
	od;
	goto over;
died:
	deaths_of_consumer++;
	notice(CONSUMER);
	cursor = 0; tail = 0; record = 0; head = 0;
	goto attach;
over:
	cursor = 0;
	do
#if REVOKES
	:: cursor < MESSAGES -> assert(durable[cursor] == 1 || revoked[cursor]); cursor++
#else
	:: cursor < MESSAGES -> assert(durable[cursor] >= 1); cursor++
#endif
	:: else -> break
	od
}

init { atomic { run producer(); run consumer() } }
