"""Compiling graphs with a cache in front of the compiler, for the driver."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from eecompile.atomic import write_errors
from eecompile.board import Board
from eecompile.cache import Cache, digest, source_digest
from eecompile.checked_json import ObjectReader
from eecompile.compiled import Function
from eecompile.console import Reporter
from eecompile.cost import Work
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.hardware import Machine
from eecompile.ir import Graph, TensorType
from eecompile.runtime.library import Library
from eecompile.tuning_file import TunedKernel

__all__ = ["Compiled", "TunedKernels", "border_orders", "compile_graphs", "tune_graphs"]


@dataclass(frozen=True)
class TunedKernels:
    """How many kernels have a measured schedule, how many the model's, and digests of misfits.

    Attributes:
        stale: of choices that are none of their kernels'.
        unused: of choices for kernels that are not there.
    """

    chosen: int
    by_model: int
    stale: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A shared library, the weights it reads, and a function for each graph, in order.

    Attributes:
        tuned: what became of the choices for its kernels; None where none were given.
    """

    library: bytes
    weights: np.ndarray
    functions: tuple[Function, ...]
    tuned: TunedKernels | None = None

    def load(self) -> Library:
        """The library in this process; the machine it was compiled for must be this one."""
        return Library(self.library, self.weights)


def compile_graphs(
    graphs: Sequence[Graph],
    machine: Machine,
    plain: Collection[str],
    cache: Cache,
    place: Span | None = None,
    choices: Mapping[str, str] | None = None,
    board: Board | None = None,
    ir: Path | None = None,
    network: str = "network",
) -> Compiled:
    """Machine code for `graphs`, from the cache where the same were compiled before.

    Args:
        graphs: with different names; a value of one name is one tensor in all of them.
        machine: what to compile for.
        plain: values that have the source's layout where they cross a border.
        cache: of results.
        place: what the user wrote that asked for it, for messages.
        choices: kernel's digest -> its schedule, of a tuning file.
        board: whose modelled costs stand on the functions in what is written to `ir`.
        ir: file for the functions as TVM's script; they are then compiled anew.
        network: its name, which apps know the library by.

    Raises:
        CompileErrors: an operator has no compiled form; node and operator are named. Or `ir`
            cannot be written.
        ToolError: no linker.
    """
    choices = choices or {}
    # Neither the board nor the script is part of it: no byte of the code depends on them.
    parts = tuple(graphs), machine, sorted(plain), choices, network
    key = digest("library", source_digest(), *parts)

    def write(text: str) -> None:
        assert ir is not None, "not asked for otherwise"
        with write_errors(ir):
            ir.parent.mkdir(parents=True, exist_ok=True)
            ir.write_text(text, encoding="utf-8")

    def compute() -> dict[str, np.ndarray]:
        from eecompile.targets.lowering import UnsupportedOperator, compile_functions

        try:
            made = compile_functions(
                graphs,
                machine,
                plain=plain,
                choices=choices,
                board=board,
                tell_ir=None if ir is None else write,
                network=network,
            )
        except UnsupportedOperator as error:
            raise CompileErrors([_refusal(error, place)]) from error
        tuned = made.tuned and astuple(made.tuned)
        described = [_described(Function.of(function)) for function in made.functions]
        return {
            "library": np.frombuffer(made.library, np.uint8),
            "weights": np.asarray(made.weights).view(np.uint8).reshape(-1),
            "functions": np.frombuffer(json.dumps(described).encode(), np.uint8),
            "tuned": np.frombuffer(json.dumps(tuned).encode(), np.uint8),
        }

    stored = cache.arrays(key, compute) if ir is None else compute()
    functions = json.loads(stored["functions"].tobytes())
    tuned = json.loads(stored["tuned"].tobytes())
    return Compiled(
        stored["library"].tobytes(),
        stored["weights"],
        tuple(_function(value) for value in functions),
        tuned and TunedKernels(tuned[0], tuned[1], tuple(tuned[2]), tuple(tuned[3])),
    )


def border_orders(graphs: Sequence[Graph], plain: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Values that cross a border otherwise than in the source's layout, for any machine.

    By name: the source's dimension that each dimension in memory holds. Arguments as for
    `compile_graphs`.
    """
    from eecompile.targets import lowering

    return lowering.border_orders(graphs, plain)


def tune_graphs(
    graphs: Sequence[Graph],
    machine: Machine,
    plain: Collection[str],
    seconds: float,
    known: Mapping[str, str],
    progress: Reporter | None = None,
    place: Span | None = None,
) -> Iterator[TunedKernel]:
    """The best schedules of the graphs' kernels by measurements on this machine, one by one.

    Args:
        graphs: as for `compile_graphs`.
        machine: this one.
        plain: as there.
        seconds: to take.
        known: digest -> choice of kernels that are measured last, as they have been before.
        progress: told of each kernel.
        place: as there.

    Raises:
        CompileErrors, ToolError: as `compile_graphs`.
    """
    from eecompile.targets.lowering import UnsupportedOperator
    from eecompile.targets.lowering.tuning import tune

    def tell(done: int, total: int, left_s: float) -> None:
        if progress is not None:
            progress(done, total, f"{done}/{total} kernels, {left_s:.0f} s left")

    try:
        for won in tune(graphs, machine, plain, seconds, known=known, progress=tell):
            yield TunedKernel(
                won.kernel,
                won.key,
                won.choice,
                round(won.time_s * 1e6, 3),
                won.model,
                round(won.model_time_s * 1e6, 3),
            )
    except UnsupportedOperator as error:
        raise CompileErrors([_refusal(error, place)]) from error


def _refusal(error: Exception, place: Span | None) -> Diagnostic:
    op = error.op  # type: ignore[attr-defined]
    return Diagnostic(
        "unsupported-operator",
        f"Operator `{op.kind}` cannot be compiled",
        place,
        notes=(f"node `{op.name}`, operator `{op.kind}`: {error.reason}",),  # type: ignore[attr-defined]
    )


def _described(function: Function) -> dict[str, object]:
    def values(given: tuple[tuple[str, TensorType], ...]) -> list[list[object]]:
        return [[name, type_.dtype, list(type_.shape)] for name, type_ in given]

    return {
        "symbol": function.symbol,
        "inputs": values(function.inputs),
        "outputs": values(function.outputs),
        "workspace_bytes": function.workspace_bytes,
        "private_bytes": function.private_bytes,
        "threads": function.threads,
        "work": function.work.to_json(),
    }


def _function(value: dict[str, object]) -> Function:
    def values(given: object) -> tuple[tuple[str, TensorType], ...]:
        assert isinstance(given, list), "written by us"
        return tuple((name, TensorType(dtype, tuple(shape))) for name, dtype, shape in given)

    return Function(
        str(value["symbol"]),
        values(value["inputs"]),
        values(value["outputs"]),
        int(str(value["workspace_bytes"])),
        int(str(value["private_bytes"])),
        int(str(value["threads"])),
        Work.from_json(ObjectReader(value["work"], "work")),
    )
