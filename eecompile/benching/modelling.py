"""What was not measured, modelled from the board's file; the model held against measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eecompile.board import Board
from eecompile.compiled import CompiledGraph
from eecompile.cost_model import merged, model_table
from eecompile.cost_table import CostTable

__all__ = ["with_model"]


def with_model(
    network: CompiledGraph, board: Board, threads: int, target: str, measured: CostTable | None
) -> tuple[CostTable, dict[str, Any] | None]:
    """Every clock of the board: measured where it was, modelled elsewhere.

    The second is how far the model is from what was measured, as JSON; None where nothing is known
    both ways.
    """
    cpus = {cluster.name: cluster.cpus for cluster in board.clusters if cluster.cpus}
    modelled = replace(model_table(network, board, threads, target), cpus=cpus)
    if measured is None:
        return modelled, None
    found, error = merged(measured, modelled)
    return found, error.to_json() if error.pieces else None
