"""ResNet-56 with six exits in an app: C against Python against ONNX Runtime, one thread.

    python -m benchmarks.native [--folder DIR] [--samples N] [--clock cpu]

Builds and exports the network, compiles `native_app.c` with the system's C compiler, and answers
the last 5,000 test images by every route: in turns of some images, so that all see the same
neighbours and clock. Then what opening takes in new processes, what memory is resident, how large
the runtime is, and what a decision costs. Needs torch (to export the ONNX file) and onnxruntime.

On a machine that others use, `--clock cpu` takes the thread's time on its core in place of the time
that passes: the same where nobody disturbs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import command, normalized, prepare, test_images

__all__ = ["Route", "bare_header", "overhead"]

HERE = Path(__file__).parent
POLICY = "at80"
_TURN = 250  #: images of one process before the other has its turn
_WAYS = ("bare", "whole", "exits")
_PROCESSES = 10

#: Name on the command line -> seconds now, as native_app.c takes them.
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}

_PYTHON = """
import sys, time
begun = time.perf_counter()
import numpy, eecompile
net = eecompile.load(sys.argv[1], policy=sys.argv[2], threads=1)
net.run(numpy.fromfile(sys.argv[3], numpy.float32, 3072).reshape(1, 3, 32, 32))
print(time.perf_counter() - begun)
"""
_PEER = """
import sys, time
begun = time.perf_counter()
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
peer = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.fromfile(sys.argv[3], numpy.float32, 3072).reshape(1, 3, 32, 32)
peer.run(None, {peer.get_inputs()[0].name: x})
print(time.perf_counter() - begun)
"""


@dataclass(frozen=True)
class Route:
    """Seconds f64[n], logits f32[n, classes], and exits i64[n] where a route has any."""

    seconds: np.ndarray
    logits: np.ndarray
    exits: np.ndarray | None = None


def overhead(ours: np.ndarray, bare: np.ndarray) -> float:
    """Median of ours / bare - 1, call by call.

    >>> overhead(np.array([1.5, 2.0, 9.0]), np.array([1.0, 2.0, 6.0]))
    0.5
    """
    return float(np.median(ours / bare)) - 1


def bare_header(artifact: Path) -> str:
    """C code that calls a network's functions one after the other; it has no gates."""
    from eecompile.artifact import read_artifact
    from eecompile.compiled import Function

    network = read_artifact(artifact).manifest.network
    ((given, _),) = network.inputs
    lines, calls, workspace = [], [], 64
    sizes: dict[str, int] = {}
    for segment in network.segments:
        assert isinstance(segment, Function), "gates have no place here"
        workspace = max(workspace, segment.workspace_bytes + segment.private_bytes)
        sizes |= {name: type_.nbytes for name, type_ in segment.outputs}
        lines.append(f"int32_t {segment.symbol}(const int64_t *, int32_t, int32_t, void *);")
        buffers = {name: f"value_{place}" for place, name in enumerate(sizes)} | {given: "input"}
        values = [buffers[name] for name, _ in (*segment.inputs, *segment.outputs)]
        frame = ", ".join(f"(int64_t){name}" for name in ("weights", "workspace", *values))
        calls.append(f"    {segment.symbol}((const int64_t[]){{1, {frame}}}, 0, 1, NULL);")
    for place, nbytes in enumerate(sizes.values()):
        lines.append(f"static _Alignas(64) unsigned char value_{place}[{nbytes}];")
    lines.append(f"static _Alignas(64) unsigned char workspace[{workspace}];")
    lines.append(f"#define bare_output {buffers[network.output]}")
    lines.append("static void run_bare(const unsigned char *weights, const unsigned char *input) {")
    return "\n".join([*lines, *calls, "}", ""])


def compiled_app(folder: Path, artifact: Path) -> tuple[Path, Path]:
    """The exported app's folder, and native_app.c compiled for it."""
    from eecompile.app_folder import export_artifact

    app = export_artifact(artifact, folder / "app").folder
    (folder / "bare.h").write_text(bare_header(artifact))
    program = folder / "native_app"
    subprocess.run(
        [
            *("cc", "-std=c11", "-O2", "-Wall", "-Wextra", f"-I{app}", f"-I{folder}"),
            *(str(HERE / "native_app.c"), "-o", str(program)),
            *(f"-L{app}", "-lresnet56", f"-Wl,-rpath,{app}"),
        ],
        check=True,
    )
    return app, program


def weights_offset(app: Path) -> int:
    """Where the weights begin in the packed file."""
    from eecompile.packed_form import read_directory

    content = (app / "resnet56.eec").read_bytes()
    members = read_directory(lambda at, count: content[at : at + count], len(content))
    return next(member.data for member in members if member.name == "weights.bin")


class App:
    """The C program, which answers images when it is told to."""

    def __init__(self, program: Path, app: Path, images: Path, clock: str, classes: int) -> None:
        arguments = [str(app / "resnet56.eec"), POLICY, str(images), clock]
        self.process = subprocess.Popen(
            [str(program), "turns", *arguments, str(weights_offset(app))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        fields = [("seconds", "f8", 3), ("logits", "f4", (3, classes))]
        self.record = np.dtype([*fields, ("exit", "u4"), ("label", "u4")], align=True)
        self.rows: list[np.ndarray] = []

    def answer(self, first: int, count: int) -> None:
        """These images, in all ways."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"%d %d\n" % (first, count))
        self.process.stdin.flush()
        found = self.process.stdout.read(count * self.record.itemsize)
        self.rows.append(np.frombuffer(found, self.record))

    def routes(self) -> dict[str, Route]:
        """What was answered, by way."""
        self.process.communicate()
        rows = np.concatenate(self.rows)
        return {
            name: Route(
                rows["seconds"][:, way],
                rows["logits"][:, way],
                rows["exit"].astype(np.int64) if name == "exits" else None,
            )
            for way, name in enumerate(_WAYS)
        }


class InPython:
    """The same images by `eecompile.load`, and by ONNX Runtime."""

    def __init__(self, folder: Path, artifact: Path, images: np.ndarray, clock: str) -> None:
        import onnxruntime

        import eecompile as ee

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        peer = onnxruntime.InferenceSession(
            str(folder / "resnet56.onnx"), options, providers=["CPUExecutionProvider"]
        )
        (name,) = (entry.name for entry in peer.get_inputs())
        net = self.net = ee.load(artifact, policy=POLICY, threads=1)
        self.images, self.clock = images, CLOCKS[clock]

        def exits(x: np.ndarray) -> tuple[np.ndarray, str]:
            answer = net.run(x)
            return answer.logits, answer.exit

        self.sides: dict[str, Callable[[np.ndarray], tuple[np.ndarray, str]]] = {
            "exits": exits,
            "whole": lambda x: (net.full_depth(x).logits, "final"),
            "onnxruntime": lambda x: (np.asarray(peer.run(None, {name: x})[0]), "final"),
        }
        for call in self.sides.values():
            call(images[:1])
        self.found: dict[str, list[tuple[float, np.ndarray, int]]] = {s: [] for s in self.sides}

    def answer(self, first: int, count: int) -> None:
        """These images, by all sides."""
        names, exits = list(self.sides), self.net.exit_names
        for index in range(first, first + count):
            x = self.images[index : index + 1]
            turn = index % len(names)
            for name in (*names[turn:], *names[:turn]):
                begun = self.clock()
                logits, exit_ = self.sides[name](x)
                took = self.clock() - begun
                self.found[name].append((took, logits.reshape(-1).copy(), exits.index(exit_)))

    def routes(self) -> dict[str, Route]:
        """What was answered, by side."""
        return {
            name: Route(
                np.array([row[0] for row in rows]),
                np.stack([row[1] for row in rows]),
                np.array([row[2] for row in rows]),
            )
            for name, rows in self.found.items()
        }


def print_latencies(c: dict[str, Route], python: dict[str, Route], labels: np.ndarray) -> None:
    """The table of routes, and whether they agree."""
    peer = python["onnxruntime"].seconds.mean()
    rows = [
        ("C, with exits", c["exits"]),
        ("C, decisions off", c["whole"]),
        ("the bare kernels", c["bare"]),
        ("Python, with exits", python["exits"]),
        ("Python, decisions off", python["whole"]),
        ("ONNX Runtime, full depth", python["onnxruntime"]),
    ]
    print(f"{'':<26}{'mean':>11}{'median':>11}{'99 %':>11}{'of ORT':>9}{'accuracy':>11}")
    for name, route in rows:
        ms = route.seconds * 1e3
        accuracy = (route.logits.argmax(1) == labels).mean()
        print(
            f"{name:<26}{ms.mean():>8.4f} ms{np.median(ms):>8.4f} ms"
            f"{np.percentile(ms, 99):>8.4f} ms{route.seconds.mean() / peer:>9.2f}"
            f"{100 * accuracy:>9.2f} %"
        )
    assert c["exits"].exits is not None and python["exits"].exits is not None
    same = int((c["exits"].exits == python["exits"].exits).sum())
    print(
        f"C and Python: exits equal for {same} of {len(labels)}, logits to the bit for "
        f"{int((c['exits'].logits == python['exits'].logits).all(1).sum())}; decisions off, "
        f"{int((c['whole'].logits == python['whole'].logits).all(1).sum())}, and those of the bare "
        f"kernels for {int((c['whole'].logits == c['bare'].logits).all(1).sum())}"
    )
    for name, ours, bare in (
        ("decisions off over the bare kernels", c["whole"], c["bare"]),
        ("Python over C, with exits", python["exits"], c["exits"]),
    ):
        print(f"{name}: {100 * overhead(ours.seconds, bare.seconds):+.2f} %")


def output_of(*arguments: object) -> str:
    return subprocess.run(
        [str(argument) for argument in arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    ).stdout


def print_opening(folder: Path, artifact: Path, app: Path, program: Path, images: Path) -> None:
    """Time to the first answer in new processes, and what memory they have then."""
    from eecompile.artifact import read_artifact

    def c(_: int) -> list[float]:
        arguments = ("first", app / "resnet56.eec", POLICY, images, "wall")
        return [float(word) for word in output_of(program, *arguments).split()]

    def other(code: str, subject: Path) -> Callable[[int], float]:
        def once(_: int) -> float:
            return float(output_of(sys.executable, "-c", code, subject, POLICY, images))

        return once

    sides: dict[str, Callable[[int], float]] = {
        "Python, imports included": other(_PYTHON, artifact),
        "ONNX Runtime, imports included": other(_PEER, folder / "resnet56.onnx"),
    }
    rows, others = [], {name: list[float]() for name in sides}
    for turn in range(_PROCESSES):
        rows.append(c(turn))
        for name, call in sides.items():
            others[name].append(call(turn))
    opened, answered = (median(row[i] for row in rows) * 1e3 for i in (0, 1))
    print(f"to the first answer, median of {_PROCESSES} new processes:")
    print(f"  C: {answered:.2f} ms, {opened:.2f} of them ee_open with its SHA-256 of the weights")
    for name, seconds in others.items():
        print(f"  {name}: {median(seconds) * 1e3:.0f} ms")
    own, mapped = (median(row[i + 2] - row[i] for row in rows) / 1024 for i in (2, 3))
    weights, session = rows[0][6], rows[0][7]
    assert weights == read_artifact(artifact).weights.nbytes
    print(
        f"resident since main: {own:.2f} MiB of its own and {mapped:.2f} MiB of mapped files; "
        f"planned: {session / 2**20:.2f} MiB for a session, {weights / 2**20:.2f} MiB of weights"
    )


def print_sizes(app: Path) -> None:
    """Bytes of what is shipped, and of the runtime without kernels."""
    from eecompile.hardware import machine
    from eecompile.targets.lowering.link import link

    runtime = len(link([], [], machine("host"), network="none", weights_bytes=0))
    library = (app / "libresnet56.so").stat().st_size
    data = (app / "resnet56.eec").stat().st_size
    print(
        f"sizes: library {library / 1024:.0f} KiB; the runtime, linked alone and stripped, "
        f"{runtime / 1024:.0f} KiB; resnet56.eec {data / 1024:.0f} KiB"
    )


def print_decisions(folder: Path, artifact: Path, images: np.ndarray) -> None:
    """Nanoseconds of a decision, on the heads' logits of real images."""
    import eecompile as ee
    from eecompile.native_policies import policy_bytes
    from eecompile.policies import from_json
    from eecompile.runtime.runner import Runner
    from eecompile.targets.native import OPTIONS, native_folder

    net = ee.load(artifact)
    network = net.manifest.network
    names = [f"{exit_.name}.logits" for exit_ in network.exits]
    values = Runner.of(net.library, network).run_all(images, names)
    np.stack([values[name] for name in names], 1).tofile(folder / "logits.bin")
    program = folder / "native_decisions"
    sources = [
        HERE / "native_decisions.c",
        *(native_folder() / f for f in ("policies.c", "policy_reading.c", "reader.c")),
    ]
    include = f"-I{native_folder()}"
    output_of("cc", *OPTIONS, include, *sources, "-o", program, "-lm")
    for name, entry in net.artifact.policies.items():
        (folder / "rule.bin").write_bytes(policy_bytes(from_json(entry.rule)))
        given = (folder / "rule.bin", len(names), network.classes, folder / "logits.bin")
        each, count = output_of(program, *given).split()
        kind = entry.rule["kind"]
        print(
            f"a decision of {name} ({kind}): {float(each):.0f} ns, best round of {count} decisions"
        )


def measure(folder: Path, samples: int, clock: str) -> None:
    """All of it."""
    data = shared_data()
    if not (folder / "resnet56.ee").exists():
        prepare(folder, data)
    artifact = folder / "native.artifact"
    command("build", str(folder / "resnet56.ee"), "-o", str(artifact), folder=folder)
    stored, labels = test_images(data, samples)
    images = normalized(stored)
    images.tofile(folder / "images.bin")
    app, program = compiled_app(folder, artifact)
    c = App(program, app, folder / "images.bin", clock, 10)
    python = InPython(folder, artifact, images, clock)
    for first in range(0, len(images), _TURN):
        count = min(_TURN, len(images) - first)
        for side in (c, python) if first // _TURN % 2 == 0 else (python, c):
            side.answer(first, count)
    print(f"policy {POLICY}, {len(images)} images, one thread, {clock} time")
    print_latencies(c.routes(), python.routes(), labels)
    print_opening(folder, artifact, app, program, folder / "images.bin")
    print_sizes(app)
    print_decisions(folder, artifact, images[:1000])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native", description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the build here")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args(arguments)
    print(describe_machine())
    with working_folder(options.folder) as folder:
        measure(folder, options.samples, options.clock)


if __name__ == "__main__":
    main()
