"""Notes on loops that survive lowering."""

from __future__ import annotations

__all__ = ["MOST"]

#: On a loop whose extent depends on data: the iterations that count as its work, of a loop that
#: threads share the most there are.
MOST = "eecompile.most"
