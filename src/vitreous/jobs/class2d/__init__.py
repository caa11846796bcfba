"""2D class averages."""
