/* bucket.h -- a token bucket in one word: the generic cell rate algorithm (ITU-T I.371).
 *
 * `full_ns` is the time at which the bucket is full again if nobody takes more. Taking n tokens moves it n * token_ns later; a full
 * bucket holds `burst` tokens, so it may be at most burst * token_ns ahead of now. One compare-and-swap takes tokens, wholly or not
 * at all: there is nothing to repair. Who dies after it has taken tokens has used them up.
 *
 * The word orders nothing but itself, so every access is relaxed.
 */
#ifndef SHMRT_BUCKET_H
#define SHMRT_BUCKET_H

#include "guards.h"

enum {
	SHMRT_BUCKET_TAKEN,   /* tokens */
	SHMRT_BUCKET_REFUSED, /* calls */
	SHMRT_BUCKET_WAITED,  /* calls that were told to wait */
};

struct shmrt_bucket_settings {
	uint64_t token_ns;
	uint64_t burst;
};
int shmrt_bucket_fill(struct shmrt_guard *, const void *settings);
bool shmrt_bucket_is_sound(const struct shmrt_bucket *);
/* Takes `tokens`, which are there after *wait_ns, if that is at most patience_ns; FULL otherwise, and nothing is taken (also where the
 * time would not fit the word: then *wait_ns is too short). TOO_LARGE: more than the bucket ever holds. */
SHMRT_MUST_USE int shmrt_bucket_take(struct shmrt_bucket *, uint64_t tokens, uint64_t now_ns, uint64_t patience_ns, uint64_t *wait_ns);
/* Whole tokens that are there now. */
uint64_t shmrt_bucket_tokens(const struct shmrt_bucket *, uint64_t now_ns);
void shmrt_bucket_refill(struct shmrt_bucket *); /* full at once */

#endif
