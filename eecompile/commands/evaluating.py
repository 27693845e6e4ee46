"""`eval` and `demo`: accuracy, cost and exits taken on data, here or replayed for a board."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from eecompile.commands.printing import (
    is_gated,
    print_exits_taken,
    print_gates,
    print_json,
    print_what_is_known,
)
from eecompile.commands.replaying import eval_board
from eecompile.commands.sweeping import eval_sweep
from eecompile.console import Steps, table
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.figures import joules, milliseconds, percent, threads_in_words, written

__all__ = ["demo", "eval"]


def eval(options: argparse.Namespace) -> int:
    """Measure an artifact on data, or replay it for a board."""
    from eecompile.evaluation import evaluate_artifact

    steps = Steps(1, options.quiet or options.json)
    if options.sweep:
        return eval_sweep(options, steps)
    for name in ("by", "svg"):
        if getattr(options, name) is not None:
            message = f"`--{name}` is for `--sweep`: a single setting has no curve"
            raise CompileErrors([Diagnostic("bad-argument", message, help="add `--sweep`")])
    if options.board is not None:
        for name in ("state", "endpoint", "halt"):
            if getattr(options, name) is not None:
                message = f"`--{name}` is for this machine: a replay for a board has none"
                raise CompileErrors([Diagnostic("bad-argument", message, help="leave it out")])
        return eval_board(options, steps)
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
            endpoint=options.endpoint,
            state=options.state,
            halt=options.halt,
            trusted=options.trusted,
        ).to_json()
    if options.json:
        print_json(options, found)
    else:
        _print_evaluation(found)
    return 0


def _print_evaluation(found: Mapping[str, Any]) -> None:
    """Accuracy and cost with exits beside full depth, and the exits taken."""
    ratio = found["mean_latency_s"] / found["full_depth_latency_s"]
    budget = f" at {found['budget']}" if found["budget"] else ""
    print(
        f"{found['n']} samples, policy {found['policy'] or 'none'}{budget}; "
        f"{threads_in_words(found['threads'])}, measured, {_saved_by(found)} and full depth in turn"
    )
    table(
        ("", f"with {_saved_by(found)}", "full depth"),
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
    if found.get("halt") is not None:
        print(_halt_line(found))
    if len(found["exits"]) > 1 or not is_gated(found):
        print()
        print_exits_taken(found["exits"])
    if is_gated(found):
        print_gates(found)
    if found["offloaded_fraction"]:
        print(f"\n{percent(found['offloaded_fraction'])} of the samples were answered by a server")
    print_what_is_known(found)


def _saved_by(found: Mapping[str, Any]) -> str:
    """What leaves something out.

    >>> final, early = {"name": "final"}, {"name": "early"}
    >>> _saved_by({"exits": [final], "blocks": [{}], "channels": []})
    'gates'
    >>> _saved_by({"exits": [early, final], "blocks": [], "channels": []})
    'exits'
    """
    if not is_gated(found):
        return "exits"
    return "gates, exits" if len(found["exits"]) > 1 else "gates"


def _halt_line(found: Mapping[str, Any]) -> str:
    """How many were stopped by a budget for each sample, and whether it held for each.

    >>> _halt_line({"halt": "macs <= 50 %", "halted": 0.25, "worst_latency_s": 0.001,
    ...     "over_budget": {"macs": {"samples": 0, "most": 0.0}}})
    'halts at macs <= 50 %: 25.0 % of the samples were stopped; kept by all; slowest answer 1.00 ms'
    """
    over = []
    for name, missed in found["over_budget"].items():
        if missed["samples"]:
            most = milliseconds(missed["most"]) if name == "latency_s" else percent(missed["most"])
            over.append(f"{missed['samples']} spent more, by {most} at most")
    return (
        f"halts at {found['halt']}: {percent(found['halted'])} of the samples were stopped; "
        f"{', '.join(over) or 'kept by all'}; "
        f"slowest answer {milliseconds(found['worst_latency_s'])}"
    )


def _energy_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if found["mean_energy_j"] is None:
        return []
    name = f"mean energy, {found['energy_provenance']}"
    full = written(found["full_depth_energy_j"], joules)
    return [(name, joules(found["mean_energy_j"]), full)]


def demo(options: argparse.Namespace) -> int:
    """Build and measure the shipped example."""
    from eecompile.demo.run import run_demo

    found = run_demo(options.output, Steps(11, options.quiet or options.json))
    if options.json:
        print_json(options, found)
        return 0
    _print_evaluation(found)
    print(f"\nartifact: {found['artifact']}")
    return 0
