"""What `bench` prints: tables of pieces and exits by clock, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eecompile.console import table
from eecompile.figures import duration, hertz, joules, percent, threads_in_words, written

__all__ = ["print_bench"]

_COLUMNS = 8  # clocks in one table
_MODELLED = "~"


def print_bench(found: Mapping[str, Any]) -> None:
    """A report for people: `eecompile.benching.report.Report.to_json`'s value."""
    print("\n".join(_head(found)))
    states = found["states"]
    chunks = [states[start : start + _COLUMNS] for start in range(0, len(states), _COLUMNS)]
    for key, title, words in (("latency_s", "latency", duration), ("energy_j", "energy", joules)):
        for chunk in chunks:
            if _known(found, chunk, key):
                print()
                _pieces(found, chunk, key, title, words)
    if found["pareto"]:
        print()
        _exits(found)
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
    before, after, policies = told["before"], told["after"], told["before"]["policies"]
    if told["clock_set_by"] == "eecompile":
        parts = ["clocks set for each block, and put back"]
    elif not policies:
        parts = [f"no cpufreq: the clock cannot be set; {hertz(told['clock_hz'])}"]
    else:
        parts = [f"clock left to governor {told['clock_set_by']}"]
    for policy in policies:
        if None not in (policy["low_hz"], policy["high_hz"]):
            limits = f"limits {hertz(policy['low_hz'])} to {hertz(policy['high_hz'])}"
            parts += [limits] if limits not in parts else []
    if before["turbo"] is not None:
        parts.append(f"turbo {'on' if before['turbo'] else 'off'}")
    yield "; ".join(parts)
    parts = []
    if before["load"] is not None:
        parts.append(f"load {before['load']:.2f} before")
    if told["others_cores"] is not None:
        parts.append(f"other programs kept {told['others_cores']:.2f} cores busy meanwhile")
    if None not in (before["temperature_c"], after["temperature_c"]):
        parts.append(f"{before['temperature_c']:.0f} to {after['temperature_c']:.0f} degrees")
    if told["timer_s"] is not None:
        parts.append(f"reading the timer takes {told['timer_s'] * 1e9:.0f} ns of each time")
    if parts:
        yield "; ".join(parts)
    meter = told["meter"]
    if meter["overhead_share"] is not None:
        yield f"meter: {meter['covers']}; reading it takes {percent(meter['overhead_share'], 2)}"
    if problems := meter["problems"]:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        yield f"{'meter' if meter['covers'] else 'no meter'}: {'; '.join(problems[:3])}{more}"


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
        own = [step for step in found["steps"] if step["segment"] == segment["name"]]
        rows += [[f"  {_step(step)}", *cells(step)] for step in own]
        rows += [[f"  exit {e['name']}", *cells(e)] for e in found["exits"][index : index + 1]]
    rows.append(["full depth", *cells(found["full_depth"])])
    if key == "latency_s":
        rows += _tails(found["full_depth"], states)
    table([title, *(_clock(state, clusters) for state in states)], rows)


def _step(step: Mapping[str, Any]) -> str:
    """A step's name: a gate's and a block's is that of the block.

    >>> _step({"name": "layer1.1.gate", "segment": "segment0", "gate": True})
    'gate layer1.1'
    >>> _step({"name": "layer1.1", "segment": "segment0", "gate": False})
    'block layer1.1'
    >>> _step({"name": "segment0.3", "segment": "segment0", "gate": False})
    'always 3'
    """
    if step["gate"]:
        return f"gate {step['name'].removesuffix('.gate')}"
    prefix = f"{step['segment']}."
    if step["name"].startswith(prefix):
        return f"always {step['name'].removeprefix(prefix)}"
    return f"block {step['name']}"


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


def _exits(found: Mapping[str, Any]) -> None:
    """Leaving at each exit at the clocks that are best for it, and the policy's mean."""
    clusters = len({state["cluster"] for state in found["states"]})
    energies = any(way["energy_j"] is not None for way in found["pareto"])

    def cells(way: Mapping[str, Any]) -> list[str]:
        mark = _MODELLED if way["provenance"] == "modelled" else ""
        told = [_clock(way, clusters), f"{mark}{duration(way['latency_s'])}"]
        if energies:
            mark = _MODELLED if way["energy_provenance"] == "modelled" else ""
            told.append("-" if way["energy_j"] is None else f"{mark}{joules(way['energy_j'])}")
        return told

    def best(ways: Sequence[Mapping[str, Any]]) -> list[str]:
        shown = cells(min(ways, key=lambda way: way["latency_s"]))
        known = [way for way in ways if way["energy_j"] is not None]
        if energies:
            shown += cells(min(known, key=_thrift)) if known else ["-"] * 3
        front = sum(way["optimal"] for way in ways)
        return [*shown, f"{front} of {len(ways)}"]

    rows = []
    for name in dict.fromkeys(way["exit"] for way in found["pareto"]):
        ways = [way for way in found["pareto"] if way["exit"] == name]
        told = [written(ways[0][key], percent) for key in ("share", "accuracy")]
        rows.append([name, *told, *best(ways)])
    policy = found["policy"]
    if policy is not None and policy["points"]:
        title = f"mean, {policy['name']}"
        rows.append([title, "", written(policy["accuracy"], percent), *best(policy["points"])])
    columns = ["leaving at", "share", "accuracy", "fastest", "latency"]
    columns += ["energy", "thriftiest", "latency", "energy"] if energies else []
    table([*columns, "on the front"], rows)


def _thrift(way: Mapping[str, Any]) -> tuple[float, float]:
    """Energies that are shown alike are alike: then the faster clock is better."""
    return float(f"{way['energy_j']:.3g}"), way["latency_s"]


def _legend(found: Mapping[str, Any]) -> Iterator[str]:
    told = {point["provenance"] for point in found["full_depth"]["points"]}
    told |= {point["energy_provenance"] for point in found["full_depth"]["points"]}
    if "modelled" in told:
        yield f"{_MODELLED} modelled; everything else is measured, medians"
    if found["pareto"]:
        energies = any(way["energy_j"] is not None for way in found["pareto"])
        more = " without drawing more" if energies else ""
        heads = "every head asked on the way is included"
        yield f"on the front are clocks at which nothing as deep is faster{more}; {heads}"
    if found["steps"]:
        yield "segments, exits and full depth are without gates, with everything kept"
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
