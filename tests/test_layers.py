"""Imports point one way, heavy libraries have few importers, and light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("eecompile", "passes", "targets", "dsl")

#: Lowest first; a module imports from its own layer and those before it. What is at the top of
#: eecompile/ and not named here drives the rest. A package stands for its modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("diagnostic_ids", "diagnostics"),
    (
        *("ir", "operators", "shapes", "reference", "reference_windows", "reference_resize"),
        *("spec", "hardware", "cost", "segments", "atomic", "checked_json", "packing"),
        *("array_files", "native_names", "npz", "packed_form"),
        *("board", "cost_table", "kept_macs"),
    ),
    (
        "text",
        "verify",
        "exit_table",
        "figures",
        *("clock_rule", "guard_rule", "halt_rule", "offload_rule"),
        "svg",
        "svg_parts",
        "compiled",
        "deviation",
        *("cost_model", "cost_merging"),
        "memory",
        "manifest",
        *("artifact", "artifact_files", "artifact_writing", "packed"),
        *("signatures", "signing"),
    ),
    ("heads", "policies", "gates", "native_policies", "native_plan"),
    ("passes", "targets", "dsl"),
    ("runtime",),
    ("DRIVER",),
    ("commands", "demo"),
    ("arguments",),
    ("cli", "__main__"),
)
#: What runs where an artifact runs sees nothing else.
RUNTIME_SEES = frozenset(
    [
        *("runtime", "policies", "diagnostics", "diagnostic_ids", "ir", "hardware", "cost"),
        *("segments", "atomic", "checked_json", "compiled", "manifest", "artifact"),
        *("artifact_files", "deviation", "memory", "packing", "figures"),
        *("signatures", "npz", "array_files", "native_names", "native_policies"),
        *("native_plan",),
        *("board", "cost_table", "clock_rule", "guard_rule", "halt_rule", "offload_rule"),
        *("artifact_writing", "packed_form", "kept_macs"),
    ]
)
#: Library -> modules that may import it, by how their names start.
IMPORTERS: dict[str, tuple[str, ...]] = {
    "torch": ("passes.fx_", "heads.training", "training."),
    "onnx": ("passes.onnx_",),
    "onnx_graphsurgeon": ("passes.onnx_",),
    "onnxruntime": ("passes.onnx_",),
    "tvm": ("targets.lowering",),
    "lark": ("dsl.parser",),
    "fdt": ("boards.device_tree",),
    "networkx": ("passes.structure",),
    "cryptography": ("signatures",),
    "tritonclient": ("runtime.offload.triton",),
    "scipy": ("heads.", "fitted_policy", "learned.scheduler"),
    "sklearn": ("heads.",),
}


def path_of(module: str) -> str:
    """Name below eecompile: ``eecompile.passes.base`` -> ``passes.base``."""
    return module.removeprefix("eecompile").removeprefix(".")


@cache
def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for top in FOLDERS:
        for file in (ROOT / top).rglob("*.py"):  # rglob does not enter the links
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "eecompile" else ("eecompile", *parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


@cache
def imports(module: str, at_once: bool = False) -> frozenset[str]:
    """Modules it imports, in functions too unless `at_once`."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = source(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules() else base)
    return frozenset(found)


def source(module: str, node: ast.ImportFrom) -> str:
    """The module a statement imports from, its dots resolved."""
    if not node.level:
        return str(node.module)
    up = node.level - (modules()[module].name == "__init__.py")
    parts = module.split(".")
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def edges() -> Iterator[tuple[str, str]]:
    for module in modules():
        for other in imports(module):
            if other in modules():
                yield module, other


def layer(module: str) -> int:
    top = path_of(module).partition(".")[0]
    named = next((i for i, names in enumerate(LAYERS) if top in names), None)
    if named is None:
        return next(i for i, names in enumerate(LAYERS) if "DRIVER" in names)
    return named


def test_imports_point_to_lower_layers() -> None:
    wrong = [
        f"{module} -> {other}"
        for module, other in edges()
        if layer(other) > layer(module) and module != "eecompile" and other != "eecompile"
    ]
    assert wrong == []


def test_passes_targets_and_language_do_not_know_each_other() -> None:
    siblings = ("passes", "targets", "dsl")
    wrong = [
        f"{module} -> {other}"
        for module, other in edges()
        for one, two in [(path_of(module).partition(".")[0], path_of(other).partition(".")[0])]
        if one in siblings and two in siblings and one != two
    ]
    assert wrong == []


def test_the_runtime_sees_only_what_an_artifact_needs() -> None:
    seen = [m for m in modules() if path_of(m).startswith("runtime")]
    for module in seen:
        seen += [o for o in imports(module) if o in modules() and o not in seen]
    assert {path_of(module).partition(".")[0] for module in seen} - {""} <= RUNTIME_SEES


def test_the_package_itself_imports_the_runtime_only() -> None:
    own = {path_of(o).partition(".")[0] for o in imports("eecompile") if o in modules()}
    assert own <= {"runtime"}


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_heavy_library_has_few_importers(library: str) -> None:
    wrong = [
        module
        for module in modules()
        if any(other.partition(".")[0] == library for other in imports(module))
        and not path_of(module).startswith(IMPORTERS[library])
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {m: {o for o in imports(m, True) if o in modules() and o != m} for m in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def loaded_by(statement: str) -> set[str]:
    """Top-level packages outside the standard library that a statement imports."""
    code = f"import sys\n{statement}\nprint(*{{m.partition('.')[0] for m in list(sys.modules)}})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name for name in done.stdout.split() if not name.startswith("_")}
    return ours - sys.stdlib_module_names


def test_loading_an_artifact_needs_numpy_only() -> None:
    assert loaded_by("import eecompile; eecompile.load") - BARE <= {"eecompile", "numpy"}


@pytest.mark.parametrize(
    "statement", ["import eecompile.cli", "import eecompile.passes.pipelines, eecompile.heads"]
)
def test_heavy_libraries_are_imported_when_they_are_used(statement: str) -> None:
    heavy = {"torch", "onnx", "onnx_graphsurgeon", "onnxruntime", "tvm", "lark", "sklearn", "fdt"}
    assert not heavy & loaded_by(statement)


#: What the interpreter loads by itself here (site hooks).
BARE = loaded_by("")
