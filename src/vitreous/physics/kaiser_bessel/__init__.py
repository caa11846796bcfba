"""Kaiser-Bessel window functions as a basis of maps, and their normal equations."""
