"""The artifact: a folder that holds a compiled network and everything needed to run and check it.

    manifest.json   what it is, and the SHA-256 and size of every other file
    kernels.so      machine code: a shared library of plain C functions
    weights.bin     what they read; mapped into memory, shared between processes
    policies.json   exit policies with their fitted parameters
    costs.json      what each piece costs
    reports.json    how each policy was fitted, and what it achieved
    vectors.npz     test vectors: inputs, every exit's logits, the exits expected
    segments.txt    the segment graph as text
    model.ee        the description it was built from

Writing is atomic and gives the same bytes for the same contents. Reading checks, in this order:
sizes, that there is a manifest, its format version, every field of it, the hash of every file, this
machine. Only what has passed may be loaded as code.

NOTE: the hashes show that an artifact is whole and unchanged. They do not show who made it: whoever
can write an artifact can write matching hashes, and its code runs with your rights. Load artifacts
from people you trust, as you would a program.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact_files import (
    LIBRARY,
    LIMITS,
    MANIFEST,
    MEMBERS,
    SIGNATURE,
    WEIGHTS,
    bad_artifact,
    bad_json,
    check_machine,
    file_sizes,
    members_of,
    opened,
    read_file,
    was_replaced,
)
from eecompile.atomic import check_replaceable, replaced_directory, write_file
from eecompile.checked_json import (
    JsonError,
    ObjectReader,
    canonical_json,
    parse_json,
    shortened,
)
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic, InternalError
from eecompile.manifest import (
    FORMAT,
    READABLE_VERSIONS,
    Manifest,
    Member,
    Normalization,
    TargetInfo,
)

__all__ = [
    "MEMBERS",
    "Artifact",
    "Contents",
    "PolicyEntry",
    "check_destination",
    "content_digest",
    "read_artifact",
    "refusal_to_replace",
    "write_artifact",
]


#: Members that hold measurements where anything was measured.
_MEASURED = ("costs.json", "reports.json")


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """An exit policy as stored.

    Attributes:
        rule: the JSON of `eecompile.policies.to_json`.
        report: how it was fitted, and what it achieved.
        clock: the JSON of `eecompile.clock_rule.ClockRule`; None where it leaves the clock alone.
        offload: the JSON of `eecompile.offload_rule.OffloadRule`; None where all is computed here.
        guard: the JSON of `eecompile.guard_rule.GuardRule`; None where nothing is watched.
        halt: the JSON of `eecompile.halt_rule.HaltRule`; None where single samples are not limited.
    """

    rule: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    clock: Mapping[str, Any] | None = None
    offload: Mapping[str, Any] | None = None
    guard: Mapping[str, Any] | None = None
    halt: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Contents:
    """What an artifact is written from; fields as in `Manifest` where they have one name.

    Attributes:
        library: bytes of the shared library.
        weights: the blob its functions read.
        policies: in the `.ee` file's order.
        costs: what its pieces cost, None where nothing is known.
        measured: whether `costs` and the policies' reports hold measurements.
        vectors: arrays by name; see `eecompile.runtime.vectors`.
        segments_text, source_text: the segment graph's text, the `.ee` file's.
    """

    version: str
    target: TargetInfo
    network: CompiledGraph
    library: bytes
    weights: bytes | np.ndarray
    vectors: Mapping[str, np.ndarray]
    segments_text: str
    source_text: str
    policies: Mapping[str, PolicyEntry] = field(default_factory=dict)
    default_policy: str | None = None
    costs: CostTable | None = None
    measured: bool = False
    normalizations: Mapping[str, Normalization] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """An artifact whose every check has passed. `weights` is mapped read-only."""

    path: Path
    manifest: Manifest
    library: bytes = field(repr=False)
    weights: np.ndarray = field(repr=False)
    policies: Mapping[str, PolicyEntry]
    texts: Mapping[str, bytes] = field(repr=False)

    @property
    def costs(self) -> CostTable | None:
        """What the network's pieces cost; None where nothing is known.

        Raises:
            CompileErrors: ``costs.json`` holds no cost table, or one of another network.
        """
        with bad_json(self.path, "costs.json"):
            value = parse_json(self.texts["costs.json"])
            table = None if value is None else CostTable.from_json(value)
            network = self.manifest.network
            names = network.exit_names[:-1]
            if table is not None and tuple(row.name for row in table.exits) != names:
                raise JsonError(f"`exits` must be the network's: {shortened(list(names))}")
            return table

    @property
    def segments_text(self) -> str:
        """The segment graph as text."""
        return self.texts["segments.txt"].decode(errors="replace")

    @property
    def source_text(self) -> str:
        """The `.ee` file it was built from."""
        return self.texts["model.ee"].decode(errors="replace")

    def vectors(self) -> dict[str, np.ndarray]:
        """The test vectors by name.

        Raises:
            CompileErrors: they are no plain arrays.
        """
        try:
            with np.load(io.BytesIO(self.texts["vectors.npz"]), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (
            *(ValueError, OSError, EOFError, MemoryError, RuntimeError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise bad_artifact(
                self.path, f"`vectors.npz` holds no test vectors: {error}"
            ) from error


def write_artifact(destination: str | Path, contents: Contents) -> Manifest:
    """Write an artifact in the place of `destination`: an earlier artifact, or nothing yet.

    Raises:
        CompileErrors: other things are in the way, or they cannot be written; whatever was there
            before is untouched.
    """
    files = _files(contents)
    members = {
        name: Member(
            hashlib.sha256(data).hexdigest(),
            len(data),
            measured=name in _MEASURED and contents.measured,
        )
        for name, data in files.items()
    }
    manifest = Manifest(
        version=contents.version,
        target=contents.target,
        network=contents.network,
        normalizations=contents.normalizations,
        labels=contents.labels,
        policies=tuple(contents.policies),
        default_policy=contents.default_policy,
        fitted=contents.fitted,
        data=contents.data,
        members=members,
    )
    text = canonical_json(manifest.to_json())
    try:
        Manifest.from_json(parse_json(text))
    except JsonError as error:
        raise InternalError(f"the manifest would not be readable: {error}") from error
    with replaced_directory(Path(destination), refusal_to_replace) as folder:
        for name, data in files.items():
            write_file(folder / name, data)
        write_file(folder / MANIFEST, text)
    return manifest


def check_destination(destination: str | Path) -> None:
    """Refuses a place where no artifact may be written, before anything is computed for it.

    Raises:
        CompileErrors: other things are in the way, or nothing can be written there.
    """
    check_replaceable(Path(destination), refusal_to_replace)


def content_digest(manifest: Manifest) -> str:
    """SHA-256 of all but what was measured: the same build twice has the same."""
    value = manifest.to_json()
    value["members"] = {k: v for k, v in value["members"].items() if not v["measured"]}
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _files(contents: Contents) -> dict[str, memoryview]:
    weights = np.frombuffer(contents.weights, np.uint8).data
    found: dict[str, bytes | memoryview] = {
        LIBRARY: contents.library,
        WEIGHTS: weights,
        "policies.json": canonical_json(
            {
                name: {
                    "rule": dict(policy.rule),
                    "clock": policy.clock and dict(policy.clock),
                    "offload": policy.offload and dict(policy.offload),
                    "guard": policy.guard and dict(policy.guard),
                    "halt": policy.halt and dict(policy.halt),
                }
                for name, policy in contents.policies.items()
            }
        ),
        "costs.json": canonical_json(contents.costs and contents.costs.to_json()),
        "reports.json": canonical_json(
            {name: dict(policy.report) for name, policy in contents.policies.items()}
        ),
        "vectors.npz": _npz(contents.vectors),
        "segments.txt": contents.segments_text.encode(),
        "model.ee": contents.source_text.encode(),
    }
    return {name: memoryview(data) for name, data in found.items()}


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A .npz with the same bytes for the same arrays: no times, one order, no compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asanyarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return buffer.getvalue()


def refusal_to_replace(folder: Path) -> str:
    """Why a folder may not be replaced by an artifact, empty where it is one and nothing else."""
    try:
        with open(folder / MANIFEST, "rb") as file:
            value = parse_json(file.read(LIMITS[MANIFEST]))
        ours = value["format"] == FORMAT
        others = {path.name for path in folder.iterdir()} - {MANIFEST, *value["members"]}
    except (OSError, JsonError, TypeError, KeyError):
        return "is a folder with other things in it"
    if not ours:
        return "is a folder with other things in it"
    names = ", ".join(map(shortened, sorted(others)))
    return f"is an artifact with other files in it: {names}" if others else ""


def read_artifact(path: str | Path, *, must_run: bool = True) -> Artifact:
    """The artifact in a folder, every check passed; nothing of it is run.

    Args:
        path: the folder.
        must_run: whether its code has to be able to run on this machine.

    Raises:
        CompileErrors: it is no artifact, is of another format version, is damaged or changed
            (every such file is named), or is for another machine.
    """
    path = Path(path)
    for _ in range(4):
        with opened(path) as folder:
            try:
                return _read(path, folder, must_run)
            except CompileErrors:
                # A build may have put a new artifact here while we were reading the earlier one.
                if not was_replaced(path, folder):
                    raise
    raise bad_artifact(path, "The artifact is being replaced all the time")


def _read(path: Path, folder: int, must_run: bool) -> Artifact:
    sizes = file_sizes(path, folder)
    value = _check_magic(path, folder, sizes)
    _check_version(path, value)
    with bad_json(path, MANIFEST):
        manifest = Manifest.from_json(value)
    files = _check_members(path, folder, manifest, sizes)
    if must_run:
        check_machine(path, manifest.target, files[LIBRARY])
    library, weights = bytes(files.pop(LIBRARY)), files.pop(WEIGHTS)
    texts = {name: bytes(data) for name, data in files.items()}
    written = _by_policy(path, "policies.json", texts, manifest)
    reports = _by_policy(path, "reports.json", texts, manifest)
    with bad_json(path, "policies.json"):
        policies = {
            name: _policy_entry(name, written[name], reports[name]) for name in manifest.policies
        }
    return Artifact(path, manifest, library, np.frombuffer(weights, np.uint8), policies, texts)


def _check_magic(path: Path, folder: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    if MANIFEST not in sizes:
        raise bad_artifact(path, f"This folder is no artifact: it has no `{MANIFEST}`")
    with bad_json(path, MANIFEST):
        value = parse_json(bytes(read_file(path, folder, MANIFEST)))
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise bad_artifact(
            path, f"This folder is no artifact: `{MANIFEST}` does not say `{FORMAT}`"
        )
    return value


def _check_version(path: Path, value: Mapping[str, Any]) -> None:
    found = value.get("format_version")
    if type(found) is not int:
        raise bad_artifact(
            path, "`manifest.json` cannot be used: `format_version` must be a whole number"
        )
    if found not in READABLE_VERSIONS:
        supported = " and ".join(map(str, READABLE_VERSIONS))
        raise CompileErrors(
            [
                Diagnostic(
                    "wrong-artifact-version",
                    f"Artifact version mismatch: runtime supports {supported},"
                    f" artifact has {str(found)[:20]}",
                    path=str(path),
                    help="build it again with this version of eecompile"
                    if found < READABLE_VERSIONS[0]
                    else "update eecompile, or build it again with this version",
                )
            ]
        )


def _check_members(
    path: Path, folder: int, manifest: Manifest, sizes: Mapping[str, int]
) -> dict[str, mmap.mmap | bytes]:
    """Contents of every member, all hashes right. The bytes returned are the bytes hashed."""
    problems: list[str] = []
    files: dict[str, mmap.mmap | bytes] = {}
    listed, members = manifest.members, members_of(manifest.format_version)
    for name in sorted({*members, *listed}):
        if name not in members:
            problems.append(f"`{name}` is no file of this format")
        elif name not in listed:
            problems.append(f"`{name}` is not in the manifest")
        elif name not in sizes:
            problems.append(f"`{name}` is missing")
        elif sizes[name] != listed[name].nbytes:
            problems.append(f"`{name}` has {sizes[name]} bytes, not {listed[name].nbytes}")
        else:
            try:
                files[name] = read_file(path, folder, name)
            except CompileErrors as error:
                problems += [diagnostic.message for diagnostic in error.diagnostics]
                continue
            if hashlib.sha256(files[name]).hexdigest() != listed[name].sha256:
                problems.append(f"`{name}` has been changed: its SHA-256 is not the manifest's")
    unlisted = sorted(set(sizes) - {MANIFEST, SIGNATURE, *listed, *members})
    problems += [f"`{shortened(name)}` does not belong to the artifact" for name in unlisted]
    if problems:
        raise bad_artifact(path, *problems)
    return files


def _policy_entry(name: str, value: Mapping[str, Any], report: Mapping[str, Any]) -> PolicyEntry:
    reader = ObjectReader(dict(value), name)
    rule = reader.mapping("rule")
    clock, offload, guard, halt = (
        reader.maybe(key, reader.mapping) for key in ("clock", "offload", "guard", "halt")
    )
    reader.done()
    return PolicyEntry(rule, report, clock, offload, guard, halt)


def _by_policy(
    path: Path, file: str, texts: Mapping[str, bytes], manifest: Manifest
) -> dict[str, dict[str, Any]]:
    """A file's objects by policy: one for each policy of the manifest."""
    with bad_json(path, file):
        top = ObjectReader(parse_json(texts[file]), "")
        found = {name: top.mapping(name) for name in manifest.policies}
        top.done()
    return found
