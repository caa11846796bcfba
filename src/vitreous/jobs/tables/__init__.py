"""Particle tables converted and selected from."""
