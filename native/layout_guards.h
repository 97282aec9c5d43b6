/* layout_guards.h -- layout.h continued: breakers, bulkheads and rate limits, which all processes of a runtime share.
 *
 * The rules are those of layout.h, which includes this file; nobody else does. What a writer that dies leaves, and
 * who repairs it, stands in guards.h, breaker.h, bulkhead.h and bucket.h.
 */
#ifndef SHMRT_LAYOUT_GUARDS_H
#define SHMRT_LAYOUT_GUARDS_H

#define SHMRT_GUARD_AREA_BYTES (UINT64_C(16) << 20) /* address space; memory comes in steps, when it is needed */
#define SHMRT_GUARD_STEP_BYTES (UINT64_C(64) << 10)
#define SHMRT_GUARD_NAME_BYTES_MAX 180
#define SHMRT_GUARD_TEXT_BYTES_MAX 504 /* the settings in words, for whoever comes with others */
#define SHMRT_GUARD_COUNTERS 16
#define SHMRT_GUARD_TOLD 14    /* of its counters: refusals that a report has told */
#define SHMRT_GUARD_TOLD_NS 15 /* and when the last report was made */
#define SHMRT_TRIALS_MAX 64           /* calls at once that a half-open breaker lets through */
#define SHMRT_WINDOW_CALLS_MAX 65536  /* results in a count window */
#define SHMRT_WINDOW_BUCKETS_MAX 3600 /* buckets of a time window */
#define SHMRT_PERMITS_MAX 65536       /* permits of one bulkhead */
#define SHMRT_WAITERS_MAX 4096        /* calls that wait for one */
#define SHMRT_GUARD_NO_SLOT 2047      /* a holder that has no slot in the process table */

/* The head of the area, behind the slots, with memory from the start. */
struct shmrt_guards {
	_Atomic uint64_t used;     /* bytes of the area that hold entries, one behind the other; stored last by a join */
	_Atomic uint64_t reserved; /* bytes of the area that have memory; only grows */
	uint64_t offset;           /* where the area begins in the segment; constant */
	uint64_t size;             /* its address space; constant */
	uint8_t reserved0[SHMRT_LINE - 32];
	pthread_mutex_t mutex; /* robust; held by a join only */
	uint8_t reserved1[SHMRT_LINE - sizeof(pthread_mutex_t)];
};
_Static_assert(offsetof(struct shmrt_guards, mutex) == 128, "shared layout changed");
_Static_assert(sizeof(struct shmrt_guards) == 256, "shared layout changed");

enum shmrt_guard_kind {
	SHMRT_GUARD_BREAKER = 1,
	SHMRT_GUARD_BULKHEAD = 2,
	SHMRT_GUARD_BUCKET = 3,
};

/* What every guard begins with; a struct of its kind follows. */
struct shmrt_guard {
	/* constant, once the entry counts */
	uint32_t kind; /* enum shmrt_guard_kind */
	uint32_t size; /* of the whole entry, a multiple of SHMRT_LINE */
	uint32_t name_size;
	uint32_t text_size;
	uint8_t name[184];
	uint8_t text[SHMRT_GUARD_TEXT_BYTES_MAX];
	uint8_t reserved0[64];
	pthread_mutex_t mutex; /* robust; held for some stores, never during a call of the user's */
	uint8_t reserved1[SHMRT_LINE - sizeof(pthread_mutex_t)];
	_Atomic uint64_t counters[SHMRT_GUARD_COUNTERS]; /* of its kind; added to by anybody; they decide nothing */
};
_Static_assert(offsetof(struct shmrt_guard, mutex) == 768, "shared layout changed");
_Static_assert(offsetof(struct shmrt_guard, counters) == 896, "shared layout changed");
_Static_assert(sizeof(struct shmrt_guard) == 1024, "shared layout changed");

/* ---- breaker (breaker.h) ------------------------------------------------------------------------ */
enum shmrt_breaker_state {
	SHMRT_BREAKER_CLOSED = 0,
	SHMRT_BREAKER_OPEN = 1,
	SHMRT_BREAKER_HALF_OPEN = 2,
	SHMRT_BREAKER_FORCED_OPEN = 3,
	SHMRT_BREAKER_DISABLED = 4,
};

enum shmrt_breaker_window {
	SHMRT_WINDOW_NONE = 0,  /* failures in a row */
	SHMRT_WINDOW_CALLS = 1, /* the last `window_size` results */
	SHMRT_WINDOW_TIME = 2,  /* the last `window_size` buckets of `bucket_ns` */
};

/* Constant. Rates are fractions; 0 means that the rate is not looked at. */
struct shmrt_breaker_settings {
	uint32_t failure_threshold; /* WINDOW_NONE: so many failures in a row open it */
	uint32_t success_threshold; /* so many good trials close it again */
	uint32_t half_open_max;     /* trials at once */
	uint32_t window;            /* enum shmrt_breaker_window */
	uint32_t window_size;
	uint32_t min_calls; /* results in the window below which no rate is looked at */
	uint64_t bucket_ns;
	uint64_t slow_ns;  /* a call that takes longer is slow; 0: none is */
	uint64_t reset_ns; /* the wait when it opens for the first time */
	uint64_t reset_max_ns;
	uint64_t trial_ns; /* a trial that takes longer counts as failed */
	double growth;     /* each failed half-open phase makes the next wait so many times longer */
	double failure_rate;
	double slow_rate;
};
_Static_assert(sizeof(struct shmrt_breaker_settings) == 88, "shared layout changed");

struct shmrt_trial {
	uint32_t owner;  /* 0: free */
	uint32_t ticket; /* tells this use of the place from the one before */
	uint32_t slot;   /* of the holder in the process table, or SHMRT_GUARD_NO_SLOT */
	uint32_t reserved0;
	uint64_t until_ns;
};
_Static_assert(sizeof(struct shmrt_trial) == 24, "shared layout changed");

/* All that a breaker knows, twice: the next is written beside the one that counts. */
struct shmrt_breaker_side {
	uint32_t state; /* enum shmrt_breaker_state */
	uint32_t era;   /* raised at each change of state: a result counts in the era that admitted the call */
	uint32_t row;   /* CLOSED: failures in a row; HALF_OPEN: good trials */
	uint32_t attempt; /* times it opened since it was closed */
	uint32_t tickets;
	uint32_t reserved0;
	uint64_t since_ns;      /* of the state */
	_Atomic uint64_t open_until_ns; /* OPEN; also looked at without the mutex (edge Q2) */
	uint64_t results;       /* in the window; HALF_OPEN: trials with a result */
	uint64_t failed;
	uint64_t slow;
	uint64_t position; /* CALLS: of the next result; TIME: number of the bucket that `bucket` is */
	uint64_t bucket_calls, bucket_failed, bucket_slow; /* TIME: of the last bucket, not yet in the ring; counted in results */
	struct shmrt_trial trials[]; /* half_open_max of them; they mean something in HALF_OPEN only */
};
_Static_assert(sizeof(struct shmrt_breaker_side) == 96, "shared layout changed");

/* TIME: one finished bucket. CALLS uses a byte per result: 1 failed, 2 slow. */
struct shmrt_window_bucket {
	uint64_t number;
	uint32_t era; /* of the window that it belongs to */
	uint32_t calls, failed, slow;
};
_Static_assert(sizeof(struct shmrt_window_bucket) == 24, "shared layout changed");

struct shmrt_breaker {
	struct shmrt_guard guard;
	struct shmrt_breaker_settings settings;
	uint32_t side_bytes;    /* of one side, a multiple of 64 */
	uint32_t window_offset; /* from the entry's begin; window_size + 1 bytes or buckets */
	uint8_t reserved0[SHMRT_LINE - 96];
	/* era:32 | commits:24 | spare:3 | watched:1 | side:1 | state:3. The one word whose store makes a change real. */
	_Atomic uint64_t gate;
	uint8_t reserved1[SHMRT_LINE - 8];
	uint8_t sides[]; /* two of them, then the window */
};
_Static_assert(offsetof(struct shmrt_breaker, gate) == 1152, "shared layout changed");
_Static_assert(offsetof(struct shmrt_breaker, sides) == 1280, "shared layout changed");

/* ---- bulkhead (bulkhead.h) ---------------------------------------------------------------------- */
struct shmrt_waiter {
	_Atomic uint64_t word; /* as a permit's; 0: free */
	uint64_t order;        /* who came first goes first */
	uint64_t seen_ns;      /* when it last looked: who does not look is passed by */
};
_Static_assert(sizeof(struct shmrt_waiter) == 24, "shared layout changed");

struct shmrt_bulkhead {
	struct shmrt_guard guard;
	uint32_t capacity;            /* permit words; constant */
	uint32_t most_waiting;        /* calls that may wait; constant */
	_Atomic uint32_t limit;       /* permits that may be out at once, up to capacity */
	_Atomic uint32_t used;        /* permit words that are not 0: counted again by a repair */
	_Atomic uint32_t waiting;     /* waiter words that are not 0: as above */
	_Atomic uint32_t hint;        /* a permit word that may be 0 */
	_Atomic uint32_t high_water;
	_Atomic uint32_t tickets;
	_Atomic uint64_t orders;
	_Atomic uint32_t bell; /* raised with each permit that comes back while somebody waits; waiters sleep on it */
	uint8_t reserved0[SHMRT_LINE - 44];
	_Atomic uint64_t words[]; /* capacity permits: owner:32 | slot:11 | ticket:21, or 0; then waiters (shmrt_bulkhead_places) */
};
_Static_assert(offsetof(struct shmrt_bulkhead, words) == 1152, "shared layout changed");

/* ---- rate limit (bucket.h) ---------------------------------------------------------------------- */
struct shmrt_bucket {
	struct shmrt_guard guard;
	uint64_t token_ns; /* one token comes every so often; constant */
	uint64_t burst;    /* tokens that a full bucket holds; constant */
	uint8_t reserved0[SHMRT_LINE - 16];
	_Atomic uint64_t full_ns; /* when the bucket is full again if nothing more is taken; compare-and-swap by anybody */
	uint8_t reserved1[SHMRT_LINE - 8];
};
_Static_assert(offsetof(struct shmrt_bucket, full_ns) == 1152, "shared layout changed");
_Static_assert(sizeof(struct shmrt_bucket) == 1280, "shared layout changed");

#endif
