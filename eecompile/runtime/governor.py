"""Who sets the clock: the protocol, none, and one that only writes down what it was asked for.

`eecompile.runtime.sysfs_governor` has the one that sets clocks, and `open_governor`, which finds
out what can be done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from eecompile.board import DvfsState

__all__ = ["ClockWarning", "Governor", "NoGovernor", "RecordingGovernor", "RestoringContext"]


class ClockWarning(UserWarning):
    """Clocks cannot be set, or not any more, and why; everything else goes on."""


class Governor(Protocol):
    """Sets the clock of the cluster that computes, and puts everything back in the end.

    A context manager: leaving it restores. No method raises for what the system refuses.
    """

    @property
    def states(self) -> tuple[DvfsState, ...]:
        """The clocks it can set, in the order of the clusters; empty where it can set none.

        Fewer once a clock was given up, as `reason` says; none in a process that was forked.
        """

    @property
    def current(self) -> DvfsState | None:
        """The clock that was set last and read back; None where that is not known."""

    @property
    def reason(self) -> str:
        """Why it sets no clocks, or not all any more, in words; empty where it does."""

    def set(self, state: DvfsState) -> None:
        """Run the state's cluster at its clock from now on, where that can be done."""

    def restore(self) -> None:
        """Put everything back as it was found; a later `set` begins anew."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """Restores."""


class RestoringContext:
    """A context manager whose end restores."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restores."""
        self.restore()

    def restore(self) -> None:
        """As `Governor.restore`."""
        raise NotImplementedError


class NoGovernor(RestoringContext):
    """Leaves clocks alone.

    >>> with NoGovernor("no cpufreq here") as governor:
    ...     governor.set(DvfsState("cpu", 1e9))
    ...     print(governor.states, governor.current, governor.reason)
    () None no cpufreq here
    """

    states: tuple[DvfsState, ...] = ()
    current: DvfsState | None = None

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def set(self, state: DvfsState) -> None:
        """Nothing happens."""

    def restore(self) -> None:
        """Nothing to put back."""


class RecordingGovernor(RestoringContext):
    """Sets nothing, and keeps the clocks it was told to change to: for replays and tests.

    Attributes:
        asked: the states, in order; asking for the current one again does not count.
        restored: how often `restore` was called.

    >>> slow, fast = DvfsState("cpu", 6e8), DvfsState("cpu", 1.5e9)
    >>> with RecordingGovernor([slow, fast]) as governor:
    ...     governor.set(fast), governor.set(fast), governor.set(slow)
    (None, None, None)
    >>> [state.frequency_hz for state in governor.asked], governor.current, governor.restored
    ([1500000000.0, 600000000.0], None, 1)
    """

    reason: str = ""

    def __init__(self, states: Sequence[DvfsState]) -> None:
        self.states, self.asked = tuple(states), list[DvfsState]()
        self.current: DvfsState | None = None
        self.restored = 0

    def set(self, state: DvfsState) -> None:
        """Write it down.

        Raises:
            ValueError: it is none of `states`.
        """
        if state == self.current:
            return
        if state not in self.states:
            raise ValueError(f"{state} is none of the {len(self.states)} states")
        self.asked.append(state)
        self.current = state

    def restore(self) -> None:
        """No clock is set any more."""
        self.current = None
        self.restored += 1
