/* bell.pml -- native/bell.h: nobody sleeps through a change, whoever dies on the way to the bell.
 *
 *   proctype ringer     a change (one release store, as a commit or a reply), then shmrt_bell_ring
 *   proctype sleeper    shmrt_bell_arm, a second look, shmrt_bell_sleep (shmrt_futex_wait), shmrt_bell_disarm when it has all
 *   proctype hub        after the notice of each death: shmrt_slots_ring_all, that is shmrt_bell_ring_always
 *
 * Each ringer makes CHANGES changes and may die between any two steps (CRASHES in all). A sleeper is done when it has seen
 * every change that was made. Checked: nobody sleeps for good while there is a change that it has not seen.
 *
 * One sleeper: it disarms when it is awake. With SLEEPERS=2 on one bell (threads of a hub, shmrt_hub_park) nobody does, and
 * what one of them has found the others need not find: EACH_FOR_ITSELF shows that they could sleep through it. Therefore
 * the hub's threads arm with numbers and tell each other: park.pml.
 *
 * Mutants: NO_FENCE_IN_ARM NO_FENCE_IN_RING NO_SECOND_LOOK NO_WAKE RING_FIRST NO_RING_AFTER_DEATH POLITE_RING_AFTER_DEATH
 * LOOK_FIRST DEATH_IS_NO_FENCE, and with SLEEPERS=2 TWO_DISARM EACH_FOR_ITSELF
 */
#ifndef RINGERS
#define RINGERS 2
#endif
#ifndef CHANGES
#define CHANGES 1
#endif
#ifndef SLEEPERS
#define SLEEPERS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#define BELL RINGERS /* words 0 .. RINGERS - 1 are the ringers' changes */
#define WORDS (RINGERS + 1)
#define CELLS 1
#define HUB (RINGERS + SLEEPERS)
#define PROCESSES (RINGERS + SLEEPERS + 1)
#ifndef HISTORY
#define HISTORY 20
#endif
#include "memory.pml"

byte crashes, buried;
bool dead[RINGERS];
bool asleep[SLEEPERS];

/* The newest change of each ringer that was found in a look: by any sleeper, as they are threads that share a ledger. */
#ifdef EACH_FOR_ITSELF
byte had[SLEEPERS * RINGERS];
#define HAD(sleeper, ringer) had[(sleeper) * RINGERS + ringer]
#else
byte had[RINGERS];
#define HAD(sleeper, ringer) had[ringer]
#endif

#define MAY_DIE                                                    \
	if                                                         \
	:: crashes < CRASHES -> crashes++; goto died               \
	:: true                                                    \
	fi

inline wake(me) {
#ifndef NO_WAKE
	d_step {
		join(kernel, seen[me]);
		i_ = 0;
		do
		:: i_ < SLEEPERS -> asleep[i_] = false; i_++
		:: else -> break
		od;
		i_ = 0
	}
#else
	skip
#endif
}

/* shmrt_futex_wait(word, 1): the kernel compares under its lock, so after a wake it knows what the waker knew. */
inline sleep(me, number, bell) {
	atomic {
		join(seen[me], kernel);
		choose(me, BELL);
		d_step {
			bell = word[BELL].store[pick_].value;
			seen[me].at[BELL] = pick_;
			pick_ = 0;
			asleep[number] = (bell == 1)
		}
	}
}

proctype ringer(byte self) {
	byte made, bell;
	do
	:: made < CHANGES ->
		MAY_DIE;
		made++;
#ifndef RING_FIRST
		store_release(self, self, made);
		MAY_DIE;
#endif
#ifndef NO_FENCE_IN_RING
		fence(self);
#endif
		load_relaxed(self, BELL, bell);
		if
		:: bell == 0
		:: else ->
			bell = 0;
			MAY_DIE;
			exchange(self, BELL, 0, bell);
			MAY_DIE;
			if
			:: bell == 0
			:: else -> bell = 0; wake(self)
			fi
		fi;
#ifdef RING_FIRST
		MAY_DIE;
		store_release(self, self, made);
#endif
	:: else -> break
	od;
	goto over;
died:
#ifndef DEATH_IS_NO_FENCE
	die(self);
#endif
	dead[self] = true;
over:
	skip
}

/* Any acquire load of everything it waits for. */
inline look() {
	number = 0;
	do
	:: number < RINGERS ->
		load_acquire(self, number, value);
		if
		:: value > HAD(self - RINGERS, number) ->
			HAD(self - RINGERS, number) = value;
			news = true
		:: else
		fi;
		value = 0;
		number++
	:: else -> break
	od;
	number = 0
}

proctype sleeper(byte self) {
	byte number, value;
	bool news;
	do
	:: d_step {
		news = true; i_ = 0;
		do
		:: i_ < RINGERS -> news = news && (HAD(self - RINGERS, i_) == CHANGES); i_++
		:: else -> break
		od;
		i_ = 0 };
		if
		:: news -> break
		:: else
		fi;
#ifdef LOOK_FIRST
		look();
		store_relaxed(self, BELL, 1);
		fence(self);
#else
		store_relaxed(self, BELL, 1); /* shmrt_bell_arm */
#ifndef NO_FENCE_IN_ARM
		fence(self);
#endif
#ifndef NO_SECOND_LOOK
		look();
#endif
#endif
		if
		:: news -> news = false
		:: else ->
			sleep(self, self - RINGERS, value);
			value = 0;
end_asleep:
			!asleep[self - RINGERS];
			d_step { join(seen[self], kernel) };
			look();
			news = false
		fi;
#if SLEEPERS == 1 || defined(TWO_DISARM)
		if
		:: store_relaxed(self, BELL, 0) /* shmrt_bell_disarm: it is awake, and may go to work before it comes again */
		:: true
		fi
#endif
	od
}

proctype hub() {
	byte number, bell;
end_watching:
	do
	:: buried < crashes && number < RINGERS ->
		if
		:: dead[number] ->
			d_step { join(seen[HUB], seen[number]); dead[number] = false; buried++ }; /* F4 */
#ifndef NO_RING_AFTER_DEATH
#ifdef POLITE_RING_AFTER_DEATH
			fence(HUB);
			load_relaxed(HUB, BELL, bell);
			if
			:: bell == 0
			:: else -> exchange(HUB, BELL, 0, bell); wake(HUB)
			fi;
			bell = 0
#else
			store_release(HUB, BELL, 0);
			wake(HUB)
#endif
#endif
		:: else -> number++
		fi
	:: number == RINGERS -> number = 0
	od
}

/* When nothing moves any more: whoever sleeps knows of every change. */
proctype judge() {
	byte s, r;
	timeout;
	d_step {
		do
		:: s < SLEEPERS ->
			r = 0;
			do
			:: r < RINGERS -> assert(!asleep[s] || HAD(s, r) == FINAL(r)); r++
			:: else -> break
			od;
			s++
		:: else -> break
		od
	}
}

init {
	byte n;
	atomic {
		do
		:: n < RINGERS -> run ringer(n); n++
		:: else -> break
		od;
		n = 0;
		do
		:: n < SLEEPERS -> run sleeper(RINGERS + n); n++
		:: else -> break
		od;
		n = 0;
		run hub();
		run judge()
	}
}
