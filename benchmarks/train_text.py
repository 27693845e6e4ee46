"""Trains a small text classifier on AG News: a network of token ids with answers worth an exit.

    python -m benchmarks.train_text FOLDER [--kind reader|encoder]    # torch, scipy

Both kinds are in ``benchmarks/encoder.py``: each layer of ``news_encoder`` sees all words, those of
``news_reader`` read on where the one before stopped, so that later ones know more. One takes up to
two minutes on an idle core.

Of the 14,931 training texts, 2,000 are kept from the network: heads are fitted on those, because
the features of texts it learned by heart are surer than those of others. The 7,600 test texts are
split into halves, for thresholds and for reports. FOLDER then has ``news.onnx``, ``news.pth`` and
``fit.npz``, ``calibrate.npz``, ``test.npz``.

With ``--last-only`` the loss sees the last layer alone, as in networks trained without exits in
mind; else a classifier behind each layer k of K too, weighted with 2 k / (K (K + 1)) (EENet,
section 2.2), which is thrown away. Networks start from word vectors made of the texts.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from benchmarks.encoder import NewsEncoder, NewsReader, news_encoder, news_reader
from benchmarks.machine import shared_data

__all__ = [
    "rows",
    "token_ids",
    "trained",
    "vocabulary",
    "word_vectors",
    "words",
]

SEED = 0
EPOCHS = 3
BATCH = 64
#: Texts that only heads are fitted on.
HELD_OUT = 2000
#: Ids of what is no word, and of words that are not in the vocabulary.
PADDING, UNKNOWN = 0, 1
#: Words further apart than this tell nothing of each other.
_WINDOW = 8


def rows(path: Path) -> tuple[list[str], np.ndarray]:
    """Texts and labels int64 (n,) of a file with ``label <tab> text`` in each line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t", 1) for line in file]
    return [text for _, text in pairs], np.array([int(label) for label, _ in pairs])


def words(text: str) -> list[str]:
    """Words and numbers in lower case, and a few marks that tell something.

    >>> words("Oil at $50: why, Reuters?")
    ['oil', 'at', '$', '50', 'why', 'reuters', '?']
    """
    return re.findall(r"[a-z0-9]+|[$%?!]", text.lower())


def vocabulary(texts: Iterable[str], size: int) -> dict[str, int]:
    """Ids of the words that most texts have, those of two texts or more; fewer than `size`.

    >>> vocabulary(["a b", "b a c", "b b"], 4)
    {'b': 2, 'a': 3}
    """
    counts = Counter(word for text in texts for word in sorted(set(words(text))))
    common = [word for word, count in counts.most_common(size - 2) if count > 1]
    return {word: id for id, word in enumerate(common, 2)}


def token_ids(texts: Sequence[str], known: Mapping[str, int], tokens: int) -> np.ndarray:
    """The first words' ids, int64 (n, tokens).

    >>> token_ids(["b a x", "a a a a a"], {"b": 2, "a": 3}, 4).tolist()
    [[2, 3, 1, 0], [3, 3, 3, 3]]
    """
    found = np.full((len(texts), tokens), PADDING, np.int64)
    for row, text in zip(found, texts, strict=True):
        ids = [known.get(word, UNKNOWN) for word in words(text)[:tokens]]
        row[: len(ids)] = ids
    return found


def word_vectors(ids: np.ndarray, count: int, width: int) -> np.ndarray:
    """Vectors of words by what stands near them, float32 (count, width).

    Singular vectors of the positive pointwise mutual information, whose counts fall with the root
    of the distance and are smoothed by the power 0.75 (Levy, Goldberg, Dagan 2015).
    """
    near = scipy.sparse.csr_matrix((count, count), dtype=np.float64)
    for distance in range(1, _WINDOW + 1):
        first, second = ids[:, :-distance].ravel(), ids[:, distance:].ravel()
        both = (first > UNKNOWN) & (second > UNKNOWN)
        weights = np.full(int(both.sum()), distance**-0.5)
        near = near + scipy.sparse.csr_matrix(
            (weights, (first[both], second[both])), shape=(count, count)
        )
    near = (near + near.T).tocoo()
    total = np.asarray(near.sum(axis=1)).ravel()
    share = total**0.75 / (total**0.75).sum()
    mutual = np.log(near.data / (total[near.row] * share[near.col]))
    positive = scipy.sparse.csr_matrix(
        (np.maximum(mutual, 0).astype(np.float32), (near.row, near.col)), shape=near.shape
    )
    left, strength, _ = svds(positive, k=width, v0=np.full(count, count**-0.5, np.float32))
    vectors = left * np.sqrt(strength)
    return np.asarray(0.1 * vectors / vectors.std(), np.float32)


def _with_words_missing(ids: Tensor) -> Tensor:
    """Three words in ten are unknown, so that no single one is relied on."""
    missing = (torch.rand(ids.shape) < 0.3) & (ids != PADDING)
    return torch.where(missing, UNKNOWN, ids)


#: Networks by kind.
KINDS: Mapping[str, Callable[[], NewsEncoder | NewsReader]] = {
    "encoder": news_encoder,
    "reader": news_reader,
}


def train(
    model: NewsEncoder | NewsReader,
    ids: np.ndarray,
    labels: np.ndarray,
    *,
    last_only: bool,
) -> None:
    """`EPOCHS` passes over the texts, which leave the network ready for use."""
    depth, classes = len(model.layers), model.classifier.out_features
    weights = [0.0] * (depth - 1) + [1.0]
    if not last_only:
        weights = [2 * k / (depth * (depth + 1)) for k in range(1, depth + 1)]
    helpers = nn.ModuleList(nn.Linear(width, classes) for width in model.widths[:-1])
    parameters = [*model.parameters(), *helpers.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.05)
    steps = len(ids) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, EPOCHS * steps, pct_start=0.15)
    x, y = torch.from_numpy(ids), torch.from_numpy(labels)
    model.train()
    for epoch in range(EPOCHS):
        losses = []
        for part in torch.split(torch.randperm(len(x))[: steps * BATCH], BATCH):
            pooled = model.pooled(_with_words_missing(x[part]))
            loss = torch.zeros(())
            for weight, head, row in zip(
                weights, [*helpers, model.classifier], pooled, strict=True
            ):
                if weight:
                    scores = head(row)
                    loss = loss + weight * F.cross_entropy(scores, y[part], label_smoothing=0.1)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    model.eval()


def trained(folder: Path, data: Path, kind: str, *, last_only: bool = False) -> Path:
    """The network and its data, made once for a folder: the path of ``news.onnx``."""
    path = folder / "news.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    texts, labels = rows(data / "agnews_train_15k.tsv.gz")
    test_texts, test_labels = rows(data / "agnews_test.tsv.gz")
    order = np.random.default_rng(SEED).permutation(len(texts))
    rest, held_out = order[HELD_OUT:], order[:HELD_OUT]
    model = KINDS[kind]()
    torch.set_num_threads(1)
    size, tokens = model.words.num_embeddings, len(model.places)
    known = vocabulary((texts[i] for i in rest), size)
    ids, test_ids = (token_ids(all_, known, tokens) for all_ in (texts, test_texts))
    vectors = word_vectors(ids[rest], size, model.words.embedding_dim)
    with torch.no_grad():
        model.words.weight.copy_(torch.from_numpy(vectors))
    train(model, ids[rest], labels[rest], last_only=last_only)
    half = len(test_ids) // 2
    order = np.random.default_rng(SEED).permutation(len(test_ids))
    np.savez(folder / "fit.npz", images=ids[held_out], labels=labels[held_out])
    for name, part in (("calibrate", order[:half]), ("test", order[half:])):
        np.savez(folder / f"{name}.npz", images=test_ids[part], labels=test_labels[part])
    print(f"  {100 * _accuracy(model, test_ids, test_labels):.2f} % of all test texts right")
    torch.save(model.state_dict(), folder / "news.pth")
    torch.onnx.export(
        model,
        (torch.from_numpy(test_ids[:1]),),
        str(path),
        input_names=["tokens"],
        output_names=["topic"],
        dynamo=False,
    )
    return path


def _accuracy(model: NewsEncoder | NewsReader, ids: np.ndarray, labels: np.ndarray) -> float:
    with torch.no_grad():
        parts = [model(part).argmax(1) for part in torch.split(torch.from_numpy(ids), 500)]
    return float((torch.cat(parts).numpy() == labels).mean())


def main() -> None:
    """Train, report, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--last-only", action="store_true", help="no classifiers behind layers")
    parser.add_argument("--kind", choices=KINDS, default="reader")
    options = parser.parse_args()
    print(trained(options.folder, shared_data(), options.kind, last_only=options.last_only))


if __name__ == "__main__":
    main()
