"""What stands before a convolution is computed in its kernel, where the convolution can take it."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")
from eecompile.targets.lowering.group import group
from eecompile.targets.lowering.layout import lay_out
from eecompile.targets.lowering.placing import place
from eecompile.targets.lowering.prologues import with_prologues
from eecompile.targets.lowering.simplify import simplify
from eecompile.text import parse_graph
from tests.lowering.calling import compile_plain, worst_error

POINT = "strides=(1,1), pads=(0,0,0,0), dilations=(1,1), group=1"
WIDE = "strides=(1,1), pads=(1,1,1,1), dilations=(1,1), group=1"

#: Two layers of a dense block: normalisation and activation of all channels so far.
DENSE = f"""graph net(x: float32[1, 16, 5, 5]) -> (y: float32[1, 40, 5, 5]) {{
    const w0: float32[16, 16, 3, 3] = random(0)
    const w1: float32[12, 16, 1, 1] = random(1)
    const w2: float32[12, 28, 1, 1] = random(2)
    const s1: float32[16] = random(3)
    const t1: float32[16] = random(4)
    const m1: float32[16] = random(5)
    const s2: float32[28, 1, 1] = random(6)
    const t2: float32[28, 1, 1] = random(7)
    a: float32[1, 16, 5, 5] = Conv(x, w0; {WIDE})
    v1: float32[16] = Sigmoid(m1)
    n1: float32[1, 16, 5, 5] = BatchNormalization(a, s1, t1, m1, v1; epsilon=0.001)
    r1: float32[1, 16, 5, 5] = Relu(n1)
    b: float32[1, 12, 5, 5] = Conv(r1, w1; {POINT})
    c: float32[1, 28, 5, 5] = Concat(a, b; axis=1)
    p2: float32[1, 28, 5, 5] = Mul(c, s2)
    n2: float32[1, 28, 5, 5] = Add(p2, t2)
    r2: float32[1, 28, 5, 5] = Relu(n2)
    d: float32[1, 12, 5, 5] = Conv(r2, w2; {POINT})
    e: float32[1, 40, 5, 5] = Concat(c, d; axis=1)
    y: float32[1, 40, 5, 5] = Tanh(e)
}}"""

#: A squeeze-and-excite block.
SQUEEZE = f"""graph net(x: float32[1, 3, 6, 6]) -> (y: float32[1, 8, 6, 6]) {{
    const w: float32[20, 3, 3, 3] = random(0)
    const v: float32[4, 20, 1, 1] = random(1)
    const u: float32[20, 4, 1, 1] = random(2)
    const p: float32[8, 20, 1, 1] = random(3)
    c: float32[1, 20, 6, 6] = Conv(x, w; {WIDE})
    h: float32[1, 20, 6, 6] = HardSwish(c)
    m: float32[1, 20, 1, 1] = ReduceMean(h; axes=(2, 3), keepdims=1)
    f: float32[1, 4, 1, 1] = Conv(m, v; {POINT})
    r: float32[1, 4, 1, 1] = Relu(f)
    g: float32[1, 20, 1, 1] = Conv(r, u; {POINT})
    s: float32[1, 20, 1, 1] = HardSigmoid(g; alpha=0.1666, beta=0.5)
    k: float32[1, 20, 6, 6] = Mul(h, s)
    y: float32[1, 8, 6, 6] = Conv(k, p; {POINT})
}}"""


def kernels(text: str) -> list[str]:
    graph = parse_graph(text)
    placed = place(lay_out(simplify(graph), (*graph.inputs, *graph.outputs), {}).graph)
    groups = with_prologues(group(placed), placed.graph).groups
    return ["+".join(op.kind for op in found.ops) for found in groups]


def test_a_dense_block_is_its_convolutions() -> None:
    found = kernels(DENSE)
    assert found.count("Mul+Add+Relu+Conv") == 2
    assert not [kind for kind in found if "Concat" in kind or kind.startswith("Relu")]
    assert worst_error(parse_graph(DENSE), compile_plain(parse_graph(DENSE))) < 2e-5


def test_the_scale_of_a_squeeze_is_no_pass_of_its_own() -> None:
    assert kernels(SQUEEZE) == [
        "Transpose+Conv+HardSwish",
        "ReduceMean",
        "Conv+Relu",
        "Conv+HardSigmoid",
        "Mul+Conv",
        "Transpose",
    ]
    assert worst_error(parse_graph(SQUEEZE), compile_plain(parse_graph(SQUEEZE))) < 2e-5


#: Convolutions behind something that they must not take.
APART = {
    "read elsewhere": (
        f"""graph net(x: float32[1, 8, 4, 4]) -> (r: float32[1, 8, 4, 4], y: float32[1, 8, 4, 4]) {{
            const w: float32[8, 8, 1, 1] = random(0)
            r: float32[1, 8, 4, 4] = Relu(x)
            y: float32[1, 8, 4, 4] = Conv(r, w; {POINT})
        }}""",
        "Relu",
    ),
    "read again behind the convolution": (
        f"""graph net(x: float32[1, 4, 4, 8]) -> (y: float32[1, 8, 4, 4]) {{
            const w: float32[8, 8, 1, 1] = random(0)
            t: float32[1, 8, 4, 4] = Transpose(x; perm=(0, 3, 1, 2))
            r: float32[1, 8, 4, 4] = Tanh(t)
            c: float32[1, 8, 4, 4] = Conv(r, w; {POINT})
            y: float32[1, 8, 4, 4] = Add(c, r)
        }}""",
        "Tanh",
    ),
    "windows of several places": (
        f"""graph net(x: float32[1, 8, 4, 4]) -> (y: float32[1, 8, 4, 4]) {{
            const v: float32[8, 8, 1, 1] = random(0)
            const w: float32[8, 8, 3, 3] = random(1)
            const s: float32[1, 8, 1, 1] = random(2)
            a: float32[1, 8, 4, 4] = MaxPool(x; kernel_shape=(2,2), strides=(1,1), pads=(0,0,1,1),
                dilations=(1,1))
            r: float32[1, 8, 4, 4] = Conv(a, v; {POINT})
            q: float32[1, 8, 4, 4] = Relu(r)
            b: float32[1, 8, 4, 4] = Add(q, a)
            m: float32[1, 8, 4, 4] = Mul(b, s)
            y: float32[1, 8, 4, 4] = Conv(m, w; {WIDE})
        }}""",
        "Conv+Relu+Add+Mul",
    ),
    "two full tensors": (
        f"""graph net(x: float32[1, 8, 4, 4]) -> (y: float32[1, 8, 4, 4]) {{
            const w: float32[8, 8, 1, 1] = random(1)
            a: float32[1, 8, 4, 4] = MaxPool(x; kernel_shape=(2,2), strides=(1,1), pads=(0,0,1,1),
                dilations=(1,1))
            b: float32[1, 8, 4, 4] = MaxPool(a; kernel_shape=(2,2), strides=(1,1), pads=(0,0,1,1),
                dilations=(1,1))
            c: float32[1, 8, 4, 4] = MaxPool(b; kernel_shape=(2,2), strides=(1,1), pads=(0,0,1,1),
                dilations=(1,1))
            s: float32[1, 8, 4, 4] = Add(a, b)
            d: float32[1, 8, 4, 4] = Conv(s, w; {POINT})
            y: float32[1, 8, 4, 4] = Add(d, c)
        }}""",
        "Add",
    ),
}


@pytest.mark.parametrize("text, apart", APART.values(), ids=[*APART])
def test_what_a_convolution_cannot_take_stays(text: str, apart: str) -> None:
    assert apart in [word for word in kernels(text) if not word.startswith("Transpose")]
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5
