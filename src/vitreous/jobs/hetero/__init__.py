"""Sorting of mixed particles."""
