"""Exits placed by the compiler against exits placed by hand: ResNet-56 on CIFAR-10.

    python -m benchmarks.exit_placing [--folder DIR] [--budgets 60,70,80] [--count 3..6]

The hand-placed exits are those of benchmarks/resnet56.ee, which were chosen with the test images in
sight. For each budget the compiler chooses exits anew, on the calibration images; the features of
all candidates are recorded once, by the first build. Accuracies are of the last 5,000 test images,
which neither saw. Builds run as whole commands, with a cache that is empty in the beginning.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import command, prepare

#: Steps that a second build for another budget does not repeat.
_ONCE = ("compile the backbone for this machine", "run the data through it once",
         "fit the exit heads")  # fmt: skip


def policies(budgets: list[int]) -> str:
    """A policy for each budget, in per cent of the multiply-accumulates."""
    return "\n".join(
        f"policy at{limit} {{ exit when confidence(max_softmax) budget mean macs <= {limit} % }}"
        for limit in budgets
    )


def placed(text: str, count: str, budgets: list[int]) -> str:
    r"""The `.ee` file with exits that the compiler places, and policies for the budgets.

    >>> print(placed('  exit a after "x" head linear\npolicy p { }', "3..6", [70]))
      exits auto(count: 3..6)
    policy at70 { exit when confidence(max_softmax) budget mean macs <= 70 % }
    """
    exits = "\n".join(re.findall(r"^ +exit .*$", text, re.MULTILINE))
    return by_hand(text, budgets).replace(exits, f"  exits auto(count: {count})")


def by_hand(text: str, budgets: list[int]) -> str:
    """The `.ee` file with policies for the budgets."""
    return (
        re.sub(r"^policy .*\n?", "", text, flags=re.MULTILINE).rstrip() + "\n" + policies(budgets)
    )


def shown(summary: Mapping[str, Any], limit: int) -> str:
    """Accuracy and multiply-accumulates of a budget's policy on the test images, in per cent."""
    found = summary["policies"][f"at{limit}"]["test"]
    macs = found["costs"]["macs"]["value"]
    return f"{100 * found['accuracy']['value']:.2f} % at {100 * macs:.1f} %"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="kept, with the artifacts; default: temporary")
    parser.add_argument("--budgets", default="60,70,80", help="per cent of the MACs")
    parser.add_argument("--count", default="3..6", help="of exits that the compiler places")
    options = parser.parse_args()
    budgets = [int(limit) for limit in options.budgets.split(",")]
    print(describe_machine())
    with working_folder(options.folder) as folder:
        file = prepare(folder, shared_data())["resnet56"]
        text = file.read_text()
        file.write_text(by_hand(text, budgets))
        hand, seconds = command("build", str(file), "-o", str(folder / "hand"), folder=folder)
        names = " ".join(row["point"] for row in hand["exits"][:-1])
        print(f"by hand: {names}; built in {seconds:.0f} s")
        for limit in budgets:
            file = folder / f"auto{limit}.ee"
            others = [other for other in budgets if other != limit]
            file.write_text(placed(text, options.count, [limit, *others]))
            auto, seconds = command(
                "build", str(file), "-o", str(folder / f"{limit}"), folder=folder
            )
            report(auto, hand, limit, budgets, seconds)


def report(
    auto: Mapping[str, Any],
    hand: Mapping[str, Any],
    limit: int,
    budgets: list[int],
    seconds: float,
) -> None:
    """One budget: what was chosen, what it took, and what both networks do at every budget."""
    placing = auto["placing"]
    once = sum(auto["times_s"][step] for step in _ONCE)
    chose = next(taken for step, taken in auto["times_s"].items() if step.startswith("choose"))
    print(
        f"\nfor mean macs <= {limit} %: {len(placing['candidates'])} candidates, "
        f"{placing['tried']} sets judged; built in {seconds:.0f} s, of which recording and heads "
        f"{once:.1f} s, choosing {chose:.1f} s"
    )
    print(f"  chosen: {' '.join(row['point'] for row in auto['exits'][:-1])}")
    for size in placing["sizes"]:
        print(f"  best {size['count']}: {100 * size['value']:.2f} % {' '.join(size['exits'])}")
    for other in budgets:
        print(
            f"  test images, macs <= {other} %: placed {shown(auto, other)}, "
            f"by hand {shown(hand, other)}"
        )


if __name__ == "__main__":
    main()
