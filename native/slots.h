/* slots.h -- the process table of a runtime: who lives, who is dead, and what each was doing.
 *
 * Byte map: struct shmrt_slot in layout.h; who may make which change of `state` stands there too.
 *
 * The death mutex is robust and process-shared and held for life by its process's main thread. When
 * that thread ends in any way (exit, exec, SIGKILL), the kernel sets FUTEX_OWNER_DIED in the word,
 * in under 0.1 ms whatever the size of the process. That says "its main thread writes no more": phase,
 * task lane head and result lane tail are final. It does not say "the process is gone"; only its pidfd
 * does, and only then are its blocks and its slot re-used. If the page was unmapped or the memory
 * reaped first, no notice comes: the pidfd is the backstop, always.
 *
 * The kernel wakes one waiter per word, and only when FUTEX_WAITERS is set, so exactly one process
 * (the root) sleeps on these words, in shmrt_slots_watch; everybody else only looks.
 *
 * Edge F1: phase_set stores phase (release) -> phase_get loads phase (acquire): task_id and
 * task_start_ns belong to it. Edge F2: claim/ready/gone/free store state (acq_rel CAS) -> state load
 * (acquire): what the previous owner of the slot wrote is visible. Edge F4: the kernel marks the death
 * word at death -> is_abandoned loads it (acquire): all that the thread ever stored is visible. Edge F5:
 * set_process stores pid (release) -> a reader that loads a pid that is not 0 (acquire) has its owner.
 * Edge F6: order_kill sets kill_reason (acq_rel) -> its load (acquire): kill_task_id belongs to it.
 *
 * A step cut short by a death is done again by whoever comes next; slots.c has the table.
 */
#ifndef SHMRT_SLOTS_H
#define SHMRT_SLOTS_H

#include "bell.h"
#include "layout.h"

/* The part that has memory from the start: header, geometry, slots and the head of the guards. A multiple of SHMRT_LINE. */
static inline uint64_t shmrt_control_table_bytes(uint32_t slot_count) {
	return sizeof(struct shmrt_control) + (uint64_t)slot_count * sizeof(struct shmrt_slot) + sizeof(struct shmrt_guards);
}
/* With call slots and names behind the table. */
static inline uint64_t shmrt_control_names_end(uint32_t slot_count) {
	return shmrt_control_table_bytes(slot_count) + SHMRT_CALLS_DEFAULT * sizeof(struct shmrt_call_slot) +
	       SHMRT_NAMES_AREA_BYTES;
}
/* Where guards begin: whole pages, so that memory can be put behind them alone. */
static inline uint64_t shmrt_control_guards_offset(uint32_t slot_count) {
	return shmrt_align_up(shmrt_control_names_end(slot_count), SHMRT_GUARD_STEP_BYTES);
}
/* All of it. */
static inline uint64_t shmrt_control_bytes(uint32_t slot_count) {
	return shmrt_control_guards_offset(slot_count) + SHMRT_GUARD_AREA_BYTES;
}
int shmrt_control_format(struct shmrt_control *, uint32_t slot_count);
/* CORRUPT when slots, call slots, names or guards do not fit `size`. */
SHMRT_MUST_USE int shmrt_control_check(const struct shmrt_control *, uint64_t size);

/* EMPTY -> STARTING; resets every line and the mutex, raises the epoch. By the root or, while that sleeps, by its watch
 * (orders.h); slot 0 and 1: by the program. One claimer at a time. STALE when the slot is not EMPTY. */
SHMRT_MUST_USE int shmrt_slot_claim(struct shmrt_slot *, uint32_t pool, uint32_t worker, uint64_t now_ns);
/* After the claim, by whoever started the process, and by the process itself: its parent may die first. */
void shmrt_slot_set_process(struct shmrt_slot *, int32_t pid, uint32_t owner);
/* In the new process's main thread, before READY: locks the death mutex for life. Never waits: STALE when
 * another holds it or died with it; the process must end then. */
SHMRT_MUST_USE int shmrt_slot_hold_death_mutex(struct shmrt_slot *);
SHMRT_MUST_USE int shmrt_slot_ready(struct shmrt_slot *);                    /* STARTING -> READY */
/* STARTING or READY -> GONE. Only after the kernel said that the whole process is gone. */
SHMRT_MUST_USE int shmrt_slot_gone(struct shmrt_slot *, int32_t wait_status, bool oom);
/* The same by the root, of a process that it has reaped, whatever that wrote over its own slot: GONE, and the epoch of
 * its claim. False: the slot said what no life says. */
bool shmrt_slot_gone_anyway(struct shmrt_slot *, uint32_t epoch, int32_t wait_status, bool oom);
SHMRT_MUST_USE int shmrt_slot_free(struct shmrt_slot *);                     /* GONE -> EMPTY, by the hub */
/* First reason wins; true if it was this one. task_id counts for TIMEOUT and CANCEL only, and only the hub
 * orders these two (kill_task_id has one writer). */
bool shmrt_slot_order_kill(struct shmrt_slot *, enum shmrt_kill_reason reason, uint64_t task_id);

/* True when the kernel marked the death mutex (a plain load: 1 ns). */
bool shmrt_slot_is_abandoned(const struct shmrt_slot *);

static inline void shmrt_slot_phase_set(struct shmrt_slot *slot, enum shmrt_phase phase) {
	uint64_t old = atomic_load_explicit(&slot->phase, memory_order_relaxed); /* ours alone */
	atomic_store_explicit(&slot->phase, (((old >> 8) + 1) << 8) | (uint64_t)phase,
			      memory_order_release); /* F1 */
}
static inline uint64_t shmrt_slot_phase_get(const struct shmrt_slot *slot) {
	return atomic_load_explicit(&slot->phase, memory_order_acquire); /* F1 */
}
static inline void shmrt_slot_task_begin(struct shmrt_slot *slot, uint64_t task_id, uint64_t now_ns) {
	atomic_store_explicit(&slot->task_id, task_id, memory_order_relaxed);       /* F1: before phase */
	atomic_store_explicit(&slot->task_start_ns, now_ns, memory_order_relaxed);  /* F1: before phase */
}

/* The beat: a pthread of this process that stores now and the main thread's CPU time every
 * SHMRT_BEAT_NS while the phase is not PARKED, and sleeps on the phase otherwise (shmrt_beat_wake ends
 * that sleep). It never takes the GIL. It also ends the process (SIGKILL to itself) when the
 * process `root_pid` (0: no such check) is no longer its parent or the death mutex of `hub_slot`, whom it
 * serves, is abandoned; when it leads its process group, the group goes with it. To be called in the main thread, once
 * per process; the control segment must stay mapped from then on. Call shmrt_beat_wake after each
 * phase_set that leaves PARKED: a relaxed load, unless the beat is asleep. */
#define SHMRT_BEAT_NS INT64_C(100000000)
SHMRT_MUST_USE int shmrt_beat_start(struct shmrt_control *, uint32_t slot_index, int32_t root_pid, uint32_t hub_slot);
/* Its thread already, asleep until this process calls shmrt_beat_start: what a thread costs is paid before a slot waits for
 * it. Once per process, in the main thread. */
SHMRT_MUST_USE int shmrt_beat_prepare(void);
void shmrt_beat_wake(void);

/* Sleeps until a death mutex among slots [first, first+count) is abandoned whose death this thread has not
 * reported yet (once per epoch, so none between two calls is missed), `bell` (may be NULL; the caller arms
 * it) is rung, or the timeout. OK: look at the table and the bell's cause; TIMEOUT; INTERRUPTED; CORRUPT;
 * SYSTEM. futex_waitv (Linux 5.16), else a scan every 2 ms. Sets FUTEX_WAITERS itself. A claim by this
 * process is noticed; a claim by another needs a ring. At most 126 living slots are watched in one sleep;
 * beyond, there is a scan every 2 ms. */
SHMRT_MUST_USE int shmrt_slots_watch(struct shmrt_control *, uint32_t first, uint32_t count,
				     _Atomic uint32_t *bell, int64_t timeout_ns);
/* Every bell of every slot, unconditionally: after any death. */
void shmrt_slots_ring_all(struct shmrt_control *);

SHMRT_MUST_USE int shmrt_slot_check(const struct shmrt_slot *);

#endif
