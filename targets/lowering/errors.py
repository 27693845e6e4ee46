"""What lowering cannot do, said with the operator it cannot do it for."""

from __future__ import annotations

from eecompile.ir import Op

__all__ = ["UnsupportedOperator"]


class UnsupportedOperator(ValueError):
    """`op` has no compiled form, or not with these types and attributes.

    Attributes:
        op: the operator.
        reason: why, in a few words, to follow the operator's name in a message.
    """

    def __init__(self, op: Op, reason: str) -> None:
        super().__init__(f"`{op.kind}` (`{op.name}`): {reason}")
        self.op = op
        self.reason = reason
