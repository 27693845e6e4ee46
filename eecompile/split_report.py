"""What a split policy does to recorded streams, as JSON beside it and as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.fitted_policy import operating_point
from eecompile.outcomes import Interval, Report, reported, wilson
from eecompile.policies import SplitPolicy, StreamReplay, from_json, replay_stream, to_json
from eecompile.policies.points import OperatingPoint
from eecompile.policies.steps import to_json as thresholds_json
from eecompile.record import CalibrateRecord, Record, TestRecord

__all__ = ["split_lines", "split_outcomes"]

Recorded = CalibrateRecord | TestRecord


def split_outcomes(
    policy: SplitPolicy, exits: Sequence[str], records: Mapping[str, Record]
) -> tuple[dict[str, Any], OperatingPoint | None, Report | None]:
    """What a policy that knows nothing yet does to calibration and test data as streams.

    A server answers every sample sent to it. Costs are counted multiply-accumulates.

    Args:
        policy: it learns nothing from this.
        exits: names of the network's exits.
        records: by split.

    Returns:
        A JSON value, what it does on calibration data, and what on test data; None without them.
    """
    names = (*exits, "final")
    found: dict[str, Any] = {
        "learning": policy.learning and policy.learning.to_json(),
        "price": policy.costs.price,
        "splits": _splits(policy, names),
        "calibrate": None,
        "test": None,
    }
    point = report = None
    for split, record in records.items():
        if not isinstance(record, Recorded):
            continue
        learner = from_json(to_json(policy))
        assert isinstance(learner, SplitPolicy), "it is one"
        replayed = replay_stream(learner, record.outputs(), record.final)
        found[split] = _stream(replayed, names) | {"best": names[learner.best]}
        right = np.asarray(replayed.labels == record.labels)
        macs = {"macs": _device_macs(replayed, policy)}
        if isinstance(record, TestRecord):
            report = reported(record, replayed.exit, right, macs, {"macs": "counted"})
        else:
            point = operating_point(policy, record, right, macs)
    return found, point, report


def _splits(policy: SplitPolicy, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per split, the end last: what it costs, and from which confidence on a sample leaves."""
    thresholds = [*thresholds_json(policy.rewards.thresholds), None]
    return [
        {"name": names[policy.split_of(arm)], "cost": cost, "threshold": threshold}
        for arm, (cost, threshold) in enumerate(zip(policy.rewards.spent, thresholds, strict=True))
    ]


def _stream(replayed: StreamReplay, names: Sequence[str]) -> dict[str, Any]:
    """Figures of a whole stream."""
    count = len(replayed.split)
    shares = np.bincount(replayed.split, minlength=len(names)) / count
    cost = Interval.of_mean(replayed.cost)
    offloaded = wilson(int(replayed.sent.sum()), count)
    return {
        "n": count,
        "mean_cost": {"value": cost.value, "low": cost.low, "high": cost.high},
        "offloaded": {"value": offloaded.value, "low": offloaded.low, "high": offloaded.high},
        "mean_reward": float(replayed.reward.mean()),
        "shares": {name: float(share) for name, share in zip(names, shares, strict=True)},
    }


def _device_macs(replayed: StreamReplay, policy: SplitPolicy) -> np.ndarray[Any, Any]:
    """What each sample cost here, as a fraction of the network; float64 (n,)."""
    return np.asarray(replayed.cost - policy.costs.price * replayed.sent)


def split_lines(split: Mapping[str, Any]) -> list[str]:
    """What a person reads about a split policy after a build, on held-out data.

    >>> split_lines({"price": 0.5, "test": {"best": "late", "mean_cost": {"value": 0.61},
    ...     "offloaded": {"value": 0.2}, "shares": {"early": 0.1, "late": 0.9, "final": 0.0}}})
    ... # doctest: +NORMALIZE_WHITESPACE
    ['  split as a stream: 20.0 % sent on, mean cost 61.0 % of the network
     (sending one: 50 %), in the end at `late`',
     '  samples split at: early 10.0 %, late 90.0 %']
    """
    test = split["test"]
    if test is None:
        return []
    sent, cost = test["offloaded"]["value"], test["mean_cost"]["value"]
    shares = (f"{name} {share:.1%}" for name, share in test["shares"].items() if share)
    return [
        f"  split as a stream: {100 * sent:.1f} % sent on, mean cost {100 * cost:.1f} % of the "
        f"network (sending one: {100 * split['price']:g} %), in the end at `{test['best']}`",
        f"  samples split at: {', '.join(shares).replace('%', ' %')}",
    ]
