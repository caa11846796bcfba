"""Smaller, normalised particles, and background patches."""
