"""A network of token ids, as PyTorch and as ONNX, from `.ee` to answers."""

from __future__ import annotations

import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import BuildOptions, build
from eecompile.initialise import describe
from eecompile.ir import TensorType

torch = pytest.importorskip("torch", reason="needs torch for the PyTorch route")

WORDS, TOKENS, CLASSES = 50, 12, 3
NETWORK = f"""
from benchmarks.encoder import NewsEncoder

def tiny():
    return NewsEncoder({WORDS}, {TOKENS}, depth=3, width=16, heads=2, hidden=32, classes={CLASSES})
"""
TEXT = """
eecompile 1
model tiny {{
    source {source}
    input  ids: int64[1, 12]
    output {output}: classes(3)
    exit first  after "layers.0" head linear(pool: mean)
    exit second after "layers.1" head linear(pool: first)
}}
data texts {{ fit "fit.npz" calibrate "{calibrate}.npz" test "test.npz" }}
policy quick {{ exit when confidence(max_softmax)   budget mean macs <= 60 % }}
"""
SOURCES = {
    "onnx": ('onnx "tiny.onnx"', "logits"),
    "torch": ('torch "tiny.py:tiny" weights "tiny.pth"', "output"),
}


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of 3 to 12 words that hint at the class: ids (n, 12), 0 behind the end; labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    ids = rng.integers(1, WORDS, (count, TOKENS))
    telling = rng.random(ids.shape) < rng.random((count, 1))
    ids = np.where(telling, ids // CLASSES * CLASSES + labels[:, None], ids).clip(1, WORDS - 1)
    ids[np.arange(TOKENS) >= rng.integers(3, TOKENS + 1, (count, 1))] = 0
    return ids.astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network on both routes, untrained, and its data."""
    from benchmarks.encoder import NewsEncoder

    made = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    network = NewsEncoder(
        WORDS, TOKENS, depth=3, width=16, heads=2, hidden=32, classes=CLASSES
    ).eval()
    (made / "tiny.py").write_text(dedent(NETWORK))
    torch.save(network.state_dict(), made / "tiny.pth")
    example = torch.zeros((1, TOKENS), dtype=torch.int64)
    torch.onnx.export(
        network,
        (example,),
        made / "tiny.onnx",
        input_names=["ids"],
        output_names=["logits"],
        dynamo=False,
    )
    for seed, (name, count) in enumerate({"fit": 600, "calibrate": 400, "test": 300}.items()):
        images, labels = samples(count, seed)
        np.savez(made / f"{name}.npz", images=images, labels=labels)
    images, labels = samples(400, 1)
    images[17, 2] = WORDS
    np.savez(made / "wrong.npz", images=images, labels=labels)
    return made


def made(folder: Path, route: str, calibrate: str = "calibrate") -> tuple[Path, Any]:
    """An artifact and what its build said."""
    source, output = SOURCES[route]
    file = folder / f"{route}_{calibrate}.ee"
    file.write_text(TEXT.format(source=source, output=output, calibrate=calibrate))
    time.sleep(0.1)  # what changes while a build begins is not remembered as read
    options = BuildOptions(output=folder / file.stem)
    report = build(file, options, Steps(10, quiet=True), Cache(folder / "cache"))
    return folder / file.stem, report.summary


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, tuple[Path, Any]]:
    return {route: made(folder, route) for route in SOURCES}


@pytest.fixture
def ids(folder: Path) -> np.ndarray:
    """Of the test set, as the network reads them."""
    with np.load(folder / "test.npz") as archive:
        return np.asarray(archive["images"], np.int64)


def test_both_routes_are_cut_alike(built: dict[str, tuple[Path, Any]]) -> None:
    onnx, torch_ = (ee.load(path).manifest.network for path, _ in built.values())
    assert onnx.inputs == torch_.inputs == (("ids", TensorType("int64", (1, 12))),)
    assert [part.macs for part in onnx.segments] == [part.macs for part in torch_.segments]
    assert [exit_.macs for exit_ in onnx.exits] == [exit_.macs for exit_ in torch_.exits]
    assert min(part.macs for part in onnx.segments) > 0.3 * onnx.macs, "a layer each"


@pytest.mark.parametrize("route", SOURCES)
def test_decisions_off_is_the_source_network(
    built: dict[str, tuple[Path, Any]], folder: Path, ids: np.ndarray, route: str
) -> None:
    from benchmarks.encoder import NewsEncoder

    network = NewsEncoder(WORDS, TOKENS, depth=3, width=16, heads=2, hidden=32, classes=CLASSES)
    network.load_state_dict(torch.load(folder / "tiny.pth", weights_only=True))
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(ids)).numpy()
    path, summary = built[route]
    assert summary["max_abs_error"] <= 1e-5
    assert summary["max_exit_error"] <= 1e-4
    found = ee.load(path).full_depth_batch(ids)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)


def test_both_routes_answer_alike(built: dict[str, tuple[Path, Any]], ids: np.ndarray) -> None:
    onnx, torch_ = (ee.load(path).run_batch(ids) for path, _ in built.values())
    np.testing.assert_array_equal(onnx.exits, torch_.exits)
    np.testing.assert_allclose(onnx.logits, torch_.logits, atol=1e-5)
    assert len(set(onnx.exits.tolist())) >= 2, "texts must leave at different exits"


@pytest.mark.parametrize("route", SOURCES)
def test_what_the_build_reports_is_what_the_artifact_does(
    built: dict[str, tuple[Path, Any]], folder: Path, ids: np.ndarray, route: str
) -> None:
    path, summary = built[route]
    with np.load(folder / "test.npz") as archive:
        labels = archive["labels"]
    reported = summary["policies"]["quick"]["test"]
    net = ee.load(path)
    answers = net.run_batch(ids)
    assert answers.labels is not None
    assert (answers.labels == labels).mean() == pytest.approx(reported["accuracy"]["value"])
    fraction = answers.macs.mean() / net.manifest.network.macs
    assert fraction == pytest.approx(reported["costs"]["macs"]["value"], rel=1e-9)
    single = net.run(ids[5])
    assert single.exit == answers.exit_names[answers.exits[5]]
    np.testing.assert_allclose(single.logits, answers.logits[5], atol=1e-6)


@pytest.mark.parametrize("route", SOURCES)
@pytest.mark.parametrize(
    ("given", "taken"), [(50, 49), (2**62, 49), (-1, 49), (-50, 0), (-51, 0), (-(2**62), 0)]
)
def test_ids_of_no_row_take_the_nearest_one(
    built: dict[str, tuple[Path, Any]], ids: np.ndarray, route: str, given: int, taken: int
) -> None:
    """A mask that compares ids with 0 sees what was given: only rows are taken instead."""
    net = ee.load(built[route][0])
    text = ids[:1].copy()
    text[0, 0] = 7
    odd, near = text.copy(), text.copy()
    odd[0, 0], near[0, 0] = given, taken
    if taken == 0:  # row 0 is padding, which is hidden by its id
        assert np.isfinite(net.full_depth(odd).logits).all()
        assert not np.array_equal(net.full_depth(odd).logits, net.full_depth(text).logits)
        return
    np.testing.assert_array_equal(net.full_depth(odd).logits, net.full_depth(near).logits)


def test_a_build_refuses_ids_of_no_row(folder: Path) -> None:
    with pytest.raises(CompileErrors) as raised:
        made(folder, "onnx", "wrong")
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.id == "bad-data"
    assert diagnostic.message == "A value outside -50 to 49 in sample 17"


def test_what_is_no_input_is_refused(built: dict[str, tuple[Path, Any]], ids: np.ndarray) -> None:
    net = ee.load(built["onnx"][0])
    cases: list[tuple[np.ndarray, bool, str, str]] = [
        (ids[:1].astype(np.int32), False, "found int32[1, 12]", "`x.astype('int64')`"),
        (ids[:1], True, "the input is int64[1, 12], read as it is", "leave the normalisation out"),
        (ids[:1, 1:], False, "found int64[1, 11]", ""),
    ]
    for given, normalize, message, help_ in cases:
        with pytest.raises(CompileErrors) as raised:
            net.run(given, normalize=normalize)
        (diagnostic,) = raised.value.diagnostics
        assert message in diagnostic.message
        assert help_ in diagnostic.help


@pytest.mark.parametrize("route", SOURCES)
def test_init_proposes_an_exit_after_each_layer(
    folder: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    name = "tiny.onnx" if route == "onnx" else "tiny.py:tiny"
    text = describe(name, None, None, ["ids=int64:1,12"], 6)
    lines = (line.split("#")[0].split() for line in text.splitlines())
    assert [" ".join(line) for line in lines if line[:1] == ["exit"]] == [
        'exit exit1 after "layers.0" head linear(pool: mean)',
        'exit exit2 after "layers.1" head linear(pool: mean)',
    ]
    assert "    # normalize" not in text
