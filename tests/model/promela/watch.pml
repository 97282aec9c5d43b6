/* watch.pml -- native/watch.c and slots.c: the root's watch hears of the death of whoever held a death mutex.
 *
 *   proctype claimer   shmrt_slot_claim: EMPTY -> STARTING, shmrt_watch_poke; then it starts the worker
 *   proctype worker    shmrt_slot_hold_death_mutex: pthread_mutex_trylock, then FUTEX_WAITERS; and the kernel at its death
 *   proctype watch     shmrt_slots_watch: announced, fence, look_at_slot, sleep_on_all (futex_waitv on the death word and the poke)
 *
 * The kernel wakes a sleeper on the death word only when FUTEX_WAITERS stands in it. The worker may die at any step. Checked:
 * who dies after shmrt_slot_hold_death_mutex is reported; nothing keeps a worker from its own mutex. (Who dies between the lock
 * and FUTEX_WAITERS, while the watch sleeps on a word that said 0, is left to its pidfd: WAITERS_TOO_LATE shows it.)
 *
 * Mutants: NO_FENCE_IN_POKE NO_FENCE_IN_WATCH NO_POKE NO_WAITERS_BY_OWNER WAITERS_IN_FREE_WORD
 * WAITERS_TOO_LATE
 */
#define STATE 0
#define DEATH 1
#define POKE 2
#define WATCHERS 3
#define WORDS 4
#define CELLS 1
#define CLAIMER 0
#define WORKER 1
#define WATCH 2
#define PROCESSES 3
#ifndef HISTORY
#define HISTORY 10
#endif
#include "memory.pml"

#define EMPTY 0
#define STARTING 1
#define TID 1
#define WAITERS 2
#define DIED 4
#define SLEEPS_ON_WORD (state != EMPTY)

bool asleep, on_word, reported, started, holds, dead;

#define MAY_DIE                                                    \
	if                                                         \
	:: goto died                                               \
	:: true                                                    \
	fi

inline wake(me) { d_step { join(kernel, seen[me]); asleep = false } }

proctype claimer() {
	byte watchers, old;
	bool done;
	store_relaxed(CLAIMER, DEATH, 0); /* shmrt_mutex_make */
	swap(CLAIMER, STATE, EMPTY, STARTING, done);
#ifndef NO_FENCE_IN_POKE
	fence(CLAIMER);
#endif
#ifndef NO_POKE
	load_relaxed(CLAIMER, WATCHERS, watchers);
	if
	:: watchers == 0
	:: else ->
		exchange(CLAIMER, POKE, 1, old);
		wake(CLAIMER)
	fi;
#endif
	started = true
}

proctype worker() {
	byte old;
	bool done;
	started;
	atomic { join(seen[WORKER], seen[CLAIMER]) };
	MAY_DIE;
	swap(WORKER, DEATH, 0, TID, done);
	assert(done);
#ifdef WAITERS_TOO_LATE
	holds = true;
#endif
	MAY_DIE;
#ifndef NO_WAITERS_BY_OWNER
	exchange(WORKER, DEATH, TID | WAITERS, old); /* atomic_fetch_or */
#endif
	holds = true;
	MAY_DIE;
	skip;
died:
	/* exit_robust_list: only a word that names the dead; a sleeper is woken only if one is said to be there. */
	die(WORKER);
	atomic {
		old = FINAL(DEATH);
		if
		:: old & TID ->
			d_step { replace(WORKER, DEATH, DIED | (old & WAITERS), true, true) };
			if
			:: old & WAITERS -> d_step { join(kernel, seen[WORKER]); asleep = asleep && !on_word }
			:: else
			fi;
			dead = holds
		:: else
		fi
	}
}

proctype watch() {
	byte poked, now, state, value;
	bool done;
	store_relaxed(WATCH, WATCHERS, 1);
#ifndef NO_FENCE_IN_WATCH
	fence(WATCH);
#endif
	do
	:: load_acquire(WATCH, POKE, poked);
		load_acquire(WATCH, STATE, state);
		value = 0;
		if
		:: SLEEPS_ON_WORD ->
			load_acquire(WATCH, DEATH, value);
			if
#ifdef WAITERS_IN_FREE_WORD
			:: !(value & DIED) && !(value & WAITERS) ->
#else
			:: (value & TID) && !(value & WAITERS) ->
#endif
				swap(WATCH, DEATH, value, value | WAITERS, done);
				if
				:: done -> value = value | WAITERS; done = false
				:: else -> load_acquire(WATCH, DEATH, value) /* the failed swap says what stands there */
				fi
			:: else
			fi;
			if
			:: value & DIED -> reported = true; break
			:: else
			fi
		:: else
		fi;
		atomic { /* futex_waitv */
			join(seen[WATCH], kernel);
			choose(WATCH, POKE);
			now = word[POKE].store[pick_].value; seen[WATCH].at[POKE] = pick_; pick_ = 0;
			asleep = (now == poked);
			now = 0;
			on_word = SLEEPS_ON_WORD;
			if
			:: on_word ->
				choose(WATCH, DEATH);
				now = word[DEATH].store[pick_].value; seen[WATCH].at[DEATH] = pick_; pick_ = 0;
				asleep = asleep && (now == value);
				now = 0
			:: else
			fi
		};
end_asleep:
		!asleep;
		on_word = false;
		atomic { join(seen[WATCH], kernel) }
	od
}

proctype judge() {
	timeout;
	assert(!dead || reported)
}

init {
	atomic {
		run claimer();
		run worker();
		run watch();
		run judge()
	}
}
