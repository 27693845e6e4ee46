"""All 50,000 training images of CIFAR-10, from the archive its authors publish.

    python -m benchmarks.cifar10 cifar-10-binary.tar.gz cifar10_train.npz

The benchmarks train on the first 20,000, which are at hand; ``--fit cifar10_train.npz`` has them
take all. The archive is the "binary version" of www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path

import numpy as np

__all__ = ["read_archive"]

_FILES = 5
#: A label, and the red, the green and the blue plane of an image.
_ROW_BYTES = 1 + 3 * 32 * 32


def read_archive(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 32, 32, 3) and labels uint8 (n,), in the order of the archive.

    Raises:
        ValueError: it is not this archive.
        OSError, tarfile.TarError: it cannot be read.
    """
    rows = []
    with tarfile.open(path) as archive:
        for batch in range(1, _FILES + 1):
            try:
                file = archive.extractfile(f"cifar-10-batches-bin/data_batch_{batch}.bin")
            except KeyError:
                file = None
            content = file.read() if file is not None else b""
            if not content or len(content) % _ROW_BYTES:
                raise ValueError(f"{path} has no whole data_batch_{batch}.bin")
            rows.append(np.frombuffer(content, np.uint8).reshape(-1, _ROW_BYTES))
    whole = np.concatenate(rows)
    images = whole[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), whole[:, 0].copy()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    try:
        images, labels = read_archive(options.archive)
    except (ValueError, OSError, tarfile.TarError) as error:
        sys.exit(f"cannot read {options.archive}: {error}")
    np.savez(options.output, images=images, labels=labels)
    print(f"{len(labels)} images in {options.output}")


if __name__ == "__main__":
    main()
