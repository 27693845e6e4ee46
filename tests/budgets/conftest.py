"""The demo network, built once, as tests of the command line have it."""

from tests.cli.conftest import built, cache, call, demo, images

__all__ = ["built", "cache", "call", "demo", "images"]
