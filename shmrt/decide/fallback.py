"""Which source is asked next, how long it may take, and what a remembered answer is still worth.

The order is fixed when a `Fallback` is made. Each part is there only if it was given:

    fresh    an answer of the primary that is remembered and young enough; the primary is not asked
    primary
    stale    an answer of the primary that is remembered and not too old; the primary has failed
    NAME     the alternatives, in the order given
    default

    >>> order(["replica"], remembers=True, has_default=True)
    ('fresh', 'primary', 'stale', 'replica', 'default')
    >>> [worth(age_ns, fresh_ns=10, max_stale_ns=60) for age_ns in (None, 0, 9, 10, 60, 61)]
    ['nothing', 'fresh', 'fresh', 'stale', 'stale', 'nothing']

Pure: no clock, no memory. Of what a process that dies had decided, nothing is left, and nothing needs to be.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEFAULT", "FRESH", "PRIMARY", "RESERVED", "STALE", "change", "order", "time_left", "worth"]

PRIMARY, FRESH, STALE, DEFAULT = "primary", "fresh", "stale", "default"
RESERVED = (PRIMARY, FRESH, STALE, DEFAULT)
"""What an alternative cannot be called: an outcome would not say who answered."""


def order(alternatives: Sequence[str], *, remembers: bool, has_default: bool) -> tuple[str, ...]:
    """The names of the sources, in the order in which they get their turn."""
    before, after = ((FRESH,), (STALE,)) if remembers else ((), ())
    return (*before, PRIMARY, *after, *alternatives, *((DEFAULT,) if has_default else ()))


def worth(age_ns: int | None, *, fresh_ns: int, max_stale_ns: int | None) -> str:
    """ "fresh" below fresh_ns, "stale" up to and including max_stale_ns (None: without end), else "nothing"."""
    if age_ns is None:
        return "nothing"
    if age_ns < fresh_ns:
        return FRESH
    return STALE if max_stale_ns is None or age_ns <= max_stale_ns else "nothing"


def time_left(now_ns: int, *, timeout_ns: int | None, ends_ns: int | None) -> int | None:
    """What a source that begins now may take: its timeout, or what is left until ends_ns if that is less; None is no
    limit, and 0 that it is not begun.

        >>> time_left(5, timeout_ns=10, ends_ns=9), time_left(9, timeout_ns=None, ends_ns=9)
        (4, 0)
    """
    if ends_ns is None:
        return timeout_ns
    left = max(ends_ns - now_ns, 0)
    return left if timeout_ns is None else min(left, timeout_ns)


def change(before: str | None, now: str | None) -> str:
    """What it means that `now` answered and `before` did the last time (None: nobody could): "" if it is no change.

    A remembered answer that is still fresh is the primary's. The first answer of the primary is no change either.

        >>> [change("primary", "default"), change("default", None), change(None, "fresh"), change("fresh", "primary")]
        ['degraded', 'failed', 'recovered', '']
    """
    good = (PRIMARY, FRESH)
    if before == now or (before in good and now in good):
        return ""
    if now is None:
        return "failed"
    return "recovered" if now in good else "degraded"
