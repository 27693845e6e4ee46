"""An exported network in apps: built in every way it is told to be, it answers as Python does."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.app_folder import export_artifact
from eecompile.app_header import AppNames, header_text
from eecompile.artifact import read_artifact, write_artifact
from eecompile.cache import Cache
from eecompile.cli import main
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import BuildOptions, build
from eecompile.hardware import machine
from eecompile.packed import pack_artifact
from eecompile.targets.linkers import find_linkers
from tests.helpers import ROOT
from tests.native import networks

HERE = Path(__file__).parent
DEMO = ROOT / "eecompile" / "demo"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

#: (folder of an artifact's app, output) -> the command's program is there.
Build = Callable[[Path, Path], None]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def artifact(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's digits."""
    folder = tmp_path_factory.mktemp("artifact") / "digits"
    build(DEMO / "digits.ee", BuildOptions(output=folder, threads=1), Steps(10, quiet=True), cache)
    return folder


@pytest.fixture(scope="session")
def app(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files for apps; tests only read them."""
    folder = tmp_path_factory.mktemp("app") / "digits"
    export_artifact(artifact, folder)
    return folder


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """The test digits as the network reads them, float32 (500, 1, 8, 8)."""
    with np.load(DEMO / "test.npz") as data:
        images: np.ndarray = data["images"].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images[:, None])


def needs(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: object, folder: Path | None = None, **environment: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def options_for(app: Path) -> list[str]:
    """For a compiler, with the network in an app's folder."""
    (library,) = app.glob("lib*.so")
    name = library.name[3:-3]
    return [f"-I{app}", f"-L{app}", f"-l{name}", f"-Wl,-rpath,{app}"]


def driver(
    compiler: Sequence[str], app: Path, output: Path, name: str = "digits", *options: str
) -> Path:
    """The program of app_driver.c."""
    named = [f"-DLIBRARY=ee_library_{name}", f'-DHEADER="{name}.h"']
    source = HERE / "app_driver.c"
    run(*compiler, *STRICT, *named, source, "-o", output, *options, *options_for(app))
    return output


def answers(
    program: Sequence[object], data: Path, policy: str, x: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Exits and logits of samples, as the driver's program answers them."""
    x.tofile(folder / "x.bin")
    run(*program, data, policy, folder / "x.bin", folder / "y.bin")
    found = np.fromfile(folder / "y.bin", np.uint8).reshape(len(x), -1)
    exits = found[:, :4].copy().view(np.uint32)[:, 0]
    return exits, found[:, 4:].copy().view(np.float32)


def by_command(app: Path, output: Path) -> None:
    """The first command of README.md, as it stands there."""
    text = (app / "README.md").read_text()
    command = re.search(r"^cc example.*$", text, re.MULTILINE)
    assert command is not None
    copy = shutil.copytree(app, output.parent / "copy")
    run("sh", "-c", command[0].replace("cc ", f"{needs('cc')} {' '.join(STRICT)} "), folder=copy)
    (copy / "example").rename(output)
    (copy / "libdigits.so").rename(output.parent / "libdigits.so")  # $ORIGIN


def by_pkg_config(app: Path, output: Path) -> None:
    def told(*what: str) -> list[str]:
        return run(needs("pkg-config"), *what, "digits", PKG_CONFIG_PATH=str(app)).split()

    assert told("--variable=data") == [str(app / "digits.eec")]
    rpath = f"-Wl,-rpath,{app}"
    options = told("--cflags", "--libs")
    run(needs("cc"), *STRICT, app / "example.c", "-o", output, *options, rpath)


def by_cmake(app: Path, output: Path) -> None:
    needs("cc")
    made = output.parent / "made"
    run(needs("cmake"), "-S", app, "-B", made)
    run("cmake", "--build", made)
    (made / "example").rename(output)


@pytest.mark.parametrize("way", [by_command, by_pkg_config, by_cmake])
def test_the_example_answers_the_test_vectors(
    way: Build, app: Path, artifact: Path, tmp_path: Path
) -> None:
    way(app, tmp_path / "example")
    lines = run(tmp_path / "example", folder=app).splitlines()
    vectors, network = read_artifact(artifact).vectors(), read_artifact(artifact).manifest.network
    exits = [network.exit_names[index] for index in vectors["exits.quick"]]
    values = {name: vectors[f"value.{name}.logits"] for name in network.exit_names[:-1]}
    values["final"] = vectors["value.logits"]
    labels = [values[name][index].argmax() for index, name in enumerate(exits)]
    told = [re.fullmatch(r"class (\d+) by (\w+) in \d+\.\d{3} ms", line) for line in lines]
    found = [(int(match[1]), match[2]) for match in told if match]
    assert len(lines) == len(exits) > 4
    assert found == list(zip(labels, exits, strict=True))
    wrong = [str(tmp_path / "example"), "samples.bin", "nowhere"]
    refused = subprocess.run(wrong, cwd=app, capture_output=True, text=True)
    assert refused.returncode == 1
    assert re.match("EE_NO_FILE: .*nowhere", refused.stderr)


@pytest.mark.parametrize("position", ["-pie", "-no-pie"])
def test_the_test_set_is_answered_as_in_python(
    position: str,
    compiler: str,
    app: Path,
    artifact: Path,
    images: np.ndarray,
    tmp_path: Path,
) -> None:
    code = "-fPIE" if position == "-pie" else "-fno-pie"
    program = driver([compiler], app, tmp_path / "driver", "digits", code, position)
    net = ee.load(artifact)
    exits, logits = answers([program], app / "digits.eec", "quick", images, tmp_path)
    expected = [net.run(image[None]) for image in images]
    assert [net.exit_names[index] for index in exits] == [answer.exit for answer in expected]
    np.testing.assert_array_equal(logits, np.stack([answer.logits for answer in expected]))
    assert set(exits.tolist()) == {0, 1, 2, 3}
    exits, logits = answers([program], artifact, "", images, tmp_path)  # the folder serves as well
    assert set(exits.tolist()) == {3}
    np.testing.assert_array_equal(logits, net.full_depth_batch(images).logits)


def test_outputs_of_a_network_without_classes_are_named(compiler: str, tmp_path: Path) -> None:
    made = networks.contents("odd")
    random = np.random.default_rng(3)
    x = {
        name: random.integers(0, 2, (4, *type_.shape)).astype(type_.dtype)
        for name, type_ in networks.ODD_INPUTS
    }
    vectors = {f"input.{name}": array for name, array in x.items()}
    write_artifact(tmp_path / "odd", replace(made, vectors=vectors))
    app = export_artifact(tmp_path / "odd", tmp_path / "app").folder
    output = tmp_path / "example"
    run(compiler, *STRICT, app / "example.c", "-o", output, *options_for(app))
    lines = run(output, folder=app).splitlines()
    sums = x["image"].sum(axis=(1, 2, 3, 4)) + x["ids"].sum(axis=(1, 2))
    assert [line.split(" by ")[0] for line in lines] == [f"y begins with {n:g}," for n in sums]
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "odd.h"\n'
        "static const unsigned of_z[EE_ODD_OUTPUT_Z_RANK] = EE_ODD_OUTPUT_Z_SHAPE;\n"
        "static const unsigned of_one[] = EE_ODD_INPUT_SCALAR_SHAPE;\n"
        "int main(void) {\n"
        '    printf("%d %s %d %d %u", EE_ODD_OUTPUTS, EE_ODD_OUTPUT_Z, EE_ODD_OUTPUT_Z_DTYPE,\n'
        "           EE_ODD_OUTPUT_Z_BYTES, of_z[1] + of_one[EE_ODD_INPUT_SCALAR_RANK]);\n}\n"
    )
    run(compiler, *STRICT, tmp_path / "main.c", "-o", tmp_path / "main", f"-I{app}")
    assert run(tmp_path / "main") == "2 z 1 16 3"
    assert "POLICY" not in (app / "odd.h").read_text()


def test_an_app_needs_nothing_but_the_system(compiler: str, app: Path, tmp_path: Path) -> None:
    program = driver([compiler], app, tmp_path / "driver")
    used = re.findall(r"^\s*(\S+?)(?:\.so\S*) ", run(needs("ldd"), program), re.MULTILINE)
    names = {Path(name).name for name in used}
    assert "libdigits" in names
    assert names <= {"libdigits", "libc", "libm", "libpthread", "linux-vdso", "linux-gate"} | {
        name for name in names if name.startswith("ld-linux")
    }


def test_two_networks_live_in_one_program(
    compiler: str, artifact: Path, app: Path, cache: Cache, images: np.ndarray, tmp_path: Path
) -> None:
    for file in DEMO.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    text = (DEMO / "digits.ee").read_text().replace("model digits", "model other")
    text = re.sub(r".*exit (early|late) .*\n", "", text)
    (tmp_path / "other.ee").write_text(text)
    options = BuildOptions(output=tmp_path / "out", threads=1)
    build(tmp_path / "other.ee", options, Steps(10, quiet=True), cache)
    export_artifact(tmp_path / "out", tmp_path / "other")
    program = tmp_path / "two"
    both = [*options_for(app), *options_for(tmp_path / "other")]
    run(compiler, *STRICT, HERE / "two_networks.c", "-o", program, *both)
    images[0].tofile(tmp_path / "x.bin")
    data = [app / "digits.eec", tmp_path / "other" / "other.eec"]
    lines = run(program, *data, tmp_path / "x.bin").splitlines()
    assert lines[:3] == ["EE_BAD_ARTIFACT", "EE_BAD_ARTIFACT", "EE_BAD_ARGUMENT"]
    assert lines[3].startswith("`other` has no policy `nobody`")
    for index, line in enumerate(lines[4:]):
        net = ee.load(tmp_path / "out" if index % 2 else artifact)
        exit_, _, told = line.partition(":")
        assert exit_ == ("1 of 2" if index % 2 else "3 of 4")
        logits = np.array(told.split(), np.float32)
        np.testing.assert_array_equal(logits, net.full_depth(images[:1]).logits)
    assert len(lines) == 8


def test_headers_serve_cpp(app: Path, tmp_path: Path) -> None:
    (tmp_path / "app.cpp").write_text(
        '#include "digits.h"\n#include "eecompile.hpp"\n#include <iostream>\n'
        "int main(int, char **given) {\n"
        "    eecompile::Network network(ee_library_digits, given[1]);\n"
        "    std::cout << network.about().exits - EE_DIGITS_EXITS << EE_DIGITS_POLICY_QUICK;\n}\n"
    )
    output, source = tmp_path / "app", tmp_path / "app.cpp"
    strict = ("-std=c++17", *STRICT[1:])
    run(needs("g++"), *strict, source, "-o", output, *options_for(app))
    assert run(output, app / "digits.eec") == "0quick"


def test_equal_artifacts_give_equal_files(artifact: Path, app: Path, tmp_path: Path) -> None:
    packed = pack_artifact(artifact, tmp_path / "digits.eec")
    found = export_artifact(packed, tmp_path / "again")
    assert found.python_only == () and found.symbol == "ee_library_digits"
    files = {path.name: path.read_bytes() for path in app.iterdir()}
    assert files == {path.name: path.read_bytes() for path in found.folder.iterdir()}
    assert {name: len(content) for name, content in files.items()} == dict(found.files)
    assert files["digits.eec"] == packed.read_bytes()
    assert files["libdigits.so"] == (artifact / "kernels.so").read_bytes()


def test_only_an_earlier_export_is_replaced(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    export_artifact(artifact, folder)
    (folder / "example").write_text("what README.md's commands make goes with it")
    (folder / "build").mkdir()
    cache = folder / "build" / "CMakeCache.txt"
    cache.write_text(f"x:y=z\nCMAKE_HOME_DIRECTORY:INTERNAL={folder}\n")
    export_artifact(artifact, folder)
    assert not (folder / "example").exists() and not (folder / "build").exists()
    (folder / "build").mkdir()
    cache.write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere\n")
    with pytest.raises(CompileErrors, match="other files in it: build"):
        export_artifact(artifact, folder)
    cache.unlink()
    (folder / "build").rmdir()
    (folder / "main.c").write_text("int main;")
    with pytest.raises(CompileErrors, match=r"cannot-write.*other files in it: main\.c"):
        export_artifact(artifact, folder)
    assert (folder / "main.c").exists()
    for foreign in (artifact, HERE):
        with pytest.raises(CompileErrors, match="is a folder with other things in it"):
            export_artifact(artifact, foreign)
    assert read_artifact(artifact)


def test_what_to_do_next_is_told(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "an app's"
    assert main(["export", str(artifact), "-o", str(folder)]) == 0
    told = capsys.readouterr().out
    commands = told[told.index("  cd ") :]
    lines = run("sh", "-c", commands.replace(" cc ", f" {needs('cc')} "), folder=tmp_path)
    assert lines.startswith("class ")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert main(["export", str(artifact), "-o", str(folder)]) == 0
    told = capsys.readouterr().out
    compiler = f"{os.uname().machine}-linux-gnu-gcc"
    assert f"  {compiler} example.c" in told and "./example" not in told


def test_an_artifact_without_a_runtime_is_refused(tmp_path: Path) -> None:
    earlier = ROOT / "tests" / "golden" / "plain-x86-64-v5"
    with pytest.raises(CompileErrors, match=r"wrong-artifact-version.*no native runtime"):
        export_artifact(earlier, tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_names_of_any_kind_become_c_names(compiler: str, artifact: Path, tmp_path: Path) -> None:
    found = read_artifact(artifact)
    network = found.manifest.network
    names = ("é", "a-b", "a b")
    exits = tuple(
        replace(e, name=n, point="*/ x") for e, n in zip(network.exits, names, strict=True)
    )
    inputs = tuple((name, network.inputs[0][1]) for name in ("in", "in.bytes", "IN"))
    labels = ('say "so"', "caf\u00e9", "what??/", "back\\slash", "", *"abcde")
    manifest = replace(
        found.manifest,
        network=replace(network, name="signal", exits=exits, inputs=inputs),
        policies=("of somebody", "quick"),
        default_policy="of somebody",
        labels=labels,
    )
    quick = found.policies["quick"]
    policies = {"quick": quick, "of somebody": replace(quick, rule={"kind": "nobody's"})}
    names_ = AppNames(replace(found, manifest=manifest, policies=policies))
    assert names_.outputs == ["EE_SIGNAL_NETWORK_OUTPUT_LOGITS"]
    assert names_.name == "signal_network"  # signal.h is the system's
    assert names_.policy == "EE_SIGNAL_NETWORK_POLICY_QUICK"
    (tmp_path / "signal_network.h").write_text(header_text(names_))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "signal_network.h"\n'
        "static const char *const labels[] = EE_SIGNAL_NETWORK_LABELS;\n"
        "int main(void) {\n"
        "    for (int i = 0; i < EE_SIGNAL_NETWORK_CLASSES; i++) puts(labels[i]);\n"
        '    printf("%d %d %d %s\\n", EE_SIGNAL_NETWORK_EXIT_NETWORK, EE_SIGNAL_NETWORK_EXIT_A_B,\n'
        "           EE_SIGNAL_NETWORK_EXIT_A_B_2, EE_SIGNAL_NETWORK_POLICY_OF_SOMEBODY);\n"
        '    printf("%d %d\\n", EE_SIGNAL_NETWORK_INPUT_IN, EE_SIGNAL_NETWORK_INPUT_IN_BYTES);\n}\n'
    )
    options = [f"-I{tmp_path}", f"-I{ROOT / 'eecompile' / 'native'}"]
    run(compiler, *STRICT, *options, tmp_path / "main.c", "-o", tmp_path / "main")
    lines = run(tmp_path / "main").splitlines()
    assert lines[:10] == list(labels)
    assert lines[10:] == ["0 1 2 of somebody", "0 256"]


def test_the_same_app_on_aarch64(
    arm: Path, artifact: Path, app: Path, cache: Cache, images: np.ndarray, tmp_path: Path
) -> None:
    options = BuildOptions(target="arm-cpu", output=tmp_path / "out", threads=1)
    build(DEMO / "digits.ee", options, Steps(10, quiet=True), cache)
    there = tmp_path / "app"
    found = export_artifact(tmp_path / "out", there)
    assert found.triple.startswith("aarch64") and {*found.files} == {p.name for p in app.iterdir()}
    compiler = find_linkers(machine("arm-cpu"))[0].command
    program = driver(compiler, there, tmp_path / "driver")
    on_arm = ("bash", ROOT / "tests" / "arm" / "env.sh", "program", arm, program)
    x = images[:60]
    exits, logits = answers(on_arm, there / "digits.eec", "quick", x, tmp_path)
    expected = ee.load(artifact).run_batch(x)
    np.testing.assert_array_equal(exits, expected.exits)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-3)
    if platform.machine() != "aarch64":
        here = driver([needs("cc")], app, tmp_path / "here")
        with pytest.raises(AssertionError, match="EE_BAD_ARTIFACT"):
            answers([here], there / "digits.eec", "quick", x, tmp_path)
