"""The parts of a training run, each alone."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.passes.split_at_gates import PlacedGate, split_at_gates
from eecompile.planning import cut
from eecompile.segments import SegmentGraph
from eecompile.spec import Model
from eecompile.text import parse_graph
from eecompile.training.options import read_augmentations, read_targets
from eecompile.training.schedule import Controller, Schedule
from tests.helpers import TextHost

torch = pytest.importorskip("torch")

from torch import Tensor, fx, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from eecompile.training.augment import augmented, mixed  # noqa: E402
from eecompile.training.checkpoint import (  # noqa: E402
    State,
    read_checkpoint,
    write_checkpoint,
)
from eecompile.training.costs import Prices, Term, network_terms  # noqa: E402
from eecompile.training.losses import exit_losses, mean_cost, wanted_shift  # noqa: E402
from eecompile.training.normalising import fold_batch_norms, normalise_by_batches  # noqa: E402
from eecompile.training.samples import Samples  # noqa: E402

NET = """
graph net(x: float32[1, 4, 8, 8]) -> (y: float32[1, 3]) {
    const w: float32[4, 4, 3, 3] = random(1)
    const v: float32[4, 3] = random(2)
    b: float32[1, 4, 8, 8] = Relu(x) @ stem
    f: float32[1, 4, 8, 8] = Conv(b, w; CONV) @ block.first
    fr: float32[1, 4, 8, 8] = Relu(f) @ block.first
    g: float32[1, 4, 8, 8] = Conv(fr, w; CONV) @ block.second
    s: float32[1, 4, 8, 8] = Add(b, g) @ block
    r: float32[1, 4, 8, 8] = Relu(s) @ block
    m: float32[1, 4] = ReduceMean(r; axes=(2, 3), keepdims=0) @ fc
    y: float32[1, 3] = MatMul(m, v) @ fc
}
""".replace("CONV", "strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1")
GATE = """
graph gate(x: float32[1, 4, 8, 8], gates.shift: float32[1, 1])
    -> (keep: float32[1, 1], channels: float32[1, 2]) {
    const k: float32[4, 1] = random(3)
    const c: float32[4, 2] = random(4)
    p: float32[1, 4] = ReduceMean(x; axes=(2, 3), keepdims=0)
    a: float32[1, 1] = MatMul(p, k)
    keep: float32[1, 1] = Sub(a, gates.shift)
    d: float32[1, 2] = MatMul(p, c)
    channels: float32[1, 2] = Sub(d, gates.shift)
}
"""


def segments() -> SegmentGraph:
    """A block of two convolutions, its layer gated and the channels between them, then a head."""
    host = TextHost(NET)
    plain = cut(host, Model("net", "onnx", "net.onnx"), backbone_pipeline())
    placed = PlacedGate("b", "b", parse_graph(GATE), "b", "r", False, "fr")
    return split_at_gates(plain, host.graph(), [placed])


def refused(call: object) -> list[str]:
    with pytest.raises(CompileErrors) as caught:
        call()  # type: ignore[operator]
    return [f"{d.id}: {d.message}" for d in caught.value.diagnostics]


@pytest.mark.parametrize("text", ["0%", "100%", "75", "a%", "nan%", "-5%", "50%,,60%"])
def test_targets_are_shares_of_the_whole(text: str) -> None:
    (message, *_) = refused(lambda: read_targets({"macs": text}))
    assert message.startswith("bad-argument: Expected percentages above 0 and below 100 of `--mac")


def test_one_quantity_is_limited() -> None:
    found = refused(lambda: read_targets({"macs": "75%", "energy": "50%"}))
    assert found == [
        "bad-argument: Expected one of `--macs`, `--latency` and `--energy`, "
        "found `--macs` and `--energy`"
    ]


@pytest.mark.parametrize("text", ["turns", "none,flips", ""])
def test_augmentations_that_are_none(text: str) -> None:
    assert refused(lambda: read_augmentations(text))[0].startswith("bad-argument: Expected flips")


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_the_controller_holds_the_cost_at_its_target(spread: float) -> None:
    # Scores that leaving out raises in each step, and the weight of costs lowers; as close together
    # as they may be.
    controller, target = Controller(), 0.6
    terms = (Term(0.2), Term(0.8, ("keep",)))
    scores = {"keep": 2.0 + spread * torch.linspace(0, 1, 1000)[:, None]}
    for _ in range(400):
        weight, shift = controller.step(wanted_shift(terms, scores, target))
        scores = {"keep": scores["keep"] - 0.01 * (weight - 2) - shift}
    masks = {"keep": (scores["keep"] > 0).float()}
    assert float(mean_cost(terms, masks, 1000)) == pytest.approx(target, abs=0.02)
    assert controller.lasting == pytest.approx(2, abs=0.2)


def test_the_wanted_shift_is_where_the_cost_is_the_target() -> None:
    terms = (Term(0.4), Term(0.4, ("a",)), Term(0.2, ("a", "b")))
    scores = {"a": torch.tensor([[1.0], [3.0]]), "b": torch.tensor([[2.0, -1.0], [4.0, 5.0]])}
    shift = wanted_shift(terms, scores, 0.75)
    assert shift == pytest.approx(1.0, abs=0.01)  # Beyond it the first sample costs 0.4, not 0.9.
    assert wanted_shift(terms, scores, 1.0) < -1.0
    assert wanted_shift(terms, scores, 0.4) >= 3.0


def test_targets_follow_each_other_without_a_jump() -> None:
    schedule = Schedule((0.85, 0.6), 50)
    wanted = [schedule.at(step).wanted for step in range(schedule.total)]
    assert wanted[0] == 1.0 and wanted[-1] == 0.6
    assert max(a - b for a, b in pairwise(wanted)) < 0.0101
    assert [step for step in range(100) if schedule.at(step).last] == [49, 99]


def test_terms_follow_the_gates_and_sum_to_the_whole_and_the_gates() -> None:
    graph = segments()
    terms = network_terms(graph)
    block = 2 * 4 * 4 * 9 * 64
    head, gate = 4 * 3, 4 * 1 + 4 * 2
    whole = block + head
    assert {term.gates: round(term.cost * whole, 6) for term in terms} == {
        (): head + gate,
        ("b.keep", "b.channels"): block,
    }


def test_measured_prices_replace_macs() -> None:
    graph = segments()
    (segment,) = graph.segments
    steps = {"segment0.0": 1.0, "b.gate": 0.5, "b": 6.0, "segment0.3": 1.0}
    found = network_terms(graph, Prices({segment.name: 8.0}, steps))
    costs = {term.gates: round(term.cost * 8, 6) for term in found}
    assert costs == {(): 2.5, ("b.keep", "b.channels"): 6.0}


def test_costs_pass_gradients_to_what_they_depend_on() -> None:
    keep = torch.tensor([[1.0], [0.0]], requires_grad=True)
    channels = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    terms = (Term(0.4), Term(0.6, ("b.keep", "b.channels")))
    cost = mean_cost(terms, {"b.keep": keep, "b.channels": channels}, 2)
    assert cost.item() == pytest.approx((0.4 + 0.3 + 0.4) / 2)
    torch.autograd.backward(cost)
    assert keep.grad is not None and channels.grad is not None
    assert keep.grad.flatten().tolist() == pytest.approx([0.15, 0.3])
    assert channels.grad.tolist() == [[pytest.approx(0.15)] * 2, [0.0, 0.0]]


def test_exits_do_not_pull_the_final_answer() -> None:
    final = torch.randn(4, 3, requires_grad=True)
    exits = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    labels = torch.tensor([0, 1, 2, 0])
    torch.autograd.backward(exit_losses(exits, labels, final, torch.randn(4, 3), 0.5))
    assert final.grad is None
    assert all(exit_.grad is not None and exit_.grad.abs().sum() > 0 for exit_ in exits)


class Normalised(nn.Module):
    """One normalisation after a convolution, and one after that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.BatchNorm2d(4)
        for norm in (self.norm, self.twice):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.conv(x))
        return {"y": y, "z": self.twice(y)}


def exported(net: nn.Module, x: Tensor) -> fx.GraphModule:
    module = torch.export.export(net.eval(), (x,)).module()
    return fx.GraphModule(module, module.graph)


def test_folded_normalisation_computes_the_same() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = exported(Normalised(), x)
    expected = graph(x)
    fold_batch_norms(graph)
    left = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    assert len(left) == 1
    for name, value in graph(x).items():
        assert torch.allclose(value, expected[name], atol=1e-5)


def test_tuned_networks_normalise_by_batches_and_gather_their_statistics() -> None:
    x, net = torch.randn(2, 3, 8, 8), Normalised()
    graph = exported(copy.deepcopy(net), x)
    names = normalise_by_batches(graph)
    assert names == (
        *("norm.running_mean", "norm.running_var"),
        *("twice.running_mean", "twice.running_var"),
    )
    assert graph.state_dict().keys() == net.state_dict().keys()
    graph.eval()
    for name, value in net.eval()(x).items():
        assert torch.equal(graph(x)[name], value)
    expected, found = net.train()(x), graph.train()(x)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    for name in names:
        assert torch.equal(graph.state_dict()[name], net.state_dict()[name])
        assert graph.state_dict()[name].unique().numel() > 1


def samples(count: int = 10) -> Samples:
    images = np.arange(count * 64, dtype=np.float32).reshape(count, 1, 8, 8)
    return Samples(images, np.arange(count), "digest")


def test_an_epoch_holds_every_sample_once() -> None:
    found = [samples().batch(step, 5, seed=3)[1].tolist() for step in range(4)]
    assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == list(range(10))
    assert found[:2] != found[2:]


def test_a_batch_depends_on_the_seed_and_the_step_only() -> None:
    first, again = (samples().batch(7, 4, 1, ("flips", "crops"))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, samples().batch(7, 4, 2, ("flips", "crops"))[0])


def test_images_are_mirrored_and_moved_with_zeros() -> None:
    images = torch.ones(64, 1, 8, 8)
    images[:, :, :, 0] = 2
    found = augmented(images, ("flips", "crops"), np.random.default_rng(0))
    assert {tuple(row.tolist()) for row in found[:, 0, 4]} == {
        (2, *[1] * 7),
        (*[1] * 7, 2),
        (0, 2, *[1] * 6),
        (*[1] * 6, 2, 0),
        *((tuple([1] * 7 + [0])), tuple([0] + [1] * 7)),
    }


def test_mixtures_are_of_two_samples_and_their_labels() -> None:
    labels = torch.arange(32) % 4
    images = functional.one_hot(torch.arange(32), 32).float().view(32, 1, 4, 8)
    found, shares = mixed(images, labels, 5, np.random.default_rng(0))
    parts = found.view(32, 32)
    torch.testing.assert_close(parts.sum(1), torch.ones(32))
    assert int((parts > 0).sum(1).max()) == 2
    kept = parts.diagonal()
    assert 0 < float(kept.min()) < 0.1 < 0.9 < float(kept.max()) <= 1
    wanted = torch.zeros(32, 5).index_add_(1, labels, parts)
    torch.testing.assert_close(shares, wanted)


KEY = {"network": "a", "steps": "10"}


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "net.gates.checkpoint"
    state = State(3, {"a": torch.ones(2)}, {"state": {}}, 0.5, {}, 1, [{"target": 0.5}])
    write_checkpoint(path, KEY, state)
    found = read_checkpoint(path, KEY)
    assert found is not None
    assert torch.equal(found.parameters.pop("a"), torch.ones(2))
    assert found == State(3, {}, {"state": {}}, 0.5, {}, 1, [{"target": 0.5}])
    assert read_checkpoint(tmp_path / "other", KEY) is None


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.gates.checkpoint"
    write_checkpoint(path, KEY, State())
    if damage == "other":
        torch.save({"weights": torch.ones(1)}, path)
    else:
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"a text")
    assert refused(lambda: read_checkpoint(path, KEY)) == [
        "bad-checkpoint: Cannot read the checkpoint"
    ]


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "done").touch, ())

    path = tmp_path / "net.gates.checkpoint"
    torch.save({"format": "eecompile-training-1", "key": KEY, "step": Attack()}, path)
    assert refused(lambda: read_checkpoint(path, KEY))
    assert not (tmp_path / "done").exists()


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.gates.checkpoint"
    write_checkpoint(path, KEY, State())
    with pytest.raises(CompileErrors) as caught:
        read_checkpoint(path, KEY | {"steps": "20"})
    (told,) = caught.value.diagnostics
    assert (told.id, told.message) == ("bad-checkpoint", "The checkpoint is of another run")
    assert told.notes == ("it differs in steps",)
