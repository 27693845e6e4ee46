"""Cancelling: a word of memory for each call, that native code looks at.

The same mechanism as `ee_cancel`'s, whose one word changes hands by a compare-and-swap. Python has
none: here a call's word is no other call's for a while instead.
"""

from __future__ import annotations

import ctypes

__all__ = ["StopWord", "StopWords"]

#: Calls after which a word is used again. Whoever cancels has looked at it just before.
_WORDS = 64


class StopWord:
    """Not 0 once its call is cancelled.

    Attributes:
        address: of 4 bytes, for native code.
    """

    __slots__ = ("_word", "address")

    def __init__(self, word: ctypes.c_int32) -> None:
        self._word, self.address = word, ctypes.c_void_p(ctypes.addressof(word))

    def __bool__(self) -> bool:
        return self._word.value != 0

    def set(self) -> None:
        """The call is cancelled."""
        self._word.value = 1

    def clear(self) -> None:
        """A call begins."""
        self._word.value = 0


class StopWords:
    """Words of calls: each has its own, so that cancelling one that has ended reaches no other."""

    __slots__ = ("_next", "_words")

    def __init__(self) -> None:
        self._words = [StopWord(ctypes.c_int32()) for _ in range(_WORDS)]
        self._next = 0

    def begin(self) -> StopWord:
        """The word of a call that begins."""
        self._next = place = (self._next + 1) % _WORDS
        word = self._words[place]
        word.clear()
        return word
