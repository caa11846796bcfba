"""Compute kernels of the projector, its adjoint and the tilt projector: CPU and torch twins."""
