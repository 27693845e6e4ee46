"""What was not measured, modelled from the board's file; the model held against measurements."""

from __future__ import annotations

from typing import Any

from eecompile.board import Board
from eecompile.compiled import CompiledGraph
from eecompile.cost_merging import merged
from eecompile.cost_model import model_table
from eecompile.cost_table import CostTable

__all__ = ["with_model"]


def with_model(
    network: CompiledGraph, board: Board, threads: int, target: str, measured: CostTable | None
) -> tuple[CostTable, dict[str, Any] | None]:
    """Every clock of the board: measured where it was, modelled elsewhere.

    The second is how far the model is from what was measured, as JSON; None where nothing is known
    both ways.
    """
    modelled = model_table(network, board, threads, target)
    if measured is None:
        return modelled, None
    found, error = merged(measured, modelled)
    return found, error.to_json() if error.pieces else None
