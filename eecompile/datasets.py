"""Labelled samples: from files or a callable to batches as the network reads them.

Everything is streamed; memory holds one batch and the labels.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import numpy as np

from eecompile.array_files import ArrayFile, ArrayFileError, npz_keys, open_npy, open_npz
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics, did_you_mean_help
from eecompile.ir import TensorType
from eecompile.sample_form import BadValue, SampleForm
from eecompile.spec import DataSet, DataSource, Spec, plain

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

__all__ = ["MINIMUM", "Dataset", "Split", "open_dataset", "open_datasets"]

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array]
Split = Literal["fit", "calibrate", "test"]

#: Fewest samples a split may have: of each class for `fit` (a fifth of them chooses the heads'
#: penalty), altogether for the others (a threshold needs a tail).
MINIMUM = {"fit": 5, "calibrate": 50, "test": 1}

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, for one network input.

    Attributes:
        split: what it is for.
        source: where it was written in the `.ee` file.
        input: the type of the network's input.
        classes: labels are 0 to classes - 1.
        form: how stored samples become the input.
        files: images and labels; None for a callable.
        generate: gives (images, labels) batches; None for files.
        start, stop: the rows of the files that are used.
        identity: hash of the content as far as it is known without running a callable.
    """

    split: Split
    source: DataSource
    input: TensorType
    classes: int
    form: SampleForm
    files: tuple[ArrayFile, ArrayFile] | None
    generate: Callable[[], Iterable[Batch]] | None
    start: int
    stop: int
    identity: str

    @property
    def count(self) -> int | None:
        """Number of samples; None where only running the callable would tell."""
        return None if self.files is None else self.stop - self.start

    def batches(self, size: int = 64, content: Hash | None = None) -> Iterator[Batch]:
        """(images, labels): the input's type and shape with n in place of its leading 1, int64.

        Args:
            size: samples in a batch; a callable's batches are as it makes them.
            content: of `content()`; it is that of `digest` when all batches have been taken, and
                tells what they held even where a callable gives other samples each time.

        Raises:
            CompileErrors: a label is no class, a value is not finite, a shape is wrong, a file is
                damaged, or a callable fails or gives nothing.
        """
        done = 0
        for images, labels in self._stored(size):
            if content is not None:
                self._add(content, images, labels)
            yield self._converted(images, done), self._checked_labels(labels, len(images), done)
            done += len(images)
        if not done:
            self._refuse("too-few-samples", "Found no samples")

    def labels(self) -> Array:
        """All labels, int64 (n,).

        Raises:
            CompileErrors: as `batches`.
        """
        found, done = [], 0
        for images, labels in self._stored(4096, with_images=False):
            found.append(self._checked_labels(labels, len(images), done))
            done += len(images)
        return np.concatenate([*found, np.empty(0, np.int64)])

    def digest(self) -> str:
        """SHA-256 (hex) of the samples and of how they are read: equal for equal batches.

        A callable is run once for it.
        """
        content = self.content()
        if self.generate is not None:
            for images, labels in self._stored(0):
                self._add(content, images, labels)
        return content.hexdigest()

    def content(self) -> Hash:
        """What `batches` adds the samples to: their digest, as far as known without a callable."""
        return hashlib.sha256(self.identity.encode())

    def _add(self, content: Hash, images: Array, labels: Array) -> None:
        """Of a callable's batch; files are hashed as such."""
        if self.generate is None:
            return
        content.update(f"{images.dtype}{images.shape}{labels.dtype}".encode())
        content.update(np.ascontiguousarray(images).data)
        content.update(np.ascontiguousarray(labels).data)

    def check(self) -> None:
        """Refuses labels that are no classes, and too few samples.

        Raises:
            CompileErrors: as said; the number of samples needed is named.
        """
        labels = self.labels()
        least = MINIMUM[self.split]
        if self.split != "fit":
            if len(labels) < least:
                self._refuse(
                    "too-few-samples",
                    f"Expected at least {least} `{self.split}` samples, found {len(labels)}",
                )
            return
        counts = np.bincount(labels, minlength=self.classes)
        poor = np.flatnonzero(counts < least)
        if len(poor):
            listed = ", ".join(f"{counts[label]} of class {label}" for label in poor[:5])
            more = f" and {len(poor) - 5} more classes" if len(poor) > 5 else ""
            self._refuse(
                "too-few-samples",
                f"Expected at least {least} `fit` samples of each of {self.classes} classes, "
                f"found {listed}{more}",
            )

    def _stored(self, size: int, *, with_images: bool = True) -> Iterator[Batch]:
        """Batches as stored; without images, the labels stand for them."""
        if self.generate is not None:
            yield from self._generated(self.generate)
            return
        assert self.files is not None, "files or a callable"
        images, labels = self.files
        try:
            given = labels.blocks(self.start, self.stop, size)
            if not with_images:
                yield from ((block, block) for block in given)
                return
            yield from zip(images.blocks(self.start, self.stop, size), given, strict=True)
        except ArrayFileError as error:
            self._refuse("bad-data", f"Cannot read the samples: {error}")

    def _generated(self, generate: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
        batches = self._called(lambda: iter(generate()))
        while True:
            batch = self._called(lambda: next(batches, None))
            if batch is None:
                return
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                self._refuse(
                    "bad-data",
                    f"Expected (samples, labels) batches from `{self.source.entry}`, "
                    f"found a {type(batch).__name__}",
                )
            yield np.asarray(batch[0]), np.asarray(batch[1])

    def _called(self, function: Callable[[], Any]) -> Any:
        """Runs the user's code; what it raises is the user's to see."""
        try:
            return function()
        except Exception as error:
            self._refuse(
                "bad-data", f"`{self.source.entry}` raised {type(error).__name__}: {error}"
            )

    def _converted(self, images: Array, done: int) -> Array:
        problem = self.form.problem(images.shape[1:], images.dtype)
        if problem:
            self._refuse("bad-data", problem)
        try:
            return self.form(images)
        except BadValue as error:
            at = done + error.sample + self.start
            self._refuse("bad-data", f"{error} in sample {at}")

    def _checked_labels(self, labels: Array, count: int, done: int) -> Array:
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind not in "iu":
            self._refuse("bad-labels", f"Expected labels of an integer type, found {labels.dtype}")
        if labels.shape != (count,):
            self._refuse(
                "bad-labels",
                f"Expected one label per sample, found labels of shape {list(labels.shape)} "
                f"for {count} samples",
            )
        outside = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if len(outside):
            at = int(outside[0])
            self._refuse(
                "bad-labels",
                f"Expected labels from 0 to {self.classes - 1}, "
                f"found {labels[at]} in sample {done + at + self.start}",
            )
        return labels.astype(np.int64)

    def _refuse(self, id: str, message: str) -> NoReturn:
        raise CompileErrors([_diagnostic(id, message, self.source)])


def _diagnostic(id: str, message: str, source: DataSource, help: str = "") -> Diagnostic:
    span = source.at("path")
    return Diagnostic(
        id,
        message,
        span,
        notes=() if span is None else (f"in `{source.path}`",),
        help=help,
        path=None if span else source.path,
    )


def open_datasets(
    spec: Spec,
    data: DataSet,
    input_type: TensorType,
    classes: int,
    limits: tuple[int, int] | None = None,
) -> dict[Split, Dataset]:
    """All splits that the `.ee` file gives, their labels checked; arguments as of `open_dataset`.

    Raises:
        CompileErrors: everything that is wrong with them.
    """
    found: dict[Split, Dataset] = {}
    problems = Diagnostics()
    for split in get_args(Split):
        try:
            opened = open_dataset(spec, data, split, input_type, classes, limits)
            if opened is not None:
                opened.check()
                found[split] = opened
        except CompileErrors as errors:
            problems.add(*errors.diagnostics)
    problems.raise_errors()
    return found


def open_dataset(
    spec: Spec,
    data: DataSet,
    split: Split,
    input_type: TensorType,
    classes: int,
    limits: tuple[int, int] | None = None,
) -> Dataset | None:
    """The samples of one split; None where the `.ee` file gives none.

    Headers are read and compared with the input; a callable is imported but not run. What batches
    hold is within `limits`, where they are given.

    Raises:
        CompileErrors: everything that is wrong with the files, at once.
    """
    source: DataSource | None = getattr(data, split)
    if source is None:
        return None
    form = SampleForm.of(input_type, data, limits)
    identity = repr((plain(data.normalize), data.layout, data.pixels, str(input_type)))
    if source.entry is not None:
        generate = _callable(spec, source)
        return Dataset(split, source, input_type, classes, form, None, generate, 0, 0, identity)
    files = _files(spec, data, source)
    images, labels = files
    found = Diagnostics()
    if not images.shape or not labels.shape:
        found.add(
            _diagnostic("bad-data", "Expected arrays of samples, found a single number", source)
        )
        found.raise_errors()
    problem = form.problem(images.shape[1:], images.dtype)
    if problem:
        advice = form.advice(images.shape[1:], images.dtype)
        found.add(_diagnostic("bad-data", problem, source, advice))
    if images.shape[0] != labels.shape[0]:
        message = f"Found {images.shape[0]} samples and {labels.shape[0]} labels"
        found.add(_diagnostic("bad-data", message, source))
    start, stop, _ = slice(source.start, source.stop).indices(images.shape[0])
    asked = (source.stop or 0, source.start or 0)
    if start >= stop or max(asked) > images.shape[0]:
        given = f"{source.start if source.start is not None else ''}..{source.stop or ''}"
        message = f"The samples [{given}] are not all there: the file has {images.shape[0]}"
        found.add(_diagnostic("too-few-samples", message, source))
    found.raise_errors()
    identity += f"{start}:{stop}:{images.key}:{labels.key}"
    identity += "".join(_file_digest(path) for path in dict.fromkeys((images.path, labels.path)))
    return Dataset(split, source, input_type, classes, form, files, None, start, stop, identity)


def _files(spec: Spec, data: DataSet, source: DataSource) -> tuple[ArrayFile, ArrayFile]:
    path = spec.resolve(source.path)
    try:
        if source.labels is not None:
            return open_npy(path), open_npy(spec.resolve(source.labels))
        keys = npz_keys(path)
        missing = [key for key in (data.images_key, data.labels_key) if key not in keys]
        if missing:
            raise CompileErrors([_missing_key(key, keys, source) for key in missing])
        return open_npz(path, data.images_key), open_npz(path, data.labels_key)
    except ArrayFileError as error:
        message = f"Cannot read `{source.path}`: {error}"
        raise CompileErrors([_diagnostic("bad-data", message, source)]) from error


def _missing_key(key: str, keys: list[str], source: DataSource) -> Diagnostic:
    there = ", ".join(f"`{name}`" for name in keys) or "nothing"
    help_ = did_you_mean_help(key, keys) or 'name them: `keys images "..." labels "..."`'
    message = f"No array `{key}` in `{source.path}`, which holds {there}"
    return _diagnostic("bad-data", message, source, help_)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _callable(spec: Spec, source: DataSource) -> Callable[[], Iterable[Batch]]:
    """The user's function, imported from a file or a module."""
    entry = str(source.entry)
    try:
        if source.path.endswith(".py"):
            found = importlib.util.spec_from_file_location(
                f"_eecompile_data_{Path(source.path).stem}", spec.resolve(source.path)
            )
            assert found is not None and found.loader is not None, "a .py file has a loader"
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(source.path)
    except Exception as error:
        message = f"Cannot import `{source.path}`: {type(error).__name__}: {error}"
        raise CompileErrors([_diagnostic("bad-data", message, source)]) from error
    function = getattr(module, entry, None)
    if not callable(function):
        message = f"There is no function `{entry}` in `{source.path}`"
        help_ = did_you_mean_help(entry, [name for name in vars(module) if name[:1] != "_"])
        raise CompileErrors([_diagnostic("bad-data", message, source, help_)])
    result: Callable[[], Iterable[Batch]] = function
    return result
