"""How much work the hub puts into a worker's lane: it follows the last tasks, not the first call of a function."""

from __future__ import annotations

import time

import shmrt


def filled(pool: shmrt.Pool) -> int:
    """How many tasks lie in the lane of its one worker, which is busy, while many wait."""
    for future in [pool.submit(abs, -1) for _ in range(64)]:
        assert future.result() == 1
    blocker = pool.submit(time.sleep, 0.02)
    waiting = [pool.submit(abs, -1) for _ in range(200)]
    lane = pool._core.workers()[0]["in_lane"]
    blocker.result()
    assert sum(future.result() for future in waiting) == 200
    return int(lane)


def test_a_slow_first_call_does_not_starve_the_workers() -> None:
    """By the mean of all tasks there would be about a hundred thousand to go until a lane holds fifty."""
    with shmrt.Pool(1) as pool:
        pool.submit(time.sleep, 0.5).result()
        # One that a busy machine held up says nothing: it takes one round in which the tasks were as short as they are.
        assert any(filled(pool) > 50 for _ in range(100))


def test_long_tasks_do_not_pile_up_behind_each_other() -> None:
    with shmrt.Pool(2) as pool:
        for future in [pool.submit(abs, -1) for _ in range(500)]:
            future.result()
        for future in [pool.submit(time.sleep, 0.005) for _ in range(16)]:
            future.result()
        waiting = [pool.submit(time.sleep, 0.005) for _ in range(40)]
        lanes = [worker["in_lane"] for worker in pool._core.workers()]
        for future in waiting:
            future.result()
        assert max(lanes) <= 5  # the others wait where any worker may take them
