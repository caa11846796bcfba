"""Loops of the projectors and of insertion: compiled for the CPU, and in torch."""
