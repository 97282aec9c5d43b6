/* layout.h -- the meaning of every byte that processes share. The only such description.
 *
 * Rules: fixed-width fields, no pointers (offsets and indexes only), explicit `reserved`, words that
 * different processes write are SHMRT_LINE bytes apart, every offset asserted. Any change raises
 * SHMRT_LAYOUT_VERSION; tests/layout.snap freezes the numbers.
 *
 * Words written by exactly one process need no lock. The few words with several writers are changed
 * by compare-and-swap only, and the comment says who may make which change.
 */
#ifndef SHMRT_LAYOUT_H
#define SHMRT_LAYOUT_H

#include "base.h"
#include <pthread.h>

#define SHMRT_LAYOUT_VERSION 5
#define SHMRT_MAGIC UINT64_C(0x54524D48530A1A00) /* "..\nSHMRT" */

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "a lock cannot cross a process");

/* ---- segment header: the first SHMRT_LINE bytes of every segment --------------------------------
 * Written by the creator before anybody else can see it; `magic` is stored last (edge S1), so a
 * reader that finds the magic finds the rest. A creator that dies before leaves magic 0: not ready. */
enum shmrt_segment_kind {
	SHMRT_SEGMENT_CONTROL = 1, /* process slots of one runtime */
	SHMRT_SEGMENT_LANES = 2,   /* lane pairs of one pool */
	SHMRT_SEGMENT_ARENA = 3,   /* payload blocks */
	SHMRT_SEGMENT_RING = 4,    /* one many-to-many ring */
	SHMRT_SEGMENT_BOARD = 5,   /* what observers read */
};

struct shmrt_segment_header {
	_Atomic uint64_t magic;
	uint32_t layout_version;
	uint32_t kind;
	uint64_t size;       /* bytes of the whole segment, header included */
	uint64_t token[2];   /* random; equal tokens mean the same segment */
	uint32_t creator;    /* owner id */
	uint32_t reserved0;
	uint64_t created_ns;
	uint8_t reserved[SHMRT_LINE - 56];
};
_Static_assert(offsetof(struct shmrt_segment_header, size) == 16, "shared layout changed");
_Static_assert(sizeof(struct shmrt_segment_header) == SHMRT_LINE, "shared layout changed");

/* ---- process slots (slots.h): control segment = header, geometry, slots ------------------------- */
#define SHMRT_SLOTS_MAX 1024
#define SHMRT_SLOT_PROGRAM 0 /* the program's hub thread */
#define SHMRT_SLOT_ROOT 1    /* the root supervisor process */
#define SHMRT_SLOT_FIRST_WORKER 2

/* state: EMPTY -> STARTING (root claims it and writes pid, epoch) -> READY (the worker itself)
 *        -> GONE (root, once the pidfd says so and the status is reaped; the program in its place
 *        when the root is dead too) -> EMPTY (the program's hub, after it has drained and reset). */
enum shmrt_slot_state {
	SHMRT_SLOT_EMPTY = 0,
	SHMRT_SLOT_STARTING = 1,
	SHMRT_SLOT_READY = 2,
	SHMRT_SLOT_GONE = 3,
};

enum shmrt_phase {
	SHMRT_PHASE_BOOT = 0,    /* not in the loop yet */
	SHMRT_PHASE_PARKED = 1,  /* asleep on its bell; no beat needed */
	SHMRT_PHASE_SPIN = 2,    /* polling for work */
	SHMRT_PHASE_DECODE = 3,  /* reading a message; user code may run in __setstate__ */
	SHMRT_PHASE_RUN = 4,     /* in the user's function */
	SHMRT_PHASE_ENCODE = 5,  /* turning the result into bytes */
	SHMRT_PHASE_BLOCKED = 6, /* waiting for room in the result lane */
	SHMRT_PHASE_STOPPING = 7,
};

/* Why shmrt itself ends a worker; such deaths cost a message no attempt, except TIMEOUT and CANCEL,
 * which decide the message they were meant for. */
enum shmrt_kill_reason {
	SHMRT_KILL_NONE = 0,
	SHMRT_KILL_TIMEOUT = 1, /* the task's running time passed */
	SHMRT_KILL_CANCEL = 2,  /* Future.kill() */
	SHMRT_KILL_CHAOS = 3,
	SHMRT_KILL_RECYCLE = 4,
	SHMRT_KILL_SHRINK = 5,
	SHMRT_KILL_STOP = 6,    /* pool or runtime ends */
	SHMRT_KILL_ROOT_LOST = 7,
	SHMRT_KILL_RESTART = 8, /* a neighbour's restart took it along */
};

struct shmrt_slot {
	/* line 0: written by the root (by the worker for STARTING -> READY, the hub for GONE -> EMPTY) */
	_Atomic uint32_t state;
	_Atomic uint32_t epoch;      /* raised at each claim; 0 means never used */
	_Atomic int32_t pid;
	_Atomic int32_t wait_status; /* as waitpid gives it; valid in GONE */
	_Atomic uint32_t owner;      /* owner id of the process */
	_Atomic uint32_t pool;       /* which pool it serves */
	_Atomic uint32_t worker;     /* its index within the pool, kept over restarts */
	_Atomic uint32_t oom;        /* 1: the cgroup's OOM counter moved when it died; valid in GONE */
	_Atomic uint64_t spawn_ns;
	uint8_t reserved0[SHMRT_LINE - 40];

	/* line 1: written by the worker's main thread. Order: task_id and task_start_ns, then phase
	 * (release, edge F1), so that who reads phase RUN reads the task it belongs to. */
	_Atomic uint64_t phase; /* sequence << 8 | enum shmrt_phase */
	_Atomic uint64_t task_id;
	_Atomic uint64_t task_start_ns;
	_Atomic uint64_t started;
	_Atomic uint64_t done;
	_Atomic uint64_t busy_ns;
	_Atomic uint64_t logs_dropped;
	_Atomic uint64_t blocked_ns;
	uint8_t reserved1[SHMRT_LINE - 64];

	/* line 2: written by the beat thread */
	_Atomic uint64_t beat_ns;
	_Atomic uint64_t beats;
	_Atomic uint64_t main_cpu_ns;
	_Atomic uint64_t rss_bytes;
	uint8_t reserved2[SHMRT_LINE - 32];

	/* line 3: robust, process-shared; locked by the main thread for life, never unlocked by it.
	 * The kernel sets FUTEX_OWNER_DIED in its word at death. Only the root sleeps on it. */
	pthread_mutex_t death;
	uint8_t reserved3[SHMRT_LINE - sizeof(pthread_mutex_t)];

	/* line 4: the bell (bell.h). Armed by its owner, cleared by whoever rings. */
	_Atomic uint32_t bell;
	_Atomic uint32_t bell_rings;
	_Atomic uint64_t rung_ns; /* when a worker that may defer its ring last rang, or woke a thread: all defer by it. A hint */
	uint8_t reserved4[SHMRT_LINE - 16];

	/* line 5: written by the program's hub or the root before they signal (first writer wins, by
	 * compare-and-swap from SHMRT_KILL_NONE); cleared by the root at the next claim. */
	_Atomic uint32_t kill_reason;
	_Atomic uint32_t stop_requested;
	_Atomic uint64_t kill_task_id; /* the task that TIMEOUT and CANCEL were meant for */
	uint8_t reserved5[SHMRT_LINE - 16];

	/* line 6: added to by the root, and by the process itself in its handler of TERM. How many messages the root sent
	 * to the process over its socket: a server looks at the word instead of the socket (edge C5). */
	_Atomic uint32_t control_count;
	uint8_t reserved6[2 * SHMRT_LINE - 4];
};
_Static_assert(offsetof(struct shmrt_slot, phase) == 128, "shared layout changed");
_Static_assert(offsetof(struct shmrt_slot, beat_ns) == 256, "shared layout changed");
_Static_assert(offsetof(struct shmrt_slot, death) == 384, "shared layout changed");
_Static_assert(offsetof(struct shmrt_slot, bell) == 512, "shared layout changed");
_Static_assert(offsetof(struct shmrt_slot, kill_reason) == 640, "shared layout changed");
_Static_assert(offsetof(struct shmrt_slot, control_count) == 768, "shared layout changed");
_Static_assert(sizeof(struct shmrt_slot) == 1024, "shared layout changed");

struct shmrt_control {
	struct shmrt_segment_header header;
	uint32_t slot_count;
	uint32_t reserved0;
	_Atomic uint64_t root_generation; /* raised by the program each time it starts a root */
	/* Constant. Both lie behind the slots, and memory is behind them only once somebody reserved it: a
	 * runtime without servers never does. */
	uint64_t calls_offset; /* call_count call slots */
	uint64_t names_offset; /* the registry of names */
	uint32_t call_count;
	uint32_t name_count;
	_Atomic uint32_t extended; /* 1: memory is behind calls and names */
	uint8_t reserved[SHMRT_LINE - 44];
	struct shmrt_slot slots[]; /* slot_count of them, then a struct shmrt_guards */
};
_Static_assert(offsetof(struct shmrt_control, slots) == 2 * SHMRT_LINE, "shared layout changed");

/* ---- lanes (lane.h): one producer, one consumer ------------------------------------------------- */
struct shmrt_lane_shared {
	_Alignas(SHMRT_LINE) _Atomic uint64_t tail; /* only the producer stores it */
	_Alignas(SHMRT_LINE) _Atomic uint64_t head; /* only the consumer stores it */
	_Alignas(SHMRT_LINE) uint8_t data[];        /* capacity bytes, a power of two */
};
_Static_assert(offsetof(struct shmrt_lane_shared, head) == 128, "shared layout changed");
_Static_assert(offsetof(struct shmrt_lane_shared, data) == 256, "shared layout changed");

/* A lane segment: this, then `pair_count` times (task lane, result lane), each lane
 * sizeof(struct shmrt_lane_shared) + its capacity bytes. */
struct shmrt_lanes {
	struct shmrt_segment_header header;
	uint32_t pair_count;
	uint32_t reserved0;
	uint64_t task_capacity;
	uint64_t result_capacity;
	uint8_t reserved[SHMRT_LINE - 24];
};
_Static_assert(sizeof(struct shmrt_lanes) == 2 * SHMRT_LINE, "shared layout changed");

/* Kinds of record. Task lane: TASK to STOP. Result lane: RESULT to EXPIRED. */
enum shmrt_record_kind {
	SHMRT_RECORD_PAD = 0,       /* fills the end of the lane; skipped */
	SHMRT_RECORD_TASK = 1,      /* id: task, function: which, body: arguments */
	SHMRT_RECORD_FUNCTION = 2,  /* function: its number, body: its pickle */
	SHMRT_RECORD_FORGET = 3,    /* function: number that will not be used again */
	SHMRT_RECORD_STOP = 4,      /* leave the loop when all before it is done */
	SHMRT_RECORD_CHUNK = 5,     /* id: task, function: which, attempt: number of items | of those that went before <<
				       SHMRT_CHUNK_FIRST_SHIFT | SHMRT_CHUNK_STAR, body: the items */
	SHMRT_RECORD_RESULT = 16,   /* id: task, body: value */
	SHMRT_RECORD_ERROR = 17,    /* id: task, body: exception */
	SHMRT_RECORD_LOG = 18,      /* body: log record */
	SHMRT_RECORD_EXIT = 19,     /* body: what worker_exit returned; last record of a worker */
	SHMRT_RECORD_START_FAILED = 20, /* body: why the worker could not become ready */
	SHMRT_RECORD_EXPIRED = 21,      /* id: task that the worker did not begin, since its deadline was over */
	SHMRT_RECORD_PART = 22,         /* id: a chunk, attempt: its first outcome here, function: epoch of the worker, claim: bit 0 in
					   the last one, and the running time in SHMRT_PART_TICK_NS << 1, body: a progress word and outcomes */
};
#define SHMRT_ATTEMPT_DEADLINE (UINT32_C(1) << 31)
#define SHMRT_CHUNK_STAR (UINT32_C(1) << 31) /* each item is a tuple of arguments */
#define SHMRT_CHUNK_ITEMS_MAX 1023
#define SHMRT_CHUNK_FIRST_SHIFT 10
#define SHMRT_CLAIM_BEGUN_SHIFT 12 /* in the claim word of a chunk: how many items were begun ... */
#define SHMRT_CLAIM_END_SHIFT 22   /* ... and how many may be */
#define SHMRT_PART_TICK_NS 16

struct shmrt_record_header {
	uint32_t size;        /* header, block references, inline bytes and padding; a multiple of 16 */
	uint8_t kind;         /* enum shmrt_record_kind */
	uint8_t flags;        /* SHMRT_MESSAGE_* */
	uint16_t block_count; /* block references that follow the header */
	uint64_t id;
	uint32_t inline_size; /* bytes of inline body after the references */
	uint32_t function;
	uint32_t attempt;     /* TASK: SHMRT_ATTEMPT_DEADLINE set: 8 bytes of deadline follow the inline body */
	uint32_t claim;       /* TASK, CHUNK: low bits 0 offered, 1 taken by the worker, 2 taken back by the hub; 0x100: may run again (hub.h, H1) */
};
_Static_assert(sizeof(struct shmrt_record_header) == 32, "shared layout changed");

/* ---- messages: inline bytes plus references to arena blocks ------------------------------------- */
enum shmrt_message_flags {
	SHMRT_MESSAGE_BODY_IN_BLOCK = 1, /* the first block holds the body; inline_size is 0 */
	SHMRT_MESSAGE_READ_ONLY = 2,     /* buffers arrive read-only */
	SHMRT_MESSAGE_HAS_PICKLE = 4,    /* decoding may run user code */
	SHMRT_MESSAGE_HAS_ARRAY = 8,     /* decoding needs numpy, which the receiver may lack */
};

struct shmrt_block_reference {
	uint64_t block;      /* index into the arena's block words */
	uint64_t size;       /* bytes used */
	uint32_t generation; /* must equal the word's, else the reference is stale */
	uint32_t flags;      /* bit 0: read-only for the receiver; bit 1: SHMRT_REFERENCE_RETURNED */
};
#define SHMRT_REFERENCE_READ_ONLY 1
#define SHMRT_REFERENCE_RETURNED 2 /* in a result: a block of this task's own arguments, which is its sender's already */
_Static_assert(sizeof(struct shmrt_block_reference) == 24, "shared layout changed");

/* ---- arena (arena.h) ---------------------------------------------------------------------------- */
#define SHMRT_GRANULE_BYTES (UINT64_C(256) << 10)
#define SHMRT_BLOCK_BYTES_MIN UINT64_C(1024)
#define SHMRT_BLOCKS_PER_GRANULE (SHMRT_GRANULE_BYTES / SHMRT_BLOCK_BYTES_MIN)
#define SHMRT_CLASS_BYTES_MAX (UINT64_C(64) << 20) /* above: a run of granules of its own */
#define SHMRT_CLASS_COUNT 17                       /* 1 KiB << 0 .. 1 KiB << 16 = 64 MiB */
#define SHMRT_CLASS_RUN 31                         /* class of a run beyond the biggest class */

/* A segment: this header, granule words, block words, then data. Virtual size is fixed at creation
 * (address space only); a granule and its words are reserved when first needed. Words are never given
 * back: they keep the generations. */
struct shmrt_arena_shared {
	struct shmrt_segment_header header;
	uint64_t granule_count;
	uint64_t granule_words_offset; /* _Atomic uint64_t[granule_count] */
	uint64_t block_words_offset;   /* _Atomic uint64_t[granule_count * SHMRT_BLOCKS_PER_GRANULE] */
	uint64_t data_offset;          /* granule_count * SHMRT_GRANULE_BYTES bytes */
	uint64_t limit_bytes;          /* most that may be reserved */
	uint8_t reserved0[SHMRT_LINE - 40];
	_Alignas(SHMRT_LINE) _Atomic uint64_t reserved_granules; /* statistics, as the last growth or trim counted it */
	_Atomic uint64_t granules_high; /* words of granules below it are reserved; none above was ever claimed (only grows) */
	uint8_t reserved1[SHMRT_LINE - 16];
	/* hints only: block + 1 of blocks just freed, one line per class; 0: nothing. Anybody may store. */
	_Alignas(SHMRT_LINE) _Atomic uint64_t hints[SHMRT_CLASS_COUNT][SHMRT_LINE / 8];
};
_Static_assert(offsetof(struct shmrt_arena_shared, reserved_granules) == 2 * SHMRT_LINE, "shared layout changed");
_Static_assert(offsetof(struct shmrt_arena_shared, hints) == 3 * SHMRT_LINE, "shared layout changed");
_Static_assert(sizeof(struct shmrt_arena_shared) == (3 + SHMRT_CLASS_COUNT) * SHMRT_LINE, "shared layout changed");

/* granule word: state:4 | class:5 | reserved:3 | run:20 | owner:32 */
enum shmrt_granule_state {
	SHMRT_GRANULE_FREE = 0,     /* no memory behind it */
	SHMRT_GRANULE_CLAIMED = 1,  /* owner reserves or returns memory (run: of the run begun here, else 0) */
	SHMRT_GRANULE_HEAD = 2,     /* first of `run` granules that hold blocks of `class` */
	SHMRT_GRANULE_BODY = 3,     /* belongs to the HEAD (or CLAIMED) `run` granules before it */
};

/* block word: state:4 | generation:28 | owner:32. Changed by compare-and-swap only. */
enum shmrt_block_state {
	SHMRT_BLOCK_FREE = 0,    /* anybody may take it */
	SHMRT_BLOCK_WRITING = 1, /* owner fills it; nobody else knows it */
	SHMRT_BLOCK_SENT = 2,    /* in flight in a lane; owner is the sender */
	SHMRT_BLOCK_HELD = 3,    /* owner has a view on it */
	SHMRT_BLOCK_KEPT = 4,    /* was SENT by another; the owner still has views though its task ended */
	SHMRT_BLOCK_QUEUED = 5,  /* named by a committed record of a many-to-many ring; owner 0 */
};

/* ---- many-to-many ring (ring.h) ----------------------------------------------------------------- */
enum shmrt_ring_full_policy {
	SHMRT_RING_BLOCK = 0,
	SHMRT_RING_RAISE = 1,
	SHMRT_RING_DROP_OLDEST = 2,
	SHMRT_RING_DROP_NEWEST = 3,
};

enum shmrt_ring_slot_state {
	SHMRT_RING_SLOT_FREE = 0,
	SHMRT_RING_SLOT_FULL = 1,   /* holds a message */
	SHMRT_RING_SLOT_LEASED = 2, /* a consumer works on it; back to FULL if that process dies */
	SHMRT_RING_SLOT_DONE = 3,   /* handed out behind an older one still held: a hole until the head passes */
	/* Only inside a hold of a mutex; who finds one of these in a repair finishes or undoes it. */
	SHMRT_RING_SLOT_TAKING = 4,   /* blocks go QUEUED -> HELD|owner; undone: FULL again */
	SHMRT_RING_SLOT_FREEING = 5,  /* blocks go QUEUED -> FREE; finished: DONE */
	SHMRT_RING_SLOT_DROPPING = 6, /* as FREEING, and `dropped` becomes aside */
	SHMRT_RING_SLOT_MOVING = 7,   /* copied to a hole: aside = distance << 8 | state there; finished: DONE */
};

struct shmrt_ring_slot {
	uint32_t state;       /* enum shmrt_ring_slot_state; by a putter until the commit of the put, then by takers */
	uint32_t owner;       /* lease holder, taker; FULL: not 0 means out of line, order is by `sequence` */
	uint32_t inline_size;
	uint16_t block_count;
	uint16_t flags;       /* SHMRT_MESSAGE_* */
	uint64_t sequence;    /* position it was put at */
	/* block references, then inline bytes: slot_bytes in all */
};
_Static_assert(sizeof(struct shmrt_ring_slot) == 24, "shared layout changed");

struct shmrt_ring_shared {
	struct shmrt_segment_header header;
	/* line 1: geometry, constant */
	uint64_t slots;      /* exact bound on messages held, leased ones included */
	uint64_t slot_bytes; /* body bytes per slot */
	uint64_t slot_stride;
	uint64_t slots_offset;
	uint64_t arena_offset; /* a named ring carries its arena in the same file; 0: another segment */
	uint32_t on_full;
	uint32_t reserved0;
	uint64_t start; /* position of the very first message; position p lives in slot (p - start) % slots */
	uint8_t reserved1[SHMRT_LINE - 56];
	/* line 2: the putters' own, under put_mutex only */
	pthread_mutex_t put_mutex;
	_Atomic uint64_t intent;     /* position - start + 1 of the put under way (the first of a run), for the repair; 0: none */
	_Atomic uint64_t bytes_next; /* what bytes_in is once that put is in; stored before its commit */
	_Atomic uint64_t head_seen;  /* a head that a putter has seen: the real one is not below it */
	_Atomic uint64_t bytes_in;
	_Atomic uint64_t high_water;
	_Atomic uint64_t dropped;
	_Atomic uint64_t blocked_full_ns;
	uint8_t reserved2[SHMRT_LINE - sizeof(pthread_mutex_t) - 56];
	/* line 3: stored by putters, looked at by takers. Stored last by a put: that is the commit. */
	_Atomic uint64_t tail;
	uint8_t reserved3[SHMRT_LINE / 2 - 8];
	/* The rest of the line is added to without a mutex, by whoever it happened to, once it has (ring_report.h). */
	_Atomic uint64_t refused;   /* puts that were told that there is no room, at once or after their time */
	_Atomic uint64_t expired;   /* a mailbox's messages that nobody wanted any more when their turn came: their deadline was over */
	_Atomic uint64_t abandoned; /* a mailbox's calls whose caller had given up or died */
	_Atomic uint64_t cleared;   /* a mailbox's messages that a restart threw away, since it was to begin with none */
	_Atomic uint64_t told_ns;   /* when refusals, drops and expiries were last reported, and how many of each had been */
	_Atomic uint64_t told_refused;
	_Atomic uint64_t told_dropped;
	_Atomic uint64_t told_expired;
	/* line 4: the takers' own, under take_mutex only */
	pthread_mutex_t take_mutex;
	_Atomic uint64_t next;      /* no message in line is FULL below it; head <= next <= tail */
	_Atomic uint64_t tail_seen; /* a tail that a taker has seen: the real one is not below it */
	_Atomic uint64_t returned;  /* FULL slots out of line (a lease came back, or moved into a hole) */
	_Atomic uint64_t leased;    /* slots in LEASED */
	_Atomic uint64_t bytes_out;
	_Atomic uint64_t blocked_empty_ns;
	_Atomic uint64_t repairs;
	_Atomic uint64_t aside; /* of the slot that is DROPPING or MOVING: see there */
	uint8_t reserved4[SHMRT_LINE - sizeof(pthread_mutex_t) - 64];
	/* line 5: stored by takers, looked at by putters */
	_Atomic uint64_t head;  /* oldest position not yet freed */
	_Atomic uint64_t holes; /* DONE slots between head and tail: messages held = tail - head - holes */
	uint8_t reserved5[SHMRT_LINE - 16];
	/* lines 6 and 7: bells. 1: somebody may sleep; a ring stores 0 and wakes all. Armed under both mutexes. */
	_Atomic uint32_t bell_not_empty;
	uint8_t reserved6[SHMRT_LINE - 4];
	_Atomic uint32_t bell_not_full;
	uint8_t reserved7[SHMRT_LINE - 4];
	/* line 8: looked at by everybody, hardly ever stored */
	_Atomic uint32_t closed;  /* stored under both mutexes, or by a mailbox that could not have them */
	_Atomic uint32_t damaged; /* a holder of one of the mutexes died: repair first, under both */
	uint8_t reserved8[SHMRT_LINE - 8];
};
_Static_assert(offsetof(struct shmrt_ring_shared, put_mutex) == 256, "shared layout changed");
_Static_assert(offsetof(struct shmrt_ring_shared, tail) == 384, "shared layout changed");
_Static_assert(offsetof(struct shmrt_ring_shared, take_mutex) == 512, "shared layout changed");
_Static_assert(offsetof(struct shmrt_ring_shared, head) == 640, "shared layout changed");
_Static_assert(sizeof(struct shmrt_ring_shared) == 9 * SHMRT_LINE, "shared layout changed");

#include "layout_calls.h" /* call slots and mailboxes: the same, continued */
#include "layout_names.h" /* the registry of names: the same, continued */
#include "layout_guards.h" /* breakers, bulkheads, rate limits: the same, continued */

#endif
