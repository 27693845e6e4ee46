"""Cost tables and clock rules as the C structures of internal.h, and a governor in C's eyes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import nan

from eecompile.clock_rule import ClockRule
from eecompile.cost_table import CostRow, CostTable

NONE = 0xFFFFFFFF
SOURCES = ("clocks.c", "clock_fronts.c", "placement.c", "reader.c", "errors.c")
GOVERNOR_SOURCES = (
    *("governor.c", "clock_domain.c", "clock_lock.c", "restoring.c", "sysfs.c", "watchdog.c"),
    *("reader.c", "sha256.c", "errors.c"),
)
OBJECTIVES = ("lowest_energy", "lowest_latency", "race_to_idle", "fixed", "unchanged")


class State(ctypes.Structure):
    """state_t."""

    _fields_ = (("cluster", ctypes.c_char_p), ("frequency_hz", ctypes.c_double))


class Cluster(ctypes.Structure):
    """cluster_t."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("transition_s", ctypes.c_double),
        ("cpus", ctypes.c_uint32),
        ("cpu", ctypes.POINTER(ctypes.c_uint32)),
    )


class Costs(ctypes.Structure):
    """costs_t."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("states", "clusters", "segments", "exits", "steps")),
        ("state", ctypes.POINTER(State)),
        ("cluster", ctypes.POINTER(Cluster)),
        ("latency_s", ctypes.POINTER(ctypes.c_double)),
        ("energy_j", ctypes.POINTER(ctypes.c_double)),
        ("migration_s", ctypes.c_double),
        ("idle_power_w", ctypes.c_double),
    )


class Rule(ctypes.Structure):
    """clock_rule_t."""

    _fields_ = (
        ("present", ctypes.c_bool),
        ("objective", ctypes.c_int),
        ("deadline_s", ctypes.c_double),
        ("frequency_hz", ctypes.c_double),
        ("safe", ctypes.c_bool),
        ("hard", ctypes.c_bool),
        ("start", ctypes.c_uint32),
    )


ASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_double)
RESTORE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Governor(ctypes.Structure):
    """ee_governor."""

    _fields_ = (("context", ctypes.c_void_p), ("offers", ASK), ("set", ASK), ("restore", RESTORE))


def governor_of(
    offers: Callable[[str, float], bool],
    set_: Callable[[str, float], int],
    restore: Callable[[], object],
) -> Governor:
    """What C calls these functions by."""
    return Governor(
        None,
        ASK(lambda _, cluster, hz: int(offers(cluster.decode(), hz))),
        ASK(lambda _, cluster, hz: set_(cluster.decode(), hz)),
        RESTORE(lambda _: restore() and None),
    )


def known(value: float | None) -> float:
    """As C has it."""
    return nan if value is None else value


def doubles(values: Sequence[float]) -> ctypes.Array[ctypes.c_double]:
    """An array of them."""
    return (ctypes.c_double * len(values))(*values)


def _column(rows: Sequence[CostRow], name: str) -> ctypes.Array[ctypes.c_double]:
    found = [known(None if cost is None else getattr(cost, name)) for r in rows for cost in r.costs]
    return doubles(found)


def costs_of(table: CostTable) -> Costs:
    """The same table; steps are left out."""
    transitions = table.transition_latency_s or {}
    states = [State(state.cluster.encode(), known(state.frequency_hz)) for state in table.states]
    clusters = [
        Cluster(
            each.name.encode(),
            known(transitions.get(each.name)),
            len(each.cpus),
            (ctypes.c_uint32 * len(each.cpus))(*each.cpus),
        )
        for each in table.clusters
    ]
    rows = (*table.segments, *table.exits)
    return Costs(
        len(states),
        len(clusters),
        len(table.segments),
        len(table.exits),
        0,
        (State * len(states))(*states),
        (Cluster * len(clusters))(*clusters),
        _column(rows, "latency_s"),
        _column(rows, "energy_j"),
        known(table.migration_latency_s),
        known(table.idle_power_w),
    )


def rule_of(rule: ClockRule) -> Rule:
    """The same rule."""
    start = NONE if rule.start is None else rule.start
    return Rule(
        True,
        OBJECTIVES.index(rule.objective),
        known(rule.deadline_s),
        known(rule.frequency_hz),
        rule.safe,
        rule.hard,
        start,
    )
