"""Gates: what decides, for each input, which blocks and channels of a network to leave out."""

from __future__ import annotations

from eecompile.gates.places import ChannelPlace, Found, LayerBlock

__all__ = ["ChannelPlace", "Found", "LayerBlock"]
