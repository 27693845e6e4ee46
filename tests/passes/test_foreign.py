"""Networks that others trained and exported, cut where it is proposed."""

from __future__ import annotations

import numpy as np
import pytest

from eecompile.exit_table import borders
from eecompile.passes.base import PassManager, Program
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.passes.propose_points import propose_points
from eecompile.reference import run_graph
from eecompile.spec import Exit, HeadSpec, Model
from tests.helpers import random_inputs, run_segments, shared_data

FOLDER = shared_data(module=True) / "onnx"

#: File -> how many tensors cross the borders behind its proposed points.
CASES = {
    "cifar100edge": [1, 1, 1, 1],
    "dtln_model_1": [4, 5],  # two inputs, two outputs, recurrent states beside the features
    "resnet20_onnc": [1, 1, 1, 1],
    "vnn_cifar10_resnet_2b": [1, 1, 1],
}


@pytest.mark.parametrize("name", CASES)
def test_segments_compute_what_the_file_computes(name: str) -> None:
    from eecompile.passes.onnx_host import load_onnx

    host = load_onnx(FOLDER / f"{name}.onnx")
    graph, answer = host.graph(), next(iter(host.outputs().values()))
    found = propose_points(graph, host.points(), answer, 4)
    exits = tuple(Exit(f"exit{i}", c.name, HeadSpec("linear")) for i, c in enumerate(found))
    program = Program(host, Model(name, "onnx", "", exits=exits))
    program = PassManager(backbone_pipeline()).run(program).graph
    assert program.segments is not None
    assert [len(border) for border in borders(program.segments)] == CASES[name]
    inputs = random_inputs(graph)
    whole = run_graph(graph, inputs)
    parts = run_segments(program.segments.graphs(), inputs)
    for output, value in program.network_outputs().items():
        np.testing.assert_array_equal(parts[output], whole[value])
