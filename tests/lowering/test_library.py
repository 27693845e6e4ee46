"""What a compiled library is: plain symbols, shared kernels, agreed layouts, equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.diagnostics import ToolError
from eecompile.hardware import machine
from eecompile.ir import Graph, Op, TensorType
from eecompile.reference import run_graph
from eecompile.targets.lowering import compile_functions, find_linkers
from eecompile.targets.lowering.aot import entry_functions
from eecompile.targets.lowering.link import link_kernels
from eecompile.targets.native import PRIVATE, PUBLIC
from eecompile.text import parse_graph
from tests.lowering.calling import Loaded, compile_plain, inputs_of, worst_error

BLOCKS = 3


def backbone(blocks: int = BLOCKS) -> Graph:
    """A small residual network."""
    lines = [
        "const w0: float32[16, 3, 3, 3] = random(0)",
        "c0: float32[1, 16, 10, 10] = Conv(x, w0; strides=(1,1), pads=(1,1,1,1),"
        " dilations=(1,1), group=1)",
    ]
    last = "c0"
    for i in range(1, blocks + 1):
        lines += [
            f"const w{i}: float32[16, 16, 3, 3] = random({i})",
            f"c{i}: float32[1, 16, 10, 10] = Conv({last}, w{i}; strides=(1,1), pads=(1,1,1,1),"
            " dilations=(1,1), group=1)",
            f"s{i}: float32[1, 16, 10, 10] = Add(c{i}, {last})",
            f"r{i}: float32[1, 16, 10, 10] = Relu(s{i})",
        ]
        last = f"r{i}"
    lines += [
        f"m: float32[1, 16] = ReduceMean({last}; axes=(2,3), keepdims=0)",
        "const v: float32[16, 10] = random(99)",
        "y: float32[1, 10] = MatMul(m, v)",
    ]
    body = "\n".join(lines)
    return parse_graph(f"graph net(x: float32[1, 3, 10, 10]) -> (y: float32[1, 10]) {{\n{body}\n}}")


def halves(graph: Graph, border: str) -> list[Graph]:
    """The graph before and after a value."""
    first = replace(graph.pruned([border]), name="first")
    at = next(i for i, op in enumerate(graph.ops) if border in op.outputs)
    second = replace(graph, name="second", inputs=(border,), ops=graph.ops[at + 1 :])
    return [first, second.pruned()]


def test_two_halves_agree_on_the_layout_of_what_crosses() -> None:
    graph = backbone()
    # The consumer comes first: the order of the graphs must not matter.
    compiled = compile_functions(halves(graph, "r2")[::-1], machine("host"), plain=["x", "y"])
    second, first = compiled.functions
    assert first.layouts["r2"] == second.layouts["r2"] == "channels-last"
    assert first.layouts["x"] == second.layouts["y"] == "source"
    loaded, inputs = Loaded(compiled), inputs_of(graph)
    middle = loaded(first.symbol, [inputs["x"]])
    (found,) = loaded(second.symbol, middle)
    np.testing.assert_allclose(found[0], run_graph(graph, inputs)["y"], rtol=1e-4, atol=1e-5)


def test_all_graphs_that_make_a_value_lay_it_out_alike() -> None:
    # One reads it with a convolution, which wants channels last; the other does not.
    graph = parse_graph(
        """graph net(x: float32[1, 4, 6, 6]) -> (y: float32[1, 8, 6, 6], r: float32[1, 4, 6, 6]) {
            const w: float32[8, 4, 3, 3] = random(0)
            r: float32[1, 4, 6, 6] = Relu(x)
            y: float32[1, 8, 6, 6] = Conv(r, w; strides=(1,1), pads=(1,1,1,1), dilations=(1,1),
                group=1)
        }"""
    )
    alone = replace(graph, name="alone", outputs=("r",)).pruned()
    for graphs in ([graph, alone], [alone, graph]):
        one, other = compile_functions(graphs, machine("host"), plain=["x", "y"]).functions
        assert one.layouts["r"] == other.layouts["r"]


def test_plain_values_have_the_sources_layout() -> None:
    graph = backbone()
    compiled = compile_functions(halves(graph, "r2"), machine("host"), plain=["x", "r2", "y"])
    first, second = compiled.functions
    assert first.layouts["r2"] == second.layouts["r2"] == "source"
    inputs = inputs_of(graph)
    (found,) = Loaded(compiled)(first.symbol, [inputs["x"]])
    expected = run_graph(graph.pruned(["r2"]), inputs)["r2"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_many_samples_in_one_call_equal_one_by_one() -> None:
    graph = backbone()
    compiled = compile_functions([graph], machine("host"), plain=["x", "y"])
    loaded, symbol = Loaded(compiled), compiled.functions[0].symbol
    x = np.random.default_rng(5).standard_normal((4, 1, 3, 10, 10)).astype("float32")
    (together,) = loaded(symbol, [x], n=4)
    alone = [loaded(symbol, [sample])[0][0] for sample in x]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_no_samples_write_nothing() -> None:
    compiled = compile_functions([backbone()], machine("host"), plain=["x", "y"])
    x = np.zeros((0, 1, 3, 10, 10), np.float32)
    (found,) = Loaded(compiled)(compiled.functions[0].symbol, [x], n=0)
    assert found.shape == (0, 1, 10)


def test_a_kernel_is_emitted_once_for_each_shape_whatever_the_depth() -> None:
    def symbols(blocks: int) -> Counter[str]:
        compiled = compile_functions([backbone(blocks)], machine("host"), plain=["x", "y"])
        return Counter(use.symbol for use in compiled.functions[0].kernels)

    shallow, deep = symbols(2), symbols(6)
    assert set(shallow) == set(deep)
    assert sum(deep.values()) == sum(shallow.values()) + 4
    assert max(deep.values()) == 6


def test_equal_weights_are_stored_once() -> None:
    graph = backbone()
    once = compile_functions([graph], machine("host"), plain=["x", "y"])
    twice = compile_functions(
        [graph, replace(graph, name="other")], machine("host"), plain=["x", "y"]
    )
    assert twice.weights.nbytes == once.weights.nbytes


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_library_needs_nothing_but_libc_and_exports_its_functions_only(tmp_path: Path) -> None:
    compiled = compile_functions(halves(backbone(), "r1"), machine("host"), plain=["x", "y"])
    path = tmp_path / "kernels.so"
    path.write_bytes(compiled.library)
    listed = subprocess.run(
        ["nm", "-D", str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    defined = {line.split()[-1] for line in listed if line.split()[-2] in "TDBR"}
    needed = {line.split()[-1] for line in listed if line.split()[-2] == "U"}
    private = {*PRIVATE, *(function.symbol for function in compiled.functions)}
    assert defined == {
        *(f"{name}@@EECOMPILE_1" for name in (*PUBLIC, "ee_library_network")),
        *(f"{name}@@EECOMPILE_PRIVATE" for name in private),
    }
    assert "ee_run" in PUBLIC
    assert [name for name in needed if "@GLIBC_" not in name] == []


def test_a_function_of_many_phases_calls_them_in_parts() -> None:
    """More phases than one part holds, an entry of parts, and several samples in it."""
    graph = backbone(blocks=40)
    compiled = compile_functions([graph], machine("host"), plain=["x", "y"])
    (function,) = compiled.functions
    calls = [use.call for use in function.kernels]
    parts = entry_functions("eec_net", calls, 1, 1, 0, 0)
    assert list(parts) == ["part0_of_eec_net", "part1_of_eec_net", "eec_net"]
    x = np.random.default_rng(6).standard_normal((2, 1, 3, 10, 10)).astype(np.float32)
    (found,) = Loaded(compiled)(function.symbol, [x], n=2)
    for sample, answer in zip(x, found, strict=True):
        expected = run_graph(graph, {"x": sample})["y"]
        assert np.abs(answer - expected).max() < 1e-4 * np.abs(expected).max()


def test_an_output_that_is_named_twice_is_written_twice() -> None:
    type_ = TensorType("float32", (1, 3, 4, 4))
    relu = Op("relu", "Relu", ("x",), ("y",))
    graph = Graph("twice", ("x",), ("y", "y"), (relu,), {}, {"x": type_, "y": type_})
    compiled = compile_functions([graph], machine("host"), plain=["x", "y"])
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    for found in Loaded(compiled)(compiled.functions[0].symbol, [x]):
        np.testing.assert_array_equal(found[0], np.maximum(x, 0))


def test_compiling_twice_gives_the_same_bytes() -> None:
    first, second = (
        compile_functions(halves(backbone(), "r1"), machine("host"), plain=["x", "y"])
        for _ in range(2)
    )
    assert first.library == second.library
    assert first.weights.tobytes() == second.weights.tobytes()


def test_macs_are_the_sources_and_each_kernel_tells_its_own() -> None:
    graph = backbone()
    (function,) = compile_functions([graph], machine("host"), plain=["x", "y"]).functions
    expected = 100 * 16 * 9 * (3 + 16 * BLOCKS) + 160
    assert function.macs == expected
    assert sum(use.macs for use in function.kernels) == expected


def test_a_linker_that_fails_is_the_environments_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho cannot find crt >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ToolError, match="The linker `cc` failed: cannot find crt"):
        link_kernels([b""], ["f"], machine("host"))


def test_a_linker_is_found_for_this_machine() -> None:
    assert find_linkers(machine("host"))


#: Borders where nothing is computed, and dimensions that are not the usual.
ODD = {
    "an input passed on": """graph odd(x: float32[1, 4]) -> (x: float32[1, 4], y: float32[1, 4]) {
        y: float32[1, 4] = Relu(x)
    }""",
    "an output that reshapes another": """graph odd(x: float32[1, 8]) -> (
        y: float32[1, 8], z: float32[2, 4]) {
        y: float32[1, 8] = Relu(x)
        z: float32[2, 4] = Reshape(y; shape=(2, 4))
    }""",
    "an output that transposes another": """graph odd(x: float32[1, 3, 5, 5]) -> (
        y: float32[1, 20, 5, 5], z: float32[1, 5, 5, 20]) {
        const w: float32[20, 3, 1, 1] = random(0)
        y: float32[1, 20, 5, 5] = Conv(x, w; strides=(1,1), pads=(0,0,0,0), dilations=(1,1),
            group=1)
        z: float32[1, 5, 5, 20] = Transpose(y; perm=(0, 2, 3, 1))
    }""",
    "several samples inside": """graph odd(x: float32[3, 5, 9, 9]) -> (y: float32[3, 20, 5, 5]) {
        const w: float32[20, 5, 3, 3] = random(0)
        y: float32[3, 20, 5, 5] = Conv(x, w; strides=(2,2), pads=(1,1,1,1), dilations=(1,1),
            group=1)
    }""",
    "a gate on channels": """graph odd(x: float32[1, 20, 6, 6]) -> (y: float32[1, 20, 6, 6]) {
        const w: float32[20, 20, 1, 1] = random(0)
        const v: float32[20, 20, 1, 1] = random(1)
        c: float32[1, 20, 6, 6] = Conv(x, w; strides=(1,1), pads=(0,0,0,0), dilations=(1,1),
            group=1)
        m: float32[1, 20, 1, 1] = ReduceMean(c; axes=(2, 3), keepdims=1)
        d: float32[1, 20, 1, 1] = Conv(m, v; strides=(1,1), pads=(0,0,0,0), dilations=(1,1),
            group=1)
        s: float32[1, 20, 1, 1] = Sigmoid(d)
        y: float32[1, 20, 6, 6] = Mul(c, s)
    }""",
    "an operand of fewer dimensions": """graph odd(
        x: float32[1, 4, 6, 6], r: float32[6]) -> (y: float32[1, 16, 6, 6]) {
        const w: float32[16, 4, 3, 3] = random(0)
        c: float32[1, 16, 6, 6] = Conv(x, w; strides=(1,1), pads=(1,1,1,1), dilations=(1,1),
            group=1)
        y: float32[1, 16, 6, 6] = Add(c, r)
    }""",
    "computed weights": """graph odd(
        x: float32[1, 4, 6, 6], w: float32[8, 4, 3, 3]) -> (y: float32[1, 8, 6, 6]) {
        c: float32[1, 8, 6, 6] = Conv(x, w; strides=(1,1), pads=(1,1,1,1), dilations=(1,1),
            group=1)
        y: float32[1, 8, 6, 6] = Relu(c)
    }""",
    "a value read twice behind its product": """graph odd(
        x: float32[1, 20]) -> (y: float32[1, 20]) {
        const w: float32[20, 20] = random(0)
        p: float32[1, 20] = MatMul(x, w)
        s: float32[1, 20] = Sigmoid(p)
        y: float32[1, 20] = Mul(p, s)
    }""",
    "weights read behind their product": """graph odd(
        x: float32[20, 20]) -> (y: float32[20, 20]) {
        const w: float32[20, 20] = random(0)
        p: float32[20, 20] = MatMul(x, w)
        y: float32[20, 20] = Add(p, w)
    }""",
    "windows of nothing but padding": """graph odd(
        x: float32[1, 4, 4, 4]) -> (y: float32[1, 4, 7, 7]) {
        y: float32[1, 4, 7, 7] = AveragePool(x; kernel_shape=(2, 2), strides=(1, 1),
            pads=(2, 2, 2, 2), dilations=(1, 1), count_include_pad=0)
    }""",
    "windows whose gaps hold all there is": """graph odd(
        x: float32[1, 4, 2, 2]) -> (y: float32[1, 4, 3, 3]) {
        y: float32[1, 4, 3, 3] = AveragePool(x; kernel_shape=(2, 2), strides=(1, 1),
            pads=(2, 2, 2, 2), dilations=(3, 3), count_include_pad=0)
    }""",
    "a resize that keeps the shape and moves the content": """graph odd(
        x: float32[1, 4, 6, 10]) -> (y: float32[1, 4, 6, 10]) {
        r: float32[1, 4, 6, 10] = Resize(x; mode="linear", scales=(1.0, 1.0, 1.0, 1.05),
            coordinate_transformation_mode="half_pixel", nearest_mode="floor",
            cubic_coeff_a=-0.75)
        y: float32[1, 4, 6, 10] = Relu(r)
    }""",
}


@pytest.mark.parametrize("text", ODD.values(), ids=[name.replace(" ", "-") for name in ODD])
def test_odd_borders_and_shapes_are_right(text: str) -> None:
    graph = parse_graph(text)
    assert worst_error(graph, compile_plain(graph)) < 2e-5


def test_an_activation_that_reads_its_input_twice_joins_the_product() -> None:
    (function,) = compile_plain(parse_graph(ODD["a value read twice behind its product"])).functions
    assert [use.operators for use in function.kernels] == [("MatMul", "Sigmoid", "Mul")]


def test_nested_approximations_are_kernels_of_their_own() -> None:
    """In one kernel they take the compiler time exponential in their number."""
    lines = ["t0: float32[1, 40] = Relu(x)"]
    lines += [f"t{i}: float32[1, 40] = Tanh(t{i - 1})" for i in range(1, 5)]
    lines += ["s: float32[1, 40] = Softplus(t4)", "u: float32[1, 40] = Tanh(s)"]
    body = "\n".join([*lines, "y: float32[1, 40] = Mul(u, x)"])
    graph = parse_graph(f"graph net(x: float32[1, 40]) -> (y: float32[1, 40]) {{\n{body}\n}}")
    compiled = compile_plain(graph)
    kernels = [use.operators for use in compiled.functions[0].kernels]
    assert kernels == [
        ("Relu", "Tanh"), ("Tanh",), ("Tanh",), ("Tanh",), ("Softplus",), ("Tanh", "Mul"),
    ]  # fmt: skip
    assert worst_error(graph, compiled) < 2e-6
