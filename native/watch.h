/* watch.h -- what slots.c and watch.c share; no other file needs it. */
#ifndef SHMRT_WATCH_H
#define SHMRT_WATCH_H

#include "layout.h"

/* The futex word inside a robust mutex: the owner's thread id, FUTEX_WAITERS, FUTEX_OWNER_DIED. The
 * kernel gives the bits their meaning; glibc keeps the word in `__lock`. */
static inline _Atomic uint32_t *shmrt_death_word(struct shmrt_slot *slot) {
	_Static_assert(sizeof(slot->death.__data.__lock) == sizeof(uint32_t), "the lock word is a futex");
	return (_Atomic uint32_t *)(void *)&slot->death.__data.__lock;
}

/* Makes a sleeping shmrt_slots_watch of this process choose its words anew. Free when none sleeps. */
void shmrt_watch_poke(void);

#endif
