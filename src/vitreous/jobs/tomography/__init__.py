"""Simulation and reconstruction of tilt series."""
