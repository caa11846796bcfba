"""Reconstruction of tilt series."""
