/* stock.pml -- native/hub_ledger.c and hub_wheel.c: tasks that submit keeps back, behind lanes that have enough, get there.
 *
 *   proctype submitter  shmrt_hub_submit TASKS times; each task goes into a lane, or is kept back (shmrt_hub__has_stock), or makes the
 *                       submitter pump; then it leaves for good
 *   proctype thread     thread_main: shmrt_hub_pump, shmrt_hub_is_urgent, shmrt_hub_park, then it says that it is awake
 *   proctype other      rings the bell when it likes, as workers do, at most RINGS times: nobody may depend on that
 *
 * No worker is asked to ring for what is kept back, and whoever submits may leave. Checked: when nothing moves any more, nothing
 * is kept back. Nobody may die here on its own: these are threads of one process.
 *
 * The memory is sequentially consistent here: all words but the bell are under the hub's mutex, and the bell is in bell.pml.
 *
 * Mutants: NO_RING_WHEN_KEPT NO_SHORT_SLEEP DECIDES_BEFORE_THE_MUTEX RINGS_THE_SHORT_SLEEPER_ONLY
 */
#ifndef SUBMITTERS
#define SUBMITTERS 2
#endif
#ifndef TASKS
#define TASKS 2
#endif
#ifndef RINGS
#define RINGS 1
#endif

#define AWAKE 0
#define SHORTLY 1
#define FOREVER 2

byte kept;           /* pool->backlog_count; the lanes have enough as long as a submitter says so */
byte until = AWAKE;  /* hub->thread_until_ns */
byte bell;           /* 0, or armed; each arming after a ring is another number */
byte numbers, left;  /* submitters that have left */
bool asleep;

inline ring_always() {
	atomic { bell = 0; asleep = false }
}

/* Under the mutex: all goes into lanes, as nothing is full. */
#define PUMP kept = 0

proctype submitter() {
	byte tasks;
	bool wake;
	do
	:: tasks < TASKS ->
		if
		:: d_step { tasks++; PUMP } /* the lanes have not enough, or the look of every sixteenth */
		:: d_step {
				tasks++;
				kept++;
#ifdef RINGS_THE_SHORT_SLEEPER_ONLY
				wake = until == SHORTLY
#else
				wake = until == FOREVER
#endif
			};
#ifdef NO_RING_WHEN_KEPT
			wake = false;
#endif
			if
			:: wake -> wake = false; ring_always()
			:: else
			fi
		fi
	:: else -> break
	od;
	left++
}

proctype thread() {
	byte word;
	bool some;
	do
	:: d_step { PUMP };
		some = kept > 0; /* what a decision before the mutex would rest on */
		atomic {
			if
			:: bell == 0 -> numbers++; bell = numbers
			:: else
			fi;
			word = bell
		};
		d_step { /* the look under the mutex */
#ifndef DECIDES_BEFORE_THE_MUTEX
			some = kept > 0;
#endif
#ifdef NO_SHORT_SLEEP
			some = false;
#endif
			until = (some -> SHORTLY : FOREVER);
			some = false
		};
		atomic {
			if
			:: bell == word -> asleep = true
			:: else
			fi
		};
end_asleep:
		if
		:: !asleep
		:: d_step { asleep && until == SHORTLY -> asleep = false } /* its time is over */
		fi;
		d_step { until = AWAKE; word = 0 }
	od
}

proctype other() {
	byte rings;
end_other:
	do
	:: rings < RINGS -> rings++; ring_always()
	:: rings < RINGS -> rings = RINGS
	od
}

proctype judge() {
	timeout;
	assert(left == SUBMITTERS && kept == 0)
}

init {
	byte number;
	atomic {
		do
		:: number < SUBMITTERS -> run submitter(); number++
		:: else -> break
		od;
		run thread();
		run other();
		run judge()
	}
}
