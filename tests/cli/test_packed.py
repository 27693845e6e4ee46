"""Every verb takes a packed artifact as it takes a folder; `build` writes either."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import read_artifact
from tests.cli.calls import Call


@pytest.fixture
def packed(call: Call, demo: Path) -> Path:
    """The demo's artifact as one file."""
    time.sleep(0.03)  # what was written just before a build counts as changed during it
    path = demo.parent / "digits.eec"
    assert call("build", demo, "-o", path, "--quiet").status == 0
    return path


def test_build_writes_a_packed_artifact_and_sees_that_it_is_up_to_date(
    call: Call, demo: Path, packed: Path
) -> None:
    assert packed.is_file()
    again = call("build", demo, "-o", packed, "--json")
    assert (again.status, again.json["unchanged"]) == (0, True)
    packed.write_bytes(packed.read_bytes()[:-1])
    again = call("build", demo, "-o", packed, "--json")
    assert (again.status, again.json["unchanged"]) == (0, False)
    read_artifact(packed)


def test_every_verb_takes_it(call: Call, demo: Path, packed: Path, images: np.ndarray) -> None:
    np.save(demo.parent / "x.npy", images[:1])
    out, test = demo.parent / "out", demo.parent / "test.npz"
    for verb, *more in (
        ("run", "--input", demo.parent / "x.npy"),
        ("eval", "--data", test, "--samples", "50"),
        ("eval", "--data", test, "--samples", "50", "--sweep"),
        ("verify",),
        ("inspect",),
    ):
        one, two = call(verb, out, *more, "--json"), call(verb, packed, *more, "--json")
        assert (one.status, two.status) == (0, 0), two.err
        assert one.json.keys() == two.json.keys()
        for key in ("label", "exit", "accuracy", "ok", "exits", "macs"):
            assert one.json.get(key) == two.json.get(key)


def test_bench_puts_costs_into_it(call: Call, packed: Path) -> None:
    before = read_artifact(packed)
    done = call("bench", packed, "--update", "--rounds", "2", "--seconds", "0.05", "--json")
    assert done.status == 0, done.err
    after = read_artifact(packed)
    assert after.manifest.members["costs.json"] != before.manifest.members["costs.json"]
    assert after.weights.tobytes() == before.weights.tobytes()


@pytest.mark.parametrize("verb", ["run", "eval", "verify", "inspect", "bench", "pack"])
def test_a_damaged_one_is_refused_by_every_verb(
    verb: str, call: Call, demo: Path, packed: Path, images: np.ndarray
) -> None:
    np.save(demo.parent / "x.npy", images[:1])
    packed.write_bytes(packed.read_bytes()[:-1])
    more = {"run": ["--input", demo.parent / "x.npy"], "eval": ["--data", demo.parent / "test.npz"]}
    done = call(verb, packed, "--json", *more.get(verb, []))
    assert (done.status, done.ids) == (1, ["bad-artifact"])
    assert "it may have been cut off" in done.err
