"""Why an attempt to be answered came to nothing."""

from __future__ import annotations

from time import monotonic

__all__ = ["AttemptFailed", "Deadline", "TooLate"]


class AttemptFailed(Exception):
    """A server gave no answer, or one that cannot be it.

    Attributes:
        missing: whether the server said that it has no such model, or no such version of it.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class TooLate(AttemptFailed):
    """There was no answer by the deadline."""


class Deadline:
    """A moment after which an answer is of no use."""

    def __init__(self, seconds: float) -> None:
        """In so many seconds from now."""
        self._end = monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until then.

        Raises:
            TooLate: none.
        """
        left = self._end - monotonic()
        if left <= 0:
            raise TooLate("there was no answer in time")
        return left
