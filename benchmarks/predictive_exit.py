"""Predictive Exit on ResNet-56 and CIFAR-10: heads run, hits, multiply-accumulates, latency.

    python -m benchmarks.predictive_exit [--folder DIR] [--head bag_of_features] [--samples N]

Linear heads stand after each of the 27 blocks. Bag-of-features heads stand after 8 of them: each is
trained by gradient on whole maps, which is minutes a head on two cores, and 27 maps of 30,000
images would be 32 GB. Heads are fitted on 20,000 training images, policies calibrated on the first
5,000 test images, and everything is reported on the last 5,000. Needs torch to export the network.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import command, normalized, prepare, test_images

HERE = Path(__file__).parent
EVERY_BLOCK = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
POINTS = {
    "linear": EVERY_BLOCK,
    "bag_of_features": [*EVERY_BLOCK[10:18:2], *EVERY_BLOCK[18:26:2]],
}
HEADS = {"linear": "linear(pool: 4)", "bag_of_features": "bag_of_features(codewords: 64)"}
FORECASTS = ("fitted", "class_order", "sorted")


def written(folder: Path, data: Path, head: str) -> Path:
    """The network beside its `.ee` file with an exit after each block."""
    prepare(folder, data)
    exits = [
        f'exit e{1 + EVERY_BLOCK.index(point):02} after "{point}" head {HEADS[head]}'
        for point in POINTS[head]
    ]
    text = (HERE / "predictive_exit.ee").read_text().replace("EXITS\n", "\n    ".join(exits) + "\n")
    file = folder / f"predictive_{head}.ee"
    file.write_text(text.replace('"cifar10_', f'"{data}/cifar10_'))
    return file


def policies(built: dict[str, Any]) -> None:
    """Held-out figures of each policy, all fitted to the same budget."""
    print("policies of one budget (accuracy drop <= 0.5 %), last 5,000 test images:")
    base = built["policies"]["in_order"]["forecast"]["test"]["heads"]
    for name, report in built["policies"].items():
        test, forecast = report["test"], report.get("forecast", {}).get("test")
        line = (
            f"  {name:11} accuracy {100 * test['accuracy']['value']:.2f} %, "
            f"MACs {100 * test['costs']['macs']['value']:.2f} %"
        )
        if forecast is not None:
            fewer = 100 * (1 - forecast["heads"] / base)
            own = next(row for row in forecast["starts"] if row["exit"] == forecast["start"])
            line += (
                f", {forecast['heads']:5.2f} heads per image ({fewer:.0f} % fewer than in_order; "
                f"its own thresholds in order: {forecast['heads_in_order']:.2f}), start "
                f"{forecast['start']}, hits {100 * own['hits']:.1f} % of {own['n']} "
                f"(window's end always: {100 * own['always_window']:.1f} %)"
            )
        print(line)


def records(artifact: Path, data: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Every head's logits on the calibration and the test images, and the costs."""
    import eecompile as ee
    from eecompile.outcomes import ExitCosts
    from eecompile.record import CalibrateRecord, TestRecord
    from eecompile.runtime.runner import Runner

    with np.load(data / "cifar10_test.npz") as archive:
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    net = ee.load(artifact)
    network = net.manifest.network
    names = [exit_.name for exit_ in network.exits]
    wanted = [*(f"{name}.logits" for name in names), network.output]
    values = Runner.of(net.library, network).run_all(normalized(images), wanted, threads=2)

    def split(kind: Any, rows: slice) -> Any:
        logits = {name: values[f"{name}.logits"][rows] for name in names}
        return kind(tuple(names), labels[rows], values[network.output][rows], {}, logits)

    full = network.macs
    costs = ExitCosts(
        tuple(segment.macs / full for segment in network.segments),
        tuple(exit_.macs / full for exit_ in network.exits),
        1.0,
    )
    halves = (split(CalibrateRecord, slice(0, 5000)), split(TestRecord, slice(5000, None)))
    return (*halves, {"macs": costs})


def starts(calibrate: Any, test: Any, costs: dict[str, Any], beta: float = 3.0) -> None:
    """By start: hits of each forecast, and what the way from there costs, all at one beta."""
    from eecompile.forecast_report import forecast_report
    from eecompile.outcomes import evaluate
    from eecompile.policy_fitting import fit_policy
    from eecompile.spec import Name, Rule, RuleTerm, Value

    print(f"by start, beta {beta:g} (heads that are 95 % sure), window 8:")
    for start in test.exits[::3] if len(test.exits) > 8 else test.exits:
        parts = []
        for forecast in ("in order", *FORECASTS):
            window = 1 if forecast == "in order" else 8
            kind = "class_order" if forecast == "in order" else forecast
            options: dict[str, Value] = {
                "beta": beta, "start": Name(start), "forecast": Name(kind), "window": window,
            }  # fmt: skip
            rule = Rule((RuleTerm("predicted", None, options),))
            policy = fit_policy(rule, None, calibrate, costs).policy
            found, report = evaluate(policy, test, costs), forecast_report(policy, test)
            assert report is not None
            row = next((r for r in report["starts"] if r["exit"] == start), None)
            hits = "" if row is None or window == 1 else f"hits {100 * row['hits']:4.1f} %, "
            parts.append(
                f"{forecast}: {hits}{report['heads']:5.2f} heads, "
                f"{100 * found.accuracy.value:.2f} % at {100 * found.costs['macs'].value:.1f} %"
            )
        always = "" if row is None else f"window's end always {100 * row['always_window']:4.1f} %"
        print(f"  {start}: " + " | ".join(parts) + f" | {always}")


def published(calibrate: Any, test: Any, costs: dict[str, Any]) -> None:
    """The published scale on these heads: the mean logit, and what can be fitted with it."""
    from eecompile.diagnostics import CompileErrors
    from eecompile.outcomes import evaluate
    from eecompile.policy_fitting import fit_policy
    from eecompile.predicted_fitting import scales
    from eecompile.spec import Name, Rule, RuleTerm

    means = scales("mean_logit", calibrate)
    largest = [float(np.abs(z).max(axis=1).mean()) for z in calibrate.logits.values()]
    print("|mean logit| and mean largest |logit| by exit:")
    print("  " + ", ".join(f"{a:.1e}/{b:.1f}" for a, b in zip(means, largest, strict=True)))
    for forecast in FORECASTS:
        options = {"scale": Name("mean_logit"), "forecast": Name(forecast)}
        try:
            fitted = fit_policy(
                Rule((RuleTerm("predicted", None, options),)), None, calibrate, costs
            )
        except CompileErrors as errors:
            print(f"  scale mean_logit, {forecast}: {errors.diagnostics[0].message}")
            continue
        found = evaluate(fitted.policy, test, costs)
        print(
            f"  scale mean_logit, {forecast}: accuracy {100 * found.accuracy.value:.2f} %, "
            f"MACs {100 * found.costs['macs'].value:.2f} %"
        )


def latencies(artifact: Path, data: Path, samples: int) -> None:
    """One sample at a time, all policies and full depth in turn."""
    import eecompile as ee

    images, _ = test_images(data, samples)
    net = ee.load(artifact, threads=1)
    sessions = {name: net.clone() for name in (*net.policies, None)}
    times: dict[str | None, list[float]] = {name: [] for name in sessions}
    for name, session in sessions.items():
        session.set_policy(name)
        session.run(images[0], normalize=True)
    for image in normalized(images)[:, None]:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(image)
            times[name].append(time.perf_counter() - start)
    full = np.array(times.pop(None))
    print(f"latency, one thread, {samples} images, all in turn, of full depth's on the same image:")
    for name, taken in times.items():
        ratio = np.array(taken) / full
        low, high = np.quantile(ratio, [0.1, 0.9])  # a busy machine interrupts some
        middle = ratio[(ratio >= low) & (ratio <= high)]
        print(
            f"  {name:11} median {100 * np.median(ratio):.1f} %, mean of the middle four fifths "
            f"{100 * middle.mean():.1f} %"
        )


def decisions(rounds: int = 2000) -> None:
    """Time of one decision for one sample, of each kind."""
    from functools import partial
    from timeit import repeat

    from eecompile.policies import ExitOutputs, PredictedPolicy, ThresholdPolicy

    outputs = ExitOutputs(np.random.default_rng(0).normal(size=(1, 10)).astype(np.float32))
    tried: dict[str, Any] = {"confidence(max_softmax)": ThresholdPolicy("max_softmax", [0.99] * 9)}
    for activation in ("probability", "logits"):
        for forecast in FORECASTS:
            limits = [np.linspace(2, 1, 7).tolist()] * 9 if forecast == "fitted" else None
            tried[f"{activation}, {forecast}"] = PredictedPolicy(
                [9.0] * 9, 0, 8, activation=activation, forecast=forecast, limits=limits
            )
    print("one decision that goes on, best of 20:")
    for name, policy in tried.items():
        taken = repeat(partial(policy.decide, 0, outputs, None), number=rounds // 20, repeat=20)
        best = min(taken)
        print(f"  {name:24} {1e6 * best / (rounds // 20):5.1f} us")


def main() -> None:
    """Everything, for one kind of head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    parser.add_argument("--head", choices=POINTS, default="linear")
    parser.add_argument("--samples", type=int, default=1000, help="images timed")
    options = parser.parse_args()
    data = shared_data().resolve()
    with working_folder(options.folder) as folder:
        print(describe_machine())
        artifact = folder / f"predictive_{options.head}.artifact"
        file = written(folder, data, options.head)
        built, seconds = command("build", str(file), "-o", str(artifact), folder=folder)
        steps = ", ".join(f"{step} {t:.1f} s" for step, t in built["times_s"].items() if t >= 1)
        print(f"build with {len(built['exits']) - 1} exits: {seconds:.1f} s ({steps})")
        policies(built)
        halves = records(artifact, data)
        starts(*halves)
        published(*halves)
        decisions()
        latencies(artifact, data, options.samples)


if __name__ == "__main__":
    main()
