/* hub.h -- the program's dispatcher: a ledger of every accepted task and the thread that moves them.
 *
 * The hub lives in one process (the program, or a worker with a nested pool) and owns no shared bytes
 * itself; it is the producer of every task lane and the consumer of every result lane of its pools. It never
 * takes the GIL and knows nothing of Python: a task's future is an opaque pointer, its arguments
 * and result are messages. All of its state is under one process-private mutex that is held for short, bounded work.
 *
 * Any thread may turn the wheel once (shmrt_hub_pump): a thread that submits, a thread that waits for a
 * result, or, when nobody else does, the hub's own thread. All of them sleep on the one bell of their slot; a ring
 * wakes all, and nobody ever disarms it but a ringer, so no sleeper can be forgotten. The bell's word says how
 * much a result is wanted:
 *   1       lazily: nobody waits for results; a worker rings only when its result lane is half full
 *   2 to .. urgently: somebody waits, or tasks wait for room in a lane; a worker rings at once when it goes idle,
 *           and at most every SHMRT_RING_EVERY_NS while it is busy
 * What one thread finds, another may wait for. So nobody sleeps through it:
 *   - Who arms after a ring does so with a number that was never there (2, 3, ...). A thread that had armed before
 *     the ring and was about to sleep finds that the word is another one, although it is armed again.
 *   - Who takes an outcome out of a lane raises `finished` and, if somebody is parked for outcomes, rings. A thread that
 *     looked before that and is not yet parked finds `finished` changed under the mutex. Both after a future was
 *     completed by hand or by the dispatcher, too.
 *   - A worker defers a ring only within SHMRT_RING_EVERY_NS after another one, its own or a neighbour's (rung_ns). An
 *     urgent sleeper sleeps no longer than that unless it finds the word as it left it after such a sleep: then there was no
 *     ring, and none is deferred.
 *   - Where somebody is parked for outcomes, the hub's own thread sleeps behind: a ring wakes one thread, not two. It wakes that one
 *     only if it woke nobody else. Who was woken stands in for it before anything else, whatever it waits for itself: it arms
 *     the bell, pumps, and wakes the hub's thread where that would now sleep too long (stand_in). Times of
 *     its own the hub's thread may keep SHMRT_BEHIND_NS too late then; whoever is parked keeps them, but may leave.
 *
 * A task is in exactly one place:
 *   BACKLOG  in a queue of its pool; nothing about it is in shared memory but its argument blocks (SENT|program)
 *   LANE     in one worker's task lane, and in that worker's FIFO here, until its result or the worker's death
 *   VICTIM   its worker died while running it; the exit status is awaited to tell why
 *   DONE     outcome known; in the completed list, or handed over to its future
 *
 * A lane holds what its worker will need for SHMRT_CREDIT_NS by the mean of the last tasks, more than the time between two deferred
 * rings: a worker that is awake does not run dry while a sleeper wakes. What waits behind a task that turns out long goes to an idle
 * neighbour. Behind lanes that hold some already, tasks stay in the backlog until there are a dozen: both sides then share fewer lines.
 * No ring is asked for these: whoever submits looks every sixteenth time, and the hub's thread sleeps no longer than
 * SHMRT_RING_EVERY_NS while some are kept back; where it sleeps longer, whoever keeps the first of them rings.
 *
 * A deadline goes along with its task, as the absolute time on the monotonic clock: the hub takes the task back when it is over,
 * and a worker that finds it over does not begin (SHMRT_RECORD_EXPIRED), whether the hub has had the time to look or not.
 *
 * Claim word of a TASK record (record header), low bits: 0 offered, 1 taken by the worker, 2 taken back by the
 * hub. Both sides change it by compare-and-swap from 0, so a task that has not begun can be cancelled, can expire, or
 * can go to an idle neighbour. A worker that died right after claiming has not begun: the phase word decides.
 * Edge H1: the claim CAS (acq_rel) on both sides. Once the worker has stepped over the record, whose outcome may still wait in
 * its result lane, another record may lie there: then the claim word is not looked at any more (shmrt_hub__claim_of).
 *
 * A task may be a chunk: many items of a map, each with an outcome of its own (hub_chunk.h).
 *
 * Kill order (deadline, Future.kill): the hub stores kill_reason, fences, then looks whether that very task
 * still runs; the worker stores task and phase, fences, then looks at kill_reason, and begins nothing once it is set.
 * So a kill never hits the task after the one it was meant for. Edge H2 (Dekker): those two fences.
 *
 * When a worker's death mutex is abandoned: deliver what it published, decide the one task that its phase
 * names, put the others back at the front of the backlog, unchanged. When its slot is GONE (the whole process is
 * gone): give its victim its reason, reclaim its blocks, reset its lanes, free the slot.
 */
#ifndef SHMRT_HUB_H
#define SHMRT_HUB_H

#include <pthread.h>

#include "arena.h"
#include "lane.h"
#include "slots.h"

#define SHMRT_RING_EVERY_NS UINT64_C(800000) /* a ring where no CPU is idle costs the workers tens of microseconds */
#define SHMRT_BEHIND_NS UINT64_C(3000000) /* so late may the hub's thread look where another looks in its place */
#define SHMRT_STACK_BYTES 65536 /* of the stacks file, for each slot of a pool (shmrt/process/spawn.py) */
#define SHMRT_CREDIT_NS UINT64_C(1600000) /* work a lane should hold */
#define SHMRT_WORK_NS UINT64_C(5000)    /* a mean from which on a CPU is better left to the worker than spun on */
#define SHMRT_WAKE_NS UINT64_C(20000)   /* about what it takes a sleeper to wake up */
#define SHMRT_CREDIT_MIN 2
#define SHMRT_STOCK 16 /* tasks in a lane behind which others may wait to be put there together */
#define SHMRT_MEAN_OF 16 /* tasks, to believe that they have become shorter */
#define SHMRT_CREDIT_MAX 1024

enum shmrt_task_state {
	SHMRT_TASK_NEW = 0,
	SHMRT_TASK_BACKLOG = 1,
	SHMRT_TASK_LANE = 2,
	SHMRT_TASK_VICTIM = 3,
	SHMRT_TASK_DONE = 4,
};

enum shmrt_task_outcome {
	SHMRT_TASK_PENDING = 0,
	SHMRT_TASK_VALUE = 1,     /* result message holds the value */
	SHMRT_TASK_ERROR = 2,     /* result message holds the packed exception */
	SHMRT_TASK_CANCELLED = 3,
	SHMRT_TASK_CRASHED = 4,   /* its worker died; crash says how */
	SHMRT_TASK_POISON = 5,    /* ... for the last of several attempts */
	SHMRT_TASK_TIMED_OUT = 6, /* running time passed; the worker was killed */
	SHMRT_TASK_EXPIRED = 7,   /* deadline passed before it began */
	SHMRT_TASK_BROKEN = 8,    /* its pool broke */
	SHMRT_TASK_LOST = 9,      /* its pool was closed or its runtime went down */
};

enum shmrt_task_flags {
	SHMRT_TASK_WATCHED = 1,        /* its future has callbacks or waiters: for the dispatcher thread */
	SHMRT_TASK_RETRY_TIMEOUT = 2,  /* a timeout counts as an attempt, not as the end */
	SHMRT_TASK_KILL = 8,           /* Future.kill() was called */
	SHMRT_TASK_ALONE = 16,         /* last attempt of a suspect: a fresh worker, nothing else in its lane */
};

/* A message the hub owns: one malloc'ed piece, or the few bytes in place. */
#define SHMRT_PAYLOAD_LOCAL 64
struct shmrt_payload {
	uint8_t *bytes;
	uint32_t size;
	uint16_t flags; /* SHMRT_MESSAGE_* */
	uint16_t block_count;
	struct shmrt_block_reference *blocks; /* malloc'ed */
	uint8_t **copies; /* malloc'ed; copies[i] != NULL: block i was copied out under memory pressure */
	uint8_t local[SHMRT_PAYLOAD_LOCAL];
};

/* Beyond every enum shmrt_kill_reason, and in no slot: the hub ended it, since it had written over what it shares. */
#define SHMRT_KILL_DOUBT 32

struct shmrt_crash {
	int32_t pid, wait_status;
	uint32_t oom, worker, kill_reason;
	uint64_t elapsed_ns;
	char *stack; /* malloc'ed, NUL-terminated, or NULL */
};

struct shmrt_hub_pool;

struct shmrt_task {
	uint64_t id; /* from submit to its outcome */
	struct shmrt_task *next, *previous;
	struct shmrt_hub_pool *pool;
	void *pool_object; /* opaque, for whoever decodes the outcome */
	void *future; /* owned by the ledger until the completion is handed over */
	struct shmrt_payload arguments, result;
	uint32_t function;
	uint32_t items;      /* of a chunk; 0: a plain task */
	uint32_t items_done; /* outcomes collected, in `result` */
	uint32_t items_sent; /* items_done when it was put into a lane: its first item there */
	uint32_t offset;     /* of the first item without outcome in the arguments */
	bool star;           /* each item is a tuple of arguments */
	uint32_t alone_count;
	uint64_t elapsed_ns; /* running time of the chunk, if it was run in one go */
	struct shmrt_payload *alone; /* outcomes that came in records of their own; malloc'ed */
	uint32_t begun;        /* how often it was begun */
	uint32_t deaths;       /* how often its worker died of it */
	uint32_t max_attempts;
	int64_t timeout_ns;    /* running time per attempt; SHMRT_FOREVER: none */
	uint64_t deadline_ns;  /* monotonic; 0: none */
	uint64_t submitted_ns;
	int32_t priority;
	int32_t affinity;      /* -1: any worker */
	uint32_t worker;       /* slot offset within the pool, in LANE and VICTIM */
	uint64_t position;     /* in LANE: of its record there */
	_Atomic uint32_t *claim; /* in LANE: the claim word of its record; read it by shmrt_hub__claim_of */
	uint8_t state, outcome, flags;
	struct shmrt_crash crash;
};

/* What it counts for in a pool's statistics. */
static inline uint64_t shmrt_task_weight(const struct shmrt_task *task) { return task->items ? task->items : 1; }

struct shmrt_task_list { struct shmrt_task *first, *last; uint64_t count; };

struct shmrt_function {
	struct shmrt_payload pickle;
	uint64_t tasks;   /* not finished, that name it */
	bool used, dropped;
};

struct shmrt_hub_worker {
	struct shmrt_slot *slot;
	struct shmrt_lane_producer tasks;
	struct shmrt_lane_consumer results;
	struct shmrt_task_list lane; /* oldest first */
	struct shmrt_task *victim;
	uint64_t *known_functions;   /* bitmap */
	uint32_t epoch;              /* of the process these belong to; 0: none seen */
	uint32_t index;              /* within the pool, as the slot said when it was adopted */
	uint32_t owner;
	int32_t pid;
	int pidfd;
	int stacks_fd;
	uint64_t stack_offset;
	bool ready, abandoned, retiring, stop_sent;
	bool doubtful;               /* what it shares says what no life says: nothing of it is believed any more (hub_doubt.c) */
	uint64_t generation;         /* of the root that started it */
	uint64_t ordered_ns;         /* since when its slot has said that somebody else is about to kill it; 0: it does not */
	uint64_t first_id, first_ns, look_ns; /* the oldest in its lane, since when it has been that; when to look closer at it */
	bool replace_asked;
	bool lane_full;              /* no room in its lane at the last try, and no result since */
	uint8_t kill_stage;          /* 0, 1: asked for its stack, 2: SIGKILL sent */
	uint64_t kill_ns;
	uint64_t sent;               /* tasks put into its lane in this life */
	uint64_t crash_elapsed_ns;
};

#define SHMRT_HUB_PRIORITIES 32
struct shmrt_hub_queue { int32_t priority; struct shmrt_task_list tasks; };

struct shmrt_pool_options {
	uint32_t id;
	uint32_t first_slot, slot_count;
	uint32_t max_workers;
	uint64_t max_tasks_per_worker; /* 0: no limit */
	uint64_t max_rss_bytes;        /* 0: no limit */
	uint64_t max_age_ns;           /* 0: no limit */
	int stacks_fd;                 /* SHMRT_STACK_BYTES for each slot, borrowed; -1: none */
};

struct shmrt_hub_pool {
	struct shmrt_hub *hub;
	uint32_t keep_workers; /* workers with an index at or above it are surplus: they end when their lane is empty */
	bool full; /* the last dispatch found no room anywhere and nothing was freed since */
	struct shmrt_pool_options options;
	struct shmrt_lanes *lanes; /* mapped */
	uint64_t lanes_size, pair_bytes, task_capacity, result_capacity;
	struct shmrt_hub_worker *workers; /* options.slot_count */
	struct shmrt_hub_queue queues[SHMRT_HUB_PRIORITIES]; /* highest priority first */
	uint32_t queue_count;
	struct shmrt_task_list *pinned;   /* options.max_workers lists of tasks with an affinity */
	struct shmrt_task_list alone;
	uint64_t backlog_count;  /* all of the above */
	uint64_t pending;        /* accepted, not DONE; each item of a chunk counts */
	uint64_t open_tasks;     /* the same, a chunk counts as one: in the backlog, in lanes, or a victim */
	uint64_t timed, watched; /* pending ones with a timeout or deadline; pending watched ones */
	struct shmrt_function *functions;
	uint32_t function_capacity;
	uint32_t ready_count;    /* READY, not abandoned */
	uint32_t next_worker;
	uint64_t credit;         /* tasks a lane should hold, as last measured */
	uint64_t mean_ns, seen_busy_ns, seen_done; /* what that came from: a mean, and the workers' sums up to there */
	bool measured;           /* some task has ended, so there is a mean running time */
	bool retires; /* some worker was ever told to leave before the pool ends */
	bool broken, closed, stopping, paused;
	uint64_t submitted, completed, failed, cancelled, crashed, timed_out, retried, requeued, stale, poisoned;
	uint64_t expired;        /* of timed_out: their deadline was over before they began */
	uint64_t pending_most;   /* the most that were ever pending at once */
	uint64_t told_expired_ns; /* when a note last spoke of some */
	uint64_t restarts, killed, doubted, log_dropped;
	uint64_t buried_busy_ns, buried_blocked_ns; /* of workers that are gone */
};

enum shmrt_note_kind {
	SHMRT_NOTE_LOG = 1,          /* payload: log record */
	SHMRT_NOTE_EXIT = 2,         /* payload: what worker_exit returned */
	SHMRT_NOTE_START_FAILED = 3, /* payload: packed exception */
	SHMRT_NOTE_REPLACE = 5,      /* this worker should be replaced: slot, epoch */
	SHMRT_NOTE_GONE = 6,         /* a worker ended: crash says how */
	SHMRT_NOTE_EXPIRED = 7,      /* tasks were dropped since their deadline was over; at most one a second for each pool */
};
struct shmrt_note {
	struct shmrt_note *next;
	enum shmrt_note_kind kind;
	uint32_t pool, slot, epoch, worker;
	uint64_t task;
	struct shmrt_payload payload;
	struct shmrt_crash crash;
};

#define SHMRT_HUB_POOLS_MAX 256
#define SHMRT_HUB_NOTES_MAX 4096

struct shmrt_hub {
	pthread_mutex_t mutex;
	struct shmrt_control *control;
	uint32_t self_slot; /* whose bell and death word are ours: 0 in the program, one of its own for a worker's hub */
	struct shmrt_arena arena; /* a private half of its own, used under the mutex */
	uint32_t owner;
	struct shmrt_hub_pool *pools[SHMRT_HUB_POOLS_MAX];
	uint32_t pool_high;
	/* ids: index | generation << 32 */
	struct shmrt_task **table;
	uint32_t *generations;
	uint32_t table_capacity, table_free_count;
	uint32_t *table_free;
	/* For task_new, from task_free. Not under the mutex: whoever calls these two takes turns, by the interpreter's lock. */
	struct shmrt_task *free_tasks;
	uint32_t free_task_count;
	struct shmrt_task_list completed; /* handed out by take_completed */
	struct shmrt_note *notes_first, *notes_last;
	uint32_t note_count;
	uint64_t notes_dropped;
	_Atomic uint32_t dispatcher_word; /* futex: raised when the dispatcher thread has work */
	_Atomic uint32_t dispatchers_asleep; /* whether raising it has to wake anybody */
	_Atomic uint64_t completed_count; /* a hint that may be read without the mutex */
	_Atomic uint64_t finished; /* how often something came that a thread may be parked for; raised under the mutex */
	_Atomic uint32_t parked;   /* threads that have armed the bell and sleep, or are about to, until `finished` changes */
	_Atomic uint32_t armed;    /* how often the bell was armed urgently: numbers for its word */
	_Atomic uint32_t watched_ready;
	_Atomic uint64_t sleeping_until; /* when the hub's thread wakes by itself */
	/* Since when the hub's thread has slept although results may wait, until somebody has told it that they are wanted;
	 * else 0. The bell does not say so: a thread that came and went may have made it urgent, and taken nothing. */
	_Atomic uint64_t lazy_since;
	_Atomic uint64_t told_since; /* what that was when it was told last */
	_Atomic uint64_t closer_ns; /* as pump returns it, for a closer look at workers that may have overwritten what they share */
	uint64_t thread_until_ns; /* when the hub's thread wakes by itself; 0: it is awake, and looks before it sleeps. Under the mutex */
	_Atomic uint32_t thread_behind; /* it sleeps behind others. Under the mutex; whom a ring has woken may read it without */
	_Atomic uint32_t going_on; /* workers with another task behind the one they run, when somebody last looked: a hint */
	_Atomic uint64_t sleeping_closer; /* what that was when the hub's thread went to sleep */
	_Atomic uint32_t stop;
	pthread_t thread;
	_Atomic uint32_t thread_running;
	bool thread_started;
	uint64_t pumps, sleeps;
};

/* ---- life ---- */
SHMRT_MUST_USE int shmrt_hub_open(struct shmrt_hub *, struct shmrt_control *, uint32_t self_slot, const struct shmrt_arena *);
SHMRT_MUST_USE int shmrt_hub_start_thread(struct shmrt_hub *); /* which locks its slot's death mutex for life */
void shmrt_hub_stop_thread(struct shmrt_hub *);
/* After stop_thread: frees what is left. */
void shmrt_hub_close(struct shmrt_hub *);
/* Maps the lane segment and takes the pool in. *pool stays valid until remove. */
SHMRT_MUST_USE int shmrt_hub_add_pool(struct shmrt_hub *, const struct shmrt_pool_options *, int lanes_fd, struct shmrt_hub_pool **);
/* Only when nothing is pending and every slot is EMPTY or GONE; else FULL. */
SHMRT_MUST_USE int shmrt_hub_remove_pool(struct shmrt_hub *, struct shmrt_hub_pool *);

/* ---- tasks (hub_ledger.c) ---- */
/* These two by one thread at a time. */
struct shmrt_task *shmrt_hub_task_new(struct shmrt_hub *); /* without an id; NULL: no memory */
void shmrt_hub_task_free(struct shmrt_hub *, struct shmrt_task *); /* also its payloads and blocks */
SHMRT_MUST_USE int shmrt_payload_set(struct shmrt_payload *, const uint8_t *bytes, uint32_t size, uint16_t flags,
				     const struct shmrt_block_reference *blocks, uint16_t block_count);
void shmrt_payload_clear(struct shmrt_payload *); /* not its blocks */
/* Accepts the task, which gets its id: from now on exactly one outcome follows. CLOSED when the pool takes no more, SYSTEM
 * without memory; the task is the caller's then. It stays where it is until the caller takes completed tasks. */
SHMRT_MUST_USE int shmrt_hub_submit(struct shmrt_hub_pool *, struct shmrt_task *);
/* The task, taken back before it began and no longer in the ledger (the caller owns it); NULL: too late. */
struct shmrt_task *shmrt_hub_cancel(struct shmrt_hub *, uint64_t id);
int shmrt_hub_kill_task(struct shmrt_hub *, uint64_t id);
int shmrt_hub_is_running(struct shmrt_hub *, uint64_t id);
void shmrt_hub_watch(struct shmrt_hub *, uint64_t id);
/* Number of a function for this pool; OK or SYSTEM (no memory). Takes over the payload's memory. */
SHMRT_MUST_USE int shmrt_hub_add_function(struct shmrt_hub_pool *, struct shmrt_payload *, uint32_t *number);
void shmrt_hub_drop_function(struct shmrt_hub_pool *, uint32_t number); /* freed when its last task is done */
/* Ends every task that is not begun, with this outcome; returns how many. */
uint64_t shmrt_hub_fail_backlog(struct shmrt_hub_pool *, enum shmrt_task_outcome);
void shmrt_hub_break_pool(struct shmrt_hub_pool *); /* all pending end BROKEN or, if begun, as their worker ends */
/* More or fewer workers at once (at most slot_count). The root starts and ends processes; this moves the bound of
 * dispatch and the lists of pinned tasks. */
SHMRT_MUST_USE int shmrt_hub_resize(struct shmrt_hub_pool *, uint32_t max_workers, uint32_t keep_workers);
/* As for a worker that has served long enough: replaced first, stopped then. STALE: that epoch does not serve. */
SHMRT_MUST_USE int shmrt_hub_retire(struct shmrt_hub_pool *, uint32_t slot, uint32_t epoch);

/* ---- the wheel (hub_dispatch.c, hub_death.c) ---- */
/* One bounded round. Returns the monotonic time at which it wants to be called again at the latest (UINT64_MAX:
 * only when the bell rings). *moved: whether anything happened. */
uint64_t shmrt_hub_pump(struct shmrt_hub *, bool *moved);
/* What a thread that parks again and again knows from one time to the next; at first all 0. */
struct shmrt_hub_rest {
	uint64_t seen;  /* what `finished` was before the caller looked for what it waits for */
	bool outcomes;  /* it waits for outcomes: it does not sleep when `finished` is not `seen`, and is woken when it changes */
	bool quiet;     /* a short sleep has ended by itself since the bell's word became .. */
	uint32_t armed; /* .. this one */
};
/* Arms the bell, looks once more, and sleeps until a ring or `until_ns`. INTERRUPTED: a signal came. `rest` may be NULL. */
int shmrt_hub_park(struct shmrt_hub *, uint64_t until_ns, bool urgent, struct shmrt_hub_rest *rest);
/* Something came that is not an outcome of the hub's, but that a thread may be parked for. */
void shmrt_hub_tell(struct shmrt_hub *);
/* Whether the hub's own thread should sleep urgently. Who changes that tells a lazy sleeper (make_urgent). */
bool shmrt_hub_is_urgent(struct shmrt_hub *);
/* From now on results are wanted at once: what a worker published without ringing is drained too. */
void shmrt_hub_make_urgent(struct shmrt_hub *);
/* Whether a task of any pool is pending, or a worker has published the outcome of its last one and still holds what it was given:
 * then memory that is short now comes back by itself. */
bool shmrt_hub_is_busy(struct shmrt_hub *);
/* Takes the whole completed list. */
struct shmrt_task *shmrt_hub_take_completed(struct shmrt_hub *);
/* The oldest note, which the caller frees; NULL: there is none. */
struct shmrt_note *shmrt_hub_take_note(struct shmrt_hub *);
bool shmrt_hub_has_notes(struct shmrt_hub *);
void shmrt_hub_note_free(struct shmrt_hub *, struct shmrt_note *);
/* The dispatcher thread's sleep: until watched completions or notes are there, or stop. */
void shmrt_hub_dispatcher_wait(struct shmrt_hub *, uint32_t seen);

#endif
