"""Particles and maps as jobs read them."""
