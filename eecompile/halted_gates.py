"""Replaying a limit for single samples where gates decide: exits, heads, and what was spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.gated_costs import work_shares
from eecompile.policies import ExitOutputs, ExitPolicy, Replay, SpendingLimit
from eecompile.policies.base import EXIT
from eecompile.policies.halted import can_go_on, cheapest_answer
from eecompile.runtime.piece_costs import StepNeeds

__all__ = ["GatedSteps", "replay_halted"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GatedSteps:
    """What the steps of a network took of recorded samples.

    Attributes:
        needs: of each step: see `StepNeeds`.
        paid: float64 (n, steps), nothing where a step was left out.
        ran: bool (n, steps).
    """

    needs: StepNeeds
    paid: Array
    ran: Array

    @classmethod
    def of(
        cls,
        network: CompiledGraph,
        costs: Sequence[float],
        shares: Mapping[str, Array],
        count: int,
    ) -> GatedSteps:
        """From costs of all steps of segments, and a record's `shares`."""
        steps = [step for segment in network.segments for step in segment.steps]
        paid = [
            cost * work_shares(step, shares, count) for cost, step in zip(costs, steps, strict=True)
        ]
        ran = [shares[step.keep][:, 0] > 0 if step.keep else np.ones(count, bool) for step in steps]
        return cls(StepNeeds(network, costs), np.stack(paid, 1), np.stack(ran, 1))

    def segment(self, row: int, index: int) -> float:
        """What segment `index` takes of a sample."""
        return float(self.paid[row, slice(*self.needs.parts[index])].sum())

    def tried(self, row: int, index: int, spent: float, most: float) -> tuple[float, bool]:
        """What a sample has spent when segment `index` ends, and whether all of it ran.

        No step begins that would lead to more than `most` behind the segment.
        """
        for place in range(*self.needs.parts[index]):
            if self.ran[row, place]:
                if spent + self.needs.needs[place] > most:
                    return spent, False
                spent += float(self.paid[row, place])
        return spent, True


def replay_halted(
    policy: ExitPolicy,
    limit: SpendingLimit,
    steps: GatedSteps,
    exits: Sequence[ExitOutputs],
    final: Array,
) -> tuple[Replay, Array]:
    """What becomes of recorded samples, and what each spends of the limit.

    Sample by sample, as a session does: see `eecompile.runtime.single`.

    Args:
        policy: asked beside the limit.
        limit: with what segments take at most.
        steps: what they took.
        exits: outputs of all n samples, per exit.
        final: logits of the network's end, float32 (n, classes).
    """
    count, last = len(final), len(exits)
    found = Replay(
        np.full(count, last),
        np.array(final, np.float32),
        np.zeros((count, last), bool),
        np.zeros(count, bool),
    )
    spent = np.zeros(count)
    for row in range(count):
        spent[row] = _way(row, policy, limit, steps, exits, found)
    return found, spent


def _way(
    row: int,
    policy: ExitPolicy,
    limit: SpendingLimit,
    steps: GatedSteps,
    exits: Sequence[ExitOutputs],
    found: Replay,
) -> float:
    """What one sample spends; where it leaves is written to `found`."""
    last, spent, tries = len(exits), 0.0, False
    due, state, held, logits = policy.first(), policy.start(1), -1, found.logits[row]
    for index in range(last + 1):
        if tries:
            most = limit.limit - _cheapest_after(limit, index)
            spent, ran = steps.tried(row, index, spent, most)
            if not ran:
                found.exit[row], found.logits[row], found.halted[row] = held, logits, True
                return spent
        else:
            spent += steps.segment(row, index)
        if index == last:
            break
        wanted, affords = last, spent + limit.heads[index] <= limit.limit
        asks = index == due and affords
        if asks or (not can_go_on([limit], [spent], index) and (held < 0 or affords)):
            found.evaluated[row, index] = True
            outputs = exits[index].rows(slice(row, row + 1))
            held, logits = index, policy.answer(index, outputs)[0]
            spent += limit.heads[index]
            if asks:
                wanted = int(policy.decide(index, outputs, state)[0])
            if wanted == EXIT:
                found.exit[row], found.logits[row] = index, logits
                return spent
        tries = not can_go_on([limit], [spent], index)
        if index >= due:
            due = wanted
    return spent


def _cheapest_after(limit: SpendingLimit, index: int) -> float:
    """What an answer takes at most when segment `index` has run."""
    rest = SpendingLimit(0.0, (0.0, *limit.segments[index + 1 :]), limit.heads[index:])
    return cheapest_answer(rest)[1]
