"""What each verb of the command line does: call the library, then print for people or scripts."""

from eecompile.commands.benching import bench
from eecompile.commands.boards import targets
from eecompile.commands.building import build
from eecompile.commands.evaluating import demo, eval
from eecompile.commands.exporting import export
from eecompile.commands.files import check, format, init
from eecompile.commands.looking import doctor, inspect
from eecompile.commands.packing import pack
from eecompile.commands.running import run, verify
from eecompile.commands.signing import sign
from eecompile.commands.training import train

__all__ = [
    "bench", "build", "check", "demo", "doctor", "eval", "export", "format", "init", "inspect",
    "pack", "run", "sign", "targets", "train", "verify",
]  # fmt: skip
