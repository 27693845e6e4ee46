"""`targets`: boards listed, shown with the source of every number, and made from a system."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eecompile.commands.printing import print_json
from eecompile.console import table
from eecompile.diagnostics import CompileErrors, Diagnostic

if TYPE_CHECKING:
    from eecompile.board import Board

__all__ = ["targets"]


def targets(options: argparse.Namespace) -> int:
    """List boards, show one with the source of every number, or make the file of one."""
    from eecompile.boards.file import read_board
    from eecompile.boards.report import board_json, board_row
    from eecompile.hardware import board_names

    if options.action == "import":
        return _import_board(options)
    given = [name for name in ("dtb", "root", "output") if getattr(options, name) is not None]
    if given or (options.action == "list" and options.name):
        found = f"`--{given[0]}`" if given else f"`{options.name}`"
        message = f"`targets {options.action}` does not take {found}"
        help = "eecompile targets [list | show NAME | import [--dtb FILE] [--root DIR] [-o FILE]]"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help)])
    if options.action == "show":
        board = read_board(options.name or "host")
        if options.json:
            print_json(options, board_json(board))
        else:
            _print_board(board)
        return 0
    boards = [read_board(name) for name in board_names()]
    if options.json:
        print_json(options, {"targets": [board_json(board) for board in boards]})
        return 0
    rows = [board_row(board) for board in boards]
    table(("target", "processor", "clusters", "description"), rows, left=4)
    return 0


def _print_board(board: Board) -> None:
    from eecompile.boards.report import cluster_in_words, cluster_rows, facts

    print(f"{board.name}: {board.description}\n")
    table(("", "value", "source"), facts(board), left=3)
    for cluster in board.clusters:
        print(f"\n{cluster.name}: {cluster_in_words(cluster)}")
        columns = ("clock", "voltage", "power of a busy core", "energy of a cycle")
        table(columns, cluster_rows(cluster), left=0)
    if not board.clusters:
        print("\nno clocks are known: nothing can be modelled for this board")


def _import_board(options: argparse.Namespace) -> int:
    """Make a board file; what it misses is said on standard error."""
    from eecompile.atomic import replaced_file
    from eecompile.boards.importing import import_device_tree, import_system, read_dtb
    from eecompile.boards.report import board_json
    from eecompile.runtime.sysfs import LocalFiles

    output: Path | None = options.output
    if options.name or (options.dtb is not None and options.root is not None):
        what = f"`{options.name}`" if options.name else "both `--dtb` and `--root`"
        help = "name a device tree with --dtb, or a system's root with --root, or neither"
        message = f"`targets import` does not take {what}"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help)])
    if output is not None and output.exists() and not options.force:
        message, help = f"`{output}` exists already", "give --force to replace it"
        raise CompileErrors([Diagnostic("cannot-write", message, help=help, path=str(output))])
    name = "imported" if output is None else output.stem
    if options.dtb is not None:
        found = import_device_tree(read_dtb(options.dtb), str(options.dtb), name)
    else:
        found = import_system(LocalFiles(options.root or "/"), name)
    if output is not None:
        replaced_file(output, found.text.encode())
    if options.json:
        where = {"file": None if output is None else str(output), "text": found.text}
        print_json(options, {**where, "missing": found.missing, **board_json(found.board)})
        return 0
    if output is None:
        print(found.text, end="")
    for line in found.missing:
        print(f"missing: {line}", file=sys.stderr)
    if output is not None:
        print(f"wrote {output}; next: eecompile targets show {output}")
    return 0
