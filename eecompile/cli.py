"""The command line: arguments in, exit status out.

Exit status: 0 done, 1 the user's input is wrong, 2 the environment lacks something, 70 a bug of
ours, 130 interrupted (143 by a request to terminate). With ``--json`` exactly one JSON object goes
to standard output, whatever happens; progress, warnings and errors for people go to standard
error, and so does what the user's own code prints.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from eecompile import __version__
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
    with _terminated_like_interrupted():
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
        options = _parser().parse_args(given)
    except _UsageError as error:
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


class _UsageError(Exception):
    """Arguments that make no sense, and how they are written."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message[:1].upper() + message[1:])
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are wrong input: exit status 1, and one JSON object where it is wanted."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting with argparse's status 2."""
        usage = " ".join(self.format_usage().split())
        raise _UsageError(message, f"{usage} (`{self.prog} --help` explains)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eecompile",
        description="Compile a trained network into kernels that really exit early.",
        epilog="Start with `eecompile demo`, or with `eecompile init MODEL.onnx -o MODEL.ee`.",
    )
    parser.add_argument("--version", action="version", version=f"eecompile {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in (
        _init,
        _check,
        _format,
        _build,
        _eval,
        _bench,
        _run_,
        _verify,
        _inspect,
        _targets,
        _doctor,
        _demo,
    ):
        add(verbs)
    return parser


def _at_least(least: int) -> Any:
    """An argument's type: a whole number of at least `least`."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, found {value}")
        return value

    number.__name__ = "whole number"
    return number


def _seconds(text: str) -> float:
    """An argument's type: a time above zero, of a day at most."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        allowed = "expected seconds above 0 and at most 86400, a day"
        raise argparse.ArgumentTypeError(f"{allowed}, found {text}")
    return value


def _verb(
    verbs: Any, name: str, about: str, example: str, *, quiet: bool = False
) -> argparse.ArgumentParser:
    """A sub-command: its function is `commands.<name>`, imported when it is run."""

    def command(options: argparse.Namespace) -> int:
        from eecompile import commands

        return int(getattr(commands, name)(options))

    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the .ee file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a value of the file; may be repeated",
    )


def _artifact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="folder written by `eecompile build`")


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        metavar="N",
        help="cores that work on an answer, at most those there are (default: the file's)",
    )


def _init(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "init",
        "write a commented .ee file with candidate exit points",
        "eecompile init resnet56.onnx -o resnet56.ee",
    )
    parser.add_argument("model", help="an ONNX file, or FILE.py:FUNCTION that returns an nn.Module")
    parser.add_argument("-o", "--output", type=Path, help="the .ee file (default: standard output)")
    parser.add_argument("--weights", type=Path, help="state dict of a torch model (.pth)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=SHAPE",
        help="fix an input's shape, e.g. image=1,3,32,32; needed for torch and dynamic inputs",
    )
    parser.add_argument(
        "--exits", type=_at_least(1), default=3, metavar="N", help="proposals (default 3)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _check(verbs: Any) -> None:
    _file(_verb(verbs, "check", "report every problem of a .ee file", "eecompile check net.ee"))


def _format(verbs: Any) -> None:
    parser = _verb(
        verbs, "format", "lay a .ee file out in its canonical form", "eecompile format net.ee"
    )
    parser.add_argument("file", type=Path, help="the .ee file, rewritten in place")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if it would change"
    )


def _build(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "build",
        "compile a .ee file into an artifact",
        "eecompile build resnet56.ee --target arm-cpu -o out/",
        quiet=True,
    )
    _file(parser)
    parser.add_argument("-t", "--target", help="target name (default: the file's, else host)")
    parser.add_argument(
        "-o", "--output", type=Path, help="artifact folder (default: MODEL.artifact)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--emit", type=Path, metavar="PATH", help="also save the network with all its exits"
    )
    parser.add_argument(
        "--dump-ir", type=Path, metavar="FOLDER", help="write the IR after each pass"
    )
    parser.add_argument(
        "--tune",
        type=_seconds,
        metavar="SECONDS",
        help="first measure schedules of kernels on this machine; later builds reuse what won",
    )
    parser.add_argument(
        "--jobs", type=_at_least(0), default=0, metavar="N", help="threads (default: all cores)"
    )


def _eval(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "eval",
        "measure accuracy, cost and exits taken on data",
        "eecompile eval out/ --data test.npz",
        quiet=True,
    )
    _artifact(parser)
    parser.add_argument(
        "--data",
        required=True,
        help="FILE.npz, FILE.npz[5000..], FILE.py:FUNCTION, or a .ee file: its test set",
    )
    parser.add_argument("--policy", help="a policy of the artifact (default: its first)")
    parser.add_argument(
        "--budget", help='e.g. "mean macs <= 70 %%", from the fitted operating points'
    )
    parser.add_argument("--samples", type=_at_least(1), help="only the first N samples")
    _threads(parser)
    elsewhere = parser.add_argument_group(
        "for a board that is not at hand",
        "answers are computed here; latencies and energies are modelled by the board's file",
    )
    elsewhere.add_argument("--board", metavar="NAME", help="a board, see `eecompile targets`")
    elsewhere.add_argument("--cluster", metavar="NAME", help="of the board (default: any)")
    elsewhere.add_argument("--deadline", help='e.g. "40 ms safe" (default: the policy\'s own)')
    elsewhere.add_argument(
        "--frequency", help='e.g. lowest_energy, or "600 MHz" (default: the policy\'s own)'
    )


def _bench(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "bench",
        "measure what each piece costs at each clock, and model what cannot be measured",
        "eecompile bench out/ --freq all --svg costs.svg",
        quiet=True,
    )
    _artifact(parser)
    parser.add_argument(
        "--freq",
        metavar="CLOCKS",
        help='all, current, or a list such as "600 MHz, 1.2 GHz" '
        "(default: what the .ee file says, else current, which sets no clock)",
    )
    parser.add_argument(
        "--board", help="whose clocks, voltages and powers are meant (default: this machine's)"
    )
    parser.add_argument(
        "--rpc", metavar="HOST:PORT[/KEY]", help="measure a board that runs TVM's RPC server"
    )
    parser.add_argument("--policy", help="whose shares are shown (default: the first)")
    parser.add_argument(
        "--data", help="inputs to run on, as for `eval` (default: the artifact's test vectors)"
    )
    parser.add_argument(
        "--rounds", type=_at_least(1), metavar="N", help="at each clock, at most (default 1000)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", help="at each clock, at most (default 2)"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw costs by clock and exit")
    parser.add_argument(
        "--update", action="store_true", help="put the costs into the artifact, for its scheduler"
    )
    _threads(parser)


def _run_(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "run",
        "answer one input",
        "eecompile run out/ --input x.npy --normalize",
        quiet=False,
    )
    _artifact(parser)
    parser.add_argument(
        "--input", type=Path, required=True, help=".npy file, one sample or a batch"
    )
    parser.add_argument(
        "--normalize", action="store_true", help="the input holds raw stored pixels"
    )
    parser.add_argument("--policy", help="a policy of the artifact (default: its first)")
    parser.add_argument("--full-depth", action="store_true", help="decisions off")
    _threads(parser)


def _verify(verbs: Any) -> None:
    _artifact(_verb(verbs, "verify", "run an artifact's own test vectors", "eecompile verify out/"))


def _inspect(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "inspect",
        "show segments, exits and costs without running anything",
        "eecompile inspect out/ --svg out.svg",
    )
    parser.add_argument("what", type=Path, help="an artifact folder or a .ee file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the graph with its exits")
    parser.add_argument("--ir", action="store_true", help="print the segment graph as IR text")


def _targets(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "targets",
        "list targets and boards, show one, or make a board file of a running system",
        "eecompile targets show raspberry-pi-4\n"
        "  eecompile targets import -o mine.toml\n"
        "  eecompile targets import --dtb rk3399-rockpro64.dtb -o rockpro64.toml",
    )
    parser.add_argument("action", nargs="?", choices=("list", "show", "import"), default="list")
    parser.add_argument("name", nargs="?", help="the target to show: a name, or a .toml file")
    importing = parser.add_argument_group("import")
    importing.add_argument(
        "--dtb", type=Path, metavar="FILE", help="from a device tree, not from this system"
    )
    importing.add_argument(
        "--root", type=Path, metavar="DIR", help="where the system's /sys and /proc are (default /)"
    )
    importing.add_argument(
        "-o", "--output", type=Path, help="the board file (default: standard output)"
    )
    importing.add_argument("--force", action="store_true", help="replace an existing file")


def _doctor(verbs: Any) -> None:
    _verb(verbs, "doctor", "say what this machine can do and what is missing", "eecompile doctor")


def _demo(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "demo",
        "build and measure the shipped example: handwritten digits",
        "eecompile demo",
        quiet=True,
    )
    parser.add_argument("-o", "--output", type=Path, help="keep the artifact and its files here")


if __name__ == "__main__":
    sys.exit(main())
