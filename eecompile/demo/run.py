"""`eecompile demo`: build the shipped network with its exits and measure it on the test digits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from eecompile.console import Steps

__all__ = ["run_demo"]

_FILES = ("digits.ee", "digits.onnx", "fit.npz", "calibrate.npz", "test.npz")


def run_demo(output: Path | None, steps: Steps) -> dict[str, Any]:
    """What `eecompile eval` gives for the shipped network, built here and now.

    Args:
        output: folder for the files and the artifact; None for a temporary one that is removed.
        steps: told of the progress.
    """
    import eecompile.driver  # noqa: F401 - what is missing is told before anything is written

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        return _run(output, steps)
    with tempfile.TemporaryDirectory(prefix="eecompile-demo-") as folder:
        return _run(Path(folder), steps) | {"artifact": "not kept; give -o FOLDER to keep it"}


def _run(folder: Path, steps: Steps) -> dict[str, Any]:
    from eecompile.driver import BuildOptions, build
    from eecompile.evaluation import evaluate_artifact

    for name in _FILES:
        shutil.copyfile(Path(__file__).parent / name, folder / name)
    artifact = folder / "digits.artifact"
    build(folder / "digits.ee", BuildOptions(output=artifact), steps)
    with steps.step("answer every test digit, with exits and at full depth") as progress:
        found = evaluate_artifact(artifact, str(folder / "digits.ee"), None, None, None, progress)
    return found.to_json() | {"artifact": str(artifact)}
