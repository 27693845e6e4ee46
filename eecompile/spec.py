"""What a `.ee` file means, as plain data.

Every physical quantity is in SI units (seconds, joules, hertz) and every percentage is a fraction.
Paths are as written, relative to the file: `Spec.resolve` gives the real ones. Each node carries
the `Span` it was written at for messages; spans take no part in comparison, and are None where a
node was not written by anyone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from eecompile.diagnostics import Span
from eecompile.ir import TensorType

__all__ = [
    "AutoExits",
    "Budget",
    "DataSet",
    "DataSource",
    "Deadline",
    "Exit",
    "FrequencyRange",
    "Guard",
    "HeadSpec",
    "Input",
    "Model",
    "Name",
    "Node",
    "Normalize",
    "Offload",
    "Output",
    "Policy",
    "Range",
    "Rule",
    "RuleTerm",
    "Skip",
    "Spec",
    "Target",
    "Value",
    "matching",
    "plain",
]


class Name(str):
    """A bare word given as an option's value (``raw``), told apart from a string (``"raw"``)."""

    __slots__ = ()


@dataclass(frozen=True)
class Range:
    """Two bounds, both included, as in ``3..6``."""

    low: float
    high: float


#: What an option may be given as. A bare word is a `Name`.
Value = int | float | str | Name | Range | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """Something written in the file: the place of the whole, and of its named parts."""

    span: Span | None = field(default=None, compare=False, repr=False)
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False)

    def at(self, part: str) -> Span | None:
        """The place of a part, or of the whole where the part was not written."""
        return self.spans.get(part, self.span)


@dataclass(frozen=True)
class HeadSpec(Node):
    """A head, comparator, gate or rule with options: ``linear(pool: 4)``.

    A head's own file is in the options: `module` has ``entry`` ("heads.py:Head") and perhaps
    ``weights``; `onnx` has ``path``. `spans` holds the place of each option given.
    """

    kind: str
    options: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def option(self, name: str, default: Any = None) -> Any:
        """An option's value, or the default where it was not given."""
        return self.options.get(name, default)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.options))))

    def __str__(self) -> str:
        given = ", ".join(f"{key}: {_text(value)}" for key, value in self.options.items())
        return f"{self.kind}({given})" if given else self.kind


def _text(value: Value) -> str:
    if isinstance(value, Range):
        return f"{value.low}..{value.high}"
    return value if isinstance(value, Name) else repr(value).replace("'", '"')


@dataclass(frozen=True)
class Input(Node):
    """An input of the network and the static type it is compiled for.

    Matched with the graph's inputs by name, or by position where no name is the graph's, so that
    one file serves a host that names its inputs otherwise.
    """

    name: str
    type: TensorType
    # Parts with a place: "name", "dtype", "shape", "dim0", "dim1", ...


@dataclass(frozen=True)
class Output(Node):
    """The output that holds one score per class. None of the classes known: `classes` is None."""

    name: str
    classes: int | None = None
    # Parts with a place: "name", "classes".


@dataclass(frozen=True)
class Exit(Node):
    """An exit: where, what is computed there, and perhaps a class-mean comparator beside it.

    Attributes:
        name: the exit's name, unique in its model.
        point: point name or glob; matches exactly one point of the graph.
        head: the exit head.
        comparator: a second, class-mean head that answers first where a rule asks for it.
    """

    name: str
    point: str
    head: HeadSpec
    comparator: HeadSpec | None = None
    # Parts with a place: "name", "point".


@dataclass(frozen=True)
class AutoExits(Node):
    """Exits the compiler is to place by itself."""

    low: int
    high: int
    head: HeadSpec | None = None


@dataclass(frozen=True)
class Skip(Node):
    """Layers or channels that a gate may skip."""

    what: Literal["layers", "channels"]
    point: str
    gate: HeadSpec
    # Parts with a place: "point".


@dataclass(frozen=True)
class Model(Node):
    """A trained network and where it may stop.

    Attributes:
        name: the model's name.
        source: "onnx" or "torch".
        path: the ONNX file; for torch the Python file or module, or an exported program (.pt2).
        entry: torch only: the callable in it that gives the module; None for .pt2.
        weights: torch only: a state dict.
        inputs: static types; may be empty where the graph's own are static.
        output: the output with the class scores; None where the graph's only output is meant.
        skips: what gates may leave out, for which samples.
        gates: file of trained gates, and of weights that were trained with them.
        data: name of the data set it is fitted on; None where the file has just one, or none.
    """

    name: str
    source: Literal["onnx", "torch"]
    path: str
    entry: str | None = None
    weights: str | None = None
    inputs: tuple[Input, ...] = ()
    output: Output | None = None
    exits: tuple[Exit, ...] = ()
    auto_exits: AutoExits | None = None
    skips: tuple[Skip, ...] = ()
    gates: str | None = None
    data: str | None = None
    # Parts with a place: "name", "source", "path", "weights", "gates", "data".


@dataclass(frozen=True)
class DataSource(Node):
    """Samples: an .npz file, an .npy file with its labels' .npy file, or a Python callable.

    Attributes:
        path: the file; for a callable the Python file or module.
        entry: name of a callable without arguments that yields (images, labels) batches.
        labels: the labels' .npy file; None for .npz and callables.
        start, stop: the samples used, as in a Python slice; None means from the first, to the last.
    """

    path: str
    entry: str | None = None
    labels: str | None = None
    start: int | None = None
    stop: int | None = None
    # Parts with a place: "path", "labels", "slice".


@dataclass(frozen=True)
class Normalize(Node):
    """``(x - mean) / std`` per channel, after stored integers were mapped to `DataSet.pixels`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Parts with a place: "mean", "std".


@dataclass(frozen=True)
class DataSet(Node):
    """Labelled samples and how they become the network's input.

    Attributes:
        fit: what heads are fitted on.
        calibrate: what thresholds and budgets are solved on.
        test: what is reported on; nothing is fitted on it.
        normalize: per-channel normalisation, None for none.
        images_key, labels_key: names of the arrays in .npz files.
        layout: axes of one stored image, "HWC", "CHW" or "HW". None infers it: what already has
            the input's shape (without its leading 1) is taken as it is; else, for an input
            (C, H, W), stored (H, W, C) images are transposed and (H, W) images get C = 1.
        pixels: what stored unsigned integers 0 .. 255 are mapped to, before `normalize`;
            (0.0, 255.0) keeps them as they are. Stored floats are never rescaled.
    """

    name: str
    fit: DataSource | None = None
    calibrate: DataSource | None = None
    test: DataSource | None = None
    normalize: Normalize | None = None
    images_key: str = "images"
    labels_key: str = "labels"
    layout: Literal["HWC", "CHW", "HW"] | None = None
    pixels: tuple[float, float] = (0.0, 1.0)
    # Parts with a place: "name", "layout", "pixels".


@dataclass(frozen=True)
class RuleTerm(Node):
    """One test of an exit rule, fulfilled when its confidence is at least the threshold.

    Attributes:
        kind: "confidence", "patience", "predicted", "learned_score", or "auto" for the best of
            all that need no further choice.
        measure: confidence only: "max_softmax", "entropy", "margin" or "class_means", each turned
            so that 1 is certain.
        options: the other options, such as ``count`` of patience.
        threshold: given by the user, 0 to 1; None means fitted to the policy's budget.
    """

    kind: str
    measure: str | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    threshold: float | None = None
    # Parts with a place: "kind", "measure", "threshold", each option.

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __hash__(self) -> int:
        return hash((self.kind, self.measure, self.threshold))

    def __str__(self) -> str:
        given = [self.measure] if self.measure else []
        given += [f"{key}: {_text(value)}" for key, value in self.options.items()]
        text = f"{self.kind}({', '.join(given)})" if given else self.kind
        return text if self.threshold is None else f"{text} >= {self.threshold:g}"


@dataclass(frozen=True)
class Rule(Node):
    """Leave at the first exit where any of the terms is fulfilled; terms are tried in order."""

    terms: tuple[RuleTerm, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.terms))


@dataclass(frozen=True)
class Budget(Node):
    """A limit on what a policy may cost.

    Attributes:
        quantity: "macs" (limit: fraction of the untouched backbone's), "latency" (seconds),
            "energy" (joules) or "accuracy_drop" (fraction: 0.005 is half a percentage point).
        limit: the largest value allowed.
        statistic: "mean" over the data, or "each" sample (halting).
    """

    quantity: Literal["macs", "latency", "energy", "accuracy_drop"]
    limit: float
    statistic: Literal["mean", "each"] = "mean"

    def __str__(self) -> str:
        limit = {
            "macs": f"{self.limit * 100:g} %",
            "latency": f"{self.limit * 1e3:g} ms",
            "energy": f"{self.limit * 1e3:g} mJ",
            "accuracy_drop": f"{self.limit * 100:g} %",
        }[self.quantity]
        name = "accuracy drop" if self.quantity == "accuracy_drop" else self.quantity
        mean = self.statistic == "mean" and self.quantity != "accuracy_drop"
        return f"{'mean ' if mean else ''}{name} <= {limit}"


@dataclass(frozen=True)
class Offload(Node):
    """Where unsure samples go, and what sending one is worth.

    Attributes:
        urls: servers of the Open Inference Protocol ("http://edge:8000", "grpc://edge:8001"), the
            one used by default first. No other endpoint is ever spoken to.
        cost: the price of sending one sample, as a fraction of what the whole network costs here.
        border: how border tensors travel: "float32", "float16" or "int8".
        timeout_s: the most that one answer may take, all attempts together.
        retries: attempts after a failed one, within `timeout_s`.
    """

    urls: tuple[str, ...]
    cost: float
    border: Literal["float32", "float16", "int8"] = "float32"
    timeout_s: float = 1.0
    retries: int = 1
    # Parts with a place: "urls", "url0", "url1", ..., "cost", "border", "timeout", "retries".


@dataclass(frozen=True)
class Guard(Node):
    """What answers may lose against the network's own while the artifact runs.

    Attributes:
        drop: the largest share of answers that may differ from the network's own, as a fraction.
        share: of the samples that run to the end to find out.
    """

    drop: float
    share: float = 0.02
    # Parts with a place: "drop", "share".


@dataclass(frozen=True)
class Deadline(Node):
    """How long a sample may take, and what is done so that it takes no longer.

    Attributes:
        seconds: from the call to the answer.
        kind: "expected": forecasts are trusted, a wrong one may make the sample late. "safe": after
            a wrong one there is still time for the rest, at the highest clock. "hard": forecasts
            are trusted, and after a wrong one the deepest exit in reach answers.
    """

    seconds: float
    kind: Literal["expected", "safe", "hard"] = "expected"

    def __str__(self) -> str:
        kind = "" if self.kind == "expected" else f" {self.kind}"
        return f"{self.seconds * 1e3:g} ms{kind}"


@dataclass(frozen=True)
class Policy(Node):
    """Who decides to leave early, and under which limits.

    Attributes:
        name: the policy's name, unique in the file.
        rule: when to leave; None where only gates and `halt` save.
        budget: what the thresholds not given are fitted to; None means the exits' default.
        deadline: how long a sample may take.
        frequency: "lowest_energy", "race_to_idle", "highest", or a fixed frequency in hertz.
        offload, split: sending unsure samples elsewhere, and who chooses where to split.
        guard: what is watched while the artifact runs.
        halt: stop at once when this is spent, and answer with the deepest exit reached.
    """

    name: str
    rule: Rule | None = None
    budget: Budget | None = None
    deadline: Deadline | None = None
    frequency: Name | float | None = None
    offload: Offload | None = None
    split: HeadSpec | None = None
    guard: Guard | None = None
    halt: Budget | None = None
    # Parts with a place: "name", and each statement by its field's name.


@dataclass(frozen=True)
class FrequencyRange(Node):
    """Clock frequencies from `low_hz` to `high_hz`, both included; a single one has both equal."""

    low_hz: float
    high_hz: float


@dataclass(frozen=True)
class Target(Node):
    """What to build for.

    Attributes:
        name: "host", "arm-cpu", ...: a name `eecompile targets` lists.
        board: a board file's name, for costs per clock frequency.
        cluster: the board's cluster that answers; None leaves the choice to the scheduler.
        cores: that work on an answer unless loading says otherwise; None: one.
        frequencies: those the scheduler may choose; empty means the board's own.
    """

    name: str
    board: str | None = None
    cluster: str | None = None
    cores: int | None = None
    frequencies: tuple[FrequencyRange, ...] = ()
    # Parts with a place: "name", "board", "cluster", "cores", "frequencies".


@dataclass(frozen=True)
class Spec(Node):
    """A whole `.ee` file.

    Attributes:
        version: of the language.
        folder: the folder relative paths start from.
    """

    version: int = 1
    models: tuple[Model, ...] = ()
    data: tuple[DataSet, ...] = ()
    policies: tuple[Policy, ...] = ()
    targets: tuple[Target, ...] = ()
    folder: str = field(default=".", compare=False)

    def resolve(self, path: str) -> Path:
        """The real path of one written in the file."""
        return Path(self.folder) / path

    @property
    def model(self) -> Model:
        """The file's model. The check refuses files that have none, or several."""
        return self.models[0]

    def data_for(self, model: Model) -> DataSet | None:
        """The data set a model names, else the only one; None where there is none."""
        named = [data for data in self.data if model.data in (None, data.name)]
        return named[0] if named else None


def plain(node: Any) -> Any:
    """The node as JSON values without spans: equal for equal meaning, so fit for hashing.

    >>> plain(Budget("macs", 0.7))
    {'quantity': 'macs', 'limit': 0.7, 'statistic': 'mean'}
    """
    if is_dataclass(node) and not isinstance(node, type):
        return {f.name: plain(getattr(node, f.name)) for f in fields(node) if f.compare}
    if isinstance(node, Mapping):
        return {str(key): plain(node[key]) for key in sorted(node)}
    if isinstance(node, tuple | list):
        return [plain(item) for item in node]
    if isinstance(node, Name):
        return {"name": str(node)}
    return node


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names a pattern of a `.ee` file stands for, in order.

    A pattern that is a name stands for itself alone. Otherwise ``*`` is any part of one component
    (it crosses neither ``.`` nor ``/``), ``**`` anything, ``?`` one character of a component and
    ``[1-8]`` or ``[!1-8]`` one character of a set.

    >>> matching("layer3.[0-1]*", ["layer3.0", "layer3.1.conv", "layer3.10", "layer3.2"])
    ['layer3.0', 'layer3.10']
    >>> matching("layer3.**.conv", ["layer3.0.conv", "layer3.1.a.conv"])
    ['layer3.0.conv', 'layer3.1.a.conv']
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    tokens = [(match[0], match["set"]) for match in re.finditer(_GLOB, pattern, re.DOTALL)]
    return [name for name in names if _matches(tokens, name)]


_GLOB = r"\*\*|[*?]|\[(?P<set>!?[^\[\]!][^\[\]]*)\]|."


def _matches(tokens: list[tuple[str, str | None]], name: str) -> bool:
    """Follows all readings of the pattern side by side, so that no pattern takes long."""
    places = _past_stars({0}, tokens)
    for char in name:
        component = char not in "./"
        reached: set[int] = set()
        for place in places:
            if place == len(tokens):
                continue
            text, members = tokens[place]
            if text == "**" or (text == "*" and component):
                reached.add(place)
            elif members is not None:
                if component and _in_set(char, members):
                    reached.add(place + 1)
            elif text == char or (text == "?" and component):
                reached.add(place + 1)
        places = _past_stars(reached, tokens)
        if not places:
            return False
    return len(tokens) in places


def _past_stars(places: set[int], tokens: list[tuple[str, str | None]]) -> set[int]:
    """The places, and those behind the stars that start there: a star may match nothing."""
    for place in sorted(places):
        while place < len(tokens) and tokens[place][0] in ("*", "**"):
            place += 1
            places.add(place)
    return places


def _in_set(char: str, members: str) -> bool:
    negated = members.startswith("!")
    inside = any(
        low <= char <= (high or low)
        for low, high in re.findall("(.)(?:-(.))?", members.removeprefix("!"), re.DOTALL)
    )
    return inside != negated
