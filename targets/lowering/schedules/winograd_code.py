"""Winograd convolution as loops: phases, and the products in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tvm import tirx
from tvm.tirx import BufferStore, Evaluate

from eecompile.targets.lowering.schedules.emit import Registers, loop, named, parallel, sequence
from eecompile.targets.lowering.schedules.winograd_plan import Plan
from eecompile.targets.lowering.schedules.winograd_transforms import (
    Memory,
    Place,
    back,
    choice,
    for_inputs,
    for_vectors,
    forward,
    lanes,
    tails,
)

__all__ = ["phases"]

Expr = Any
Stmt = Any

#: Channels whose products stand in a row in the code.
_UNROLLED = 4


def phases(plan: Plan, memory: Memory) -> list[Stmt]:
    """The kernel's phases.

    Before -> after::

        fused: for strip: source = forward; for group: sums = products; out = back
        else:  for strip, vector of channels: source[strip] = forward
               for group, strip: sums = products; out = back
    """
    return [_fused(plan, memory)] if plan.fused else _apart(plan, memory)


def _fused(plan: Plan, memory: Memory) -> Stmt:
    def strip(index: list[Expr]) -> Stmt:
        place, bound = _place(plan, index)
        channels = for_inputs(
            plan, memory, lambda *channels: forward(plan, memory, place, 0, channels)
        )

        def group(g: Expr) -> Stmt:
            return sequence([_products(plan, memory, g, 0), back(plan, memory, place, g)])

        return sequence([*bound, *channels, _groups(plan, memory, group)])

    return parallel(plan.strips, strip)


def _groups(plan: Plan, memory: Memory, body: Callable[[Expr], Stmt]) -> Stmt:
    """`body(group)` for all that are computed."""
    if memory.kept is None:
        return loop(plan.groups, body)
    each = _each(plan)
    return memory.kept.groups(lambda _, index: loop(each, lambda part: body(index * each + part)))


def _each(plan: Plan) -> int:
    """Plan's groups in one of a gate."""
    return plan.problem.each // (plan.blocks * plan.lanes)


def _apart(plan: Plan, memory: Memory) -> list[Stmt]:
    channels, width = plan.problem.shape[3], plan.input_lanes
    full, rest = channels // width, tails(channels, width)
    _, down, across = plan.strips

    def base(index: list[Expr]) -> Expr:
        n, y, x = index
        return ((n * down + y) * across + x) * plan.source_elements

    def transformed(index: list[Expr]) -> Stmt:
        *strip, vector = index
        place, bound = _place(plan, strip)
        cases = [
            (vector == full + i, forward(plan, memory, place, base(strip), (first, first, narrow)))
            for i, (first, narrow) in enumerate(rest)
        ]
        if full:
            first = vector * width
            whole = forward(plan, memory, place, base(strip), (first, first, width))
            cases.insert(0, (vector < full, whole))
        return sequence([*bound, choice(cases)])

    def multiplied(index: list[Expr]) -> Stmt:
        group, *strip = index
        place, bound = _place(plan, strip)
        products = _products(plan, memory, group, base(strip))
        return sequence([*bound, products, back(plan, memory, place, group)])

    first_phase = parallel([*plan.strips, full + len(rest)], transformed)
    if (seen := memory.seen) is not None and not plan.is_transformed_whole:

        def transformed_kept(index: list[Expr]) -> Stmt:
            slot, *strip = index
            place, bound = _place(plan, strip)
            channel, named_channel = named(seen.first(slot))
            vectors = for_vectors(
                plan.problem.seen,
                width,
                lambda first, narrow: forward(
                    plan,
                    memory,
                    place,
                    base(strip),
                    (channel + first, slot * plan.problem.seen + first, narrow),
                ),
            )
            return sequence([*bound, named_channel, *vectors])

        first_phase = parallel([seen.gate.groups, *plan.strips], transformed_kept, seen.count)
    if (kept := memory.kept) is None:
        return [first_phase, parallel([plan.groups, *plan.strips], multiplied)]
    each = _each(plan)

    def multiplied_kept(index: list[Expr]) -> Stmt:
        slot, *strip = index
        group = kept.read(tirx.floordiv(slot, each) + 1) * each + tirx.floormod(slot, each)
        found, bound = named(group)
        return sequence([bound, multiplied([found, *strip])])

    units = kept.count * each
    return [first_phase, parallel([plan.groups, *plan.strips], multiplied_kept, units)]


def _place(plan: Plan, index: list[Expr]) -> tuple[Place, list[Stmt]]:
    """A strip's sample and first tile."""
    values = (index[0], index[1] * plan.rows, index[2] * plan.columns)
    names, bound = zip(*(named(value) for value in values), strict=True)
    return (names[0], names[1], names[2]), list(bound)


# --- Products -------------------------------------------------------------------------------------


def _products(plan: Plan, memory: Memory, group: Expr, base: Expr) -> Stmt:
    """All points' sums over the input's channels, for a strip and a group of outputs.

    Before -> after, for a point::

        sums[tiles][blocks] -> for i in tiles / width: registers[width][blocks]
    """
    full, rest = plan.passes

    def point(p: Expr) -> Stmt:
        parts = []
        if full:
            parts.append(loop(full, lambda i: _tile(plan, memory, (group, p, base), i, plan.width)))
        if rest:
            index = tirx.const(full, "int32")
            parts.append(_tile(plan, memory, (group, p, base), index, rest))
        return sequence(parts)

    return loop(plan.points, point)


def _tile(
    plan: Plan, memory: Memory, where: tuple[Expr, Expr, Expr], index: Expr, width: int
) -> Stmt:
    """The sums of pass `index` at a point of a group: `width` tiles, in registers."""
    group, point, base = where
    channels, blocks, wide = plan.problem.shape[3], plan.blocks, plan.lanes
    sums = Registers(width * blocks, wide)
    source = base + point * plan.stride
    weights = (group * plan.points + point) * channels * blocks * wide
    tile = index * plan.width

    def step(first: Expr, packed: Expr, narrow: int, place: Expr) -> Stmt:
        """The products of the channel at `place` in the vector that begins at `first`."""
        c = first + place

        def body(lane: Expr) -> Iterator[Stmt]:
            w = []
            for b in range(blocks):
                name, bound = named(memory.weights[weights + (c * blocks + b) * wide + lane])
                w.append(name)
                yield bound
            yield from _asked(plan, memory, weights, c, index)
            for t in range(width):
                at = source + packed * plan.tiles + (tile + t) * narrow + place
                value, bound = named(memory.source[at])
                yield bound
                for b in range(blocks):
                    to = (t * blocks + b) * wide + lane
                    yield sums.store(to, sums[to] + value * w[b])

        return lanes(wide, body)

    def vector(first: Expr, packed: Expr, narrow: int) -> Stmt:
        some = min(_UNROLLED, narrow)
        return loop(
            narrow // some,
            lambda o: sequence(step(first, packed, narrow, o * some + i) for i in range(some)),
        )

    def each(v: int) -> tuple[Stmt, Stmt]:
        to = ((point * plan.tiles + tile) * blocks + v) * wide
        zero = tirx.const(0.0, "float32")
        begin = lanes(wide, lambda lane: iter([sums.store(v * wide + lane, zero)]))
        end = lanes(
            wide, lambda lane: iter([BufferStore(memory.sums, sums[v * wide + lane], [to + lane])])
        )
        return begin, end

    begins, ends = zip(*(each(v) for v in range(width * blocks)), strict=True)
    return sequence([sums.made, *begins, *_summed(plan, memory, step, vector), *ends])


def _summed(
    plan: Plan,
    memory: Memory,
    step: Callable[[Expr, Expr, int, Expr], Stmt],
    vector: Callable[[Expr, Expr, int], Stmt],
) -> list[Stmt]:
    """The products of all channels that are summed over."""
    if memory.seen is None or not plan.is_transformed_whole:
        return for_inputs(plan, memory, vector)
    each, wide = plan.problem.seen, plan.input_lanes

    def group(_: Expr, index: Expr) -> Stmt:
        first, begun = named(tirx.floordiv(index, wide // each) * wide)
        place, bound = named(index * each - first)
        steps = (step(first, first, wide, place + i) for i in range(each))
        return sequence([begun, bound, *steps])

    return [memory.seen.groups(group)]


def _asked(plan: Plan, memory: Memory, weights: Expr, c: Expr, index: Expr) -> Iterator[Stmt]:
    """Asks for the next point's weights, so many lines a channel that its passes ask for all.

    The first pass over a point reads its weights from wherever they are, the others from a cache:
    without this, memory would rest meanwhile. With a single pass the hardware sees one stream.
    """
    full, rest = plan.passes
    passes = full + bool(rest)
    if passes == 1:
        return
    lines = -(-plan.blocks // passes)
    turn = tirx.min(index, plan.blocks // lines - 1)
    channels = plan.problem.shape[3]
    for line in range(lines):
        ahead = channels * plan.blocks + (turn * channels + c) * lines + line
        place = tirx.address_of(memory.weights[weights + ahead * plan.lanes])
        read, data, second = (tirx.const(i, "int32") for i in (0, 1, 2))
        yield Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", place, read, second, data))
