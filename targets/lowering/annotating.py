"""Work and costs as attributes of the functions in TVM's IR, for whoever reads or rewrites it.

``eecompile.work`` and ``eecompile.cost`` hold JSON; code generation does not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx

from eecompile.board import Board
from eecompile.cost import Work
from eecompile.cost_model import function_costs
from eecompile.targets.lowering.library import CompiledFunction

__all__ = ["annotated"]


def annotated(
    entries: Mapping[str, tirx.PrimFunc],
    functions: Sequence[CompiledFunction],
    board: Board | None,
    threads: int,
) -> dict[str, tirx.PrimFunc]:
    """The functions with their work and, where there is a board, modelled costs at its clocks.

    Args:
        entries: by symbol.
        functions: what was compiled; together they are the network.
        board: whose clocks.
        threads: that share an answer.
    """
    whole = sum((function.work for function in functions), Work())
    found = {}
    for function in functions:
        entry = entries[function.symbol]
        entry = entry.with_attr("eecompile.work", json.dumps(function.work.to_json()))
        if board is not None:
            costs = json.dumps(_costs(function, whole, board, threads))
            entry = entry.with_attr("eecompile.cost", costs)
        found[function.symbol] = entry
    return found


def _costs(
    function: CompiledFunction, whole: Work, board: Board, threads: int
) -> list[dict[str, Any]]:
    costs = function_costs(function, whole, board, threads)
    return [
        {
            "cluster": state.cluster,
            "frequency_hz": state.frequency_hz,
            "latency_s": cost.latency_s,
            "energy_j": cost.energy_j,
            "provenance": cost.provenance,
        }
        for state, cost in zip(board.states, costs, strict=True)
        if cost is not None
    ]
