"""`eecompile train`, on a small network and real digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.calls import ROOT, Call, in_process
from tests.training.conftest import BOTH, LAYERS, NETWORK, RECURRENT, Written

torch = pytest.importorskip("torch")

from eecompile.gates import GateFile, read_gates  # noqa: E402
from eecompile.gating import open_gates  # noqa: E402
from eecompile.loading import check_file  # noqa: E402
from eecompile.training import losses, trainer  # noqa: E402

SHORT = ("--steps", 30, "--batch", 32, "--augment", "none", "--json")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return in_process(capfd)


def gates_of(file: Path) -> GateFile:
    """The file of gates beside a `.ee` file, read as a build reads it."""
    spec, host, _ = check_file(file)
    assert host is not None
    return read_gates(file.with_suffix(".gates.npz"), open_gates(spec, host).plan)


def bits(path: Path) -> dict[str, bytes]:
    with np.load(path) as found:
        return {name: found[name].tobytes() for name in found if name != "meta"}


@pytest.mark.parametrize("skips", [LAYERS, RECURRENT, BOTH], ids=["layers", "recurrent", "both"])
def test_the_target_is_reached_and_reported_on_calibrate_and_test(
    written: Written, call: Call, skips: str
) -> None:
    file = written(skips)
    done = call("train", file, "--macs", "75%", *SHORT, "--steps", 120)
    assert done.status == 0, done.err
    found = done.json
    (target,) = found["targets"]
    assert target["target"] == 0.75 and target["file"].endswith("tiny.gates.npz")
    assert 0.5 < target["calibrate"]["mean_cost_fraction"] <= 0.752
    assert abs(target["test"]["mean_cost_fraction"] - 0.75) < 0.25
    assert target["calibrate"]["n"] == target["test"]["n"] == 500
    assert found["full_depth"]["test"] > 0.75
    assert target["test"]["accuracy"] > 0.4
    assert 0 < found["gates_cost_fraction"] < 0.05
    assert not file.with_suffix(".gates.checkpoint").exists()
    file_ = gates_of(file)
    assert dict(file_.weights) == {}
    assert file_.trained["calibrate"] == target["calibrate"]


def test_reported_figures_are_those_of_the_network_with_the_gates_written(
    written: Written, call: Call
) -> None:
    from eecompile.passes.fx_host import FxHost
    from eecompile.passes.insert_gates import insert_gates

    file = written(BOTH)
    (target,) = call("train", file, *SHORT, "--tune-backbone").json["targets"]
    spec, host, _ = check_file(file, [f'model.gates="{file.with_suffix(".gates.npz").name}"'])
    assert isinstance(host, FxHost)
    gating = open_gates(spec, host)
    assert gating.tuned
    insert_gates(host, gating.plan, gating.parameters)
    with np.load(file.parent / "digits.npz") as stored:
        images, labels = stored["images"][3500:], stored["labels"][3500:]
    outputs = host.run({"x": images.reshape(-1, 1, 28, 28).astype(np.float32) / 255})
    accuracy = float((outputs["output"].argmax(1) == labels).mean())
    assert accuracy == pytest.approx(target["test"]["accuracy"], abs=0.005)
    kept = {name: float(outputs[name].mean()) for name in gating.plan.outputs}
    assert kept == pytest.approx(target["kept"], abs=0.1)  # those are of `calibrate`


def test_gates_alone_leave_the_network_as_it_was_and_tuning_does_not(
    written: Written, call: Call
) -> None:
    file = written()
    weights = file.parent / "net.pth"
    before = weights.read_bytes()
    assert call("train", file, *SHORT).json["tuned"] is False
    assert not any(name.startswith("weights.") for name in bits(file.with_suffix(".gates.npz")))
    assert call("train", file, *SHORT, "--tune-backbone").json["tuned"] is True
    found = gates_of(file).weights
    source = torch.load(weights, weights_only=True)
    assert found.keys() == {name for name, value in source.items() if value.ndim}
    assert all(found[name].shape == tuple(source[name].shape) for name in found)
    assert any(not np.array_equal(found[name], source[name].numpy()) for name in found)
    assert np.allclose(found["blocks.0.conv1.weight"], source["blocks.0.conv1.weight"], atol=0.1)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(("batch", "told"), [(16, True), (32, False)])
def test_statistics_of_few_samples_are_warned_of(
    written: Written, call: Call, batch: int, told: bool
) -> None:
    tuning = ("--tune-backbone", "--steps", 1, "--batch", batch)
    done = call("train", written(), *SHORT, *tuning)
    assert done.status == 0 and ("warning[small-batch]" in done.err) == told
    done = call("train", written(), *SHORT, *tuning[1:])
    assert "small-batch" not in done.err, "what is not tuned is not normalised anew"


#: A step that leaves gates and weights where they were.
STILL = ("--steps", 1, "--rate", 1e-9)


def still_tuned(*, tuned: bool) -> tuple[Any, ...]:
    return (*STILL, "--tune-backbone", "--backbone-rate", 1e-9) if tuned else STILL


@pytest.mark.parametrize("tuned", [False, True])
def test_blocks_begin_in_the_order_in_which_they_do_least_harm_together(
    written: Written, call: Call, tuned: bool
) -> None:
    """Harm to a network that is tuned is what is left of it by the samples' own statistics."""
    file = written()
    told = call("train", file, "--macs", "40%", *SHORT, *still_tuned(tuned=tuned))
    assert told.status == 0
    biases = gates_of(file).parameters
    scores = [float(biases[f"gates.blocks.{index}.keep_bias"][0]) for index in range(4)]
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    net = names["network"]().eval()
    source = torch.load(file.parent / "net.pth", weights_only=True)
    net.load_state_dict(source)
    net.train(tuned)
    rows = np.random.default_rng((0, 0, 0)).permutation(3000)[:128]
    with np.load(file.parent / "digits.npz") as data:
        inputs = torch.from_numpy(data["images"][rows].reshape(-1, 1, 28, 28) / np.float32(255))

    def answers(kept: list[int]) -> Any:
        x = torch.relu(net.stem(inputs))
        for index in kept:
            x = net.blocks[index](x)
        return net.linear(x.mean((2, 3))).log_softmax(1)

    kept = [0, 1, 2, 3]
    order = []
    with torch.no_grad():
        whole = answers(kept)
        for _ in range(4):
            harms = {
                index: float(
                    torch.sum(whole.exp() * (whole - answers([k for k in kept if k != index])))
                )
                for index in kept
            }
            order.append(min(harms, key=lambda index: harms[index]))
            kept.remove(order[-1])
    first = sorted(range(4), key=lambda index: scores[index])
    assert first[:3] == order[:3]  # After those the target is met.
    gaps = np.diff(sorted(scores))
    np.testing.assert_allclose(gaps, 0.5, atol=1e-5)
    if tuned:  # Statistics are gathered in steps alone: there was one.
        net.load_state_dict(source)
        net(inputs[: SHORT[SHORT.index("--batch") + 1]])
        name = "blocks.0.bn1.running_mean"
        moved = gates_of(file).weights[name] - source[name].numpy()
        wanted = (net.state_dict()[name] - source[name]).numpy()
        assert np.abs(moved - wanted).max() < 0.1 * np.abs(wanted).max()


def test_the_same_seed_gives_the_same_file_and_another_does_not(
    written: Written, call: Call
) -> None:
    file = written()
    found = []
    for seed in (1, 1, 2):
        assert call("train", file, *SHORT, "--seed", seed).status == 0
        found.append(file.with_suffix(".gates.npz").read_bytes())
    assert found[0] == found[1] != found[2]


def test_several_targets_are_trained_one_after_the_other(written: Written, call: Call) -> None:
    file = written()
    found = call("train", file, "--macs", "70%,85%", *SHORT).json["targets"]
    names = [Path(target["file"]).name for target in found]
    assert names == ["tiny-85.gates.npz", "tiny-70.gates.npz"]
    assert all((file.parent / name).exists() for name in names)
    assert found[1]["calibrate"]["mean_cost_fraction"] <= 0.702


def test_training_can_begin_with_the_gates_of_a_file(written: Written, call: Call) -> None:
    file = written()
    first = call("train", file, "--macs", "80%", *SHORT)
    assert first.status == 0
    start = file.with_name("first.gates.npz")
    file.with_suffix(".gates.npz").rename(start)
    assert call("train", file, "--macs", "70%", *SHORT, "--start", start).status == 0
    again = bits(file.with_suffix(".gates.npz"))
    assert call("train", file, "--macs", "70%", *SHORT).status == 0
    assert bits(file.with_suffix(".gates.npz")) != again


def test_training_begins_with_the_weights_that_were_tuned_with_the_gates(
    written: Written, call: Call
) -> None:
    file = written()
    call("train", file, "--macs", "80%", *SHORT, "--steps", 8, "--tune-backbone")
    start, made = file.with_name("first.gates.npz"), file.with_suffix(".gates.npz")
    made.rename(start)
    told = call("train", file, "--macs", "75%", *SHORT, "--steps", 8, "--start", start).json
    before, after = bits(start), bits(made)
    weights = {name for name in before if name.startswith("weights.")}
    assert told["tuned"] and weights
    assert weights == {name for name in after if name.startswith("weights.")}
    assert all(before[name] == after[name] for name in weights)


def test_a_killed_run_goes_on_and_comes_to_the_same_file(written: Written, call: Call) -> None:
    file = written(BOTH)
    targets = ("--macs", "85%,75%", "--tune-backbone", "--exit-weight", 0.5)
    options = (*SHORT, "--steps", 60, "--augment", "crops,mixtures", *targets)
    output = file.parent / "killed.gates.npz"
    line = ["train", file, *options, "-o", output, "--every", 0.01]
    killed = subprocess.Popen(
        [sys.executable, "-m", "eecompile.cli", *map(str, line)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = file.parent / "killed.gates.checkpoint"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.exists(), "killed before its end"
    again = call("train", file, *options, "-o", output)
    assert again.status == 0, again.err
    whole = call("train", file, *options, "-o", file.parent / "whole.gates.npz")
    assert whole.status == 0, whole.err
    for target in (85, 75):
        first, second = (bits(file.parent / f"{n}-{target}.gates.npz") for n in ("whole", "killed"))
        assert first == second
    assert not checkpoint.exists()


def test_a_run_of_other_options_does_not_take_a_checkpoint(written: Written, call: Call) -> None:
    file = written()
    checkpoint = file.with_suffix(".gates.checkpoint")

    def stop(self: Any, stage: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_check", stop)
        assert call("train", file, *SHORT, "--every", 0.0001).status == 130
    assert checkpoint.exists()
    done = call("train", file, *SHORT, "--steps", 40)
    assert (done.status, done.ids) == (1, ["bad-checkpoint"])
    assert checkpoint.exists()
    assert call("train", file, *SHORT, "--steps", 40, "--restart").status == 0


def test_a_damaged_checkpoint_is_told(written: Written, call: Call) -> None:
    file = written()
    file.with_suffix(".gates.checkpoint").write_bytes(b"PK nothing")
    done = call("train", file, *SHORT)
    assert (done.status, done.ids) == (1, ["bad-checkpoint"])


def test_a_run_that_diverges_is_stopped(written: Written, call: Call) -> None:
    file = written()
    done = call("train", file, *SHORT, "--tune-backbone", "--backbone-rate", 30, "--steps", 80)
    assert (done.status, done.ids) == (1, ["training-diverged"])
    (told,) = done.json["diagnostics"]
    assert "--restart" in told["help"] and "--backbone-rate" in told["help"]
    again = call("train", file, *SHORT, "--restart").json
    assert len(again["targets"]) == 1


@pytest.mark.parametrize("fault", ["loss", "collapse"])
def test_the_last_good_state_of_a_diverging_run_is_kept(
    written: Written, call: Call, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    taken = 0

    def faulty(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return loss(*arguments) * (float("nan") if taken == 20 else 1)

    def impatient(self: trainer.Trainer, moment: Any) -> None:
        check(self, moment)
        self.least = 2.0  # every further check finds less

    loss, check = losses.answer_loss, trainer.Trainer._check
    if fault == "loss":
        monkeypatch.setattr(trainer, "answer_loss", faulty)
    else:
        monkeypatch.setattr(trainer.Trainer, "_check", impatient)
    file = written()
    done = call("train", file, *SHORT[:-1], "--macs", "90%")
    assert done.status == 1
    seen = "the loss is nan" if fault == "loss" else "accuracy on `calibrate` has collapsed"
    assert f"error[training-diverged]: Training was stopped: {seen}" in done.err
    good = file.with_name("tiny-last-good.gates.npz")
    assert "the last good state is in" in done.err
    spec, host, _ = check_file(file)
    assert host is not None
    found = read_gates(good, open_gates(spec, host).plan)
    assert found.trained["calibrate"]["accuracy"] > 0.5
    assert not file.with_suffix(".gates.npz").exists()


def test_exits_are_trained_together_with_the_network(written: Written, call: Call) -> None:
    file = written()
    found = []
    for weight in (0, 0.5):
        options = ("--tune-backbone", "--exit-weight", weight)
        assert call("train", file, *SHORT, *options).status == 0
        found.append(bits(file.with_suffix(".gates.npz")))
    assert found[0].keys() == found[1].keys()
    assert found[0]["weights.stem.weight"] != found[1]["weights.stem.weight"]


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        (("--macs", "120%"), "bad-argument"),
        (("--macs", "1%"), "infeasible-budget"),
        (("--macs", "75%", "--energy", "75%"), "bad-argument"),
        (("--latency", "75%"), "bad-argument"),
        (("--latency", "75%", "--costs", "nowhere"), "bad-artifact"),
        (("--costs", "nowhere"), "bad-argument"),
        (("--backbone-rate", "0.1"), "bad-argument"),
        (("--augment", "turns"), "bad-argument"),
        (("--start", "nowhere.npz"), "bad-gates"),
        (("--rate", "-1"), "bad-argument"),
        (("--distill", "2"), "bad-argument"),
        (("-o", "nowhere/tiny.gates.npz"), "cannot-write"),
    ],
)
def test_wrong_arguments_are_told(
    written: Written, call: Call, arguments: tuple[str, ...], id: str
) -> None:
    done = call("train", written(), *arguments, "--json")
    assert (done.status, done.ids) == (1, [id])


@pytest.mark.parametrize(
    ("skips", "change", "ids"),
    [
        ("", ("", ""), ["untrainable"]),
        ('    skip layers "blocks.*" gate fitted', ("", ""), ["untrainable"]),
        (LAYERS, ('    calibrate "digits.npz"[3000..3500]\n', ""), ["missing-data"]),
        (LAYERS, ('"net.pth"', '"none.pth"'), ["missing-file"]),
        (LAYERS, ("[..3000]", "[..20]"), ["too-few-samples"]),
        ('    skip layers "stem" gate recurrent', ("", ""), ["not-skippable"]),
    ],
)
def test_files_that_cannot_be_trained_are_told(
    written: Written, call: Call, skips: str, change: tuple[str, str], ids: list[str]
) -> None:
    done = call("train", written(skips, change), "--json")
    assert (done.status, done.ids) == (1, ids)


def test_networks_of_onnx_are_not_trained(written: Written, call: Call) -> None:
    source = 'source torch "net.py:network" weights "net.pth"'
    file = written(LAYERS, (source, 'source onnx "net.onnx"'))
    names: dict[str, Any] = {}
    exec((file.parent / "net.py").read_text(), names)
    x = torch.zeros(1, 1, 28, 28)
    torch.onnx.export(
        names["network"]().eval(), (x,), str(file.parent / "net.onnx"), input_names=["x"]
    )
    done = call("train", file, "--json")
    assert done.status == 1
    assert "untrainable" in done.ids


def test_a_person_reads_accuracy_and_cost(written: Written, call: Call) -> None:
    done = call("train", written(), *SHORT[:-1])
    assert done.status == 0
    assert "gates alone trained in 30 steps" in done.out
    assert "no gates" in done.out and "75 %" in done.out and "tiny.gates.npz" in done.out
    assert "[4/4] train" in done.err


def test_latencies_are_those_of_an_artifact_of_the_same_network(
    written: Written, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EECOMPILE_CACHE", str(tmp_path / "cache"))
    without_exit = ('    exit early after "blocks.1" head linear\n', "")
    built = call("build", written("", without_exit), "-o", tmp_path / "out", "--json")
    assert built.status == 0, built.err
    costs = (*SHORT, "--costs", tmp_path / "out")
    file = written(LAYERS, without_exit)
    found = call("train", file, "--latency", "75%", *costs).json
    assert found["quantity"] == "latency"
    (target,) = found["targets"]
    assert 0.4 < target["calibrate"]["mean_cost_fraction"] <= 0.752
    # What energy an answer takes is not known here, and with an exit it is another network.
    for changed, quantity in ((file, "--energy"), (written(LAYERS), "--latency")):
        done = call("train", changed, quantity, "75%", *costs)
        assert (done.status, done.ids) == (1, ["unknown-costs"])
