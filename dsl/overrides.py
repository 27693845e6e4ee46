"""`--set key.path=value`: one value of a `.ee` file replaced from the command line.

The path names blocks and statements as the file does (``model.exit.early.head.pool``,
``policy.fast.budget``); the name of a block may be left out where the file has just one of its
kind. The value is written as in the file; strings may stand without their quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from eecompile.diagnostics import CompileErrors, Diagnostics, Source
from eecompile.dsl.convert import Converter, split_entry
from eecompile.dsl.options import GATES, HEADS
from eecompile.dsl.override_path import with_part
from eecompile.dsl.override_policies import POLICY, PolicyOverride
from eecompile.dsl.parser import parse_tree
from eecompile.spec import (
    AutoExits,
    DataSet,
    DataSource,
    Exit,
    Model,
    Normalize,
    Skip,
    Spec,
    Target,
)

__all__ = ["apply_overrides"]

_T = TypeVar("_T")

_MODEL = ("source", "weights", "input", "output", "data", "exit", "exits", "skip", "gates")
_SKIPPED = ("layers", "channels")
_EXIT = ("after", "head", "comparator")
_DATA = ("fit", "calibrate", "test", "normalize", "keys", "layout", "pixels")
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
class _Override(PolicyOverride):
    """One ``key.path=value``. A method for each kind of node gives the node with it applied."""

    def spec(self, spec: Spec) -> Spec:
        kinds: dict[str, tuple[str, Callable[[Any, int], Any], Sequence[str]]] = {
            "model": ("models", self.model, _MODEL),
            "data": ("data", self.data, _DATA),
            "policy": ("policies", self.policy, POLICY),
            "target": ("targets", self.target, _TARGET),
        }
        field, apply, below = kinds[self.key(0, kinds)]
        nodes = getattr(spec, field)
        index, depth = self.named(1, nodes, self.keys[0].text, below)
        changed: dict[str, Any] = {field: _replaced(nodes, index, apply(nodes[index], depth))}
        return replace(spec, **changed)

    def model(self, model: Model, depth: int) -> Model:
        key = self.key(depth, _MODEL)
        if key == "exit":
            index, below = self.named(depth + 1, model.exits, "exit", _EXIT)
            exits = _replaced(model.exits, index, self.exit(model.exits[index], below))
            return replace(model, exits=exits)
        if key == "exits":
            return replace(model, auto_exits=self.auto_exits(model, depth + 1))
        if key == "skip":
            return replace(model, skips=self.skips(model.skips, depth + 1))
        if key == "input":
            return self.input(model, depth + 1)
        if key == "output":
            return self.output(model, depth + 1)
        if key == "data":
            word, span = self.word(depth + 1)
            return with_part(model, "data", span, data=word)
        text, span = self.string(depth + 1)
        if key == "weights":
            return with_part(model, "weights", span, weights=text)
        if key == "gates":
            return with_part(model, "gates", span, gates=text)
        path, entry = split_entry(text) if model.source == "torch" else (text, None)
        return with_part(model, "path", span, path=path, entry=entry)

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
        output = with_part(model.output, "classes", self.value_span, classes=classes)
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
            return with_part(placed, "count", self.value_span, low=low, high=high)
        if depth + 1 == len(self.keys) or placed.head is None:
            head = self.leaf(depth + 1, "call", lambda c: c.call)
        else:
            head = self.option(placed.head, depth + 1, HEADS)
        return replace(placed, head=head)

    def skips(self, skips: tuple[Skip, ...], depth: int) -> tuple[Skip, ...]:
        """``layers.gate``; where there are several such statements, ``layers.2.gate``."""
        what = self.key(depth, _SKIPPED)
        places = [i for i, skip in enumerate(skips) if skip.what == what]
        if not places:
            help = "write one into the file: only what it has can be set"
            span = self.keys[depth].span
            raise self.wrong(f"The model has no `skip {what}`", span, "none there", help)
        numbers = [str(number) for number in range(1, len(places) + 1)]
        depth += 1
        index = 0
        if len(places) > 1 or (depth < len(self.keys) and self.keys[depth].text in numbers):
            index = numbers.index(self.key(depth, numbers))
            depth += 1
        return _replaced(skips, places[index], self.skip(skips[places[index]], depth))

    def skip(self, skip: Skip, depth: int) -> Skip:
        """With another pattern, another gate, or one of its options replaced."""
        if depth == len(self.keys):
            point, span = self.string(depth)
            return with_part(skip, "point", span, point=point)
        self.key(depth, ("gate",))
        if depth + 1 == len(self.keys):
            return replace(skip, gate=self.leaf(depth + 1, "call", lambda c: c.call))
        return replace(skip, gate=self.option(skip.gate, depth + 1, GATES[skip.what]))

    def exit(self, exit: Exit, depth: int) -> Exit:
        key = self.key(depth, _EXIT)
        if key == "after":
            point, span = self.string(depth + 1)
            return with_part(exit, "point", span, point=point)
        head = exit.head if key == "head" else exit.comparator
        if depth + 1 == len(self.keys):
            new = self.leaf(depth + 1, "call", lambda c: c.call)
        elif head is None:
            raise self.wrong("The exit has no comparator", self.keys[depth].span, "not given")
        else:
            new = self.option(head, depth + 1, HEADS)
        return replace(exit, head=new) if key == "head" else replace(exit, comparator=new)

    def data(self, data: DataSet, depth: int) -> DataSet:
        key = self.key(depth, _DATA)
        if key in ("fit", "calibrate", "test"):
            changed: dict[str, Any] = {key: self.samples(depth + 1)}
            return replace(data, **changed)
        if key == "normalize":
            part = self.key(depth + 1, ("mean", "std"))
            numbers = self.leaf(depth + 2, "numbers", lambda c: c.numbers)
            old = data.normalize or Normalize((0.0,) * len(numbers), (1.0,) * len(numbers))
            return replace(data, normalize=with_part(old, part, self.value_span, **{part: numbers}))
        if key == "keys":
            part = self.key(depth + 1, ("images", "labels"))
            name: dict[str, Any] = {f"{part}_key": self.string(depth + 2)[0]}
            return replace(data, **name)
        if key == "layout":
            layout = self.leaf(depth + 1, "name", lambda c: c.layout)
            return with_part(data, "layout", self.value_span, layout=layout)
        pixels = self.leaf(depth + 1, "range", lambda c: c.pixels)
        return with_part(data, "pixels", self.value_span, pixels=pixels)

    def samples(self, depth: int) -> DataSource:
        value = self.source.text[self.offset :]
        if '"' in value:
            return self.leaf(depth, "samples_value", lambda c: c.samples)
        match = re.fullmatch(r"(?P<path>[^\[]*)(?P<slice>\[.*\])?", value)
        path = match["path"] if match else value
        quoted = f'{self.source.text[: self.offset]}"{path}"{value[len(path) :]}'
        return replace(self, source=Source("--set", quoted)).samples(depth)

    def target(self, target: Target, depth: int) -> Target:
        key = self.key(depth, _TARGET)
        at = self.value_span
        if key == "board":
            return with_part(target, "board", at, board=self.string(depth + 1)[0])
        if key == "cluster":
            return with_part(target, "cluster", at, cluster=self.string(depth + 1)[0])
        if key == "cores":
            cores = self.leaf(
                depth + 1, "number", lambda c: lambda tree: c.whole(tree.leaf(0), 1, 1024)
            )
            return with_part(target, "cores", at, cores=cores)
        frequencies = self.leaf(depth + 1, "frequency_list", lambda c: c.frequency_list)
        return with_part(target, "frequencies", at, frequencies=frequencies)


def _replaced(nodes: tuple[_T, ...], index: int, node: _T) -> tuple[_T, ...]:
    return (*nodes[:index], node, *nodes[index + 1 :])
