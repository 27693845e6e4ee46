"""`train`: gates, and on request weights, of a `.ee` file's torch network."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eecompile.commands.printing import print_json
from eecompile.console import Steps, table
from eecompile.diagnostics import CompileErrors, Diagnostic, missing_package
from eecompile.figures import percent

__all__ = ["train"]

#: Learning rates of gates alone, of gates beside weights, and of these. Weights get used to what is
#: left out only where gates do not change their minds faster than that. Source: measured on
#: ResNet-56 and CIFAR-10, at 75 %. Gates, with frozen batch statistics: 88.7 % on `calibrate` with
#: 0.001 after 480 steps, 90.7 % with 0.0001 after 1,250. Weights, seven blocks less: 91.6 % after
#: 100 steps with 0.0003, 89.3 % with 0.001.
_RATE, _RATE_BESIDE_WEIGHTS, _BACKBONE_RATE = 1e-3, 1e-4, 3e-4


def train(options: argparse.Namespace) -> int:
    """Train, and say what each target came to."""
    from eecompile.training.options import (
        Recipe,
        TrainOptions,
        read_augmentations,
        read_targets,
    )

    file: Path = options.file
    given = {name: getattr(options, name) for name in ("macs", "latency", "energy")}
    if not any(given.values()):
        given["macs"] = "75%"
    quantity, targets = read_targets(given)
    _check_together(options, quantity)
    recipe = Recipe(
        options.steps,
        options.batch,
        options.seed,
        options.rate or (_RATE_BESIDE_WEIGHTS if options.tune_backbone else _RATE),
        (options.backbone_rate or _BACKBONE_RATE) if options.tune_backbone else None,
        options.distill,
        _exit_weight(options),
        read_augmentations(options.augment),
    )
    chosen = TrainOptions(
        options.output or file.with_suffix(".gates.npz"),
        targets,
        quantity,
        options.costs,
        recipe,
        options.start,
        options.threads,
        options.every,
        options.restart,
        tuple(options.overrides),
    )
    if importlib.util.find_spec("torch") is None:
        missing = missing_package(ModuleNotFoundError("no torch", name="torch"))
        assert missing is not None, "torch is a package that may be missing"
        raise missing
    from eecompile.training.run import train as run

    report = run(file, chosen, Steps(4, options.quiet or options.json))
    if options.json:
        print_json(options, report)
    else:
        _print_report(report)
    return 0


def _exit_weight(options: argparse.Namespace) -> float:
    if not options.tune_backbone:
        return 0.0
    return 0.3 if options.exit_weight is None else float(options.exit_weight)


def _check_together(options: argparse.Namespace, quantity: str) -> None:
    """Refuses options that say nothing without, or beside, others."""
    problems = []
    if quantity != "macs" and options.costs is None:
        message = f"`--{quantity}` needs `--costs`: an artifact whose {quantity} is known"
        problems.append((message, "build the network first, and name its folder"))
    if quantity == "macs" and options.costs is not None:
        problems.append(("`--costs` is for `--latency` and `--energy`: MACs are counted", ""))
    for name in ("backbone_rate", "exit_weight"):
        if getattr(options, name) is not None and not options.tune_backbone:
            message = f"`--{name.replace('_', '-')}` is for `--tune-backbone`: else weights stay"
            problems.append((message, "add `--tune-backbone`"))
    if problems:
        raise CompileErrors([Diagnostic("bad-argument", m, help=h) for m, h in problems])


def _print_report(report: Mapping[str, Any]) -> None:
    """Accuracy and cost by target, and the files."""
    weights = "gates and weights" if report["tuned"] else "gates alone"
    print(
        f"\n{report['model']}: {report['gates']} gates, {weights} trained in {report['steps']} "
        f"steps; the gates' own cost is {percent(report['gates_cost_fraction'], 2)} of its "
        f"{_NAMES[report['quantity']]}"
    )
    splits = list(report["full_depth"])
    full = [percent(report["full_depth"][split], 2) for split in splits]
    rows = [("no gates", *(cell for found in full for cell in (found, "100.0 %")), "")]
    for done in report["targets"]:
        figures = [done[split] for split in splits]
        cells = [(percent(f["accuracy"], 2), percent(f["mean_cost_fraction"])) for f in figures]
        rows.append((f"{done['target'] * 100:g} %", *sum(cells, ()), Path(done["file"]).name))
    heads = [head for split in splits for head in (f"{split}: accuracy", "cost")]
    table(("target", *heads, "file"), rows)


_NAMES = {"macs": "multiply-accumulates", "latency": "latency", "energy": "energy"}
