"""ThreadSanitizer on the native core: threads in the place of processes, on one mapping.

It knows memory by its address, so processes, or one segment mapped twice, would look free of races whatever they did.
Each program below keeps several threads busy with the same words; a report of the sanitizer, or a failed check, ends
it. What orders plain bytes must be an edge of docs/ordering.md: an edge that is made relaxed has to be reported.

x86 keeps more order than the edges ask for; the sanitizer does not look at what the machine does but at what the
memory orders promise. It does not know stand-alone fences: those are for tests/model/test_promela.py.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_native_c import NATIVE, TESTS, WATCHDOG_S, build, objects, run  # noqa: F401 (objects is a fixture)

PROGRAMS = ["races_lane", "races_arena", "races_ring", "races_guards", "test_call_stress"]


@dataclass(frozen=True, slots=True)
class Weak:
    edge: str
    program: str
    file: str
    old: str
    new: str


WEAK = [
    Weak(
        "L1",
        "races_lane",
        "lane.c",
        "atomic_store_explicit(&producer->shared->tail, producer->tail, memory_order_release); /* L1 */",
        "atomic_store_explicit(&producer->shared->tail, producer->tail, memory_order_relaxed); /* L1 */",
    ),
    Weak(
        "L2",
        "races_lane",
        "lane.c",
        "atomic_store_explicit(&consumer->shared->head, consumer->cursor, memory_order_release); /* L2 */",
        "atomic_store_explicit(&consumer->shared->head, consumer->cursor, memory_order_relaxed); /* L2 */",
    ),
    Weak(
        "R2",
        "races_ring",
        "ring.c",
        "atomic_store_explicit(&shared->tail, view->tail += count, memory_order_release); /* R2; the commit */",
        "atomic_store_explicit(&shared->tail, view->tail += count, memory_order_relaxed); /* R2; the commit */",
    ),
    Weak(
        "R4",
        "races_ring",
        "ring_internal.h",
        "atomic_store_explicit(&shared->head, head, memory_order_release); /* R4 */",
        "atomic_store_explicit(&shared->head, head, memory_order_relaxed); /* R4 */",
    ),
    Weak(
        "A1",
        "races_arena",
        "arena.c",
        "shmrt_word_swap(&arena->block_words[index], shmrt_block_pack(from, generation, from_owner),\n",
        "atomic_compare_exchange_strong_explicit(\n"
        "&arena->block_words[index], &(uint64_t){shmrt_block_pack(from, generation, from_owner)},\n"
        "shmrt_block_pack(to, generation, to_owner), memory_order_relaxed, memory_order_relaxed) ? SHMRT_OK\n"
        ": shmrt_word_swap(&arena->block_words[index], UINT64_MAX,\n",
    ),
    Weak(
        "A2",
        "races_arena",
        "arena.c",
        "if (!shmrt_word_swap(&arena->block_words[index], expected, shmrt_block_next_free(expected))) /* edge A2 */",
        "if (!atomic_compare_exchange_strong_explicit(&arena->block_words[index], &(uint64_t){expected},\n"
        "shmrt_block_next_free(expected), memory_order_relaxed, memory_order_relaxed))",
    ),
    Weak(
        "Q2",
        "races_guards",
        "breaker_gate.c",
        "atomic_store_explicit((_Atomic uint64_t *)(void *)to + at, word, memory_order_relaxed); /* Q1 follows */",
        "memcpy(to + at * sizeof(word), &word, sizeof(word));",
    ),
    Weak(
        "C2",
        "test_call_stress",
        "call_internal.h",
        "memory_order_acq_rel, memory_order_acquire);",
        "memory_order_relaxed, memory_order_relaxed);",
    ),
]


def judge(program: str, native: Path, tmp_path: Path, objects: Path, times: int = 1) -> tuple[int, str]:  # noqa: F811
    """The first bad end of so many runs, or the last good one."""
    built = build(TESTS / f"{program}.c", native, "threads", tmp_path, objects)
    for _ in range(times):
        code, output = run([built], WATCHDOG_S, {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"})
        if code != 0:
            break
    return code, output


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_on_one_mapping_do_not_race(program: str, tmp_path: Path, objects: Path) -> None:  # noqa: F811
    """B3. No report, and every check of the program holds."""
    code, output = judge(program, NATIVE, tmp_path, objects)
    assert code == 0, f"{program} ended with {code}:\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: weak.edge)
def test_a_weaker_edge_is_reported(weak: Weak, tmp_path: Path, objects: Path) -> None:  # noqa: F811
    """A5 for the sanitizer: an edge made relaxed is a data race, and it says so."""
    native = tmp_path / "native"
    shutil.copytree(NATIVE, native)
    text = (native / weak.file).read_text()
    assert text.count(weak.old) == 1, f"edge {weak.edge}: its text occurs {text.count(weak.old)} times"
    (native / weak.file).write_text(text.replace(weak.old, weak.new))
    code, output = judge(weak.program, native, tmp_path, objects, times=5)  # a busy machine may show no race in one
    assert code == 66 and "data race" in output, (
        f"{weak.program} ended with {code} although {weak.edge} is weak:\n{output}"
    )
