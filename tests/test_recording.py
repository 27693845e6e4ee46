"""One pass over the data: what is kept is what was seen, whatever is asked for it later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.cache import Cache
from eecompile.diagnostics import CompileErrors
from eecompile.hardware import machine
from eecompile.head_fitting import plan_exits
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.planning import cut
from eecompile.recording import Recorder, Recording, open_splits
from eecompile.spec import DataSet, DataSource, Exit, HeadSpec, Model, Output, Spec
from tests.helpers import TextHost

TEXT = """
graph net(x: float32[1, 3]) -> (y: float32[1, 2]) {
    const w: float32[3, 2] = random(0)
    a: float32[1, 3] = Relu(x)
    y: float32[1, 2] = MatMul(a, w)
}
"""
#: Gives 100 samples of the value in `level`, which it changes at every call if `moving` is there.
SOURCE = """
from pathlib import Path
import numpy as np

FOLDER = Path(__file__).parent


def samples():
    level = float((FOLDER / "level").read_text())
    if (FOLDER / "moving").exists():
        (FOLDER / "level").write_text(str(level + 1))
    yield np.full((100, 3), level, np.float32), np.arange(100) % 2


LEFT = iter([(np.zeros((100, 3), np.float32), np.arange(100) % 2)])


def once():
    return LEFT
"""
MODEL = Model(
    "net",
    "onnx",
    "",
    exits=(Exit("early", "a", HeadSpec("linear")),),
    output=Output("y", 2),
)


class Recorded:
    """Records the samples of a callable as a build does."""

    def __init__(self, folder: Path) -> None:
        (folder / "data.py").write_text(SOURCE)
        self.folder, self.cache = folder, Cache(folder / "cache")
        host = TextHost(TEXT)
        backbone = cut(host, MODEL, backbone_pipeline())
        plans = plan_exits(Spec(models=(MODEL,)), backbone)
        self.graph = host.graph()
        self.recorder = Recorder.compile(backbone, plans, machine("host"), self.cache)

    def __call__(self, entry: str = "samples") -> Recording:
        data = DataSet("d", fit=DataSource(str(self.folder / "data.py"), entry=entry))
        splits = open_splits(Spec(models=(MODEL,), data=(data,)), self.graph)
        found = self.recorder.record(
            splits, threads=1, cache=self.cache, progress=lambda done, total, what="": None
        )
        return found["fit"]


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Any]:
    yield Recorded(tmp_path)


def level(recording: Recording) -> float:
    """Of the samples that a record was made from."""
    (features,) = recording.record.recorded.values()
    return float(features[0, 0])


def test_a_record_is_kept_under_the_samples_it_was_made_from(recorded: Recorded) -> None:
    (recorded.folder / "level").write_text("1")
    (recorded.folder / "moving").touch()
    first = recorded()
    seen = level(first)
    (recorded.folder / "moving").unlink()
    # What the callable gave before is no record of what it gives now, and the other way round.
    for value in (1.0, 2.0, seen):
        (recorded.folder / "level").write_text(str(value))
        again = recorded()
        assert level(again) == value
        assert (again.samples == first.samples, again.key == first.key) == (value == seen,) * 2


def test_the_same_samples_are_recorded_once(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recorded.folder / "level").write_text("1")
    first = recorded()
    monkeypatch.setattr("eecompile.recording.record", None)
    again = recorded()
    assert (again.key, again.samples) == (first.key, first.samples)
    np.testing.assert_array_equal(again.record.final, first.record.final)


def test_a_callable_that_gives_its_samples_only_once_is_refused(recorded: Recorded) -> None:
    with pytest.raises(CompileErrors, match="too-few-samples"):
        recorded("once")
