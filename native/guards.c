/* guards.c -- see guards.h. */
#include "guards.h"

#include <errno.h>
#include <time.h>

#define SPIN_TRIES 64
#define JOIN_PATIENCE_NS INT64_C(1000000000)

#define LOAD(word) atomic_load_explicit(&(word), memory_order_relaxed) /* under the mutex, or checked afterwards */

/* ---- the mutex ---------------------------------------------------------------------------------- */

static int lock_within(pthread_mutex_t *mutex, int64_t patience_ns) {
	if (SHMRT_UNLIKELY(!shmrt_mutex_is_sound(mutex)))
		return EINVAL;
	int error = pthread_mutex_trylock(mutex);
	for (int i = 0; error == EBUSY && i < SPIN_TRIES; i++) {
		shmrt_pause();
		error = pthread_mutex_trylock(mutex);
	}
	if (error != EBUSY || patience_ns <= 0)
		return error;
	return shmrt_mutex_lock_within(mutex, (uint64_t)patience_ns);
}

static int lock(pthread_mutex_t *mutex, int64_t patience_ns) {
	int error = lock_within(mutex, patience_ns);
	if (SHMRT_LIKELY(error == 0))
		return SHMRT_OK;
	if (error == EBUSY || error == ETIMEDOUT)
		return SHMRT_INTERRUPTED;
	if (error != EOWNERDEAD)
		return SHMRT_CORRUPT;
	if (pthread_mutex_consistent(mutex) != 0) {
		pthread_mutex_unlock(mutex);
		return SHMRT_CORRUPT;
	}
	return SHMRT_STALE;
}

static void unlock(pthread_mutex_t *mutex) {
	int error = pthread_mutex_unlock(mutex);
	SHMRT_ASSERT(error == 0);
}

int shmrt_guard_lock(struct shmrt_guard *guard, int64_t patience_ns) { return lock(&guard->mutex, patience_ns); }
void shmrt_guard_unlock(struct shmrt_guard *guard) { unlock(&guard->mutex); }

/* ---- the area ----------------------------------------------------------------------------------- */

int shmrt_guards_format(struct shmrt_guards *head, uint64_t offset) {
	atomic_store_explicit(&head->used, 0, memory_order_relaxed);     /* S1: the segment's magic follows */
	atomic_store_explicit(&head->reserved, 0, memory_order_relaxed); /* S1 */
	head->offset = offset;
	head->size = SHMRT_GUARD_AREA_BYTES;
	return shmrt_mutex_make(&head->mutex);
}

int shmrt_guards_check(const struct shmrt_control *control, uint64_t size) {
	const struct shmrt_guards *head = shmrt_guards_of(control);
	if (head->size != SHMRT_GUARD_AREA_BYTES || head->offset > size || head->size > size - head->offset)
		return SHMRT_CORRUPT;
	return SHMRT_OK;
}

int shmrt_guard_area_attach(struct shmrt_guard_area *area, struct shmrt_control *control, uint64_t size, int fd, uint32_t slot) {
	int outcome = shmrt_guards_check(control, size);
	if (outcome != SHMRT_OK)
		return outcome;
	struct shmrt_guards *head = shmrt_guards_of(control);
	*area = (struct shmrt_guard_area){
		.control = control, .head = head, .entries = (uint8_t *)control + head->offset, .slot = slot, .fd = fd};
	return SHMRT_OK;
}

/* The entry at `offset` below `used`, or NULL when its numbers are none that a join leaves. */
static struct shmrt_guard *entry_at(const struct shmrt_guard_area *area, uint64_t offset, uint64_t used) {
	if (offset > used || used - offset < sizeof(struct shmrt_guard))
		return NULL;
	struct shmrt_guard *guard = (struct shmrt_guard *)(void *)(area->entries + offset);
	bool sound = guard->size >= sizeof(*guard) && guard->size % SHMRT_LINE == 0 && guard->size <= used - offset &&
		     guard->name_size <= SHMRT_GUARD_NAME_BYTES_MAX && guard->text_size <= SHMRT_GUARD_TEXT_BYTES_MAX;
	return sound ? guard : NULL;
}

static uint64_t used_of(const struct shmrt_guard_area *area) {
	uint64_t used = atomic_load_explicit(&area->head->used, memory_order_acquire); /* G1 */
	return used <= SHMRT_GUARD_AREA_BYTES ? used : 0;
}

struct shmrt_guard *shmrt_guard_next(const struct shmrt_guard_area *area, const struct shmrt_guard *before) {
	uint64_t offset = 0;
	if (before != NULL)
		offset = (uint64_t)((const uint8_t *)before - area->entries) + before->size;
	return entry_at(area, offset, used_of(area));
}

static struct shmrt_guard *find(const struct shmrt_guard_area *area, const struct shmrt_guard_plan *plan) {
	struct shmrt_guard *guard = NULL;
	while ((guard = shmrt_guard_next(area, guard)) != NULL)
		if (guard->kind == plan->kind && guard->name_size == plan->name_size &&
		    memcmp(guard->name, plan->name, plan->name_size) == 0)
			return guard;
	return NULL;
}

static int reserve(struct shmrt_guard_area *area, uint64_t end, struct shmrt_shortage *shortage) {
	uint64_t reserved = LOAD(area->head->reserved);
	if (end <= reserved)
		return SHMRT_OK;
	uint64_t to = shmrt_align_up(end, SHMRT_GUARD_STEP_BYTES);
	if (to > SHMRT_GUARD_AREA_BYTES)
		to = SHMRT_GUARD_AREA_BYTES;
	int outcome = shmrt_segment_reserve(area->fd, area->head->offset + reserved, to - reserved, shortage);
	if (outcome == SHMRT_OK)
		atomic_store_explicit(&area->head->reserved, to, memory_order_relaxed); /* under the mutex */
	return outcome;
}

int shmrt_guard_format(struct shmrt_guard *guard, const struct shmrt_guard_plan *plan) {
	guard->kind = plan->kind;
	guard->size = (uint32_t)shmrt_guard_bytes(plan->body_bytes);
	guard->name_size = (uint32_t)plan->name_size;
	guard->text_size = (uint32_t)plan->text_size;
	memcpy(guard->name, plan->name, plan->name_size);
	memcpy(guard->text, plan->text, plan->text_size);
	int outcome = shmrt_mutex_make(&guard->mutex);
	return outcome == SHMRT_OK ? plan->fill(guard, plan->settings) : outcome;
}

/* Under the mutex of the head: a new entry behind the last one. */
static int append(struct shmrt_guard_area *area, const struct shmrt_guard_plan *plan, struct shmrt_guard **guard,
		  struct shmrt_shortage *shortage) {
	uint64_t used = LOAD(area->head->used), bytes = shmrt_guard_bytes(plan->body_bytes);
	if (used > SHMRT_GUARD_AREA_BYTES || used % SHMRT_LINE != 0) /* used_of says 0 then, where others have their entries */
		return SHMRT_CORRUPT;
	if (bytes > SHMRT_GUARD_AREA_BYTES - used) {
		shortage->needed = 0;
		return SHMRT_NO_SPACE;
	}
	int outcome = reserve(area, used + bytes, shortage);
	if (outcome != SHMRT_OK)
		return outcome;
	*guard = (struct shmrt_guard *)(void *)(area->entries + used);
	memset((void *)*guard, 0, bytes); /* a join that died may have begun here */
	outcome = shmrt_guard_format(*guard, plan);
	if (outcome == SHMRT_OK)
		atomic_store_explicit(&area->head->used, used + bytes, memory_order_release); /* G1: now it is there */
	return outcome;
}

int shmrt_guard_join(struct shmrt_guard_area *area, const struct shmrt_guard_plan *plan, struct shmrt_guard **guard, bool *made,
		     struct shmrt_shortage *shortage) {
	*made = false;
	*guard = find(area, plan);
	if (*guard == NULL) {
		int outcome = lock(&area->head->mutex, JOIN_PATIENCE_NS);
		if (outcome != SHMRT_OK && outcome != SHMRT_STALE)
			return outcome;
		*guard = find(area, plan); /* somebody else was faster */
		outcome = SHMRT_OK;
		if (*guard == NULL) {
			outcome = append(area, plan, guard, shortage);
			*made = outcome == SHMRT_OK;
		}
		unlock(&area->head->mutex);
		if (outcome != SHMRT_OK)
			return outcome;
	}
	bool same = (*guard)->text_size == plan->text_size && memcmp((*guard)->text, plan->text, plan->text_size) == 0 &&
		    (*guard)->size == shmrt_guard_bytes(plan->body_bytes);
	return same ? SHMRT_OK : SHMRT_FOREIGN;
}

/* ---- holders ------------------------------------------------------------------------------------ */

static uint64_t refused_so_far(const struct shmrt_guard *guard, uint32_t refusals) {
	uint64_t sum = 0;
	for (int i = 0; i < SHMRT_GUARD_TOLD; i++)
		if (refusals >> i & 1)
			sum += atomic_load_explicit(&guard->counters[i], memory_order_relaxed); /* a count by itself */
	return sum;
}

bool shmrt_guard_has_news(const struct shmrt_guard *guard, uint32_t refusals) {
	uint64_t told = atomic_load_explicit(&guard->counters[SHMRT_GUARD_TOLD], memory_order_relaxed); /* a count by itself */
	return refused_so_far(guard, refusals) > told;
}

uint64_t shmrt_guard_take_report(struct shmrt_guard *guard, uint32_t refusals, uint64_t now_ns) {
	_Atomic uint64_t *told = &guard->counters[SHMRT_GUARD_TOLD], *at = &guard->counters[SHMRT_GUARD_TOLD_NS];
	uint64_t told_ns = atomic_load_explicit(at, memory_order_relaxed); /* a count by itself */
	if ((told_ns != 0 && now_ns - told_ns < SHMRT_GUARD_REPORT_NS) || !shmrt_guard_has_news(guard, refusals) ||
	    !atomic_compare_exchange_strong_explicit(at, &told_ns, now_ns, memory_order_relaxed, memory_order_relaxed)) /* a turn */
		return 0;
	uint64_t before = atomic_load_explicit(told, memory_order_relaxed); /* a count by itself */
	uint64_t total = refused_so_far(guard, refusals);
	while (before < total)
		if (atomic_compare_exchange_weak_explicit(told, &before, total, memory_order_relaxed, memory_order_relaxed)) /* a count */
			return total - before;
	return 0;
}

bool shmrt_holder_is_alive(const struct shmrt_control *control, struct shmrt_holder holder) {
	if (holder.owner == shmrt_owner_self())
		return true;
	if (control == NULL || holder.slot >= control->slot_count)
		return shmrt_owner_is_alive(holder.owner);
	const struct shmrt_slot *slot = &control->slots[holder.slot];
	if (atomic_load_explicit(&slot->owner, memory_order_acquire) != holder.owner) /* F5: somebody else's by now */
		return false;
	uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire); /* F2 */
	return (state == SHMRT_SLOT_STARTING || state == SHMRT_SLOT_READY) && !shmrt_slot_is_abandoned(slot);
}
