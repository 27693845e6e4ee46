"""Everything wrong with a `Spec`, found at once, before anything is built.

`check` needs no network for names, options, files and data; with a `GraphView` of the network it
looks up every point, input and output too. `unsupported` tells what the language has and this
version cannot build.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from eecompile.diagnostics import Diagnostic, Diagnostics, Span, did_you_mean_help
from eecompile.dsl.check_gates import check_gates
from eecompile.dsl.check_graph import Declared, GraphFacts, GraphView, PointView, check_graph
from eecompile.dsl.check_options import check_call, heads_of, listed_names, missing_data
from eecompile.dsl.check_policies import check_policy, needs_calibration
from eecompile.dsl.options import HEADS
from eecompile.dsl.unsupported import unsupported
from eecompile.hardware import is_board_path
from eecompile.spec import DataSet, DataSource, HeadSpec, Model, Spec

__all__ = [
    "Declared",
    "GraphFacts",
    "GraphView",
    "PointView",
    "can_open",
    "check",
    "check_graph",
    "needs_calibration",
    "unsupported",
]

#: Heads fitted on data. A user's own module or ONNX head stays as it is.
_FITTED = ("linear", "conv", "bag_of_features", "class_means")


def check(
    spec: Spec,
    view: GraphView | None = None,
    targets: Iterable[str] | None = None,
    boards: Iterable[str] | None = None,
    cores: int | None = None,
) -> tuple[Diagnostic, ...]:
    """All that is wrong, in the file's order.

    Args:
        spec: what the file says.
        view: the network it speaks of; None checks all that needs no network.
        targets: names a target may have; None accepts any.
        boards: names a board may have; None accepts any.
        cores: this machine's; None where nobody asks.
    """
    found = Diagnostics()
    _check_file(spec, found)
    for model in spec.models:
        _check_model(model, spec, found)
    for data in spec.data:
        _check_data(data, spec, found)
    for policy in spec.policies:
        check_policy(policy, spec, found)
    _check_targets(spec, found, targets, boards)
    if cores is not None:
        _check_cores(spec, cores, found)
    if view is not None and len(spec.models) == 1:
        check_graph(spec.models[0], view, found)
    return found.in_order()


def can_open(spec: Spec, found: Iterable[Diagnostic]) -> bool:
    """Whether the network can be opened whatever else is wrong, so that its names are checked too.

    It cannot where an error concerns the model's source, weights or inputs.
    """
    if len(spec.models) != 1 or not spec.model.path:
        return False
    model = spec.model
    needed = [model.spans.get(part) for part in ("path", "weights")]
    needed += [given.span for given in model.inputs]
    needed += [place for given in model.inputs for place in given.spans.values()]
    wrong = [d.span for d in found if d.severity == "error" and d.span is not None]
    return not any(
        place.source is span.source and place.start <= span.start < place.end
        for place in needed
        if place is not None
        for span in wrong
    )


def _check_file(spec: Spec, found: Diagnostics) -> None:
    if not spec.models:
        end = spec.span.end if spec.span else 0
        where = Span(spec.span.source, end, end) if spec.span else None
        found.error("missing-setting", "The file describes no model", where, "needs `model`")
    blocks = (
        ("Model", spec.models),
        ("Data", spec.data),
        ("Policy", spec.policies),
        ("Target", spec.targets),
    )
    for what, nodes in blocks:
        _check_unique(what, [(node.name, node.at("name")) for node in nodes], found)


def _check_unique(what: str, named: Sequence[tuple[str, Span | None]], found: Diagnostics) -> None:
    first: dict[str, Span | None] = {}
    for name, span in named:
        if name not in first:
            first[name] = span
            continue
        other = first[name]
        found.error(
            "duplicate-name",
            f"{what} `{name}` is defined twice",
            span,
            "again here",
            secondary=((other, "first here"),) if other else (),
        )


# Models.


def _check_model(model: Model, spec: Spec, found: Diagnostics) -> None:
    _check_unique("Exit", [(exit.name, exit.at("name")) for exit in model.exits], found)
    for exit in model.exits:
        if exit.name == "final":
            message = "An exit cannot be called `final`"
            label = "the name of the network's own output"
            found.error("duplicate-name", message, exit.at("name"), label)
    _check_unique("Input", [(i.name, i.at("name")) for i in model.inputs], found)
    if model.entry is not None:
        _check_python("Model", model.path, model.at("path"), spec, found)
    elif "path" in model.spans or model.path:
        _check_exists("Model", model.path, model.at("path"), spec, found)
    if model.weights is not None:
        _check_exists("Weights", model.weights, model.at("weights"), spec, found)
    for head in heads_of(model):
        _check_head(head, spec, found)
    for exit in model.exits:
        other = exit.comparator
        if other is not None and other.kind in HEADS and other.kind != "class_means":
            found.error(
                "bad-option",
                f"Expected `class_means` as comparator, found `{other.kind}`",
                other.at("kind"),
                "a comparator compares with class means",
            )
    check_gates(model, spec, found)
    auto = model.auto_exits
    if auto is not None and auto.head is not None and auto.head.kind in ("module", "onnx"):
        found.error(
            "bad-option",
            f"The compiler cannot place heads of the kind `{auto.head.kind}`",
            auto.head.span,
            "is made for one tensor, and fitted to no other",
            help=f"choose its point: `exit ... after ... head {auto.head}`",
        )
    _check_model_data(model, spec, found)


def _check_head(head: HeadSpec, spec: Spec, found: Diagnostics) -> None:
    check_call("unknown-head", "head", head, HEADS, found)
    if head.kind == "module" and isinstance(entry := head.option("entry"), str):
        file, colon, name = entry.rpartition(":")
        if not (colon and name.isidentifier()):
            found.error(
                "bad-option",
                f"`{entry}` names no class",
                head.at("entry"),
                'expected `"file.py:Class"`',
            )
        else:
            _check_python("File", file, head.at("entry"), spec, found)
    for key in ("weights", "path"):
        value = head.option(key)
        if isinstance(value, str) and value and head.kind in ("module", "onnx"):
            _check_exists("File", value, head.at(key), spec, found)


def _check_model_data(model: Model, spec: Spec, found: Diagnostics) -> None:
    names = [data.name for data in spec.data]
    if model.data is not None and model.data not in names:
        found.error(
            "unknown-data",
            f"Unknown data `{model.data}`",
            model.at("data"),
            "not described in this file",
            help=did_you_mean_help(model.data, names),
        )
        return
    if model.data is None and len(set(names)) > 1:
        found.error(
            "missing-setting",
            f"Model `{model.name}` does not say which data it uses",
            model.at("name"),
            f"the file describes {len(names)} data sets",
            help=f"add `data {names[0]}` to it",
        )
        return
    data = spec.data_for(model)
    wanted = [head for head in heads_of(model) if head.kind in _FITTED]
    if wanted and (data is None or data.fit is None):
        missing_data("fit", f"Head `{wanted[0].kind}`", wanted[0].span, data, found)
    scaled = [head for head in wanted if head.option("temperature") == "fitted"]
    if scaled and (data is None or data.calibrate is None):
        who = f"The temperature of head `{scaled[0].kind}`"
        missing_data("calibrate", who, scaled[0].at("temperature"), data, found)
    if model.auto_exits is not None and (data is None or data.calibrate is None):
        missing_data("calibrate", "The choice of exits", model.auto_exits.span, data, found)
    if data is not None:
        _check_channels(model, data, found)


def _check_channels(model: Model, data: DataSet, found: Diagnostics) -> None:
    """A normalisation has one value, or one for each channel, wherever the channels are."""
    if data.normalize is None or len(model.inputs) != 1:
        return
    shape = model.inputs[0].type.shape
    if not model.inputs[0].type.dtype.startswith("float"):
        found.error(
            "wrong-normalization",
            f"The input is `{model.inputs[0].type}`: whole numbers are read as they are",
            data.normalize.at("mean"),
            "there is nothing to normalise",
            help="remove `normalize`",
        )
        return
    count = len(data.normalize.mean)
    if count == 1 or len(data.normalize.std) != count or len(shape) < 2:
        return
    if count not in (shape[1], shape[-1]):
        where = model.inputs[0].at("type")
        found.error(
            "wrong-normalization",
            f"Expected one value per channel, found {count} for an input with {shape[1]}",
            data.normalize.at("mean"),
            f"{count} values",
            secondary=((where, f"{shape[1]} channels"),) if where else (),
        )


# Files.


def _check_exists(what: str, path: str, span: Span | None, spec: Spec, found: Diagnostics) -> None:
    real = spec.resolve(path)
    if _is_file(real):
        return
    try:
        siblings = os.listdir(real.parent)
    except (OSError, ValueError):
        siblings = []
    close = did_you_mean_help(real.name, siblings)
    if _is_folder(real):
        found.error("missing-file", f"{what} `{path}` is no file", span, "a folder")
        return
    label = "no such file" if str(real.parent) == "." else f"no such file in `{real.parent}`"
    found.error("missing-file", f"{what} `{path}` does not exist", span, label, help=close)


def _check_python(what: str, path: str, span: Span | None, spec: Spec, found: Diagnostics) -> None:
    """A Python source is a file, or a module (``torchvision.models``) that only Python can find."""
    if path.endswith(".py"):
        _check_exists(what, path, span, spec, found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name the system cannot hold
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _check_data(data: DataSet, spec: Spec, found: Diagnostics) -> None:
    for source in (data.fit, data.calibrate, data.test):
        if source is not None:
            _check_source(source, spec, found)


def _check_source(source: DataSource, spec: Spec, found: Diagnostics) -> None:
    if source.entry is not None:
        _check_python("Data", source.path, source.at("path"), spec, found)
        return
    if not source.path.endswith((".npz", ".npy")):
        found.error(
            "unknown-format",
            f"Data `{source.path}` is of no known format",
            source.at("path"),
            'expected a `.npz` file, a `.npy` file with `labels`, or `"file.py:function"`',
        )
        return
    _check_exists("Data", source.path, source.at("path"), spec, found)
    if source.labels is not None:
        _check_exists("Labels", source.labels, source.at("labels"), spec, found)


# Targets.


def _check_targets(
    spec: Spec,
    found: Diagnostics,
    targets: Iterable[str] | None,
    boards: Iterable[str] | None,
) -> None:
    for target in spec.targets:
        for what, name, known in (
            ("target", target.name, targets),
            ("board", target.board, boards),
        ):
            listed = None if known is None else sorted(known)
            if name is None or listed is None or name in listed:
                continue
            if what == "board" and is_board_path(name):
                _check_exists("Board file", name, target.at("board"), spec, found)
                continue
            found.error(
                "unknown-target",
                f"Unknown {what} `{name}`",
                target.at("name" if what == "target" else "board"),
                f"expected {listed_names(listed)}",
                help=did_you_mean_help(name, listed),
            )


def _check_cores(spec: Spec, there: int, found: Diagnostics) -> None:
    """Warns of cores this machine does not have; another machine may well have them."""
    for target in spec.targets:
        if (target.board or target.name) != "host" or (target.cores or 1) <= there:
            continue
        found.add(
            Diagnostic(
                "more-cores",
                f"Target `{target.name}` has {_cores(there)}, not {target.cores}",
                target.at("cores"),
                f"taken as {there}",
                help=f"write `cores {there}`, or name the target that has {target.cores}",
                severity="warning",
            )
        )


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"
