"""The state of a run, kept so that a killed one is continued as if it had not been."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eecompile.atomic import replaced_file
from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["State", "read_checkpoint", "write_checkpoint"]

_FORMAT = "eecompile-training-1"


@dataclass
class State:
    """What a run has come to.

    Attributes:
        step: steps that are done.
        parameters: state-dict name -> tensor, of all that is trained, helpers included.
        optimiser: its state.
        lasting: the controller's.
        good: parameters at the last check that found nothing wrong, and what it found.
        poor_checks: checks in a row that found accuracy collapsed.
        reports: of the targets that are done: JSON values.
    """

    step: int = 0
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    lasting: float = 0.0
    good: dict[str, Any] = field(default_factory=dict)
    poor_checks: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)


def write_checkpoint(path: Path, key: dict[str, str], state: State) -> None:
    """Puts the state in the place of the file, which is the old or the new one at any moment.

    Raises:
        CompileErrors: it cannot be written.
    """
    stream = io.BytesIO()
    torch.save({"format": _FORMAT, "key": key, **vars(state)}, stream)
    replaced_file(path, stream.getvalue())


def read_checkpoint(path: Path, key: dict[str, str]) -> State | None:
    """The state in a file; None where there is no file.

    Args:
        path: the file.
        key: what the run consists of, part -> digest or value: all of it has to be the same.

    Raises:
        CompileErrors: the file is damaged, or is another run's: what differs is named.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader fail in any way
        raise _unreadable(path, error) from error
    try:
        if found["format"] != _FORMAT:
            raise ValueError(f"it is no {_FORMAT}")
        there, state = found["key"], State(**{name: found[name] for name in vars(State())})
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    differing = [name for name, value in key.items() if there.get(name) != value]
    if differing:
        raise _refused(
            path,
            "The checkpoint is of another run",
            f"it differs in {', '.join(differing)}",
        )
    return state


def _unreadable(path: Path, error: Exception) -> CompileErrors:
    what = [*str(error).splitlines(), type(error).__name__][0]
    return _refused(path, "Cannot read the checkpoint", what)


def _refused(path: Path, message: str, note: str) -> CompileErrors:
    return CompileErrors(
        [
            Diagnostic(
                "bad-checkpoint",
                message,
                notes=(note,),
                help="give --restart to begin anew, or another file with -o",
                path=str(path),
            )
        ]
    )
