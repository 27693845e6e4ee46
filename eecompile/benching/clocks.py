"""Which clocks are asked for: `--freq`, or what the artifact's `.ee` file says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eecompile.artifact import Artifact
from eecompile.board import DvfsState
from eecompile.diagnostics import CompileErrors, Diagnostic, Source
from eecompile.dsl.given import given_frequencies
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse
from eecompile.figures import hertz
from eecompile.spec import Target

__all__ = ["Wanted", "extended_states", "read_wanted", "wanted_by_file"]

#: Every clock of the board, the one it runs at, or those a target statement leaves.
Wanted = Literal["all", "current"] | Target

#: Clocks that differ by less are one: people write 1.2 GHz for 1199999 kHz.
_SAME = 5e-3

#: What a processor's clock may be, in hertz.
_LOWEST, _HIGHEST = 1e7, 1e10


def read_wanted(text: str) -> Wanted:
    """What ``--freq`` means: "all", "current", or a list as the language writes it.

    >>> read_wanted("all")
    'all'
    >>> [(f.low_hz, f.high_hz) for f in read_wanted("600 MHz, 1 GHz .. 1.5 GHz").frequencies]
    [(600000000.0, 600000000.0), (1000000000.0, 1500000000.0)]

    Raises:
        CompileErrors: it is none of these.
    """
    word = text.strip()
    if word == "all":
        return "all"
    if word == "current":
        return "current"
    frequencies, place = given_frequencies("--freq", text)
    return Target("given", frequencies=frequencies, spans={"frequencies": place})


def wanted_by_file(artifact: Artifact) -> Target | None:
    """The artifact's own target statement, where it names a cluster or clocks."""
    spec, _ = parse(Source("model.ee", artifact.source_text))
    spec = apply_overrides(spec, artifact.manifest.fitted.get("overrides", ()))
    name = artifact.manifest.target.name
    found = next((target for target in spec.targets if target.name == name), None)
    return found if found and (found.frequencies or found.cluster) else None


def extended_states(states: Sequence[DvfsState], wanted: Target) -> tuple[DvfsState, ...]:
    """States of a machine that does not tell its clocks, and those asked for: the latter modelled.

    >>> [state.frequency_hz for state in extended_states(
    ...     [DvfsState("cpu", 2e9)], read_wanted("1 GHz, 3 GHz, 2 GHz"))]
    [1000000000.0, 2000000000.0, 3000000000.0]

    Raises:
        CompileErrors: one is no clock of a processor.
    """
    problems = []
    found = list(states)
    for given in wanted.frequencies:
        for clock in dict.fromkeys((given.low_hz, given.high_hz)):
            if not _LOWEST <= clock <= _HIGHEST:
                message = f"No processor runs at {hertz(clock)}"
                help_ = f"expected {hertz(_LOWEST)} to {hertz(_HIGHEST)}"
                problems.append(Diagnostic("unknown-frequency", message, given.span, help=help_))
            elif not any(_same(state.frequency_hz, clock) for state in found):
                found.append(DvfsState(states[0].cluster, clock))
    if problems:
        raise CompileErrors(problems)
    return tuple(sorted(found, key=lambda state: state.frequency_hz or 0.0))


def _same(one: float | None, other: float) -> bool:
    return one is not None and abs(one - other) <= _SAME * other
