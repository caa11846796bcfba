"""Scores: images, clusterings, Fourier sampling, Fréchet distance, significance of a mean."""
