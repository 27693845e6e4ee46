"""What is measured on what: the device, the board whose clocks are meant, and the clocks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from eecompile.artifact import Artifact
from eecompile.artifact_files import check_machine
from eecompile.benching.clocks import Wanted, extended_states
from eecompile.benching.device import Device, LocalDevice
from eecompile.board import Board, DvfsState
from eecompile.boards.file import read_board
from eecompile.boards.host import host_board
from eecompile.clocks.planning import allowed_states
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.runtime.governor import Governor, NoGovernor
from eecompile.runtime.session import Session
from eecompile.runtime.sysfs import SysFiles

__all__ = ["Plan", "board_for", "is_board", "local_device", "plan_clocks", "remote_device"]

#: Samples of data that rounds take in turn.
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Which clocks are shown, and which of them are measured.

    Attributes:
        board: with all clocks that are modelled.
        kept: those there really are: what an artifact keeps.
        shown: in the board's order; empty for the one that is found.
        measured: those that are set and measured one after the other; empty where the clock is left
            alone and whatever it is is measured.
    """

    board: Board
    kept: tuple[DvfsState, ...]
    shown: tuple[DvfsState, ...]
    measured: tuple[DvfsState, ...]


def local_device(
    artifact: Artifact, data: str | None, threads: int | None, files: SysFiles
) -> LocalDevice:
    """This machine, on the artifact's test vectors or on some of the data given.

    Raises:
        CompileErrors: the artifact does not run here, or the data do not fit it.
    """
    # The session only lends its code: clocks are set by the governor of the measurement alone.
    check_machine(artifact.path, artifact.manifest.target, artifact.library)
    session = Session(artifact, threads=threads, governor=NoGovernor())
    network = session.manifest.network
    if data is not None:
        from eecompile.evaluation import open_test_data

        images, _ = next(iter(open_test_data(session, data).batches(_SAMPLES)))
        return LocalDevice(session, {network.inputs[0][0]: images[:_SAMPLES]}, files)
    vectors = session.artifact.vectors()
    missing = [name for name, _ in network.inputs if f"input.{name}" not in vectors]
    if missing:
        message = f"`vectors.npz` has no `input.{missing[0]}`"
        raise CompileErrors([Diagnostic("bad-artifact", message, path=str(artifact.path))])
    inputs = {name: vectors[f"input.{name}"] for name, _ in network.inputs}
    return LocalDevice(session, inputs, files)


def remote_device(
    artifact: Artifact, address: str, threads: int | None, stack: ExitStack
) -> Device:
    """A board at the other end of a wire: ``HOST:PORT``, ``HOST:PORT/KEY``.

    Raises:
        CompileErrors: the address is none, or the artifact does not run there.
        ToolError: nothing answers.
    """
    from eecompile.targets.lowering.remote import RemoteDevice, read_address

    scheme, mark, rest = address.rpartition("://")
    place, _, key = rest.partition("/")
    where = read_address(f"{scheme}{mark}{place}", key)
    return stack.enter_context(RemoteDevice(artifact, where, threads=threads))


def board_for(name: str | None, artifact: Artifact, files: SysFiles) -> Board:
    """The board whose clocks are meant: the one named, or the system these files are of.

    Raises:
        CompileErrors: there is none of that name, or its file is wrong.
    """
    if name is None or name == "host":
        return host_board(files)
    return read_board(name, artifact.path.parent)


def is_board(board: Board, files: SysFiles) -> bool:
    """Whether a running system is that board, as far as can be told: its CPUs have its clocks."""
    here = host_board(files)
    if board.machine.arch != here.machine.arch:
        return False
    clocks = {
        (cpu, state.frequency_hz) for c in board.clusters for cpu in c.cpus for state in c.states
    }
    tops = {(cpu, c.states[-1].frequency_hz) for c in here.clusters for cpu in c.cpus}
    return all(clock is not None for _, clock in tops) and tops <= clocks


def plan_clocks(
    board: Board,
    governor: Governor,
    wanted: Wanted,
    *,
    measures: bool,
) -> Plan:
    """Which clocks are set and measured, and which are shown besides.

    Args:
        board: whose clocks are meant.
        governor: sets clocks; those of its states that are asked for are measured.
        wanted: those asked for.
        measures: whether there is anything to measure on.

    Raises:
        CompileErrors: a clock is none of the board's, or its clocks are not known.
    """
    if wanted == "current":
        if not measures:
            message = "`--freq current` is the clock of what is measured, and nothing is"
            raise CompileErrors([Diagnostic("bad-argument", message, help="give `--freq all`")])
        return Plan(board, board.states, (), ())
    kept = board.states
    if wanted == "all":
        asked = board.states
    elif board.name == "host" and len(board.states) == 1:
        (cluster,) = board.clusters
        states = extended_states(board.states, wanted)
        board = replace(board, clusters=(replace(cluster, states=states),))
        asked = board.states
    else:
        asked = allowed_states(board, wanted)
    if not asked:
        message = f"The clocks of `{board.name}` are not known"
        help_ = "write its board file where it runs: `eecompile targets import`"
        raise CompileErrors([Diagnostic("unknown-frequency", message, help=help_)])
    return Plan(board, kept, asked, tuple(state for state in asked if state in governor.states))
