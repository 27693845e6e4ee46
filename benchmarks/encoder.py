"""A BERT-like text encoder, written out from the papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TextEncoder"]


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        """`heads` heads of width / heads each."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        return x.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, T, W] -> f32[N, T, W]."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5)
        mixed = (F.softmax(scores, dim=-1) @ value).transpose(1, 2)
        out: Tensor = self.output(mixed.reshape(x.shape))
        return out


class EncoderLayer(nn.Module):
    """Attention and two dense layers, each added to its input, then normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """`hidden` wide between the two dense layers."""
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, hidden)
        self.project = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, T, W] -> f32[N, T, W]."""
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.project(F.gelu(self.expand(x))))
        return out


class TextEncoder(nn.Module):
    """A BERT encoder with a classifier on its first token.

    Its input are embeddings: looking tokens up in a table is left to the caller. The layers are
    those of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding", 2019, section 3 (norms behind the layers, GELU, a tanh pooler); 6 layers 384
    wide are the size of MiniLM (Wang et al. 2020), 10.7 M parameters.
    """

    def __init__(
        self, depth: int = 6, width: int = 384, heads: int = 6, hidden: int = 1536, classes: int = 2
    ) -> None:
        """`depth` post-norm layers, then the pooler and the classifier."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layers = (EncoderLayer(width, heads, hidden) for _ in range(depth))
        self.layers = nn.Sequential(*layers)
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings f32[N, T, W] -> logits f32[N, classes]."""
        x = self.layers(self.norm(x))
        logits: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return logits
