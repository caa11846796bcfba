"""Checks of a particle table, its corrected copy and its page."""
