"""The picture: everything inside the page, texts apart, measured filled and modelled hollow."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

import pytest

from eecompile.benching.axes import Axis, round_factors, round_steps
from eecompile.benching.pareto import leavings
from eecompile.benching.picture import draw_costs
from eecompile.board import DvfsState
from tests.bench.parts import table

SVG = "{http://www.w3.org/2000/svg}"


def drawn(
    clocks: int, exits: int, *, energy: bool, clusters: int = 1, measured: tuple[int, ...] = ()
) -> tuple[ElementTree.Element, str]:
    states = [
        DvfsState(f"cluster{c}", 4e8 + 2e8 * i) for c in range(clusters) for i in range(clocks)
    ]
    hertz = [state.frequency_hz or 0.0 for state in states]
    powers = [0.2 + 0.5 * (hz / 1e9) ** 3 for hz in hertz] if energy else None
    segments = [[4e6 / hz + 1e-3 for hz in hertz]] * (exits + 1)
    heads = [[1e5 / hz for hz in hertz]] * exits
    costs = table(segments, heads, powers_w=powers, states=states, measured=measured)
    names = [f"layer{i}.conv" for i in range(exits)] + ["final"]
    text = draw_costs("net", ["a board", "the cores"], states, leavings(costs, names))
    return ElementTree.fromstring(text), text


CASES = [(7, 6, True, 1), (1, 2, False, 1), (8, 27, True, 3), (1, 0, True, 1), (30, 1, False, 2)]


@pytest.mark.parametrize(("clocks", "exits", "energy", "clusters"), CASES)
def test_everything_is_inside_the_page(
    clocks: int, exits: int, energy: bool, clusters: int
) -> None:
    root, _ = drawn(clocks, exits, energy=energy, clusters=clusters)
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    for line in root.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 < x < width
            assert 0 < y < height


@pytest.mark.parametrize(("clocks", "exits", "energy", "clusters"), CASES)
def test_no_text_lies_on_another(clocks: int, exits: int, energy: bool, clusters: int) -> None:
    root, _ = drawn(clocks, exits, energy=energy, clusters=clusters)
    boxes = []
    for text in root.iter(f"{SVG}text"):
        if "transform" in text.attrib:
            continue
        words = text.text or "".join(text.itertext())
        size = {"title": 21.0, "mark": 12.0, "small": 12.0}.get(text.get("class", ""), 13.0)
        long = 0.55 * size * len(words)
        shift = {"middle": 0.5, "end": 1.0}.get(text.get("text-anchor", ""), 0.0)
        left, base = float(text.attrib["x"]) - shift * long, float(text.attrib["y"])
        boxes.append((left, base - 0.75 * size, left + long, base + 0.2 * size, words))
    for one, other in combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def fills(root: ElementTree.Element) -> list[str]:
    points = [c for c in root.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    return ["hollow" if c.attrib["fill"] == "#ffffff" else "filled" for c in points]


def test_measured_points_are_filled_and_modelled_ones_hollow() -> None:
    root, text = drawn(3, 0, energy=False, measured=(1,))
    assert fills(root) == ["hollow", "filled", "hollow"] * 2
    assert ">measured<" in text
    assert ">modelled<" in text


def test_a_modelled_energy_of_a_measured_time_is_hollow() -> None:
    root, _ = drawn(2, 0, energy=True, measured=(0, 1))
    # Times, energies, energies against times.
    assert fills(root) == ["filled"] * 2 + ["hollow"] * 4


def test_the_front_is_ringed() -> None:
    root, _ = drawn(3, 0, energy=False)
    rings = [c for c in root.iter(f"{SVG}circle") if c.get("class") == "ring"]
    assert len(rings) == 2  # the fastest clock, and the legend


def test_of_many_exits_the_first_and_the_last_are_drawn() -> None:
    _, text = drawn(2, 27, energy=True)
    assert "leaving at layer0.conv" in text
    assert "final answer" in text
    assert text.count("leaving at") == 5


def test_clusters_have_lines_of_their_own() -> None:
    _, text = drawn(2, 1, energy=True, clusters=2)
    assert "cluster cluster0" in text
    assert "cluster cluster1" in text


def test_the_picture_is_the_same_every_time() -> None:
    assert drawn(3, 2, energy=True)[1] == drawn(3, 2, energy=True)[1]


@pytest.mark.parametrize("low", [0.0, 1e-6, 0.02, 3.0])
@pytest.mark.parametrize("span", [1e-6, 0.3, 7.0, 4e3])
def test_marks_are_around_the_values(low: float, span: float) -> None:
    marks = round_steps(low, low + span)
    assert marks[0] <= low + 1e-9 * span
    assert marks[-1] >= low + span - 1e-9 * span
    assert 2 <= len(marks) <= 9
    if low:
        factors = round_factors(low, low + span)
        assert factors[0] <= low * 1.001
        assert factors[-1] >= (low + span) * 0.999


def test_places_on_axes() -> None:
    plain = Axis.over("latency", [0.001, 0.004], 100, 500)
    assert (plain.name, plain.at(0.0), plain.at(0.002)) == ("latency, ms", 100, 300)
    twice = Axis.of_factors("energy", [0.001, 0.008], 100, 400)
    assert twice.marks == (1.0, 2.0, 5.0, 10.0)
    assert twice.at(0.002) - twice.at(0.001) == pytest.approx(twice.at(0.01) - twice.at(0.005))
