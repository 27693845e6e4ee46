"""What an artifact says about itself, and the check that it can be followed.

`Manifest.from_json` trusts nothing: every field is there, has its type and its range, no other
field is, and the functions fit together, so that the runtime can follow a manifest without looking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eecompile.checked_json import JsonError, ObjectReader, shortened
from eecompile.compiled import (
    CompiledExit,
    CompiledGraph,
    CompiledSegment,
    CompiledStep,
    Function,
    Value,
)
from eecompile.cost import Work
from eecompile.ir import TensorType
from eecompile.segments import SHIFT

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MOST_THREADS",
    "READABLE_VERSIONS",
    "Manifest",
    "Member",
    "Normalization",
    "TargetInfo",
]

FORMAT = "eecompile artifact"
FORMAT_VERSION = 6  #: that is written
#: Versions that are read: the present one and the one before.
READABLE_VERSIONS = (FORMAT_VERSION - 1, FORMAT_VERSION)

MOST_THREADS = 1024  #: of a network; see team.c

_DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool")
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 1 << 40  #: of a tensor, a workspace or a member; far above what is meant


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the artifact. `measured`: holds measurements, which differ from build to build."""

    sha256: str
    nbytes: int
    measured: bool = False


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What the code was compiled for.

    Attributes:
        name: our target's name.
        triple: LLVM's.
        features: of the CPU, that it needs.
        cores: that share the work unless loading says otherwise; the code runs on any number.
    """

    name: str
    triple: str
    features: tuple[str, ...] = ()
    cores: int = 1

    @property
    def architecture(self) -> str:
        """First part of the triple.

        >>> TargetInfo("arm-cpu", "aarch64-linux-gnu").architecture
        'aarch64'
        """
        return self.triple.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Normalization:
    """How raw data become an input: ``(raw / scale - mean) / std``, by channel.

    One mean and std, or one of each channel. `scale` is 255 for 8-bit images, and applies to
    integers only.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything but the bulk.

    Attributes:
        version: of the eecompile that wrote it.
        target: what the machine code is for.
        network: the compiled functions and how they fit together.
        normalizations: input name -> how raw data become it, where the `.ee` file says so.
        labels: names of the classes, where given.
        policies: names of the exit policies, in the `.ee` file's order; details are in
            ``policies.json``.
        default_policy: the one used unless another is asked for; None without policies.
        fitted: the report of heads, policies and budgets fitted, as JSON.
        data: file name -> SHA-256 of the data fitted, calibrated or tested on.
        members: file name -> member; every file of the folder but the manifest and its signature.
        format_version: of the format its members are in.
    """

    version: str
    target: TargetInfo
    network: CompiledGraph
    normalizations: Mapping[str, Normalization]
    labels: tuple[str, ...] | None
    policies: tuple[str, ...]
    default_policy: str | None
    fitted: Mapping[str, Any]
    data: Mapping[str, str]
    members: Mapping[str, Member]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The JSON value `from_json` reads."""
        network = self.network
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            "eecompile_version": self.version,
            "model": network.name,
            "target": {
                "name": self.target.name,
                "triple": self.target.triple,
                "features": sorted(self.target.features),
                "cores": self.target.cores,
            },
            "inputs": [
                _value_json(value) | {"normalize": self._normalize_json(value[0])}
                for value in network.inputs
            ],
            "output": network.output,
            "classes": network.classes,
            "labels": None if self.labels is None else list(self.labels),
            "segments": [_segment_json(segment) for segment in network.segments],
            "exits": [_exit_json(exit_) for exit_ in network.exits],
            "policies": list(self.policies),
            "default_policy": self.default_policy,
            "fitted": dict(self.fitted),
            "data": dict(self.data),
            "members": {
                name: {"sha256": member.sha256, "bytes": member.nbytes, "measured": member.measured}
                for name, member in self.members.items()
            },
        }

    def _normalize_json(self, name: str) -> dict[str, Any] | None:
        found = self.normalizations.get(name)
        if found is None:
            return None
        return {"mean": list(found.mean), "std": list(found.std), "scale": found.scale}

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The manifest in a JSON value whose format and version are known to be ours.

        Raises:
            JsonError: a field is missing, unknown, of the wrong type or out of range, or the
                parts do not fit together.
        """
        top = ObjectReader(value, "")
        top.take("format")
        format_version = top.whole("format_version", FORMAT_VERSION, READABLE_VERSIONS[0])
        version = top.text("eecompile_version")
        name = top.text("model")
        inputs, normalizations = _read_inputs(top)
        target = _read_target(top.object("target"))
        output = top.text("output")
        classes = top.maybe("classes", lambda key: top.whole(key, 1 << 31, 1))
        labels = top.maybe("labels", top.texts)
        segments = tuple(_read_segment(entry) for entry in top.objects("segments"))
        exits = tuple(_read_exit(entry, i) for i, entry in enumerate(top.objects("exits")))
        policies = top.texts("policies")
        default = top.maybe("default_policy", top.text)
        fitted = top.mapping("fitted")
        data = _read_data(top)
        members = _read_members(top)
        top.done()
        network = CompiledGraph(name, inputs, output, classes, segments, exits)
        _check_network(network)
        if labels is not None and len(labels) != classes:
            raise JsonError("`labels` must have one name for each class")
        _check_unique("policies", policies)
        if default not in (policies or (None,)):
            raise JsonError("`default_policy` must be one of `policies`")
        return cls(
            version,
            target,
            network,
            normalizations,
            labels,
            policies,
            default,
            fitted,
            data,
            members,
            format_version,
        )


def _value_json(value: Value) -> dict[str, Any]:
    name, type_ = value
    return {"name": name, "dtype": type_.dtype, "shape": list(type_.shape)}


def _segment_json(segment: Function | CompiledSegment) -> dict[str, Any]:
    if isinstance(segment, Function):
        return _function_json(segment)
    return {
        "inputs": [_value_json(value) for value in segment.inputs],
        "outputs": [_value_json(value) for value in segment.outputs],
        "steps": [
            {
                "function": _function_json(step.function),
                "gate": step.gate,
                "keep": step.keep,
                "otherwise": step.otherwise,
                "channels": step.channels,
                "group_macs": step.group_macs,
            }
            for step in segment.steps
        ],
    }


def _function_json(function: Function) -> dict[str, Any]:
    return {
        "symbol": function.symbol,
        "inputs": [_value_json(value) for value in function.inputs],
        "outputs": [_value_json(value) for value in function.outputs],
        "workspace_bytes": function.workspace_bytes,
        "private_bytes": function.private_bytes,
        "threads": function.threads,
        "work": function.work.to_json(),
    }


def _exit_json(exit_: CompiledExit) -> dict[str, Any]:
    return {
        "name": exit_.name,
        "point": exit_.point,
        "head": None if exit_.head is None else _function_json(exit_.head),
        "comparator": None if exit_.comparator is None else _function_json(exit_.comparator),
    }


def _read_value(entry: ObjectReader) -> Value:
    name = entry.text("name")
    dtype = entry.text("dtype")
    if dtype not in _DTYPES:
        entry.fail("dtype", f"one of {', '.join(_DTYPES)}")
    shape = entry.items("shape", 32)
    if not all(type(extent) is int and 1 <= extent < 1 << 31 for extent in shape):
        entry.fail("shape", "a list of whole numbers from 1")
    found = TensorType(dtype, tuple(shape))
    if found.nbytes > _MAX_BYTES:
        entry.fail("shape", "that of a tensor which fits into memory")
    return name, found


def _read_values(entry: ObjectReader, key: str) -> tuple[Value, ...]:
    found = []
    for value in entry.objects(key, 10_000):
        found.append(_read_value(value))
        value.done()
    _check_unique(entry.path(key), [name for name, _ in found])
    return tuple(found)


def _read_inputs(top: ObjectReader) -> tuple[tuple[Value, ...], dict[str, Normalization]]:
    found, normalizations = [], {}
    for entry in top.objects("inputs", 10_000):
        value = _read_value(entry)
        normalize = entry.maybe("normalize", entry.object)
        if normalize is not None:
            normalizations[value[0]] = _read_normalization(normalize)
        entry.done()
        found.append(value)
    _check_unique("inputs", [name for name, _ in found])
    return tuple(found), normalizations


def _read_normalization(entry: ObjectReader) -> Normalization:
    mean, std, scale = entry.numbers("mean"), entry.numbers("std"), entry.number("scale")
    entry.done()
    if not mean or len(mean) != len(std):
        entry.fail("std", "as long as the mean")
    if not all(value > 0 for value in std):
        entry.fail("std", "above zero")
    if scale <= 0:
        entry.fail("scale", "above zero")
    return Normalization(mean, std, scale)


def _read_target(entry: ObjectReader) -> TargetInfo:
    found = TargetInfo(
        entry.text("name"),
        entry.text("triple"),
        entry.texts("features"),
        entry.whole("cores", MOST_THREADS, 1),
    )
    entry.done()
    return found


def _read_segment(entry: ObjectReader) -> Function | CompiledSegment:
    if "steps" not in entry:
        return _read_function(entry)
    found = CompiledSegment(
        _read_values(entry, "inputs"),
        _read_values(entry, "outputs"),
        tuple(_read_step(step) for step in entry.objects("steps")),
    )
    entry.done()
    if not found.steps:
        entry.fail("steps", "one at least")
    return found


def _read_step(entry: ObjectReader) -> CompiledStep:
    gate = entry.take("gate")
    if not isinstance(gate, bool):
        entry.fail("gate", "true or false")
    function = _read_function(entry.object("function"))
    keep, otherwise, channels = (entry.text(key) for key in ("keep", "otherwise", "channels"))
    group_macs = entry.whole("group_macs", 1 << 62)
    step = CompiledStep(function, gate, keep, otherwise, channels, group_macs)
    entry.done()
    return step


def _read_function(entry: ObjectReader) -> Function:
    found = Function(
        entry.text("symbol", _SYMBOL),
        _read_values(entry, "inputs"),
        _read_values(entry, "outputs"),
        entry.whole("workspace_bytes", _MAX_BYTES),
        entry.whole("private_bytes", _MAX_BYTES),
        entry.whole("threads", 1 << 30, 1),
        Work.from_json(entry.object("work")),
    )
    entry.done()
    return found


def _read_exit(entry: ObjectReader, segment: int) -> CompiledExit:
    def function(key: str) -> Function:
        return _read_function(entry.object(key))

    found = CompiledExit(
        entry.text("name"),
        entry.text("point"),
        segment,
        entry.maybe("head", function),
        entry.maybe("comparator", function),
    )
    entry.done()
    if not found.functions:
        entry.fail("head", "there where there is no `comparator`")
    return found


def _read_data(top: ObjectReader) -> dict[str, str]:
    digests = top.mapping("data")
    for name, digest in digests.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise JsonError(f"`data.{shortened(name)}` must be a SHA-256 in hexadecimal")
    return digests


def _read_members(top: ObjectReader) -> dict[str, Member]:
    members = {}
    for name in (listed := top.mapping("members")):
        # A name, not a path: a member is a file of the artifact's own folder.
        if not _MEMBER.fullmatch(name) or name == "manifest.json":
            raise JsonError(
                f"`members` names `{shortened(name)}`, which is no file name of an artifact"
            )
        entry = ObjectReader(listed[name], f"members.{name}")
        sha256, nbytes = entry.text("sha256", _SHA256), entry.whole("bytes", _MAX_BYTES)
        measured = entry.take("measured")
        if not isinstance(measured, bool):
            entry.fail("measured", "true or false")
        entry.done()
        members[name] = Member(sha256, nbytes, measured)
    return members


def _check_unique(where: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise JsonError(f"`{where}` names `{shortened(name)}` twice")
        seen.add(name)


def _check_network(network: CompiledGraph) -> None:
    """Every value a function reads has been computed, with the type it is read as."""
    if not network.segments:
        raise JsonError("`segments` must not be empty")
    if len(network.exits) != len(network.segments) - 1:
        raise JsonError("`exits` must be one fewer than `segments`")
    if network.exits and network.classes is None:
        raise JsonError("`classes` must be a number where there are exits")
    _check_unique("exits", network.exit_names)
    known: dict[str, TensorType] = dict(network.inputs)
    if network.gated:
        known[SHIFT[0]] = SHIFT[1]
    for index, segment in enumerate(network.segments):
        for step in segment.steps:
            _check_step(step, known, f"segments[{index}]")
        for name, type_ in segment.outputs:
            if known.get(name) != type_:
                raise JsonError(f"`segments[{index}]` gives no {type_} `{shortened(name)}`")
        for exit_ in network.exits[index : index + 1]:
            for function in exit_.functions:
                _check_function(function, known, f"exits[{index}]")
                _check_logits(function.outputs, network.classes, f"exits[{index}]")
    last = network.segments[-1].outputs
    if not last or last[0][0] != network.output:
        raise JsonError("`output` must be the first output of the last segment")
    if network.classes is not None:
        _check_logits(last[:1], network.classes, "output")


def _check_step(step: CompiledStep, known: dict[str, TensorType], where: str) -> None:
    """What decides about a step, and what stands in for it, is there and of the right type."""
    function = step.function
    if step.keep and known.get(step.keep) != TensorType("float32", (1, 1)):
        raise JsonError(f"`{where}` is kept by `{shortened(step.keep)}`, which is no score")
    outputs = [type_ for _, type_ in function.outputs]
    if step.otherwise and [known.get(step.otherwise)] != outputs:
        raise JsonError(f"`{where}` cannot be a copy of `{shortened(step.otherwise)}`")
    if step.channels:
        groups = dict(function.inputs).get(step.channels)
        if groups is None or groups.dtype != "float32" or groups.shape[:-1] != (1,):
            raise JsonError(f"`{where}` does not read scores `{shortened(step.channels)}`")
        if step.group_macs * groups.size > function.macs:
            raise JsonError(f"`{where}` has more MACs in its groups than in all")
    _check_function(function, known, where)


def _check_function(function: Function, known: dict[str, TensorType], where: str) -> None:
    for name, type_ in function.inputs:
        if known.get(name) != type_:
            found = f"is {known[name]} there" if name in known else "has not been computed"
            raise JsonError(f"`{where}` reads `{shortened(name)}` as {type_}, which {found}")
    for name, type_ in function.outputs:
        if name in known:
            raise JsonError(f"`{where}` computes `{shortened(name)}`, which is there already")
        known[name] = type_


def _check_logits(outputs: Sequence[Value], classes: int | None, where: str) -> None:
    if len(outputs) != 1 or outputs[0][1].dtype != "float32" or outputs[0][1].size != classes:
        raise JsonError(f"`{where}` must give {classes} float32 scores")
