"""Networks in C with policies of all kinds: as artifacts, and in programs of C alone."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Contents, PolicyEntry
from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledGraph, Function
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.halt_rule import HaltRule
from eecompile.ir import TensorType
from eecompile.manifest import Normalization, TargetInfo
from eecompile.native_plan import plan_bytes
from eecompile.policies import (
    ClassMeansPolicy,
    EitherPolicy,
    ExitPolicy,
    LearnedScorePolicy,
    NeverPolicy,
    PredictedPolicy,
    SplitPolicy,
    ThresholdPolicy,
    to_json,
)
from eecompile.policies.learned_score import MEASURES
from eecompile.policies.split import SplitCosts
from eecompile.policies.split_bandit import UcbOptions
from eecompile.targets.native import COMPILED, identity_of, native_folder, table_source
from eecompile.targets.native import OPTIONS as RUNTIME_OPTIONS
from tests.runtime import gated, tiny

SPLIT_COSTS = SplitCosts((0.3, 0.6, 1.0), (0.01, 0.02), 0.3)
ODD = Path(__file__).with_name("odd.c")
#: Network -> its functions in C.
SOURCES: Mapping[str, Path] = {
    "tiny": Path(tiny.__file__).with_name("tiny.c"),
    "gated": Path(gated.__file__).with_name("gated.c"),
    "odd": ODD,
}


def tiny_policies() -> dict[str, ExitPolicy]:
    """Every kind, for the two exits of the tiny network."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=3 + len(MEASURES) + 2) for _ in range(2)]
    rows[0][-2:] = rows[1][-1:] = 0  # An exit knows the scores before it.
    found: dict[str, ExitPolicy] = dict(tiny.POLICIES)
    found["margin"] = ThresholdPolicy("margin", [0.4, 0.2])
    found["means"] = ClassMeansPolicy([inf, 0.4])
    found["never"] = NeverPolicy(2)
    for forecast in ("class_order", "sorted", "fitted"):
        limits = [[1.0], None] if forecast == "fitted" else None
        found[f"predicted_{forecast}"] = PredictedPolicy(
            [2.0, 1.0], 0, 2, forecast=forecast, limits=limits
        )
    found["surprise"] = PredictedPolicy([1.5, 1.0], 0, 2, activation="probability")
    found["score"] = LearnedScorePolicy([row.tolist() for row in rows], [0.3, -0.2])
    found["split"] = SplitPolicy("max_softmax", [0.6, 0.5], [0, 1], SPLIT_COSTS, at=1)
    found["bandit"] = SplitPolicy("max_softmax", [0.6, 0.5], [0, 1], SPLIT_COSTS, UcbOptions())
    side = UcbOptions(observations="side")
    found["bandit_side"] = SplitPolicy("max_softmax", [0.6, 0.5], [0, 1], SPLIT_COSTS, side)
    found["either"] = EitherPolicy([found["patient"], found["means"], found["margin"]])
    return found


def costs(graph: CompiledGraph, *, gates: bool = False) -> CostTable:
    """At two clocks; long, so that no machine is slower. Steps differ in what they take."""

    def row(name: str, work: Work, times: float = 1.0) -> CostRow:
        energies = ((0.2 * times, 1.0 * times), (0.1 * times, 1.5 * times))
        found = (Cost(*one, "measured", "measured") for one in energies)
        return CostRow(name, work, tuple(found))

    named = graph.named_steps() if gates else ()
    steps = tuple(row(name, step.work, 1 + i / 8) for i, (name, step) in enumerate(named))
    return CostTable(
        *("host", "host", "a machine", 1),
        (DvfsState("cpu", 1e9), DvfsState("cpu", 2e9)),
        tuple(row(f"segment{i}", part.work) for i, part in enumerate(graph.segments)),
        tuple(row(exit_.name, exit_.work) for exit_ in graph.exits),
        transition_latency_s={"cpu": 1e-4},
        idle_power_w=0.1,
        steps=steps,
    )


def _entry(policy: ExitPolicy, **rules: Any) -> PolicyEntry:
    found = {name: asdict(rule) for name, rule in rules.items()}
    return PolicyEntry(to_json(policy), **found)


def _tiny() -> Contents:
    found = {name: _entry(policy) for name, policy in tiny_policies().items()}
    fast = tiny.POLICIES["fast"]
    found["halted"] = _entry(fast, halt=HaltRule(macs=0.02))
    found["halted_energy"] = _entry(fast, halt=HaltRule(energy_j=3.1))
    found["halted_late"] = _entry(fast, halt=HaltRule(latency_s=1e3))
    found["clocked"] = _entry(fast, clock=ClockRule("lowest_energy", deadline_s=1e3, safe=True))
    found["raced"] = _entry(fast, clock=ClockRule("race_to_idle"))
    found["hard"] = _entry(fast, clock=ClockRule("lowest_energy", deadline_s=0.3, hard=True))
    found["fixed"] = _entry(fast, clock=ClockRule("fixed", frequency_hz=1e9))
    return tiny.contents(policies=found, costs=costs(tiny.network()), fitted={})


def _gated() -> Contents:
    fast = ThresholdPolicy("max_softmax", [0.6])
    shifted = NeverPolicy(1, gate_shift=0.5)
    found = {
        "fast": _entry(fast),
        "shifted": _entry(shifted),
        "never": _entry(NeverPolicy(1, gate_shift=-0.5)),
        "halted": _entry(fast, halt=HaltRule(macs=0.4)),
        "halted_late": _entry(shifted, halt=HaltRule(latency_s=1e3)),
        "clocked": _entry(fast, clock=ClockRule("lowest_energy", deadline_s=1e3, safe=True)),
        "raced": _entry(shifted, clock=ClockRule("race_to_idle")),
        "hard": _entry(fast, clock=ClockRule("lowest_energy", deadline_s=1.2, hard=True)),
        "fixed": _entry(shifted, clock=ClockRule("fixed", frequency_hz=1e9)),
    }
    made = gated.contents(found["fast"])
    made = replace(made, policies=found, costs=costs(gated.network(), gates=True))
    return replace(made, plan=plan_bytes(made))


ODD_INPUTS = (
    ("image", TensorType("float32", (1, 3, 2, 2))),
    ("ids", TensorType("int64", (1, 2))),
    ("flag", TensorType("bool", (1,))),
    ("scalar", TensorType("float32", ())),
)


def odd_network() -> CompiledGraph:
    """Its description: one segment, no exits, no classes."""
    outputs = (("y", TensorType("float32", (1, 2))), ("z", TensorType("int64", (1, 2))))
    mix = Function("mix", ODD_INPUTS, outputs, 0, 0, 1, Work(macs=5))
    return CompiledGraph("odd", ODD_INPUTS, "y", None, (mix,), ())


@functools.cache
def odd_code() -> bytes:
    """`odd.c` and the native runtime, compiled for this machine."""
    return tiny.compiled_library("odd", ODD, odd_network().functions(), 0)


def _odd() -> Contents:
    made = Contents(
        version="0.1.0",
        target=TargetInfo("host", f"{platform.machine()}-linux-gnu"),
        network=odd_network(),
        library=odd_code(),
        weights=np.zeros(0, np.float32),
        vectors={},
        segments_text="segments\n",
        source_text="eecompile 1\n",
        policies={},
        default_policy=None,
        normalizations={"image": Normalization((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))},
    )
    return replace(made, plan=plan_bytes(made))


@functools.cache
def contents(name: str) -> Contents:
    """What the artifact of a network is written from."""
    return {"tiny": _tiny, "gated": _gated, "odd": _odd}[name]()


def blob(made: Contents) -> bytes:
    """The weights."""
    return made.weights if isinstance(made.weights, bytes) else made.weights.tobytes()


def write_members(folder: Path, name: str) -> Path:
    """A folder of plan and weights alone: enough for the native runtime."""
    made = contents(name)
    path = folder / name
    path.mkdir()
    (path / "plan.bin").write_bytes(made.plan)
    (path / "weights.bin").write_bytes(blob(made))
    return path


def table(name: str) -> str:
    """C code of a network's `ee_library`, equal to that of its shared library."""
    made = contents(name)
    functions, size = made.network.functions(), len(blob(made))
    identity = identity_of([SOURCES[name].read_bytes()], functions, size)
    return table_source(name, functions, identity, size)


WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")
#: Names that C's library has, too, or several networks.
_RENAMED = ("calls", "samples", "times", "end")


def programs(
    compiler: str, folder: Path, mains: Mapping[Path, Sequence[str]], options: Sequence[str]
) -> dict[str, Path]:
    """Programs, each of a file and the whole runtime with all networks; by their names.

    `mains` tells what each is linked with, `options` how all of it is compiled.
    """
    command = [compiler, *RUNTIME_OPTIONS, *WARNINGS, "-g", *options, f"-I{native_folder()}"]
    sources = [(native_folder() / name, list[str]()) for name in COMPILED]
    for name, source in SOURCES.items():
        renamed = [f"-D{word}={name}_{word}" for word in _RENAMED]
        (folder / f"table_{name}.c").write_text(table(name))
        sources += [(source, [*renamed, "-Wno-error"]), (folder / f"table_{name}.c", renamed)]
    shared = [_compile(command, folder, *one) for one in sources]
    found = {}
    for main, linked in mains.items():
        made = found[main.stem] = folder / main.stem
        objects = [_compile(command, folder, main, []), *shared]
        subprocess.run([*command, *linked, "-o", str(made), *objects, "-lm"], check=True)
    return found


def _compile(command: Sequence[str], folder: Path, source: Path, options: Sequence[str]) -> str:
    made = str(folder / f"{source.stem}.o")
    subprocess.run([*command, *options, "-c", str(source), "-o", made], check=True)
    return made
