"""The command line: arguments in, exit status out.

Exit status: 0 done, 1 the user's input is wrong, 2 the environment lacks something, 70 a bug of
ours, 130 interrupted. With ``--json`` exactly one JSON object goes to standard output; progress,
warnings and errors for people go to standard error.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eecompile import __version__
from eecompile.diagnostics import CompileErrors, ToolError

__all__ = ["main"]

_USER, _ENVIRONMENT, _BUG, _INTERRUPTED = 1, 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except CompileErrors as errors:
        _print_errors(errors, options.json)
        return _USER
    except ToolError as error:
        _print_failure("environment", str(error), options.json)
        return _ENVIRONMENT
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: nothing left to tell it
        return 0
    except Exception as error:
        _print_bug(error)
        return _BUG


def _print_errors(errors: CompileErrors, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"diagnostics": [d.to_json() for d in errors.diagnostics]}, indent=2))
    print(errors.full(), file=sys.stderr)


def _print_failure(kind: str, message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message}}, indent=2))
    print(f"error: {message}", file=sys.stderr)


def _print_bug(error: Exception) -> None:
    traceback.print_exception(error, file=sys.stderr)
    print(
        f"\nthis is a bug in eecompile {__version__} "
        f"(Python {platform.python_version()}, {platform.platform()}): {error}\n"
        f"please report it with the lines above and this command: {' '.join(sys.argv)}",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        _run,
        _verify,
        _inspect,
        _targets,
        _doctor,
        _demo,
    ):
        add(verbs)
    return parser


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
    parser.add_argument("--exits", type=int, default=3, metavar="N", help="proposals (default 3)")
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
        "--jobs", type=int, default=0, metavar="N", help="threads (default: all cores)"
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
        help="FILE.npz, FILE.npz[5000:] or FILE.py:FUNCTION (default: the file's test set)",
    )
    parser.add_argument("--policy", help="a policy of the artifact (default: its first)")
    parser.add_argument(
        "--budget", help='e.g. "mean macs <= 70 %%", from the fitted operating points'
    )
    parser.add_argument("--samples", type=int, help="only the first N samples")


def _run(verbs: Any) -> None:
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
    parser = _verb(verbs, "targets", "list targets and boards", "eecompile targets show arm-cpu")
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    parser.add_argument("name", nargs="?", help="the target to show")


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
