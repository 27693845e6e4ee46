"""Choosing the exits of `exits auto`: from fitted heads at all candidates to a few, and why those.

One recording has the features of every candidate, and a head is fitted at each. What is chosen is
judged on calibration data by the first policy with a budget; where there is none, by the curve as a
whole. A rule that is no confidence is stood in for by ``confidence(max_softmax)``: sets of exits
that are good for one rule are good for others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.cache import Cache, digest, source_digest
from eecompile.exit_candidates import Placing
from eecompile.exit_choice import Choice, ExitScores, Judge, Objective, choose
from eecompile.fitted_policy import CONFIDENCE
from eecompile.outcomes import ExitCosts, commonest_share
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.record import CalibrateRecord
from eecompile.segments import SegmentGraph
from eecompile.spec import Budget, Model, Policy, Spec, plain

__all__ = ["Aim", "place_exits", "with_exits", "with_margin"]


@dataclass(frozen=True)
class Aim:
    """What exits are chosen for.

    Attributes:
        policy: the first one that leaves at exits and has a budget; None where there is none.
        measure: how sure a head is, in a key of `SCORES`.
    """

    policy: Policy | None
    measure: str

    @classmethod
    def of(cls, spec: Spec) -> Aim:
        """What the exits of a file are chosen for."""
        leaving = [policy for policy in spec.policies if policy.rule is not None]
        budgeted = [policy for policy in leaving if policy.budget is not None]
        terms = [term for p in (budgeted or leaving)[:1] if p.rule for term in p.rule.terms]
        measures = [str(term.measure) for term in terms if term.measure in SCORES]
        return cls(next(iter(budgeted), None), next(iter(measures), "max_softmax"))

    @property
    def budget(self) -> Budget | None:
        """What the exits are to keep."""
        return None if self.policy is None else self.policy.budget

    @property
    def quantity(self) -> str:
        """The cost that counts: the budget's; multiply-accumulates where it limits accuracy."""
        budget = self.budget
        return "macs" if budget is None or budget.quantity == "accuracy_drop" else budget.quantity

    def __str__(self) -> str:
        """What is compared, in words."""
        budget = self.budget
        if self.policy is None or budget is None:
            return "mean accuracy for 40 to 100 % of the macs"
        if budget.quantity == "accuracy_drop":
            return f"mean macs at {budget} (policy {self.policy.name})"
        return f"accuracy at {budget} (policy {self.policy.name})"


def place_exits(
    spec: Spec,
    placing: Placing,
    network: SegmentGraph,
    record: CalibrateRecord,
    costs: Callable[[str], ExitCosts],
    *,
    seed: int,
    cache: Cache,
    key: str,
) -> dict[str, Any]:
    """Which exits the network is to have, and why, as JSON; see `Aim` for what counts.

    Args:
        spec: with an exit for every candidate.
        placing: what is to be chosen.
        network: with the heads of all exits.
        record: what all of them give for the calibration data.
        costs: quantity -> what the network's pieces cost; asked for one.
        seed: of what is fitted on and what is read off.
        cache: of choices: where time was measured, the next build chooses the same.
        key: of the record's content.
    """
    aim = Aim.of(spec)
    name = digest(
        *(
            "placing",
            source_digest(),
            key,
            network.graphs(),
            str(placing),
            str(sorted(placing.kept)),
        ),
        *(aim.measure, str(aim), json.dumps(plain(aim.budget)), seed),
    )
    stored = cache.load(name)
    if stored is not None:
        found: dict[str, Any] = json.loads(stored)
        return found
    made = _placed(aim, placing, network, record, costs(aim.quantity), seed)
    cache.store(name, json.dumps(made).encode())
    return made


def with_margin(budget: Budget, count: int) -> Budget:
    """What of an accuracy budget can be used up: a build keeps a margin for the number of samples.

    An answer that is lost has a variance of about its chance. Other budgets stay as they are.

    >>> with_margin(Budget("accuracy_drop", 0.005), 300).limit
    0.0014
    """
    if budget.quantity != "accuracy_drop":
        return budget
    half = NormalDist().inv_cdf(CONFIDENCE) / sqrt(count) / 2
    return replace(budget, limit=round((sqrt(half**2 + budget.limit) - half) ** 2, 4))


def with_exits(model: Model, names: Sequence[str]) -> Model:
    """The model with these of its exits."""
    return replace(model, exits=tuple(exit_ for exit_ in model.exits if exit_.name in names))


def _placed(
    aim: Aim,
    placing: Placing,
    network: SegmentGraph,
    record: CalibrateRecord,
    costs: ExitCosts,
    seed: int,
) -> dict[str, Any]:
    names = [exit_.name for exit_ in network.exits]
    counted = [name in placing.names for name in names]
    needed = [name not in placing.names or name in placing.kept for name in names]
    final = ExitScores(max_softmax(record.final), record.final.argmax(axis=1) == record.labels)
    exits = [_scores(record, name, aim.measure) for name in names]
    budget = aim.budget and with_margin(aim.budget, len(record))
    objective = Objective(budget, costs.full_depth, float(final.right.mean()))
    guess = commonest_share(record.labels)
    judge = Judge(exits, final, costs, objective, guess=guess, seed=seed)
    choice = choose(judge, counted, needed, placing.low, placing.high)
    return {
        "policy": aim.policy.name if aim.policy else None,
        "aim": str(aim),
        "less_is_better": objective.is_cost,
        "quantity": aim.quantity,
        "provenance": costs.provenance,
        "count": [placing.low, placing.high],
        "tried": judge.tried,
        "exhaustive": choice.exhaustive,
        "candidates": _candidates(network, placing, exits, judge, choice),
        "sizes": [
            {
                "count": size,
                "value": _share(judge, best),
                "exits": [names[k] for k in best],
                "chosen": best == choice.chosen,
            }
            for size, best in choice.sizes.items()
        ],
        "chosen": [names[k] for k in choice.chosen],
    }


def _scores(record: CalibrateRecord, name: str, measure: str) -> ExitScores:
    """How sure an exit is: by its trained head where it has one, else by its class means."""
    logits = record.logits.get(name)
    if logits is None:
        logits, measure = record.class_means[name], "max_softmax"
    score = np.asarray(SCORES[measure](logits), np.float32)
    return ExitScores(score, logits.argmax(axis=1) == record.labels)


def _candidates(
    network: SegmentGraph,
    placing: Placing,
    exits: Sequence[ExitScores],
    judge: Judge,
    choice: Choice,
) -> list[dict[str, Any]]:
    """A row for each exit there could be."""
    rows, done, total = [], 0, max(network.macs, 1)
    for k, (segment, exit_) in enumerate(zip(network.segments, network.exits, strict=False)):
        done += segment.macs
        without = tuple(other for other in choice.chosen if other != k)
        chosen = k in choice.chosen
        gain = judge.score(choice.chosen) - judge.score(without) if chosen else None
        if gain is not None and judge.objective.is_cost:
            gain /= judge.objective.full_depth
        rows.append(
            {
                "name": exit_.name,
                "point": exit_.point,
                "written": exit_.name not in placing.names,
                "named": exit_.name in placing.kept,
                "backbone_fraction": done / total,
                "head_fraction": exit_.macs / total,
                "accuracy": float(exits[k].right.mean()),
                "chosen": chosen,
                "gain": gain,
            }
        )
    return rows


def _share(judge: Judge, chosen: tuple[int, ...]) -> float:
    """The value; a cost as a share of the whole network's."""
    value = judge.value(chosen)
    return value / judge.objective.full_depth if judge.objective.is_cost else value
