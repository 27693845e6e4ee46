"""The IR as text: what golden tests, dumps and bug reports show, and what parses back.

    graph net(image: float32[1, 4]) -> (logits: float32[1, 2]) {
        const w: float32[4, 2] = random(0)
        logits: float32[1, 2] = MatMul(image, w) as fc @ classifier
    }

An operator's line holds its value and type, kind, inputs, attributes after ``;``, its name after
``as`` where that is not the value's, and its module path after ``@``. Names that are no plain words
are in double quotes, an absent input is ``_``, and ``#`` starts a comment. Constants are
written out up to 16 elements, as ``splat(v)`` where all elements are the same, and else by content
as ``sha256("...")``; ``random(seed)`` is there for tests that need weights but not which.

A segment graph's text has two details. "borders" leaves the operators out: segments, borders,
types, multiply-accumulates and exits, the same for a network whichever host it came through.
"full" holds everything and parses back. Below a segment stand its steps, where gates decide what
of it runs: ``gate = graph ...`` and ``step keep v otherwise w channels u = graph ...``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import numpy as np

from eecompile.cost import graph_macs
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.segments import Exit, Segment, SegmentGraph, Step

__all__ = [
    "TextError",
    "constant_digest",
    "excerpt",
    "parse_graph",
    "parse_segments",
    "print_graph",
    "print_segments",
]

_INLINE_ELEMENTS = 16
_RESERVED = frozenset(("_", "const"))
#: Names of values that decide about a step, by the words they stand behind.
_ROLES = ("keep", "otherwise", "channels")
_WORD = re.compile(r"[A-Za-z_/][\w/.]*")
_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|inf\b|nan\b))
      | (?P<word>[A-Za-z_/][\w/.]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<mark>->|[(){}\[\],:;=@])""",
    re.VERBOSE,
)

_T = TypeVar("_T")

#: Digest and type -> array, for constants that the text names by content.
ConstantLoader = Callable[[str, TensorType], np.ndarray]


class TextError(ValueError):
    """The text is no IR; the message names the line."""


# Printing.


def _name(name: str) -> str:
    """The name as a word, quoted where it is none.

    >>> _name("layer1.8"), _name("onnx::Add_3"), _name("const")
    ('layer1.8', '"onnx::Add_3"', '"const"')
    """
    plain = _WORD.fullmatch(name) and name not in _RESERVED and name not in ("inf", "nan")
    return name if plain else json.dumps(name)


def _attribute(value: Attribute) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_attribute, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else str(value)


def constant_digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of the elements in C order; type and shape stand beside it in the text."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _constant(array: np.ndarray) -> str:
    flat = np.ascontiguousarray(array).reshape(-1)
    elements = [_attribute(e) if flat.dtype == bool else str(e) for e in flat[:_INLINE_ELEMENTS]]
    if flat.size > 1 and (flat.view(np.uint8).reshape(flat.size, -1) == _bits(flat)).all():
        return f"splat({elements[0]})"
    if flat.size <= _INLINE_ELEMENTS:
        return f"[{', '.join(elements)}]"
    return f'sha256("{constant_digest(array)}")'


def _bits(flat: np.ndarray) -> np.ndarray:
    """The first element's bytes; elements are compared by them, since 0.0 == -0.0."""
    return flat[:1].view(np.uint8)


def _op_line(op: Op, graph: Graph) -> str:
    results = ", ".join(f"{_name(v)}: {graph.types[v]}" for v in op.outputs)
    arguments = ", ".join(_name(v) if v else "_" for v in op.inputs)
    attributes = ", ".join(f"{k}={_attribute(v)}" for k, v in sorted(op.attributes.items()))
    line = f"{results} = {op.kind}({arguments}{'; ' if attributes else ''}{attributes})"
    if op.outputs[:1] != (op.name,):
        line += f" as {_name(op.name)}"
    return f"{line} @ {_name(op.scope)}" if op.scope else line


def _header(graph: Graph) -> str:
    def typed(names: Iterable[str]) -> str:
        return ", ".join(f"{_name(v)}: {graph.types[v]}" for v in names)

    return f"graph {_name(graph.name)}({typed(graph.inputs)}) -> ({typed(graph.outputs)})"


def _body(graph: Graph) -> Iterator[str]:
    for name, array in graph.constants.items():
        yield f"const {_name(name)}: {graph.types[name]} = {_constant(array)}"
    for op in graph.ops:
        yield _op_line(op, graph)


def print_graph(graph: Graph) -> str:
    """The graph's text, ending in a newline; `parse_graph` gives an equal graph back."""
    lines = [f"{_header(graph)} {{", *(f"    {line}" for line in _body(graph)), "}"]
    return "\n".join(lines) + "\n"


def excerpt(graph: Graph, value: str, context: int = 5) -> str:
    """The operators around `value`, its own marked with ``>``: for messages about a fault.

    Unlike `print_graph` it shows graphs that are broken.
    """
    hits = [i for i, op in enumerate(graph.ops) if value in op.outputs or op.name == value]
    hits = hits or [i for i, op in enumerate(graph.ops) if value in op.inputs]
    first = max((hits[0] if hits else 0) - context, 0)
    lines = [f"in graph {_name(graph.name)}:"]
    for index, op in enumerate(graph.ops[first : first + 2 * context + 1], first):
        results = ", ".join(f"{v}: {graph.types.get(v, '?')}" for v in op.outputs)
        mark = ">" if index in hits else " "
        lines.append(f"{mark} {results} = {op.kind}({', '.join(op.inputs)})  # {op.name}")
    return "\n".join(lines)


def print_segments(segments: SegmentGraph, detail: Literal["borders", "full"] = "borders") -> str:
    """The segment graph's text, ending in a newline; the "full" one parses back."""
    inputs = ", ".join(f"{_name(name)}: {type_}" for name, type_ in segments.inputs)
    classes = "" if segments.classes is None else f" classes {segments.classes}"
    head = f"segments {_name(segments.name)}({inputs}) -> {_name(segments.output)}{classes} {{"
    lines = [head]
    for index, segment in enumerate(segments.segments):
        lines += _graph_block(f"    segment {_name(segment.name)} =", segment.graph, detail)
        for step in segment.steps:
            lines += _graph_block(f"        {_step_head(step)} =", step.graph, detail)
        for exit_ in segments.exits[index : index + 1]:
            place = f"after {_name(exit_.point)} on {_name(exit_.feature)}"
            lines.append(f"    exit {_name(exit_.name)} {place}")
            for role, graph in (("head", exit_.head), ("comparator", exit_.comparator)):
                if graph is not None:
                    lines += _graph_block(f"        {role} =", graph, detail)
    return "\n".join([*lines, "}"]) + "\n"


def _step_head(step: Step) -> str:
    """The word a step begins with, and what decides about it."""
    words = ["gate" if step.gate else "step"]
    for role in _ROLES:
        if value := getattr(step, role):
            words += [role, _name(value)]
    return " ".join(words)


def _graph_block(prefix: str, graph: Graph, detail: str) -> Iterator[str]:
    count = f"  # {graph_macs(graph)} MACs"
    indent = " " * (len(prefix) - len(prefix.lstrip()))
    if detail == "borders":
        yield f"{prefix} {_header(graph)}{count}"
        return
    yield f"{prefix} {_header(graph)} {{{count}"
    yield from (f"{indent}    {line}" for line in _body(graph))
    yield f"{indent}}}"


# Parsing.


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


class _Reader:
    """Recursive descent over the tokens; each method reads one form of the module's docstring."""

    def __init__(self, text: str, load: ConstantLoader | None) -> None:
        self.tokens = list(_tokens(text))
        self.at = 0
        self.load = load

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def fail(self, expected: str) -> TextError:
        found = f"`{self.next.text}`" if self.next.text else "the end"
        return TextError(f"line {self.next.line}: expected {expected}, found {found}")

    def take(self, kind: str, expected: str) -> str:
        if self.next.kind != kind:
            raise self.fail(expected)
        self.at += 1
        return self.tokens[self.at - 1].text

    def found(self, text: str) -> bool:
        """Step over `text` if it stands here."""
        here = self.next.text == text and self.next.kind in ("word", "mark")
        self.at += here
        return here

    def expect(self, text: str) -> None:
        if not self.found(text):
            raise self.fail(f"`{text}`")

    def name(self, expected: str = "a name") -> str:
        if self.next.kind == "string":
            return str(json.loads(self.take("string", expected)))
        if self.next.text in _RESERVED:
            raise self.fail(expected)
        return self.take("word", expected)

    def listed(self, item: Callable[[], _T], close: str) -> list[_T]:
        """Items separated by commas, up to and with `close`; a comma may stand at the end."""
        items: list[_T] = []
        while not self.found(close):
            items.append(item())
            if not self.found(","):
                self.expect(close)
                break
        return items

    def type(self) -> TensorType:
        dtype = self.take("word", "a type")
        self.expect("[")
        return TensorType(dtype, tuple(self.listed(self.extent, "]")))

    def extent(self) -> int:
        return int(self.take("number", "an extent"))

    def typed(self) -> tuple[str, TensorType]:
        name = self.name("a value's name")
        self.expect(":")
        return name, self.type()

    def argument(self) -> str:
        return "" if self.found("_") else self.name("a value's name")

    def scalar(self) -> int | float | bool | str:
        if self.next.kind == "string":
            return str(json.loads(self.take("string", "a string")))
        if self.found("true"):
            return True
        if self.found("false"):
            return False
        text = self.take("number", "a number")
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def attribute(self) -> tuple[str, Attribute]:
        name = self.take("word", "an attribute")
        self.expect("=")
        if self.found("("):
            return name, tuple(self.listed(self.scalar, ")"))  # type: ignore[return-value]
        return name, self.scalar()

    def constant(self, type_: TensorType) -> np.ndarray:
        if self.found("["):
            array = np.array(self.listed(self.scalar, "]"), type_.dtype)
            if array.size != type_.size:
                raise self.fail(f"{type_.size} elements before this")
            return array.reshape(type_.shape)
        form = self.take("word", "a constant")
        self.expect("(")
        argument = self.scalar()
        self.expect(")")
        if form == "splat":
            full: np.ndarray = np.full(type_.shape, argument, type_.dtype)
            return full
        if form == "random":
            return _random(type_, int(argument))
        if form == "sha256" and self.load is not None:
            stored: np.ndarray = self.load(str(argument), type_).astype(type_.dtype, copy=False)
            return stored.reshape(type_.shape)
        raise TextError(f"line {self.next.line}: no constant `{form}({argument})` here")

    def operator(self, types: dict[str, TensorType]) -> Op:
        results = [self.typed()]
        while self.found(","):
            results.append(self.typed())
        self.expect("=")
        kind = self.take("word", "an operator")
        self.expect("(")
        inputs: list[str] = []
        attributes: list[tuple[str, Attribute]] = []
        while not self.found(")"):
            if self.found(";"):
                attributes = self.listed(self.attribute, ")")
                break
            inputs.append(self.argument())
            self.found(",")
        types.update(results)
        name = self.name() if self.found("as") else results[0][0]
        scope = self.name("a module path") if self.found("@") else ""
        outputs = tuple(value for value, _ in results)
        return Op(name, kind, tuple(inputs), outputs, dict(attributes), scope)

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.name()
        self.expect("(")
        inputs = self.listed(self.typed, ")")
        self.expect("->")
        self.expect("(")
        outputs = self.listed(self.typed, ")")
        self.expect("{")
        types, constants, ops = dict(inputs), {}, []
        while not self.found("}"):
            if self.found("const"):
                value, types[value] = self.typed()
                self.expect("=")
                constants[value] = self.constant(types[value])
            else:
                ops.append(self.operator(types))
        for value, type_ in outputs:
            if types.get(value) != type_:
                raise TextError(f"graph `{name}`: output `{value}: {type_}` is not computed in it")
        ins, outs = (tuple(value for value, _ in pairs) for pairs in (inputs, outputs))
        return Graph(name, ins, outs, tuple(ops), constants, types)

    def segments(self) -> SegmentGraph:
        self.expect("segments")
        name = self.name()
        self.expect("(")
        inputs = tuple(self.listed(self.typed, ")"))
        self.expect("->")
        output = self.name()
        classes = self.extent() if self.found("classes") else None
        self.expect("{")
        segments: list[Segment] = []
        exits: list[Exit] = []
        while not self.found("}"):
            if self.found("segment"):
                segment = self.name()
                self.expect("=")
                whole, steps = self.graph(), []
                while (gate := self.found("gate")) or self.found("step"):
                    steps.append(self.step(gate))
                segments.append(Segment(segment, whole, tuple(steps)))
            else:
                exits.append(self.exit(len(segments) - 1))
        return SegmentGraph(name, inputs, output, classes, tuple(segments), tuple(exits))

    def step(self, gate: bool) -> Step:
        roles = {role: self.name() for role in _ROLES if self.found(role)}
        self.expect("=")
        return Step(self.graph(), gate, **roles)

    def exit(self, segment: int) -> Exit:
        self.expect("exit")
        name = self.name()
        self.expect("after")
        point = self.name()
        self.expect("on")
        feature = self.name()
        graphs: dict[str, Graph] = {}
        for role in ("head", "comparator"):
            if self.found(role):
                self.expect("=")
                graphs[role] = self.graph()
        return Exit(name, point, feature, segment, **graphs)

    def end(self) -> None:
        if self.next.kind != "end":
            raise self.fail("the end")


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise TextError(f"line {line}: unexpected `{text[at]}`")
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
        at = match.end()
    yield _Token("end", "", line)


def _random(type_: TensorType, seed: int) -> np.ndarray:
    """Weights that keep activations near 1: normal, divided by the root of the fan-in."""
    generator = np.random.default_rng(seed)
    if type_.dtype.startswith("float"):
        scale = max(prod(type_.shape[1:]), 1) ** -0.5
        array = generator.standard_normal(type_.shape) * scale
    else:
        array = generator.integers(0, 2 if type_.dtype == "bool" else 8, type_.shape)
    drawn: np.ndarray = array.astype(type_.dtype)
    return drawn


def parse_graph(text: str, load: ConstantLoader | None = None) -> Graph:
    """The graph a text of `print_graph` shows.

    Args:
        text: one graph.
        load: gives the array of a constant that the text names by digest.

    Raises:
        TextError: the text is no graph, or names a constant by digest and there is no `load`.
    """
    reader = _Reader(text, load)
    graph = reader.graph()
    reader.end()
    return graph


def parse_segments(text: str, load: ConstantLoader | None = None) -> SegmentGraph:
    """The segment graph a "full" text of `print_segments` shows.

    Raises:
        TextError: as `parse_graph`.
    """
    reader = _Reader(text, load)
    segments = reader.segments()
    reader.end()
    return segments
