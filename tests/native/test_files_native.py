"""SHA-256 and an artifact's files in C: as hashlib has it, and as Python's reader accepts them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eecompile.artifact import write_artifact
from eecompile.packed_form import PackedError, read_directory
from tests.native.conftest import NATIVE, Compile
from tests.native.packed_files import ATTACKS, FILES, entries, good, sparse, zipped
from tests.runtime import tiny

OK, BAD_ARGUMENT, BAD_ARTIFACT, NO_FILE = 0, 1, 2, 6
WITHOUT_PLAN = " (format 5 has none: build it again)"
DRIVER = Path(__file__).with_name("packed_driver.c")


class Seen(ctypes.Structure):
    _fields_ = (
        ("plan_bytes", ctypes.c_uint64),
        ("weights_bytes", ctypes.c_uint64),
        ("misaligned", ctypes.c_uint64),
        ("plan", ctypes.c_ubyte * 32),
        ("weights", ctypes.c_ubyte * 32),
    )


@pytest.fixture(scope="session")
def native(compiled: Compile) -> ctypes.CDLL:
    library = compiled(["errors.c"], f'#include "{DRIVER}"\n')
    library.said.restype = library.shown_path.restype = ctypes.c_char_p
    return library


def digest(function: Callable[..., object], data: bytes) -> str:
    found = (ctypes.c_ubyte * 32)()
    function(data, ctypes.c_size_t(len(data)), found)
    return bytes(found).hex()


def opened(native: ctypes.CDLL, path: Path, status: int) -> str:
    """Opens it, which must end in this status; the message."""
    seen = Seen()
    assert native.opened(os.fsencode(path), ctypes.byref(seen)) == status, native.said()
    if status == OK:
        check(seen)
    return str(native.said().decode())


def check(seen: Seen) -> None:
    plan, weights = FILES["plan.bin"], FILES["weights.bin"]
    assert (seen.plan_bytes, seen.weights_bytes) == (len(plan), len(weights))
    assert bytes(seen.plan) == hashlib.sha256(plan).digest()
    assert bytes(seen.weights) == hashlib.sha256(weights).digest()
    assert seen.misaligned == 0


def from_memory(native: ctypes.CDLL, data: bytes, shift: int = 0) -> tuple[int, Seen, str]:
    seen = Seen()
    sizes = (ctypes.c_size_t(len(data)), ctypes.c_size_t(shift))
    status = native.opened_memory(data, *sizes, ctypes.byref(seen))
    return status, seen, native.said().decode()


def refusal(data: bytes) -> str:
    """Why Python's reader refuses a packed file; empty where it does not."""
    try:
        read_directory(lambda at, count: data[at : at + count], len(data))
    except PackedError as error:
        return str(error)
    return ""


# SHA-256.


@pytest.mark.parametrize("count", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 65_537])
def test_hashes_are_those_of_hashlib(native: ctypes.CDLL, count: int) -> None:
    data = bytes(i * 31 + i // 256 & 0xFF for i in range(count))
    wanted = hashlib.sha256(data).hexdigest()
    assert digest(native.sha256, data) == wanted
    assert digest(native.portable, data) == wanted


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_hashes_of_any_bytes_are_those_of_hashlib(native: ctypes.CDLL, data: bytes) -> None:
    wanted = hashlib.sha256(data).hexdigest()
    assert digest(native.sha256, data) == digest(native.portable, data) == wanted


def test_hashes_at_any_address_are_the_same(native: ctypes.CDLL) -> None:
    data = bytes(range(256)) * 3
    buffer = ctypes.create_string_buffer(len(data) + 64)
    for shift in range(64):
        ctypes.memmove(ctypes.addressof(buffer) + shift, data, len(data))
        found = (ctypes.c_ubyte * 32)()
        at = ctypes.c_void_p(ctypes.addressof(buffer) + shift)
        native.sha256(at, ctypes.c_size_t(len(data)), found)
        assert bytes(found) == hashlib.sha256(data).digest()


def test_the_cpus_instructions_for_it_are_used_where_linux_names_them(native: ctypes.CDLL) -> None:
    words = Path("/proc/cpuinfo").read_text().split()
    assert bool(native.has_fast()) == bool({"sha_ni", "sha2"} & set(words))


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    for name, data in FILES.items():
        (made / name).write_bytes(data)
    return made


def test_a_folder_and_a_link_to_one_open(native: ctypes.CDLL, folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    opened(native, folder, OK)
    opened(native, link, OK)


def test_weights_may_be_empty(native: ctypes.CDLL, folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"")
    seen = Seen()
    assert native.opened(os.fsencode(folder), ctypes.byref(seen)) == OK
    assert seen.weights_bytes == seen.misaligned == 0
    status, seen, _ = from_memory(native, good(FILES | {"weights.bin": b"", "plan.bin": b""}))
    assert (status, seen.plan_bytes, seen.weights_bytes) == (OK, 0, 0)


@pytest.mark.parametrize("name", ["plan.bin", "weights.bin"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "`{folder}` is no artifact this runtime reads: it has no `{name}`{why}"),
        ("link", "`{name}` in `{folder}` is a link, not a plain file"),
        ("link upwards", "`{name}` in `{folder}` is a link, not a plain file"),
        ("pipe", "`{name}` in `{folder}` is no plain file"),
        ("folder", "`{name}` in `{folder}` is no plain file"),
        ("device", "`{name}` in `{folder}` is a link, not a plain file"),
    ],
)
def test_members_that_are_no_plain_files_are_refused(
    native: ctypes.CDLL, folder: Path, name: str, how: str, message: str
) -> None:
    member = folder / name
    data = member.read_bytes()
    member.unlink()
    if how == "link":
        (folder / "other").write_bytes(data)
        member.symlink_to("other")
    elif how == "link upwards":
        (folder.parent / "other").write_bytes(data)
        member.symlink_to("../other")
    elif how == "pipe":
        os.mkfifo(member)
    elif how == "folder":
        member.mkdir()
    elif how == "device":
        member.symlink_to("/dev/zero")
    why = WITHOUT_PLAN if name == "plan.bin" else ""
    wanted = message.format(name=name, folder=folder, why=why)
    assert opened(native, folder, BAD_ARTIFACT) == wanted


def test_a_plan_beyond_the_limit_is_refused(native: ctypes.CDLL, folder: Path) -> None:
    os.truncate(folder / "plan.bin", (64 << 20) + 1)
    wanted = f"the plan of `{folder}` has 67108865 bytes, more than the limit of 67108864"
    assert opened(native, folder, BAD_ARTIFACT) == wanted


def test_weights_beyond_the_limit_are_refused(native: ctypes.CDLL, folder: Path) -> None:
    os.truncate(folder / "weights.bin", (1 << 40) + 1)  # sparse: takes no room on disk
    wanted = f"the weights of `{folder}` have {(1 << 40) + 1} bytes, more than can be mapped"
    assert opened(native, folder, BAD_ARTIFACT) == wanted


def test_what_is_neither_folder_nor_file_is_refused(native: ctypes.CDLL, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    wanted = "is neither a folder nor a plain file"
    for path in (tmp_path / "pipe", Path("/dev/null")):
        assert opened(native, path, BAD_ARTIFACT) == f"`{path}` {wanted}"


def test_paths_that_cannot_be_opened_are_told(native: ctypes.CDLL, tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    wanted = f"`{path}` cannot be opened: No such file or directory"
    assert opened(native, path, NO_FILE) == wanted
    assert native.opened(None, ctypes.byref(Seen())) == BAD_ARGUMENT
    path.symlink_to("nothing")
    assert "cannot be opened" in opened(native, path, NO_FILE)


def test_of_long_paths_messages_show_the_end(native: ctypes.CDLL) -> None:
    assert native.shown_path(b"short") == b"short"
    path = "ä" * 200 + "/out.eec"
    shown = native.shown_path(path.encode()).decode()
    assert path.endswith(shown) and 240 < len(shown.encode()) <= 250


def test_a_file_that_becomes_shorter_is_told(native: ctypes.CDLL, tmp_path: Path) -> None:
    (tmp_path / "plan.bin").write_bytes(b"short")
    path = os.fsencode(tmp_path / "plan.bin")
    assert native.cut_off(path, ctypes.c_uint64(5)) == OK
    assert native.cut_off(path, ctypes.c_uint64(6)) == NO_FILE
    assert native.said().endswith(b"was cut off while it was read")


def test_nothing_stays_open_or_mapped(native: ctypes.CDLL, folder: Path, tmp_path: Path) -> None:
    def state() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count(str(tmp_path))

    file = tmp_path / "x.eec"
    file.write_bytes(good())
    before = state()
    for status in (OK, BAD_ARTIFACT):
        for path in (folder, file):
            opened(native, path, status)
        (folder / "weights.bin").unlink(missing_ok=True)
        file.write_bytes(good()[:-1])
    assert state() == before


# Packed files.


def test_an_artifact_opens_as_folder_and_packed(native: ctypes.CDLL, tmp_path: Path) -> None:
    for path in (tmp_path / "out", tmp_path / "out.eec"):
        members = write_artifact(path, tiny.contents()).members
        seen = Seen()
        assert native.opened(os.fsencode(path), ctypes.byref(seen)) == OK, native.said()
        assert bytes(seen.plan).hex() == members["plan.bin"].sha256
        assert bytes(seen.weights).hex() == members["weights.bin"].sha256


def test_a_packed_file_opens_from_disk_and_memory(native: ctypes.CDLL, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(good())
    opened(native, tmp_path / "x", OK)
    status, seen, _ = from_memory(native, good())
    assert status == OK
    check(seen)


def test_weights_at_any_place_in_a_page_are_mapped(native: ctypes.CDLL, tmp_path: Path) -> None:
    for nbytes in (0, 1, 3000, 4096 - 600, 4096, 70_000):
        (tmp_path / "x").write_bytes(good(FILES | {"kernels.so": b"k" * nbytes}))
        opened(native, tmp_path / "x", OK)


@pytest.mark.parametrize("name", ["plan.bin", "weights.bin"])
def test_a_packed_file_without_what_is_needed_is_refused(native: ctypes.CDLL, name: str) -> None:
    data = good({key: value for key, value in FILES.items() if key != name})
    status, _, message = from_memory(native, data)
    why = WITHOUT_PLAN if name == "plan.bin" else ""
    wanted = f"`memory` is no artifact this runtime reads: it has no `{name}`{why}"
    assert (status, message, refusal(data)) == (BAD_ARTIFACT, wanted, "")


def test_memory_must_be_aligned_and_there(native: ctypes.CDLL) -> None:
    status, _, message = from_memory(native, good(), 1)
    assert (status, message) == (
        BAD_ARGUMENT,
        "a packed artifact's bytes must lie at a multiple of 64",
    )


def test_the_suites_own_writer_agrees_with_the_writer() -> None:
    assert zipped(entries()) == good()
    assert refusal(good()) == ""


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_alike(native: ctypes.CDLL, tmp_path: Path, name: str) -> None:
    make, reason = ATTACKS[name]
    data = make()
    assert refusal(data) == reason
    status, _, message = from_memory(native, data)
    assert (status, message) == (BAD_ARTIFACT, f"`memory` is no packed artifact: {reason}")
    (tmp_path / "x").write_bytes(data)
    wanted = f"`{tmp_path / 'x'}` is no packed artifact: {reason}"
    assert opened(native, tmp_path / "x", BAD_ARTIFACT) == wanted


def test_files_of_4_gib_are_refused(native: ctypes.CDLL, tmp_path: Path) -> None:
    sparse(tmp_path / "x", 1 << 32)
    assert opened(native, tmp_path / "x", BAD_ARTIFACT).endswith("it has 4 GiB or more")
    with pytest.raises(PackedError, match="it has 4 GiB or more"):
        read_directory(lambda at, count: b"", 1 << 32)


def test_every_truncation_and_every_bit_is_treated_alike(native: ctypes.CDLL) -> None:
    """Changed data are told by hashes, a checksum by Python alone; all else is refused by both."""
    data = good(FILES | {"weights.bin": b"w" * 70})
    told = set(range(len(data)))
    for member in read_directory(lambda at, count: data[at : at + count], len(data)):
        told -= set(range(member.data, member.end))
    for cut in range(len(data)):
        status, _, message = from_memory(native, data[:cut])
        assert (status, message.partition("artifact: ")[2]) == (2, refusal(data[:cut])), cut
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        status, _, message = from_memory(native, bytes(changed))
        reason = refusal(bytes(changed))
        assert (message.partition("artifact: ")[2] if status else "") == reason, at
        assert bool(reason) == (at in told), at


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """A packed file with a few bytes changed, moved or missing, near what is telling."""
    data = bytearray(good(FILES | {"weights.bin": b"w" * 70}))
    places = st.sampled_from([m.start() for m in _SIGNATURES.finditer(data)])
    for _ in range(draw(st.integers(1, 3))):
        at = min(draw(places) + draw(st.integers(0, 60)), len(data) - 1)
        how = draw(st.sampled_from(["set", "delete", "insert", "copy"]))
        if how == "set":
            value = draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
            data[at] = value
        elif how == "delete":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            source = draw(st.integers(0, len(data) - 1))
            data[at : at + 46] = data[source : source + 46]
        if len(data) < 2:
            break
    return bytes(data)


_SIGNATURES = re.compile(rb"PK..", re.DOTALL)


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(forged() | st.binary(max_size=80))
def test_both_readers_accept_and_refuse_the_same_files(native: ctypes.CDLL, data: bytes) -> None:
    status, _, message = from_memory(native, data)
    reason = refusal(data)
    if reason:
        assert (status, message) == (BAD_ARTIFACT, f"`memory` is no packed artifact: {reason}")
    else:
        assert status == OK or "it has no `" in message


def test_under_sanitizers_mutated_files_do_no_harm(
    sanitized: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "x.eec").write_bytes(good())
    (tmp_path / "fuzz.c").write_text(f'#define FUZZ\n#include "{DRIVER}"\n')
    program = sanitized([NATIVE / "errors.c", tmp_path / "fuzz.c"])
    command = [program, str(tmp_path / "x.eec"), "30000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 20_000
