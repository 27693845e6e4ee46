"""What several tests share: graphs from IR text (nobody builds them by hand), and the data."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eecompile.ir import Graph
from eecompile.passes.base import Program
from eecompile.passes.host import HostError, HostGraph, Point, Problem, collect_points, read_by
from eecompile.reference import run_graph
from eecompile.spec import Exit, HeadSpec, Model, Output
from eecompile.text import constant_digest, parse_graph, print_graph

__all__ = [
    "ROOT",
    "TextHost",
    "data_folder",
    "model_of",
    "program_of",
    "python_on_arm",
    "random_inputs",
    "shared_data",
]

ROOT = Path(__file__).resolve().parents[1]


class TextHost(HostGraph):
    """A host whose network is a neutral graph: what passes are tested on without a framework."""

    kind = "text"

    def __init__(self, text: str | Graph) -> None:
        """A host of the graph, or of the graph a text shows."""
        self._graph = parse_graph(text) if isinstance(text, str) else text
        self._outputs = {name: name for name in self._graph.outputs}

    def copy(self) -> TextHost:
        other = TextHost(self._graph)
        other._outputs = dict(self._outputs)
        return other

    def graph(self) -> Graph:
        return self._graph

    def outputs(self) -> dict[str, str]:
        return dict(self._outputs)

    def points(self) -> dict[str, Point]:
        graph = self._graph
        values = [*graph.inputs, *(out for op in graph.ops for out in op.outputs)]
        return collect_points(graph, values, {op.name: op.outputs[-1] for op in graph.ops})

    def splice(
        self,
        graph: Graph,
        feature: str | Mapping[str, str],
        prefix: str,
        weights: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        host, read = self._graph, read_by(graph, feature)
        for entry, value in read.items():
            if host.types.get(value) != graph.types[entry]:
                raise HostError(Problem("bad-feature", f"`{value}` is no value of the head's type"))
        names = {**read, **(weights or {})}

        def name(value: str) -> str:
            return names.setdefault(value, f"{prefix}.{value}") if value else ""

        ops = tuple(
            replace(
                op,
                name=f"{prefix}.{op.name}",
                inputs=tuple(map(name, op.inputs)),
                outputs=tuple(map(name, op.outputs)),
                scope=prefix,
            )
            for op in graph.ops
        )
        self._graph = replace(
            host,
            ops=host.ops + ops,
            constants={**host.constants, **{name(k): v for k, v in graph.constants.items()}},
            types={**host.types, **{name(k): v for k, v in graph.types.items()}},
        )
        return tuple(map(name, graph.outputs))

    def add_output(self, name: str, value: str) -> None:
        if value not in self._graph.types or name in self._outputs:
            raise HostError(Problem("bad-output", f"no output `{name}` of `{value}`"))
        self._outputs[name] = value
        self._graph = replace(self._graph, outputs=tuple(self._outputs.values()))

    def replace_uses(self, old: str, new: str) -> None:
        raise NotImplementedError("no pass of this suite replaces uses")

    def remove_unused(self) -> bool:
        before = self._graph
        self._graph = before.pruned()
        return len(before.ops) != len(self._graph.ops)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run_graph(self._graph, inputs)
        return {name: found[value] for name, value in self._outputs.items()}

    def save(self, path: Path) -> None:
        path.write_text(print_graph(self._graph))

    def fingerprint(self) -> str:
        content = [constant_digest(array) for array in self._graph.constants.values()]
        return hashlib.sha256(repr((print_graph(self._graph), content)).encode()).hexdigest()


def model_of(
    graph: Graph, points: Mapping[str, str], output: str = "", classes: int | None = None
) -> Model:
    """A model with an exit for each of `points` (exit -> point)."""
    exits = tuple(Exit(name, point, HeadSpec("linear")) for name, point in points.items())
    return Model(
        graph.name, "onnx", "", exits=exits, output=Output(output, classes) if output else None
    )


def program_of(
    text: str | Graph, points: Mapping[str, str], output: str = "", classes: int | None = None
) -> Program:
    """A program on a `TextHost`, with an exit for each of `points` (exit -> point)."""
    host = TextHost(text)
    return Program(host, model_of(host.graph(), points, output, classes))


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """One standard normal array for each of the graph's inputs."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(graph.types[name].shape).astype(graph.types[name].dtype)
        for name in graph.inputs
    }


def run_segments(
    graphs: Sequence[Graph], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Every value that crosses a border, by running the graphs one after the other."""
    known = dict(inputs)
    for graph in graphs:
        known.update(run_graph(graph, {name: known[name] for name in graph.inputs}))
    return known


def data_folder() -> Path:
    """Where real data sets and trained networks are, if there are any."""
    given = os.environ.get("EECOMPILE_DATA")
    return (Path(given) if given else ROOT.parent / "shared" / "data").resolve()


def shared_data(*, module: bool = False) -> Path:
    """`data_folder`; skips the test, or at its top the whole module, where there is none."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder} (set EECOMPILE_DATA)", allow_module_level=module)
    return folder


def python_on_arm(arm: Path, *arguments: object) -> str:
    """What a program prints that the aarch64 Python of the fixture `arm` runs, by its arguments."""
    done = subprocess.run(
        ["bash", str(ROOT / "tests/arm/env.sh"), "python", str(arm), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
