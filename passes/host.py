"""The one editing interface of a source network; `fx_host` and `onnx_host` implement it.

A `HostGraph` owns a private copy of the network. Passes look at it through `graph()`, the neutral
view, and name its values by the names used there. Two rules tie the view to the host:

- A value of the view that exists in the host has the host's name; a value that exists only in the
  view (the product inside a `Gemm`) does not appear in `points()` and cannot be edited.
- Of the operators that one host node became, the last carries the node's name; `Op.scope` is the
  module path the host recorded, and `prefix` for everything that `splice` brought in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from eecompile.ir import Graph, TensorType

__all__ = [
    "HostError",
    "HostGraph",
    "Point",
    "Problem",
    "collect_points",
    "handed_on",
    "module_values",
    "read_by",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a source network: the material of one diagnostic.

    Attributes:
        kind: kebab-case id of the diagnostic (``unsupported-operator``, ``unreadable-model`` ...).
        message: headline; a sentence without its full stop, names in backticks.
        node: the host's name of the node at fault, or empty.
        operator: the node's operator as the host calls it (``onnx.brevitas::Quant``), or empty.
        help: what the user can do, or empty.
    """

    kind: str
    message: str
    node: str = ""
    operator: str = ""
    help: str = ""


class HostError(Exception):
    """The source network cannot be used; `problems` holds every independent reason found."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(problem.message for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Point:
    """An addressable place after which a head can be inserted.

    Attributes:
        name: what the user writes: a module path, a node's name or a tensor's name.
        aliases: the other names of the same value, each a key of `points()` too.
        value: the value's name in `graph()`.
        type: its element type and shape, leading dimension included.
        leads_to_output: whether an output of the network depends on it.
        module: whether `name` is a module path.
    """

    name: str
    aliases: tuple[str, ...]
    value: str
    type: TensorType
    leads_to_output: bool
    module: bool


class HostGraph(ABC):
    """A source network that can be read as a neutral graph, extended, run and saved.

    Every edit is atomic: where it raises, the host is as it was.
    """

    kind: str  #: "onnx" or "fx"

    @abstractmethod
    def copy(self) -> Self:
        """An independent host of the same network; edits of one are not seen by the other."""

    @abstractmethod
    def graph(self) -> Graph:
        """The neutral view of the network as it is now, cached until the next edit.

        Its outputs are ``tuple(self.outputs().values())``.

        Raises:
            HostError: operators cannot be translated; one problem for each, all of them at once.
        """

    @abstractmethod
    def outputs(self) -> dict[str, str]:
        """Output name -> the value of `graph()` it shows, in the host's order."""

    @abstractmethod
    def points(self) -> dict[str, Point]:
        """Every name that can be written after ``exit ... after``, in topological order."""

    @abstractmethod
    def splice(
        self,
        graph: Graph,
        feature: str | Mapping[str, str],
        prefix: str,
        weights: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """Insert `graph` behind what it reads; returns the new values of its outputs.

        Constants become initializers (ONNX) or trainable parameters (FX) under the module path
        `prefix`. The new values feed nothing yet.

        Args:
            graph: what to insert.
            feature: the value that its single input becomes, or input -> value.
            prefix: module path of what is inserted.
            weights: constant -> its own module path; one that is there already, from an earlier
                splice, is the same weight. Other constants are then no trainable parameters.

        Raises:
            HostError: a value is none of the host's, its type is not that of the graph's input,
                `prefix` or the path of a weight is taken, or an operator cannot be expressed.
        """

    @abstractmethod
    def add_output(self, name: str, value: str) -> None:
        """Show `value` as a further output called `name`.

        Raises:
            HostError: no such value, or `name` is an output already.
        """

    @abstractmethod
    def replace_uses(self, old: str, new: str) -> None:
        """Every operator and output that reads `old` reads `new`; `new`'s own ancestors do not.

        Raises:
            HostError: no such value, or the types differ.
        """

    def rewire(self, uses: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """`replace_uses` for each of `uses` (old -> new), then `add_output` for each of `outputs`.

        A host may do it in one go, for networks that are edited in many places.

        Raises:
            HostError: as those two.
        """
        for old, new in uses.items():
            self.replace_uses(old, new)
        for name, value in outputs.items():
            self.add_output(name, value)

    @abstractmethod
    def remove_unused(self) -> bool:
        """Drop operators and weights no output needs; says whether there were any."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output, by name, computed by the host's own engine: the reference for `build`."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the network as it is now in the host's own format, atomically."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of structure and weights: equal for equal networks, across processes."""


def read_by(graph: Graph, feature: str | Mapping[str, str]) -> dict[str, str]:
    """Input of a graph to be spliced in -> the host's value that it becomes.

    Raises:
        HostError: one of them has no value.
    """
    if isinstance(feature, str):
        feature = dict.fromkeys(graph.inputs[:1], feature)
    missing = [name for name in graph.inputs if name not in feature]
    if missing or not graph.inputs:
        message = f"Graph `{graph.name}` reads {', '.join(graph.inputs) or 'nothing'}"
        raise HostError(Problem("bad-head", f"{message}, given are {', '.join(feature)}"))
    return {name: feature[name] for name in graph.inputs}


def module_values(graph: Graph) -> dict[str, str]:
    """Module path -> the value the module hands on, read off the operators' scopes.

    That is the last value an operator of the module (or of a module inside it) produces that is
    an output or is read outside the module. O(#ops x depth).
    """
    return handed_on(((op.scope, op.inputs, op.outputs) for op in graph.ops), graph.outputs)


def handed_on(
    steps: Iterable[tuple[str, Iterable[str], Iterable[str]]], outputs: Iterable[str]
) -> dict[str, str]:
    """`module_values` of any list of (module path, values read, values produced).

    >>> steps = [("a.conv", ["x"], ["y"]), ("a.relu", ["y"], ["z"]), ("b", ["z"], ["w"])]
    >>> handed_on(steps, ["w"])
    {'a.conv': 'y', 'a': 'z', 'a.relu': 'z', 'b': 'w'}
    """
    steps = [(scope, tuple(read), tuple(made)) for scope, read, made in steps]
    readers: dict[str, set[str]] = {}
    for scope, read, _ in steps:
        for value in read:
            readers.setdefault(value, set()).add(scope)
    shown = set(outputs)
    found: dict[str, str] = {}
    for scope, _, made in steps:
        for path in _prefixes(scope):
            inside = f"{path}."
            for value in made:
                if value in shown or any(
                    reader != path and not reader.startswith(inside)
                    for reader in readers.get(value, ())
                ):
                    found[path] = value
    return found


def _prefixes(scope: str) -> Iterable[str]:
    """Module paths that contain `scope`, outermost first.

    >>> list(_prefixes("layer1.8.conv1"))
    ['layer1', 'layer1.8', 'layer1.8.conv1']
    """
    parts = scope.split(".") if scope else []
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def collect_points(
    graph: Graph,
    host_values: Iterable[str],
    node_names: Mapping[str, str],
    modules: Mapping[str, str] | None = None,
) -> dict[str, Point]:
    """The points of a host, from its neutral view.

    A name that a module path and a node share is the module's; one that a node and another node's
    tensor share is the node's.

    Args:
        graph: the neutral view.
        host_values: its values that exist in the host (constants are passed over).
        node_names: further name -> value: nodes by name, and names the view did away with
            (an `Identity`'s result).
        modules: module path -> value; default `module_values(graph)`.
    """
    modules = module_values(graph) if modules is None else modules
    leading = _ancestors(graph)
    order = {value: i for i, value in enumerate(graph.inputs)}
    for op in graph.ops:
        order.update((value, len(order)) for value in op.outputs)
    named: dict[str, str] = {value: value for value in host_values}
    named |= node_names
    named |= modules
    names: dict[str, list[str]] = {}
    for name, value in named.items():
        if value in order:
            names.setdefault(value, []).append(name)
    points: dict[str, Point] = {}
    for value in sorted(names, key=order.__getitem__):
        for name in sorted(names[value], key=lambda n: (n not in modules, -len(n), n)):
            aliases = tuple(other for other in names[value] if other != name)
            points[name] = Point(
                name, aliases, value, graph.types[value], value in leading, name in modules
            )
    return points


def _ancestors(graph: Graph) -> set[str]:
    """Values that some output depends on."""
    live = set(graph.outputs)
    for op in reversed(graph.ops):
        if not live.isdisjoint(op.outputs):
            live.update(filter(None, op.inputs))
    return live
