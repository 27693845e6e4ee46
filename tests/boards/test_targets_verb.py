"""`eecompile targets`: list, show, import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eecompile.boards.file import read_board
from eecompile.cli import main
from eecompile.hardware import board_names
from tests.boards.trees import RK3399, blob, grow, live, rk3399_dts


def test_list_tells_the_clusters_of_every_board(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in board_names():
        assert name in out
    assert "2 cortex-a72, 408 MHz to 1.8 GHz" in out


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "list", "--json"]) == 0
    targets = {row["name"]: row for row in json.loads(capsys.readouterr().out)["targets"]}
    assert set(targets) == set(board_names())
    assert targets["rk3399"]["clusters"][0]["name"] == "big"
    assert targets["arm-cpu"]["clusters"] == []


def test_show_tells_what_every_clock_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    dtb = tmp_path / "board.dtb"
    dtb.write_bytes(blob(rk3399_dts()))
    assert main(["targets", "import", "--dtb", str(dtb), "-o", str(path)]) == 0
    told = capsys.readouterr()
    assert f"wrote {path}; next: eecompile targets show {path}" in told.out
    assert "missing: [board] memory_bandwidth: " in told.err
    assert main(["targets", "show", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # P = 436e-12 x 1.2^2 x 1.8e9, and (0.825 / 1.2)^2 of its energy for a cycle.
    assert ["1.8", "GHz", "1.2", "V", "1.13", "W", "100", "%"] in lines
    assert ["408", "MHz", "0.825", "V", "0.121", "W", "47", "%"] in lines
    assert ["big.dynamic_power_coefficient", "436", "uW/MHz/V^2", "board.dtb:"] in [
        line[:4] for line in lines
    ]


def test_show_as_json_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "show", "rk3399", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    board = read_board("rk3399")
    for cluster, found in zip(board.clusters, shown["clusters"], strict=True):
        assert [s["frequency_hz"] for s in found["states"]] == [
            s.frequency_hz for s in cluster.states
        ]
        assert [s["core_power_w"] for s in found["states"]] == [
            cluster.core_power_w(s) for s in cluster.states
        ]
        assert found["states"][-1]["relative_energy_per_cycle"] == 1
        assert set(found["sources"]) >= {"cpus", "states"}
    assert shown["board"]["memory_bandwidth"] == board.memory_bandwidth
    assert shown["triple"] == board.machine.triple


def test_a_board_without_clocks_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "show", "arm-cpu"]) == 0
    assert "no clocks are known: nothing can be modelled" in capsys.readouterr().out


def test_import_from_another_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = grow(tmp_path / "root", {**RK3399, **live(rk3399_dts())})
    assert main(["targets", "import", "--root", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] is None
    assert [cluster["name"] for cluster in found["clusters"]] == ["big", "little"]
    assert found["text"].startswith("# Made by `eecompile targets import`.")
    assert any("memory_bandwidth" in line for line in found["missing"])
    assert main(["targets", "import", "--root", str(root)]) == 0
    told = capsys.readouterr()
    assert told.out == found["text"]
    assert told.err.count("missing: ") == len(found["missing"])


def test_a_file_is_replaced_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    assert main(["targets", "import", "-o", str(path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert main(["targets", "import", "-o", str(path), "--force"]) == 0
    assert read_board(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show raspbery-pi-4", "There is no board `raspbery-pi-4`"),
        ("show ./no-such.toml", "Cannot read the board file `no-such.toml`"),
        ("list --dtb x.dtb", "`targets list` does not take `--dtb`"),
        ("show host --root /", "`targets show` does not take `--root`"),
        ("list rk3399", "`targets list` does not take `rk3399`"),
        ("import rk3399", "`targets import` does not take `rk3399`"),
        ("import --dtb a --root b", "does not take both `--dtb` and `--root`"),
        ("import --dtb no-such.dtb", "Cannot read `no-such.dtb`"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["targets", *arguments.split()]) == 1
    assert message in capsys.readouterr().err


def test_every_problem_of_a_users_file_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[machine]\ntriple = "arm"\ncores = 4\n[board]\nidle = 1\n')
    assert main(["targets", "show", str(path), "--json"]) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)["diagnostics"]
    assert [(d["id"], d["line"]) for d in found] == [
        ("bad-board", 2),
        ("bad-board", 3),
        ("bad-board", 5),
    ]
    assert told.err.count("error[bad-board]") == 3
