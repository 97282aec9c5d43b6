"""Arrays that go through several processes: by reference from stage to stage and back, whoever dies, and never torn."""

from __future__ import annotations

import gc
import os
import random
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S, until

import shmrt
from shmrt import Pipeline, Pool, RingSpec, Runtime, _native

SIZE = 100_000
kept: list[Any] = []


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(shm_limit="64MiB") as runtime:
        yield runtime


def block_of(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def place(array: Any) -> tuple[int, int] | None:
    """Which block an array lies in; a copy lies in another one, or has another generation."""
    block = block_of(array)
    return (block.number, block.generation) if type(block) is _native.Block else None


def make(value: int, size: int = SIZE) -> Any:
    array = shmrt.empty(size, "u1")
    array[:] = value
    return array


def churn() -> None:
    """Takes blocks of the tests' size and gives them back: whatever is free is written to."""
    gc.collect()
    del [make(0xEE) for _ in range(8)][:]


def used(runtime: Runtime) -> int:
    gc.collect()
    arena = runtime._arena
    arena.reclaim_dead()
    return int(arena.stats()["blocks_used"])


def wait_until_let_go(block: Any, pid: int) -> None:
    while block.owner_pid == pid:
        os.sched_yield()


# ---- what the workers do


def same(array: Any) -> tuple[Any, Any]:
    return array, place(array)


def part(array: Any) -> tuple[Any, Any]:
    return array[1000:3500].reshape(50, 50), place(array)


def halves(array: Any) -> Any:
    return array[:50_000], array[50_000:]


def keep(array: Any) -> Any:
    kept.append(array)
    return array, place(array)


def keep_only(array: Any) -> None:
    kept.append(array)


def look() -> tuple[int, int]:
    return int(kept[0].min()), int(kept[0].max())


def let_go() -> int:
    kept.clear()
    return os.getpid()


@dataclass
class Boxed:
    array: Any
    where: Any


def box(array: Any) -> Boxed:
    return Boxed(array, place(array))


class Wrong(Exception):
    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.array = array


def fail_first(array: Any, path: str) -> Any:
    if not os.path.exists(path):
        open(path, "w").close()
        raise Wrong(array)
    return array


def through_another(array: Any) -> tuple[Any, bool]:
    with Pool(1) as inner:
        got = inner.submit(keep_for_the_task, array).result(LIMIT_S)
        return array, bool((got == 7).all())


def keep_for_the_task(array: Any) -> Any:
    return array


# ---- a pool


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_worker_that_returns_its_argument_copies_nothing(runtime: Runtime, attempts: int) -> None:
    with Pool(1) as pool:
        for _ in range(3):
            array = make(7)
            got, there = pool.options(max_attempts=attempts).submit(same, array).result(LIMIT_S)
            assert place(got) == there == place(array) and (got == 7).all() and not got.flags.writeable
            again, there = pool.options(max_attempts=attempts).submit(same, got).result(LIMIT_S)
            assert place(again) == there == place(array) and (again == 7).all()
            del array, got, again
            churn()
    assert used(runtime) == 0


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_part_of_the_argument_comes_back_in_its_block(runtime: Runtime, attempts: int) -> None:
    with Pool(1) as pool:
        array = make(0)
        array[:] = np.arange(SIZE) % 251
        got, there = pool.options(max_attempts=attempts).submit(part, array).result(LIMIT_S)
        assert place(got) == there == place(array)
        assert np.array_equal(got, (np.arange(1000, 3500) % 251).reshape(50, 50))
        first, second = pool.options(max_attempts=attempts).submit(halves, array).result(LIMIT_S)
        assert place(first) == place(array) != place(second)  # a block is given back once
        assert np.array_equal(np.concatenate([first, second]), array)
        boxed = pool.options(max_attempts=attempts).submit(box, array).result(LIMIT_S)
        assert place(boxed.array) == boxed.where == place(array) and np.array_equal(boxed.array, array)
        again = pool.options(max_attempts=attempts).submit(box, boxed.array).result(LIMIT_S)
        assert place(again.array) == again.where == place(array)
        del array, got, first, second, boxed, again
    assert used(runtime) == 0


def test_what_nobody_else_has_comes_back_writable(runtime: Runtime) -> None:
    """An ordinary array is copied once, on its way there."""
    with Pool(1) as pool:
        got, there = pool.submit(same, np.full(SIZE, 7, "u1")).result(LIMIT_S)
        assert place(got) == there
        got[:] = 8
        other, _ = pool.submit(same, got).result(LIMIT_S)
        got[:] = 9  # it was writable, so its owner may go on writing: what was sent is a copy
        assert (other == 8).all() and place(other) != place(got)
        del got, other
    assert used(runtime) == 0


@pytest.mark.parametrize("attempts", [1, 3])
def test_what_a_worker_keeps_is_not_given_back(runtime: Runtime, attempts: int) -> None:
    with Pool(1) as pool:
        array = make(7)
        got, there = pool.options(max_attempts=attempts).submit(keep, array).result(LIMIT_S)
        assert there == place(array) != place(got) and (got == 7).all()
        del array, got
        churn()
        assert pool.submit(look).result(LIMIT_S) == (7, 7)
        pool.submit(let_go).result(LIMIT_S)
    assert used(runtime) == 0


@pytest.mark.parametrize("ends", ["lets go", "is killed"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_what_a_worker_has_kept_stays_its_senders(runtime: Runtime, ends: str, attempts: int) -> None:
    """Its worker was the last but the sender to look at it: the memory is the sender's again, and not free."""
    with Pool(1) as pool:
        array = make(7)
        pool.options(max_attempts=attempts).submit(keep_only, array).result(LIMIT_S)
        pid = pool.submit(os.getpid).result(LIMIT_S)
        assert block_of(array).owner_pid == pid
        if ends == "lets go":
            pool.submit(let_go).result(LIMIT_S)
        else:
            os.kill(pid, signal.SIGKILL)
        wait_until_let_go(block_of(array), pid)
        assert block_of(array).owner_pid == os.getpid()
        churn()
        assert (array == 7).all()
        del array
    assert used(runtime) == 0


@pytest.mark.slow
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_worker_returns_what_it_lent_to_its_own_pool(runtime: Runtime, attempts: int) -> None:
    """Whether the program looks at it meanwhile, too, or not."""
    with Pool(1) as pool:
        array = make(7)
        got, same_inside = pool.options(max_attempts=attempts).submit(through_another, array).result(LIMIT_S)
        assert same_inside and (got == 7).all()
        got, same_inside = pool.options(max_attempts=attempts).submit(through_another, make(7)).result(LIMIT_S)
        assert same_inside and (got == 7).all()
        del got, array
        until(lambda: used(runtime) == 0)


def test_an_argument_in_an_exception_stays_an_argument(runtime: Runtime, tmp_path: Any) -> None:
    with Pool(1) as pool:
        array = make(7)
        again = pool.options(max_attempts=2, retry_on=(Wrong,))
        got = again.submit(fail_first, array, str(tmp_path / "once")).result(LIMIT_S)
        assert (got == 7).all() and place(got) == place(array)
        error = pool.submit(fail_first, array, str(tmp_path / "no" / "way")).exception(LIMIT_S)
        assert isinstance(error, FileNotFoundError)
        error = pool.options(max_attempts=3).submit(fail_first, array, str(tmp_path / "twice")).exception(LIMIT_S)
        assert isinstance(error, Wrong) and (error.array == 7).all()
        del array, got, error
    assert used(runtime) == 0


def test_arrays_are_made_in_the_memory_of_the_current_runtime() -> None:
    """So `shm_limit` bounds them, and they go to its workers by reference."""
    with Runtime(shm_limit="16MiB"), Pool(1) as pool:
        array = make(7)
        assert pool.submit(same, array).result(LIMIT_S)[1] == place(array)
        with pytest.raises(shmrt.MessageTooLarge):
            shmrt.empty(32 << 20, "u1")
        blocks = []
        with pytest.raises(shmrt.SegmentError):
            for _ in range(40):
                blocks.append(make(1, 1 << 20))
        del array, blocks


# ---- a pipeline


def step(item: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
    array, seen = item
    return array, [*seen, place(array)]


def made(number: int) -> tuple[Any, list[Any]]:
    return np.full(SIZE, number % 251, "u1"), []


def total(item: tuple[Any, list[Any]]) -> tuple[int, int, list[Any]]:
    array, seen = item
    return int(array.min()), int(array.max()), [*seen, place(array)]


def written(count: int) -> Iterator[tuple[Any, list[Any]]]:
    for number in range(count):
        array = make(number % 251)
        yield array, [place(array)]


def line(pipe: Pipeline, attempts: int) -> Pipeline:
    more: dict[str, Any] = {"ring": RingSpec(slots=4), "max_attempts": attempts}
    for name in ("one", "two", "three"):
        pipe = pipe.map(step, name=name, **more)
    return pipe.map(total, name="total", **more)


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("origin", ["source", "stage"])
def test_no_stage_copies(runtime: Runtime, origin: str, attempts: int) -> None:
    count = 24
    pipe = Pipeline("line") if origin == "source" else Pipeline("line").map(made, name="made")
    with line(pipe, attempts).run(written(count) if origin == "source" else range(count)) as run:
        for number, (least, most, seen) in enumerate(run):
            assert least == most == number % 251
            assert len(seen) == 4 + (origin == "source") and len(set(seen)) == 1 and None not in seen, (number, seen)
    assert run.report.out == count and used(runtime) == 0


def test_no_stage_copies_while_workers_are_killed(runtime: Runtime) -> None:
    """The block of an item whose worker dies stays what it is: the item runs again on the same memory."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    count, killed = 80, 0
    with line(Pipeline("line"), 50).run(written(count)) as run:
        for number, (least, most, seen) in enumerate(run):
            assert least == most == number % 251 and len(set(seen)) == 1 and None not in seen, (number, seen)
            if number % 10 == 5:
                killed += runtime.chaos_kill(rng) is not None
    assert run.report.balanced and killed > 0 and used(runtime) == 0


def test_a_filter_passes_on_without_a_copy(runtime: Runtime) -> None:
    pipe = Pipeline("some").filter(lambda item: item[0][0] % 2 == 0).map(step, name="step")
    with pipe.run(written(20)) as run:
        found = [(int(array[0]), set(seen) == {place(array)}) for array, seen in run]
    assert found == [(number, True) for number in range(0, 20, 2)]


def test_the_users_own_arrays_are_not_frozen(runtime: Runtime) -> None:
    """What a source gives may be the user's, also behind a filter; only what stages made is the run's own."""
    with Pool(1) as pool:
        mine = [pool.submit(np.full, SIZE, number, "u1").result(LIMIT_S) for number in range(3)]
    pipe = Pipeline("mine").filter(lambda item: item[0][0] >= 0).map(step, name="step")
    with pipe.run([(array, []) for array in mine]) as run:
        assert [int(array[0]) for array, _ in run] == [0, 1, 2]
    for array in mine:
        array[:] = 9
    del mine, array, run
    assert used(runtime) == 0
