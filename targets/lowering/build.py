"""Step 7: from scheduled kernels and entry functions to an object file.

TVM's own last step wraps every function in its packed calling convention and turns buffers into
calls of its runtime. Here kernels keep plain pointers as parameters, nothing is allocated but
registers and small stack arrays, and the object needs nothing but libc and libm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType

from eecompile.diagnostics import InternalError
from eecompile.hardware import Machine, usable_cores
from eecompile.targets.lowering.notes import MOST

__all__ = ["Phase", "emit_assembly", "emit_objects", "plain_phases", "target_of"]

#: Features that code may use only where the machine lists them, by architecture; LLVM's CPU models
#: imply more than a virtual machine may show.
_OPTIONAL = {
    "x86_64": [
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "movbe",
        "bmi",
        "bmi2",
        "lzcnt",
        "avx512f",
        "avx512dq",
        "avx512bw",
        "avx512vl",
        "avx512cd",
        "avx512ifma",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vnni",
        "avx512bitalg",
        "avx512vpopcntdq",
        "avx512bf16",
        "avx512fp16",
        "avxvnni",
        "gfni",
    ],
    "aarch64": ["crc", "lse", "fullfp16", "dotprod", "rdm", "i8mm", "bf16", "sve"],
}

#: LLVM's own options, by architecture. Loads that are put together to become one `ldp` arrive long
#: before they are needed and push accumulators out of their registers.
_OPTIONS = {"aarch64": ("-misched-cluster:bool=false",)}

#: Objects that kernels are divided among. Always as many, so that the library's bytes do not depend
#: on the machine that builds it.
_PARTS = 8


def target_of(machine: Machine) -> tvm.target.Target:
    """TVM's target for a machine: its triple, CPU and exactly its features."""
    mcpu = machine.mcpu or str(tvm.get_global_func("target.llvm_get_system_cpu")())
    features = [f"+{name}" for name in machine.features]
    optional = _OPTIONAL.get(machine.arch, [])
    features += [f"-{name}" for name in optional if name not in machine.features]
    options = {"cl-opt": list(_OPTIONS[machine.arch])} if machine.arch in _OPTIONS else {}
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": machine.triple, "mcpu": mcpu, "mattr": features, **options}
    )


def _opening_passes() -> tvm.ir.transform.Pass:
    """From a schedule's blocks to loops over buffers: what stands at the top is then to be seen."""
    s = s_tir.transform
    return tvm.ir.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),
        ]
    )


def _phase_passes() -> tvm.ir.transform.Pass:
    """From loops over buffers to flat loops over vectors."""
    s, x = s_tir.transform, tirx.transform
    return tvm.ir.transform.Sequential(
        [
            s.CompactBufferAllocation(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),  # Without blocks it removes loops of one iteration.
            x.FlattenBuffer(),
            x.NarrowDataType(32),
            s.LoopPartition(),
            # An expression with variables of its own may have been written into several places.
            x.ConvertSSA(),
            x.VectorizeLoop(),
            x.StorageRewrite(),
            s.HoistIfThenElse(),
            x.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            x.StmtSimplify(),
            x.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            x.CommonSubexprElim(),
        ]
    )


@dataclass(frozen=True)
class Phase:
    """A part of a kernel as a C function ``(begin, end, pointers...)``, returning 0.

    Its `units` iterations are independent: threads share them, each taking a range. A phase of
    one unit is run by one thread. All of a phase is done before the kernel's next one begins.
    """

    symbol: str
    units: int
    function: tirx.PrimFunc


def plain_phases(
    function: tirx.PrimFunc, symbol: str, target: tvm.target.Target
) -> tuple[Phase, ...]:
    """A scheduled kernel as C functions with a pointer for each buffer of the kernel.

    A top-level loop marked parallel is a phase, of one unit where it has one iteration; what stands
    between two of them is a phase of one unit. Phases are told apart before any of them is lowered:
    what lowering allocates or names inside one can then not reach another.
    """
    function = function.with_attr("target", target).with_attr("tirx.noalias", True)
    if isinstance(function.body, s_tir.SBlockRealize):
        function = _opening_passes()(tvm.IRModule({symbol: function}))[symbol]
    parts = _parts(_flat(function.body))
    if len(parts) > 1 and any(isinstance(s, tirx.AllocBuffer) for part in parts for s in part):
        raise InternalError(f"{symbol} hands memory of its own from one phase to the next")
    symbols = [f"{symbol}_{index}" if len(parts) > 1 else symbol for index in range(len(parts))]
    lowered = _phase_passes()(
        tvm.IRModule(
            {
                name: function.with_body(tirx.SeqStmt(part) if len(part) > 1 else part[0])
                for name, part in zip(symbols, parts, strict=True)
            }
        )
    )
    return tuple(
        _phase(lowered[name], _units(part), name) for name, part in zip(symbols, parts, strict=True)
    )


def _parts(statements: Sequence[tirx.Stmt]) -> list[list[tirx.Stmt]]:
    """The statements of each phase."""
    parts: list[list[tirx.Stmt]] = []
    for statement in statements:
        if not parts or _is_parallel(statement) or _is_parallel(parts[-1][0]):
            parts.append([statement])
        else:
            parts[-1].append(statement)
    return parts


def _flat(statement: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(statement, tirx.SeqStmt):
        return [inner for part in statement.seq for inner in _flat(part)]
    return [statement]


def _is_parallel(statement: tirx.Stmt) -> bool:
    return isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL


def _units(part: Sequence[tirx.Stmt]) -> int:
    return _most(part[0]) if _is_parallel(part[0]) else 1


def _most(shared: tirx.For) -> int:
    """Iterations of a loop, or where they depend on data those it was said to have at most."""
    return int(shared.annotations.get(MOST, shared.extent))


def _phase(lowered: tirx.PrimFunc, units: int, symbol: str) -> Phase:
    begin, end = (tirx.Var(name, PrimType("int32")) for name in ("begin", "end"))
    pointers, declared = [], []
    for index, buffer in enumerate(lowered.params):
        pointer = tirx.Var(f"p{index}", PointerType(PrimType(str(buffer.dtype))))
        pointers.append(pointer)
        declared.append(tirx.DeclBuffer(buffer, data=pointer))
    *before, last = _flat(lowered.body)
    if _is_parallel(last):
        if int(last.min) or _most(last) != units:
            raise InternalError(f"{symbol}: {units} units became {last.extent} from {last.min}")
        first, past = begin, end
        if MOST in last.annotations:
            # As many parts as there are units; iterations that are not needed are missing in all.
            first, past = (
                tirx.truncdiv(bound * last.extent, tirx.const(units, "int32"))
                for bound in (begin, end)
            )
        last = tirx.For(
            last.loop_var,
            first,
            past - first,
            tirx.ForKind.SERIAL,
            last.body,
            annotations=dict(last.annotations),
        )
    elif units > 1:
        raise InternalError(f"{symbol}: {units} units became {type(last).__name__}")
    done = tirx.stmt.Return(tirx.const(0, "int32"))
    body = tirx.SeqStmt([*declared, *before, last, done])
    plain = tirx.PrimFunc([begin, end, *pointers], body, PrimType("int32"), lowered.attrs)
    return Phase(symbol, units, plain.with_attr("global_symbol", symbol))


def emit_objects(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> list[bytes]:
    """Machine code of plain functions, as object files; several cores generate it."""
    # LLVM's own options belong to the process: who comes first would set and reset them for all.
    cores = 1 if "cl-opt" in target.attrs else usable_cores()
    items = list(functions.items())
    parts = [dict(items[first::_PARTS]) for first in range(min(_PARTS, len(items)))]
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(lambda part: _object(part, target), parts))


def _object(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> bytes:
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        path = Path(folder) / "kernels.o"
        _compiled(functions, target).write_to_file(str(path), "o")
        return path.read_bytes()


def emit_assembly(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> str:
    """The same code in the processor's assembly language, for people and tests."""
    return str(_compiled(functions, target).inspect_source("asm"))


def _compiled(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> Any:
    """LLVM's module of plain functions."""
    module = tvm.IRModule(
        {symbol: function.with_attr("target", target) for symbol, function in functions.items()}
    )
    module = tirx.transform.LowerIntrin()(module)
    return tvm.get_global_func("target.build.llvm")(module, target)
