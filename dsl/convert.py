"""Tree to `Spec`: units to SI, numbers to their kinds, each statement where it belongs.

What cannot be meant whatever the network is (a bad unit, a statement given twice) is told here;
names of heads, points and files are looked up by `check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from eecompile.diagnostics import Diagnostics, Span
from eecompile.dsl.convert_policies import PolicyStatements
from eecompile.dsl.options import DTYPES
from eecompile.dsl.syntax import Branch
from eecompile.ir import TensorType
from eecompile.spec import (
    AutoExits,
    DataSet,
    DataSource,
    Exit,
    FrequencyRange,
    Input,
    Model,
    Normalize,
    Output,
    Range,
    Skip,
    Spec,
    Target,
    Value,
)

__all__ = ["Converter", "convert", "split_entry"]

LAYOUTS = ("HWC", "CHW", "HW")


def convert(tree: Branch, found: Diagnostics, folder: str) -> Spec:
    """What the tree of a whole file says; what is wrong with its values goes into `found`."""
    return Converter(found).file(tree, folder)


class Converter(PolicyStatements):
    """Turns branches into nodes of a `Spec`. One method a grammar rule."""

    # Whole file and blocks.

    def file(self, tree: Branch, folder: str) -> Spec:
        """A whole file."""
        blocks = tree.branches()[1:]
        return Spec(
            models=tuple(self.model(b) for b in blocks if b.rule == "model"),
            data=tuple(self.data(b) for b in blocks if b.rule == "data"),
            policies=tuple(self.policy(b) for b in blocks if b.rule == "policy"),
            targets=tuple(self.target(b) for b in blocks if b.rule == "target"),
            folder=folder,
            span=tree.span,
        )

    def model(self, tree: Branch) -> Model:
        """A `model` block."""
        name = tree.leaf(1)
        items = tree.branches()
        once = self.once(items, _settings("source", "output", "data", "auto", "gates"))
        source = once.get("source")
        if source is None:
            self.found.error(
                "missing-setting",
                f"Model `{name.text}` has no source",
                name.span,
                'needs `source onnx "..."` or `source torch "..."`',
            )
        return Model(
            name=name.text,
            inputs=tuple(self.input(item) for item in items if item.rule == "input"),
            output=self.output(once["output"]) if "output" in once else None,
            exits=tuple(self.exit(item) for item in items if item.rule == "exit"),
            auto_exits=self.auto(once["auto"]) if "auto" in once else None,
            skips=tuple(self.skip(item) for item in items if item.rule == "skip"),
            gates=once["gates"].leaf(1).value if "gates" in once else None,
            data=once["data"].leaf(1).text if "data" in once else None,
            span=tree.span,
            **self.source(source, {"name": name.span}, once),
        )

    def source(
        self, tree: Branch | None, spans: dict[str, Span], once: Mapping[str, Branch]
    ) -> dict[str, Any]:
        """The fields of `Model` a source statement gives."""
        if "data" in once:
            spans["data"] = once["data"].leaf(1).span
        if "gates" in once:
            spans["gates"] = once["gates"].leaf(1).span
        if tree is None:
            return {"source": "onnx", "path": "", "spans": spans}
        path = tree.leaf(2)
        spans |= {"source": tree.leaf(1).span, "path": path.span}
        if tree.rule == "onnx_source":
            return {"source": "onnx", "path": path.value, "spans": spans}
        file, entry = split_entry(path.value)
        if entry is None and not file.endswith(".pt2"):
            self.found.error(
                "missing-setting",
                f"Source `{path.value}` names no callable",
                path.span,
                "which function or class gives the module?",
                help=f'write "{path.value or "net.py"}:name", or name a `.pt2` exported program',
            )
        weights = tree.leaf(4) if tree.parts[4] else None
        if weights:
            spans["weights"] = weights.span
        return {
            "source": "torch",
            "path": file,
            "entry": entry,
            "weights": weights.value if weights else None,
            "spans": spans,
        }

    def data(self, tree: Branch) -> DataSet:
        """A `data` block."""
        name = tree.leaf(1)
        once = self.once(tree.branches(), _samples_or_rule)
        fields: dict[str, Any] = {}
        spans = {"name": name.span}
        for key in ("fit", "calibrate", "test"):
            if key in once:
                fields[key] = self.samples(once[key].branch(1))
        if "normalize" in once:
            fields["normalize"] = self.normalize(once["normalize"])
        if "keys" in once:
            fields["images_key"] = once["keys"].leaf(2).value
            fields["labels_key"] = once["keys"].leaf(4).value
        if "layout" in once:
            spans["layout"] = once["layout"].branch(1).span
            fields["layout"] = self.layout(once["layout"].branch(1))
        if "pixels" in once:
            spans["pixels"] = once["pixels"].branch(1).span
            fields["pixels"] = self.pixels(once["pixels"].branch(1))
        return DataSet(name.text, span=tree.span, spans=spans, **fields)

    def target(self, tree: Branch) -> Target:
        """A `target` block."""
        name = tree.leaf(1)
        once = self.once(tree.branches(), lambda item: item.rule)
        spans = {key: item.span for key, item in once.items()} | {"name": name.span}
        fields: dict[str, Any] = {}
        if "board" in once:
            fields["board"] = once["board"].leaf(1).value
        if "cluster" in once:
            fields["cluster"] = once["cluster"].leaf(1).value
        if "cores" in once:
            fields["cores"] = self.whole(once["cores"].leaf(1), low=1, high=1024)
        if "frequencies" in once:
            fields["frequencies"] = self.frequency_list(once["frequencies"].branch(1))
        return Target(name.text, span=tree.span, spans=spans, **fields)

    # Statements of a model.

    def input(self, tree: Branch) -> Input:
        """``input image: float32[1, 3, 32, 32]``."""
        name = tree.leaf(1)
        type, spans = self.input_type(tree.branch(3))
        spans["name"] = name.span
        return Input(name.value, type, span=tree.span, spans=spans)

    def input_type(self, tree: Branch) -> tuple[TensorType, dict[str, Span]]:
        """``float32[1, 3, 32, 32]``, and the places of its parts."""
        dtype, sizes = tree.leaf(0), tree.leaves("INT")
        if dtype.text not in DTYPES:
            self.unknown("unknown-dtype", "element type", dtype, DTYPES)
        shape = tuple(self.whole(size, low=1, wrong=0) for size in sizes)  # 0: told already
        spans = {"dtype": dtype.span, "type": tree.span}
        spans |= {f"dim{i}": size.span for i, size in enumerate(sizes)}
        return TensorType(dtype.text, shape), spans

    def output(self, tree: Branch) -> Output:
        """``output logits: classes(10)``."""
        name = tree.leaf(1)
        classes = tree.leaves("INT")
        spans = {"name": name.span}
        if not classes:
            return Output(name.value, span=tree.span, spans=spans)
        spans["classes"] = classes[0].span
        count = self.whole(classes[0], low=2, wrong=0)
        return Output(name.value, count or None, span=tree.span, spans=spans)

    def exit(self, tree: Branch) -> Exit:
        """``exit early after "layer1.8" head linear(pool: 4)``."""
        name, point = tree.leaf(1), tree.leaf(3)
        return Exit(
            name.text,
            point.value,
            self.call(tree.branch(5)),
            self.call(tree.branch(7)) if tree.parts[7] else None,
            span=tree.span,
            spans={"name": name.span, "point": point.span},
        )

    def auto(self, tree: Branch) -> AutoExits:
        """Exits the compiler places by itself."""
        head = self.call(tree.branch(4)) if tree.parts[4] else None
        options, spans = self.arguments(tree.branch(2) if tree.parts[2] else None, "auto")
        for name in options.keys() - {"count"}:
            self.found.error(
                "unknown-option",
                f"`auto` has no option `{name}`" if name else "An option of `auto` has no name",
                spans[name],
                "options: `count`",
            )
        low, high = self.count(options.get("count", Range(1, 8)), spans.get("count", tree.span))
        return AutoExits(low, high, head, span=tree.span, spans=spans)

    def count(self, value: Value, span: Span) -> tuple[int, int]:
        """``4`` or ``3..6``: the fewest and the most exits."""
        low, high = (value.low, value.high) if isinstance(value, Range) else (value, value)
        if isinstance(low, int) and isinstance(high, int) and low >= 1 and high <= 1000:
            return low, high
        self.found.error(
            "bad-option",
            "Option `count` of `auto` is no number of exits",
            span,
            "expected a whole number from 1 to 1000, or a range such as `3..6`",
        )
        return 1, 8

    def skip(self, tree: Branch) -> Skip:
        """``skip layers "layer3.[1-8]" gate recurrent(hidden: 10)``."""
        what = cast(Literal["layers", "channels"], tree.leaf(1).text)
        point = tree.leaf(2)
        gate = self.call(tree.branch(4))
        return Skip(what, point.value, gate, span=tree.span, spans={"point": point.span})

    # Statements of data.

    def samples(self, tree: Branch) -> DataSource:
        """``"test.npz"[..5000]``, ``"x.npy" labels "y.npy"`` or ``"data.py:test"``."""
        path = tree.leaf(0)
        file, entry = split_entry(path.value)
        spans = {"path": path.span}
        start = stop = None
        if tree.parts[1]:
            cut = tree.branch(1)
            spans["slice"] = cut.span
            start, stop = (self.whole(cut.leaf(i)) if cut.parts[i] else None for i in (1, 3))
            if stop is not None and stop <= (start or 0):
                self.empty_range(cut.span)
        labels = tree.leaf(3) if tree.parts[3] else None
        if labels:
            spans["labels"] = labels.span
        elif entry is None and file.endswith(".npy"):
            self.found.error(
                "missing-setting",
                f"Data `{file}` has no labels",
                path.span,
                'needs `labels "....npy"`',
            )
        return DataSource(
            file, entry, labels.value if labels else None, start, stop, span=tree.span, spans=spans
        )

    def normalize(self, tree: Branch) -> Normalize:
        """``normalize mean [...] std [...]``."""
        mean, std = tree.branch(2), tree.branch(4)
        spans = {"mean": mean.span, "std": std.span}
        means, stds = self.numbers(mean), self.numbers(std)
        if len(means) != len(stds):
            self.found.error(
                "wrong-normalization",
                f"Expected as many standard deviations as means, found {len(stds)} and "
                f"{len(means)}",
                std.span,
                f"{len(stds)} here",
                secondary=((mean.span, f"{len(means)} here"),),
            )
        for leaf, value in zip(std.leaves("INT", "FLOAT"), stds, strict=True):
            if not value > 0:
                self.found.error(
                    "wrong-normalization",
                    f"Expected a standard deviation above 0, found `{leaf.text}`",
                    leaf.span,
                )
        return Normalize(means, stds, span=tree.span, spans=spans)

    def layout(self, tree: Branch) -> Literal["HWC", "CHW", "HW"] | None:
        """``HWC``; None where there is no such layout."""
        leaf = tree.leaf(0)
        if leaf.text in LAYOUTS:
            return cast(Literal["HWC", "CHW", "HW"], leaf.text)
        self.unknown("bad-option", "layout", leaf, LAYOUTS)
        return None

    def pixels(self, tree: Branch) -> tuple[float, float]:
        """``0..255``."""
        pixels = self.range(tree)
        if pixels.low == pixels.high:
            self.empty_range(tree.span)
        return float(pixels.low), float(pixels.high)

    # Statements of targets.

    def frequency_list(self, tree: Branch) -> tuple[FrequencyRange, ...]:
        """``[600 MHz .. 1.5 GHz]``, with its brackets or without."""
        ranges = []
        for item in tree.branches():
            bounds = [self.quantity(part, "frequency") for part in item.branches()]
            known = [bound for bound in bounds if bound is not None]
            if len(known) < len(bounds):
                continue
            if known[0] > known[-1]:
                self.empty_range(item.span)
                continue
            ranges.append(FrequencyRange(known[0], known[-1], span=item.span))
        return tuple(ranges)


def _settings(*names: str) -> Callable[[Branch], str | None]:
    """Names the statements of a model that may be given once."""

    def name_of(item: Branch) -> str | None:
        name = {"onnx_source": "source", "torch_source": "source", "use_data": "data"}
        found = name.get(item.rule, item.rule)
        return found if found in names else None

    return name_of


def _samples_or_rule(item: Branch) -> str:
    return item.leaf(0).text if item.rule == "samples" else item.rule


def split_entry(path: str) -> tuple[str, str | None]:
    """A path and the name after its last colon.

    >>> split_entry("zoo.py:resnet56"), split_entry("train.npz"), split_entry("C:/train.npz")
    (('zoo.py', 'resnet56'), ('train.npz', None), ('C:/train.npz', None))
    """
    match = re.fullmatch(r"(.+):([A-Za-z_][A-Za-z0-9_]*)", path)
    return (match[1], match[2]) if match else (path, None)
