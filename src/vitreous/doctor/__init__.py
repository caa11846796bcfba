"""Checks of a particle table against its images."""
