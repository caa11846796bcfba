"""Particles picked from micrographs."""
