"""What a training run is asked to do, checked; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["AUGMENTATIONS", "Recipe", "TrainOptions", "read_augmentations", "read_targets"]

Quantity = Literal["macs", "latency", "energy"]

#: What may be done to training images, besides ``none``.
AUGMENTATIONS = ("flips", "crops", "mixtures")

#: A name's end that is kept apart when targets are written into it.
_SUFFIX = ".gates.npz"


@dataclass(frozen=True)
class Recipe:
    """How parameters are moved: all of it takes part in whether a run can be continued.

    Attributes:
        steps: of the optimiser, for each target.
        batch: samples in a step.
        seed: of everything random: first parameters, order of the samples, augmentation.
        gate_rate: Adam's rate of the gates.
        backbone_rate: Adam's rate of the backbone; None leaves it untouched.
        distill: share of the loss that compares with the frozen, ungated network's answers; the
            rest compares with the labels.
        exit_weight: of the loss of all exits together, beside the final answer's 1.
        augment: what is done to training images; None: what fits them.
    """

    steps: int = 1000
    batch: int = 128
    seed: int = 0
    gate_rate: float = 3e-3
    backbone_rate: float | None = None
    distill: float = 0.9
    exit_weight: float = 0.0
    augment: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Equal for equal recipes."""
        return asdict(self)


@dataclass(frozen=True)
class TrainOptions:
    """One call of `eecompile train`.

    Attributes:
        output: the file of gates; with several targets each has its own, see `file_for`.
        targets: costs to train for, fractions of the ungated network's, in falling order.
        quantity: what the targets are costs of.
        costs: an artifact with latencies and energies; None where MACs are counted.
        recipe: how.
        start: a file of gates to begin with; None begins with gates that keep everything.
        threads: of torch; None leaves torch its own number.
        every_s: seconds between two checkpoints.
        restart: begin anew where there is a checkpoint.
        overrides: of the `.ee` file.
    """

    output: Path
    targets: tuple[float, ...]
    quantity: Quantity = "macs"
    costs: Path | None = None
    recipe: Recipe = Recipe()
    start: Path | None = None
    threads: int | None = None
    every_s: float = 60.0
    restart: bool = False
    overrides: tuple[str, ...] = ()

    def file_for(self, target: float) -> Path:
        """Where the gates of a target are written.

        >>> TrainOptions(Path("net.gates.npz"), (0.75,)).file_for(0.75).name
        'net.gates.npz'
        >>> TrainOptions(Path("net.gates.npz"), (0.85, 0.625)).file_for(0.625).name
        'net-62.5.gates.npz'
        """
        if len(self.targets) == 1:
            return self.output
        return self._beside(f"-{target * 100:g}{_SUFFIX}")

    @property
    def checkpoint(self) -> Path:
        """Where a run that is stopped is continued from.

        >>> TrainOptions(Path("net.gates.npz"), (0.75,)).checkpoint.name
        'net.gates.checkpoint'
        """
        return self._beside(".gates.checkpoint")

    @property
    def last_good(self) -> Path:
        """Where the last good state of a run that diverges is written."""
        return self._beside(f"-last-good{_SUFFIX}")

    def _beside(self, ending: str) -> Path:
        name = self.output.name
        stem = name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else self.output.stem
        return self.output.with_name(stem + ending)


def read_targets(given: Mapping[str, str | None]) -> tuple[Quantity, tuple[float, ...]]:
    """The quantity that is limited and its limits, highest first, as on the command line.

    >>> read_targets({"macs": "65%, 85 %", "latency": None})
    ('macs', (0.85, 0.65))

    Raises:
        CompileErrors: none is given or several, or a limit is no share of the whole.
    """
    named = {name: text for name, text in given.items() if text is not None}
    if len(named) != 1:
        found = " and ".join(f"`--{name}`" for name in named) or "none"
        message = f"Expected one of `--macs`, `--latency` and `--energy`, found {found}"
        raise CompileErrors([Diagnostic("bad-argument", message, help="e.g. `--macs 75%`")])
    ((name, text),) = named.items()
    problems, targets = [], []
    for part in text.split(","):
        value = _percent(part)
        if value is None:
            message = f"Expected percentages above 0 and below 100 of `--{name}`"
            problems.append(
                Diagnostic(
                    "bad-argument",
                    f"{message}, found `{part.strip()}`",
                    help=f"e.g. `--{name} 85%,75%`: shares of what the network costs without gates",
                )
            )
        else:
            targets.append(value)
    if problems:
        raise CompileErrors(problems)
    quantity = next(known for known in get_args(Quantity) if known == name)
    return quantity, tuple(sorted(set(targets), reverse=True))


def _percent(text: str) -> float | None:
    try:
        value = float(text.strip().removesuffix("%")) / 100 if "%" in text else math.nan
    except ValueError:
        return None
    return round(value, 9) if 0 < value < 1 else None


def read_augmentations(text: str | None) -> tuple[str, ...] | None:
    """What is done to images, as on the command line; None where nothing is said.

    >>> read_augmentations("crops,flips"), read_augmentations("none"), read_augmentations(None)
    (('flips', 'crops'), (), None)

    Raises:
        CompileErrors: an unknown word.
    """
    if text is None:
        return None
    words = {word.strip() for word in text.split(",")}
    unknown = words - {*AUGMENTATIONS, "none"}
    if unknown or ("none" in words and len(words) > 1):
        message = f"Expected flips, crops, mixtures or none for `--augment`, found `{text}`"
        raise CompileErrors([Diagnostic("bad-argument", message, help="e.g. `flips,crops`")])
    return tuple(word for word in AUGMENTATIONS if word in words)
