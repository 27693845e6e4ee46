"""Fitting of learned scores: EENet's scheduler (arXiv 2301.07099), and a score of our own."""

from eecompile.learned.fitting import fit_learned

__all__ = ["fit_learned"]
