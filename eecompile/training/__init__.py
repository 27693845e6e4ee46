"""Training of gates, and of networks together with them: the part of the compiler torch is for.

`eecompile.training.run.train` does it; `options` says what may be asked for.
"""
