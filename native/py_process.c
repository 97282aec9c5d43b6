/* py_process.c -- the few system calls about processes that Python's small modules do not offer.
 *
 * The root and its workers start without `socket`, `selectors`, `signal` and `ctypes`, which would cost
 * more than everything else they do before they are ready. Descriptors made here are close-on-exec.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cgroup.h"
#include "py_message.h"
#include "segment.h"
#include "slots.h"
#include "ops.h"
#include "py_module.h"

#define DESCRIPTORS_MAX 64 /* in one message; the kernel's own limit is 253 */

/* ---- prctl -------------------------------------------------------------------------------------- */
static PyObject *set_parent_death_signal(PyObject *module, PyObject *argument) {
	(void)module;
	long number = PyLong_AsLong(argument);
	if (number == -1 && PyErr_Occurred())
		return NULL;
	if (prctl(PR_SET_PDEATHSIG, (unsigned long)number, 0, 0, 0) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *set_child_subreaper(PyObject *module, PyObject *argument) {
	(void)module;
	int on = PyObject_IsTrue(argument);
	if (on < 0)
		return NULL;
	if (prctl(PR_SET_CHILD_SUBREAPER, (unsigned long)on, 0, 0, 0) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *set_process_name(PyObject *module, PyObject *argument) {
	(void)module;
	const char *name = PyUnicode_AsUTF8(argument);
	if (!name)
		return NULL;
	prctl(PR_SET_NAME, name, 0, 0, 0); /* cut at 15 bytes by the kernel; cannot fail otherwise */
	Py_RETURN_NONE;
}

/* ---- pidfd -------------------------------------------------------------------------------------- */
static PyObject *pidfd_open(PyObject *module, PyObject *argument) {
	(void)module;
	long pid = PyLong_AsLong(argument);
	if (pid == -1 && PyErr_Occurred())
		return NULL;
	int fd = shmrt_pidfd_open((int32_t)pid);
	return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

/* True when the signal was sent, False when the process is gone. */
static PyObject *pidfd_signal(PyObject *module, PyObject *args) {
	(void)module;
	int fd, number;
	if (!PyArg_ParseTuple(args, "ii", &fd, &number))
		return NULL;
	if (shmrt_pidfd_signal(fd, number) == SHMRT_OK)
		Py_RETURN_TRUE;
	if (errno == ESRCH)
		Py_RETURN_FALSE;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *pidfd_is_gone(PyObject *module, PyObject *argument) {
	(void)module;
	int fd = PyObject_AsFileDescriptor(argument);
	return fd < 0 ? NULL : PyBool_FromLong(shmrt_pidfd_is_gone(fd));
}

/* Unblocks every signal and sets each back to what a fresh program has; Python's own handlers of
 * `signal` are the caller's to set afterwards. */
static PyObject *reset_signals(PyObject *module, PyObject *unused) {
	(void)module, (void)unused;
	struct sigaction standard = {.sa_handler = SIG_DFL};
	for (int number = 1; number < NSIG; number++)
		if (number != SIGKILL && number != SIGSTOP && number != SIGPIPE && number != SIGXFSZ)
			sigaction(number, &standard, NULL); /* fails for the C library's own two: right */
	sigset_t none;
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	Py_RETURN_NONE;
}

/* ---- sockets with descriptors ------------------------------------------------------------------- */
static PyObject *make_socketpair(PyObject *module, PyObject *argument) {
	(void)module;
	int packets = PyObject_IsTrue(argument), pair[2];
	if (packets < 0)
		return NULL;
	if (socketpair(AF_UNIX, (packets ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0, pair) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return Py_BuildValue("(ii)", pair[0], pair[1]);
}

/* send_fds(socket, data, fds) -> bytes sent, None when it would block. Never raises SIGPIPE. */
static PyObject *send_fds(PyObject *module, PyObject *args) {
	(void)module;
	int socket;
	Py_buffer data;
	PyObject *list;
	if (!PyArg_ParseTuple(args, "iy*O", &socket, &data, &list))
		return NULL;
	PyObject *result = NULL, *items = PySequence_Fast(list, "fds must be a sequence");
	Py_ssize_t count = items ? PySequence_Fast_GET_SIZE(items) : 0;
	if (!items)
		goto done;
	if (count > DESCRIPTORS_MAX) {
		PyErr_Format(PyExc_ValueError, "%zd descriptors in one message; at most %d are possible", count, DESCRIPTORS_MAX);
		goto done;
	}
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
	} control = {0};
	struct iovec part = {data.buf, (size_t)data.len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	if (count) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
		for (Py_ssize_t i = 0; i < count; i++) {
			int fd = PyObject_AsFileDescriptor(PySequence_Fast_GET_ITEM(items, i));
			if (fd < 0)
				goto done;
			memcpy(CMSG_DATA(header) + (size_t)i * sizeof(int), &fd, sizeof(int));
		}
	}
	ssize_t sent;
	do
		sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (sent < 0 && errno == EINTR);
	if (sent >= 0)
		result = PyLong_FromSsize_t(sent);
	else if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM || errno == ETOOMANYREFS) /* for the moment */
		result = Py_NewRef(Py_None);
	else
		PyErr_SetFromErrno(PyExc_OSError);
done:
	Py_XDECREF(items);
	PyBuffer_Release(&data);
	return result;
}

/* recv_fds(socket, size) -> (data, fds); data b"" at the end of the stream; None when it would block. */
static PyObject *recv_fds(PyObject *module, PyObject *args) {
	(void)module;
	int socket;
	Py_ssize_t size;
	if (!PyArg_ParseTuple(args, "in", &socket, &size))
		return NULL;
	PyObject *data = PyBytes_FromStringAndSize(NULL, size), *fds = PyList_New(0);
	if (!data || !fds)
		goto failed;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(256 * sizeof(int))];
	} control;
	struct iovec part = {PyBytes_AS_STRING(data), (size_t)size};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
	ssize_t received;
	do
		received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (received < 0 && errno == EINTR);
	if (received < 0 && errno == EAGAIN) {
		Py_DECREF(data);
		Py_DECREF(fds);
		Py_RETURN_NONE;
	}
	if (received < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		goto failed;
	}
	bool whole = (message.msg_flags & MSG_CTRUNC) == 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
			PyObject *number = whole ? PyLong_FromLong(fd) : NULL;
			if (!number || PyList_Append(fds, number) < 0) {
				close(fd);
				whole = false;
			}
			Py_XDECREF(number);
		}
	}
	if (whole && _PyBytes_Resize(&data, received) == 0) {
		PyObject *result = Py_BuildValue("(OO)", data, fds);
		Py_DECREF(data);
		if (result) {
			Py_DECREF(fds);
			return result;
		}
		data = NULL;
	}
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fds); i++) /* the caller never hears of them */
		close((int)PyLong_AsLong(PyList_GET_ITEM(fds, i)));
	if (!PyErr_Occurred()) { /* the kernel had no room for them in our table */
		errno = EMFILE;
		PyErr_SetFromErrno(PyExc_OSError);
	}
failed:
	Py_XDECREF(data);
	Py_XDECREF(fds);
	return NULL;
}

/* poll([(fd, events)], timeout_ms) -> [(fd, events)] that are ready; [] after the timeout or a signal.
 * Handlers of signals have run when it returns; it does not go back to sleep by itself. */
static PyObject *poll_fds(PyObject *module, PyObject *args) {
	(void)module;
	PyObject *list;
	long timeout;
	if (!PyArg_ParseTuple(args, "Ol", &list, &timeout))
		return NULL;
	PyObject *items = PySequence_Fast(list, "poll takes a sequence of (fd, events)");
	if (!items)
		return NULL;
	Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
	struct pollfd *fds = PyMem_New(struct pollfd, (size_t)(count ? count : 1));
	PyObject *found = fds ? PyList_New(0) : PyErr_NoMemory();
	for (Py_ssize_t i = 0; found && i < count; i++) {
		int fd, events;
		if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(items, i), "ii", &fd, &events))
			Py_CLEAR(found);
		else
			fds[i] = (struct pollfd){.fd = fd, .events = (short)events};
	}
	if (found) {
		int ready, reason;
		Py_BEGIN_ALLOW_THREADS;
		ready = poll(fds, (nfds_t)count, timeout < 0 ? -1 : timeout > INT32_MAX ? INT32_MAX : (int)timeout);
		reason = errno;
		Py_END_ALLOW_THREADS;
		if (ready < 0 && (reason != EINTR || PyErr_CheckSignals() < 0)) {
			errno = reason;
			if (!PyErr_Occurred())
				PyErr_SetFromErrno(PyExc_OSError);
			Py_CLEAR(found);
		}
		for (Py_ssize_t i = 0; found && ready > 0 && i < count; i++) {
			if (!fds[i].revents)
				continue;
			PyObject *row = Py_BuildValue("(ii)", fds[i].fd, (int)fds[i].revents);
			if (!row || PyList_Append(found, row) < 0)
				Py_CLEAR(found);
			Py_XDECREF(row);
		}
	}
	PyMem_Free(fds);
	Py_DECREF(items);
	return found;
}

/* ---- memory ------------------------------------------------------------------------------------- */
static PyObject *memfd_create_sealed(PyObject *module, PyObject *args) {
	(void)module;
	const char *name;
	unsigned long long size;
	if (!PyArg_ParseTuple(args, "sK", &name, &size))
		return NULL;
	int fd = shmrt_memfd_create(name, size);
	return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static void count_oom_kills(void *context, const char *directory, const char *group, int version) {
	(void)group;
	int64_t *kills = context;
	uint64_t value;
	if (*kills < 0 && shmrt_cgroup_read_key(directory, version == 2 ? "memory.events" : "memory.oom_control",
						"oom_kill", &value))
		*kills = (int64_t)value; /* the innermost group that counts: the process's own */
}

static PyObject *usable_cpus(PyObject *module, PyObject *unused) {
	(void)module;
	(void)unused;
	return PyLong_FromLong(shmrt_usable_cpus());
}

static PyObject *prepare_beat(PyObject *module, PyObject *unused) {
	(void)module;
	(void)unused;
	if (shmrt_beat_prepare() != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *oom_kills(PyObject *module, PyObject *unused) {
	(void)module, (void)unused;
	int64_t kills = -1;
	shmrt_cgroup_each("memory", count_oom_kills, &kills);
	return PyLong_FromLongLong(kills);
}

/* check_memory(bytes): SegmentError if machine or control groups have not that much left. */
static PyObject *check_memory(PyObject *module, PyObject *bytes) {
	(void)module;
	struct shmrt_shortage shortage;
	unsigned long long needed = PyLong_AsUnsignedLongLong(bytes);
	if (PyErr_Occurred())
		return NULL;
	if (shmrt_budget_check(needed, -1, &shortage) != SHMRT_OK)
		return shmrt_raise_shortage(&shortage);
	Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
	{"set_parent_death_signal", set_parent_death_signal, METH_O, "Signal for this process when its parent thread ends; 0: none."},
	{"set_child_subreaper", set_child_subreaper, METH_O, "Whether orphans among the descendants become own children."},
	{"set_process_name", set_process_name, METH_O, "What ps and top show for this thread."},
	{"pidfd_open", pidfd_open, METH_O, "pidfd_open(pid) -> descriptor"},
	{"pidfd_signal", pidfd_signal, METH_VARARGS, "pidfd_signal(fd, number) -> False when the process is gone"},
	{"pidfd_is_gone", pidfd_is_gone, METH_O, "Whether every thread of the process is gone."},
	{"reset_signals", reset_signals, METH_NOARGS, "Every signal unblocked and back to its default."},
	{"socketpair", make_socketpair, METH_O, "socketpair(packets) -> (fd, fd) of Unix sockets"},
	{"send_fds", send_fds, METH_VARARGS, "send_fds(socket, data, fds) -> bytes sent, None if it would block"},
	{"recv_fds", recv_fds, METH_VARARGS, "recv_fds(socket, size) -> (data, fds), None if it would block"},
	{"poll", poll_fds, METH_VARARGS, "poll([(fd, events)], timeout_ms) -> [(fd, events)]"},
	{"memfd_create", memfd_create_sealed, METH_VARARGS, "memfd_create(name, size) -> descriptor of a sealed memfd"},
	{"usable_cpus", usable_cpus, METH_NOARGS, "CPUs by affinity and the control group's quota; at least 1."},
	{"prepare_beat", prepare_beat, METH_NOARGS, "The beat's thread, asleep until Slots.start_beat. OSError: there can be none."},
	{"check_memory", check_memory, METH_O, "check_memory(bytes): SegmentError if the machine or a control group has not that much left."},
	{"oom_kills", oom_kills, METH_NOARGS, "Kills for want of memory in the own control group; -1: unknown."},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_process(PyObject *module) {
	static const struct {
		const char *name;
		long value;
	} constants[] = {{"POLLIN", POLLIN}, {"POLLOUT", POLLOUT}, {"POLLHUP", POLLHUP}, {"POLLERR", POLLERR}};
	for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
			return -1;
	return PyModule_AddFunctions(module, functions);
}
