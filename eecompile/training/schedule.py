"""How a run goes: which target when, how fast, and how hard costs are pulled to it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Controller", "Moment", "Schedule"]

#: Of the controller, per unit of cost too much: what a step adds to the weight for good, what acts
#: at once, and by how much scores are lowered.
_INTEGRAL, _PROPORTIONAL, _SHIFT = 0.5, 5.0, 1.5
#: Between which the lasting part stays, so that it does not run away while gates cannot follow.
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
    time from 1) to its own: gates that are asked for too much at once drop blocks before they
    know which. Rates stand for 30 % of a stage and then fall in a line to a twentieth.
    Source: measured on ResNet-56 and CIFAR-10.
    """

    targets: tuple[float, ...]
    steps: int
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
        before = self.targets[stage - 1] if stage else 1.0
        wanted = target + (before - target) * max(0.0, 1 - share / self.ramp)
        falling = max(0.0, (share - self.hold) / (1 - self.hold))
        rate = 1 - (1 - self.least_rate) * falling
        return Moment(stage, wanted, rate, within == self.steps - 1)


@dataclass
class Controller:
    """What brings the mean cost to a target: how much costs weigh in the loss, and a common shift.

    DDI adds costs to the loss with a fixed weight whose sign says whether too much is computed;
    that swings around the target by the size of its steps. Here the weight follows the distance
    and its sum over time, as in a proportional-integral controller; it is negative where too little
    is computed. Beside it, all scores are lowered by a part of the distance: the weight tells gates
    what to leave out, the shift makes the network meet what it will meet at its target early.

    Source: arXiv 1907.04523, section on the controllable target; gains measured.
    """

    lasting: float = 0.0

    def step(self, cost: float, wanted: float) -> tuple[float, float]:
        """After a batch of mean cost `cost`: the weight, and how much lower all scores get.

        >>> controller = Controller()
        >>> controller.step(0.9, 0.8), controller.step(0.7, 0.8)
        ((0.55, 0.15), (-0.5, -0.15))
        """
        distance = round(cost - wanted, 9)
        self.lasting = min(max(self.lasting + _INTEGRAL * distance, _LEAST), _MOST)
        return self.lasting + _PROPORTIONAL * distance, round(_SHIFT * distance, 9)
