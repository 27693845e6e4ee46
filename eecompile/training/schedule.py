"""How a run goes: which target when, how fast, and how hard costs are pulled to it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Controller", "Moment", "Schedule"]

#: Share of the shift that is wanted which a step takes, and the most it may be.
_FOLLOWED, _FARTHEST = 0.5, 0.5
#: What a step adds to the weight of costs at most, and the shift at which it does.
_INTEGRAL, _DRIFT = 0.1, 0.05
#: Between which the weight stays, so that it does not run away while gates cannot follow.
_LEAST, _MOST = -1.0, 20.0


@dataclass(frozen=True)
class Moment:
    """One step of a run.

    Attributes:
        stage: index of the target.
        wanted: mean cost to aim at, a fraction.
        rate: factor of the learning rates.
        last: whether the stage ends with it.
    """

    stage: int
    wanted: float
    rate: float
    last: bool


@dataclass(frozen=True)
class Schedule:
    """Targets in falling order, `steps` steps for each.

    For the first half of a stage the wanted cost falls in a line from the target before (the first
    time from `first`) to its own: gates that are asked for too much at once drop blocks before they
    know which. Rates stand for 30 % of a stage and then fall in a line to a twentieth.
    Source: measured on ResNet-56 and CIFAR-10.
    """

    targets: tuple[float, ...]
    steps: int
    first: float = 1.0
    ramp: float = 0.5
    hold: float = 0.3
    least_rate: float = 0.05

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps * len(self.targets)

    def at(self, step: int) -> Moment:
        """What holds at a step, counted from 0.

        >>> schedule = Schedule((0.8, 0.6), 100)
        >>> [round(schedule.at(step).wanted, 3) for step in (0, 25, 50, 99, 100, 125, 199)]
        [1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6]
        >>> [round(schedule.at(step).rate, 2) for step in (0, 30, 65, 100)]
        [1.0, 1.0, 0.52, 1.0]
        """
        stage, within = divmod(step, self.steps)
        share = within / self.steps
        target = self.targets[stage]
        before = self.targets[stage - 1] if stage else self.first
        wanted = target + (before - target) * max(0.0, 1 - share / self.ramp)
        falling = max(0.0, (share - self.hold) / (1 - self.hold))
        rate = 1 - (1 - self.least_rate) * falling
        return Moment(stage, wanted, rate, within == self.steps - 1)


@dataclass
class Controller:
    """What keeps the mean cost at its target: a common shift of all scores, and a weight of costs.

    DDI adds costs to the loss with a fixed weight whose sign says whether too much is computed;
    that swings around the target: scores of many gates cross 0 together. Here all scores of a batch
    tell by how much they would have to be lowered for the target, and are, half the way at a time.
    Leaving out harms, so that the loss raises all scores against that; costs are weighed in the
    loss so much that, on average, nothing is left to be lowered.

    Source: arXiv 1907.04523 for the weight; the rest measured on ResNet-56 and CIFAR-10.
    """

    lasting: float = 0.0

    def step(self, shift: float) -> tuple[float, float]:
        """After a batch that would need `shift` for its target: the weight, and how much it is.

        >>> controller = Controller()
        >>> controller.step(0.2), controller.step(-2.0)
        ((0.1, 0.1), (0.0, -0.5))
        """
        drift = min(max(shift / _DRIFT, -1.0), 1.0)
        self.lasting = round(min(max(self.lasting + _INTEGRAL * drift, _LEAST), _MOST), 9)
        return self.lasting, min(max(_FOLLOWED * shift, -_FARTHEST), _FARTHEST)
