"""Simulated particle sets with known truth."""
