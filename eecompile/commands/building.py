"""`build`: a `.ee` file into an artifact, and what is told of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from eecompile.commands.placing import print_placing
from eecompile.commands.printing import print_exits, print_json
from eecompile.console import Steps
from eecompile.figures import hertz, milliseconds, readable, threads_in_words

__all__ = ["build"]


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
        sign=options.sign,
    )
    if options.dry_run:
        planned = plan(options.file, chosen)
        print_json(options, planned) if options.json else _print_plan(planned)
        return 0
    steps = Steps(10 + (chosen.tune is not None), options.quiet or options.json)
    report = build_artifact(options.file, chosen, steps)
    if options.json:
        print_json(options, {**report.summary, "unchanged": report.unchanged})
    else:
        _print_build(report.summary)
    return 0


def _print_plan(planned: Mapping[str, Any]) -> None:
    print(f"would build {planned['artifact']} for {planned['target']} ({planned['triple']})")
    print_exits(planned["exits"])
    for line in planned["steps"]:
        print(f"  {line}")


def _print_build(summary: Mapping[str, Any]) -> None:
    from eecompile.gate_report import gating_lines
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
    if summary["gates"]:
        print("\n".join(gating_lines(summary["gates"])))
    if len(summary["exits"]) > 1:
        print_exits(summary["exits"])
    if summary["placing"]:
        print_placing(summary["placing"])
        print()
    for name, report in summary["policies"].items():
        print("\n".join(held_out_lines(name, report, threads)))
    if kernels := summary["kernels"]:
        print(f"kernels: {kernels['tuned']} tuned, {kernels['by_model']} by model")
    print(f"memory: {Peak.from_json(summary['memory'])}")
    print(f"\nartifact: {summary['artifact']}")
    if summary["server"]:
        print(f"for servers: {summary['server']} (README.txt there tells how)")
