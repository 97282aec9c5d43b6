/* slots.c -- see slots.h: the life of a slot. The watch is in watch.c, the beat in beat.c.
 *
 * Who writes what: line 0 the root (READY the worker itself, EMPTY the hub), lines 1 and 3 the worker's
 * main thread, line 2 its beat thread, line 5 hub and root. A reader that finds the writer dead finds:
 * a `state` that names the last step which is complete. Every step stores what it has to say first and
 * `state` last, so a step cut short is simply done again by whoever comes next:
 *
 *   claim cut short   state EMPTY     claim starts over; it trusts nothing it finds
 *   fork cut short    STARTING, pid 0 nobody to reap: gone, free (a child that did start finds its
 *                                     parent dead and ends itself; it stores its own pid, too)
 *   ready cut short   STARTING        as a death before ready
 *   gone cut short    READY           gone again; the status may differ, the first to arrive counts
 *   free cut short    GONE            free again
 *
 * Why re-making an abandoned mutex in claim is safe: (1) state EMPTY says that the process was gone as a
 * whole (its pidfd was readable before GONE), so no thread holds the mutex and the kernel has walked the
 * robust list that ran through it; (2) a new owner can only come after STARTING, which is stored after
 * the mutex is whole; (3) a claimer that dies half way leaves EMPTY, and the next one makes it again.
 * The one sleeper on the word may be the root's own watch: it never sleeps on an EMPTY slot's word, and
 * is poked after STARTING, so that it takes the new one.
 */
#include "slots.h"
#include "guards.h"

#include "watch.h"

#include <errno.h>
#include <linux/futex.h>
#include <unistd.h>

/* ---- the segment --------------------------------------------------------------------------------- */

int shmrt_control_format(struct shmrt_control *control, uint32_t slot_count) {
	SHMRT_ASSERT(slot_count >= SHMRT_SLOT_FIRST_WORKER && slot_count <= SHMRT_SLOTS_MAX);
	control->slot_count = slot_count;
	control->reserved0 = 0;
	control->call_count = SHMRT_CALLS_DEFAULT;
	control->calls_offset = shmrt_control_table_bytes(slot_count);
	control->name_count = SHMRT_NAMES_DEFAULT;
	control->names_offset = control->calls_offset + SHMRT_CALLS_DEFAULT * sizeof(struct shmrt_call_slot);
	atomic_store_explicit(&control->extended, 0, memory_order_relaxed);        /* S1: magic follows */
	atomic_store_explicit(&control->root_generation, 0, memory_order_relaxed); /* S1 */
	memset(control->slots, 0, (size_t)slot_count * sizeof(struct shmrt_slot));
	return shmrt_guards_format(shmrt_guards_of(control), shmrt_control_guards_offset(slot_count));
}

int shmrt_control_check(const struct shmrt_control *control, uint64_t size) {
	if (size < sizeof(struct shmrt_control))
		return SHMRT_CORRUPT;
	uint32_t count = control->slot_count;
	if (count < SHMRT_SLOT_FIRST_WORKER || count > SHMRT_SLOTS_MAX || shmrt_control_bytes(count) > size)
		return SHMRT_CORRUPT;
	/* Constants of this version: whoever uses the areas may count on them. */
	if (control->call_count != SHMRT_CALLS_DEFAULT || control->name_count != SHMRT_NAMES_DEFAULT ||
	    control->calls_offset != shmrt_control_table_bytes(count) ||
	    control->names_offset != control->calls_offset + SHMRT_CALLS_DEFAULT * sizeof(struct shmrt_call_slot))
		return SHMRT_CORRUPT;
	return shmrt_guards_check(control, size);
}

/* ---- the death mutex ----------------------------------------------------------------------------- */

int shmrt_slot_hold_death_mutex(struct shmrt_slot *slot) {
	/* Never waits: a mutex that somebody holds or died with is not this process's to have. */
	if (shmrt_slot_is_abandoned(slot))
		return SHMRT_STALE;
	int error = pthread_mutex_trylock(&slot->death);
	if (error == EOWNERDEAD) /* died just now. Kept, not unlocked: the end of this process marks it again */
		return SHMRT_STALE;
	if (error == EBUSY || error == ENOTRECOVERABLE)
		return SHMRT_STALE;
	if (error != 0) {
		errno = error;
		return SHMRT_SYSTEM;
	}
	/* Who went to sleep on the word while it said 0 could not set this; without it the kernel would
	 * not wake them. Nobody unlocks, so the bit costs nothing. */
	atomic_fetch_or_explicit(shmrt_death_word(slot), FUTEX_WAITERS, memory_order_acq_rel); /* F4 */
	return SHMRT_OK;
}

bool shmrt_slot_is_abandoned(const struct shmrt_slot *slot) {
	/* F4: the kernel's mark is ordered after every store of the dead thread. */
	return (atomic_load_explicit(shmrt_death_word((struct shmrt_slot *)(uintptr_t)slot),
				     memory_order_acquire) &
		FUTEX_OWNER_DIED) != 0;
}

/* ---- the life of a slot -------------------------------------------------------------------------- */

static bool change_state(struct shmrt_slot *slot, uint32_t from, uint32_t to) {
	/* F2 on both sides; a failure reports only "no", so nothing needs to be visible. */
	return atomic_compare_exchange_strong_explicit(&slot->state, &from, to, memory_order_acq_rel,
						       memory_order_relaxed); /* F2 */
}

int shmrt_slot_claim(struct shmrt_slot *slot, uint32_t pool, uint32_t worker, uint64_t now_ns) {
	if (atomic_load_explicit(&slot->state, memory_order_acquire) != SHMRT_SLOT_EMPTY) /* F2 */
		return SHMRT_STALE;

	/* The epoch first: from here on nothing of an earlier life compares equal. 0 is never used. */
	uint32_t epoch = atomic_load_explicit(&slot->epoch, memory_order_relaxed) + 1; /* F2: STARTING follows */
	atomic_store_explicit(&slot->epoch, epoch == 0 ? 1 : epoch, memory_order_relaxed); /* F2 */

	int result = shmrt_mutex_make(&slot->death);
	if (result != SHMRT_OK)
		return result; /* still EMPTY */

	/* All of these are ordered by the change to STARTING (F2). */
	atomic_store_explicit(&slot->pid, 0, memory_order_relaxed);          /* F2 */
	atomic_store_explicit(&slot->wait_status, 0, memory_order_relaxed);  /* F2 */
	atomic_store_explicit(&slot->owner, 0, memory_order_relaxed);        /* F2 */
	atomic_store_explicit(&slot->pool, pool, memory_order_relaxed);      /* F2 */
	atomic_store_explicit(&slot->worker, worker, memory_order_relaxed);  /* F2 */
	atomic_store_explicit(&slot->oom, 0, memory_order_relaxed);          /* F2 */
	atomic_store_explicit(&slot->spawn_ns, now_ns, memory_order_relaxed); /* F2 */

	/* Phase goes back to BOOT with a sequence of its own, so nobody takes it for the dead worker's. */
	shmrt_slot_phase_set(slot, SHMRT_PHASE_BOOT);
	atomic_store_explicit(&slot->task_id, 0, memory_order_relaxed);       /* F2 */
	atomic_store_explicit(&slot->task_start_ns, 0, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&slot->started, 0, memory_order_relaxed);       /* F2 */
	atomic_store_explicit(&slot->done, 0, memory_order_relaxed);          /* F2 */
	atomic_store_explicit(&slot->busy_ns, 0, memory_order_relaxed);       /* F2 */
	atomic_store_explicit(&slot->logs_dropped, 0, memory_order_relaxed);  /* F2 */
	atomic_store_explicit(&slot->blocked_ns, 0, memory_order_relaxed);    /* F2 */

	atomic_store_explicit(&slot->beat_ns, 0, memory_order_relaxed);     /* F2 */
	atomic_store_explicit(&slot->beats, 0, memory_order_relaxed);       /* F2 */
	atomic_store_explicit(&slot->main_cpu_ns, 0, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&slot->rss_bytes, 0, memory_order_relaxed);   /* F2 */

	atomic_store_explicit(&slot->bell, 0, memory_order_relaxed);         /* F2: armed by the dead */
	atomic_store_explicit(&slot->rung_ns, 0, memory_order_relaxed);      /* F2 */
	atomic_store_explicit(&slot->kill_task_id, 0, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&slot->stop_requested, 0, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&slot->kill_reason, SHMRT_KILL_NONE, memory_order_relaxed); /* F2 */
	atomic_store_explicit(&slot->control_count, 0, memory_order_relaxed); /* F2 */

	if (!change_state(slot, SHMRT_SLOT_EMPTY, SHMRT_SLOT_STARTING))
		return SHMRT_STALE;
	shmrt_watch_poke(); /* a sleeping watch of this process takes the new word */
	return SHMRT_OK;
}

void shmrt_slot_set_process(struct shmrt_slot *slot, int32_t pid, uint32_t owner) {
	/* The owner first: who finds a pid can tell a re-used one from the owner's start time. */
	atomic_store_explicit(&slot->owner, owner, memory_order_relaxed); /* F5 */
	atomic_store_explicit(&slot->pid, pid, memory_order_release);     /* F5: pid != 0 -> owner is there */
}

int shmrt_slot_ready(struct shmrt_slot *slot) {
	return change_state(slot, SHMRT_SLOT_STARTING, SHMRT_SLOT_READY) ? SHMRT_OK : SHMRT_STALE;
}

int shmrt_slot_gone(struct shmrt_slot *slot, int32_t wait_status, bool oom) {
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	if (state != SHMRT_SLOT_STARTING && state != SHMRT_SLOT_READY)
		return SHMRT_STALE;
	atomic_store_explicit(&slot->wait_status, wait_status, memory_order_relaxed); /* F2: GONE follows */
	atomic_store_explicit(&slot->oom, oom ? 1 : 0, memory_order_relaxed);         /* F2 */
	return change_state(slot, state, SHMRT_SLOT_GONE) ? SHMRT_OK : SHMRT_STALE;
}

bool shmrt_slot_gone_anyway(struct shmrt_slot *slot, uint32_t epoch, int32_t wait_status, bool oom) {
	bool known = atomic_load_explicit(&slot->epoch, memory_order_relaxed) == epoch; /* F2: ours */
	if (known && shmrt_slot_gone(slot, wait_status, oom) == SHMRT_OK)
		return true;
	atomic_store_explicit(&slot->epoch, epoch, memory_order_relaxed);              /* F2: GONE follows */
	atomic_store_explicit(&slot->wait_status, wait_status, memory_order_relaxed);  /* F2 */
	atomic_store_explicit(&slot->oom, oom ? 1 : 0, memory_order_relaxed);          /* F2 */
	atomic_store_explicit(&slot->state, SHMRT_SLOT_GONE, memory_order_release);    /* F2 */
	return false;
}

int shmrt_slot_free(struct shmrt_slot *slot) {
	return change_state(slot, SHMRT_SLOT_GONE, SHMRT_SLOT_EMPTY) ? SHMRT_OK : SHMRT_STALE;
}

bool shmrt_slot_order_kill(struct shmrt_slot *slot, enum shmrt_kill_reason reason, uint64_t task_id) {
	uint32_t none = SHMRT_KILL_NONE;
	if (atomic_load_explicit(&slot->kill_reason, memory_order_relaxed) != none) /* F6: only a short cut */
		return false;
	/* The id first, so that a reason never stands without it. Only these two have one, and only the hub
	 * gives them: the word has a single writer, and a lost race for the reason leaves an id that no
	 * other reason looks at. */
	if (reason == SHMRT_KILL_TIMEOUT || reason == SHMRT_KILL_CANCEL)
		atomic_store_explicit(&slot->kill_task_id, task_id, memory_order_relaxed); /* F6 */
	return atomic_compare_exchange_strong_explicit(&slot->kill_reason, &none, (uint32_t)reason,
						       memory_order_acq_rel, memory_order_relaxed); /* F6 */
}

void shmrt_slots_ring_all(struct shmrt_control *control) {
	uint32_t count = control->slot_count;
	for (uint32_t i = 0; i < count && i < SHMRT_SLOTS_MAX; i++)
		shmrt_bell_ring_always(&control->slots[i].bell);
}

int shmrt_slot_check(const struct shmrt_slot *slot) {
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	uint32_t kill_reason = atomic_load_explicit(&slot->kill_reason, memory_order_acquire); /* F6 */
	uint64_t phase = shmrt_slot_phase_get(slot) & 0xFF;
	if (state > SHMRT_SLOT_GONE || kill_reason > SHMRT_KILL_RESTART || phase > SHMRT_PHASE_STOPPING)
		return SHMRT_CORRUPT;
	if (state != SHMRT_SLOT_EMPTY && atomic_load_explicit(&slot->epoch, memory_order_relaxed) == 0) /* F2 */
		return SHMRT_CORRUPT;
	if (atomic_load_explicit(&slot->pid, memory_order_acquire) < 0 ||           /* F5 */
	    atomic_load_explicit(&slot->oom, memory_order_relaxed) > 1 ||           /* F2 */
	    atomic_load_explicit(&slot->stop_requested, memory_order_relaxed) > 1) /* a plain flag */
		return SHMRT_CORRUPT;
	return SHMRT_OK;
}
