# ruff: noqa: E402 - everything below the first import needs torch
# mypy: disable-error-code="arg-type,index,misc,name-defined,no-any-return,operator,union-attr"
"""Small members of the families of networks that users bring, through the PyTorch host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch host needs torch")

import torch.nn.functional as F
from torch import Tensor, nn

from eecompile.ir import TensorType
from eecompile.passes.fx_export import export
from eecompile.passes.fx_host import FxHost
from eecompile.reference import run_graph
from eecompile.shapes import check_types


class SqueezeExcite(nn.Module):
    """MobileNetV3 and EfficientNet: depthwise convolution, channel attention, projection."""

    def __init__(self, act: Callable[..., nn.Module], gate: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), act(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False), nn.BatchNorm2d(16), act(inplace=True)
        )
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.relu, self.gate = nn.ReLU(inplace=True), gate()
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.gate(self.fc2(self.relu(self.fc1(self.squeeze(y))))) * y
        y = self.project(y)
        y += x
        return self.drop(y)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2) * self.scale
        return self.head((x + y).mean([-2, -1]))


class Shuffle(nn.Module):
    """ShuffleNetV2: half of the channels pass by, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.LeakyReLU(0.1, True),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
        return x.view(n, -1, h, w)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.elu(self.down(x))
        b = F.selu(self.deep(F.max_pool2d(a, 2, ceil_mode=True)))
        up = self.up(b)
        dy, dx = a.size(2) - up.size(2), a.size(3) - up.size(3)
        up = F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        wide = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        y = self.out(self.norm(torch.cat([a, up], 1)))
        return y, y + wide.mean(1, keepdim=True)


class TextCnn(nn.Module):
    """Kim's sentence classifier: parallel convolutions over embedded words, greatest over time."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(12, 6, k) for k in (2, 3, 4))
        self.fc = nn.Linear(18, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).transpose(1, 2)
        pooled = [
            F.max_pool1d(F.relu(c(x)), int(x.shape[2]) - c.kernel_size[0] + 1) for c in self.convs
        ]
        return F.log_softmax(self.fc(torch.cat([p.squeeze(2) for p in pooled], 1)), dim=1)


class Bert(nn.Module):
    """An encoder written out: embeddings, masked attention, post-norm, first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(n, 16) for n in (50, 20, 2))
        self.register_buffer("ids", torch.arange(20).expand((1, -1)), persistent=False)
        self.norm = nn.LayerNorm(16, eps=1e-12)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.output, self.after = nn.Linear(16, 16), nn.LayerNorm(16)
        self.pooler, self.classifier = nn.Linear(16, 16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], 4, 4).permute(0, 2, 1, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        places = self.ids[:, : tokens.size(1)]
        x = self.words(tokens) + self.places(places) + self.kinds(torch.zeros_like(tokens))
        x = self.dropout(self.norm(x))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        scores = self.heads(self.query(x)) @ self.heads(self.key(x)).transpose(-1, -2) / 4**0.5
        weights = self.dropout(F.softmax(scores + bias, dim=-1))
        y = (weights @ self.heads(self.value(x))).permute(0, 2, 1, 3).contiguous()
        x = self.after(self.output(y.view(*y.size()[:-2], 16)) + x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Swin(nn.Module):
    """Shifted windows with a relative position bias that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.randint(0, 9, (4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
        y = self.out(y.transpose(1, 2).reshape(-1, 4, c))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + torch.roll(y, (1, 1), (1, 2))


class Decoder(nn.Module):
    """A causal mask made on the fly, torch's own encoder layer, the greatest of the answers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.triu(torch.full((x.size(1), x.size(1)), float("-inf")), diagonal=1)
        y = self.encoder(x, mask=mask, is_causal=True)
        return y.max(-1).values, y.argmax(-1)


def _rescaled(model: nn.Module) -> nn.Module:
    """Running statistics that are not 0 and 1, so that normalisation does something."""
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "mobilenet_v3": (lambda: SqueezeExcite(nn.Hardswish, nn.Hardsigmoid), {"x": (1, 8, 9, 9)}),
    "efficientnet": (lambda: SqueezeExcite(nn.SiLU, nn.Sigmoid), {"x": (1, 8, 9, 9)}),
    "convnext": (ConvNeXt, {"x": (1, 3, 16, 16)}),
    "shufflenet": (Shuffle, {"x": (1, 12, 6, 6)}),
    "unet": (UNet, {"x": (1, 3, 11, 14)}),
    "textcnn": (TextCnn, {"tokens": (1, 15)}),
    "bert": (Bert, {"tokens": (1, 12), "mask": (1, 12)}),
    "swin": (Swin, {"x": (1, 4, 4, 8)}),
    "decoder": (Decoder, {"x": (1, 6, 8)}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_translated(name: str) -> None:
    build, shapes = FAMILIES[name]
    torch.manual_seed(0)
    model = _rescaled(build())
    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for key, shape in shapes.items():
        whole = rng.integers(0, 2 if key == "mask" else 50, shape)
        feed[key] = whole if key in ("tokens", "mask") else rng.normal(size=shape).astype("float32")
    types = {key: TensorType.of(array) for key, array in feed.items()}
    host = FxHost(export(model, types, (), name))
    with torch.no_grad():
        answers = model(*(torch.from_numpy(array.copy()) for array in feed.values()))
    expected = [t.numpy() for t in (answers if isinstance(answers, tuple) else (answers,))]
    graph = host.graph()
    assert check_types(graph) == []
    for own, torch_own, wanted in zip(
        run_graph(graph, feed).values(), host.run(feed).values(), expected, strict=True
    ):
        np.testing.assert_allclose(torch_own, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    assert host.batched
    doubled = {key: np.concatenate([array, array[:, ::-1]]) for key, array in feed.items()}
    for result, wanted in zip(host.run(doubled).values(), expected, strict=True):
        np.testing.assert_allclose(result[:1], wanted, rtol=1e-4, atol=1e-5)
