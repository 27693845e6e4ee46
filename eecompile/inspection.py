"""`eecompile inspect`: what is in an artifact, or would be in one, without running any of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Artifact, read_artifact
from eecompile.artifact_files import bad_artifact, bad_json
from eecompile.clock_rule import ClockRule
from eecompile.cost_table import CostTable
from eecompile.exit_table import exit_rows
from eecompile.figures import hertz, percent, readable
from eecompile.gate_report import gate_rows, gating_json, gating_lines
from eecompile.ir import TensorType
from eecompile.memory import Peak
from eecompile.report import held_out_lines
from eecompile.segments import SegmentGraph, Step
from eecompile.signatures import Trusted
from eecompile.svg import draw
from eecompile.text import parse_segments, print_segments

__all__ = ["Inspection", "inspect_artifact", "inspect_path"]


#: What telling a report raises that is not as this version writes it.
_OTHER_REPORT = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)

#: Facts that are told apart from the others.
_APART = ("features", "memory", "signature")


@dataclass(frozen=True)
class Inspection:
    """What is known of a network without running it.

    Attributes:
        segments: the network, cut.
        heads: its exits' heads in words.
        facts: of an artifact, by the keys scripts rely on.
        costs: of its pieces at each clock; None where nothing is known.
        rules: policy -> how its clocks are chosen; those that leave them alone are not there.
        placing: why the compiler placed exits where it did (`eecompile.exit_placing`); None where
            all of them were written.
        reports: policy -> how it was fitted, and what it achieved, as the build told.
        gates: what may be left out, as the build told or the file plans it
            (`eecompile.gate_report`); None without gates.
    """

    segments: SegmentGraph
    heads: Mapping[str, str]
    facts: Mapping[str, Any]
    costs: CostTable | None = None
    rules: Mapping[str, ClockRule] = field(default_factory=dict)
    placing: Mapping[str, Any] | None = None
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gates: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """What is to be said of the whole; the processor's features are for scripts."""
        facts = {k: v for k, v in self.facts.items() if k not in _APART}
        told = ", ".join(f"{key} {value}" for key, value in facts.items())
        title = f"{self.segments.name}: {readable(self.segments.macs, 'MACs')}"
        title += f"; {told}" if told else ""
        memory = self.facts.get("memory")
        title += f"\nmemory: {Peak.from_json(memory)}" if memory else ""
        return title + (f"\n{self._signed}" if "signature" in self.facts else "")

    @property
    def _signed(self) -> str:
        signature = self.facts["signature"]
        if signature is None:
            return "not signed"
        who = f"signed by the key {signature['key_id']}"
        if signature["checked"]:
            return f"{who}, which is trusted"
        return f"{who}, it says: not checked, which `--trusted KEY.pub.pem` does"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The exit table; its last row is the network's own answer."""
        return exit_rows(self.segments, self.heads)

    @property
    def clocks(self) -> list[int]:
        """Of each cluster the fastest and the slowest clock that has costs: indices of states."""
        if self.costs is None:
            return []
        found: dict[str, list[int]] = {}
        for index, state in enumerate(self.costs.states):
            if self.costs.full_depth(index) is not None:
                found.setdefault(state.cluster, []).append(index)
        return [index for own in found.values() for index in dict.fromkeys((own[-1], own[0]))]

    @property
    def rule_lines(self) -> list[str]:
        """How each policy that chooses clocks does so."""
        lines = []
        for name, rule in self.rules.items():
            begins = ""
            states = () if self.costs is None else self.costs.states
            if rule.start is not None and rule.start < len(states):
                state = states[rule.start]
                begins = f"; samples begin on {state.cluster} at {hertz(state.frequency_hz)}"
            lines.append(f"policy {name}: {rule}{begins}")
        return lines

    @property
    def policy_lines(self) -> list[str]:
        """What was found of each policy on held-out data, and for which budgets it has settings."""
        threads = None if self.costs is None else self.costs.threads
        lines = []
        for name, report in self.reports.items():
            try:
                lines += [*held_out_lines(name, report, threads), *_settings_lines(report)]
            except _OTHER_REPORT:  # whoever wrote the artifact keeps other reports
                lines.append(f"{name}: its report is none of this version's")
        return lines

    @property
    def gate_lines(self) -> list[str]:
        """What gates may leave out, and how they were made."""
        try:
            return gating_lines(self.gates) if self.gates else []
        except _OTHER_REPORT:
            return ["gates: what is told of them is none of this version's"]

    @property
    def gate_table(self) -> tuple[list[str], list[list[str]]] | None:
        """Each gate with what policies keep there on held-out data: head and rows."""
        counts = {name: report.get("gates") for name, report in self.reports.items()}
        try:
            known = {name: found for name, found in counts.items() if found}
            return gate_rows(self.gates, known) if self.gates else None
        except _OTHER_REPORT:
            return None

    @property
    def text(self) -> str:
        """The segment graph as IR text, operators included."""
        return print_segments(self.segments, "full")

    def svg(self) -> str:
        """The segment graph with its exits, drawn."""
        return draw(self.segments, self.heads)

    def to_json(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {
            "model": self.segments.name,
            "macs": self.segments.macs,
            "exits": self.rows,
            "segments": [
                {
                    "name": segment.name,
                    "macs": segment.macs,
                    "inputs": list(segment.graph.inputs),
                    "outputs": list(segment.graph.outputs),
                    "operators": len(segment.graph.ops),
                    "steps": [_step_json(step) for step in segment.steps],
                }
                for segment in self.segments.segments
            ],
            **self.facts,
            "gates": self.gates,
            "placing": self.placing,
            "clocks": {name: str(rule) for name, rule in self.rules.items()},
            "costs": None if self.costs is None else _costs_json(self.costs),
            "reports": dict(self.reports),
        }


def inspect_path(path: Path, trusted: Trusted | None = None) -> Inspection:
    """What is to be seen in an artifact, or in a `.ee` file and its network.

    An artifact for another machine can be inspected too: nothing of it is loaded as code.

    Raises:
        CompileErrors: it is neither, or is damaged; or keys are given, and none of them has signed
            it.
        ToolError: keys are given, and `cryptography` is not installed.
    """
    if path.suffix == ".ee" and not path.is_dir():
        return _of_file(path)
    return inspect_artifact(read_artifact(path, must_run=False, trusted=trusted))


def inspect_artifact(artifact: Artifact) -> Inspection:
    """What is to be seen in an artifact.

    Raises:
        CompileErrors: a file of it does not hold what it should.
    """
    manifest = artifact.manifest
    facts = {
        "target": manifest.target.name,
        "triple": manifest.target.triple,
        "features": " ".join(manifest.target.features),
        "cores": manifest.target.cores,
        "policies": ", ".join(manifest.policies) or "none",
        "memory": Peak.of(manifest.network, len(artifact.weights), manifest.target.cores).to_json(),
        "signature": artifact.signature
        and {"key_id": artifact.signature.key_id, "checked": artifact.signature.checked},
    }
    segments = _segments(artifact)
    heads = dict(manifest.fitted.get("heads", {}))
    placing = manifest.fitted.get("placing")
    # Policies of an artifact that no `.ee` file was behind have nothing to report.
    reports = {name: entry.report for name, entry in artifact.policies.items() if entry.report}
    rules = _rules(artifact)
    gates = manifest.fitted.get("gates")
    return Inspection(segments, heads, facts, artifact.costs, rules, placing, reports, gates)


def _segments(artifact: Artifact) -> SegmentGraph:
    """The graph in ``segments.txt``, counted once so that it can be shown.

    Raises:
        CompileErrors: it is no text of a graph, or of one that does not fit together.
    """
    try:
        found = parse_segments(artifact.segments_text, _absent)
        exit_rows(found, {})
        [step.macs for segment in found.segments for step in segment.steps]
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        # A text with a hash that is right may still hold anything.
        reason = str(error) if isinstance(error, ValueError) else "its parts do not fit together"
        message = f"`segments.txt` cannot be used: {reason}"
        raise bad_artifact(artifact.path, message) from error
    return found


def _step_json(step: Step) -> dict[str, Any]:
    """A step of a segment with gates: what it is, what it is kept by, what it costs."""
    return {
        "gate": step.gate,
        "keep": step.keep or None,
        "otherwise": step.otherwise or None,
        "channels": step.channels or None,
        "outputs": list(step.graph.outputs),
        "macs": step.macs,
    }


def _settings_lines(report: Mapping[str, Any]) -> list[str]:
    """For which budgets there are settings.

    >>> _settings_lines({"points": [{"costs": {"macs": share}} for share in (0.4, 1.0)]})
    ['  2 settings to choose from, at 40.0 % to 100.0 % of the multiply-accumulates']
    """
    shares = [point["costs"]["macs"] for point in report["points"]]
    if not shares:
        return []
    ends = f"{percent(min(shares))} to {percent(max(shares))}"
    return [f"  {len(shares)} settings to choose from, at {ends} of the multiply-accumulates"]


def _rules(artifact: Artifact) -> dict[str, ClockRule]:
    """How policies choose clocks, by their names; those that leave clocks alone are left out."""
    with bad_json(artifact.path, "policies.json"):
        return {
            name: ClockRule.from_json(entry.clock)
            for name, entry in artifact.policies.items()
            if entry.clock is not None
        }


def _costs_json(costs: CostTable) -> dict[str, Any]:
    """Whose clocks, who was measured, and the full depth at each; pieces are in the artifact."""
    kept = ("board", "device", "threads", "governor", "energy_covers", "full_depth")
    value = costs.to_json()
    return {key: value[key] for key in kept}


def _absent(digest: str, type_: TensorType) -> np.ndarray:
    """Stands in for a weight that only its hash is known of: nothing here looks at values."""
    return np.broadcast_to(np.zeros((), type_.dtype), type_.shape)


def _of_file(path: Path) -> Inspection:
    from eecompile.planning import cut_file

    spec, segments, gating = cut_file(path)
    heads = {exit_.name: str(exit_.head) for exit_ in spec.model.exits}
    auto = spec.model.auto_exits
    facts = {} if auto is None else {"auto_exits": f"{auto.low} to {auto.high}"}
    return Inspection(segments, heads, facts, gates=gating_json(gating))
