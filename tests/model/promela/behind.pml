/* behind.pml -- native/hub_wheel.c: while others are parked, the hub's thread sleeps behind them on the same bell.
 *
 *   proctype worker     publishes RESULTS outcomes; shmrt_worker_ring_hub after each: it rings, or defers that if it has rung
 *                       lately (window), or dies (CRASHES)
 *   proctype waiter     shmrt_hub_park for outcomes, VISITS times: woken by a ring, or its time is over, and then it leaves
 *                       without a look, since it waited for something else; whoever a ring has woken stands in (stand_in)
 *   proctype sleeper    thread_main: pumps, decides whether to sleep lazily, parks; for good. A ring wakes it only if it
 *                       woke nobody else
 *   proctype watcher    shmrt_hub_watch of the tasks, at any time
 *   proctype undertaker what the root does after a death: all bells are rung
 *   proctype clock      the time after which the worker does not defer any more, and a short sleep ends
 *
 * Who sleeps on the bell beside the hub's thread, and what it waits for itself, is in park.pml. Checked: when nothing moves any
 * more, what is watched was taken out of the lane. The memory is sequentially consistent here (bell.pml has the edge).
 *
 * Mutants: NOBODY_BEHIND NO_STAND_IN NO_ARM_STANDING_IN SLEEPS_ON_BEHIND NOT_LAZY_BEHIND LAZY_STANDING_IN
 * WINDOW_IN_ANY_CASE BEHIND_FOR_EVER
 */
#ifndef RESULTS
#define RESULTS 2
#endif
#ifndef VISITS
#define VISITS 2
#endif
#ifndef WAITERS
#define WAITERS 1
#endif
#ifndef WATCHES
#define WATCHES RESULTS
#endif
#ifndef CRASHES
#define CRASHES 0
#endif

#define SLEEPER WAITERS /* 2 at most */

byte bell; /* the word */
byte words[3], armed; /* the word that each sleeps on; what it was when a short sleep of the sleeper ended by itself */
byte lane, parked;
bool asleep[3];
byte taken, watched; /* out of the lane; of how many somebody wants to be told */
bool dead;
bool lazy;    /* the sleeper sleeps lazily, and nobody has told it otherwise */
bool behind;  /* it sleeps behind */
bool bounded; /* its sleep ends by itself */
bool window;  /* the time after a ring of the worker */

#define WANTS_SOON (taken < watched)

/* The code counts. What matters is that no sleeper knows the number. */
#define IN_USE(n) (bell == n || words[0] == n || words[1] == n || words[2] == n || armed == n)
byte free;
inline fresh(word) {
	free = 2;
	do
	:: IN_USE(free) -> free++
	:: else -> break
	od;
	word = free;
	free = 0
}

#define WAKE(n) asleep[n] = false
inline wake_all() {
	WAKE(0);
	WAKE(1);
	WAKE(2)
}

/* FUTEX_WAKE_BITSET with the mask of those in front: whether there was one. */
inline wake_front(woke) {
	d_step {
		woke = asleep[0] || (WAITERS == 2 && asleep[1]) || (asleep[SLEEPER] && !behind);
		asleep[0] = false;
		asleep[1] = asleep[1] && SLEEPER == 1;
		asleep[SLEEPER] = asleep[SLEEPER] && behind
	}
}

/* ..., then with the other mask. */
inline wake_behind(woke) {
#ifdef NOBODY_BEHIND
	woke = false
#else
	d_step {
		asleep[SLEEPER] = asleep[SLEEPER] && woke;
		woke = false
	}
#endif
}

inline arm(word, urgent) {
	d_step {
		if
		:: bell >= 2 || (bell == 1 && !urgent) -> word = bell
		:: else ->
			if
			:: urgent -> fresh(word)
			:: else -> word = 1
			fi;
			bell = word
		fi
	}
}

#define MAY_DIE                                 \
	if                                      \
	:: CRASHES > 0 -> dead = true; goto over \
	:: true                                 \
	fi

proctype worker() {
	byte made;
	bool woke;
	do
	:: made < RESULTS ->
		MAY_DIE;
		d_step { lane++; made++ };
		if
		:: bell < 2
		:: bell >= 2 ->
			if
			:: window
			:: !window ->
				window = true;
				MAY_DIE;
				d_step { woke = bell != 0; bell = 0 };
				MAY_DIE;
				if
				:: woke -> wake_front(woke); MAY_DIE; wake_behind(woke)
				:: else
				fi
			fi
		fi
	:: else -> break
	od;
over:
	skip
}

/* shmrt_hub_pump: from the lane to outcomes. It tells those who are parked for them; of whom a ring would wake one here, or the
 * sleeper if there is none: which can only help. */
inline pump() {
	d_step { taken = taken + lane; lane = 0 }
}

/* What the sleeper would have done, had the ring woken it. */
inline stand_in(urgent, wake) {
	if
	:: behind ->
#ifndef NO_ARM_STANDING_IN
#ifdef LAZY_STANDING_IN
		urgent = WANTS_SOON;
		arm(words[me], urgent);
		urgent = false;
#else
		d_step { /* the code takes the time before, and has said it after; so late, it defers nothing any more */
#ifdef WINDOW_IN_ANY_CASE
			window = true;
#else
			window = window || bell == 0; /* else somebody has armed it since the ring, and may sleep on it already */
#endif
			if
			:: bell < 2 -> fresh(bell)
			:: else
			fi
		};
#endif
		words[me] = 0;
#endif
		pump();
		d_step { /* under the mutex */
			wake = behind && WANTS_SOON && !bounded;
#ifdef SLEEPS_ON_BEHIND
			wake = false;
#endif
#ifndef NOT_LAZY_BEHIND
			lazy = lazy || (behind && !WANTS_SOON);
#endif
			behind = behind && !wake
		};
		if
		:: wake -> d_step { wake = false; WAKE(SLEEPER) } /* if it does not sleep yet, it expects another number */
		:: else
		fi
	:: else
	fi
}

proctype waiter(byte me) {
	byte visits;
	bool urgent, wake, slept;
	do
	:: visits < VISITS ->
		d_step { visits++; parked++ };
		arm(words[me], true);
		if
		:: lane != 0 -> d_step { words[me] = 0; parked--; }
		:: lane == 0 ->
			atomic {
				if
				:: bell == words[me] -> asleep[me] = true; slept = true
				:: else
				fi
			};
end_asleep:
			if
			:: d_step { !asleep[me] -> words[me] = 0; parked-- };
#ifndef NO_STAND_IN
				if
				:: slept -> slept = false; stand_in(urgent, wake)
				:: else /* whoever took the bell wakes somebody else */
				fi
#endif
			:: d_step { asleep[me] -> asleep[me] = false; slept = false; words[me] = 0; parked-- } /* its time is over */
			fi
		fi
	:: visits < VISITS -> break
	:: else -> break
	od
}

/* thread_main. */
proctype sleeper() {
	bool urgent, work, quiet, brief;
	do
	:: pump();
		urgent = WANTS_SOON; /* shmrt_hub_is_urgent, under the mutex */
		arm(words[SLEEPER], urgent);
		d_step { /* the look under the mutex */
			work = lane != 0 || (!urgent && WANTS_SOON);
			lazy = !urgent && !work;
			brief = urgent && !(quiet && armed == words[SLEEPER]);
			behind = !work && parked > 0;
			bounded = !work && brief;
			armed = (brief -> 0 : armed);
			quiet = quiet && !brief;
			urgent = false
		};
		if
		:: work -> d_step { work = false; brief = false; words[SLEEPER] = 0; behind = false; bounded = false }
		:: else ->
			atomic {
				if
				:: bell == words[SLEEPER] -> asleep[SLEEPER] = true
				:: else
				fi
			};
end_asleep:
			if
			:: d_step { !asleep[SLEEPER] -> brief = false; quiet = false; armed = 0 }
#ifndef BEHIND_FOR_EVER
			:: d_step { brief && asleep[SLEEPER] && !window -> asleep[SLEEPER] = false; brief = false; quiet = true; armed = words[SLEEPER] }
#else
			:: d_step {
				brief && asleep[SLEEPER] && !window && !behind ->
					asleep[SLEEPER] = false; brief = false; quiet = true; armed = words[SLEEPER]
				}
#endif
			fi;
			d_step { lazy = false; behind = false; bounded = false; words[SLEEPER] = 0 } /* under the mutex */
		fi
	od
}

/* Somebody wants to be told of the tasks: a callback, or a wait for several. shmrt_hub_make_urgent. */
proctype watcher() {
	bool told;
	byte number;
	do
	:: watched < WATCHES ->
		watched++; /* under the mutex */
		if
		:: lazy ->
			d_step { told = lazy && window; lazy = false };
			d_step {
				if
				:: bell == 1 -> fresh(number); bell = number; number = 0
				:: else
				fi
			};
			pump();
			if
			:: told -> d_step { told = false; bell = 0; wake_all() } /* shmrt_bell_ring_always */
			:: else
			fi
		:: !lazy
		fi
	:: else -> break
	od
}

proctype undertaker() {
end_watching:
	dead -> d_step { taken = RESULTS; lane = 0 }; /* what it had published counts, the rest is decided */
	d_step { bell = 0; wake_all() }
}

proctype clock() {
end_clock:
	do
	:: window -> window = false
	od
}

proctype judge() {
	timeout;
	assert(!WANTS_SOON)
}

init {
	atomic {
		run worker();
		run waiter(0);
		if
		:: WAITERS == 2 -> run waiter(1)
		:: else
		fi;
		run sleeper();
		run watcher();
		run undertaker();
		run clock();
		run judge()
	}
}
