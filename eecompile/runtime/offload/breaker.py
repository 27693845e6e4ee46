"""When not to ask a server that has failed time and again."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["Breaker"]


class Breaker:
    """Lets nobody through for a while after several failures in a row.

    Closed: everybody passes. After `failures` in a row it opens for `pause_s`; then one may try
    (half-open). Where that fails as well, the pause doubles, up to `longest_s`; success closes it.

    >>> now = [0.0]
    >>> breaker = Breaker(failures=2, pause_s=1.0, longest_s=4.0, clock=lambda: now[0])
    >>> breaker.failed(); breaker.lets_through
    True
    >>> breaker.failed(); breaker.lets_through
    False
    >>> now[0] = 1.0; breaker.lets_through
    True
    >>> breaker.failed(); now[0] = 2.9; breaker.lets_through
    False
    >>> now[0] = 3.0; breaker.succeeded(); breaker.lets_through
    True
    """

    def __init__(
        self,
        failures: int = 3,
        pause_s: float = 1.0,
        longest_s: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Closed; `clock` gives seconds since any moment."""
        self._failures, self._pause_s, self._longest_s = failures, pause_s, longest_s
        self._clock = clock
        self._in_a_row, self._opened = 0, 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last try of several failed, so that at most one may try at a time."""
        return self._opened > 0

    @property
    def lets_through(self) -> bool:
        """Whether one may try now."""
        return not self.is_open or self._clock() >= self._until

    def failed(self) -> None:
        """A try failed."""
        self._in_a_row += 1
        if self._in_a_row < self._failures:
            return
        # 2.0**64 s is more than any limit, and no overflow.
        pause = min(self._pause_s * 2.0 ** min(self._opened, 64), self._longest_s)
        self._until = self._clock() + pause
        self._opened += 1

    def succeeded(self) -> None:
        """A try was answered."""
        self._in_a_row = self._opened = 0
