/* shim.c -- loaded before the C library (LD_PRELOAD): lets the n-th call of some functions fail, and puts fences
 * around shared mappings.
 *
 * Which calls count: those of the chosen functions, made from an object whose path holds the chosen word (`_native` for
 * the extension itself; empty: by anybody). The count lies in memory that forked processes share, so that "once" means
 * once for a whole family. A plan comes from `shim_arm`, or, for a program that is started with this library, from
 * the variable SHIM_PLAN (functions:n:forever:caller:role), if the command line of the program holds the role.
 *
 * A fence is one page without access before and behind each shared mapping: who runs over an end gets SIGSEGV, where
 * otherwise it might hit a neighbour and go unnoticed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096ul

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

/* ---- the plan ----------------------------------------------------------------------------------- */

struct plan {
	_Atomic bool armed;
	_Atomic long count; /* of calls that counted */
	_Atomic long fired; /* of those that failed */
	long n;             /* the n-th fails, from 1 */
	bool forever;       /* and all after it */
	char functions[400]; /* " malloc mmap " or " * " */
	char caller[64];
	char last[64]; /* the first that failed */
};

static struct plan *plan;
static __thread bool inside;

/* Internal calls go around the exported `syscall` below. */
static long raw(long number, long a, long b, long c, long d, long e, long f) {
	static long (*real)(long, ...);
	if (real == NULL)
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	return real(number, a, b, c, d, e, f);
}
#define FIRST_6(a, b, c, d, e, f, ...) (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)
#define RAW(number, ...) raw(number, FIRST_6(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0))

static void *raw_map(size_t size) {
	return (void *)RAW(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static bool is_chosen(const char *name) {
	char word[48];
	size_t length = strlen(name);
	if (strstr(plan->functions, " * ") != NULL)
		return true;
	if (length > sizeof(word) - 3)
		return false;
	word[0] = ' ';
	memcpy(word + 1, name, length);
	memcpy(word + 1 + length, " ", 2);
	return strstr(plan->functions, word) != NULL;
}

static bool is_caller(void *address) {
	static _Atomic uintptr_t begin, end; /* of the object that was found; per process */
	if (plan->caller[0] == '\0')
		return true;
	uintptr_t at = (uintptr_t)address;
	if (end != 0)
		return at >= begin && at < end;
	Dl_info info;
	if (dladdr(address, &info) == 0 || info.dli_fname == NULL || strstr(info.dli_fname, plan->caller) == NULL)
		return false;
	/* The text of a shared object is far from anybody else's: a generous range is exact enough. */
	begin = (uintptr_t)info.dli_fbase;
	end = begin + (4ul << 20);
	return true;
}

static bool fails(const char *name, void *address) {
	if (plan == NULL || !plan->armed || inside)
		return false;
	inside = true;
	bool now = false;
	if (is_chosen(name) && is_caller(address)) {
		long count = atomic_fetch_add(&plan->count, 1) + 1;
		now = count == plan->n || (plan->forever && count > plan->n);
		if (now && atomic_fetch_add(&plan->fired, 1) == 0) {
			strncpy(plan->last, name, sizeof(plan->last) - 1);
			if (getenv("SHIM_TRACE") != NULL)
				dprintf(2, "shim: %s fails in %d (call %ld)\n", name, (int)getpid(), count);
		}
	}
	inside = false;
	return now;
}

EXPORT void shim_arm(const char *functions, long n, int forever, const char *caller) {
	plan->armed = false;
	plan->count = plan->fired = 0;
	plan->n = n;
	plan->forever = forever != 0;
	snprintf(plan->functions, sizeof(plan->functions), " %s ", functions);
	snprintf(plan->caller, sizeof(plan->caller), "%s", caller);
	memset(plan->last, 0, sizeof(plan->last));
	plan->armed = true;
}
EXPORT long shim_disarm(void) {
	plan->armed = false;
	return plan->fired;
}
EXPORT long shim_count(void) { return plan->count; }
EXPORT long shim_fired(void) { return plan->fired; }
EXPORT const char *shim_last(void) { return plan->last; }

static void read_plan(void) {
	char text[512], line[4096];
	const char *given = getenv("SHIM_PLAN");
	if (given == NULL)
		return;
	snprintf(text, sizeof(text), "%s", given);
	char *parts[5], *rest = text;
	for (int i = 0; i < 5; i++)
		parts[i] = rest == NULL ? "" : strsep(&rest, ":");
	int fd = (int)RAW(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	long length = fd < 0 ? 0 : RAW(SYS_read, fd, line, sizeof(line) - 1);
	if (fd >= 0)
		RAW(SYS_close, fd);
	for (long i = 0; i < length; i++)
		line[i] = line[i] == '\0' ? ' ' : line[i];
	line[length > 0 ? length : 0] = '\0';
	if (strstr(line, parts[4]) != NULL)
		shim_arm(parts[0], atol(parts[1]), atoi(parts[2]), parts[3]);
}

__attribute__((constructor)) static void begin(void) {
	struct plan *made = raw_map(sizeof(*made) + PAGE);
	if (made != MAP_FAILED)
		plan = made;
	if (plan != NULL)
		read_plan();
}

/* ---- fences ------------------------------------------------------------------------------------- */

#define FENCED_MAX 256
static _Atomic bool fencing;
static struct {
	_Atomic uintptr_t address;
	size_t size;
} fenced[FENCED_MAX];

EXPORT void shim_fence(int on) { fencing = on != 0; }

static void *map_fenced(size_t size, int protection, int flags, int fd, off_t offset) {
	size_t rounded = (size + PAGE - 1) & ~(PAGE - 1);
	uint8_t *all = (uint8_t *)RAW(SYS_mmap, NULL, rounded + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
					  -1, 0);
	if (all == MAP_FAILED)
		return MAP_FAILED;
	void *at = (void *)RAW(SYS_mmap, all + PAGE, size, protection, flags | MAP_FIXED, fd, offset);
	for (int i = 0; at != MAP_FAILED && i < FENCED_MAX; i++) {
		uintptr_t none = 0;
		if (atomic_compare_exchange_strong(&fenced[i].address, &none, (uintptr_t)at)) {
			fenced[i].size = rounded;
			return at;
		}
	}
	int error = at == MAP_FAILED ? errno : ENOMEM;
	RAW(SYS_munmap, all, rounded + 2 * PAGE);
	errno = error;
	return MAP_FAILED;
}

static void *map(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
	if (fencing && address == NULL && (flags & MAP_SHARED) != 0 && fd >= 0)
		return map_fenced(size, protection, flags, fd, offset);
	return (void *)RAW(SYS_mmap, address, size, protection, flags, fd, offset);
}

EXPORT int munmap(void *address, size_t size) {
	for (int i = 0; i < FENCED_MAX; i++) {
		uintptr_t at = (uintptr_t)address;
		if (at != 0 && fenced[i].address == at) {
			size = fenced[i].size + 2 * PAGE;
			fenced[i].address = 0;
			return (int)RAW(SYS_munmap, (uint8_t *)address - PAGE, size);
		}
	}
	return (int)RAW(SYS_munmap, address, size);
}

/* ---- the functions ------------------------------------------------------------------------------ */

#define FAILS(name) fails(name, __builtin_return_address(0))
#define REFUSE(name, error, value)                                                             \
	do {                                                                                   \
		if (FAILS(name)) {                                                             \
			errno = (error);                                                       \
			return (value);                                                        \
		}                                                                              \
	} while (0)
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

EXPORT void *malloc(size_t size) {
	REFUSE("malloc", ENOMEM, NULL);
	return __libc_malloc(size);
}
EXPORT void *calloc(size_t count, size_t size) {
	REFUSE("calloc", ENOMEM, NULL);
	return __libc_calloc(count, size);
}
EXPORT void *realloc(void *old, size_t size) {
	REFUSE("realloc", ENOMEM, NULL);
	return __libc_realloc(old, size);
}
EXPORT void *aligned_alloc(size_t alignment, size_t size) {
	REFUSE("aligned_alloc", ENOMEM, NULL);
	return __libc_memalign(alignment, size);
}
EXPORT void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
	REFUSE("mmap", ENOMEM, MAP_FAILED);
	return map(address, size, protection, flags, fd, offset);
}
EXPORT void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
	REFUSE("mmap", ENOMEM, MAP_FAILED);
	return map(address, size, protection, flags, fd, offset);
}
EXPORT int memfd_create(const char *name, unsigned flags) {
	REFUSE("memfd_create", EMFILE, -1);
	return (int)RAW(SYS_memfd_create, name, flags);
}
EXPORT int ftruncate(int fd, off_t size) {
	REFUSE("ftruncate", ENOSPC, -1);
	return (int)RAW(SYS_ftruncate, fd, size);
}
EXPORT int ftruncate64(int fd, off_t size) {
	REFUSE("ftruncate", ENOSPC, -1);
	return (int)RAW(SYS_ftruncate, fd, size);
}
EXPORT int fallocate(int fd, int mode, off_t offset, off_t size) {
	REFUSE("fallocate", ENOSPC, -1);
	return (int)RAW(SYS_fallocate, fd, mode, offset, size);
}
EXPORT int fallocate64(int fd, int mode, off_t offset, off_t size) {
	REFUSE("fallocate", ENOSPC, -1);
	return (int)RAW(SYS_fallocate, fd, mode, offset, size);
}
EXPORT int fchmod(int fd, mode_t mode) {
	REFUSE("fchmod", EPERM, -1);
	return (int)RAW(SYS_fchmod, fd, mode);
}
EXPORT int fstat(int fd, struct stat *info) {
	REFUSE("fstat", EIO, -1);
	return NEXT(fstat)(fd, info);
}
EXPORT int fstat64(int fd, struct stat64 *info) {
	REFUSE("fstat", EIO, -1);
	return NEXT(fstat64)(fd, info);
}
EXPORT int fcntl(int fd, int command, ...) {
	va_list more;
	va_start(more, command);
	long argument = va_arg(more, long);
	va_end(more);
	REFUSE("fcntl", EMFILE, -1);
	return (int)RAW(SYS_fcntl, fd, command, argument);
}
EXPORT int fcntl64(int fd, int command, ...) {
	va_list more;
	va_start(more, command);
	long argument = va_arg(more, long);
	va_end(more);
	REFUSE("fcntl", EMFILE, -1);
	return (int)RAW(SYS_fcntl, fd, command, argument);
}
#define OPEN(name, real)                                                                       \
	EXPORT int name(const char *path, int flags, ...) {                                    \
		va_list more;                                                                  \
		va_start(more, flags);                                                         \
		mode_t mode = va_arg(more, mode_t);                                            \
		va_end(more);                                                                  \
		REFUSE("open", EMFILE, -1);                                                    \
		return (int)RAW(SYS_openat, AT_FDCWD, path, flags, mode);                  \
	}
OPEN(open, open)
OPEN(open64, open)
EXPORT FILE *fopen(const char *path, const char *mode) {
	REFUSE("fopen", EMFILE, NULL);
	return NEXT(fopen)(path, mode);
}
EXPORT FILE *fopen64(const char *path, const char *mode) {
	REFUSE("fopen", EMFILE, NULL);
	return NEXT(fopen64)(path, mode);
}
EXPORT int shm_open(const char *name, int flags, mode_t mode) {
	REFUSE("shm_open", EMFILE, -1);
	return NEXT(shm_open)(name, flags, mode);
}
EXPORT ssize_t pread(int fd, void *bytes, size_t size, off_t offset) {
	REFUSE("pread", EIO, -1);
	return RAW(SYS_pread64, fd, bytes, size, offset);
}
EXPORT ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
	REFUSE("pwrite", ENOSPC, -1);
	return RAW(SYS_pwrite64, fd, bytes, size, offset);
}
EXPORT ssize_t readlink(const char *path, char *bytes, size_t size) {
	REFUSE("readlink", EACCES, -1);
	return RAW(SYS_readlink, path, bytes, size);
}
EXPORT ssize_t getrandom(void *bytes, size_t size, unsigned flags) {
	REFUSE("getrandom", ENOSYS, -1);
	return RAW(SYS_getrandom, bytes, size, flags);
}
EXPORT int dup(int fd) {
	REFUSE("dup", EMFILE, -1);
	return (int)RAW(SYS_dup, fd);
}
EXPORT int pipe2(int fds[2], int flags) {
	REFUSE("pipe2", EMFILE, -1);
	return (int)RAW(SYS_pipe2, fds, flags);
}
EXPORT int eventfd(unsigned value, int flags) {
	REFUSE("eventfd", EMFILE, -1);
	return (int)RAW(SYS_eventfd2, value, flags);
}
EXPORT int epoll_create1(int flags) {
	REFUSE("epoll_create1", EMFILE, -1);
	return (int)RAW(SYS_epoll_create1, flags);
}
EXPORT int socket(int domain, int type, int protocol) {
	REFUSE("socket", EMFILE, -1);
	return (int)RAW(SYS_socket, domain, type, protocol);
}
EXPORT int socketpair(int domain, int type, int protocol, int fds[2]) {
	REFUSE("socketpair", EMFILE, -1);
	return (int)RAW(SYS_socketpair, domain, type, protocol, fds);
}
EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
	REFUSE("sendmsg", ENOBUFS, -1);
	return RAW(SYS_sendmsg, fd, message, flags);
}
EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
	REFUSE("recvmsg", ENOMEM, -1);
	return RAW(SYS_recvmsg, fd, message, flags);
}
EXPORT pid_t fork(void) {
	REFUSE("fork", EAGAIN, -1);
	return NEXT(fork)();
}
EXPORT int posix_spawn(pid_t *pid, const char *path, const void *actions, const void *attributes, char *const arguments[],
		       char *const environment[]) {
	if (FAILS("posix_spawn"))
		return EAGAIN;
	int (*real)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]) =
		(int (*)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]))dlsym(RTLD_NEXT, "posix_spawn");
	return real(pid, path, actions, attributes, arguments, environment);
}
EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
	if (FAILS("pthread_create"))
		return EAGAIN;
	return NEXT(pthread_create)(thread, attributes, function, argument);
}
EXPORT int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
	if (FAILS("pthread_mutex_init"))
		return ENOMEM;
	return NEXT(pthread_mutex_init)(mutex, attributes);
}
/* Made by number: of these only the one that opens a process counts. */
EXPORT long syscall(long number, ...) {
	va_list more;
	va_start(more, number);
	long a[6];
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(more, long);
	va_end(more);
	if (number == SYS_pidfd_open)
		REFUSE("pidfd_open", EMFILE, -1);
	return raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
