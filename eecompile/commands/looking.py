"""`inspect` and `doctor`: what is in an artifact, and what this machine can do."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from eecompile.commands.printing import print_exits, print_json

__all__ = ["doctor", "inspect"]


def inspect(options: argparse.Namespace) -> int:
    """Show segments and exits of an artifact or a `.ee` file."""
    from eecompile.atomic import replaced_file
    from eecompile.inspection import inspect_path

    found = inspect_path(options.what)
    if options.svg is not None:
        replaced_file(options.svg, found.svg().encode())
    if options.json:
        print_json(options, found.to_json())
        return 0
    if options.ir:
        print(found.text, end="")
        return 0
    print(found.title)
    print_exits(found.rows)
    if options.svg is not None:
        print(f"\npicture: {options.svg}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what works here, what does not, and how to get it; 2 if nothing can be built."""
    from eecompile.doctor.examination import examine

    findings = examine()
    if options.json:
        print_json(options, {"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            kind = "ok" if finding.ok else "warning" if finding.warning else "missing"
            print(f"{kind:<7}  {finding.what}: {finding.found}")
            for index, line in enumerate(finding.remedy.splitlines()):
                print(f"         {'->' if index == 0 else '  '} {line}")
    return 2 if any(finding.needed and not finding.ok for finding in findings) else 0
