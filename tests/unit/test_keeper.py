"""When a pool's worker is started again, and when the pool is given up: numbers only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmrt.decide.backoff import Backoff
from shmrt.decide.intensity import Intensity
from shmrt.decide.keeper import Keeper

MS = 1_000_000


def test_intensity_counts_as_otp_does():
    for times, allowed in [([0, 1, 2], True), ([0, 1, 2, 3], False), ([0, 2, 4, 5], False), ([0, 2, 4, 6], True)]:
        window = Intensity(3, 5)
        assert [window.allow(at) for at in times][-1] is allowed, times
    assert not Intensity(0, 5).allow(0)
    slow = Intensity(1, 10)
    assert all(slow.allow(at) for at in range(0, 2100, 21))
    assert all(Intensity(None, 1).allow(0) for _ in range(1000))


@given(st.integers(0, 200), st.floats(0, 1))
def test_a_delay_stays_within_half_and_whole_of_its_step(failures, random):
    plan = Backoff(free=2, first_ns=1000, cap_ns=64_000)
    delay = plan.delay_ns(failures, random)
    full = min(1000 * 2 ** max(0, failures - 3), 64_000) if failures > 2 else 0
    assert full // 2 <= delay <= full


def test_workers_and_spares_are_kept():
    keeper = Keeper(3, spares=1)
    assert keeper.starts(0, alive=0) == 4
    assert keeper.starts(0, alive=3) == 1
    assert keeper.starts(0, alive=5) == 0
    keeper.resize(1)
    assert keeper.starts(0, alive=2) == 0


def test_progress_and_orders_are_replaced_at_once():
    keeper = Keeper(2)
    for now in range(1000):
        keeper.on_gone(now, "killed", ordered=now % 2 == 0, progressed=now % 2 == 1, random=1.0)
        assert keeper.starts(now, alive=1) == 1
    assert not keeper.broken


def test_deaths_in_a_first_task_are_slowed_but_never_break_a_pool():
    keeper, now, waited = Keeper(2), 0, []
    for _ in range(200):
        keeper.on_gone(now, "poison", ordered=False, progressed=False, random=1.0)
        wait = keeper.wait_ns(now, alive=1) or 0
        assert (keeper.starts(now, alive=1) == 0) == (wait > 0)
        waited.append(wait)
        now += wait
        assert keeper.starts(now, alive=1) == 1
    assert waited[:3] == [0, 0, 0] and max(waited) == 20 * MS and not keeper.broken
    keeper.on_gone(now, "later", ordered=False, progressed=True, random=1.0)
    keeper.on_gone(now, "again", ordered=False, progressed=False, random=1.0)
    assert keeper.wait_ns(now, alive=1) is None, "progress makes a pool trusted again"


def test_start_failures_in_a_row_with_none_ready_break_it():
    for workers, limit in [(1, 3), (2, 3), (5, 5)]:
        keeper = Keeper(workers)
        for count in range(1, limit + 1):
            assert not keeper.broken
            keeper.on_start_failed(0, f"reason {count}", ready=0, random=0.0)
        assert keeper.broken and len(keeper.reasons) == limit
        assert keeper.starts(10**18, alive=0) == 0


def test_one_ready_worker_keeps_the_pool_and_readiness_forgets():
    keeper = Keeper(2)
    for _ in range(50):
        keeper.on_start_failed(0, "no", ready=1, random=0.0)
    assert not keeper.broken and len(keeper.reasons) <= 6
    keeper.on_ready()
    keeper.on_start_failed(0, "no", ready=0, random=0.0)
    assert not keeper.broken


def test_kills_from_outside_weigh_a_thirtieth_and_delay_nothing():
    keeper = Keeper(2)
    for _ in range(89):
        keeper.on_start_failed(0, "killed", ready=0, random=1.0, from_outside=True)
        assert not keeper.broken and keeper.starts(0, alive=0) == 2
    keeper.on_start_failed(0, "killed", ready=0, random=1.0, from_outside=True)
    assert keeper.broken


def test_a_given_intensity_breaks_a_pool():
    keeper = Keeper(2, max_restarts=2, period_ns=1000)
    for now, broken in [(0, False), (10, False), (20, True)]:
        keeper.on_gone(now, f"death at {now}", ordered=False, progressed=True, random=0.0)
        assert keeper.broken is broken
    assert keeper.reasons == ["death at 0", "death at 10", "death at 20"]


_EVENTS = st.lists(
    st.tuples(st.sampled_from(["ready", "failed", "progressed", "fruitless", "ordered", "resize"]), st.integers(0, 50)),
    max_size=40,
)


@given(_EVENTS, st.sampled_from([None, 0, 2]), st.integers(0, 2))
def test_who_is_replaced_at_once_would_have_been_anyway(events, max_restarts, spares):
    """What the death watch does without asking is what the keeper would have answered."""
    keeper, now = Keeper(2, spares=spares, max_restarts=max_restarts), 0
    for event, passed in events:
        now += passed * MS
        if event == "ready":
            keeper.on_ready()
        elif event == "failed":
            keeper.on_start_failed(now, "no", ready=0, random=1.0)
        elif event == "resize":
            keeper.resize(1 + passed % 3)
        else:
            keeper.on_gone(now, "died", ordered=event == "ordered", progressed=event == "progressed", random=1.0)
    alive = keeper.workers + keeper.spares
    for here in range(alive + 2):
        if keeper.replaces_at_once(now, alive=here):
            assert here == alive and max_restarts is None and not keeper.broken
            keeper.on_gone(now, "died", ordered=False, progressed=True, random=1.0)
            assert keeper.starts(now, alive=alive - 1) == 1 and not keeper.broken
            return
    assert max_restarts is not None or keeper.broken or keeper.starts(now, alive=alive - 1) == 0
