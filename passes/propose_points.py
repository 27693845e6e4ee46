"""Places where a network can be cut well: what `eecompile init` writes into a new file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eecompile.cost import op_macs
from eecompile.ir import Graph, TensorType
from eecompile.passes.host import Point
from eecompile.passes.structure import Flow

__all__ = ["Candidate", "propose_points"]

#: From so many blocks on, single layers and tensors are not proposed beside them.
_ENOUGH_BLOCKS = 3
#: Shares of the work between which an exit can be of use.
_FIRST, _LAST = 0.02, 0.98
#: Longest stretch of the work without a single value that all of it goes through.
_STRETCH = 0.5
#: Operators that belong to the layer before them: an average of what they read says little.
_FINISHING = frozenset(
    """BatchNormalization Celu Clip Elu Gelu GroupNormalization HardSigmoid HardSwish
    InstanceNormalization LayerNormalization LeakyRelu Mish PRelu Relu Selu Sigmoid Softplus Tanh
    ThresholdedRelu""".split()
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point that an exit could stand at.

    Attributes:
        name: what to write after ``after``.
        value: the value's name in the graph.
        type: its type.
        macs_fraction: share of the network's multiply-accumulates done when it is reached.
    """

    name: str
    value: str
    type: TensorType
    macs_fraction: float


def propose_points(
    graph: Graph, points: Mapping[str, Point], answer: str, count: int = 6
) -> tuple[Candidate, ...]:
    """At most `count` candidates, spread evenly over the multiply-accumulates, in order.

    Only values that everything after them goes through are proposed, so that one tensor crosses
    the border. Of those between which nothing is multiplied, the output of a block of modules is
    chosen, then what no activation or normalisation follows, then a module's output, then the
    smallest tensor. Points before 2 % and after 98 % of the work are left out. Where half of the
    network has no such value (every layer reads a mask), values with the fewest tensors beside
    them are taken, not counting what takes no work to make.

    Args:
        graph: the network's neutral view.
        points: the host's points.
        answer: value of the network's answer.
        count: how many to propose.
    """
    graph = graph.pruned((answer,))
    flow = Flow(graph)
    names = _names_of(points)
    gates = [value for value in flow.gates(graph.inputs, answer) if value in names]
    usable = [v for v in gates if _fits(graph.types[v])]
    work = _work_above(graph, flow, usable)
    if _longest_stretch(work.values()) > _STRETCH:
        usable = [v for v in names if _fits(graph.types.get(v)) and v != answer]
        work = _work_above(graph, flow, usable)
        usable = _fewest_beside(graph, flow, [v for v in usable if _FIRST < work[v] < _LAST])
    composite = _composite(points)
    best: dict[float, Candidate] = {}
    ranks: dict[float, tuple[bool, bool, bool, int]] = {}
    users = graph.users()
    for value in usable:
        if not _FIRST < work[value] < _LAST:
            continue
        name = min(names[value], key=lambda n: _name_rank(points[n], n in composite))
        raw = all(user.kind in _FINISHING for user in users[value])
        size = graph.types[value].nbytes
        rank = (name not in composite, raw, not points[name].module, size)
        if work[value] not in ranks or rank <= ranks[work[value]]:
            ranks[work[value]] = rank
            best[work[value]] = Candidate(name, value, graph.types[value], work[value])
    found = [best[done] for done in sorted(best)]
    blocks = [candidate for candidate in found if candidate.name in composite]
    return _spread(_outermost(blocks) if len(blocks) >= _ENOUGH_BLOCKS else found, count)


def _outermost(blocks: Sequence[Candidate]) -> list[Candidate]:
    """Those that are not inside another one."""
    names = {block.name for block in blocks}
    return [b for b in blocks if not any(path in names for path in _containing(b.name))]


def _containing(path: str) -> list[str]:
    """Paths of the modules around a module.

    >>> _containing("layer1.8.conv1")
    ['layer1', 'layer1.8']
    """
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _fits(type_: TensorType | None) -> bool:
    """Whether a head can read a value of this type."""
    if type_ is None or type_.dtype != "float32":
        return False
    return len(type_.shape) > 1 and type_.shape[0] == 1


def _names_of(points: Mapping[str, Point]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, point in points.items():
        names.setdefault(point.value, []).append(name)
    return names


def _composite(points: Mapping[str, Point]) -> set[str]:
    """Module paths of modules that have modules in them."""
    paths = [name for name, point in points.items() if point.module]
    return {path.rpartition(".")[0] for path in paths} & set(paths)


def _name_rank(point: Point, composite: bool) -> tuple[bool, bool, bool, int, str]:
    """Blocks first, those counted in a list before others: ``layer1.8`` before ``layer1``."""
    last = point.name.rpartition(".")[2]
    depth = point.name.count(".")
    return not point.module, not composite, not last.isdigit(), -depth, point.name


def _work_above(graph: Graph, flow: Flow, values: Sequence[str]) -> dict[str, float]:
    """Value -> share of the multiply-accumulates needed for it."""
    macs = {op.outputs[0]: op_macs(op, graph) for op in graph.ops}
    total = max(sum(macs.values()), 1)
    return {
        value: sum(macs.get(v, 0) for v in (*flow.above(value), value)) / total for value in values
    }


def _longest_stretch(work: Iterable[float]) -> float:
    """The largest step between shares of the work, those an exit can be of use at.

    >>> _longest_stretch([0.01, 0.25, 0.75, 0.99])
    0.5
    >>> _longest_stretch([])
    1.0
    """
    places = [0.0, *sorted(done for done in work if _FIRST < done < _LAST), 1.0]
    return max(after - before for before, after in itertools.pairwise(places))


def _fewest_beside(graph: Graph, flow: Flow, values: Sequence[str]) -> list[str]:
    """Those of the values at which the fewest tensors that took work would cross a border."""
    worked = _worked(graph)
    crossing: dict[str, int] = {}
    for value in values:
        done = {*flow.above(value), value} & worked
        later = (op for op in graph.ops if done.isdisjoint(op.outputs))
        crossing[value] = len({v for op in later for v in op.inputs} & done)
    fewest = min(crossing.values(), default=0)
    return [value for value in values if crossing[value] == fewest]


def _worked(graph: Graph) -> set[str]:
    """Values that something was multiplied for."""
    found: set[str] = set()
    for op in graph.ops:
        if op_macs(op, graph) or not found.isdisjoint(op.inputs):
            found.update(op.outputs)
    return found


def _spread(candidates: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """`count` of the candidates, as near as can be to even steps of work."""
    left = list(candidates)
    chosen: list[Candidate] = []
    for step in range(min(count, len(left))):
        goal = (step + 1) / (count + 1)
        nearest = min(left, key=lambda c: abs(c.macs_fraction - goal))
        left.remove(nearest)
        chosen.append(nearest)
    return tuple(sorted(chosen, key=lambda c: c.macs_fraction))
