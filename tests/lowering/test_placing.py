"""Where values lie: views are exactly numpy's, and what can be written in place is not moved."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.diagnostics import InternalError
from eecompile.ir import Op
from eecompile.reference import evaluate, run_graph
from eecompile.targets.lowering import compile
from eecompile.targets.lowering.group import group
from eecompile.targets.lowering.layout import lay_out
from eecompile.targets.lowering.placing import Placed, place
from eecompile.targets.lowering.simplify import simplify
from eecompile.targets.lowering.spec import KernelSpec, Scheduled
from eecompile.targets.lowering.strides import StridesLost, strided
from eecompile.targets.lowering.views import View, reshaped_strides
from eecompile.text import parse_graph
from tests.lowering.calling import compile_plain, inputs_of, worst_error

# -- views -----------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """A strided array of int32 in a larger one."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    room = [n + draw(st.integers(0, 2)) for n in shape]
    whole = np.arange(prod(room), dtype="int32").reshape(room)
    perm = draw(st.permutations(range(len(shape))))
    return whole[tuple(slice(n) for n in shape)].transpose(perm)


@given(arrays(), st.data())
def test_strides_are_found_exactly_where_numpy_finds_them(
    x: np.ndarray, data: st.DataObject
) -> None:
    new, left = [], x.size
    while left > 1:
        new.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
        left //= new[-1]
    strides = tuple(s // x.itemsize for s in x.strides)
    found = reshaped_strides(x.shape, strides, new)
    seen = x.reshape(new)
    assert (found is not None) == np.shares_memory(seen, x)
    if found is not None:
        inside = np.lib.stride_tricks.as_strided(x, new, [s * x.itemsize for s in found])
        np.testing.assert_array_equal(inside, seen)


def read(view: View, flat: np.ndarray) -> np.ndarray:
    """The elements of a view of a flat array."""
    strides = [s * flat.itemsize for s in view.strides]
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)


def test_views_of_views_are_numpys() -> None:
    x = np.arange(4 * 6 * 8)
    view = View.of("x", (4, 6, 8)).part((1, 0, 2), (3, 3, 4), (1, 2, 1)).transposed((2, 0, 1))
    expected = x.reshape(4, 6, 8)[1:, ::2, 2:6].transpose(2, 0, 1)
    np.testing.assert_array_equal(read(view, x), expected)
    assert not view.is_dense
    assert not view.is_unit
    assert view.part((1, 0, 0), (1, 3, 3)).reshaped((3, 3)) == View("x", 51, (3, 3), (48, 16))


# -- graphs ----------------------------------------------------------------------------------------


def placed_graph(text: str) -> Placed:
    graph = parse_graph(text)
    plain = (*graph.inputs, *graph.outputs)
    return place(lay_out(simplify(graph), plain, {}).graph)


def kernels(placed: Placed) -> list[str]:
    """The operators that something computes, a word for each kernel."""
    groups = group(placed).groups
    return ["+".join(op.kind for op in found.ops) for found in groups]


def simulated(placed: Placed) -> list[np.ndarray]:
    """Results where every value is written to and read from its place, buffers full of NaN."""
    graph = placed.graph
    memory = {
        view.root: np.full(graph.types[view.root].size, np.nan) for view in placed.views.values()
    }
    for name, array in {**inputs_of(graph), **graph.constants}.items():
        memory[name][:] = array.reshape(-1)
    for op in graph.ops:
        (out,) = op.outputs
        if out in placed.moved:
            continue
        inputs = tuple(filter(None, op.inputs))
        values = {
            name: read(placed.views[name], memory[placed.views[name].root]).astype("float32")
            for name in inputs
        }
        target = placed.views[out]
        read(target, memory[target.root])[...] = computed(op, values)
    return [memory[name].reshape(graph.types[name].shape) for name in graph.outputs]


def computed(op: Op, values: dict[str, np.ndarray]) -> np.ndarray:
    """An operator's result, also where it is channels last."""
    arrays = [values[name] if name else None for name in op.inputs]
    attributes = dict(op.attributes)
    last = attributes.pop("channels_last", False)
    if last:
        arrays[0] = np.moveaxis(values[op.inputs[0]], -1, 1)
    (result,) = evaluate(replace(op, attributes=attributes), arrays)
    return np.moveaxis(result, 1, -1) if last else result


CONV = "strides=(1,1), pads=(0,0,0,0), dilations=(1,1), group=1"


def dense_block(listed: bool) -> str:
    """Three layers that each add four channels; the pieces joined anew or one by one."""
    lines = []
    pieces, joined, channels = ["a"], "a", 8
    for i in range(3):
        lines += [
            f"const w{i}: float32[4, {channels}, 1, 1] = random({i})",
            f"n{i}: float32[1, {channels}, 3, 3] = Sigmoid({joined})",
            f"f{i}: float32[1, 4, 3, 3] = Conv(n{i}, w{i}; {CONV})",
        ]
        pieces.append(f"f{i}")
        channels += 4
        inputs = ", ".join(pieces) if listed else f"{joined}, f{i}"
        joined = f"j{i}"
        lines.append(f"{joined}: float32[1, {channels}, 3, 3] = Concat({inputs}; axis=1)")
    body = "\n".join(lines)
    return f"""graph net(x: float32[1, 8, 3, 3]) -> (y: float32[1, 20, 3, 3]) {{
        const v: float32[8, 8, 1, 1] = random(9)
        a: float32[1, 8, 3, 3] = Conv(x, v; {CONV})
        {body}
        y: float32[1, 20, 3, 3] = Tanh({joined})
    }}"""


@pytest.mark.parametrize("listed", [True, False])
def test_a_dense_block_has_one_buffer_and_no_copies(listed: bool) -> None:
    placed = placed_graph(dense_block(listed))
    found = kernels(placed)
    assert not [kind for kind in found if "Concat" in kind or "Reshape" in kind]
    assert found.count("Sigmoid") == 3
    names = [name for name in placed.views if name.startswith(("a.", "f", "j"))]
    assert len({placed.views[name].root for name in names}) == 1
    check(dense_block(listed))


ATTENTION = """graph net(x: float32[6, 8]) -> (y: float32[6, 4]) {
    const w: float32[8, 12] = random(0)
    const v: float32[4, 4] = random(1)
    const half: float32[1] = random(2)
    qkv: float32[6, 12] = MatMul(x, w)
    r: float32[6, 3, 2, 2] = Reshape(qkv; shape=(6, 3, 2, 2))
    t: float32[3, 2, 6, 2] = Transpose(r; perm=(1, 2, 0, 3))
    q: float32[1, 2, 6, 2] = Slice(t; starts=(0,), ends=(1,), axes=(0,), steps=(1,))
    k: float32[1, 2, 6, 2] = Slice(t; starts=(1,), ends=(2,), axes=(0,), steps=(1,))
    u: float32[1, 2, 6, 2] = Slice(t; starts=(2,), ends=(3,), axes=(0,), steps=(1,))
    qs: float32[1, 2, 6, 2] = Mul(q, half)
    kt: float32[1, 2, 2, 6] = Transpose(k; perm=(0, 1, 3, 2))
    ks: float32[1, 2, 2, 6] = Mul(kt, half)
    s: float32[1, 2, 6, 6] = MatMul(qs, ks)
    p: float32[1, 2, 6, 6] = Softmax(s; axis=3)
    o: float32[1, 2, 6, 2] = MatMul(p, u)
    ot: float32[1, 6, 2, 2] = Transpose(o; perm=(0, 2, 1, 3))
    m: float32[6, 4] = Reshape(ot; shape=(6, 4))
    y: float32[6, 4] = MatMul(m, v)
}"""


def test_attention_moves_nothing() -> None:
    expected = ["MatMul", "MatMul+Mul", "Softmax", "MatMul", "MatMul"]
    assert kernels(placed_graph(ATTENTION)) == expected
    check(ATTENTION)


#: Graphs in which something has to be moved after all, and the kernels that remain.
MOVING = {
    "an input in a concatenation is copied": (
        """graph net(x: float32[1, 4]) -> (y: float32[1, 8]) {
            a: float32[1, 4] = Relu(x)
            y: float32[1, 8] = Concat(a, x; axis=1)
        }""",
        ["Relu", "Reshape"],
    ),
    "a value twice in a concatenation is copied once": (
        """graph net(x: float32[1, 4]) -> (y: float32[1, 8]) {
            a: float32[1, 4] = Relu(x)
            y: float32[1, 8] = Concat(a, a; axis=1)
        }""",
        ["Relu", "Reshape"],
    ),
    "inputs alone are concatenated": (
        """graph net(x: float32[1, 4], z: float32[1, 4]) -> (y: float32[1, 8]) {
            c: float32[1, 8] = Concat(x, z; axis=1)
            y: float32[1, 8] = Relu(c)
        }""",
        ["Concat+Relu"],
    ),
    "an output in a concatenation has its own memory": (
        """graph net(x: float32[1, 4]) -> (a: float32[1, 4], y: float32[1, 8]) {
            a: float32[1, 4] = Relu(x)
            b: float32[1, 4] = Tanh(x)
            y: float32[1, 8] = Concat(b, a; axis=1)
        }""",
        ["Relu", "Tanh", "Reshape"],
    ),
    "concatenations in other orders": (
        """graph net(x: float32[1, 4]) -> (y: float32[1, 8], z: float32[1, 8]) {
            a: float32[1, 4] = Relu(x)
            b: float32[1, 4] = Tanh(x)
            y: float32[1, 8] = Concat(b, a; axis=1)
            z: float32[1, 8] = Concat(a, b; axis=1)
        }""",
        ["Relu", "Tanh", "Concat"],
    ),
    "a concatenation of concatenations": (
        """graph net(x: float32[2, 4]) -> (y: float32[4, 8]) {
            a: float32[2, 4] = Relu(x)
            b: float32[2, 4] = Tanh(x)
            c: float32[2, 8] = Concat(b, a; axis=1)
            d: float32[2, 8] = Concat(a, b; axis=1)
            y: float32[4, 8] = Concat(c, d; axis=0)
        }""",
        ["Relu", "Tanh", "Concat"],
    ),
    "a slice is read where it is": (
        """graph net(x: float32[1, 8]) -> (y: float32[1, 4]) {
            a: float32[1, 4] = Slice(x; starts=(4,), ends=(8,), axes=(1,), steps=(1,))
            y: float32[1, 4] = Relu(a)
        }""",
        ["Relu"],
    ),
    "a slice backwards is not": (
        """graph net(x: float32[1, 8]) -> (y: float32[1, 8]) {
            a: float32[1, 8] = Slice(x; starts=(7,), ends=(-9,), axes=(1,), steps=(-1,))
            y: float32[1, 8] = Relu(a)
        }""",
        ["Slice+Relu"],
    ),
    "every other column is no vector": (
        """graph net(x: float32[4, 8]) -> (y: float32[4, 4]) {
            a: float32[4, 4] = Slice(x; starts=(1,), ends=(8,), axes=(1,), steps=(2,))
            y: float32[4, 4] = Relu(a)
        }""",
        ["Slice+Relu"],
    ),
    "a matrix is transposed for what reads rows": (
        """graph net(x: float32[4, 8]) -> (y: float32[8, 4]) {
            a: float32[4, 8] = Relu(x)
            b: float32[8, 4] = Transpose(a; perm=(1, 0))
            y: float32[8, 4] = Softmax(b; axis=1)
        }""",
        ["Relu", "Transpose", "Softmax"],
    ),
    "rows are written to where they are wanted": (
        """graph net(x: float32[2, 3, 8]) -> (y: float32[3, 16]) {
            a: float32[2, 3, 8] = Softmax(x; axis=2)
            b: float32[3, 2, 8] = Transpose(a; perm=(1, 0, 2))
            c: float32[3, 16] = Reshape(b; shape=(3, 16))
            y: float32[3, 16] = Softmax(c; axis=1)
        }""",
        ["Softmax", "Softmax"],
    ),
    "an output that is a reshape is written at once": (
        """graph net(x: float32[2, 8]) -> (y: float32[16]) {
            a: float32[2, 8] = Softmax(x; axis=1)
            y: float32[16] = Reshape(a; shape=(16,))
        }""",
        ["Softmax"],
    ),
}


@pytest.mark.parametrize("text, expected", MOVING.values(), ids=[*MOVING])
def test_only_what_must_is_moved(text: str, expected: list[str]) -> None:
    assert kernels(placed_graph(text)) == expected
    check(text)


@pytest.mark.parametrize("text", [dense_block(True), ATTENTION, *(t for t, _ in MOVING.values())])
def test_values_that_must_be_dense_are(text: str) -> None:
    laid = lay_out(simplify(parse_graph(text)), parse_graph(text).outputs, {}).graph
    everything = [name for op in laid.ops for name in op.outputs]
    placed = place(laid, everything)
    assert all(placed.views[name].root == name for name in everything)


def test_a_schedule_that_cannot_write_strides_gets_a_dense_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = []

    def strict(spec: KernelSpec, scheduled: Scheduled) -> Scheduled:
        if spec.strides is not None:
            refused.append(spec)
            raise StridesLost(None)
        return strided(spec, scheduled)

    monkeypatch.setattr(compile, "strided", strict)
    graph = parse_graph(dense_block(True))
    compiled = compile_plain(graph)
    assert refused
    assert worst_error(graph, compiled) < 2e-5


def test_a_schedule_that_cannot_write_dense_results_either_is_our_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(spec: KernelSpec, scheduled: Scheduled) -> Scheduled:
        raise StridesLost(None)

    monkeypatch.setattr(compile, "strided", never)
    with pytest.raises(InternalError, match="denser than dense"):
        compile_plain(parse_graph(dense_block(True)))


def check(text: str) -> None:
    """What is written to and read from its place is what the graph computes."""
    graph = parse_graph(text)
    expected = run_graph(graph, inputs_of(graph))
    for name, found in zip(graph.outputs, simulated(placed_graph(text)), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
