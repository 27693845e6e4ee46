"""`run` and `verify`: an artifact's answers to inputs, and to its own test vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.array_files import UNREADABLE
from eecompile.atomic import check_file
from eecompile.commands.printing import print_json, print_what_is_known, what_is_known
from eecompile.console import table
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.figures import hertz, joules, milliseconds, written

if TYPE_CHECKING:
    from eecompile.runtime.answers import Answer

__all__ = ["run", "verify"]


def run(options: argparse.Namespace) -> int:
    """Answer one input or a batch."""
    from eecompile.compiled import sample_shape
    from eecompile.runtime.session import load

    limits, halt = _limits(options), _halt(options)
    x = _read_input(options.input)
    for array in x.values() if isinstance(x, dict) else [x]:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"`{options.input}` holds values that are not finite"
            raise CompileErrors([Diagnostic("bad-data", message, path=str(options.input))])
    _check_state(options)
    if options.state is not None:
        check_file(options.state, may_make_folder=False)  # before anything is learned
    with load(
        *(options.artifact, options.policy, options.threads),
        endpoint=options.endpoint,
        state=options.state,
        trusted=options.trusted,
    ) as session:
        if limits is not None:
            session.set_budget(limits)
        if halt is not None:
            session.set_halt(halt)
        (_, type_), *_ = session.manifest.network.inputs
        batch = isinstance(x, np.ndarray) and _is_batch(x, sample_shape(type_), options.normalize)
        samples = [row[None] for row in x] if isinstance(x, np.ndarray) and batch else [x]
        if not samples:
            raise CompileErrors([Diagnostic("bad-data", f"`{options.input}` holds no samples")])
        call = session.full_depth if options.full_depth else session.run
        answers = [call(sample, normalize=options.normalize) for sample in samples]
        if options.state is not None:
            session.save_state(options.state)
        known = what_is_known(session)
    if options.json:
        shown = [_answer_json(answer) for answer in answers]
        print_json(options, {**({"answers": shown} if batch else shown[0]), **known})
        return 0
    _print_answers(answers)
    print_what_is_known(known)
    return 0


def _check_state(options: argparse.Namespace) -> None:
    """Nothing is learned at full depth."""
    if options.state is not None and options.full_depth:
        message = "`--state` keeps what is learned, and with `--full-depth` nothing is"
        raise CompileErrors([Diagnostic("bad-argument", message, help="give one of the two")])


def _limits(options: argparse.Namespace) -> dict[str, float] | None:
    """What `--budget` says, by quantity."""
    if options.budget is None:
        return None
    from eecompile.dsl.given import given_budget

    if options.full_depth:
        message = "`--budget` chooses when to leave, and with `--full-depth` nothing leaves early"
        raise CompileErrors([Diagnostic("bad-argument", message, help="give one of the two")])
    budget, _ = given_budget("--budget", options.budget)
    return {budget.quantity: budget.limit}


def _halt(options: argparse.Namespace) -> dict[str, float] | None:
    """What `--halt` says, by quantity."""
    if options.halt is None:
        return None
    from eecompile.dsl.given import given_halt

    if options.full_depth:
        message = "`--halt` stops samples early, and with `--full-depth` nothing leaves early"
        raise CompileErrors([Diagnostic("bad-argument", message, help="give one of the two")])
    limit, _ = given_halt("--halt", options.halt)
    return {limit.quantity: limit.limit}


def _print_answers(answers: Sequence[Answer]) -> None:
    clocked = any(answer.frequency_hz for answer in answers)
    columns = ["exit", "label", "confidence", "segments run", "latency"]
    gated = any(answer.blocks_run is not None for answer in answers)
    rows = [
        [
            _exit(answer),
            written(answer.label, str),
            written(answer.confidence, "{:.3f}".format),
            str(answer.segments_run),
            milliseconds(answer.latency_s),
        ]
        for answer in answers
    ]
    if gated:
        columns.insert(4, "blocks run")
        for answer, row in zip(answers, rows, strict=True):
            row.insert(4, written(answer.blocks_run, f"{{}} of {answer.blocks}".format))
    if clocked:
        columns += ["clock", "energy"]
        for answer, row in zip(answers, rows, strict=True):
            row += [written(answer.frequency_hz, hertz), written(answer.energy_j, joules)]
    table(columns, rows)


def _exit(answer: Answer) -> str:
    """The exit's name, and what is special about the answer."""
    why = "offloaded" if answer.offloaded else "audited" if answer.audited else ""
    why = why or "halted" * answer.halted
    return f"{answer.exit} ({why})" if why else answer.exit


def _is_batch(x: np.ndarray, one: tuple[int, ...], is_raw: bool) -> bool:
    """Whether an array holds several samples of a shape; raw ones may be without a channel.

    >>> image, batch = np.zeros((4, 4)), np.zeros((8, 4, 4))
    >>> _is_batch(batch[:, None], (1, 4, 4), False), _is_batch(batch, (1, 4, 4), True)
    (True, True)
    >>> _is_batch(image, (1, 4, 4), True), _is_batch(image[None], (1, 4, 4), True)
    (False, False)
    """
    if x.ndim > len(one):
        return len(x) != 1
    bare = [shape for shape in (one[1:], one[:-1]) if len(one) == 3 and 1 in (one[0], one[-1])]
    return is_raw and x.ndim == len(one) and x.shape[1:] in bare and len(x) != 1


def _answer_json(answer: Answer) -> dict[str, Any]:
    names = (
        *("exit", "label", "confidence", "segments_run"),
        *("latency_s", "frequency_hz", "energy_j", "offloaded", "audited", "halted"),
        *("blocks_run", "blocks"),
    )
    return {name: getattr(answer, name) for name in names}


def _read_input(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """One array of a .npy file, or the arrays of a .npz file by name."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error)
        if not reason or "pickle" in reason:  # numpy's advice would be to load it unsafely
            reason = "it holds no plain array of a .npy or .npz file"
        raise CompileErrors(
            [Diagnostic("bad-data", f"Cannot read `{path}`: {reason}", path=str(path))]
        ) from error


def verify(options: argparse.Namespace) -> int:
    """Run an artifact's test vectors; 1 if they disagree."""
    from eecompile.runtime.vectors import verify_artifact

    found = verify_artifact(options.artifact, trusted=options.trusted)
    if options.json:
        print_json(options, found.to_json())
    else:
        verdict = "ok" if found.ok else "NOT ok"
        print(
            f"{verdict}: {found.samples} test vectors, largest error {found.max_abs_error:.2g}, "
            f"exits {'agree' if found.exits_agree else 'DISAGREE'}, {len(found.files)} files whole"
        )
        if not found.plan_agrees:
            print("plan.bin does not say what manifest.json, policies.json and costs.json say")
    return 0 if found.ok else 1
