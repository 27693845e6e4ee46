"""`init`, `check` and `format`: `.ee` files before anything is built."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eecompile.commands.printing import print_json
from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["check", "format", "init"]


def init(options: argparse.Namespace) -> int:
    """Write a commented `.ee` file."""
    from eecompile.atomic import replaced_file
    from eecompile.initialise import describe

    output: Path | None = options.output
    text = describe(options.model, output, options.weights, options.input, options.exits)
    if output is None:
        print_json(options, {"text": text}) if options.json else print(text, end="")
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
        print_json(options, {"file": str(output), "text": text})
    else:
        print(f"wrote {output}; next: eecompile check {output}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Every problem of a file; 1 if any is an error. Where there is none, what its gates skip."""
    from eecompile.gate_report import gate_lines, gates_json
    from eecompile.gates.plan import GatePlan
    from eecompile.gating import known_gates
    from eecompile.loading import check_file

    plan = GatePlan()
    found: tuple[Diagnostic, ...] = ()
    try:
        spec, host, problems = check_file(options.file, options.overrides)
        found = problems.in_order()
        if host is not None and not any(d.severity == "error" for d in found):
            plan = known_gates(spec, host).plan
    except CompileErrors as errors:
        found = (*found, *errors.diagnostics)
    wrong = any(diagnostic.severity == "error" for diagnostic in found)
    if options.json:
        told = {"diagnostics": [diagnostic.to_json() for diagnostic in found]}
        print_json(options, told | {"gates": gates_json(plan) if plan.gates else None})
        return 1 if wrong else 0
    if found:
        print("\n\n".join(diagnostic.full() for diagnostic in found), file=sys.stderr)
    else:
        print(f"{options.file}: no problems")
    for line in gate_lines(plan):
        print(f"  {line}")
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
        print_json(options, {"file": str(options.file), "changed": changed})
    elif options.check:
        print(f"{options.file}: {'would change' if changed else 'canonical'}")
    return 1 if changed and options.check else 0
