"""What earlier versions of eecompile wrote is still read, and answers as it did then."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.manifest import FORMAT_VERSION, READABLE_VERSIONS
from tests.helpers import python_on_arm

HERE = Path(__file__).parent
GOLDEN = sorted(path for path in HERE.iterdir() if re.search(r"-v\d+$", path.name))
READABLE = [path for path in GOLDEN if int(path.name.rpartition("-v")[2]) in READABLE_VERSIONS]
HERE_RUN = [path for path in READABLE if "x86-64" in path.name]
NAMES = {"plain-x86-64", "gated-x86-64", "clocked-aarch64", "gated-aarch64"}
VERIFY = """
import json, sys
from eecompile.runtime.vectors import verify_artifact
print(json.dumps([verify_artifact(path).to_json() for path in sys.argv[1:]]))
"""


def test_each_format_version_has_its_golden_artifacts() -> None:
    versions = {int(path.name.rpartition("-v")[2]) for path in GOLDEN}
    assert versions == set(range(5, FORMAT_VERSION + 1))
    for version in versions:
        assert {p.name.removesuffix(f"-v{version}") for p in GOLDEN} >= NAMES


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_it_is_read_or_refused_with_both_versions(path: Path) -> None:
    if path in READABLE:
        assert read_artifact(path, must_run=False).manifest.network.name == "golden"
        return
    with pytest.raises(CompileErrors) as failure:
        read_artifact(path, must_run=False)
    (diagnostic,) = failure.value.diagnostics
    assert diagnostic.id == "wrong-artifact-version"
    assert str(FORMAT_VERSION) in diagnostic.message
    assert path.name.rpartition("-v")[2] in diagnostic.message


@pytest.mark.skipif(platform.machine() != "x86_64", reason="code for x86-64")
@pytest.mark.parametrize("path", HERE_RUN, ids=lambda path: path.name)
def test_it_answers_as_it_did_then(path: Path) -> None:
    with np.load(f"{path}.npz") as stored:
        expected = dict(stored)
    images = expected.pop("images")
    scale = float(np.abs(expected["full_depth"]).max())
    with ee.load(path, governor=ee.NoGovernor()) as net:
        found = {"full_depth": net.full_depth_batch(images[:, 0]).logits}
        for policy in sorted({name.partition(".")[0] for name in expected} - {"full_depth"}):
            net.set_policy(policy)
            answers = [net.run(image) for image in images]
            found[f"{policy}.exits"] = np.array([answer.exit for answer in answers])
            found[f"{policy}.logits"] = np.stack([answer.logits for answer in answers])
    assert set(found) == set(expected)
    for name, array in expected.items():
        if array.dtype.kind == "U":
            assert found[name].tolist() == array.tolist(), name
        else:
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * scale)


def test_on_aarch64_it_answers_as_it_did_then(arm: Path, tmp_path: Path) -> None:
    script = tmp_path / "verify.py"
    script.write_text(VERIFY)
    # The Raspberry Pi's needs CRC instructions, which the emulated processor does not tell of.
    artifacts = [path for path in READABLE if path.name.startswith("gated-aarch64")]
    for found in json.loads(python_on_arm(arm, script, *artifacts)):
        assert found["ok"] and found["exits_agree"] and found["samples"] == 16
