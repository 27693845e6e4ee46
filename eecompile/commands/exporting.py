"""`export`: an artifact as files for an app in C or C++."""

from __future__ import annotations

import argparse
import platform
import shlex

from eecompile.commands.printing import print_json

__all__ = ["export"]


def export(options: argparse.Namespace) -> int:
    """Write an app's files, and say how to build its example."""
    from eecompile.app_folder import export_artifact

    found = export_artifact(options.artifact, options.output, options.trusted)
    if options.json:
        print_json(options, found.to_json())
        return 0
    print(f"wrote {found.folder} for {found.triple}:")
    width = max(map(len, found.files))
    for name, nbytes in found.files.items():
        print(f"  {name:<{width}} {nbytes:>10} bytes")
    for policy in found.python_only:
        print(f"note: the policy {policy} needs eecompile's Python runtime")
    print(f"\nnext: see {found.folder / 'README.md'}, or")
    print(f"  cd {shlex.quote(str(found.folder))}")
    architecture = found.triple.partition("-")[0]
    compiler, there = "cc", " && ./example"
    if architecture != platform.machine():
        compiler, there = f"{architecture}-linux-gnu-gcc", ""  # which runs on the target alone
    linking = f"-I. -L. -l{found.name} -Wl,-rpath,'$ORIGIN'"
    print(f"  {compiler} example.c -o example {linking}{there}")
    return 0
