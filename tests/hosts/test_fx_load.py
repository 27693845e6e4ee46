# ruff: noqa: E402 - everything below the first import needs torch
"""Users' files, weights and heads: what is loaded, and what is refused and how."""

from __future__ import annotations

import pickle
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch host needs torch")

from eecompile.ir import TensorType
from eecompile.passes.fx_host import FxHost, load_module_head, load_torch
from eecompile.passes.host import HostError, Problem
from eecompile.reference import run_graph

IMAGE = {"image": TensorType("float32", (1, 4))}


def _write(folder: Path, code: str, name: str = "net.py") -> str:
    (folder / name).write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(code))
    return str(folder / name)


LINEAR = """
    def net():
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
"""


def _problems(*arguments: Any, **keywords: Any) -> tuple[Problem, ...]:
    with pytest.raises(HostError) as caught:
        load_torch(*arguments, **keywords).graph()
    assert all(problem.message and problem.kind for problem in caught.value.problems)
    return caught.value.problems


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ("net.py", "unreadable-model", "does not name a function"),
        ("net.py:no-name", "unreadable-model", "does not name a function"),
        ("lost.py:net", "missing-file", "There is no file"),
        ("net.py:nett", "unreadable-model", "No function `nett`"),
        ("net.py:number", "unreadable-model", "No function `number`"),
        ("net.py:text", "unreadable-model", "returned str, not an nn.Module"),
        ("net.py:fails", "unreadable-model", "raised ValueError: three"),
        ("broken.py:net", "unreadable-model", "cannot be imported: SyntaxError"),
        ("needy.py:net", "unreadable-model", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_entry_that_gives_no_network(tmp_path: Path, entry: str, kind: str, message: str) -> None:
    more = """
    number = 3

    def text():
        return "net"

    def fails():
        raise ValueError("three")
    """
    _write(tmp_path, LINEAR + more)
    _write(tmp_path, "def net(:\n", "broken.py")
    _write(tmp_path, "import no_such_module_at_all\n", "needy.py")
    (problem,) = _problems(f"{tmp_path}/{entry}", None, IMAGE)
    assert problem.kind == kind and message in problem.message
    if entry == "net.py:nett":
        assert "did you mean `net`" in problem.help
    if "fails" in entry:
        assert "net.py:13: raise ValueError" in problem.help


def test_file_may_import_its_neighbours_but_leaves_no_path_behind(tmp_path: Path) -> None:
    import sys

    _write(tmp_path, "WIDTH = 3\n", "neighbour_of_net.py")
    code = "from neighbour_of_net import WIDTH\ndef net():\n    return nn.Linear(4, WIDTH)\n"
    entry = _write(tmp_path, code)
    before = list(sys.path)
    assert load_torch(f"{entry}:net", None, IMAGE).graph().types["linear"].shape == (1, 3)
    assert sys.path == before


def test_what_the_users_code_prints_is_no_output_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "print('importing')\ndef net():\n    print('building')\n    return nn.Linear(4, 2)\n"
    load_torch(f"{_write(tmp_path, code)}:net", None, IMAGE)
    assert capsys.readouterr() == ("", "importing\nbuilding\n")


# --- weights --------------------------------------------------------------------------------------


def _saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def _state(**changes: Any) -> dict[str, Any]:
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)}
    state = {key: torch.full(shape, 0.5) for key, shape in shapes.items()}
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
)
def test_weights_are_found_in_usual_wrappers(tmp_path: Path, wrap: Any) -> None:
    entry = _write(tmp_path, LINEAR)
    host = load_torch(f"{entry}:net", _saved(tmp_path, wrap(_state())), IMAGE)
    found = host.run({"image": np.ones((1, 4), np.float32)})["output"]
    np.testing.assert_allclose(found, [[4.25, 4.25]])


def test_weights_of_another_network_are_all_listed(tmp_path: Path) -> None:
    entry = _write(tmp_path, LINEAR)
    state = _state(**{"0.bias": None, "3.bias": torch.ones(2), "2.weight": torch.ones(2, 5)})
    problems = _problems(f"{entry}:net", _saved(tmp_path, state), IMAGE)
    assert {problem.kind for problem in problems} == {"unreadable-weights"}
    assert [problem.message for problem in problems] == [
        "Weights missing in `weights.pth`: `0.bias`",
        "Weights in `weights.pth` the network lacks: `3.bias`",
        "Weight `2.weight` is (2, 5) in the file, (2, 3) in the network",
    ]


class Trap:
    """Unpickling this runs code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_code_in_a_weights_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = _write(tmp_path, LINEAR)
    for path in (tmp_path / "trap.pth", tmp_path / "trap.pkl"):
        content = {**_state(), "trap": Trap()}
        torch.save(content, path) if path.suffix == ".pth" else path.write_bytes(
            pickle.dumps(content)
        )
        (problem,) = _problems(f"{entry}:net", path, IMAGE)
        assert problem.kind == "unreadable-weights"
        assert "holds more than plain tensors" in problem.message
    assert not (tmp_path / "trap-was-sprung").exists()


def test_whole_pickled_network_is_no_weights(tmp_path: Path) -> None:
    entry = _write(tmp_path, LINEAR)
    path = _saved(tmp_path, torch.nn.Sequential(torch.nn.Linear(4, 3)))
    (problem,) = _problems(f"{entry}:net", path, IMAGE)
    assert "holds more than plain tensors" in problem.message
    assert "state_dict" in problem.help


@pytest.mark.parametrize(
    "content", [b"", b"no weights at all", b"\x80\x02", b"PK\x03\x04 no archive", b"\x93NUMPY\x01"]
)
def test_file_that_is_no_weights(tmp_path: Path, content: bytes) -> None:
    entry = _write(tmp_path, LINEAR)
    (tmp_path / "weights.pth").write_bytes(content)
    (problem,) = _problems(f"{entry}:net", tmp_path / "weights.pth", IMAGE)
    assert problem.kind == "unreadable-weights"
    assert "`weights.pth`" in problem.message


def test_truncated_weights(tmp_path: Path) -> None:
    entry = _write(tmp_path, LINEAR)
    path = _saved(tmp_path, _state())
    path.write_bytes(path.read_bytes()[:-300])
    (problem,) = _problems(f"{entry}:net", path, IMAGE)
    assert problem.kind == "unreadable-weights"


@pytest.mark.parametrize("content", [torch.ones(3), {}, [1, 2], {"epoch": 3}])
def test_weights_file_without_state_dict(tmp_path: Path, content: Any) -> None:
    entry = _write(tmp_path, LINEAR)
    (problem,) = _problems(f"{entry}:net", _saved(tmp_path, content), IMAGE)
    assert "not a state dict" in problem.message


def test_missing_weights_file(tmp_path: Path) -> None:
    entry = _write(tmp_path, LINEAR)
    (problem,) = _problems(f"{entry}:net", tmp_path / "lost.pth", IMAGE)
    assert problem.kind == "missing-file"


# --- the network ----------------------------------------------------------------------------------

BRANCHING = """
    class Net(nn.Module):
        def forward(self, image):
            if image.sum() > 0:
                return image + 1
            return image

    def net():
        return Net()
"""


def test_control_flow_on_data_is_told_with_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = _write(tmp_path, BRANCHING)
    (problem,) = _problems(f"{entry}:net", None, IMAGE)
    assert capfd.readouterr() == ("", "")
    assert problem.message == (
        "The network's control flow depends on its data: `if image.sum() > 0:`"
    )
    assert "net.py:6" in problem.help


UNSUPPORTED = """
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x):
            return self.lstm(x)[0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, image):
            x = self.inner(image)
            y = torch.fft.fft(x).real
            return (x * y).sort(-1)[0] + torch.rand(4)

    def net():
        return Net()
"""


STATEFUL = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, image):
            self.count.add_(1)
            return image * self.count

    def net():
        return Net()
"""
CONDITION = """
    class Net(nn.Module):
        def forward(self, image):
            return torch.cond(image.sum() > 0, lambda x: x + 1, lambda x: x - 1, (image,))

    def net():
        return Net()
"""
SCRIPTED = """
    def net():
        return torch.jit.script(nn.Linear(4, 2))
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (STATEFUL, "changes its own state `count`"),
        (CONDITION, "Operator `cond`"),
        (SCRIPTED, "torch.export cannot capture the network"),
    ],
)
def test_network_that_is_no_function_of_its_inputs(tmp_path: Path, code: str, message: str) -> None:
    problems = _problems(f"{_write(tmp_path, code)}:net", None, IMAGE)
    assert message in problems[0].message, problems


NO_GRADIENT = """
    class Net(nn.Module):
        def forward(self, image):
            with torch.no_grad():
                y = image * 2
            return y.relu_() + image

    def net():
        return Net()
"""


def test_block_without_gradients_is_seen_through(tmp_path: Path) -> None:
    host = load_torch(f"{_write(tmp_path, NO_GRADIENT)}:net", None, IMAGE)
    image = np.array([[1, -1, 2, -2]], np.float32)
    (found,) = run_graph(host.graph(), {"image": image}).values()
    assert found.tolist() == host.run({"image": image})["output"].tolist() == [[3, -1, 6, -2]]


def test_every_unsupported_operator_is_named_at_once(tmp_path: Path) -> None:
    entry = _write(tmp_path, UNSUPPORTED)
    problems = _problems(f"{entry}:net", None, IMAGE)
    assert {problem.kind for problem in problems} == {"unsupported-operator"}
    found = {problem.operator for problem in problems}
    assert {"aten.lstm.input", "aten.sort.default", "aten.rand.default"} <= found
    assert any("fft" in name for name in found)
    lstm = next(problem for problem in problems if problem.operator == "aten.lstm.input")
    assert "in module `inner.lstm`" in lstm.message
    assert "net.py:10: return self.lstm(x)[0]" in lstm.help


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return image[image > 0]", "mask as index"),
        ("return nn.functional.dropout(image, 0.5, training=True)", "dropout during inference"),
        ("return torch.nn.functional.batch_norm(image, None, None, training=True)", "statistics"),
    ],
)
def test_operator_that_cannot_be_compiled_says_why(tmp_path: Path, body: str, message: str) -> None:
    code = f"class Net(nn.Module):\n    def forward(self, image):\n        {body}\n"
    entry = _write(tmp_path, code + "def net():\n    return Net()\n")
    problems = _problems(f"{entry}:net", None, {"image": TensorType("float32", (2, 4))})
    assert any(message in problem.message for problem in problems), problems


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        ({"image": TensorType("float32", (1, 5))}, "unreadable-model"),
        ({"image": TensorType("int64", (1, 4))}, "unreadable-model"),
        ({"image": IMAGE["image"], "mask": IMAGE["image"]}, "unknown-input"),
        ({}, "unknown-input"),
        ({"input": IMAGE["image"], "mask": IMAGE["image"]}, "unknown-input"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, inputs: Any, kind: str) -> None:
    entry = _write(tmp_path, LINEAR)
    problems = _problems(f"{entry}:net", None, inputs)
    assert [problem.kind for problem in problems] == [kind], problems


def test_wrong_number_of_output_names(tmp_path: Path) -> None:
    entry = _write(tmp_path, LINEAR)
    (problem,) = _problems(f"{entry}:net", None, IMAGE, ("a", "b"))
    assert problem.kind == "unknown-output"


NESTED = """
    class Net(nn.Module):
        def forward(self, relu, input, lambda_=2):
            x = nn.functional.relu(input)
            return {"sum": x + relu, "pair": (x * 2, relu)}

    def net():
        return Net()
"""


def test_inputs_and_outputs_keep_the_users_names(tmp_path: Path) -> None:
    entry = _write(tmp_path, NESTED)
    inputs = {"input": TensorType("float32", (1, 2)), "relu": TensorType("float32", (1, 2))}
    host = load_torch(f"{entry}:net", None, inputs)
    assert host.graph().inputs == ("relu", "input")
    a, b = np.array([[1.0, -2.0]], np.float32), np.array([[5.0, 6.0]], np.float32)
    found = host.run({"input": a, "relu": b})
    assert {name: value.tolist() for name, value in found.items()} == {
        "sum": [[6.0, 6.0]],
        "pair_0": [[2.0, 0.0]],
        "pair_1": [[5.0, 6.0]],
    }
    neutral = run_graph(host.graph(), {"input": a, "relu": b})
    for name, value in host.outputs().items():
        np.testing.assert_array_equal(neutral.get(value, b), found[name])


FIXED = """
    class Net(nn.Module):
        def forward(self, image):
            return image.reshape(2, 2) @ torch.ones(2, 3)

    def net():
        return Net()
"""


def test_network_for_one_sample_only_is_taken_as_it_is(tmp_path: Path) -> None:
    host = load_torch(f"{_write(tmp_path, FIXED)}:net", None, IMAGE)
    assert not host.batched
    found = host.run({"image": np.arange(4, dtype=np.float32).reshape(1, 4)})["output"]
    assert found.tolist() == [[1, 1, 1], [5, 5, 5]]
    with pytest.raises(HostError, match="Input `image` is float32\\[1, 4\\]"):
        host.run({"image": np.ones((2, 4), np.float32)})
    host.save(tmp_path / "net.pt2")
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.ones(1, 4))["output"].shape


# --- heads ----------------------------------------------------------------------------------------

HEAD = """
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 10)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            return self.fc(x.mean((2, 3)))

    def two():
        return nn.MaxPool2d(2, return_indices=True)

    def nothing():
        return nn.Identity()
"""
FEATURE = TensorType("float32", (1, 3, 8, 8))


def test_module_head_becomes_a_neutral_graph(tmp_path: Path) -> None:
    entry = _write(tmp_path, HEAD)
    import importlib.util

    spec = importlib.util.spec_from_file_location("user_head", entry)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    head = module.Head().eval()
    graph = load_module_head(f"{entry}:Head", _saved(tmp_path, head.state_dict()), FEATURE)
    assert (graph.inputs, graph.outputs) == (("feature",), ("logits",))
    x = np.random.default_rng(0).normal(size=FEATURE.shape).astype(np.float32)
    with torch.no_grad():
        expected = head(torch.from_numpy(x)).numpy()
    found = run_graph(graph, {"feature": x})["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["two", "nothing"])
def test_module_that_is_no_head(tmp_path: Path, name: str) -> None:
    entry = _write(tmp_path, HEAD)
    with pytest.raises(HostError):
        load_module_head(f"{entry}:{name}", None, FEATURE)


def test_module_head_goes_into_a_network(tmp_path: Path) -> None:
    entry = _write(tmp_path, HEAD)
    graph = load_module_head(f"{entry}:Head", None, FEATURE)
    backbone = "def net():\n    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())\n"
    path = _write(tmp_path, backbone, "backbone.py")
    inputs = {"image": TensorType("float32", (1, 3, 10, 10))}
    host: FxHost = load_torch(f"{path}:net", None, inputs)
    (value,) = host.splice(graph, host.points()["1"].value, "exits.early")
    host.add_output("early", value)
    x = np.random.default_rng(0).normal(size=(2, 3, 10, 10)).astype(np.float32)
    found = host.run({"image": x})
    expected = [run_graph(graph, {"feature": one[None]})["logits"] for one in found["output"]]
    np.testing.assert_allclose(found["early"], np.concatenate(expected), rtol=1e-4, atol=1e-5)
    trained = {n for n, _ in host.module.named_parameters() if n.startswith("exits.")}
    assert len(trained) == 6 and not any("running" in name for name in trained)
