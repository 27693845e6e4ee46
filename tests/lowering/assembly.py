"""Reads the assembly that kernels become, for any machine: its innermost loops and what is in them.

LLVM prints the code, so that no disassembler is needed and nothing is linked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

from tvm import target, tirx

from eecompile.hardware import Machine
from eecompile.ir import Graph
from eecompile.targets.lowering import KernelUse, compile
from eecompile.targets.lowering.build import Phase, emit_assembly, plain_phases
from eecompile.targets.lowering.schedules import schedule
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["Instruction", "Kernel", "Loop", "innermost_loops", "kernels_of"]


@dataclass(frozen=True)
class Instruction:
    """A line of assembly, such as ``fmla`` with ``v0.4s, v1.4s, v2.s[0]``."""

    name: str
    operands: str

    @property
    def is_stack(self) -> bool:
        """Whether it reads or writes memory at the stack or frame pointer."""
        return re.search(r"\[(sp|x29)\b|\(%r[sb]p[,)]", self.operands) is not None

    @property
    def is_vector(self) -> bool:
        """Whether it reads or writes a vector register."""
        return re.search(r"%[xyz]mm\d|\b[qvds]\d", self.operands) is not None

    @property
    def is_call(self) -> bool:
        """Whether it calls a function."""
        return self.name.startswith("call") or self.name in ("bl", "blr")

    @property
    def is_copy(self) -> bool:
        """Whether it copies a vector register."""
        if self.name == "mov":
            return re.fullmatch(r"v\d+\.16b, v\d+\.16b", self.operands) is not None
        same = r"%([xyz])mm\d+, %\1mm\d+"
        return self.name.lstrip("v").startswith(("movap", "movdq")) and (
            re.fullmatch(same, self.operands) is not None
        )

    def is_product(self, lanes: int) -> bool:
        """Whether it multiplies vectors of `lanes` float32: fused with an addition, or not."""
        if self.name in ("fmla", "fmls"):
            return lanes == 4 and re.match(r"v\d+\.4s,", self.operands) is not None
        if re.fullmatch(r"vfn?m(add|sub)\d+ps|v?mulps", self.name):
            return f"%{_X86[lanes]}" in self.operands
        return False

    @property
    def destination(self) -> str:
        """The register it writes: first on ARM, last on x86 (as AT&T writes it)."""
        if self.name in ("fmla", "fmls"):
            return self.operands.split(".")[0]
        return self.operands.rsplit(",")[-1].strip()

    @property
    def is_fused(self) -> bool:
        """Whether it is a fused multiply-add of vectors."""
        return self.name in ("fmla", "fmls") or self.name.startswith("vfm")

    @property
    def is_scalar_product(self) -> bool:
        """Whether it multiplies single float32."""
        if self.name in ("fmadd", "fmul"):
            return self.operands.startswith("s")
        return re.fullmatch(r"v?mulss|vfn?madd\d+ss", self.name) is not None


#: Lanes of float32 -> registers of x86.
_X86 = {4: "xmm", 8: "ymm", 16: "zmm"}


@dataclass(frozen=True)
class Loop:
    """What is between an innermost loop's first instruction and its branch back."""

    instructions: tuple[Instruction, ...]

    def products(self, lanes: int) -> int:
        """Multiplications of whole vectors."""
        return sum(one.is_product(lanes) for one in self.instructions)

    @property
    def scalar_products(self) -> int:
        """Multiplications of single numbers."""
        return sum(one.is_scalar_product for one in self.instructions)

    @property
    def spills(self) -> list[Instruction]:
        """Reads and writes of the stack, of vectors and of addresses."""
        return [one for one in self.instructions if one.is_stack]

    @property
    def vector_spills(self) -> list[Instruction]:
        """Reads and writes of the stack, of vectors alone."""
        return [one for one in self.spills if one.is_vector]

    @property
    def calls(self) -> list[Instruction]:
        """Calls of functions."""
        return [one for one in self.instructions if one.is_call]

    @property
    def copies(self) -> list[Instruction]:
        """Vector registers copied from one to another."""
        return [one for one in self.instructions if one.is_copy]


_LABEL = re.compile(r"([.\w$]+):")
_INSTRUCTION = re.compile(r"\t([a-z][\w.]*)(?:\t(.*))?$")
_BRANCH = re.compile(r"j[a-z]+|b|b\.[a-z]+|[ct]bn?z")


def innermost_loops(text: str) -> dict[str, list[Loop]]:
    r"""The loops of each function that hold no other loop.

    >>> text = "f:\n\tmov\tx1, x2\n.L1:\n\tfmla\tv0.4s, v1.4s, v2.4s\n\tb.ne\t.L1\n\tret\n"
    >>> [[one.name for one in loop.instructions] for loop in innermost_loops(text)["f"]]
    [['fmla', 'b.ne']]
    """
    found: dict[str, list[Loop]] = {}
    body: list[Instruction] = []
    places: dict[str, int] = {}
    for line in [*text.splitlines(), "end:"]:
        if label := _LABEL.match(line):
            name = label[1]
            if not name.startswith(".L"):
                if found:
                    found[next(reversed(found))] = _innermost(body, places)
                found[name] = []
                body, places = [], {}
            places[name] = len(body)
        elif instruction := _INSTRUCTION.match(line):
            operands = re.sub(r"\s*(# |//).*", "", instruction[2] or "").strip()
            body.append(Instruction(instruction[1], operands))
    del found["end"]
    return found


def _innermost(body: Sequence[Instruction], places: Mapping[str, int]) -> list[Loop]:
    spans = set()
    for end, one in enumerate(body):
        to = one.operands.split(",")[-1].strip()
        if _BRANCH.fullmatch(one.name) and places.get(to, len(body)) <= end:
            spans.add((places[to], end))
    inner = [
        (a, b)
        for a, b in sorted(spans)
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
    ]
    return [Loop(tuple(body[a : b + 1])) for a, b in inner]


@dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled graph, what it computes, and the innermost loops of all its phases."""

    use: KernelUse
    spec: KernelSpec
    loops: tuple[Loop, ...]

    def hot(self, lanes: int) -> Loop:
        """The loop with the most multiplications."""
        return max(self.loops, key=lambda loop: loop.products(lanes))


def kernels_of(graph: Graph, machine: Machine) -> list[Kernel]:
    """The kernels a graph becomes, in order."""
    loops: dict[str, list[Loop]] = {}

    def emitted(functions: Mapping[str, tirx.PrimFunc], where: target.Target) -> list[bytes]:
        loops.update(innermost_loops(emit_assembly(functions, where)))
        return []

    specs: dict[str, KernelSpec] = {}

    def scheduled(spec: KernelSpec, where: Machine) -> Scheduled:
        latest.append(spec)
        return schedule(spec, where)

    def phases(function: tirx.PrimFunc, symbol: str, where: target.Target) -> tuple[Phase, ...]:
        specs[symbol] = latest[-1]
        return plain_phases(function, symbol, where)

    latest: list[KernelSpec] = []
    with (
        mock.patch.object(compile, "schedule", scheduled),
        mock.patch.object(compile, "plain_phases", phases),
        mock.patch.object(compile, "emit_objects", emitted),
        mock.patch.object(compile, "link", lambda *_, **__: b""),
    ):
        plain = (*graph.inputs, *graph.outputs)
        compiled = compile.compile_functions([graph], machine, plain=plain)
    return [
        Kernel(
            use,
            specs[use.symbol],
            tuple(loop for phase in use.call.phases for loop in loops[phase.symbol]),
        )
        for use in compiled.functions[0].kernels
    ]
