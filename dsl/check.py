"""Everything wrong with a `Spec`, found at once, before anything is built.

`check` needs no network for names, options, files and data; with a `GraphView` of the network it
looks up every point, input and output too. `unsupported` tells what the language has and this
version cannot build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from eecompile.diagnostics import Diagnostic, Diagnostics, Span, did_you_mean_help
from eecompile.dsl.check_graph import Declared, GraphFacts, GraphView, PointView, check_graph
from eecompile.dsl.options import FREQUENCIES, GATES, HEADS, MEASURES, RULES, SPLITS, Option
from eecompile.spec import DataSet, DataSource, HeadSpec, Model, Name, Policy, RuleTerm, Spec, Value

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
) -> tuple[Diagnostic, ...]:
    """All that is wrong, in the file's order.

    Args:
        spec: what the file says.
        view: the network it speaks of; None checks all that needs no network.
        targets: names a target may have; None accepts any.
        boards: names a board may have; None accepts any.
    """
    found = Diagnostics()
    _check_file(spec, found)
    for model in spec.models:
        _check_model(model, spec, found)
    for data in spec.data:
        _check_data(data, spec, found)
    for policy in spec.policies:
        _check_policy(policy, spec, found)
    _check_targets(spec, found, targets, boards)
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
    for head in _heads(model):
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
    for skip in model.skips:
        what = f"gate for {skip.what}"
        _check_call("unknown-gate", what, skip.gate, GATES[skip.what], found)
    _check_model_data(model, spec, found)


def _heads(model: Model) -> list[HeadSpec]:
    heads = [head for exit in model.exits for head in (exit.head, exit.comparator) if head]
    if model.auto_exits and model.auto_exits.head:
        heads.append(model.auto_exits.head)
    return heads


def _check_head(head: HeadSpec, spec: Spec, found: Diagnostics) -> None:
    _check_call("unknown-head", "head", head, HEADS, found)
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
    wanted = [head for head in _heads(model) if head.kind in _FITTED]
    if wanted and (data is None or data.fit is None):
        _missing_data("fit", f"Head `{wanted[0].kind}`", wanted[0].span, data, found)
    if data is not None:
        _check_channels(model, data, found)


def _missing_data(
    key: str, who: str, span: Span | None, data: DataSet | None, found: Diagnostics
) -> None:
    where = f"in `data {data.name} {{ }}`" if data else "in a `data` block"
    found.error(
        "missing-data",
        f"{who} has to be fitted, and there is no `{key}` data",
        span,
        f"is fitted on `{key}` samples",
        help=f'add `{key} "....npz"` {where}',
    )


def _check_channels(model: Model, data: DataSet, found: Diagnostics) -> None:
    """A normalisation has one value, or one for each channel, wherever the channels are."""
    if data.normalize is None or len(model.inputs) != 1:
        return
    shape = model.inputs[0].type.shape
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


# Options.


def _check_call(
    id: str,
    what: str,
    call: HeadSpec,
    known: Mapping[str, Mapping[str, Option]],
    found: Diagnostics,
) -> None:
    """A head, gate or rule is known, and so are its options."""
    if call.kind not in known:
        found.error(
            id,
            f"Unknown {what} `{call.kind}`",
            call.at("kind"),
            "expected " + _listed(known),
            help=did_you_mean_help(call.kind, known),
        )
        return
    _check_options(call.kind, call.options, call.at, known[call.kind], found)


def _check_options(
    kind: str,
    options: Mapping[str, Value],
    at: Callable[[str], Span | None],
    known: Mapping[str, Option],
    found: Diagnostics,
) -> None:
    listed = f"options: {_listed(known)}" if known else f"`{kind}` has no options"
    for name, value in options.items():
        if name == "":
            message = f"An option of `{kind}` has no name"
            found.error("bad-option", message, at(name), listed)
        elif name not in known:
            found.error(
                "unknown-option",
                f"`{kind}` has no option `{name}`",
                at(name),
                listed,
                help=did_you_mean_help(name, known),
            )
        elif not known[name].accepts(value):
            message = f"Option `{name}` of `{kind}` cannot be this"
            found.error("bad-option", message, at(name), f"expected {known[name].expected}")
    for name, option in known.items():
        if option.required and name not in options:
            message = f"`{kind}` needs its option `{name}`"
            found.error("missing-setting", message, at("kind"), f"expected {option.expected}")


def _listed(names: Iterable[str]) -> str:
    *rest, last = [f"`{name}`" for name in names] or ["nothing"]
    return f"{', '.join(rest)} or {last}" if rest else last


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


# Policies and targets.


def needs_calibration(policy: Policy) -> bool:
    """Whether a threshold of the policy is left to be fitted."""
    return policy.rule is not None and any(_is_open(term) for term in policy.rule.terms)


def _is_open(term: RuleTerm) -> bool:
    if term.kind == "patience":
        return "count" not in term.options
    return term.threshold is None


def _is_given(policy: Policy, part: str) -> bool:
    """Whether it is written, even where its value cannot be meant."""
    return getattr(policy, part) is not None or part in policy.spans


def _check_policy(policy: Policy, spec: Spec, found: Diagnostics) -> None:
    before = len(found)
    for term in policy.rule.terms if policy.rule else ():
        _check_term(term, found)
    if policy.split is not None:
        _check_call("unknown-rule", "split rule", policy.split, SPLITS, found)
    if isinstance(policy.frequency, Name) and policy.frequency not in FREQUENCIES:
        found.error(
            "unknown-rule",
            f"Unknown frequency rule `{policy.frequency}`",
            policy.at("frequency"),
            f"expected {_listed(FREQUENCIES)}, or a frequency such as `600 MHz`",
            help=did_you_mean_help(policy.frequency, FREQUENCIES),
        )
    if policy.rule is None and not _is_given(policy, "halt"):
        found.error(
            "missing-setting",
            f"Policy `{policy.name}` never exits",
            policy.at("name"),
            "needs `exit when ...` or `halt at ...`",
        )
    if len(found) == before and len(spec.models) == 1:
        _check_policy_of_model(policy, spec.models[0], spec, found)


def _check_term(term: RuleTerm, found: Diagnostics) -> None:
    call = HeadSpec(term.kind, term.options, span=term.span, spans=term.spans)
    _check_call("unknown-rule", "exit rule", call, RULES, found)
    if term.kind == "confidence":
        if term.measure is None:
            found.error(
                "missing-setting",
                "`confidence` does not say what is measured",
                term.at("kind"),
                f"expected {_listed(f'confidence({measure})' for measure in MEASURES)}",
            )
        elif term.measure not in MEASURES:
            found.error(
                "unknown-measure",
                f"Unknown measure `{term.measure}`",
                term.at("measure"),
                f"expected {_listed(MEASURES)}",
                help=did_you_mean_help(term.measure, MEASURES),
            )
    if term.kind in ("patience", "predicted") and term.threshold is not None:
        message = f"`{term.kind}` has no threshold"
        found.error("bad-option", message, term.at("threshold"), "remove it")


def _check_policy_of_model(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    """What a well-formed policy needs of the model, its exits and its data."""
    if not model.exits and model.auto_exits is None:
        found.error(
            "no-exits",
            f"Policy `{policy.name}` has nothing to decide",
            policy.at("name"),
            f"model `{model.name}` has no exits",
            help="remove the policy, or add `exit ... after ... head ...`",
        )
        return
    terms = policy.rule.terms if policy.rule else ()
    for term in terms:
        if term.measure == "class_means":
            _check_class_means(term, model, found)
        if term.kind == "predicted":
            _check_start(term, model, found)
    _check_fit(policy, model, spec, found)


def _check_class_means(term: RuleTerm, model: Model, found: Diagnostics) -> None:
    if any(head.kind == "class_means" for head in _heads(model)) or not model.exits:
        return
    found.error(
        "no-class-means",
        "No exit has class means",
        term.at("measure"),
        f"no exit of `{model.name}` has them",
        help="add `comparator class_means(pool: 4)` to an exit",
    )


def _check_start(term: RuleTerm, model: Model, found: Diagnostics) -> None:
    start = term.options.get("start")
    names = [exit.name for exit in model.exits]
    if not isinstance(start, Name) or start in names or model.auto_exits is not None:
        return
    found.error(
        "unknown-exit",
        f"Unknown exit `{start}`",
        term.at("start"),
        f"no such exit in `{model.name}`",
        help=did_you_mean_help(start, names),
    )


def _check_fit(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    if policy.rule is None:
        return
    if not needs_calibration(policy):
        if _is_given(policy, "budget"):
            found.error(
                "nothing-to-fit",
                f"Policy `{policy.name}` has a budget, and no threshold left to choose",
                policy.at("budget"),
                "cannot be met by choosing",
                secondary=((policy.rule.span, "all given"),) if policy.rule.span else (),
                help="remove the budget, or a threshold",
            )
        return
    fitted = [term for term in policy.rule.terms if _is_open(term) and term.kind != "predicted"]
    if fitted and not _is_given(policy, "budget"):
        found.error(
            "missing-setting",
            f"Nothing says how sure `{policy.name}` has to be",
            fitted[0].span,
            "has no threshold, and the policy no budget",
            help="add `>= 0.9`, or `budget accuracy drop <= 0.5 %`"
            if fitted[0].kind != "patience"
            else "add `count: 2`, or `budget accuracy drop <= 0.5 %`",
        )
        return
    data = spec.data_for(model)
    if model.data is None and len({data.name for data in spec.data}) > 1:
        return  # which data are meant has been asked for already
    if data is None or data.calibrate is None:
        _missing_data("calibrate", f"Policy `{policy.name}`", policy.rule.span, data, found)


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
            found.error(
                "unknown-target",
                f"Unknown {what} `{name}`",
                target.at("name" if what == "target" else "board"),
                f"expected {_listed(listed)}",
                help=did_you_mean_help(name, listed),
            )


# What cannot be built yet.


def unsupported(spec: Spec) -> tuple[Diagnostic, ...]:
    """What the file asks for and this version cannot build, each with its place."""
    found = Diagnostics()

    def refuse(what: str, span: Span | None, label: str = "") -> None:
        found.error("not-supported-yet", f"{what} not supported yet", span, label)

    for model in spec.models[1:]:
        refuse("Several models in one file are", model.at("name"), "the second")
    for model in spec.models:
        for skip in model.skips:
            refuse(f"Gates that skip {skip.what} are", skip.span)
        if model.auto_exits is not None:
            refuse("Exits placed by the compiler are", model.auto_exits.span)
    for policy in spec.policies:
        _refuse_policy(policy, refuse)
    for target in spec.targets:
        if target.frequencies:
            refuse("Choosing clock frequencies is", target.at("frequencies"))
    return found.in_order()


def _refuse_policy(policy: Policy, refuse: Callable[[str, Span | None], None]) -> None:
    names = {"predicted": "Predicted exits are", "learned_score": "Learned scores are"}
    for term in policy.rule.terms if policy.rule else ():
        if term.kind in names:
            refuse(names[term.kind], term.span)
    if policy.budget is not None and policy.budget.quantity == "energy":
        refuse("Energy budgets are", policy.at("budget"))
    parts = {
        "deadline_s": "Deadlines are",
        "frequency": "Choosing clock frequencies is",
        "offload": "Offloading is",
        "split": "Choosing where to split is",
        "halt": "Halting at a budget is",
    }
    for part, what in parts.items():
        if getattr(policy, part) is not None:
            refuse(what, policy.at(part))
