/* block.pml -- native/arena.c and arena_reclaim.c: one block word between senders, a receiver, and the repair after a death.
 *
 *   proctype sender     shmrt__arena_take_block, the payload, shmrt_arena_move to SENT, the reference into a lane
 *   proctype receiver   shmrt_arena_move SENT -> HELD, a look at the payload, shmrt_arena_free; when a sender is dead and
 *                       drained, shmrt_arena_reclaim of its blocks; its own successor reclaims what it held itself
 *
 *   proctype second     shmrt_arena_reclaim by another process (SECONDS is 1), once the receiver has drained the lane of the dead:
 *                       at the same time as the receiver's own, or as late as you like
 *
 * A block word is state | owner << 2 | generation << 4, changed by compare-and-swap only. The payload is a cell: its race check
 * finds two owners, a reader that sees old bytes, and a writer that comes before the last reader is done. References travel in
 * lanes, which tell that the word has become SENT (edge L1) and here nothing else: for the payload, edges A1 and A2 stand on the
 * block word alone. Anybody may die between any two steps (CRASHES in all). Checked: each reference gives its own payload or is stale; no message of a living receiver is lost or seen twice; in
 * the end every block is FREE.
 *
 * Mutants: SENT_RELAXED TAKE_RELAXED FREE_RELAXED ALLOC_RELAXED NO_BUMP SENT_FIRST RECLAIM_BEFORE_DRAIN RECLAIM_ALIVE
 * NO_RECLAIM STORE_NOT_SWAP FREE_FIRST RECLAIM_STORES
 */
#ifndef SENDERS
#define SENDERS 2
#endif
#ifndef MESSAGES
#define MESSAGES 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef SECONDS
#define SECONDS 0
#endif

#define BLOCK 0
#define WORDS 1
#define CELLS 1
#define RECEIVER SENDERS /* senders are 0 .. SENDERS - 1; owners are one more: 0 is nobody */
#define SECOND (SENDERS + 1)
#define PROCESSES (SENDERS + 1 + SECONDS)
#ifndef HISTORY
#define HISTORY (2 + 4 * SENDERS * MESSAGES)
#endif
#include "memory.pml"

#define FREE 0
#define WRITING 1
#define SENT 2
#define HELD 3
#define PACK(state, owner, generation) ((state) | (owner) << 2 | (generation) << 4)
#define STATE(word) ((word) & 3)
#define OWNER(word) (((word) >> 2) & 3)
#define GENERATION(word) ((word) >> 4)
#ifdef NO_BUMP
#define NEXT_FREE(word) PACK(FREE, 0, GENERATION(word))
#else
#define NEXT_FREE(word) PACK(FREE, 0, GENERATION(word) + 1)
#endif
#define ID(sender, number) ((sender) * MESSAGES + (number) + 1)

#ifdef SENT_RELAXED
#define SENT_RELEASES false
#else
#define SENT_RELEASES true
#endif
#ifdef TAKE_RELAXED
#define TAKE_ACQUIRES false
#else
#define TAKE_ACQUIRES true
#endif
#ifdef FREE_RELAXED
#define FREE_RELEASES false
#else
#define FREE_RELEASES true
#endif
#ifdef ALLOC_RELAXED
#define ALLOC_ACQUIRES false
#else
#define ALLOC_ACQUIRES true
#endif

byte crashes;
byte sent[SENDERS];                      /* how many references stand in the sender's lane */
byte generation_of[SENDERS * MESSAGES];  /* the references */
byte sent_as[SENDERS * MESSAGES];        /* the store that made it SENT: whoever has the reference sees no older one */
byte released[SENDERS];                  /* the lane's head */
byte seen_times[SENDERS * MESSAGES];     /* how often a message was read */
bool dead[SENDERS], over[SENDERS];
bool drained[SENDERS];                   /* dead, and the receiver has had all that it sent */
bool in_hand[SENDERS * MESSAGES];        /* a receiver died between taking the block and having read it */

#define MAY_DIE                                                    \
	if                                                         \
	:: crashes < CRASHES -> crashes++; goto died               \
	:: true                                                    \
	fi

proctype sender(byte self) {
	byte number, word_, generation;
	bool done;
	do
	:: number < MESSAGES ->
		MAY_DIE;
		do
		:: load_relaxed(self, BLOCK, word_);
			if
			:: STATE(word_) == FREE ->
				generation = GENERATION(word_);
#ifdef STORE_NOT_SWAP
				store_release(self, BLOCK, PACK(WRITING, self + 1, generation));
				done = true;
#else
				swap_as(self, BLOCK, word_, PACK(WRITING, self + 1, generation), done, ALLOC_ACQUIRES, true);
#endif
				if
				:: done -> done = false; break
				:: else
				fi
			:: else -> NEWS(self, BLOCK) /* no block: comes again */
			fi
		od;
		word_ = 0;
		MAY_DIE;
#ifndef SENT_FIRST
		cell_write(self, 0, ID(self, number));
		MAY_DIE;
#endif
		swap_as(self, BLOCK, PACK(WRITING, self + 1, generation), PACK(SENT, self + 1, generation), done, true, SENT_RELEASES);
		assert(done); /* nobody changes the word of a living owner */
		done = false;
		MAY_DIE;
		d_step { 
			generation_of[self * MESSAGES + number] = generation;
			sent_as[self * MESSAGES + number] = seen[self].at[BLOCK];
			sent[self]++; number++; generation = 0 };
#ifdef SENT_FIRST
		MAY_DIE;
		cell_write(self, 0, ID(self, number - 1));
#endif
	:: else -> break
	od;
	atomic { over[self] = true; number = 0 };
	goto ended;
died:
	die(self);
	d_step { dead[self] = true; number = 0; word_ = 0; generation = 0; done = false };
ended:
	skip
}

/* shmrt_arena_reclaim; the word was loaded with acquire. */
inline reclaim(self, owner) {
	load_acquire(self, BLOCK, word_);
	if
	:: STATE(word_) != FREE && OWNER(word_) == owner ->
#ifdef RECLAIM_STORES
		store_release(self, BLOCK, NEXT_FREE(word_));
#else
		swap(self, BLOCK, word_, NEXT_FREE(word_), done);
		done = false
#endif
	:: else
	fi;
	word_ = 0
}

#ifdef RECLAIM_ALIVE
#define GIVEN_UP(s) (dead[s] || !over[s])
#else
#define GIVEN_UP(s) dead[s]
#endif
#define LETTER(s) (cursor[s] < sent[s])
#ifdef RECLAIM_BEFORE_DRAIN
#define TO_BURY(s) (GIVEN_UP(s) && !buried[s])
#else
#define TO_BURY(s) (GIVEN_UP(s) && !buried[s] && !LETTER(s))
#endif
#define DONE(s) (!LETTER(s) && (buried[s] || over[s]))
#if SENDERS == 1
#define WORK_OF_TWO false
#define ALL_DONE DONE(0)
#else
#define WORK_OF_TWO (LETTER(1) || TO_BURY(1))
#define ALL_DONE (DONE(0) && DONE(1))
#endif

#if SECONDS
bool second_over;

proctype second() {
	byte who, word_;
	bool done;
	do
	:: who < SENDERS ->
		if
		:: drained[who] ->
			atomic { join(seen[SECOND], seen[who]) }; /* the notice: edge F4 */
			reclaim(SECOND, who + 1)
		:: over[who]
		fi;
		who++
	:: else -> break
	od;
	atomic { who = 0; second_over = true }
}
#endif

proctype receiver() {
	byte from, cursor[SENDERS], word_, generation, id;
	bool done, buried[SENDERS];
serve:
	do
	:: atomic {
		if
		:: LETTER(0) || TO_BURY(0) -> from = 0
		:: WORK_OF_TWO -> from = SENDERS - 1
		:: ALL_DONE -> break
		fi };
		if
		:: LETTER(from) ->
			generation = generation_of[from * MESSAGES + cursor[from]];
			id = from * MESSAGES + cursor[from];
			if
			:: seen[RECEIVER].at[BLOCK] < sent_as[id] -> seen[RECEIVER].at[BLOCK] = sent_as[id]
			:: else
			fi;
			MAY_DIE;
			swap_as(RECEIVER, BLOCK, PACK(SENT, from + 1, generation), PACK(HELD, RECEIVER + 1, generation), done,
				TAKE_ACQUIRES, true);
			if
			:: done ->
				in_hand[id] = true;
				done = false;
				MAY_DIE;
#ifdef FREE_FIRST
				swap(RECEIVER, BLOCK, PACK(HELD, RECEIVER + 1, generation), PACK(FREE, 0, generation + 1), done);
				MAY_DIE;
				cell_read(RECEIVER, 0, word_);
				assert(word_ == id + 1);
				d_step { seen_times[id]++; in_hand[id] = false; word_ = 0; done = false };
#else
				cell_read(RECEIVER, 0, word_);
				assert(word_ == id + 1);
				d_step { seen_times[id]++; in_hand[id] = false; word_ = 0 };
				assert(seen_times[id] == 1);
				MAY_DIE;
				swap_as(RECEIVER, BLOCK, PACK(HELD, RECEIVER + 1, generation),
					NEXT_FREE(PACK(HELD, RECEIVER + 1, generation)), done, true, FREE_RELEASES);
				assert(done);
				done = false
#endif
			:: else -> assert(seen_times[id] == 1 || in_hand[id]) /* STALE: a predecessor had it */
			fi;
			d_step { id = 0; generation = 0; cursor[from]++ };
			MAY_DIE;
			released[from] = cursor[from] /* shmrt_lane_release */
		:: TO_BURY(from) ->
#ifndef RECLAIM_ALIVE
			atomic { join(seen[RECEIVER], seen[from]) }; /* the notice: edge F4 */
#endif
			MAY_DIE;
			drained[from] = true;
#ifndef NO_RECLAIM
			reclaim(RECEIVER, from + 1);
#endif
			buried[from] = true
		fi
	od;
	goto ended;
died:
	die(RECEIVER);
	d_step {
		done = false; from = 0; word_ = 0; generation = 0; id = 0;
		do
		:: from < SENDERS -> cursor[from] = released[from]; buried[from] = false; from++
		:: else -> break
		od;
		from = 0
	};
#ifndef NO_RECLAIM
	reclaim(RECEIVER, RECEIVER + 1); /* the successor, once its predecessor is gone */
#endif
	goto serve;
ended:
#if SECONDS
	second_over;
#endif
	assert(STATE(FINAL(BLOCK)) == FREE);
	from = 0;
	do
	:: from < SENDERS * MESSAGES -> assert(seen_times[from] == 1 || in_hand[from] || (from % MESSAGES) >= sent[from / MESSAGES]); from++
	:: else -> break
	od
}

init {
	byte n;
	atomic {
		do
		:: n < SENDERS -> run sender(n); n++
		:: else -> break
		od;
		n = 0;
		run receiver();
#if SECONDS
		run second()
#endif
	}
}
