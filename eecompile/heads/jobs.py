"""Fitting several heads at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from eecompile.heads.base import Array, Head
from eecompile.heads.one_core import one_core

__all__ = ["HeadJob", "fit_heads"]


@dataclass(frozen=True)
class HeadJob:
    """A head and the features recorded for it on the fit data, (n, ...)."""

    head: Head
    recorded: Array


def fit_heads(
    jobs: Mapping[str, HeadJob],
    labels: Array,
    classes: int,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str, str], None] | None = None,
) -> dict[str, dict[str, Array]]:
    """Parameters of each head, fitted `workers` at a time, on one core each.

    The result does not depend on `workers`.

    Args:
        jobs: name -> what to fit.
        labels: int64 (n,).
        classes: number of classes.
        seed: of every choice left to chance.
        workers: heads fitted at the same time.
        progress: told the job's name and what is being tried.
    """

    def fit(name: str) -> dict[str, Array]:
        job = jobs[name]
        told = None if progress is None else lambda text: progress(name, text)
        return job.head.fit(job.recorded, labels, classes, seed=seed, progress=told)

    with one_core(), ThreadPoolExecutor(workers) as pool:
        return dict(zip(jobs, pool.map(fit, jobs), strict=True))
