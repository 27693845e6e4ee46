"""`eval --board`: answers of this machine, times and energies of a board that is not at hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from eecompile.commands.printing import (
    is_gated,
    print_exits_taken,
    print_gates,
    print_json,
)
from eecompile.console import Steps, table
from eecompile.figures import (
    hertz,
    joules,
    milliseconds,
    percent,
    readable,
    threads_in_words,
    written,
)

__all__ = ["eval_board"]


def eval_board(options: argparse.Namespace, steps: Steps) -> int:
    """Replay an artifact's policy and clocks for a board."""
    from eecompile.clocks.evaluation import BoardOptions, evaluate_on_board

    names = (
        *("artifact", "data", "board", "cluster", "policy", "deadline", "frequency"),
        *("budget", "samples", "threads", "trusted"),
    )
    chosen = {name: getattr(options, name) for name in names}
    with steps.step("evaluate") as progress:
        found = evaluate_on_board(BoardOptions(**chosen), progress)
    if options.json:
        print_json(options, found)
    else:
        _print_board_evaluation(found)
    return 0


def _print_board_evaluation(found: Mapping[str, Any]) -> None:
    """Clocks chosen beside the fastest clock and the full network, exits, clocks, the model."""
    budget = f" at {found['budget']}" if found["budget"] else ""
    print(
        f"{found['n']} samples, policy {found['policy'] or 'none'}{budget}, replayed for "
        f"{found['board']} ({threads_in_words(found['threads'])}): latencies and energies are "
        f"modelled, not measured"
    )
    print(_rule_in_words(found))
    print()
    _print_figures(found)
    print()
    print_exits_taken(found["exits"])
    if is_gated(found):
        print_gates(found)
    print()
    _print_clocks(found["clocks"])
    print()
    for line in _model_in_words(found["model"]):
        print(line)
    for note in found["notes"]:
        print(f"note: {note}")


def _rule_in_words(found: Mapping[str, Any]) -> str:
    rule = found["clock"] or "no deadline"
    if "frequency" not in rule:
        rule = f"clocks as they are, taken for the fastest; {rule}"
    begins = next(row for row in found["clocks"] if row["begins"])
    why = "chosen for the whole way"
    if count := found["start_fitted_on"]:
        why = f"fitted on {count} calibration samples"
    clock = f"{begins['cluster']} at {hertz(begins['frequency_hz'])}"
    return f"{rule}; samples begin on {clock} ({why})"


def _print_figures(found: Mapping[str, Any]) -> None:
    full, early = (
        found["baselines"][name] for name in ("full_depth_top_clock", "early_exit_top_clock")
    )

    def row(what: str, key: str, write: Callable[[Any], str]) -> tuple[str, ...]:
        return (what, *(written(side[key], write) for side in (found, early, full)))

    rows = [
        row("accuracy", "accuracy", lambda value: percent(value, 2)),
        row("multiply-accumulates", "mean_macs_fraction", percent),
        row("mean latency", "mean_latency_s", milliseconds),
        row("median latency", "p50_latency_s", milliseconds),
        row("99th percentile", "p99_latency_s", milliseconds),
        row("energy per sample", "mean_energy_j", joules),
    ]
    energies = [side["mean_energy_j"] for side in (found, early, full)]
    if None not in energies and energies[2]:
        rows.append(("", *(percent(energy / energies[2]) for energy in energies)))
    if found["deadline_s"] is not None:
        rows.append(row("deadline misses", "deadline_misses", str))
        rows.append(row("answers it forced", "forced_answers", str))
    rows.append(row("changes of clock", "transitions_per_sample", "{:.2f}".format))
    table(("", "clocks chosen", "fastest clock", "full network, fastest"), rows)


def _print_clocks(clocks: list[Mapping[str, Any]]) -> None:
    table(
        ("cluster", "clock", "voltage", "full depth", "energy", "time spent"),
        [
            (
                row["cluster"],
                hertz(row["frequency_hz"]),
                written(row["voltage_v"], "{:.4g} V".format),
                written(row["full_depth_latency_s"], milliseconds),
                written(row["full_depth_energy_j"], joules),
                percent(row["time_fraction"]),
            )
            for row in clocks
        ],
    )


def _model_in_words(model: Mapping[str, Any]) -> list[str]:
    """The numbers of the board that the model was given."""
    lines = []
    for cluster in model["clusters"]:
        known = [
            _known("{:.4g} uW/MHz/V^2 a core", cluster["dynamic_power_coefficient"]),
            _known("{:.3g} W a core whatever it does", cluster["static_power_w"]),
            _change(cluster["transition_latency_s"]),
        ]
        name = f"{cluster['name']}" + (f" ({cluster['core']})" if cluster["core"] else "")
        lines.append(f"{name}: {', '.join(filter(None, known))}")
    shared = [
        f"{readable(model['memory_bandwidth'], 'B')}/s from memory"
        if model["memory_bandwidth"]
        else "",
        _known("{:.3g} W while waiting", model["idle_power_w"]),
        _known("{:.0f} us to change cluster", (model["migration_latency_s"] or 0) * 1e6 or None),
        f"energies of {model['energy_covers']}" if model["energy_covers"] else "no energies",
    ]
    return [*lines, f"board: {', '.join(filter(None, shared))}"]


def _change(latency_s: float | None) -> str:
    if latency_s is None:
        return "time to change the clock not known"
    return f"{latency_s * 1e6:.4g} us to change the clock"


def _known(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
