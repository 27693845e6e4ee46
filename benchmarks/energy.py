"""Energy of Predictive Exit with clocks chosen per image, on boards that are not at hand.

    python -m benchmarks.energy [--folder DIR]

MobileNetV2 at 224 x 224 on CIFAR-10 (benchmarks/transfer.py) is built and run here, every head
included, and built for each board, whose code is what is counted. Policies, and for each board and
deadline their settings and start clocks, are fitted on the first 5,000 test images. The last 5,000
are replayed through the scheduler with each board's costs. All times and energies are modelled:
what goes into the model is printed with them.

(a) is the full network at the top clock, (b) early exit at the top clock: the same accuracy budget,
heads asked in order by their softmax. Deadlines are the full depth at the top clock, and half as
much again. *Bound*: every image's exit at the top clock known beforehand, and its work at the one
clock of least energy that keeps the deadline, which no schedule for these exits beats; the better
of both policies' exits.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import command
from benchmarks.transfer import transferred
from eecompile.artifact import PolicyEntry, read_artifact
from eecompile.board import Board
from eecompile.boards.file import read_board
from eecompile.clock_rule import ClockRule
from eecompile.clocks.fitting import fit_clocks
from eecompile.clocks.recording import recorded
from eecompile.clocks.simulation import Simulation, at_top_clock, simulate
from eecompile.cost_table import CostTable
from eecompile.datasets import Split, open_dataset
from eecompile.dsl.parser import read_spec
from eecompile.figures import hertz
from eecompile.policies import ExitPolicy, NeverPolicy, from_json
from eecompile.policies.points import OperatingPoint
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.runtime.clock_costs import ClockCosts
from eecompile.runtime.scheduler import Scheduler
from eecompile.runtime.session import Session, load

__all__ = ["main"]

HERE = Path(__file__).parent
BOARDS = (
    ("rk3399", "big"),
    ("raspberry-pi-4", "cpu"),
    ("jetson-tx1", "cpu"),
    ("jetson-nano", "cpu"),
)
KINDS: dict[str, dict[str, bool]] = {
    "expected": {},
    "hard": {"hard": True},
    "safe": {"safe": True},
}
#: Accuracy that the policies of the file may lose.
_DROP = 0.01
#: Of the full depth's time at the top clock.
DEADLINES = (1.0, 1.5)


@dataclass(frozen=True)
class Study:
    """What was recorded here: a network, its policies, and what every exit says of every image.

    Attributes:
        file: the `.ee` file.
        settings: by policy, those that keep its budget, the fitted one first.
        calibrate, test: what every exit says.
    """

    file: Path
    settings: dict[str, list[ExitPolicy]]
    calibrate: CalibrateRecord
    test: TestRecord

    def at_top(self, name: str, table: CostTable, deadline_s: float) -> Simulation:
        """A policy, or "full", with every image at the fastest clock."""
        settings = self.settings.get(name) or [NeverPolicy(len(self.test.exits))]
        return at_top_clock(settings[0], self.test.outputs(), self.test.final, table, deadline_s)

    def chosen(self, name: str, table: CostTable, rule: ClockRule) -> Simulation:
        """A policy with its clocks chosen; setting and start are fitted on calibration data."""
        fitted = fit_clocks(self.settings[name], self.calibrate, table, rule, _DROP)
        scheduler = Scheduler(table, fitted.rule)
        return simulate(fitted.policy, self.test.outputs(), self.test.final, scheduler)


def study(folder: Path, data: Path) -> Study:
    """Build the network's artifact here, and run the data through every exit once."""
    transferred(folder, data)
    file = folder / "transfer.ee"
    file.write_text((HERE / "transfer.ee").read_text().replace('"cifar10_', f'"{data}/cifar10_'))
    built, seconds = command("build", str(file), "-o", str(folder / "host.artifact"), folder=folder)
    print(f"built in {seconds:.0f} s")
    for name, report in built["policies"].items():
        test = report["test"]
        print(
            f"  {name}: {report['rule']}, {report['budget']}: accuracy "
            f"{100 * test['accuracy']['value']:.2f} % (full depth "
            f"{100 * test['full_depth_accuracy']['value']:.2f} %), "
            f"{100 * test['costs']['macs']['value']:.1f} % of the MACs, held out"
        )
    with load(folder / "host.artifact") as session:
        return Study(
            file,
            {name: _settings(entry) for name, entry in session.artifact.policies.items()},
            _record(CalibrateRecord, session, file, "calibrate"),
            _record(TestRecord, session, file, "test"),
        )


def _settings(entry: PolicyEntry) -> list[ExitPolicy]:
    """A policy's fitted setting, then the others that keep its budget."""
    points = [OperatingPoint.from_json(point) for point in entry.report["points"]]
    others = [point.make() for point in points if point.accuracy_drop <= _DROP]
    return [from_json(entry.rule), *others]


def _record(kind: type[Any], session: Session, file: Path, split: Split) -> Any:
    spec = read_spec(file)
    data, (_, type_) = spec.data_for(spec.model), session.manifest.network.inputs[0]
    dataset = data and open_dataset(spec, data, split, type_, 10)
    assert dataset, "the file has these data"
    return recorded(kind, session, dataset, None, lambda *_: None)


def bound_j(found: Simulation, table: CostTable, deadline_s: float) -> float:
    """Mean energy where every image's exit is known beforehand, see above."""
    costs = ClockCosts(table)
    least = np.empty(costs.last + 1)
    for exit_ in range(costs.last + 1):
        # No head but the one that answers.
        time_s, energy_j = costs.stretch_s(-1, exit_), costs.stretch_j(-1, exit_)
        in_time = time_s <= deadline_s * (1 + 1e-9)
        least[exit_] = energy_j[in_time].min() if in_time.any() else energy_j[time_s.argmin()]
    return float(least[found.exit].mean())


def report(board: Board, cluster: str, made: Study) -> None:
    """One board: what goes into the model, then every kind of deadline."""
    folder = made.file.parent / board.name
    command("build", str(made.file), "-t", board.name, "-o", str(folder), folder=made.file.parent)
    whole = read_artifact(folder, must_run=False).costs
    assert whole is not None, "the board has clocks"
    table = whole.restricted([k for k, s in enumerate(whole.states) if s.cluster == cluster])
    top = max(range(len(table.states)), key=lambda k: table.states[k].frequency_hz or 0)
    full = table.full_depth(top)
    assert full is not None, "its clocks are known"
    own = board.cluster(cluster)
    clocks = ", ".join(f"{hertz(s.frequency_hz)} {s.voltage_v} V" for s in table.states)
    full_ms = 1e3 * full.latency_s
    print(f"\n{board.name}, {own.core}, one core: full depth {full_ms:.1f} ms at the top clock")
    print(f"  model: {clocks}")
    print(
        f"  model: {(own.capacitance_f or 0) * 1e12:.0f} uW/MHz/V^2, clock changed in "
        f"{1e6 * (own.transition_latency_s or 0):.0f} us, memory "
        f"{(board.memory_bandwidth or 0) / 1e9:.1f} GB/s; {table.energy_covers}"
    )
    labels = made.test.labels
    for factor in DEADLINES:
        deadline_s = factor * full.latency_s
        early = made.at_top("in_order", table, deadline_s)
        same = made.at_top("predicted", table, deadline_s)
        network = made.at_top("full", table, deadline_s)
        floor = min(bound_j(found, table, deadline_s) for found in (same, early))
        print(
            f"  deadline {1e3 * deadline_s:.1f} ms ({factor:g} x full depth): (a) "
            f"{1e3 * network.energy_j.mean():.1f} mJ, (b) {1e3 * early.energy_j.mean():.1f} mJ "
            f"with accuracy {100 * early.correct(labels).mean():.2f} %, predicted at the top "
            f"clock {1e3 * same.energy_j.mean():.1f} mJ; bound {_less(floor, early)} below (b)"
        )
        for name in made.settings:
            for kind, options in KINDS.items():
                rule = ClockRule("lowest_energy", deadline_s, **options)
                found = made.chosen(name, table, rule)
                energy = float(found.energy_j.mean())
                accuracy = 100 * found.correct(labels).mean()
                late, forced = int(found.missed.sum()), int(found.forced.sum())
                print(
                    f"    {name:9} {kind:8} {1e3 * energy:6.1f} mJ: {_less(energy, network)} below "
                    f"(a), {_less(energy, early)} below (b); accuracy {accuracy:.2f} %, {late} of "
                    f"{len(labels)} late, {forced} forced, {found.transitions.mean():.2f} changes "
                    f"of clock, {found.evaluated.sum(axis=1).mean():.2f} heads an image"
                )


def _less(energy_j: float, other: Simulation) -> str:
    return f"{100 * (1 - energy_j / float(other.energy_j.mean())):.1f} %"


def main() -> None:
    """Every board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    print(describe_machine())
    with working_folder(options.folder) as folder:
        made = study(folder, shared_data().resolve())
        for name, cluster in BOARDS:
            report(read_board(name), cluster, made)


if __name__ == "__main__":
    main()
