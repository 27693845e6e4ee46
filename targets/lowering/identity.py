"""What a kernel is called in files that outlive a build: a digest for us, a line for people."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from eecompile.targets.lowering.spec import KernelSpec

__all__ = ["described", "kernel_key"]

#: Hexadecimal digits of a key: no two of a thousand kernels share 64 bits by chance.
_DIGITS = 16


def kernel_key(spec: KernelSpec) -> str:
    """Equal for kernels that differ in the values of constants only: none is faster for those."""
    operands = tuple(o if o.number is None else replace(o, number=0) for o in spec.operands)
    text = repr(replace(spec, operands=operands))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def described(spec: KernelSpec) -> str:
    """Operators, the shapes of what the anchor reads, and that of the result.

    ``Conv+Add+Relu 1x56x56x64, 64x64x3x3 -> 1x56x56x64``
    """
    kinds = [step.kind for step in spec.steps]
    reads = [*spec.anchor.inputs[:2]]
    types = [o.type for o in spec.operands] + [step.type for step in spec.steps]
    shapes = ", ".join("x".join(map(str, types[i].shape)) for i in reads if i >= 0)
    result = "x".join(map(str, spec.result.shape))
    return f"{'+'.join(kinds)} {shapes} -> {result}"
