"""Particles and phantoms: what the physics acts on."""
