"""What disturbed a block: heat, turbo, clocks set by others, other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time

from eecompile.board import DvfsState
from eecompile.figures import hertz
from eecompile.runtime.sysfs import SysFiles, read_text
from eecompile.runtime.throttling import Conditions, changes, clock_conditions

__all__ = ["Watcher", "clock_now", "clock_of", "governor_of"]

#: By how much a clock may be off what was set: what is set is rounded, what is read is averaged.
_OFF = 0.01
#: Cores that other programs may keep busy where none is left for them; less is noise of a system.
_OTHERS = 0.25
#: Jiffies of a second. Source: Linux, USER_HZ on every architecture eecompile compiles for.
_JIFFIES = 100.0


def clock_of(told: Conditions, cpus: Sequence[int]) -> float | None:
    """What some CPUs run at; None where it is not told."""
    policy = told.policy_of(cpus)
    return None if policy is None else policy.current_hz


def clock_now(files: SysFiles, cpus: Sequence[int] = ()) -> float | None:
    """What some CPUs of a system run at now, or its first ones; None where it does not tell."""
    told = clock_conditions(files)
    return clock_of(told, cpus or (told.policies[0].cpus if told.policies else ()))


def governor_of(told: Conditions, cpus: Sequence[int]) -> str | None:
    """What chooses the clock of some CPUs; None where nothing does."""
    policy = told.policy_of(cpus)
    return None if policy is None else policy.governor


@dataclass
class Watcher:
    """Looks before and after each block.

    Attributes:
        files: of the system that is measured.
        cpus: the code runs on, by cluster.
        cores: of the system.
        local: whether it is this process that computes.
        clocks_hz: read before and after each block that ran at no clock of ours.
        others: cores that other programs kept busy, for each block.
    """

    files: SysFiles
    cpus: dict[str, tuple[int, ...]]
    cores: int = 1
    local: bool = True
    clocks_hz: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    _state: DvfsState | None = None
    _before: tuple[Conditions, float | None, float, float] | None = None

    def begin(self, state: DvfsState | None) -> None:
        """A block begins, at a clock that was set (None: at whatever clock there is)."""
        self._state = state
        before = clock_conditions(self.files)
        self._before = before, _busy_s(self.files), process_time(), perf_counter()

    def end(self) -> tuple[str, ...]:
        """What disturbed the block, in words."""
        assert self._before is not None, "begun"
        before, busy, own, begun = self._before
        seconds, own = perf_counter() - begun, process_time() - own
        busy_now, now = _busy_s(self.files), clock_conditions(self.files)
        found = [*self._clock(before, now), *changes(before, now)]
        if self.local and busy is not None and busy_now is not None and seconds > 5 / _JIFFIES:
            others = max(0.0, busy_now - busy - own) / seconds
            self.others.append(others)
            if others > _OTHERS and others + own / seconds > self.cores - _OTHERS:
                found.append("other programs kept all cores busy")
        return tuple(found)

    def _clock(self, before: Conditions, now: Conditions) -> list[str]:
        """A clock that is not the one that was set."""
        name = self._state.cluster if self._state else next(iter(self.cpus), "")
        cpus = self.cpus.get(name, ())
        clocks = [hz for told in (before, now) if (hz := clock_of(told, cpus)) is not None]
        wanted = self._state.frequency_hz if self._state else None
        if wanted is None:
            self.clocks_hz += clocks
            return []
        off = [clock for clock in clocks if abs(clock - wanted) > _OFF * wanted]
        return [f"the clock was {hertz(off[-1])}"] if off else []


def _busy_s(files: SysFiles) -> float | None:
    """Seconds that all cores together have worked for anybody, other machines included."""
    first = (read_text(files, "/proc/stat") or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu" or not all(part.isdigit() for part in first[1:9]):
        return None
    user, nice, system, _, _, irq, soft, stolen = (int(part) for part in first[1:9])
    return (user + nice + system + irq + soft + stolen) / _JIFFIES
