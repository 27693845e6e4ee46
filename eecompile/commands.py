"""What each verb of the command line does: call the library, then print for people or scripts."""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.console import Steps, table
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.figures import hertz, joules, milliseconds, percent, readable, threads_in_words

if TYPE_CHECKING:
    from eecompile.board import Board
    from eecompile.runtime.answers import Answer

__all__ = [
    "bench", "build", "check", "demo", "doctor", "eval", "format", "init", "inspect", "run",
    "targets", "verify",
]  # fmt: skip


def _print_json(options: argparse.Namespace, value: Any) -> None:
    """The one object of ``--json``; standard output is redirected meanwhile."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    print(text, file=options.output_stream)


def _finite(value: Any) -> Any:
    """The value with null for what is no number: JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def init(options: argparse.Namespace) -> int:
    """Write a commented `.ee` file."""
    from eecompile.atomic import replaced_file
    from eecompile.initialise import describe

    output: Path | None = options.output
    text = describe(options.model, output, options.weights, options.input, options.exits)
    if output is None:
        _print_json(options, {"text": text}) if options.json else print(text, end="")
        return 0
    if output.exists() and not options.force:
        message = f"`{output}` exists already"
        raise CompileErrors(
            [
                Diagnostic(
                    "cannot-write", message, help="give --force to replace it", path=str(output)
                )
            ]
        )
    replaced_file(output, text.encode())
    if options.json:
        _print_json(options, {"file": str(output), "text": text})
    else:
        print(f"wrote {output}; next: eecompile check {output}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Every problem of a file; 1 if any is an error."""
    from eecompile.loading import check_file

    try:
        found = check_file(options.file, options.overrides)[2].in_order()
    except CompileErrors as errors:
        found = errors.diagnostics
    wrong = sum(diagnostic.severity == "error" for diagnostic in found)
    if options.json:
        _print_json(options, {"diagnostics": [diagnostic.to_json() for diagnostic in found]})
    elif found:
        print("\n\n".join(diagnostic.full() for diagnostic in found), file=sys.stderr)
    else:
        print(f"{options.file}: no problems")
    return 1 if wrong else 0


def format(options: argparse.Namespace) -> int:
    """Lay a file out; 1 with --check if it would change."""
    from eecompile.atomic import replaced_file
    from eecompile.dsl.format import format_text
    from eecompile.dsl.parser import read_source

    source = read_source(options.file)
    text = format_text(source.text)
    changed = text != source.text
    if changed and not options.check:
        replaced_file(options.file, text.encode())
    if options.json:
        _print_json(options, {"file": str(options.file), "changed": changed})
    elif options.check:
        print(f"{options.file}: {'would change' if changed else 'canonical'}")
    return 1 if changed and options.check else 0


def build(options: argparse.Namespace) -> int:
    """Build an artifact and say what it holds."""
    from eecompile.driver import BuildOptions
    from eecompile.driver import build as build_artifact
    from eecompile.planning import plan

    chosen = BuildOptions(
        options.target,
        options.output,
        tuple(options.overrides),
        options.emit,
        options.dump_ir,
        options.jobs,
        tune=options.tune,
    )
    if options.dry_run:
        planned = plan(options.file, chosen)
        _print_json(options, planned) if options.json else _print_plan(planned)
        return 0
    steps = Steps(10 + (chosen.tune is not None), options.quiet or options.json)
    report = build_artifact(options.file, chosen, steps)
    if options.json:
        _print_json(options, {**report.summary, "unchanged": report.unchanged})
    else:
        _print_build(report.summary)
    return 0


def _print_plan(planned: Mapping[str, Any]) -> None:
    print(f"would build {planned['artifact']} for {planned['target']} ({planned['triple']})")
    _print_exits(planned["exits"])
    for line in planned["steps"]:
        print(f"  {line}")


def _print_exits(rows: Sequence[Mapping[str, Any]]) -> None:
    table(
        ("exit", "after", "head", "tensor", "backbone", "with heads"),
        [
            (
                row["name"],
                row["point"],
                row["head"],
                row["feature"],
                percent(row["backbone_fraction"]),
                percent(row["macs_fraction"], 2),
            )
            for row in rows
        ],
        left=4,
    )


def _print_build(summary: Mapping[str, Any]) -> None:
    from eecompile.memory import Peak
    from eecompile.report import held_out_lines

    threads = summary["threads"]
    fastest = min(summary["full_depth"]["points"], key=lambda p: p["latency_s"], default=None)
    taken = ""
    if fastest is not None:
        latency = milliseconds(fastest["latency_s"])
        taken = f", {latency} {fastest['provenance']} on {threads_in_words(threads)}"
        taken += f" at {hertz(fastest['frequency_hz'])}" if fastest["frequency_hz"] else ""
    print(f"\n{summary['model']} for {summary['target']} ({summary['triple']})")
    rounded = summary["roundings"]
    print(
        f"full depth: {readable(summary['macs'])} multiply-accumulates{taken}; decisions off, it "
        f"differs from the {'definition' if rounded else 'source'} "
        f"by at most {summary['max_abs_error']:.2g}"
    )
    if rounded:
        print(
            f"quantised: step by step, the source's engine rounds {rounded['apart']} of "
            f"{readable(rounded['values'])} numbers the other way, by one step; end to end that "
            f"makes {summary['max_source_error']:.2g}"
        )
    if len(summary["exits"]) > 1:
        _print_exits(summary["exits"])
    for name, report in summary["policies"].items():
        print("\n".join(held_out_lines(name, report, threads)))
    if kernels := summary["kernels"]:
        print(f"kernels: {kernels['tuned']} tuned, {kernels['by_model']} by model")
    print(f"memory: {Peak.from_json(summary['memory'])}")
    print(f"\nartifact: {summary['artifact']}")


def eval(options: argparse.Namespace) -> int:
    """Measure an artifact on data, or replay it for a board."""
    from eecompile.evaluation import evaluate_artifact

    steps = Steps(1, options.quiet or options.json)
    if options.board is not None:
        return _eval_board(options, steps)
    for name in ("cluster", "deadline", "frequency"):
        if getattr(options, name) is not None:
            message = f"`--{name}` is for replaying: here the policy and this machine decide"
            help_ = "name the board that is meant: `--board NAME`"
            raise CompileErrors([Diagnostic("bad-argument", message, help=help_)])
    with steps.step("evaluate") as progress:
        found = evaluate_artifact(
            options.artifact,
            options.data,
            options.policy,
            options.budget,
            options.samples,
            progress,
            options.threads,
        ).to_json()
    if options.json:
        _print_json(options, found)
    else:
        print_evaluation(found)
    return 0


def _eval_board(options: argparse.Namespace, steps: Steps) -> int:
    """Answers of this machine, times and energies of a board."""
    from eecompile.clocks.evaluation import BoardOptions, evaluate_on_board
    from eecompile.clocks.words import print_board_evaluation

    names = ("artifact", "data", "board", "cluster", "policy", "deadline", "frequency")
    chosen = {name: getattr(options, name) for name in (*names, "budget", "samples", "threads")}
    with steps.step("evaluate") as progress:
        found = evaluate_on_board(BoardOptions(**chosen), progress)
    if options.json:
        _print_json(options, found)
    else:
        print_board_evaluation(found)
    return 0


def print_evaluation(found: Mapping[str, Any]) -> None:
    """Accuracy and cost with exits beside full depth, and the exits taken."""
    ratio = found["mean_latency_s"] / found["full_depth_latency_s"]
    budget = f" at {found['budget']}" if found["budget"] else ""
    print(
        f"{found['n']} samples, policy {found['policy'] or 'none'}{budget}; "
        f"{threads_in_words(found['threads'])}, measured, exits and full depth in turn"
    )
    table(
        ("", "with exits", "full depth"),
        [
            ("accuracy", percent(found["accuracy"], 2), percent(found["full_depth_accuracy"], 2)),
            ("multiply-accumulates", percent(found["mean_macs_fraction"]), "100.0 %"),
            (
                "mean latency",
                f"{milliseconds(found['mean_latency_s'])} ({percent(ratio)})",
                milliseconds(found["full_depth_latency_s"]),
            ),
            (
                "median latency",
                milliseconds(found["p50_latency_s"]),
                milliseconds(found["full_depth_p50_latency_s"]),
            ),
            (
                "99th percentile",
                milliseconds(found["p99_latency_s"]),
                milliseconds(found["full_depth_p99_latency_s"]),
            ),
            *_energy_rows(found),
        ],
    )
    if found.get("deadline_s") is not None:
        print(
            f"{found['clock']}: {found['deadline_misses']} answers late, "
            f"{found['forced_answers']} forced by the deadline"
        )
    print()
    table(
        ("exit", "samples", "accuracy"),
        [
            (
                row["name"],
                percent(row["fraction"]),
                "-" if row["accuracy"] is None else percent(row["accuracy"], 2),
            )
            for row in found["exits"]
        ],
    )


def _energy_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if found["mean_energy_j"] is None:
        return []
    full = found["full_depth_energy_j"]
    name = f"mean energy, {found['energy_provenance']}"
    return [(name, joules(found["mean_energy_j"]), "-" if full is None else joules(full))]


def bench(options: argparse.Namespace) -> int:
    """Measure an artifact at the clocks there are, model it at others."""
    from eecompile.atomic import check_file, replaced_file
    from eecompile.benching.blocks import Settings
    from eecompile.benching.run import BenchOptions, bench_artifact
    from eecompile.benching.words import print_bench

    if options.svg is not None:
        check_file(options.svg)  # before anything takes time
    limits = {"rounds": options.rounds, "seconds": options.seconds}
    chosen = BenchOptions(
        options.artifact,
        options.freq,
        options.board,
        options.rpc,
        options.policy,
        options.data,
        options.threads,
        options.update,
        Settings.of(**limits),
    )
    report = bench_artifact(chosen, Steps(4, options.quiet or options.json))
    if options.svg is not None:
        replaced_file(options.svg, report.svg().encode())
    found = report.to_json() | {"updated": options.update}
    if options.json:
        _print_json(options, found)
        return 0
    print_bench(found)
    if options.svg is not None:
        print(f"picture: {options.svg}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Answer one input or a batch."""
    from eecompile.compiled import sample_shape
    from eecompile.runtime.session import load

    x = _read_input(options.input)
    for array in x.values() if isinstance(x, dict) else [x]:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"`{options.input}` holds values that are not finite"
            raise CompileErrors([Diagnostic("bad-data", message, path=str(options.input))])
    with load(options.artifact, options.policy, options.threads) as session:
        (_, type_), *_ = session.manifest.network.inputs
        batch = isinstance(x, np.ndarray) and x.ndim > len(sample_shape(type_)) and len(x) != 1
        samples = [row[None] for row in x] if isinstance(x, np.ndarray) and batch else [x]
        if not samples:
            raise CompileErrors([Diagnostic("bad-data", f"`{options.input}` holds no samples")])
        call = session.full_depth if options.full_depth else session.run
        answers = [call(sample, normalize=options.normalize) for sample in samples]
    if options.json:
        shown = [_answer_json(answer) for answer in answers]
        _print_json(options, {"answers": shown} if batch else shown[0])
        return 0
    clocked = any(answer.frequency_hz for answer in answers)
    table(
        (
            *("exit", "label", "confidence", "segments run", "latency"),
            *(("clock", "energy") if clocked else ()),
        ),
        [
            (
                answer.exit,
                "-" if answer.label is None else str(answer.label),
                "-" if answer.confidence is None else f"{answer.confidence:.3f}",
                str(answer.segments_run),
                milliseconds(answer.latency_s),
                *(
                    (
                        "-" if answer.frequency_hz is None else hertz(answer.frequency_hz),
                        "-" if answer.energy_j is None else joules(answer.energy_j),
                    )
                    if clocked
                    else ()
                ),
            )
            for answer in answers
        ],
    )
    return 0


def _answer_json(answer: Answer) -> dict[str, Any]:
    names = (
        *("exit", "label", "confidence", "segments_run"),
        *("latency_s", "frequency_hz", "energy_j"),
    )
    return {name: getattr(answer, name) for name in names}


def _read_input(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """One array of a .npy file, or the arrays of a .npz file by name."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if not reason or "pickle" in reason:  # numpy's advice would be to load it unsafely
            reason = "it holds no plain array of a .npy or .npz file"
        raise CompileErrors(
            [Diagnostic("bad-data", f"Cannot read `{path}`: {reason}", path=str(path))]
        ) from error


def verify(options: argparse.Namespace) -> int:
    """Run an artifact's test vectors; 1 if they disagree."""
    from eecompile.runtime.vectors import verify_artifact

    found = verify_artifact(options.artifact)
    if options.json:
        _print_json(options, found.to_json())
    else:
        verdict = "ok" if found.ok else "NOT ok"
        print(
            f"{verdict}: {found.samples} test vectors, largest error {found.max_abs_error:.2g}, "
            f"exits {'agree' if found.exits_agree else 'DISAGREE'}, {len(found.files)} files whole"
        )
    return 0 if found.ok else 1


def inspect(options: argparse.Namespace) -> int:
    """Show segments and exits of an artifact or a `.ee` file."""
    from eecompile.atomic import replaced_file
    from eecompile.inspection import inspect_path

    found = inspect_path(options.what)
    if options.svg is not None:
        replaced_file(options.svg, found.svg().encode())
    if options.json:
        _print_json(options, found.to_json())
        return 0
    if options.ir:
        print(found.text, end="")
        return 0
    print(found.title)
    _print_exits(found.rows)
    if options.svg is not None:
        print(f"\npicture: {options.svg}")
    return 0


def targets(options: argparse.Namespace) -> int:
    """List boards, show one with the source of every number, or make the file of one."""
    from eecompile.boards.file import board_names, read_board
    from eecompile.boards.report import board_json, board_row

    if options.action == "import":
        return _import_board(options)
    given = [name for name in ("dtb", "root", "output") if getattr(options, name) is not None]
    if given or (options.action == "list" and options.name):
        found = f"`--{given[0]}`" if given else f"`{options.name}`"
        message = f"`targets {options.action}` does not take {found}"
        help = "eecompile targets [list | show NAME | import [--dtb FILE] [--root DIR] [-o FILE]]"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help)])
    if options.action == "show":
        board = read_board(options.name or "host")
        if options.json:
            _print_json(options, board_json(board))
        else:
            _print_board(board)
        return 0
    boards = [read_board(name) for name in board_names()]
    if options.json:
        _print_json(options, {"targets": [board_json(board) for board in boards]})
        return 0
    rows = [board_row(board) for board in boards]
    table(("target", "processor", "clusters", "description"), rows, left=4)
    return 0


def _print_board(board: Board) -> None:
    from eecompile.boards.report import cluster_in_words, cluster_rows, facts

    print(f"{board.name}: {board.description}\n")
    table(("", "value", "source"), facts(board), left=3)
    for cluster in board.clusters:
        print(f"\n{cluster.name}: {cluster_in_words(cluster)}")
        columns = ("clock", "voltage", "power of a busy core", "energy of a cycle")
        table(columns, cluster_rows(cluster), left=0)
    if not board.clusters:
        print("\nno clocks are known: nothing can be modelled for this board")


def _import_board(options: argparse.Namespace) -> int:
    """Make a board file; what it misses is said on standard error."""
    from eecompile.atomic import replaced_file
    from eecompile.boards.importing import import_device_tree, import_system, read_dtb
    from eecompile.boards.report import board_json
    from eecompile.runtime.sysfs import LocalFiles

    output: Path | None = options.output
    if options.name or (options.dtb is not None and options.root is not None):
        what = f"`{options.name}`" if options.name else "both `--dtb` and `--root`"
        help = "name a device tree with --dtb, or a system's root with --root, or neither"
        message = f"`targets import` does not take {what}"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help)])
    if output is not None and output.exists() and not options.force:
        message, help = f"`{output}` exists already", "give --force to replace it"
        raise CompileErrors([Diagnostic("cannot-write", message, help=help, path=str(output))])
    name = "imported" if output is None else output.stem
    if options.dtb is not None:
        found = import_device_tree(read_dtb(options.dtb), str(options.dtb), name)
    else:
        found = import_system(LocalFiles(options.root or "/"), name)
    if output is not None:
        replaced_file(output, found.text.encode())
    if options.json:
        where = {"file": None if output is None else str(output), "text": found.text}
        _print_json(options, {**where, "missing": found.missing, **board_json(found.board)})
        return 0
    if output is None:
        print(found.text, end="")
    for line in found.missing:
        print(f"missing: {line}", file=sys.stderr)
    if output is not None:
        print(f"wrote {output}; next: eecompile targets show {output}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what works here, what does not, and how to get it; 2 if nothing can be built."""
    from eecompile.doctor import examine

    findings = examine()
    if options.json:
        _print_json(options, {"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            kind = "ok" if finding.ok else "warning" if finding.warning else "missing"
            print(f"{kind:<7}  {finding.what}: {finding.found}")
            for index, line in enumerate(finding.remedy.splitlines()):
                print(f"         {'->' if index == 0 else '  '} {line}")
    return 2 if any(finding.needed and not finding.ok for finding in findings) else 0


def demo(options: argparse.Namespace) -> int:
    """Build and measure the shipped example."""
    from eecompile.demo.run import run_demo

    found = run_demo(options.output, Steps(11, options.quiet or options.json))
    if options.json:
        _print_json(options, found)
        return 0
    print_evaluation(found)
    print(f"\nartifact: {found['artifact']}")
    return 0
