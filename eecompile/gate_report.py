"""What the gates of a network could save, in words and as JSON."""

from __future__ import annotations

from typing import Any

from eecompile.gates.plan import GatePlan

__all__ = ["gate_lines", "gates_json"]


def gates_json(plan: GatePlan) -> dict[str, Any]:
    """The gates in the order in which they run, and what their patterns matched in vain.

    Costs are multiply-accumulates of one sample: `block_macs` without the block, `group_macs`
    without one of the groups of channels, `macs` of the gate itself.
    """
    return {
        "macs": plan.macs,
        "gates": [
            {
                "name": gate.name,
                "kind": gate.kind.kind,
                "options": gate.kind.options,
                "reads": gate.feature,
                "block": gate.block and gate.block.name,
                "block_macs": gate.block_macs,
                "convolution": gate.place and gate.place.name,
                "groups": gate.groups,
                "group_macs": gate.group_macs,
                "macs": gate.macs,
            }
            for gate in plan.gates
        ],
        "passed_over": dict(plan.passed_over),
    }


def gate_lines(plan: GatePlan) -> list[str]:
    """What may be skipped, what the gates cost, and what is never skipped; nothing without gates.

    >>> gate_lines(GatePlan())
    []
    """
    if not plan.gates:
        return []
    blocks = [gate.block for gate in plan.gates if gate.block]
    places = [gate.place for gate in plan.gates if gate.place]
    parts = []
    if blocks:
        parts.append(_part(len(blocks), "block", sum(block.macs for block in blocks), plan))
    if places:
        parts.append(_part(len(places), "convolution", sum(place.macs for place in places), plan))
    share = _percent(plan.gates_macs, plan)
    lines = [f"gates for {' and '.join(parts)}; they themselves take {share}"]
    lines += [f"no gate for `{name}`: {reason}" for name, reason in plan.passed_over.items()]
    return lines


def _part(count: int, noun: str, macs: int, plan: GatePlan) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'} ({_percent(macs, plan)} of the MACs)"


def _percent(macs: int, plan: GatePlan) -> str:
    return f"{100 * macs / max(plan.macs, 1):.2g} %"
