"""Fitting a Predictive Exit policy: its one knob, its start, and our own forecast's limits.

Everything is fitted on calibration data. The authors take their scales from training images; but
a head is surer of images it was fitted on, and thresholds meant for those would be too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.fitted_policy import Calibration, FittedPolicy, drop_at_most, isotonic, table_of
from eecompile.forecast_limits import forecast_limits
from eecompile.operating_points import Trial, hull
from eecompile.policies import ExitPolicy, NeverPolicy, PredictedPolicy
from eecompile.policies.activations import ACTIVATIONS
from eecompile.policies.base import EXIT
from eecompile.policies.points import OperatingPoint
from eecompile.policies.scores import max_softmax
from eecompile.record import CalibrateRecord
from eecompile.spec import RuleTerm

__all__ = ["DEFAULT_WINDOW", "fit_predicted", "given_predicted", "scales"]

Array = np.ndarray[Any, Any]

#: How far a forecast reaches where the file does not say. Source: the authors' own setting.
DEFAULT_WINDOW = 8

DEFAULT_FORECAST, DEFAULT_SCALE = "fitted", "probability"

#: Scale -> the activation whose threshold it is a part of.
_ACTIVATION = {"mean_logit": "logits", "probability": "probability"}

#: A mean logit below this part of the mean activation is rounding, or chance.
_LEAST_SCALE = 1e-3

#: Starts and thresholds tried before the best of them is refined.
_STARTS, _BETAS, _STEPS = 9, 25, 10

#: Of the betas that keep an accuracy budget, so many are kept for each start, the least ones.
_OTHERS = 4


def scales(name: str, record: CalibrateRecord) -> list[float]:
    """What one unit of ``beta`` is at each exit; infinity at an exit without a trained head.

    ``mean_logit``: the absolute value of the mean, over samples and classes, of the raw logits, as
    published. ``probability``: 1; its activations are on one scale already.

    Source: Predictive Exit (arXiv 2206.04685), which takes it from training images.
    """
    found = []
    for exit_ in record.exits:
        logits = record.logits.get(exit_)
        if logits is None:
            found.append(inf)
        elif name == "mean_logit":
            found.append(abs(float(np.mean(logits, dtype=np.float64))))
        else:
            found.append(1.0)
    return found


def fit_predicted(
    term: RuleTerm, calibration: Calibration, budgeted: bool, levels: bool = True
) -> FittedPolicy:
    """``beta`` and the start, where they are not given, fitted so that the budget holds.

    Args:
        term: the rule's only term.
        calibration: data, costs and budget.
        budgeted: whether the budget was asked for. Where nothing is left to fit it is checked
            only then.
        levels: whether settings for other budgets are wanted, see `Calibration.levels`.

    Raises:
        CompileErrors: the budget cannot be kept, or the heads give the scale no meaning.
    """
    options, setting = term.options, _Setting(term, calibration.record)
    starts = _starts(options.get("start"), setting)
    beta = options.get("beta")
    assert beta is None or isinstance(beta, int | float), "checked with the file"
    if beta is None or len(starts) > 1:
        return _Fitting(setting, starts, beta, calibration).solve(levels)
    policy = setting.policy(starts[0], beta)
    point = calibration.point(policy)
    if budgeted and not calibration.keeps(point):
        raise calibration.infeasible(calibration.reached(point))
    return FittedPolicy(policy, point, ())


def given_predicted(term: RuleTerm, trained: Mapping[str, bool]) -> PredictedPolicy:
    """The policy of a rule that needs no data: thresholds and start are given, nothing is fitted.

    Args:
        term: with ``beta``, ``start`` and a convolutional forecast, on a scale not measured.
        trained: exit -> whether it has a trained head, in order.
    """
    options = term.options
    scale, beta = str(options.get("scale", DEFAULT_SCALE)), options["beta"]
    assert scale == "probability" and isinstance(beta, int | float), "checked with the file"
    return PredictedPolicy(
        [float(beta) if has else inf for has in trained.values()],
        list(trained).index(str(options["start"])),
        _window(term),
        activation=_ACTIVATION[scale],
        forecast=str(options["forecast"]),
    )


def _window(term: RuleTerm) -> int:
    window = term.options.get("window", DEFAULT_WINDOW)
    assert isinstance(window, int), "checked with the file"
    return window


def _starts(given: object, setting: _Setting) -> list[int]:
    """The start that is given, or some of all depths."""
    live = setting.live
    if given is not None:
        return [setting.record.exits.index(str(given))]
    places = np.linspace(0, len(live) - 1, min(_STARTS, len(live)))
    return [live[round(place)] for place in places]


def followed(start: int, due: Sequence[Array], exits: int) -> tuple[Array, Array]:
    """Where each sample leaves, int64 (n,), and whose heads run, bool (n, exits).

    Args:
        start: exit looked at first.
        due: what each sample would do at each exit, int64 (n,); empty for one never looked at.
        exits: their number.

    >>> left, evaluated = followed(0, [np.array([EXIT, 2]), np.array([]), np.array([EXIT, 3])], 3)
    >>> left.tolist(), evaluated.tolist()
    ([0, 3], [[True, False, False], [True, False, True]])
    """
    here = np.full(len(due[start]), start)
    left = np.full(len(here), exits)
    evaluated = np.zeros((len(here), exits), bool)
    for k in range(start, exits):
        at = np.flatnonzero(here == k)
        if len(at):
            evaluated[at, k] = True
            here[at] = due[k][at]
            left[at[here[at] == EXIT]] = k
    return left, evaluated


class _Setting:
    """Policies of one rule on one record, by start and beta."""

    def __init__(self, term: RuleTerm, record: CalibrateRecord) -> None:
        options = term.options
        scale = str(options.get("scale", DEFAULT_SCALE))
        self.record, self.outputs = record, record.outputs()
        self.activation = _ACTIVATION[scale]
        self.forecast = str(options.get("forecast", DEFAULT_FORECAST))
        self.window = min(_window(term), len(record.exits))
        self.scales = scales(scale, record)
        self.live = [k for k, unit in enumerate(self.scales) if unit < inf]
        self._check_scales(term)
        # What decisions look at is the same whatever the thresholds.
        limits = [None] * len(self.scales) if self.forecast == "fitted" else None
        probe = self._made(self.live[0], [1.0] * len(self.scales), limits)
        self.seen = {k: probe.features(self.outputs[k]) for k in self.live}

    def _check_scales(self, term: RuleTerm) -> None:
        for k in self.live:
            mean = float(ACTIVATIONS[self.activation].peak(self.outputs[k].logits).mean())
            if self.scales[k] <= _LEAST_SCALE * mean:
                raise _no_scale(term, self.record.exits[k], self.scales[k], mean)

    def ratios(self) -> Array:
        """Every beta at which some sample begins or ceases to leave somewhere, sorted."""
        return np.sort(np.concatenate([self.seen[k][0] / self.scales[k] for k in self.live]))

    def thresholds(self, beta: float) -> list[float]:
        """One per exit."""
        return [beta * unit if unit < inf else inf for unit in self.scales]

    def policy(self, start: int, beta: float) -> PredictedPolicy:
        """The policy that starts at exit `start`."""
        thresholds = self.thresholds(beta)
        peaks = {k: peak for k, (peak, _) in self.seen.items()}
        fitted = self.forecast == "fitted"
        limits = forecast_limits(peaks, thresholds, self.window) if fitted else None
        return self._made(start, thresholds, limits)

    def recorded(self, beta: float) -> list[Array]:
        """What each sample would do at each exit, int64 (n,)."""
        policy = self.policy(self.live[0], beta)
        none = np.zeros(0, np.int64)
        return [
            policy.due(k, *self.seen[k]) if k in self.seen else none
            for k in range(len(self.scales))
        ]

    def _made(
        self,
        start: int,
        thresholds: Sequence[float],
        limits: Sequence[Sequence[float] | None] | None,
    ) -> PredictedPolicy:
        return PredictedPolicy(
            thresholds,
            start,
            self.window,
            activation=self.activation,
            forecast=self.forecast,
            limits=limits,
        )


@dataclass(frozen=True)
class _Course:
    """The way from the cheapest setting to the most accurate, by one kind of cost.

    Attributes:
        chain: (start, beta) of each, cheapest first.
        points: what each does, and at last what never leaving does.
    """

    chain: Sequence[Trial]
    points: Sequence[OperatingPoint]


class _Fitting:
    """A search over beta and the start, for any budget."""

    def __init__(
        self, setting: _Setting, starts: Sequence[int], beta: float | None, judge: Calibration
    ) -> None:
        self.setting, self.starts, self.judge = setting, starts, judge
        self.ratios = setting.ratios()
        self.beta = beta
        self.exits = len(setting.scales)
        self.right = self._right()
        self.chances = self._chances()
        self.never = judge.point(NeverPolicy(self.exits))
        #: Start -> betas tried there that keep an accuracy budget, rising.
        self.kept: dict[int, list[float]] = {start: [] for start in starts}
        self._known: dict[tuple[int, float], OperatingPoint] = {}
        self._dues: dict[float, list[Array]] = {}
        betas = [beta] if beta is not None else self._grid()
        #: Quantity -> every setting of the grid, with its cost.
        self._trials: dict[str, list[Trial]] = {name: [] for name in judge.costs}
        for value in betas:
            self._try(value)
        self._courses = {name: self._course(name) for name in judge.costs}

    def _right(self) -> Array:
        """Whether each exit's answer is right, the final one last: bool (exits + 1, n)."""
        record = self.judge.record
        answers = [*(seen.logits for seen in self.setting.outputs), record.final]
        return np.stack([logits.argmax(axis=1) == record.labels for logits in answers])

    def _chances(self) -> Array:
        """Chance of each sample to be right at each exit, the final one last: (exits + 1, n).

        Not the 0 or 1 that was observed: fitted to that, the knob would learn the samples' noise.
        """
        found = np.zeros(self.right.shape)
        for k in self.setting.live:
            found[k] = isotonic(self.setting.seen[k][0], self.right[k])
        found[-1] = isotonic(max_softmax(self.judge.record.final), self.right[-1])
        return found

    def solve(self, levels: bool) -> FittedPolicy:
        """The best setting within the budget.

        Raises:
            CompileErrors: there is none.
        """
        judge = self.judge
        points = list(self._courses[judge.quantity].points)
        own = self._best(judge)
        if own is None:
            raise judge.infeasible(min(judge.reached(point) for point in points))
        for level in judge.levels() if levels else ():
            made = self._best(level)
            points += [] if made is None else [level.made_for(made)]
        best = judge.best([own, *points]) or own
        best = judge.made_for(best)
        points = [best, *sorted(points, key=lambda point: point.budget is None)]
        return FittedPolicy(best.make(), best, table_of(points, self.never), self._others())

    def _others(self) -> tuple[ExitPolicy, ...]:
        return tuple(
            self.setting.policy(start, beta)
            for start, betas in self.kept.items()
            for beta in betas[:_OTHERS]
        )

    def _grid(self) -> list[float]:
        """Betas from one at which all leave at the start to one at which nearly none ever does."""
        places = np.linspace(0, len(self.ratios) - 1, _BETAS).round().astype(int)
        return [float(beta) for beta in np.unique(self.ratios[places])]

    def _try(self, beta: float) -> None:
        """The setting at each start, by the chances of the answers to be right."""
        judge, due = self.judge, self._due(beta)
        samples = np.arange(len(judge.record))
        for start in self.starts:
            left, evaluated = followed(start, due, self.exits)
            value = float(self.chances[left, samples].mean())
            for name, cost in judge.costs.items():
                trial = Trial((start, beta), float(cost.paid(left, evaluated).mean()), value)
                self._trials[name].append(trial)
            lost = drop_at_most(judge.record, self.right[left, samples], judge.confidence)
            if judge.budget.quantity == "accuracy_drop" and lost <= judge.budget.limit:
                self.kept[start].append(beta)

    def _due(self, beta: float) -> list[Array]:
        if beta not in self._dues:
            self._dues[beta] = self.setting.recorded(beta)
        return self._dues[beta]

    def _course(self, quantity: str) -> _Course:
        full_depth = self.judge.costs[quantity].leaving[-1]
        chain = [trial for trial in hull(self._trials[quantity]) if trial.cost < full_depth]
        points = [self._point(int(t.thresholds[0]), t.thresholds[1]) for t in chain]
        return _Course(chain, [*points, self.never])

    def _point(self, start: int, beta: float) -> OperatingPoint:
        key = (start, beta)
        if key not in self._known:
            left, evaluated = followed(start, self._due(beta), self.exits)
            right = self.right[left, np.arange(len(left))]
            policy = self.setting.policy(start, beta)
            self._known[key] = self.judge.known_point(policy, left, evaluated, right)
        return self._known[key]

    def _best(self, judge: Calibration) -> OperatingPoint | None:
        """The best setting for a budget, None where none keeps it.

        What the chain leaves of the budget is used up by beta at the starts on either side.
        """
        course = self._courses[judge.quantity]
        best = judge.best(course.points)
        if best is None or self.beta is not None:
            return best
        place, chain = course.points.index(best), course.chain
        near = [chain[k] for k in (place - 1, place, place + 1) if 0 <= k < len(chain)]
        strict = judge.budget.quantity == "accuracy_drop"
        for start in dict.fromkeys(int(trial.thresholds[0]) for trial in near):
            # Ranks of beta: more of it loses less accuracy and costs more.
            kept, missed = (len(self.ratios) - 1, 0) if strict else (0, len(self.ratios) - 1)
            for _ in range(_STEPS):
                middle = (kept + missed) // 2
                point = self._point(start, float(self.ratios[middle]))
                if judge.keeps(point):
                    kept = middle
                    best = judge.best([best, point]) or best
                else:
                    missed = middle
        return best


def _no_scale(term: RuleTerm, exit_: str, scale: float, mean: float) -> CompileErrors:
    diagnostic = Diagnostic(
        "bad-option",
        "These heads give `scale: mean_logit` no meaning",
        term.at("scale"),
        f"the mean logit of exit `{exit_}` is {scale:.2g}, its largest ones {mean:.2g} on average",
        notes=("a softmax is the same for shifted logits, so that their mean is left to chance",),
        help=f"use `scale: {DEFAULT_SCALE}`",
    )
    return CompileErrors([diagnostic])
