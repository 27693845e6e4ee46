"""What a session has learned, as a file that fits one policy of one artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eecompile.atomic import replaced_file
from eecompile.checked_json import JsonError, ObjectReader, canonical_json, parse_json, shortened
from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["LearnedState", "bad_state", "read_state", "write_state"]

_FORMAT = "eecompile-state"
_VERSION = 1
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class LearnedState:
    """What is kept between runs.

    Attributes:
        artifact: its `eecompile.artifact.content_digest`.
        policy: name of the policy; None for one of the caller's.
        memory: of the policy, see `ExitPolicy.memory`.
        guard: of the guard, see `Guard.memory`; None where nothing is watched.
    """

    artifact: str
    policy: str | None
    memory: Mapping[str, Any]
    guard: Mapping[str, Any] | None


def bad_state(path: str | Path, message: str) -> CompileErrors:
    """The exception for a state that cannot be gone on from."""
    return CompileErrors(
        [
            Diagnostic(
                "bad-state",
                message,
                path=str(path),
                notes=("what was learned so far is untouched",),
                help="remove the file to start afresh, or give the one this policy wrote",
            )
        ]
    )


def write_state(path: str | Path, state: LearnedState) -> None:
    """Write a state, in the place of an earlier one or not at all.

    Raises:
        CompileErrors: it cannot be written.
    """
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "artifact": state.artifact,
        "policy": state.policy,
        "memory": dict(state.memory),
        "guard": None if state.guard is None else dict(state.guard),
    }
    replaced_file(Path(path), canonical_json(value))


def read_state(path: str | Path) -> LearnedState:
    """The state in a file.

    Raises:
        CompileErrors: it cannot be read, or is none.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise bad_state(path, f"Cannot read `{path}`: {reason[:1].lower()}{reason[1:]}") from error
    try:
        if len(data) > _MOST_BYTES:
            raise JsonError("it is too large")
        reader = ObjectReader(parse_json(data), "")
        if reader.take("format") != _FORMAT:
            raise JsonError(f"`format` must be {_FORMAT}")
        version = reader.take("version")
        if version != _VERSION:
            raise JsonError(f"it is of version {shortened(version)}, this reads {_VERSION}")
        found = LearnedState(
            reader.text("artifact"),
            reader.maybe("policy", reader.text),
            reader.mapping("memory"),
            reader.maybe("guard", reader.mapping),
        )
        reader.done()
        return found
    except JsonError as error:
        raise bad_state(path, f"`{path}` holds no state of a session: {error}") from error
