"""How a convolution is cut into strips of tiles, and what that is estimated to cost.

On the machine of boards/host.toml, over 20 shapes from 3 to 1024 channels and 4 to 112 pixels, the
estimates name the fastest of direct, F(2x2) and F(4x4) for 13; what they name takes 1.06 of its
time on average and 1.34 at most. They take all weights to come from afar, as in a network that is
larger than the caches: it is with weights still in a cache that F(4x4) is passed over wrongly.
Large images are underestimated by up to a half, whatever the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.tiles import choose_tile
from eecompile.targets.lowering.schedules.winograd_points import Transform, transform

__all__ = ["Plan", "Problem", "best_plan", "direct_cost", "plan_cost", "plans"]

#: Vectors of weights that come from beyond the second cache cost so many multiply-adds, and this
#: share of it where products hide it. Source: 25 GB/s against 0.275 ns for a 512-bit multiply-add,
#: and the times of 256 and 512 channels at 14x14 and 7x7, on the machine of boards/host.toml.
_FAR, _FAR_SEEN = 9.0, 0.4

#: The same for vectors that come from the second cache. Measured there.
_RELOAD = 0.7

#: Slowdown of a transform whose results leave the first cache, or the second one. Measured there.
_L2_FACTOR, _L3_FACTOR = 1.4, 2.5

#: Share of the peak that direct kernels reach, measured there on 3x3 convolutions.
_DIRECT_SHARE = 0.92

#: Lanes below which transforms lose more than by transforming channels that are not read.
_SHORTEST = 8

#: Strips of more tiles gain nothing: their weights are in registers for long enough.
_MOST_TILES = 64


@dataclass(frozen=True)
class Problem:
    """A 3x3 convolution of stride 1.

    Attributes:
        shape, result: batch, height, width, channels of input and output.
        top, left: padding before the input.
        each: output channels of a gate's group, 0 where no gate follows.
        seen: input channels of a gate's group, 0 where all are summed over.
        lanes: of the vectors that the input is transformed in, 0 for those of the sums.
    """

    shape: tuple[int, int, int, int]
    result: tuple[int, int, int, int]
    top: int
    left: int
    each: int = 0
    seen: int = 0
    lanes: int = 0

    def vectors(self, lanes: int) -> int:
        """Vectors of output channels."""
        return -(-self.result[3] // lanes)


@dataclass(frozen=True)
class Plan:
    """A strip is `rows` x `columns` tiles; `width` tiles x `blocks` vectors are in registers.

    Attributes:
        fused: whether a strip is finished before the next begins; else all of the input is
            transformed first, and each group of outputs is a unit of work.
    """

    problem: Problem
    transform: Transform
    lanes: int
    rows: int
    columns: int
    width: int
    blocks: int
    fused: bool

    @property
    def strips(self) -> tuple[int, int, int]:
        """Strips: samples, from top to bottom, from left to right."""
        batch, height, width, _ = self.problem.result
        m = self.transform.tile
        return batch, -(-height // (m * self.rows)), -(-width // (m * self.columns))

    @property
    def count(self) -> int:
        """Number of strips."""
        batch, down, across = self.strips
        return batch * down * across

    @property
    def tiles(self) -> int:
        """Tiles of a strip."""
        return self.rows * self.columns

    @property
    def points(self) -> int:
        """Products that replace those of a tile."""
        return self.transform.size**2

    @property
    def groups(self) -> int:
        """Passes over a strip's transformed input, each for `blocks` vectors of outputs."""
        return self.problem.vectors(self.lanes) // self.blocks

    @property
    def is_transformed_whole(self) -> bool:
        """Whether groups of input channels are too short for vectors of their own.

        All channels are then transformed, those of kept groups summed over.
        """
        each, channels = self.problem.seen, self.problem.shape[3]
        wide = self.input_lanes
        return 0 < each < min(wide, _SHORTEST) and wide % each == 0 and channels % wide == 0

    @property
    def input_lanes(self) -> int:
        """Elements of a vector of transformed input."""
        return self.problem.lanes or self.lanes

    @property
    def passes(self) -> tuple[int, int]:
        """Register tiles along a strip: full ones, and tiles that are left for a last one."""
        return divmod(self.tiles, self.width)

    @property
    def stride(self) -> int:
        """Elements from one point's transformed input to the next one's.

        A multiple of 2 KiB would put all points into a few sets of the first cache.
        """
        elements = -(-self.tiles * self.problem.shape[3] // self.lanes) * self.lanes
        return elements + (self.lanes if elements % 512 == 0 else 0)

    @property
    def sliding(self) -> int:
        """Columns of the input that a row of a strip's tiles reads."""
        return (self.columns - 1) * self.transform.tile + self.transform.size

    @property
    def source_elements(self) -> int:
        """Elements of a strip's transformed input."""
        return self.points * self.stride

    @property
    def column_elements(self) -> int:
        """Elements of a row of tiles after the first half of the transform, for one vector."""
        return self.transform.size * self.sliding * self.input_lanes

    @property
    def sum_elements(self) -> int:
        """Elements of a strip's sums for one group of outputs."""
        return self.points * self.tiles * self.blocks * self.lanes

    @property
    def weight_elements(self) -> int:
        """Elements of the transformed weights."""
        return self.points * self.problem.shape[3] * self.groups * self.blocks * self.lanes


def best_plan(problem: Problem, machine: Machine, tile: int) -> Plan:
    """The plan of least estimated cost."""
    return min(plans(problem, machine, tile), key=lambda plan: plan_cost(plan, machine))


def plans(problem: Problem, machine: Machine, tile: int) -> Iterator[Plan]:
    """Plans worth an estimate."""
    t, lanes = transform(tile), machine.lanes
    down, across = (-(-extent // tile) for extent in problem.result[1:3])
    vectors = problem.vectors(lanes)
    for rows, columns in _strips(down, across):
        whole = problem.each // lanes or vectors
        for blocks in (b for b in range(1, min(whole, 8) + 1) if whole % b == 0):
            widest = (machine.tile_registers - 1 - blocks) // blocks
            for width in _widths(rows * columns, widest):
                for fused in (True, False):
                    yield Plan(problem, t, lanes, rows, columns, width, blocks, fused)


def _widths(tiles: int, widest: int) -> list[int]:
    """Tiles in registers so that all passes but the last are equal and none is needless.

    >>> _widths(14, 8), _widths(16, 7)
    ([7, 5, 4], [6, 4])
    """
    least = -(-tiles // max(widest, 1))
    return sorted({-(-tiles // n) for n in range(least, least + 3)}, reverse=True)


def _strips(down: int, across: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of strips: parts of a row, or whole rows.

    >>> list(_strips(3, 4))
    [(1, 4), (1, 2), (2, 4), (3, 4)]
    """
    found = [(1, -(-across // parts)) for parts in range(1, across // 4 + 2)]
    found += [(-(-down // parts), across) for parts in range(down, 0, -1)]
    return (s for s in dict.fromkeys(found) if s[0] * s[1] <= _MOST_TILES or s == (1, found[-1][1]))


def plan_cost(plan: Plan, machine: Machine) -> float:
    """Estimated time of a plan, in vector multiply-adds of one core.

    Transformed weights are read once from afar, and in each pass from a cache.
    """
    units = plan.count * (1 if plan.fused else plan.groups)
    shared = -(-units // machine.cores) * machine.cores / units
    far = plan.weight_elements / plan.lanes
    products = plan.count * plan.groups * plan.points * _point_cost(plan, machine)
    work = hypot(products, far * _FAR)
    return shared * (work + plan.count * plan.tiles * _transform_cost(plan, machine))


def _transform_cost(plan: Plan, machine: Machine) -> float:
    """Of a tile's transforms: additions, or loads and stores if they take longer."""
    t, m, n = plan.transform, plan.transform.tile, plan.transform.size
    inputs, outputs = -(-plan.problem.shape[3] // plan.input_lanes), plan.groups * plan.blocks
    rows = plan.sliding / plan.columns + n
    additions, back_additions = t.additions
    # A store takes the time of two loads.
    forward = rows * max(additions, 3 * n)
    back = max((n + m) * back_additions, n * n + 3 * m * m)
    return inputs * forward * _spill(plan, machine, plan.fused) + outputs * back * _spill(
        plan, machine, True
    )


def _spill(plan: Plan, machine: Machine, strip: bool) -> float:
    """Factor for what does not stay in the first cache."""
    elements = plan.source_elements * (1 if strip else plan.count) + plan.sum_elements
    if elements * 4 <= 1.25 * machine.l1_bytes:
        return 1.0
    return _L2_FACTOR if elements * 4 <= machine.l2_bytes else _L3_FACTOR


def _point_cost(plan: Plan, machine: Machine) -> float:
    """Of one point's sums for a strip and a group of outputs."""
    channels, blocks = plan.problem.shape[3], plan.blocks
    weights = plan.points * channels * blocks * plan.lanes * (plan.groups if plan.fused else 1)
    # The first strip's come from afar in any case.
    lost = 0.0 if weights * 4 <= 0.7 * machine.l2_bytes else 1 - 1 / plan.count
    reload = _RELOAD + _FAR * _FAR_SEEN * lost
    source = (_spill(plan, machine, plan.fused) - 1) / _L2_FACTOR
    slab = 4 * channels * blocks * plan.lanes
    full, rest = plan.passes
    cost = 0.0
    for width, count in ((plan.width, full), (rest, 1)):
        if width and count:
            step = max(width * blocks, (width + blocks) * 0.55, 2 * machine.fma_latency)
            step += 6 * source * width / plan.lanes + 0.15 * blocks
            cost += count * (channels * step + 3 * width * blocks)
    again = full + bool(rest) - 1 if slab > machine.l1_bytes // 4 else 0
    return cost + channels * blocks * (reload + _RELOAD * again)


def direct_cost(problem: Problem, machine: Machine) -> float:
    """Estimated time of the direct kernel, in the same unit."""
    batch, height, width, _ = problem.result
    channels, vectors = problem.shape[3], problem.vectors(machine.lanes)
    tile = choose_tile(width, vectors, 9 * channels, machine)
    wide = -(-width // tile.width) * tile.width
    step = max(1.0, (tile.width + tile.blocks) * 0.55 / (tile.width * tile.blocks))
    products = batch * height * wide * vectors * 9 * channels * step / _DIRECT_SHARE
    padded = 3 * batch * (height + 2) * (wide + 2) * -(-channels // machine.lanes)
    far = 9 * channels * vectors
    return padded + hypot(products, far * _FAR)
