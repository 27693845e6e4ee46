"""`eval --board` of networks with gates: what each sample pays is what its gates left it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import Artifact, read_artifact, write_artifact
from eecompile.boards.file import read_board
from eecompile.cli import main
from eecompile.compiled import CompiledGraph, CompiledSegment, Function
from eecompile.cost import Work
from eecompile.cost_model import model_table
from eecompile.cost_table import CostRow, CostTable
from eecompile.native_plan import plan_bytes
from eecompile.policies import ExitPolicy, from_json
from eecompile.runtime.governor import NoGovernor
from eecompile.runtime.session import Session
from tests.cli.calls import Call, copy_demo, evaluating, gated_demo
from tests.runtime import gated

POLICIES = """
policy alone { budget mean macs <= 60 % }
"""
BOARD = ("--board", "rk3399")
CLOCK = (*BOARD, "--cluster", "little", "--frequency", "1.2 GHz")
COUNT = 60
SOURCE = """eecompile 1
model gated {
    source onnx "gated.onnx"
    input x: float32[1, 4]
    output logits: classes(3)
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The demo with gates and exits, its artifact in `out`; tests only read it."""
    folder = tmp_path_factory.mktemp("gated")
    file = gated_demo(folder, POLICIES)
    assert main(["build", str(file), "-o", str(folder / "out"), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return read_artifact(folder / "out")


@pytest.fixture
def evaluated(call: Call, folder: Path) -> Any:
    return evaluating(call, folder)


def by_hand(
    artifact: Artifact, table: CostTable, state: int, images: np.ndarray, policy: ExitPolicy | None
) -> Iterator[float]:
    """Seconds of each sample at a clock: of the steps that ran, of the heads, one by one."""
    network = artifact.manifest.network

    def seconds(row: CostRow) -> float:
        cost = row.costs[state]
        assert cost is not None
        return cost.latency_s

    with Session(artifact, governor=NoGovernor()) as session:
        session.set_policy(policy)
        session.record_steps()
        for image in images:
            answer, ran = session.run(image[None]), session.steps_kept
            assert ran is not None
            left, steps, total = iter(ran.tolist()), iter(table.steps), 0.0
            for index, segment in enumerate(network.segments):
                for step in segment.steps:
                    row = next(steps) if segment.gated else table.segments[index]
                    groups = next(left)
                    if groups < 0:
                        continue
                    off = (step.groups - groups) * step.group_macs if step.channels else 0
                    total += seconds(row) * (1 - off / max(step.function.macs, 1))
            rows = [row for row, exit_ in zip(table.exits, network.exits, strict=True)]
            taken = network.exit_names.index(answer.exit)
            if policy is not None and policy.first() < len(rows):
                total += sum(map(seconds, rows[: taken + 1]))
            yield total


def at_fixed_clock(artifact: Artifact, images: np.ndarray, policy: ExitPolicy) -> list[float]:
    """The same at the clock of `CLOCK`."""
    board, target = read_board("rk3399"), artifact.manifest.target
    table = model_table(artifact.manifest.network, board, target.cores, target.name)
    (state,) = (
        k
        for k, one in enumerate(table.states)
        if (one.cluster, one.frequency_hz) == ("little", 1.2e9)
    )
    return list(by_hand(artifact, table, state, images, policy))


def stored(artifact: Artifact, name: str) -> ExitPolicy:
    return from_json(artifact.policies[name].rule)


@pytest.mark.parametrize("policy", ["quick", "alone"])
def test_answers_and_what_gates_keep_are_this_machines(policy: str, evaluated: Any) -> None:
    here = evaluated("--policy", policy, "--samples", COUNT)
    there = evaluated("--policy", policy, "--samples", COUNT, *BOARD)
    same = ("n", "accuracy", "full_depth_accuracy", "differing_fraction", "exits", "blocks")
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    assert there["blocks_run"] == here["blocks_run"] < len(here["blocks"])
    assert [one["name"] for one in there["channels"]] == [one["name"] for one in here["channels"]]
    for one, other in zip(there["channels"], here["channels"], strict=True):
        assert one["kept"] == pytest.approx(other["kept"])
    assert there["mean_macs_fraction"] == pytest.approx(here["mean_macs_fraction"], rel=1e-6)
    assert here.keys() - {"budget"} <= there.keys()
    early, full = (
        there["baselines"][name] for name in ("early_exit_top_clock", "full_depth_top_clock")
    )
    assert early["mean_macs_fraction"] == there["mean_macs_fraction"] < 1.0
    assert full["mean_macs_fraction"] == 1.0
    assert full["accuracy"] == here["full_depth_accuracy"]


@pytest.mark.parametrize("policy", ["quick", "alone"])
def test_mean_latency_is_that_of_the_steps_that_ran(
    policy: str, evaluated: Any, artifact: Artifact, images: np.ndarray
) -> None:
    found = evaluated("--policy", policy, "--samples", COUNT, *CLOCK)
    (clock,) = (row for row in found["clocks"] if row["time_fraction"] > 0)
    assert (clock["cluster"], clock["frequency_hz"]) == ("little", 1.2e9)
    spent = at_fixed_clock(artifact, images[:COUNT], stored(artifact, policy))
    assert found["mean_latency_s"] == pytest.approx(np.mean(spent), rel=1e-6)
    assert found["worst_latency_s"] == pytest.approx(max(spent), rel=1e-6)
    # All at one clock: energy is its power times the time.
    power_w = clock["full_depth_energy_j"] / clock["full_depth_latency_s"]
    assert found["mean_energy_j"] == pytest.approx(power_w * np.mean(spent), rel=1e-6)
    fastest = found["clocks"][-1]["full_depth_latency_s"]
    assert found["full_depth_latency_s"] == pytest.approx(fastest)


def test_a_budget_shifts_the_gates(evaluated: Any) -> None:
    built = evaluated("--policy", "alone", *BOARD)
    budget = ("--policy", "alone", "--budget", "mean macs <= 50 %")
    here, there = evaluated(*budget), evaluated(*budget, *BOARD)
    assert there["mean_macs_fraction"] < built["mean_macs_fraction"]
    assert there["blocks"] == here["blocks"]
    assert [one["kept"] for one in there["channels"]] != [one["kept"] for one in built["channels"]]
    assert there["accuracy"] == here["accuracy"]


def test_the_first_clock_is_fitted_to_what_calibration_samples_pay(evaluated: Any) -> None:
    full_s = evaluated(*BOARD)["full_depth_latency_s"]
    rule = ("--frequency", "lowest_energy", "--deadline", f"{2e6 * full_s:.3f} us safe")
    found = evaluated(*BOARD, *rule, data="digits.ee")
    assert any("as if nothing to come was left out" in note for note in found["notes"])
    assert found["start_fitted_on"] == 300 and found["deadline_misses"] == 0
    assert found["mean_energy_j"] < found["baselines"]["early_exit_top_clock"]["mean_energy_j"]


def test_without_a_policy_gates_do_not_run(call: Call, folder: Path, tmp_path: Path) -> None:
    text = (folder / "digits.ee").read_text()
    file = copy_demo(tmp_path)
    file.write_text(text[: text.index("policy quick")])
    assert call("build", file, "-o", tmp_path / "out", "--quiet").status == 0
    given = ("eval", tmp_path / "out", "--data", tmp_path / "test.npz", "--samples", 20, "--json")
    here, there = call(*given).json, call(*given, *BOARD).json
    for key in ("policy", "accuracy", "mean_macs_fraction", "exits", "blocks", "channels"):
        assert there[key] == here[key]
    assert there["mean_latency_s"] == pytest.approx(there["full_depth_latency_s"])
    assert any("gates do not run" in note for note in there["notes"])


def test_each_sample_pays_for_what_its_own_gates_decide(call: Call, tmp_path: Path) -> None:
    """Fitted gates decide alike for all samples; those of this network do not."""
    made = replace(gated.contents(), network=with_instructions(gated.network()), source_text=SOURCE)
    write_artifact(tmp_path / "out", replace(made, plan=plan_bytes(made)))
    x = gated.inputs(COUNT)
    labels = gated.reference(x)["logits"].argmax(axis=1)
    np.savez(tmp_path / "test.npz", images=x, labels=labels)
    given = ("eval", tmp_path / "out", "--data", tmp_path / "test.npz", "--json")
    here, there = call(*given).json, call(*given, *CLOCK).json
    same = ("accuracy", "full_depth_accuracy", "differing_fraction", "exits")
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    assert there["mean_macs_fraction"] == pytest.approx(here["mean_macs_fraction"], rel=1e-6)
    for sort in ("blocks", "channels"):
        kept = [one["kept"] for one in here[sort]]
        assert [one["kept"] for one in there[sort]] == pytest.approx(kept)
        assert all(0 < share < 1 for share in kept)
    artifact = read_artifact(tmp_path / "out")
    spent = at_fixed_clock(artifact, x, stored(artifact, "fast"))
    assert len({round(seconds, 9) for seconds in spent}) > 4
    assert there["mean_latency_s"] == pytest.approx(np.mean(spent), rel=1e-6)
    assert there["p50_latency_s"] == pytest.approx(np.quantile(spent, 0.5), rel=1e-6)
    assert there["worst_latency_s"] == pytest.approx(max(spent), rel=1e-6)


def with_instructions(network: CompiledGraph) -> CompiledGraph:
    """The network with an instruction for each multiply-accumulate, which models can time."""

    def timed(function: Function) -> Function:
        return replace(function, work=Work(macs=function.macs, operations=function.macs))

    def segment(part: Function | CompiledSegment) -> CompiledSegment:
        assert isinstance(part, CompiledSegment)
        return replace(
            part, steps=tuple(replace(step, function=timed(step.function)) for step in part.steps)
        )

    exits = tuple(replace(one, head=one.head and timed(one.head)) for one in network.exits)
    return replace(network, segments=tuple(map(segment, network.segments)), exits=exits)


def test_gates_need_no_exits(call: Call, folder: Path, tmp_path: Path) -> None:
    lines = (folder / "digits.ee").read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(("exit", "policy quick"))]
    file = copy_demo(tmp_path)
    file.write_text("\n".join(kept))
    assert call("build", file, "-o", tmp_path / "out", "--quiet").status == 0
    given = ("eval", tmp_path / "out", "--data", tmp_path / "test.npz", "--samples", 20, "--json")
    here, there = call(*given).json, call(*given, *BOARD).json
    for key in ("policy", "accuracy", "exits", "blocks", "blocks_run"):
        assert there[key] == here[key]
    assert there["mean_macs_fraction"] == pytest.approx(here["mean_macs_fraction"], rel=1e-6) != 1
    assert there["p50_latency_s"] < there["full_depth_latency_s"]


def test_people_read_what_gates_kept(call: Call, folder: Path) -> None:
    done = call("eval", folder / "out", "--data", folder / "test.npz", "--samples", 20, *BOARD)
    assert done.status == 0
    for said in (
        "\ngates: ",
        "\nnote: gates are paid; blocks they leave out take nothing",
        "\nnote: the full network is without its gates",
    ):
        assert said in done.out
