"""Samples from every kind of source become the same batches; what is wrong is named."""

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from eecompile.datasets import Dataset, Split, open_dataset
from eecompile.diagnostics import CompileErrors
from eecompile.ir import TensorType
from eecompile.spec import DataSet, DataSource, Normalize, Spec

INPUT = TensorType("float32", (1, 3, 4, 5))
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (60, 4, 5, 3), dtype=np.uint8)
LABELS = (np.arange(60) % 3).astype(np.uint8)
NORMALIZE = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def expected() -> np.ndarray:
    chw = IMAGES.transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(part).reshape(3, 1, 1) for part in (NORMALIZE.mean, NORMALIZE.std))
    return np.asarray((chw - mean) / std, np.float32)


def opened(
    folder: Path,
    source: DataSource,
    split: Split = "calibrate",
    *,
    input: TensorType = INPUT,
    classes: int = 3,
    **options: object,
) -> Dataset:
    data = DataSet("d", **{split: source, "normalize": NORMALIZE, **options})  # type: ignore[arg-type]
    found = open_dataset(Spec(data=(data,), folder=str(folder)), data, split, input, classes)
    assert found is not None
    return found


def all_of(dataset: Dataset, size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    parts = list(dataset.batches(size))
    assert all(len(images) <= size for images, _ in parts)
    return np.concatenate([i for i, _ in parts]), np.concatenate([n for _, n in parts])


def refused(folder: Path, source: DataSource, **options: object) -> str:
    """The one diagnostic that opening, checking or reading gives, in full."""
    with pytest.raises(CompileErrors) as raised:
        dataset = opened(folder, source, **options)  # type: ignore[arg-type]
        dataset.check()
        all_of(dataset)
    (diagnostic,) = raised.value.diagnostics
    return diagnostic.full()


def save(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> DataSource:
    np.savez_compressed(folder / "d.npz", images=images, labels=labels)
    return DataSource("d.npz")


def source_of(kind: str, folder: Path) -> DataSource:
    if kind == "npz":
        np.savez(folder / "d.npz", images=IMAGES, labels=LABELS)
        return DataSource("d.npz")
    if kind == "compressed":
        return save(folder)
    np.save(folder / "x.npy", IMAGES)
    np.save(folder / "y.npy", LABELS)
    if kind == "npy":
        return DataSource("x.npy", labels="y.npy")
    (folder / "mine.py").write_text(
        dedent(f"""
        import numpy as np
        def load():
            x, y = np.load({str(folder / "x.npy")!r}), np.load({str(folder / "y.npy")!r})
            for at in range(0, len(x), 7):
                yield x[at:at + 7], y[at:at + 7]
        """)
    )
    return DataSource("mine.py", entry="load")


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "callable"])
def test_every_source_gives_the_same_batches(kind: str, tmp_path: Path) -> None:
    dataset = opened(tmp_path, source_of(kind, tmp_path))
    dataset.check()
    images, labels = all_of(dataset)
    assert [images.dtype.name, labels.dtype.name] == ["float32", "int64"]
    assert images.flags.c_contiguous
    np.testing.assert_allclose(images, expected(), rtol=1e-5, atol=1e-6)
    assert labels.tolist() == LABELS.tolist()
    assert dataset.labels().tolist() == LABELS.tolist()
    assert dataset.count == (None if kind == "callable" else 60)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_slice_is_those_samples(kind: str, tmp_path: Path) -> None:
    whole = source_of(kind, tmp_path)
    source = DataSource(whole.path, labels=whole.labels, start=13, stop=41)
    images, labels = all_of(opened(tmp_path, source, "test"))
    np.testing.assert_allclose(images, expected()[13:41], rtol=1e-5, atol=1e-6)
    assert labels.tolist() == LABELS[13:41].tolist()


@pytest.mark.parametrize(
    ("stored", "layout"),
    [
        (IMAGES.transpose(0, 3, 1, 2), None),
        (IMAGES.transpose(0, 3, 1, 2), "CHW"),
        (IMAGES, "HWC"),
        ((IMAGES.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32), None),
    ],
    ids=["chw", "chw said", "hwc said", "float"],
)
def test_layouts_and_types_of_stored_images(
    stored: np.ndarray, layout: str | None, tmp_path: Path
) -> None:
    images, _ = all_of(opened(tmp_path, save(tmp_path, stored), layout=layout))
    np.testing.assert_allclose(images, expected(), rtol=1e-5, atol=1e-6)


def test_pictures_without_channels_get_one(tmp_path: Path) -> None:
    source = save(tmp_path, IMAGES[..., 0])
    grey = TensorType("float32", (1, 1, 4, 5))
    images, _ = all_of(opened(tmp_path, source, input=grey, normalize=None, pixels=(0.0, 255.0)))
    np.testing.assert_array_equal(images[:, 0], IMAGES[..., 0])


def test_pixels_are_mapped_to_their_range(tmp_path: Path) -> None:
    images, _ = all_of(opened(tmp_path, save(tmp_path), normalize=None, pixels=(-1.0, 1.0)))
    np.testing.assert_allclose(
        images, IMAGES.transpose(0, 3, 1, 2) / 127.5 - 1, rtol=1e-5, atol=1e-6
    )


def test_integers_stay_what_they_are_for_an_integer_input(tmp_path: Path) -> None:
    tokens = np.arange(60 * 6).reshape(60, 6)
    source = save(tmp_path, tokens)
    found, _ = all_of(opened(tmp_path, source, input=TensorType("int64", (1, 6)), normalize=None))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, tokens)


def test_the_digest_follows_content_and_reading(tmp_path: Path) -> None:
    def digest(source: DataSource, **options: object) -> str:
        return opened(tmp_path, source, **options).digest()  # type: ignore[arg-type]

    source = save(tmp_path)
    first = digest(source)
    assert digest(source) == first
    assert digest(DataSource("d.npz", stop=50)) != first
    assert digest(source, normalize=None) != first
    assert digest(source, pixels=(0.0, 255.0)) != first
    changed = IMAGES.copy()
    changed[7, 0, 0, 0] ^= 1
    assert digest(save(tmp_path, changed)) != first


def test_the_digest_of_a_callable_is_that_of_its_samples(tmp_path: Path) -> None:
    source = source_of("callable", tmp_path)
    first = opened(tmp_path, source).digest()
    assert opened(tmp_path, source).digest() == first
    np.save(tmp_path / "x.npy", IMAGES[::-1])
    assert opened(tmp_path, source).digest() != first


def test_a_split_that_is_not_given_is_none() -> None:
    data = DataSet("d")
    assert open_dataset(Spec(data=(data,)), data, "fit", INPUT, 3) is None


def nan_images() -> np.ndarray:
    images = np.zeros((60, 3, 4, 5), np.float32)
    images[17, 1, 2, 3] = np.nan
    return images


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES, LABELS + 1, "Expected labels from 0 to 2, found 3 in sample 2"),
        (IMAGES, LABELS.astype(np.int64) - 1, "Expected labels from 0 to 2, found -1 in sample 0"),
        (IMAGES, LABELS.astype(np.float32), "Expected labels of an integer type, found float32"),
        (IMAGES, np.eye(3, dtype=np.uint8)[LABELS], "labels of shape [60, 3] for 60 samples"),
        (IMAGES, LABELS[:50], "Found 60 samples and 50 labels"),
        (nan_images(), LABELS, "A value that is not finite in sample 17"),
        (nan_images() * 0 + np.float32(np.inf), LABELS, "not finite in sample 0"),
        (IMAGES.astype(np.int64) + 1, LABELS, "A value outside 0 to 255"),
        (IMAGES[:, :3], LABELS, "for the input float32[1, 3, 4, 5], found uint8[3, 5, 3]"),
        (IMAGES > 0, LABELS, "Expected samples of a type for float32, found bool"),
        (IMAGES[:40], LABELS[:40], "Expected at least 50 `calibrate` samples, found 40"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_samples_is_named(
    images: np.ndarray, labels: np.ndarray, said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, save(tmp_path, images, labels))


def test_too_few_samples_of_a_class_say_how_many_are_needed(tmp_path: Path) -> None:
    said = refused(tmp_path, save(tmp_path, labels=np.minimum(LABELS, 1)), split="fit")
    assert "at least 5 `fit` samples of each of 3 classes, found 0 of class 2" in said


def test_a_slice_beyond_the_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    assert "[10..90] are not all there: the file has 60" in refused(
        tmp_path, DataSource("d.npz", start=10, stop=90)
    )


def test_missing_keys_list_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=IMAGES, labels=LABELS)
    said = refused(tmp_path, DataSource("d.npz"))
    assert "No array `images` in `d.npz`, which holds `image`, `labels`" in said
    assert "did you mean `image`?" in said
    images, _ = all_of(opened(tmp_path, DataSource("d.npz"), images_key="image"))
    assert len(images) == 60


@pytest.mark.parametrize("name", ["d.npz", "x.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_unreadable_files_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    source = source_of("npz" if name == "d.npz" else "npy", tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"no array" * 40)
    assert f"Cannot read `{name}`" in refused(tmp_path, source)


def test_damage_inside_an_archive_is_found(tmp_path: Path) -> None:
    source = source_of("npz", tmp_path)
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[1000] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(data)
    assert "Bad CRC-32 for file 'images.npy'" in refused(tmp_path, source)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], object), labels=LABELS)
    assert "Python objects, which are never loaded" in refused(tmp_path, DataSource("d.npz"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def load(): raise OSError('no disk')", "`load` raised OSError: no disk"),
        ("def load(): return [1, 2]", "Expected (samples, labels) batches from `load`"),
        ("def lod(): pass", "There is no function `load`"),
        ("import no_such_module", "Cannot import `mine.py`: ModuleNotFoundError"),
        ("def load(): return 5", "`load` raised TypeError"),
    ],
)
def test_what_is_wrong_with_a_callable_is_named(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    assert said in refused(tmp_path, DataSource("mine.py", entry="load"))


def test_a_large_archive_is_read_as_a_stream(tmp_path: Path) -> None:
    """40 MB of images; a batch is 0.1 MB."""
    import tracemalloc

    images, labels = np.zeros((700_000, 4, 5, 3), np.uint8), np.zeros(700_000, int)
    np.savez_compressed(tmp_path / "d.npz", images=images, labels=labels)
    del images
    dataset = opened(tmp_path, DataSource("d.npz", start=690_000))
    tracemalloc.start()
    assert sum(len(labels) for _, labels in dataset.batches(256)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
