"""Networks that others trained and exported: built with decisions off, against ONNX Runtime.

    python -m benchmarks.foreign [--only NAME ...] [--samples N] [--folder DIR]

Each file is built by the whole command with an empty cache, dynamic dimensions fixed by the `.ee`
file, and then compared with ONNX Runtime (its default optimiser, one thread): on random inputs, on
real ones, by accuracy where its data are at hand, and by time, in turn. Errors are the largest
deviation of any output in units of its largest magnitude (or 1 where that is less).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder

__all__ = ["NETWORKS", "Labelled", "Network", "labelled_images", "real_inputs", "write_file"]

Arrays = dict[str, np.ndarray]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Labelled:
    """The data a classifier was made for.

    Attributes:
        data: file of the shared data.
        accuracy: share of all test images, as measured with ONNX Runtime when the file was chosen.
        mean, std: per channel, of pixels from 0 to `high`.
        high: what white is.
    """

    data: str
    accuracy: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    high: float = 1.0


@dataclass(frozen=True)
class Network:
    """A file, with its inputs as an `.ee` file says them.

    Attributes:
        inputs: name -> shape.
        labelled: data with labels.
        spread: mean and standard deviation that pixels from 0 to 1 are normalised with.
        dtypes: of inputs that are not float32.
    """

    inputs: Mapping[str, tuple[int, ...]]
    labelled: Labelled | None = None
    spread: tuple[tuple[float, ...], tuple[float, ...]] = ((0.5,), (0.5,))
    dtypes: Mapping[str, str] | None = None


def _cifar10(accuracy: float, std: tuple[float, ...], **named: Any) -> Labelled:
    return Labelled("cifar10_test.npz", accuracy, named.get("mean", (0.4914, 0.4822, 0.4465)), std)


NETWORKS: dict[str, Network] = {
    "burn_mnist_torch": Network(
        {"input.1": (1, 1, 28, 28)}, Labelled("mnist_test.npz", 0.9916, (0.1307,), (0.3081,))
    ),
    "cifar100edge": Network({"input": (1, 3, 32, 32)}, spread=((0.0,), (1.0,))),
    "dtln_model_1": Network({"input_2": (1, 1, 257), "input_3": (1, 2, 128, 2)}),
    "fastestdet_coco": Network({"input.1": (1, 3, 352, 352)}, spread=((0.0,), (1.0,))),
    "magika_standard_v1": Network({"bytes": (1, 1536)}),
    "mnist_cntk_c_cxx": Network(
        {"Input3": (1, 1, 28, 28)}, Labelled("mnist_test.npz", 0.9891, high=255.0)
    ),
    "mobilenetv2_quant_static": Network({"input": (1, 3, 224, 224)}, spread=_IMAGENET),
    "onnx2c_mnist_pytorch": Network(
        {"network_input": (1, 784)}, Labelled("mnist_test.npz", 0.9189)
    ),
    "pfld_landmarks": Network({"input": (1, 3, 112, 112)}, spread=((0.0,), (1.0,))),
    "ppocr_mobile_v2_cls": Network({"x": (1, 3, 48, 192)}),
    "resnet20_onnc": Network(
        {"input.1": (1, 3, 32, 32)}, _cifar10(0.9172, _IMAGENET[1], mean=_IMAGENET[0])
    ),
    "shufflenet_v2_12_int8": Network({"input": (1, 3, 224, 224)}, spread=_IMAGENET),
    "silero_vad_op18_ifless": Network(
        {"input": (1, 576), "sr": (), "state": (2, 1, 128)}, dtypes={"sr": "int64"}
    ),
    "super_resolution_pt_2018": Network({"input": (1, 1, 224, 224)}, spread=((0.0,), (1.0,))),
    "ultraface_rfb_320": Network({"input": (1, 3, 240, 320)}, spread=((0.498,), (0.502,))),
    "vnn_cifar10_resnet_2b": Network(
        {"input.1": (1, 3, 32, 32)}, _cifar10(0.6925, (0.2471, 0.2435, 0.2616))
    ),
    "vnn_marabou_cifar10_large": Network(
        {"x:0": (1, 32, 32, 3)}, Labelled("cifar10_test.npz", 0.7416)
    ),
    "vnn_vit_pgd_2_3_16": Network(
        {"input": (1, 3, 32, 32)}, _cifar10(0.5978, (0.2023, 0.1994, 0.2010))
    ),
    "yunet_n_dynamic": Network({"input": (1, 3, 320, 320)}, spread=((0.0,), (1 / 255,))),
    "REJECT_qonnx_tfc_2w2a": Network({"0": (1, 1, 28, 28)}),
}


def write_file(folder: Path, data: Path, name: str, body: str = "") -> Path:
    """The `.ee` file of a network, in `folder`.

    Args:
        folder: where to.
        data: the shared data.
        name: key of `NETWORKS`.
        body: further lines of the file: exits in the model's block, then other blocks.
    """
    network = NETWORKS[name]
    dtypes = network.dtypes or {}
    lines = ["eecompile 1", f"model {name} {{", f'source onnx "{data / "onnx" / name}.onnx"']
    for given, shape in network.inputs.items():
        extents = ", ".join(map(str, shape))
        lines.append(f'input "{given}": {dtypes.get(given, "float32")}[{extents}]')
    path = folder / f"{name}.ee"
    path.write_text("\n".join([*lines, body or "}"]) + "\n")
    return path


# --- Inputs ---------------------------------------------------------------------------------------


def random_inputs(network: Network, count: int) -> Arrays:
    """Standard normal numbers, (count, ...) by name."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal((count, *shape[1:])).astype(np.float32)
        for name, shape in network.inputs.items()
    }


def labelled_images(data: Path, name: str, count: int) -> tuple[Arrays, np.ndarray]:
    """The first test images of a classifier, as it wants them, and their labels."""
    network = NETWORKS[name]
    wanted = network.labelled
    if wanted is None:
        raise KeyError(f"{name} has no labelled data")
    with np.load(data / wanted.data) as archive:
        images, labels = archive["images"][:count], archive["labels"][:count]
    pixels = images.astype(np.float32) * np.float32(wanted.high / 255)
    pixels = (pixels - np.asarray(wanted.mean, np.float32)) / np.asarray(wanted.std, np.float32)
    ((given, shape),) = network.inputs.items()
    if pixels.ndim == 4 and shape[1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return {given: np.ascontiguousarray(pixels.reshape(-1, *shape[1:]))}, labels


def real_inputs(data: Path, name: str, count: int) -> Arrays:
    """What the network could meet: labelled images, photographs scaled up, bytes of files."""
    network = NETWORKS[name]
    if network.labelled is not None:
        return labelled_images(data, name, count)[0]
    if name == "magika_standard_v1":
        return {"bytes": _bytes_of_files(count)}
    if name == "dtln_model_1":
        return _spectra(count)
    ((given, shape),) = network.inputs.items()
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in network.spread)
    images = _photographs(data, count, shape[2], shape[3])
    if shape[1] == 1:
        images = images.mean(axis=1, keepdims=True)
    return {given: np.ascontiguousarray((images - mean) / std, np.float32)}


def _photographs(data: Path, count: int, height: int, width: int) -> np.ndarray:
    """CIFAR-10 test images, interpolated to a size; float32 (count, 3, height, width) in 0..1."""
    with np.load(data / "cifar10_test.npz") as archive:
        images = archive["images"][:count].astype(np.float32).transpose(0, 3, 1, 2) / 255
    for axis, extent in ((2, height), (3, width)):
        at = np.clip((np.arange(extent) + 0.5) * 32 / extent - 0.5, 0, 31)
        low = np.minimum(at.astype(np.int64), 30)
        part = (at - low).astype(np.float32).reshape([-1 if d == axis else 1 for d in range(4)])
        images = images.take(low, axis) * (1 - part) + images.take(low + 1, axis) * part
    return np.asarray(images, np.float32)


def _bytes_of_files(count: int) -> np.ndarray:
    """Begin, middle and end of files of this repository, 512 bytes each."""
    files = sorted((Path(__file__).parents[1] / "eecompile").glob("*.py"))
    long = [content for file in files if len(content := file.read_bytes()) >= 1536][:count]
    rows = [c[:512] + c[len(c) // 2 - 256 : len(c) // 2 + 256] + c[-512:] for c in long]
    return np.array([list(row) for row in rows], np.float32)


def _spectra(count: int) -> Arrays:
    """Magnitudes of a chirp's spectrum, and the state a recurrent network starts with."""
    at = np.arange(512 * count, dtype=np.float64)
    wave = np.sin(2 * np.pi * (0.01 + 1e-5 * at) * at).reshape(count, 1, 512)
    spectrum = np.abs(np.fft.rfft(wave)).astype(np.float32)
    return {"input_2": spectrum, "input_3": np.zeros((count, 2, 128, 2), np.float32)}


# --- Measuring ------------------------------------------------------------------------------------


def peer_of(path: Path) -> Any:
    """ONNX Runtime as it comes, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows_of(inputs: Arrays) -> list[Arrays]:
    """The samples one by one, each with a leading 1."""
    count = len(next(iter(inputs.values())))
    return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(count)]


def error(net: Any, peer: Any, inputs: Arrays) -> float:
    """Largest deviation of any output, in units of its largest magnitude (at least 1)."""
    found = net.full_depth_batch(inputs).outputs
    names = [output.name for output in peer.get_outputs()]
    theirs = [peer.run(None, row) for row in rows_of(inputs)]
    worst = 0.0
    for index, name in enumerate(names):
        expected = np.stack([np.asarray(row[index]).reshape(-1) for row in theirs])
        apart = float(np.abs(found[name].reshape(expected.shape) - expected).max())
        worst = max(worst, apart / max(1.0, float(np.abs(expected).max())))
    return worst


def times_s(net: Any, peer: Any, row: Arrays, limit_s: float = 3.0) -> tuple[float, float]:
    """Median seconds of ours and of ONNX Runtime, in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    calls: tuple[Callable[[], Any], ...] = (
        lambda: net.full_depth(row),
        lambda: peer.run(None, row),
    )
    stop = time.perf_counter() + limit_s
    while time.perf_counter() < stop or len(found[0]) < 5:
        for times, call in zip(found, calls, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return float(np.median(found[0])), float(np.median(found[1]))


def build(path: Path, artifact: Path, cache: Path) -> tuple[dict[str, Any] | None, str, float]:
    """Summary (None where it was refused), the headlines of the diagnostics, and seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "eecompile.cli", "build", str(path), "-o", str(artifact), "--json"],
        env=os.environ | {"EECOMPILE_CACHE": str(cache)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return json.loads(done.stdout), "", seconds
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    if done.returncode != 1 or not lines:
        sys.exit(f"{path}: status {done.returncode}\n{done.stderr}")
    return None, lines[0], seconds


def report(name: str, folder: Path, data: Path, samples: int) -> bool:
    """Build and compare one network, print its rows; whether it was built."""
    import onnx

    source = data / "onnx" / f"{name}.onnx"
    model: Any = onnx.load(source)
    opset = max(o.version for o in model.opset_import if o.domain == "")
    artifact = folder / f"{name}.artifact"
    built, refusal, seconds = build(write_file(folder, data, name), artifact, folder / "cache")
    if built is None:
        print(f"{name:26} {opset:3} refused  {seconds:6.1f}  {refusal}", flush=True)
        return False
    import eecompile as ee

    net, peer = ee.load(artifact, threads=2), peer_of(source)
    real = real_inputs(data, name, 8)
    errors = [error(net, peer, inputs) for inputs in (random_inputs(NETWORKS[name], 4), real)]
    ours_s, theirs_s = times_s(net, peer, rows_of(real)[0])
    print(
        f"{name:26} {opset:3} built    {seconds:6.1f}  {errors[0]:8.1e} {errors[1]:8.1e}  "
        f"{1e3 * ours_s:8.3f} {1e3 * theirs_s:8.3f} {ours_s / theirs_s:5.2f}"
        f"{_accuracy(net, data, name, samples)}",
        flush=True,
    )
    rounded = built["roundings"]
    if rounded:
        print(
            f"{'':26}     from the definition {built['max_abs_error']:.1e}; ONNX Runtime, followed "
            f"step by step, rounds {rounded['apart']} of {rounded['values']} numbers the other way"
        )
        _engines(net, peer, source, data, name)
    return True


def _accuracy(net: Any, data: Path, name: str, samples: int) -> str:
    wanted = NETWORKS[name].labelled
    if wanted is None:
        return ""
    images, labels = labelled_images(data, name, samples)
    found = float((net.full_depth_batch(images).logits.argmax(1) == labels).mean())
    return f"  {100 * found:.2f} % of {len(labels)} ({100 * wanted.accuracy:.2f} % of 10000)"


#: ImageNet classes (first, last) that are one of CIFAR-10's; deer is none of them.
_KINDS: dict[int, Sequence[tuple[int, int]]] = {
    0: [(404, 405), (895, 895)],
    1: [(436, 436), (468, 468), (511, 511), (609, 609), (627, 627), (656, 656), (751, 751),
        (817, 817)],
    2: [(7, 24), (80, 100), (127, 146)],
    3: [(281, 287)],
    5: [(151, 275)],
    6: [(30, 32)],
    7: [(339, 340)],
    8: [(403, 403), (484, 484), (510, 510), (554, 554), (625, 625), (628, 628), (724, 724),
        (780, 780), (814, 814), (871, 871), (914, 914)],
    9: [(555, 555), (569, 569), (675, 675), (717, 717), (864, 864), (867, 867)],
}  # fmt: skip


def _engines(net: Any, peer: Any, source: Path, data: Path, name: str, count: int = 300) -> None:
    """Quantised ImageNet networks on CIFAR-10 scaled up: three engines, one share of right kinds.

    Neither their training data nor their resolution, so shares are low; what counts is that no
    engine is better than another.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(source), options)
    with np.load(data / "cifar10_test.npz") as archive:
        labels = archive["labels"][:count]
    kinds = np.full(1000, -1)
    for kind, ranges in _KINDS.items():
        for first, last in ranges:
            kinds[first : last + 1] = kind
    rows = rows_of(real_inputs(data, name, count))
    answers = {
        "ours": [net.full_depth(row).logits for row in rows],
        "ONNX Runtime": [peer.run(None, row)[0] for row in rows],
        "ONNX Runtime, no optimiser": [plain.run(None, row)[0] for row in rows],
    }
    tops = {engine: np.array([np.argmax(x) for x in found]) for engine, found in answers.items()}
    known = labels != 4
    shares = ", ".join(
        f"{engine} {100 * float((kinds[top] == labels)[known].mean()):.1f} %"
        for engine, top in tops.items()
    )
    ours, theirs, unoptimised = tops.values()
    print(
        f"{'':26}     right kind of {int(known.sum())} photographs: {shares}; same class as ONNX "
        f"Runtime: ours {100 * float((ours == theirs).mean()):.0f} %, its own without optimiser "
        f"{100 * float((unoptimised == theirs).mean()):.0f} %",
        flush=True,
    )


def main() -> None:
    """One row a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=10000, help="labelled images")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    data = shared_data().resolve()
    print(describe_machine())
    print(
        f"{'file':24} opset result   build s    random     real   ours ms  ORT ms ratio"
        "  accuracy (ONNX Runtime's)"
    )
    with working_folder(options.folder) as folder:
        built = [report(name, folder, data, options.samples) for name in options.only]
    print(f"built {sum(built)} of {len(built)}")


if __name__ == "__main__":
    main()
