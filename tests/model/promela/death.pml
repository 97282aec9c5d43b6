/* death.pml -- native/hub_death.c, slots.c, py_worker_task.c: a worker dies anywhere, and every task has one end.
 *
 *   proctype worker   shmrt_slot_hold_death_mutex, shmrt_slot_ready; of each task in its lane shmrt_worker_run_task: task and
 *                     phase, the call, the commit of the result, phase; shmrt_worker_ring_hub
 *   proctype hub      shmrt_hub__look_at_worker: adopt, shmrt_hub__drain, take_leave, bury; shmrt_hub__dispatch
 *   proctype root     shmrt_slots_watch -> shmrt_slots_ring_all; the pidfd -> shmrt_slot_gone; shmrt_slot_claim of the next life
 *
 * A ring is a flag here that carries the view of who rings: what bell.pml proves of the bell. Beside, the hub looks LOOKS times
 * at a moment of its own (another thread turns the wheel).
 *
 * The worker may die between any two steps, in each of its lives (CRASHES in all). The notice of the death mutex may come to the
 * hub before GONE, or only GONE. With max_attempts 1: a task that was begun is never begun again. Checked: each task has one
 * end; what was published is delivered; who was not begun runs later; no leave is taken of a living worker; nobody sleeps
 * although there is something to do.
 *
 * Mutants: DEATH_RELAXED DEATH_MARK_RELAXED PHASE_AFTER_CALL IDLE_BEFORE_COMMIT NO_DRAIN NO_RING_AFTER_DEATH
 * FREE_BEFORE_FORMAT CLAIM_RELAXED CLAIM_KEEPS_MUTEX
 */
#ifndef TASKS
#define TASKS 2
#endif
#ifndef LOOKS
#define LOOKS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#define STATE 0
#define EPOCH 1
#define DEATH 2
#define PHASE 3
#define TASK 4
#define TAIL 5
#define WORDS 6
#define CELLS 1
#define WORKER 0
#define HUB 1
#define ROOT 2
#define PROCESSES 3
#ifndef HISTORY
#define HISTORY (8 + 4 * CRASHES)
#endif
#include "memory.pml"

#define EMPTY 0
#define STARTING 1
#define READY 2
#define GONE 3
#define HELD 1
#define DIED 2
#define IDLE 0
#define RUN 1

#ifdef DEATH_RELAXED
#define load_death load_relaxed
#else
#define load_death load_acquire
#endif
#ifdef CLAIM_RELAXED
#define CLAIM_RELEASES false
#else
#define CLAIM_RELEASES true
#endif

mtype = { BACKLOG, LANE, VALUE, VICTIM };
mtype task[TASKS];
byte given;             /* how many records were ever put into the lane of this life */
byte lane[TASKS];
byte published[TASKS];  /* by task: number in the result lane + 1 */
byte results[TASKS];    /* the result lane of this life */
bool begun[TASKS];
byte crashes, lives, dead_lives;
bool rung, over, alive;
View ring_;

#define MAY_DIE                                                    \
	if                                                         \
	:: crashes < CRASHES -> crashes++; goto died               \
	:: true                                                    \
	fi

inline ring(me) { d_step { join(ring_, seen[me]); rung = true } }

proctype worker() {
	byte next, current;
	bool done;
live:
	MAY_DIE;
	store_release(WORKER, DEATH, HELD);
	MAY_DIE;
	swap(WORKER, STATE, STARTING, READY, done);
	assert(done);
	done = false;
	MAY_DIE;
	ring(WORKER);
end_idle:
	do
	:: given > next ->
		atomic { join(seen[WORKER], seen[HUB]); current = lane[next] }; /* edge L1, see lane.pml */
		MAY_DIE;
		store_relaxed(WORKER, TASK, current + 1);
#ifndef PHASE_AFTER_CALL
		store_release(WORKER, PHASE, RUN);
		MAY_DIE;
#endif
		assert(!begun[current]);
		begun[current] = true;
		MAY_DIE;
#ifdef PHASE_AFTER_CALL
		store_release(WORKER, PHASE, RUN);
		MAY_DIE;
#endif
#ifdef IDLE_BEFORE_COMMIT
		store_release(WORKER, PHASE, IDLE);
		MAY_DIE;
#endif
		results[next] = current;
		store_release(WORKER, TAIL, next + 1);
		published[current]++;
		MAY_DIE;
#ifndef IDLE_BEFORE_COMMIT
		store_release(WORKER, PHASE, IDLE);
#endif
		atomic { next++; current = 0 };
		MAY_DIE;
		ring(WORKER);
		MAY_DIE
	od;
died:
	/* The kernel marks the death mutex if it was held; the pidfd tells the root in any case. */
	die(WORKER);
	if
	:: FINAL(DEATH) == HELD ->
#ifdef DEATH_MARK_RELAXED
		store_relaxed(WORKER, DEATH, DIED)
#else
		store_release(WORKER, DEATH, DIED)
#endif
	:: else
	fi;
	d_step { alive = false; dead_lives++; next = 0; current = 0; done = false };
	/* The next life is forked by the root: it knows what that knew. */
end_unborn:
	alive;
	atomic { join(seen[WORKER], seen[ROOT]) };
	goto live
}

proctype root() {
	bool done, told;
	byte state;
	do
	:: !over && dead_lives == lives && lives <= CRASHES ->
		if
		:: FINAL(DEATH) == DIED -> /* the watch, before the process is reaped */
			load_acquire(ROOT, DEATH, state);
			state = 0;
#ifndef NO_RING_AFTER_DEATH
			ring(ROOT)
#endif
		:: true /* or the notice comes to nobody */
		fi;
		atomic { join(seen[ROOT], seen[WORKER]) }; /* reaped: the whole process is gone */
		load_acquire(ROOT, STATE, state);
		if
		:: state == STARTING || state == READY -> swap(ROOT, STATE, state, GONE, done)
		:: else -> assert(false)
		fi;
		done = false; state = 0;
#ifndef NO_RING_AFTER_DEATH
		ring(ROOT);
#endif
end_full:
		FINAL(STATE) == EMPTY; /* the hub has buried it, and rings the root */
		load_acquire(ROOT, STATE, state);
		if
		:: state != EMPTY -> atomic { join(seen[ROOT], seen[HUB]) } /* that ring */
		:: else
		fi;
		load_acquire(ROOT, STATE, state);
		assert(state == EMPTY);
		store_relaxed(ROOT, EPOCH, lives + 1);
#ifndef CLAIM_KEEPS_MUTEX
		store_relaxed(ROOT, DEATH, 0);
#endif
		store_release(ROOT, PHASE, IDLE);
		store_relaxed(ROOT, TASK, 0);
		swap_as(ROOT, STATE, EMPTY, STARTING, done, true, CLAIM_RELEASES);
		assert(done);
		atomic { done = false; lives++; alive = true }
	:: over -> break
	od
}

inline drain() {
	load_acquire(HUB, TAIL, tail);
	do
	:: cursor < tail ->
		if
		:: task[results[cursor]] == LANE -> task[results[cursor]] = VALUE
		:: else -> assert(false) /* an end that a task has had already */
		fi;
		cursor++;
		moved = true
	:: else -> break
	od;
	tail = 0
}

inline take_leave() {
	assert(dead_lives == lives || FINAL(DEATH) == DIED);
	abandoned = true;
	ready = false;
#ifndef NO_DRAIN
	drain();
#endif
	load_acquire(HUB, PHASE, phase);
	load_relaxed(HUB, TASK, running);
	d_step {
		tail = 0;
		do
		:: tail < TASKS ->
			if
			:: task[tail] == LANE && phase == RUN && running == tail + 1 ->
				task[tail] = VICTIM;
				assert(begun[tail] || !published[tail])
			:: task[tail] == LANE && !(phase == RUN && running == tail + 1) -> task[tail] = BACKLOG
			:: else
			fi;
			tail++
		:: else -> break
		od;
		tail = 0; phase = 0; running = 0; moved = true
	}
}

proctype hub() {
	byte known, state, epoch, death, tail, cursor, phase, running, looks;
	bool ready, abandoned, moved, done;
	do
	:: over -> break
	:: !over ->
		load_acquire(HUB, STATE, state);
		if
		:: state == EMPTY
		:: else ->
			load_relaxed(HUB, EPOCH, epoch);
			if
			:: epoch != known -> known = epoch; abandoned = false; ready = false; cursor = 0; moved = true
			:: else
			fi;
			if
			:: state == READY && !ready && !abandoned -> ready = true; moved = true
			:: else
			fi;
			drain();
			if
			:: state == GONE ->
				if
				:: !abandoned -> take_leave()
				:: else
				fi;
#ifdef FREE_BEFORE_FORMAT
				swap(HUB, STATE, GONE, EMPTY, done);
				store_release(HUB, TAIL, 0);
#else
				store_release(HUB, TAIL, 0); /* shmrt_lane_format */
				atomic { given = 0; cursor = 0; abandoned = false; known = 0 };
				swap(HUB, STATE, GONE, EMPTY, done);
#endif
				assert(done);
				atomic { given = 0; cursor = 0; abandoned = false; known = 0; done = false; moved = true }
			:: state != GONE && !abandoned ->
				load_death(HUB, DEATH, death);
				if
				:: death == DIED ->
					take_leave()
				:: else
				fi;
				death = 0
			:: else
			fi
		fi;
		state = 0; epoch = 0;
		d_step { /* dispatch */
			tail = 0;
			do
			:: ready && tail < TASKS ->
				if
				:: task[tail] == BACKLOG -> task[tail] = LANE; lane[given] = tail; given++; moved = true
				:: else
				fi;
				tail++
			:: else -> break
			od;
			tail = 0;
			over = true;
			do
			:: tail < TASKS -> over = over && (task[tail] == VALUE || task[tail] == VICTIM); tail++
			:: else -> break
			od;
			tail = 0
		};
		if
		:: moved || over -> moved = false
		:: else ->
			if
			:: atomic { rung -> rung = false; join(seen[HUB], ring_) }
			:: looks < LOOKS -> looks++
			fi
		fi
	od;
	tail = 0;
	do
	:: tail < TASKS ->
		assert(published[tail] <= 1);
		assert(published[tail] == 0 || task[tail] == VALUE);
		assert(task[tail] != VICTIM || crashes > 0);
		tail++
	:: else -> break
	od
}

init {
	byte n;
	atomic {
		do
		:: n < TASKS -> task[n] = BACKLOG; n++
		:: else -> break
		od;
		n = 0;
		lives = 1;
		alive = true;
		store_relaxed(ROOT, EPOCH, 1);
		store_release(ROOT, STATE, STARTING);
		join(seen[WORKER], seen[ROOT]);
		join(seen[HUB], seen[ROOT]);
		run worker();
		run hub();
		run root()
	}
}
