"""From neutral graphs to a shared library of plain C functions, through TVM.

The only package that imports TVM. What it makes needs neither TVM nor Python.

Steps, in the order in which `compile` takes them; each is a module, and its docstring shows
before -> after: `fuse_gelu`, `simplify`, `fuse_norms` (fewer operators) -> `layout` (channels last)
-> `keeping` (channels that gates leave out) -> `placing` (values that are views of others) ->
`group`, `expansions`, `prologues` (operators of one kernel) -> `spec` (what a kernel computes,
without names: equal ones are emitted once) -> `schedules` (its loops) -> `strides` (operands inside
larger buffers) -> `plan` (the workspace) and `weights` -> `aot` (a function for each graph) ->
`build` (objects) -> `link`, with the native runtime (`targets.native`).

Functions: ``int32_t symbol(const int64_t *frame, int32_t thread, int32_t threads, void *team)``.
The frame holds n, then the addresses of weights, workspace, inputs and outputs; n samples follow
each other in memory (`library.CompiledFunction`). All threads of a team make the same call.

Kernels: one C function ``(begin, end, pointers...)`` for each phase. A phase is a top-level loop
that a schedule marks parallel; its iterations are units, and each thread takes a range of them.
Behind a phase that several threads share all wait for each other. `build.plain_phases` tells phases
apart before it lowers them.

A new schedule is a module in `schedules` with ``family(spec, machine, ...) -> Scheduled``, named in
`schedules.schedule`, and in `schedules.choices` where there is something to choose. It keeps to:

- units are independent, write disjoint bytes, and give the same bits however they are shared;
- what one phase hands to the next is a `Scratch` argument, what a unit needs for itself is
  registers or `PerThread`; nothing else is allocated;
- every shape is right: what fills no tile or vector is computed in smaller ones;
- what follows the anchor is computed by its own definition (`emit.Kernel.write`);
- an element of an operand like the result is read before the result's at its place is written;
- sizes come from `Machine` and costs from a measurement that is named, never from a network;
- its docstring shows the loops before -> after.
"""

from __future__ import annotations

from eecompile.targets.lowering.compile import border_orders, compile_functions
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.library import (
    CompiledFunction,
    CompiledLibrary,
    KernelUse,
    Tuned,
)
from eecompile.targets.lowering.link import Linker, find_linkers

__all__ = [
    "CompiledFunction",
    "CompiledLibrary",
    "KernelUse",
    "Linker",
    "Tuned",
    "UnsupportedOperator",
    "border_orders",
    "compile_functions",
    "find_linkers",
]
