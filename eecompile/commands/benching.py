"""`bench`: what each piece of an artifact costs at each clock."""

from __future__ import annotations

import argparse

from eecompile.commands.printing import print_json
from eecompile.console import Steps

__all__ = ["bench"]


def bench(options: argparse.Namespace) -> int:
    """Measure an artifact at the clocks there are, model it at others."""
    from eecompile.atomic import check_file, replaced_file
    from eecompile.benching.blocks import Settings
    from eecompile.benching.run import BenchOptions, bench_artifact
    from eecompile.benching.words import print_bench

    if options.svg is not None:
        check_file(options.svg, may_make_folder=False)  # before anything takes time
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
        options.trusted,
    )
    report = bench_artifact(chosen, Steps(4, options.quiet or options.json))
    if options.svg is not None:
        replaced_file(options.svg, report.svg().encode())
    found = report.to_json() | {"updated": options.update}
    if options.json:
        print_json(options, found)
        return 0
    print_bench(found)
    if options.svg is not None:
        print(f"picture: {options.svg}")
    return 0
