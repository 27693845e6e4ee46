"""Candidates are what `init` proposes, without what is taken; what cannot be meant is told."""

from __future__ import annotations

import pytest

from eecompile.diagnostics import Diagnostics, Source
from eecompile.dsl.check import check
from eecompile.dsl.parser import parse
from eecompile.exit_candidates import Placing, with_candidates
from eecompile.exit_placing import Aim
from eecompile.spec import Spec
from tests.helpers import TextHost
from tests.passes.test_propose_points import residual

FILE = """eecompile 1
model net {{
    source onnx "net.onnx"
    input x: float32[1, 8]
    {exits}
}}
data d {{ fit "fit.npz" calibrate "calibrate.npz" }}
{policies}
"""


def candidates(
    exits: str, policies: str = "", host: TextHost | None = None
) -> tuple[Spec, Placing | None, list[str]]:
    """The spec with candidates, what is to be chosen, and messages."""
    source = Source("case.ee", FILE.format(exits=exits, policies=policies))
    spec, problems = parse(source)
    assert not list(problems)
    found = Diagnostics()
    made, placing = with_candidates(spec, host or TextHost(residual(4)), found)
    return made, placing, [f"{d.severity}[{d.id}]: {d.message}" for d in found]


def test_every_block_is_a_candidate_called_after_its_point() -> None:
    spec, placing, messages = candidates("exits auto(count: 1..3)")
    assert placing is not None and not messages
    assert (placing.low, placing.high) == (1, 3)
    assert placing.names == ("layer_0", "layer_1", "layer_2", "layer_3")
    assert [exit_.point for exit_ in spec.model.exits] == [f"layer.{k}" for k in range(4)]
    assert {str(exit_.head) for exit_ in spec.model.exits} == {"linear"}


def test_written_exits_stay_and_their_points_are_taken() -> None:
    written = 'exit layer_2 after "layer.1" head linear'
    spec, placing, messages = candidates(f"{written} exits auto(count: 2) head linear(pool: 2)")
    assert placing is not None and not messages
    assert placing.names == ("layer_0", "layer_2_2", "layer_3")  # the name `layer_2` is taken
    assert [exit_.name for exit_ in spec.model.exits] == ["layer_2", *placing.names]
    assert str(spec.model.exits[-1].head) == "linear(pool: 2)"


def test_exits_that_policies_name_are_kept() -> None:
    policy = "policy p { exit when predicted(start: layer_2) budget mean macs <= 70 % }"
    _, placing, messages = candidates("exits auto(count: 1..2)", policy)
    assert placing is not None and not messages
    assert placing.kept == {"layer_2"}


def test_without_a_count_there_are_as_many_as_there_can_be_up_to_eight() -> None:
    _, placing, messages = candidates("exits auto")
    assert placing is not None and not messages
    assert (placing.low, placing.high) == (1, 4)


def test_points_that_the_head_cannot_read_are_left_out() -> None:
    host = TextHost(
        """graph net(x: float32[1, 1, 4, 4]) -> (y: float32[1, 4]) {
            const w: float32[4, 4] = random(0)
            const v: float32[16, 4] = random(1)
            const u: float32[4, 4] = random(2)
            a: float32[1, 1, 4, 4] = MatMul(x, w)
            b: float32[1, 1, 4, 4] = MatMul(a, w)
            c: float32[1, 16] = Reshape(b; shape=(1, 16))
            d: float32[1, 4] = MatMul(c, v)
            y: float32[1, 4] = MatMul(d, u)
        }"""
    )
    every, maps, none = (
        candidates(f"exits auto(count: 1) head {head}", host=network)
        for head, network in (("linear", host), ("conv", host), ("conv", None))
    )
    assert every[1] is not None and every[1].names == ("a", "c", "d")
    assert maps[1] is not None and maps[1].names == ("a",)
    assert none[1] is None and none[0].model.exits == ()
    assert none[2][0] == (
        "error[bad-head]: Head `conv` can read the tensor at no point where an exit could stand"
    )


CASES = {
    "more than there are": (
        "exits auto(count: 5..6)",
        "",
        ["error[bad-option]: Expected a number of exits up to 4, found 5"],
    ),
    "up to more than there are": (
        "exits auto(count: 2..9)",
        "",
        ["warning[bad-option]: Up to 9 exits are wanted, and 4 can be placed"],
    ),
    "a name that is no exit": (
        "exits auto(count: 2)",
        "policy p { exit when predicted(start: layer_9) budget mean macs <= 70 % }",
        ["error[unknown-exit]: Unknown exit `layer_9`"],
    ),
    "fewer than are named": (
        "exits auto(count: 1)",
        "\n".join(
            f"policy p{k} {{ exit when predicted(start: layer_{k}) budget mean macs <= 70 % }}"
            for k in range(2)
        ),
        ["error[bad-option]: Policies name 2 of the exits to be placed, and at most 1 are wanted"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_meant_is_told(case: str) -> None:
    exits, policies, expected = CASES[case]
    _, placing, messages = candidates(exits, policies)
    assert messages == expected
    assert (placing is None) == expected[0].startswith("error")


def test_a_network_with_nothing_to_save_has_no_candidates() -> None:
    host = TextHost(
        "graph net(x: float32[1, 8]) -> (y: float32[1, 8]) { y: float32[1, 8] = Neg(x) }"
    )
    assert candidates("exits auto(count: 1)", host=host)[2] == [
        "error[bad-option]: There is no point where the compiler could place an exit"
    ]


def checked(exits: str, policy: str = "", without: str = "") -> list[str]:
    """Messages of the check that needs no network, files left aside."""
    text = FILE.format(exits=exits, policies=policy)
    spec, _ = parse(Source("case.ee", text.replace(f'{without} "{without}.npz"', "")))
    return [d.message for d in check(spec) if d.id != "missing-file"]


def test_a_choice_needs_data_to_fit_heads_and_to_judge_them() -> None:
    assert checked("exits auto(count: 2)") == []
    assert checked("exits auto(count: 2)", without="fit") == [
        "Head `linear` has to be fitted, and there is no `fit` data"
    ]
    assert checked("exits auto(count: 2)", without="calibrate") == [
        "The choice of exits has to be fitted, and there is no `calibrate` data"
    ]


def test_heads_brought_along_are_made_for_one_point() -> None:
    found = checked('exits auto(count: 2) head onnx("head.onnx")')
    assert found[0] == "The compiler cannot place heads of the kind `onnx`"


def test_rules_look_at_heads_that_placed_exits_have() -> None:
    policy = "policy p {{ exit when confidence({}) budget mean macs <= 70 % }}"
    assert checked("exits auto", policy.format("max_softmax")) == []
    assert checked("exits auto", policy.format("class_means")) == ["No exit has class means"]
    means = "exits auto head class_means"
    assert checked(means, policy.format("class_means")) == []
    assert checked(means, policy.format("margin")) == [
        "`margin` looks at trained heads, and no exit has one"
    ]


def test_what_gates_may_leave_out_is_no_candidate() -> None:
    """Most of the work lies in one block, so that places within it are proposed."""
    host = TextHost(
        """graph net(x: float32[1, 8]) -> (y: float32[1, 8]) {
            const w: float32[8, 8] = random(0)
            a: float32[1, 8] = Relu(x)
            b: float32[1, 8] = MatMul(a, w)
            c: float32[1, 8] = MatMul(b, w)
            d: float32[1, 8] = Add(c, a)
            y: float32[1, 8] = MatMul(d, w)
        }"""
    )
    exits = "exits auto(count: 1)"
    _, free, _ = candidates(exits, host=host)
    _, gated, _ = candidates(f'skip layers "d" gate fitted {exits}', host=host)
    assert free is not None and free.names == ("b", "d")
    assert gated is not None and gated.names == ("d",)


def test_exits_are_chosen_for_a_policy_that_leaves_at_them() -> None:
    gated = "policy g { budget mean latency <= 1 ms }"
    leaving = "policy p { exit when confidence(entropy) budget mean macs <= 70 % }"
    spec, _, _ = candidates("exits auto(count: 1)", f"{gated} {leaving}")
    aim = Aim.of(spec)
    assert aim.policy is not None and (aim.policy.name, aim.quantity) == ("p", "macs")
    assert aim.measure == "entropy"
    assert Aim.of(candidates("exits auto(count: 1)", gated)[0]).policy is None
