"""Sharing the work with a server of the Open Inference Protocol."""

from eecompile.runtime.offload.breaker import Breaker
from eecompile.runtime.offload.client import Offloader
from eecompile.runtime.offload.wire import check_fit

__all__ = ["Breaker", "Offloader", "check_fit"]
