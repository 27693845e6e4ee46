"""The names, shapes and element types of a `Spec` against the real network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from eecompile.diagnostics import Diagnostics, did_you_mean_help
from eecompile.dsl.options import DTYPES
from eecompile.ir import Graph, TensorType
from eecompile.spec import Exit, Input, Model, matching

__all__ = ["Declared", "GraphFacts", "GraphView", "PointView", "check_graph", "check_inputs"]


@dataclass(frozen=True)
class Declared:
    """An input or output as the source network declares it; a dynamic dimension is None.

    >>> str(Declared("float32", (None, 3, 32, 32)))
    'float32[?, 3, 32, 32]'
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @classmethod
    def of(cls, type: TensorType) -> Declared:
        """The declaration of a static type."""
        return cls(type.dtype, type.shape)


class PointView(Protocol):
    """A place in the network where an exit may stand."""

    @property
    def value(self) -> str:
        """The value's name in the graph: equal for all names of one point."""

    @property
    def type(self) -> TensorType:
        """What a head inserted there reads."""

    @property
    def leads_to_output(self) -> bool:
        """Whether an output depends on it."""


class GraphView(Protocol):
    """What the check has to know of the network."""

    @property
    def inputs(self) -> Mapping[str, Declared]:
        """Inputs by name, in order."""

    @property
    def outputs(self) -> Mapping[str, Declared]:
        """Outputs by name, in order."""

    @property
    def output_values(self) -> frozenset[str]:
        """The values the outputs show."""

    @property
    def points(self) -> Mapping[str, PointView]:
        """Every name a point has."""


@dataclass(frozen=True)
class GraphFacts:
    """A `GraphView` of plain data."""

    inputs: Mapping[str, Declared] = field(default_factory=dict)
    outputs: Mapping[str, Declared] = field(default_factory=dict)
    output_values: frozenset[str] = frozenset()
    points: Mapping[str, PointView] = field(default_factory=dict)

    @classmethod
    def of(
        cls, graph: Graph, outputs: Mapping[str, str], points: Mapping[str, PointView]
    ) -> GraphFacts:
        """The facts of a host: its neutral graph, output name -> value, and points."""
        return cls(
            {name: Declared.of(graph.types[name]) for name in graph.inputs},
            {name: Declared.of(graph.types[value]) for name, value in outputs.items()},
            frozenset(outputs.values()),
            points,
        )


def check_graph(model: Model, view: GraphView, found: Diagnostics) -> None:
    """What a model says about its network, against the network; gates are planned elsewhere."""
    check_inputs(model, view.inputs, found)
    _check_output(model, view, found)
    taken: dict[str, Exit] = {}
    for exit in model.exits:
        _check_exit_name(exit, view, found)
        point = _exit_point(exit, model, view, found)
        if point is None:
            continue
        if point.value in taken:
            first = taken[point.value]
            where = first.at("point")
            found.error(
                "duplicate-point",
                f"Exit `{exit.name}` stands where `{first.name}` does",
                exit.at("point"),
                "can never be taken",
                secondary=((where, f"`{first.name}`"),) if where else (),
            )
        taken.setdefault(point.value, exit)


def _check_exit_name(exit: Exit, view: GraphView, found: Diagnostics) -> None:
    """What is inserted at `early` is shown as outputs `early.logits` and the like."""
    for output in view.outputs:
        if output.startswith(f"{exit.name}."):
            found.error(
                "duplicate-name",
                f"Exit `{exit.name}` is called as the network's output `{output}` begins",
                exit.at("name"),
                f"its own outputs are called `{exit.name}.logits` and the like",
                help="give the exit another name",
            )


def _point_help(point: str, view: GraphView) -> str:
    close = did_you_mean_help(point, view.points)
    return close or "`eecompile init` proposes points of a network"


def _no_such(what: str, name: str) -> str:
    is_pattern = any(char in name for char in "*?[")
    return f"No {what} matches `{name}`" if is_pattern else f"Unknown {what} `{name}`"


def _exit_point(exit: Exit, model: Model, view: GraphView, found: Diagnostics) -> PointView | None:
    names = matching(exit.point, view.points)
    at = exit.at("point")
    by_value = {view.points[name].value: name for name in reversed(names)}
    if not names:
        found.error(
            "unknown-point",
            _no_such("point", exit.point),
            at,
            f"no such point in `{model.name}`",
            help=_point_help(exit.point, view),
        )
        return None
    if len(by_value) > 1:
        chosen = [f"`{name}`" for name in names if by_value[view.points[name].value] == name]
        found.error(
            "ambiguous-point",
            f"Expected one point, found {len(chosen)}",
            at,
            "matches several",
            notes=(f"matches {', '.join(chosen[:5])}{' ...' if len(chosen) > 5 else ''}",),
        )
        return None
    point = view.points[names[0]]
    if point.value in view.output_values:
        found.error(
            "nothing-to-skip",
            f"Exit `{exit.name}` stands at the network's output",
            at,
            "nothing is left to skip after it",
        )
        return None
    if not point.leads_to_output:
        found.error(
            "unreachable-output",
            f"The output does not depend on `{exit.point}`",
            at,
            "leads to no output",
        )
        return None
    return point


def check_inputs(model: Model, inputs: Mapping[str, Declared], found: Diagnostics) -> None:
    """The model's `input` statements against the network's, with what is left dynamic."""
    pairs = _paired(model, inputs, found)
    if pairs is None:
        return
    for name, declared in inputs.items():
        given = pairs.get(name)
        if given is not None:
            _check_type(given, declared, found)
        elif declared.shape is None or None in declared.shape:
            found.error(
                "missing-input",
                f"Input `{name}` has dynamic dimensions: `{declared}`",
                model.at("path"),
                "nothing says their size",
                help=f"add `input {_written(name)}: {_example(declared)}` with numbers for `?`",
            )


def _written(name: str) -> str:
    plain = name.replace("_", "a").isalnum() and not name[0].isdigit() and name.isascii()
    return name if plain else f'"{name}"'


def _example(declared: Declared) -> str:
    """The declaration, for one sample a call where that is open.

    >>> _example(Declared("float32", (None, 3, None)))
    'float32[1, 3, ?]'
    """
    if not declared.shape:
        return f"{declared.dtype}[?]"
    first = 1 if declared.shape[0] is None else declared.shape[0]
    return str(Declared(declared.dtype, (first, *declared.shape[1:])))


def _paired(
    model: Model, inputs: Mapping[str, Declared], found: Diagnostics
) -> dict[str, Input] | None:
    """The network's input name -> statement: by name, or by position where no name is known."""
    given = {i.name: i for i in model.inputs}
    unknown = [i for i in model.inputs if i.name not in inputs]
    if not unknown:
        return given
    if len(unknown) == len(model.inputs) == len(inputs):
        return dict(zip(inputs, model.inputs, strict=True))
    for i in unknown:
        found.error(
            "unknown-input",
            f"Unknown input `{i.name}`",
            i.at("name"),
            f"`{model.name}` has {_listed(inputs)}",
            help=did_you_mean_help(i.name, inputs),
        )
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _check_type(given: Input, declared: Declared, found: Diagnostics) -> None:
    dtype, shape = given.type.dtype, given.type.shape
    reads = f"the network reads `{declared}`"
    if dtype in DTYPES and dtype != declared.dtype:
        message = f"Expected `{declared.dtype}`, found `{dtype}`"
        found.error("wrong-dtype", message, given.at("dtype"), reads)
    if declared.shape is None or 0 in shape:
        return
    if len(shape) != len(declared.shape):
        message = f"Expected {len(declared.shape)} dimensions, found {len(shape)}"
        found.error("wrong-shape", message, given.at("type"), reads)
        return
    pairs = enumerate(zip(shape, declared.shape, strict=True))
    wrong = [i for i, (size, fixed) in pairs if fixed not in (None, size)]
    if len(wrong) == 1:
        (i,) = wrong
        message = f"Expected {declared.shape[i]} as dimension {i + 1}, found {shape[i]}"
        found.error("wrong-shape", message, given.at(f"dim{i}"), reads)
    elif wrong:
        message = f"Expected `{declared}`, found `{given.type}`"
        found.error("wrong-shape", message, given.at("type"), f"{len(wrong)} dimensions differ")


def _check_output(model: Model, view: GraphView, found: Diagnostics) -> None:
    output = model.output
    if output is None or not view.outputs:
        return
    if output.name not in view.outputs and len(view.outputs) > 1:
        found.error(
            "unknown-output",
            f"Unknown output `{output.name}`",
            output.at("name"),
            f"`{model.name}` has {_listed(view.outputs)}",
            help=did_you_mean_help(output.name, view.outputs),
        )
        return
    # A single output is meant whatever it is called: hosts name it differently.
    declared = view.outputs.get(output.name) or next(iter(view.outputs.values()))
    if output.classes is None or not declared.shape:
        return
    last = declared.shape[-1]
    if last is not None and last != output.classes:
        found.error(
            "wrong-classes",
            f"Expected {last} classes, found {output.classes}",
            output.at("classes"),
            f"the output is `{declared}`",
        )
