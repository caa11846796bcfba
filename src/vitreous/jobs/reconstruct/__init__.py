"""Reconstruction from known poses."""
