"""What Python writes into a plan is what C reads: every field, by its name."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import Contents, PolicyEntry
from eecompile.board import DvfsState
from eecompile.compiled import CompiledStep, Function
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.memory import lasting_values
from eecompile.native_names import library_symbol
from eecompile.native_plan import plan_bytes
from eecompile.policies import to_json
from eecompile.segments import SHIFT
from tests.native import networks
from tests.native.conftest import Compile
from tests.runtime import learning

SOURCES = ("plan.c", "reader.c", "policies.c", "policy_reading.c", "sha256.c", "errors.c")
DUMP = Path(__file__).with_name("plan_dump.c")
DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool")
OBJECTIVES = ("lowest_energy", "lowest_latency", "race_to_idle", "fixed", "unchanged")


def contents(name: str) -> Contents:
    """A network's, with another number wherever one can be."""
    made = networks.contents(name)
    policies = dict(made.policies)
    if name == "tiny":
        policies["guarded"] = replace(policies["fast"], guard={"any": 1})
        policies["asking"] = replace(policies["split"], offload={"any": 1})
        policies["foreign"] = PolicyEntry(to_json(learning.Sending(0)))
        clock = {**(policies["clocked"].clock or {}), "start": 2}
        policies["started"] = replace(policies["clocked"], clock=clock)
    target = replace(made.target, cores=3)
    made = replace(made, policies=policies, costs=costs(made), target=target)
    return replace(made, plan=plan_bytes(made))


def costs(made: Contents) -> CostTable | None:
    """Two clusters; every number is another one, and some are not known."""
    if made.costs is None:
        return None
    numbers = iter(np.random.default_rng(0).random(10_000).tolist())
    states = (DvfsState("big", 1e9), DvfsState("little", 5e8), DvfsState("little", 7e8))

    def again(rows: tuple[CostRow, ...]) -> tuple[CostRow, ...]:
        unknown = (None, Cost(next(numbers), None))
        return tuple(
            replace(row, costs=(Cost(next(numbers), next(numbers)), unknown[k % 2], Cost(0.5, 2.0)))
            for k, row in enumerate(rows)
        )

    return replace(
        made.costs,
        states=states,
        segments=again(made.costs.segments),
        exits=again(made.costs.exits),
        steps=again(made.costs.steps),
        transition_latency_s={"little": 3e-5},
        migration_latency_s=7e-4,
        idle_power_w=0.25,
        cpus={"little": (4, 5, 7)},
    )


def clean(value: Any) -> Any:
    """Without what ends each object in the dump."""
    if not isinstance(value, dict):
        return value
    return {name: clean(one) for name, one in value.items() if name}


def read_by_c(made: Contents, compiled: Compile) -> dict[str, Any]:
    name = made.network.name
    stubs = "".join(
        f"int32_t {f.symbol}(const int64_t *f, int32_t t, int32_t n, void *m)\n"
        "{ (void)f, (void)t, (void)n, (void)m; return 0; }\n"
        for f in made.network.functions()
    )
    table = networks.table(name)
    operations = "const operations_t eecompile_operations = {0};\n"
    main = DUMP.read_text().replace("LIBRARY", library_symbol(name))
    library = compiled(SOURCES, table + stubs + operations + main)
    library.dumped.restype = ctypes.c_char_p
    room = ctypes.create_string_buffer(1 << 20)
    wrong = library.dumped(
        made.plan, ctypes.c_size_t(len(made.plan)), room, ctypes.c_size_t(1 << 20)
    )
    assert wrong is None, wrong
    found: dict[str, Any] = clean(json.loads(room.value))
    return found


def call(function: Function) -> dict[str, Any]:
    return {
        "symbol": function.symbol,
        "inputs": [name for name, _ in function.inputs],
        "outputs": [name for name, _ in function.outputs],
        "macs": function.macs,
    }


def steps(made: Contents) -> dict[str, Any]:
    found: dict[str, Any] = {}
    blocks: set[str] = set()
    for index, segment in enumerate(made.network.segments):
        for step in segment.steps:
            own = found[step.function.symbol] = {
                "segment": index,
                **call(step.function),
                "gate": int(step.gate),
                "block": int(bool(step.keep) and not step.gate and step.keep not in blocks),
                **{name: getattr(step, name) or None for name in ("keep", "otherwise", "channels")},
                "output": stands_for(made, step),
                "groups": step.groups,
                "group_macs": step.group_macs,
            }
            blocks |= {step.keep} if own["block"] else set()
    return found


def stands_for(made: Contents, step: CompiledStep) -> str | None:
    """What others read of a step that is left out: what they do not share its score with."""
    network = made.network
    others = [s for part in network.segments for s in part.steps if s.keep != step.keep]
    read = {name for other in others for name in other.reads}
    read |= {name for name, _ in network.segments[-1].outputs}
    read |= {name for exit_ in network.exits for f in exit_.functions for name, _ in f.inputs}
    found = [name for name, _ in step.function.outputs if step.keep and name in read]
    return found[0] if found else None


def table(costs: CostTable | None) -> dict[str, Any]:
    if costs is None:
        return {}
    rows = [cost for row in (*costs.segments, *costs.exits, *costs.steps) for cost in row.costs]
    return {
        "costs": {
            "clusters": {
                "big": {"transition_s": None, "cpus": []},
                "little": {"transition_s": 3e-5, "cpus": [4, 5, 7]},
            },
            "states": [["big", 1e9], ["little", 5e8], ["little", 7e8]],
            "segments": len(costs.segments),
            "exits": len(costs.exits),
            "steps": len(costs.steps),
            "latency_s": [None if cost is None else cost.latency_s for cost in rows],
            "energy_j": [None if cost is None else cost.energy_j for cost in rows],
            "migration_s": 7e-4,
            "idle_power_w": 0.25,
        }
    }


def policy(entry: PolicyEntry) -> dict[str, Any]:
    known = entry.rule["kind"] != "sending"
    shift = {"gate_shift": entry.rule.get("gate_shift", 0.0)} if known else {}
    found: dict[str, Any] = {"known": int(known), **shift}
    if entry.clock is not None:
        start = entry.clock["start"]
        found["clock"] = {
            **{name: entry.clock[name] for name in ("deadline_s", "frequency_hz")},
            **{name: int(entry.clock[name]) for name in ("safe", "hard")},
            "objective": OBJECTIVES.index(entry.clock["objective"]),
            "start": -1 if start is None else start,
        }
    if entry.halt is not None:
        found["halt"] = dict(entry.halt)
    flags = {"offloads": entry.offload is not None, "guarded": entry.guard is not None}
    return found | {name: int(flag) for name, flag in flags.items()}


def values(made: Contents) -> Mapping[str, Any]:
    network = made.network
    types = dict(network.inputs)
    lasting = lasting_values(network.steps())
    functions = (*network.functions(), *(s.function for p in network.segments for s in p.steps))
    types |= {name: type_ for f in functions for name, type_ in (*f.inputs, *f.outputs)}
    types |= dict(lasting.values())
    return {
        name: {
            "dtype": DTYPES.index(type_.dtype),
            "shape": list(type_.shape),
            "lasting": int(name in lasting),
        }
        for name, type_ in types.items()
    }


@pytest.mark.parametrize("name", networks.SOURCES)
def test_every_field_is_read_as_it_was_written(name: str, compiled: Compile) -> None:
    made = contents(name)
    network, found = made.network, read_by_c(made, compiled)
    borders = {"early": ["a", "b"], "late": ["b", "c"]}
    exits = {
        exit_.name: {
            **dict(zip(("first", "second"), map(call, exit_.functions), strict=False)),
            "logits": exit_.functions[0].outputs[0][0],
            "class_means": exit_.comparator and exit_.comparator.outputs[0][0],
        }
        for exit_ in network.exits
    }
    for one, expected in borders.items() if name == "tiny" else ():
        assert found["exits"][one].pop("border") == expected
    for exit_ in found["exits"].values():
        exit_.pop("border", None)
    inputs = {}
    for one, _ in network.inputs:
        how = made.normalizations.get(one)
        inputs[one] = {
            "normalizes": int(how is not None),
            "scale": 0 if how is None else how.scale,
            "mean": [] if how is None else list(how.mean),
            "std": [] if how is None else list(how.std),
        }
    assert found == {
        "name": name,
        "weights_sha256": hashlib.sha256(networks.blob(made)).hexdigest(),
        "threads": 3,
        "values": values(made),
        "inputs": inputs,
        "output": network.output,
        "classes": network.classes or 0,
        "labels": list(made.labels or ()),
        "outputs": [one for one, _ in network.segments[-1].outputs],
        "shift": SHIFT[0] if SHIFT[0] in values(made) else None,
        "steps": steps(made),
        "exits": exits,
        **table(made.costs),
        "policies": {one: policy(entry) for one, entry in made.policies.items()},
        "default": made.default_policy,
        "macs": network.macs,
        "blocks": network.blocks,
    }
