"""What a build is asked for beside its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BuildOptions"]


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says beside the file.

    Attributes:
        target: target name; None for the file's, else this machine.
        output: artifact folder, or ``NAME.eec`` for a packed one; None for ``<model>.artifact``
            beside the file.
        overrides: ``key.path=value`` texts.
        emit: where to save the network with all its exits, and masks for what gates leave out, in
            its host's format.
        dump_ir: folder for the IR after each pass.
        threads: used while recording; 0 for all cores.
        seed: of everything random.
        sign: file of the private key to sign the artifact with; None to leave it unsigned.
        tune: seconds to measure kernels for before compiling; None to take what was measured.
    """

    target: str | None = None
    output: Path | None = None
    overrides: Sequence[str] = ()
    emit: Path | None = None
    dump_ir: Path | None = None
    threads: int = 0
    seed: int = 0
    tune: float | None = None
    sign: Path | None = None

    def output_for(self, path: Path) -> Path:
        """Where the artifact of a `.ee` file is written."""
        return self.output or path.with_suffix(".artifact")
