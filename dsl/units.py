"""Units: written with a prefix in the file, SI everywhere else.

Every physical quantity needs one of its units; percentages become fractions.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["UNITS", "in_si", "listed_units"]

#: What is measured -> unit -> its value in SI units (a fraction, for shares).
UNITS: Mapping[str, Mapping[str, float]] = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "frequency": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "power": {"W": 1.0, "mW": 1e-3},
    "share": {"%": 1e-2},
    "accuracy": {"%": 1e-2, "points": 1e-2},
}


def in_si(number: float, unit: str, measured: str) -> float:
    """The number in SI units, rounded so that what is written as 2 ms is the float 0.002.

    Raises:
        KeyError: `unit` is none of `measured`.

    >>> in_si(1.5, "GHz", "frequency"), in_si(0.5, "%", "share"), in_si(7, "us", "time")
    (1500000000.0, 0.005, 7e-06)
    """
    factor = UNITS[measured][unit]
    # Dividing by the exact reciprocal rounds once; multiplying by 1e-3 would round twice.
    return number / round(1 / factor) if factor < 1 else number * factor


def listed_units(measured: str) -> str:
    """The units a quantity may have, for a message.

    >>> listed_units("time")
    '`s`, `ms` or `us`'
    """
    *rest, last = [f"`{unit}`" for unit in UNITS[measured]]
    return f"{', '.join(rest)} or {last}" if rest else last
