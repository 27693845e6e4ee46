"""A second build does nothing twice, and never serves what is no longer true."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from eecompile.artifact import write_artifact
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache, digest
from eecompile.freshness import Freshness
from eecompile.loading import load_spec
from eecompile.record import FitRecord, record
from tests.cli.calls import Call, edited


@pytest.fixture
def build(call: Call, demo: Path) -> Any:
    """Builds the demo; gives the summary."""

    def run(*options: object) -> dict[str, Any]:
        time.sleep(0.03)  # what was written just before a build counts as changed during it
        done = call("build", demo, "-o", demo.parent / "out", "--json", *options)
        assert done.status == 0, done.err
        return done.json

    run()  # its path differs from that of the shared build
    return run


def test_an_unchanged_build_does_nothing(build: Any, demo: Path) -> None:
    before = os.stat(demo.parent / "out").st_ino
    assert build()["unchanged"]
    os.utime(demo.parent / "digits.onnx")  # a new date is no change
    assert build()["unchanged"]
    assert os.stat(demo.parent / "out").st_ino == before


def _scaled(file: Path) -> None:
    model = onnx.load(file)
    weights = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, file)


def _reversed(file: Path) -> None:
    with np.load(file) as data:
        arrays = {name: array[::-1] for name, array in data.items()}
    np.savez(file, **arrays)


@pytest.mark.parametrize("what", ["weights", "fit.npz", "calibrate.npz", "test.npz", "spec"])
def test_what_a_build_read_is_noticed_when_it_changes(what: str, build: Any, demo: Path) -> None:
    if what == "weights":
        _scaled(demo.parent / "digits.onnx")
    elif what == "spec":
        edited(demo, ('test "test.npz"', 'test "test.npz" normalize mean [0.1] std [0.9]'))
    else:
        _reversed(demo.parent / what)
    assert not build()["unchanged"]
    assert build()["unchanged"]


def test_trained_gates_are_noticed_when_they_change(built: Path, tmp_path: Path) -> None:
    gates = tmp_path / "net.gates.npz"
    gates.write_bytes(b"before")
    spec, _ = load_spec(built / "digits.ee", [f"model.gates={gates}"])
    time.sleep(0.03)
    cache, options = Cache(tmp_path / "cache"), BuildOptions()
    freshness = Freshness(cache, built / "digits.ee", options, built / "out")
    freshness.store(spec, {"server": None})
    assert freshness.stored_summary() == {"server": None}
    gates.write_bytes(b"after")
    assert freshness.stored_summary() is None


def test_weights_in_a_file_of_any_name_are_noticed(build: Any, demo: Path) -> None:
    model = onnx.load(demo.parent / "digits.onnx")
    onnx.save(
        model,
        demo.parent / "digits.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="any.thing",
        size_threshold=0,
    )
    build()
    assert build()["unchanged"]
    beside = demo.parent / "any.thing"
    values = np.frombuffer(beside.read_bytes(), np.float32) * np.float32(1.001)
    beside.write_bytes(values.tobytes())
    assert not build()["unchanged"]


def test_options_and_edits_of_the_artifact_are_noticed(build: Any, demo: Path) -> None:
    assert not build("--set", "policy.budget=accuracy drop <= 2 %")["unchanged"]
    assert not build()["unchanged"]
    (demo.parent / "out" / "costs.json").write_text("{}")
    assert not build()["unchanged"]
    assert build()["unchanged"]


def test_a_file_that_changes_during_a_build_is_not_remembered(
    build: Any, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddled(*arguments: Any) -> Any:
        _reversed(demo.parent / "fit.npz")
        return write_artifact(*arguments)

    edited(demo, ("policy quick", "# again\npolicy quick"))
    with monkeypatch.context() as patched:
        patched.setattr("eecompile.driver.write_artifact", meddled)
        build()
    assert not build()["unchanged"]


TORCH = """
import helper
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    return nn.Sequential(*layers) if helper.ON else None
"""


def test_code_that_user_code_imports_is_noticed(demo: Path, tmp_path: Path, cache: Path) -> None:
    """In processes of their own: modules once imported stay what they were."""
    pytest.importorskip("torch")
    from tests.cli.calls import start

    folder = demo.parent
    (folder / "net.py").write_text(TORCH)
    (folder / "helper.py").write_text("ON = True\n")
    file = folder / "torch.ee"
    file.write_text(
        'eecompile 1\nmodel net {\n source torch "net.py:net"\n'
        " input image: float32[1, 1, 8, 8]\n}\n"
    )

    def built() -> tuple[int, str]:
        process = start("build", file, "-o", folder / "torch", "--json")
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    assert built()[0] == 0
    assert '"unchanged": true' in built()[1]
    (folder / "helper.py").write_text("ON = False\n")
    status, out = built()
    assert status == 1
    assert "returned NoneType" in out


@pytest.mark.parametrize("damage", ["one bit", "truncated"])
def test_damaged_cache_entries_are_computed_again(
    damage: str, call: Call, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EECOMPILE_CACHE", str(folder))
    first = call("build", demo, "-o", tmp_path / "first", "--json")
    assert first.status == 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 0x10
        path.write_bytes(raw if damage == "one bit" else raw[: len(raw) // 2])
    again = call("build", demo, "-o", tmp_path / "again", "--json")
    assert again.status == 0, again.err
    for name in ("kernels.so", "weights.bin", "policies.json", "vectors.npz"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_full_cache_drops_what_was_used_least_recently(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=15_000)

    def keep(key: str, name: str) -> Path:
        def make(folder: Path) -> FitRecord:
            batches = [(np.zeros((100, 10), np.float32), np.zeros(100, np.int64))]
            return record(
                FitRecord,
                lambda x: {"out": x, name: x},
                batches,
                output="out",
                recorded=[name],
                folder=folder,
            )

        folder = tmp_path / f"record-{digest(key)}"
        made = cache.folder_made(folder, make)
        assert made.recorded[name].shape == (100, 10)
        return folder

    (tmp_path / "yours").write_bytes(bytes(50_000))  # no entry: never counted, never removed
    first = keep("a", "tap")
    os.utime(first, (1, 1))
    second = keep("b", "tap")
    assert (first.exists(), second.exists()) == (False, True)
    os.utime(second, (1, 1))
    cache.store(digest("c"), bytes(8_000))
    assert not second.exists()
    assert cache.load(digest("c")) == bytes(8_000)
    assert (tmp_path / "yours").exists()


def test_what_killed_builds_left_in_the_cache_goes(tmp_path: Path) -> None:
    (tmp_path / ".record-old").mkdir()
    (tmp_path / ".record-old" / "0.npy").write_bytes(b"x")
    (tmp_path / ".record-new").mkdir()
    (tmp_path / ".record-new" / "0.npy").write_bytes(b"x")
    for path in (tmp_path / ".record-old" / "0.npy", tmp_path / ".record-old"):
        os.utime(path, (1, 1))
    Cache(tmp_path).store(digest("a"), b"a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".record-new", digest("a")]
