"""Damaged, edited, foreign and hostile artifacts, and what comes of each: one message, no crash.

Each attack changes a good artifact; what loading it must say stands beside it. Attacks that also
write matching hashes show what the hashes do not protect from, and what still does.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eecompile as ee
from eecompile import artifact_files
from eecompile.artifact import read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.manifest import FORMAT_VERSION
from eecompile.memory import Peak
from tests.runtime import tiny

Attack = Callable[[Path], None]
ATTACKS: dict[str, tuple[Attack, str, tuple[str, ...]]] = {}


def attack(id_: str, *messages: str) -> Callable[[Attack], Attack]:
    """Registers an attack with the diagnostics it must end in."""

    def register(function: Attack) -> Attack:
        ATTACKS[function.__name__] = (function, id_, messages)
        return function

    return register


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", tiny.contents())
    return tmp_path / "out"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest's JSON value."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rehash(folder: Path, name: str) -> None:
    """Give a changed member the hash and size the manifest asks for."""
    data = (folder / name).read_bytes()
    member = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda m: m["members"][name].update(member))


def raw(folder: Path, old: str, new: str) -> None:
    """Change the manifest's text."""
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# 1. Sizes, before anything is read.


@attack("bad-artifact", "`manifest.json` has 67108865 bytes, more than the limit of 67108864")
def huge_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", (64 << 20) + 1)


@attack("bad-artifact", "`weights.bin` has 68719476737 bytes, more than the limit of 68719476736")
def huge_weights(folder: Path) -> None:
    os.truncate(folder / "weights.bin", (64 << 30) + 1)  # sparse: takes no room on disk


@attack("bad-artifact", "This folder is no artifact: it holds too many files")
def countless_files(folder: Path) -> None:
    for i in range(1001):
        (folder / str(i)).touch()


# 2. The manifest, and whether it is one.


@attack("bad-artifact", "This folder is no artifact: it has no `manifest.json`")
def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@attack("bad-artifact", "The artifact cannot be opened: no such file or directory")
def no_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@attack("bad-artifact", "This file is no packed artifact: it is too short")
def file_instead_of_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("model")


@attack("bad-artifact", "`manifest.json` is a link, not a plain file")
def linked_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.with_name("manifest.json"))
    (folder / "manifest.json").symlink_to("../manifest.json")


@attack("bad-artifact", "`manifest.json` is no plain file")
def pipe_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


@attack(
    "bad-artifact",
    "`manifest.json` cannot be used: it is no JSON: Expecting value: line 1 column 1 (char 0)",
)
def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


@attack(
    "bad-artifact",
    "`manifest.json` cannot be used: it is no JSON: "
    "Unterminated string starting at: line 2 column 2 (char 3)",
)
def truncated_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 10)


@attack(
    "bad-artifact",
    "`manifest.json` cannot be used: it is no JSON: "
    "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
)
def manifest_of_bytes(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe")


@attack("bad-artifact", "`manifest.json` cannot be used: it nests too deep")
def deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 1_000_000)


@attack("bad-artifact", "`manifest.json` cannot be used: `NaN` is no number")
def nan_in_manifest(folder: Path) -> None:
    raw(folder, '"macs": 1,', '"macs": NaN,')


@attack(
    "bad-artifact",
    "`manifest.json` cannot be used: `inputs[0].normalize.scale` must be a number",
)
def whole_number_beyond_all_floats(folder: Path) -> None:
    raw(folder, '"scale": 255.0', '"scale": 1' + "0" * 400)


@attack(
    "bad-artifact",
    "`manifest.json` cannot be used: `inputs[0].normalize.std` must be a list of numbers",
)
def whole_number_beyond_all_floats_in_a_list(folder: Path) -> None:
    edit(folder, lambda m: m["inputs"][0]["normalize"].update(std=[10**400]))


@attack("bad-artifact", "`manifest.json` cannot be used: `1e999` is out of range")
def infinity_in_manifest(folder: Path) -> None:
    raw(folder, '"macs": 1,', '"macs": 1e999,')


@attack(
    "bad-artifact", "`manifest.json` cannot be used: the key `model` stands twice in one object"
)
def duplicate_key(folder: Path) -> None:
    raw(folder, '"model": "tiny"', '"model": "tiny", "model": "other"')


@attack(
    "bad-artifact", "This folder is no artifact: `manifest.json` does not say `eecompile artifact`"
)
def foreign_manifest(folder: Path) -> None:
    edit(folder, lambda m: m.update(format="web app manifest"))


@attack(
    "bad-artifact", "This folder is no artifact: `manifest.json` does not say `eecompile artifact`"
)
def manifest_that_is_a_list(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


# 3. The format version, before any field that another version may have changed.


@attack(
    "wrong-artifact-version", "Artifact version mismatch: runtime supports 5 and 6, artifact has 7"
)
def future_version(folder: Path) -> None:
    edit(folder, lambda m: (m.clear(), m.update(format="eecompile artifact", format_version=7)))


@attack("bad-artifact", "`manifest.json` cannot be used: `format_version` must be a whole number")
def version_in_words(folder: Path) -> None:
    edit(folder, lambda m: m.update(format_version="one"))


@attack("bad-artifact", "`manifest.json` cannot be used: `format_version` must be a whole number")
def version_true(folder: Path) -> None:
    edit(folder, lambda m: m.update(format_version=True))


# 4. Every field.

CANNOT = "`manifest.json` cannot be used: "


@attack("bad-artifact", CANNOT + "`segments` is missing")
def missing_field(folder: Path) -> None:
    edit(folder, lambda m: m.pop("segments"))


@attack("bad-artifact", CANNOT + "`surprise` is no field of this format")
def unknown_field(folder: Path) -> None:
    edit(folder, lambda m: m.update(surprise=1))


@attack(
    "bad-artifact",
    CANNOT + "`segments[1].work.macs` must be a whole number from 0 to 4611686018427387904",
)
def field_of_another_type(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][1]["work"].update(macs=True))


@attack(
    "bad-artifact",
    CANNOT + "`segments[0].workspace_bytes` must be a whole number from 0 to 1099511627776",
)
def boundless_workspace(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0].update(workspace_bytes=1 << 60))


@attack(
    "bad-artifact",
    CANNOT + "`segments[0].private_bytes` must be a whole number from 0 to 1099511627776",
)
def boundless_memory_for_each_thread(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0].update(private_bytes=1 << 60))


@attack(
    "bad-artifact", CANNOT + "`segments[0].threads` must be a whole number from 1 to 1073741824"
)
def function_for_no_thread(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0].update(threads=0))


@attack("bad-artifact", CANNOT + "`target.cores` must be a whole number from 1 to 1024")
def no_cores(folder: Path) -> None:
    edit(folder, lambda m: m["target"].update(cores=0))


@attack("bad-artifact", CANNOT + "`target.cores` must be a whole number from 1 to 1024")
def countless_cores(folder: Path) -> None:
    edit(folder, lambda m: m["target"].update(cores=1 << 40))


@attack("bad-artifact", CANNOT + "`target.cores` must be a whole number from 1 to 1024")
def half_a_core(folder: Path) -> None:
    edit(folder, lambda m: m["target"].update(cores=0.5))


@attack("bad-artifact", CANNOT + "`target.cores` is missing")
def cores_unsaid(folder: Path) -> None:
    edit(folder, lambda m: m["target"].pop("cores"))


@attack(
    "bad-artifact", CANNOT + "`inputs[0].shape` must be that of a tensor which fits into memory"
)
def boundless_tensor(folder: Path) -> None:
    edit(folder, lambda m: m["inputs"][0].update(shape=[1 << 30, 1 << 30]))


@attack("bad-artifact", CANNOT + "`inputs[0].shape` must be a list of whole numbers from 1")
def negative_extent(folder: Path) -> None:
    edit(folder, lambda m: m["inputs"][0].update(shape=[1, -4]))


@attack(
    "bad-artifact",
    CANNOT + "`inputs[0].dtype` must be one of "
    "float32, int64, int32, int16, int8, uint16, uint8, bool",
)
def pointers_as_input(folder: Path) -> None:
    edit(folder, lambda m: m["inputs"][0].update(dtype="object"))


@attack(
    "bad-artifact",
    CANNOT + "`segments[0].symbol` must be a string that matches [A-Za-z_][A-Za-z0-9_]{0,199}",
)
def symbol_that_is_a_path(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0].update(symbol="../evil"))


@attack(
    "bad-artifact",
    CANNOT + "`segments[0]` reads `x` as float32[1, 400], which is float32[1, 4] there",
)
def reading_past_a_buffer(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0]["inputs"][0].update(shape=[1, 400]))


@attack(
    "bad-artifact",
    CANNOT + "`segments[1]` reads `late.logits` as float32[1, 4], which has not been computed",
)
def reading_before_computing(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][1]["inputs"][0].update(name="late.logits"))


@attack("bad-artifact", CANNOT + "`segments[1]` computes `x`, which is there already")
def overwriting_an_input(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][1]["outputs"][0].update(name="x"))


@attack("bad-artifact", CANNOT + "`exits` names `early` twice")
def exits_of_one_name(folder: Path) -> None:
    edit(folder, lambda m: m["exits"][1].update(name="early"))


@attack("bad-artifact", CANNOT + "`exits` must be one fewer than `segments`")
def exit_too_many(folder: Path) -> None:
    edit(folder, lambda m: m["segments"].pop())


@attack("bad-artifact", CANNOT + "`exits[0]` must give 7 float32 scores")
def wrong_classes(folder: Path) -> None:
    edit(folder, lambda m: m.update(classes=7))


@attack("bad-artifact", CANNOT + "`labels` must have one name for each class")
def wrong_labels(folder: Path) -> None:
    edit(folder, lambda m: m["labels"].append("fox"))


@attack("bad-artifact", CANNOT + "`inputs[0].normalize.std` must be above zero")
def division_by_zero(folder: Path) -> None:
    edit(folder, lambda m: m["inputs"][0]["normalize"].update(std=[0]))


@attack("bad-artifact", CANNOT + "`default_policy` must be one of `policies`")
def unknown_default_policy(folder: Path) -> None:
    edit(folder, lambda m: m.update(default_policy="other"))


@attack(
    "bad-artifact",
    CANNOT + "`members` names `../../etc/passwd`, which is no file name of an artifact",
)
def path_escape(folder: Path) -> None:
    edit(folder, lambda m: m["members"].update({"../../etc/passwd": m["members"]["model.ee"]}))


@attack(
    "bad-artifact", CANNOT + "`members` names `/etc/passwd`, which is no file name of an artifact"
)
def absolute_path(folder: Path) -> None:
    edit(folder, lambda m: m["members"].update({"/etc/passwd": m["members"]["model.ee"]}))


@attack(
    "bad-artifact",
    CANNOT + "`members.model.ee.sha256` must be a string that matches [0-9a-f]{64}",
)
def short_hash(folder: Path) -> None:
    edit(folder, lambda m: m["members"]["model.ee"].update(sha256="0"))


# 5. The members: every wrong one is named.


@attack("bad-artifact", "`weights.bin` is missing")
def deleted_member(folder: Path) -> None:
    (folder / "weights.bin").unlink()


@attack(
    "bad-artifact", "`weights.bin` has 15 bytes, not 16", "`vectors.npz` has 0 bytes, not {vectors}"
)
def truncated_members(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 15)
    os.truncate(folder / "vectors.npz", 0)


@attack("bad-artifact", "`kernels.so` has been changed: its SHA-256 is not the manifest's")
def edited_code(folder: Path) -> None:
    data = bytearray((folder / "kernels.so").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "kernels.so").write_bytes(data)


@attack("bad-artifact", "`extra.so` does not belong to the artifact")
def extra_file(folder: Path) -> None:
    (folder / "extra.so").write_bytes(b"")


@attack("bad-artifact", "`a\ufffd[31mred` does not belong to the artifact")
def terminal_codes_in_a_name(folder: Path) -> None:
    (folder / "a\x1b[31mred").touch()


@attack("bad-artifact", "`costs.json` is not in the manifest")
def unlisted_member(folder: Path) -> None:
    edit(folder, lambda m: m["members"].pop("costs.json"))


@attack("bad-artifact", "`plugin.so` is no file of this format")
def listed_extra_file(folder: Path) -> None:
    (folder / "plugin.so").write_bytes((folder / "model.ee").read_bytes())
    edit(folder, lambda m: m["members"].update({"plugin.so": m["members"]["model.ee"]}))


@attack("bad-artifact", "`model.ee` is a link, not a plain file")
def linked_member(folder: Path) -> None:
    text = (folder / "model.ee").read_text()
    (folder / "model.ee").unlink()
    target = folder.with_name("a" * (len(text) - 3))
    target.write_text(text)
    (folder / "model.ee").symlink_to(f"../{target.name}")  # as long as the file: the size is right


@attack("bad-artifact", "`model.ee` has {directory} bytes, not 12")
def folder_as_member(folder: Path) -> None:
    (folder / "model.ee").unlink()
    (folder / "model.ee").mkdir()


# 6. The machine.


@attack(
    "wrong-machine",
    "Artifact was built for riscv64-linux-gnu (target `host`), "
    "this machine is {machine} with Linux",
)
def foreign_architecture(folder: Path) -> None:
    edit(folder, lambda m: m["target"].update(triple="riscv64-linux-gnu"))


@attack("wrong-machine", "This CPU lacks what the artifact needs: antigravity, sve9")
def missing_cpu_features(folder: Path) -> None:
    edit(folder, lambda m: m["target"].update(features=["sve9", "antigravity"]))


# 7. With matching hashes: who can write code can write hashes. Accidents still end well.


@attack("bad-artifact", "`kernels.so` is no complete shared library for {machine}")
def text_as_code(folder: Path) -> None:
    (folder / "kernels.so").write_text("import os")
    rehash(folder, "kernels.so")


@attack("bad-artifact", "`kernels.so` is no complete shared library for {machine}")
def half_a_library(folder: Path) -> None:
    os.truncate(folder / "kernels.so", (folder / "kernels.so").stat().st_size // 2)
    rehash(folder, "kernels.so")


@attack("bad-artifact", "`kernels.so` is no complete shared library for {machine}")
def code_of_another_machine(folder: Path) -> None:
    data = bytearray((folder / "kernels.so").read_bytes())
    data[18:20] = (243).to_bytes(2, "little")  # e_machine: RISC-V
    (folder / "kernels.so").write_bytes(data)
    rehash(folder, "kernels.so")


@attack("bad-artifact", "`kernels.so` has no function `segment_7`")
def missing_function(folder: Path) -> None:
    edit(folder, lambda m: m["segments"][0].update(symbol="segment_7"))


@attack("bad-artifact", "`policies.json` cannot be used: `fast` is missing")
def other_policies(folder: Path) -> None:
    (folder / "policies.json").write_text("{}")
    rehash(folder, "policies.json")


@attack("bad-artifact", "`policies.json` cannot be used: `fast` must be an object")
def policy_of_another_type(folder: Path) -> None:
    value = json.loads((folder / "policies.json").read_text())
    value["fast"] = 3
    (folder / "policies.json").write_text(json.dumps(value))
    rehash(folder, "policies.json")


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ends_in_its_message(folder: Path, name: str) -> None:
    function, id_, messages = ATTACKS[name]
    names = {
        "vectors": (folder / "vectors.npz").stat().st_size,
        "machine": platform.machine(),
    }
    function(folder)
    if (folder / "model.ee").is_dir():
        names["directory"] = (folder / "model.ee").stat().st_size
    with pytest.raises(CompileErrors) as failure:
        ee.load(folder)
    found = {(diagnostic.id, diagnostic.message) for diagnostic in failure.value.diagnostics}
    wanted = {
        (id_, message if "matches" in message else message.format_map(names))
        for message in messages
    }
    assert found == wanted
    assert failure.value.full()


def test_the_untouched_artifact_loads(folder: Path) -> None:
    ee.load(folder)


def test_code_is_not_touched_before_every_check_has_passed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("code must not be loaded")

    monkeypatch.setattr("eecompile.runtime.library._load", refuse)
    for change in (edited_code, missing_cpu_features, future_version, other_policies):
        good = {path.name: path.read_bytes() for path in folder.iterdir()}
        change(folder)
        with pytest.raises(CompileErrors):
            ee.load(folder)
        for name, data in good.items():
            (folder / name).write_bytes(data)
    with pytest.raises(AssertionError, match="code must not be loaded"):
        ee.load(folder)


def test_checks_come_in_order(folder: Path) -> None:
    # Everything is wrong at once; each repair brings up the next check.
    text = (folder / "manifest.json").read_text()
    code = (folder / "kernels.so").read_bytes()
    missing_cpu_features(folder)
    edited_code(folder)
    edit(folder, lambda m: m.update(surprise=1, format_version=9, format="x"))
    broken = (folder / "manifest.json").read_text()
    os.truncate(folder / "manifest.json", (64 << 20) + 1)

    def message() -> str:
        with pytest.raises(CompileErrors) as failure:
            ee.load(folder)
        return failure.value.diagnostics[0].message

    assert "more than the limit" in message()
    (folder / "manifest.json").write_text(broken)
    assert "no artifact" in message()
    edit(folder, lambda m: m.update(format="eecompile artifact"))
    assert "artifact has 9" in message()
    edit(folder, lambda m: m.update(format_version=FORMAT_VERSION))
    assert "`surprise` is no field" in message()
    edit(folder, lambda m: m.pop("surprise"))
    assert "`kernels.so` has been changed" in message()
    (folder / "kernels.so").write_bytes(code)  # The last load runs it.
    assert "CPU lacks" in message()
    features = json.loads(text)["target"]["features"]
    edit(folder, lambda m: m["target"].update(features=features))
    ee.load(folder)


def test_a_foreign_artifact_can_be_read_but_not_run(folder: Path) -> None:
    foreign_architecture(folder)
    assert read_artifact(folder, must_run=False).manifest.target.triple == "riscv64-linux-gnu"
    with pytest.raises(CompileErrors):
        read_artifact(folder)


def test_limits_hold_while_reading_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file has grown between the look at its size and the reading.
    monkeypatch.setitem(artifact_files.LIMITS, "model.ee", 5)
    with artifact_files.opened(folder) as place:
        assert len(place.read("model.ee")) == 6


@pytest.mark.parametrize("name", artifact_files.MEMBERS)
def test_any_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for position in {0, len(data) // 2, len(data) - 1}:
        changed = bytearray(data)
        changed[position] ^= 0x10
        (folder / name).write_bytes(changed)
        with pytest.raises(CompileErrors, match=f"`{name}` has been changed"):
            ee.load(folder)
    (folder / name).write_bytes(data)
    ee.load(folder)


@pytest.mark.parametrize("field", ["workspace_bytes", "private_bytes"])
@pytest.mark.parametrize("threads", [1, 1024])
def test_more_memory_than_the_machine_has_is_not_asked_for(
    folder: Path, field: str, threads: int
) -> None:
    """Systems promise memory they do not have, and end the program when it is used."""
    edit(folder, lambda m: m["segments"][1].update({field: 1 << 40, "threads": 1 << 30}))
    with pytest.raises(CompileErrors) as caught:
        ee.load(folder, threads=threads)
    (found,) = caught.value.diagnostics
    assert found.id == "wrong-machine"
    assert re.fullmatch(
        r"The network needs \S+ GB of memory beside its weights, this machine has \S+ GB",
        found.message,
    )
    peak = Peak.of(read_artifact(folder).manifest.network, 16, threads)
    assert peak.activations > 1 << 40, "telling what it would need takes none of it"


def test_any_number_of_threads_a_function_could_use_is_bounded_by_those_there_are(
    folder: Path,
) -> None:
    edit(folder, lambda m: m["segments"][1].update(threads=1 << 30, private_bytes=1 << 12))
    net = ee.load(folder, threads=2)
    assert net.threads == 2
    assert net._singles.lane._block.nbytes < 1 << 20
