"""Pools inside workers, as the root sees them: who owns them, which slots they have, and what becomes of them.

Children of trees get their slots here, too, one each, under the negative of their keys.

A worker that makes a pool asks through its channel (`protocol.py`). It gets a slot for its hub, once, and for each
pool a range of slots at the upper end of the table, which the program never uses. The crew of such a pool is like any
other, but its events go to the worker.

When the worker dies, its pools end with it, at once: their workers are killed, and since no hub is left that would free
their slots, the root frees them here. The program is told ("orphaned",) so that it reclaims the blocks of the dead.
"""

from __future__ import annotations

from shmrt import _native
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.protocol import FIRST_NESTED
from shmrt.supervise.staff import Staff

__all__ = ["Nested"]

_FIRST_ID = 1 << 24  # the program counts its pools from 1


class Nested:
    """The upper end of the table."""

    def __init__(self, staff: Staff) -> None:
        self.staff = staff
        self._next_id = _FIRST_ID
        self._hubs: dict[Worker, int] = {}  # the slot of each worker's hub
        self._ranges: dict[int, tuple[Worker | None, int, int]] = {}  # by pool: owner, first slot, count

    def open_hub(self, owner: Worker) -> None:
        """("hub", slot); slot 0 when the table is full."""
        slot = self._hubs.get(owner) or self._find(1)
        if slot and owner not in self._hubs:
            self.staff.slots.claim(slot, 0, owner.number)
            self.staff.slots.set_process(slot, owner.pid)
            self._hubs[owner] = slot
        self._answer(owner, ("hub", slot))

    def allot(self, owner: Worker, count: int) -> None:
        """("allotted", pool, first slot); pool 0 when the table is full."""
        first = self._find(count)
        pool = self._next_id if first else 0
        if first:
            self._next_id += 1
            self._ranges[pool] = (owner, first, count)
        self._answer(owner, ("allotted", pool, first))

    def hub_of(self, owner: Worker) -> int:
        return self._hubs[owner]

    def may_add(self, owner: Worker, pool: int, first: int, count: int) -> bool:
        """Whether this very range was allotted to this worker, and it has a hub."""
        return owner in self._hubs and self._ranges.get(pool) == (owner, first, count)

    def allot_child(self, key: int) -> int:
        """The slot of a child of a tree, for as long as its specification; 0 when the table is full."""
        first = self._find(1)
        if first:
            self._ranges[-key] = (None, first, 1)
        return first

    def forget_child(self, key: int) -> None:
        self._ranges.pop(-key, None)

    def give_back(self, owner: Worker | None, pool: int) -> None:
        """A pool that was allotted slots and came to nothing."""
        if pool in self._ranges and self._ranges[pool][0] is owner:
            del self._ranges[pool]

    def forget(self, crew: Crew) -> None:
        """Nothing of the pool is left. Without its owner nobody else frees its slots."""
        if self._ranges.pop(crew.id, None) is not None and crew.orphaned:
            self._free(crew.first, crew.count)
            self.staff.channel.send(("orphaned",))

    def owner_gone(self, owner: Worker) -> list[Crew]:
        """The pools that end with it, marked."""
        hub = self._hubs.pop(owner, 0)
        if hub:
            slots = self.staff.slots
            slots.gone_anyway(hub, slots.epoch(hub), 0, False)
            slots.free(hub)
        crews = [crew for crew in self.staff.crews.values() if crew.owner is owner]
        for crew in crews:
            crew.orphaned = True
        for pool, (whose, _, _) in list(self._ranges.items()):
            if whose is owner and pool not in self.staff.crews:
                del self._ranges[pool]  # it died between the two messages
        return crews

    def _find(self, count: int) -> int:
        """The first of so many slots in a row that nobody has; 0: there are none."""
        taken = sorted((first, first + size) for _, first, size in self._ranges.values())
        taken += [(slot, slot + 1) for slot in self._hubs.values()]
        start = FIRST_NESTED
        for first, end in sorted(taken):
            if first - start >= count:
                break
            start = max(start, end)
        return start if start + count <= self.staff.slots.count else 0

    def _free(self, first: int, count: int) -> None:
        for slot in range(first, first + count):
            if self.staff.slots.state(slot) == _native.SLOT_GONE:
                self.staff.slots.free(slot)

    @staticmethod
    def _answer(owner: Worker, message: tuple[object, ...]) -> None:
        assert owner.channel is not None
        owner.channel.send(message)
