"""Keeping numpy's products on one core."""

from __future__ import annotations

from contextlib import AbstractContextManager

__all__ = ["one_core"]


def one_core() -> AbstractContextManager[object]:
    """While it is entered, a product runs on the core that asks for it.

    Products in fitting are small: shared among cores, each costs more in waiting than it saves, and
    ten times more on a machine that is busy otherwise. Several heads can be fitted side by side
    instead (`jobs.fit_heads`).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
