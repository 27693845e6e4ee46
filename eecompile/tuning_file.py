"""NAME.tuned.json: the schedules that measurements chose, to be kept beside NAME.ee.

The file is an input of the build like the network is: builds that read the same file give the same
code, wherever they run. It may hold several machines; each build uses the one it compiles for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eecompile.atomic import replaced_file
from eecompile.checked_json import JsonError, ObjectReader, canonical_json, parse_json
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.hardware import Machine

__all__ = [
    "TunedKernel",
    "TunedMachine",
    "Tuning",
    "read_tuning",
    "tuned_words",
    "tuning_path",
    "write_tuning",
]

_FORMAT, _VERSION = "eecompile-tuned", 1
_KEY = re.compile(r"[0-9a-f]{16}")
_CHOICE = re.compile(r"[a-z]+( [a-z_0-9]+=[0-9]{1,9})*")
#: Machines and kernels a file may hold, and its bytes.
_MACHINES, _KERNELS, _BYTES = 64, 20_000, 64 << 20
_HELP = "restore it, or delete it and build with --tune"


@dataclass(frozen=True)
class TunedKernel:
    """One kernel's choice, and how long it and the model's choice took when it was measured."""

    kernel: str
    digest: str
    choice: str
    time_us: float
    model_choice: str
    model_time_us: float


@dataclass(frozen=True)
class TunedMachine:
    """What was measured on one machine.

    Attributes:
        target: the name it was built for.
        cpu: the processor as the operating system names it.
        triple, mcpu, features, lanes, registers: what its code was generated for.
        cores: it had.
        kernels: by digest.
    """

    target: str
    cpu: str
    triple: str
    mcpu: str
    features: str
    lanes: int
    registers: int
    cores: int
    kernels: tuple[TunedKernel, ...] = ()

    @classmethod
    def of(cls, machine: Machine, cpu: str) -> TunedMachine:
        """A machine nothing has been measured on."""
        return cls(
            machine.name,
            cpu,
            machine.triple,
            machine.mcpu,
            " ".join(machine.features),
            machine.lanes,
            machine.registers,
            machine.cores,
        )

    def fits(self, other: TunedMachine) -> bool:
        """Whether what was measured there holds here.

        A target that names its CPU model is one machine wherever it was measured; one that is
        whatever machine is there is that machine.
        """
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        cpu = "" if self.mcpu else self.cpu
        return cpu, self.triple, self.mcpu, self.features, self.lanes, self.registers

    def words(self) -> str:
        """For messages."""
        return f"`{self.target}` ({self.cpu}, {self.triple}, {self.lanes} lanes)"


@dataclass(frozen=True)
class Tuning:
    """A file's contents; empty where there is no file."""

    path: Path
    machines: tuple[TunedMachine, ...] = ()

    def machine(self, wanted: TunedMachine) -> TunedMachine | None:
        """What was measured on a machine."""
        return next((found for found in self.machines if found.fits(wanted)), None)

    def choices(self, wanted: TunedMachine) -> Mapping[str, str]:
        """Kernel's digest -> its choice on a machine."""
        found = self.machine(wanted)
        return {k.digest: k.choice for k in found.kernels} if found else {}

    def with_kernels(self, wanted: TunedMachine, kernels: Iterable[TunedKernel]) -> Tuning:
        """The same with a machine's kernels replaced by these."""
        others = tuple(found for found in self.machines if not found.fits(wanted))
        ordered = tuple(sorted(kernels, key=lambda k: (k.kernel, k.digest)))
        machines = (*others, replace(wanted, kernels=ordered))
        return replace(self, machines=tuple(sorted(machines, key=lambda m: (m.target, m.cpu))))

    def foreign(self, wanted: TunedMachine) -> Diagnostic | None:
        """A warning where there are measurements, and none of them holds for a machine."""
        if not self.machines or self.machine(wanted):
            return None
        return Diagnostic(
            "stale-tuning",
            f"Nothing in it was measured on {wanted.words()}; the model chooses the kernels",
            path=str(self.path),
            notes=tuple(f"measured: {found.words()}" for found in self.machines[:3]),
            help="build with --tune on that machine; the file keeps what it has of others",
            severity="warning",
        )

    def stale(self, digests: Iterable[str], wanted: TunedMachine) -> Diagnostic | None:
        """A warning about choices that are none of their kernels' any more."""
        gone = set(digests)
        found = self.machine(wanted)
        lost = [k for k in found.kernels if k.digest in gone] if found else []
        if not lost:
            return None
        return Diagnostic(
            "stale-tuning",
            f"{len(lost)} of its choices are none that their kernels have; the model chooses those",
            path=str(self.path),
            notes=tuple(f"{k.kernel}: `{k.choice}`" for k in lost[:3]),
            help="build with --tune again",
            severity="warning",
        )

    def unused(self, digests: Iterable[str], wanted: TunedMachine) -> Diagnostic | None:
        """A warning about choices for kernels that the network does not have."""
        gone = set(digests)
        found = self.machine(wanted)
        lost = [k for k in found.kernels if k.digest in gone] if found else []
        if not lost:
            return None
        are = "entry is" if len(lost) == 1 else "entries are"
        return Diagnostic(
            "stale-tuning",
            f"{len(lost)} {are} of other networks or versions, and not used",
            path=str(self.path),
            notes=tuple(f"{k.kernel}: `{k.choice}`" for k in lost[:3]),
            help="delete the file and build with --tune to keep only what is used",
            severity="warning",
        )


def tuning_path(path: Path) -> Path:
    """The file beside a `.ee` file.

    >>> tuning_path(Path("a/resnet56.ee")).name
    'resnet56.tuned.json'
    """
    return path.with_suffix(".tuned.json")


def tuned_words(measured: int, beaten: int) -> str:
    """What came of measuring some kernels, and how often the model's choice was beaten.

    >>> tuned_words(6, 1)
    "6 kernels measured; the model's choice was beaten for 1"
    >>> tuned_words(1, 0)
    "1 kernel measured; the model's choice was not beaten"
    >>> tuned_words(0, 0)
    'no kernel was measured: the time was too short, or there was nothing to choose'
    """
    if not measured:
        return "no kernel was measured: the time was too short, or there was nothing to choose"
    kernels = "kernel" if measured == 1 else "kernels"
    won = f"beaten for {beaten}" if beaten else "not beaten"
    return f"{measured} {kernels} measured; the model's choice was {won}"


def read_tuning(path: Path) -> Tuning:
    """A file's contents; empty where there is none.

    Raises:
        CompileErrors: the file cannot be read or is not what `write_tuning` writes.
    """
    try:
        if not path.exists():
            return Tuning(path)
        if path.stat().st_size > _BYTES:
            raise JsonError(f"it has more than {_BYTES} bytes")
        return Tuning(path, _machines(ObjectReader(parse_json(path.read_bytes()), "")))
    except (OSError, JsonError) as error:
        said = str(error.strerror) if isinstance(error, OSError) else str(error)
        raise CompileErrors(
            [Diagnostic("bad-tuning", f"Cannot be used: {said}", path=str(path), help=_HELP)]
        ) from error


def write_tuning(tuning: Tuning) -> None:
    """Writes the file whole, or not at all.

    Raises:
        CompileErrors: it cannot be written.
    """
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "machines": [asdict(machine) for machine in tuning.machines],
    }
    replaced_file(tuning.path, canonical_json(value))


def _machines(top: ObjectReader) -> tuple[TunedMachine, ...]:
    if top.text("format") != _FORMAT:
        top.fail("format", f"`{_FORMAT}`")
    version = top.whole("version", 1_000_000)
    if version != _VERSION:
        raise JsonError(f"it has version {version}, this compiler reads version {_VERSION}")
    machines = tuple(map(_machine, top.objects("machines", _MACHINES)))
    top.done()
    for index, one in enumerate(machines):
        if any(one.fits(other) for other in machines[:index]):
            raise JsonError(f"`machines[{index}]` is the same machine as an earlier one")
    return machines


def _machine(given: ObjectReader) -> TunedMachine:
    texts = {name: given.text(name) for name in ("target", "cpu", "triple", "mcpu", "features")}
    kernels = tuple(map(_kernel, given.objects("kernels", _KERNELS)))
    numbers = {name: given.whole(name, 4096, 1) for name in ("lanes", "registers", "cores")}
    given.done()
    digests = [kernel.digest for kernel in kernels]
    for digest in digests:
        if digests.count(digest) > 1:
            raise JsonError(f"`{given.path('kernels')}` has the digest `{digest}` twice")
    values: dict[str, Any] = {**texts, **numbers}
    return TunedMachine(**values, kernels=kernels)


def _kernel(given: ObjectReader) -> TunedKernel:
    found = TunedKernel(
        given.text("kernel"),
        given.text("digest", _KEY),
        given.text("choice", _CHOICE),
        _time(given, "time_us"),
        given.text("model_choice", _CHOICE),
        _time(given, "model_time_us"),
    )
    given.done()
    return found


def _time(given: ObjectReader, name: str) -> float:
    value = given.number(name)
    if not value >= 0:
        given.fail(name, "a number of microseconds")
    return value
