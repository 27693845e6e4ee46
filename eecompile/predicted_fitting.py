"""Fitting a Predictive Exit policy: its one knob, its start, and our own forecast's limits.

Everything is fitted on calibration data. The authors take their scales from training images; but
a head is surer of images it was fitted on, and thresholds meant for those would be too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.fitted_policy import Calibration, FittedPolicy, drop_at_most, isotonic
from eecompile.operating_points import Trial, hull
from eecompile.policies import ExitOutputs, ExitPolicy, NeverPolicy, PredictedPolicy, replay
from eecompile.policies.activations import ACTIVATIONS
from eecompile.policies.points import OperatingPoint
from eecompile.policies.scores import max_softmax
from eecompile.record import CalibrateRecord
from eecompile.spec import RuleTerm

__all__ = ["DEFAULT_WINDOW", "fit_predicted", "forecast_limits", "given_predicted", "scales"]

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


def fit_predicted(term: RuleTerm, calibration: Calibration, budgeted: bool) -> FittedPolicy:
    """``beta`` and the start, where they are not given, fitted so that the budget holds.

    Args:
        term: the rule's only term.
        calibration: data, costs and budget.
        budgeted: whether the budget was asked for. Where nothing is left to fit it is checked
            only then.

    Raises:
        CompileErrors: the budget cannot be kept, or the heads give the scale no meaning.
    """
    options, setting = term.options, _Setting(term, calibration.record)
    starts = _starts(options.get("start"), setting)
    beta = options.get("beta")
    assert beta is None or isinstance(beta, int | float), "checked with the file"
    if beta is None or len(starts) > 1:
        return _Fitting(setting, starts, beta, calibration).solve()
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


class _Recorded(ExitPolicy):
    """A policy whose decisions about recorded samples are known."""

    def __init__(self, start: int, due: Sequence[Array]) -> None:
        self._start, self._due = start, due

    def first(self) -> int:
        return self._start

    def start(self, count: int) -> Any:
        return np.arange(count)

    def select(self, state: Any, kept: Array) -> Any:
        return state[kept]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> Array:
        due: Array = self._due[index][state]
        return due

    def parameters(self) -> dict[str, Any]:
        raise NotImplementedError("it is for fitting only")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ExitPolicy:
        raise NotImplementedError("it is for fitting only")


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


class _Fitting:
    """A search over beta and the start."""

    def __init__(
        self, setting: _Setting, starts: Sequence[int], beta: float | None, judge: Calibration
    ) -> None:
        self.setting, self.starts, self.judge = setting, starts, judge
        self.ratios = setting.ratios()
        self.beta = beta
        self.chances = self._chances()
        #: Start -> betas tried there that keep an accuracy budget, rising.
        self.kept: dict[int, list[float]] = {start: [] for start in starts}

    def _chances(self) -> list[Array]:
        """Chance of each sample to be right at each exit, the final one last.

        Not the 0 or 1 that was observed: fitted to that, the knob would learn the samples' noise.
        """
        setting, record = self.setting, self.judge.record
        found = [np.zeros(len(record))] * len(record.exits)
        for k in setting.live:
            right = setting.outputs[k].logits.argmax(axis=1) == record.labels
            found[k] = isotonic(setting.seen[k][0], right)
        sure = record.final.argmax(axis=1) == record.labels
        return [*found, isotonic(max_softmax(record.final), sure)]

    def solve(self) -> FittedPolicy:
        """The best setting within the budget.

        Raises:
            CompileErrors: there is none.
        """
        betas = [self.beta] if self.beta is not None else self._grid()
        trials = [trial for beta in betas for trial in self._trials(beta)]
        full_depth = self.judge.costs[self.judge.quantity].leaving[-1]
        chain = [trial for trial in hull(trials) if trial.cost < full_depth]
        points = [self._point(trial) for trial in chain]
        points.append(self.judge.point(NeverPolicy(len(self.setting.scales))))
        best = self.judge.best(points)
        if best is None:
            raise self.judge.infeasible(min(self.judge.reached(point) for point in points))
        if self.beta is None:
            best = self._refined(chain, points, best)
        return FittedPolicy(best.make(), best, tuple(points), self._others())

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

    def _trials(self, beta: float) -> list[Trial]:
        """The setting at each start, by the chances of the answers to be right."""
        due, record = self.setting.recorded(beta), self.judge.record
        cost = self.judge.costs[self.judge.quantity]
        chances, samples = np.array(self.chances), np.arange(len(record))
        found = []
        for start in self.starts:
            replayed = replay(_Recorded(start, due), self.setting.outputs, record.final)
            value = float(chances[replayed.exit, samples].mean())
            found.append(Trial((start, beta), float(cost.of(replayed).mean()), value))
            lost = drop_at_most(record, replayed.correct(record.labels), self.judge.confidence)
            if self.judge.budget.quantity == "accuracy_drop" and lost <= self.judge.budget.limit:
                self.kept[start].append(beta)
        return found

    def _point(self, trial: Trial) -> OperatingPoint:
        start, beta = trial.thresholds
        return self.judge.point(self.setting.policy(int(start), beta))

    def _refined(
        self, chain: Sequence[Trial], points: Sequence[OperatingPoint], best: OperatingPoint
    ) -> OperatingPoint:
        """What the chain leaves of the budget, used up by beta at the starts on either side."""
        place = points.index(best)
        near = [chain[k] for k in (place - 1, place, place + 1) if 0 <= k < len(chain)]
        strict = self.judge.budget.quantity == "accuracy_drop"
        for start in dict.fromkeys(int(trial.thresholds[0]) for trial in near):
            # Ranks of beta: more of it loses less accuracy and costs more.
            kept, missed = (len(self.ratios) - 1, 0) if strict else (0, len(self.ratios) - 1)
            for _ in range(_STEPS):
                middle = (kept + missed) // 2
                point = self.judge.point(self.setting.policy(start, float(self.ratios[middle])))
                if self.judge.keeps(point):
                    kept = middle
                    best = self.judge.best([best, point]) or best
                else:
                    missed = middle
        return best


def forecast_limits(
    peaks: Mapping[int, Array], thresholds: Sequence[float], window: int
) -> list[list[float] | None]:
    """Limits of a `TableForecast` with the most right forecasts of these samples.

    Forecasts rise as the peak falls; what comes of the samples that stay at an exit is known, and
    the limits between their forecasts are found exactly.

    Args:
        peaks: exit -> largest activation of each sample (n,), of the exits that can be left.
        thresholds: one per exit.
        window: the largest forecast; it is right for all that leave there or later.
    """
    exits = len(thresholds)
    found: list[list[float] | None] = [None] * exits
    leaves = np.full(len(next(iter(peaks.values()))), exits)
    for k in sorted(peaks, reverse=True):
        staying = np.flatnonzero(peaks[k] < thresholds[k])
        staying = staying[np.argsort(-peaks[k][staying], kind="stable")]
        jumps = np.minimum(leaves[staying] - k, window)
        cuts = _best_cuts(jumps, window)
        found[k] = [_between(peaks[k][staying], cut) for cut in cuts]
        leaves[peaks[k] >= thresholds[k]] = k
    return found


def _between(falling: Array, cut: int) -> float:
    """A limit that the first `cut` values reach, and no others.

    >>> _between(np.array([3.0, 2.0]), 1), _between(np.array([3.0, 2.0]), 2)
    (2.5, 0.0)
    """
    if cut == 0:
        return inf
    return 0.0 if cut == len(falling) else float(falling[cut - 1] + falling[cut]) / 2


def _best_cuts(jumps: Array, window: int) -> list[int]:
    """How many of the samples get a forecast up to 1, up to 2, .. below `window`: most hits.

    O(window n) by dynamic programming over forecasts.

    >>> _best_cuts(np.array([1, 3, 1, 1, 2, 3, 2, 2, 3]), 3)
    [4, 8]
    """
    # hits[k]: of the first k samples with forecasts up to the current one.
    counts = np.zeros((window, len(jumps) + 1), np.int64)
    for jump in range(1, window + 1):
        counts[jump - 1, 1:] = np.cumsum(jumps == jump)
    hits, choices = counts[0], []
    for count in counts[1:]:
        gain = hits - count
        best = np.maximum.accumulate(gain)
        # The last place at which the best so far was reached.
        choices.append(np.maximum.accumulate(np.where(gain == best, np.arange(len(gain)), 0)))
        hits = best + count
    cuts, cut = [], len(jumps)
    for choice in reversed(choices):
        cut = int(choice[cut])
        cuts.append(cut)
    return cuts[::-1]


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
