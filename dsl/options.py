"""What heads, gates and rules there are, and which options each takes.

One table each, so that a new head or rule is one entry here and its own file elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eecompile.spec import Name, Value

__all__ = [
    "DTYPES",
    "FREQUENCIES",
    "GATES",
    "HEADS",
    "MEASURES",
    "POSITIONAL",
    "RULES",
    "SPLITS",
    "UNTRAINED_GATES",
    "Option",
    "either",
    "number",
    "text",
    "whole",
    "word",
]


@dataclass(frozen=True)
class Option:
    """What an option's value may be.

    Attributes:
        expected: for messages, as in "expected {expected}".
        accepts: whether a value will do.
        required: whether it has to be given.
    """

    expected: str
    accepts: Callable[[Value], bool]
    required: bool = False


def whole(low: int, high: int | None = None) -> Option:
    """A whole number from `low` to `high`."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def accepts(value: Value) -> bool:
        return isinstance(value, int) and low <= value and (high is None or value <= high)

    return Option(f"a whole number {limits}", accepts)


def number(low: float, high: float | None = None, above: bool = False) -> Option:
    """A number from `low` to `high`; with `above`, `low` itself is none of them.

    >>> [number(0, 1, above=True).accepts(value) for value in (0, 0.5, 1)]
    [False, True, True]
    """
    if above:
        limits = f"above {low:g}" if high is None else f"above {low:g} and of at most {high:g}"
    else:
        limits = f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"

    def accepts(value: Value) -> bool:
        if not isinstance(value, int | float) or not value >= low or (above and value == low):
            return False
        return high is None or value <= high

    return Option(f"a number {limits}", accepts)


def word(*choices: str) -> Option:
    """One of some bare words."""
    listed = " or ".join(f"`{choice}`" for choice in choices)
    return Option(listed, lambda value: isinstance(value, Name) and value in choices)


def text(required: bool = False) -> Option:
    """A string."""
    return Option(
        'a string ("...")',
        lambda value: isinstance(value, str) and not isinstance(value, Name) and value != "",
        required,
    )


def exit_name(required: bool = False) -> Option:
    """An exit's name: whether the model has it is checked with the model."""
    return Option("an exit's name", lambda value: isinstance(value, Name), required)


def either(first: Option, second: Option) -> Option:
    """What one or the other accepts."""
    return Option(
        f"{first.expected}, or {second.expected}",
        lambda value: first.accepts(value) or second.accepts(value),
    )


#: Pooling to a grid of P x P per channel; `raw` keeps the map as it is. Of a sequence of tokens
#: `first` takes the first, `mean` (as any number) their mean.
_POOL = either(whole(1, 4096), word("raw", "mean", "first"))

#: Whether the scale of a head's logits is fitted on calibration data.
_TEMPERATURE = word("fitted", "none")

#: Exit heads. `class_means` is also the comparator.
HEADS: Mapping[str, Mapping[str, Option]] = {
    "linear": {"pool": _POOL, "temperature": _TEMPERATURE},
    "conv": {
        "channels": whole(1, 65536),
        "kernel": whole(1, 15),
        "layers": whole(1, 8),
        "pool": whole(1, 4096),
        "temperature": _TEMPERATURE,
    },
    "bag_of_features": {
        "codewords": whole(1, 65536),
        "window": whole(1, 4096),
        "temperature": _TEMPERATURE,
    },
    "class_means": {"metric": word("euclidean"), "pool": _POOL, "temperature": _TEMPERATURE},
    "module": {"entry": text(required=True), "weights": text()},
    "onnx": {"path": text(required=True)},
}

#: Runs of consecutive channels that are kept or left out together; `auto`, as where nothing is
#: given: as many as leave each the width of the target's vectors.
_GROUPS = either(whole(1, 65536), word("auto"))

#: The recurrent network that all recurrent gates of a model share, and what each of them reads.
_RECURRENT: Mapping[str, Option] = {"hidden": whole(1, 4096), "embedding": whole(1, 4096)}

#: Gates, by what they skip.
GATES: Mapping[str, Mapping[str, Mapping[str, Option]]] = {
    "layers": {
        "recurrent": _RECURRENT,
        "feedforward": {"hidden": whole(1, 4096)},
        "fitted": {},
    },
    "channels": {
        "recurrent": {"groups": _GROUPS, **_RECURRENT},
        "squeeze": {"groups": _GROUPS, "hidden": whole(1, 4096)},
        "convolution": {"groups": _GROUPS, "width": whole(1, 4096)},
        "fitted": {"groups": _GROUPS},
    },
}

#: Gates that the build fits by itself, without training.
UNTRAINED_GATES = frozenset({"fitted"})

#: Measures of confidence, each turned so that 1 is certain.
MEASURES = ("max_softmax", "entropy", "margin", "class_means")

#: Tests an exit rule is made of.
RULES: Mapping[str, Mapping[str, Option]] = {
    "confidence": {},
    "patience": {"count": whole(1, 1000)},
    "predicted": {
        "start": exit_name(),
        "window": whole(1, 1000),
        "forecast": word("class_order", "sorted", "fitted"),
        "scale": word("mean_logit", "probability"),
        "beta": number(0),
    },
    "learned_score": {"restarts": whole(1, 100), "thresholds": word("search", "quota")},
    "auto": {},
}

#: Element types, by numpy's names.
DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)

#: Who chooses where to split between device and server.
SPLITS: Mapping[str, Mapping[str, Option]] = {
    "online_ucb": {
        "observations": word("own", "side"),
        "unknown": word("skip", "impute"),
        "discount": number(0, 1, above=True),
        "exploration": number(0),
        "weight": number(0, above=True),
    },
    "fixed": {"at": exit_name(required=True)},
}

#: Rules that choose the clock frequency.
FREQUENCIES = ("lowest_energy", "race_to_idle", "highest")

#: The option that may be given without its name.
POSITIONAL: Mapping[str, str] = {"module": "entry", "onnx": "path", "confidence": "measure"}
