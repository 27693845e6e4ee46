"""What a guard allows answers to differ, how many it looks at, and the settings it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eecompile.checked_json import JsonError, ObjectReader

__all__ = ["RESERVE", "GuardRule", "GuardSetting"]

#: Settings are held to this part of what is allowed; the rest is for the time it takes to find out.
RESERVE = 0.7

_MOST_SETTINGS = 100
_MOST_EXITS = 1_000


@dataclass(frozen=True, slots=True)
class GuardSetting:
    """A setting of the policy, and what it does to the calibration data.

    Attributes:
        policy: as JSON.
        differing: share of the answers that are not the network's own.
        exits: share of the samples each exit answers, the final one last.

    Raises:
        ValueError: these are no shares.
    """

    policy: Mapping[str, Any]
    differing: float
    exits: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.differing, *self.exits)):
            raise ValueError("shares must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class GuardRule:
    """What `eecompile.runtime.guard.Guard` watches.

    Attributes:
        drop: largest share of answers that may differ from the network's own. What they lose in
            accuracy against it is at most that.
        share: of the samples that run to the end to find out.
        settings: of the policy, the one it was fitted to first, each more careful than the one
            before. After the last nothing leaves early.

    Raises:
        ValueError: the parts contradict one another.
    """

    drop: float
    share: float
    settings: tuple[GuardSetting, ...]

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise ValueError("drop must be above 0 and below 1")
        if not 0 < self.share <= 1:
            raise ValueError("share must be above 0 and at most 1")
        if not self.settings:
            raise ValueError("there must be a setting")
        if len({len(setting.exits) for setting in self.settings}) > 1:
            raise ValueError("settings must be of the same exits")

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal rule.

        >>> rule = GuardRule(0.01, 0.05, (GuardSetting({"kind": "never", "exits": 0}, 0, (1,)),))
        >>> GuardRule.from_json(rule.to_json()) == rule
        True
        """
        settings = [
            {"policy": dict(s.policy), "differing": s.differing, "exits": list(s.exits)}
            for s in self.settings
        ]
        return {"drop": self.drop, "share": self.share, "settings": settings}

    @classmethod
    def from_json(cls, value: Any) -> GuardRule:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such rule; the message names the place.
        """
        reader = ObjectReader(value, "guard")
        drop, share = reader.number("drop"), reader.number("share")
        try:
            settings = tuple(map(_setting, reader.objects("settings", _MOST_SETTINGS)))
            reader.done()
            return cls(drop, share, settings)
        except JsonError:
            raise
        except ValueError as error:
            raise JsonError(f"`guard` contradicts itself: {error}") from None


def _setting(reader: ObjectReader) -> GuardSetting:
    found = GuardSetting(
        reader.mapping("policy"), reader.number("differing"), reader.numbers("exits")
    )
    if len(found.exits) > _MOST_EXITS:
        reader.fail("exits", f"a list of at most {_MOST_EXITS} items")
    reader.done()
    return found
