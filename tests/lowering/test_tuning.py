"""Choices of schedules: what is offered, who wins, and that builds follow what was written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("tvm")
import tvm

from eecompile.hardware import Machine, machine
from eecompile.ir import Graph
from eecompile.targets.lowering import CompiledLibrary, compile_functions
from eecompile.targets.lowering.compile import KernelCount, kernel_counts
from eecompile.targets.lowering.identity import described, kernel_key
from eecompile.targets.lowering.measuring import Measured, in_time, measure
from eecompile.targets.lowering.schedules import Choice, choices, schedule
from eecompile.targets.lowering.spec import KernelSpec
from eecompile.targets.lowering.tuning import Winner, tune, winner
from eecompile.text import parse_graph
from tests.lowering.calling import worst_error
from tests.lowering.cases import conv, matmul, pool
from tests.lowering.test_expansions import block

HOST = machine("host")

#: A graph for each family, small enough to compile all its choices.
GRAPHS: dict[str, Graph] = {
    "conv": conv(16, 40, 9, 1),
    "winograd": conv(32, 32, 8, 3, residual=True),
    "depthwise": conv(40, 40, 9, 3, group=40),
    "expanded": block((8, 8), (16, 64), 3, 1, (1, 1, 1, 1)),
    "pool": pool("MaxPool", 40, 12, 3, 2),
    "matmul": matmul(20, 24, 40),
}


def kernels_of(graph: Graph, target: Machine = HOST) -> list[KernelCount]:
    return kernel_counts([graph], target, (*graph.inputs, *graph.outputs))


def kernel_of(graph: Graph, target: Machine = HOST) -> KernelSpec:
    """The one kernel of a graph that has choices."""
    (found,) = (k.spec for k in kernels_of(graph, target) if choices(k.spec, target))
    return found


def kernels_named(graph: Graph) -> dict[str, KernelSpec]:
    return {described(kernel.spec): kernel.spec for kernel in kernels_of(graph)}


def compiled(graph: Graph, chosen: dict[str, str] | None = None) -> CompiledLibrary:
    plain = (*graph.inputs, *graph.outputs)
    return compile_functions([graph], HOST, plain=plain, choices=chosen or {})


# --- What is offered ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4", "arm-cpu"])
@pytest.mark.parametrize("family", GRAPHS)
def test_the_first_choice_is_what_is_taken_without_one(family: str, target: str) -> None:
    where = machine(target)
    spec = kernel_of(GRAPHS[family], where)
    offered = choices(spec, where)
    assert len({str(choice) for choice in offered}) == len(offered) > 1
    one, other = schedule(spec, where), schedule(spec, where, offered[0])
    tvm.ir.assert_structural_equal(one.function, other.function)


@pytest.mark.parametrize("family", GRAPHS)
def test_every_choice_computes_the_same(family: str) -> None:
    spec = kernel_of(GRAPHS[family])
    offered = choices(spec, HOST)
    found = measure(spec, HOST, offered, float("inf"))
    assert [one.choice for one in found] == offered
    assert max(one.error for one in found) <= 2e-5
    assert family in {choice.family for choice in offered}
    assert all(seconds > 0 for one in found for seconds in one.times_s)


def test_nothing_is_compiled_when_the_time_has_come() -> None:
    spec = kernel_of(GRAPHS["matmul"])
    assert measure(spec, HOST, choices(spec, HOST), 0.0) == []


class Maker:
    """Stands in for compiling: each item takes the seconds that it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.groups: list[list[float]] = []

    def make(self, some: Sequence[float]) -> list[float]:
        self.now += sum(some)
        self.groups.append(list(some))
        return list(some)

    def made(self, items: Sequence[float], until: float, at_once: int = 1) -> list[float]:
        return in_time(items, self.make, until, at_once, lambda: self.now)


@pytest.mark.parametrize(
    ("items", "until", "at_once", "groups", "end"),
    [
        ([1, 1, 1, 1], 100, 1, [[1], [1], [1], [1]], 4),
        ([1, 1, 1, 1], 2.5, 1, [[1], [1]], 2),  # a third would not fit
        ([1, 1, 1, 1], 2, 1, [[1], [1]], 2),
        ([4, 1, 1, 1], 5, 1, [[4]], 4),  # it could be as slow as the first
        ([1, 4, 1, 1], 3, 1, [[1], [4]], 5),  # nobody knew
        ([9, 1], 5, 1, [[9]], 9),
        ([1, 1], 0, 1, [], 0),
        ([1] * 6, 100, 4, [[1], [1, 1, 1, 1], [1]], 6),  # the first tells how long one takes
        ([1] * 6, 4, 4, [[1], [1, 1, 1]], 4),
        ([1, 2, 2, 1, 1], 7, 2, [[1], [2, 2], [1]], 6),
    ],
)
def test_what_does_not_fit_is_not_begun(
    items: list[float], until: float, at_once: int, groups: list[list[float]], end: float
) -> None:
    maker = Maker()
    assert maker.made(items, until, at_once) == [one for group in groups for one in group]
    assert (maker.groups, maker.now) == (groups, end)


def test_items_that_cannot_be_made_take_time_too() -> None:
    maker = Maker()

    def make(some: Sequence[float]) -> list[float]:
        return [one for one in maker.make(some) if one == 1]

    assert in_time([1, 2, 1, 1], make, 5, 1, lambda: maker.now) == [1, 1]
    assert maker.now == 4


def test_direct_and_both_of_winograds_tiles_are_offered_where_they_apply() -> None:
    def forms(graph: Graph) -> set[str]:
        offered = choices(kernel_of(graph), HOST)
        return {" ".join(str(c).split()[: 2 if c.family == "winograd" else 1]) for c in offered}

    assert forms(conv(32, 32, 8, 3)) == {"conv", "winograd tile=2", "winograd tile=4"}
    assert forms(conv(32, 32, 8, 1)) == {"conv"}
    assert forms(conv(32, 32, 8, 3, stride=2)) == {"conv"}


def test_the_best_of_each_form_comes_before_the_second_of_any() -> None:
    offered = choices(kernel_of(GRAPHS["winograd"]), HOST)
    first = [(c.family, c.numbers[0][1]) for c in offered[:3]]
    assert {family for family, _ in first} == {"conv", "winograd"}
    assert {number for family, number in first if family == "winograd"} == {2, 4}


def test_kernels_that_must_be_exact_are_offered_no_variant_that_rounds_otherwise() -> None:
    graph = parse_graph(
        """graph rounded(x: float32[1, 32, 8, 8]) -> (y: float32[1, 32, 8, 8]) {
            const w: float32[32, 32, 3, 3] = random(0)
            c: float32[1, 32, 8, 8] = Conv(x, w; strides=(1, 1), pads=(1, 1, 1, 1),
                dilations=(1, 1), group=1)
            y: float32[1, 32, 8, 8] = Floor(c)
        }"""
    )
    assert {choice.family for choice in choices(kernel_of(graph), HOST)} == {"conv"}


def test_kernels_with_nothing_to_choose_offer_nothing() -> None:
    graph = parse_graph(
        """graph chain(x: float32[4, 8]) -> (y: float32[4, 8]) {
            r: float32[4, 8] = Relu(x)
            y: float32[4, 8] = Softmax(r; axis=-1)
        }"""
    )
    assert [choices(kernel.spec, HOST) for kernel in kernels_of(graph)] == [[], []]


# --- What a kernel is called ----------------------------------------------------------------------


def scaled(number: float, channels: int = 32) -> Graph:
    shape = f"float32[1, {channels}, 8, 8]"
    return parse_graph(
        f"""graph scaled(x: {shape}) -> (y: {shape}) {{
            const w: float32[{channels}, {channels}, 3, 3] = random(0)
            const s: float32[] = [{number}]
            c: {shape} = Conv(x, w; strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1)
            r: {shape} = Relu(c)
            y: {shape} = Mul(r, s)
        }}"""
    )


def test_a_key_tells_shapes_apart_and_no_values_of_constants() -> None:
    one, same, other = (kernel_of(g) for g in (scaled(2.0), scaled(3.0), scaled(2.0, 16)))
    assert one != same
    assert kernel_key(one) == kernel_key(same)
    assert kernel_key(one) != kernel_key(other)


def test_a_kernel_is_described_by_operators_and_shapes() -> None:
    spec = kernel_of(GRAPHS["winograd"])
    assert described(spec) == "Conv+Add+Relu 1x8x8x32, 32x32x3x3 -> 1x8x8x32"


def test_kernels_are_counted_as_they_are_compiled() -> None:
    graph = parse_graph(
        """graph twice(x: float32[8, 8]) -> (y: float32[8, 8]) {
            const v: float32[8, 8] = random(0)
            const w: float32[8, 8] = random(1)
            a: float32[8, 8] = MatMul(x, v)
            b: float32[8, 8] = MatMul(a, w)
            y: float32[8, 8] = Softmax(b; axis=-1)
        }"""
    )
    uses = {kernel.spec.anchor.kind: kernel.uses for kernel in kernels_of(graph)}
    assert uses == {"MatMul": 2, "Softmax": 1}
    symbols = {use.symbol for use in compiled(graph).functions[0].kernels}
    assert len(symbols) == len(uses)


# --- Who wins -------------------------------------------------------------------------------------


def timed(name: str, *times_s: float, error: float = 0.0) -> Measured:
    return Measured(Choice(name, ()), times_s, error)


MODEL = timed("model", 1.0, 1.02, 0.98, 1.01, 0.99, 1.0)


@pytest.mark.parametrize(
    ("other", "won"),
    [
        (timed("other", 0.9, 0.92, 0.88, 0.91, 0.89, 0.9), "other"),
        (timed("other", 0.9, 0.92, 0.88, 0.91, 0.89, 0.9, error=1.0), "model"),
        (timed("other", 0.9, 0.92, 0.88, 0.91, 0.89, 0.9, error=float("nan")), "model"),
        (timed("other", 0.995, 1.015, 0.975, 1.005, 0.985, 0.995), "model"),  # too little
        (timed("other", 0.5, 1.5, 0.6, 1.4, 0.9, 1.1), "model"),  # noise
        (timed("other", 0.9, 0.9, 0.9), "model"),  # left out early
        (timed("other", 1.1, 1.1, 1.1, 1.1, 1.1, 1.1), "model"),
    ],
)
def test_the_models_choice_stays_unless_another_is_right_and_clearly_quicker(
    other: Measured, won: str
) -> None:
    assert winner([MODEL, other]).choice.family == won


def test_the_quickest_of_those_that_are_right_wins() -> None:
    others = [timed(f"s{n}", *(n / 10,) * 6, error=n == 5) for n in (9, 5, 7, 8)]
    assert winner([MODEL, *others]).choice.family == "s7"


class Bench:
    """Stands in for measuring: a clock, and seconds that each choice of a kernel takes."""

    def __init__(
        self, takes: Callable[[Sequence[Choice], int], float], choice_s: float = 1.0
    ) -> None:
        self.now = 100.0
        self.takes, self.choice_s = takes, choice_s
        self.measured: list[str] = []

    def clock(self) -> float:
        return self.now

    def measure(
        self, spec: KernelSpec, machine: Machine, offered: Sequence[Choice], until: float
    ) -> list[Measured]:
        found: list[Measured] = []
        for index, choice in enumerate(offered):
            if self.now + (self.choice_s if index else 0.0) > until:
                break
            self.now += self.choice_s
            found.append(Measured(choice, (self.takes(offered, index),) * 7))
        self.measured.append(described(spec))
        return found

    def tune(self, graph: Graph, seconds: float, known: dict[str, str] | None = None) -> list[str]:
        """Descriptions of the kernels that were measured, in order."""
        return [won.kernel for won in self.winners(graph, seconds, known or {})]

    def winners(
        self, graph: Graph, seconds: float, known: dict[str, str] | None = None
    ) -> list[Winner]:
        found = tune(
            [graph],
            HOST,
            (*graph.inputs, *graph.outputs),
            seconds,
            known=known or {},
            measure=self.measure,
            clock=self.clock,
        )
        return list(found)


def the_last(offered: Sequence[Choice], index: int) -> float:
    """The choice that is slowest by the model is the quickest."""
    return 0.5 if index == len(offered) - 1 else 1.0


@pytest.mark.parametrize("family", GRAPHS)
def test_what_the_model_likes_least_can_win_and_is_what_is_built(family: str) -> None:
    graph = GRAPHS[family]
    spec = kernel_of(graph)
    (won,) = Bench(the_last).winners(graph, 1000)
    assert won.choice == str(choices(spec, HOST)[-1])
    assert won.model == str(choices(spec, HOST)[0])
    assert (won.key, won.time_s, won.model_time_s) == (kernel_key(spec), 0.5, 1.0)

    by_model, built = compiled(graph), compiled(graph, {won.key: won.choice})
    again = compiled(graph, {won.key: won.choice})
    assert built.library != by_model.library
    assert (built.library, built.weights.tobytes()) == (again.library, again.weights.tobytes())
    assert built.tuned is not None and (built.tuned.chosen, built.tuned.by_model) == (1, 0)
    assert by_model.tuned is None
    assert worst_error(graph, built) <= 1e-4

    as_model = compiled(graph, {won.key: won.model})
    assert as_model.library == by_model.library


@pytest.mark.parametrize("text", ["conv width=999 blocks=1", "nonsense", "pool rows=1"])
def test_a_choice_that_the_kernel_does_not_have_is_left_to_the_model(text: str) -> None:
    graph = GRAPHS["conv"]
    key = kernel_key(kernel_of(graph))
    built = compiled(graph, {key: text})
    assert built.tuned is not None
    assert (built.tuned.chosen, built.tuned.by_model, built.tuned.stale) == (0, 1, (key,))
    assert built.tuned.unused == ()
    assert built.library == compiled(graph).library


def test_choices_for_other_kernels_change_nothing() -> None:
    built = compiled(GRAPHS["conv"], {"0" * 16: "conv width=1 blocks=1"})
    assert built.tuned is not None
    assert (built.tuned.chosen, built.tuned.stale, built.tuned.unused) == (0, (), ("0" * 16,))
    assert built.library == compiled(GRAPHS["conv"]).library


# --- Time -----------------------------------------------------------------------------------------


def products(*columns: int) -> Graph:
    """A chain of products, each wider than tall."""
    lines, last, deep = [], "x", 32
    for index, wide in enumerate(columns):
        lines.append(f"const w{index}: float32[{deep}, {wide}] = random({index})")
        lines.append(f"p{index}: float32[30, {wide}] = MatMul({last}, w{index})")
        last, deep = f"p{index}", wide
    body = "\n".join([*lines, f"y: float32[30, {deep}] = Softmax({last}; axis=-1)"])
    return parse_graph(
        f"graph chain(x: float32[30, 32]) -> (y: float32[30, {deep}]) {{\n{body}\n}}"
    )


WIDE, SQUARE, NARROW = (
    "MatMul 30x32, 32x160 -> 30x160",
    "MatMul 30x160, 160x64 -> 30x64",
    "MatMul 30x64, 64x48 -> 30x48",
)


def test_the_most_expensive_kernels_are_measured_first() -> None:
    assert Bench(the_last).tune(products(160, 64, 48), 1000) == [SQUARE, WIDE, NARROW]


def test_kernels_measured_before_come_last_unless_their_choice_is_gone() -> None:
    graph = products(160, 64, 48)
    won = {one.kernel: one for one in Bench(the_last).winners(graph, 1000)}
    known = {won[SQUARE].key: won[SQUARE].choice, won[WIDE].key: "matmul rows=999 blocks=9"}
    assert Bench(the_last).tune(graph, 1000, known) == [WIDE, NARROW, SQUARE]


@pytest.mark.parametrize("seconds", [3.0, 10.0, 20.0])
@pytest.mark.parametrize("choice_s", [0.3, 1.0, 1.5])
def test_tuning_ends_in_time(seconds: float, choice_s: float) -> None:
    bench = Bench(the_last, choice_s)
    bench.winners(products(160, 64, 48, 80, 96), seconds)
    assert 0 < bench.now - 100.0 <= seconds


def test_a_time_too_short_ends_with_the_first_choice_and_decides_nothing() -> None:
    bench = Bench(the_last)
    assert bench.tune(products(160, 64), 0.01) == []
    assert bench.now == 101.0


def test_a_kernel_is_decided_among_the_choices_there_was_time_for() -> None:
    bench, graph = Bench(lambda offered, index: 0.5 if index == 1 else 1.0), products(160, 64)
    (won,) = bench.winners(graph, 3.5)
    assert (won.kernel, won.choice) == (SQUARE, str(choices(kernels_named(graph)[SQUARE], HOST)[1]))
    assert bench.now == 103.0


def test_a_kernel_whose_two_choices_do_not_fit_is_not_begun() -> None:
    graph = products(160, 64, 48)
    first = len(choices(kernels_named(graph)[SQUARE], HOST))
    for left, begun in ((1.5, [SQUARE]), (2.0, [SQUARE, WIDE])):
        bench = Bench(the_last)
        assert bench.tune(graph, first + left) == begun == bench.measured


def test_too_few_rounds_decide_nothing() -> None:
    bench, graph = Bench(the_last), products(160)

    def hurried(
        spec: KernelSpec, where: Machine, offered: Sequence[Choice], until: float
    ) -> list[Measured]:
        found = bench.measure(spec, where, offered, until)
        return [replace(one, times_s=one.times_s[:4]) for one in found]

    plain = (*graph.inputs, *graph.outputs)
    assert list(tune([graph], HOST, plain, 1000, measure=hurried, clock=bench.clock)) == []


def test_progress_tells_kernels_and_seconds_left() -> None:
    bench = Bench(the_last)
    told: list[tuple[int, int, float]] = []
    graph = products(160, 64, 48)
    plain = (*graph.inputs, *graph.outputs)
    found = tune(
        [graph],
        HOST,
        plain,
        1000,
        progress=lambda *said: told.append(said),
        measure=bench.measure,
        clock=bench.clock,
    )
    assert len(list(found)) == 3
    assert [(done, total) for done, total, _ in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert told[0][2] == 1000
    assert all(one[2] > two[2] for one, two in pairwise(told))


def test_what_was_found_before_an_interrupt_is_known() -> None:
    bench, graph = Bench(the_last), products(160, 64, 48)

    def interrupted(
        spec: KernelSpec, where: Machine, offered: Sequence[Choice], until: float
    ) -> list[Measured]:
        if len(bench.measured) == 2:
            raise KeyboardInterrupt
        return bench.measure(spec, where, offered, until)

    found = []
    plain = (*graph.inputs, *graph.outputs)
    with pytest.raises(KeyboardInterrupt):
        for won in tune([graph], HOST, plain, 1000, measure=interrupted, clock=bench.clock):
            found.append(won.kernel)
    assert found == [SQUARE, WIDE]


def test_the_machine_decides_what_is_offered() -> None:
    narrow = replace(HOST, lanes=4, registers=16)
    graph = GRAPHS["conv"]
    assert choices(kernel_of(graph, narrow), narrow) != choices(kernel_of(graph), HOST)
