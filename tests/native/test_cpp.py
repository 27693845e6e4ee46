"""What apps include: the C header as every compiler sees it, the C++ wrapper, and the examples."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import write_artifact
from tests.native.conftest import NATIVE
from tests.runtime import tiny

HEADER = (NATIVE / "eecompile.h").read_text()
APP = Path(__file__).with_name("cpp_app.cpp")
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
IN_CPP = ("-Weffc++", "-Wold-style-cast", "-Wzero-as-null-pointer-constant")
#: What exporting a network writes beside its library, as far as apps see it.
OF_NETWORK = '#include "eecompile.h"\nextern const ee_library ee_library_resnet56;\n'


def compilers(*names: str) -> list[str]:
    """Those of them that this machine has."""
    return [name for name in names if shutil.which(name)]


def refusal(compiler: str, standard: str, source: Path, *options: str) -> str:
    """What the compiler has against a source; "" where it has nothing."""
    command = [compiler, f"-std={standard}", "-fsyntax-only", *STRICT, *options, f"-I{NATIVE}"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


C = pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
CPP = pytest.mark.parametrize("standard", ["c++17", "c++20"])
CC = pytest.mark.parametrize("compiler", compilers("gcc", "clang") or ["cc"])
CXX = pytest.mark.parametrize("compiler", compilers("g++", "clang++"))


# -- structures and their initialisers ----------------------------------------------------------


def sized_structures() -> dict[str, list[str]]:
    """Structures that begin with their size -> their other fields, as the header has them."""
    found = {}
    for body, name in re.findall(r"typedef struct \{\n(.*?)\n\} (ee_\w+);", HEADER, re.DOTALL):
        told = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        if not told.strip().startswith("size_t size;"):
            continue
        declared = " ".join(told.split()).removeprefix("size_t size;")
        fields = [one.strip() for one in declared.split(";") if one.strip()]
        names = [name_.split()[-1] for one in fields for name_ in one.split(",")]
        found[name] = [name_.lstrip("*") for name_ in names]
    return found


def check_of(header: str = HEADER) -> str:
    """C code that looks at every initialiser of `header`, field by field, when it is compiled."""
    code = [
        header,
        "#define IS_FIRST(type) typedef char type##_first[offsetof(type, size) ? -1 : 1]",
    ]
    for name, fields in sized_structures().items():
        macro = name.upper()
        code += [
            f"IS_FIRST({name});",
            f"int check_{name}(void);",
            f"int check_{name}(void) {{",
            f"    {name} made = {macro};",
            *(f"    if (made.{field}) return 1;" for field in fields),
            f"    return made.size != sizeof({name});",
            "}",
        ]
    return "\n".join(code)


def test_structures_that_grow_have_initialisers() -> None:
    known = {"ee_network_info", "ee_input_info", "ee_options", "ee_answer", "ee_statistics"}
    assert known <= set(sized_structures())
    assert sized_structures()["ee_options"] == [
        *("policy", "threads", "clocks", "governor", "meter", "server"),
    ]


@CC
@C
def test_initialisers_have_all_fields_in_c(tmp_path: Path, compiler: str, standard: str) -> None:
    source = tmp_path / "check.c"
    source.write_text(check_of())
    assert refusal(compiler, standard, source, "-Wc++-compat") == ""


@CXX
@CPP
def test_initialisers_have_all_fields_in_cpp(tmp_path: Path, compiler: str, standard: str) -> None:
    source = tmp_path / "check.cpp"
    source.write_text(check_of())
    assert refusal(compiler, standard, source, *IN_CPP) == ""


def test_initialisers_say_nothing_but_the_size(tmp_path: Path, compiler: str) -> None:
    calls = "".join(f"    if (check_{name}()) return 1;\n" for name in sized_structures())
    source, program = tmp_path / "check.c", tmp_path / "check"
    source.write_text(f"{check_of()}\nint main(void) {{\n{calls}    return 0;\n}}\n")
    subprocess.run([compiler, "-std=c99", "-o", program, source], check=True)
    subprocess.run([program], check=True)


@CC
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    uint64_t macs;\n", "    uint64_t macs;\n    uint64_t more;\n"),  # forgotten in one
        ("#define EE_ANSWER {sizeof(ee_answer), ", "#define EE_ANSWER {sizeof(ee_answer), 0, "),
        ("    size_t size;\n    const float", "    int first;\n    size_t size;\n    const float"),
    ],
    ids=["field", "value", "order"],
)
def test_a_wrong_initialiser_is_refused(
    tmp_path: Path, compiler: str, before: str, after: str
) -> None:
    assert before in HEADER
    source = tmp_path / "check.c"
    source.write_text(check_of(HEADER.replace(before, after)))
    assert refusal(compiler, "c99", source)


# -- the examples -------------------------------------------------------------------------------


def examples(language: str) -> str:
    blocks: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", (NATIVE / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert blocks
    return "\n".join(blocks)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / "resnet56.h").write_text(OF_NETWORK)
    (folder / name).write_text(text)
    return folder / name


@CC
@C
def test_examples_in_c_compile(tmp_path: Path, compiler: str, standard: str) -> None:
    # Their functions are what an app's other files call.
    source = written(tmp_path, "app.c", examples("c"))
    assert refusal(compiler, standard, source, f"-I{tmp_path}") == ""


@CXX
@CPP
def test_examples_in_cpp_compile(tmp_path: Path, compiler: str, standard: str) -> None:
    source = written(tmp_path, "app.cpp", examples("cpp"))
    assert refusal(compiler, standard, source, *IN_CPP, f"-I{tmp_path}") == ""


def test_every_function_is_explained_and_wrapped() -> None:
    declared = set(re.findall(r"\b(ee_\w+)\(", HEADER))
    for file, missing in (("README.md", set()), ("eecompile.hpp", {"ee_status_name"})):
        assert declared - set(re.findall(r"\bee_\w+", (NATIVE / file).read_text())) == missing


# -- the wrapper --------------------------------------------------------------------------------


@CXX
@pytest.mark.parametrize("standard", ["c++17", "c++20", "c++2b"])
def test_the_wrapper_has_no_warnings(compiler: str, standard: str) -> None:
    assert refusal(compiler, standard, APP, *IN_CPP) == ""


IMAGES = np.array([[0.5, -1.0, 2.0, 0.25], [3.0, 0.0, -2.0, 1.0]], np.float32)
EXPECTED = """\
network tiny exits 3 classes 3 policies fast careful patient beyond '' last final label dog
input x bytes 16 normalizes 1
beyond EE_BAD_ARGUMENT: there is no input 1: `tiny` has 1
whole exit 2 label 2 macs 100101 flags 0 logits {final}
off exit 2 label 2 macs 100101 flags 0 logits {final}
same place 1
moved 1 1
raw exit 2 label 2 macs 100101 flags 0 logits {raw}
few EE_BAD_ARGUMENT: input 0 has 12 bytes, not 1 x 16
two EE_BAD_ARGUMENT: the network has 1 inputs, not 2
unknown EE_BAD_ARGUMENT: `tiny` has no policy `nobody`; it has: fast, careful, patient
cancel 0 output 1
little EE_INFEASIBLE: not even the cheapest answer keeps `macs <= 1e-07 %`: \
the cheapest is exit `early` with 0.0109889 %
halted exit 1 label 1 macs 11101 flags 1 logits {late}
answers 1 halted 1 by late 1
reset 0 state 0
state EE_BAD_ARGUMENT: this was not learned by the policy in use
own exit 1 label 1 macs 11111 flags 0 logits {late}
asked 1 drew 0.25
policy threw own
nothing EE_BAD_ARGUMENT: the policy has no `decide`
after exit 2 label 2 macs 100101 flags 0 logits {final}
batch exit 0 label 2 macs 11 flags 0 logits {early}
batch exit 0 label 0 macs 11 flags 0 logits {second}
logits 6 same 1
empty 0
batch EE_BAD_ARGUMENT: input 0 has 16 bytes, not 3 x 16
open EE_NO_FILE: `/nowhere/at/all` cannot be opened: No such file or directory
memory EE_BAD_ARGUMENT: a packed artifact's bytes must lie at a multiple of 64
"""


def expected() -> str:
    raw = (np.array([[0, 51, 102, 255]], np.float32) / np.float32(255) - np.float32(0.5)) * 4
    known, of_raw = tiny.reference(IMAGES), tiny.reference(raw)
    rows = {
        "final": known["logits"][0],
        "late": known["late.logits"][0],
        "early": known["early.logits"][0],
        "second": known["early.logits"][1],
        "raw": of_raw["logits"][0],
    }
    told = {name: " ".join(f"{value:.9g}" for value in row) for name, row in rows.items()}
    return EXPECTED.format(**told)


@CXX
def test_an_app_gets_the_answers_and_the_errors(tmp_path: Path, compiler: str) -> None:
    """With the real runtime: files opened, samples run, callbacks called, exceptions passed on."""
    library, program = tmp_path / "libtiny.so", tmp_path / "app"
    library.write_bytes(tiny.machine_code())
    write_artifact(tmp_path / "tiny", tiny.contents())
    options = ["-std=c++17", f"-I{NATIVE}", f"-Wl,-rpath,{tmp_path}", "-o", str(program)]
    subprocess.run([compiler, *options, str(APP), str(library)], check=True)
    done = subprocess.run([program, tmp_path / "tiny"], capture_output=True, text=True, check=True)
    assert done.stdout == expected()
