"""Expectation maximisation over poses: initial model, search, refinement, belief tests."""
