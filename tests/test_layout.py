"""The repository's top level and the import names stay in step."""

from __future__ import annotations

import ast
import re
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


def test_every_file_that_is_no_module_is_installed() -> None:
    """Boards, tables, and what runtimes, apps and servers are made of travel with the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = set()
    for package, patterns in settings["package-data"].items():
        folder = settings["package-dir"].get(package, package.replace(".", "/"))
        for pattern in patterns:
            matching = {f.parent.resolve() / f.name for f in (ROOT / folder).glob(pattern)}
            assert matching, f"{package}: no file is {pattern}"
            installed |= matching
    found = {
        file
        for top in ("eecompile", *LINKS)
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert found <= installed, sorted(found - installed)


def test_c_code_keeps_to_100_columns_and_says_where_everything_is() -> None:
    """The same width as Python's; internal.h names every file, and none that is not there."""
    folder = ROOT / "eecompile" / "native"
    told = (folder / "internal.h").read_text().partition("*/")[0]
    sources = {path.name for path in folder.glob("*.c")}
    assert set(re.findall(r"[a-z_0-9]+\.c\b", told)) == sources
    assert set(re.findall(r"[a-z_0-9]+\.h\b", told)) == {
        path.name for path in folder.glob("*.h")
    } - {"internal.h"}
    wide = [
        f"{path.name}:{number}"
        for path in sorted(folder.iterdir())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100 and path.suffix in (".c", ".h", ".hpp")
    ]
    assert not wide


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


def public_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def test_every_module_says_what_is_public() -> None:
    for top in ("eecompile", *LINKS):
        for file in (ROOT / top).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if all(isinstance(node, ast.Expr) for node in tree.body):
                continue  # nothing but a docstring
            names = public_names(tree)
            assert names is not None, f"{file} has no __all__"
            defined = {
                name
                for node in ast.walk(tree)
                for name in (
                    [node.name]
                    if isinstance(node, ast.FunctionDef | ast.ClassDef)
                    else [node.id]
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                    else [alias.asname or alias.name for alias in node.names]
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    else []
                )
            }
            assert set(names) <= defined, f"{file}: {set(names) - defined} in __all__"
