"""Packed artifacts: written whole or not at all, the same bytes twice, used as folders are."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eecompile as ee
from eecompile import atomic
from eecompile.artifact import Artifact, read_artifact, write_artifact
from eecompile.artifact_files import LIMITS, MANIFEST, MEMBERS
from eecompile.artifact_writing import check_destination
from eecompile.benching.keeping import keep_costs
from eecompile.diagnostics import CompileErrors
from eecompile.packed import pack_artifact
from eecompile.packed_form import PackedError, packed, read_directory
from eecompile.runtime.vectors import verify_artifact
from tests.cli.calls import in_process
from tests.native.packed_files import ATTACKS, good, sparse
from tests.runtime import tiny

OTHER = np.zeros(4, np.float32)  # weights that make another artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", tiny.contents())
    return tmp_path / "out"


@pytest.fixture
def file(folder: Path) -> Path:
    return pack_artifact(folder)


def message(path: Path, **options: Any) -> str:
    """What reading says, which is one thing."""
    with pytest.raises(CompileErrors) as failure:
        read_artifact(path, **options)
    (found,) = failure.value.diagnostics
    assert found.id == "bad-artifact" and found.path == str(path)
    return found.message


def repacked(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Write the file with other contents: in its form, whatever they are."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    path.write_bytes(b"".join(packed(files)))


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def same(one: Artifact, two: Artifact) -> bool:
    return (
        one.manifest == two.manifest
        and one.library == two.library
        and one.policies == two.policies
        and one.texts == two.texts
        and one.weights.tobytes() == two.weights.tobytes()
    )


# Writing.


def test_packing_keeps_everything(folder: Path, file: Path) -> None:
    assert file == folder.with_name("out.eec")
    assert same(read_artifact(file), read_artifact(folder))
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST, *sorted(MEMBERS)]
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert archive.read(info) == (folder / info.filename).read_bytes()


def test_data_are_aligned(file: Path) -> None:
    data = file.read_bytes()
    members = read_directory(lambda at, count: data[at : at + count], len(data))
    assert all(member.data % 64 == 0 for member in members)


def test_the_same_artifact_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    one = pack_artifact(folder, tmp_path / "one.eec").read_bytes()
    write_artifact(tmp_path / "two.eec", tiny.contents())
    assert (tmp_path / "two.eec").read_bytes() == one
    again = pack_artifact(tmp_path / "two.eec", tmp_path / "three.eec")
    assert again.read_bytes() == one
    assert pack_artifact(again).read_bytes() == one  # in its own place


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_unzip_gives_the_folder_back(folder: Path, file: Path, tmp_path: Path) -> None:
    subprocess.run(["unzip", "-q", str(file), "-d", str(tmp_path / "back")], check=True)
    assert hashes(tmp_path / "back") == hashes(folder)
    ee.load(tmp_path / "back")


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs zip")
def test_what_other_tools_write_is_refused(folder: Path, tmp_path: Path) -> None:
    names = [MANIFEST, *sorted(MEMBERS)]
    for option in ("-0", "-9"):
        path = tmp_path / f"other{option}.zip"
        subprocess.run(["zip", "-qX", option, str(path), *names], cwd=folder, check=True)
        assert message(path).startswith("This file is no packed artifact: `manifest.json` ")


def test_an_earlier_packed_artifact_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.eec"
    path.touch()
    for weights in (tiny.WEIGHTS, OTHER):
        write_artifact(path, tiny.contents(weights=weights))
        path.chmod(0o640)
    write_artifact(path, tiny.contents(weights=OTHER))
    assert not read_artifact(path).weights.any()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out.eec"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.eec").symlink_to("real")
    write_artifact(tmp_path / "link.eec", tiny.contents())
    assert (tmp_path / "link.eec").is_symlink()
    assert same(read_artifact(tmp_path / "link.eec"), read_artifact(tmp_path / "real"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("mine"), "is a file of another kind"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "is a file of another kind"),
        (lambda path: path.mkdir(), "is no plain file"),
        (os.mkfifo, "is no plain file"),
    ],
)
def test_other_things_are_never_overwritten(
    folder: Path, make: Callable[[Path], object], why: str
) -> None:
    path = folder.with_name("mine.eec")
    make(path)
    before = sorted(folder.parent.rglob("*")), path.lstat()
    calls: list[Callable[[], object]] = [
        lambda: check_destination(path),
        lambda: pack_artifact(folder, path),
        lambda: write_artifact(path, tiny.contents()),
    ]
    for call in calls:
        with pytest.raises(CompileErrors) as failure:
            call()
        (found,) = failure.value.diagnostics
        assert (found.id, found.message) == ("cannot-write", f"`mine.eec` {why}")
    assert (sorted(folder.parent.rglob("*")), path.lstat()) == before


def test_a_name_of_another_ending_is_refused(folder: Path) -> None:
    with pytest.raises(CompileErrors, match=r"`out.zip` is no name of a packed artifact"):
        pack_artifact(folder, folder.with_name("out.zip"))
    assert not folder.with_name("out.zip").exists()


def test_a_damaged_artifact_is_not_packed(folder: Path) -> None:
    (folder / "costs.json").write_text("null ")
    with pytest.raises(CompileErrors, match=r"`costs.json` has"):
        pack_artifact(folder)
    assert not folder.with_name("out.eec").exists()


def test_an_artifact_of_another_machine_is_packed(folder: Path) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    value["target"]["triple"] = "riscv64-linux-gnu"
    (folder / MANIFEST).write_text(json.dumps(value))
    path = pack_artifact(folder)
    assert read_artifact(path, must_run=False).manifest.target.triple == "riscv64-linux-gnu"
    with zipfile.ZipFile(path) as archive:
        assert archive.read(MANIFEST) == (folder / MANIFEST).read_bytes()


def test_4_gib_are_refused_before_anything_is_copied() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 0xFFFFFFFF

    with pytest.raises(PackedError, match="it would have 4 GiB or more"):
        list(packed({MANIFEST: b"{}", "weights.bin": Long(b"x")}))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_earlier_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = hashes(file.parent / "out"), file.read_bytes()

    def parts(files: Any) -> Any:
        yield b"half"
        raise error

    monkeypatch.setattr("eecompile.artifact_writing.packed", parts)
    with pytest.raises((CompileErrors, KeyboardInterrupt)):
        write_artifact(file, tiny.contents(weights=OTHER))
    assert (hashes(file.parent / "out"), file.read_bytes()) == before
    assert sorted(os.listdir(file.parent)) == ["out", "out.eec"]


def test_killed_at_any_point_either_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out.eec"
    contents = [tiny.contents(), tiny.contents(weights=OTHER)]
    allowed = []
    for one in contents:
        write_artifact(out, one)
        allowed.append(out.read_bytes())
    changes = [(os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")]
    seen, killed, step = set(), True, 0
    while killed:
        write_artifact(out, contents[0])
        assert os.listdir(tmp_path) == ["out.eec"], f"before step {step}"
        process = os.fork()
        if not process:
            try:
                steps = iter(range(1_000_000))
                for module, name in changes:
                    setattr(module, name, _counted(getattr(module, name), steps, step))
                write_artifact(out, contents[1])
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL)
        killed = status != 0
        seen.add(allowed.index(out.read_bytes()))
        step += 1
    assert step > 5 and seen == {0, 1}


def _counted(function: Any, steps: Any, last: int) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        for before in (True, False):
            if before is False:
                found = function(*arguments, **options)
            if next(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    return call


def test_files_of_dead_builds_are_removed_and_of_running_ones_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".out.eec.eecompile-tmp-{dead.pid}-0123"
    stale.write_bytes(b"half")
    with atomic.replaced_plain_file(tmp_path / "out.eec", lambda _: "") as running:
        write_artifact(tmp_path / "out.eec", tiny.contents())
        assert Path(running.name).exists() and not stale.exists()
        running.write((tmp_path / "out.eec").read_bytes())
    ee.load(tmp_path / "out.eec")
    assert os.listdir(tmp_path) == ["out.eec"]


# Reading.


def test_a_packed_artifact_runs_as_its_folder_does(folder: Path, file: Path) -> None:
    one, two = ee.load(folder), ee.load(file)
    for x in np.random.default_rng(3).normal(size=(20, 1, 4)).astype(np.float32):
        first, second = one.run(x), two.run(x)
        assert first.exit == second.exit
        np.testing.assert_array_equal(first.logits, second.logits)
    assert verify_artifact(file).ok


def test_weights_are_mapped_and_aligned(file: Path) -> None:
    artifact = read_artifact(file)
    weights = artifact.weights
    assert weights.ctypes.data % 64 == 0 and not weights.flags.writeable
    maps = Path("/proc/self/maps").read_text().splitlines()
    (line,) = [line for line in maps if line.endswith(str(file))]
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    assert start <= weights.ctypes.data < end and line.split()[1] == "r--s"


def test_weights_may_be_empty(tmp_path: Path) -> None:
    write_artifact(tmp_path / "x.eec", tiny.contents(weights=b""))
    assert read_artifact(tmp_path / "x.eec").weights.size == 0


def test_any_name_can_be_read(file: Path) -> None:
    other = file.rename(file.with_name("model"))
    assert read_artifact(other).manifest.network == tiny.network()


def test_costs_are_put_into_a_packed_artifact(file: Path) -> None:
    costs = tiny.costs(tiny.network(), 2.0)
    keep_costs(read_artifact(file), costs)
    assert read_artifact(file).costs == costs
    artifact = read_artifact(file)
    write_artifact(file, tiny.contents(weights=OTHER))
    with pytest.raises(CompileErrors, match="was built anew meanwhile: measure it again"):
        keep_costs(artifact, costs)
    assert not read_artifact(file).weights.any()


def test_reading_is_not_disturbed_by_a_build_in_between(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once: list[None] = []

    def meddling(read: Any, nbytes: int) -> Any:
        found = read_directory(read, nbytes)
        if not once:
            once.append(None)
            write_artifact(file, tiny.contents(weights=OTHER))
        return found

    monkeypatch.setattr("eecompile.artifact_files.read_directory", meddling)
    assert read_artifact(file).weights.any()  # the earlier one, whole
    assert not read_artifact(file).weights.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_end_in_their_message(tmp_path: Path, name: str) -> None:
    make, reason = ATTACKS[name]
    (tmp_path / "x.eec").write_bytes(make())
    assert message(tmp_path / "x.eec") == f"This file is no packed artifact: {reason}"


def test_a_packed_file_that_holds_no_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.eec").write_bytes(good())
    wanted = "This file is no artifact: `manifest.json` does not say `eecompile artifact`"
    assert message(tmp_path / "x.eec") == wanted


def test_what_is_neither_folder_nor_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.eec")
    for path in (tmp_path / "x.eec", Path("/dev/null")):
        assert message(path) == "This is neither a folder nor a plain file"
    sparse(tmp_path / "large", 1 << 32)
    assert message(tmp_path / "large").endswith("it has 4 GiB or more")


def test_members_beyond_their_limits_are_refused_before_they_are_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "model.ee", 3)
    assert message(file) == "`model.ee` has 12 bytes, more than the limit of 3"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda files: files.pop("costs.json"), "`costs.json` is missing"),
        (lambda files: files.update({"a.so": b""}), "`a.so` does not belong to the artifact"),
        (lambda files: files.update({"model.ee": b""}), "`model.ee` has 0 bytes, not 12"),
        (
            lambda files: files.update({"model.ee": b"eecompile 2\n"}),
            "`model.ee` has been changed: its SHA-256 is not the manifest's",
        ),
    ],
)
def test_members_are_those_of_the_manifest(
    file: Path, change: Callable[[dict[str, bytes]], object], wanted: str
) -> None:
    repacked(file, change)
    assert message(file) == wanted


def test_checks_come_in_order(file: Path) -> None:
    good = file.read_bytes()
    manifest = json.loads(read_artifact(file).manifest_bytes)

    def say(changes: dict[str, Any], code: bytes | None = None) -> str:
        def change(files: dict[str, bytes]) -> None:
            files[MANIFEST] = json.dumps({**manifest, **changes}).encode()
            files["kernels.so"] = code or files["kernels.so"]

        file.write_bytes(good)
        repacked(file, change)
        with pytest.raises(CompileErrors) as failure:
            ee.load(file)
        return failure.value.diagnostics[0].message

    other = bytes(len(read_artifact(file).library))
    foreign = {**manifest["target"], "triple": "riscv64-linux-gnu"}
    wrong = {"format": "x", "format_version": 99, "surprise": 1, "target": foreign}
    assert "no artifact" in say(wrong, other)
    del wrong["format"]
    assert "artifact has 99" in say(wrong, other)
    del wrong["format_version"]
    assert "`surprise` is no field" in say(wrong, other)
    del wrong["surprise"]
    assert "`kernels.so` has been changed" in say(wrong, other)
    assert "was built for riscv64" in say(wrong)


def test_any_changed_bit_is_found(file: Path) -> None:
    data = file.read_bytes()
    members = read_directory(lambda at, count: data[at : at + count], len(data))
    places = {0, len(data) - 1, len(data) - 22, members[-1].end}
    places |= {at for m in members for at in (m.header, m.header + 14, m.data - 1, m.data)}
    places |= {m.end - 1 for m in members}
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        with pytest.raises(CompileErrors):
            ee.load(file)
    file.write_bytes(data)
    ee.load(file)


def test_a_checksum_that_only_other_tools_read_is_compared_too(file: Path) -> None:
    data = bytearray(file.read_bytes())
    members = read_directory(lambda at, count: bytes(data[at : at + count]), len(data))
    last = members[-1]
    for at in (last.header + 14, data.rindex(last.name.encode()) - 46 + 16):
        data[at] ^= 1
    file.write_bytes(data)
    assert message(file) == f"`{last.name}` has been changed: its CRC-32 is another one"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_is_changed_there_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = _whole()
    changed = bytearray(whole)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.eec"
    path.write_bytes(changed)
    try:
        read_artifact(path)
    except CompileErrors as errors:
        assert {found.id for found in errors.diagnostics} <= {
            *("bad-artifact", "wrong-artifact-version", "wrong-machine")
        }
    else:
        assert bytes(changed) == whole


@functools.cache
def _whole() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        write_artifact(Path(name, "x.eec"), tiny.contents())
        return Path(name, "x.eec").read_bytes()


# The command line.


def test_pack_tells_what_it_wrote(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = in_process(capfd)
    path = folder.with_name("net.eec")
    done = call("pack", folder, "-o", path, "--json")
    assert (done.status, done.json) == (0, {"file": str(path), "bytes": path.stat().st_size})
    assert call("verify", path, "--json").json["ok"]
    np.save(folder.with_name("x.npy"), np.zeros((1, 4), np.float32))
    assert call("run", path, "--input", folder.with_name("x.npy"), "--json").status == 0
    done = call("pack", folder, "-o", folder.with_name("net.zip"), "--json")
    assert (done.status, done.ids) == (1, ["cannot-write"])
    done = call("pack", folder.with_name("nothing"), "--json")
    assert (done.status, done.ids) == (1, ["bad-artifact"])
