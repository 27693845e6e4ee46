"""Clocks of a build: rules planned, checked, fitted, and replayed on recorded data."""
