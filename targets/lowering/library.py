"""What lowering gives: a library, and what is known of its functions and their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eecompile.cost import Work
from eecompile.ir import TensorType
from eecompile.targets.lowering.aot import Call

__all__ = ["CompiledFunction", "CompiledLibrary", "KernelUse", "Tuned"]


@dataclass(frozen=True)
class KernelUse:
    """A kernel call of a function.

    Attributes:
        symbol: the kernel's name; uses that compute the same share it.
        operators: what it computes, the operator that its schedule is chosen by first.
        output: the value it computes, by its name in the network.
        shape: of that value in memory.
        work: what it does for one sample; each tensor's bytes are counted once.
        call: its phases and what they are called with.
    """

    symbol: str
    operators: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    work: Work
    call: Call

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.work.macs

    @property
    def nbytes(self) -> int:
        """Of the tensors it reads and writes, each counted once."""
        return self.work.value_bytes + self.work.weight_bytes


@dataclass(frozen=True)
class CompiledFunction:
    """A graph's function in the library.

    ``int32_t symbol(const int64_t *frame, int32_t thread, int32_t threads, void *team)`` with a
    frame of n and the addresses of weights, workspace, inputs and outputs processes n samples;
    tensors are dense, sample after sample; it returns 0. One thread passes 0, 1 and NULL; several
    are led by ``eecompile_team_run`` (team.c).

    Attributes:
        symbol: its name.
        inputs, outputs: value names and source types, in the order of the parameters.
        layouts: value name -> "source" or "channels-last" (second dimension moved to the end).
        workspace_bytes: what `workspace` must hold, whatever n is, and `private_bytes` more for
            each thread.
        private_bytes: see there.
        threads: more threads than this gain nothing.
        kernels: the kernel calls of one sample, in order.
    """

    symbol: str
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[tuple[str, TensorType], ...]
    layouts: Mapping[str, str]
    workspace_bytes: int
    private_bytes: int
    threads: int
    kernels: tuple[KernelUse, ...]

    @property
    def work(self) -> Work:
        """What its kernels do for one sample."""
        return sum((use.work for use in self.kernels), Work())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.work.macs


@dataclass(frozen=True)
class Tuned:
    """How many kernels were scheduled by a choice from a file, and how many by estimates.

    Kernels with nothing to choose are in neither number.

    Attributes:
        stale: keys of kernels whose choice in the file is none of theirs.
        unused: keys in the file that no kernel has.
    """

    chosen: int
    by_model: int
    stale: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompiledLibrary:
    """A shared library, the weights all its functions share, and what its functions are.

    Attributes:
        tuned: what became of the choices that were given; None where none were.
    """

    library: bytes
    weights: np.ndarray
    functions: tuple[CompiledFunction, ...]
    tuned: Tuned | None = None
