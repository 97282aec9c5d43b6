/* beat.c -- the thread that says "this process is scheduled", and ends it when nobody is left to serve.
 *
 * Writes line 2 of its own slot (nobody else does); a reader that finds the process dead finds the last
 * values. It never takes the GIL, so a C call that holds the GIL for an hour keeps beating.
 *
 * While the phase is PARKED there is nothing to say, and an idle process must use no CPU: after one beat
 * within one and the same parking the thread announces that it sleeps and looks once more a beat later.
 * That second, timed look is what makes the announcement safe without a fence in the dispatch loop: who
 * left PARKED without seeing the announcement did so before it was visible, and a beat later its new
 * phase is visible for certain. Only then does it sleep without a timer. A worker that parks for shorter
 * than a beat never pays for a wake.
 *
 * Edge T1: the loop stores its phase, then looks at `asleep` (relaxed) -> the beat stores `asleep`, and
 * looks at the phase a beat later.
 *
 * The thread may be there before its slot is known: it sleeps then, without a timer, until `begun`.
 *
 * Edge T2: what the beat is for (`beat`), then `begun` (release) -> the thread that stood by reads `begun` (acquire).
 */
#define _GNU_SOURCE
#include "slots.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES ((size_t)256 << 10) /* room for the thread-local data of big C libraries */
#define RSS_NS UINT64_C(1000000000)

/* One beat per process. A forked child has the values but not the thread: beat_start sets all anew. */
static pid_t standing_by; /* the process whose thread waits for beat_start; 0: none */
static struct {
	struct shmrt_control *control;
	struct shmrt_slot *slot;
	int32_t root_pid;
	uint32_t hub_slot;
	bool has_main_clock;
	clockid_t main_clock;
	uint64_t rss_read_ns;
} beat;

static _Atomic uint32_t asleep; /* 1: the thread may sleep for ever */
static _Atomic uint32_t begun;  /* 0: the thread does not know yet for which slot it beats */

static void end_if_nobody_is_left(void) {
	bool orphan = beat.root_pid != 0 && getppid() != beat.root_pid;
	/* The program, or the worker whose nested pool this one serves: nobody is left to whom a result could matter. */
	bool served_lost = shmrt_slot_is_abandoned(&beat.control->slots[beat.hub_slot]);
	if (!orphan && !served_lost)
		return;
	/* What the user's code started belongs to this process's group, and nobody else will end it. */
	kill(getpgrp() == getpid() ? 0 : getpid(), SIGKILL);
}

/* The second number of statm: resident pages. */
static uint64_t read_rss_bytes(void) {
	char text[128];
	int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t length = read(fd, text, sizeof text - 1);
	close(fd);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	unsigned long long pages = 0;
	if (sscanf(text, "%*u %llu", &pages) != 1)
		return 0;
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* All relaxed: each word is true by itself, and nothing is published through them. */
static void say_alive(void) {
	struct shmrt_slot *slot = beat.slot;
	uint64_t now_ns = shmrt_now_ns();
	struct timespec cpu;
	if (beat.has_main_clock && clock_gettime(beat.main_clock, &cpu) == 0) {
		uint64_t cpu_ns = (uint64_t)cpu.tv_sec * UINT64_C(1000000000) + (uint64_t)cpu.tv_nsec;
		atomic_store_explicit(&slot->main_cpu_ns, cpu_ns, memory_order_relaxed); /* no edge */
	}
	if (beat.rss_read_ns == 0 || now_ns - beat.rss_read_ns >= RSS_NS) {
		atomic_store_explicit(&slot->rss_bytes, read_rss_bytes(), memory_order_relaxed); /* no edge */
		beat.rss_read_ns = now_ns;
	}
	uint64_t beats = atomic_load_explicit(&slot->beats, memory_order_relaxed); /* ours alone */
	atomic_store_explicit(&slot->beats, beats + 1, memory_order_relaxed);      /* no edge */
	atomic_store_explicit(&slot->beat_ns, now_ns, memory_order_relaxed);       /* no edge */
}

/* True when the whole period passed (never for `for_ever`). */
static bool doze(bool for_ever, uint32_t expected) {
	struct timespec period = {.tv_nsec = SHMRT_BEAT_NS};
	/* Private, unlike the futexes of ops.h: both sides are threads of this process. */
	return syscall(SYS_futex, &asleep, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, expected, for_ever ? NULL : &period,
		       NULL, 0) < 0 && errno == ETIMEDOUT;
}

static void *beat_run(void *unused) {
	(void)unused;
	prctl(PR_SET_NAME, "shmrt-beat");
	while (atomic_load_explicit(&begun, memory_order_acquire) == 0) /* T2 */
		syscall(SYS_futex, &begun, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, NULL, NULL, 0);
	/* Phase words, sequence and all: of the parking seen at the last look, and of the one in which the
	 * announcement stood for a whole beat. */
	uint64_t parked = 0, announced = 0;
	for (;;) {
		end_if_nobody_is_left();
		uint64_t phase = shmrt_slot_phase_get(beat.slot); /* F1 */
		if ((phase & 0xFF) != SHMRT_PHASE_PARKED || parked != phase) { /* a new parking may be short */
			parked = (phase & 0xFF) == SHMRT_PHASE_PARKED ? phase : 0;
			atomic_store_explicit(&asleep, 0, memory_order_relaxed); /* T1 */
			say_alive();
			doze(false, 0);
			continue;
		}
		bool was_asleep = atomic_exchange_explicit(&asleep, 1, memory_order_acq_rel) == 1; /* T1 */
		if (was_asleep && announced == phase)
			doze(true, 1);
		else if (doze(false, 1))
			announced = phase;
	}
	return NULL;
}

static int start_thread(void) {
	/* Signals belong to the main thread: this one takes none. */
	sigset_t all, old;
	sigfillset(&all);
	int error = pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_t attributes;
	if (error == 0)
		error = pthread_attr_init(&attributes);
	if (error != 0) {
		errno = error;
		return SHMRT_SYSTEM;
	}
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_t thread;
	error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
	if (error == 0)
		error = pthread_create(&thread, &attributes, beat_run, NULL);
	if (error == EINVAL || error == EAGAIN) { /* thread-local data larger than that: the default stack */
		pthread_attr_setstacksize(&attributes, (size_t)8 << 20);
		error = pthread_create(&thread, &attributes, beat_run, NULL);
	}
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = error;
	return error == 0 ? SHMRT_OK : SHMRT_SYSTEM;
}

int shmrt_beat_prepare(void) {
	atomic_store_explicit(&begun, 0, memory_order_relaxed); /* T2: the thread starts later */
	int result = start_thread();
	if (result == SHMRT_OK)
		standing_by = getpid();
	return result;
}

int shmrt_beat_start(struct shmrt_control *control, uint32_t slot_index, int32_t root_pid, uint32_t hub_slot) {
	if (slot_index >= control->slot_count || slot_index >= SHMRT_SLOTS_MAX || hub_slot >= control->slot_count ||
	    hub_slot == slot_index)
		return SHMRT_INVALID;
	memset(&beat, 0, sizeof beat);
	beat.control = control;
	beat.slot = &control->slots[slot_index];
	beat.root_pid = root_pid;
	beat.hub_slot = hub_slot;
	beat.has_main_clock = pthread_getcpuclockid(pthread_self(), &beat.main_clock) == 0;
	atomic_store_explicit(&asleep, 0, memory_order_relaxed); /* T1: the thread looks later */
	atomic_store_explicit(&begun, 1, memory_order_release);  /* T2 */
	if (standing_by != getpid())
		return start_thread();
	standing_by = 0;
	syscall(SYS_futex, &begun, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
	return SHMRT_OK;
}

void shmrt_beat_wake(void) {
	if (SHMRT_LIKELY(atomic_load_explicit(&asleep, memory_order_relaxed) == 0)) /* T1 */
		return;
	if (atomic_exchange_explicit(&asleep, 0, memory_order_acq_rel) != 0) /* T1 */
		syscall(SYS_futex, &asleep, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}
