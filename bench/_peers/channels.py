"""Ways for one process to hand messages to another, each in the shape that its own documentation recommends.

A channel is made in the process that starts producers and consumers by fork, `at_producer(index)` runs in each
producer and `at_consumer(index)` in each consumer. Where a package carries bytes only, objects travel as a pickle of
protocol 5 and bytes as they are, which is the fastest that its user can do. All are bounded to the same number of
messages where the package has a bound, and wait when they are full.

`copies` counts how often the bytes of a payload are written on their way, kernel and pickle included. `survives_kill`
says what becomes of the channel when one of its processes is killed by SIGKILL, as tried in 20 trials each.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

Put = Callable[[Any], object]
Get = Callable[[], Any]

CONTEXT = multiprocessing.get_context("fork")
_numbers = itertools.count()


def slots_for(payload: int) -> int:
    """Messages in flight at most: 1024, fewer of large ones, so that a full channel holds some 64 MiB."""
    return max(8, min(1024, (64 << 20) // max(payload, 1)))


def dumps(obj: Any) -> bytes:
    return pickle.dumps(obj, 5)


class Channel:
    """What every adapter offers. `batched` is "own" where it has calls for many messages at once, else a list is sent
    as one message, as its user would do."""

    impl = ""
    package = ""
    copies = 0
    survives_kill = ""
    most: int | None = None
    many_to_many = True
    batched = "list"
    by_reference = False

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        self.producers, self.consumers = producers, consumers
        self.payload, self.objects = payload, objects

    def at_producer(self, index: int) -> Put:
        raise NotImplementedError

    def at_consumer(self, index: int) -> Get:
        raise NotImplementedError

    def batches_out(self, index: int) -> Put:
        """For lists; by default a list is one object."""
        return self.at_producer(index)

    def batches_in(self, index: int) -> Callable[[int], list[Any]]:
        """Takes how many are wanted at most."""
        get = self.at_consumer(index)
        return lambda most: get()

    def end(self) -> None:
        """In a producer or consumer, before it ends: what was sent is on its way, what was opened is closed."""

    def close(self) -> None:
        """In the process that made it."""


class BytesChannel(Channel):
    """One that carries bytes only: `raw_out` and `raw_in` send and take them."""

    def raw_out(self, index: int) -> Put:
        raise NotImplementedError

    def raw_in(self, index: int) -> Get:
        raise NotImplementedError

    def at_producer(self, index: int) -> Put:
        send = self.raw_out(index)
        return (lambda obj: send(dumps(obj))) if self.objects else send

    def at_consumer(self, index: int) -> Get:
        receive = self.raw_in(index)
        return (lambda: pickle.loads(receive())) if self.objects else receive

    def batches_out(self, index: int) -> Put:
        send = self.raw_out(index)
        return lambda objs: send(dumps(objs))

    def batches_in(self, index: int) -> Callable[[int], list[Any]]:
        receive = self.raw_in(index)
        return lambda most: pickle.loads(receive())  # type: ignore[no-any-return]


class ShmrtRing(Channel):
    impl, package = "shmrt.Ring", "shmrt"
    copies, survives_kill, batched = 2, "yes", "own"
    by_reference = True

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        import shmrt

        self._ring: Any = shmrt.Ring.create(shmrt.RingSpec(slots=slots_for(payload)))

    def at_producer(self, index: int) -> Put:
        return self._ring.put  # type: ignore[no-any-return]

    def at_consumer(self, index: int) -> Get:
        return self._ring.get  # type: ignore[no-any-return]

    def batches_out(self, index: int) -> Put:
        return self._ring.put_many  # type: ignore[no-any-return]

    def batches_in(self, index: int) -> Callable[[int], list[Any]]:
        return self._ring.get_many  # type: ignore[no-any-return]

    def close(self) -> None:
        self._ring.close()


class StandardQueue(Channel):
    impl, package = "multiprocessing.Queue", "multiprocessing"
    copies, survives_kill = 4, "no"

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        self._queue: Any = CONTEXT.Queue(slots_for(payload))

    def at_producer(self, index: int) -> Put:
        return self._queue.put  # type: ignore[no-any-return]

    def at_consumer(self, index: int) -> Get:
        return self._queue.get  # type: ignore[no-any-return]

    def end(self) -> None:
        self._queue.close()
        self._queue.join_thread()

    def close(self) -> None:
        self._queue.close()


class SimpleQueue(StandardQueue):
    impl = "multiprocessing.SimpleQueue"

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        Channel.__init__(self, producers, consumers, payload, objects)
        self._queue = CONTEXT.SimpleQueue()

    def end(self) -> None:
        pass


class StandardPipe(Channel):
    impl, package = "multiprocessing.Pipe", "multiprocessing"
    copies, survives_kill, many_to_many = 4, "the other side sees the end", False

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        self._reader, self._writer = CONTEXT.Pipe(duplex=False)

    def at_producer(self, index: int) -> Put:
        return self._writer.send

    def at_consumer(self, index: int) -> Get:
        return self._reader.recv

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class PipeBytes(BytesChannel):
    impl, package = "Pipe.send_bytes", "multiprocessing"
    copies, survives_kill, many_to_many = 3, StandardPipe.survives_kill, False

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        self._reader, self._writer = CONTEXT.Pipe(duplex=False)

    def raw_out(self, index: int) -> Put:
        return self._writer.send_bytes

    def raw_in(self, index: int) -> Get:
        return self._reader.recv_bytes

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class FasterFifo(Channel):
    impl, package = "faster-fifo", "faster-fifo"
    copies, survives_kill, batched = 4, "no", "own"

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        from faster_fifo import Queue

        slots = slots_for(payload)
        room = max(slots * (payload + 64), 1 << 20)
        self._end = time.monotonic() + 300
        self._queue: Any = Queue(max_size_bytes=room, maxsize=slots, **self._pickler())

    def _pickler(self) -> dict[str, Any]:
        return {}

    def at_producer(self, index: int) -> Put:
        put = self._queue.put
        return lambda obj: put(obj, timeout=60.0)

    def at_consumer(self, index: int) -> Get:
        get = self._queue.get

        def again() -> Any:
            while True:
                try:
                    return get(timeout=60.0)
                except queue.Empty:  # it says so at once, too, when another consumer was faster
                    self._look_at_the_end()

        return again

    def batches_out(self, index: int) -> Put:
        put = self._queue.put_many
        return lambda objs: put(objs, timeout=60.0)

    def batches_in(self, index: int) -> Callable[[int], list[Any]]:
        get = self._queue.get_many

        def again(most: int) -> list[Any]:
            while True:
                try:
                    return get(timeout=60.0, max_messages_to_get=most)  # type: ignore[no-any-return]
                except queue.Empty:
                    self._look_at_the_end()

        return again

    def _look_at_the_end(self) -> None:
        """Nobody waits for more than all the patience of those who measure."""
        if time.monotonic() > self._end:
            raise TimeoutError("faster-fifo brought nothing for five minutes")


class FasterFifoPickle(FasterFifo):
    impl = "faster-fifo, pickle 5"

    def _pickler(self) -> dict[str, Any]:
        return {"dumps": dumps, "loads": pickle.loads}


class ZeroMq(BytesChannel):
    """A consumer binds one address, every producer connects to all of them and deals its messages out in turn."""

    impl, package = "pyzmq PUSH/PULL", "pyzmq"
    copies, survives_kill = 4, "yes, what it held is lost"

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        self._place = tempfile.mkdtemp(prefix="shmrt-bench-")
        self._sockets: list[Any] = []

    def sending(self) -> list[Any]:
        import zmq

        context = zmq.Context()
        for consumer in range(self.consumers):
            socket = context.socket(zmq.PUSH)
            socket.set_hwm(slots_for(self.payload))
            socket.connect(f"ipc://{self._place}/{consumer}")
            self._sockets.append(socket)
        return self._sockets

    def receiving(self, index: int) -> Any:
        import zmq

        socket = zmq.Context().socket(zmq.PULL)
        socket.set_hwm(slots_for(self.payload))
        socket.bind(f"ipc://{self._place}/{index}")
        self._sockets.append(socket)
        return socket

    def raw_out(self, index: int) -> Put:
        sockets = self.sending()
        if len(sockets) == 1:
            return sockets[0].send  # type: ignore[no-any-return]
        turns = itertools.cycle(socket.send for socket in sockets)
        return lambda data: next(turns)(data)

    def raw_in(self, index: int) -> Get:
        return self.receiving(index).recv  # type: ignore[no-any-return]

    def end(self) -> None:
        for socket in self._sockets:
            socket.close(linger=60_000)

    def close(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)


class PosixQueue(BytesChannel):
    """The kernel's message queue: at most 8 KiB a message, and 800 KiB in all queues of a user, as systems come."""

    impl, package = "posix_ipc.MessageQueue", "posix-ipc"
    copies, survives_kill, most = 3, "yes", 8192

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        import posix_ipc

        room = min(payload * 2 + 256, 8192)
        for slots in (min(slots_for(payload), 400_000 // (room + 64)), 10, 4):
            name = f"/shmrt-bench-{os.getpid()}-{next(_numbers)}"
            try:
                self._queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=slots, max_message_size=room)
            except (OSError, ValueError, posix_ipc.Error):
                continue
            self._queue.unlink()  # the descriptor is inherited; a name could be left behind
            return
        raise OSError("the system gives no message queue")

    def raw_out(self, index: int) -> Put:
        return self._queue.send  # type: ignore[no-any-return]

    def raw_in(self, index: int) -> Get:
        receive = self._queue.receive
        return lambda: receive()[0]

    def close(self) -> None:
        self._queue.close()


class Iceoryx(BytesChannel):
    """Publish and subscribe in shared memory, one publisher and one subscriber. Its Python subscriber cannot wait, so
    it looks again and again: the CPU is its price for a short round trip. Its library keeps a file that all of its
    programs share, in /dev/shm and in /tmp/iceoryx2, also when the last of them has ended in order."""

    impl, package = "iceoryx2, busy", "iceoryx2"
    copies, survives_kill, many_to_many = 2, "by design; not tried", False
    by_reference = True

    def __init__(self, producers: int, consumers: int, payload: int, objects: bool) -> None:
        super().__init__(producers, consumers, payload, objects)
        self._name = f"shmrt-bench/{os.getpid()}/{next(_numbers)}"
        self._kept: list[Any] = []

    def _service(self) -> Any:
        import ctypes

        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        service = (
            node.service_builder(iceoryx2.ServiceName.new(self._name))
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .subscriber_max_buffer_size(min(slots_for(self.payload), 256))
            .subscriber_max_borrowed_samples(8)
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()
        )
        self._kept += [node, service]
        return service

    def publisher(self) -> Any:
        """Ready when its subscriber is there: what is published before is lost."""
        import iceoryx2

        service = self._service()
        publisher = (
            service.publisher_builder()
            .initial_max_slice_len(max(self.payload + 256, 4096))
            .allocation_strategy(iceoryx2.AllocationStrategy.PowerOfTwo)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        end = time.monotonic() + 30
        while service.dynamic_config.number_of_subscribers == 0:
            if time.monotonic() > end:
                raise TimeoutError("no subscriber came")
            time.sleep(0.001)
        publisher.update_connections()
        self._kept.append(publisher)
        return publisher

    def subscriber(self) -> Any:
        self._kept.append(self._service().subscriber_builder().create())
        return self._kept[-1]

    def raw_out(self, index: int) -> Put:
        import ctypes

        loan, move = self.publisher().loan_slice_uninit, ctypes.memmove

        def put(data: bytes) -> None:
            sample = loan(len(data))
            move(sample.payload().data_ptr, data, len(data))
            sample.assume_init().send()

        return put

    def raw_in(self, index: int) -> Get:
        import ctypes

        receive, string_at = self.subscriber().receive, ctypes.string_at

        def get() -> bytes:
            while (sample := receive()) is None:
                pass
            payload = sample.payload()
            return string_at(payload.data_ptr, payload.number_of_elements)

        return get

    def end(self) -> None:
        self._kept.clear()  # its files in /dev/shm go when the last reference does


CHANNELS: tuple[type[Channel], ...] = (
    ShmrtRing,
    StandardQueue,
    SimpleQueue,
    StandardPipe,
    PipeBytes,
    FasterFifo,
    FasterFifoPickle,
    ZeroMq,
    PosixQueue,
    Iceoryx,
)
