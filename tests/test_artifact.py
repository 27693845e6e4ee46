"""Artifacts are written whole or not at all, give the same bytes twice, and check themselves."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile import atomic
from eecompile.artifact import Contents, PolicyEntry, content_digest, read_artifact, write_artifact
from eecompile.artifact_files import MEMBERS
from eecompile.checked_json import JsonError, parse_json
from eecompile.cli import main
from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.manifest import Manifest
from eecompile.native_plan import plan_bytes
from eecompile.runtime.vectors import verify_artifact
from tests.runtime import tiny

OTHER = np.zeros(4, np.float32)  # weights that make another artifact


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been brought to disk, in order; not really, which takes its time."""
    found: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: found.append(os.readlink(f"/proc/self/fd/{fd}")))
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def leftovers(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    contents = tiny.contents()
    manifest = write_artifact(tmp_path / "out", contents)
    artifact = read_artifact(tmp_path / "out")
    assert artifact.manifest == manifest
    assert manifest.network == tiny.network()
    assert artifact.library == tiny.machine_code()
    np.testing.assert_array_equal(artifact.weights.view(np.float32), tiny.WEIGHTS)
    assert not artifact.weights.flags.writeable and artifact.weights.ctypes.data % 64 == 0
    assert artifact.policies == contents.policies
    assert artifact.costs == contents.costs
    assert artifact.segments_text == "segments\n" and artifact.source_text == "eecompile 1\n"
    for name, array in artifact.vectors().items():
        np.testing.assert_array_equal(array, contents.vectors[name])
    assert set(manifest.members) == set(MEMBERS)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", *MEMBERS}


def test_everything_is_on_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    synced.clear()
    swap = atomic._swap

    def checked(fresh: Path, destination: Path) -> None:
        names = {"manifest.json", *MEMBERS}
        assert set(synced) == {str(fresh), *(str(fresh / name) for name in names)}
        synced.clear()
        swap(fresh, destination)
        assert synced == [str(tmp_path)]

    monkeypatch.setattr(atomic, "_swap", checked)
    write_artifact(tmp_path / "out", tiny.contents(weights=OTHER))


def test_the_same_build_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_artifact(tmp_path / name, tiny.contents())
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_measurements_stand_apart(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        return content_digest(write_artifact(tmp_path / "out", tiny.contents(**changes)))

    one, two = (tiny.costs(tiny.network(), seconds) for seconds in (1.0, 2.0))
    measured = [digest(costs=costs, measured=True) for costs in (one, two)]
    assert measured[0] == measured[1]
    entries = [PolicyEntry(tiny.contents().policies["fast"].rule, {"s": s}) for s in (1, 2)]
    reported = [
        digest(policies={"fast": entry}, measured=True, default_policy="fast") for entry in entries
    ]
    assert reported[0] == reported[1]
    assert digest(costs=one) != digest(costs=two)
    assert digest(weights=OTHER) != measured[0]


def test_manifest_text_is_canonical(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    text = (tmp_path / "out" / "manifest.json").read_text()
    value = parse_json(text.encode())
    assert list(value) == sorted(value) and text.endswith("}\n")
    assert Manifest.from_json(value).to_json() == value


def test_an_unreadable_manifest_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="`labels` must have one name for each class"):
        write_artifact(tmp_path / "out", tiny.contents(labels=("a",)))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_artifact(tmp_path / "out", tiny.contents(fitted={"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_artifact_is_replaced(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    write_artifact(tmp_path / "out", tiny.contents(weights=OTHER))
    assert not read_artifact(tmp_path / "out").weights.any()
    assert leftovers(tmp_path) == []


def test_an_empty_folder_a_new_path_and_a_link_serve(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("linked")
    for name in ("empty", "deep/er", "link"):
        write_artifact(tmp_path / name, tiny.contents())
        ee.load(tmp_path / name)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "linked").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "`file` is a file, not a folder"),
        ("folder", "`folder` is a folder with other things in it"),
        ("app", "`app` is a folder with other things in it"),
        ("notes", "`notes` is an artifact with other files in it: notes.txt"),
    ],
)
def test_other_things_are_never_overwritten(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"format": "web", "members": {}}')
    write_artifact(tmp_path / "notes", tiny.contents())
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CompileErrors) as failure:
        write_artifact(tmp_path / name, tiny.contents(weights=OTHER))
    assert failure.value.diagnostics[0].id == "cannot-write"
    assert failure.value.diagnostics[0].message == message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("step", range(len(MEMBERS) + 1))
def test_a_failed_write_leaves_the_earlier_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: int
) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    before = hashes(tmp_path / "out")
    count = 0

    def failing(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > step:
            path.write_bytes(bytes(data[:10]))
            raise error
        path.write_bytes(data)

    monkeypatch.setattr("eecompile.artifact_writing.write_file", failing)
    with pytest.raises((CompileErrors, KeyboardInterrupt)) as failure:
        write_artifact(tmp_path / "out", tiny.contents(weights=OTHER))
    if isinstance(failure.value, CompileErrors):
        (diagnostic,) = failure.value.diagnostics
        assert diagnostic.id == "cannot-write"
        assert diagnostic.message == "Cannot write `out`: no space left on device"
        assert diagnostic.help == "free some space, or write to another disk"
    assert hashes(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


def test_a_disk_that_really_is_full_leaves_the_earlier_artifact(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    before = hashes(tmp_path / "out")
    contents = tiny.contents(weights=OTHER)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel refuses the write itself, half-way through the library.
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
        with pytest.raises(CompileErrors, match="Cannot write `out`: file too large"):
            write_artifact(tmp_path / "out", contents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert hashes(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


def killed_at(destination: Path, contents: Contents, step: int, how: str) -> bool:
    """Write an artifact in a process that dies at `step`; False where it got through.

    Steps are counted before and after everything that changes what is on disk.
    """
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL)
        return status != 0
    try:
        if how == "renames":
            atomic._exchange = lambda first, second: False
        steps = iter(range(1_000_000))
        changes = [(os, name) for name in ("rename", "mkdir", "fsync", "unlink", "rmdir")]
        for module, name in [*changes, (atomic, "_exchange")]:
            setattr(module, name, _counted(getattr(module, name), steps, step))
        write_artifact(destination, contents)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _counted(function: Any, steps: Iterator[int], last: int) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*arguments, **options)
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return call


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_killed_at_any_point_either_the_old_or_the_new_is_there(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    old, new = tiny.contents(), tiny.contents(weights=OTHER)
    allowed = []
    for contents in (old, new):
        write_artifact(tmp_path / "x", contents)
        allowed.append(hashes(tmp_path / "x"))
    seen, without, killed, step = set(), 0, True, 0
    while killed:
        write_artifact(out, old)
        assert leftovers(tmp_path) == [], f"before step {step}"
        killed = killed_at(out, new, step, how)
        if how == "renames" and not out.exists():
            # The one moment without an artifact, on file systems that cannot exchange; the next
            # build puts the earlier one back before it does anything else.
            without += 1
            atomic._remove_stale(out)
        assert hashes(out) in allowed, f"after step {step}"
        seen.add(allowed.index(hashes(out)))
        step += 1
    assert step > 30 and seen == {0, 1}
    assert without == (0 if how == "exchange" else 2)
    write_artifact(out, old)
    assert leftovers(tmp_path) == []


def test_folders_of_running_builds_are_left_alone(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    with atomic.replaced_directory(tmp_path / "out", lambda _: "") as fresh:
        (fresh / "half").write_text("")
        write_artifact(tmp_path / "out", tiny.contents(weights=OTHER))  # another build meanwhile
        assert (fresh / "half").exists()
        for member in hashes(tmp_path / "out"):
            (fresh / member).write_bytes((tmp_path / "out" / member).read_bytes())
        (fresh / "half").unlink()
    assert not read_artifact(tmp_path / "out").weights.any()
    assert leftovers(tmp_path) == []


def test_folders_of_dead_builds_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".out.eecompile-tmp-{dead.pid}-0123"
    other = tmp_path / f".other.eecompile-tmp-{dead.pid}-0123"
    for folder in (stale, other):
        folder.mkdir()
        (folder / "kernels.so").write_bytes(b"half")
    write_artifact(tmp_path / "out", tiny.contents())
    assert not stale.exists() and other.exists()


def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    # A root user may write anywhere but here.
    with pytest.raises(CompileErrors) as failure:
        write_artifact("/proc/out", tiny.contents())
    assert failure.value.diagnostics[0].id == "cannot-write"
    assert "Cannot write `out`" in failure.value.diagnostics[0].message


def test_reading_is_not_disturbed_by_a_build_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    once: list[None] = []

    def meddling(manifest: Any) -> Manifest:
        if not once:
            once.append(None)
            write_artifact(tmp_path / "out", tiny.contents(weights=OTHER))
        return original(manifest)

    original = Manifest.from_json
    monkeypatch.setattr(Manifest, "from_json", meddling)
    assert not read_artifact(tmp_path / "out").weights.any()


def test_verify_runs_the_vectors(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    found = verify_artifact(tmp_path / "out")
    assert found.to_json() == {
        "ok": True,
        "max_abs_error": 0.0,
        "max_exit_error": 0.0,
        "exits_agree": True,
        "plan_agrees": True,
        "samples": 16,
        "files": sorted(MEMBERS),
    }


def test_verify_sees_a_plan_that_says_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the native runtime would do, and the same artifact's Python files, are of one build."""
    good, out = tiny.contents(), tmp_path / "out"
    careful = PolicyEntry(good.policies["careful"].rule, good.policies["fast"].report)
    others = {
        "policies": replace(good, policies={**good.policies, "fast": careful}),
        "default": replace(good, default_policy="careful"),
        "costs": replace(good, costs=tiny.costs(good.network, 2.5)),
        "labels": replace(good, labels=("x", "y", "z")),
        "cores": replace(good, target=replace(good.target, cores=2)),
        "nothing": good,
    }
    for name, other in others.items():
        write_artifact(out, replace(good, plan=plan_bytes(other)))
        found = verify_artifact(out)
        assert found.ok == found.plan_agrees == (name == "nothing"), name
        assert found.exits_agree and found.max_abs_error == 0, "Python does not read the plan"
        assert main(["verify", str(out)]) == (0 if found.ok else 1)
        said = capsys.readouterr().out
        assert ("plan.bin does not say what manifest.json" in said) == (not found.ok)


def test_verify_sees_wrong_outputs_exits_and_nan(tmp_path: Path) -> None:
    good = tiny.contents()

    def verify(name: str, change: Any) -> Any:
        vectors = dict(good.vectors)
        vectors[name] = change(vectors[name].copy())
        write_artifact(tmp_path / "out", tiny.contents(vectors=vectors))
        return verify_artifact(tmp_path / "out")

    def spoilt(array: np.ndarray) -> np.ndarray:
        array[3] = np.nan
        return array

    off = verify("source.logits", lambda a: a + 1)
    assert not off.ok and off.max_abs_error == pytest.approx(1) and off.exits_agree
    exit_off = verify("value.late.logits", lambda a: a + 1)
    assert not exit_off.ok and exit_off.max_exit_error == pytest.approx(1)
    assert not verify("source.logits", spoilt).ok
    other = verify("exits.patient", lambda a: 2 - a)
    assert not other.ok and not other.exits_agree and other.max_abs_error == 0
    # Only in the last digits: another machine's sums.
    assert verify("source.logits", lambda a: a * np.float32(1 + 1e-6)).ok


def test_vectors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    vectors = dict(tiny.contents().vectors)
    del vectors["exits.patient"]
    write_artifact(tmp_path / "out", tiny.contents(vectors=vectors))
    with pytest.raises(CompileErrors, match=r"`vectors.npz` has no fitting `exits.patient`"):
        verify_artifact(tmp_path / "out")


def test_an_artifact_without_exits_or_classes_serves(tmp_path: Path) -> None:
    network = tiny.network()
    whole = type(network)("tiny", network.inputs, "a", None, network.segments[:1], ())
    contents = tiny.contents(
        network=whole,
        policies={},
        default_policy=None,
        labels=None,
        costs=tiny.costs(whole),
        vectors={"input.x": tiny.inputs(2)},
    )
    write_artifact(tmp_path / "out", contents)
    net = ee.load(tmp_path / "out")
    answer = net.run(tiny.inputs(1))
    assert answer.exit == "final" and answer.confidence is not None
    np.testing.assert_array_equal(answer.outputs["a"], tiny.reference(tiny.inputs(1))["a"])
    assert set(answer.outputs) == {"a", "b"}


def test_policy_reports_are_kept(tmp_path: Path) -> None:
    rule = tiny.contents().policies["fast"].rule
    policies = {"fast": PolicyEntry(rule, {"accuracy": 0.9})}
    write_artifact(tmp_path / "out", tiny.contents(policies=policies))
    assert read_artifact(tmp_path / "out").policies["fast"].report == {"accuracy": 0.9}


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1,]", b'{"a":1,"a":2}', b"NaN", b"-Infinity", b"\xff"]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(text)


def test_numbers_too_long_for_python_are_refused() -> None:
    with pytest.raises(JsonError, match="no JSON"):
        parse_json(b"1" * 10_000)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_artifact(tmp_path / "out", tiny.contents())
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "manifest.json").stat().st_mode & 0o777 == 0o640
