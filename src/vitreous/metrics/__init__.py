"""Scores: image similarity, agreement of clusterings, Fourier sampling, Fréchet distance."""
