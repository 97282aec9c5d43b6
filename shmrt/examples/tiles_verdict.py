"""What a run of `tiles_run.py` came to, and whether it is what was expected.

answers    the digest of both runs, in calm and under fire, is the serial run's
copies     no tile was copied between the source and the last stage
full       while the last worker stood still, every ring held as many tiles as it may, and no more: its slots, or what
fits
           its part of the shared memory if that is less
memory     meanwhile the shared memory stood still to the page, below its limit
alive      the stopped worker was declared dead by nobody: no process was replaced, and it went on by itself
resumed    tiles came again after it
reclaimed  each worker that was killed held memory; none of it was given back before the process was reaped, all of it
after clean      no block of shared memory was in use at the end
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["BYTES", "Calm", "Kill", "Look", "Stop", "Verdict", "judge"]

BYTES = 256 * 256 * 3


class Calm(NamedTuple):
    """tiles per second, seconds until it was steady, bytes of all processes."""

    rate: float
    steady_s: float
    memory: int


class Look(NamedTuple):
    """At rest: tiles in each ring, bytes of blocks in use, bytes of pages that the kernel gave, bytes of all
    processes."""

    rings: tuple[int, ...]
    given: int
    used: int
    pages: int
    memory: int


class Stop(NamedTuple):
    """seconds it lasted, looks at rest, processes replaced, whether the same worker went on, tiles that came after
    it."""

    seconds: float
    looks: list[Look]
    restarts: int
    same_worker: bool
    resumed: int


class Kill(NamedTuple):
    """held: blocks that the process had. early: some were given back while it was still there."""

    pid: int
    held: int
    early: bool


class Verdict(NamedTuple):
    """`expected` says of each expectation whether it was met; `holds`: all were."""

    expected: dict[str, bool]
    tiles: list[int]
    pictures: str
    tiles_per_second: float
    gb_per_second: float
    copies_per_tile: float
    steady_after: float
    memory: int
    stop_seconds: float
    stop_memory: list[int]
    shared_memory: int
    shm_limit: int
    rings: list[int]
    killed: int
    restarts: int
    left: int
    seed: int
    digests: list[str]
    serial_digests: list[str]

    @property
    def holds(self) -> bool:
        return all(self.expected.values())

    def text(self) -> str:
        calm, fire = self.tiles
        missing = ", ".join(name for name, met in self.expected.items() if not met)
        least, most = self.stop_memory
        same = ["yes" if one == other else "NO" for one, other in zip(self.digests, self.serial_digests, strict=True)]
        return "\n".join(
            [
                f"tiles: {calm:,} tiles in calm, {self.tiles_per_second:,.0f} a second ({self.gb_per_second:.3f} "
                f"GB/s), {self.copies_per_tile:g} copies per tile between the stages; steady after "
                f"{self.steady_after:.2f} s; all processes {self.memory / 2**20:,.0f} MiB; pictures: {self.pictures}",
                f"  stopped  {self.stop_seconds:.1f} s: rings at {', '.join(map(str, self.rings)) or 'no rest'}; "
                f"shared memory {self.shared_memory / 2**20:.2f} of {self.shm_limit / 2**20:.0f} MiB, "
                f"{'flat' if self.expected['memory'] else 'NOT FLAT'}; all processes "
                f"{least / 2**20:,.1f} to {most / 2**20:,.1f} MiB; {self.restarts} declared dead",
                f"  killed   {self.killed} workers that held memory: given back after they were reaped: "
                f"{'yes' if self.expected['reclaimed'] else 'NO'}; blocks left at the end: {self.left}",
                f"  same answer as the serial run: {same[0]} in calm ({calm:,} tiles), {same[1]} while stopped and "
                f"killed ({fire:,} tiles)" + (f"; NOT as expected: {missing}" if missing else ""),
            ]
        )


def is_full(rings: tuple[int, ...], slots: int, limit: int) -> bool:
    """Each ring holds its `slots`, or what fits its part of a quarter of the limit, which one tile may pass; what goes
    along with a tile counts a little."""
    part = limit // (4 * len(rings))
    least, most = min(slots, max(1, part // (BYTES + 8192))), min(slots, part // BYTES + 1)
    return all(least <= count <= most for count in rings)


def judge(
    summaries: list[dict[str, Any]],
    serial: list[str],
    calm: Calm,
    stop: Stop,
    kills: list[Kill],
    *,
    slots: int,
    limit: int,
    left: int,
    pictures: str,
    seed: int,
) -> Verdict:
    """Pure: what was seen, and what is to be thought of it."""
    looks = stop.looks
    pages = {look.pages for look in looks} | {0}
    rings = list(looks[-1].rings) if looks else []
    expected = {
        "answers": [one["digest"] for one in summaries] == serial,
        "copies": all(one["copies"] == 0 for one in summaries),
        "full": bool(looks) and all(is_full(look.rings, slots, limit) for look in looks),
        "memory": len({look[:-1] for look in looks}) == 1 and max(pages) <= limit,
        "alive": stop.restarts == 0 and stop.same_worker,
        "resumed": stop.resumed > 0,
        "reclaimed": all(kill.held > 0 and not kill.early for kill in kills),
        "clean": left == 0,
    }
    memory = [look.memory for look in looks] or [0]
    return Verdict(
        expected=expected,
        tiles=[one["tiles"] for one in summaries],
        pictures=pictures,
        tiles_per_second=round(calm.rate, 2),
        gb_per_second=round(calm.rate * BYTES / 1e9, 4),
        copies_per_tile=sum(one["copies"] for one in summaries) / max(1, sum(one["tiles"] for one in summaries)),
        steady_after=round(calm.steady_s, 3),
        memory=calm.memory,
        stop_seconds=round(stop.seconds, 2),
        stop_memory=[min(memory), max(memory)],
        shared_memory=max(pages),
        shm_limit=limit,
        rings=rings,
        killed=len(kills),
        restarts=stop.restarts,
        left=left,
        seed=seed,
        digests=[one["digest"] for one in summaries],
        serial_digests=serial,
    )
