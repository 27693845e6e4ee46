"""Sharing the work with a server of the Open Inference Protocol."""

from eecompile.runtime.offload.breaker import Breaker
from eecompile.runtime.offload.client import Offloader

__all__ = ["Breaker", "Offloader"]
