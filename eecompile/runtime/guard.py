"""Watches whether exits answer as the network itself would, and has them leave later if not.

A random share of the samples, the audits, runs to the network's end with every exit evaluated, and
gets the network's own answer. So it is known of an audit what each setting of the policy would have
answered, and whether that differs.

Each setting has a debt: an audit that differs adds 1, and each audit takes off what is allowed,
less a reserve, down to 0. A setting whose debt reaches the alarm is given up until the debt is paid
off; the loosest one that is not given up decides, and beyond the last nothing leaves early. So
while a setting decides, its audits never differ more often than allowed by more than the alarm of
them, however the inputs change: what is lost beyond is bounded by the number of tightenings, not by
time.
After one that differs audits come up to ten times as often, so that tens of them tell a strong
change; each audit that follows cools that off.

Which exits samples take is known of all of them, and changed inputs mostly show there first. When
the shares depart from the usual ones, or the setting in use is given up, what audits showed counts
for less: only settings with a margin on the calibration data stay, owing most of an alarm; others
have to pay as if given up. So a change that shows costs next to nothing in answers. One that does
not show in the exits is found by audits alone: with 5 % audited and 1 % allowed that can take
some thousand samples, in which more than that may differ.

Source: cumulative sums (Page, Biometrika 41, 1954), which for a share that is allowed and one that
is not are the likelihood ratio's. The defaults of `GuardOptions` were chosen on streams of
``benchmarks/guard.py --synthetic``, which prints them and alternatives, and tried on the
calibration images of that benchmark; what it reports is of others.
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
from eecompile.runtime.guard_watch import GuardOptions, Watch, counts_of, numbers_to

__all__ = ["Guard"]

#: Weight of one audit in recent shares of the exits.
_RECENT = 0.01


class Guard:
    """What is known of a policy's answers so far. For one thread at a time.

    Attributes:
        rule: what is allowed.
    """

    def __init__(
        self,
        rule: GuardRule,
        exit_names: Sequence[str],
        generator: Random | None = None,
        options: GuardOptions | None = None,
    ) -> None:
        """Settings that differ too often on the calibration data are given up from the start.

        Args:
            rule: see above.
            exit_names: by exit index, the final one last.
            generator: chooses the audits by its `random`; seeded by the system if not given.
            options: other than the defaults.

        Raises:
            ValueError: the rule's settings are none of these exits, or are of gates shifted
                differently: an audit of one would tell nothing of the others.
        """
        self.rule, self._names = rule, tuple(exit_names)
        self._last = len(exit_names) - 1
        if len(rule.settings[0].exits) != len(exit_names):
            raise ValueError(f"its settings are not of {self._last} exits and the end")
        policies = [from_json(setting.policy) for setting in rule.settings]
        shifts = {policy.gate_shift for policy in policies}
        if len(shifts) > 1:
            raise ValueError(f"its settings shift gates by {sorted(shifts)}, not all alike")
        self._policies: list[ExitPolicy] = [*policies, NeverPolicy(self._last, *shifts)]
        self._random = (generator or Random()).random
        self._watch = Watch(rule, options or GuardOptions())
        self.reset()

    @property
    def level(self) -> int:
        """Index of the setting that decides; the number of settings: nothing leaves early."""
        return self._watch.level

    def reset(self) -> None:
        """Nothing is known but the calibration data."""
        self._watch.reset()
        self._recent = list(self.rule.settings[0].exits)
        self._samples = self._audits = self._differing = self._tightened = self._loosened = 0
        self._stretch = [0, 0]  # audits at this level, and how many of them differed
        self._exits = [[0, 0, 0, 0.0] for _ in range(self._last)]  # taken, audited, agreed, sum

    def _moved(self, before: int) -> None:
        """Counts a change of the setting, where there was one."""
        if self.level != before:
            self._stretch = [0, 0]
            self._tightened += self.level > before
            self._loosened += self.level < before

    def begin(self) -> tuple[ExitPolicy, bool]:
        """Who decides on the next sample, and whether it is an audit."""
        self._samples += 1
        return self._policies[self.level], self._random() < self._watch.share

    def answered(self, index: int, logits: np.ndarray) -> None:
        """Exit `index` answered a sample that was no audit with these logits, (1, classes)."""
        self._took(index, logits)
        before = self.level
        self._watch.took(index)
        self._moved(before)

    def _took(self, index: int, logits: np.ndarray) -> None:
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
        differing = [logits is not None and int(logits.argmax()) != own for _, logits in ways]
        level, index = self.level, ways[0][0]
        self._audits += 1
        self._stretch[0] += 1
        if level < len(ways):
            self._count(*ways[level], differs=differing[level])
        self._recent = [(1 - _RECENT) * share for share in self._recent]
        self._recent[index] += _RECENT
        self._watch.audited(differing)
        if self.level == level < len(ways):
            self._watch.took(ways[level][0])
        self._moved(level)

    def _count(self, index: int, logits: np.ndarray | None, *, differs: bool) -> None:
        """What the setting in use would have done with an audit."""
        if logits is None:
            return
        self._took(index, logits)
        found = self._exits[index]
        found[1] += 1
        found[2] += not differs
        self._differing += differs
        self._stretch[1] += differs

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
            share_now=self._watch.share,
            setting=self.level,
            settings=len(self.rule.settings),
            samples=self._samples,
            audits=self._audits,
            differing=self._differing,
            differing_at_least=low,
            differing_at_most=high,
            debt=self._watch.debt,
            tightened=self._tightened,
            loosened=self._loosened,
            drift=drift / 2,
            changes=self._watch.changes,
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
            **self._watch.memory(),
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
        reader, exits = ObjectReader(dict(memory), "guard"), self._last
        watch = Watch(self.rule, self._watch.options)
        watch.remember(reader)
        recent = numbers_to(reader.numbers("recent"), exits + 1, 1.0 + 1e-9, "recent")
        stretch = counts_of(reader.items("stretch"), 2, "stretch")
        counts = counts_of(reader.items("counts"), 5, "counts")
        rows = reader.items("exits")
        if len(rows) != exits or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise JsonError(f"`guard.exits` must be {exits} lists of 4 numbers")
        found: list[list[Any]] = []
        for row in rows:
            counted = counts_of(row[:3], 3, "exits")
            total = numbers_to(row[3:], 1, float("inf"), "exits")
            found.append([*counted, *total])
        reader.done()
        self._watch, self._recent, self._exits = watch, recent, found
        self._stretch = stretch
        self._samples, self._audits, self._differing, self._tightened, self._loosened = counts
