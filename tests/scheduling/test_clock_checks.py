"""What is told about a clock rule before it is used."""

from __future__ import annotations

import pytest

from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.clocks.checks import check_rule
from eecompile.cost import Work
from eecompile.cost_table import CostRow, CostTable
from eecompile.diagnostics import Source, Span
from tests.scheduling.tables import Clock, table_of

MS = 1e-3
#: In this network's cycles: 1, 2 and 4 a millisecond.
CLOCKS: list[Clock] = [("cpu", 1e3, 1.0), ("cpu", 2e3, 3.0), ("cpu", 4e3, 9.0)]
SOURCE = Source("net.ee", "policy p { deadline 7 ms   frequency lowest_energy }")
DEADLINE, FREQUENCY = Span(SOURCE, 11, 24), Span(SOURCE, 27, 50)


def small() -> CostTable:
    """Exits after 8, 16 and 24 of 32 cycles, heads of 1: 8 ms at the top clock, 32 at the low."""
    return table_of(CLOCKS, [8, 8, 8, 8], [1, 1, 1], transitions={"cpu": 0.0})


@pytest.mark.parametrize(
    "rule",
    [
        ClockRule(),
        ClockRule(deadline_s=8.25 * MS),
        ClockRule(deadline_s=8.25 * MS, safe=True),
        ClockRule("fixed", 16.5 * MS, frequency_hz=2e3),
        ClockRule("unchanged", 8.25 * MS, hard=True),
    ],
    ids=str,
)
def test_a_rule_that_can_be_kept_is_fine(rule: ClockRule) -> None:
    assert check_rule(rule, small(), DEADLINE, FREQUENCY) == []


def test_a_deadline_that_no_clock_keeps_names_the_fastest_possible() -> None:
    (found,) = check_rule(ClockRule(deadline_s=7 * MS), small(), DEADLINE)
    assert found.full().splitlines() == [
        "error[impossible-deadline]: The deadline of 7.00 ms cannot be kept on `test-board` at "
        "any clock",
        "  --> net.ee:1:12",
        "  |",
        "1 | policy p { deadline 7 ms   frequency lowest_energy }",
        "  |            ^^^^^^^^^^^^^ the network's own answer takes 8.00 ms at best",
        "  = help: allow 8.00 ms or more, or write `deadline 7.00 ms hard`: exits then answer",
    ]


def test_exits_are_only_offered_where_one_is_in_time() -> None:
    (found,) = check_rule(ClockRule(deadline_s=2.2 * MS), small(), DEADLINE)
    assert found.help == "allow 8.00 ms or more"


@pytest.mark.parametrize("kind", ["safe", "hard"])
def test_a_safe_or_hard_deadline_needs_time_for_one_exit(kind: str) -> None:
    rules = [
        ClockRule(deadline_s=limit * MS, safe=kind == "safe", hard=kind == "hard")
        for limit in (2.25, 2.2)
    ]
    assert [d.id for d in check_rule(rules[0], small())] == ["short-deadline"]
    (found,) = check_rule(rules[1], small())
    assert found.id == "impossible-deadline" and found.severity == "error"
    assert found.notes == ("exit `exit0` takes 2.25 ms at best",)
    assert found.help == "allow 2.25 ms or more"


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        (ClockRule(deadline_s=8 * MS), "are late"),
        (ClockRule(deadline_s=8 * MS, safe=True), "are answered by an exit"),
    ],
    ids=str,
)
def test_a_deadline_without_time_for_an_exit_and_the_rest_is_warned_of(
    rule: ClockRule, outcome: str
) -> None:
    (found,) = check_rule(rule, small())
    assert (found.id, found.severity) == ("short-deadline", "warning")
    assert outcome in found.message
    assert found.help == "allow 8.25 ms or more to have every answer in time"


def test_only_the_fixed_clock_counts_where_one_is_fixed() -> None:
    (found,) = check_rule(ClockRule("fixed", 15 * MS, frequency_hz=2e3), small())
    assert found.id == "impossible-deadline" and found.message.endswith("at 0.002 MHz")


def test_a_clock_the_table_lacks_names_the_nearest() -> None:
    clocks: list[Clock] = [("cpu", 6e8, 1.0), ("cpu", 1e9, 3.0), ("cpu", 1.5e9, 9.0)]
    table = table_of(clocks, [8], [])
    (found,) = check_rule(ClockRule("fixed", frequency_hz=1.2e9), table, None, FREQUENCY)
    assert found.id == "unknown-frequency" and found.span == FREQUENCY
    assert found.message == "There is no clock of 1.2 GHz to choose on `test-board`"
    assert found.notes == ("the nearest that may be used: 1 GHz and 1.5 GHz",)
    assert check_rule(ClockRule("fixed", frequency_hz=1e9), table) == []


def test_energies_nobody_knows_are_warned_of_where_there_is_something_to_choose() -> None:
    clocks: list[Clock] = [(name, hz, None) for name, hz, _ in CLOCKS]
    (found,) = check_rule(ClockRule(), table_of(clocks, [8], []), None, FREQUENCY)
    assert (found.id, found.severity, found.span) == ("unknown-costs", "warning", FREQUENCY)
    assert check_rule(ClockRule(), table_of(clocks[:1], [8], [])) == []
    assert check_rule(ClockRule("lowest_latency"), table_of(clocks, [8], [])) == []


def test_without_any_latency_nothing_can_be_decided() -> None:
    segment = CostRow("segment", Work(), (None,))
    table = CostTable(
        "t", "bare", None, 1, (DvfsState("cpu", 1e9),), (segment,), notes=("no bandwidth is known",)
    )
    (found,) = check_rule(ClockRule(deadline_s=1.0), table, DEADLINE)
    assert (found.id, found.severity, found.span) == ("unknown-costs", "error", DEADLINE)
    assert found.notes == ("no bandwidth is known",)


def test_a_start_that_does_not_exist_is_nobodys_input() -> None:
    with pytest.raises(ValueError, match="start"):
        check_rule(ClockRule(start=7), small())
