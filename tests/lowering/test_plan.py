"""The workspace: no value is overwritten while somebody needs it, in place or not."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import TensorType
from eecompile.targets.lowering.group import group
from eecompile.targets.lowering.layout import lay_out
from eecompile.targets.lowering.placing import place
from eecompile.targets.lowering.plan import ALIGNMENT, Use, Workspace, plan_workspace
from eecompile.targets.lowering.schedules import schedule
from eecompile.targets.lowering.simplify import simplify
from eecompile.targets.lowering.spec import Scratch, spec_of
from eecompile.targets.lowering.views import View
from eecompile.text import parse_graph
from tests.lowering.calling import compile_plain, worst_error

F32 = 4


def elements(view: View) -> list[int]:
    """Offsets of a view's elements in its root."""
    places = [view.offset]
    for extent, stride in zip(view.shape, view.strides, strict=True):
        places = [at + i * stride for at in places for i in range(extent)]
    return places


def replay(
    uses: list[Use],
    views: dict[str, View],
    types: dict[str, TensorType],
    outside: set[str],
    plan: Workspace,
) -> None:
    """Runs the plan on a memory of who wrote what, and reads it back."""
    memory: dict[int, tuple[str, int]] = {}
    for step, use in enumerate(uses):
        for index, nbytes in enumerate(use.scratch):
            start = plan.scratch[step][index]
            assert start % ALIGNMENT == 0
            assert start + nbytes <= plan.nbytes
            memory.update((at, ("scratch", index)) for at in range(start, start + nbytes, F32))
        for name in use.operands:
            root = views[name].root
            if root in outside:
                continue
            for at in elements(views[name]):
                assert memory[plan.values[root] + F32 * at] == (root, at)
        root = views[use.output].root
        if root in outside:
            continue
        start = plan.values[root]
        assert start % ALIGNMENT == 0
        assert start + types[root].nbytes <= plan.nbytes
        for at in elements(views[use.output]):
            memory[start + F32 * at] = (root, at)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Use], dict[str, View], dict[str, TensorType]]:
    """Calls that read values made before, some of them parts of a larger buffer."""
    types = {"x": TensorType("float32", (4, 8))}
    views = {"x": View.of("x", (4, 8))}
    uses: list[Use] = []
    live = ["x"]
    whole: list[str] = []
    for step in range(draw(st.integers(1, 12))):
        operands = tuple(draw(st.lists(st.sampled_from(live), min_size=1, max_size=3, unique=True)))
        shape = (4, draw(st.sampled_from([4, 8, 8])))
        scratch = tuple(draw(st.lists(st.sampled_from([F32, 64, 400]), max_size=2)))
        name = f"v{step}"
        in_place = tuple(o for o in operands if draw(st.booleans()) and views[o].shape == shape)
        if shape == (4, 4) and draw(st.booleans()):
            # Half of a joined buffer; the next one that wants a half gets the other.
            if whole:
                views[name] = View.of(whole.pop(), (4, 8)).part((0, 4), shape)
            else:
                types[f"both{step}"] = TensorType("float32", (4, 8))
                whole.append(f"both{step}")
                views[name] = View.of(f"both{step}", (4, 8)).part((0, 0), shape)
        else:
            types[name] = TensorType("float32", shape)
            views[name] = View.of(name, shape)
        uses.append(Use(name, operands, scratch, in_place))
        live.append(name)
    return uses, views, types


@given(programs(), st.booleans())
def test_everything_is_still_there_when_it_is_read(
    drawn: tuple[list[Use], dict[str, View], dict[str, TensorType]], last_is_output: bool
) -> None:
    uses, views, types = drawn
    outside = {"x"} | ({views[uses[-1].output].root} if last_is_output else set())
    plan = plan_workspace(uses, views, types, outside)
    replay(uses, views, types, outside, plan)


def chain(in_place: bool) -> Workspace:
    names = ["x", "a", "b", "c", "y"]
    types = {name: TensorType("float32", (16,)) for name in names}
    views = {name: View.of(name, (16,)) for name in names}
    uses = [Use(to, (of,), (), (of,) if in_place else ()) for of, to in pairwise(names)]
    return plan_workspace(uses, views, types, {"x", "y"})


def test_a_chain_of_element_wise_kernels_needs_one_buffer() -> None:
    assert chain(in_place=True).nbytes == 64
    assert chain(in_place=False).nbytes == 128


def test_an_operand_that_is_read_again_keeps_its_memory() -> None:
    types = {name: TensorType("float32", (16,)) for name in "xaby"}
    views = {name: View.of(name, (16,)) for name in "xaby"}
    uses = [Use("a", ("x",)), Use("b", ("a",), (), ("a",)), Use("y", ("a", "b"))]
    plan = plan_workspace(uses, views, types, {"x", "y"})
    assert plan.values["a"] != plan.values["b"]


def test_a_part_of_a_buffer_is_not_taken_over() -> None:
    types = {name: TensorType("float32", (32,)) for name in "xjy"}
    types["a"] = TensorType("float32", (16,))
    views = {name: View.of(name, (32,)) for name in "xjy"}
    views["a"] = View.of("a", (16,))
    views["part"] = views["j"].part((0,), (16,))
    uses = [Use("j", ("x",)), Use("a", ("part",), (), ("part",)), Use("y", ("a",))]
    plan = plan_workspace(uses, views, types, {"x", "y"})
    assert plan.values["a"] != plan.values["j"]


RESIDUAL = """graph net(x: float32[1, 8, 4, 4]) -> (y: float32[1, 8, 4, 4]) {
    const w: float32[8, 8, 3, 3] = random(0)
    a: float32[1, 8, 4, 4] = Conv(x, w; strides=(1,1), pads=(1,1,1,1), dilations=(1,1), group=1)
    p: float32[1, 8, 4, 4] = MaxPool(a; kernel_shape=(3,3), strides=(1,1), pads=(1,1,1,1),
        dilations=(1,1))
    q: float32[1, 8, 4, 4] = MaxPool(p; kernel_shape=(3,3), strides=(1,1), pads=(1,1,1,1),
        dilations=(1,1))
    s: float32[1, 8, 4, 4] = Add(a, p)
    t: float32[1, 8, 4, 4] = Add(s, q)
    u: float32[1, 8, 4, 4] = Sigmoid(t)
    y: float32[1, 8, 4, 4] = MaxPool(u; kernel_shape=(3,3), strides=(1,1), pads=(1,1,1,1),
        dilations=(1,1))
}"""


def test_element_wise_kernels_of_a_network_write_over_their_operands() -> None:
    graph = parse_graph(RESIDUAL)
    placed = place(lay_out(simplify(graph), ("x", "y"), {}).graph)
    uses, joined = [], ""
    for found in group(placed).groups:
        spec, operands = spec_of(found, placed.graph, placed.views)
        arrays = schedule(spec, machine("host")).arguments
        scratch = tuple(a.nbytes for a in arrays if isinstance(a, Scratch))
        in_place = tuple(operands[i] for i in spec.element_by_element)
        uses.append(Use(found.output, operands, scratch, in_place))
        if [op.kind for op in found.ops] == ["Add"]:
            joined = found.output
    outside = {*placed.graph.inputs, *placed.graph.outputs, *placed.graph.constants}
    types = dict(placed.graph.types)
    plan = plan_workspace(uses, placed.views, types, outside)
    replay(uses, dict(placed.views), types, outside, plan)
    others = [at for root, at in plan.values.items() if root != joined]
    assert plan.values[joined] in others
    assert prod(types[joined].shape) == 128
    assert worst_error(graph, compile_plain(graph)) < 2e-5
