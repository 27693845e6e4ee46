"""BERT-like text encoders, written out from the papers; nothing but torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NewsEncoder", "NewsReader", "TextEncoder", "news_encoder", "news_reader"]

#: Added to the attention of padding before the softmax, which makes it 0.
_HIDDEN = -1e4


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

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """f32[N, T, W] -> f32[N, T, W]; large negatives in `added` f32[N, 1, 1, T] hide tokens."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5)
        scores = scores if added is None else scores + added
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

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """f32[N, T, W] -> f32[N, T, W]; `added` is that of the attention."""
        x = self.norm1(x + self.attention(x, added))
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


class NewsEncoder(nn.Module):
    """A small encoder of token ids, with a classifier on the mean of its tokens.

    Id 0 is padding: no token attends to it. What stands at its places attends to the text like
    the rest, so that the mean over all places needs no mask.
    """

    def __init__(
        self,
        vocabulary: int,
        tokens: int,
        *,
        depth: int = 6,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        classes: int = 4,
    ) -> None:
        """`depth` layers for ids below `vocabulary`, `tokens` of them at once."""
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(depth))
        self.widths = [width] * depth
        self.classifier = nn.Linear(width, classes)

    def pooled(self, ids: Tensor) -> list[Tensor]:
        """i64[N, T] -> the mean over tokens behind each layer, f32[N, W]."""
        added = (ids == 0).float()[:, None, None] * _HIDDEN
        x = self.dropout(self.norm(self.words(ids) + self.places))
        found = []
        for layer in self.layers:
            x = layer(x, added)
            found.append(x.mean(1))
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """i64[N, T] -> logits f32[N, classes]."""
        logits: Tensor = self.classifier(self.pooled(ids)[-1])
        return logits


class ReadingLayer(nn.Module):
    """One encoder layer over the words of a passage, which know what was read before them."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """As for an encoder layer."""
        super().__init__()
        self.layer = EncoderLayer(width, heads, hidden)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, added: Tensor, state: Tensor | None) -> Tensor:
        """Words f32[N, T, W] and what was read f32[N, W] -> what is read now, f32[N, W]."""
        if state is None:
            read: Tensor = self.norm(self.layer(x, added).mean(1))
            return read
        read = self.norm(state + self.layer(x + state[:, None], added).mean(1))
        return read


class NewsReader(nn.Module):
    """A small encoder that reads a text passage by passage, one layer for each.

    What it knows behind a layer is one vector. Texts of news say first what they are about, so that
    many are told by their first words, and the others need not be read twice.
    """

    def __init__(
        self,
        vocabulary: int,
        passages: Sequence[int],
        *,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        classes: int = 4,
    ) -> None:
        """`passages` are the numbers of words each layer reads, of ids below `vocabulary`."""
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(sum(passages), width))
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places, std=0.02)
        self.ends = [sum(passages[:count]) for count in range(len(passages) + 1)]
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.ModuleList(ReadingLayer(width, heads, hidden) for _ in passages)
        self.widths = [width] * len(passages)
        self.classifier = nn.Linear(width, classes)

    def pooled(self, ids: Tensor) -> list[Tensor]:
        """i64[N, T] -> what is known behind each layer, f32[N, W]."""
        state, found = None, []
        for layer, (start, end) in zip(self.layers, pairwise(self.ends), strict=True):
            passage = ids[:, start:end]
            added = (passage == 0).float()[:, None, None] * _HIDDEN
            x = self.dropout(self.norm(self.words(passage) + self.places[start:end]))
            state = layer(x, added, state)
            found.append(state)
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """i64[N, T] -> logits f32[N, classes]."""
        logits: Tensor = self.classifier(self.pooled(ids)[-1])
        return logits


def news_reader() -> NewsReader:
    """What `benchmarks/train_text.py` trains on AG News too: 4 to 10 words a layer, 40 in all."""
    return NewsReader(12000, (4, 5, 6, 7, 8, 10))


def news_encoder() -> NewsEncoder:
    """What `benchmarks/train_text.py` trains on AG News: 12,000 words, 40 at once."""
    return NewsEncoder(12000, 40)
