"""Split policies of a build: thresholds fitted to an accuracy budget, and what splits cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic, did_you_mean_help
from eecompile.fitted_policy import CONFIDENCE
from eecompile.outcomes import ExitCosts
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.policies.split import SplitCosts, SplitPolicy
from eecompile.policies.split_bandit import UcbOptions
from eecompile.policy_fitting import DEFAULT_BUDGET
from eecompile.record import CalibrateRecord
from eecompile.spec import HeadSpec, Policy

__all__ = ["fit_split", "lowest_threshold"]

Array = np.ndarray[Any, Any]


def fit_split(
    written: Policy,
    exits: Sequence[str],
    usable: Sequence[bool],
    costs: ExitCosts,
    record: CalibrateRecord | None,
) -> SplitPolicy:
    """The split policy of a file, its thresholds as given or fitted.

    A threshold that is not given is the lowest at which splitting all samples there keeps the
    accuracy budget, of each exit its own. Where none does, nothing leaves there, and a sample
    split there is always sent. Every split keeps the budget, so what is learned does, too.

    Args:
        written: with one `confidence` term, `offload` and `split`, checked with the file.
        exits: names of the network's exits.
        usable: whether each has what the term looks at.
        costs: of the network's pieces.
        record: of calibration data, needed where there is no threshold.

    Raises:
        CompileErrors: the split is fixed at an exit that is not there, or lacks what is looked at.
    """
    assert written.rule and written.offload and written.split, "checked with the file"
    (term,) = written.rule.terms
    measure = str(term.measure)
    places = [index for index, there in enumerate(usable) if there]
    thresholds = [
        inf if term.threshold is None or not there else term.threshold for there in usable
    ]
    if term.threshold is None:
        assert record is not None, "checked with the file"
        limit = (written.budget or DEFAULT_BUDGET).limit
        for index in places:
            thresholds[index] = _fitted(record, index, measure, limit)
    full = costs.full_depth
    priced = SplitCosts(
        tuple(cost / full for cost in costs.leaving),
        tuple(cost / full for cost in costs.heads),
        written.offload.cost,
    )
    learning, at = None, None
    if written.split.kind == "fixed":
        at = _place(written.split, [exits[index] for index in places], exits)
    else:
        options = {k: str(v) if isinstance(v, str) else v for k, v in written.split.options.items()}
        learning = UcbOptions(**options)  # type: ignore[arg-type]  # checked with the file
    return SplitPolicy(measure, thresholds, places, priced, learning, at)


def _place(split: HeadSpec, usable: Sequence[str], exits: Sequence[str]) -> int:
    """Index of the exit a split is fixed at: one the compiler placed is not known to the file."""
    name = str(split.option("at"))
    if name not in usable:
        found = Diagnostic(
            "unknown-exit",
            f"There is no exit `{name}` to split at",
            split.at("at"),
            "no such exit",
            help=did_you_mean_help(name, usable) or f"exits: {', '.join(usable) or 'none'}",
        )
        raise CompileErrors([found])
    return list(exits).index(name)


def _fitted(record: CalibrateRecord, index: int, measure: str, limit: float) -> float:
    """An exit's threshold on calibration data."""
    seen = record.outputs()[index]
    means = measure == "class_means"
    logits = seen.class_means if means else seen.logits
    assert logits is not None, "the exit has what the term looks at"
    confidence = (max_softmax if means else SCORES[measure])(logits)
    lost = (record.final.argmax(axis=1) == record.labels).astype(np.int64)
    lost -= logits.argmax(axis=1) == record.labels
    return lowest_threshold(confidence, lost, limit)


def lowest_threshold(
    confidence: Array, lost: Array, limit: float, sure: float = CONFIDENCE
) -> float:
    """The lowest threshold at which leaving loses at most `limit` of the accuracy.

    Thresholds are tried from the highest down to the first at which the loss may be more, and that
    is as safe as trying only one: a threshold is taken only if all above it passed (fixed sequence
    testing, as in arXiv 2110.01052). 0 where everything may leave, infinity where nothing may.
    The bound is the upper one of Wilson's interval with the variance found: with few losses the
    normal approximation promises too much (measured: missed by 9 % of fits where 5 % are allowed).

    Args:
        confidence: float32 (n,), of an exit's answers.
        lost: int64 (n,), the network's own answer right less this one right.
        limit: as a fraction of all samples.
        sure: with what confidence it is to hold for the mean over data like these.

    >>> scores = np.float32([0.75, 0.5, 0.25, 0.125]).repeat(100)
    >>> lost = np.array([0, 0, 1, 0]).repeat(100)
    >>> lowest_threshold(scores, lost, 0.2), lowest_threshold(scores, lost, 0.3)
    (0.5, 0.0)
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, losses = confidence[order], lost[order].astype(np.float64)
    count = len(ranked)
    mean, square = np.cumsum(losses) / count, np.cumsum(losses**2) / count
    z = NormalDist().inv_cdf(sure)
    variance = np.maximum(square - mean**2, 0.0) / count
    at_most = mean + z * z / (2 * count) + z * np.sqrt(variance + (z / (2 * count)) ** 2)
    # Equal confidences leave together.
    ends = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    kept = at_most[ends] <= limit
    passed = len(ends) if kept.all() else int(np.argmin(kept))
    if passed == len(ends):
        return 0.0
    return float(ranked[ends[passed - 1]]) if passed else inf
