"""The file of trained gates: NAME.gates.npz, kept beside NAME.ee and read by every build."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from eecompile.array_files import UNREADABLE
from eecompile.atomic import replaced_file
from eecompile.checked_json import JsonError, ObjectReader, canonical_json, parse_json
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.gates.graphs import parameter_names
from eecompile.gates.kinds import FittedGate
from eecompile.gates.plan import Gate, GatePlan

__all__ = ["GateFile", "read_gates", "write_gates"]

Array = np.ndarray[Any, Any]

_FORMAT, _VERSION = "eecompile-gates", 1
_META, _WEIGHTS = "meta", "weights."
_MOST_GATES = 100_000
_SHOWN = 4
_HELP = "train the gates again: `eecompile train FILE.ee -o NAME.gates.npz`"


@dataclass(frozen=True)
class GateFile:
    """A file's contents.

    Attributes:
        gates: name of each gate -> its kind with all options, and how many scores it has of each
            sort: ``{"kind": "recurrent", "options": {...}, "outputs": {"a.keep": 1}}``.
        parameters: the gates', float32 by name.
        weights: those of the backbone that were trained with them, by their names in the source's
            state dict; empty where only the gates were.
        trained: how: a JSON value, as training reports it.
    """

    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Mapping[str, Array] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("gates", "parameters", "weights", "trained"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @classmethod
    def of(
        cls,
        plan: GatePlan,
        parameters: Mapping[str, Array],
        weights: Mapping[str, Array] | None = None,
        trained: Mapping[str, Any] | None = None,
    ) -> GateFile:
        """The file of a plan's gates."""
        gates = {gate.name: _described(gate) for gate in plan.gates}
        return cls(gates, parameters, weights or {}, trained or {})


def _described(gate: Gate) -> dict[str, Any]:
    return {
        "kind": gate.kind.kind,
        "options": dict(gate.kind.options),
        "outputs": dict(gate.outputs),
    }


def write_gates(path: Path, file: GateFile) -> None:
    """Writes the file, whole or not at all; the same contents give the same bytes.

    Raises:
        CompileErrors: it cannot be written.
    """
    meta = {
        "format": _FORMAT,
        "version": _VERSION,
        "gates": [{"name": name, **entry} for name, entry in file.gates.items()],
        "trained": dict(file.trained),
    }
    arrays = {_META: np.frombuffer(canonical_json(meta), np.uint8)}
    arrays |= file.parameters
    arrays |= {f"{_WEIGHTS}{name}": array for name, array in file.weights.items()}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(arrays[name], order="C"), (1, 0), False)
            # A member without a date, so that equal contents are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    replaced_file(path, data.getvalue())


def read_gates(path: Path, plan: GatePlan, span: Span | None = None) -> GateFile:
    """The file's contents, checked against the gates that the network has now.

    Gates that the build fits itself need not be in it.

    Args:
        path: the file.
        plan: of the network.
        span: where the `.ee` file names it.

    Raises:
        CompileErrors: the file is missing, damaged or none of this kind; or it holds gates for
            other blocks, of other kinds, options or shapes than the network's: all that differ.
    """
    try:
        found = _read(path)
    except (_Damaged, JsonError) as error:
        where = "" if span else str(path)
        message = f"Gates file `{path}` cannot be read: {error}"
        raise CompileErrors(
            [Diagnostic("bad-gates", message, span, path=where or None, help=_HELP)]
        ) from error
    wrong = [*_differences(found, plan)]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise CompileErrors(
            [
                Diagnostic(
                    "wrong-gates",
                    f"Gates file `{path}` is of other gates than the model has",
                    span,
                    notes=(*wrong[:_SHOWN], *more),
                    help=_HELP,
                    path=None if span else str(path),
                )
            ]
        )
    return found


class _Damaged(Exception):
    """The file is no file of gates; the text says why."""


def _read(path: Path) -> GateFile:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()
            }
    except FileNotFoundError as error:
        raise _Damaged("there is no such file") from error
    except UNREADABLE as error:
        raise _Damaged(f"it is damaged, or no .npz file ({error})") from error
    meta = arrays.pop(_META, None)
    if meta is None or meta.dtype != np.uint8:
        raise _Damaged("it does not tell what it holds; `eecompile train` did not write it")
    reader = ObjectReader(parse_json(meta.tobytes()), "")
    if reader.text("format") != _FORMAT:
        raise _Damaged("it is of another format")
    version = reader.whole("version", 1 << 30)
    if version != _VERSION:
        raise _Damaged(f"it has version {version}, this compiler reads version {_VERSION}")
    gates = {}
    for entry in reader.objects("gates", _MOST_GATES):
        gates[entry.text("name")] = {
            "kind": entry.text("kind"),
            "options": entry.mapping("options"),
            "outputs": entry.mapping("outputs"),
        }
    bad = [name for name, array in arrays.items() if not _finite(array)]
    if bad:
        raise _Damaged(f"`{min(bad)}` holds what is no finite number")
    weights = {n.removeprefix(_WEIGHTS): a for n, a in arrays.items() if n.startswith(_WEIGHTS)}
    parameters = {n: a for n, a in arrays.items() if not n.startswith(_WEIGHTS)}
    return GateFile(gates, parameters, weights, reader.mapping("trained"))


def _array(data: bytes) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def _finite(array: Array) -> bool:
    return array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def _differences(file: GateFile, plan: GatePlan) -> list[str]:
    """What of the file does not fit the plan, a sentence each."""
    found = []
    known = {gate.name: gate for gate in plan.gates}
    for name in file.gates.keys() - known.keys():
        found.append(f"it holds a gate `{name}`, and the model has none there")
    found.sort()
    for name, gate in known.items():
        entry = file.gates.get(name)
        if entry is None:
            if not isinstance(gate.kind, FittedGate):
                found.append(f"it holds no gate `{name}`")
            continue
        wanted = _described(gate)
        changed = [
            f"{key} {_words(entry[key])}, the model has {_words(wanted[key])}"
            for key in wanted
            if entry[key] != wanted[key]
        ]
        if changed:
            found.append(f"its gate `{name}` has {changed[0]}")
            continue
        found += _wrong_shapes(file, gate)
    return found


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + ")"
    return f"`{value}`"


def _wrong_shapes(file: GateFile, gate: Gate) -> list[str]:
    found = []
    for name, shape in parameter_names(gate).values():
        array = file.parameters.get(name)
        if array is None:
            found.append(f"`{name}` is missing in it")
        elif array.shape != shape or array.dtype != np.float32:
            is_ = f"{array.dtype.name}{list(array.shape)}"
            found.append(f"`{name}` is {is_} in it, the model needs float32{list(shape)}")
    return found
