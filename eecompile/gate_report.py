"""What the gates of a network could save, and what they do, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eecompile.figures import percent, readable, written

if TYPE_CHECKING:
    from eecompile.equivalence import GatedEquivalence
    from eecompile.gates.plan import GatePlan
    from eecompile.gating import Gating

__all__ = [
    "counts_line",
    "gate_lines",
    "gate_rows",
    "gates_in_words",
    "gates_json",
    "gating_json",
    "gating_lines",
    "kept_rows",
]


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

    >>> from eecompile.gates.plan import GatePlan
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
    share = 100 * macs / max(plan.macs, 1)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def gating_json(gating: Gating, compared: GatedEquivalence | None = None) -> dict[str, Any] | None:
    """What a build says of its gates, and keeps in the artifact; None without gates.

    `gates_json`, with whether all have their parameters (``ready``), how they were trained as their
    file tells, whether weights were trained with them, and ``deciding``: how far the compiled
    network is from the source with masks.
    """
    if not gating.plan.gates:
        return None
    deciding = compared and {
        "max_abs_error": compared.max_abs_error,
        "samples": compared.samples,
        "apart": compared.apart,
    }
    told = {"trained": dict(gating.trained), "tuned": gating.tuned, "deciding": deciding}
    return gates_json(gating.plan) | {"ready": not gating.unfitted} | told


def gating_lines(told: Mapping[str, Any]) -> list[str]:
    """What a person reads of a build's gates: `gating_json`'s value.

    Raises:
        KeyError, TypeError: it is none of this version's.
    """
    gates, full = told["gates"], max(told["macs"], 1)
    blocks = [gate["block_macs"] for gate in gates if gate["block"] is not None]
    parts = []
    if blocks:
        share = percent(sum(blocks) / full)
        parts.append(f"{_count(len(blocks), 'block')} ({share} of the multiply-accumulates)")
    places = [gate["groups"] for gate in gates if gate["convolution"] is not None]
    if places:
        parts.append(f"{sum(places)} groups of channels of {_count(len(places), 'convolution')}")
    own = percent(sum(gate["macs"] for gate in gates) / full, 3)
    lines = [f"gates: {' and '.join(parts)} may be left out; gates themselves take {own}"]
    lines.append(f"  {_how_made(told)}")
    deciding = told["deciding"]
    if deciding is not None:
        line = (
            f"  deciding, it differs from the source with masks by at most "
            f"{deciding['max_abs_error']:.2g} ({_count(deciding['samples'], 'sample')}"
        )
        apart = deciding["apart"]
        lines.append(f"{line}; {apart} decided otherwise by rounding)" if apart else f"{line})")
    return lines


def _how_made(told: Mapping[str, Any]) -> str:
    """How the gates came by their parameters.

    >>> given = {"ready": True, "tuned": False, "trained": {}}
    >>> _how_made({"gates": [{"kind": "fitted"}], **given})
    'fitted on the calibration data, without training'
    >>> found = {"accuracy": 0.9251, "mean_cost_fraction": 0.743}
    >>> trained = {"target": 0.75, "calibrate": found}
    >>> _how_made({"gates": [{"kind": "recurrent"}], **given, "trained": trained})
    'trained, weights as they were; to 75 %: accuracy 92.51 % at cost 74.3 % on `calibrate`'
    """
    kinds = {gate["kind"] for gate in told["gates"]}
    if not told["ready"]:
        return "fitted by a build" if kinds == {"fitted"} else "not trained yet"
    if kinds == {"fitted"}:
        return "fitted on the calibration data, without training"
    line = f"trained, {'weights with them' if told['tuned'] else 'weights as they were'}"
    if "fitted" in kinds:
        line = f"some fitted on the calibration data, others {line}"
    trained = told["trained"]
    found = trained.get("calibrate")
    if not isinstance(trained.get("target"), float) or not isinstance(found, Mapping):
        return line
    accuracy, cost = percent(found["accuracy"], 2), percent(found["mean_cost_fraction"])
    target = f"{trained['target'] * 100:g} %"
    return f"{line}; to {target}: accuracy {accuracy} at cost {cost} on `calibrate`"


def gates_in_words(shift: float) -> str:
    """What a policy makes of gates.

    >>> gates_in_words(0.0), gates_in_words(0.1234)
    ('gates as trained', 'gates alone, shift +0.12')
    """
    return f"gates alone, shift {shift:+.2f}" if shift else "gates as trained"


def counts_line(counts: Mapping[str, Any]) -> str:
    """What gates kept: a value of `eecompile.gate_counts.counts_json`.

    >>> blocks = [{"name": "a", "kept": 0.75}, {"name": "b", "kept": 1.0}]
    >>> counts_line({"blocks": blocks, "blocks_run": 1.75, "channels": []})
    'gates: 1.75 of 2 blocks run; least often `a` (75.0 %)'
    """
    parts, blocks = [], counts["blocks"]
    if blocks:
        seldom = sorted((b for b in blocks if b["kept"] < 1), key=lambda b: float(b["kept"]))
        named = ", ".join(f"`{b['name']}` ({percent(b['kept'])})" for b in seldom[:_NAMED])
        parts.append(f"{counts['blocks_run']:.2f} of {_count(len(blocks), 'block')} run")
        parts[-1] += f"; least often {named}" if named else ""
    known = [one["kept"] for one in counts["channels"] if one["kept"] is not None]
    if known:
        parts.append(f"{percent(sum(known) / len(known))} of the groups of channels are kept")
    return f"gates: {'; '.join(parts)}"


_NAMED = 3


def gate_rows(
    told: Mapping[str, Any], counts: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """A table of the gates: its head and its rows.

    Args:
        told: `gating_json`'s value.
        counts: policy -> what it keeps of held-out samples, see `counts_line`.
    """
    full = max(told["macs"], 1)
    head = ["gate", "kind", "leaves out", "of the MACs", "own cost"]
    head += [f"{policy} keeps" for policy in counts]
    kept = {
        (policy, sort, one["name"]): one["kept"]
        for policy, found in counts.items()
        for sort in ("blocks", "channels")
        for one in found[sort]
    }
    rows = []
    for gate in told["gates"]:
        sorts = {"blocks": gate["block"], "channels": gate["convolution"]}
        macs = {"blocks": gate["block_macs"], "channels": gate["groups"] * gate["group_macs"]}
        names = {"blocks": "block", "channels": _count(gate["groups"], "group")}
        for sort in (sort for sort, place in sorts.items() if place is not None):
            own = readable(gate["macs"], "MACs")
            row = [gate["name"], gate["kind"], names[sort], percent(macs[sort] / full), own]
            known = [kept.get((policy, sort, gate["name"])) for policy in counts]
            rows.append([*row, *(written(share, percent) for share in known)])
    return head, rows


def kept_rows(counts: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Blocks and convolutions with what was kept of each: see `counts_line`."""
    found = [*counts["blocks"], *counts["channels"]]
    return [(one["name"], written(one["kept"], percent)) for one in found]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
