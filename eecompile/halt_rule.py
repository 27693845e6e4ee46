"""What a sample may spend at most before its answer has to be there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from sys import float_info
from typing import Any

from eecompile.checked_json import JsonError, ObjectReader

__all__ = ["HaltRule"]


@dataclass(frozen=True, slots=True)
class HaltRule:
    """Limits that hold for every sample, each None where there is none; all are kept.

    Attributes:
        macs: multiply-accumulates, gates and heads included, as a fraction of the untouched
            backbone's.
        latency_s: from the call to the answer.
        energy_j: as the artifact's cost table tells it.

    Raises:
        ValueError: there is no limit, or one is no finite number above 0.
    """

    macs: float | None = None
    latency_s: float | None = None
    energy_j: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.given.items():
            is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not is_number or not 0 < limit <= float_info.max:
                raise ValueError(f"{name} must be a finite number above 0, not {limit!r}")
        if not self.given:
            raise ValueError("there must be a limit")

    @property
    def given(self) -> dict[str, float]:
        """The limits there are, by their names.

        >>> HaltRule(macs=0.5).given
        {'macs': 0.5}
        """
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def and_also(self, other: HaltRule) -> HaltRule:
        """Both: of each quantity the smaller limit.

        >>> str(HaltRule(macs=0.5).and_also(HaltRule(macs=0.4, energy_j=0.001)))
        'macs <= 40 %, energy <= 1 mJ'
        """
        names = {**self.given, **other.given}
        least = {n: min(r.given[n] for r in (self, other) if n in r.given) for n in names}
        return HaltRule(**least)

    def __str__(self) -> str:
        """As the language writes it.

        >>> print(HaltRule(macs=0.5, latency_s=0.0012))
        macs <= 50 %, latency <= 1.2 ms
        """
        scales = {"macs": (1e2, "%"), "latency_s": (1e3, "ms"), "energy_j": (1e3, "mJ")}
        told = [(name.split("_")[0], limit, *scales[name]) for name, limit in self.given.items()]
        parts = [f"{name} <= {limit * scale:g} {unit}" for name, limit, scale, unit in told]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal rule.

        >>> HaltRule.from_json(HaltRule(latency_s=0.001).to_json()).latency_s
        0.001
        """
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> HaltRule:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such rule; the message names the place.
        """
        reader = ObjectReader(value, "halt")
        limits = {name: reader.maybe(name, reader.number) for name in cls.__slots__}
        reader.done()
        try:
            return cls(**limits)
        except ValueError as error:
            raise JsonError(f"`halt` contradicts itself: {error}") from None
