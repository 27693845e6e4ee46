"""What a guard has to go by: what each setting owes, and whether inputs are as they were.

Everything here is numbers: which exits samples took, and whether audits differ. So it can be tried
on streams of which that is known, as ``benchmarks/guard.py --synthetic`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from eecompile.checked_json import JsonError, ObjectReader
from eecompile.guard_rule import RESERVE, GuardRule

__all__ = ["GuardOptions", "Watch", "counts_of", "numbers_to"]

#: Samples after which it is looked whether they take other exits than before.
_BLOCK = 16
#: Weight of a block in what is lately so, and at least in what is usually so.
_LATELY, _USUALLY = 1 / 4, 1 / 64
#: Exits that nothing took so far are not impossible.
_RARE = 0.01
#: Rounded sums of shares may be a little above 1.
_WHOLE = 1.0 + 1e-9


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How a guard weighs what it sees. The defaults are from simulations, see `Guard`.

    Attributes:
        reserve: settings are held to this part of what is allowed; the rest is for delays.
        alarm: audits that differ, beyond that, at which a setting is given up.
        most: largest debt: what is beyond `alarm` makes it stay given up for longer.
        doubt: share of `alarm` that every setting owes at least once inputs change, or the one in
            use is given up.
        margin: how many times less than allowed a setting must have differed on the calibration
            data to be kept then; the others have to pay first.
        faster: how many times as often samples are audited, at most.
        cooling: what is left of the haste after one more audit.
        change: how far shares of the exits depart when inputs are said to have changed, in standard
            deviations of their chi-square statistic.
    """

    reserve: float = RESERVE
    alarm: float = 2.0
    most: float = 2.0
    doubt: float = 0.75
    margin: float = 5.0
    faster: float = 10.0
    cooling: float = 0.97
    change: float = 6.0


class Watch:
    """Which setting decides, and how often samples are audited.

    Attributes:
        level: index of the setting that decides; the number of settings: nothing leaves early.
        share: of the samples that are audited.
        debts: of each setting.
        given_up: whether each setting is.
        haste: 1 after a sign of change, cooling off with every audit.
        usual: per setting, the shares of the exits that samples took lately, over 1,000 of them.
        lately: the same of the setting in use, over some 50.
        blocks: per setting, of how many blocks of samples `usual` is, as far as that matters.
        changes: how often inputs were said to have changed.
    """

    def __init__(self, rule: GuardRule, options: GuardOptions) -> None:
        self.rule, self.options = rule, options
        self.allowed = options.reserve * rule.drop
        leaving = [1 - setting.exits[-1] for setting in rule.settings]
        #: An audit costs more where more leave: where fewer do, more are looked at for the same.
        self._thrift = [
            *(min(options.faster, leaving[0] / max(one, 1e-9)) for one in leaving),
            options.faster,
        ]
        self.reset()

    def reset(self) -> None:
        """Nothing is known but the calibration data."""
        settings = self.rule.settings
        self.given_up = [setting.differing > self.allowed for setting in settings]
        self.debts = [self.options.alarm * given_up for given_up in self.given_up]
        self.haste = 1.0  # The first samples may be of a new place already.
        self.usual = [list(setting.exits) for setting in settings]
        self.blocks = [round(1 / _USUALLY)] * len(settings)
        self.changes = 0
        self.level = -1
        self.settle()

    def settle(self) -> None:
        """The loosest setting that is not given up decides from now on."""
        before, settings = self.level, len(self.given_up)
        self.level = next((k for k, gone in enumerate(self.given_up) if not gone), settings)
        if self.level != before:
            self._counts, self._counted = [0] * len(self.rule.settings[0].exits), 0
            self.lately = list(self.usual[min(self.level, settings - 1)])
        self._hasten()

    def _hasten(self) -> None:
        haste = 1 + (self.options.faster - 1) * self.haste
        self.share = min(1.0, self.rule.share * max(haste, self._thrift[self.level]))

    @property
    def debt(self) -> float:
        """Of the setting in use; 0 where nothing leaves early."""
        return self.debts[self.level] if self.level < len(self.debts) else 0.0

    def took(self, index: int) -> None:
        """A sample left at this exit, or would have as an audit."""
        self._counts[index] += 1
        self._counted += 1
        if self._counted == _BLOCK:
            if self.level < len(self.debts):
                self._compare()
            self._counts, self._counted = [0] * len(self._counts), 0

    def _compare(self) -> None:
        """Whether the exits taken lately are the usual ones: a chi-square test of their shares."""
        usual, lately, level = self.usual[self.level], self.lately, self.level
        weight = max(_USUALLY, 1 / (self.blocks[level] + 1))
        self.blocks[level] += self.blocks[level] < 1 / _USUALLY
        variance = (_LATELY / (2 - _LATELY) + weight / (2 - weight)) / _BLOCK
        far = 0.0
        for k, count in enumerate(self._counts):
            lately[k] += _LATELY * (count / _BLOCK - lately[k])
            far += (lately[k] - usual[k]) ** 2 / (usual[k] + _RARE)
            usual[k] += weight * (count / _BLOCK - usual[k])
        free = len(usual) - 1
        if far / variance > free + self.options.change * sqrt(2 * free):
            self.changes += 1
            self.usual[level], self.blocks[level] = list(lately), round(1 / _LATELY)
            self._doubt()

    def _doubt(self) -> None:
        """Inputs are others: what audits showed may hold no longer, of any setting."""
        options, self.haste = self.options, 1.0
        for k, setting in enumerate(self.rule.settings):
            risky = options.margin * setting.differing > self.allowed
            self.debts[k] = max(self.debts[k], options.alarm * (1 if risky else options.doubt))
            self.given_up[k] |= risky
        self.settle()

    def audited(self, differing: Sequence[bool]) -> None:
        """An audit, and by setting whether its answer would have been another."""
        options = self.options
        self.haste *= options.cooling
        if self.level < len(differing) and differing[self.level]:
            self.haste = 1.0
        level = self.level
        for k, differs in enumerate(differing):
            debt = min(max(self.debts[k] + differs - self.allowed, 0.0), options.most)
            self.debts[k] = debt
            # Given up at the limit, taken again when all is paid: no to and fro in between.
            limit = options.alarm - self.allowed
            self.given_up[k] = debt >= limit if not self.given_up[k] else debt > 0
        if level < len(differing) and self.given_up[level]:
            self._doubt()
        self.settle()

    def memory(self) -> dict[str, Any]:
        """JSON value of what is known."""
        return {
            "debts": list(self.debts),
            "given_up": list(self.given_up),
            "haste": self.haste,
            "usual": [list(shares) for shares in self.usual],
            "lately": list(self.lately),
            "blocks": list(self.blocks),
            "block": list(self._counts),
            "changes": self.changes,
        }

    def remember(self, reader: ObjectReader) -> None:
        """Go on from what `memory` gave. What it raises leaves this half changed.

        Raises:
            JsonError: it is of other settings or exits, or damaged.
        """
        settings, exits = len(self.debts), len(self.rule.settings[0].exits)
        self.debts = numbers_to(reader.numbers("debts"), settings, self.options.most, "debts")
        given_up = reader.items("given_up")
        if len(given_up) != settings or not all(type(value) is bool for value in given_up):
            raise JsonError(f"`guard.given_up` must be {settings} of true or false")
        self.given_up = list(given_up)
        (self.haste,) = numbers_to([reader.number("haste")], 1, 1.0, "haste")
        usual = reader.items("usual")
        if len(usual) != settings or not all(isinstance(shares, list) for shares in usual):
            raise JsonError(f"`guard.usual` must be {settings} lists of shares")
        self.usual = [numbers_to(shares, exits, _WHOLE, "usual") for shares in usual]
        lately = numbers_to(reader.numbers("lately"), exits, _WHOLE, "lately")
        self.blocks = counts_of(reader.items("blocks"), settings, "blocks")
        counts = counts_of(reader.items("block"), exits, "block")
        if sum(counts) >= _BLOCK:
            raise JsonError(f"`guard.block` must be less than {_BLOCK} samples")
        (self.changes,) = counts_of([reader.take("changes")], 1, "changes")
        self.settle()
        self.lately, self._counts, self._counted = lately, counts, sum(counts)


def numbers_to(values: Sequence[Any], count: int, most: float, name: str) -> list[float]:
    """The values as they are.

    Raises:
        JsonError: they are not `count` numbers from 0 to `most`.
    """
    if len(values) != count or not all(
        type(value) in (int, float) and 0 <= value <= most for value in values
    ):
        raise JsonError(f"`guard.{name}` must be {count} numbers of 0 to {most:g}")
    return list(map(float, values))


def counts_of(values: Sequence[Any], count: int, name: str) -> list[int]:
    """The values as they are.

    Raises:
        JsonError: they are not `count` whole numbers of 0 or more.
    """
    if len(values) != count or not all(type(value) is int and value >= 0 for value in values):
        raise JsonError(f"`guard.{name}` must be {count} whole numbers, 0 or more")
    return list(values)
