"""`eecompile init`: a commented `.ee` file for a network, with candidate exit points."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eecompile.cost import graph_macs
from eecompile.diagnostics import CompileErrors, Diagnostic, Source
from eecompile.dsl.format import format_text
from eecompile.dsl.parser import parse
from eecompile.figures import readable
from eecompile.ir import TensorType
from eecompile.loading import open_host
from eecompile.passes.host import HostGraph
from eecompile.passes.propose_points import Candidate, propose_points
from eecompile.skip_proposals import proposed_skips
from eecompile.spec import Input, Model, Spec

__all__ = ["describe"]

#: Proposed beside the chosen ones, as comments.
_MORE = 24


def describe(
    model: str, output: Path | None, weights: Path | None, inputs: Sequence[str], exits: int
) -> str:
    """Text of a `.ee` file for a network.

    Args:
        model: an ONNX file, or ``FILE.py:FUNCTION``.
        output: where the text will stand; paths in it start from there.
        weights: of a torch model.
        inputs: ``NAME=1,3,32,32`` texts that fix shapes (``NAME=int64:1,128`` for other types).
        exits: number of exits proposed.

    Raises:
        CompileErrors: the network cannot be read, or an argument is wrong.
    """
    path, _, entry = model.rpartition(":") if ".py:" in model else (model, "", "")
    fixed = tuple(_input(text) for text in inputs)
    name = _identifier(entry or Path(path).stem)
    source = Model(
        name,
        "torch" if entry else "onnx",
        path,
        entry or None,
        str(weights) if weights else None,
        fixed,
    )
    if weights and not entry:
        raise _wrong("`--weights` are for torch networks; an ONNX file holds its own")
    _check_writable(path, str(weights or ""))
    try:
        host = open_host(Spec(models=(source,)))
    except CompileErrors as errors:
        raise CompileErrors(map(_with_advice, errors.diagnostics)) from errors
    _check_writable(*host.graph().inputs, *host.outputs())
    text = format_text(_text(source, host, output.parent if output else Path("."), exits))
    parse(Source("what was written", text))[1].raise_errors()
    return text


def _wrong(message: str) -> CompileErrors:
    return CompileErrors([Diagnostic("bad-argument", message)])


def _is_writable(name: str) -> bool:
    """Whether the language has a way to write a name."""
    return '"' not in name and name.isprintable()


def _check_writable(*names: str) -> None:
    for name in names:
        if not _is_writable(name):
            raise _wrong(f"`{name}` cannot be written in a .ee file: rename it")


def _with_advice(found: Diagnostic) -> Diagnostic:
    """Shapes are fixed by an argument here, not yet in a file."""
    if found.id not in ("missing-input", "unknown-input"):
        return found
    advice = "`--input NAME=1,3,224,224` states an input's shape, `NAME=int64:1,64` one of ids"
    return replace(found, help=f"{found.help}; {advice}" if found.help else advice)


def _input(text: str) -> Input:
    name, _, shape = text.partition("=")
    dtype, _, extents = shape.rpartition(":")
    try:
        found = tuple(int(extent) for extent in extents.split(","))
    except ValueError as error:
        raise CompileErrors(
            [
                Diagnostic(
                    "bad-argument",
                    f"Expected NAME=1,3,32,32 after `--input`, found `{text}`",
                    help="an element type may stand before the shape: tokens=int64:1,128",
                )
            ]
        ) from error
    return Input(name, TensorType(dtype or "float32", found))


def _identifier(text: str) -> str:
    """A name of the language.

    >>> _identifier("resnet-18 (v2)"), _identifier("2b")
    ('resnet_18__v2_', 'net_2b')
    """
    word = "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
    return word if word[:1].isalpha() else f"net_{word}"


def _quoted(name: str) -> str:
    return name if _identifier(name) == name else f'"{name}"'


def _text(model: Model, host: HostGraph, folder: Path, exits: int) -> str:
    graph, outputs = host.graph(), host.outputs()
    (output, answer), *_ = outputs.items()
    shape = graph.types[answer].shape
    classes = shape[-1] if len(shape) == 2 and shape[0] == 1 and shape[1] > 1 else None
    points = {name: point for name, point in host.points().items() if _is_writable(name)}
    chosen = propose_points(graph, points, answer, exits) if classes else ()
    others = [
        candidate
        for candidate in propose_points(graph, points, answer, _MORE)
        if candidate.name not in {found.name for found in chosen}
    ]
    weights = f' weights "{_from(model.weights, folder)}"' if model.weights else ""
    entry = f":{model.entry}" if model.entry else ""
    lines = [
        "# Written by `eecompile init`. All of it may be edited; `eecompile check` finds mistakes.",
        "eecompile 1",
        "",
        f"# {readable(graph_macs(graph), 'MACs')}, {len(graph.ops)} operators",
        f"model {model.name} {{",
        f'    source {model.source} "{_from(model.path, folder)}{entry}"{weights}',
        *(f"    input  {_quoted(name)}: {graph.types[name]}" for name in graph.inputs),
    ]
    lines += [f"    output {_quoted(output)}: classes({classes})"] if classes else []
    if not classes:
        lines += ["    # The output is no class vector, so there is nothing to exit early with."]
    lines += _exit_lines(chosen, others if classes else [])
    lines += _skip_lines(model, host) if classes else []
    lines += ["}", ""]
    if classes:
        lines += _after_model(graph.types[graph.inputs[0]])
    return "\n".join(lines)


def _exit_lines(chosen: Sequence[Candidate], others: Sequence[Candidate]) -> list[str]:
    if not chosen:
        return []
    width = max(len(candidate.name) for candidate in (*chosen, *others)) + 2

    def line(name: str, candidate: Candidate) -> str:
        point = f'"{candidate.name}"'.ljust(width)
        share = f"{100 * candidate.macs_fraction:.0f} %"
        comment = f"# {share:>4} of the MACs, {candidate.type}"
        return f"exit {name} after {point} head {_head(candidate.type)}  {comment}"

    found = ["", "    # Candidate exit points, with the share of the network's work done there."]
    found += [f"    {line(f'exit{i}', candidate)}" for i, candidate in enumerate(chosen, 1)]
    found += ["    # Or left to the compiler:", f"    # {_placed(chosen)}"]
    if others:
        found += ["    # Others:"]
        found += [f"    # {line('other', candidate)}" for candidate in others]
    return found


def _skip_lines(model: Model, host: HostGraph) -> list[str]:
    """What gates could leave out, as comments."""
    points = {name: point for name, point in host.points().items() if _is_writable(name)}
    trained = model.source == "torch"
    skips = proposed_skips(host.graph(), points, trained)
    if not skips:
        return []
    found = ["", "    # What gates could leave out for samples that do without it."]
    if trained:
        found += [
            "    # `eecompile train` trains them; `gate fitted` for layers needs no training."
        ]
        skips = [*skips, f'gates "{model.name}.gates.npz"']
    found += ["    # Gates alone can keep a budget: `policy gated { budget mean macs <= 75 % }`."]
    return found + [f"    # {line}" for line in skips]


def _placed(chosen: Sequence[Candidate]) -> str:
    """As many exits as are proposed, wherever they help most."""
    return f"exits auto(count: {len(chosen)}) head {_head(chosen[0].type)}"


def _head(feature: TensorType) -> str:
    """A head for a map, a sequence of tokens or a vector.

    >>> _head(TensorType("float32", (1, 64, 8, 8))), _head(TensorType("float32", (1, 48, 64)))
    ('linear(pool: 4)', 'linear(pool: mean)')
    """
    return f"linear(pool: {'4' if len(feature.shape) == 4 else 'mean'})"


def _after_model(input_: TensorType) -> list[str]:
    if input_.dtype == "float32":
        form = ["    # normalize mean [0.485, 0.456, 0.406] std [0.229, 0.224, 0.225]"]
    else:
        form = [
            f"    # Whole numbers ({input_}) are read as they are, from arrays of any name:",
            '    # keys images "tokens" labels "labels"',
        ]
    return [
        "# Labelled samples: .npz (arrays `images` and `labels`), .npy pairs or a Python function.",
        "# Heads are fitted on `fit`, thresholds on `calibrate`; `test` is only reported on.",
        "data samples {",
        '    fit "fit.npz" calibrate "calibrate.npz" test "test.npz"',
        *form,
        "}",
        "",
        "# Leave where the head is sure enough: thresholds are fitted so that the budget holds.",
        "policy quick { exit when confidence(max_softmax) budget accuracy drop <= 0.5 % }",
        "# Also: the best of all rules, watched as it runs; a learned rule; unsure samples sent;",
        "# a limit for every single sample, which halts there.",
        "# policy best    { exit when auto budget mean macs <= 60 % guard accuracy drop <= 1 % }",
        "# policy learned { exit when learned_score budget mean macs <= 60 % }",
        "# policy shared  { exit when confidence(max_softmax) budget accuracy drop <= 1 %",
        '#                  offload "http://edge:8000" cost 0.5 split online_ucb }',
        "# policy hard    { halt at budget latency <= 1 ms }",
        "",
        "# `eecompile targets` lists what can be built for; `cores` work together on one answer.",
        "target host { cores 1 }",
        "",
    ]


def _from(path: str | None, folder: Path) -> str:
    """A path as it has to be written in a file of `folder`."""
    return os.path.relpath(str(path), folder).replace(os.sep, "/")
