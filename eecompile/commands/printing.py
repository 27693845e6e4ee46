"""What several verbs print: the object of ``--json``, and the table of exits."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eecompile.console import table
from eecompile.figures import percent, written

if TYPE_CHECKING:
    from eecompile.runtime.session import Session

__all__ = [
    "is_gated",
    "print_exits",
    "print_exits_taken",
    "print_gates",
    "print_json",
    "print_what_is_known",
    "what_is_known",
]


def print_json(options: argparse.Namespace, value: Any) -> None:
    """Print the one object of ``--json``; standard output is redirected meanwhile."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    print(text, file=options.output_stream)


def _finite(value: Any) -> Any:
    """The value with null for what is no number: JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_exits(rows: Sequence[Mapping[str, Any]]) -> None:
    """Exits with their heads, and the share of the network's work done when each is reached."""
    table(
        ("exit", "after", "head", "tensor", "backbone", "with heads"),
        [
            (
                row["name"],
                row["point"],
                row["head"],
                row["feature"],
                percent(row["backbone_fraction"]),
                percent(row["macs_fraction"], 2),
            )
            for row in rows
        ],
        left=4,
    )


def print_exits_taken(rows: Sequence[Mapping[str, Any]]) -> None:
    """The share of the samples that left at each exit, and how many of those were right."""
    table(
        ("exit", "samples", "accuracy"),
        [
            (
                row["name"],
                percent(row["fraction"]),
                written(row["accuracy"], lambda share: percent(share, 2)),
            )
            for row in rows
        ],
    )


def is_gated(found: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of a network with gates."""
    return bool(found["blocks"] or found["channels"])


def print_gates(found: Mapping[str, Any]) -> None:
    """How many blocks ran, how often each, and what was kept of channels."""
    from eecompile.gate_report import counts_line, kept_rows

    print(f"\n{counts_line(found)}")
    table(("gate", "kept"), kept_rows(found))


def what_is_known(session: Session) -> dict[str, Any]:
    """What became of samples for a server, and what a guard knows: None where there is neither."""
    guard = session.guard
    return {
        "offload": session.offload_counts or None,
        "offload_failure": session.offload_failure,
        "guard": guard and guard.to_json(),
    }


def print_what_is_known(found: Mapping[str, Any]) -> None:
    """The same for people; nothing where there is nothing."""
    if found["offload"]:
        counts = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in found["offload"].items())
        print(f"\nserver: {counts}")
        if found["offload_failure"]:
            print(f"its last failure: {found['offload_failure'].splitlines()[0]}")
    guard = found["guard"]
    if guard is None:
        return
    setting = f"setting {guard['setting'] + 1} of {guard['settings']}"
    if guard["setting"] == guard["settings"]:
        setting = "nothing leaves early"
    low, high = (percent(guard[f"differing_at_{end}"], 2) for end in ("least", "most"))
    print(
        f"\nguard: {guard['differing']} of {guard['audits']} audits differed from full depth, "
        f"at most {percent(guard['drop'], 2)} may; {setting} ({low} to {high} differ there), "
        f"tightened {guard['tightened']} and loosened {guard['loosened']} times, "
        f"drift {guard['drift']:.2f}"
    )
    table(
        ("exit", "taken", "audited", "agreed", "at least", "confidence"),
        [
            (
                *(row["name"], str(row["taken"]), str(row["audited"]), str(row["agreed"])),
                percent(row["agreement_at_least"], 2),
                written(row["confidence"], "{:.3f}".format),
            )
            for row in guard["exits"]
        ],
    )
