"""Records: streamed, complete or absent, and kept apart by split."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from eecompile.diagnostics import InternalError
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord, record

Batch = tuple[np.ndarray, np.ndarray]


def batches(count: int = 23, size: int = 5) -> Iterator[Batch]:
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    for at in range(0, count, size):
        yield x[at : at + size], (np.arange(count)[at : at + size] % 3).astype(np.uint8)


def run_batch(images: np.ndarray) -> Mapping[str, np.ndarray]:
    return {
        "out": images[:, :3] + 0.5,
        "tap": images.reshape(-1, 2, 2) * 2,
        "early": -images[:, 1:],
        "means": images[:, :3].astype(np.float64),
    }


def made(kind: type[Record], folder: Path | None) -> Record:
    return record(
        kind,
        run_batch,
        batches(),
        output="out",
        exits=("early", "late"),
        recorded=["tap"],
        logits={"early": "early"},
        class_means={"late": "means"},
        folder=folder,
    )


@pytest.mark.parametrize("kept", ["memory", "files"])
def test_a_record_holds_what_the_network_gave_in_order(kept: str, tmp_path: Path) -> None:
    found = made(FitRecord, None if kept == "memory" else tmp_path / "record")
    x = np.arange(23 * 4, dtype=np.float32).reshape(23, 4)
    assert len(found) == 23
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == (np.arange(23) % 3).tolist()
    np.testing.assert_array_equal(found.final, x[:, :3] + 0.5)
    np.testing.assert_array_equal(found.recorded["tap"], x.reshape(-1, 2, 2) * 2)
    early, late = found.outputs()
    np.testing.assert_array_equal(early.logits, -x[:, 1:])
    assert early.class_means is None
    assert late.class_means is late.logits  # A comparator alone answers.
    assert late.logits.dtype == np.float32


def test_features_on_disk_are_mapped_and_loaded_again(tmp_path: Path) -> None:
    first = made(CalibrateRecord, tmp_path / "record")
    assert isinstance(first.recorded["tap"], np.memmap)
    again = CalibrateRecord.load(tmp_path / "record")
    assert isinstance(again.recorded["tap"], np.memmap)
    assert again.exits == ("early", "late")
    for name in ("labels", "final"):
        assert getattr(again, name).tobytes() == getattr(first, name).tobytes()
    assert again.recorded["tap"].tobytes() == first.recorded["tap"].tobytes()
    assert again.outputs()[1].logits.tobytes() == first.outputs()[1].logits.tobytes()


def test_a_record_of_one_split_is_never_loaded_as_another(tmp_path: Path) -> None:
    made(TestRecord, tmp_path / "record")
    with pytest.raises(TypeError, match="test record, not a fit record"):
        FitRecord.load(tmp_path / "record")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_an_interrupt_leaves_the_earlier_record_and_no_files(
    error: type[BaseException], tmp_path: Path
) -> None:
    made(FitRecord, tmp_path / "record")
    before = sorted(p.name for p in tmp_path.rglob("*"))

    def interrupted(images: np.ndarray) -> Mapping[str, np.ndarray]:
        if images[0, 0] > 0:
            raise error
        return run_batch(images)

    with pytest.raises(error):
        record(
            FitRecord,
            interrupted,
            batches(),
            output="out",
            recorded=["tap"],
            folder=tmp_path / "record",
        )
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert FitRecord.load(tmp_path / "record").exits == ("early", "late")


def test_memory_holds_one_batch_of_features(tmp_path: Path) -> None:
    """80 MB of features pass through; a batch is 4 MB."""
    import tracemalloc

    def wide(images: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"out": images[:, :2], "tap": np.ones((len(images), 1 << 16), np.float32)}

    def many() -> Iterator[Batch]:
        for _ in range(20):
            yield np.zeros((16, 2), np.float32), np.zeros(16, np.int64)

    tracemalloc.start()
    found = record(
        FitRecord, wide, many(), output="out", recorded=["tap"], folder=tmp_path / "record"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.recorded["tap"].shape == (320, 1 << 16)
    assert peak < 20e6


def test_progress_counts_samples() -> None:
    told: list[int] = []
    record(FitRecord, run_batch, batches(12, 5), output="out", progress=told.append)
    assert told == [5, 10, 12]


def test_a_host_that_gives_too_little_is_a_bug_of_ours() -> None:
    with pytest.raises(InternalError, match="nothing for `lost`"):
        record(FitRecord, run_batch, batches(), output="lost")
    with pytest.raises(InternalError, match="no samples"):
        record(FitRecord, run_batch, iter([]), output="out")


def test_outputs_of_fitted_heads_are_added_to_a_copy() -> None:
    bare = record(TestRecord, run_batch, batches(), output="out", exits=["a"])
    with pytest.raises(KeyError):
        bare.outputs()
    logits = np.zeros((23, 3), np.float32)
    full = bare.with_outputs({"a": logits})
    assert type(full) is TestRecord
    assert full.outputs()[0].logits is logits
    assert not bare.logits
