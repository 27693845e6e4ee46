"""Board files: what is read from them, and that every problem is told with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eecompile.board import Board
from eecompile.boards.file import parse_board, read_board
from eecompile.boards.text import board_text
from eecompile.boards.toml_places import TomlPlaces
from eecompile.diagnostics import CompileErrors, Source
from eecompile.hardware import board_names, machine

MACHINE = '[machine]\ntriple = "aarch64-linux-gnu"\nlanes = { value = 4, source = "NEON" }\n'
CLUSTER = """
[[cluster]]
name = "cpu"
cpus = { value = [0, 1], source = "dt" }
states = { value = [[600_000_000, 0.8], [1.5e9, 0.9]], source = "dt" }
"""
WHOLE = """
description = "two clusters"

[machine]
triple = "aarch64-linux-gnu"
mcpu = "cortex-a72"
features = ["fp-armv8", "neon"]
lanes = { value = 4, source = "NEON" }
fma_per_cycle = { value = 1, source = "book" }
l2_bytes = { value = 1_048_576, source = "sheet" }
cores = { value = 3, source = "sheet" }

[board]
memory_bandwidth = { value = 4.0e9, source = "measured" }
idle_power_w = { value = 1.5, source = "meter" }
migration_latency_s = { value = 1e-4, source = "paper" }

[[cluster]]
name = "big"
core = "cortex-a72"
cpus = { value = [1, 2], source = "dt" }
states = { value = [[600_000_000, 0.8], [1_500_000_000, 0.8], [1.8e9, 1.0]], source = "opp" }
dynamic_power_coefficient = { value = 436, source = "dt" }
static_power_w = { value = 0.1, source = "meter" }
transition_latency_s = { value = 4e-5, source = "opp" }

[[cluster]]
name = "little"
cpus = { value = [0], source = "dt" }
states = { value = [[408_000_000], [1_416_000_000]], source = "opp" }
core_power_w = { value = [0.05, 0.25], source = "energy model" }
fma_per_cycle = { value = 0.5, source = "LLVM" }

[[sensor]]
kind = "ina3221"
name = "ina3221"
label = "VDD_CPU"
covers = "both clusters"
source = "schematic"
"""


def problems(text: str) -> list[tuple[int | None, str]]:
    """Line and headline of everything wrong with a board file."""
    with pytest.raises(CompileErrors) as caught:
        parse_board(text, "b", "b.toml")
    assert {found.id for found in caught.value.diagnostics} == {"bad-board"}
    assert {found.file for found in caught.value.diagnostics} == {"b.toml"}
    return [(d.span.line if d.span else None, d.message) for d in caught.value.diagnostics]


def test_every_key_is_read() -> None:
    board = parse_board(WHOLE, "b", "b.toml")
    big, little = board.clusters
    assert (board.name, board.description) == ("b", "two clusters")
    assert (board.memory_bandwidth, board.idle_power_w, board.migration_latency_s) == (
        4e9,
        1.5,
        1e-4,
    )
    assert (big.core, big.cpus, big.capacitance_f) == ("cortex-a72", (1, 2), 436e-12)
    assert [(s.frequency_hz, s.voltage_v) for s in big.states] == [
        (6e8, 0.8),
        (1.5e9, 0.8),
        (1.8e9, 1.0),
    ]
    assert (big.static_power_w, big.transition_latency_s) == (0.1, 4e-5)
    assert [s.core_power_w for s in little.states] == [0.05, 0.25]
    assert {s.cluster for s in little.states} == {"little"}
    assert board.sensors[0].label == "VDD_CPU"
    assert board.sources["sensor ina3221 VDD_CPU"] == "schematic"
    assert (board.machine.cores, board.machine.sources["cores"]) == (3, "sheet")


def test_what_a_cluster_does_not_say_is_the_machines() -> None:
    big, little = parse_board(WHOLE, "b", "b.toml").clusters
    assert (big.fma_per_cycle, little.fma_per_cycle, little.lanes) == (1, 0.5, 4)
    assert (big.l2_bytes, big.sources["l2_bytes"]) == (1_048_576, "as [machine]: sheet")
    assert little.sources["fma_per_cycle"] == "LLVM"


def test_power_is_capacitance_voltage_squared_and_clock() -> None:
    big, little = parse_board(WHOLE, "b", "b.toml").clusters
    assert big.core_power_w(big.states[2]) == pytest.approx(436e-12 * 1.8e9 + 0.1)
    assert little.core_power_w(little.states[1]) == 0.25


@pytest.mark.parametrize("name", board_names())
def test_every_shipped_board_is_right_and_its_machine_is_the_same(name: str) -> None:
    assert read_board(name).machine == machine(name)


def test_a_file_without_end_is_no_board() -> None:
    with pytest.raises(CompileErrors, match="`/dev/zero`: it is larger than 1 MiB"):
        read_board("/dev/zero")


@pytest.mark.parametrize("name", [name for name in board_names() if name != "host"])
def test_a_board_written_and_read_again_is_the_same(name: str) -> None:
    board = read_board(name)
    again = parse_board(board_text(board), name, "again.toml")
    assert again == board
    # Texts of sources come back too; what stood for an absent key is said anew.
    assert again.sources == board.sources
    assert [cluster.sources for cluster in again.clusters] == [c.sources for c in board.clusters]


def test_the_whole_example_comes_back() -> None:
    board = parse_board(WHOLE, "b", "b.toml")
    assert parse_board(board_text(board, ["a note", "another"]), "b", "x") == board


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "`[machine]` is missing"),
        ("[machine]\n", 1, "`triple` is missing"),
        ('[machine]\ntriple = "arm"\n', 2, "`arm` is no target triple"),
        ("[machine\n", 1, "The board file is no TOML: Expected ']' at the end of a table"),
        ("a = 1\na = 2\n[machine]\n", 2, "The board file is no TOML: Cannot overwrite a value"),
        (MACHINE + "cores = 4\n", 4, "`cores` has no source"),
        (MACHINE + "cores = { value = 4 }\n", 4, "`cores` has no source"),
        (MACHINE + 'cores = { value = 4, source = " " }\n', 4, "`cores` has no source"),
        (MACHINE + 'cores = { source = "s" }\n', 4, "`cores` has no value"),
        (MACHINE + 'cores = { value = 4, source = "s", a = 1 }\n', 4, "Unknown key `a` of `cores`"),
        (MACHINE + 'cores = { value = "4", source = "s" }\n', 4, "`cores` is a text"),
        (MACHINE + 'cores = { value = 1.5, source = "s" }\n', 4, "`cores` is no whole number"),
        (MACHINE + 'cores = { value = nan, source = "s" }\n', 4, "`cores` is out of range"),
        (MACHINE + 'cores = { value = 0, source = "s" }\n', 4, "`cores` is out of range"),
        (
            MACHINE + f'cores = {{ value = {"9" * 400}, source = "s" }}\n',
            4,
            "`cores` is out of range",
        ),
        (MACHINE.replace("4,", "6,"), 3, "`lanes` is no power of two"),
        (MACHINE + "coers = 1\n", 4, "Unknown key `coers`"),
        (MACHINE + "features = [1]\n", 4, "Expected a list of texts, found a list"),
        ("cluster = 1\n" + MACHINE, 1, "`cluster` is no list of tables"),
        ("board = 1\n" + MACHINE, 1, "`board` is no table"),
        (MACHINE + "[board]\nmemory_bandwith = 1\n", 5, "Unknown key `memory_bandwith`"),
        (
            MACHINE + '[board]\nmemory_bandwidth = { value = 4000, source = "MB/s" }\n',
            5,
            "`memory_bandwidth` is out of range",
        ),
        (
            MACHINE + '[board]\nidle_power_w = { value = -1, source = "s" }\n',
            5,
            "`idle_power_w` is out of range",
        ),
        (MACHINE + '[[sensor]]\nkind = "rapl"\nname = "x"\n', 4, "`source` is missing"),
        (
            MACHINE + '[[sensor]]\nkind = "meter"\nname = "x"\nsource = "s"\n',
            5,
            "Unknown kind of sensor `meter`",
        ),
    ],
)
def test_a_wrong_line_is_named(text: str, line: int, message: str) -> None:
    (found,) = problems(text)
    assert found[0] == line
    assert found[1].startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "cpu"\n', "", "`name` is missing"),
        ('"cpu"', '"CPU 0"', "`CPU 0` is no name of a cluster"),
        ("[0, 1]", "[]", "Expected a list for `cpus`, found an empty list"),
        ("[0, 1]", "3", "Expected a list for `cpus`, found a number"),
        ("[0, 1]", "[0, -1]", "A number of `cpus` is out of range"),
        ("[0, 1]", "[0, 0]", "CPU 0 twice"),
        # kHz, MHz and microvolts, as Linux and device trees have them.
        ("600_000_000", "600_000", "The clock is out of range"),
        ("1.5e9", "1500", "The clock is out of range"),
        ("1.5e9", "1_500_000", "The clock is out of range"),
        ("0.9", "900_000", "The voltage is out of range"),
        ("1.5e9", "6e8", "The clock does not rise with the states"),
        ("1.5e9", "5e8", "The clock does not rise with the states"),
        ("0.9", "0.7", "The voltage does not rise with the states"),
        ("[1.5e9, 0.9]", "[1.5e9]", "Some states have a voltage, others have none"),
        ("[1.5e9, 0.9]", "1.5e9", "A state is a clock, or a clock and a voltage"),
        ("[1.5e9, 0.9]", "[1.5e9, 0.9, 1]", "A state is a clock, or a clock and a voltage"),
    ],
)
def test_a_wrong_cluster_is_told(old: str, new: str, message: str) -> None:
    (found,) = problems(MACHINE + CLUSTER.replace(old, new))
    assert found[1].startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('core_power_w = { value = [1], source = "s" }', "1 powers for 2 states"),
        ('core_power_w = { value = [2, 1], source = "s" }', "The power does not rise"),
        ('core_power_w = { value = [0, 1], source = "s" }', "A number of `core_power_w` is out"),
        ('transition_latency_s = { value = 40_000, source = "ns" }', "`transition_latency_s` is"),
        ('dynamic_power_coefficient = { value = 1e-10, source = "F" }', "`dynamic_power_coeff"),
        ('frequency = { value = 1e9, source = "s" }', "Unknown key `frequency`"),
        ('lanes = { value = 6, source = "s" }', "`lanes` is no power of two"),
    ],
)
def test_a_wrong_number_of_a_cluster_is_told(more: str, message: str) -> None:
    (found,) = problems(MACHINE + CLUSTER + more + "\n")
    assert found[0] == 9
    assert found[1].startswith(message)


def test_clusters_that_contradict_each_other_are_told_at_once() -> None:
    second = CLUSTER.replace("[0, 1]", "[1, 2]").replace("1.5e9", "1.8e9")
    text = MACHINE + 'cores = { value = 4, source = "s" }\n' + CLUSTER + second
    assert problems(text) == [
        (4, "`cores` is 4, and the clusters have 3 CPUs"),
        (12, "Two clusters are named `cpu`"),
        (12, "Clusters do not stand fastest first"),
        (13, "CPU 1 twice"),
    ]
    named = text.replace('name = "cpu"', 'name = "other"', 1)
    assert (13, "CPU 1 is in two clusters") in problems(named)


def test_one_wrong_number_brings_no_other_error() -> None:
    text = MACHINE + CLUSTER.replace("600_000_000", "-1").replace('"cpu"', '"a"')
    assert len(problems(text)) == 1


def test_a_message_points_into_the_line_and_says_what_is_allowed() -> None:
    with pytest.raises(CompileErrors) as caught:
        parse_board(MACHINE + CLUSTER.replace("1.5e9", "1_500_000"), "b", "b.toml")
    assert caught.value.full().splitlines() == [
        "error[bad-board]: The clock is out of range",
        "  --> b.toml:8:42",
        "  |",
        '8 | states = { value = [[600_000_000, 0.8], [1_500_000, 0.9]], source = "dt" }',
        "  |                                          ^^^^^^^^^ expected a number from 1e+07 to "
        "1e+10 Hz",
        "  = help: clocks are in Hz; Linux tells kHz: 1500000 there is 1.5e9 here",
    ]


def test_a_file_of_the_users_own_is_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MACHINE + CLUSTER)
    boards = [
        read_board(str(path)),
        read_board("mine.toml", tmp_path),
        read_board("./mine.toml", tmp_path),
    ]
    assert all(board == boards[0] for board in boards)
    assert boards[0].name == "mine"


def test_a_shipped_board_is_not_hidden_by_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "arm-cpu.toml").write_text("nonsense")
    assert read_board("arm-cpu", tmp_path).machine == machine("arm-cpu")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[machine", b"", b"a = 1"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompileErrors) as caught:
        read_board(str(path))
    assert {found.id for found in caught.value.diagnostics} == {"bad-board"}
    assert {found.file for found in caught.value.diagnostics} == {str(path)}


def test_an_unknown_board_gets_a_suggestion() -> None:
    with pytest.raises(CompileErrors, match="There is no board `raspbery-pi-4`") as caught:
        read_board("raspbery-pi-4")
    assert "`raspberry-pi-4`" in caught.value.diagnostics[0].help


def read_or_refused(text: str) -> Board | None:
    try:
        return parse_board(text, "b", "b.toml")
    except CompileErrors as errors:
        assert errors.full()
        return None


@settings(deadline=None)
@given(st.text())
@example("a = " + "[" * 5000)
@example("a = " + "9" * 5000)
@example('"" = 1\r\n[machine]')
@example("[machine]\ntriple = 1979-05-27")
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refused(text)


@settings(deadline=None)
@given(
    st.integers(0, len(WHOLE) - 1),
    st.integers(0, 12),
    st.text("0123456789.,[]{}=\"#-_eE \nabcxyz\\'", max_size=6),
)
def test_a_board_file_with_a_slip_is_read_or_refused(at: int, gone: int, more: str) -> None:
    board = read_or_refused(WHOLE[:at] + more + WHOLE[at + gone :])
    if board is not None:  # what is read is written so that it reads the same
        assert parse_board(board_text(board), "b", "again.toml") == board


LEAVES = st.one_of(
    st.integers(-2, 12),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.sampled_from([6e8, 1.5e9, 0.8, "cpu", "aarch64-linux-gnu", "rapl"]),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
KEYS = st.sampled_from(
    "triple lanes cores name cpus states core_power_w source value kind x memory_bandwidth".split()
)
TABLES = st.dictionaries(
    KEYS, VALUES | st.fixed_dictionaries({"value": VALUES, "source": st.just("s")}), max_size=5
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(
            f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in value
        )
        return f'"{escaped}"'
    return repr(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for header in draw(st.lists(st.sampled_from(["[[cluster]]", "[[sensor]]"]), max_size=3)):
        lines += [header, *(f"{key} = {toml(item)}" for key, item in draw(TABLES).items())]
    for name in draw(st.sets(st.sampled_from(["machine", "board"]))):
        lines += [
            f"[{name}] # [not] = this",
            *(f"{k} = {toml(v)}" for k, v in draw(TABLES).items()),
        ]
    return "\n".join(lines)


@settings(deadline=None)
@given(documents())
def test_any_board_file_is_read_or_refused(text: str) -> None:
    tomllib.loads(text)
    read_or_refused(text)


def leaves(
    value: object, path: tuple[str | int, ...] = ()
) -> list[tuple[tuple[str | int, ...], object]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]
    return [(path, value)]


@settings(deadline=None)
@given(documents())
def test_every_value_is_found_where_it_stands(text: str) -> None:
    places = TomlPlaces(Source("b.toml", text))
    for path, value in leaves(tomllib.loads(text)):
        written = tomllib.loads(f"x = {places.value(*path).text}")["x"]
        assert written == value or value != value


TRICKY = '''
"a.b".c = 'x # y' # z
long = """a ""\\" b"""""
literal = \'\'\'it's ''\'\'\'
when = 1979-05-27 07:32:00
[one . two]
list = [ # comment with ] and "
  1, [2,
  3], ]
[[many]]
x = 1
[many.inner]
y = 2
[[many]]
x = {y.z = 3}
[[many.deep]]
w = 4
[[many.deep]]
w = 5
'''


def test_places_of_all_kinds_of_values() -> None:
    places = TomlPlaces(Source("b.toml", TRICKY))
    found = leaves(tomllib.loads(TRICKY))
    for path, value in found:
        assert tomllib.loads(f"x = {places.value(*path).text}")["x"] == value
    assert len(found) == 12
    assert places.value("many", 1, "deep", 1, "w").line == 19
    assert places.key("long").text == "long"
