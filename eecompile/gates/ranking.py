"""In which order to leave things out: what harms least for the work it saves comes first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

__all__ = ["Item", "Measured", "Ranked", "rank"]


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """Something that can be left out: a block, or a group of channels.

    Attributes:
        score: name of the score that decides about it.
        group: which of that score's.
    """

    score: str
    group: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A network with some things left out: how far its answers are off, and its work.

    Attributes:
        harm: 0 where nothing changed.
        work: of one sample.
    """

    harm: float
    work: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """An item and what leaving it out costs: harm for each unit of work, in the order's sense."""

    item: Item
    price: float


#: Sets of items left out -> what comes of each.
Measure = Callable[[Sequence[Collection[Item]]], Sequence[Measured]]


def rank(items: Sequence[Item], measure: Measure, levels: Sequence[float]) -> list[Ranked]:
    """The items in the order in which to leave them out, with prices that never fall.

    Each is measured beside all that were chosen before: those with the least harm for the work
    saved are chosen until a level is reached, then the others are measured again. What saves
    nothing is not in the order. O(#items * #levels) measurements.

    Args:
        items: all that can be left out.
        measure: what comes of leaving sets of them out.
        levels: falling shares of the whole network's work, where the others are measured again.

    >>> def measure(sets):
    ...     harms = {0: 1.0, 1: 0.1, 2: 0.5}
    ...     return [Measured(sum(harms[i.group] for i in s), 10 - len(s)) for s in sets]
    >>> found = rank([Item("a", 0), Item("a", 1), Item("a", 2)], measure, [0.9])
    >>> [(entry.item.group, entry.price) for entry in found]
    [(1, 0.1), (2, 0.5), (0, 1.0)]
    """
    (whole,) = measure([()])
    found: list[Ranked] = []
    left, now = sorted(items), whole
    for level in (*levels, 0.0):
        chosen = [entry.item for entry in found]
        sets = [(*chosen, item) for item in left]
        rows = list(zip(left, measure(sets), strict=True)) if left else []
        prices = sorted(
            (max(made.harm - now.harm, 0.0) / (now.work - made.work), item, now.work - made.work)
            for item, made in rows
            if made.work < now.work
        )
        work, least = now.work, found[-1].price if found else 0.0
        for price, item, saved in prices:
            if work <= level * whole.work:
                break
            least = max(least, price)
            found.append(Ranked(item, least))
            left.remove(item)
            work -= saved
        if level:
            (now,) = measure([tuple(entry.item for entry in found)])
    return found
