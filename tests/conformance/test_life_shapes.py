"""Whatever shape a user's program has: scripts without guard, closures, nested pools, threads, event loops, forks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from life_kit import run

MAIN = """
import shmrt
from dataclasses import dataclass
from functools import partial

@dataclass
class Point:
    x: int
    y: int = 0
    def moved(self, by): return Point(self.x + by, self.y)

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b
    def __reduce__(self): return (Odd, (self.a, self.b))

def raise_odd(): raise Odd(1, 2)
FACTOR = 3
def scale(x): return x * FACTOR

pool = shmrt.Pool(2)
point = pool.submit(Point(1).moved, 4).result()
assert type(point) is Point and point == Point(5), point
assert pool.submit(lambda p: p.x + 1, point).result() == 6
assert pool.submit(partial(lambda a, b: a - b, 10), 3).result() == 7
error = pool.submit(raise_odd).exception()
assert type(error) is Odd and (error.a, error.b) == (1, 2), error
assert "raise_odd" in str(error.__cause__)
assert pool.submit(scale, 2).result() == 6
FACTOR = 5
assert pool.submit(scale, 2).result() == 10  # a changed global is sent anew
def counter():
    seen = []
    def add(x):
        return len(seen) + x
    return seen, add
seen, add = counter()
assert pool.submit(add, 1).result() == 1
seen.append(0)
assert pool.submit(add, 1).result() == 2  # so is what a closure holds
assert list(pool.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
print("fine")
"""

NESTED = """
import shmrt, os
def leaf(x): return x + 1
def middle(x):
    with shmrt.Pool(1) as pool:
        return pool.submit(leaf, x).result() + 10
def top(x):
    with shmrt.Pool(1) as pool:
        return pool.submit(middle, x).result() + 100
with shmrt.Pool(1) as pool:
    print(pool.submit(top, 1).result())
"""

THREADS = """
import shmrt, threading
with shmrt.Pool(2) as pool:
    sums = []
    def use(n):
        sums.append(sum(pool.map(abs, range(n))) + sum(pool.submit(pow, i, 2).result() for i in range(20)))
    threads = [threading.Thread(target=use, args=(200,)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(sums), set(sums))
made = []
thread = threading.Thread(target=lambda: made.append(shmrt.Pool(1)))
thread.start(); thread.join()
print(made[0].submit(abs, -4).result())
"""

ASYNC = """
import asyncio, shmrt
async def main():
    with shmrt.Pool(2, max_pending=4000) as pool:
        values = await asyncio.gather(*(asyncio.wrap_future(pool.submit(abs, -i)) for i in range(500)))
        awaited = await pool.submit(pow, 2, 8)
        many = [value async for value in pool.amap(abs, range(-50, 0))]
        print(sum(values), awaited, sum(many), await asyncio.get_running_loop().run_in_executor(pool, abs, -7))
asyncio.run(main())
"""

FORKS = """
import os, shmrt
pool = shmrt.Pool(1)
future = pool.submit(abs, -1)
assert future.result() == 1
pid = os.fork()
if pid == 0:
    try:
        pool.submit(abs, -1)
    except shmrt.RuntimeDown as error:
        text = str(error)
        own = shmrt.Pool(1)
        named = str(os.getpid()) in text and str(os.getppid()) in text
        os._exit(0 if named and own.submit(abs, -3).result() == 3 else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), pool.submit(abs, -2).result())
"""

MULTIPROCESSING = """
import multiprocessing, shmrt, pickle
def child(queue):
    with shmrt.Pool(1) as pool:
        queue.put(pool.submit(abs, -9).result())
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    print(queue.get()); process.join()
    with shmrt.Pool(1) as pool:
        try: pickle.dumps(pool)
        except TypeError as error: print("cannot be pickled" in str(error))
        try: pool.submit(print, pool)
        except TypeError as error: print("cannot be pickled" in str(error))
"""

LEFT_OPEN = """
import shmrt, threading, gc, time
def late(x): time.sleep(0.2); print("done", x, flush=True); return x
pool = shmrt.Pool(2)
futures = [pool.submit(late, number) for number in range(3)]
threading.Thread(target=futures[2].result, daemon=True).start()
del pool
gc.collect()
"""

CASES = {
    "main": (MAIN, "fine\n"),
    "nested pools": (NESTED, "112\n"),
    "threads": (THREADS, None),
    "asyncio": (ASYNC, f"{sum(range(500))} 256 {sum(range(1, 51))} 7\n"),
    "fork": (FORKS, "0 2\n"),
    "multiprocessing": (MULTIPROCESSING, "9\nTrue\nTrue\n"),
    "left open": (LEFT_OPEN, None),
}


STARTS = [(shape, how) for shape in CASES for how in ("-c", "script")] + [("main", "stdin")]


@pytest.mark.parametrize(("shape", "how"), STARTS)
def test_programs_of_every_shape(shape: str, how: str, tmp_path: Path) -> None:
    """No guard, any start: the same answers, and nothing stays."""
    source, expected = CASES[shape]
    if how == "-c":
        status, out, err = run(source)
    elif how == "script":
        script = tmp_path / "program.py"
        script.write_text(source)
        status, out, err = run("", how=str(script))
    else:
        status, out, err = run("import sys; exec(compile(sys.stdin.read(), '<stdin>', 'exec'))", text=source)
    assert status == 0 and "Traceback" not in err, (out, err)
    if expected is not None:
        assert out == expected
    if shape == "left open":
        assert sorted(out.split("\n")) == ["", "done 0", "done 1", "done 2"]
    if shape == "threads":
        assert out.startswith("8 {") and out.endswith("\n4\n") and out.count(",") == 0
