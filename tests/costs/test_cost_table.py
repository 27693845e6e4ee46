"""Cost tables survive being written, and reading believes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.board import DvfsState
from eecompile.checked_json import JsonError, ObjectReader, canonical_json, parse_json
from eecompile.cost import WIDE_BYTES, Work
from eecompile.cost_table import Cost, CostRow, CostTable, Provenance

numbers = st.floats(0, 1e12, allow_nan=False)
maybe = st.none() | numbers


@st.composite
def works(draw: st.DrawFn) -> Work:
    counts = st.integers(0, 1 << 60)
    macs, elements, operations, values = (draw(counts) for _ in range(4))
    wide = sorted((draw(st.integers(0, values)) for _ in WIDE_BYTES), reverse=True)
    return Work(
        macs,
        draw(st.integers(0, macs)),
        elements,
        operations,
        draw(st.integers(0, operations)),
        draw(counts),
        draw(counts),
        values,
        draw(counts),
        tuple(wide),
        draw(st.integers(1, 1024)),
    )


@st.composite
def costs(draw: st.DrawFn) -> Cost | None:
    provenance = st.sampled_from(get_args(Provenance))
    energy = draw(maybe)
    of_energy = None if energy is None else draw(provenance)
    found = Cost(draw(numbers), energy, draw(provenance), of_energy)
    return draw(st.sampled_from([None, found]))


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    clocks = draw(
        st.lists(st.tuples(st.text(max_size=3), maybe), min_size=0, max_size=4, unique=True)
    )
    states = tuple(DvfsState(*clock, draw(maybe), draw(maybe)) for clock in clocks)

    def row(name: str) -> CostRow:
        return CostRow(name, draw(works()), tuple(draw(costs()) for _ in states))

    exits = draw(st.integers(0, 3))
    texts = st.text(max_size=10)
    return CostTable(
        draw(texts),
        draw(texts),
        draw(st.none() | texts),
        draw(st.integers(1, 100)),
        states,
        tuple(row(f"segment{i}") for i in range(exits + 1)),
        tuple(row(f"e{i}") for i in range(exits)),
        draw(st.none() | st.dictionaries(texts, numbers, max_size=2)),
        draw(maybe),
        draw(maybe),
        draw(texts),
        tuple(draw(st.lists(texts, max_size=2))),
        draw(st.none() | texts),
    )


@settings(max_examples=100, deadline=None)
@given(tables())
def test_a_table_written_and_read_is_the_same(table: CostTable) -> None:
    text = canonical_json(table.to_json())
    again = CostTable.from_json(parse_json(text))
    assert again == table
    assert canonical_json(again.to_json()) == text


def table() -> CostTable:
    states = (DvfsState("big", 1e9, 0.8), DvfsState("big", 2e9, 1.0))
    row = (Cost(2e-3, 1e-3, "measured", "modelled"), Cost(1e-3))
    work = Work(macs=10, kernels=1, value_bytes=64, weight_bytes=8)
    segments = (CostRow("segment0", work, row), CostRow("segment1", work, row))
    return CostTable(
        "a", "b", None, 1, states, segments, (CostRow("e", work, (row[0], None)),), {"big": 1e-4}
    )


def test_what_scripts_read_stands_where_they_look() -> None:
    found = table().to_json()
    assert found["full_depth"]["macs"] == 20
    first, second = found["full_depth"]["points"]
    assert first == {
        "cluster": "big",
        "frequency_hz": 1e9,
        "voltage_v": 0.8,
        "latency_s": 4e-3,
        "energy_j": 2e-3,
        "provenance": "measured",
        "energy_provenance": "modelled",
    }
    assert (second["energy_j"], second["energy_provenance"]) == (None, None)
    assert (found["segments"][0]["macs"], found["segments"][0]["bytes"]) == (10, 72)
    assert len(found["exits"][0]["points"]) == 1  # what is not known is no point


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("states", 0, "frequency_hz", to="fast"), "`states[0].frequency_hz` must be a num"),
        (change("states", 0, "frequency_hz", to=2e9), "`states` must be different clocks"),
        (change("states", to=3), "`states` must be a list"),
        (change("threads", to=0), "`threads` must be a whole number from 1"),
        (
            change("segments", 0, "points", 0, "latency_s", to=-1),
            "`segments[0].points[0].latency_s",
        ),
        (change("segments", 0, "points", 0, "latency_s", to=None), "must be a number"),
        (
            change("segments", 0, "points", 0, "provenance", to="guessed"),
            "`measured` or `modelled`",
        ),
        (
            change("segments", 0, "points", 0, "energy_provenance", to=None),
            "exactly where there is",
        ),
        (change("segments", 0, "points", 0, "frequency_hz", to=3e9), "must be one of `states`"),
        (change("segments", 0, "points", 1, "frequency_hz", to=1e9), "must be one of `states`"),
        (change("segments", 0, "points", 0, "voltage_v", to=0.9), "with its voltage"),
        (change("segments", 0, "work", to=[]), "`segments[0].work` is no object"),
        (change("segments", 0, "macs", to=11), "`segments[0].macs` must be those of `work`"),
        (change("segments", 0, "work", "divisions", to=1), "`segments[0].work.divisions` must be"),
        (change("segments", 0, "work", "wide_bytes", to=[1]), "`segments[0].work.wide_bytes` must"),
        (change("full_depth", "macs", to=21), "`full_depth` must be all segments together"),
        (change("full_depth", to="all"), "`full_depth` must be all segments together"),
        (change("exits", to=[]), "`segments` must be one more than `exits`"),
        (change("transition_latency_s", "big", to="slow"), "`transition_latency_s.big` must be a"),
        (change("transition_latency_s", to=[]), "`transition_latency_s` must be an object"),
        (change("notes", to=[1]), "`notes` must be a list of strings"),
        (change("surprise", to=1), "`surprise` is no field of this format"),
    ],
)
def test_garbage_is_refused_where_it_stands(damage: Callable[[Any], None], message: str) -> None:
    value = json.loads(json.dumps(table().to_json()))
    damage(value)
    with pytest.raises(JsonError) as caught:
        CostTable.from_json(value)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], {"segments": []}])
def test_what_is_no_table_is_refused(value: Any) -> None:
    with pytest.raises(JsonError):
        CostTable.from_json(value)


@given(works())
def test_work_written_and_read_is_the_same(work: Work) -> None:
    value = json.loads(json.dumps(work.to_json()))
    assert Work.from_json(ObjectReader(value, "work")) == work
