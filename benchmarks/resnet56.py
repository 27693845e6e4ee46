"""ResNet-56 on CIFAR-10 from `.ee` file to answers: every figure the README quotes.

    python -m benchmarks.resnet56 [--folder DIR] [--samples N]

Heads are fitted on 20,000 training images, policies calibrated on the first 5,000 test images, and
everything is reported on the last 5,000. Builds run as whole commands with an empty cache. Needs
torch (for the PyTorch route and to export the ONNX file) and onnxruntime (as the peer).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder

HERE = Path(__file__).parent
WEIGHTS = "nets/resnet56_cifar10.th"


def command(*arguments: str, folder: Path) -> tuple[dict[str, Any], float]:
    """JSON result and seconds of one whole `eecompile` command."""
    environment = os.environ | {"EECOMPILE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "eecompile.cli", *arguments, "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"eecompile {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - start


def prepare(folder: Path, data: Path) -> dict[str, Path]:
    """The ONNX file and the `.ee` files with their paths filled in."""
    subprocess.run(
        [
            sys.executable, "-m", "benchmarks.networks", "export", "resnet56",
            "--weights", str(data / WEIGHTS), "--onnx", str(folder / "resnet56.onnx"),
        ],
        cwd=HERE.parent, check=True, capture_output=True,
    )  # fmt: skip
    written = {}
    for name in ("resnet56", "resnet56_class_means"):
        text = (HERE / f"{name}.ee").read_text().replace('"cifar10_', f'"{data}/cifar10_')
        written[name] = folder / f"{name}.ee"
        written[name].write_text(text)
    torch_source = f'source torch "{HERE / "networks.py"}:resnet56" weights "{data / WEIGHTS}"'
    written["torch"] = folder / "resnet56_torch.ee"
    text = written["resnet56"].read_text()
    written["torch"].write_text(text.replace('source onnx "resnet56.onnx"', torch_source))
    return written


def routes_agree(folder: Path, data: Path, count: int) -> None:
    """Compare what the artifacts of both routes answer, sample by sample."""
    import eecompile as ee

    images, _ = test_images(data, count)
    onnx, torch = (ee.load(folder / f"{name}.artifact", threads=2) for name in ("onnx", "torch"))
    for policy in onnx.policies:
        onnx.set_policy(policy)
        torch.set_policy(policy)
        one, other = onnx.run_batch(images, normalize=True), torch.run_batch(images, normalize=True)
        same = one.exits == other.exits
        apart = float(np.abs(one.logits[same] - other.logits[same]).max())
        print(
            f"  {policy}: exits equal for {int(same.sum())} of {len(same)} images, "
            f"logits of those within {apart:.1e}"
        )


def full_depth(folder: Path, data: Path) -> None:
    """Accuracy with decisions off on all 10,000 test images."""
    import eecompile as ee

    with np.load(data / "cifar10_test.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    net = ee.load(folder / "onnx.artifact", threads=2)
    answers = net.full_depth_batch(images, normalize=True).labels
    print(f"full depth on all {len(labels)} test images: {100 * (answers == labels).mean():.2f} %")


def random_halves(folder: Path, data: Path, count: int = 10) -> None:
    """The same heads, with policies fitted on one random half of the test images for the other.

    The exit points were chosen with the last 5,000 test images in sight; this shows how much of the
    figures above is owed to that, and how often a budget holds.
    """
    import eecompile as ee
    from eecompile.outcomes import ExitCosts, evaluate
    from eecompile.policy_fitting import fit_policy
    from eecompile.record import CalibrateRecord, TestRecord
    from eecompile.runtime.runner import Runner
    from eecompile.spec import Budget, Rule, RuleTerm

    with np.load(data / "cifar10_test.npz") as archive:
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    net = ee.load(folder / "onnx.artifact")
    network = net.manifest.network
    exits = [exit_.name for exit_ in network.exits]
    names = [*(f"{name}.logits" for name in exits), network.output]
    values = Runner.of(net.library, network).run_all(normalized(images), names, threads=2)
    full = network.macs
    costs = ExitCosts(
        tuple(segment.macs / full for segment in network.segments),
        tuple(exit_.macs / full for exit_ in network.exits),
        1.0,
    )
    rule = Rule((RuleTerm("confidence", "max_softmax"),))
    for limit in (0.7, 0.8):
        accuracies, spent = [], []
        for seed in range(count):
            order = np.random.default_rng(seed).permutation(len(labels))
            calibrate, test = (
                {
                    "exits": tuple(exits),
                    "labels": labels[rows],
                    "final": values[network.output][rows],
                    "logits": {name: values[f"{name}.logits"][rows] for name in exits},
                }
                for rows in (order[:5000], order[5000:])
            )
            fitted = fit_policy(
                rule, Budget("macs", limit), CalibrateRecord(**calibrate), {"macs": costs}
            )
            held_out = evaluate(fitted.policy, TestRecord(**test), {"macs": costs})
            accuracies.append(100 * held_out.accuracy.value)
            spent.append(100 * held_out.costs["macs"].value)
        print(
            f"  mean macs <= {100 * limit:.0f} %: accuracy {np.mean(accuracies):.2f} % "
            f"({min(accuracies):.2f} to {max(accuracies):.2f}) at {np.mean(spent):.2f} % "
            f"of the MACs (at most {max(spent):.2f})"
        )


def normalized(images: np.ndarray) -> np.ndarray:
    """Images as stored, as the network reads them: float32 (n, 3, 32, 32)."""
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    batch = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch, np.float32)


def test_images(data: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of the last 5,000 test images as stored, and their labels."""
    with np.load(data / "cifar10_test.npz") as archive:
        return archive["images"][5000 : 5000 + count], archive["labels"][5000 : 5000 + count]


def against_onnxruntime(folder: Path, data: Path, rounds: int = 300) -> None:
    """Full depth and exits against ONNX Runtime, one thread, in turn."""
    import onnxruntime

    import eecompile as ee

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    peer = onnxruntime.InferenceSession(
        str(folder / "resnet56.onnx"), options, providers=["CPUExecutionProvider"]
    )
    net = ee.load(folder / "onnx.artifact", threads=1)
    (name,) = (entry.name for entry in peer.get_inputs())
    images, _ = test_images(data, rounds)
    times: dict[str, list[float]] = {"onnxruntime": [], "full depth": [], "with exits": []}
    for image in normalized(images)[:, None]:
        for label, call in (
            ("onnxruntime", lambda image=image: peer.run(None, {name: image})),
            ("full depth", lambda image=image: net.full_depth(image)),
            ("with exits", lambda image=image: net.run(image)),
        ):
            start = time.perf_counter()
            call()
            times[label].append(time.perf_counter() - start)
    base = float(np.median(times["onnxruntime"]))
    for label, found in times.items():
        middle, mean_s = float(np.median(found)), float(np.mean(found))
        print(
            f"  {label:12} median {1e3 * middle:6.3f} ms ({middle / base:.2f} of ONNX Runtime's), "
            f"mean {1e3 * mean_s:6.3f} ms"
        )


def main() -> None:
    """Everything, in the order of the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    parser.add_argument("--samples", type=int, default=5000, help="test images (at most 5,000)")
    options = parser.parse_args()
    data = shared_data().resolve()
    with working_folder(options.folder) as folder:
        report(folder, data, options.samples)


def report(folder: Path, data: Path, samples: int) -> None:
    """Build, evaluate, compare; print every figure."""
    print(describe_machine())
    files = prepare(folder, data)
    builds = {"onnx": "resnet56", "torch": "torch", "means": "resnet56_class_means"}
    for name, source in builds.items():
        target = str(folder / f"{name}.artifact")
        built, seconds = command("build", str(files[source]), "-o", target, folder=folder)
        _, again = command("build", str(files[source]), "-o", target, folder=folder)
        steps = ", ".join(f"{step} {t:.1f} s" for step, t in built["times_s"].items() if t >= 1)
        print(f"build {name}: {seconds:.1f} s, unchanged {again:.1f} s ({steps})")
        print(f"  decisions off: differs by at most {built['max_abs_error']:.1e}")
        for policy, found in built["policies"].items():
            held, limit = found["test"], found["budget"]
            print(
                f"  {policy} ({limit}): accuracy {100 * held['accuracy']['value']:.2f} % at "
                f"{100 * held['costs']['macs']['value']:.2f} % of the MACs (replayed, held out)"
            )
    print("eval, one sample at a time, exits and full depth in turn, one thread:")
    test = f"{data}/cifar10_test.npz[5000..]"
    for name, policies in (("onnx", ("at70", "at80")), ("torch", ("at70",)), ("means", ("at90",))):
        for policy in policies:
            target = str(folder / f"{name}.artifact")
            found, _ = command(
                "eval", target, "--data", test, "--policy", policy, "--samples", str(samples),
                "--threads", "1", folder=folder,
            )  # fmt: skip
            ratio = found["mean_latency_s"] / found["full_depth_latency_s"]
            print(
                f"  {name} {policy}: n {found['n']}, accuracy {100 * found['accuracy']:.2f} % "
                f"(full depth {100 * found['full_depth_accuracy']:.2f} %), "
                f"MACs {100 * found['mean_macs_fraction']:.2f} %, latency {100 * ratio:.2f} % "
                f"({1e3 * found['mean_latency_s']:.3f} of "
                f"{1e3 * found['full_depth_latency_s']:.3f} ms), "
                f"latency / MACs {ratio / found['mean_macs_fraction']:.3f}"
            )
    full_depth(folder, data)
    print("policies fitted on a random half of the test images, reported on the other, 10 times:")
    random_halves(folder, data)
    print("both routes:")
    routes_agree(folder, data, samples)
    print("against ONNX Runtime, one thread, in turn:")
    against_onnxruntime(folder, data)


if __name__ == "__main__":
    main()
