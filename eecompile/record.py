"""What one pass over the data records, so that everything later works on arrays instead of the net.

A record belongs to one split by its type: heads are fitted on a `FitRecord`, thresholds and
temperatures on a `CalibrateRecord`, and results are reported on a `TestRecord`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, TypeVar

import numpy as np

from eecompile.diagnostics import InternalError
from eecompile.policies import ExitOutputs

__all__ = ["CalibrateRecord", "FitRecord", "Record", "TestRecord", "record"]

Array = np.ndarray[Any, Any]
R = TypeVar("R", bound="Record")

_INDEX = "record.json"
_GROUPS = ("recorded", "logits", "class_means", "shares", "whole")


@dataclass(frozen=True)
class Record:
    """Per sample: the label, the network's answer, and what is known at each exit.

    Attributes:
        exits: names of the exits, in order.
        labels: int64 (n,).
        final: logits of the network's end, float32 (n, classes); where it has gates, with what
            they left out.
        recorded: name -> the features some head wants, (n, ...); may be memory-mapped.
        logits: exit -> its trained head's logits, float32 (n, classes).
        class_means: exit -> its comparator's output, float32 (n, classes).
        shares: gate's score -> share of what it decides on that was kept, float32 (n, 1).
        whole: one entry, ``logits``: those of the network with nothing left out, where gates may
            leave something out.
    """

    split: ClassVar[str] = ""

    exits: tuple[str, ...]
    labels: Array
    final: Array
    recorded: Mapping[str, Array] = field(default_factory=dict)
    logits: Mapping[str, Array] = field(default_factory=dict)
    class_means: Mapping[str, Array] = field(default_factory=dict)
    shares: Mapping[str, Array] = field(default_factory=dict)
    whole: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def as_built(self) -> Array:
        """Logits of the network with all decisions off, float32 (n, classes)."""
        return self.whole.get("logits", self.final)

    @property
    def right_as_built(self) -> Array:
        """Whether the network is right with all decisions off, bool (n,): what drops refer to."""
        return np.asarray(self.as_built.argmax(axis=1) == self.labels)

    def rows(self, samples: Array) -> Self:
        """The record of some of the samples, features left out."""

        def of(arrays: Mapping[str, Array]) -> dict[str, Array]:
            return {name: array[samples] for name, array in arrays.items()}

        return replace(
            self,
            labels=self.labels[samples],
            final=self.final[samples],
            recorded={},
            logits=of(self.logits),
            class_means=of(self.class_means),
            shares=of(self.shares),
            whole=of(self.whole),
        )

    def outputs(self) -> list[ExitOutputs]:
        """Each exit's outputs as policies see them.

        Raises:
            KeyError: an exit has neither logits nor class means yet.
        """
        return [
            ExitOutputs(
                self.logits[name] if name in self.logits else self.class_means[name],
                self.class_means.get(name),
            )
            for name in self.exits
        ]

    def with_outputs(
        self,
        logits: Mapping[str, Array] | None = None,
        class_means: Mapping[str, Array] | None = None,
    ) -> Self:
        """The record with what fitted heads and comparators give for its samples added."""
        return replace(
            self,
            logits={**self.logits, **(logits or {})},
            class_means={**self.class_means, **(class_means or {})},
        )

    def at(self, exits: Sequence[str]) -> Self:
        """The record of a network that has only these of the exits, features left out."""
        return replace(
            self,
            exits=tuple(exits),
            recorded={},
            logits={name: seen for name, seen in self.logits.items() if name in exits},
            class_means={name: seen for name, seen in self.class_means.items() if name in exits},
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A record that `record` wrote to `folder`, its features memory-mapped.

        Raises:
            FileNotFoundError: there is none, or it is not complete.
            TypeError: it is of another split.
            ValueError: it is damaged: some array is not the one that was recorded.
        """
        index = json.loads((folder / _INDEX).read_text())
        if index["split"] != cls.split:
            raise TypeError(f"{folder} holds a {index['split']} record, not a {cls.split} record")
        groups: dict[str, dict[str, Array]] = {group: {} for group in _GROUPS}
        for number, (group, name) in enumerate(index["arrays"]):
            groups[group][name] = np.load(folder / f"{number}.npy", mmap_mode="r")
        labels, final = np.load(folder / "labels.npy"), np.load(folder / "final.npy")
        arrays = [array for group in groups.values() for array in group.values()]
        if [_content(array) for array in (labels, final, *arrays)] != index["content"]:
            raise ValueError(f"{folder} is damaged")
        return cls(tuple(index["exits"]), labels, final, **groups)


class FitRecord(Record):
    """What heads are fitted on."""

    split = "fit"


class CalibrateRecord(Record):
    """What thresholds, budgets and temperatures are fitted on."""

    split = "calibrate"


class TestRecord(Record):
    """What results are reported on; nothing is fitted on it."""

    __test__ = False  # No test case, whatever pytest makes of the name.
    split = "test"


def record(
    kind: type[R],
    run_batch: Callable[[Array], Mapping[str, Array]],
    batches: Iterable[tuple[Array, Array]],
    *,
    output: str,
    exits: Sequence[str] = (),
    recorded: Sequence[str] = (),
    logits: Mapping[str, str] | None = None,
    class_means: Mapping[str, str] | None = None,
    shares: Sequence[str] = (),
    whole: Mapping[str, str] | None = None,
    folder: Path | None = None,
    named: Callable[[], str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> R:
    """Runs the network over the data once and keeps what is named.

    Memory holds one batch and, per sample, label and logits; features go to files as they come.
    A failure or an interrupt leaves no files.

    Args:
        kind: the split, as a type.
        run_batch: images float32 (b, ...) -> arrays by name, each (b, ...).
        batches: (images, labels) pairs.
        output: name of the network's logits in what `run_batch` gives.
        exits: names of the exits, in order.
        recorded: names of the features to keep.
        logits: exit -> name of its logits, where `run_batch` gives them (a user's own head).
        class_means: the same for comparators.
        shares: names of gates' scores whose shares kept `run_batch` gives.
        whole: ``logits`` -> name of the logits with nothing left out.
        folder: where to keep the record; it then replaces what is there. None keeps all in memory.
        named: asked when all is recorded: the name of the folder, in place of that of `folder`.
        progress: told the number of samples done after each batch.

    Raises:
        InternalError: `run_batch` did not give what it is asked for.
    """
    wanted = [("recorded", name, name) for name in recorded]
    wanted += [("logits", name, source) for name, source in (logits or {}).items()]
    wanted += [("class_means", name, source) for name, source in (class_means or {}).items()]
    wanted += [("shares", name, name) for name in shares]
    wanted += [("whole", name, source) for name, source in (whole or {}).items()]
    with _Writers(folder, len(wanted)) as writers:
        labels: list[Array] = []
        final: list[Array] = []
        done = 0
        for images, batch_labels in batches:
            given = run_batch(images)
            final.append(_float_rows(given, output, len(images)))
            labels.append(np.asarray(batch_labels, np.int64))
            for number, (_, _, source) in enumerate(wanted):
                writers.write(number, _float_rows(given, source, len(images)))
            done += len(images)
            if progress is not None:
                progress(done)
        if not done:
            raise InternalError("a record was asked for of no samples")
        groups: dict[str, dict[str, Array]] = {group: {} for group in _GROUPS}
        made = kind(tuple(exits), np.concatenate(labels), np.concatenate(final), **groups)
        index = {
            "split": kind.split,
            "exits": list(exits),
            "arrays": [(group, name) for group, name, _ in wanted],
        }
        arrays = writers.finish(made, index, named)
        for (group, name, _), array in zip(wanted, arrays, strict=True):
            groups[group][name] = array
    return made


def _content(array: Array) -> str:
    return f"{array.shape} {hashlib.sha256(array.data).hexdigest()}"


def _float_rows(given: Mapping[str, Array], name: str, count: int) -> Array:
    array = given.get(name)
    if array is None or len(array) != count:
        found = "nothing" if array is None else f"shape {array.shape}"
        raise InternalError(f"running {count} samples gave {found} for `{name}`")
    return np.ascontiguousarray(array, np.float32)


class _Writers:
    """Arrays that grow by batches: .npy files beside the final folder, or lists in memory."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self.folder = folder
        self._chunks: list[list[Array]] = [[] for _ in range(count)]
        self._shapes: list[tuple[int, ...]] = [(0,)] * count
        self._hashes = [hashlib.sha256() for _ in range(count)]
        self._files: list[BinaryIO] = []
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        if self.folder is not None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=".record-", dir=self.folder.parent))
            paths = (self._temporary / f"{number}.npy" for number in range(len(self._chunks)))
            self._files = [path.open("wb") for path in paths]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, number: int, rows: Array) -> None:
        """Append rows to one array."""
        count, *shape = self._shapes[number]
        if count and tuple(shape) != rows.shape[1:]:
            raise InternalError(f"rows of {rows.shape[1:]} after rows of {tuple(shape)}")
        self._shapes[number] = (count + len(rows), *rows.shape[1:])
        if not self._files:
            self._chunks[number].append(rows)
            return
        if not count:
            self._write_header(number)
        self._hashes[number].update(rows.data)
        self._files[number].write(rows.data)

    def _write_header(self, number: int) -> None:
        """Numpy leaves room in a header for the first extent to grow: it can be written twice."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shapes[number]}
        np.lib.format.write_array_header_1_0(self._files[number], header)

    def finish(
        self, made: Record, index: Mapping[str, Any], named: Callable[[], str] | None
    ) -> list[Array]:
        """The arrays; where there is a folder it is complete from now on."""
        if self.folder is None or self._temporary is None:
            return [np.concatenate(chunks) for chunks in self._chunks]
        for number, file in enumerate(self._files):
            file.seek(0)
            self._write_header(number)
            file.close()
        np.save(self._temporary / "labels.npy", made.labels)
        np.save(self._temporary / "final.npy", made.final)
        content = [_content(made.labels), _content(made.final)]
        content += [
            f"{shape} {hash_.hexdigest()}"
            for shape, hash_ in zip(self._shapes, self._hashes, strict=True)
        ]
        (self._temporary / _INDEX).write_text(json.dumps({**index, "content": content}))
        # Mapped before they are moved: another build may write the same record at any time.
        paths = [self._temporary / f"{number}.npy" for number in range(len(self._files))]
        arrays = [np.load(path, mmap_mode="r") for path in paths]
        folder = self.folder.with_name(named()) if named else self.folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self._temporary.rename(folder)
            self._temporary = None
        except OSError as error:  # another build was faster: its record is the same
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return arrays
