"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "duration",
    "hertz",
    "joules",
    "milliseconds",
    "percent",
    "readable",
    "threads_in_words",
    "written",
]


def written(value: Any, write: Callable[[Any], str]) -> str:
    """A figure as it is written in a table: "-" where it is not known.

    >>> written(0.5, percent), written(None, percent)
    ('50.0 %', '-')
    """
    return "-" if value is None else write(value)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent.

    >>> percent(0.7012)
    '70.1 %'
    """
    return f"{100 * fraction:.{digits}f} %"


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds: no digit below a microsecond, fewer where it is long.

    >>> milliseconds(0.000151), milliseconds(0.00151), milliseconds(0.0432), milliseconds(1e30)
    ('0.151 ms', '1.51 ms', '43.2 ms', '1e+33 ms')
    """
    value = seconds * 1e3
    if value >= 1e9:  # Nobody means this.
        return f"{value:.3g} ms"
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f} ms"


def duration(seconds: float) -> str:
    """A time in three figures, from microseconds to seconds.

    >>> duration(2.31e-6), duration(0.000151), duration(0.00151), duration(0.0432), duration(1.5)
    ('2.31 us', '151 us', '1.51 ms', '43.2 ms', '1.5 s')
    """
    for limit, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def hertz(frequency_hz: float | None) -> str:
    """A clock in the unit it is written in, without digits that say nothing.

    >>> hertz(600e6), hertz(1.2e9), hertz(1_416_000_000), hertz(None)
    ('600 MHz', '1.2 GHz', '1.416 GHz', 'clock unknown')
    """
    if frequency_hz is None:
        return "clock unknown"
    if frequency_hz < 999.5e6:
        return f"{frequency_hz / 1e6:.4g} MHz"
    return f"{frequency_hz / 1e9:.4g} GHz"


def joules(energy_j: float) -> str:
    """An energy in three figures, in joules to nanojoules.

    >>> joules(1.5), joules(0.0123), joules(2.5e-5), joules(1.7e-8)
    ('1.5 J', '12.3 mJ', '25 uJ', '17 nJ')
    """
    for limit, unit in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ")):
        if abs(energy_j) >= 0.9995 * limit:
            return f"{energy_j / limit:.3g} {unit}"
    return f"{energy_j * 1e9:.3g} nJ"


def threads_in_words(threads: int) -> str:
    """How many threads something was measured on.

    >>> threads_in_words(1), threads_in_words(4)
    ('one thread', '4 threads')
    """
    return "one thread" if threads == 1 else f"{threads} threads"


def readable(count: float, unit: str = "") -> str:
    """A count in three figures with its decimal prefix.

    >>> readable(125_485_706, "MACs"), readable(640, "MACs"), readable(65536, "B")
    ('125 M MACs', '640 MACs', '65.5 kB')
    >>> readable(14_200)
    '14.2 k'
    """
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit * 0.9995:
            text = f"{count / limit:.3g} {prefix}"
            break
    else:
        text, prefix = f"{count:.3g} ", ""
    return f"{text}{' ' if prefix and len(unit) > 1 else ''}{unit}".strip()
