"""Grids, Fourier pair, rotations, symmetry, random streams, threads, errors."""
