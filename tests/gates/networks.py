"""Networks that tests of gates share, as neutral graphs on a host without a framework."""

from __future__ import annotations

from tests.helpers import TextHost

#: Two residual blocks and, between them, one whose shortcut halves the map.
RESIDUAL = """graph net(image: float32[1, 3, 8, 8]) -> (y: float32[1, 8, 4, 4]) {
    const w0: float32[4, 3, 3, 3] = random(1)
    const w1: float32[4, 4, 3, 3] = random(2)
    const w2: float32[4, 4, 3, 3] = random(3)
    const w3: float32[8, 4, 3, 3] = random(4)
    const ws: float32[8, 4, 1, 1] = random(5)
    const w4: float32[8, 8, 3, 3] = random(6)
    const w5: float32[8, 8, 3, 3] = random(7)
    stem: float32[1, 4, 8, 8] = Conv(image, w0; CONV) @ stem
    x0: float32[1, 4, 8, 8] = Relu(stem)
    f1: float32[1, 4, 8, 8] = Conv(x0, w1; CONV) @ a.0.conv1
    r1: float32[1, 4, 8, 8] = Relu(f1) @ a.0
    f2: float32[1, 4, 8, 8] = Conv(r1, w2; CONV) @ a.0.conv2
    s1: float32[1, 4, 8, 8] = Add(f2, x0) @ a.0
    x1: float32[1, 4, 8, 8] = Relu(s1) @ a.0
    f3: float32[1, 8, 4, 4] = Conv(x1, w3; HALF) @ a.1.conv1
    d: float32[1, 8, 4, 4] = Conv(x1, ws; DOWN) @ a.1.shortcut
    s2: float32[1, 8, 4, 4] = Add(f3, d) @ a.1
    x2: float32[1, 8, 4, 4] = Relu(s2) @ a.1
    f4: float32[1, 8, 4, 4] = Conv(x2, w4; CONV) @ a.2.conv1
    r4: float32[1, 8, 4, 4] = Relu(f4) @ a.2
    f5: float32[1, 8, 4, 4] = Conv(r4, w5; CONV) @ a.2.conv2
    y: float32[1, 8, 4, 4] = Add(f5, x2) @ a.2
}"""


def text(network: str) -> str:
    """The network's text with the settings of its convolutions written out."""
    same = "dilations=(1, 1), group=1, pads=(1, 1, 1, 1)"
    return (
        network.replace("CONV", f"{same}, strides=(1, 1)")
        .replace("HALF", f"{same}, strides=(2, 2)")
        .replace("DOWN", "dilations=(1, 1), group=1, pads=(0, 0, 0, 0), strides=(2, 2)")
    )


def host(network: str = RESIDUAL) -> TextHost:
    """A host of the network."""
    return TextHost(text(network))
