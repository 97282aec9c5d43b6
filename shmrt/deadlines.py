"""Until when the message that is being dealt with is wanted.

A deadline travels with its message: a task submitted by `pool.options(deadline=2.0)` and a call with `timeout=2.0`
carry the moment after which nobody wants them. What has not begun by then is dropped; what runs may ask how long it
has.

    >>> deadline() is None  # nothing is being dealt with here
    True

In a task of a pool, what the task itself calls or submits gets no more time than the task has. In a server's handler
nothing is passed on by itself: an exception there ends the server, and a caller with little patience could so crash
what it calls. `other.call("look", timeout=shmrt.deadline())` passes it on where that is wanted.

As contexts in Go and deadlines in gRPC, which pass them on to everything. If the process dies, its deadlines mean
nothing any more.
"""

from __future__ import annotations

from shmrt import _native

__all__ = ["deadline"]


def deadline() -> float | None:
    """Seconds that are left for the task or message that this thread deals with, 0.0 when its time is over; None if it
    has no limit, and everywhere else.

    A task has one if `options(deadline=)` gave it one, or if the task that submitted it has; its `timeout` is none:
    that is kept by killing the worker. A server's handler has one for calls with a timeout, and for casts and infos
    with `deadline=`. Only the thread that runs the task or handler is told; those that it starts are not.
    """
    left: float | None = _native.turn()[0]
    return left
