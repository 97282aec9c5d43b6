/* park.pml -- native/hub_wheel.c: threads of one hub sleep on one bell, and what one finds another may wait for.
 *
 *   proctype worker     publishes RESULTS outcomes for the thread of its number; shmrt_worker_ring_hub after each: it rings, or
 *                       defers that if it has rung lately (window), or dies (CRASHES in all). Or the outcome comes without it
 *   proctype thread     shmrt_py_hub_wait: a look, shmrt_hub_pump, shmrt_hub_park, until it has all of its own outcomes
 *   proctype hub        thread_main: decides the tasks of the dead, rings all after a death; pumps PUMPS times at most, and arms
 *                       ARMS times at most
 *   proctype clock      the time after which a worker does not defer any more, and a short sleep ends
 *
 * Any of them takes everything out of the lanes that is there, for whomever. Checked: when nothing moves any more, every
 * thread has all its outcomes. None has a timer but that of its short sleeps (SHMRT_RING_EVERY_NS).
 *
 * The memory is sequentially consistent here: the Dekker edge between a worker and an arming thread is in bell.pml, everything
 * else is under the hub's mutex, or the kernel's lock.
 *
 * Mutants: SAME_NUMBER NO_TELL NO_SEEN NO_SHORT_SLEEP SHORT_SLEEP_ONCE PARKED_TOO_LATE NO_RING_AFTER_DEATH
 * TELL_FIRST
 */
#ifndef THREADS
#define THREADS 2
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

byte bell, numbers = 1; /* the word, and the last number that it had */
byte lane[THREADS], taken[THREADS], had[THREADS]; /* published; out of the lane; known to the thread */
byte finished, parked, crashes;
bool window[THREADS], dead[THREADS], asleep[THREADS];

inline wake() {
	d_step {
		i_ = 0;
		do
		:: i_ < THREADS -> asleep[i_] = false; i_++
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
			:: window[me] /* deferred: it is busy with the next task, for as long as you like */
			:: !window[me] ->
				window[me] = true;
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
		:: i_ < THREADS ->
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

#define LANES_EMPTY (lane[0] == 0 && lane[THREADS - 1] == 0)
#define WINDOWS_SHUT (!window[0] && !window[THREADS - 1])

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
	:: number + 1 < THREADS && !dead[number] && dead[number + 1] -> number++
	:: number > 0 && !dead[number] && dead[number - 1] -> number--
	:: !LANES_EMPTY && pumps < PUMPS ->
		pumps++;
		pump(moved, tell, old);
		moved = false
	:: !LANES_EMPTY && pumps < PUMPS -> pumps = PUMPS
	:: atomic { arms < ARMS && bell == 0 -> arms++; arm(word, false); word = 0 }
	:: atomic { arms < ARMS && bell < 2 -> arms++; arm(word, true); word = 0 } /* shmrt_hub_make_urgent */
	:: arms < ARMS -> arms = ARMS
	od
}

proctype clock() {
	byte number;
end_clock:
	do
	:: window[0] -> window[0] = false
	:: THREADS > 1 && window[THREADS - 1] -> window[THREADS - 1] = false
	od
}

proctype judge() {
	byte number;
	timeout;
	d_step {
		do
		:: number < THREADS -> assert(had[number] == RESULTS); number++
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
		number = 0;
		run hub();
		run clock();
		run judge()
	}
}
