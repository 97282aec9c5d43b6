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
 * Mutants: TAIL_STORE_RELAXED TAIL_LOAD_RELAXED HEAD_STORE_RELAXED HEAD_LOAD_RELAXED PUBLISH_FIRST RELEASE_FIRST
 * RELEASE_BEFORE_DURABLE ONE_TOO_MANY NO_NOTICE ATTACH_HEAD_ONLY
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

#define TAIL 0
#define HEAD 1
#define WORDS 2
#define CELLS SLOTS
#define PRODUCER 0
#define CONSUMER 1
#define PROCESSES 2
#define HISTORY (MESSAGES + 2)
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
		MAY_DIE;
		store_tail(PRODUCER, TAIL, tail + 1); /* commit */
#endif
		tail++
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
		cursor++; /* advance */
#ifdef RELEASE_BEFORE_DURABLE
		store_head(CONSUMER, HEAD, cursor);
		head = cursor;
		MAY_DIE;
		durable[cursor - 1]++;
#else
		durable[cursor - 1]++;
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
	:: cursor < MESSAGES -> assert(durable[cursor] >= 1); cursor++
	:: else -> break
	od
}

init { atomic { run producer(); run consumer() } }
