"""Particles found in micrographs by templates."""
