"""Projection of tilt series and scan patterns."""
