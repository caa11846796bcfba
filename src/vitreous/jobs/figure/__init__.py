"""Figures for papers from the output folder of a run."""
