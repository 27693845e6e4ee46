"""The artifact: a folder that holds a compiled network and everything needed to run and check it.

    manifest.json   what it is, and the SHA-256 and size of every other file
    signature.json  who has signed the manifest, where somebody has
    kernels.so      machine code: a shared library of plain C functions
    weights.bin     what they read; mapped into memory, shared between processes
    plan.bin        what the native runtime has to know of all this, see native_plan.py
    policies.json   exit policies with their fitted parameters
    costs.json      what each piece costs
    reports.json    how each policy was fitted, and what it achieved
    vectors.npz     test vectors: inputs, every exit's logits, the exits expected
    segments.txt    the segment graph as text
    model.ee        the description it was built from

One file can hold all of these, packed: NAME.eec, see `eecompile.packed_form`.

Writing is atomic and gives the same bytes for the same contents. Reading checks, in this order:
sizes, that there is a manifest, its format version, the signature where trusted keys are given,
every field of the manifest, the hash of every file, this machine. Only what has passed may be
loaded as code.

NOTE: the hashes show that an artifact is whole and unchanged. They do not show who made it: whoever
can write an artifact can write matching hashes, and its code runs with your rights. Load artifacts
from people you trust, as you would a program, or check who signed them; see native/TRUST.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact_files import (
    LIBRARY,
    MANIFEST,
    MEMBERS,
    PLAN,
    SIGNATURE,
    WEIGHTS,
    Data,
    Folder,
    Packed,
    bad_artifact,
    bad_json,
    check_machine,
    members_of,
    opened,
)
from eecompile.artifact_writing import replace_artifact
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
from eecompile.npz import NpzError, arrays_in, npz_bytes
from eecompile.signatures import Signature, SigningKey, Trusted, TrustedKeys

__all__ = [
    "MEMBERS",
    "Artifact",
    "Contents",
    "PolicyEntry",
    "check_unchanged",
    "content_digest",
    "read_artifact",
    "write_artifact",
]


#: Members that hold measurements where anything was measured.
_MEASURED = ("costs.json", "plan.bin", "reports.json")


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
        plan: what the native runtime has to know: `eecompile.native_plan.plan_bytes` of the rest.
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
    plan: bytes = b""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose every check has passed. `weights` is mapped read-only.

    `signature` is what the artifact claims, unless its `checked` says that a trusted key proves it.
    """

    path: Path
    manifest: Manifest
    library: bytes = field(repr=False)
    weights: np.ndarray = field(repr=False)
    policies: Mapping[str, PolicyEntry]
    texts: Mapping[str, bytes] = field(repr=False)
    manifest_bytes: bytes = field(repr=False)
    signature: Signature | None = None

    @property
    def files(self) -> dict[str, Data]:
        """Every file of it by name, its manifest and signature among them."""
        signature = self.signature and {SIGNATURE: self.signature.to_bytes()}
        return {
            MANIFEST: self.manifest_bytes,
            **(signature or {}),
            LIBRARY: self.library,
            WEIGHTS: self.weights.data,
            **self.texts,
        }

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
    def plan(self) -> bytes:
        """What the native runtime has to know; empty in artifacts of format 5."""
        return self.texts.get(PLAN, b"")

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
            return arrays_in(self.texts["vectors.npz"])
        except NpzError as error:
            raise bad_artifact(
                self.path, f"`vectors.npz` holds no test vectors: {error}"
            ) from error


def write_artifact(
    destination: str | Path, contents: Contents, key: SigningKey | None = None
) -> Manifest:
    """Write an artifact in the place of `destination`: an earlier artifact, or nothing yet.

    Args:
        destination: the folder, or NAME.eec for a packed artifact.
        contents: what it is written from.
        key: what to sign it with; None for an artifact that is not signed.

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
    signature = {} if key is None else {SIGNATURE: key.sign(text).to_bytes()}
    replace_artifact(Path(destination), {**files, **signature, MANIFEST: text})
    return manifest


def check_unchanged(artifact: Artifact, verb: str) -> None:
    """Refuses to put something in the place of another artifact than the one that was read.

    Raises:
        CompileErrors: another one is there now; `verb` says what is to be done again.
    """
    with opened(artifact.path) as place:
        known = MANIFEST in place.sizes() and place.read(MANIFEST) == artifact.manifest_bytes
    if not known:
        raise bad_artifact(artifact.path, f"The artifact was built anew meanwhile: {verb} it again")


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
        PLAN: contents.plan,
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
        "vectors.npz": npz_bytes(contents.vectors),
        "segments.txt": contents.segments_text.encode(),
        "model.ee": contents.source_text.encode(),
    }
    return {name: memoryview(data) for name, data in found.items()}


def read_artifact(
    path: str | Path, *, must_run: bool = True, trusted: Trusted | None = None
) -> Artifact:
    """The artifact in a folder or a packed file, every check passed; nothing of it is run.

    Args:
        path: the folder, or the packed file, whatever its name.
        must_run: whether its code has to be able to run on this machine.
        trusted: public keys, one of which must have signed it; None if anybody may have made it.

    Raises:
        CompileErrors: it is no artifact, is of another format version, is not signed by a trusted
            key where any were given, is damaged or changed (every such file is named), or is for
            another machine; or `trusted` holds no public keys.
        ToolError: there are trusted keys, and the package `cryptography` is not installed.
    """
    path = Path(path)
    keys = None if trusted is None else TrustedKeys(trusted)
    for _ in range(4):
        with opened(path) as place:
            try:
                return _read(path, place, must_run, keys)
            except CompileErrors:
                # A build may have put a new artifact here while we were reading the earlier one.
                if not place.was_replaced():
                    raise
    raise bad_artifact(path, "The artifact is being replaced all the time")


def _read(path: Path, place: Folder | Packed, must_run: bool, keys: TrustedKeys | None) -> Artifact:
    sizes = place.sizes()
    value, text = _check_magic(path, place, sizes)
    _check_version(path, value)
    signature = _check_signature(path, place, sizes, text, keys)
    with bad_json(path, MANIFEST):
        manifest = Manifest.from_json(value)
    files = _check_members(path, place, manifest, sizes)
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
    data = np.frombuffer(weights, np.uint8)
    return Artifact(path, manifest, library, data, policies, texts, text, signature)


def _check_magic(
    path: Path, place: Folder | Packed, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], bytes]:
    """The manifest's JSON value, and the bytes it was read from."""
    if MANIFEST not in sizes:
        raise bad_artifact(path, f"This {place.kind} is no artifact: it has no `{MANIFEST}`")
    text = bytes(place.read(MANIFEST))
    with bad_json(path, MANIFEST):
        value = parse_json(text)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise bad_artifact(
            path, f"This {place.kind} is no artifact: `{MANIFEST}` does not say `{FORMAT}`"
        )
    return value, text


def _check_signature(
    path: Path,
    place: Folder | Packed,
    sizes: Mapping[str, int],
    manifest: bytes,
    keys: TrustedKeys | None,
) -> Signature | None:
    """The signature, right where there are keys to check it with."""
    signature = None
    if SIGNATURE in sizes:
        with bad_json(path, SIGNATURE):
            signature = Signature.from_bytes(bytes(place.read(SIGNATURE)))
    return signature if keys is None else keys.check(path, signature, manifest)


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
    path: Path, place: Folder | Packed, manifest: Manifest, sizes: Mapping[str, int]
) -> dict[str, Data]:
    """Contents of every member, all hashes right. The bytes returned are the bytes hashed."""
    problems: list[str] = []
    files: dict[str, Data] = {}
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
                files[name] = place.read(name)
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
