/* granule.pml -- native/arena.c, arena_grow.c, arena_reclaim.c: memory is behind every block that somebody has.
 *
 *   proctype user      shmrt_arena_alloc: search_granules with shmrt__arena_take_block, else shmrt__arena_grow; use; free
 *   proctype trimmer   trim_run
 *   proctype keeper    shmrt_arena_reclaim, once a death is told; it may die in it, and its successor does both
 *   proctype one_of_two  the same when KEEPERS is 2: both reclaim after every death, each when it comes to it, and what one of
 *                      them leaves when it dies is the other's
 *
 * One granule word, one block word. The memory is a cell: 1 when it is reserved; reserving, using and returning it must be
 * ordered, or the race check says so. Anybody may die between any two steps (CRASHES in all). Checked: whoever has a block has
 * memory; in the end the block is FREE, and the granule is FREE without memory or HEAD with it.
 *
 * Mutants: LOOKS_RELAXED HEAD_RELAXED HEAD_FIRST NO_SECOND_LOOK TRIM_TAKES_NO_BLOCK FREE_RELAXED PUNCH_LAST
 * NO_RECLAIM RECLAIM_ALIVE RECLAIM_KEEPS_BLOCK NO_TAKE_OVER
 */
#ifndef USERS
#define USERS 2
#endif
#ifndef KEEPERS
#define KEEPERS 1
#endif
#ifndef ALLOCS
#define ALLOCS 1
#endif
#ifndef TRIMS
#define TRIMS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#define GRANULE 0
#define BLOCK 1
#define WORDS 2
#define CELLS 1
#define MEMORY 0
#define TRIMMER USERS
#define KEEPER (USERS + 1)
#define PROCESSES (USERS + 1 + KEEPERS)
#ifndef HISTORY
#define HISTORY 20
#endif
#include "memory.pml"

#define FREE 0
#define CLAIMED(owner) (1 | ((owner) + 1) << 2)
#define HEAD 2
#define WRITING(owner, generation) (1 | ((owner) + 1) << 2 | (generation) << 5)
#define STATE(word) ((word) & 3)
#define OWNER(word) (((word) >> 2) & 7)
#define GENERATION(word) ((word) >> 5)
#define NEXT_FREE(word) (((GENERATION(word) + 1) & 7) << 5)

#ifdef LOOKS_RELAXED
#define look_at_granule load_relaxed
#else
#define look_at_granule load_acquire
#endif
#ifdef HEAD_RELAXED
#define HEAD_RELEASES false
#else
#define HEAD_RELEASES true
#endif
#ifdef FREE_RELAXED
#define FREE_RELEASES false
#else
#define FREE_RELEASES true
#endif

byte crashes, ended;
bool dead[PROCESSES];

#define MAY_DIE                                                    \
	if                                                         \
	:: crashes < CRASHES -> crashes++; goto died               \
	:: true                                                    \
	fi

/* shmrt__arena_take_block: taken, or not. */
inline take_block(wanted) {
	taken = false;
	load_relaxed(self, BLOCK, block);
	if
	:: STATE(block) == FREE ->
		swap(self, BLOCK, block, WRITING(self, GENERATION(block)), done);
		if
		:: done ->
			done = false;
			block = WRITING(self, GENERATION(block));
#ifdef NO_SECOND_LOOK
			taken = true
#else
			look_at_granule(self, GRANULE, again);
			if
			:: again == wanted -> taken = true
			:: else ->
				swap(self, BLOCK, block, NEXT_FREE(block), done);
				done = false
			fi;
			again = 0
#endif
		:: else
		fi
	:: else
	fi
}

proctype user(byte self) {
	byte allocs, granule, block, again, memory;
	bool done, taken;
	do
	:: allocs < ALLOCS ->
		do
		:: look_at_granule(self, GRANULE, granule);
			MAY_DIE;
			if
			:: granule == HEAD ->
				take_block(HEAD);
				if
				:: taken -> break
				:: else -> /* no block: comes again, when something has changed */
					NEWS(self, BLOCK) || NEWS(self, GRANULE) || STATE(FINAL(BLOCK)) == FREE
				fi
			:: granule == FREE ->
				swap(self, GRANULE, FREE, CLAIMED(self), done);
				if
				:: done ->
					done = false;
					MAY_DIE;
#ifdef HEAD_FIRST
					swap(self, GRANULE, CLAIMED(self), HEAD, done);
					done = false;
					MAY_DIE;
					cell_write(self, MEMORY, 1);
#else
					cell_write(self, MEMORY, 1); /* fallocate */
					MAY_DIE;
					if
					:: take_block(CLAIMED(self))
					:: true /* the word of this model is another block of the run */
					fi;
					MAY_DIE;
					swap_as(self, GRANULE, CLAIMED(self), HEAD, done, true, HEAD_RELEASES);
					assert(done); /* nobody changes the words of a living owner */
					done = false;
					MAY_DIE;
					if
					:: taken -> break
					:: else
					fi
#endif
				:: else
				fi
			:: granule != HEAD && granule != FREE -> NEWS(self, GRANULE)
			fi
		od;
		MAY_DIE;
		cell_read(self, MEMORY, memory);
		assert(memory == 1);
		memory = 0;
		MAY_DIE;
		swap_as(self, BLOCK, block, NEXT_FREE(block), done, true, FREE_RELEASES);
		assert(done);
		done = false; taken = false; block = 0; granule = 0;
		allocs++
	:: else -> break
	od;
	goto over;
died:
	die(self);
	dead[self] = true;
over:
	atomic { allocs = 0; granule = 0; block = 0; again = 0; memory = 0; done = false; taken = false; ended++ }
}

proctype trimmer() {
	byte trims, granule, block;
	bool done;
	do
	:: trims < TRIMS ->
		trims++;
		load_acquire(TRIMMER, GRANULE, granule);
		if
		:: granule == HEAD ->
			MAY_DIE;
			load_relaxed(TRIMMER, BLOCK, block);
			if
			:: STATE(block) == FREE ->
#ifndef TRIM_TAKES_NO_BLOCK
				swap(TRIMMER, BLOCK, block, WRITING(TRIMMER, GENERATION(block)), done);
#else
				done = true;
#endif
				if
				:: done ->
					done = false;
					block = WRITING(TRIMMER, GENERATION(block));
					MAY_DIE;
					swap(TRIMMER, GRANULE, HEAD, CLAIMED(TRIMMER), done);
					if
					:: done ->
						done = false;
						MAY_DIE;
#ifndef PUNCH_LAST
						cell_write(TRIMMER, MEMORY, 0);
						MAY_DIE;
#endif
						swap(TRIMMER, BLOCK, block, NEXT_FREE(block), done);
						done = false;
						MAY_DIE;
						swap(TRIMMER, GRANULE, CLAIMED(TRIMMER), FREE, done);
						done = false;
#ifdef PUNCH_LAST
						MAY_DIE;
						cell_write(TRIMMER, MEMORY, 0)
#endif
					:: else ->
						swap(TRIMMER, BLOCK, block, NEXT_FREE(block), done);
						done = false
					fi
				:: else
				fi
			:: else
			fi;
			block = 0
		:: else
		fi;
		granule = 0
	:: else -> break
	od;
	goto over;
died:
	die(TRIMMER);
	dead[TRIMMER] = true;
over:
	atomic { trims = 0; granule = 0; block = 0; done = false; ended++ }
}

inline reclaim(self, who) {
#ifndef RECLAIM_KEEPS_BLOCK
	load_acquire(self, BLOCK, block);
	if
	:: STATE(block) != FREE && OWNER(block) == who + 1 ->
		swap(self, BLOCK, block, NEXT_FREE(block), done);
		done = false
	:: else
	fi;
	block = 0;
#endif
	load_acquire(self, GRANULE, granule);
	if
	:: STATE(granule) == 1 && OWNER(granule) == who + 1 ->
		MAY_DIE;
#ifdef NO_TAKE_OVER
		done = true;
#else
		swap(self, GRANULE, granule, CLAIMED(self), done);
#endif
		if
		:: done ->
			MAY_DIE;
			cell_write(self, MEMORY, 0); /* release_run: punch, then let the head go */
			MAY_DIE;
#ifdef NO_TAKE_OVER
			swap(self, GRANULE, granule, FREE, done)
#else
			swap(self, GRANULE, CLAIMED(self), FREE, done)
#endif
		:: else
		fi
	:: else
	fi;
	granule = 0; done = false
}

#if KEEPERS == 1
proctype keeper() {
	byte who, granule, block;
	bool done;
serve:
	do
	:: who < KEEPER && dead[who] ->
		atomic { join(seen[KEEPER], seen[who]) }; /* the notice: edge F4 */
#ifndef NO_RECLAIM
		reclaim(KEEPER, who);
#endif
		dead[who] = false
#ifdef RECLAIM_ALIVE
	:: who < KEEPER && ended == 0 -> reclaim(KEEPER, who); break
#endif
	:: who < KEEPER && !dead[who] && dead[(who + 1) % KEEPER] -> who = (who + 1) % KEEPER
	:: who < KEEPER && !dead[who] && !dead[(who + 1) % KEEPER] && dead[(who + 2) % KEEPER] -> who = (who + 2) % KEEPER
	:: ended == KEEPER && !dead[0] && !dead[1] && (KEEPER < 3 || !dead[KEEPER - 1]) -> break
	od;
	goto over;
died:
	die(KEEPER);
	granule = 0; block = 0; done = false;
	reclaim(KEEPER, KEEPER); /* the successor, which then looks at the others again: `dead` still says so */
	goto serve;
over:
	ended == KEEPER;
	assert(STATE(FINAL(BLOCK)) == FREE);
	assert(FINAL(GRANULE) == FREE && cell[MEMORY] == 0 || FINAL(GRANULE) == HEAD && cell[MEMORY] == 1)
}
#else

bool done_with[KEEPERS]; /* its work is over */

#define OTHER (2 * KEEPER + 1 - self)
#define TO_BURY(n) (dead[n] && !buried[n])

proctype one_of_two(byte self) {
	byte who, granule, block;
	bool done, buried[PROCESSES];
	do
	:: atomic {
		if
		:: TO_BURY(0) -> who = 0
		:: USERS > 1 && TO_BURY(USERS - 1) -> who = USERS - 1
		:: TO_BURY(TRIMMER) -> who = TRIMMER
		:: TO_BURY(OTHER) -> who = OTHER
		:: ended == KEEPER && !TO_BURY(0) && !TO_BURY(USERS - 1) && !TO_BURY(TRIMMER) ->
			done_with[self - KEEPER] = true;
			(done_with[OTHER - KEEPER] || dead[OTHER]) && !TO_BURY(OTHER);
			break
		fi };
		atomic { join(seen[self], seen[who]) }; /* the notice: edge F4 */
		reclaim(self, who);
		d_step { buried[who] = true; who = 0 }
	od;
	assert(STATE(FINAL(BLOCK)) == FREE);
	assert(FINAL(GRANULE) == FREE && cell[MEMORY] == 0 || FINAL(GRANULE) == HEAD && cell[MEMORY] == 1);
	goto over;
died:
	die(self);
	atomic { granule = 0; block = 0; done = false; who = 0; dead[self] = true };
over:
	skip
}
#endif

init {
	byte n;
	atomic {
		do
		:: n < USERS -> run user(n); n++
		:: else -> break
		od;
		n = 0;
		run trimmer();
#if KEEPERS == 1
		run keeper()
#else
		run one_of_two(KEEPER);
		run one_of_two(KEEPER + 1)
#endif
	}
}
