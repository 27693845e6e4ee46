"""What a person reads about a policy that has a server finish samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.figures import percent

__all__ = ["offload_lines"]


def offload_lines(offload: Mapping[str, Any]) -> list[str]:
    r"""What is sent from each exit, and what the form it travels in costs in accuracy.

    >>> test = {"n": 500, "agreement": 0.998, "full_depth_accuracy": 0.93, "accuracy": 0.929}
    >>> row = {"exit": "early", "model": "net-early-0", "bytes": 2048, "test": test}
    >>> print("\n".join(offload_lines({"border": "int8", "tails": [row]})))
      sends 2,048 bytes from `early` (int8) to model `net-early-0`
        held out, all 500 sent: 99.80 % answers as with float32, accuracy 92.90 % (93.00 %)
    """
    lines = []
    for row in offload["tails"]:
        lines.append(
            f"  sends {row['bytes']:,} bytes from `{row['exit']}` ({offload['border']})"
            f" to model `{row['model']}`"
        )
        test = row["test"]
        if test is not None:
            lines.append(
                f"    held out, all {test['n']} sent: {percent(test['agreement'], 2)} answers as"
                f" with float32, accuracy {percent(test['accuracy'], 2)}"
                f" ({percent(test['full_depth_accuracy'], 2)})"
            )
    return lines
