"""What may be chosen of a kernel's schedule, as values that can be written down.

A `Choice` names a family and its numbers. Families measure in their own types (`Tile`, `Plan`,
`SlidingTile`, `Strips`); this module knows which of them a kernel has, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from typing import Any

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.conv import candidates as conv_tiles
from eecompile.targets.lowering.schedules.conv import conv
from eecompile.targets.lowering.schedules.dense import Tile as ProductTile
from eecompile.targets.lowering.schedules.dense import candidates as product_tiles
from eecompile.targets.lowering.schedules.depthwise import candidates as depthwise_tiles
from eecompile.targets.lowering.schedules.depthwise import depthwise
from eecompile.targets.lowering.schedules.expanded import Strips, expanded
from eecompile.targets.lowering.schedules.expanded import candidates as strips
from eecompile.targets.lowering.schedules.kept import suited
from eecompile.targets.lowering.schedules.matmul import dimensions, matmul
from eecompile.targets.lowering.schedules.pooling import candidates as pool_tiles
from eecompile.targets.lowering.schedules.pooling import is_whole, pool
from eecompile.targets.lowering.schedules.sliding import SlidingTile
from eecompile.targets.lowering.schedules.tiles import Tile
from eecompile.targets.lowering.schedules.winograd import candidates as winograd_tiles
from eecompile.targets.lowering.schedules.winograd import chosen, problem_of, winograd
from eecompile.targets.lowering.schedules.winograd_plan import Plan, best_plan, plan_cost, plans
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["Choice", "choices", "scheduled"]

#: Candidates of one family: so many are compiled and timed in about a second.
_MOST = 6

#: Direct tiles, and plans of each tile of Winograd's, where a kernel has both.
_DIRECT, _PLANS = 4, 2


@dataclass(frozen=True)
class Choice:
    """One way to schedule a kernel.

    Attributes:
        family: "conv", "winograd", "depthwise", "expanded", "pool" or "matmul".
        numbers: what it is measured in, by name.
    """

    family: str
    numbers: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, family: str, value: Any) -> Choice:
        """A family's own value.

        >>> str(Choice.of("conv", Tile(14, 2)))
        'conv width=14 blocks=2'
        """
        return cls(family, tuple(asdict(value).items()))

    def __str__(self) -> str:
        return " ".join([self.family, *(f"{name}={number}" for name, number in self.numbers)])

    def value(self, type_: type) -> Any:
        """The family's own value again."""
        return type_(**dict(self.numbers))


def _family_of(spec: KernelSpec) -> str | None:
    """The family whose schedules a kernel is given; None where there is nothing to choose."""
    anchor = spec.anchor
    if anchor.attribute("channels_last"):
        if anchor.kind in ("MaxPool", "AveragePool"):
            return None if is_whole(spec) else "pool"
        if anchor.kind == "Conv":
            weight = spec.operands[anchor.inputs[1]].type.shape
            if anchor.attribute("group") > 1 and weight[1] == 1:
                return "expanded" if spec.before else "depthwise"
            return "conv"
    if anchor.kind == "MatMul" and anchor.type.dtype == "float32":
        return "matmul" if dimensions(spec) is not None else None
    return None


def choices(spec: KernelSpec, machine: Machine) -> list[Choice]:
    """A handful of ways to schedule a kernel, the one taken without a measurement first.

    All compute the same; those whose error bound is too large for the kernel are not among them.
    """
    family = _family_of(spec)
    match family:
        case None:
            return []
        case "conv":
            return _convolutions(spec, machine)
        case "depthwise":
            found: Sequence[Any] = depthwise_tiles(spec, machine)
        case "expanded":
            found = strips(spec, machine)
        case "pool":
            found = pool_tiles(spec, machine)
        case "matmul":
            extents = dimensions(spec)
            assert extents is not None, "a product has dimensions"
            found = product_tiles(*extents, machine)
    return [Choice.of(family, value) for value in found[:_MOST]]


def _convolutions(spec: KernelSpec, machine: Machine) -> list[Choice]:
    """Direct tiles, and Winograd's where they apply; what the estimates name comes first."""
    problem, best = problem_of(spec, machine), chosen(spec, machine)
    machine = suited(spec, machine)
    found: list[list[Choice]] = []
    if problem is not None:
        for m in winograd_tiles(spec, machine):
            ranked = sorted(plans(problem, machine, m), key=lambda plan: plan_cost(plan, machine))
            found.append([_plan_choice(plan) for plan in _different(ranked)])
    direct = [Choice.of("conv", tile) for tile in conv_tiles(spec, machine)]
    found.append(direct[: _DIRECT if found else _MOST])
    found.sort(key=lambda some: ("tile", best) not in some[0].numbers)
    if best is None:
        found.reverse()
    # Whoever has little time measures the best of each first.
    return [choice for place in zip_longest(*found) for choice in place if choice is not None]


def _different(ranked: Sequence[Plan]) -> list[Plan]:
    """The best plans of which no two keep the same in registers."""
    kept: dict[tuple[int, int, bool], Plan] = {}
    for plan in ranked:
        kept.setdefault((plan.width, plan.blocks, plan.fused), plan)
    return list(islice(kept.values(), _PLANS))


def _plan_choice(plan: Plan) -> Choice:
    numbers = {name: int(getattr(plan, name)) for name in _PLAN}
    return Choice("winograd", (("tile", plan.transform.tile), *numbers.items()))


_PLAN = ("rows", "columns", "width", "blocks", "fused")


def scheduled(spec: KernelSpec, machine: Machine, choice: Choice) -> Scheduled:
    """The kernel as chosen; the choice is one of `choices`."""
    match choice.family:
        case "conv":
            return conv(spec, machine, choice.value(Tile))
        case "winograd":
            return _winograd(spec, machine, dict(choice.numbers))
        case "depthwise":
            return depthwise(spec, machine, choice.value(SlidingTile))
        case "expanded":
            return expanded(spec, machine, choice.value(Strips))
        case "pool":
            return pool(spec, machine, choice.value(SlidingTile))
    product = matmul(spec, machine, choice.value(ProductTile))
    assert product is not None, "a product has dimensions"
    return product


def _winograd(spec: KernelSpec, machine: Machine, numbers: dict[str, int]) -> Scheduled:
    problem, tile = problem_of(spec, machine), numbers.pop("tile")
    assert problem is not None, "a convolution for Winograd's algorithm"
    fused = bool(numbers.pop("fused"))
    plan = best_plan(problem, suited(spec, machine), tile)
    kept: dict[str, Any] = {**numbers, "fused": fused}
    return winograd(spec, machine, tile, replace(plan, **kept))
