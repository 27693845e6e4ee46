"""A compiler for early-exit inference: networks that really stop computing.

>>> import eecompile as ee
>>> ee.__version__.count(".")
2

``ee.load("out/")`` gives a `Session` whose `run` answers one input. Importing this package, and
loading an artifact, needs numpy only.

Who sets the clocks a policy asks for is a `Governor`: by itself a session uses Linux's, and says
with a `ClockWarning` where it may not. ``ee.load("out/", governor=ee.NoGovernor())`` leaves clocks
alone; a `RecordingGovernor` writes down what it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eecompile.runtime.answers import Answer, BatchAnswer
    from eecompile.runtime.governor import ClockWarning, Governor, NoGovernor, RecordingGovernor
    from eecompile.runtime.session import Session, load

__all__ = [
    "Answer",
    "BatchAnswer",
    "ClockWarning",
    "Governor",
    "NoGovernor",
    "RecordingGovernor",
    "Session",
    "__version__",
    "load",
]

__version__ = "0.1.0"

#: Where the public names live; they are imported when first asked for, so that the command line
#: and the parts of the compiler start without the runtime.
_HOMES = {
    "Answer": "eecompile.runtime.answers",
    "BatchAnswer": "eecompile.runtime.answers",
    "ClockWarning": "eecompile.runtime.governor",
    "Governor": "eecompile.runtime.governor",
    "NoGovernor": "eecompile.runtime.governor",
    "RecordingGovernor": "eecompile.runtime.governor",
    "Session": "eecompile.runtime.session",
    "load": "eecompile.runtime.session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
