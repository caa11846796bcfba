"""Heterogeneity: linear variability, 3D classification, clustering."""
