"""`--set key.path=value`: one value of a `.ee` file replaced from the command line.

The path names blocks and statements as the file does (``model.exit.early.head.pool``,
``policy.fast.budget``); the name of a block may be left out where the file has just one of its
kind. The value is written as in the file; strings may stand without their quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean_help,
)
from eecompile.dsl.convert import Converter, split_entry
from eecompile.dsl.convert_policies import HALTS
from eecompile.dsl.options import HEADS, SPLITS, Option
from eecompile.dsl.parser import parse_tree
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.spec import (
    AutoExits,
    DataSet,
    DataSource,
    Exit,
    Guard,
    HeadSpec,
    Model,
    Node,
    Normalize,
    Offload,
    Policy,
    Spec,
    Target,
)

__all__ = ["apply_overrides"]

_T = TypeVar("_T")
_N = TypeVar("_N", bound=Node)

_MODEL = ("source", "weights", "input", "output", "data", "exit", "exits")
_EXIT = ("after", "head", "comparator")
_DATA = ("fit", "calibrate", "test", "normalize", "keys", "layout", "pixels")
_POLICY = ("exit", "budget", "halt", "deadline", "frequency", "offload", "split", "guard")
_OFFLOAD = ("urls", "url", "cost", "border", "timeout", "retries")
_TARGET = ("board", "cluster", "cores", "frequencies")


def apply_overrides(spec: Spec, overrides: Iterable[str]) -> Spec:
    """The spec with values replaced, in order.

    Raises:
        CompileErrors: a path that leads nowhere, with the keys there are at the level that
            failed, or a value that cannot be meant; all independent ones at once.
    """
    found = Diagnostics()
    for text in overrides:
        try:
            spec = _Override.of(text, found).spec(spec)
        except CompileErrors as errors:
            found.add(*errors.diagnostics)
    found.raise_errors()
    return spec


@dataclass(frozen=True)
class _Key:
    text: str
    span: Span


@dataclass(frozen=True)
class _Override:
    """One ``key.path=value``. A method for each kind of node gives the node with it applied."""

    source: Source
    keys: tuple[_Key, ...]
    offset: int  # of the value
    found: Diagnostics

    @classmethod
    def of(cls, text: str, found: Diagnostics) -> _Override:
        source = Source("--set", text)
        path, equals, _ = text.partition("=")
        keys = [
            _Key(match[0], Span(source, match.start(), match.end()))
            for match in re.finditer(r"[^.]+", path)
        ]
        if not equals or not keys:
            span = Span(source, 0, len(path))
            label = "no key here" if equals else "no `=` here"
            message = "Expected `key.path=value`"
            raise CompileErrors([Diagnostic("unknown-setting", message, span, label)])
        return cls(source, tuple(keys), len(path) + 1, found)

    # The way to the value.

    def spec(self, spec: Spec) -> Spec:
        kinds: dict[str, tuple[str, Callable[[Any, int], Any], Sequence[str]]] = {
            "model": ("models", self.model, _MODEL),
            "data": ("data", self.data, _DATA),
            "policy": ("policies", self.policy, _POLICY),
            "target": ("targets", self.target, _TARGET),
        }
        field, apply, below = kinds[self.key(0, kinds)]
        nodes = getattr(spec, field)
        index, depth = self.named(1, nodes, self.keys[0].text, below)
        changed: dict[str, Any] = {field: _replaced(nodes, index, apply(nodes[index], depth))}
        return replace(spec, **changed)

    def key(self, depth: int, known: Iterable[str]) -> str:
        """The key at a depth, which has to be one of those known."""
        known = list(known)
        listed = ", ".join(f"`{name}`" for name in known) or "none"
        if depth >= len(self.keys):
            end = self.offset - 1
            where = Span(self.source, end, end)
            raise self.wrong("The path ends too early", where, f"expected {listed}")
        key = self.keys[depth]
        if key.text not in known:
            help = did_you_mean_help(key.text, known)
            raise self.wrong(f"Unknown key `{key.text}`", key.span, f"expected {listed}", help)
        return key.text

    def wrong(self, message: str, span: Span, label: str, help: str = "") -> CompileErrors:
        return CompileErrors([Diagnostic("unknown-setting", message, span, label, help=help)])

    def named(
        self, depth: int, nodes: Sequence[Any], kind: str, below: Sequence[str]
    ) -> tuple[int, int]:
        """Index of the node meant, and the next depth: a lone node may go without its name."""
        names = [node.name for node in nodes]
        if not nodes:
            help = "write one into the file: only what it has can be set"
            span = self.keys[depth - 1].span
            raise self.wrong(f"The file has no `{kind}`", span, "none there", help)
        key = self.key(depth, [*names, *below] if len(nodes) == 1 else names)
        return (names.index(key), depth + 1) if key in names else (0, depth)

    def end(self, depth: int) -> None:
        """Nothing may follow the key before `depth`."""
        if depth < len(self.keys):
            span = self.keys[depth].span.to(self.keys[-1].span)
            raise self.wrong(f"`{self.keys[depth - 1].text}` has no parts", span, "remove this")

    # The value.

    def leaf(self, depth: int, rule: str, of: Callable[[Converter], Callable[[Branch], _T]]) -> _T:
        """The value, parsed as a rule of the grammar and converted."""
        self.end(depth)
        return of(Converter(self.found))(parse_tree(self.source, rule, self.offset))

    def string(self, depth: int) -> tuple[str, Span]:
        """The value as a string, with or without its quotes."""
        self.end(depth)
        value = self.source.text[self.offset :]
        span = Span(self.source, self.offset, len(self.source.text))
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        return (value[1:-1] if quoted else value), span

    def word(self, depth: int) -> tuple[str, Span]:
        self.end(depth)
        leaf = parse_tree(self.source, "name", self.offset).leaf(0)
        return leaf.text, leaf.span

    @property
    def value_span(self) -> Span:
        return Span(self.source, self.offset, len(self.source.text))

    # Nodes.

    def model(self, model: Model, depth: int) -> Model:
        key = self.key(depth, _MODEL)
        if key == "exit":
            index, below = self.named(depth + 1, model.exits, "exit", _EXIT)
            exits = _replaced(model.exits, index, self.exit(model.exits[index], below))
            return replace(model, exits=exits)
        if key == "exits":
            return replace(model, auto_exits=self.auto_exits(model, depth + 1))
        if key == "input":
            return self.input(model, depth + 1)
        if key == "output":
            return self.output(model, depth + 1)
        if key == "data":
            word, span = self.word(depth + 1)
            return _at(model, "data", span, data=word)
        text, span = self.string(depth + 1)
        if key == "weights":
            return _at(model, "weights", span, weights=text)
        path, entry = split_entry(text) if model.source == "torch" else (text, None)
        return _at(model, "path", span, path=path, entry=entry)

    def input(self, model: Model, depth: int) -> Model:
        # Names of inputs may hold points, so all that is left of the path is the name.
        name = ".".join(key.text for key in self.keys[depth:])
        names = [given.name for given in model.inputs]
        if name in names:
            index = names.index(name)
        elif not name and len(names) == 1:
            index = 0
        else:
            self.key(depth, names)
            raise self.wrong(f"Unknown input `{name}`", self.keys[depth].span, "no such input")
        tree = parse_tree(self.source, "input_type", self.offset)
        type, spans = Converter(self.found).input_type(tree)
        given = model.inputs[index]
        given = replace(given, type=type, spans={**given.spans, **spans})
        return replace(model, inputs=_replaced(model.inputs, index, given))

    def output(self, model: Model, depth: int) -> Model:
        if model.output is None:
            raise self.wrong("The model has no `output`", self.keys[depth - 1].span, "not given")
        self.key(depth, ("classes",))
        classes = self.leaf(depth + 1, "number", lambda c: lambda tree: c.whole(tree.leaf(0), 2))
        output = _at(model.output, "classes", self.value_span, classes=classes)
        return replace(model, output=output)

    def auto_exits(self, model: Model, depth: int) -> AutoExits:
        placed = model.auto_exits
        if placed is None:
            where = self.keys[depth - 1].span
            raise self.wrong("The model has no `exits auto`", where, "not given")
        if depth < len(self.keys) and self.keys[depth].text == "auto":
            depth += 1
        if self.key(depth, ("count", "head")) == "count":
            value = self.leaf(depth + 1, "value", lambda c: c.value)
            low, high = Converter(self.found).count(value, self.value_span)
            return _at(placed, "count", self.value_span, low=low, high=high)
        if depth + 1 == len(self.keys) or placed.head is None:
            head = self.leaf(depth + 1, "call", lambda c: c.call)
        else:
            head = self.option(placed.head, depth + 1, HEADS)
        return replace(placed, head=head)

    def exit(self, exit: Exit, depth: int) -> Exit:
        key = self.key(depth, _EXIT)
        if key == "after":
            point, span = self.string(depth + 1)
            return _at(exit, "point", span, point=point)
        head = exit.head if key == "head" else exit.comparator
        if depth + 1 == len(self.keys):
            new = self.leaf(depth + 1, "call", lambda c: c.call)
        elif head is None:
            raise self.wrong("The exit has no comparator", self.keys[depth].span, "not given")
        else:
            new = self.option(head, depth + 1, HEADS)
        return replace(exit, head=new) if key == "head" else replace(exit, comparator=new)

    def option(
        self, head: HeadSpec, depth: int, kinds: Mapping[str, Mapping[str, Option]]
    ) -> HeadSpec:
        key = self.key(depth, kinds.get(head.kind, head.options))
        self.end(depth + 1)
        if key in ("entry", "path", "weights"):
            value: Any = self.string(depth + 1)[0]
        else:
            value = self.leaf(depth + 1, "value", lambda c: c.value)
        options = {**head.options, key: value}
        return _at(head, key, self.value_span, options=options)

    def data(self, data: DataSet, depth: int) -> DataSet:
        key = self.key(depth, _DATA)
        if key in ("fit", "calibrate", "test"):
            changed: dict[str, Any] = {key: self.samples(depth + 1)}
            return replace(data, **changed)
        if key == "normalize":
            part = self.key(depth + 1, ("mean", "std"))
            numbers = self.leaf(depth + 2, "numbers", lambda c: c.numbers)
            old = data.normalize or Normalize((0.0,) * len(numbers), (1.0,) * len(numbers))
            return replace(data, normalize=_at(old, part, self.value_span, **{part: numbers}))
        if key == "keys":
            part = self.key(depth + 1, ("images", "labels"))
            name: dict[str, Any] = {f"{part}_key": self.string(depth + 2)[0]}
            return replace(data, **name)
        if key == "layout":
            layout = self.leaf(depth + 1, "name", lambda c: c.layout)
            return _at(data, "layout", self.value_span, layout=layout)
        pixels = self.leaf(depth + 1, "range", lambda c: c.pixels)
        return _at(data, "pixels", self.value_span, pixels=pixels)

    def samples(self, depth: int) -> DataSource:
        value = self.source.text[self.offset :]
        if '"' in value:
            return self.leaf(depth, "samples_value", lambda c: c.samples)
        match = re.fullmatch(r"(?P<path>[^\[]*)(?P<slice>\[.*\])?", value)
        path = match["path"] if match else value
        quoted = f'{self.source.text[: self.offset]}"{path}"{value[len(path) :]}'
        return replace(self, source=Source("--set", quoted)).samples(depth)

    def policy(self, policy: Policy, depth: int) -> Policy:
        key = self.key(depth, _POLICY)
        at = self.value_span
        if key == "exit":
            if depth + 1 < len(self.keys):
                self.key(depth + 1, ("when",))
                depth += 1
            return _at(policy, "rule", at, rule=self.leaf(depth + 1, "rule", lambda c: c.rule))
        if key == "budget":
            limit = self.leaf(depth + 1, "limit", lambda c: c.limit)
            return _at(policy, "budget", at, budget=limit)
        if key == "halt":
            halt = self.leaf(depth + 1, "limit", lambda c: lambda tree: c.limit(tree, HALTS))
            return _at(policy, "halt", at, halt=halt)
        if key == "deadline":
            deadline = self.leaf(depth + 1, "deadline_value", lambda c: c.deadline)
            return _at(policy, "deadline", at, deadline=deadline)
        if key == "frequency":
            frequency = self.leaf(depth + 1, "frequency_value", lambda c: c.frequency_value)
            return _at(policy, "frequency", at, frequency=frequency)
        if key == "split":
            if depth + 1 == len(self.keys):
                return _at(policy, key, at, split=self.leaf(depth + 1, "call", lambda c: c.call))
            split = self.given(policy.split, key, depth)
            return replace(policy, split=self.option(split, depth + 1, SPLITS))
        if key == "guard":
            if depth + 1 == len(self.keys):
                guard = self.leaf(depth + 1, "guard_value", lambda c: c.guard)
                return _at(policy, key, at, guard=guard)
            return replace(
                policy, guard=self.guard(self.given(policy.guard, key, depth), depth + 1)
            )
        if depth + 1 == len(self.keys):
            offload = self.leaf(depth + 1, "offload_value", lambda c: c.offload)
            return _at(policy, key, at, offload=offload)
        offload = self.given(policy.offload, key, depth)
        return replace(policy, offload=self.offload(offload, depth + 1))

    def given(self, node: _T | None, key: str, depth: int) -> _T:
        """A statement of a policy, of which a part is set: it has to be there."""
        if node is None:
            help = "write it into the file, or set all of it at once"
            span = self.keys[depth].span
            raise self.wrong(f"The policy has no `{key}`", span, "not given", help)
        return node

    def guard(self, guard: Guard, depth: int) -> Guard:
        at = self.value_span
        if self.key(depth, ("drop", "audit")) == "drop":
            return _at(guard, "drop", at, drop=self.leaf(depth + 1, "quantity", lambda c: c.drop))
        return _at(guard, "share", at, share=self.leaf(depth + 1, "quantity", lambda c: c.share))

    def offload(self, offload: Offload, depth: int) -> Offload:
        key = self.key(depth, _OFFLOAD)
        at = self.value_span
        if key in ("urls", "url"):
            return self.endpoints(offload, depth + 1)
        if key == "cost":
            cost = self.leaf(depth + 1, "number", lambda c: lambda t: c.number(t.leaf(0), 0.0))
            return _at(offload, key, at, cost=cost)
        if key == "border":
            border = self.leaf(depth + 1, "name", lambda c: c.border)
            return _at(offload, key, at, border=border)
        if key == "timeout":
            timeout_s = self.leaf(depth + 1, "quantity", lambda c: c.timeout)
            return _at(offload, key, at, timeout_s=timeout_s)
        retries = self.leaf(depth + 1, "number", lambda c: lambda t: c.retries(t.leaf(0)))
        return _at(offload, key, at, retries=retries)

    def endpoints(self, offload: Offload, depth: int) -> Offload:
        """One endpoint or several with commas between, each with or without its quotes."""
        self.end(depth)
        leaves = []
        for match in re.finditer(r"[^,]+", self.source.text[self.offset :]):
            text = match[0].strip()
            start = self.offset + match.start() + match[0].index(text)
            span = Span(self.source, start, start + len(text))
            quoted = len(text) > 1 and text[0] == text[-1] == '"'
            if '"' in text and not quoted:
                message, label = "Unterminated string", 'no closing `"`'
                raise CompileErrors([Diagnostic("syntax-error", message, span, label)])
            leaves.append(Leaf("STRING" if quoted else "NAME", text, span))
        if not leaves:
            leaves = [Leaf("NAME", "", self.value_span)]
        urls = Converter(self.found).endpoints(leaves)
        spans = {f"url{i}": leaf.span for i, leaf in enumerate(leaves)} | {"urls": self.value_span}
        return replace(offload, urls=urls, spans={**offload.spans, **spans})

    def target(self, target: Target, depth: int) -> Target:
        key = self.key(depth, _TARGET)
        at = self.value_span
        if key == "board":
            return _at(target, "board", at, board=self.string(depth + 1)[0])
        if key == "cluster":
            return _at(target, "cluster", at, cluster=self.string(depth + 1)[0])
        if key == "cores":
            cores = self.leaf(
                depth + 1, "number", lambda c: lambda tree: c.whole(tree.leaf(0), 1, 1024)
            )
            return _at(target, "cores", at, cores=cores)
        frequencies = self.leaf(depth + 1, "frequency_list", lambda c: c.frequency_list)
        return _at(target, "frequencies", at, frequencies=frequencies)


def _at(node: _N, part: str, span: Span, **changes: Any) -> _N:
    """The node with changes whose place is now on the command line."""
    return replace(node, spans={**node.spans, part: span}, **changes)


def _replaced(nodes: tuple[_T, ...], index: int, node: _T) -> tuple[_T, ...]:
    return (*nodes[:index], node, *nodes[index + 1 :])
