"""Work and costs stand on the functions of TVM's IR, and change no byte of the code."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tvm")
from eecompile.board import Board, Cluster, DvfsState
from eecompile.cost import Work
from eecompile.cost_model import function_costs
from eecompile.hardware import machine
from eecompile.targets.lowering import annotating, compile_functions
from tests.lowering.cases import conv, matmul, renamed

ARM = machine("arm-cpu")
STATES = (DvfsState("cpu", 1e9, 1.0), DvfsState("cpu", 2e9))
BOARD = Board("b", ARM, (Cluster("cpu", "", (0,), STATES, capacitance_f=1e-10),), 1e9)


def test_attributes_hold_work_and_the_boards_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [conv(8, 8, 8, 3), renamed(matmul(4, 16, 16), "second")]
    plain = [name for graph in graphs for name in (*graph.inputs, *graph.outputs)]
    made = []
    annotated = annotating.annotated

    def keep(*arguments: object) -> object:
        made.append(annotated(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("eecompile.targets.lowering.compile.annotated", keep)
    texts: list[str] = []
    with_board = compile_functions(graphs, ARM, plain=plain, board=BOARD, tell_ir=texts.append)
    without = compile_functions(graphs, ARM, plain=plain)
    assert with_board.library == without.library
    whole = sum((function.work for function in with_board.functions), Work())
    for function in with_board.functions:
        attributes = made[0][function.symbol].attrs
        assert json.loads(attributes["eecompile.work"]) == function.work.to_json()
        costs = function_costs(function, whole, BOARD, 1)
        told = json.loads(attributes["eecompile.cost"])
        assert [c["latency_s"] for c in told] == [cost.latency_s for cost in costs if cost]
        assert [c["energy_j"] for c in told] == [cost.energy_j for cost in costs if cost]
        assert [c["frequency_hz"] for c in told] == [1e9, 2e9]
        assert told[0]["energy_j"] is not None and told[1]["energy_j"] is None
        assert "eecompile.cost" not in made[1][function.symbol].attrs
    assert texts[0].count("eecompile.work") == texts[0].count("eecompile.cost") == 2
