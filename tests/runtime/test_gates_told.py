"""What is told of gates: how often blocks ran, what was kept, and what that costs in the mean."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from eecompile.artifact import read_artifact, write_artifact
from eecompile.benching.gates import gated_means
from eecompile.board import DvfsState
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.gate_counts import decided_by_gates, kept_in_record, kept_when_run
from eecompile.policies import NeverPolicy
from eecompile.runtime.session import Session
from eecompile.svg import draw
from eecompile.text import parse_segments
from tests.runtime import gated

X = gated.inputs(200)
KNOWN = gated.reference(X)
ABOUT = decided_by_gates(gated.network())
SHARES = {
    "keep_0": (KNOWN["keep_0"] > 0).astype(np.float32),
    "keep_1": (KNOWN["keep_1"] > 0).astype(np.float32),
    "groups": (KNOWN["groups"] > 0).mean(axis=1, keepdims=True),
}
ALL_THE_WAY = kept_in_record(ABOUT, SHARES, np.ones(200, np.int64))


def test_what_is_decided_about_is_found_in_order() -> None:
    told = [(one.name, one.groups, one.within, one.segment, one.step) for one in ABOUT]
    assert told == [
        ("keep_0", 0, "", 0, 2),
        ("keep_1", 0, "", 1, 4),
        ("groups", 2, "keep_1", 1, 5),
    ]


def test_a_record_tells_what_the_scores_say() -> None:
    first, second = (SHARES[name][:, 0] for name in ("keep_0", "keep_1"))
    assert ALL_THE_WAY["blocks"] == [
        {"name": "keep_0", "kept": pytest.approx(first.mean())},
        {"name": "keep_1", "kept": pytest.approx(second.mean())},
    ]
    assert ALL_THE_WAY["blocks_run"] == pytest.approx(KNOWN["blocks_run"].mean())
    inside = SHARES["groups"][second > 0, 0].mean()
    assert ALL_THE_WAY["channels"] == [
        {"name": "groups", "groups": 2, "kept": pytest.approx(inside)}
    ]


def test_what_lies_behind_an_exit_did_not_run() -> None:
    told = kept_in_record(ABOUT, SHARES, np.zeros(200, np.int64))
    assert told["blocks"][0]["kept"] == pytest.approx(SHARES["keep_0"].mean())
    assert (told["blocks"][1]["kept"], told["channels"][0]["kept"]) == (0.0, None)


def test_sessions_tell_what_records_tell(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", gated.contents())
    kept: list[np.ndarray] = []
    with Session(read_artifact(tmp_path / "out"), NeverPolicy(1)) as session:
        session.run(X[:1])
        assert session.steps_kept is None
        session.record_steps()
        for x in X:
            session.run(x[None])
            assert session.steps_kept is not None
            kept.append(session.steps_kept.copy())
        session.full_depth(X[:1])
        ran = session.steps_kept
        assert ran is not None
        assert int(np.count_nonzero(ran >= 0)) == 5, "all steps but the gates"
    told = kept_when_run(ABOUT, np.stack(kept))
    for sort in ("blocks", "channels"):
        for one, other in zip(told[sort], ALL_THE_WAY[sort], strict=True):
            assert one == {**other, "kept": pytest.approx(other["kept"])}
    assert told["blocks_run"] == pytest.approx(KNOWN["blocks_run"].mean())


def test_mean_costs_are_those_of_what_ran() -> None:
    """With a second for each multiply-accumulate, the mean time is the mean of the MACs."""
    network = gated.network()

    def row(name: str, macs: int) -> CostRow:
        return CostRow(name, Work(macs), (Cost(float(macs), provenance="modelled"),))

    table = CostTable(
        *("host", "host", None, 1, (DvfsState("cpu", 1e9),)),
        tuple(row(name, part.macs) for name, part in network.named_segments()),
        tuple(row(exit_.name, exit_.macs) for exit_ in network.exits),
        steps=tuple(row(name, function.macs) for name, function in network.named_steps()),
    )
    (mean,) = gated_means(network, table, {"early": 0.0, "final": 1.0}, (), ALL_THE_WAY)
    assert mean.cost.latency_s == pytest.approx(KNOWN["macs"][:, -1].mean())
    left = np.arange(200) % 2
    told = kept_in_record(ABOUT, SHARES, left)
    (mean,) = gated_means(network, table, {"early": 0.5, "final": 0.5}, (0,), told)
    spent = KNOWN["macs"][np.arange(200), left].mean() + network.exits[0].macs
    assert mean.cost.latency_s == pytest.approx(spent)


NET = """
segments net(x: float32[1, 8]) -> y classes 8 {
    segment segment0 = graph segment0(x: float32[1, 8]) -> (y: float32[1, 8]) {
        const w: float32[8, 8] = random(0)
        a: float32[1, 8] = MatMul(x, w)
        b: float32[1, 8] = MatMul(a, w)
        y: float32[1, 8] = Add(b, a)
    }
    step = graph first(x: float32[1, 8]) -> (a: float32[1, 8]) {
        const w: float32[8, 8] = random(0)
        a: float32[1, 8] = MatMul(x, w)
    }
    gate = graph gate0(a: float32[1, 8], gates.shift: float32[1, 1]) -> (l.keep: float32[1, 1]) {
        const v: float32[8, 1] = random(0)
        s: float32[1, 1] = MatMul(a, v)
        l.keep: float32[1, 1] = Sub(s, gates.shift)
    }
    step keep l.keep otherwise a = graph block(a: float32[1, 8]) -> (y: float32[1, 8]) {
        const w: float32[8, 8] = random(0)
        b: float32[1, 8] = MatMul(a, w)
        y: float32[1, 8] = Add(b, a)
    }
}
"""


def test_pictures_show_blocks_and_gates() -> None:
    root = ElementTree.fromstring(draw(parse_segments(NET)))
    marks = [(mark.get("class"), "".join(mark.itertext())) for mark in root.iter()]
    assert [told for kind, told in marks if kind == "gate"] == ["gate l.keep · 8 MACs"]
    assert [told for kind, told in marks if kind in ("step", "kept")] == [
        "64 MACs",
        "64 MACs · l.keep may leave it out: a in its place",
    ]
    assert "0 exits · 1 block that gates may leave out" in root.attrib["aria-label"]
