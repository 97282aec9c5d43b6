"""What a breaker is told at its making: checked, in words, and as the numbers of `native/breaker.h`.

>>> settings = Settings("store", failure_threshold=3)
>>> settings.text
'failure_threshold=3 reset_timeout=60 half_open_max=1 success_threshold=1 trial_timeout=600'
"""

from __future__ import annotations

from shmrt.memory.guard_words import number
from shmrt.memory.names import check_name
from shmrt.spec import check_count, parse_duration

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Settings"]

_TRIALS_MAX = 64
_WINDOW_CALLS_MAX = 65536
_BUCKETS_MAX = 3600
_BUCKETS_LEAST = 10  # of a window of seconds: shorter ones are cut into so many
_MIN_CALLS = 100
_NONE, _CALLS, _TIME = 0, 1, 2
_NS = 1_000_000_000
_TEXT_BYTES = 504


class Settings:
    """The arguments of CircuitBreaker. Raises TypeError or ValueError that names the argument."""

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int = 5,
        reset_timeout: float | str = 60.0,
        half_open_max: int = 1,
        success_threshold: int = 1,
        window: int | float | str | None = None,
        failure_rate: float | None = None,
        min_calls: int | None = None,
        slow_call: float | str | None = None,
        slow_rate: float | None = None,
        exclude: Any = (),
        backoff: float = 1.0,
        max_reset_timeout: float | str | None = None,
        trial_timeout: float | str | None = None,
    ) -> None:
        if not isinstance(exclude, type) and not callable(exclude) and hasattr(exclude, "__iter__"):
            exclude = exclude if isinstance(exclude, str) else tuple(exclude)  # an iterator can be read only once
        self.given = {
            key: value for key, value in locals().items() if key not in ("self", "name") and not key.startswith("__")
        }
        self.name = check_name(name)
        self.failure_threshold = check_count(failure_threshold, "failure_threshold", least=1, most=2**32 - 1)
        self.half_open_max = check_count(half_open_max, "half_open_max", least=1, most=_TRIALS_MAX)
        self.success_threshold = check_count(success_threshold, "success_threshold", least=1, most=2**32 - 1)
        self.reset_timeout = _seconds(reset_timeout, "reset_timeout")
        self.max_reset_timeout = self._longest(max_reset_timeout, backoff)
        self.backoff = float(backoff)
        self.trial_timeout = (
            max(10 * self.reset_timeout, 60.0) if trial_timeout is None else _seconds(trial_timeout, "trial_timeout")
        )
        self.slow_call = None if slow_call is None else _seconds(slow_call, "slow_call")
        self.failure_rate = _rate(failure_rate, "failure_rate")
        self.slow_rate = _rate(slow_rate, "slow_rate")
        if slow_rate is not None and slow_call is None:
            raise ValueError(f"slow_rate={slow_rate!r} needs slow_call, the seconds from which a call is slow")
        self._set_window(window, min_calls)
        self.types, self.excluded_if, excluded = _exclusions(exclude)
        self.text = self._in_words(excluded)

    def _longest(self, most: float | str | None, backoff: float) -> float:
        if isinstance(backoff, bool) or not isinstance(backoff, (int, float)):
            raise TypeError(f"backoff must be a factor such as 2.0, not {backoff!r}")
        if not 1.0 <= backoff <= 1000.0:
            raise ValueError(f"backoff={backoff!r} must be from 1 (the wait does not grow) to 1000")
        if most is None:
            return max(self.reset_timeout, 3600.0) if backoff > 1.0 else self.reset_timeout
        longest = _seconds(most, "max_reset_timeout")
        if longest < self.reset_timeout:
            raise ValueError(
                f"max_reset_timeout={most!r} must be at least reset_timeout={self.reset_timeout:g} seconds"
            )
        return longest

    def _set_window(self, window: int | float | str | None, min_calls: int | None) -> None:
        """Rates without a window are over the last 100 calls."""
        rates = self.failure_rate is not None or self.slow_rate is not None or min_calls is not None
        if window is None and rates:
            window = 100
        self.window, self.window_size, self.bucket_ns = _NONE, 0, 0
        self.min_calls = (
            _MIN_CALLS if min_calls is None else check_count(min_calls, "min_calls", least=1, most=2**32 - 1)
        )
        self.window_words = ""
        if window is None:
            return
        if self.failure_rate is None and self.slow_rate is None:
            self.failure_rate = 0.5
            if self.slow_call is not None:
                self.slow_rate = 1.0
        if isinstance(window, int) and not isinstance(window, bool):
            self.window = _CALLS
            self.window_size = check_count(window, "window", least=1, most=_WINDOW_CALLS_MAX)
            self.min_calls = min(self.min_calls, self.window_size)
            self.window_words = f"{window} calls"
            return
        seconds = parse_duration(window, "window")
        if not 0.01 <= seconds <= 86400:
            raise ValueError(f"window={window!r} must be from 0.01 seconds to a day, or a whole number of calls")
        self.window = _TIME
        self.window_size = min(max(round(seconds), _BUCKETS_LEAST), _BUCKETS_MAX)
        self.bucket_ns = max(round(seconds * _NS / self.window_size), 1)
        self.window_words = f"{number(seconds)} s"

    def _in_words(self, excluded: str) -> str:
        """What others with this name must say, too."""
        words: list[tuple[str, Any]] = []
        if self.window == _NONE:
            words.append(("failure_threshold", self.failure_threshold))
        else:
            words.append(("window", self.window_words))
            words.append(("min_calls", self.min_calls))
            words += [("failure_rate", self.failure_rate)] if self.failure_rate is not None else []
        words.append(("reset_timeout", number(self.reset_timeout)))
        words.append(("half_open_max", self.half_open_max))
        words.append(("success_threshold", self.success_threshold))
        words.append(("trial_timeout", number(self.trial_timeout)))
        if self.slow_call is not None:
            words.append(("slow_call", number(self.slow_call)))
            words += [("slow_rate", self.slow_rate)] if self.slow_rate is not None else []
        if self.backoff > 1.0:
            words += [("backoff", number(self.backoff)), ("max_reset_timeout", number(self.max_reset_timeout))]
        text = " ".join(f"{key}={value}" for key, value in words)
        if excluded:
            import zlib

            whole = f"{text} exclude={excluded}"
            text = whole if len(whole.encode()) <= _TEXT_BYTES else f"{text} exclude=#{zlib.crc32(excluded.encode()):x}"
        return text

    def packed(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """What the C side takes: struct shmrt_breaker_settings."""
        whole = (
            self.failure_threshold,
            self.success_threshold,
            self.half_open_max,
            self.window,
            self.window_size,
            self.min_calls,
            self.bucket_ns,
            0 if self.slow_call is None else max(round(self.slow_call * _NS), 1),
            round(self.reset_timeout * _NS),
            round(self.max_reset_timeout * _NS),
            round(self.trial_timeout * _NS),
        )
        return whole, (self.backoff, self.failure_rate or 0.0, self.slow_rate or 0.0)


def _seconds(value: float | str, argument: str) -> float:
    seconds = parse_duration(value, argument)
    if not 0 < seconds <= 3e9:
        raise ValueError(f"{argument}={value!r} must be more than 0 seconds, and at most 95 years")
    return seconds


def _rate(value: float | None, argument: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a fraction such as 0.5, not {value!r}")
    if not 0.0 < value <= 1.0:
        hint = f"; {value:g} % is {value / 100:g}" if 1.0 < value <= 100.0 else ""
        raise ValueError(f"{argument}={value!r} must be more than 0 and at most 1{hint}")
    return float(value)


def _exclusions(exclude: Any) -> tuple[tuple[type[BaseException], ...], Callable[[BaseException], bool] | None, str]:
    """The types, one callable for all others, and both in words."""
    if isinstance(exclude, type) or (callable(exclude) and not hasattr(exclude, "__iter__")):
        exclude = (exclude,)
    if isinstance(exclude, str) or not hasattr(exclude, "__iter__"):
        raise TypeError(f"exclude must name exception types, not {exclude!r}")
    types: list[type[BaseException]] = []
    rules: list[Callable[[BaseException], object]] = []
    for each in exclude:
        if isinstance(each, type) and issubclass(each, BaseException):
            types.append(each)
        elif not isinstance(each, type) and callable(each):
            rules.append(each)
        else:
            raise TypeError(f"exclude must name exception types, or callables of an exception, not {each!r}")
    names = [f"{one.__module__}.{one.__qualname__}" for one in types]
    names += [getattr(rule, "__qualname__", type(rule).__qualname__) for rule in rules]

    def excluded_if(error: BaseException) -> bool:
        return any(rule(error) for rule in rules)

    return tuple(types), excluded_if if rules else None, ",".join(sorted(names))
