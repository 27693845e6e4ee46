"""What several verbs print: the object of ``--json``, and the table of exits."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eecompile.console import table
from eecompile.figures import percent, written

__all__ = ["print_exits", "print_exits_taken", "print_json"]


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
