"""How a policy chooses the clock: what it minimises, by when an answer must be there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, get_args

from eecompile.checked_json import JsonError, ObjectReader
from eecompile.figures import hertz, milliseconds

__all__ = ["ClockRule", "Objective"]

Objective = Literal["lowest_energy", "lowest_latency", "race_to_idle", "fixed", "unchanged"]

_MOST_STATES = 10_000


@dataclass(frozen=True, slots=True)
class ClockRule:
    """What `eecompile.runtime.scheduler.Scheduler` decides by.

    Attributes:
        objective: "lowest_energy": least energy within the deadline; "lowest_latency": the fastest
            clock; "race_to_idle": the fastest clock while a sample is computed, the one of lowest
            power until the next; "fixed": always `frequency_hz`; "unchanged": clocks are left as
            they are, and decisions made as if that were the fastest.
        deadline_s: by when the answer to a sample should be there, counted from its start; None
            where nothing depends on it.
        safe: after a wrong forecast the rest, at the top clock, still meets the deadline; where no
            clock leaves that much time, the deepest exit reachable in time answers.
        hard: forecasts are trusted; where the way on does not fit, the deepest exit reachable in
            time answers. With neither, the way goes on at the top clock and may miss the deadline.
        frequency_hz: the clock of "fixed".
        start: index, in the table's states, of the state of every sample's first stretch, fitted on
            calibration data; None lets the scheduler choose.

    Raises:
        ValueError: the parts contradict one another.
    """

    objective: Objective = "lowest_energy"
    deadline_s: float | None = None
    safe: bool = False
    hard: bool = False
    frequency_hz: float | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}")
        for name in ("deadline_s", "frequency_hz"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} must be finite and above 0")
        if (self.safe or self.hard) and self.deadline_s is None:
            raise ValueError("safe and hard need a deadline_s")
        if self.safe and self.hard:
            raise ValueError("a deadline is either safe or hard")
        if (self.objective == "fixed") != (self.frequency_hz is not None):
            raise ValueError('frequency_hz belongs to the objective "fixed", which needs it')
        if self.start is not None and self.objective != "lowest_energy":
            raise ValueError('start belongs to the objective "lowest_energy"')
        if self.start is not None and not 0 <= self.start < _MOST_STATES:
            raise ValueError("start must be the index of a state")

    @property
    def answers_in_time(self) -> bool:
        """Whether an answer in time goes before the policy's choice of exit."""
        return self.safe or self.hard

    @property
    def sets_clocks(self) -> bool:
        """Whether clocks are set at all."""
        return self.objective != "unchanged"

    def __str__(self) -> str:
        """As the language writes it.

        >>> print(ClockRule("lowest_energy", 0.04, safe=True))
        frequency lowest_energy, deadline 40.0 ms safe
        >>> print(ClockRule("fixed", frequency_hz=6e8), ClockRule("lowest_latency"), sep="; ")
        frequency 600 MHz; frequency highest
        """
        clock = "highest" if self.objective == "lowest_latency" else self.objective
        parts = [f"frequency {hertz(self.frequency_hz) if clock == 'fixed' else clock}"]
        if not self.sets_clocks:
            parts = []
        if self.deadline_s is not None:
            kind = " safe" if self.safe else " hard" if self.hard else ""
            parts.append(f"deadline {milliseconds(self.deadline_s)}{kind}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal rule.

        >>> ClockRule.from_json(ClockRule(deadline_s=0.04, hard=True).to_json()).hard
        True
        """
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ClockRule:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such rule; the message names the place.
        """
        reader = ObjectReader(value, "clock")
        objective: Any = reader.text("objective")
        deadline_s = reader.maybe("deadline_s", reader.number)
        safe, hard = reader.take("safe"), reader.take("hard")
        frequency_hz = reader.maybe("frequency_hz", reader.number)
        start = reader.maybe("start", lambda key: reader.whole(key, _MOST_STATES - 1))
        reader.done()
        if type(safe) is not bool or type(hard) is not bool:
            raise JsonError("`clock.safe` and `clock.hard` must be true or false")
        try:
            return cls(objective, deadline_s, safe, hard, frequency_hz, start)
        except ValueError as error:
            raise JsonError(f"`clock` contradicts itself: {error}") from None
