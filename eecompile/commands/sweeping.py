"""`eval --sweep`: accuracy and cost of all policies at all their operating points."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from eecompile.atomic import check_file, replaced_file
from eecompile.commands.printing import print_json
from eecompile.console import Steps, table
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.figures import joules, milliseconds, percent

if TYPE_CHECKING:
    from eecompile.outcomes import Interval
    from eecompile.sweeping import Curve, Sweep, SweptPoint

__all__ = ["eval_sweep"]

_WRITERS: Mapping[str, Callable[[float], str]] = {
    "macs": percent,
    "latency": milliseconds,
    "energy": joules,
}


def eval_sweep(options: argparse.Namespace, steps: Steps) -> int:
    """Replay every operating point; print a table, one JSON object, or draw the curves."""
    from eecompile.sweep_picture import draw_sweep
    from eecompile.sweeping import sweep_artifact

    for name in ("budget", "board"):
        if getattr(options, name) is not None:
            message = f"`--{name}` chooses one thing to look at, `--sweep` shows all budgets here"
            raise CompileErrors([Diagnostic("bad-argument", message, help="give one of the two")])
    for name in ("state", "endpoint", "halt"):
        if getattr(options, name) is not None:
            message = f"`--{name}` is for a policy that runs, `--sweep` replays settings"
            raise CompileErrors([Diagnostic("bad-argument", message, help="leave it out")])
    if options.svg is not None:
        check_file(options.svg, may_make_folder=False)  # before anything takes time
    with steps.step("evaluate") as progress:
        found = sweep_artifact(
            options.artifact,
            options.data,
            options.by or "macs",
            options.samples,
            progress,
            options.threads,
            options.policy,
            options.trusted,
        )
    if options.svg is not None:
        replaced_file(options.svg, draw_sweep(found).encode())
    if options.json:
        print_json(options, found.to_json())
        return 0
    _print_sweep(found)
    if options.svg is not None:
        print(f"\npicture: {options.svg}")
    return 0


def _print_sweep(sweep: Sweep) -> None:
    from eecompile.sweeping import SHARES

    write = _WRITERS[sweep.quantity]
    full = sweep.full_depth
    half = max((a.high - a.low) / 2 for a in _accuracies_shown(sweep))
    print(
        f"{full.n} samples; accuracy in %, and mean {sweep.quantity} in brackets "
        f"({full.provenance[sweep.quantity]}), at the setting for each budget of mean "
        f"{sweep.quantity}; an accuracy is off by {percent(half, 2)} at most (95 %)"
    )
    limits = [write(share * sweep.full_cost) for share in SHARES]
    rows = [(curve.name, *_cells(curve, sweep)) for curve in sweep.curves]
    table(("budget", *limits), rows)
    cost = full.costs[sweep.quantity].value
    print(f"whole network: {100 * full.accuracy.value:.2f} ({write(cost)})")
    over = any("!" in cell for row in rows for cell in row[1:])
    if over:
        print("!: over the budget on these samples; budgets were kept on the calibration data")
    for name, why in sweep.left_out.items():
        print(f"{name} left out: it {why}")


def _accuracies_shown(sweep: Sweep) -> Iterator[Interval]:
    """Those of the table: the less is right, the wider their intervals."""
    yield sweep.full_depth.accuracy
    for curve in sweep.curves:
        shown = curve.points if len(curve.points) == 1 else curve.at_shares
        yield from (point.report.accuracy for point in shown if point is not None)


def _cells(curve: Curve, sweep: Sweep) -> list[str]:
    """Accuracy and cost at each budget; the only setting there is stands alone."""
    from eecompile.sweeping import SHARES

    if len(curve.points) == 1:
        own = _cell(curve.points[0], sweep, None)
        return ["", *[""] * (len(SHARES) - 2), f"always {own}"]
    return [
        "-" if point is None else _cell(point, sweep, share * sweep.full_cost)
        for point, share in zip(curve.at_shares, SHARES, strict=True)
    ]


def _cell(point: SweptPoint, sweep: Sweep, limit: float | None) -> str:
    cost = point.report.costs[sweep.quantity].value
    shown = {
        "macs": f"{100 * cost:.1f}",
        "latency": milliseconds(cost).removesuffix(" ms"),
        "energy": joules(cost),
    }[sweep.quantity]
    over = "!" if limit is not None and cost > limit * (1 + 1e-9) else ""
    return f"{100 * point.report.accuracy.value:.2f} ({shown}{over})"
