"""Choosing another operating point of a stored policy, by a budget given where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sys import float_info

from eecompile.artifact import Artifact, PolicyEntry
from eecompile.artifact_files import bad_artifact
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.halt_rule import HaltRule
from eecompile.policies.points import OperatingPoint, OutOfReach, choose
from eecompile.runtime.inputs import bad_argument

__all__ = [
    "QUANTITIES",
    "choose_point",
    "given_halt",
    "given_limits",
    "in_words",
    "stored_points",
]

#: What can be limited -> how the language calls it, its unit, and the value of that in SI.
QUANTITIES = {
    "macs": ("mean macs", "%", 1e-2),
    "latency": ("mean latency", "ms", 1e-3),
    "energy": ("mean energy", "mJ", 1e-3),
    "accuracy_drop": ("accuracy drop", "%", 1e-2),
}

#: What a halt can limit -> its name in `HaltRule`.
_HALTS = {"macs": "macs", "latency": "latency_s", "energy": "energy_j"}

#: Those that are fractions: 1 is all that the whole network costs, or has right.
_SHARES = ("macs", "accuracy_drop")
#: Above it a limit forbids nothing, so a percentage is meant.
_MOST_SHARE = 2.0


def in_words(quantity: str, limit: float) -> str:
    """A limit as the language writes it.

    >>> in_words("latency", 0.0021)
    'mean latency <= 2.1 ms'
    """
    words, unit, scale = QUANTITIES[quantity]
    return f"{words} <= {limit / scale:.6g} {unit}"


def given_limits(budget: Mapping[str, float]) -> dict[str, float]:
    """Limits by quantity, checked.

    Raises:
        CompileErrors: it is no such mapping.

    >>> given_limits({"macs": 0.6})
    {'macs': 0.6}
    """
    help_ = 'give `{"macs": 0.6}`, with ' + ", ".join(f"`{name}`" for name in QUANTITIES)
    if not isinstance(budget, Mapping) or not budget:
        raise bad_argument(f"Expected limits by quantity as a budget, found {budget!r}", help_)
    for name, limit in budget.items():
        if name not in QUANTITIES:
            raise bad_argument(f"Unknown quantity `{name}` of a budget", help_)
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not number or not abs(limit) <= float_info.max:
            raise bad_argument(f"Expected a number as the limit of `{name}`, found {limit!r}")
        if name in _SHARES and limit > _MOST_SHARE:
            message = f"Expected a fraction as the limit of `{name}`, found {limit:g}"
            raise bad_argument(message, "1 is the whole network's: 60 % is 0.6")
    return {name: float(limit) for name, limit in budget.items()}


def given_halt(limits: Mapping[str, float]) -> HaltRule:
    """The rule of limits by quantity, checked.

    Raises:
        CompileErrors: it is no such mapping.

    >>> given_halt({"latency": 0.001}).latency_s
    0.001
    """
    help_ = 'give `{"latency": 0.001}`, with ' + ", ".join(f"`{name}`" for name in _HALTS)
    if not isinstance(limits, Mapping) or not limits:
        raise bad_argument(f"Expected limits by quantity to halt at, found {limits!r}", help_)
    for name in limits:
        if name not in _HALTS:
            raise bad_argument(f"Unknown quantity `{name}` to halt at", help_)
    share = limits.get("macs")
    if isinstance(share, int | float) and _MOST_SHARE < share <= float_info.max:
        message = f"Expected a fraction as the limit of `macs`, found {share:g}"
        raise bad_argument(message, "1 is the whole network's: 60 % is 0.6")
    try:
        return HaltRule(**{_HALTS[name]: limit for name, limit in limits.items()})
    except ValueError as error:
        raise bad_argument(f"Nothing can be halted at this: {error}") from None


def stored_points(artifact: Artifact, name: str, entry: PolicyEntry) -> list[OperatingPoint]:
    """A stored policy's operating points, cheapest first; none where all of it was given.

    Raises:
        CompileErrors: they are none.
    """
    try:
        return [OperatingPoint.from_json(value) for value in entry.report.get("points", ())]
    except (TypeError, ValueError, AttributeError) as error:
        message = f"The operating points of `{name}` cannot be read: {error}"
        raise bad_artifact(artifact.path, message) from error


def choose_point(
    artifact: Artifact, name: str | None, limits: Mapping[str, float], place: Span | None = None
) -> OperatingPoint:
    """The operating point of a stored policy for a budget, see `eecompile.policies.points.choose`.

    Args:
        artifact: whose policy it is.
        name: the policy's; None where the artifact has none.
        limits: by quantity, all of them to be kept.
        place: where the budget was written.

    Raises:
        CompileErrors: the policy has no operating points, or none that keeps the budget; the range
            that can be kept is named.
    """
    entry = artifact.policies.get(name or "")
    points = [] if entry is None else stored_points(artifact, str(name), entry)
    if not points:
        message = f"Policy `{name}` has no operating points to choose from"
        why = "the artifact has no policies" if entry is None else "all its thresholds were given"
        raise CompileErrors([Diagnostic("infeasible-budget", message, notes=(why,))])
    try:
        return choose(points, limits)
    except OutOfReach as error:
        raise _refused(str(name), points, limits, error, place) from error


def _refused(
    name: str,
    points: Sequence[OperatingPoint],
    limits: Mapping[str, float],
    error: OutOfReach,
    place: Span | None,
) -> CompileErrors:
    quantity = str(error.quantity)
    if error.least is None:
        known = {q for point in points for q in point.at_most} | {"accuracy_drop"}
        listed = ", ".join(f"`{words}`" for q, (words, *_) in QUANTITIES.items() if q in known)
        message = f"Policy `{name}` has no operating points for a budget of {quantity}"
        help_ = f"it has some for {listed}"
        return CompileErrors([Diagnostic("infeasible-budget", message, place, help=help_)])
    asked = " and ".join(in_words(*limit) for limit in limits.items())
    notes = [f"the strictest that can be kept is {in_words(quantity, error.least)}"]
    if quantity != "accuracy_drop":
        most = in_words(quantity, points[-1].costs[quantity])
        notes.append(f"its most careful setting needs {most}: what is between can be asked for")
    message = f"No operating point of `{name}` keeps the budget `{asked}`"
    return CompileErrors([Diagnostic("infeasible-budget", message, place, notes=tuple(notes))])
