/* bucket.c -- see bucket.h. */
#include "bucket.h"

int shmrt_bucket_fill(struct shmrt_guard *guard, const void *settings) {
	const struct shmrt_bucket_settings *made = settings;
	struct shmrt_bucket *bucket = (struct shmrt_bucket *)(void *)guard;
	bucket->token_ns = made->token_ns;
	bucket->burst = made->burst;
	return SHMRT_OK;
}

bool shmrt_bucket_is_sound(const struct shmrt_bucket *bucket) {
	return bucket->guard.kind == SHMRT_GUARD_BUCKET && bucket->guard.size >= sizeof(*bucket) && bucket->token_ns != 0 &&
	       bucket->burst != 0 && bucket->burst <= INT64_MAX / bucket->token_ns;
}

int shmrt_bucket_take(struct shmrt_bucket *bucket, uint64_t tokens, uint64_t now, uint64_t patience_ns, uint64_t *wait_ns) {
	if (tokens > bucket->burst)
		return SHMRT_TOO_LARGE;
	uint64_t full = atomic_load_explicit(&bucket->full_ns, memory_order_relaxed); /* orders nothing but itself */
	for (;;) {
		uint64_t next, room = bucket->burst * bucket->token_ns; /* below 2^63 */
		bool ends = __builtin_add_overflow(full > now ? full : now, tokens * bucket->token_ns, &next);
		uint64_t ahead = ends ? UINT64_MAX : next - now;
		*wait_ns = ahead > room ? ahead - room : 0;
		if (ends || *wait_ns > patience_ns) { /* no word says a time after the end of all times: nothing is promised there */
			shmrt_guard_count(&bucket->guard, SHMRT_BUCKET_REFUSED, 1);
			return SHMRT_FULL;
		}
		if (atomic_compare_exchange_weak_explicit(&bucket->full_ns, &full, next, memory_order_relaxed, memory_order_relaxed)) /* orders nothing but itself */
			break;
	}
	shmrt_guard_count(&bucket->guard, SHMRT_BUCKET_TAKEN, tokens);
	if (*wait_ns != 0)
		shmrt_guard_count(&bucket->guard, SHMRT_BUCKET_WAITED, 1);
	return SHMRT_OK;
}

uint64_t shmrt_bucket_tokens(const struct shmrt_bucket *bucket, uint64_t now) {
	uint64_t full = atomic_load_explicit(&bucket->full_ns, memory_order_relaxed); /* orders nothing but itself */
	uint64_t ahead = full > now ? full - now : 0, room = bucket->burst * bucket->token_ns;
	return ahead >= room ? 0 : (room - ahead) / bucket->token_ns;
}

void shmrt_bucket_refill(struct shmrt_bucket *bucket) { atomic_store_explicit(&bucket->full_ns, 0, memory_order_relaxed); /* orders nothing but itself */ }
