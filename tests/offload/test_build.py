"""From a `.ee` file to a server and a device that share the work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import build
from eecompile.evaluation import evaluate_artifact
from eecompile.offload_rule import OffloadRule
from tests.offload.networks import FILE
from tests.offload.servers import Server, free_ports

TEXT = """
eecompile 1
model digits {{
    source onnx "digits.onnx"
    input  image: float32[1, 1, 8, 8]
    output logits: classes(10)
    exit early after "layer1.0" head linear(pool: 4)
    exit late  after "layer1.3" head linear(pool: 4)
}}
data uci {{ fit "fit.npz" calibrate "calibrate.npz" test "test.npz" }}
policy plain {{
    exit when confidence(max_softmax) >= 0.999
    offload "http://127.0.0.1:{http}", "grpc://127.0.0.1:{grpc}" cost 0.1 timeout 20 s
    split fixed(at: early)
}}
policy small {{
    exit when confidence(max_softmax) >= 0.999
    offload "grpc://127.0.0.1:{grpc}" cost 0.1 border int8 timeout 20 s
    split online_ucb
}}
policy half {{
    exit when confidence(max_softmax) >= 0.999
    offload "http://127.0.0.1:{http}" cost 0.1 border float16 timeout 20 s retries 2
    split fixed(at: late)
}}
"""
#: Of logits, what rounding a border changes at most here.
FAR = {"plain": 1e-4, "small": 1.0, "half": 0.02}


@dataclass(frozen=True)
class Built:
    file: Path
    artifact: Path
    served: Path
    ports: tuple[int, int]
    summary: Any
    cache: Path


@pytest.fixture(scope="module")
def built(client: None, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("shared")
    for name in ("digits.onnx", "fit.npz", "calibrate.npz", "test.npz"):
        shutil.copy(FILE.parent / name, folder)
    http, grpc = free_ports(2)
    file = folder / "digits.ee"
    file.write_text(TEXT.format(http=http, grpc=grpc))
    time.sleep(0.1)  # what changes while a build begins is not remembered as read
    options = BuildOptions(output=folder / "out")
    report = build(file, options, Steps(10, quiet=True), Cache(folder / "cache"))
    served = folder / "out.server"
    return Built(file, folder / "out", served, (http, grpc), report.summary, folder / "cache")


@pytest.fixture(scope="module")
def serving(built: Built) -> Iterator[Server]:
    """A server of the folder as it was written, but for the ports."""
    with Server(built.served, built.ports) as found:
        yield found


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(FILE.parent / "test.npz") as archive:
        return np.asarray(archive["images"][:60])


def test_rules_and_models_are_written(built: Built) -> None:
    assert built.summary["server"] == str(built.served)
    entries = read_artifact(built.artifact).policies
    models = set()
    for name, border in (("plain", "float32"), ("small", "int8"), ("half", "float16")):
        rule = OffloadRule.from_json(entries[name].offload)
        assert rule.border == border
        models |= {tail.model for tail in rule.tails.values()}
        told = built.summary["policies"][name]["offload"]
        assert [row["model"] for row in told["tails"]] == [t.model for t in rule.tails.values()]
        size = {"float32": 4, "float16": 2, "int8": 1}[border] * 32 * 8 * 8
        assert [row["bytes"] for row in told["tails"]] == [size] * len(rule.tails)
        assert all(row["max_abs_error"] < 1e-3 for row in told["tails"])
        measured = [row["test"] for row in told["tails"]]
        if border == "float32":
            assert measured == [None]
        else:
            assert all(row["n"] == 500 and row["agreement"] > 0.99 for row in measured)
    assert {path.parent.name for path in built.served.glob("*/config.pbtxt")} == models
    assert list(OffloadRule.from_json(entries["plain"].offload).tails) == [0]
    assert list(OffloadRule.from_json(entries["small"].offload).tails) == [0, 1]
    assert list(OffloadRule.from_json(entries["half"].offload).tails) == [1]


def test_an_evaluation_shows_that_no_server_answers(built: Built) -> None:
    """Nothing listens yet: `serving` is first used below."""
    found = evaluate_artifact(built.artifact, str(built.file), "plain", None, 40, lambda *_: None)
    assert found.offload is not None and found.offload["answered"] == 0
    assert found.offload["failed"] == 3, "after which the breaker spares the other samples"
    unsure = [answer for answer in found.exits if answer == "final"]
    assert found.offload["refused_by_breaker"] == len(unsure) - 3
    assert len(found.answers) == 40 and not any(found.offloaded)
    assert found.offload_failure


@pytest.mark.parametrize("name", ["plain", "small", "half"])
def test_a_session_has_its_samples_finished(
    built: Built, serving: Server, images: np.ndarray, name: str
) -> None:
    with ee.load(built.artifact, name) as net:
        assert net.connect()
        for image in images:
            answer = net.run(image, normalize=True)
            if answer.offloaded:
                whole = net.full_depth(image, normalize=True)
                np.testing.assert_allclose(answer.logits, whole.logits, atol=FAR[name])
                assert answer.exit == "final" and answer.segments_run < 3
        counts = net.offload_counts
    assert counts["answered"] == counts["sent"] > 0
    assert counts["failed"] == counts["refused_by_breaker"] == 0


def test_another_endpoint_may_be_chosen_from_those_of_the_file(
    built: Built, serving: Server, images: np.ndarray
) -> None:
    with ee.load(built.artifact, "plain", endpoint=f"grpc://127.0.0.1:{built.ports[1]}") as net:
        assert net.connect()
        answers = [net.run(image, normalize=True) for image in images]
        assert net.offload_counts["answered"] == sum(a.offloaded for a in answers) > 0
    with pytest.raises(CompileErrors, match="endpoint-not-allowed"):
        ee.load(built.artifact, "plain", endpoint="grpc://127.0.0.1:1")


def test_a_server_that_is_killed_loses_no_sample(
    built: Built, serving: Server, images: np.ndarray
) -> None:
    alone = ee.load(built.artifact)
    with ee.load(built.artifact, "plain") as net:
        offloaded = []
        for number, image in enumerate(images):
            if number == 20:
                serving.kill()
            answer = net.run(image, normalize=True)
            offloaded.append(answer.offloaded)
            if answer.exit == "final" and not answer.offloaded:
                whole = alone.full_depth(image, normalize=True)
                np.testing.assert_array_equal(answer.logits, whole.logits)
        counts, left = net.offload_counts, net.exit_counts
        assert net.offload_failure
    serving.start()
    assert any(offloaded[:20]) and not any(offloaded[20:])
    assert sum(left.values()) == len(images)
    asked = counts["answered"] + counts["failed"] + counts["refused_by_breaker"]
    assert asked == left["final"] and counts["answered"] == sum(offloaded)
    assert counts["failed"] == 3 and counts["refused_by_breaker"] > 0


def test_the_folder_is_made_again_where_it_was_changed(built: Built) -> None:
    options = BuildOptions(output=built.artifact)

    def again() -> bool:
        return build(built.file, options, Steps(10, quiet=True), Cache(built.cache)).unchanged

    before = {path: path.read_bytes() for path in built.served.rglob("*") if path.is_file()}
    assert again()
    (built.served / "README.txt").write_text("")
    assert not again()
    after = {path: path.read_bytes() for path in built.served.rglob("*") if path.is_file()}
    assert after == before
    assert again()
