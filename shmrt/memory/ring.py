"""Ring: a bounded queue of objects for any processes of one user, without a broker, a thread or a feeder.

    >>> ring = Ring.create(RingSpec(slots=4))
    >>> ring.put(("job", 1)); ring.put(("job", 2))
    >>> ring.get(), ring.get_many(10)
    (('job', 1), [('job', 2)])
    >>> ring.close()

`put` returns when the message is committed: from then on no death loses it until a `get` takes it. `get` is at
most once (what it was returning dies with its process), `with ring.lease() as obj` at least once: a message
whose lease ends by an exception or by the death of its process goes back to the ring. A `get_many` returns what it
could decode before a message that it could not; that one stays in the ring, with all behind it, and the next `get`, of
whatever process, takes it and raises. No process owns a ring and none is needed for repair; the next one that
uses it puts right what a dead one left.

A `Ring` pickled to another process attaches there. A named one (`Ring.create(spec, name="orders")`) lives until
`unlink` or reboot; any process of the user finds it by `Ring.attach("orders")`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from shmrt import _native
from shmrt.errors import SegmentError
from shmrt.memory import names
from shmrt.spec import ON_FULL, RingSpec, parse_size

__all__ = ["Lease", "Ring", "RingStats"]

_T = TypeVar("_T")


class RingStats(dict[str, Any]):
    """Numbers of one ring, as keys and as attributes: `stats["depth"]` is `stats.depth`.

    depth, capacity, high_water, leased, bytes_in, bytes_out, bytes (in it now, leased ones included), messages_in,
    messages_out, blocked_full and blocked_empty (seconds that puts and gets waited, summed), drops, refused (puts that
    got Overloaded; what a put_many could not put in counts as one), repairs, closed. All outlive whoever put and got.

    Bytes are those of messages as they travel, in the ring and in its shared memory; bytes_out includes what was
    dropped. repairs counts the deaths under way that were put right and the messages that came back from dead holders.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a ring's stats have no {name!r}; there are {', '.join(self)}") from None


class Lease(Generic[_T]):
    """One message on loan, for `with`. The block's normal end is its acknowledgement."""

    __slots__ = ("_blocks", "_position", "_ring", "_timeout")

    def __init__(self, ring: Ring, timeout: float | None) -> None:
        self._ring = ring
        self._timeout = timeout
        self._position: int | None = None
        self._blocks: tuple[Any, ...] = ()

    def __enter__(self) -> Any:
        if self._position is not None:
            raise RuntimeError("this lease is in use; ask the ring for another one")
        obj, self._position, self._blocks = self._ring._lease_take(self._timeout)
        return obj

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        position, blocks = self._position, self._blocks
        self._position, self._blocks = None, ()
        if position is not None:
            self._ring._lease_end(position, blocks, kind is None)


class _Handle:
    """How another process finds a descriptor of this one: by path, checked by identity.

    Numbers are re-used, so pid, start time (inside the owner id), inode and size all have to fit. Where the
    path may be refused (this process is not dumpable) or a child is being spawned, which can simply be given the
    descriptor, multiprocessing's own transfer goes along.
    """

    __slots__ = ("device", "fd", "inode", "owner", "size", "transfer")

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.owner = _native.owner_self()
        self.fd = fd
        self.inode = status.st_ino
        self.device = status.st_dev
        self.size = status.st_size
        self.transfer: Any = _transfer(fd)

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, slot) for slot in self.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for slot, value in zip(self.__slots__, state, strict=True):
            setattr(self, slot, value)

    def _is_it(self, fd: int) -> bool:
        status = os.fstat(fd)
        return (status.st_ino, status.st_dev, status.st_size) == (self.inode, self.device, self.size)

    def open(self) -> int:
        """A descriptor of this process; the caller closes it. SegmentError if it cannot be had."""
        if self.transfer is not None:
            transfer, self.transfer = self.transfer, None
            try:
                fd = int(transfer.detach())
            except (OSError, EOFError):
                pass  # taken before, or its server is gone: the path may still work
            else:
                if self._is_it(fd):
                    return fd
                os.close(fd)
        pid = self.owner & 0x3FFFFF
        if not _native.owner_is_alive(self.owner):
            raise SegmentError(f"the ring came from process {pid}, which is gone; only a living one can hand it over")
        try:
            fd = os.open(f"/proc/{pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentError(f"the ring of process {pid} cannot be opened: {error}") from error
        if not self._is_it(fd):
            os.close(fd)
            raise SegmentError(f"process {pid} closed the ring that it sent; it has to keep it until it arrived")
        return fd


def _transfer(fd: int) -> Any:
    """multiprocessing's descriptor passing, where it is the better or the only way; else None."""
    import sys

    context = sys.modules.get("multiprocessing.context")
    child = None if context is None else context.get_spawning_popen()
    if child is None and os.stat("/proc/self").st_uid == os.geteuid():
        return None
    from multiprocessing.reduction import DupFd

    if child is None:
        return DupFd(fd)
    # The child may start when this process has dropped the ring. Each handle passes a number of its own, since
    # a number may be passed only once; ours lives as long as multiprocessing's object for the child.
    own = os.dup(fd)
    weakref.finalize(child, os.close, own)
    return DupFd(own)


def _rebuild(cls: type[Ring], token: bytes, ring: _Handle, arena: _Handle, pickle: bool, spec: RingSpec) -> Ring:
    # Once per process: a ring that goes back and forth costs descriptors once. What was passed is closed then.
    fd = ring.open()
    try:
        known = _known.get(token)
        payload_fd = arena.open()
        try:
            if known is not None and known._pickle == pickle and type(known) is cls:
                return known
            payloads = _native.Arena.attach(payload_fd)
        finally:
            os.close(payload_fd)
        made = cls.__new__(cls)
        made._join(fd, payloads, pickle)
    finally:
        os.close(fd)
    if made._token != token:
        raise SegmentError("the ring that was opened is another one than the one sent")
    made._set_up(spec, None)
    _known[token] = made
    return made


def _rebuild_named(cls: type[Ring], name: str, token: bytes, pickle: bool) -> Ring:
    ring = cls.attach(name, pickle=pickle)
    if ring._token != token:
        raise SegmentError(f"the name {name!r} means another ring now than the one sent")
    return ring


class Ring(_native.RingCore):
    """A bounded queue in shared memory. Make one with `Ring.create` or `Ring.attach`."""

    _spec: RingSpec
    _name: str | None

    def __init__(self) -> None:
        raise TypeError("use Ring.create(spec) or Ring.attach(name)")

    @classmethod
    def create(cls, spec: RingSpec | None = None, name: str | None = None, *, limit: int | str | None = None) -> Ring:
        """A new ring: anonymous, or a named one that any process of this user can attach to.

        `limit` is the most payload memory that a named ring may take (anonymous ones share the process's).
        """
        spec = RingSpec() if spec is None else spec
        if not isinstance(spec, RingSpec):
            raise TypeError(f"spec must be a RingSpec, not {spec!r}")
        made = cls.__new__(cls)
        policy = ON_FULL.index(spec.on_full)
        if name is None:
            if limit is not None:
                raise ValueError("limit is for named rings; an anonymous one uses the shared memory of its process")
            made._make(spec.slots, spec.slot_bytes, policy)
            _known[made._token] = made
        else:
            names.check_name(name)
            most = _native.default_limit() if limit is None else parse_size(limit, "limit")
            size = cls._file_size(spec.slots, spec.slot_bytes, most)
            names.create_named(name, size, lambda fd: made._make_in(fd, spec.slots, spec.slot_bytes, policy, most))
        made._set_up(spec, name)
        return made

    @classmethod
    def attach(cls, name: str, *, pickle: bool = True) -> Ring:
        """The named ring. With `pickle=False` messages that only unpickling could make are refused."""
        names.check_name(name)
        fd = names.open_named(name)
        try:
            made = cls.__new__(cls)
            made._join(fd, None, pickle)
        finally:
            os.close(fd)
        made._set_up(RingSpec(made.capacity, made._slot_bytes, ON_FULL[made._on_full]), name)
        return made

    def _set_up(self, spec: RingSpec, name: str | None) -> None:
        self._spec = spec
        self._name = name

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def spec(self) -> RingSpec:
        return self._spec

    def lease(self, timeout: float | None = None) -> Lease[Any]:
        """`with ring.lease() as obj`: obj goes back to the ring unless the block ends normally."""
        return Lease(self, timeout)

    def stats(self) -> RingStats:
        numbers = self._stats()
        numbers["bytes"] = max(0, numbers["bytes_in"] - numbers["bytes_out"])
        numbers["dropped"] = numbers["drops"]
        return RingStats(numbers)

    def unlink(self) -> None:
        """Removes a named ring's name; processes that have it go on. Nothing to do for an anonymous one."""
        if self._name is not None:
            names.unlink_named(self._name, os.fstat(self._fd).st_ino)

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        stats = self._stats()
        return bool(stats["depth"] + stats["leased"] >= stats["capacity"])

    def __iter__(self) -> Iterator[Any]:
        """Objects until the ring is closed and drained."""
        from shmrt.errors import EndOfRing

        while True:
            try:
                item = self.get()
            except EndOfRing:
                return
            yield item

    def __reduce__(self) -> Any:
        if self._name is not None:
            return _rebuild_named, (type(self), self._name, self._token, self._pickle)
        handles = _Handle(self._fd), _Handle(self._arena.fd)
        return _rebuild, (type(self), self._token, *handles, self._pickle, self._spec)

    def __repr__(self) -> str:
        name = "anonymous" if self._name is None else repr(self._name)
        return f"<{type(self).__name__} {name} {self.qsize()}/{self.capacity} on_full={self._spec.on_full!r}>"


# Anonymous rings of this process by token.
_known: weakref.WeakValueDictionary[bytes, Ring] = weakref.WeakValueDictionary()
