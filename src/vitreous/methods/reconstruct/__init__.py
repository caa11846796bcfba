"""Reconstruction from known poses: gridding and model-based."""
