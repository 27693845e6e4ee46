"""What an app may read of a guard: how exits agree with the network, and how inputs drift."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

__all__ = ["GuardReport", "GuardedExit", "wilson_bounds"]

#: Of the normal distribution, for 95 % in two tails.
_Z = 1.959964


def wilson_bounds(successes: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 %: all of 0 to 1 where nothing was counted.

    >>> [round(bound, 3) for bound in wilson_bounds(9, 10)], wilson_bounds(0, 0)
    ([0.596, 0.982], (0.0, 1.0))
    """
    if not count:
        return 0.0, 1.0
    share, square = successes / count, _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count**2)
    half = _Z * sqrt(spread) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class GuardedExit:
    """One exit, as the settings that were in use took it.

    Attributes:
        name: of the exit.
        taken: samples that left here, and audits that would have.
        audited: the latter.
        agreed: of these, those that the network answered alike.
        agreement_at_least: lower end of the 95 % interval of that share; 0 before an audit.
        confidence: mean of the answers' softmax probability; None before the first.
    """

    name: str
    taken: int
    audited: int
    agreed: int
    agreement_at_least: float
    confidence: float | None


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What a guard knows.

    Attributes:
        drop, share: as in the `.ee` file: what may differ, and how many are looked at.
        share_now: of the samples that are audited at present.
        setting: index of the setting that decides, 0 the one fitted to the policy's budget; as
            large as `settings`: nothing leaves early.
        settings: number of settings.
        samples: answered so far, each on its own.
        audits: of them, those that ran to the end to find out.
        differing: audits that the setting in use would have answered otherwise than the network.
        differing_at_least, differing_at_most: 95 % interval of that share of the answers, since
            the present setting decides.
        debt: by how many audits it has differed more often than allowed of late, less a reserve; it
            is given up at the `alarm` of `eecompile.runtime.guard_watch.GuardOptions`.
        tightened, loosened: changes to a more careful setting, and back.
        drift: how far the shares of the exits that setting 0 would take now, over some 100 audits,
            are from those at calibration: 0 equal, 1 nothing in common (total variation).
        changes: how often the exits that samples take were found to have changed.
        exits: each but the network's end.
    """

    drop: float
    share: float
    share_now: float
    setting: int
    settings: int
    samples: int
    audits: int
    differing: int
    differing_at_least: float
    differing_at_most: float
    debt: float
    tightened: int
    loosened: int
    drift: float
    changes: int
    exits: tuple[GuardedExit, ...]

    @property
    def leaves_early(self) -> bool:
        """Whether any setting is left that lets samples leave early."""
        return self.setting < self.settings

    def to_json(self) -> dict[str, Any]:
        """JSON value; shares are fractions."""
        return {**asdict(self), "exits": [asdict(exit_) for exit_ in self.exits]}
