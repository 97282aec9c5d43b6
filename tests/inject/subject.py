"""What is changed and used again and again: the words that all subjects share.

A subject is made once. Its memory is copied; then, again and again, one thing in it is changed, it is attached anew by
its descriptor, and `use` does all that can be done with it. What may come out: a value, or one of `DOCUMENTED`.
"""

from __future__ import annotations

import mmap
import queue
from collections.abc import Callable
from typing import Any

from shmrt import _native
from shmrt.errors import ShmrtError

DOCUMENTED = (ShmrtError, queue.Empty)
MUTEXES_OF_RING = (_native.LAYOUT["ring_shared.put_mutex"], _native.LAYOUT["ring_shared.take_mutex"])
FUTEX_WAITERS, FUTEX_OWNER_DIED = 1 << 31, 1 << 30
NOBODY = (1 << 30) - 16  # no thread has such a number
NOW = 0.0  # no call waits: what is broken must not be waited for


def attempt(*calls: Callable[[], object]) -> list[str]:
    """Each of them; the names of the documented errors that came."""
    came = []
    for call in calls:
        try:
            call()
        except DOCUMENTED as error:
            came.append(type(error).__name__)
    return came


def arena_words(memory: mmap.mmap, base: int = 0) -> list[tuple[int, int]]:
    """Where its header, the words of its granules and those of the blocks of the first six are."""
    words, blocks = (base + int.from_bytes(memory[base + at : base + at + 8], "little") for at in (136, 144))
    return [(base, base + 2560), (words, words + 128), (blocks, blocks + 6 * 256 * 8)]


class Subject:
    """`parts`: (mapping, begin, end) of what is changed and put back; positions of a mutation count through them.

    `locks`: where mutexes begin. Their first word names the thread that holds them. One that lives would rightly be
    waited for, as every stopped holder is; so a change there always names a thread that does not exist, and since that
    takes a tenth of a second to find out, most changes there are left out.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[mmap.mmap, int, int]] = []
        self.beside: list[tuple[mmap.mmap, int, int]] = []  # put back, too, but never changed
        self.locks: list[int] = []
        self.late: list[tuple[int, bytes | int]] = []
        self.build()
        self.pristine = [bytes(memory[begin:end]) for memory, begin, end in self.parts + self.beside]
        self.size = sum(end - begin for _, begin, end in self.parts)

    def build(self) -> None:
        raise NotImplementedError

    def use(self) -> list[str]:
        raise NotImplementedError

    def add(self, fd: int, *ranges: tuple[int, int]) -> None:
        memory = mmap.mmap(fd, max(end for _, end in ranges))
        self.parts += [(memory, begin, end) for begin, end in ranges]

    def restore(self) -> None:
        for (memory, begin, end), content in zip(self.parts + self.beside, self.pristine, strict=True):
            memory[begin:end] = content

    def keep_arena(self, arena: Any) -> None:
        memory = mmap.mmap(arena.fd, 1 << 16)
        self.beside += [(memory, begin, end) for begin, end in arena_words(memory, arena.offset)]

    def now(self) -> None:
        """Called by `use` when all is attached: what was held back until then is changed under its feet."""
        late, self.late = self.late, []
        for position, content in late:
            self.write(position, content)
        if late:
            self.let_nobody_hold_it(keep=False)

    def at(self, position: int) -> tuple[mmap.mmap, int]:
        for memory, begin, end in self.parts:
            if position < end - begin:
                return memory, begin + position
            position -= end - begin
        raise IndexError(position)

    def let_nobody_hold_it(self, keep: bool) -> None:
        for lock in self.locks:
            memory, at = self.at(lock)
            word = int.from_bytes(memory[at : at + 4], "little")
            if word and not word & FUTEX_OWNER_DIED:
                word = (word & FUTEX_WAITERS | NOBODY) if keep else 0
                memory[at : at + 4] = word.to_bytes(4, "little")

    def write(self, position: int, content: bytes | int) -> None:
        """Bytes, or a number that is added to the word there."""
        memory, at = self.at(position)
        if isinstance(content, int):
            word = int.from_bytes(memory[at : at + 8], "little") + content
            content = (word % (1 << 64)).to_bytes(8, "little")
        content = content[: len(memory) - at]
        memory[at : at + len(content)] = content
