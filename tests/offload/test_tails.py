"""Tails are the network's rest: every exit, every form, whatever crosses the border."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.ir import Graph
from eecompile.offload_rule import WireTensor
from eecompile.passes.base import PassManager
from eecompile.passes.onnx_emit import Unexpressible
from eecompile.passes.onnx_tails import OUTPUT, TailModel, border_values, tail_graph
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.runtime.offload.wire import as_sent, as_taken
from eecompile.segments import SegmentGraph
from eecompile.server_folder import folder_files, server_folder, write_server_folder
from tests.helpers import program_of, run_segments
from tests.offload import networks

#: Two tensors cross the first border, one of them the network's input; a third is of whole numbers.
MASKED = """
graph masked(x: float32[1, 4, 6], mask: int64[1, 6]) -> (y: float32[1, 3]) {
    const w: float32[4, 4] = random(0)
    const v: float32[4, 3] = random(1)
    const one: int64[1] = [1]
    a: float32[1, 6, 4] = Transpose(x; perm=(0, 2, 1))
    b: float32[1, 6, 4] = MatMul(a, w)
    tap: float32[1, 6, 4] = Relu(b)
    shifted: int64[1, 6] = Add(mask, one)
    weights: float32[1, 6] = Cast(shifted; to="float32")
    column: float32[1, 6, 1] = Reshape(weights; shape=(1, 6, 1))
    c: float32[1, 6, 4] = Mul(tap, column)
    d: float32[1, 6, 4] = Gelu(c; approximate="tanh")
    e: float32[1, 6, 4] = Add(d, a)
    later: float32[1, 4] = ReduceMean(e; axes=(1,), keepdims=0)
    y: float32[1, 3] = MatMul(later, v)
}
"""


def _cut(text: str, points: dict[str, str], output: str) -> SegmentGraph:
    program = program_of(text, points, output, 3)
    found = PassManager(backbone_pipeline()).run(program).graph.segments
    assert found is not None
    return found


def _wire(graph: Graph, border: str = "float32", scale: float = 0.0) -> list[WireTensor]:
    found = []
    for number, name in enumerate(graph.inputs):
        type_ = graph.types[name]
        plain = type_.dtype != "float32" or border == "float32"
        dtype = type_.dtype if plain else border
        step = scale if dtype == "int8" else 0.0
        found.append(WireTensor(name, f"border{number}", type_.shape, dtype, step))
    return found


def _answer(model: TailModel, wire: list[WireTensor], values: Any) -> np.ndarray:
    return model.runner().run({t.name: as_sent(t, values[t.value]) for t in wire})[OUTPUT]


@pytest.mark.parametrize("index", range(3))
def test_a_tail_answers_what_the_network_answers(index: int) -> None:
    net = networks.segments()
    graph = tail_graph(net, index)
    wire = _wire(graph)
    model = TailModel.of(graph, wire)
    for seed in range(3):
        found = _answer(model, wire, networks.values(seed))
        np.testing.assert_allclose(found, networks.logits(seed), atol=1e-4)


def test_everything_that_later_segments_read_crosses_the_border() -> None:
    net = _cut(MASKED, {"first": "tap", "second": "later"}, "y")
    names = [border_values(net, index) for index in range(2)]
    types = tail_graph(net, 0).types
    assert [str(types[name]) for name in names[0]] == [
        "int64[1, 6]",
        "float32[1, 6, 4]",
        "float32[1, 6, 4]",
    ]
    assert names[1] == ("second",)
    inputs = {
        "x": np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32),
        "mask": np.array([[0, 1, 1, 0, 1, 0]]),
    }
    values = run_segments([segment.graph for segment in net.segments], inputs)
    for index in range(2):
        graph = tail_graph(net, index)
        for border, far in (("float32", 1e-5), ("float16", 1e-2), ("int8", 0.3)):
            wire = _wire(graph, border, scale=0.05)
            assert {t.dtype for t in wire if t.value == "mask"} <= {"int64"}
            found = _answer(TailModel.of(graph, wire), wire, values)
            np.testing.assert_allclose(found, values["y"], atol=far)
            # The form is all that changes anything.
            taken = {t.value: as_taken(t, as_sent(t, values[t.value])) for t in wire}
            rest = run_segments([s.graph for s in net.segments[index + 1 :]], taken)
            np.testing.assert_allclose(found, rest["y"], atol=1e-5)


def test_models_are_valid_and_the_same_each_time() -> None:
    graph = tail_graph(networks.segments(), 1)
    one, other = (TailModel.of(graph, _wire(graph)) for _ in range(2))
    assert one == other
    model = onnx.load_model_from_string(one.content)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["border0"]
    assert [value.name for value in model.graph.output] == [OUTPUT]
    # What the oldest servers in use read: ONNX 1.12 (2022) has these.
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)


def test_another_network_has_another_digest() -> None:
    graph = tail_graph(networks.segments(), 2)
    name = max(graph.constants, key=lambda n: graph.constants[n].size)
    changed = np.array(graph.constants[name])
    changed.flat[0] += 1e-3
    other = Graph(
        graph.name,
        graph.inputs,
        graph.outputs,
        graph.ops,
        {**graph.constants, name: changed},
        graph.types,
    )
    forms = [TailModel.of(g, _wire(g)).digest for g in (graph, other)]
    forms += [TailModel.of(graph, _wire(graph, border, 0.1)).digest for border in ("float16",)]
    forms += [TailModel.of(graph, _wire(graph, "int8", scale)).digest for scale in (0.1, 0.2)]
    assert len(set(forms)) == 5


def test_a_later_operator_set_is_taken_where_it_is_needed() -> None:
    net = _cut(MASKED, {"first": "tap"}, "y")
    graph = tail_graph(net, 0)
    model = onnx.load_model_from_string(TailModel.of(graph, _wire(graph)).content)
    assert model.opset_import[0].version == 20  # Gelu's


def test_a_network_that_ends_at_the_exit_has_no_tail() -> None:
    graph = tail_graph(networks.segments(), 0)
    nothing = Graph("nothing", graph.inputs, graph.inputs, (), {}, graph.types)
    with pytest.raises(Unexpressible, match="is there before the tail runs"):
        TailModel.of(nothing, _wire(nothing))


def test_the_folder_is_what_triton_and_mlserver_load() -> None:
    models = {tail.model: (tail, content) for tail, content in networks.tails("int8").values()}
    files = folder_files("digits", models)
    name, (tail, content) = next(iter(models.items()))
    assert files[f"{name}/1/model.onnx"] == content
    assert files[f"{name}/config.pbtxt"].decode() == (
        f'name: "{name}"\n'
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 0\n"
        'input [\n  { name: "border0" data_type: TYPE_INT8 dims: [ 1, 32, 8, 8 ] }\n]\n'
        'output [\n  { name: "logits" data_type: TYPE_FP32 dims: [ 1, 10 ] }\n]\n'
    )
    readme = files["README.txt"].decode()
    assert "mlserver start ." in readme and "tritonserver --model-repository" in readme
    assert all(model in readme for model in models)
    assert not [line for line in readme.splitlines() if len(line) > 100]
    compile(files[f"{name}/onnx_tail.py"], "onnx_tail.py", "exec")
    assert tail.exit == "early"


def test_a_folder_takes_only_its_own_kinds_place(tmp_path: Any) -> None:
    folder = server_folder(tmp_path / "net.artifact")
    first, second = (
        {tail.model: (tail, content) for tail, content in networks.tails(border).values()}
        for border in ("float32", "float16")
    )
    write_server_folder(folder, "digits", first)
    write_server_folder(folder, "digits", second)
    models = {path.parent.name for path in folder.glob("*/config.pbtxt")}
    assert models == set(second)
    (folder / "notes.txt").write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(CompileErrors, match="is a folder with other things in it"):
        write_server_folder(folder, "digits", first)
    assert sorted(folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [folder]
