"""What gates kept of a network: blocks that ran, and channels, over some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph

__all__ = [
    "NO_GATES",
    "Decided",
    "counts_json",
    "decided_by_gates",
    "gate_name",
    "kept_in_record",
    "kept_when_run",
]

Array = np.ndarray[Any, Any]

#: What `counts_json` gives for a network without gates.
NO_GATES: Mapping[str, Any] = {"blocks": [], "blocks_run": None, "channels": []}


@dataclass(frozen=True, slots=True)
class Decided:
    """A block, or a convolution's channels, that a gate decides about.

    Attributes:
        name: the gate's.
        score: what it decides by.
        groups: of channels; 0 where it is a block.
        within: score of the block that the channels lie in, if that may be left out; else empty.
        segment: index of its segment.
        step: index among the steps of all segments, one after the other, of the first that runs
            only where the score says so.
    """

    name: str
    score: str
    groups: int
    within: str
    segment: int
    step: int


def decided_by_gates(network: CompiledGraph) -> tuple[Decided, ...]:
    """Blocks and channels that gates decide about, in execution order."""
    found: dict[str, Decided] = {}
    place = 0
    for index, segment in enumerate(network.segments):
        for step in segment.steps:
            if step.keep and not step.gate and step.keep not in found:
                found[step.keep] = Decided(gate_name(step.keep), step.keep, 0, "", index, place)
            if step.channels and step.channels not in found:
                name, groups = gate_name(step.channels), step.groups
                own = Decided(name, step.channels, groups, step.keep, index, place)
                found[step.channels] = own
            place += 1
    return tuple(found.values())


def gate_name(score: str) -> str:
    """Of the gate.

    >>> gate_name("layer1.0.keep"), gate_name("layer1.0.conv1.channels"), gate_name("own")
    ('layer1.0', 'layer1.0.conv1', 'own')
    """
    return score.rpartition(".")[0] or score


def kept_when_run(about: Sequence[Decided], kept: Array) -> dict[str, Any]:
    """What gates kept of samples that were run: see `counts_json`.

    Args:
        about: of the network.
        kept: int32 (n, steps of all segments): groups of channels that ran in each step, -1 where
            it did not run.
    """
    of_steps = kept[:, [one.step for one in about]]
    groups = np.array([max(one.groups, 1) for one in about])
    shares = np.where([bool(one.groups) for one in about], of_steps / groups, 1.0)
    return counts_json(about, of_steps >= 0, shares)


def kept_in_record(
    about: Sequence[Decided], shares: Mapping[str, Array], exit_: Array
) -> dict[str, Any]:
    """What gates keep of recorded samples that leave at these exits: see `counts_json`.

    Args:
        about: of the network.
        shares: as in `Record`.
        exit_: int64 (n,), where each sample leaves.
    """
    count = len(exit_)
    ran, kept = np.zeros((count, len(about)), bool), np.ones((count, len(about)))
    for column, one in enumerate(about):
        reached = exit_ >= one.segment
        if one.groups:
            ran[:, column] = reached & (not one.within or shares[one.within][:, 0] > 0)
            kept[:, column] = shares[one.score][:, 0]
        else:
            ran[:, column] = reached & (shares[one.score][:, 0] > 0)
    return counts_json(about, ran, kept)


def counts_json(about: Sequence[Decided], ran: Array, shares: Array) -> dict[str, Any]:
    """How many blocks ran and how often each did, and what was kept of channels.

    Args:
        about: what was decided about.
        ran: bool (n, decided): whether it was computed; not where a sample had left before.
        shares: (n, decided): of the groups of channels, those kept where it was.

    Returns:
        ``blocks``: each with the share of the samples it ran for, `kept`; ``blocks_run``: how many
        did in the mean, None without blocks; ``channels``: each with the share of its groups that
        was kept where the convolution ran, None where it never did.
    """
    blocks, channels = [], []
    for column, one in enumerate(about):
        if one.groups:
            own = shares[ran[:, column], column]
            kept = float(own.mean()) if len(own) else None
            channels.append({"name": one.name, "groups": one.groups, "kept": kept})
        else:
            blocks.append({"name": one.name, "kept": float(ran[:, column].mean())})
    whole = [not one.groups for one in about]
    total = float(ran[:, whole].sum(axis=1).mean()) if blocks else None
    return {"blocks": blocks, "blocks_run": total, "channels": channels}
