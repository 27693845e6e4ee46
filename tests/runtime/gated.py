"""The network of `gated.c`: machine code, its description, a numpy reference, an artifact."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Contents, PolicyEntry
from eecompile.compiled import (
    CompiledExit,
    CompiledGraph,
    CompiledSegment,
    CompiledStep,
    Function,
    Value,
)
from eecompile.cost import Work
from eecompile.ir import TensorType
from eecompile.policies import ThresholdPolicy, to_json
from eecompile.runtime.library import Library
from eecompile.segments import SHIFT
from tests.runtime import tiny

_SOURCE = Path(__file__).with_name("gated.c")
NAMES = ("stem", "gate_0", "double_", "head", "gate_1", "plus", "times", "end")
#: What each group that is left out takes off `times`, whose multiply-accumulates are 1,000,000.
GROUP = 300_000


@functools.cache
def machine_code() -> bytes:
    """`gated.c` with what every library has, compiled for this machine."""
    return tiny.compiled_library("gated", _SOURCE, network().functions(), tiny.WEIGHTS.nbytes)


def library() -> Library:
    return Library(machine_code(), tiny.WEIGHTS)


def calls(library: Library) -> dict[str, int]:
    """Calls by function, as the machine code itself has counted them; from now on anew."""
    counted = (ctypes.c_int64 * len(NAMES)).in_dll(library._loaded, "calls")
    found = dict(zip(NAMES, counted, strict=True))
    ctypes.memset(counted, 0, ctypes.sizeof(counted))
    return found


def _value(name: str, *shape: int) -> Value:
    return name, TensorType("float32", shape)


X, A, B, D, E = (_value(name, 1, 4) for name in "xabde")
KEEP_0, KEEP_1, STATE = (_value(name, 1, 1) for name in ("keep_0", "keep_1", "state"))
GROUPS, EARLY, LOGITS = _value("groups", 1, 2), _value("early.logits", 1, 3), _value("logits", 1, 3)


def _function(symbol: str, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> Function:
    return Function(symbol, inputs, outputs, 256, 0, 2, Work(macs=10 ** NAMES.index(symbol)))


def network() -> CompiledGraph:
    """Its description; the MACs are powers of ten, so that a sum tells what ran."""
    first = CompiledSegment(
        (X,),
        (B,),
        (
            CompiledStep(_function("stem", (X,), (A,))),
            CompiledStep(_function("gate_0", (A, SHIFT), (KEEP_0, STATE)), gate=True),
            CompiledStep(_function("double_", (A,), (B,)), keep="keep_0", otherwise="a"),
        ),
    )
    times = _function("times", (D, GROUPS), (E,))
    second = CompiledSegment(
        (B,),
        (LOGITS,),
        (
            CompiledStep(_function("gate_1", (B, STATE, SHIFT), (KEEP_1, GROUPS)), gate=True),
            CompiledStep(_function("plus", (B,), (D,)), keep="keep_1"),
            CompiledStep(times, keep="keep_1", channels="groups", group_macs=GROUP),
            CompiledStep(_function("end", (E, B), (LOGITS,))),
        ),
    )
    head = _function("head", (B,), (EARLY,))
    exits = (CompiledExit("early", "layer1", 0, head),)
    return CompiledGraph("gated", (X,), "logits", 3, (first, second), exits)


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """Half of all elements lead to scores below 0."""
    values = np.random.default_rng(seed).standard_normal((count, 4)) - 1
    return values.astype(np.float32)


def reference(
    x: np.ndarray, shift: float | None = 0.0, **keeps: np.ndarray
) -> dict[str, np.ndarray]:
    """Values, scores, MACs up to each segment's end and blocks that ran, in numpy.

    `shift` None: no gate decides; then `keeps` are scores in their place.
    """
    n, by = len(x), np.float32(shift or 0)
    one = {name: np.ones((n, size), np.float32) for name, size in _SCORES.items()} | keeps
    a = x + np.float32(1)
    gates = 0 if shift is None else 1
    keep_0 = a[:, :1] - by if gates else one["keep_0"]
    b = np.where(keep_0 > 0, 2 * a, a)
    keep_1 = a[:, :1] + b[:, 1:2] - by if gates else one["keep_1"]
    groups = b[:, 2:] - by if gates else one["groups"]
    mask = np.repeat(groups > 0, 2, axis=1) & (keep_1 > 0)
    e = np.where(mask, np.float32(5) * (b + np.float32(3)), np.float32(0))
    ran_0, ran_1 = (keep_0[:, 0] > 0).astype(int), (keep_1[:, 0] > 0).astype(int)
    first = 1 + 10 * gates + 100 * ran_0
    times = 1_000_000 - GROUP * (groups <= 0).sum(axis=1)
    second = 10_000 * gates + (100_000 + times) * ran_1 + 10_000_000
    scores = {"keep_0": keep_0, "keep_1": keep_1, "groups": groups}
    return scores | {
        "b": b,
        "early.logits": b[:, :3],
        "logits": e[:, :3] + b[:, :3],
        "macs": np.stack([first, first + second], axis=1),
        "blocks_run": ran_0 + ran_1,
    }


def shares_of(known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of each sample, as a record has it, of what `reference` gives."""
    shares = {name: (known[name] > 0).astype(np.float32) for name in ("keep_0", "keep_1")}
    inside = (known["groups"] > 0).mean(axis=1, keepdims=True) * shares["keep_1"]
    return shares | {"groups": inside.astype(np.float32)}


_SCORES = {"keep_0": 1, "keep_1": 1, "groups": 2}


def contents(policy: PolicyEntry | None = None) -> Contents:
    """What an artifact of the network is written from, with one policy."""
    x = inputs(4)
    whole = reference(x, None)
    vectors = {
        "input.x": x,
        "value.early.logits": whole["early.logits"],
        "value.logits": whole["logits"],
        "source.logits": whole["logits"],
        "exits.fast": np.zeros(4, np.int64),
    }
    fast = PolicyEntry(to_json(ThresholdPolicy("max_softmax", [0.6])))
    policies = {"fast": policy or fast}
    same: dict[str, Any] = {"network": network(), "library": machine_code(), "vectors": vectors}
    return tiny.contents(**same, policies=policies, costs=None, fitted={})
