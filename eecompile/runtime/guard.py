"""Watches whether exits answer as the network itself would, and has them leave later if not.

A random share of the samples, the audits, runs to the network's end with every exit evaluated, and
gets the network's own answer. So it is known of an audit what each setting of the policy would have
answered, and whether that differs.

Each setting has a debt: an audit that differs adds 1, and each audit takes the allowed share off,
down to 0. A setting whose debt reaches `ALARM` is given up until the debt is paid off; the loosest
one that is not given up decides, and beyond the last nothing leaves early. So while a setting
decides, its audits never differ more often than allowed by more than `ALARM` of them, however the
inputs change: what is lost beyond the allowed share is bounded by the number of tightenings, not by
time. After one that differs audits come up to `FASTER` times as often, so that tens of them tell a
strong change; each audit that follows cools that off.

Source: cumulative sums (Page, Biometrika 41, 1954), which for a share that is allowed and one that
is not are the likelihood ratio's; ALARM, FASTER and COOLING are from simulations with
``benchmarks/guard.py --synthetic``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from eecompile.checked_json import JsonError, ObjectReader
from eecompile.guard_rule import GuardRule
from eecompile.policies import ExitPolicy, NeverPolicy, from_json
from eecompile.policies.base import EXIT, ExitOutputs
from eecompile.policies.scores import max_softmax
from eecompile.runtime.guard_report import GuardedExit, GuardReport, wilson_bounds

__all__ = ["ALARM", "COOLING", "FASTER", "Guard"]

#: Audits that differ, beyond the allowed ones, at which a setting is given up.
ALARM = 2.0
#: How many times as often samples are audited, at most.
FASTER = 10.0
#: What is left of the haste after one more audit.
COOLING = 0.97
#: Weight of one audit in recent shares of the exits.
_RECENT = 0.01


class Guard:
    """What is known of a policy's answers so far. For one thread at a time.

    Attributes:
        rule: what is allowed.
        level: index of the setting that decides; the number of settings: nothing leaves early.
    """

    def __init__(
        self, rule: GuardRule, exit_names: Sequence[str], generator: Random | None = None
    ) -> None:
        """Settings that differ too often on the calibration data are given up from the start.

        Args:
            rule: see above.
            exit_names: by exit index, the final one last.
            generator: chooses the audits by its `random`; seeded by the system if not given.

        Raises:
            ValueError: the rule's settings are none of these exits.
        """
        self.rule, self._names = rule, tuple(exit_names)
        self._last = len(exit_names) - 1
        if len(rule.settings[0].exits) != len(exit_names):
            raise ValueError(f"its settings are not of {self._last} exits and the end")
        policies = [from_json(setting.policy) for setting in rule.settings]
        self._policies: list[ExitPolicy] = [*policies, NeverPolicy(self._last)]
        self._random = (generator or Random()).random
        leaving = [1 - setting.exits[-1] for setting in rule.settings]
        #: An audit costs more where more leave: where fewer do, more are looked at for the same.
        self._thrift = [*(min(FASTER, leaving[0] / max(one, 1e-9)) for one in leaving), FASTER]
        self.reset()

    def reset(self) -> None:
        """Nothing is known but the calibration data."""
        settings = self.rule.settings
        self._given_up = [setting.differing > self.rule.drop for setting in settings]
        self._debts = [ALARM * given_up for given_up in self._given_up]
        self._haste = 1.0  # The first samples may be of a new place already.
        self._recent = list(settings[0].exits)
        self._samples = self._audits = self._differing = self._tightened = self._loosened = 0
        self._stretch = [0, 0]  # audits at this level, and how many of them differed
        self._exits = [[0, 0, 0, 0.0] for _ in range(self._last)]  # taken, audited, agreed, sum
        self.level = 0
        self._settle()
        self._tightened = 0

    def _settle(self) -> None:
        """The loosest setting that is not given up decides from now on."""
        before = self.level
        self.level = next(
            (k for k, given_up in enumerate(self._given_up) if not given_up), len(self._given_up)
        )
        if self.level != before:
            self._stretch = [0, 0]
            self._tightened += self.level > before
            self._loosened += self.level < before
        haste = 1 + (FASTER - 1) * self._haste
        self._share = min(1.0, self.rule.share * max(haste, self._thrift[self.level]))

    def begin(self) -> tuple[ExitPolicy, bool]:
        """Who decides on the next sample, and whether it is an audit."""
        self._samples += 1
        return self._policies[self.level], self._random() < self._share

    def answered(self, index: int, logits: np.ndarray) -> None:
        """Exit `index` answered a sample that was no audit with these logits, (1, classes)."""
        if index < self._last:
            found = self._exits[index]
            found[0] += 1
            found[3] += max_softmax(logits).item()

    def audited(self, outputs: Sequence[ExitOutputs], final: np.ndarray) -> None:
        """What every exit and the network itself computed for an audit.

        Args:
            outputs: of each exit, of this one sample.
            final: the network's own logits, (1, classes).
        """
        own, ways = int(final.argmax()), [self._way(p, outputs) for p in self._policies[:-1]]
        level, drop = self.level, self.rule.drop
        differing = [logits is not None and int(logits.argmax()) != own for _, logits in ways]
        self._audits += 1
        self._stretch[0] += 1
        self._haste *= COOLING
        if level < len(ways):
            self._count(*ways[level], differs=differing[level])
        for k, differs in enumerate(differing):
            debt = min(max(self._debts[k] + differs - drop, 0.0), ALARM)
            self._debts[k] = debt
            # Given up at the limit, taken again when all is paid: no to and fro in between.
            self._given_up[k] = debt >= ALARM - drop if not self._given_up[k] else debt > 0
        index = ways[0][0]
        self._recent = [(1 - _RECENT) * share for share in self._recent]
        self._recent[index] += _RECENT
        self._settle()

    def _count(self, index: int, logits: np.ndarray | None, *, differs: bool) -> None:
        """What the setting in use would have done with an audit."""
        if logits is None:
            return
        self.answered(index, logits)
        found = self._exits[index]
        found[1] += 1
        found[2] += not differs
        self._differing += differs
        self._stretch[1] += differs
        if differs:
            self._haste = 1.0

    def _way(
        self, policy: ExitPolicy, outputs: Sequence[ExitOutputs]
    ) -> tuple[int, np.ndarray | None]:
        """Where a policy would leave, and the answer there; None at the end."""
        index, state = policy.first(), policy.start(1)
        while index < self._last:
            after = policy.decide(index, outputs[index], state).item()
            if after == EXIT:
                return index, policy.answer(index, outputs[index])
            index = after if after > index else self._last
        return self._last, None

    def report(self) -> GuardReport:
        """What is known so far."""
        drift = sum(
            abs(now - then)
            for now, then in zip(self._recent, self.rule.settings[0].exits, strict=True)
        )
        audits, differing = self._stretch
        low, high = wilson_bounds(differing, audits)
        return GuardReport(
            drop=self.rule.drop,
            share=self.rule.share,
            share_now=self._share,
            setting=self.level,
            settings=len(self.rule.settings),
            samples=self._samples,
            audits=self._audits,
            differing=self._differing,
            differing_at_least=low,
            differing_at_most=high,
            debt=self._debts[self.level] if self.level < len(self._debts) else 0.0,
            tightened=self._tightened,
            loosened=self._loosened,
            drift=drift / 2,
            exits=tuple(
                GuardedExit(
                    name,
                    int(taken),
                    int(audits),
                    int(agreed),
                    wilson_bounds(agreed, audits)[0],
                    total / taken if taken else None,
                )
                for name, (taken, audits, agreed, total) in zip(
                    self._names, self._exits, strict=False
                )
            ),
        )

    def memory(self) -> dict[str, Any]:
        """JSON value of what is known, which audits come next apart."""
        return {
            "debts": list(self._debts),
            "given_up": list(self._given_up),
            "haste": self._haste,
            "recent": list(self._recent),
            "stretch": list(self._stretch),
            "counts": [
                *(self._samples, self._audits, self._differing),
                *(self._tightened, self._loosened),
            ],
            "exits": [list(found) for found in self._exits],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from what `memory` gave.

        Raises:
            ValueError: it is of other settings or exits, or damaged; nothing has changed then.
        """
        reader = ObjectReader(dict(memory), "guard")
        settings, exits = len(self._debts), self._last
        debts = _numbers(reader.numbers("debts"), settings, ALARM, "debts")
        given_up = reader.items("given_up")
        if len(given_up) != settings or not all(type(value) is bool for value in given_up):
            raise JsonError(f"`guard.given_up` must be {settings} of true or false")
        (haste,) = _numbers([reader.number("haste")], 1, 1.0, "haste")
        recent = _numbers(reader.numbers("recent"), exits + 1, 1.0 + 1e-9, "recent")
        stretch = _counts(reader.items("stretch"), 2, "stretch")
        counts = _counts(reader.items("counts"), 5, "counts")
        rows = reader.items("exits")
        if len(rows) != exits or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise JsonError(f"`guard.exits` must be {exits} lists of 4 numbers")
        found: list[list[Any]] = []
        for row in rows:
            counted = _counts(row[:3], 3, "exits")
            total = _numbers(row[3:], 1, float("inf"), "exits")
            found.append([*counted, *total])
        reader.done()
        self._debts, self._given_up, self._haste = debts, list(given_up), haste
        self._recent, self._exits = recent, found
        self.level = next((k for k, up in enumerate(given_up) if not up), settings)
        self._settle()
        self._stretch = stretch
        self._samples, self._audits, self._differing, self._tightened, self._loosened = counts


def _numbers(values: Sequence[Any], count: int, most: float, name: str) -> list[float]:
    if len(values) != count or not all(
        type(value) in (int, float) and 0 <= value <= most for value in values
    ):
        raise JsonError(f"`guard.{name}` must be {count} numbers of 0 to {most:g}")
    return list(map(float, values))


def _counts(values: Sequence[Any], count: int, name: str) -> list[int]:
    if len(values) != count or not all(type(value) is int and value >= 0 for value in values):
        raise JsonError(f"`guard.{name}` must be {count} whole numbers, 0 or more")
    return list(values)
