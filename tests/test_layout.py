"""The repository's top level and the import names stay in step."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINKS = ("passes", "targets", "dsl")


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"eecompile"}
    for top in ("eecompile", *LINKS):
        prefix = () if top == "eecompile" else ("eecompile",)
        for init in (ROOT / top).rglob("__init__.py"):  # rglob does not enter the links
            found.add(".".join(prefix + init.parent.relative_to(ROOT).parts))
    assert set(settings["packages"]) == found


def test_every_folder_with_modules_is_a_package() -> None:
    for top in ("eecompile", *LINKS):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_links_lead_to_the_top_level_folders() -> None:
    for name in LINKS:
        assert (ROOT / "eecompile" / name).is_symlink()
        assert (ROOT / "eecompile" / name).resolve() == ROOT / name


def test_no_bare_names() -> None:
    code = (
        "import sys, eecompile.cli, eecompile.passes.pipelines\n"
        "print(sorted({'passes', 'targets', 'dsl'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
