"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["milliseconds", "percent", "readable", "threads_in_words"]


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent.

    >>> percent(0.7012)
    '70.1 %'
    """
    return f"{100 * fraction:.{digits}f} %"


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds: no digit below a microsecond, fewer where it is long.

    >>> milliseconds(0.000151), milliseconds(0.00151), milliseconds(0.0432)
    ('0.151 ms', '1.51 ms', '43.2 ms')
    """
    value = seconds * 1e3
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f} ms"


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
