"""Why the compiler placed exits where it did, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.console import table
from eecompile.figures import percent, written

__all__ = ["print_placing"]


def print_placing(placing: Mapping[str, Any]) -> None:
    """What was chosen from, what each exit chosen gains, and the best set of every size."""
    low, high = placing["count"]
    count = str(low) if low == high else f"{low} to {high}"
    free = sum(not row["written"] for row in placing["candidates"])
    how = "all sets judged" if placing["exhaustive"] else f"{placing['tried']} sets judged"
    print(f"\nexits chosen: {count} of {free}, by {placing['aim']}; {how}")
    table(
        ("candidate", "after", "backbone", "head", "accuracy", "chosen", "gain"),
        [_row(row, placing["less_is_better"]) for row in placing["candidates"]],
        left=2,
    )
    what = f"mean {placing['quantity']}" if placing["less_is_better"] else "accuracy"
    print()
    table(
        ("exits", what, "the best so many"),
        [
            (
                str(size["count"]) + (" *" if size["chosen"] else ""),
                percent(size["value"], 2),
                " ".join(size["exits"]),
            )
            for size in placing["sizes"]
        ],
        left=3,
    )


def _row(row: Mapping[str, Any], less: bool) -> tuple[str, ...]:
    why = "written" if row["written"] else "named" if row["named"] else "yes"
    unit = "%" if less else "points"
    return (
        row["name"],
        row["point"],
        percent(row["backbone_fraction"]),
        percent(row["head_fraction"], 2),
        percent(row["accuracy"], 2),
        why if row["chosen"] else "",
        written(row["gain"], lambda gain: f"{100 * gain:+.2f} {unit}"),
    )
