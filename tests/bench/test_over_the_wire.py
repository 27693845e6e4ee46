"""`bench --rpc` through TVM's own RPC server; here the board is this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eecompile.artifact import read_artifact
from eecompile.cli import main
from tests.remote.serving import serving

pytest.importorskip(
    "cloudpickle", reason="TVM's RPC server needs it: pip install 'apache-tvm[rpc]'"
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving((), "--key", "pi") as found:
        yield found


def test_a_board_is_measured_and_the_artifact_keeps_its_costs(
    port: int, artifact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{port}/pi"
    arguments = ["--rpc", address, "--rounds", "10", "--seconds", "5", "--update", "--json"]
    assert main(["bench", str(artifact), *arguments]) == 0
    sys.stdout.flush()
    found = json.loads(capfd.readouterr().out)
    (point,) = found["full_depth"]["points"]
    assert point["provenance"] == "measured"
    assert point["quantiles"]["rounds"] == 10
    assert found["updated"]
    costs = read_artifact(artifact).costs
    assert costs is not None
    assert costs.device == found["device"]


def test_data_stay_here(port: int, artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rpc", f"127.0.0.1:{port}/pi", "--data", "test.npz", "--json"]
    assert main(["bench", str(artifact), *arguments]) == 1
    sys.stdout.flush()
    (told,) = json.loads(capfd.readouterr().out)["diagnostics"]
    assert told["id"] == "bad-argument"


def test_nobody_answers(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(artifact), "--rpc", "127.0.0.1:1", "--json"]) == 2
    sys.stdout.flush()
    assert json.loads(capfd.readouterr().out)["error"]["kind"] == "environment"
