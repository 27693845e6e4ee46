"""What `bench` prints: tables of pieces and exits by clock, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eecompile.console import table
from eecompile.figures import hertz, joules, percent, threads_in_words

__all__ = ["duration", "print_bench"]

_COLUMNS = 6  # clocks in one table
_MODELLED, _FRONT = "~", "*"


def duration(seconds: float) -> str:
    """A time in three figures, from microseconds to seconds.

    >>> duration(2.31e-6), duration(0.000151), duration(0.00151), duration(0.0432), duration(1.5)
    ('2.31 us', '151 us', '1.51 ms', '43.2 ms', '1.5 s')
    """
    for limit, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def print_bench(found: Mapping[str, Any]) -> None:
    """A report for people: `eecompile.benching.report.Report.to_json`'s value."""
    print("\n".join(_head(found)))
    states = found["states"]
    for start in range(0, len(states), _COLUMNS):
        chunk = states[start : start + _COLUMNS]
        print()
        _pieces(found, chunk, "latency_s", "latency", duration)
        if _known(found, chunk, "energy_j"):
            print()
            _pieces(found, chunk, "energy_j", "energy", joules)
        if found["pareto"]:
            print()
            _exits(found, chunk)
    print()
    print("\n".join(_legend(found)))


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    where = found["device"] or f"board {found['board']}, nothing measured"
    yield f"{found['model']} for {found['target']}: {where}, {threads_in_words(found['threads'])}"
    if found["conditions"]:
        yield from _conditions(found["conditions"])
    for note in found["notes"]:
        yield f"note: {note}"


def _conditions(told: Mapping[str, Any]) -> Iterator[str]:
    """Who set the clock, what else went on, and what measuring itself takes."""
    before, after = told["before"], told["after"]
    if told["clock_set_by"] == "eecompile":
        parts = ["clocks set for each block, and put back"]
    elif before["governor"] is None:
        parts = [f"no cpufreq: the clock cannot be set; now {hertz(after['clock_hz'])}"]
    else:
        parts = [f"clock left to governor {before['governor']}, now {hertz(after['clock_hz'])}"]
    if before["highest_hz"] is not None and before["lowest_hz"] is not None:
        parts.append(f"limits {hertz(before['lowest_hz'])} to {hertz(before['highest_hz'])}")
    if before["turbo"] is not None:
        parts.append(f"turbo {'on' if before['turbo'] else 'off'}")
    yield "; ".join(parts)
    parts = []
    if before["load"] is not None:
        parts.append(f"load {before['load']:.2f} before")
    if told["others_cores"] is not None:
        parts.append(f"other programs kept {told['others_cores']:.2f} cores busy meanwhile")
    if after["temperature_c"] is not None:
        degrees = (before["temperature_c"] or after["temperature_c"], after["temperature_c"])
        parts.append(f"{degrees[0]:.0f} to {degrees[1]:.0f} degrees")
    parts.append(
        f"reading the timer takes {told['overheads']['timer_s'] * 1e9:.0f} ns of each time"
    )
    if told["overheads"]["meter_s"] is not None:
        parts.append(f"reading the meter {duration(told['overheads']['meter_s'])}")
    yield "; ".join(parts)


def _clock(state: Mapping[str, Any], clusters: int) -> str:
    clock = hertz(state["frequency_hz"])
    return f"{state['cluster']} {clock}" if clusters > 1 else clock


def _point(row: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    key = (state["cluster"], state["frequency_hz"])
    return next((p for p in row["points"] if (p["cluster"], p["frequency_hz"]) == key), None)


def _known(found: Mapping[str, Any], states: Sequence[Mapping[str, Any]], key: str) -> bool:
    points = [_point(found["full_depth"], state) for state in states]
    return any(point is not None and point[key] is not None for point in points)


def _pieces(
    found: Mapping[str, Any],
    states: Sequence[Mapping[str, Any]],
    key: str,
    title: str,
    words: Any,
) -> None:
    clusters = len({state["cluster"] for state in found["states"]})
    provenance = "provenance" if key == "latency_s" else "energy_provenance"

    def cells(row: Mapping[str, Any]) -> list[str]:
        shown = []
        for state in states:
            point = _point(row, state)
            if point is None or point[key] is None:
                shown.append("-")
            else:
                mark = _MODELLED if point[provenance] == "modelled" else ""
                shown.append(f"{mark}{words(point[key])}")
        return shown

    rows = []
    for index, segment in enumerate(found["segments"]):
        rows.append([segment["name"], *cells(segment)])
        rows += [[f"  exit {e['name']}", *cells(e)] for e in found["exits"][index : index + 1]]
    rows.append(["full depth", *cells(found["full_depth"])])
    if key == "latency_s":
        rows += _tails(found["full_depth"], states)
    table([title, *(_clock(state, clusters) for state in states)], rows)


def _tails(full: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Percentiles of full depth, where it was measured."""
    points = [_point(full, state) for state in states]
    told = [(point or {}).get("quantiles") for point in points]
    if not any(told):
        return []
    return [
        [f"  {name}", *("-" if one is None else duration(one[key]) for one in told)]
        for name, key in (("P90", "p90_s"), ("P95", "p95_s"), ("P99", "p99_s"))
    ]


def _exits(found: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> None:
    """Leaving at each exit, and the policy's mean."""
    clusters = len({state["cluster"] for state in found["states"]})
    policy = found["policy"]
    names = list(dict.fromkeys(way["exit"] for way in found["pareto"]))

    def cell(way: Mapping[str, Any] | None) -> str:
        if way is None:
            return "-"
        mark = _MODELLED if way["provenance"] == "modelled" else ""
        text = f"{mark}{duration(way['latency_s'])}"
        if way["energy_j"] is not None:
            mark = _MODELLED if way["energy_provenance"] == "modelled" else ""
            text += f" {mark}{joules(way['energy_j'])}"
        return text + (_FRONT if way["optimal"] else " ")

    def row(ways: Sequence[Mapping[str, Any]]) -> list[str]:
        by_clock = {(way["cluster"], way["frequency_hz"]): way for way in ways}
        return [cell(by_clock.get((s["cluster"], s["frequency_hz"]))) for s in states]

    rows = []
    for name in names:
        ways = [way for way in found["pareto"] if way["exit"] == name]
        share, accuracy = ways[0]["share"], ways[0]["accuracy"]
        rows.append([name, _part(share), _part(accuracy), *row(ways)])
    if policy is not None and policy["points"]:
        accuracy = _part(policy["accuracy"])
        rows.append([f"mean, {policy['name']}", "", accuracy, *row(policy["points"])])
    clocks = [_clock(state, clusters) for state in states]
    table(["leaving at", "share", "accuracy", *clocks], rows)


def _part(fraction: float | None) -> str:
    return "-" if fraction is None else percent(fraction)


def _legend(found: Mapping[str, Any]) -> Iterator[str]:
    told = {point["provenance"] for point in found["full_depth"]["points"]}
    told |= {point["energy_provenance"] for point in found["full_depth"]["points"]}
    if "modelled" in told:
        yield f"{_MODELLED} modelled; everything else is measured, medians"
    if found["pareto"]:
        energies = any(way["energy_j"] is not None for way in found["pareto"])
        more = " without drawing more" if energies else ""
        heads = "every head asked on the way is included"
        yield f"{_FRONT} on the front: nothing as deep is faster{more}; {heads}"
    if found["policy"] is not None:
        yield found["policy"]["words"]
    if found["comparison"] is not None:
        yield _comparison(found["comparison"])
    if found["updated"]:
        yield "the artifact keeps these costs"


def _comparison(told: Mapping[str, Any]) -> str:
    if told["refused"] is not None:
        return f"not compared with the artifact's costs: {told['refused']}"
    ratios = ", ".join(
        f"{row['ratio']:.2f} at {hertz(row['frequency_hz'])}" for row in told["full_depth"]
    )
    return f"full depth, of what the artifact has: {ratios}"
