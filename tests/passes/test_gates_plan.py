"""Which gates a file asks for, and what is wrong with them."""

from __future__ import annotations

import pytest

from eecompile.diagnostics import Diagnostics
from eecompile.gates import GatePlan
from eecompile.passes.plan_gates import plan_gates
from eecompile.spec import HeadSpec, Model, Name, Skip
from tests.gates.networks import host


def layers(point: str, kind: str = "recurrent", **options: int) -> Skip:
    return Skip("layers", point, HeadSpec(kind, options))


def channels(point: str, kind: str = "squeeze", **options: int | Name) -> Skip:
    return Skip("channels", point, HeadSpec(kind, options))


def plan(*skips: Skip) -> tuple[GatePlan, list[str]]:
    found = Diagnostics()
    made = plan_gates(Model("net", "onnx", "", skips=skips), host(), found)
    return made, [d.full() for d in found]


def test_gates_stand_in_the_order_in_which_they_run() -> None:
    made, wrong = plan(channels("a.*.conv1"), layers("a.2"), layers("a.0"))
    assert wrong == []
    assert [gate.name for gate in made.gates] == [
        *("a.0", "a.0.conv1"),
        "a.1.conv1",
        *("a.2", "a.2.conv1"),
    ]
    assert [gate.within for gate in made.gates] == ["", "a.0", "", "", "a.2"]
    assert made.outputs == {
        "a.0.keep": 1,
        "a.0.conv1.channels": 1,
        "a.1.conv1.channels": 1,
        "a.2.keep": 1,
        "a.2.conv1.channels": 1,
    }


def test_recurrent_gates_of_a_block_and_its_channels_are_one_step() -> None:
    made, wrong = plan(layers("a.[02]"), channels("a.*.conv1", "recurrent", groups=4))
    assert wrong == []
    assert [(g.name, g.feature, g.groups, g.before, g.hands_on) for g in made.gates] == [
        ("a.0", "x0", 4, "", True),
        ("a.1.conv1", "x1", 4, "a.0", True),
        ("a.2", "x2", 4, "a.1.conv1", False),
    ]


def test_what_is_saved_is_told() -> None:
    made, _ = plan(layers("a.0"), channels("a.0.conv1", groups=2))
    gate, inner = made.gates
    pixels, product = 64, 4 * 4 * 9
    assert (gate.block_macs, gate.group_macs) == (2 * pixels * product, 0)
    assert (inner.block_macs, inner.group_macs) == (0, pixels * product)
    assert inner.macs == 4 * 16 + 16 * 2


def test_what_a_pattern_matches_beside_blocks_is_passed_over() -> None:
    made, wrong = plan(layers("a.*"))
    assert wrong == []
    assert [gate.name for gate in made.gates] == ["a.0", "a.2"]
    assert list(made.passed_over) == ["a.1"]


def test_groups_that_are_not_given_are_a_vector_wide() -> None:
    made, _ = plan(channels("a.[02].conv1", groups=Name("auto")))
    assert [gate.groups for gate in made.gates] == [1, 1]
    found = Diagnostics()
    model = Model("net", "onnx", "", skips=(channels("a.[02].conv1"),))
    assert [gate.groups for gate in plan_gates(model, host(), found, lanes=2).gates] == [2, 4]


@pytest.mark.parametrize(
    ("skip", "told"),
    [
        (
            layers("a.1"),
            "error[not-skippable]: `a.1` matches no block that can be left out\n"
            "  = note: `a.1`: shortcut is downsampled: float32[1, 4, 8, 8] is not "
            "float32[1, 8, 4, 4]\n"
            "  = help: what can be gated: `a.0`, `a.2`",
        ),
        (
            layers("a.*.conv1"),
            "error[not-skippable]: `a.*.conv1` matches no block that can be left out\n"
            "  = note: `a.0.conv1`, `a.1.conv1`, `a.2.conv1`: no sum joins it with what it reads\n"
            "  = help: what can be gated: `a.0`, `a.2`",
        ),
        (
            layers("a.O"),
            "error[unknown-point]: No block that can be left out matches `a.O`\n"
            "  = help: did you mean `a.2` or `a.0`?",
        ),
        (
            channels("a.0"),
            "error[not-skippable]: `a.0` matches no convolution\n"
            "  = note: `a.0`: it is no convolution\n"
            "  = help: what can be gated: `stem`, `a.0.conv1`, `a.0.conv2`, `a.1.conv1`, "
            "`a.1.shortcut`, `a.2.conv1` and 1 more",
        ),
        (
            channels("a.2.conv1", groups=3),
            "error[bad-option]: 3 groups do not divide the 8 channels of `a.2.conv1`\n"
            "  = help: use 2 groups or 4",
        ),
    ],
)
def test_what_cannot_be_gated_is_told_with_the_reason(skip: Skip, told: str) -> None:
    made, wrong = plan(skip)
    assert wrong == [told]
    assert made.gates == ()


def test_two_gates_at_one_place_are_refused() -> None:
    made, wrong = plan(layers("a.0"), layers("a.*", "fitted"))
    assert wrong == [
        "error[duplicate-point]: Two gates for layers stand at `a.0`\n"
        "  = help: let one of the patterns leave it out"
    ]
    assert [(gate.name, gate.kind.kind) for gate in made.gates] == [
        ("a.0", "recurrent"),
        ("a.2", "fitted"),
    ]


def test_gates_in_a_block_follow_its_own_where_two_blocks_read_the_same() -> None:
    network = """graph net(x: float32[1, 4, 8, 8]) -> (y: float32[1, 8, 8, 8]) {
        const w: float32[4, 4, 3, 3] = random(1)
        e: float32[1, 4, 8, 8] = Conv(x, w; CONV) @ stem
        f: float32[1, 4, 8, 8] = Conv(e, w; CONV) @ one.conv1
        g: float32[1, 4, 8, 8] = Conv(f, w; CONV) @ one.conv2
        h: float32[1, 4, 8, 8] = Conv(e, w; CONV) @ two.conv1
        k: float32[1, 4, 8, 8] = Conv(h, w; CONV) @ two.conv2
        a: float32[1, 4, 8, 8] = Add(e, g) @ one
        b: float32[1, 4, 8, 8] = Add(e, k) @ two
        y: float32[1, 8, 8, 8] = Concat(a, b; axis=1)
    }"""
    skips = (layers("one", "feedforward"), layers("two"), channels("one.conv1", "recurrent"))
    model, found = Model("net", "onnx", "", skips=skips), Diagnostics()
    made = plan_gates(model, host(network), found)
    found.raise_errors()
    assert [(gate.name, gate.before) for gate in made.gates] == [
        ("one", ""),
        ("one.conv1", ""),
        ("two", "one.conv1"),
    ]
