"""Step 6: from scheduled kernels and entry functions to an object file.

TVM's own last step wraps every function in its packed calling convention and turns buffers into
calls of its runtime. Here kernels keep plain pointers as parameters, nothing is allocated but
registers and small stack arrays, and the object needs nothing but libc and libm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType

from eecompile.hardware import Machine

__all__ = ["emit_object", "plain_kernel", "target_of"]

#: Features that code for x86-64 may use only where the machine lists them; LLVM's CPU models
#: imply more than a virtual machine may show.
_X86_OPTIONAL = [
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
]


def target_of(machine: Machine) -> tvm.target.Target:
    """TVM's target for a machine: its triple, CPU and exactly its features."""
    mcpu = machine.mcpu or str(tvm.get_global_func("target.llvm_get_system_cpu")())
    features = [f"+{name}" for name in machine.features]
    if machine.arch == "x86_64":
        features += [f"-{name}" for name in _X86_OPTIONAL if name not in machine.features]
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": machine.triple, "mcpu": mcpu, "mattr": features}
    )


def _kernel_passes() -> tvm.ir.transform.Pass:
    """From a schedule's blocks to flat loops over vectors."""
    s, x = s_tir.transform, tirx.transform
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
            x.FlattenBuffer(),
            x.NarrowDataType(32),
            s.LoopPartition(),
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


def plain_kernel(function: tirx.PrimFunc, symbol: str, target: tvm.target.Target) -> tirx.PrimFunc:
    """A scheduled kernel with a C signature: one pointer for each buffer, returning 0."""
    function = function.with_attr("target", target).with_attr("tirx.noalias", True)
    module = _kernel_passes()(tvm.IRModule({symbol: function}))
    ((_, lowered),) = module.functions.items()
    pointers, declared = [], []
    for index, buffer in enumerate(lowered.params):
        element = PrimType(str(buffer.dtype))
        pointer = tirx.Var(f"p{index}", PointerType(element))
        pointers.append(pointer)
        declared.append(tirx.DeclBuffer(buffer, data=pointer))
    body = tirx.SeqStmt([*declared, lowered.body, tirx.stmt.Return(tirx.const(0, "int32"))])
    plain = tirx.PrimFunc(pointers, body, PrimType("int32"), lowered.attrs)
    return plain.with_attr("global_symbol", symbol)


def emit_object(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> bytes:
    """Machine code of plain functions, as an object file."""
    module = tvm.IRModule(
        {symbol: function.with_attr("target", target) for symbol, function in functions.items()}
    )
    module = tirx.transform.LowerIntrin()(module)
    compiled = tvm.get_global_func("target.build.llvm")(module, target)
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        path = Path(folder) / "kernels.o"
        compiled.write_to_file(str(path), "o")
        return path.read_bytes()
