"""Runs artifacts: machine code, weights and exit policies, with numpy and ctypes only."""
