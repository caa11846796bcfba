"""Solvers of optimisation problems: ADMM, proximal maps, least squares, the one loop."""
