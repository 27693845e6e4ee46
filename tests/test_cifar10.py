"""The published archive of CIFAR-10 becomes the file that benchmarks read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cifar10 import read_archive


def archive(path: Path, batches: dict[int, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for number, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{number}.bin")
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def test_planes_become_pixels_in_the_order_of_the_batches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    rows = [bytes([i]) + images[i].transpose(2, 0, 1).tobytes() for i in range(10)]
    batches = {n: rows[2 * n - 2] + rows[2 * n - 1] for n in (5, 1, 3, 2, 4)}
    found, labels = read_archive(archive(tmp_path / "cifar.tar.gz", batches))
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == list(range(10))


def test_another_archive_is_refused(tmp_path: Path) -> None:
    torn = {n: bytes(3073 - (n == 4)) for n in range(1, 6)}
    with pytest.raises(ValueError, match="no whole data_batch_4"):
        read_archive(archive(tmp_path / "torn.tar.gz", torn))
    with pytest.raises(ValueError, match="no whole data_batch_1"):
        read_archive(archive(tmp_path / "other.tar.gz", {}))
