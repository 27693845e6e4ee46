"""Policies that offload and learn, and a server in the test's own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eecompile.memory import border_values
from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from tests.runtime import tiny


class Sending(ExitPolicy):
    """Leaves at exit `at` with a positive first score, sends the others from there; counts both."""

    kind = "sending"
    online = True

    def __init__(self, at: int) -> None:
        self.at, self.learned = at, 0
        self.told: list[tuple[Any, np.ndarray | None, bool]] = []

    def first(self) -> int:
        return self.at

    def start(self, count: int) -> Any:
        return {"count": count}

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        state["seen"] = outputs.logits.copy()
        return np.where(outputs.logits[:, 0] > 0, EXIT, OFFLOAD)

    def learn(self, state: Any, final: np.ndarray | None, here: bool = False) -> None:
        self.told.append((state, final, here))
        self.learned += 1

    def memory(self) -> dict[str, Any]:
        return {"learned": self.learned}

    def remember(self, memory: Mapping[str, Any]) -> None:
        if set(memory) != {"learned"} or type(memory["learned"]) is not int:
            raise ValueError("it is of another policy")
        self.learned = memory["learned"]

    def parameters(self) -> dict[str, Any]:
        return {"at": self.at}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Sending:
        return cls(parameters["at"])


class Rest:
    """Runs the segments behind an exit, as a server would; without an answer when it is `down`."""

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.asked: list[tuple[int, list[str]]] = []
        self.counts = {"answered": 0, "failed": 0}
        self.last_failure = ""
        self.connected = self.closed = 0

    def connect(self) -> bool:
        self.connected += 1
        return not self.down

    def answer(self, exit_index: int, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        self.asked.append((exit_index, sorted(values)))
        self.counts["failed" if self.down else "answered"] += 1
        if self.down:
            return None
        network = tiny.network()
        types = dict(network.inputs) | {n: t for f in network.functions() for n, t in f.outputs}
        border = [(name, types[name]) for name in border_values(network)[exit_index]]
        library = Library(tiny.machine_code(), tiny.WEIGHTS)
        later = [f for part in network.segments[exit_index + 1 :] for f in part.functions]
        runner = Runner(library, border, later)
        return runner.run_all(dict(values), [network.output])[network.output]

    def close(self) -> None:
        self.closed += 1
