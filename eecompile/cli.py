"""The command line: arguments in, exit status out.

Exit status: 0 done, 1 the user's input is wrong, 2 the environment lacks something, 70 a bug of
ours, 130 interrupted (143 by a request to terminate). With ``--json`` exactly one JSON object goes
to standard output, whatever happens; progress, warnings and errors for people go to standard
error, and so does what the user's own code prints.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from eecompile import __version__
from eecompile.arguments import UsageError, command_line
from eecompile.diagnostics import CompileErrors, Diagnostic, ToolError, missing_package

__all__ = ["main"]

_DONE, _USER, _ENVIRONMENT, _BUG, _INTERRUPTED, _TERMINATED = 0, 1, 2, 70, 130, 143

#: What the system refuses for reasons of its own; other `OSError`s are bugs of ours.
_SYSTEM = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE),
        *(errno.EIO, errno.ENOMEM, errno.EACCES, errno.EPERM),
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    told = _Told(sys.stdout, "--json" in given)
    with _terminated_like_interrupted(), _warnings_in_words():
        try:
            return _run(given, told)
        except BrokenPipeError:
            # The reader went away: nothing is left to tell it, not even by the last flush.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), told.output.fileno())
            return _DONE
        except OSError as error:  # standard output itself cannot be written
            print(f"error: cannot write the result: {error.strerror or error}", file=sys.stderr)
            return _ENVIRONMENT


def _run(given: Sequence[str], told: _Told) -> int:
    try:
        options = command_line().parse_args(given)
    except UsageError as error:
        told.errors(CompileErrors([Diagnostic("bad-argument", str(error), help=error.usage)]))
        return _USER
    except SystemExit as done:  # after --help and --version
        return int(done.code or _DONE)
    options.output_stream = told.output
    beside = contextlib.redirect_stdout(sys.stderr) if told.json else contextlib.nullcontext()
    try:
        with beside:
            status = int(options.command(options))
        told.output.flush()
        return status
    except CompileErrors as errors:
        told.errors(errors)
        return _USER
    except ToolError as error:
        told.failure("environment", str(error))
        return _ENVIRONMENT
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            return told.bug(error, given)
        told.failure("environment", str(missing))
        return _ENVIRONMENT
    except MemoryError:
        told.failure("environment", "There is not enough memory")
        return _ENVIRONMENT
    except KeyboardInterrupt as stop:
        # An interrupt inside `exec` of a text (dataclasses do that) makes CPython end the process
        # by the signal, handled or not, unless another text is run after it.
        exec("")
        told.failure("interrupted", "Interrupted; what was written before is as it was")
        return _TERMINATED if isinstance(stop, _Terminated) else _INTERRUPTED
    except SystemExit as ended:
        told.failure("input", f"The user's own code ended the program (SystemExit: {ended.code})")
        return _USER
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _SYSTEM:
            return told.bug(error, given)
        told.failure("environment", _system_message(error))
        return _ENVIRONMENT
    except Exception as error:
        return told.bug(error, given)


class _Told:
    """Says how a command failed, to people and, if they want, to scripts."""

    def __init__(self, output: TextIO, as_json: bool) -> None:
        self.output, self.json = output, as_json

    def _object(self, value: Any) -> None:
        if self.json:
            print(json.dumps(value, indent=2), file=self.output, flush=True)

    def errors(self, errors: CompileErrors) -> None:
        """The user's input is wrong."""
        self._object({"diagnostics": [found.to_json() for found in errors.diagnostics]})
        print(errors.full(), file=sys.stderr)

    def failure(self, kind: str, message: str) -> None:
        """Something else stopped the command."""
        self._object({"error": {"kind": kind, "message": message}})
        print(f"error: {message}", file=sys.stderr)

    def bug(self, error: Exception, given: Sequence[str]) -> int:
        """A broken invariant of ours; returns the exit status."""
        self._object({"error": {"kind": "bug", "message": f"{type(error).__name__}: {error}"}})
        traceback.print_exception(error, file=sys.stderr)
        print(
            f"\nthis is a bug in eecompile {__version__} "
            f"(Python {platform.python_version()}, {platform.platform()}): {error}\n"
            f"please report it with the lines above and this command: eecompile {' '.join(given)}",
            file=sys.stderr,
        )
        return _BUG


def _system_message(error: OSError) -> str:
    place = f" `{error.filename}`" if error.filename else ""
    message = f"The system refuses{place}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message += "; free some space, or let TMPDIR and EECOMPILE_CACHE name another disk"
    return message


class _Terminated(KeyboardInterrupt):
    """A request to terminate, which is obeyed as an interrupt is: by cleaning up."""


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does; a handler of the embedding program stays."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Warnings about clocks come without the place in our code; others stay as they are."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            from eecompile.runtime.governor import ClockWarning

            if issubclass(category, ClockWarning):
                print(f"warning: {message}; see `eecompile doctor`", file=sys.stderr)
            else:
                as_ever(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
