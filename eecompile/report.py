"""What is said of a fitted policy: its budget, calibration and held-out figures, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.auto_policy import comparison_lines
from eecompile.figures import hertz, joules, milliseconds, percent, threads_in_words
from eecompile.forecast_report import forecast_line
from eecompile.gate_report import counts_line, gates_in_words
from eecompile.halt_rule import HaltRule
from eecompile.offload_report import offload_lines
from eecompile.outcomes import Interval, Report, exits_json
from eecompile.policy_fitting import DEFAULT_BUDGET
from eecompile.spec import Policy
from eecompile.split_report import split_lines

__all__ = ["held_out_lines", "policy_report"]


def policy_report(
    written: Policy, fitted: Mapping[str, Any], test: Report | None
) -> dict[str, Any]:
    """JSON value kept in the artifact beside a policy.

    ``points`` are the operating points for other budgets. ``calibrate`` and ``test`` are None
    without such data.
    """
    by_rule = bool(written.rule and fitted["points"])
    budget = written.budget or (DEFAULT_BUDGET if by_rule else None)
    found: dict[str, Any] = {
        "rule": _rule(written, fitted.get("policy", {})),
        "budget": str(budget) if budget else None,
        "calibrate": fitted["point"]
        and {key: value for key, value in fitted["point"].items() if key != "policy"},
        "points": fitted["points"],
        "test": None,
    }
    if test is not None:
        found["test"] = _report(test)
        found["test"]["budget_missed_by"] = test.missed_by(budget) if budget else 0.0
        found["test"]["budget_quantity"] = budget.quantity if budget else None
    return found


def _rule(written: Policy, policy: Mapping[str, Any]) -> str:
    """Why samples stop: the rule of the file; without one gates alone, limits alone or nothing."""
    if written.rule is not None:
        return str(written.rule)
    if written.halt is not None:
        return "no exit before the limit"
    if written.split is not None:
        return "never"
    return gates_in_words(policy.get("gate_shift", 0.0))


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _report(report: Report) -> dict[str, Any]:
    return {
        "n": report.n,
        "accuracy": _interval(report.accuracy),
        "full_depth_accuracy": _interval(report.full_depth_accuracy),
        "accuracy_drop": _interval(report.accuracy_drop),
        "costs": {
            name: _interval(interval) | {"provenance": report.provenance[name]}
            for name, interval in report.costs.items()
        },
        "exits": exits_json(report.exits),
    }


def held_out_lines(name: str, report: Mapping[str, Any], threads: int | None) -> list[str]:
    """What a person reads about a policy after a build.

    Accuracy and cost on data nothing was fitted on, with 95 % intervals, and whether the budget
    held there. Latencies are of `threads` threads.
    """
    title = f"{name}: {report['rule']}, budget {report['budget'] or 'none'}"
    chosen = comparison_lines(report["auto"]) if "auto" in report else []
    test = report["test"]
    if test is None:
        return [title, *chosen, "  no test data: nothing is known of data it was not fitted on"]

    def spread(interval: Mapping[str, Any], scale: float = 100.0) -> str:
        value, low, high = (scale * interval[key] for key in ("value", "low", "high"))
        digits = 2 if scale == 100.0 or low >= 1 else 4  # Small networks take microseconds.
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = [
        title,
        *chosen,
        f"  held out ({test['n']} samples): accuracy {spread(test['accuracy'])} %, "
        f"full depth {100 * test['full_depth_accuracy']['value']:.2f} %",
        f"  multiply-accumulates {spread(test['costs']['macs'])} % of full depth, "
        f"heads{' and gates' * ('gates' in report)} included",
    ]
    if latency := test["costs"].get("latency"):
        lines.append(
            f"  latency {spread(latency, 1e3)} ms, {latency['provenance']}, "
            f"{threads_in_words(threads or 1)}, compiled code alone; `eval` times calls"
        )
    if energy := test["costs"].get("energy"):
        lines.append(
            f"  energy {spread(energy, 1e3)} mJ, {energy['provenance']}, at the fastest clock"
        )
    if report.get("gates") is not None:
        lines.append(f"  {counts_line(report['gates'])}")
    lines += clock_lines(report["clock"]) if "clock" in report else []
    lines += split_lines(report["split"]) if "split" in report else []
    lines += offload_lines(report["offload"]) if "offload" in report else []
    forecast = report.get("forecast", {}).get("test")
    if forecast is not None:
        lines.append(f"  {forecast_line(forecast)}")
    if "halt" in report:
        lines.append(f"  {_halt_line(report['halt'])}")
    if "guard" in report:
        lines.append(f"  {_guard_line(report['guard'])}")
    if report["budget"]:
        missed_by, forced = test["budget_missed_by"], report.get("clock", {}).get("test") or {}
        if forced.get("budget_missed_by") is not None:
            missed_by = forced["budget_missed_by"]
        missed_by = report.get("guard", {}).get("budget_missed_by", missed_by)
        lines.append(f"  budget {_kept(missed_by, test['budget_quantity'])}")
    return lines


def _halt_line(halt: Mapping[str, Any]) -> str:
    """What a sample may spend, and how many would spend more.

    >>> told = {"rule": "macs <= 50 %", "test": {"halted": 0.25, "worst": 0.48}}
    >>> _halt_line({**told, "quantity": "macs", "provenance": "counted"})
    'halts at macs <= 50 %: 25.0 % of the samples are stopped; none spends more than 48 %, counted'
    """
    test = halt["test"]
    worst = str(HaltRule(**{halt["quantity"]: test["worst"]})).split("<= ")[1]
    return (
        f"halts at {halt['rule']}: {percent(test['halted'])} of the samples are stopped; "
        f"none spends more than {worst}, {halt['provenance']}"
    )


def _guard_line(guard: Mapping[str, Any]) -> str:
    """What a guard allows, and how settings differ on held-out data.

    >>> told = {"drop": 0.01, "share": 0.05, "settings": 3, "start": 1, "test": [0.02, 0.01, 0.0]}
    >>> _guard_line({**told, "test_macs_at_start": 0.8876}).split("; ")[2]
    'it begins with number 2, at 88.8 % of the multiply-accumulates with audits'
    """
    line = (
        f"guard: at most {percent(guard['drop'], 2)} of the answers differ from full depth, "
        f"{percent(guard['share'])} are audited; held out, its {guard['settings']} settings "
        f"differ in {', '.join(percent(share, 2) for share in guard['test'])}"
    )
    begins = f"it begins with number {guard['start'] + 1}"
    if guard["start"] == guard["settings"]:
        begins = "nothing leaves early until audits allow it"
    macs = percent(guard["test_macs_at_start"])
    return f"{line}; {begins}, at {macs} of the multiply-accumulates with audits"


def _compared(energy_j: float, other_j: float) -> str:
    """An energy beside another one.

    >>> _compared(3.0, 4.0), _compared(5.0, 4.0)
    ('25.0 % less than 4 J', '25.0 % more than 4 J')
    """
    share = energy_j / other_j - 1
    return f"{percent(abs(share))} {'more' if share > 0 else 'less'} than {joules(other_j)}"


def clock_lines(clock: Mapping[str, Any]) -> list[str]:
    """What a person reads about a policy's clocks after a build, on held-out data."""
    lines = [f"  clocks of `{clock['board']}`: {clock['rule']}", *_fitting_lines(clock["fitting"])]
    if clock["test"] is None:
        return lines
    chosen = clock["test"]["chosen"]
    if chosen["mean_energy_j"] is not None:
        others = ("early_exit_top_clock", "full_depth_top_clock")
        before = [clock["test"][name]["mean_energy_j"] for name in others]
        less = [_compared(chosen["mean_energy_j"], joule) for joule in before if joule]
        lines.append(
            f"  energy {joules(chosen['mean_energy_j'])}, {clock['energy_provenance']}; these "
            f"exits, and full depth, at the fastest clock: {' and '.join(less)}"
        )
    lines.append(
        f"  latency {milliseconds(chosen['mean_latency_s'])}, {clock['latency_provenance']}, "
        f"99 % within {milliseconds(chosen['p99_latency_s'])}; "
        f"accuracy {percent(chosen['accuracy'], 2)}"
    )
    if clock["deadline_s"] is not None:
        late = f"{chosen['deadline_misses']} of {chosen['n']} answers late"
        if chosen["deadline_misses"]:
            share = chosen["deadline_misses"] / chosen["n"]
            late += f", by {milliseconds(chosen['mean_lateness_s'] / share)} on the average"
        lines.append(f"  {late}, {chosen['forced_answers']} forced by the deadline")
    return lines


def _fitting_lines(fitting: Mapping[str, Any] | None) -> list[str]:
    """What was chosen on calibration data, where there was something to choose."""
    if fitting is None or fitting["start"] is None:
        return []
    line = f"  samples begin at {hertz(fitting['start']['frequency_hz'])}"
    if fitting["settings"] > 1:
        line += f"; of {fitting['settings']} settings that keep the budget, the one of least energy"
    return [line]


def _kept(missed: float, quantity: str) -> str:
    """Whether a budget held, and by how much it was missed.

    >>> _kept(0.0, "macs"), _kept(0.0025, "accuracy_drop"), _kept(3e-5, "latency")
    ('kept', 'missed by 0.25 percentage points', 'missed by 0.03 ms')
    """
    if not missed:
        return "kept"
    scale, unit = {
        "macs": (1e2, "% of full depth"),
        "accuracy_drop": (1e2, "percentage points"),
        "latency": (1e3, "ms"),
        "energy": (1e3, "mJ"),
    }[quantity]
    return f"missed by {scale * missed:.3g} {unit}"
