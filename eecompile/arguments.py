"""The arguments of each verb: what may be given on the command line, and the help about it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from eecompile import __version__

__all__ = ["UsageError", "command_line"]


class UsageError(Exception):
    """Arguments that make no sense, and how they are written."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message[:1].upper() + message[1:])
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are wrong input: exit status 1, and one JSON object where it is wanted."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting with argparse's status 2."""
        usage = " ".join(self.format_usage().split())
        raise UsageError(message, f"{usage} (`{self.prog} --help` explains)")


def command_line() -> argparse.ArgumentParser:
    """What reads the whole command line; what it returns has the verb's function as `command`.

    Its `parse_args` raises `UsageError` for arguments that make no sense.
    """
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
        _train,
        _build,
        _eval,
        _bench,
        _run_,
        _verify,
        _inspect,
        _pack,
        _export,
        _sign,
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


def _positive(text: str) -> float:
    """An argument's type: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def _share(text: str) -> float:
    """An argument's type: from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
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
    _unchecked_artifact(parser)
    _trusted(parser)


def _unchecked_artifact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", type=Path, help="folder or .eec file written by `eecompile build`"
    )


def _trusted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted",
        type=Path,
        action="append",
        metavar="KEY",
        help="public key (.pem) that must have signed the artifact; may be repeated",
    )


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        metavar="N",
        help="cores that work on an answer, at most those there are (default: the file's)",
    )


def _learning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="what the policy has learned so far: read where it exists, and written at the end",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="the server that is asked, one of the .ee file's (default: its first)",
    )


def _init(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "init",
        "write a commented .ee file with candidate exit points, and what gates could skip",
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


def _train(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "train",
        "train the gates of a .ee file's torch network, and on request its weights",
        "eecompile train resnet56.ee -o resnet56.gates.npz --macs 75%\n"
        "  eecompile train resnet56.ee --macs 85%,75%,65% --tune-backbone --steps 2000\n\n"
        "Samples are those of the file's data: `fit` is trained on, `calibrate` decides where\n"
        "scores are cut, `test` is reported on. A run that was stopped, even killed, goes on from\n"
        "its checkpoint where it is started again. The .ee file then names what was written:\n"
        '`gates "resnet56.gates.npz"`.',
        quiet=True,
    )
    _file(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="NAME.gates.npz",
        help="the file of gates (default: beside the .ee file); of several targets each has its "
        "own: NAME-85.gates.npz ...",
    )
    targets = parser.add_argument_group(
        "targets", "mean costs to train for, shares of what the network costs without gates"
    )
    for quantity in ("macs", "latency", "energy"):
        default = " (default: 75%%)" if quantity == "macs" else ""
        targets.add_argument(
            f"--{quantity}", metavar="SHARES", help=f"e.g. 75%%, or 85%%,75%%,65%% in turn{default}"
        )
    targets.add_argument(
        "--costs", type=Path, metavar="ARTIFACT", help="where latencies and energies are from"
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--tune-backbone", action="store_true", help="train the network's weights together with it"
    )
    recipe.add_argument(
        "--steps", type=_at_least(1), default=1000, metavar="N", help="for each target (1000)"
    )
    recipe.add_argument(
        "--batch", type=_at_least(2), default=128, metavar="N", help="samples in a step (128)"
    )
    recipe.add_argument(
        "--rate", type=_positive, help="of the gates (0.001; 0.0001 with --tune-backbone)"
    )
    recipe.add_argument("--backbone-rate", type=_positive, help="of the weights (0.0003)")
    recipe.add_argument(
        "--distill",
        type=_share,
        default=0.9,
        metavar="SHARE",
        help="of the loss that compares with the ungated network, not with the labels (0.9)",
    )
    recipe.add_argument(
        "--exit-weight",
        type=_share,
        metavar="SHARE",
        help="of the exits' loss beside the final answer's, with --tune-backbone (0.3)",
    )
    recipe.add_argument(
        "--augment",
        metavar="KINDS",
        help="flips,crops,mixtures or none (default: what fits the images)",
    )
    recipe.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="gates, and their weights, to begin with",
    )
    recipe.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="(0)")
    parser.add_argument(
        "--every",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="between two checkpoints (60)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="begin anew where there is a checkpoint"
    )
    parser.add_argument(
        "--threads", type=_at_least(1), metavar="N", help="of torch (default: its own choice)"
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
        "-o",
        "--output",
        type=Path,
        help="artifact folder, or NAME.eec for one packed file (default: MODEL.artifact)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--emit",
        type=Path,
        metavar="PATH",
        help="also save the network with all its exits, and with masks where gates decide",
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
    _key(parser, "--sign")


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
    parser.add_argument(
        "--halt", metavar="LIMIT", help='e.g. "latency <= 1 ms": what each sample may spend'
    )
    parser.add_argument("--samples", type=_at_least(1), help="only the first N samples")
    _threads(parser)
    _learning(parser)
    sweep = parser.add_argument_group(
        "for all policies at all budgets",
        "each operating point is replayed on the same samples, which go through the network once",
    )
    sweep.add_argument("--sweep", action="store_true", help="accuracy and cost of all of them")
    sweep.add_argument(
        "--by", choices=("macs", "latency", "energy"), help="the cost of budgets (default: macs)"
    )
    sweep.add_argument("--svg", type=Path, metavar="FILE", help="draw the curves")
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
    parser.add_argument(
        "--budget", help='e.g. "mean macs <= 70 %%", from the fitted operating points'
    )
    parser.add_argument(
        "--halt", metavar="LIMIT", help='e.g. "latency <= 1 ms": what each sample may spend'
    )
    parser.add_argument("--full-depth", action="store_true", help="decisions off")
    _threads(parser)
    _learning(parser)


def _verify(verbs: Any) -> None:
    _artifact(_verb(verbs, "verify", "run an artifact's own test vectors", "eecompile verify out/"))


def _inspect(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "inspect",
        "show segments, exits and costs without running anything",
        "eecompile inspect out/ --svg out.svg",
    )
    parser.add_argument("what", type=Path, help="an artifact, or a .ee file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the graph with its exits")
    parser.add_argument("--ir", action="store_true", help="print the segment graph as IR text")
    _trusted(parser)


def _pack(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "pack",
        "write an artifact's folder as one file, which is used in the same way",
        "eecompile pack out/ -o resnet56.eec\n  unzip resnet56.eec -d out/    (and back)",
    )
    _unchecked_artifact(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="NAME.eec",
        help="the packed file (default: beside the folder)",
    )


def _export(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "export",
        "write an artifact as files for an app in C or C++: library, headers, a small example",
        "eecompile export out/ -o app/",
    )
    _artifact(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder; an earlier one is replaced",
    )


def _sign(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "sign",
        "sign an artifact, so that others can check that it is yours",
        "openssl genpkey -algorithm ed25519 -out key.pem\n"
        "  openssl pkey -in key.pem -pubout -out key.pub.pem\n"
        "  eecompile sign out/ --key key.pem\n"
        "  eecompile run out/ --input x.npy --trusted key.pub.pem",
    )
    _unchecked_artifact(parser)
    _key(parser, "--key", required=True)


def _key(parser: argparse.ArgumentParser, name: str, *, required: bool = False) -> None:
    parser.add_argument(
        name,
        type=Path,
        metavar="KEY",
        required=required,
        help="sign it with this private key, an Ed25519 one in a .pem file",
    )


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
