/* layout_calls.h -- layout.h continued: call slots, and what a mailbox's messages begin with.
 *
 * The rules are those of layout.h, which includes this file; nobody else does.
 */
#ifndef SHMRT_LAYOUT_CALLS_H
#define SHMRT_LAYOUT_CALLS_H

/* ---- call slots (call.h): how a caller gets its reply -------------------------------------------- */
#define SHMRT_CALLS_DEFAULT 1024
#define SHMRT_CALLS_MAX 65536
#define SHMRT_CALL_INLINE 736 /* bytes of a reply, block references included; the rest travels in blocks */

/* call word: state:4 | generation:28 | owner:32. Changed by compare-and-swap only. */
enum shmrt_call_state {
	SHMRT_CALL_FREE = 0,      /* anybody may claim it; owner 0 */
	SHMRT_CALL_IDLE = 1,      /* the owner keeps it for its next call */
	SHMRT_CALL_WAITING = 2,   /* owner: the caller; the request is put, or about to be */
	SHMRT_CALL_TAKEN = 3,     /* owner: the server that took the request */
	SHMRT_CALL_WRITING = 4,   /* owner: who writes the reply, or clears it away */
	SHMRT_CALL_REPLIED = 5,   /* owner: who wrote it; the caller's to read */
	SHMRT_CALL_DROPPED = 6,   /* owner: the putter that dropped its request from a full mailbox */
	SHMRT_CALL_ABANDONED = 7, /* owner: who still writes; the caller gave up, the writer frees the slot */
};

enum shmrt_call_status { /* what a call ends with */
	SHMRT_CALL_REPLY = 0,      /* a value */
	SHMRT_CALL_ERROR = 1,      /* an exception, packed */
	SHMRT_CALL_DOWN = 2,       /* the server is gone; why */
	SHMRT_CALL_TIMEOUT = 3,    /* the deadline passed */
	SHMRT_CALL_OVERLOADED = 4, /* the mailbox is full, or dropped it */
	SHMRT_CALL_CLOSED = 5,     /* the mailbox takes no more */
};

struct shmrt_call_slot {
	/* line 0: written by the caller, but for the word. What stands here belongs to the generation that
	 * the caller stores with WAITING after it (edge C1). */
	_Atomic uint64_t word;
	_Atomic uint32_t caller;     /* owner id, while the word may name somebody else */
	_Atomic uint32_t bell_index; /* the call slot whose bell a reply rings */
	_Atomic uint64_t target;     /* key of the server */
	_Atomic uint64_t deadline_ns; /* 0: none */
	uint8_t reserved0[SHMRT_LINE - 32];
	/* line 1: armed by the caller, cleared by whoever rings (bell.h) */
	_Atomic uint32_t bell;
	uint8_t reserved1[SHMRT_LINE - 4];
	/* from line 2 on: the reply, written while WRITING, read in REPLIED */
	_Atomic uint32_t status;      /* enum shmrt_call_status */
	_Atomic uint32_t inline_size;
	_Atomic uint32_t block_count; /* stored after the references: from then on the blocks may be QUEUED */
	_Atomic uint32_t flags;       /* SHMRT_MESSAGE_* */
	_Atomic uint64_t arena;       /* first half of the token of the arena that the blocks lie in */
	uint64_t reserved2;
	uint8_t body[SHMRT_CALL_INLINE]; /* block references, then inline bytes */
};
_Static_assert(offsetof(struct shmrt_call_slot, bell) == 128, "shared layout changed");
_Static_assert(offsetof(struct shmrt_call_slot, status) == 256, "shared layout changed");
_Static_assert(offsetof(struct shmrt_call_slot, body) == 288, "shared layout changed");
_Static_assert(sizeof(struct shmrt_call_slot) == 1024, "shared layout changed");

/* ---- mailboxes (mailbox.h): a ring whose messages begin with this ------------------------------- */
#define SHMRT_MAIL_NAME_MAX 255 /* bytes of a handler's name, as UTF-8 */

enum shmrt_mail_kind {
	SHMRT_MAIL_CALL = 1,
	SHMRT_MAIL_CAST = 2,
	SHMRT_MAIL_INFO = 3,
};

/* Then name_size bytes of name, then the codec's bytes of the arguments. */
struct shmrt_mail_envelope {
	uint8_t kind;       /* enum shmrt_mail_kind */
	uint8_t name_size;
	uint16_t reserved0;
	uint32_t index;      /* CALL: the call slot that waits for the reply */
	uint32_t generation; /* CALL: and its generation; another one means that nobody waits any more */
	uint32_t sender;     /* owner id */
	uint64_t deadline_ns; /* 0: none. Later than this nobody wants it done */
	uint64_t reserved1;
};
_Static_assert(sizeof(struct shmrt_mail_envelope) == 32, "shared layout changed");

#endif
