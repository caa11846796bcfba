"""Sharpening and local resolution of half maps."""
