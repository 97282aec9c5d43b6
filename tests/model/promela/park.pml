/* park.pml -- native/hub_wheel.c: threads of one hub sleep on one bell, and what one finds another may wait for.
 *
 *   proctype worker     publishes RESULTS outcomes for the thread of its number; shmrt_worker_ring_hub after each: it rings, or
 *                       defers that if any of them has rung lately (window), or dies (CRASHES in all). Or the outcome comes
 *                       without it
 *   proctype thread     shmrt_py_hub_wait: a look, shmrt_hub_pump, shmrt_hub_park, until it has all of its own outcomes
 *   proctype hub        thread_main: decides the tasks of the dead, rings all after a death; pumps PUMPS times at most, and arms
 *                       ARMS times at most
 *   proctype sleeper    thread_main, when WATCHES > 0: pumps, decides whether to sleep lazily (shmrt_hub_is_urgent), parks; for good
 *   proctype watcher    shmrt_hub_watch of a task that may be anywhere by then; nobody waits for its outcome with a look of its
 *                       own. WATCHES tasks, each with a worker
 *   proctype clock      the time after which a worker does not defer any more, and a short sleep ends
 *
 * Any of them takes everything out of the lanes that is there, for whomever. Checked: when nothing moves any more, every
 * thread has all its outcomes, and each watched task has been taken out of its lane. None has a timer but that of its short
 * sleeps (SHMRT_RING_EVERY_NS).
 *
 * A worker defers whenever it has rung lately, whether or not it has another task. The code spares the ring of make_urgent when no
 * task waits behind another, and shmrt_hub_submit makes up for it when one comes.
 *
 * The memory is sequentially consistent here: the Dekker edge between a worker and an arming thread is in bell.pml, everything
 * else is under the hub's mutex, or the kernel's lock.
 *
 * Mutants: SAME_NUMBER NO_TELL NO_SEEN NO_SHORT_SLEEP SHORT_SLEEP_ONCE PARKED_TOO_LATE NO_RING_AFTER_DEATH
 * TELL_FIRST NO_SECOND_LOOK NO_MAKE_URGENT BY_THE_BELL LAZY_FIRST URGENT_WITHOUT_PUMP
 * NO_RING_IN_WINDOW WINDOWS_TOO_LATE KEEPS_LAZY_BELL
 */
#ifndef THREADS
#define THREADS 2
#endif
#ifndef WATCHES
#define WATCHES 0
#endif
#ifndef RESULTS
#define RESULTS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef PUMPS
#define PUMPS 1
#endif
#ifndef ARMS
#define ARMS 1
#endif

#define LANES (THREADS + WATCHES) /* 3 at most; first those of the threads */
#define SLEEPER LANES

byte bell, numbers = 1; /* the word, and the last number that it had */
byte lane[LANES], taken[LANES], had[LANES]; /* published; out of the lane; known to the thread */
byte finished, parked, crashes;
bool lazy; /* the sleeper sleeps lazily, and nobody has told it otherwise */
bool window; /* the time after a ring of a worker, for all of them */
bool dead[LANES], watched[LANES], asleep[LANES + 1];

#define OF_ALL_LANES(what) (what(0) && what(LANES / 2) && what(LANES - 1))
#define IS_EMPTY(n) (lane[n] == 0)
#define NOBODY_WAITS(n) (!watched[n] || taken[n] == RESULTS)
#define LANES_EMPTY OF_ALL_LANES(IS_EMPTY)
#define WINDOWS_SHUT (!window)
#define WANTS_SOON !OF_ALL_LANES(NOBODY_WAITS)

inline wake() {
	d_step {
		i_ = 0;
		do
		:: i_ <= LANES -> asleep[i_] = false; i_++
		:: else -> break
		od;
		i_ = 0
	}
}
byte i_;

#define MAY_DIE                                                    \
	if                                                         \
	:: crashes < CRASHES -> crashes++; goto died               \
	:: true                                                    \
	fi

/* shmrt_bell_ring */
inline ring(old) {
	if
	:: bell == 0
	:: bell != 0 ->
		d_step { old = bell; bell = 0 };
		if
		:: old == 0
		:: else -> old = 0; wake()
		fi
	fi
}

inline ring_or_die(old) {
	MAY_DIE;
	d_step { old = bell; bell = 0 };
	MAY_DIE;
	if
	:: old == 0
	:: else -> old = 0; wake()
	fi
}

proctype worker(byte me) {
	byte made, old;
	bool tell;
	do
	:: made < RESULTS -> /* no worker: cancelled, killed in the backlog, over its deadline, or completed by hand */
#ifdef TELL_FIRST
		tell = parked > 0;
		d_step { taken[me]++; made++; finished++ };
#else
		d_step { taken[me]++; made++; finished++; tell = parked > 0 };
#endif
#ifdef NO_TELL
		tell = false;
#endif
		if
		:: tell -> tell = false; ring(old)
		:: else
		fi
	:: made < RESULTS ->
		MAY_DIE;
		d_step { lane[me]++; made++ };
		MAY_DIE;
		if
		:: bell < 2 /* nobody, or lazily */
		:: bell >= 2 ->
			if
			:: window /* deferred: it is busy with the next task, for as long as you like */
			:: !window ->
				window = true; /* in truth after the ring, so that nobody defers by one of a stopped process */
				ring_or_die(old)
			fi
		fi
	:: else -> break
	od;
	goto over;
died:
	dead[me] = true;
over:
	skip
}

/* Under the mutex: from lanes to outcomes. */
inline find(moved) {
	d_step {
		i_ = 0;
		moved = false;
		do
		:: i_ < LANES ->
			if
			:: lane[i_] > 0 -> taken[i_] = taken[i_] + lane[i_]; lane[i_] = 0; finished++; moved = true
			:: else
			fi;
			i_++
		:: else -> break
		od;
		i_ = 0
	}
}

/* ..., then shmrt_hub__unlock_and_tell. */
inline pump(moved, tell, old) {
	atomic {
		find(moved);
		tell = moved && parked > 0
	};
#ifdef NO_TELL
	tell = false;
#endif
	if
	:: tell -> tell = false; ring(old)
	:: else
	fi
}

inline arm(word, urgent) {
	atomic {
		if
		:: bell >= 2 || (bell == 1 && !urgent) -> word = bell
		:: else ->
			if
			:: urgent ->
#ifdef SAME_NUMBER
				word = 2
#else
				numbers++;
				word = numbers
#endif
			:: else -> word = 1
			fi;
			bell = word
		fi
	}
}

/* shmrt_hub_make_urgent. */
inline make_urgent(told, moved, tell, old) {
#ifdef WINDOWS_TOO_LATE
	d_step { told = lazy; lazy = false };
#else
	d_step { told = lazy && !WINDOWS_SHUT; lazy = false }; /* it has slept for less than a worker defers */
#endif
	atomic {
		if
		:: bell == 1 ->
#ifdef KEEPS_LAZY_BELL
			skip
#else
			numbers++;
			bell = numbers
#endif
		:: else
		fi
	};
#ifndef URGENT_WITHOUT_PUMP
	pump(moved, tell, old);
	moved = false;
#endif
#ifndef NO_RING_IN_WINDOW
	if
#ifdef WINDOWS_TOO_LATE
	:: told && !WINDOWS_SHUT -> bell = 0; wake()
#else
	:: told -> bell = 0; wake() /* shmrt_bell_ring_always */
#endif
	:: else
	fi;
#endif
	told = false
}

proctype thread(byte me) {
	byte seen, word, armed, old;
	bool moved, tell, work, quiet, brief, counted;
	do
	:: d_step { /* holding the interpreter's lock */
			parked = parked - counted;
			counted = false;
			seen = finished;
			had[me] = taken[me]
		};
		if
		:: had[me] == RESULTS -> break
		:: else
		fi;
		pump(moved, tell, old);
		if
		:: moved -> moved = false; seen = 0
		:: else ->
#ifndef PARKED_TOO_LATE
			d_step { parked++; counted = true };
#endif
			arm(word, true);
			d_step { /* the look under the mutex */
				work = !LANES_EMPTY;
#ifndef NO_SEEN
				work = work || finished != seen;
#endif
				seen = 0;
#ifdef NO_SHORT_SLEEP
				brief = false;
#else
#ifdef SHORT_SLEEP_ONCE
				brief = !quiet;
#else
				brief = !(quiet && armed == word);
#endif
#endif
				armed = (brief -> 0 : armed);
				quiet = quiet && !brief
			};
			if
			:: work -> d_step { work = false; brief = false; word = 0 }
			:: else ->
#ifdef PARKED_TOO_LATE
				d_step { parked++; counted = true };
#endif
				atomic {
					if
					:: bell == word -> asleep[me] = true
					:: else
					fi
				};
end_asleep:
				if
				:: d_step { !asleep[me] -> brief = false; quiet = false; armed = 0; word = 0 }
				:: d_step {
					brief && asleep[me] && WINDOWS_SHUT ->
						asleep[me] = false; brief = false; quiet = true; armed = word; word = 0
					}
				fi
			fi
		fi
	od
}

/* It pumps and arms when it likes, as any other thread of the process may, but it need not: nobody may depend on that. */
proctype hub() {
	byte number, pumps, arms, word, old;
	bool moved, tell;
end_watching:
	do
	:: dead[number] ->
		d_step { /* what it had published counts, the rest is decided: all have an outcome */
			dead[number] = false;
			taken[number] = RESULTS;
			lane[number] = 0;
			finished++;
			tell = parked > 0
		};
#ifndef NO_RING_AFTER_DEATH
		bell = 0;
		wake();
#endif
		if
		:: tell -> tell = false; ring(old)
		:: else
		fi
	:: number + 1 < LANES && !dead[number] && dead[number + 1] -> number++
	:: number > 0 && !dead[number] && dead[number - 1] -> number--
	:: !LANES_EMPTY && pumps < PUMPS ->
		pumps++;
		pump(moved, tell, old);
		moved = false
	:: !LANES_EMPTY && pumps < PUMPS -> pumps = PUMPS
	:: atomic { WATCHES == 0 && arms < ARMS && bell == 0 -> arms++; arm(word, false); word = 0 }
	:: atomic { arms < ARMS && bell < 2 -> arms++; arm(word, true); word = 0 } /* and leaves without a pump: its time is over */
	:: arms < ARMS -> arms = ARMS
	od
}

/* thread_main. Its rest has no outcomes: it waits for none, and is not counted as parked. */
proctype sleeper() {
	byte word, armed, old;
	bool moved, tell, urgent, work, quiet, brief;
	do
	:: pump(moved, tell, old);
		moved = false;
		urgent = WANTS_SOON; /* shmrt_hub_is_urgent, under the mutex */
		arm(word, urgent);
		d_step { /* the look under the mutex */
			work = !LANES_EMPTY;
#ifndef NO_SECOND_LOOK
			work = work || (!urgent && WANTS_SOON);
#endif
			lazy = !urgent && !work;
			brief = urgent && !(quiet && armed == word);
			armed = (brief -> 0 : armed);
			quiet = quiet && !brief;
			urgent = false
		};
		if
		:: work -> d_step { work = false; brief = false; word = 0 }
		:: else ->
			atomic {
				if
				:: bell == word -> asleep[SLEEPER] = true
				:: else
				fi
			};
end_asleep:
			if
			:: d_step { !asleep[SLEEPER] -> lazy = false; brief = false; quiet = false; armed = 0; word = 0 }
			:: d_step {
				brief && asleep[SLEEPER] && WINDOWS_SHUT ->
					asleep[SLEEPER] = false; brief = false; quiet = true; armed = word; word = 0
				}
			fi
		fi
	od
}

/* Somebody wants to be told of a task that it does not wait for itself: a callback, or a wait for several. */
proctype watcher(byte me) {
	byte old;
	bool told, lazily, moved, tell;
#ifdef LAZY_FIRST
	lazily = lazy;
	watched[me] = true;
#else
	watched[me] = true; /* under the mutex; of a task that is done nothing more is wanted */
#ifdef BY_THE_BELL
	lazily = bell == 1;
#else
	lazily = lazy;
#endif
#endif
#ifdef NO_MAKE_URGENT
	lazily = false;
#endif
	if
	:: lazily -> lazily = false; make_urgent(told, moved, tell, old)
	:: else
	fi
}

proctype clock() {
end_clock:
	do
	:: window -> window = false
	od
}

proctype judge() {
	byte number;
	timeout;
	d_step {
		do
		:: number < THREADS -> assert(had[number] == RESULTS); number++
		:: number >= THREADS && number < LANES -> assert(taken[number] == RESULTS); number++
		:: else -> break
		od
	}
}

init {
	byte number;
	atomic {
		do
		:: number < THREADS -> run worker(number); run thread(number); number++
		:: else -> break
		od;
#if WATCHES
		do
		:: number < LANES -> run worker(number); run watcher(number); number++
		:: else -> break
		od;
		run sleeper();
#endif
		number = 0;
		run hub();
		run clock();
		run judge()
	}
}
