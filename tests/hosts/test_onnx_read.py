"""Reading ONNX files: what is wrong with a file is told, nothing else is read, nothing crashes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from eecompile.diagnostics import DIAGNOSTICS
from eecompile.ir import TensorType
from eecompile.passes.host import HostError, Problem
from eecompile.passes.onnx_host import OnnxHost, load_onnx
from eecompile.reference import run_graph

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 4] x) => (float[batch, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
{
    m = MatMul (x, w)
    y = Relu (m)
}
"""

X = TensorType("float32", (1, 4))


def written(tmp_path: Path, text: str = NETWORK) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(text), path)
    return path


def problems(path: Path, inputs: dict[str, TensorType] | None = None) -> tuple[Problem, ...]:
    with pytest.raises(HostError) as raised:
        load_onnx(path, inputs)
    assert {problem.kind for problem in raised.value.problems} <= DIAGNOSTICS.keys()
    return raised.value.problems


def loaded(text: str, tmp_path: Path, inputs: dict[str, TensorType] | None = None) -> OnnxHost:
    return load_onnx(written(tmp_path, text), inputs)


# -- files -------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "no.onnx")
    assert (problem.kind, problem.message) == (
        "missing-file",
        f"There is no file `{tmp_path / 'no.onnx'}`",
    )


def test_folder_and_foreign_file(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path)
    assert problem.kind == "unreadable-model" and "is a directory" in problem.message
    (tmp_path / "a.onnx").write_text("<html>not found</html>")
    (problem,) = problems(tmp_path / "a.onnx")
    assert "is no ONNX file, or a truncated one" in problem.message
    (tmp_path / "a.onnx").write_bytes(b"")
    (problem,) = problems(tmp_path / "a.onnx")
    assert "holds no network" in problem.message


def test_damaged_files_are_refused_or_still_valid(tmp_path: Path) -> None:
    content = written(tmp_path).read_bytes()
    damaged, rng = tmp_path / "damaged.onnx", random.Random(7)
    refused = 0
    for round_ in range(400):
        changed = bytearray(content)
        if round_ % 3 == 0:
            del changed[rng.randrange(len(changed)) :]
        else:
            for _ in range(1 + round_ % 5):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        damaged.write_bytes(bytes(changed))
        try:
            load_onnx(damaged, {"x": X})
        except HostError as error:
            assert all(problem.message for problem in error.problems)
            refused += 1
    assert refused > 200


def test_invalid_model_says_what_onnx_says(tmp_path: Path) -> None:
    path = written(tmp_path, NETWORK.replace("Relu (m)", "Relu (nothing)"))
    (problem,) = problems(path, {"x": X})
    assert problem.kind == "unreadable-model"
    assert "is no valid ONNX model: " in problem.message and "nothing" in problem.message


@pytest.mark.parametrize("opset", [6, 99])
def test_operator_set_out_of_range(tmp_path: Path, opset: int) -> None:
    path = written(tmp_path, NETWORK.replace(": 17", f": {opset}"))
    (problem,) = problems(path, {"x": X})
    assert problem.message.startswith(f"Operator set {opset} is not supported; 7 to ")


# -- external data -----------------------------------------------------------------------------


def with_external(tmp_path: Path, location: str, offset: int = 0, length: int = 32) -> Path:
    path = written(tmp_path)
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    weights.ClearField("float_data")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    for key, value in entries.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_are_read(tmp_path: Path) -> None:
    path = with_external(tmp_path, "w.bin", offset=4)
    (tmp_path / "w.bin").write_bytes(b"head" + np.arange(8, dtype=np.float32).tobytes())
    graph = load_onnx(path, {"x": X}).graph()
    np.testing.assert_array_equal(graph.constants["w"].ravel(), np.arange(8))


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "link.bin", ""])
def test_external_data_elsewhere_are_not_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (problem,) = problems(with_external(folder, location), {"x": X})
    assert "lie outside the model's folder" in problem.message


def test_external_data_at_an_absolute_path_are_not_read(tmp_path: Path) -> None:
    (problem,) = problems(with_external(tmp_path, "/etc/hostname"), {"x": X})
    assert "lie outside the model's folder" in problem.message


def test_missing_or_short_external_data(tmp_path: Path) -> None:
    path = with_external(tmp_path, "w.bin")
    (problem,) = problems(path, {"x": X})
    assert problem.message == "The external data of `w` are missing: there is no `w.bin`"
    (tmp_path / "w.bin").write_bytes(bytes(31))
    (problem,) = problems(path, {"x": X})
    assert problem.message == "The external data of `w` reach past the end of `w.bin`"


# -- inputs ------------------------------------------------------------------------------------


def test_dynamic_dimension_is_fixed_by_name_or_place(tmp_path: Path) -> None:
    path = written(tmp_path)
    for name in ("x", "image"):
        graph = load_onnx(path, {name: X}).graph()
        assert graph.types["x"] == X and graph.types["y"].shape == (1, 2)


def test_fixed_dimensions_stand_in_the_saved_file(tmp_path: Path) -> None:
    host = load_onnx(written(tmp_path), {"x": X})
    host.save(tmp_path / "fixed.onnx")
    saved = onnx.load(tmp_path / "fixed.onnx").graph
    for value, shape in ((saved.input[0], [1, 4]), (saved.output[0], [1, 2])):
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == shape


@pytest.mark.parametrize(
    ("inputs", "kind", "told"),
    [
        (
            None,
            "missing-input",
            "Dimension 0 (`batch`) of input `x` is not fixed: float32[batch, 4]",
        ),
        (
            {"x": TensorType("float32", (1, 5))},
            "wrong-shape",
            "Expected input `x` to be float32[batch, 4], found float32[1, 5]",
        ),
        (
            {"x": TensorType("float32", (1, 1, 4))},
            "wrong-shape",
            "Expected input `x` to be float32[batch, 4], found float32[1, 1, 4]",
        ),
        (
            {"x": TensorType("int64", (1, 4))},
            "wrong-dtype",
            "Expected input `x` to be float32[batch, 4], found int64[1, 4]",
        ),
        ({"x": X, "z": X}, "unknown-input", "The network has no input `z`"),
    ],
)
def test_input_that_does_not_fit(
    tmp_path: Path, inputs: dict[str, TensorType] | None, kind: str, told: str
) -> None:
    (problem,) = problems(written(tmp_path), inputs)
    assert (problem.kind, problem.message) == (kind, told)


# -- operators ---------------------------------------------------------------------------------


def test_all_unsupported_operators_are_told_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[4] x) => (float[2] y, int64[n] u)
        <int64[1] k = {2}>
        {
            [a] s = Det (x)
            [b] t, i = TopK (x, k)
            [c] y = Relu (t)
            [d] u, p, q, r = Unique (x)
        }
        """.replace("[a] s = Det (x)", "[a] s = NonZero (x)"),
    )
    found = [(problem.node, problem.operator) for problem in problems(path)]
    assert found == [("a", "NonZero"), ("b", "TopK"), ("d", "Unique")]


def test_custom_domain_is_refused_by_node_and_operator(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        <ir_version: 8, opset_import: ["" : 17, "acme.ops" : 1]>
        net (float[4] x) => (float[4] y)
        { [mine] y = acme.ops.Quant (x) }
        """,
    )
    (problem,) = problems(path)
    assert (problem.node, problem.operator) == ("mine", "acme.ops::Quant")
    assert problem.help == "export the network with standard ONNX operators only"


def test_local_function_is_inlined(tmp_path: Path) -> None:
    host = loaded(
        """
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        net (float[4] x) => (float[4] y)
        { y = acme.Twice (x) }
        <domain: "acme", opset_import: ["" : 17]>
        Twice (a) => (b) { b = Add (a, a) }
        """,
        tmp_path,
    )
    assert [op.kind for op in host.graph().ops] == ["Add"]


def test_shape_arithmetic_vanishes(tmp_path: Path) -> None:
    host = loaded(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[batch, 2, 3] x) => (float[n, m] y)
        <int64 zero = {0}, int64[1] axes = {0}, int64[1] rest = {-1}>
        {
            s = Shape (x)
            n = Gather (s, zero)
            u = Unsqueeze (n, axes)
            t = Concat <axis = 0> (u, rest)
            y = Reshape (x, t)
        }
        """,
        tmp_path,
        {"x": TensorType("float32", (1, 2, 3))},
    )
    (op,) = host.graph().ops
    assert (op.kind, op.attributes["shape"]) == ("Reshape", (1, 6))
    assert host.graph().constants == {}


def test_branch_with_a_known_condition_is_inlined(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["x"], ["inner"], "same_name")
        again = helper.make_node("Neg", ["inner"], ["result"], "other")
        value = helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [4])
        return helper.make_graph([node, again], name, [], [value])

    def choose(output: str, condition: str) -> onnx.NodeProto:
        branches = {"then_branch": branch("then", "Exp"), "else_branch": branch("else", "Abs")}
        return helper.make_node("If", [condition], [output], f"choose_{output}", **branches)

    nodes = [
        choose("a", "yes"),
        choose("b", "no"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    types = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy"]
    conditions = [
        numpy_helper.from_array(np.array(v), n) for n, v in (("yes", True), ("no", False))
    ]
    graph = helper.make_graph(nodes, "net", types[:1], types[1:], conditions)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "if.onnx")
    host = load_onnx(tmp_path / "if.onnx")
    kinds = [op.kind for op in host.graph().ops]
    assert kinds == ["Exp", "Neg", "Abs", "Neg", "Add"]
    assert len({op.name for op in host.graph().ops}) == 5
    x = np.array([-1, 0, 1, 2], np.float32)
    (y,) = run_graph(host.graph(), {"x": x}).values()
    np.testing.assert_allclose(y, -np.exp(x) - np.abs(x), rtol=1e-6)


def test_data_dependent_branch_is_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (bool c, float[4] x) => (float[4] y)
    {
        [choice] y = If (c) <
            then_branch = then () => (float[4] a) { a = Exp (x) },
            else_branch = other () => (float[4] b) { b = Abs (x) }
        >
    }
    """
    (problem,) = problems(written(tmp_path, text))
    assert problem.message == (
        "Operator `If` of node `choice` is not supported: "
        "its condition must not depend on the network's input"
    )


def test_huge_constant_is_refused_not_computed(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[4] x) => (float[n] y)
    <int64[2] many = {4000000, 4000000}>
    {
        [bomb] c = ConstantOfShape (many)
        y = Add (x, c)
    }
    """
    (problem,) = problems(written(tmp_path, text))
    assert problem.node == "bomb" and "a constant of 16000000000000 elements" in problem.message


def test_unnamed_nodes_are_named_after_their_result(tmp_path: Path) -> None:
    host = load_onnx(written(tmp_path), {"x": X})
    assert [op.name for op in host.graph().ops] == ["MatMul_m", "Relu_y"]
    assert host.points()["MatMul_m"].value == "m"


def test_reading_leaves_no_files(tmp_path: Path) -> None:
    path = written(tmp_path)
    load_onnx(path, {"x": X})
    assert os.listdir(tmp_path) == ["net.onnx"]
